//! Chains made by chance against umoci, and by the program itself: whatever the snapshotter, the threads and the way in, there is one
//! tree, mounted or unpacked. Wild chains are what umoci refuses or takes differently; of those only our own ways are compared.

use std::path::Path;
use std::time::SystemTime;

use crate::support::chains::{chain, outline, seeds};
use crate::support::image::{Image, image};
use crate::support::listing::{assert_same, difference_but_for_now, listing};
use crate::support::mounts::Unmount;
use crate::support::run::{command, run_with_input, transload};
use crate::support::scratch;
use crate::support::tools::{have, umoci_unpack};

const NAME: &str = "test/chain:1";

/// Imports into a store of its own and unpacks; `Err` with the sentence of a refusal.
fn imported(scratch: &Path, archive: &[u8], snapshotter: &str, threads: &str) -> Result<Vec<String>, String> {
    let store = scratch.join(format!("{snapshotter}-{threads}"));
    let words = ["import", "--snapshotter", snapshotter, "--threads", threads, "-"];
    let ran = run_with_input(&mut command(&store, words), archive);
    if ran.code != Some(0) {
        assert_eq!(ran.code, Some(3), "{}", ran.stderr);
        return Err(ran.stderr);
    }
    let at = scratch.join(format!("tree-{snapshotter}-{threads}"));
    transload(&store, ["unpack", NAME, &at.to_string_lossy()]).ok();
    Ok(listing(&at))
}

fn mounted(scratch: &Path) -> Vec<String> {
    let (store, at) = (scratch.join("overlay-1"), scratch.join("mounted"));
    std::fs::create_dir(&at).expect("a mount point");
    transload(&store, ["mount", NAME, &at.to_string_lossy()]).ok();
    let _unmount = Unmount(at.clone());
    let seen = listing(&at);
    transload(&store, ["umount", &at.to_string_lossy()]).ok();
    seen
}

/// The one tree of an image, however it is made; `None` where it is refused, which must not depend on how either.
fn one_tree(what: &str, scratch: &Path, image: Image) -> Option<Vec<String>> {
    let archive = image.name(NAME).oci();
    let first = imported(scratch, &archive, "overlay", "1");
    for (snapshotter, threads) in [("overlay", "8"), ("plain", "1"), ("plain", "8")] {
        let other = imported(scratch, &archive, snapshotter, threads);
        assert_eq!(first.is_ok(), other.is_ok(), "{what}, {snapshotter} {threads}: {:?}", first.or(other));
        if let (Ok(first), Ok(other)) = (&first, &other) {
            assert_same(&format!("{what}, {snapshotter} {threads}"), first, other);
        }
    }
    let first = first.ok()?;
    assert_same(&format!("{what}, mounted"), &first, &mounted(scratch));
    Some(first)
}

fn named(seed: u64, wild: bool) -> String {
    format!("chain {seed} ({})", outline(&chain(seed, wild)))
}

fn made_of(seed: u64, wild: bool) -> Image {
    chain(seed, wild).into_iter().fold(image(), Image::layer)
}

#[test]
fn tame_chains_made_by_chance_are_what_umoci_unpacks() {
    if !have(&["umoci"]) {
        return;
    }
    for seed in seeds(15, 400) {
        let (what, scratch, start) = (named(seed, false), scratch(), SystemTime::now());
        let image = made_of(seed, false);
        let ours = one_tree(&what, scratch.path(), image.clone());
        let ours = ours.unwrap_or_else(|| panic!("{what} is not imported"));
        image.name("x").oci_dir(&scratch.path().join("layout"));
        let bundle = scratch.path().join("bundle");
        let theirs = listing(&umoci_unpack(&scratch.path().join("layout"), "x", &bundle));
        let surprises: Vec<String> = difference_but_for_now(&ours, &theirs, start)
            .into_iter()
            .filter(|line| !line[2..].starts_with(". "))
            .collect();
        assert!(surprises.is_empty(), "{what}: - is ours, + is umoci's:\n{}", surprises.join("\n"));
    }
}

#[test]
fn wild_chains_made_by_chance_are_one_tree_or_none() {
    if !have(&[]) {
        return;
    }
    for seed in seeds(10, 400) {
        one_tree(&named(seed, true), scratch().path(), made_of(seed, true));
    }
}

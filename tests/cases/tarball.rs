//! T9: tars that two readers could take for two different trees. GNU tar's listing is the answer, or the layer is refused.

use crate::house::*;
use crate::support::image::*;
use crate::support::tools::skip;
use std::process::{Command, Stdio};
use tar::EntryType;

const END: [u8; 1024] = [0; 1024];

/// What GNU tar says is in a tar.
fn gnu_listing(tar: &[u8]) -> Option<Vec<String>> {
    let dir = crate::support::scratch();
    let path = dir.path().join("layer.tar");
    std::fs::write(&path, tar).expect("a file");
    let output = Command::new("tar").arg("-tf").arg(&path).env("LC_ALL", "C").stderr(Stdio::null()).output();
    let Ok(output) = output else {
        skip("GNU tar is not installed");
        return None;
    };
    Some(String::from_utf8(output.stdout).expect("text").lines().map(str::to_string).collect())
}

/// The layer imports, and holds what GNU tar lists, no more and no less.
#[track_caller]
fn holds_what_gnu_tar_lists(what: &str, tar: Vec<u8>, expected: &[&str]) {
    if !root() {
        return;
    }
    if let Some(listed) = gnu_listing(&tar) {
        assert_eq!(listed, expected, "{what}");
    }
    let (tree, _) = both_import(what, &several([raw_layer(tar)]));
    let names: Vec<&str> = tree[1..].iter().filter_map(|line| line.split(' ').next()).collect();
    assert_eq!(names, expected, "{what}: {tree:#?}");
}

/// A file of 512 bytes as a tar of its own, to be hidden in another one's data.
fn inner(name: &str) -> Vec<u8> {
    tar_member(EntryType::Regular, name, 512, &[b'x'; 512])
}

#[test]
fn t9_an_entry_hidden_behind_a_pax_size_stays_data() {
    let hidden = inner("hidden");
    let size = hidden.len().to_string();
    let tar = [
        pax(&[("size", &size)]),
        tar_member(EntryType::Regular, "outer", 0, &hidden),
        inner("last"),
        END.to_vec(),
    ];
    let tar = tar.concat();
    assert_eq!(gnu_listing(&tar).unwrap_or(vec!["outer".into(), "last".into()]), ["outer", "last"]);
    if !root() {
        return;
    }
    let (tree, _) = both_import("a PAX size", &several([raw_layer(tar)]));
    has(&tree, "outer file");
    has(&tree, "last file");
    lacks(&tree, "hidden");
}

#[test]
fn t9_a_pax_size_of_zero_makes_the_data_entries() {
    let tar =
        [pax(&[("size", "0")]), tar_member(EntryType::Regular, "a", 1024, &[]), inner("b"), END.to_vec()];
    holds_what_gnu_tar_lists("a PAX size of zero", tar.concat(), &["a", "b"]);
}

#[test]
fn t9_the_last_of_two_pax_sizes_counts() {
    let tar = [
        pax(&[("size", "0"), ("size", "1024")]),
        tar_member(EntryType::Regular, "a", 0, &inner("hidden")),
        inner("b"),
        END.to_vec(),
    ];
    holds_what_gnu_tar_lists("two sizes", tar.concat(), &["a", "b"]);
}

#[test]
fn t9_a_hard_link_with_a_size_has_no_data() {
    let link = |size| {
        let mut member = tar_member(EntryType::Link, "b", size, &[]);
        member[157] = b'a';
        let sum: u32 = member[..148].iter().chain(&member[156..512]).map(|&byte| u32::from(byte)).sum();
        member[148..156].copy_from_slice(format!("{:06o}\0 ", sum + 8 * 32).as_bytes());
        member
    };
    let tar = [tar_member(EntryType::Regular, "a", 0, &[]), link(1024), inner("c"), END.to_vec()];
    holds_what_gnu_tar_lists("a hard link with a size", tar.concat(), &["a", "b", "c"]);
}

#[test]
fn t9_extensions_that_cannot_be_read_are_refused() {
    let with = |records: &[u8]| {
        let header = tar_member(EntryType::XHeader, "PaxHeaders/x", records.len() as u64, records);
        several([raw_layer([header, inner("a"), END.to_vec()].concat())])
    };
    for records in [
        &b"99 size=0\n"[..],
        b"10 size=0\n",
        b"9 size=0\n0",
        b"size=0\n",
        b"12 size=-100\n",
        b"10 size=0x\n",
        b"9 pa\0th=\n",
        b"12 path=a\0b\n",
        b"32 size=99999999999999999999999\n",
    ] {
        both_refused(&format!("{:?}", String::from_utf8_lossy(records)), |_| with(records));
    }
    let global = b"10 size=0\n";
    let tar = [tar_member(EntryType::XGlobalHeader, "g", 10, global), inner("a"), END.to_vec()].concat();
    both_refused("a size for all entries", |_| several([raw_layer(tar.clone())]));
    let tar = [pax(&[("path", "a")]), END.to_vec()].concat();
    both_refused("an extension of nothing", |_| several([raw_layer(tar.clone())]));
}

#[test]
fn t9_the_outer_tar_is_read_by_the_same_rules() {
    let image = several([file("a", "1")]);
    let hidden = archive(&several([file("evil", "2")]).docker_members());
    let size = hidden.len().to_string();
    let shell = [pax(&[("size", &size)]), tar_member(EntryType::Regular, "README", 0, &hidden)].concat();
    let whole = [shell, image.docker()].concat();
    if root() {
        let (tree, _) = imports("an archive in an archive", &whole, NAME);
        has(&tree, "a file");
        lacks(&tree, "evil");
    }
}

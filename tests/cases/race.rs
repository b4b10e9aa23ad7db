//! T5: another process that may write to the store (nobody should) swaps a directory for a symbolic link while a layer is
//! extracted into it. The import may fail; what lies outside stays as it is.

use crate::house::*;
use crate::support::image::*;
use crate::support::listing::{assert_same, listing};
use rustix::fs::{CWD, RenameFlags, renameat_with};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Directories of the name `d` in trees that are being extracted.
fn victims(store: &Path) -> Vec<PathBuf> {
    let Ok(places) = std::fs::read_dir(store.join("ingest")) else { return Vec::new() };
    let places = places.filter_map(|entry| Some(entry.ok()?.path()));
    places.flat_map(|place| [place.join("fs/d"), place.join("d")]).filter(|path| path.exists()).collect()
}

/// Exchanges each with a link that leads outside, and back, until told to stop.
fn swap(store: &Path, link: &Path, stop: &AtomicBool, swaps: &AtomicU64) {
    while !stop.load(Ordering::Relaxed) {
        for victim in victims(store) {
            for _ in 0..20 {
                if renameat_with(CWD, &victim, CWD, link, RenameFlags::EXCHANGE).is_ok() {
                    swaps.fetch_add(1, Ordering::Relaxed);
                    std::thread::yield_now();
                    let _ = renameat_with(CWD, &victim, CWD, link, RenameFlags::EXCHANGE);
                }
            }
        }
    }
}

#[test]
fn t5_a_directory_swapped_for_a_link_during_extraction_leads_nowhere() {
    if !root() {
        return;
    }
    // New directories below `d` make the extraction walk through it again and again.
    let layer = (0..3000).fold(dir("d"), |layer, at| {
        layer.file(&format!("d/{at}/x"), "1").dir("d").mode(0o777).whiteout(&format!("d/{at}/victim"))
    });
    let bytes = one(layer.packed(Pack::Plain));
    let swaps = AtomicU64::new(0);
    // Confined and not: the handles must do it alone.
    for more in [&[][..], &["--no-confine"]] {
        let house = House::new();
        let before = listing(&house.outside());
        let link = house.dir.path().join("link");
        std::os::unix::fs::symlink(house.outside(), &link).expect("a link");
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| swap(&house.store(), &link, &stop, &swaps));
            for _ in 0..2 {
                let ran = house.import(Way::File, &bytes, more);
                assert!(ran.code.is_some(), "{}", ran.stderr);
            }
            stop.store(true, Ordering::Relaxed);
        });
        assert_same("a race", &before, &listing(&house.outside()));
    }
    assert!(swaps.into_inner() > 0, "nothing was ever swapped, so nothing was tested");
}

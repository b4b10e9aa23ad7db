//! Layers whose snapshots depend on what lies below: when they are not made to the end, and names that are linked anew.

use super::{House, everywhere, root};
use crate::support::image::{file, layer};
use rustix::fs::{FlockOperation, flock};
use transload::snapshot::{Bounds, Committed, Labels};
use transload::{ChainId, DiffId, ErrorKind};

#[test]
fn who_cancels_ends_the_making_of_a_snapshot_and_the_wait_for_another_maker() {
    if !root() {
        return;
    }
    for house in House::both() {
        let base = file("a", "1");
        house.chain(std::slice::from_ref(&base));
        let parent = ChainId::above(None, &base.diff_id().parse::<DiffId>().expect("a digest"));
        let top = house.tree(&layer().hardlink("b", "a"));
        let bounds = Bounds::default();
        bounds.cancel.cancel();
        let commit = || house.snapshots.commit_layer(Some(&parent), &top, &Labels::new(), &bounds);
        assert_eq!(commit().expect_err("cancelled").kind(), ErrorKind::Cancelled);
        let name = format!("snapshot-{}", ChainId::above(Some(&parent), &top).0.hex());
        let place = house.path(&format!("store/ingest/{name}"));
        let other = std::fs::File::open(place).expect("opens");
        flock(&other, FlockOperation::NonBlockingLockExclusive).expect("nobody else has it");
        assert_eq!(commit().expect_err("cancelled").kind(), ErrorKind::Cancelled);
        drop(other);
        assert_eq!(house.commit(Some(&parent), &top).expect("commits"), Committed::New);
    }
}

/// A link keeps the other names of its file with it, but not those that the layer gives to another file.
#[test]
fn a_name_that_is_linked_anew_leaves_the_file_that_had_it() {
    if !root() {
        return;
    }
    let base = file("a", "1").file("d", "2").hardlink("z", "d");
    let seen = everywhere("linked anew", &[base, layer().hardlink("c", "d").hardlink("z", "a")]);
    for (name, same) in [("d", "c"), ("z", "a")] {
        let line = seen.iter().find(|line| line.starts_with(&format!("{name} "))).expect(name);
        assert!(line.ends_with(&format!("same as {same}")), "{line}");
    }
}

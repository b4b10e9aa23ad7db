//! Several commits of one active snapshot at the same moment.

use super::{House, kind_of};
use crate::support::image::file;
use std::sync::Barrier;
use transload::ErrorKind;
use transload::metadata::{Metadata, OpenMode};
use transload::snapshot::{Labels, SnapshotFile};

/// Commits of one key at once: as the same name, as two, and beside one that is refused after it has written the file.
#[test]
fn of_commits_at_the_same_moment_one_succeeds_and_the_file_says_what_the_row_says() {
    let none = Labels::new();
    for house in House::both() {
        let s = &house.snapshots;
        let (below, other) = (house.chain(&[file("a", "1")]), house.chain(&[file("b", "1")]));
        for round in 0..40 {
            let (key, name, second) =
                (format!("key-{round}"), format!("one-{round}"), format!("two-{round}"));
            s.prepare(&key, Some(&below), &none).expect("prepares");
            let (second, rebase) = match round % 4 {
                0 => (&name, None),
                1 => (&second, None),
                _ => (&second, Some(other.as_str())),
            };
            let barrier = Barrier::new(2);
            let commit = |name: &str, rebase: Option<&str>| {
                barrier.wait();
                s.commit(name, &key, &none, rebase)
            };
            let (one, two) = std::thread::scope(|scope| {
                let one = scope.spawn(|| commit(&name, None));
                let two = commit(second, rebase);
                (one.join().expect("no panic"), two)
            });
            assert!(one.is_ok() != two.is_ok(), "{one:?} {two:?}");
            let committed: &str = if one.is_ok() { &name } else { second };
            house.assert_described(&[committed]);
            assert_eq!(kind_of(s.stat(&key)), ErrorKind::NotFound);
        }
    }
}

#[test]
fn a_commit_waits_for_another_of_the_same_key() {
    let none = Labels::new();
    for house in House::both() {
        let s = &house.snapshots;
        let root = house.dir.path().join("store");
        s.prepare("key", None, &none).expect("prepares");
        let row = s.stat("key").expect("there");
        let first = std::fs::File::open(root.join(format!("snapshots/{}", row.id))).expect("opens");
        first.lock().expect("nobody has it");
        let second = std::thread::scope(|scope| {
            let second = scope.spawn(|| s.commit("second", "key", &none, None));
            let metadata = Metadata::open(&root, OpenMode::Write).expect("a database");
            let row = metadata.snapshot_commit("key", "first", row.usage, &none, None).expect("commits");
            let store = std::fs::File::open(&root).expect("opens");
            SnapshotFile::of_row(&row).write(&store, row.id).expect("writes");
            drop(first);
            second.join().expect("no panic")
        });
        assert_eq!(kind_of(second), ErrorKind::NotFound);
        house.assert_described(&["first"]);
    }
}

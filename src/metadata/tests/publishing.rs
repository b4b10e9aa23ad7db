//! Naming and recording are one step.

use super::*;
use std::sync::atomic::{AtomicUsize, Ordering};

fn blob() -> BlobRow {
    BlobRow { digest: digest("a"), size_bytes: 3, head: None, durable: false }
}

fn tree() -> TreeRow {
    TreeRow { diff_id: DiffId(digest("a")), bytes: 3, inodes: 1, durable: false }
}

/// Four publishers with a handle each, as four processes have. Gives how many of them found it missing.
fn at_once(dir: &tempfile::TempDir, publish: impl Fn(&Metadata, &AtomicUsize) -> bool + Sync) -> usize {
    let named = AtomicUsize::new(0);
    let new = std::thread::scope(|scope| {
        let one = || publish(&open(dir.path()), &named);
        let publishers: Vec<_> = (0..4).map(|_| scope.spawn(one)).collect();
        publishers.into_iter().map(|one| usize::from(one.join().expect("no panic"))).sum::<usize>()
    });
    assert_eq!(named.load(Ordering::SeqCst), new, "who says that it is new has named it");
    new
}

#[test]
fn of_several_publishers_of_one_thing_one_gives_it_its_name() {
    let (dir, _metadata) = fresh();
    let count = |named: &AtomicUsize| {
        named.fetch_add(1, Ordering::SeqCst);
        Ok(())
    };
    let there = |named: &AtomicUsize| Ok(named.load(Ordering::SeqCst) > 0);
    let blobs =
        |m: &Metadata, n: &AtomicUsize| m.blob_publish(&blob(), || there(n), || count(n)).expect("publishes");
    assert_eq!(at_once(&dir, blobs), 1);
    let trees =
        |m: &Metadata, n: &AtomicUsize| m.tree_publish(&tree(), || there(n), || count(n)).expect("publishes");
    assert_eq!(at_once(&dir, trees), 1);
}

#[test]
fn what_got_no_name_is_not_recorded() {
    let (_dir, metadata) = fresh();
    let fail = || Err(Error::new(ErrorKind::NoSpace, "full"));
    assert_eq!(kind(metadata.blob_publish(&blob(), || Ok(false), fail)), ErrorKind::NoSpace);
    assert_eq!(kind(metadata.tree_publish(&tree(), || Ok(false), fail)), ErrorKind::NoSpace);
    assert_eq!(metadata.blob_get(&blob().digest).expect("reads"), None);
    assert_eq!(metadata.tree_get(&tree().diff_id).expect("reads"), None);
}

#[test]
fn what_takes_the_place_of_something_lost_is_synced_anew() {
    let (_dir, metadata) = fresh();
    metadata.blob_put(&[BlobRow { durable: true, ..blob() }]).expect("records");
    metadata.tree_put(&TreeRow { durable: true, ..tree() }).expect("records");
    let (there, name) = (|| Ok(true), || panic!("it is there"));
    assert!(!metadata.blob_publish(&blob(), there, name).expect("looks"));
    assert!(!metadata.tree_publish(&tree(), there, name).expect("looks"));
    assert!(metadata.blob_publish(&blob(), || Ok(false), || Ok(())).expect("publishes"));
    assert!(metadata.tree_publish(&tree(), || Ok(false), || Ok(())).expect("publishes"));
    assert_eq!(metadata.blob_get(&blob().digest).expect("reads"), Some(blob()));
    assert_eq!(metadata.tree_get(&tree().diff_id).expect("reads"), Some(tree()));
}

//! What happens between the mark and the sweep, and who may be at work at once.

use super::*;
use std::thread::ScopedJoinHandle;

/// Comes back when the other thread has opened a lock that this one holds, or has ended.
fn until_it_waits_for<T>(dir: &Path, lock: &str, other: &ScopedJoinHandle<'_, T>) {
    let path = dir.join(lock);
    let is_it = |entry: std::io::Result<std::fs::DirEntry>| {
        entry.and_then(|entry| std::fs::read_link(entry.path())).is_ok_and(|found| found == path)
    };
    let opened =
        || std::fs::read_dir("/proc/self/fd").expect("lists").filter_map(|e| is_it(e).then_some(())).count();
    while opened() < 2 && !other.is_finished() {
        std::thread::yield_now();
    }
}

#[test]
fn a_second_collection_is_refused_or_waits() {
    let (dir, store) = fresh();
    let lease = store.lease().expect("an import does not keep it out");
    gc(&store, &GcOptions::default()).expect("collects");
    drop(lease);
    let other = store.collection_lock(false, &Cancel::new()).expect("another collection");
    let busy = gc(&store, &GcOptions::default()).err().map(|error| error.kind());
    assert_eq!(busy, Some(ErrorKind::Busy));
    assert!(gc(&store, &dry()).is_ok());
    let cancelled = Cancel::new();
    cancelled.cancel();
    let error = gc(&store, &GcOptions { wait: true, cancel: cancelled, ..GcOptions::default() }).err();
    assert_eq!(error.map(|error| error.kind()), Some(ErrorKind::Cancelled));
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| gc(&store, &GcOptions { wait: true, ..GcOptions::default() }));
        until_it_waits_for(dir.path(), "collection.lock", &waiting);
        assert!(!waiting.is_finished());
        drop(other);
        waiting.join().expect("no panic").expect("collects");
    });
}

#[test]
fn a_cancelled_collection_leaves_the_rest_to_the_next() {
    let (dir, store) = fresh();
    put_image(dir.path(), &store, "a", &["base", "top"]);
    store.metadata().image_remove("a").expect("removes");
    let cancel = Cancel::new();
    cancel.cancel();
    let error = gc(&store, &GcOptions { cancel, ..GcOptions::default() }).err();
    assert_eq!(error.map(|error| error.kind()), Some(ErrorKind::Cancelled));
    let report = collect_now(&store);
    assert_eq!((report.blobs_removed, report.trees_removed, report.snapshots_removed), (4, 2, 2));
}

#[test]
fn what_an_import_has_put_on_its_lease_since_the_mark_stays() {
    let (dir, store) = fresh();
    let made = put_image(dir.path(), &store, "a", &["base", "top"]);
    store.metadata().image_remove("a").expect("removes");
    let plan = planned(&store);
    let lease = store.lease().expect("takes one");
    let held: Vec<Resource> = made.blobs.iter().map(|digest| Resource::Blob(*digest)).collect();
    lease.add(&held).expect("holds");
    lease.add(&made.trees.iter().map(|id| Resource::Tree(*id)).collect::<Vec<_>>()).expect("holds");
    lease
        .add(&made.chains.iter().map(|key| Resource::Snapshot(key.clone())).collect::<Vec<_>>())
        .expect("holds");
    let (report, complete) = sweep(&store, &plan);
    assert_eq!(
        (report.blobs_removed, report.trees_removed, report.snapshots_removed, complete),
        (0, 0, 0, true)
    );
    assert!(is_here(&store, &made));
}

#[test]
fn what_an_import_has_finished_since_the_mark_stays() {
    let (dir, store) = fresh();
    let made = put_image(dir.path(), &store, "a", &["base", "top"]);
    let row = store.metadata().image_get("a").expect("reads").expect("is there");
    store.metadata().image_remove("a").expect("removes");
    let plan = planned(&store);
    let again = NewImage { name: Some("b".into()), target: row.target, manifests: row.manifests };
    let commit =
        |references| ImageCommit { images: vec![again.clone()], references, ..ImageCommit::default() };
    store.metadata().image_put(&commit(Vec::new())).expect("commits");
    let (report, complete) = sweep(&store, &plan);
    assert_eq!(
        (report.blobs_removed, complete),
        (0, false),
        "a document that nobody looked into: mark again"
    );
    let looked_into =
        crate::upkeep::reach::look_into(&store, &made.manifest).expect("reads").expect("is there");
    store.metadata().image_put(&commit(vec![looked_into])).expect("commits");
    let (report, complete) = sweep(&store, &plan);
    assert_eq!((report.blobs_removed, report.snapshots_removed, complete), (0, 0, true));
    assert!(is_here(&store, &made));
    assert_eq!(collect_now(&store), GcReport::default());
}

#[test]
fn a_blob_that_is_being_written_is_left_alone() {
    let (_dir, store) = fresh();
    let digest = put(&store, b"garbage");
    let reference = crate::content::IngestRef::blob(&digest);
    let writer = store.content().begin(&reference, digest.algorithm()).expect("begins");
    assert_eq!(collect_now(&store).blobs_removed, 0);
    drop(writer);
    assert_eq!(collect_now(&store).blobs_removed, 1);
}

#[test]
fn a_mount_that_is_prepared_between_mark_and_sweep_keeps_its_chain() {
    let (dir, store) = fresh();
    let made = put_image(dir.path(), &store, "a", &["base", "top"]);
    store.metadata().image_remove("a").expect("removes");
    let plan = planned(&store);
    snapshot(&store, "rw", SnapshotKind::Active, Some(&made.chains[0]), None);
    let (report, _) = sweep(&store, &plan);
    assert_eq!((report.trees_removed, report.snapshots_removed, report.failed.len()), (1, 1, 0));
    assert!(dir.path().join("trees").join(made.trees[0].0.hex()).join("fs/etc/file").exists());
    assert!(store.metadata().tree_get(&made.trees[0]).expect("reads").is_some());
    assert_eq!(count(dir.path(), "snapshots"), 2);
}

#[test]
fn a_number_that_is_given_again_between_mark_and_sweep_keeps_its_directory() {
    let (dir, store) = fresh();
    let orphan = |id: u64| dir.path().join(format!("snapshots/{id}/fs"));
    for id in [1, 2] {
        std::fs::create_dir_all(orphan(id)).expect("creates");
    }
    let plan = planned(&store);
    assert_eq!(snapshot(&store, "rw", SnapshotKind::Active, None, None), 1);
    let (report, complete) = sweep(&store, &plan);
    assert_eq!((report.snapshots_removed, complete), (1, true));
    assert!(orphan(1).exists() && !orphan(2).exists());
}

#[test]
fn a_snapshot_that_was_made_again_under_its_key_since_the_mark_stays() {
    let (dir, store) = fresh();
    let key = ChainId(Digest::of(b"chain")).to_string();
    snapshot(&store, &key, SnapshotKind::Committed, None, None);
    let plan = planned(&store);
    store.snapshotter().remove(&key).expect("removes");
    let again = snapshot(&store, &key, SnapshotKind::Committed, None, None);
    assert_eq!(sweep(&store, &plan).0.snapshots_removed, 0);
    assert!(dir.path().join(format!("snapshots/{again}/fs")).exists());
}

#[test]
fn a_lease_that_was_renewed_while_a_collection_looked_goes_on() {
    let (_dir, store) = fresh();
    store.lease_create("mine", Some(1), &Labels::new()).expect("creates");
    let seen = store.metadata().leases().expect("lists").pop().expect("is there");
    store.lease_renew("mine", None).expect("renews");
    assert!(!store.metadata().lease_end(&seen).expect("looks"));
    assert_eq!(collect_now(&store).leases_removed, 0);
}

#[test]
fn nothing_is_swept_while_someone_publishes_without_the_working_place() {
    let (dir, store) = fresh();
    let garbage = put(&store, b"garbage");
    let publishing = store.sweep_lock_shared(&Cancel::new()).expect("locks");
    let cancel = Cancel::new();
    std::thread::scope(|scope| {
        let options = GcOptions { cancel: cancel.clone(), ..GcOptions::default() };
        let store = &store;
        let collecting = scope.spawn(move || gc(store, &options));
        until_it_waits_for(dir.path(), "sweep.lock", &collecting);
        cancel.cancel();
        let ended = collecting.join().expect("no panic").err().map(|error| error.kind());
        assert_eq!(ended, Some(ErrorKind::Cancelled));
    });
    assert!(store.content().stat(&garbage).expect("stats").is_some());
    drop(publishing);
    assert_eq!(collect_now(&store).blobs_removed, 1);
}

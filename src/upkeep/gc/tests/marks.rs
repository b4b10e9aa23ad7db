//! What is needed stays, and all else goes.

use super::*;

#[test]
fn an_image_stays_and_what_it_shares_stays_when_the_other_goes() {
    let (dir, store) = fresh();
    let kept = put_image(dir.path(), &store, "kept", &["base", "one"]);
    let gone = put_image(dir.path(), &store, "gone", &["base", "two"]);
    assert_eq!(collect_now(&store), GcReport::default());
    let estimate = would_free(&store, &["gone"]).expect("estimates");
    assert_eq!(would_free(&store, &[]).expect("estimates"), 0);
    store.metadata().image_remove("gone").expect("removes");
    let dry = gc(&store, &dry()).expect("plans");
    assert!(is_here(&store, &gone), "a dry run removes nothing");
    let report = collect_now(&store);
    assert_eq!(report, GcReport { items: Vec::new(), ..dry.clone() });
    assert_eq!(dry.items.len(), 5);
    assert_eq!((report.blobs_removed, report.trees_removed, report.snapshots_removed), (3, 1, 1));
    assert_eq!(report.bytes_freed, estimate);
    assert!(is_here(&store, &kept));
    assert_eq!((count(dir.path(), "trees"), count(dir.path(), "snapshots")), (2, 2));
    assert_eq!(count(dir.path(), "ingest"), 0);
    assert_eq!(store.content().stat(&gone.manifest).expect("stats"), None);
    assert_eq!(store.metadata().blob_get(&gone.manifest).expect("reads"), None);
    assert_eq!(collect_now(&store), GcReport::default(), "a second collection finds nothing");
}

#[test]
fn what_hangs_on_an_index_stays_also_without_rows() {
    let (_dir, store) = fresh();
    let leaf = put(&store, b"a signature that nobody recorded");
    let config = put(&store, b"{}");
    let entry = |digest: &Digest| serde_json::json!({"digest": digest, "size": 1});
    let manifest =
        serde_json::json!({"schemaVersion": 2, "config": entry(&config), "layers": [entry(&leaf)]});
    let manifest = put(&store, manifest.to_string().as_bytes());
    let absent = Digest::of(b"sparse");
    let inner = serde_json::json!({"schemaVersion": 2, "manifests": [entry(&manifest), entry(&absent)]});
    let inner = put(&store, inner.to_string().as_bytes());
    let outer = serde_json::json!({"schemaVersion": 2, "manifests": [entry(&inner), entry(&inner)]});
    let outer = put(&store, outer.to_string().as_bytes());
    let target = Descriptor::new(media_type::INDEX, outer, 1);
    let image = NewImage { name: None, target, manifests: Vec::new() };
    let commit = ImageCommit { images: vec![image], ..ImageCommit::default() };
    store.metadata().image_put(&commit).expect("commits");
    assert_eq!(collect_now(&store), GcReport::default());
    let freed = would_free(&store, &[&outer.to_string()]).expect("estimates");
    assert!(freed > 0, "an unnamed image is named by its target");
}

#[test]
fn an_unreadable_document_keeps_every_blob() {
    let (dir, store) = fresh();
    let made = put_image(dir.path(), &store, "a", &["base"]);
    let garbage = put(&store, b"garbage");
    let path = dir.path().join("blobs/sha256").join(made.manifest.hex());
    std::fs::remove_file(&path).expect("removes");
    std::fs::write(&path, r#"{"schemaVersion":2,"manifests":[]}"#).expect("writes");
    let report = gc(&store, &GcOptions::default()).expect("collects");
    assert_eq!(report.failed.len(), 1);
    assert!(store.content().stat(&garbage).expect("stats").is_some());
}

#[test]
fn snapshots_in_use_keep_their_chain_and_a_users_own_are_never_collected() {
    let (dir, store) = fresh();
    let made = put_image(dir.path(), &store, "a", &["base", "top"]);
    snapshot(&store, "rw", SnapshotKind::Active, Some(&made.chains[0]), None);
    snapshot(&store, "mine", SnapshotKind::Committed, None, None);
    store.metadata().image_remove("a").expect("removes");
    let report = collect_now(&store);
    assert_eq!((report.trees_removed, report.snapshots_removed), (1, 1));
    let keys: Vec<String> =
        store.metadata().snapshots().expect("lists").into_iter().map(|row| row.key).collect();
    assert_eq!(keys, [made.chains[0].as_str(), "rw", "mine"]);
    store.metadata().snapshot_remove("rw").expect("removes");
    let report = collect_now(&store);
    // The row of `rw` is gone already; its directory goes with the chain.
    assert_eq!((report.trees_removed, report.snapshots_removed), (1, 2));
    assert_eq!(count(dir.path(), "snapshots"), 1);
}

#[test]
fn a_lease_keeps_what_it_holds_and_a_dead_one_does_not() {
    let (dir, store) = fresh();
    let made = put_image(dir.path(), &store, "a", &["base", "top"]);
    let chain = made.chains.last().expect("two").clone();
    let none = Labels::new();
    let held = [Resource::Blob(made.manifest), Resource::Snapshot(chain)];
    store.metadata().lease_create("pin", None, &none).expect("creates");
    store.metadata().lease_add("pin", &held).expect("adds");
    store.metadata().image_remove("a").expect("removes");
    assert_eq!(collect_now(&store), GcReport::default());
    assert!(is_here(&store, &made));
    store.metadata().lease_remove("pin").expect("removes");
    let process = [(crate::store::PROCESS_LABEL.to_string(), "1".to_string())].into();
    store.metadata().lease_create("dead", None, &process).expect("creates");
    store.metadata().lease_add("dead", &held).expect("adds");
    let report = collect_now(&store);
    assert_eq!((report.leases_removed, report.trees_removed, report.blobs_removed), (1, 2, 4));
    assert!(store.metadata().leases().expect("lists").is_empty());
}

#[test]
fn what_a_crash_left_is_swept_and_work_in_progress_is_not() {
    let (dir, store) = fresh();
    let orphan = store.content().put_document(b"no row", false).expect("puts").digest();
    let path = |name: &str| dir.path().join(name);
    std::fs::create_dir_all(path("ingest/blob-dead/deeper")).expect("creates");
    std::fs::write(path("ingest/blob-dead/data"), "half").expect("writes");
    std::fs::write(path("ingest/stray"), "file").expect("writes");
    std::fs::create_dir_all(path("snapshots/77/fs")).expect("creates");
    std::fs::create_dir_all(path("snapshots/notes")).expect("creates");
    std::fs::create_dir_all(path(&format!("trees/{}/fs", Digest::of(b"t").hex()))).expect("creates");
    let working = LockedDir::try_acquire(store.content().ingests(), "blob-alive").expect("locks");
    let report = collect_now(&store);
    let removed =
        (report.blobs_removed, report.trees_removed, report.snapshots_removed, report.ingests_removed);
    assert_eq!(removed, (1, 1, 1, 2));
    assert_eq!(store.content().stat(&orphan).expect("stats"), None);
    assert!(path("ingest/blob-alive").exists() && path("snapshots/notes").exists());
    drop(working);
    assert_eq!(collect_now(&store).ingests_removed, 1);
}

#[test]
fn a_removal_that_fails_does_not_keep_the_others_from_happening() {
    let (dir, store) = fresh();
    let diff_id = put_tree(dir.path(), &store, "stuck");
    put_tree(dir.path(), &store, "free");
    let stuck = dir.path().join("trees").join(diff_id.0.hex());
    let mount = |args: &[&std::ffi::OsStr]| {
        std::process::Command::new("mount").args(args).output().is_ok_and(|output| output.status.success())
    };
    if !mount(&["-t".as_ref(), "tmpfs".as_ref(), "tmpfs".as_ref(), stuck.as_ref()]) {
        return eprintln!("SKIPPED: no right to mount");
    }
    let report = gc(&store, &GcOptions::default());
    let unmounted = std::process::Command::new("umount").arg(&stuck).status();
    assert!(unmounted.is_ok_and(|status| status.success()));
    let report = report.expect("collects");
    assert_eq!((report.trees_removed, report.bytes_freed, report.failed.len()), (1, 100, 1));
    assert_eq!(collect_now(&store).trees_removed, 1, "the next collection finds it without its row");
}

#[test]
fn a_snapshot_whose_mount_is_gone_goes_and_one_that_may_be_mounted_stays() {
    let (dir, store) = fresh();
    let made = put_image(dir.path(), &store, "a", &["base", "top"]);
    let elsewhere = dir.path().join("never mounted");
    let labels = crate::store::mounted::labels_of_mount(&elsewhere);
    let seen_from = labels.keys().find(|key| key.contains("seen")).expect("where it was mounted").clone();
    let (boot, processes) = labels[&seen_from].split_once(' ').expect("two words");
    let with =
        |text: String| Labels::from_iter(labels.clone().into_iter().chain([(seen_from.clone(), text)]));
    let mut unlabelled = labels.clone();
    unlabelled.remove(&seen_from);
    let root = crate::store::mounted::labels_of_mount(Path::new("/"));
    let table = [
        ("gone", labels.clone(), false),
        ("of another boot", with(format!("another {processes}")), false),
        ("seen by other processes", with(format!("{boot} pid:[1]")), true),
        ("who knows where", unlabelled, true),
        ("whose place shows something else", root, false),
    ];
    for (key, labels, _) in &table {
        let new = NewSnapshot {
            key,
            kind: SnapshotKind::Active,
            parent: Some(&made.chains[1]),
            tree: None,
            heal: false,
            labels,
            usage: Usage::default(),
        };
        let id = store.metadata().snapshot_create(&new).expect("creates").id;
        std::fs::create_dir_all(dir.path().join(format!("snapshots/{id}/fs"))).expect("creates");
    }
    assert_eq!(collect_now(&store).snapshots_removed, 3);
    for (key, _, stays) in &table {
        assert_eq!(store.metadata().snapshot_get(key).expect("reads").is_some(), *stays, "{key}");
    }
    assert!(is_here(&store, &made));
    assert_eq!(count(dir.path(), "snapshots"), 2 + 2);
}

#[test]
fn snapshots_that_a_killed_import_left_go_after_a_reboot() {
    let (dir, store) = fresh();
    let made = put_image(dir.path(), &store, "a", &["base", "top"]);
    store.metadata().image_remove("a").expect("removes");
    let durable = [Resource::Snapshot(made.chains[0].clone())];
    store.metadata().mark_durable(&durable).expect("marks");
    reboot(&store);
    assert_eq!(store.metadata().snapshot_get(&made.chains[1]).expect("reads"), None, "nobody trusts it");
    let would = gc(&store, &dry()).expect("plans");
    let report = collect_now(&store);
    assert_eq!((would.snapshots_removed, report.snapshots_removed, report.trees_removed), (2, 2, 2));
    assert_eq!(
        (count(dir.path(), "snapshots"), store.metadata().snapshot_ids().expect("lists")),
        (0, vec![])
    );
}

#[test]
fn snapshots_of_an_earlier_boot_stay_below_what_is_in_use_and_while_a_lease_has_them() {
    let (dir, store) = fresh();
    let made = put_image(dir.path(), &store, "a", &["base", "top"]);
    snapshot(&store, "rw", SnapshotKind::Active, Some(&made.chains[0]), None);
    store.metadata().image_remove("a").expect("removes");
    let lease = store.lease().expect("takes one");
    lease.add(&[Resource::Snapshot(made.chains[1].clone())]).expect("holds");
    reboot(&store);
    assert_eq!(collect_now(&store).snapshots_removed, 0);
    drop(lease);
    let report = collect_now(&store);
    assert_eq!((report.snapshots_removed, report.trees_removed), (1, 1));
    assert!(dir.path().join("trees").join(made.trees[0].0.hex()).join("fs/etc/file").exists());
    assert_eq!(count(dir.path(), "snapshots"), 2);
}

#[test]
fn a_label_that_cannot_be_read_keeps_its_snapshot_and_nothing_else() {
    use crate::store::mounted::TARGET_LABEL;
    let (dir, store) = fresh();
    let garbage = put_tree(dir.path(), &store, "garbage");
    let id = snapshot(&store, "odd", SnapshotKind::Active, None, None);
    let labels = Labels::from([(TARGET_LABEL.to_string(), "/%zz".to_string())]);
    store.metadata().snapshot_update_labels("odd", &labels).expect("labels");
    let report = gc(&store, &GcOptions::default()).expect("collects");
    assert_eq!((report.trees_removed, report.snapshots_removed), (1, 0), "{:?}", report.failed);
    assert!(!dir.path().join("trees").join(garbage.0.hex()).exists());
    assert!(dir.path().join(format!("snapshots/{id}")).exists());
}

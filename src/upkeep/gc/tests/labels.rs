//! Labels and leases keep what they say they keep.

use super::*;

#[test]
fn labels_keep_what_they_refer_to_as_in_containerd() {
    use crate::metadata::Labelled;
    let (dir, store) = fresh();
    put_image(dir.path(), &store, "a", &["base"]);
    let [kept, by_label, root, garbage] =
        ["kept", "by label", "root", "garbage"].map(|text| put(&store, text.as_bytes()));
    label(&store, Labelled::Image("a"), "containerd.io/gc.ref.content.0", &kept.to_string());
    label(&store, Labelled::Blob(&kept), "containerd.io/gc.ref.content/x", &by_label.to_string());
    label(&store, Labelled::Blob(&root), "containerd.io/gc.root", "2026-01-01");
    let id =
        snapshot(&store, &ChainId(Digest::of(b"chain")).to_string(), SnapshotKind::Committed, None, None);
    label(
        &store,
        Labelled::Blob(&root),
        "containerd.io/gc.ref.snapshot.overlayfs",
        &ChainId(Digest::of(b"chain")).to_string(),
    );
    assert_eq!(collect_now(&store).blobs_removed, 1);
    let here = |digest: &Digest| store.content().stat(digest).expect("stats").is_some();
    assert_eq!([&kept, &by_label, &root, &garbage].map(here), [true, true, true, false]);
    assert!(dir.path().join(format!("snapshots/{id}")).exists());
    store.metadata().labels_set(Labelled::Blob(&root), &Labels::new()).expect("clears");
    let report = collect_now(&store);
    assert_eq!((report.blobs_removed, report.snapshots_removed), (1, 1));
}

#[test]
fn a_label_that_is_set_during_a_collection_makes_it_mark_again() {
    use crate::metadata::Labelled;
    let (dir, store) = fresh();
    put_image(dir.path(), &store, "a", &["base"]);
    let wanted = put(&store, b"wanted");
    let plan = planned(&store);
    label(&store, Labelled::Image("a"), "containerd.io/gc.ref.content", &wanted.to_string());
    assert!(!sweep(&store, &plan).1);
    assert_eq!(collect_now(&store), GcReport::default());
}

#[test]
fn a_flat_lease_holds_the_index_alone_and_expired_things_hold_nothing() {
    use crate::metadata::Labelled;
    let (dir, store) = fresh();
    let made = put_image(dir.path(), &store, "a", &["base"]);
    let labels = |name: &str, value: &str| Labels::from([(name.to_string(), value.to_string())]);
    let past = "2001-01-01T00:00:00Z";
    store.lease_create("flat", None, &labels("containerd.io/gc.flat", "")).expect("creates");
    store.lease_create("over", None, &labels("containerd.io/gc.expire", past)).expect("creates");
    store.metadata().lease_add("flat", &[Resource::Blob(made.manifest)]).expect("adds");
    store.metadata().lease_add("over", &[Resource::Blob(made.blobs[0])]).expect("adds");
    label(&store, Labelled::Image("a"), "containerd.io/gc.expire", past);
    let report = collect_now(&store);
    assert_eq!(
        (report.images_removed, report.leases_removed, report.blobs_removed),
        (vec!["a".to_string()], 1, 2)
    );
    assert!(store.content().stat(&made.manifest).expect("stats").is_some());
}

#[test]
fn a_lease_on_a_document_that_nobody_looked_into_makes_the_collection_mark_again() {
    let (_dir, store) = fresh();
    let config = put(&store, b"{}");
    let leaf = put(&store, b"a layer");
    let entry = |digest: &Digest| serde_json::json!({"digest": digest, "size": 1});
    let json = serde_json::json!({"schemaVersion": 2, "config": entry(&config), "layers": [entry(&leaf)]});
    let manifest = put(&store, json.to_string().as_bytes());
    let plan = planned(&store);
    store.lease_create("mine", None, &Labels::new()).expect("creates");
    store.lease_add("mine", &[Resource::Blob(manifest)]).expect("adds");
    assert!(!sweep(&store, &plan).1);
    assert_eq!(collect_now(&store), GcReport::default());
    store.lease_end("mine").expect("ends");
    assert_eq!(collect_now(&store).blobs_removed, 3);
}

const TO_SNAPSHOT: &str = "containerd.io/gc.ref.snapshot.overlayfs";

fn label_snapshot(store: &Store, key: &str, name: &str, value: &str) {
    let labels = Labels::from([(name.to_string(), value.to_string())]);
    store.metadata().snapshot_update_labels(key, &labels).expect("labels");
}

/// Committed snapshots as an import makes them, which no image has.
fn chains(store: &Store, names: &[&str]) -> Vec<String> {
    let key = |name: &&str| ChainId(Digest::of(name.as_bytes())).to_string();
    let keys: Vec<String> = names.iter().map(key).collect();
    for key in &keys {
        snapshot(store, key, SnapshotKind::Committed, None, None);
    }
    keys
}

#[test]
fn snapshots_that_only_name_each_other_go() {
    let (dir, store) = fresh();
    let keys = chains(&store, &["one", "two", "itself"]);
    label_snapshot(&store, &keys[0], TO_SNAPSHOT, &keys[1]);
    label_snapshot(&store, &keys[1], TO_SNAPSHOT, &keys[0]);
    label_snapshot(&store, &keys[2], TO_SNAPSHOT, &keys[2]);
    let blob = put(&store, b"named by a snapshot that nothing needs");
    let content = [("containerd.io/gc.ref.content".to_string(), blob.to_string())];
    let labels: Labels = content.into_iter().chain([(TO_SNAPSHOT.to_string(), keys[1].clone())]).collect();
    store.metadata().snapshot_update_labels(&keys[0], &labels).expect("labels");
    let report = collect_now(&store);
    assert_eq!((report.snapshots_removed, report.blobs_removed), (3, 1));
    assert_eq!(count(dir.path(), "snapshots"), 0);
}

#[test]
fn a_snapshot_labelled_as_a_root_keeps_a_circle_alive() {
    let (_dir, store) = fresh();
    let keys = chains(&store, &["root", "one", "two"]);
    label_snapshot(&store, &keys[1], TO_SNAPSHOT, &keys[2]);
    label_snapshot(&store, &keys[2], TO_SNAPSHOT, &keys[1]);
    let root = [("containerd.io/gc.root", "now"), (TO_SNAPSHOT, keys[2].as_str())];
    let labels = root.map(|(name, value)| (name.to_string(), value.to_string()));
    store.metadata().snapshot_update_labels(&keys[0], &Labels::from(labels)).expect("labels");
    assert_eq!(collect_now(&store).snapshots_removed, 0);
    store.metadata().snapshot_update_labels(&keys[0], &Labels::new()).expect("labels");
    assert_eq!(collect_now(&store).snapshots_removed, 3);
}

#[test]
fn what_stands_since_the_mark_on_a_snapshot_keeps_all_that_this_refers_to() {
    let (_dir, store) = fresh();
    let keys = chains(&store, &["below", "carrier", "named", "other"]);
    label_snapshot(&store, &keys[1], TO_SNAPSHOT, &keys[2]);
    label_snapshot(&store, &keys[2], TO_SNAPSHOT, &keys[3]);
    let plan = planned(&store);
    snapshot(&store, "mine", SnapshotKind::Committed, Some(&keys[1]), None);
    assert_eq!(sweep(&store, &plan).0.snapshots_removed, 1, "only what nothing stands on or refers to");
    assert_eq!(collect_now(&store), GcReport::default());
}

#[test]
fn what_a_flat_lease_holds_is_held_with_its_labels_by_an_image() {
    use crate::metadata::Labelled;
    let (dir, store) = fresh();
    let made = put_image(dir.path(), &store, "a", &["base"]);
    let wanted = put(&store, b"wanted");
    label(&store, Labelled::Blob(&made.blobs[0]), "containerd.io/gc.ref.content", &wanted.to_string());
    let flat = Labels::from([("containerd.io/gc.flat".to_string(), String::new())]);
    store.lease_create("flat", None, &flat).expect("creates");
    store.lease_add("flat", &[Resource::Blob(made.blobs[0])]).expect("adds");
    assert_eq!(collect_now(&store), GcReport::default());
}

const TO_IMAGE: &str = "containerd.io/gc.ref.image";

#[test]
fn an_image_that_a_label_refers_to_goes_neither_by_its_expiry_nor_by_a_policy() {
    use crate::metadata::Labelled;
    let (dir, store) = fresh();
    let names = ["docker.io/library/a:latest", "docker.io/r/b:1", "docker.io/r/c:1"];
    let made = names.map(|name| put_image(dir.path(), &store, name, &[name]));
    let expire =
        |name| label(&store, Labelled::Image(name), "containerd.io/gc.expire", "2001-01-01T00:00:00Z");
    names.iter().copied().for_each(expire);
    // One by a snapshot in use, the next by that; two that nothing else needs refer to each other in vain.
    snapshot(&store, "vm", SnapshotKind::Active, None, None);
    label_snapshot(&store, "vm", "containerd.io/gc.ref.image.base", "a");
    label(&store, Labelled::Image(names[0]), TO_IMAGE, names[1]);
    label(&store, Labelled::Image(names[2]), TO_IMAGE, names[2]);
    let all = GcOptions { older_than: Some(Duration::ZERO), ..GcOptions::default() };
    for dry_run in [true, false] {
        let report = gc(&store, &GcOptions { dry_run, ..all.clone() }).expect("collects");
        assert_eq!(report.images_removed, [names[2]]);
    }
    assert_eq!(made.each_ref().map(|made| is_here(&store, made)), [true, true, false]);
    label_snapshot(&store, "vm", "none", "");
    assert_eq!(gc(&store, &GcOptions::default()).expect("collects").images_removed.len(), 2);
}

#[test]
fn a_flat_lease_holds_a_snapshot_with_its_parents_and_without_what_they_refer_to() {
    let (_dir, store) = fresh();
    let [below, top] = ["below", "top"].map(|name| ChainId(Digest::of(name.as_bytes())).to_string());
    snapshot(&store, &below, SnapshotKind::Committed, None, None);
    snapshot(&store, &top, SnapshotKind::Committed, Some(&below), None);
    let named = [&below, &top].map(|key| {
        let blob = put(&store, key.as_bytes());
        label_snapshot(&store, key, "containerd.io/gc.ref.content", &blob.to_string());
        blob
    });
    let flat = Labels::from([("containerd.io/gc.flat".to_string(), String::new())]);
    store.lease_create("flat", None, &flat).expect("creates");
    store.lease_add("flat", &[Resource::Snapshot(top.clone())]).expect("adds");
    let report = collect_now(&store);
    assert_eq!((report.snapshots_removed, report.blobs_removed), (0, 2));
    assert!(named.iter().all(|blob| store.content().stat(blob).expect("stats").is_none()));
}

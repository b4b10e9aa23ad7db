use super::super::du;
use super::*;
use crate::metadata::{
    BlobRow, ImageCommit, Labels, ManifestRow, NewImage, NewSnapshot, Resource, SnapshotKind, TreeRow, Usage,
};
use crate::oci::{ChainId, Descriptor, Platform, media_type};
use crate::store::StoreOptions;
use std::path::Path;

fn open(path: &Path) -> Store {
    Store::open(path, &StoreOptions { create: true, ..StoreOptions::default() }).expect("opens")
}

fn fresh() -> (tempfile::TempDir, Store) {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let store = open(dir.path());
    (dir, store)
}

fn put(store: &Store, bytes: &[u8]) -> Digest {
    let digest = store.content().put_document(bytes, false).expect("puts").digest();
    let row = BlobRow { digest, size_bytes: bytes.len() as u64, head: None, durable: true };
    store.metadata().blob_put(&[row]).expect("records");
    digest
}

fn put_tree(dir: &Path, store: &Store, text: &str) -> DiffId {
    let diff_id = DiffId(Digest::of(text.as_bytes()));
    let fs = dir.join("trees").join(diff_id.0.hex()).join("fs");
    std::fs::create_dir_all(fs.join("etc")).expect("creates");
    std::fs::write(fs.join("etc/file"), text).expect("writes");
    store.metadata().tree_put(&TreeRow { diff_id, bytes: 100, inodes: 4, durable: true }).expect("records");
    diff_id
}

fn snapshot(store: &Store, key: &str, kind: SnapshotKind, parent: Option<&str>, tree: Option<DiffId>) -> u64 {
    let labels = Labels::new();
    let usage = Usage::default();
    let new = NewSnapshot { key, kind, parent, tree, heal: false, labels: &labels, usage };
    let id = store.metadata().snapshot_create(&new).expect("creates").id;
    std::fs::create_dir_all(store.path().join(format!("snapshots/{id}/fs"))).expect("creates");
    id
}

struct Made {
    manifest: Digest,
    blobs: Vec<Digest>,
    trees: Vec<DiffId>,
    chains: Vec<String>,
}

/// An image of these layers, unpacked, as an import leaves it; `target` turns its manifest into what the name points at.
fn put_image(dir: &Path, store: &Store, name: &str, layers: &[&str]) -> Made {
    let config = put(store, format!(r#"{{"config of":"{name}"}}"#).as_bytes());
    let blobs: Vec<Digest> =
        layers.iter().map(|layer| put(store, format!("layer {layer}").as_bytes())).collect();
    let trees: Vec<DiffId> = layers.iter().map(|layer| put_tree(dir, store, layer)).collect();
    let chain_ids = ChainId::of(&trees);
    let chains: Vec<String> = chain_ids.iter().map(ChainId::to_string).collect();
    for (at, chain) in chains.iter().enumerate() {
        if store.metadata().snapshot_get(chain).expect("reads").is_none() {
            let parent = at.checked_sub(1).map(|below| chains[below].as_str());
            snapshot(store, chain, SnapshotKind::Committed, parent, Some(trees[at]));
        }
    }
    let descriptor = |digest: &Digest| serde_json::json!({"mediaType": "x", "digest": digest, "size": 1});
    let json = serde_json::json!({
        "schemaVersion": 2, "config": descriptor(&config),
        "layers": blobs.iter().map(descriptor).collect::<Vec<_>>(),
    });
    let manifest = put(store, json.to_string().as_bytes());
    let row = ManifestRow {
        digest: manifest,
        config,
        platform: Platform::new("linux", "amd64", None),
        chain_id: chain_ids.last().copied(),
        layers: blobs.iter().copied().zip(trees.iter().copied()).collect(),
        size_bytes: 1,
    };
    let target = Descriptor::new(media_type::MANIFEST, manifest, 1);
    let image = NewImage { name: Some(name.to_string()), target, manifests: vec![row] };
    let commit = ImageCommit { images: vec![image], ..ImageCommit::default() };
    store.metadata().image_put(&commit).expect("commits");
    let blobs = blobs.into_iter().chain([config, manifest]).collect();
    Made { manifest, blobs, trees, chains }
}

fn collect_now(store: &Store) -> GcReport {
    let report = gc(store, &GcOptions::default()).expect("collects");
    assert_eq!(report.failed, []);
    report
}

fn is_here(store: &Store, made: &Made) -> bool {
    let blob = |digest: &Digest| store.content().stat(digest).expect("stats").is_some();
    let tree =
        |diff_id: &DiffId| store.path().join("trees").join(diff_id.0.hex()).join("fs/etc/file").exists();
    let chain = |key: &String| store.metadata().snapshot_get(key).expect("reads").is_some();
    made.blobs.iter().all(blob) && made.trees.iter().all(tree) && made.chains.iter().all(chain)
}

fn count(dir: &Path, name: &str) -> usize {
    std::fs::read_dir(dir.join(name)).expect("lists").count()
}

#[test]
fn an_image_stays_and_what_it_shares_stays_when_the_other_goes() {
    let (dir, store) = fresh();
    let kept = put_image(dir.path(), &store, "kept", &["base", "one"]);
    let gone = put_image(dir.path(), &store, "gone", &["base", "two"]);
    assert_eq!(collect_now(&store), GcReport::default());
    let estimate = would_free(&store, &["gone"]).expect("estimates");
    assert_eq!(would_free(&store, &[]).expect("estimates"), 0);
    store.metadata().image_remove("gone").expect("removes");
    let dry = gc(&store, &GcOptions { dry_run: true, wait: None }).expect("plans");
    assert!(is_here(&store, &gone), "a dry run removes nothing");
    let report = collect_now(&store);
    assert_eq!(report, dry);
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
fn imports_keep_the_collection_out_and_it_can_wait() {
    let (_dir, store) = fresh();
    let lease = store.lease().expect("takes one");
    let busy = gc(&store, &GcOptions::default()).err().map(|error| error.kind());
    assert_eq!(busy, Some(ErrorKind::Busy));
    assert!(gc(&store, &GcOptions { dry_run: true, wait: None }).is_ok());
    let cancelled = Cancel::new();
    cancelled.cancel();
    let error = gc(&store, &GcOptions { dry_run: false, wait: Some(cancelled) }).err();
    assert_eq!(error.map(|error| error.kind()), Some(ErrorKind::Cancelled));
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| gc(&store, &GcOptions { dry_run: false, wait: Some(Cancel::new()) }));
        std::thread::sleep(std::time::Duration::from_millis(20));
        drop(lease);
        waiting.join().expect("no panic").expect("collects");
    });
}

#[test]
fn du_tells_what_is_shared_from_what_is_not() {
    let (dir, store) = fresh();
    put_image(dir.path(), &store, "a", &["base", "one"]);
    put_image(dir.path(), &store, "b", &["base", "two"]);
    let report = du::du(&store).expect("measures");
    assert_eq!((report.blobs.count, report.trees.count, report.trees.bytes), (7, 3, 300));
    assert_eq!((report.snapshots.count, report.ingests.count), (3, 0));
    let base = "layer base".len() as u64 + 100;
    for image in &report.images {
        assert_eq!(image.shared_bytes, base, "{:?}", image.name);
        assert!(image.unique_bytes > 100);
    }
    let unique: u64 = report.images.iter().map(|image| image.unique_bytes).sum();
    assert_eq!(unique + base, report.blobs.bytes + report.trees.bytes);
    assert!(report.total_bytes > report.blobs.bytes + report.trees.bytes);
    store.metadata().image_tag("a", "c").expect("tags");
    let report = du::du(&store).expect("measures");
    let unique =
        |name: &str| report.images.iter().find(|i| i.name.as_deref() == Some(name)).map(|i| i.unique_bytes);
    assert_eq!((unique("a"), unique("c")), (Some(0), Some(0)), "two names of one image share all of it");
}

#[test]
fn a_mount_that_is_prepared_between_mark_and_sweep_keeps_its_chain() {
    let (dir, store) = fresh();
    let made = put_image(dir.path(), &store, "a", &["base", "top"]);
    store.metadata().image_remove("a").expect("removes");
    let plan = Plan::make(&store, &|_| false).expect("plans");
    snapshot(&store, "rw", SnapshotKind::Active, Some(&made.chains[0]), None);
    let report = plan.run(&store).expect("collects");
    assert_eq!((report.trees_removed, report.snapshots_removed, report.failed.len()), (1, 1, 0));
    assert!(dir.path().join("trees").join(made.trees[0].0.hex()).join("fs/etc/file").exists());
    assert!(store.metadata().tree_get(&made.trees[0]).expect("reads").is_some());
    assert_eq!(count(dir.path(), "snapshots"), 2);
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
        ("mounted", root, true),
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
    assert_eq!(collect_now(&store).snapshots_removed, 2);
    for (key, _, stays) in &table {
        assert_eq!(store.metadata().snapshot_get(key).expect("reads").is_some(), *stays, "{key}");
    }
    assert!(is_here(&store, &made));
    assert_eq!(count(dir.path(), "snapshots"), 2 + 3);
}

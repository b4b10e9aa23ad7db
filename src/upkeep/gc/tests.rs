use super::super::du;
use super::*;

use crate::io::locked::LockedDir;
use crate::metadata::{
    BlobRow, ImageCommit, Labels, ManifestRow, NewImage, NewSnapshot, Resource, SnapshotKind, TreeRow, Usage,
};
use crate::oci::{ChainId, Descriptor, Platform, media_type};
use crate::oci::{DiffId, Digest};
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

fn dry() -> GcOptions {
    GcOptions { dry_run: true, ..GcOptions::default() }
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
fn a_second_collection_is_refused_or_waits() {
    let (_dir, store) = fresh();
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
        std::thread::sleep(std::time::Duration::from_millis(20));
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

/// What the mark of a collection found, and the sweep has yet to look at again.
fn planned(store: &Store) -> Plan {
    Plan::make(store, &Listing::read(store).expect("lists"), &|_| false, &is_over).expect("plans")
}

fn sweep(store: &Store, plan: &Plan) -> (GcReport, bool) {
    let mut report = GcReport::default();
    let complete = Sweep::new(store, plan, &GcOptions::default(), &mut report).run().expect("sweeps");
    (report, complete)
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
fn a_removed_image_can_be_restored_until_its_grace_is_over_and_a_collection_came() {
    let (dir, store) = fresh();
    let made = put_image(dir.path(), &store, "docker.io/library/a:1", &["base", "top"]);
    let name = ["a:1".to_string()];
    let bury = |grace_ms| {
        let row = store.metadata().image_get("docker.io/library/a:1").expect("reads").expect("is there");
        store.metadata().image_bury(&row, grace_ms).expect("removes");
    };
    bury(3_600_000);
    assert_eq!(collect_now(&store), GcReport::default(), "within its grace");
    crate::upkeep::restore(&store, &name).expect("restores");
    bury(0);
    crate::upkeep::restore(&store, &name).expect("restores: no collection came");
    assert!(is_here(&store, &made));
    bury(0);
    assert_eq!(collect_now(&store).blobs_removed, 4);
    let gone = crate::upkeep::restore(&store, &name).err().map(|error| error.kind());
    assert_eq!(gone, Some(ErrorKind::NotFound));
}

fn label(store: &Store, of: crate::metadata::Labelled<'_>, name: &str, value: &str) {
    let change = [(name.to_string(), Some(value.to_string()))];
    store.metadata().labels_change(of, &change).expect("labels");
}

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
fn policies_spare_what_is_pinned_in_use_or_among_the_last() {
    use crate::metadata::{Labelled, PINNED, PINNED_LABEL};
    let (dir, store) = fresh();
    let names = ["r/app:1", "r/app:2", "r/app:3", "r/app:4", "r/other:1"];
    let made = names.map(|name| {
        std::thread::sleep(std::time::Duration::from_millis(2));
        put_image(dir.path(), &store, name, &[name])
    });
    label(&store, Labelled::Image("r/app:1"), PINNED_LABEL, PINNED);
    snapshot(&store, "mounted", SnapshotKind::View, Some(&made[1].chains[0]), None);
    let policy = GcOptions { keep_last: Some(1), ..GcOptions::default() };
    let would = gc(&store, &GcOptions { dry_run: true, ..policy.clone() }).expect("plans");
    assert_eq!(would.images_removed, ["r/app:3"]);
    let old = GcOptions { older_than: Some(Duration::from_secs(3600)), ..policy.clone() };
    assert_eq!(gc(&store, &old).expect("collects"), GcReport::default(), "none of them is old");
    let report = gc(&store, &policy).expect("collects");
    assert_eq!((report.images_removed, report.bytes_freed), (would.images_removed, would.bytes_freed));
    assert_eq!(made.each_ref().map(|made| is_here(&store, made)), [true, true, false, true, true]);
    let all = GcOptions {
        older_than: Some(Duration::ZERO),
        grace: Duration::from_secs(3600),
        ..GcOptions::default()
    };
    let report = gc(&store, &all).expect("collects");
    assert_eq!(
        (report.images_removed.len(), report.blobs_removed),
        (2, 0),
        "with a grace they can be restored"
    );
}

#[test]
fn images_go_until_enough_is_free_and_not_before() {
    let (dir, store) = fresh();
    put_image(dir.path(), &store, "a", &["base"]);
    let enough = GcOptions { until_free_bytes: Some(1), ..GcOptions::default() };
    let report = gc(&store, &enough).expect("collects");
    assert_eq!((report.images_removed.len(), report.goal_missed), (0, false));
    let too_much = GcOptions { until_free_bytes: Some(u64::MAX), ..GcOptions::default() };
    let would = gc(&store, &GcOptions { dry_run: true, ..too_much.clone() }).expect("plans");
    assert_eq!((would.images_removed, would.goal_missed), (vec!["a".to_string()], true));
    let report = gc(&store, &too_much).expect("collects");
    assert_eq!((report.images_removed, report.goal_missed), (vec!["a".to_string()], true));
    assert_eq!(count(dir.path(), "trees"), 0);
}

#[test]
fn why_something_is_here_is_told_by_the_shortest_way() {
    let (dir, store) = fresh();
    let a = put_image(dir.path(), &store, "a", &["base", "one"]);
    put_image(dir.path(), &store, "b", &["base", "two"]);
    let why = |digest: &str| crate::upkeep::why(&store, digest).expect("tells");
    let holders = |report: crate::upkeep::WhyReport| -> Vec<String> {
        report.held_by.into_iter().map(|holder| format!("{} {}", holder.kind, holder.name)).collect()
    };
    let layer = why(&a.blobs[0].to_string());
    assert_eq!(layer.held_by[0].via, [format!("blob {}", a.manifest), format!("blob {}", a.blobs[0])]);
    assert_eq!(holders(layer), ["image a", "image b"]);
    assert_eq!(holders(why(&a.blobs[1].to_string()[..20])), ["image a"]);
    assert_eq!(holders(why(&a.trees[0].to_string())), ["image a", "image b"]);
    let lease = store.lease().expect("takes one");
    lease.add(&[Resource::Blob(a.manifest)]).expect("adds");
    assert_eq!(
        holders(why(&a.manifest.to_string())),
        ["image a".to_string(), format!("lease {}", lease.id())]
    );
    let garbage = put(&store, b"garbage");
    assert_eq!(why(&garbage.to_string()).held_by, []);
    let unknown = crate::upkeep::why(&store, &Digest::of(b"?").to_string()).err().map(|error| error.kind());
    assert_eq!(unknown, Some(ErrorKind::NotFound));
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
fn an_image_that_is_imported_again_after_it_was_chosen_stays() {
    let (dir, store) = fresh();
    put_image(dir.path(), &store, "a", &["base"]);
    let chosen = store.metadata().images().expect("lists");
    let made = put_image(dir.path(), &store, "a", &["base", "top"]);
    let mut report = GcReport::default();
    policy::bury(&store, &chosen, &GcOptions::default(), &mut report).expect("removes");
    assert_eq!(report.images_removed, Vec::<String>::new());
    collect_now(&store);
    assert!(is_here(&store, &made));
}

#[test]
fn removing_until_enough_is_free_stops_where_it_frees_nothing() {
    let (dir, store) = fresh();
    let made = put_image(dir.path(), &store, "a", &["base"]);
    let held: Vec<Resource> = made.blobs.iter().map(|digest| Resource::Blob(*digest)).collect();
    let held = held.into_iter().chain(made.trees.iter().map(|id| Resource::Tree(*id)));
    let held = held.chain(made.chains.iter().map(|key| Resource::Snapshot(key.clone())));
    store.lease_create("kept", None, &Labels::new()).expect("creates");
    store.metadata().lease_add("kept", &held.collect::<Vec<_>>()).expect("holds");
    let goal = GcOptions { until_free_bytes: Some(u64::MAX), ..GcOptions::default() };
    let with_grace = GcOptions { grace: Duration::from_secs(60), ..goal.clone() };
    assert_eq!(gc(&store, &with_grace).err().map(|error| error.kind()), Some(ErrorKind::InvalidArgument));
    let report = gc(&store, &goal).expect("collects");
    assert!(report.goal_missed);
    assert!(is_here(&store, &made));
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
    let (_dir, store) = fresh();
    let garbage = put(&store, b"garbage");
    let publishing = store.sweep_lock_shared(&Cancel::new(), Duration::ZERO).expect("locks");
    assert!(publishing.is_some());
    let cancel = Cancel::new();
    std::thread::scope(|scope| {
        let options = GcOptions { cancel: cancel.clone(), ..GcOptions::default() };
        let store = &store;
        let collecting = scope.spawn(move || gc(store, &options));
        // It comes as far as the lock, or not yet; it never gets past it.
        std::thread::sleep(Duration::from_millis(30));
        cancel.cancel();
        let ended = collecting.join().expect("no panic").err().map(|error| error.kind());
        assert_eq!(ended, Some(ErrorKind::Cancelled));
    });
    assert!(store.content().stat(&garbage).expect("stats").is_some());
    drop(publishing);
    assert_eq!(collect_now(&store).blobs_removed, 1);
}

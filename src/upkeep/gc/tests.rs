//! Collections of small stores, by topic; what they are made with is here.

mod labels;
mod marks;
mod policies;
mod races;
mod reports;

use super::super::du;
use super::*;
use crate::error::ErrorKind;
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

/// What the mark of a collection found, and the sweep has yet to look at again.
fn planned(store: &Store) -> Plan {
    Plan::make(store, &Listing::read(store), &|_| false, &is_over).expect("plans")
}

fn sweep(store: &Store, plan: &Plan) -> (GcReport, bool) {
    let mut report = GcReport::default();
    let complete = Sweep::new(store, plan, &GcOptions::default(), &mut report).run().expect("sweeps");
    (report, complete)
}

fn label(store: &Store, of: crate::metadata::Labelled<'_>, name: &str, value: &str) {
    let change = [(name.to_string(), Some(value.to_string()))];
    store.metadata().labels_change(of, &change).expect("labels");
}

/// Changes the database as nobody does.
fn force(store: &Store, sql: &str) {
    let database = rusqlite::Connection::open(store.path().join("meta.db")).expect("opens");
    database.execute_batch(sql).expect("runs");
}

/// As the kernel's next boot finds what was not durable.
fn reboot(store: &Store) {
    force(store, "UPDATE snapshot SET boot = 'earlier'");
}

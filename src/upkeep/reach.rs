//! What is needed: from images, snapshots and leases down to blobs and trees.
//!
//! The documents that are stored are followed as well as the rows that were recorded of them; either alone would do
//! for what an import made, both together also hold what others put there. A document that is there and cannot be read
//! could name anything, so it is reported and the collection leaves all blobs alone.

use crate::error::{ErrorKind, Result};
use crate::limits::Limits;
use crate::metadata::{ImageRow, Resource, SnapshotKind, SnapshotRow};
use crate::oci::{ChainId, DiffId, Digest, Document, parse_document};
use crate::store::Store;
use crate::store::mounted::REMAPPED_OF_LABEL;
use std::collections::{HashMap, HashSet};
use std::io::Read;

/// Everything that must stay.
#[derive(Debug, Default)]
pub(super) struct Reach {
    pub(super) blobs: HashSet<Digest>,
    pub(super) trees: HashSet<DiffId>,
    pub(super) snapshots: HashSet<String>,
    pub(super) ingests: HashSet<String>,
    /// Snapshots of mounts that are no longer there.
    pub(super) abandoned: HashSet<String>,
    /// Documents that could not be read, and why.
    pub(super) unreadable: Vec<(Digest, String)>,
}

/// What the store's images, snapshots and live leases need, were the images `without` not there.
pub(super) fn reach(store: &Store, without: &dyn Fn(&ImageRow) -> bool, now_ms: u64) -> Result<Reach> {
    let mut reach = Reach::default();
    // The order matters to an estimate made while others work: what moves from a lease to an image is seen once at least.
    reach.add_leases(store, now_ms)?;
    for image in store.metadata().images()?.iter().filter(|image| !without(image)) {
        reach.add_image(store, image)?;
    }
    let rows = store.metadata().snapshots()?;
    reach.abandoned = store.abandoned_mounts(&rows)?;
    // Unless a lease holds it.
    reach.abandoned.retain(|key| !reach.snapshots.contains(key));
    reach.add_snapshots(&rows);
    Ok(reach)
}

impl Reach {
    fn add_leases(&mut self, store: &Store, now_ms: u64) -> Result<()> {
        for lease in store.metadata().leases()? {
            if !store.lease_is_live(&lease, now_ms)? {
                continue;
            }
            let resources = match store.metadata().lease_resources(&lease.id) {
                Err(error) if error.kind() == ErrorKind::NotFound => continue,
                other => other?,
            };
            for resource in resources {
                match resource {
                    Resource::Blob(digest) => self.add_blob(store, digest)?,
                    Resource::Tree(diff_id) => drop(self.trees.insert(diff_id)),
                    Resource::Snapshot(key) => drop(self.snapshots.insert(key)),
                    Resource::Ingest(name) => drop(self.ingests.insert(name)),
                }
            }
        }
        Ok(())
    }

    /// The blobs and the topmost snapshots of one image.
    pub(super) fn add_image(&mut self, store: &Store, image: &ImageRow) -> Result<()> {
        self.add_blob(store, image.target.digest)?;
        for manifest in &image.manifests {
            self.add_blob(store, manifest.digest)?;
            self.blobs.insert(manifest.config);
            self.blobs.extend(manifest.layers.iter().map(|(digest, _)| *digest));
            self.snapshots.extend(manifest.chain_id.map(|chain_id| chain_id.to_string()));
        }
        Ok(())
    }

    /// A blob, and if it is a document then what that names. Each is visited once, so cycles end.
    fn add_blob(&mut self, store: &Store, digest: Digest) -> Result<()> {
        let mut waiting = vec![digest];
        while let Some(digest) = waiting.pop() {
            if !self.blobs.insert(digest) {
                continue;
            }
            match document(store, &digest) {
                Ok(Some(Document::Index(index))) => waiting.extend(index.manifests.iter().map(|d| d.digest)),
                Ok(Some(Document::Manifest(manifest))) => {
                    self.blobs.insert(manifest.config.digest);
                    self.blobs.extend(manifest.layers.iter().map(|layer| layer.digest));
                }
                Ok(None) => {}
                Err(error) => self.unreadable.push((digest, error.to_string())),
            }
        }
        Ok(())
    }

    /// The snapshots that are needed, those below them, and their trees. Besides what is named already, everything that
    /// is in use or holds a user's own work stays.
    fn add_snapshots(&mut self, rows: &[SnapshotRow]) {
        let by_key: HashMap<&str, &SnapshotRow> = rows.iter().map(|row| (row.key.as_str(), row)).collect();
        let in_use = rows.iter().filter(|row| stays_by_itself(row) && !self.abandoned.contains(&row.key));
        self.snapshots.extend(in_use.map(|row| row.key.clone()));
        // A copy of a chain with other owners stays as long as the chain does.
        let of = |row: &SnapshotRow| {
            row.labels.get(REMAPPED_OF_LABEL).is_some_and(|of| self.snapshots.contains(of))
        };
        let copies: Vec<String> = rows.iter().filter(|row| of(row)).map(|row| row.key.clone()).collect();
        self.snapshots.extend(copies);
        let mut waiting: Vec<&SnapshotRow> =
            self.snapshots.iter().filter_map(|key| by_key.get(key.as_str()).copied()).collect();
        while let Some(row) = waiting.pop() {
            self.trees.extend(row.tree);
            let parent = row.parent.as_deref().and_then(|key| by_key.get(key));
            if let Some(parent) = parent.filter(|parent| self.snapshots.insert(parent.key.clone())) {
                waiting.push(parent);
            }
        }
    }
}

/// Active ones and views are in use. A committed one that no import made, and whose name is no chain, is a user's.
fn stays_by_itself(row: &SnapshotRow) -> bool {
    let made_by_import = row.tree.is_some()
        || row.key.parse::<ChainId>().is_ok()
        || row.labels.contains_key(REMAPPED_OF_LABEL);
    row.kind != SnapshotKind::Committed || !made_by_import || row.labels.contains_key("containerd.io/gc.root")
}

/// The manifest or index that a blob is; `None` if it is something else or not here (a sparse image).
fn document(store: &Store, digest: &Digest) -> Result<Option<Document>> {
    let limit_bytes = Limits::default().json_bytes;
    let mut blob = match store.content().open_blob(digest) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        other => other?,
    };
    let mut first = [0];
    if blob.size_bytes() > limit_bytes || blob.read(&mut first)? == 0 || first != *b"{" {
        return Ok(None);
    }
    let json = store.content().read_document(digest, limit_bytes)?;
    // Verified bytes that do not parse are a blob like any other: a configuration, a signature, an attestation.
    Ok(parse_document(&json).ok())
}

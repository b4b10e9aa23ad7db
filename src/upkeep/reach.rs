//! What is needed: from images, removed images, snapshots and leases down to blobs and trees.
//!
//! Works on [`Facts`], read from the database at one moment, so neither the disk nor other processes are asked for what is
//! recorded. Only a document that nobody has looked into yet is read; what it names is recorded then. A document that is
//! there and cannot be read could name anything, so it is reported and the collection leaves all blobs alone.
//!
//! Labels mean what they mean to containerd: see [`super::labels`].

use super::labels::{self, Label};
use crate::error::{ErrorKind, Result};
use crate::limits::Limits;
use crate::metadata::{
    DocumentReferences, Facts, ImageRow, Labels, ManifestRow, Resource, SnapshotKind, SnapshotRow, Tombstone,
};
use crate::oci::{ChainId, DiffId, Digest, parse_document};
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
    /// What was read for the first time.
    pub(super) learnt: Vec<DocumentReferences>,
}

/// What is not to count, as if it were gone.
pub(super) struct Without<'a> {
    pub(super) image: &'a dyn Fn(&ImageRow) -> bool,
    pub(super) tombstone: &'a dyn Fn(&Tombstone) -> bool,
    /// Leases that are dead, by id.
    pub(super) leases: &'a HashSet<String>,
}

/// What is asked about, and what is known of it.
pub(super) struct Needs<'a> {
    store: &'a Store,
    facts: &'a Facts,
    snapshots: HashMap<&'a str, &'a SnapshotRow>,
}

impl<'a> Needs<'a> {
    pub(super) fn new(store: &'a Store, facts: &'a Facts) -> Self {
        let snapshots = facts.snapshots.iter().map(|row| (row.key.as_str(), row)).collect();
        Needs { store, facts, snapshots }
    }

    /// What one image needs, whatever else does.
    pub(super) fn of_image(&self, image: &ImageRow) -> Result<Reach> {
        let mut walk = Walk::new(self);
        walk.image(&image.target.digest, &image.manifests)?;
        Ok(walk.found)
    }

    /// What the store's images, snapshots and live leases need.
    pub(super) fn of_all(&self, without: &Without<'_>) -> Result<Reach> {
        reach(self, without)
    }
}

fn reach(needs: &Needs<'_>, without: &Without<'_>) -> Result<Reach> {
    let (store, facts) = (needs.store, needs.facts);
    let mut walk = Walk::new(needs);
    for (lease, resources) in &facts.leases {
        if !without.leases.contains(&lease.id) {
            walk.lease(&lease.labels, resources)?;
        }
    }
    for image in facts.images.iter().filter(|image| !(without.image)(image)) {
        walk.image(&image.target.digest, &image.manifests)?;
        walk.labels(facts.image_labels.get(&image.label_key()))?;
    }
    for tombstone in facts.tombstones.iter().filter(|tombstone| !(without.tombstone)(tombstone)) {
        walk.image(&tombstone.target.digest, &tombstone.manifests)?;
        walk.labels(Some(&tombstone.labels))?;
    }
    for (digest, labels) in &facts.blob_labels {
        if let (true, Ok(digest)) = (labels.contains_key(labels::ROOT), digest.parse()) {
            walk.blob(digest, true)?;
        }
    }
    walk.found.abandoned = store.abandoned_mounts(&facts.snapshots)?;
    walk.snapshots_in_use()?;
    Ok(walk.found)
}

struct Walk<'a> {
    needs: &'a Needs<'a>,
    facts: &'a Facts,
    /// Documents whose names have been followed.
    followed: HashSet<Digest>,
    found: Reach,
}

impl<'a> Walk<'a> {
    fn new(needs: &'a Needs<'a>) -> Self {
        Walk { needs, facts: needs.facts, followed: HashSet::new(), found: Reach::default() }
    }

    /// With `gc.flat` a lease holds its resources and nothing that these refer to.
    fn lease(&mut self, labels: &Labels, resources: &[Resource]) -> Result<()> {
        let flat = labels.contains_key(labels::FLAT);
        for resource in resources {
            match resource {
                Resource::Blob(digest) if flat => drop(self.found.blobs.insert(*digest)),
                Resource::Blob(digest) => self.blob(*digest, true)?,
                Resource::Tree(diff_id) => drop(self.found.trees.insert(*diff_id)),
                Resource::Snapshot(key) => self.snapshot(key)?,
                Resource::Ingest(name) => drop(self.found.ingests.insert(name.clone())),
            }
        }
        self.labels(Some(labels))
    }

    fn image(&mut self, target: &Digest, manifests: &[ManifestRow]) -> Result<()> {
        self.blob(*target, true)?;
        for manifest in manifests {
            self.blob(manifest.digest, true)?;
            self.blob(manifest.config, false)?;
            manifest.layers.iter().try_for_each(|(digest, _)| self.blob(*digest, false))?;
            manifest.chain_id.map_or(Ok(()), |chain_id| self.snapshot(&chain_id.to_string()))?;
        }
        Ok(())
    }

    /// A blob, and with `follow` what it names, as far down as that goes. Each is visited once, so cycles end.
    fn blob(&mut self, digest: Digest, follow: bool) -> Result<()> {
        let mut waiting = vec![(digest, follow)];
        while let Some((digest, follow)) = waiting.pop() {
            if self.found.blobs.insert(digest) && !self.facts.blob_labels.is_empty() {
                self.labels(self.facts.blob_labels.get(&digest.to_string()))?;
            }
            if follow && self.followed.insert(digest) {
                self.names(&digest, &mut waiting);
            }
        }
        Ok(())
    }

    fn names(&mut self, digest: &Digest, waiting: &mut Vec<(Digest, bool)>) {
        let references = &self.facts.references;
        let known = references.position(digest).map(|at| at as usize);
        if let Some(at) = known {
            let name = |(to, follow): &(u32, bool)| (references.digests[*to as usize], *follow);
            waiting.extend(references.names[at].iter().map(name));
            if references.read[at] {
                return;
            }
        }
        match look_into(self.needs.store, digest) {
            Ok(Some(document)) => {
                waiting.extend(&document.names);
                self.found.learnt.push(document);
            }
            Ok(None) => {}
            Err(error) => self.found.unreadable.push((*digest, error.to_string())),
        }
    }

    /// A snapshot, those below it, their trees, and what their labels refer to.
    fn snapshot(&mut self, key: &str) -> Result<()> {
        let mut next = Some(key.to_string());
        while let Some(key) = next.take() {
            if !self.found.snapshots.insert(key.clone()) {
                break;
            }
            let Some(row) = self.needs.snapshots.get(key.as_str()).copied() else { break };
            self.found.trees.extend(row.tree);
            self.labels(Some(&row.labels))?;
            next.clone_from(&row.parent);
        }
        Ok(())
    }

    fn labels(&mut self, of: Option<&Labels>) -> Result<()> {
        for label in of.into_iter().flat_map(labels::references) {
            match label {
                Label::Content(digest) => self.blob(digest, true)?,
                Label::Snapshot(key) => self.snapshot(&key)?,
            }
        }
        Ok(())
    }

    /// Besides what is named, everything that is in use or holds a user's own work stays.
    fn snapshots_in_use(&mut self) -> Result<()> {
        // Unless a lease holds it.
        let held = &self.found.snapshots;
        self.found.abandoned.retain(|key| !held.contains(key));
        let facts = self.facts;
        for row in facts.snapshots.iter().filter(|row| stays_by_itself(row)) {
            if !self.found.abandoned.contains(&row.key) {
                self.snapshot(&row.key)?;
            }
        }
        // A copy of a chain with other owners stays as long as the chain does.
        for row in &facts.snapshots {
            let of = row.labels.get(REMAPPED_OF_LABEL);
            if of.is_some_and(|of| self.found.snapshots.contains(of)) {
                self.snapshot(&row.key)?;
            }
        }
        Ok(())
    }
}

/// Active ones and views are in use. A committed one that no import made, and whose name is no chain, is a user's.
fn stays_by_itself(row: &SnapshotRow) -> bool {
    let made_by_import = row.tree.is_some()
        || row.key.parse::<ChainId>().is_ok()
        || row.labels.contains_key(REMAPPED_OF_LABEL);
    row.kind != SnapshotKind::Committed || !made_by_import || row.labels.contains_key(labels::ROOT)
}

/// What a blob names; `None` if it is not here (a sparse image), so that nothing is known of it.
pub(super) fn look_into(store: &Store, digest: &Digest) -> Result<Option<DocumentReferences>> {
    let limit_bytes = Limits::default().json_bytes;
    let mut blob = match store.content().open_blob(digest) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        other => other?,
    };
    let mut first = [0];
    if blob.size_bytes() > limit_bytes || blob.read(&mut first)? == 0 || first != *b"{" {
        return Ok(Some(DocumentReferences::of(*digest, None)));
    }
    let json = store.content().read_document(digest, limit_bytes)?;
    // Verified bytes that do not parse are a blob like any other: a configuration, a signature, an attestation.
    Ok(Some(DocumentReferences::of(*digest, parse_document(&json).ok().as_ref())))
}

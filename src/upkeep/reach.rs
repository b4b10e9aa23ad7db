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
    DocumentReferences, Facts, ImageRow, Labels, LeaseRow, ManifestRow, Resource, SnapshotKind, SnapshotRow,
    Tombstone,
};
use crate::oci::{DiffId, Digest, parse_document};
use crate::store::Store;
use crate::store::chains::is_of_image;
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
    /// Those of the snapshots whose labels count for nothing.
    pub(super) bare_snapshots: Vec<String>,
    /// Images that labels refer to, by name or target.
    pub(super) images: HashSet<String>,
    /// Documents that could not be read, and why.
    pub(super) unreadable: Vec<(Digest, String)>,
    /// What else could not be looked at, and why; it counts as needed.
    pub(super) failed: Vec<(&'static str, String)>,
    /// What was read for the first time.
    pub(super) learnt: Vec<DocumentReferences>,
}

/// What is not to count, as if it were gone.
pub(super) struct Without<'a> {
    pub(super) image: &'a dyn Fn(&ImageRow) -> bool,
    /// Images that count only where a label refers to them.
    pub(super) expired: &'a dyn Fn(&ImageRow) -> bool,
    pub(super) tombstone: &'a dyn Fn(&Tombstone) -> bool,
    /// Leases that are dead, by id.
    pub(super) leases: &'a HashSet<String>,
    /// Snapshots that count for themselves no longer, by key.
    pub(super) snapshots: &'a HashSet<String>,
}

/// Something that is needed, and how much of it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Thing {
    /// A blob and nothing that it refers to.
    Bare(Digest),
    /// A blob and what its labels refer to.
    Blob(Digest),
    /// A blob with its labels, and what it names, as far down as that goes.
    Document(Digest),
    Tree(DiffId),
    /// A snapshot, those below it, and their trees.
    BareSnapshot(String),
    /// The same, and what their labels refer to.
    Snapshot(String),
    /// An image, by name or target.
    Image(String),
    Ingest(String),
}

/// What is needed by nothing and needs something.
#[derive(Clone, Copy, Debug)]
pub(super) enum Root<'a> {
    Lease(&'a LeaseRow, &'a [Resource]),
    Image(&'a ImageRow),
    Removed(&'a Tombstone),
    /// A blob with the label `containerd.io/gc.root`.
    Label(Digest),
    /// A snapshot in use, or a user's own.
    Snapshot(&'a SnapshotRow),
}

/// Who needs something.
#[derive(Clone, Debug)]
pub(super) enum Source<'a> {
    Root(Root<'a>),
    Thing(Thing),
}

/// Every way by which a mark came to something.
pub(super) type Trail<'a> = Vec<(Source<'a>, Thing)>;

/// What is asked about, and what is known of it.
pub(super) struct Needs<'a> {
    store: &'a Store,
    facts: &'a Facts,
    snapshots: HashMap<&'a str, &'a SnapshotRow>,
    /// The copies of a chain with other owners.
    copies: HashMap<&'a str, Vec<&'a str>>,
}

impl<'a> Needs<'a> {
    pub(super) fn new(store: &'a Store, facts: &'a Facts) -> Self {
        let snapshots = facts.snapshots.iter().map(|row| (row.key.as_str(), row)).collect();
        let mut copies: HashMap<&str, Vec<&str>> = HashMap::new();
        for row in &facts.snapshots {
            if let Some(of) = row.labels.get(REMAPPED_OF_LABEL) {
                copies.entry(of).or_default().push(&row.key);
            }
        }
        Needs { store, facts, snapshots, copies }
    }

    /// What one image needs, whatever else does.
    pub(super) fn of_image(&'a self, image: &'a ImageRow) -> Result<Reach> {
        let mut walk = Walk::new(self, Vec::new(), false);
        walk.image(&Source::Root(Root::Image(image)), &image.target.digest, &image.manifests);
        walk.run()?;
        Ok(walk.found)
    }

    /// What the store's images, snapshots and live leases need.
    pub(super) fn of_all(&'a self, without: &Without<'_>) -> Result<Reach> {
        Ok(self.mark(without, false)?.found)
    }

    /// The same, and how it is reached.
    pub(super) fn trail(&'a self, without: &Without<'_>) -> Result<(Reach, Trail<'a>)> {
        let walk = self.mark(without, true)?;
        Ok((walk.found, walk.trail.unwrap_or_default()))
    }

    fn mark(&'a self, without: &Without<'_>, trail: bool) -> Result<Walk<'a>> {
        let images = self.facts.images.iter().filter(|image| !(without.image)(image)).collect();
        let mut walk = Walk::new(self, images, trail);
        // In doubt nothing that was mounted is given up.
        let abandoned = self.store.abandoned_mounts(&self.facts.snapshots).unwrap_or_else(|error| {
            walk.found.failed.push(("snapshots that were mounted", error.to_string()));
            HashSet::new()
        });
        for root in self.roots(without, &abandoned) {
            walk.root(root);
            walk.run()?;
        }
        walk.note_bare_snapshots();
        Ok(walk)
    }

    fn roots(&self, without: &Without<'_>, abandoned: &HashSet<String>) -> Vec<Root<'a>> {
        let facts = self.facts;
        let leases = facts.leases.iter().filter(|(lease, _)| !without.leases.contains(&lease.id));
        let images = facts.images.iter().filter(|image| !(without.image)(image) && !(without.expired)(image));
        let removed = facts.tombstones.iter().filter(|tombstone| !(without.tombstone)(tombstone));
        let labelled = facts.blob_labels.iter().filter(|(_, labels)| labels.contains_key(labels::ROOT));
        let stays = |row: &&SnapshotRow| {
            let given_up = || abandoned.contains(&row.key) || without.snapshots.contains(&row.key);
            row.labels.contains_key(labels::ROOT) || stays_by_itself(row) && !given_up()
        };
        let mut roots: Vec<Root<'a>> = Vec::new();
        roots.extend(leases.map(|(lease, resources)| Root::Lease(lease, resources)));
        roots.extend(images.map(Root::Image));
        roots.extend(removed.map(Root::Removed));
        roots.extend(labelled.filter_map(|(digest, _)| digest.parse().ok().map(Root::Label)));
        roots.extend(facts.snapshots.iter().filter(stays).map(Root::Snapshot));
        roots
    }
}

/// Goes down from the roots. Each thing is looked into once, so circles end, and only what a root leads to counts.
struct Walk<'a> {
    needs: &'a Needs<'a>,
    /// Blobs whose labels have been followed.
    labelled: HashSet<Digest>,
    /// Documents whose names have been followed.
    followed: HashSet<Digest>,
    /// Snapshots whose labels have been followed.
    labelled_snapshots: HashSet<String>,
    /// The images that there are.
    images: Vec<&'a ImageRow>,
    waiting: Vec<Thing>,
    found: Reach,
    trail: Option<Trail<'a>>,
}

impl<'a> Walk<'a> {
    fn new(needs: &'a Needs<'a>, images: Vec<&'a ImageRow>, trail: bool) -> Self {
        let trail = trail.then(Vec::new);
        Walk {
            needs,
            labelled: HashSet::new(),
            followed: HashSet::new(),
            labelled_snapshots: HashSet::new(),
            images,
            waiting: Vec::new(),
            found: Reach::default(),
            trail,
        }
    }

    fn root(&mut self, root: Root<'a>) {
        let from = Source::Root(root);
        match root {
            Root::Lease(lease, resources) => self.lease(&from, &lease.labels, resources),
            Root::Image(image) => self.whole_image(&from, image),
            Root::Removed(tombstone) => {
                self.image(&from, &tombstone.target.digest, &tombstone.manifests);
                self.labels(&from, Some(&tombstone.labels));
            }
            Root::Label(digest) => self.need(&from, Thing::Document(digest)),
            Root::Snapshot(row) => self.need(&from, Thing::Snapshot(row.key.clone())),
        }
    }

    /// With `gc.flat` a lease holds its resources and nothing that these refer to.
    fn lease(&mut self, from: &Source<'a>, labels: &'a Labels, resources: &[Resource]) {
        let flat = labels.contains_key(labels::FLAT);
        for resource in resources {
            let thing = match resource {
                Resource::Blob(digest) if flat => Thing::Bare(*digest),
                Resource::Blob(digest) => Thing::Document(*digest),
                Resource::Tree(diff_id) => Thing::Tree(*diff_id),
                Resource::Snapshot(key) if flat => Thing::BareSnapshot(key.clone()),
                Resource::Snapshot(key) => Thing::Snapshot(key.clone()),
                Resource::Ingest(name) => Thing::Ingest(name.clone()),
            };
            self.need(from, thing);
        }
        self.labels(from, Some(labels));
    }

    fn whole_image(&mut self, from: &Source<'a>, image: &'a ImageRow) {
        self.image(from, &image.target.digest, &image.manifests);
        self.labels(from, self.needs.facts.image_labels.get(&image.label_key()));
    }

    /// What the rows of an image say, which is less than its documents where those name what is not here.
    fn image(&mut self, from: &Source<'a>, target: &Digest, manifests: &[ManifestRow]) {
        self.need(from, Thing::Document(*target));
        for manifest in manifests {
            self.need(from, Thing::Document(manifest.digest));
            let document = Source::Thing(Thing::Document(manifest.digest));
            let layers = manifest.layers.iter().map(|(digest, _)| *digest);
            layers.chain([manifest.config]).for_each(|digest| self.need(&document, Thing::Blob(digest)));
            if let Some(chain_id) = manifest.chain_id {
                self.need(from, Thing::Snapshot(chain_id.to_string()));
            }
        }
    }

    fn labels(&mut self, from: &Source<'a>, of: Option<&Labels>) {
        for label in of.into_iter().flat_map(labels::references) {
            let thing = match label {
                Label::Content(digest) => Thing::Document(digest),
                Label::Snapshot(key) => Thing::Snapshot(key),
                Label::Image(name) => Thing::Image(name),
            };
            self.need(from, thing);
        }
    }

    /// Notes that something is needed; what it needs in turn is looked at by [`Walk::run`].
    fn need(&mut self, from: &Source<'a>, thing: Thing) {
        if let Some(trail) = &mut self.trail {
            trail.push((from.clone(), thing.clone()));
        }
        let is_new = match &thing {
            Thing::Bare(digest) => {
                self.found.blobs.insert(*digest);
                false
            }
            Thing::Blob(digest) => {
                self.found.blobs.insert(*digest);
                !self.needs.facts.blob_labels.is_empty() && self.labelled.insert(*digest)
            }
            Thing::Document(digest) => self.followed.insert(*digest),
            Thing::Tree(diff_id) => {
                self.found.trees.insert(*diff_id);
                false
            }
            Thing::BareSnapshot(key) => self.found.snapshots.insert(key.clone()),
            Thing::Snapshot(key) => {
                self.found.snapshots.insert(key.clone());
                self.labelled_snapshots.insert(key.clone())
            }
            Thing::Image(name) => self.found.images.insert(name.clone()),
            Thing::Ingest(name) => {
                self.found.ingests.insert(name.clone());
                false
            }
        };
        if is_new {
            self.waiting.push(thing);
        }
    }

    fn run(&mut self) -> Result<()> {
        while let Some(thing) = self.waiting.pop() {
            let from = Source::Thing(thing.clone());
            match &thing {
                Thing::Blob(digest) => {
                    self.labels(&from, self.needs.facts.blob_labels.get(&digest.to_string()));
                }
                Thing::Document(digest) => {
                    self.need(&from, Thing::Blob(*digest));
                    self.names(&from, digest);
                }
                Thing::BareSnapshot(key) => {
                    self.snapshot(&from, key, Thing::BareSnapshot);
                }
                Thing::Snapshot(key) => {
                    let row = self.snapshot(&from, key, Thing::Snapshot);
                    self.labels(&from, row.map(|row| &row.labels));
                }
                Thing::Image(name) => {
                    let named = |image: &&&ImageRow| image.label_key() == *name;
                    if let Some(image) = self.images.iter().find(named).copied() {
                        self.whole_image(&from, image);
                    }
                }
                Thing::Bare(_) | Thing::Tree(_) | Thing::Ingest(_) => {}
            }
        }
        Ok(())
    }

    fn names(&mut self, from: &Source<'a>, digest: &Digest) {
        let thing = |digest, follow| if follow { Thing::Document(digest) } else { Thing::Blob(digest) };
        let references = &self.needs.facts.references;
        if let Some(at) = references.position(digest).map(|at| at as usize) {
            for (to, follow) in &references.names[at] {
                self.need(from, thing(references.digests[*to as usize], *follow));
            }
            if references.read[at] {
                return;
            }
        }
        match look_into(self.needs.store, digest) {
            Ok(Some(document)) => {
                document.names.iter().for_each(|(to, follow)| self.need(from, thing(*to, *follow)));
                self.found.learnt.push(document);
            }
            Ok(None) => {}
            Err(error) => self.found.unreadable.push((*digest, error.to_string())),
        }
    }

    /// What a snapshot stands on is needed in the same way. A copy of a chain with other owners stays as long as the chain
    /// does.
    fn snapshot(
        &mut self,
        from: &Source<'a>,
        key: &str,
        thing: fn(String) -> Thing,
    ) -> Option<&'a SnapshotRow> {
        for copy in self.needs.copies.get(key).into_iter().flatten() {
            self.need(from, thing(copy.to_string()));
        }
        let row = self.needs.snapshots.get(key).copied()?;
        if let Some(tree) = row.tree {
            self.need(from, Thing::Tree(tree));
        }
        if let Some(parent) = &row.parent {
            self.need(from, thing(parent.clone()));
        }
        Some(row)
    }

    fn note_bare_snapshots(&mut self) {
        let bare = self.found.snapshots.difference(&self.labelled_snapshots);
        self.found.bare_snapshots = bare.cloned().collect();
    }
}

/// Active ones and views are in use. A committed one that came with no image is a user's.
fn stays_by_itself(row: &SnapshotRow) -> bool {
    row.kind != SnapshotKind::Committed || !is_of_image(row)
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

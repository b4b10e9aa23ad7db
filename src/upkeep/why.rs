//! Why something is here: from a blob, a tree or a snapshot up to the images, leases and labels that need it.
//!
//! Each step up is a look-up in an index, so the answer does not cost more in a larger store, only in one where more
//! needs the thing.

use super::labels;
use crate::error::{Error, ErrorKind, Result, ResultExt};
use crate::metadata::{ImageRow, Labelled, Resource, SnapshotKind};
use crate::oci::{DiffId, Digest};
use crate::store::Store;
use serde::Serialize;
use std::collections::HashSet;

/// Why something is here.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct WhyReport {
    /// The digest that was asked for, in full.
    pub digest: String,
    /// What has it: `blob`, `tree`, `snapshot`. A layer that is stored uncompressed is two of them.
    pub what: Vec<&'static str>,
    /// What these occupy.
    pub size_bytes: u64,
    /// All that needs it. Empty: the next collection removes it.
    pub held_by: Vec<Holder>,
}

/// Something that needs it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Holder {
    /// `image`, `removed image` (until its grace is over), `lease`, `snapshot` (in use, or a user's) or `label`.
    pub kind: &'static str,
    /// The image's name, or its target; the lease's id; the snapshot's key; the labelled blob.
    pub name: String,
    /// The way down from there.
    pub via: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Node {
    Blob(Digest),
    Tree(DiffId),
    Snapshot(String),
}

impl Node {
    fn shown(&self) -> String {
        match self {
            Node::Blob(digest) => format!("blob {digest}"),
            Node::Tree(diff_id) => format!("tree {diff_id}"),
            Node::Snapshot(key) => format!("snapshot {key}"),
        }
    }

    fn resource(&self) -> Resource {
        match self {
            Node::Blob(digest) => Resource::Blob(*digest),
            Node::Tree(diff_id) => Resource::Tree(*diff_id),
            Node::Snapshot(key) => Resource::Snapshot(key.clone()),
        }
    }
}

/// Tells why the blob, tree or snapshot of this digest (or the only one that begins so) is here.
///
/// # Errors
/// [`ErrorKind::NotFound`] if nothing has it, [`ErrorKind::InvalidArgument`] if several begin so.
pub fn why(store: &Store, digest: &str) -> Result<WhyReport> {
    ask(store, digest).doing(|| format!("cannot tell why {digest} is here"))
}

fn ask(store: &Store, digest: &str) -> Result<WhyReport> {
    let (nodes, size_bytes) = find(store, digest)?;
    let mut climb = Climb::new(store)?;
    for node in &nodes {
        climb.run(node)?;
    }
    let what = |node: &Node| match node {
        Node::Blob(_) => "blob",
        Node::Tree(_) => "tree",
        Node::Snapshot(_) => "snapshot",
    };
    let full = match nodes.first() {
        Some(node) => node.resource(),
        None => return Err(Error::new(ErrorKind::NotFound, "nothing in the store has this digest")),
    };
    let digest = match full {
        Resource::Blob(digest) => digest.to_string(),
        Resource::Tree(diff_id) => diff_id.to_string(),
        Resource::Snapshot(key) | Resource::Ingest(key) => key,
    };
    climb.holders.sort_by(|a, b| (a.kind, &a.name, a.via.len()).cmp(&(b.kind, &b.name, b.via.len())));
    climb.holders.dedup_by(|a, b| (a.kind, &a.name) == (b.kind, &b.name));
    Ok(WhyReport { digest, what: nodes.iter().map(what).collect(), size_bytes, held_by: climb.holders })
}

/// What has this digest, and what that occupies.
fn find(store: &Store, asked: &str) -> Result<(Vec<Node>, u64)> {
    let begins = |text: &str| {
        text == asked
            || text.starts_with(asked)
            || text.split_once(':').is_some_and(|(_, hex)| hex.starts_with(asked))
    };
    let mut found: Vec<(String, Node, u64)> = Vec::new();
    let mut add = |text: String, node: Node, bytes: u64| {
        if begins(&text) {
            found.push((text, node, bytes));
        }
    };
    store.content().walk(&mut |digest, bytes| {
        add(digest.to_string(), Node::Blob(digest), bytes);
        Ok(())
    })?;
    for row in store.metadata().trees()? {
        add(row.diff_id.to_string(), Node::Tree(row.diff_id), row.bytes);
    }
    for row in store.metadata().snapshots()? {
        add(row.key.clone(), Node::Snapshot(row.key.clone()), row.usage.bytes);
    }
    let names: HashSet<&String> = found.iter().map(|(text, ..)| text).collect();
    if names.len() > 1 {
        let message = format!("{} digests begin so", names.len());
        return Err(Error::new(ErrorKind::InvalidArgument, message).with_hint("give more of the digest"));
    }
    let size_bytes = found.iter().map(|(_, _, bytes)| bytes).sum();
    Ok((found.into_iter().map(|(_, node, _)| node).collect(), size_bytes))
}

struct Climb<'a> {
    store: &'a Store,
    live_leases: HashSet<String>,
    holders: Vec<Holder>,
}

impl<'a> Climb<'a> {
    fn new(store: &'a Store) -> Result<Self> {
        let rows = store.metadata().leases()?;
        let gone = super::gc::gone_leases(store, &rows)?;
        let live_leases = rows.into_iter().map(|row| row.id).filter(|id| !gone.contains(id)).collect();
        Ok(Climb { store, live_leases, holders: Vec::new() })
    }

    /// Breadth first, so that the way that is told is the shortest.
    fn run(&mut self, from: &Node) -> Result<()> {
        let mut seen = HashSet::from([from.clone()]);
        let mut waiting = std::collections::VecDeque::from([(from.clone(), Vec::new())]);
        while let Some((node, below)) = waiting.pop_front() {
            let mut via = vec![node.shown()];
            via.extend(below);
            self.holders_of(&node, &via)?;
            for above in self.above(&node)? {
                if seen.insert(above.clone()) {
                    waiting.push_back((above, via.clone()));
                }
            }
        }
        Ok(())
    }

    fn hold(&mut self, kind: &'static str, name: String, via: &[String]) {
        self.holders.push(Holder { kind, name, via: via.to_vec() });
    }

    fn holders_of(&mut self, node: &Node, via: &[String]) -> Result<()> {
        let metadata = self.store.metadata();
        for lease in metadata.leases_holding(&node.resource())? {
            if self.live_leases.contains(&lease) {
                self.hold("lease", lease, via);
            }
        }
        let text = match node {
            Node::Blob(digest) => {
                if metadata.labels(Labelled::Blob(digest))?.contains_key(labels::ROOT) {
                    self.hold("label", digest.to_string(), via);
                }
                digest.to_string()
            }
            Node::Tree(_) => return Ok(()),
            Node::Snapshot(key) => {
                let row = metadata.snapshot_get(key)?;
                let in_use = row.is_some_and(|row| {
                    row.kind != SnapshotKind::Committed || row.labels.contains_key(labels::ROOT)
                });
                if in_use {
                    self.hold("snapshot", key.clone(), via);
                }
                key.clone()
            }
        };
        for image in metadata.images_needing(&text)? {
            self.hold("image", image, via);
        }
        for (image, _) in metadata.labels_with(true, &text)? {
            self.hold("image", image, via);
        }
        self.removed_images(&text, via)
    }

    fn removed_images(&mut self, text: &str, via: &[String]) -> Result<()> {
        let needs = |target: &Digest, manifests: &[crate::metadata::ManifestRow]| {
            target.to_string() == text
                || manifests.iter().any(|manifest| {
                    manifest.digest.to_string() == text
                        || manifest.config.to_string() == text
                        || manifest.chain_id.is_some_and(|chain| chain.to_string() == text)
                        || manifest.layers.iter().any(|(digest, _)| digest.to_string() == text)
                })
        };
        for tombstone in self.store.metadata().tombstones()? {
            if needs(&tombstone.target.digest, &tombstone.manifests) && !super::gc::is_over(&tombstone) {
                let name = tombstone.name.clone().unwrap_or_else(|| tombstone.target.digest.to_string());
                self.hold("removed image", name, via);
            }
        }
        Ok(())
    }

    fn above(&self, node: &Node) -> Result<Vec<Node>> {
        let metadata = self.store.metadata();
        Ok(match node {
            Node::Blob(digest) => {
                let labelled = metadata.labels_with(false, &digest.to_string())?;
                let labelled = labelled.keys().filter_map(|key| key.parse().ok());
                metadata.referrers(digest)?.into_iter().chain(labelled).map(Node::Blob).collect()
            }
            Node::Tree(diff_id) => {
                metadata.snapshots_of_tree(diff_id)?.into_iter().map(Node::Snapshot).collect()
            }
            Node::Snapshot(key) => metadata.snapshots_on(key)?.into_iter().map(Node::Snapshot).collect(),
        })
    }
}

/// Whether an image is pinned; for lists.
pub fn pinned_images(store: &Store) -> Result<HashSet<String>> {
    let found = store.metadata().labels_with(true, crate::metadata::PINNED_LABEL)?;
    Ok(found.into_iter().filter(|(_, of)| labels::is_pinned(of)).map(|(key, _)| key).collect())
}

/// What pins an image, or no longer does; see [`crate::upkeep::labels`].
pub fn pin(store: &Store, image: &ImageRow, pinned: bool) -> Result<()> {
    store.check_writable()?;
    let value = pinned.then(|| crate::metadata::PINNED.to_string());
    let change = [(crate::metadata::PINNED_LABEL.to_string(), value)];
    store.metadata().labels_change(Labelled::Image(&image.label_key()), &change).map(drop)
}

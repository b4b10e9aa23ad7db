//! Why something is here: from a blob, a tree or a snapshot up to the images, leases and labels that need it.
//!
//! It is the mark of a collection, which notes how it came to everything, read from its end: so what this tells is what the
//! next collection does.

use super::labels;
use super::measure::measure;
use super::reach::{Needs, Root, Source, Thing, Without};
use crate::error::{Error, ErrorKind, Result, ResultExt};
use crate::io::durable;
use crate::metadata::{Facts, ImageRow, Labelled};
use crate::oci::{DiffId, Digest};
use crate::store::Store;
use rustix::fd::AsFd;
use serde::Serialize;
use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};

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
    /// `image`, `removed image` (until its grace is over), `lease`, `snapshot` (in use, a user's, or labelled `gc.root`),
    /// `label` (`gc.root` on a blob), or `unreadable blob` (it might name this one, so no blob is removed).
    pub kind: &'static str,
    /// The image's name, or its target; the lease's id; the snapshot's key; the blob's digest.
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
    /// As a mark knows it: a blob is needed alone, or with what it refers to.
    fn things(&self) -> Vec<Thing> {
        match self {
            Node::Blob(digest) => vec![Thing::Bare(*digest), Thing::Blob(*digest)],
            Node::Tree(diff_id) => vec![Thing::Tree(*diff_id)],
            Node::Snapshot(key) => vec![Thing::BareSnapshot(key.clone()), Thing::Snapshot(key.clone())],
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

fn ask(store: &Store, asked: &str) -> Result<WhyReport> {
    let there = There::read(store)?;
    let facts = store.metadata().facts()?;
    let (digest, nodes, size_bytes) = there.find(store, &facts, asked)?;
    let leases = facts.leases.iter().map(|(lease, _)| lease.clone()).collect::<Vec<_>>();
    let gone = super::gc::gone_leases(store, &leases);
    let needs = Needs::new(store, &facts);
    let without = Without {
        image: &|_| false,
        expired: &|_| false,
        tombstone: &super::gc::is_over,
        leases: &gone,
        snapshots: &HashSet::new(),
    };
    let (reach, trail) = needs.trail(&without)?;
    let mut sources: HashMap<&Thing, Vec<&Source<'_>>> = HashMap::new();
    for (source, thing) in &trail {
        sources.entry(thing).or_default().push(source);
    }
    let mut held_by: Vec<Holder> = nodes.iter().flat_map(|node| climb(node, &sources)).collect();
    if nodes.iter().any(|node| matches!(node, Node::Blob(_))) {
        let might = |(digest, _): &(Digest, String)| Holder {
            kind: "unreadable blob",
            name: digest.to_string(),
            via: Vec::new(),
        };
        held_by.extend(reach.unreadable.iter().map(might));
    }
    held_by.sort_by(|a, b| (a.kind, &a.name, a.via.len()).cmp(&(b.kind, &b.name, b.via.len())));
    held_by.dedup_by(|a, b| (a.kind, &a.name) == (b.kind, &b.name));
    let what = |node: &Node| match node {
        Node::Blob(_) => "blob",
        Node::Tree(_) => "tree",
        Node::Snapshot(_) => "snapshot",
    };
    Ok(WhyReport { digest, what: nodes.iter().map(what).collect(), size_bytes, held_by })
}

/// What lies on the disk. Read before the database, as a collection does.
struct There {
    blobs: Vec<(Digest, u64)>,
    trees: Vec<DiffId>,
}

impl There {
    fn read(store: &Store) -> Result<There> {
        let mut there = There { blobs: Vec::new(), trees: Vec::new() };
        store.content().walk(&mut |digest, bytes| {
            there.blobs.push((digest, bytes));
            Ok(())
        })?;
        store.trees().walk(&mut |diff_id| {
            there.trees.push(diff_id);
            Ok(())
        })?;
        Ok(there)
    }

    /// The digest in full, what has it, and what that occupies: of all that a collection judges, recorded or not, trusted
    /// or not.
    fn find(&self, store: &Store, facts: &Facts, asked: &str) -> Result<(String, Vec<Node>, u64)> {
        let blobs = self.blobs.iter().map(|(digest, _)| (digest.to_string(), Node::Blob(*digest)));
        let trees: BTreeSet<DiffId> =
            facts.trees.iter().map(|row| row.diff_id).chain(self.trees.iter().copied()).collect();
        let trees = trees.into_iter().map(|diff_id| (diff_id.to_string(), Node::Tree(diff_id)));
        let snapshots = facts.snapshots.iter().map(|row| (row.key.clone(), Node::Snapshot(row.key.clone())));
        let mut found: Vec<(String, Node)> =
            blobs.chain(trees).chain(snapshots).filter(|(text, _)| begins(text, asked)).collect();
        // What is called so is meant, whatever else begins so.
        if found.iter().any(|(text, _)| text == asked) {
            found.retain(|(text, _)| text == asked);
        }
        let names: HashSet<&String> = found.iter().map(|(text, _)| text).collect();
        if names.len() > 1 {
            let message = format!("{} digests begin so", names.len());
            return Err(Error::new(ErrorKind::InvalidArgument, message).with_hint("give more of the digest"));
        }
        let Some(digest) = names.into_iter().next().cloned() else {
            return Err(Error::new(ErrorKind::NotFound, "nothing in the store has this digest"));
        };
        let nodes: Vec<Node> = found.into_iter().map(|(_, node)| node).collect();
        let size_bytes = nodes.iter().map(|node| self.size(store, facts, node)).sum::<Result<u64>>()?;
        Ok((digest, nodes, size_bytes))
    }

    /// As a collection counts it.
    fn size(&self, store: &Store, facts: &Facts, node: &Node) -> Result<u64> {
        let measured = |directory: &str, name: &str| -> Result<u64> {
            let dir = durable::open_dir(store.root(), directory)?;
            Ok(measure(dir.as_fd(), name)?.bytes)
        };
        match node {
            Node::Blob(digest) => {
                Ok(self.blobs.iter().find(|(other, _)| other == digest).map_or(0, |(_, bytes)| *bytes))
            }
            Node::Tree(diff_id) => match facts.trees.iter().find(|row| row.diff_id == *diff_id) {
                Some(row) => Ok(row.bytes),
                None => measured("trees", &diff_id.0.hex()),
            },
            Node::Snapshot(key) => match facts.snapshots.iter().find(|row| row.key == *key) {
                Some(row) => measured("snapshots", &row.id.to_string()),
                None => Ok(0),
            },
        }
    }
}

/// Whether this is what was asked for: its beginning, with the algorithm or without.
fn begins(text: &str, asked: &str) -> bool {
    text.starts_with(asked) || text.split_once(':').is_some_and(|(_, hex)| hex.starts_with(asked))
}

/// Goes up to the roots, breadth first, so that the way that is told is the shortest.
fn climb(from: &Node, sources: &HashMap<&Thing, Vec<&Source<'_>>>) -> Vec<Holder> {
    let mut holders = Vec::new();
    let mut waiting: VecDeque<(Thing, Vec<String>)> =
        from.things().into_iter().map(|thing| (thing.clone(), vec![shown(&thing)])).collect();
    let mut seen: HashSet<Thing> = waiting.iter().map(|(thing, _)| thing.clone()).collect();
    while let Some((thing, via)) = waiting.pop_front() {
        for source in sources.get(&thing).into_iter().flatten() {
            match source {
                Source::Root(root) => holders.push(holder(root, &via)),
                Source::Thing(above) if seen.insert(above.clone()) => {
                    let step = shown(above);
                    // A blob as a document and as such are one step.
                    let rest = via.iter().skip(usize::from(via.first() == Some(&step)));
                    let via = [step.clone()].into_iter().chain(rest.cloned()).collect();
                    waiting.push_back((above.clone(), via));
                }
                Source::Thing(_) => {}
            }
        }
    }
    holders
}

fn shown(thing: &Thing) -> String {
    match thing {
        Thing::Bare(digest) | Thing::Blob(digest) | Thing::Document(digest) => format!("blob {digest}"),
        Thing::Tree(diff_id) => format!("tree {diff_id}"),
        Thing::BareSnapshot(key) | Thing::Snapshot(key) => format!("snapshot {key}"),
        Thing::Image(name) => format!("image {name}"),
        Thing::Ingest(name) => format!("ingest {name}"),
    }
}

fn holder(root: &Root<'_>, via: &[String]) -> Holder {
    let (kind, name) = match root {
        Root::Lease(lease, _) => ("lease", lease.id.clone()),
        Root::Image(image) => ("image", image.label_key()),
        Root::Removed(tombstone) => {
            ("removed image", tombstone.name.clone().unwrap_or_else(|| tombstone.target.digest.to_string()))
        }
        Root::Label(digest) => ("label", digest.to_string()),
        Root::Snapshot(row) => ("snapshot", row.key.clone()),
    };
    Holder { kind, name, via: via.to_vec() }
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

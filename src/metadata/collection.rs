//! The database's half of a collection: what it looks at, read at once, and what it forgets, each time in one short
//! transaction that looks again.
//!
//! An importer puts a digest on its lease first and looks for the blob second. A collection reads everything ([`Facts`]),
//! marks what is needed, takes the lock of a thing that is not, and asks here to forget it. Here leases are read again,
//! and images that have changed since the mark; what either holds by now stays. Where that cannot be told from the
//! database alone (a label was changed, a new image's document was never looked into) the mark is stale and is made anew.
//! So the labels of a mark that is not stale are still those of the database, and need not be read again.

use super::columns::parsed;
use super::connection::Sync;
use super::references::References;
use super::{
    ImageRow, Labels, LeaseRow, Metadata, Resource, SnapshotKind, SnapshotRow, Tombstone, TreeRow, blobs,
    images, labels, leases, references, snapshots, tombstones, trees,
};
use crate::error::{ErrorKind, Result};
use crate::oci::{DiffId, Digest};
use rusqlite::{Connection, params};
use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap, HashSet};

/// When a collection looked; see the file's head.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mark {
    changed: u64,
    /// What was learnt of images that have changed since, so that each is looked at once and not in every transaction.
    later: RefCell<Later>,
    labels: u64,
    /// What labels have as their value, and the blobs and snapshots that carry these.
    labelled: HashMap<String, Vec<Carrier>>,
    /// The rows of the snapshots whose labels keep nothing.
    dead: HashSet<u64>,
}

impl Mark {
    /// Adds what the marking found of snapshots: the rows of those that nothing needs, or not with what their labels refer
    /// to. All others count as needed with that.
    pub fn found_dead(&mut self, snapshots: impl Iterator<Item = u64>) {
        self.dead.extend(snapshots);
    }
}

/// The images that have changed since a mark.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Later {
    /// Up to which change they were looked at.
    seen: u64,
    /// Manifests that they name and that nobody has looked into, for lack of them: of other platforms, mostly.
    missing: HashSet<String>,
}

/// Who carries a label.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Carrier {
    Blob(Digest),
    Snapshot(String),
}

/// The labels that a collection asks for begin so.
pub(super) const GC_LABELS: &str = "containerd.io/gc.";

/// A snapshot that a collection has found dead.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeadSnapshot {
    /// Its key.
    pub key: String,
    /// Its row; another one of the same key is another snapshot.
    pub id: u64,
}

/// Everything that decides what is needed, of one moment.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// The moment.
    pub mark: Mark,
    /// The images.
    pub images: Vec<ImageRow>,
    /// Removed images that can be restored.
    pub tombstones: Vec<Tombstone>,
    /// The leases, dead ones too, and what each holds.
    pub leases: Vec<(LeaseRow, Vec<Resource>)>,
    /// Labels of images that matter here, by name or target.
    pub image_labels: BTreeMap<String, Labels>,
    /// Labels of blobs that matter here, by digest.
    pub blob_labels: BTreeMap<String, Labels>,
    /// What names what.
    pub references: References,
    /// The snapshots, parents before children; also those that an earlier boot left and nobody trusts any more.
    pub snapshots: Vec<SnapshotRow>,
    /// Every blob that has any record, whether it is on the disk or not.
    pub blobs: Vec<Digest>,
    /// The trees that have a record.
    pub trees: Vec<TreeRow>,
}

impl Metadata {
    /// Reads what a collection looks at. Nobody waits for it.
    pub fn facts(&self) -> Result<Facts> {
        self.read(|transaction| {
            let (changed, label_changes) = references::changes(transaction)?;
            let mut held = leases::held(transaction)?;
            let with_resources = |lease: LeaseRow| {
                let resources = held.remove(&lease.id).unwrap_or_default();
                (lease, resources)
            };
            let blob_labels = labels::with(transaction, "blob", GC_LABELS)?;
            let snapshots = snapshots::all_rows(transaction)?;
            Ok(Facts {
                mark: Mark {
                    changed,
                    later: RefCell::new(Later { seen: changed, ..Later::default() }),
                    labels: label_changes,
                    labelled: labelled(&blob_labels, &snapshots),
                    dead: HashSet::new(),
                },
                images: images::all(transaction)?,
                tombstones: tombstones::all(transaction)?,
                leases: leases::all(transaction)?.into_iter().map(with_resources).collect(),
                // Part of `containerd.io/gc.…` and of `io.cri-containerd.pinned`.
                image_labels: labels::with(transaction, "image", "containerd")?,
                blob_labels,
                references: references::all(transaction)?,
                snapshots,
                blobs: recorded_blobs(transaction)?,
                trees: trees::all(transaction)?,
            })
        })
    }

    /// Forgets those of `digests` that are still not needed, and tells which; `None` where the mark is stale. The caller
    /// holds the lock of each.
    pub fn sweep_blobs(&self, mark: &Mark, digests: &[Digest]) -> Result<Option<Vec<Digest>>> {
        self.sweep(mark, |transaction| {
            let now = Now { connection: transaction, mark };
            let mut swept = Vec::new();
            for digest in digests {
                if !now.needs_blob(digest)? {
                    blobs::remove(transaction, &digest.to_string())?;
                    swept.push(*digest);
                }
            }
            Ok(swept)
        })
    }

    /// The same for trees: those that no lease and no snapshot has.
    pub fn sweep_trees(&self, mark: &Mark, diff_ids: &[DiffId]) -> Result<Option<Vec<DiffId>>> {
        self.sweep(mark, |transaction| {
            let mut swept = Vec::new();
            for diff_id in diff_ids {
                let key = diff_id.to_string();
                let in_use = leases::is_held(transaction, "tree", &key)?
                    || snapshots::any_of_tree(transaction, &key, self.boot())?;
                if !in_use {
                    transaction.prepare_cached("DELETE FROM tree WHERE diff_id = ?")?.execute([&key])?;
                    swept.push(*diff_id);
                }
            }
            Ok(swept)
        })
    }

    /// The same for snapshots, by key: those that no lease, no image and no other snapshot stands on. Children come
    /// before their parents.
    pub fn sweep_snapshots(&self, mark: &Mark, dead: &[DeadSnapshot]) -> Result<Option<Vec<SnapshotRow>>> {
        self.sweep(mark, |transaction| {
            let now = Now { connection: transaction, mark };
            let mut swept = Vec::new();
            for DeadSnapshot { key, id } in dead {
                if now.needs_snapshot(key)? || snapshots::id_of(transaction, key)? != Some(*id) {
                    continue;
                }
                match snapshots::remove(transaction, key) {
                    Ok(row) => swept.push(row),
                    // Someone stands on it by now, or has removed it.
                    Err(error)
                        if matches!(error.kind(), ErrorKind::FailedPrecondition | ErrorKind::NotFound) => {}
                    Err(error) => return Err(error),
                }
            }
            Ok(swept)
        })
    }

    fn sweep<T>(&self, mark: &Mark, work: impl FnOnce(&Connection) -> Result<T>) -> Result<Option<T>> {
        self.write(Sync::Lazy, |transaction| match is_stale(transaction, mark)? {
            true => Ok(None),
            false => work(transaction).map(Some),
        })
    }
}

/// Who carries labels that refer to something, by what they refer to.
fn labelled(blobs: &BTreeMap<String, Labels>, snapshots: &[SnapshotRow]) -> HashMap<String, Vec<Carrier>> {
    let mut found: HashMap<String, Vec<Carrier>> = HashMap::new();
    let mut add = |labels: &Labels, carrier: Carrier| {
        for (_, value) in labels.iter().filter(|(name, _)| name.starts_with(GC_LABELS)) {
            found.entry(value.clone()).or_default().push(carrier.clone());
        }
    };
    for (digest, labels) in blobs {
        if let Ok(digest) = digest.parse() {
            add(labels, Carrier::Blob(digest));
        }
    }
    for row in snapshots {
        add(&row.labels, Carrier::Snapshot(row.key.clone()));
    }
    found
}

/// Whether something has happened that only a new mark can judge: another label, or an image that names a document which
/// nobody has looked into.
fn is_stale(connection: &Connection, mark: &Mark) -> Result<bool> {
    let (changed, labels) = references::changes(connection)?;
    if labels != mark.labels {
        return Ok(true);
    }
    let mut later = mark.later.borrow_mut();
    if changed != later.seen {
        let seen = super::columns::int(later.seen);
        let unread = "SELECT 1 FROM image i WHERE i.changed > ?
            AND NOT EXISTS (SELECT 1 FROM node n WHERE n.digest = i.target AND n.read) LIMIT 1";
        if connection.prepare_cached(unread)?.exists([seen])? {
            return Ok(true);
        }
        let missing = "SELECT n.digest FROM image i JOIN node t ON t.digest = i.target
            JOIN reference r ON r.from_id = t.id AND r.follow JOIN node n ON n.id = r.to_id
            WHERE i.changed > ? AND NOT n.read";
        let mut statement = connection.prepare_cached(missing)?;
        for digest in statement.query_map([seen], |row| row.get(0))? {
            later.missing.insert(digest?);
        }
        later.seen = changed;
    }
    let mut came = connection.prepare_cached(
        "SELECT 1 FROM node n JOIN blob b ON b.digest = n.digest WHERE n.digest = ? AND NOT n.read",
    )?;
    for digest in &later.missing {
        if came.exists([digest])? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// What is needed at the moment of a sweep, in its transaction.
struct Now<'a> {
    connection: &'a Connection,
    mark: &'a Mark,
}

impl Now<'_> {
    /// Whether a blob that the mark did not reach is needed by now: by a lease, by an image that has changed since, or by
    /// a document or something labelled that is.
    fn needs_blob(&self, digest: &Digest) -> Result<bool> {
        match leases::is_held(self.connection, "blob", &digest.to_string())? {
            true => Ok(true),
            false => self.needs_above(Carrier::Blob(*digest)),
        }
    }

    /// The same for a snapshot. What stands on it is not asked for: with a child it is not removed anyway.
    fn needs_snapshot(&self, key: &str) -> Result<bool> {
        Ok(self.holds_snapshot(key)? || self.needs_above(Carrier::Snapshot(key.to_string()))?)
    }

    fn holds_snapshot(&self, key: &str) -> Result<bool> {
        Ok(leases::is_held(self.connection, "snapshot", key)? || self.is_of_image(key)?)
    }

    fn holds_snapshot_with_labels(&self, key: &str) -> Result<bool> {
        Ok(leases::is_held_whole(self.connection, "snapshot", key)? || self.is_of_image(key)?)
    }

    fn is_of_image(&self, key: &str) -> Result<bool> {
        exists(self.connection, "SELECT 1 FROM manifest WHERE chain_id = ? LIMIT 1", key)
    }

    /// Goes up from something that was dead as the mark was made, to what is not. Each thing is looked at once, so those
    /// that only refer to each other end nowhere.
    fn needs_above(&self, start: Carrier) -> Result<bool> {
        let mut seen = HashSet::from([start.clone()]);
        let mut waiting = vec![start.clone()];
        while let Some(one) = waiting.pop() {
            let (key, mut above) = match &one {
                Carrier::Blob(digest) => {
                    let key = digest.to_string();
                    let held = one != start && leases::is_held_whole(self.connection, "blob", &key)?;
                    if held || self.is_of_changed_image(&key)? {
                        return Ok(true);
                    }
                    let referrers = references::referrers(self.connection, &key)?;
                    (key, referrers.into_iter().map(Carrier::Blob).collect::<Vec<_>>())
                }
                Carrier::Snapshot(key) if one == start => (key.clone(), Vec::new()),
                Carrier::Snapshot(key) => {
                    let Some(row) = snapshots::find(self.connection, key)? else { continue };
                    let alive = row.kind != SnapshotKind::Committed || !self.mark.dead.contains(&row.id);
                    if alive || self.holds_snapshot_with_labels(key)? {
                        return Ok(true);
                    }
                    let children = snapshots::children(self.connection, row.id)?;
                    (key.clone(), children.into_iter().map(Carrier::Snapshot).collect())
                }
            };
            above.extend(self.carriers(&key).cloned());
            waiting.extend(above.into_iter().filter(|above| seen.insert(above.clone())));
        }
        Ok(false)
    }

    fn carriers(&self, value: &str) -> impl Iterator<Item = &Carrier> {
        self.mark.labelled.get(value).into_iter().flatten()
    }

    fn is_of_changed_image(&self, digest: &str) -> Result<bool> {
        let mut target =
            self.connection.prepare_cached("SELECT 1 FROM image WHERE target = ? AND changed > ? LIMIT 1")?;
        let mut manifest = self.connection.prepare_cached(
            "SELECT 1 FROM manifest m JOIN image_manifest a ON a.manifest_id = m.id JOIN image i ON i.id = a.image_id
             WHERE m.digest = ? AND i.changed > ? LIMIT 1",
        )?;
        let of = params![digest, super::columns::int(self.mark.changed)];
        Ok(target.exists(of)? || manifest.exists(of)?)
    }
}

fn exists(connection: &Connection, sql: &str, key: &str) -> Result<bool> {
    Ok(connection.prepare_cached(sql)?.exists([key])?)
}

fn recorded_blobs(connection: &Connection) -> Result<Vec<Digest>> {
    let mut statement =
        connection.prepare_cached("SELECT digest FROM blob UNION SELECT digest FROM layer")?;
    let mut rows = statement.query([])?;
    let mut digests = Vec::new();
    while let Some(row) = rows.next()? {
        digests.push(parsed(row, 0)?);
    }
    Ok(digests)
}

//! What can go: plain data, counted for a dry run, carried out by the sweep otherwise.

use super::super::measure::{measure, names};
use super::super::reach::{Needs, Reach, Without};
use super::{GcFailure, GcItem, GcReport, give_way};
use crate::error::Result;
use crate::io::{durable, locked::LockedDir};
use crate::metadata::{ImageRow, LeaseRow, Mark, References, SnapshotKind, Tombstone};
use crate::oci::{DiffId, Digest};
use crate::parallel::failpoint;
use crate::store::Store;
use rustix::fd::AsFd;
use std::collections::{BTreeMap, HashMap, HashSet};

/// What lies on the disk, by name. Read before the database: a directory has a record before it has its name, so one
/// without a record has lost it.
#[derive(Default)]
pub(super) struct Listing {
    blobs: Vec<(Digest, u64)>,
    trees: Vec<String>,
    snapshots: Vec<String>,
    ingests: Vec<String>,
    /// What could not be listed, or only in part.
    failed: Vec<GcFailure>,
}

impl Listing {
    /// What cannot be listed is left to a later collection, which is no reason to leave the rest.
    pub(super) fn read(store: &Store) -> Self {
        let mut listing = Listing::default();
        let walked = store.content().walk(&mut |digest, size_bytes| {
            listing.blobs.push((digest, size_bytes));
            Ok(())
        });
        listing.failed.extend(walked.err().map(|error| GcFailure::new("blobs", error)));
        listing.trees = listing.names(store, "trees");
        listing.snapshots = listing.names(store, "snapshots");
        listing.ingests = listing.names(store, "ingest");
        listing
    }

    fn names(&mut self, store: &Store, directory: &str) -> Vec<String> {
        let list = || -> Result<Vec<String>> {
            failpoint::at("gc.list")?;
            let dir = durable::open_dir(store.root(), directory)?;
            Ok(names(&dir)?.into_iter().map(|name| name.to_string_lossy().into_owned()).collect())
        };
        list().unwrap_or_else(|error| {
            self.failed.push(GcFailure::new(directory, error));
            Vec::new()
        })
    }
}

/// A snapshot that nothing needs.
#[derive(Debug)]
pub(super) struct Dead {
    pub(super) key: String,
    pub(super) id: u64,
    /// What its directory occupies.
    pub(super) bytes: u64,
    /// Whether it is one that was mounted and no longer is.
    pub(super) was_mounted: bool,
}

/// What can go.
#[derive(Debug, Default)]
pub(super) struct Plan {
    pub(super) mark: Mark,
    pub(super) reach: Reach,
    pub(super) leases: Vec<String>,
    /// With their sizes, where they are on the disk.
    pub(super) blobs: BTreeMap<Digest, Option<u64>>,
    /// The same, in the order in which they go.
    pub(super) blob_order: Vec<Digest>,
    pub(super) trees: BTreeMap<DiffId, u64>,
    /// Children before parents.
    pub(super) snapshots: Vec<Dead>,
    /// Directories that no record has.
    pub(super) orphans: BTreeMap<u64, u64>,
    pub(super) ingests: BTreeMap<String, u64>,
    /// What could not be looked at. The rest goes all the same.
    pub(super) failed: Vec<GcFailure>,
}

/// The leases that no longer hold: expired, or of a dead process. One of which that cannot be told holds.
pub(super) fn gone_leases(
    store: &Store,
    leases: &[LeaseRow],
    now_ms: u64,
) -> (HashSet<String>, Vec<GcFailure>) {
    let (mut gone, mut failed) = (HashSet::new(), Vec::new());
    for lease in leases {
        match store.lease_is_live(lease, now_ms) {
            Ok(false) => drop(gone.insert(lease.id.clone())),
            Ok(true) => {}
            Err(error) => failed.push(GcFailure::new(format!("lease {}", lease.id), error)),
        }
    }
    (gone, failed)
}

impl Plan {
    /// Marks, and compares with what is there. The images for which `gone` holds count as removed, and the removed ones for
    /// which `over` holds can no longer be restored.
    pub(super) fn make(
        store: &Store,
        listing: &Listing,
        gone: &dyn Fn(&ImageRow) -> bool,
        over: &dyn Fn(&Tombstone) -> bool,
    ) -> Result<Plan> {
        Plan::make_after(store, listing, gone, over, &HashSet::new())
    }

    /// The same after these snapshots, by key, have been given up.
    pub(super) fn make_after(
        store: &Store,
        listing: &Listing,
        gone: &dyn Fn(&ImageRow) -> bool,
        over: &dyn Fn(&Tombstone) -> bool,
        snapshots: &HashSet<String>,
    ) -> Result<Plan> {
        let facts = store.metadata().facts()?;
        let rows: Vec<LeaseRow> = facts.leases.iter().map(|(lease, _)| lease.clone()).collect();
        let (leases, failed) = gone_leases(store, &rows, super::now_ms());
        let without =
            Without { image: gone, expired: &|_| false, tombstone: over, leases: &leases, snapshots };
        let reach = Needs::new(store, &facts).of_all(&without)?;
        let mut plan = Plan { mark: facts.mark, leases: leases.into_iter().collect(), ..Plan::default() };
        plan.failed = listing.failed.iter().cloned().chain(failed).collect();
        plan.failed.extend(reach.failed.iter().map(|(what, error)| GcFailure::new(*what, error)));
        plan.failed.extend(reach.unreadable.iter().map(unreadable));
        plan.leases.sort();
        plan.find_blobs(listing, &facts.blobs, &reach);
        plan.order_blobs(&facts.references);
        let known = facts.trees.iter().map(|row| (row.diff_id, row.bytes)).collect();
        plan.find_trees(store, listing, &known, &reach);
        plan.find_snapshots(store, listing, &facts.snapshots, &reach)?;
        plan.find_ingests(store, listing, &reach);
        plan.reach = reach;
        Ok(plan)
    }

    /// Records what the mark has read, so that the next one need not.
    pub(super) fn learn(&self, store: &Store) -> Result<()> {
        // Others write in between.
        self.reach.learnt.chunks(16).try_for_each(|documents| {
            store.metadata().references_put(documents)?;
            give_way();
            Ok(())
        })
    }

    /// What lies on the disk, with or without a record, and records without a blob.
    fn find_blobs(&mut self, listing: &Listing, recorded: &[Digest], reach: &Reach) {
        if !reach.unreadable.is_empty() {
            return;
        }
        let dead = |digest: &Digest| !reach.blobs.contains(digest);
        self.blobs.extend(recorded.iter().filter(|digest| dead(digest)).map(|digest| (*digest, None)));
        let listed = listing.blobs.iter().filter(|(digest, _)| dead(digest));
        self.blobs.extend(listed.map(|(digest, size_bytes)| (*digest, Some(*size_bytes))));
    }

    /// Documents before what they name: the sweep goes up from each blob to what names it, and little is left then.
    fn order_blobs(&mut self, references: &References) {
        let rank = |digest: &Digest| {
            let names = references.position(digest).map(|at| references.names[at as usize].as_slice());
            match names.unwrap_or_default() {
                [] => 2,
                names if names.iter().any(|(_, follow)| *follow) => 0,
                _ => 1,
            }
        };
        self.blob_order = self.blobs.keys().copied().collect();
        self.blob_order.sort_by_key(rank);
    }

    fn find_trees(&mut self, store: &Store, listing: &Listing, known: &HashMap<DiffId, u64>, reach: &Reach) {
        self.trees.extend(known.iter().filter(|(id, _)| !reach.trees.contains(id)).map(|(id, _)| (*id, 0)));
        for name in &listing.trees {
            // A name that none of ours has is somebody else's, here as among the blobs.
            let diff_id = crate::snapshot::Trees::diff_id_of(name);
            let Some(diff_id) = diff_id.filter(|diff_id| !reach.trees.contains(diff_id)) else { continue };
            let bytes = match known.get(&diff_id) {
                Some(bytes) => *bytes,
                None => self.measured(store, "trees", name),
            };
            self.trees.insert(diff_id, bytes);
        }
    }

    fn find_snapshots(
        &mut self,
        store: &Store,
        listing: &Listing,
        rows: &[crate::metadata::SnapshotRow],
        reach: &Reach,
    ) -> Result<()> {
        for row in rows.iter().rev().filter(|row| !reach.snapshots.contains(&row.key)) {
            let was_mounted = row.kind != SnapshotKind::Committed;
            let bytes = self.measured(store, "snapshots", &row.id.to_string());
            self.snapshots.push(Dead { key: row.key.clone(), id: row.id, bytes, was_mounted });
        }
        let bare: HashSet<&String> = reach.bare_snapshots.iter().collect();
        let bare = rows.iter().filter(|row| bare.contains(&row.key)).map(|row| row.id);
        self.mark.found_dead(self.snapshots.iter().map(|dead| dead.id).chain(bare));
        let known: HashSet<u64> = store.metadata().snapshot_ids()?.into_iter().collect();
        for name in &listing.snapshots {
            // Only numbers are ours. What else lies there was put there by someone else, and fsck tells of it.
            if let Some(id) =
                name.parse::<u64>().ok().filter(|id| !known.contains(id) && id.to_string() == *name)
            {
                let bytes = self.measured(store, "snapshots", name);
                self.orphans.insert(id, bytes);
            }
        }
        Ok(())
    }

    /// Whatever nobody holds a lock on.
    fn find_ingests(&mut self, store: &Store, listing: &Listing, reach: &Reach) {
        for name in listing.ingests.iter().filter(|name| !reach.ingests.contains(*name)) {
            if is_abandoned(store, name) {
                let bytes = self.measured(store, "ingest", name);
                self.ingests.insert(name.clone(), bytes);
            }
        }
    }

    /// What something occupies. Where that cannot be told it goes all the same, and counts as nothing.
    fn measured(&mut self, store: &Store, directory: &str, name: &str) -> u64 {
        let look = || -> Result<u64> {
            failpoint::at("gc.measure")?;
            Ok(measure(durable::open_dir(store.root(), directory)?.as_fd(), name)?.bytes)
        };
        look().unwrap_or_else(|error| {
            self.failed.push(GcFailure::new(format!("{directory}/{name}"), error));
            0
        })
    }

    /// What all of it occupies.
    pub(super) fn bytes(&self) -> u64 {
        self.items().map(|item| item.size_bytes).sum()
    }

    /// Each thing that can go, records without anything behind them left out.
    fn items(&self) -> impl Iterator<Item = GcItem> + '_ {
        let item = |kind, key: String, size_bytes| GcItem { kind, key, size_bytes };
        let blobs = self
            .blobs
            .iter()
            .filter_map(move |(digest, size)| Some(item("blob", digest.to_string(), (*size)?)));
        let trees = self.trees.iter().map(move |(id, bytes)| item("tree", id.to_string(), *bytes));
        let snapshots = self.snapshots.iter().map(move |dead| item("snapshot", dead.key.clone(), dead.bytes));
        let orphans = self.orphans.iter().map(move |(id, bytes)| item("snapshot", id.to_string(), *bytes));
        let ingests = self.ingests.iter().map(move |(name, bytes)| item("ingest", name.clone(), *bytes));
        let leases = self.leases.iter().map(move |id| item("lease", id.clone(), 0));
        blobs.chain(trees).chain(snapshots).chain(orphans).chain(ingests).chain(leases)
    }

    /// As if all of it had gone.
    pub(super) fn report(&self) -> GcReport {
        let items: Vec<GcItem> = self.items().collect();
        let count = |kind: &str| items.iter().filter(|item| item.kind == kind).count() as u64;
        GcReport {
            blobs_removed: count("blob"),
            trees_removed: count("tree"),
            snapshots_removed: count("snapshot"),
            ingests_removed: count("ingest"),
            leases_removed: count("lease"),
            bytes_freed: self.bytes(),
            failed: self.failed.clone(),
            items,
            ..GcReport::default()
        }
    }
}

fn unreadable((digest, error): &(Digest, String)) -> GcFailure {
    let error = format!("it cannot be read, so no blob is removed: {error}");
    GcFailure { what: format!("blob {digest}"), error }
}

/// A stray file counts as abandoned: ours are directories.
fn is_abandoned(store: &Store, name: &str) -> bool {
    let ingests = store.content().ingests();
    match LockedDir::try_existing(ingests, name) {
        Ok(held) => held.is_some(),
        Err(_) => !super::sweep::is_directory(ingests.as_fd(), name),
    }
}

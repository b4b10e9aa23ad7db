//! The collection: what no image, no snapshot in use and no lease needs is removed.
//!
//! It works alone: imports hold the same lock shared. First the metadata goes, then the files, so that a crash between
//! the two leaves files without rows, which the next collection finds. A removal that fails is reported and does not
//! keep the others from happening.

use super::measure::{measure, names};
use super::reach::{Reach, reach};
use crate::content::ContentStore;
use crate::error::{Error, ErrorKind, Result, ResultExt};
use crate::io::{durable, locked::LockedDir, remove::remove_tree};
use crate::metadata::{ImageRow, SnapshotKind};
use crate::oci::{DiffId, Digest};
use crate::parallel::{Cancel, failpoint};
use crate::store::Store;
use crate::trace;
use rustix::fd::{AsFd, BorrowedFd};
use rustix::fs;
use rustix::io::Errno;
use serde::Serialize;
use std::collections::{BTreeMap, HashSet};

/// How to collect.
#[derive(Clone, Debug, Default)]
pub struct GcOptions {
    /// Only tell what would go.
    pub dry_run: bool,
    /// Wait for running imports, until cancelled; without it they are an [`crate::ErrorKind::Busy`].
    pub wait: Option<Cancel>,
}

/// What a collection did, or would do.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct GcReport {
    /// Blobs removed.
    pub blobs_removed: u64,
    /// Extracted layers removed.
    pub trees_removed: u64,
    /// Snapshots removed, and directories of snapshots that nobody knew.
    pub snapshots_removed: u64,
    /// Abandoned ingests removed.
    pub ingests_removed: u64,
    /// Leases of dead processes and expired ones removed.
    pub leases_removed: u64,
    /// What all that occupied.
    pub bytes_freed: u64,
    /// What could not be removed.
    pub failed: Vec<GcFailure>,
}

/// Something that could not be removed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct GcFailure {
    /// What.
    pub what: String,
    /// Why.
    pub error: String,
}

/// What can go. Plain data: counted for a dry run, carried out otherwise.
#[derive(Debug, Default)]
struct Plan {
    leases: Vec<String>,
    blobs: BTreeMap<Digest, u64>,
    trees: BTreeMap<String, u64>,
    tree_rows: Vec<DiffId>,
    /// Keys, children before parents.
    snapshots: Vec<String>,
    snapshot_dirs: BTreeMap<String, u64>,
    ingests: BTreeMap<String, u64>,
    unreadable: Vec<(Digest, String)>,
}

/// Collects. [`crate::ErrorKind::Busy`] while imports run, unless asked to wait.
pub fn gc(store: &Store, options: &GcOptions) -> Result<GcReport> {
    let collected = trace::within(trace::verb!("gc", dry_run = options.dry_run, removed, bytes), |span| {
        let report = collect(store, options)?;
        let blobs_and_trees = report.blobs_removed + report.trees_removed;
        span.record("removed", blobs_and_trees + report.snapshots_removed + report.ingests_removed);
        span.record("bytes", report.bytes_freed);
        Ok(report)
    });
    collected.doing(|| "cannot collect garbage")
}

fn collect(store: &Store, options: &GcOptions) -> Result<GcReport> {
    let mark = || trace::within(trace::stage!("gc.mark"), |_| Plan::make(store, &|_| false));
    if options.dry_run {
        return Ok(mark()?.report());
    }
    store.check_writable()?;
    let _alone = trace::within(trace::stage!("gc.lock"), |_| store.gc_lock_exclusive(options.wait.as_ref()))?;
    let deferred = store.finish_deferred()?;
    let mut report = mark()?.run(store)?;
    report.snapshots_removed += deferred.removed.len() as u64;
    let failure = |(key, error): (String, Error)| GcFailure {
        what: format!("snapshot {key}"),
        error: error.to_string(),
    };
    report.failed.extend(deferred.failed.into_iter().map(failure));
    Ok(report)
}

/// How many bytes the next collection frees once the images `without`, by name or by `sha256:…` target, are gone. An
/// estimate while imports run.
pub fn would_free(store: &Store, without: &[&str]) -> Result<u64> {
    let gone = |image: &ImageRow| match &image.name {
        Some(name) => without.contains(&name.as_str()),
        None => without.contains(&image.target.digest.to_string().as_str()),
    };
    Ok(Plan::make(store, &gone)?.bytes())
}

impl Plan {
    fn make(store: &Store, without: &dyn Fn(&ImageRow) -> bool) -> Result<Plan> {
        let now_ms = super::now_ms();
        let reach = reach(store, without, now_ms)?;
        let mut plan = Plan::default();
        plan.find_leases(store, now_ms)?;
        plan.find_blobs(store.content(), &reach)?;
        plan.find_trees(store, &reach)?;
        plan.find_snapshots(store, &reach)?;
        plan.find_ingests(store, &reach)?;
        plan.unreadable = reach.unreadable;
        Ok(plan)
    }

    fn find_leases(&mut self, store: &Store, now_ms: u64) -> Result<()> {
        for lease in store.metadata().leases()? {
            if !store.lease_is_live(&lease, now_ms)? {
                self.leases.push(lease.id);
            }
        }
        Ok(())
    }

    /// What lies on the disk decides, with or without a row.
    fn find_blobs(&mut self, content: &ContentStore, reach: &Reach) -> Result<()> {
        if !reach.unreadable.is_empty() {
            return Ok(());
        }
        content.walk(&mut |digest, size_bytes| {
            if !reach.blobs.contains(&digest) {
                self.blobs.insert(digest, size_bytes);
            }
            Ok(())
        })
    }

    fn find_trees(&mut self, store: &Store, reach: &Reach) -> Result<()> {
        let rows = store.metadata().trees()?;
        let known: BTreeMap<String, u64> = rows.iter().map(|row| (row.diff_id.0.hex(), row.bytes)).collect();
        self.tree_rows =
            rows.iter().map(|row| row.diff_id).filter(|diff_id| !reach.trees.contains(diff_id)).collect();
        let needed: HashSet<String> = reach.trees.iter().map(|diff_id| diff_id.0.hex()).collect();
        let trees = durable::open_dir(store.root(), "trees")?;
        for name in names(&trees)? {
            let name = name.to_string_lossy().into_owned();
            if needed.contains(&name) {
                continue;
            }
            let bytes = match known.get(&name) {
                Some(bytes) => *bytes,
                None => measure(trees.as_fd(), &name)?.bytes,
            };
            self.trees.insert(name, bytes);
        }
        Ok(())
    }

    /// Directories are listed before the rows are read: a row is made before its directory.
    fn find_snapshots(&mut self, store: &Store, reach: &Reach) -> Result<()> {
        let dirs = durable::open_dir(store.root(), "snapshots")?;
        let listed = names(&dirs)?;
        let rows = store.metadata().snapshots()?;
        let gone = rows.iter().rev().filter(|row| !reach.snapshots.contains(&row.key));
        let gone =
            gone.filter(|row| row.kind == SnapshotKind::Committed || reach.abandoned.contains(&row.key));
        let (keys, ids): (Vec<String>, HashSet<u64>) = gone.map(|row| (row.key.clone(), row.id)).unzip();
        self.snapshots = keys;
        let known: HashSet<u64> = store.metadata().snapshot_ids()?.into_iter().collect();
        for name in listed {
            let name = name.to_string_lossy().into_owned();
            // Only numbers are ours. What else lies there was put there by someone else, and fsck tells of it.
            let Ok(id) = name.parse::<u64>() else { continue };
            if ids.contains(&id) || !known.contains(&id) {
                let bytes = measure(dirs.as_fd(), &name)?.bytes;
                self.snapshot_dirs.insert(name, bytes);
            }
        }
        Ok(())
    }

    /// Whatever nobody holds a lock on.
    fn find_ingests(&mut self, store: &Store, reach: &Reach) -> Result<()> {
        let ingests = store.content().ingests();
        for name in names(ingests)? {
            let name = name.to_string_lossy().into_owned();
            if !reach.ingests.contains(&name) && is_abandoned(store, &name) {
                let bytes = measure(ingests.as_fd(), &name)?.bytes;
                self.ingests.insert(name, bytes);
            }
        }
        Ok(())
    }

    fn bytes(&self) -> u64 {
        let parts =
            [self.blobs.values().sum(), sum(&self.trees), sum(&self.snapshot_dirs), sum(&self.ingests)];
        parts.iter().sum::<u64>()
    }

    fn report(&self) -> GcReport {
        let orphans = self.snapshot_dirs.len().saturating_sub(self.snapshots.len());
        GcReport {
            blobs_removed: self.blobs.len() as u64,
            trees_removed: self.trees.len() as u64,
            snapshots_removed: (self.snapshots.len() + orphans) as u64,
            ingests_removed: self.ingests.len() as u64,
            leases_removed: self.leases.len() as u64,
            bytes_freed: self.bytes(),
            failed: self.unreadable.iter().map(unreadable).collect(),
        }
    }

    /// Metadata first, then files.
    fn run(mut self, store: &Store) -> Result<GcReport> {
        let failed = trace::within(trace::stage!("gc.forget"), |_| self.forget(store))?;
        trace::within(trace::stage!("gc.sweep"), |_| {
            let mut sweep = Sweep { store, report: self.report() };
            sweep.report.failed.extend(failed);
            sweep.blobs(&self.blobs);
            sweep.directories("trees", &self.trees, |report| &mut report.trees_removed)?;
            sweep.directories("snapshots", &self.snapshot_dirs, |report| &mut report.snapshots_removed)?;
            sweep.ingests(&self.ingests);
            Ok(sweep.report)
        })
    }

    fn forget(&mut self, store: &Store) -> Result<Vec<GcFailure>> {
        let metadata = store.metadata();
        failpoint::at("gc.forget")?;
        for lease in &self.leases {
            metadata.lease_remove(lease)?;
        }
        store.sweep_lease_files()?;
        store.sweep_temporaries()?;
        let mut failed = Vec::new();
        self.snapshots.retain(|key| match metadata.snapshot_remove(key) {
            Ok(_) => true,
            // Someone has put a mount on it since we looked, or has removed it.
            Err(error) if matches!(error.kind(), ErrorKind::FailedPrecondition | ErrorKind::NotFound) => {
                false
            }
            Err(error) => {
                failed.push(GcFailure { what: format!("snapshot {key}"), error: error.to_string() });
                false
            }
        });
        self.spare(store)?;
        metadata.tree_remove(&self.tree_rows)?;
        metadata.blob_remove(&self.blobs.keys().copied().collect::<Vec<_>>())?;
        // What is removed now must not be needed again by a state that a power cut brings back, such as the one before an
        // unsynced retagging.
        if self.bytes() > 0 && failpoint::sync("gc.sync")? {
            metadata.barrier()?;
        }
        Ok(failed)
    }

    /// Mounts are prepared while we work. Whoever got a snapshot before its row went keeps it with its tree; whoever
    /// comes after finds no row.
    fn spare(&mut self, store: &Store) -> Result<()> {
        let rows = store.metadata().snapshots()?;
        let needed: HashSet<DiffId> = rows.iter().filter_map(|row| row.tree).collect();
        let names: HashSet<String> = needed.iter().map(|diff_id| diff_id.0.hex()).collect();
        let ids: HashSet<String> = store.metadata().snapshot_ids()?.iter().map(u64::to_string).collect();
        self.tree_rows.retain(|diff_id| !needed.contains(diff_id));
        self.trees.retain(|name, _| !names.contains(name));
        self.snapshot_dirs.retain(|name, _| !ids.contains(name));
        Ok(())
    }
}

fn sum(sizes: &BTreeMap<String, u64>) -> u64 {
    sizes.values().sum()
}

fn unreadable((digest, error): &(Digest, String)) -> GcFailure {
    let error = format!("it cannot be read, so no blob is removed: {error}");
    GcFailure { what: format!("blob {digest}"), error }
}

/// A stray file counts as abandoned: ours are directories.
fn is_abandoned(store: &Store, name: &str) -> bool {
    match LockedDir::try_existing(store.content().ingests(), name) {
        Ok(held) => held.is_some(),
        Err(_) => true,
    }
}

/// Takes a directory away from its final name first, so that a crash leaves no half of it there. `trash` is swept by
/// every collection. One that is gone already is fine.
fn remove_aside(parent: BorrowedFd<'_>, name: &str, trash: BorrowedFd<'_>) -> Result<()> {
    let aside = format!("removed-{}", durable::unique_name());
    failpoint::at("gc.aside")?;
    match fs::renameat(parent, name, trash, aside.as_str()) {
        Ok(()) => {
            failpoint::at("gc.remove")?;
            remove_tree(trash, &aside)
        }
        Err(Errno::NOENT) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

struct Sweep<'a> {
    store: &'a Store,
    report: GcReport,
}

impl Sweep<'_> {
    fn fail(&mut self, what: String, error: impl std::fmt::Display) {
        self.report.failed.push(GcFailure { what, error: error.to_string() });
    }

    fn blobs(&mut self, blobs: &BTreeMap<Digest, u64>) {
        for (digest, bytes) in blobs {
            let removed = failpoint::at("gc.blob").map_err(Into::into);
            if let Err(error) = removed.and_then(|()| self.store.content().remove(digest)) {
                self.report.blobs_removed -= 1;
                self.report.bytes_freed -= bytes;
                self.fail(format!("blob {digest}"), error);
            }
        }
    }

    fn directories(
        &mut self,
        parent: &str,
        sizes: &BTreeMap<String, u64>,
        counter: fn(&mut GcReport) -> &mut u64,
    ) -> Result<()> {
        let dir = durable::open_dir(self.store.root(), parent)?;
        for (name, bytes) in sizes {
            if let Err(error) = remove_aside(dir.as_fd(), name, self.store.content().ingests().as_fd()) {
                let count = counter(&mut self.report);
                *count = count.saturating_sub(1);
                self.report.bytes_freed -= bytes;
                self.fail(format!("{parent}/{name}"), error);
            }
        }
        Ok(())
    }

    fn ingests(&mut self, sizes: &BTreeMap<String, u64>) {
        let ingests = self.store.content().ingests();
        for (name, bytes) in sizes {
            // Locked while it goes, so that nobody starts in a directory that loses its files.
            let _held = LockedDir::try_existing(ingests, name);
            let removed = failpoint::at("gc.ingest").map_err(Into::into);
            if let Err(error) = removed.and_then(|()| remove_tree(ingests.as_fd(), name)) {
                self.report.ingests_removed -= 1;
                self.report.bytes_freed -= bytes;
                self.fail(format!("ingest/{name}"), error);
            }
        }
    }
}

#[cfg(test)]
mod tests;

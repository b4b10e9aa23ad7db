//! The second half of a collection: what was marked as dead is looked at once more, forgotten, and removed.
//!
//! Everything goes in batches, and each batch by the same four steps: take the locks, ask the database to forget what
//! nobody needs by now, move what was forgotten away from its final name, let go of the locks. Only then is it taken
//! apart, so that nobody waits for large things. The locks are, in this order:
//!
//! - `sweep.lock`, for blobs and trees: an import that has overtaken a stalled one publishes without the next lock, and
//!   holds this one instead. `mount.lock`, for snapshots: whoever mounts looks for a snapshot first and stands on it second.
//! - The working places of the blobs and trees (`ingest/blob-…`, `ingest/diff-…`), which their makers lock. Those that are
//!   taken are passed over: someone is making the thing and has it on its lease. Who finds a record gone waits here and
//!   makes the thing anew.
//!
//! What was forgotten is on the disk for good before the first thing is moved, so that no power cut brings back a record
//! of something that is gone.

use super::plan::{Dead, Plan};
use super::{GcFailure, GcOptions, GcReport, give_way};
use crate::content::IngestRef;
use crate::error::{ErrorKind, Result};
use crate::io::{durable, locked::LockedDir, remove::remove_tree};
use crate::metadata::{DeadSnapshot, Mark, Metadata, SnapshotKind};
use crate::oci::{DiffId, Digest};
use crate::parallel::failpoint;
use crate::snapshot::Trees;
use crate::store::{Store, in_use};
use rustix::fd::{AsFd, BorrowedFd};
use rustix::fs;
use std::collections::{HashMap, HashSet};
use std::time::Instant;

/// How much is locked, forgotten, and then moved away: one sync.
const BATCH: usize = 64;

/// How much is forgotten in one transaction: less than a millisecond, which is what an import waits each time it writes.
const AT_ONCE: usize = 8;

/// Removes what a plan says.
pub(super) struct Sweep<'a> {
    store: &'a Store,
    plan: &'a Plan,
    options: &'a GcOptions,
    report: &'a mut GcReport,
    /// Whether something has happened that only a new mark can judge.
    stale: bool,
}

/// Something that was moved away from its final name, to be taken apart.
struct Aside {
    what: String,
    /// Where it is; nowhere if only its record was there.
    place: Option<String>,
    bytes: u64,
}

type Counter = fn(&mut GcReport) -> &mut u64;

const BLOBS: Counter = |report| &mut report.blobs_removed;
const TREES: Counter = |report| &mut report.trees_removed;
const SNAPSHOTS: Counter = |report| &mut report.snapshots_removed;
const INGESTS: Counter = |report| &mut report.ingests_removed;

impl<'a> Sweep<'a> {
    pub(super) fn new(
        store: &'a Store,
        plan: &'a Plan,
        options: &'a GcOptions,
        report: &'a mut GcReport,
    ) -> Self {
        Sweep { store, plan, options, report, stale: false }
    }

    /// Whether all of it was seen to; otherwise the mark is stale and the rest needs a new one.
    pub(super) fn run(mut self) -> Result<bool> {
        let plan = self.plan;
        // First what needs no room to be removed.
        self.ingests()?;
        self.orphans()?;
        for batch in plan.snapshots.chunks(BATCH) {
            self.batch(|sweep| sweep.snapshots(batch), SNAPSHOTS)?;
        }
        let trees: Vec<(DiffId, u64)> = plan.trees.iter().map(|(id, bytes)| (*id, *bytes)).collect();
        for batch in trees.chunks(BATCH) {
            self.batch(|sweep| sweep.trees(batch), TREES)?;
        }
        let blobs: Vec<(Digest, u64)> =
            plan.blob_order.iter().map(|digest| (*digest, plan.blobs[digest].unwrap_or(0))).collect();
        for batch in blobs.chunks(BATCH) {
            self.batch(|sweep| sweep.blobs(batch), BLOBS)?;
        }
        Ok(!self.stale)
    }

    /// One batch, unless it makes no sense any more, and then the slow part of it.
    fn batch(
        &mut self,
        move_away: impl FnOnce(&mut Self) -> Result<Vec<Aside>>,
        counter: Counter,
    ) -> Result<()> {
        self.options.cancel.check()?;
        if self.stale {
            return Ok(());
        }
        for aside in move_away(self)? {
            self.take_apart(aside, counter);
        }
        Ok(())
    }

    fn snapshots(&mut self, batch: &[Dead]) -> Result<Vec<Aside>> {
        let _no_mounts = self.store.mount_lock_exclusive(&self.options.cancel)?;
        let dirs = durable::open_dir(self.store.root(), "snapshots")?;
        let gone = self.still_abandoned(batch).unwrap_or_else(|error| {
            self.fail("snapshots that were mounted".to_string(), error);
            HashSet::new()
        });
        let going = batch.iter().filter(|dead| !dead.was_mounted || gone.contains(&dead.key));
        let going: Vec<DeadSnapshot> =
            going.map(|dead| DeadSnapshot { key: dead.key.clone(), id: dead.id }).collect();
        let bytes: HashMap<u64, u64> = batch.iter().map(|dead| (dead.id, dead.bytes)).collect();
        let mut asides = Vec::new();
        for row in self.forget(&going, Metadata::sweep_snapshots)? {
            let started = Instant::now();
            let (id, bytes) = (row.id.to_string(), bytes.get(&row.id).copied());
            asides.extend(self.set_aside(dirs.as_fd(), &id, &format!("snapshots/{id}"), bytes.unwrap_or(0)));
            if row.kind != SnapshotKind::Committed {
                self.options.listener.snapshot(in_use::removed(&row, started));
            }
        }
        Ok(asides)
    }

    /// A snapshot that is not mounted yet looks like one that no longer is. Nobody mounts now, so a second look tells.
    fn still_abandoned(&self, batch: &[Dead]) -> Result<HashSet<String>> {
        let mut rows = Vec::new();
        for dead in batch.iter().filter(|dead| dead.was_mounted) {
            rows.extend(self.store.metadata().snapshot_get(&dead.key)?);
        }
        self.store.abandoned_mounts(&rows)
    }

    fn trees(&mut self, batch: &[(DiffId, u64)]) -> Result<Vec<Aside>> {
        let dir = durable::open_dir(self.store.root(), "trees")?;
        let _no_publication = self.store.sweep_lock_exclusive(&self.options.cancel)?;
        let held = self.lock(batch, Trees::working_place)?;
        let swept: HashSet<DiffId> = self.forget(&held.keys(), Metadata::sweep_trees)?.into_iter().collect();
        let mut asides = Vec::new();
        for (diff_id, bytes) in batch.iter().filter(|(diff_id, _)| swept.contains(diff_id)) {
            let name = diff_id.0.hex();
            asides.extend(self.set_aside(dir.as_fd(), &name, &format!("trees/{name}"), *bytes));
        }
        Ok(asides)
    }

    fn blobs(&mut self, batch: &[(Digest, u64)]) -> Result<Vec<Aside>> {
        let _no_publication = self.store.sweep_lock_exclusive(&self.options.cancel)?;
        let held = self.lock(batch, |digest| IngestRef::blob(digest).name().to_string())?;
        let swept: HashSet<Digest> = self.forget(&held.keys(), Metadata::sweep_blobs)?.into_iter().collect();
        let mut asides = Vec::new();
        for (digest, bytes) in batch.iter().filter(|(digest, _)| swept.contains(digest)) {
            let (dir, name) = self.store.content().place(digest);
            asides.extend(self.set_aside(dir, &name, &format!("blob {digest}"), *bytes));
        }
        Ok(asides)
    }

    /// What the database forgets of these, once that is on the disk: neither the record nor anything that needed the
    /// thing before, such as an image before an unsynced retagging, comes back with a power cut.
    fn forget<K, T>(
        &mut self,
        keys: &[K],
        sweep: impl Fn(&Metadata, &Mark, &[K]) -> Result<Option<Vec<T>>>,
    ) -> Result<Vec<T>> {
        let metadata = self.store.metadata();
        let mut swept = Vec::new();
        for some in keys.chunks(AT_ONCE) {
            let agreed = sweep(metadata, &self.plan.mark, some)?;
            give_way();
            self.stale |= agreed.is_none();
            let Some(agreed) = agreed else { break };
            swept.extend(agreed);
        }
        if !swept.is_empty() && failpoint::sync("gc.sync")? {
            metadata.barrier()?;
            give_way();
        }
        Ok(swept)
    }

    /// The locks of those of a batch that nobody else is making right now.
    fn lock<K: Copy>(&mut self, batch: &[(K, u64)], place: impl Fn(&K) -> String) -> Result<Held<K>> {
        let ingests = self.store.content().ingests();
        let mut held = Held(Vec::new());
        for (key, _) in batch {
            match LockedDir::try_acquire(ingests, &place(key)) {
                Ok(Some(lock)) => held.0.push((*key, Some(lock))),
                Ok(None) => {}
                // A lock takes a directory. With those that there was room for more can be made.
                Err(error) if error.kind() == ErrorKind::NoSpace && !held.0.is_empty() => {
                    self.stale = true;
                    break;
                }
                Err(error) if error.kind() == ErrorKind::NoSpace => return Err(error),
                Err(error) => self.fail(format!("ingest/{}", place(key)), error),
            }
        }
        Ok(held)
    }

    /// Snapshots' directories whose number no record has. A number may be given again, after a rebuilt database or a power
    /// cut; record and directory come in one transaction, so nobody gets one while it is moved away in another.
    fn orphans(&mut self) -> Result<()> {
        let store = self.store;
        let dir = durable::open_dir(store.root(), "snapshots")?;
        for (id, bytes) in &self.plan.orphans {
            self.options.cancel.check()?;
            let what = format!("snapshots/{id}");
            let move_away = || self.set_aside(dir.as_fd(), &id.to_string(), &what, *bytes);
            if let Some(aside) = store.metadata().without_snapshot(*id, move_away)?.flatten() {
                self.take_apart(aside, SNAPSHOTS);
            }
        }
        Ok(())
    }

    /// Out of the way under its lock, so that whoever wants the place does not wait for the removal.
    fn ingests(&mut self) -> Result<()> {
        let ingests = self.store.content().ingests();
        for (name, bytes) in &self.plan.ingests {
            self.options.cancel.check()?;
            failpoint::at("gc.ingest")?;
            let held = match LockedDir::try_existing(ingests, name) {
                // Someone is at work there by now, or it is gone.
                Ok(None) => continue,
                Ok(held) => held,
                Err(error) if is_directory(ingests.as_fd(), name) => {
                    self.fail(format!("ingest/{name}"), error);
                    continue;
                }
                // A stray file.
                Err(_) => None,
            };
            let aside = self.set_aside(ingests.as_fd(), name, &format!("ingest/{name}"), *bytes);
            drop(held);
            if let Some(aside) = aside {
                self.take_apart(aside, INGESTS);
            }
        }
        Ok(())
    }

    /// Takes something away from its final name, into `ingest`, which every collection sweeps: so a crash leaves no half of
    /// it there. `None` after a failure, which is noted.
    fn set_aside(&mut self, dir: BorrowedFd<'_>, name: &str, what: &str, bytes: u64) -> Option<Aside> {
        let aside = format!("removed-{}", durable::unique_name());
        let trash = self.store.content().ingests().as_fd();
        let moved = match failpoint::at("gc.aside") {
            Ok(()) => fs::renameat(dir, name, trash, aside.as_str()).map_err(crate::Error::from),
            Err(error) => Err(error.into()),
        };
        let place = match moved {
            Ok(()) => Some(aside),
            Err(error) if error.kind() == ErrorKind::NotFound => None,
            Err(error) => {
                self.fail(what.to_string(), error);
                return None;
            }
        };
        Some(Aside { what: what.to_string(), place, bytes })
    }

    fn take_apart(&mut self, aside: Aside, counter: Counter) {
        let Some(place) = aside.place else { return self.settled(&aside.what) };
        let trash = self.store.content().ingests().as_fd();
        let removed = failpoint::at("gc.remove").map_err(crate::Error::from);
        match removed.and_then(|()| remove_tree(trash, &place)) {
            Ok(()) => {
                *counter(self.report) += 1;
                self.report.bytes_freed += aside.bytes;
                self.settled(&aside.what);
            }
            Err(error) => self.fail(aside.what, error),
        }
    }

    /// That something could not be measured is nobody's concern once it is gone.
    fn settled(&mut self, what: &str) {
        self.report.failed.retain(|failure| failure.what != what);
    }

    fn fail(&mut self, what: String, error: impl std::fmt::Display) {
        self.settled(&what);
        self.report.failed.push(GcFailure::new(what, error));
    }
}

/// Ours are directories.
pub(super) fn is_directory(parent: BorrowedFd<'_>, name: &str) -> bool {
    let stat = fs::statat(parent, name, fs::AtFlags::SYMLINK_NOFOLLOW);
    stat.is_ok_and(|stat| fs::FileType::from_raw_mode(stat.st_mode) == fs::FileType::Directory)
}

/// Locks of working places; they go with their directories. What an earlier owner left there is swept as an abandoned
/// ingest.
struct Held<K>(Vec<(K, Option<LockedDir>)>);

impl<K: Copy> Held<K> {
    fn keys(&self) -> Vec<K> {
        self.0.iter().map(|(key, _)| *key).collect()
    }
}

impl<K> Drop for Held<K> {
    fn drop(&mut self) {
        for (_, lock) in &mut self.0 {
            let _ = lock.take().map(LockedDir::remove);
        }
    }
}

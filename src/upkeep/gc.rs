//! The collection: what no image, no snapshot in use and no lease needs is removed, while others work.
//!
//! Mark and sweep. The mark reads one state of the database and waits for nobody. The sweep takes the lock of a blob or a
//! tree, asks the database to forget it, which looks at leases and changed images again (see
//! [`crate::metadata::Facts`]), and only then removes the file; in batches, so that an import waits for some milliseconds
//! at most. First the record goes, then the file: a crash between the two leaves files without records, which the next
//! collection finds. So it can be cancelled, or killed, anywhere. A removal that fails is reported and does not keep the
//! others from happening. One collection works at a time.

mod deferred;
mod plan;
mod policy;
mod sweep;

use super::now_ms;
use crate::error::{Result, ResultExt};
use crate::metadata::{ImageRow, LeaseRow, Tombstone};
use crate::parallel::{Cancel, failpoint};
use crate::progress::Listener;
use crate::store::Store;
use crate::trace;
use deferred::Deferred;
use plan::{Listing, Plan};
use serde::Serialize;
use std::collections::HashSet;
use std::time::Duration;
use sweep::Sweep;

/// How to collect, and which images to remove before. Pinned and mounted images are never removed.
///
/// `keep_last` and `older_than` together remove what both would: `keep_last: 3, older_than: 30 days` removes what is older
/// than that and not among the last three of its repository.
#[derive(Clone, Debug, Default)]
pub struct GcOptions {
    /// Only tell what would go.
    pub dry_run: bool,
    /// Wait while another collection works; without it that is an [`crate::ErrorKind::Busy`].
    pub wait: bool,
    /// Ends the collection between two batches. What is removed by then stays removed.
    pub cancel: Cancel,
    /// Keep the images of each repository that were imported, tagged or restored last, so many of them, and remove the others.
    pub keep_last: Option<usize>,
    /// Remove images that have not been imported, tagged or restored for so long.
    pub older_than: Option<Duration>,
    /// Remove images, those first that were not for longest, until the filesystem has so many bytes free. With the other two, only
    /// those that they would remove. More than the filesystem has is [`crate::ErrorKind::InvalidArgument`].
    pub until_free_bytes: Option<u64>,
    /// How long removed images can be restored, and keep what they hold.
    pub grace: Duration,
    /// Is told of mounts that are taken down, and of what was mounted and is removed.
    pub listener: Listener,
}

/// What a collection did, or would do.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct GcReport {
    /// Images removed by a policy or because their time was over: names, or targets of unnamed ones.
    pub images_removed: Vec<String>,
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
    /// Mounts and snapshots whose removal was deferred and that are still in use: where they are mounted, or their keys.
    pub deferred: Vec<String>,
    /// Each thing that would go; only of a dry run.
    pub items: Vec<GcItem>,
    /// How much is free, where it was asked to be.
    pub free_bytes: Option<u64>,
    /// Whether less is free than was asked for, and removing images frees no more.
    pub goal_missed: bool,
    /// Where the goal was missed: how many images could go, but free nothing.
    pub images_left: u64,
}

/// Something that would go.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct GcItem {
    /// `blob`, `tree`, `snapshot`, `ingest` or `lease`.
    pub kind: &'static str,
    /// Its digest, key or name.
    pub key: String,
    /// What it occupies.
    pub size_bytes: u64,
}

/// Something that could not be removed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct GcFailure {
    /// What.
    pub what: String,
    /// Why.
    pub error: String,
}

impl GcFailure {
    fn new(what: impl Into<String>, error: impl ToString) -> Self {
        GcFailure { what: what.into(), error: error.to_string() }
    }
}

/// How often a mark may turn out to be stale, because labels or removed images change all the time, before the rest is
/// left to the next collection.
const MARKS: usize = 50;

/// Collects, while imports run. [`crate::ErrorKind::Busy`] while another collection does, unless asked to wait. The error of
/// one that ends early has the images that it removed: [`Error::images_removed`](crate::Error::images_removed).
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
    policy::check(store, options)?;
    if options.dry_run {
        return preview(store, options);
    }
    store.check_writable()?;
    let lock = || store.collection_lock(options.wait, &options.cancel);
    let _alone = trace::within(trace::stage!("gc.lock"), |_| lock())?;
    let _at_work = store.gc_lock_shared(&options.cancel)?;
    let mut report = GcReport::default();
    let deferred = deferred::finish(store, options, &mut report)?;
    if let Err(error) = remove(store, options, &mut report) {
        return Err(error.with_images_removed(report.images_removed));
    }
    report.failed.extend(deferred);
    Ok(report)
}

/// Images by the policies, and what is dead then.
fn remove(store: &Store, options: &GcOptions, report: &mut GcReport) -> Result<()> {
    policy::remove_chosen(store, options, report)?;
    remove_dead(store, options, report)?;
    policy::remove_until_free(store, options, report)
}

/// One collection of what is dead by now.
fn remove_dead(store: &Store, options: &GcOptions, report: &mut GcReport) -> Result<()> {
    let metadata = store.metadata();
    failpoint::at("gc.forget")?;
    while metadata.tombstones_expire(now_ms())? > 0 {
        give_way();
    }
    let leases = metadata.leases()?;
    let gone = gone_leases(store, &leases);
    for lease in leases.iter().filter(|lease| gone.contains(&lease.id)) {
        report.leases_removed += u64::from(metadata.lease_end(lease)?);
        give_way();
    }
    let mut failed = Vec::new();
    failed.extend(store.sweep_lease_files().err().map(|error| GcFailure::new("files of leases", error)));
    failed.extend(store.sweep_temporaries().err().map(|error| GcFailure::new("temporary files", error)));
    for _ in 0..MARKS {
        let plan = trace::within(trace::stage!("gc.mark"), |_| {
            // What can still be restored is kept: only the record that is gone does not count, not one that ends just now.
            let plan = Plan::make(store, &Listing::read(store), &|_| false, &|_| false)?;
            plan.learn(store).map(|()| plan)
        })?;
        // What failed after an earlier mark is tried again.
        report.failed = failed.iter().chain(&plan.failed).cloned().collect();
        let sweep = Sweep::new(store, &plan, options, report);
        if trace::within(trace::stage!("gc.sweep"), |_| sweep.run())? {
            return Ok(());
        }
    }
    let error = "labels, leases or removed images changed all the time; the next collection goes on";
    report.failed.push(GcFailure::new("all that is dead", error));
    Ok(())
}

/// Between two transactions of a collection: the kernel gives a lock to whoever asks when it is free, and without a pause
/// that is always the collection, however long an import has been waiting.
fn give_way() {
    std::thread::sleep(Duration::from_millis(1));
}

fn preview(store: &Store, options: &GcOptions) -> Result<GcReport> {
    let deferred = Deferred::look(store)?;
    let listing = Listing::read(store);
    let choice = policy::Choice::make(store, options, &listing, &deferred.free)?;
    let gone = |image: &ImageRow| choice.ids.contains(&image.id);
    let mut report = Plan::make_after(store, &listing, &gone, &is_over, &deferred.free)?.report();
    report.failed.extend(deferred.failed);
    report.deferred = deferred.busy;
    report.images_removed = choice.names;
    (report.free_bytes, report.goal_missed) = (choice.free_bytes, choice.goal_missed);
    report.images_left = choice.images_left;
    Ok(report)
}

/// How many bytes the next collection frees once the images `without`, by name or by `sha256:…` target, are gone, whatever
/// grace they are removed with. An estimate while imports run.
pub fn would_free(store: &Store, without: &[&str]) -> Result<u64> {
    Ok(would_remove(store, without)?.bytes_freed)
}

/// As [`would_free`], with each thing that would go.
pub fn would_remove(store: &Store, without: &[&str]) -> Result<GcReport> {
    let gone = |image: &ImageRow| without.contains(&image.label_key().as_str());
    Ok(Plan::make(store, &Listing::read(store), &gone, &is_over)?.report())
}

/// The leases that no longer hold: expired, or of a dead process.
pub(super) fn gone_leases(store: &Store, leases: &[LeaseRow]) -> HashSet<String> {
    plan::gone_leases(store, leases, now_ms()).0
}

/// Whether a removed image's grace is over.
pub(super) fn is_over(tombstone: &Tombstone) -> bool {
    tombstone.expires_ms <= now_ms()
}

#[cfg(test)]
mod tests;

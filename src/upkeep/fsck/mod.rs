//! The check of a store: what lies on the disk against what it is called, what is recorded of it, and each other.
//!
//! [`fsck`] reads every blob, unpacks every layer beside its tree and compares the two entry by entry, and holds the
//! database, the snapshots and `index.json` against the disk. It runs beside imports: what is being written is no
//! problem, and whatever looks wrong is looked at twice. A crash leaves extra files and never missing ones, so what is
//! merely left over is listed apart and makes no store unclean.
//!
//! With [`FsckOptions::repair`] what can be made again is made again from verified bytes, and what cannot is moved to
//! `quarantine/`, so that an import of the same image brings it back. Nothing is deleted.

mod blobs;
mod compare;
mod facts;
mod images;
mod index;
mod layer_pass;
mod leftovers;
mod namesakes;
mod quarantine;
mod rebuild;
mod report;
mod settle;
mod snapshots;
mod trees;

pub use quarantine::DIRECTORY as QUARANTINE;
pub use rebuild::{Rebuilt, rebuild};
pub use report::{
    FsckChecked, FsckLeftover, FsckProblem, FsckReport, FsckUnproven, ProblemKind, ProblemState,
};

use crate::error::{Result, ResultExt};
use crate::parallel::{Budget, Cancel, Patience, Pool};
use crate::progress::{Event, Progress};
use crate::snapshot::Bounds;
use crate::store::{GcLock, Lease, Store};
use facts::Facts;
use quarantine::Quarantine;
use report::Findings;
use settle::Sound;

/// How to check.
#[derive(Clone, Debug, Default)]
pub struct FsckOptions {
    /// Mend what can be mended.
    pub repair: bool,
    /// Look at names, sizes and records only, and read no content.
    pub quick: bool,
}

/// What a check works with.
pub struct FsckMeans<'a> {
    /// Where blobs are hashed and layers compared, many at once.
    pub pool: &'a Pool,
    /// What large codec windows are bought from.
    pub budget: &'a Budget,
    /// Hears of how far it is.
    pub progress: &'a dyn Progress,
    /// Stops it; nothing is left half mended.
    pub cancel: &'a Cancel,
}

/// One check under way.
struct Check<'a> {
    store: &'a Store,
    means: &'a FsckMeans<'a>,
    options: &'a FsckOptions,
    facts: Facts,
    findings: Findings,
    quarantine: Quarantine,
    sound: Sound,
}

/// Checks the store, and mends it where asked to.
///
/// What is wrong with the store is in the report; an error means that the check itself could not be done:
/// [`crate::ErrorKind::Cancelled`], [`crate::ErrorKind::ReadOnly`] for a repair of what cannot be written,
/// [`crate::ErrorKind::Permission`] where the marks in the trees cannot be seen.
pub fn fsck(store: &Store, means: &FsckMeans<'_>, options: &FsckOptions) -> Result<FsckReport> {
    run(store, means, options).doing(|| "cannot check the store")
}

fn run(store: &Store, means: &FsckMeans<'_>, options: &FsckOptions) -> Result<FsckReport> {
    if options.repair {
        store.check_writable()?;
    }
    if !options.quick || options.repair {
        store.check_marks()?;
    }
    let _still = hold_still(store, Patience::new(means.cancel).telling(means.progress))?;
    let (facts, filesystem) = (Facts::read(store)?, store.sync_handle()?);
    let (findings, quarantine) = (Findings::default(), Quarantine::default());
    let check = Check { store, means, options, facts, findings, quarantine, sound: Sound::default() };
    check.database()?;
    check.leftovers()?;
    check.contents()?;
    check.snapshots()?;
    check.images()?;
    check.index()?;
    if options.repair {
        check.settle(&filesystem)?;
    }
    means.progress.event(&Event::CheckFinished);
    Ok(check.findings.into_report())
}

impl Check<'_> {
    /// What a snapshot that is made once more keeps to.
    fn bounds(&self) -> Bounds {
        Bounds { cancel: self.means.cancel.clone(), ..Bounds::default() }
    }

    fn database(&self) -> Result<()> {
        for fault in self.store.metadata().faults()? {
            self.findings.problem(FsckProblem {
                kind: ProblemKind::DatabaseDamaged,
                what: "meta.db".to_string(),
                message: fault,
                images: Vec::new(),
                state: ProblemState::Remains,
                mend: "transload fsck --rebuild".to_string(),
            });
        }
        Ok(())
    }
}

/// Keeps collections out for as long as we look, waiting for one that runs, and the database where it is. A store that
/// cannot be written has none.
fn hold_still<'s>(store: &'s Store, patience: Patience<'_>) -> Result<Option<(GcLock, Lease<'s>)>> {
    if store.is_read_only() {
        return Ok(None);
    }
    let no_collection = store.collection_lock(true, patience)?;
    Ok(Some((no_collection, store.lease_cancellable(patience)?)))
}

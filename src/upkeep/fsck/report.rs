//! What a check found, as plain data.

use super::Rebuilt;
use crate::upkeep::commands;
use serde::Serialize;
use std::path::Path;
use std::sync::Mutex;

/// What is wrong, coarse enough to match on. The names in JSON are these in snake case.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ProblemKind {
    /// A blob's bytes have another digest than its name.
    BlobDigest,
    /// A blob has another size than is recorded.
    BlobSize,
    /// A blob is recorded and not there.
    BlobMissing,
    /// A blob cannot be read.
    BlobUnreadable,
    /// A sound blob does not unpack to the layer that it is recorded as.
    LayerMismatch,
    /// An extracted layer is recorded or needed and not there.
    TreeMissing,
    /// An extracted layer's `tree.json` is damaged or contradicts the layer.
    TreeRecord,
    /// An extracted layer differs from what its blob unpacks to.
    TreeDiffers,
    /// An extracted layer cannot be read.
    TreeUnreadable,
    /// A snapshot is needed and has no row or no directory.
    SnapshotMissing,
    /// A snapshot's `snapshot.json` is damaged or contradicts its row.
    SnapshotRecord,
    /// A committed snapshot's own directory differs from what its layer makes of what lies below.
    SnapshotDiffers,
    /// An image lacks a document.
    ImageIncomplete,
    /// Someone else wrote `index.json`.
    IndexForeign,
    /// `index.json` was missing or cut short.
    IndexDamaged,
    /// SQLite finds the database damaged.
    DatabaseDamaged,
}

/// What became of a problem.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ProblemState {
    /// It was only looked at.
    Found,
    /// It is gone.
    Repaired,
    /// What was bad is out of the way, or is not there at all; an import of the images named brings it back.
    NeedsImport,
    /// It could not be mended, and `mend` says why or how.
    Remains,
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FsckProblem {
    /// What is wrong.
    pub kind: ProblemKind,
    /// With what: `blob sha256:…`, `tree sha256:…`, `snapshot …`, `image …`, `index.json`.
    pub what: String,
    /// In what way.
    pub message: String,
    /// The images that need it.
    pub images: Vec<String>,
    /// What became of it.
    pub state: ProblemState,
    /// What to do about it.
    pub mend: String,
}

/// Something that nobody needs and that does no harm: work that was cut short, files without a record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FsckLeftover {
    /// What it is.
    pub what: String,
    /// Why it is one.
    pub message: String,
    /// What to do about it.
    pub mend: String,
}

/// A tree that could not be compared with its blob.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FsckUnproven {
    /// Which.
    pub what: String,
    /// Why not, and what was looked at instead.
    pub message: String,
}

/// How much was looked at.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct FsckChecked {
    /// Blobs whose bytes were read; with a quick check, whose sizes were looked at.
    pub blobs: u64,
    /// How many bytes they have.
    pub blob_bytes: u64,
    /// Extracted layers.
    pub trees: u64,
    /// Those among them that were compared with their blobs, entry by entry.
    pub trees_against_blobs: u64,
    /// Snapshots.
    pub snapshots: u64,
    /// Images.
    pub images: u64,
}

/// What a check found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct FsckReport {
    /// Whether nothing is wrong, or nothing any more.
    pub clean: bool,
    /// How much was looked at.
    pub checked: FsckChecked,
    /// What is wrong, by kind.
    pub problems: Vec<FsckProblem>,
    /// What is left over.
    pub leftovers: Vec<FsckLeftover>,
    /// What could not be proven.
    pub unproven: Vec<FsckUnproven>,
    /// What a rebuild of the database did, if there was one.
    pub rebuilt: Option<Rebuilt>,
}

impl FsckReport {
    /// Has the commands that mend something name the store, for somebody whose store is another one by default.
    pub fn name_store(&mut self, store: &Path) {
        let problems = self.problems.iter_mut().map(|problem| &mut problem.mend);
        let leftovers = self.leftovers.iter_mut().map(|leftover| &mut leftover.mend);
        let lost = self.rebuilt.iter_mut().flat_map(|rebuilt| &mut rebuilt.lost);
        problems.chain(leftovers).chain(lost).for_each(|mend| commands::name_store(mend, store));
    }
}

/// What has been found so far, by several threads.
#[derive(Default)]
pub(super) struct Findings(Mutex<FsckReport>);

impl Findings {
    fn with<T>(&self, change: impl FnOnce(&mut FsckReport) -> T) -> T {
        change(&mut self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner()))
    }

    pub fn problem(&self, problem: FsckProblem) {
        self.with(|report| report.problems.push(problem));
    }

    pub fn leftover(&self, what: impl Into<String>, message: impl Into<String>, mend: impl Into<String>) {
        let leftover = FsckLeftover { what: what.into(), message: message.into(), mend: mend.into() };
        self.with(|report| report.leftovers.push(leftover));
    }

    pub fn unproven(&self, what: impl Into<String>, message: impl Into<String>) {
        let unproven = FsckUnproven { what: what.into(), message: message.into() };
        self.with(|report| report.unproven.push(unproven));
    }

    pub fn count(&self, count: impl FnOnce(&mut FsckChecked)) {
        self.with(|report| count(&mut report.checked));
    }

    /// Whether something is known to be wrong with `what`.
    pub fn is_bad(&self, what: &str) -> bool {
        self.with(|report| report.problems.iter().any(|problem| problem.what == what))
    }

    /// Whether something is known to be wrong with `what`, and still is.
    pub fn is_open(&self, what: &str) -> bool {
        let open = |one: &FsckProblem| one.what == what && one.state != ProblemState::Repaired;
        self.with(|report| report.problems.iter().any(open))
    }

    pub fn into_report(self) -> FsckReport {
        let mut report = self.0.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner());
        report.problems.sort_by(|a, b| (a.kind, &a.what).cmp(&(b.kind, &b.what)));
        report.leftovers.sort_by(|a, b| a.what.cmp(&b.what));
        report.unproven.sort_by(|a, b| a.what.cmp(&b.what));
        report.clean = report.problems.iter().all(|problem| problem.state == ProblemState::Repaired);
        report
    }
}

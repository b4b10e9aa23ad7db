//! The contract of a snapshotter: what runtimes may rely on, whatever lies behind it.
//!
//! The meanings are containerd's, so that its own conformance suite can be run against an implementation later. *Keys*
//! name active snapshots and views, *names* the committed ones; both live in one name space. Every call is atomic as
//! seen by other threads and processes. One conformance suite is run over every
//! implementation.

use super::{Committed, Filters, Remade, Stack};
use crate::error::Result;
use crate::io::headroom::Headroom;
use crate::mount::Mount;
use crate::oci::{ChainId, DiffId};
use crate::parallel::Cancel;
use std::sync::Arc;

pub use crate::metadata::{Labels, SnapshotKind, SnapshotRow, Usage};

/// What the making of a layer's snapshot keeps to. By default nothing stops it.
#[derive(Clone, Debug, Default)]
pub struct Bounds {
    /// Stops it, also where it waits for somebody else who is at the same chain.
    pub cancel: Cancel,
    /// The space that it leaves to others.
    pub headroom: Arc<Headroom>,
}

/// Gives layered root filesystems. See the module for the words.
pub trait Snapshotter: Send + Sync {
    /// What is known of a snapshot. [`crate::ErrorKind::NotFound`] without it.
    fn stat(&self, key: &str) -> Result<SnapshotRow>;

    /// Changes labels: those named by `fields` (`labels` for all, `labels.<name>` for one); an empty `fields` replaces
    /// them all. Any other field is [`crate::ErrorKind::InvalidArgument`], because nothing else can change.
    fn update(&self, key: &str, labels: &Labels, fields: &[&str]) -> Result<SnapshotRow>;

    /// What the snapshot occupies by itself, without its parents: measured for active ones, remembered for others.
    fn usage(&self, key: &str) -> Result<Usage>;

    /// How to mount an active snapshot or a view. Committed ones are [`crate::ErrorKind::FailedPrecondition`].
    fn mounts(&self, key: &str) -> Result<Vec<Mount>>;

    /// Makes an active snapshot, to be written, above a committed one or above nothing.
    fn prepare(&self, key: &str, parent: Option<&str>, labels: &Labels) -> Result<Vec<Mount>>;

    /// Makes a read-only view of a committed snapshot or of nothing.
    fn view(&self, key: &str, parent: Option<&str>, labels: &Labels) -> Result<Vec<Mount>>;

    /// Turns the active snapshot `key` into the committed one `name`. Its labels are replaced by those given. With
    /// `rebase`, one prepared without a parent gets it now. Who commits a key that someone else is committing waits for that, and gets
    /// [`crate::ErrorKind::Busy`] after a minute.
    fn commit(&self, name: &str, key: &str, labels: &Labels, rebase: Option<&str>) -> Result<()>;

    /// Removes a snapshot that has no children. The second time it is [`crate::ErrorKind::NotFound`].
    fn remove(&self, key: &str) -> Result<()>;

    /// Shows every snapshot that one of `filters` matches, or every one where there are none.
    fn walk(&self, filters: &Filters, visit: &mut dyn FnMut(&SnapshotRow) -> Result<()>) -> Result<()>;

    /// Makes the committed snapshot of the chain `parent` + `diff_id` out of an extracted layer. It is named by its
    /// ChainID; that it is there already is an answer. Waits for whoever is at the same chain.
    /// [`crate::ErrorKind::Cancelled`] and [`crate::ErrorKind::NoSpace`] where `bounds` say so; then nothing of it stays.
    fn commit_layer(
        &self,
        parent: Option<&ChainId>,
        diff_id: &DiffId,
        labels: &Labels,
        bounds: &Bounds,
    ) -> Result<Committed>;

    /// Makes a layer's own directory once more, beside the one that is there, so that the two can be compared. `None` where
    /// it has none of its own. [`crate::ErrorKind::NotFound`] if its tree or something below it is not there.
    fn remake_layer(&self, row: &SnapshotRow, bounds: &Bounds) -> Result<Option<Remade<'_>>>;

    /// Removes directories that no snapshot has any more, and tells how many.
    fn cleanup(&self) -> Result<u64>;

    /// A snapshot as one merged tree, to be read without mounting it.
    fn stack(&self, key: &str) -> Result<Stack>;
}

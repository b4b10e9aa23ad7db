//! Extracted layers, and layered root filesystems made of them.
//!
//! [`Trees`] holds each layer once; a [`Snapshotter`] makes chains of them: `overlay` by stacking, `plain` by copying.
//! What depends on a layer's parent lies in a small heal directory of the chain. [`Stack`] reads a chain as one tree
//! without mounting it.

mod beneath;
mod copy;
mod filter;
mod heal;
mod marks;
mod merge;
mod overlay;
mod owners;
mod plain;
mod shelf;
mod snapshotter;
mod trees;

pub use copy::{CopyOptions, CopyReport, copy_stack, is_kept_xattr};
pub use filter::{Filters, kind_name};
pub(crate) use marks::check_visible;
pub use merge::{Layer, Node, Stack, join};
pub use overlay::OverlaySnapshotter;
pub use plain::PlainSnapshotter;
pub use shelf::{Remade, SnapshotFile};
pub use snapshotter::{Bounds, Labels, SnapshotKind, SnapshotRow, Snapshotter, Usage};
pub use trees::{Committed, TreeHandle, TreeIngest, Trees};

use crate::error::{Error, ErrorKind, Result};

fn check_mountable(row: &SnapshotRow) -> Result<()> {
    match row.kind {
        SnapshotKind::Committed => {
            let message = format!("snapshot {} is committed", row.key);
            Err(Error::new(ErrorKind::FailedPrecondition, message)
                .with_hint("prepare one above it, or a view"))
        }
        _ => Ok(()),
    }
}

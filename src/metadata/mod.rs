//! The embedded database: which images, blobs, trees, snapshots and leases the store knows.
//!
//! [`Metadata`] is a handle that threads share and that several processes open at once. Readers never wait for writers
//! (WAL). Writers queue on a mutex, then on a short `flock`, then begin an immediate transaction; SQLite's own busy
//! handler, which is unfair, is only a backstop. What makes an image visible is one transaction, synchronous where the
//! caller wants it durable.
//!
//! The database knows names and facts, never files: nothing here walks a directory or syncs one. What was recorded as
//! not yet durable in an earlier boot is not trusted and reads as absent; recording it again repairs it.

mod blobs;
mod collection;
mod columns;
mod connection;
mod expiry;
mod images;
mod import_history;
mod index_view;
mod labels;
mod leases;
mod listing;
mod references;
mod restore;
mod schema;
mod snapshots;
mod tombstones;
mod trees;

pub use blobs::BlobRow;
pub use collection::{DeadSnapshot, Facts, Mark};
pub(crate) use columns::now_ms;
pub use connection::{Metadata, OpenMode};
pub use expiry::{EXPIRE_LABEL, expires_ms};
pub use images::{
    CommittedImage, ImageCommit, ImageOutcome, ImageRow, ImagesCommitted, ManifestRow, NewImage,
};
pub use import_history::ImportRecord;
pub use index_view::{CONTAINERD_NAME, GENERATION, IndexView, REF_NAME, is_name_annotation};
pub use labels::{Labelled, Labels, PINNED, PINNED_LABEL};
pub use leases::{LeaseRow, Resource};
pub use listing::{ImageLine, ManifestLine};
pub use references::{DocumentReferences, References};
pub use schema::FORMAT_VERSION;
pub use snapshots::{NewSnapshot, SnapshotKind, SnapshotRow, Usage};
pub use tombstones::Tombstone;
pub use trees::{LayerRow, TreeRow};

#[cfg(test)]
mod tests;

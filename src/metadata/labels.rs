//! Labels on images and blobs. Snapshots and leases carry theirs in their own rows.

use super::Metadata;
use super::columns::{labels, to_json};
use super::connection::Sync;
use crate::error::Result;
use crate::oci::Digest;
use rusqlite::params;
use std::collections::BTreeMap;

/// Free-form labels.
pub type Labels = BTreeMap<String, String>;

/// What carries labels here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Labelled<'a> {
    /// The image of this name.
    Image(&'a str),
    /// A blob.
    Blob(&'a Digest),
}

impl Labelled<'_> {
    fn columns(&self) -> (&'static str, String) {
        match self {
            Labelled::Image(name) => ("image", name.to_string()),
            Labelled::Blob(digest) => ("blob", digest.to_string()),
        }
    }
}

impl Metadata {
    /// The labels, empty where none were ever set.
    pub fn labels(&self, of: Labelled<'_>) -> Result<Labels> {
        let (kind, key) = of.columns();
        self.read(|transaction| {
            let mut statement =
                transaction.prepare_cached("SELECT labels FROM label WHERE kind = ? AND key = ?")?;
            let mut rows = statement.query(params![kind, key])?;
            rows.next()?.map_or_else(|| Ok(Labels::new()), |row| labels(row, 0))
        })
    }

    /// Replaces the labels.
    pub fn labels_set(&self, of: Labelled<'_>, labels: &Labels) -> Result<()> {
        let (kind, key) = of.columns();
        let labels = to_json(labels)?;
        self.write(Sync::Lazy, |transaction| {
            transaction
                .prepare_cached("INSERT OR REPLACE INTO label VALUES (?, ?, ?)")?
                .execute(params![kind, key, labels])?;
            Ok(())
        })
    }
}

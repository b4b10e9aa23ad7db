//! Which image's chain a snapshot shows, however many snapshots of others lie between the two.

use super::mounted::{CHAIN_LABEL, REMAPPED_OF_LABEL};
use crate::metadata::SnapshotRow;
use crate::oci::ChainId;
use std::collections::HashMap;

/// Whether a committed snapshot came with an image. All others are a user's own.
pub fn is_of_image(row: &SnapshotRow) -> bool {
    row.tree.is_some() || row.key.parse::<ChainId>().is_ok() || row.labels.contains_key(REMAPPED_OF_LABEL)
}

/// Snapshots by key.
pub struct Chains<'a>(HashMap<&'a str, &'a SnapshotRow>);

impl<'a> Chains<'a> {
    /// Those of a store.
    pub fn of(rows: &'a [SnapshotRow]) -> Self {
        Chains(rows.iter().map(|row| (row.key.as_str(), row)).collect())
    }

    /// The chain of an image that a mount shows, or that a snapshot stands on.
    pub fn shown_by(&self, row: &'a SnapshotRow) -> Option<&'a str> {
        // What a mount shows is named by its label where it stands on a copy with other owners.
        if let Some(chain) = row.labels.get(CHAIN_LABEL) {
            return Some(chain);
        }
        let mut key = row.parent.as_deref()?;
        // One that is not trusted since the last boot has no row here, and is a chain's.
        while let Some(below) = self.0.get(key) {
            if let Some(chain) = below.labels.get(REMAPPED_OF_LABEL) {
                return Some(chain);
            }
            if is_of_image(below) {
                break;
            }
            key = below.parent.as_deref()?;
        }
        Some(key)
    }
}

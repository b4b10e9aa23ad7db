//! What a repair has found sound or made lies on the disk for good when it ends, and its records say so: they would count for
//! nothing at the next boot.

use super::Check;
use crate::error::Result;
use crate::io::durable;
use crate::metadata::{BlobRow, Resource, TreeRow};
use rustix::fd::OwnedFd;
use std::sync::Mutex;

/// What was found sound, by several threads.
#[derive(Default)]
pub(super) struct Sound(Mutex<Lists>);

#[derive(Default)]
struct Lists {
    /// Recorded, and trusted as long as this boot lasts.
    trusted: Vec<Resource>,
    /// Not recorded, or not trusted, and needed.
    blobs: Vec<BlobRow>,
    trees: Vec<TreeRow>,
}

impl Sound {
    fn with<T>(&self, change: impl FnOnce(&mut Lists) -> T) -> T {
        change(&mut self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner()))
    }

    pub fn trusted(&self, resource: Resource) {
        self.with(|lists| lists.trusted.push(resource));
    }

    /// A blob whose bytes have been read.
    pub fn blob(&self, row: BlobRow) {
        self.with(|lists| lists.blobs.push(row));
    }

    /// A tree that was compared with its blob.
    pub fn tree(&self, row: TreeRow) {
        self.with(|lists| lists.trees.push(row));
    }
}

impl Check<'_> {
    /// Syncs once and records it. `filesystem` was opened before anything was written.
    pub(super) fn settle(&self, filesystem: &OwnedFd) -> Result<()> {
        let Lists { trusted, blobs, trees } = self.sound.with(std::mem::take);
        let metadata = self.store.metadata();
        let undurable = metadata.undurable(&trusted)?;
        if undurable.is_empty() && blobs.is_empty() && trees.is_empty() {
            return Ok(());
        }
        durable::sync_filesystem(filesystem)?;
        metadata.blob_put(&blobs)?;
        trees.iter().try_for_each(|row| metadata.tree_put(row))?;
        metadata.mark_durable(&undurable)?;
        metadata.barrier()
    }
}

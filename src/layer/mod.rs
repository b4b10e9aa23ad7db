//! Extraction of one layer into a directory, without its parents.
//!
//! [`apply`] turns a layer's tar into files inside a directory handle and a [`crate::tree::TreeRecord`] that says what
//! the files alone cannot. Every path is resolved inside that handle; a name can do harm only within its own tree. The
//! caller verifies the DiffID, publishes the tree and puts it into chains.

mod apply;
mod attributes;
mod beside;
mod confine;
mod data;
mod dirs;
mod list_memory;
mod notices;
mod remove;
mod side_list;
#[cfg(test)]
mod tests;
mod whiteout;

pub use apply::apply;
pub use attributes::{XattrVerdict, judge_xattr};
pub use confine::{Confinement, ConfinementReport, confinement_support};
pub use list_memory::ListMemory;
pub use whiteout::{Whiteout, whiteout_of};

use crate::error::Error;
use crate::io::headroom::Headroom;
use crate::limits::Limits;
use crate::tree::{TreeRecord, WhiteoutForm};
use std::sync::Arc;

/// What to do about owners.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ownership {
    /// Files get the owners that the layer says; where that is not possible, extraction fails.
    Keep,
    /// Files belong to whoever extracts them.
    Ignore,
}

/// How to extract a layer.
#[derive(Clone, Debug)]
pub struct ApplyOptions {
    /// Caps on what the layer may ask for.
    pub limits: Limits,
    /// How deletions are marked in the tree.
    pub form: WhiteoutForm,
    /// What to do about owners.
    pub ownership: Ownership,
    /// The space that is left to others; the extraction ends where it would be taken.
    pub headroom: Arc<Headroom>,
    /// The memory of the lists, which all layers of an import share.
    pub lists: ListMemory,
    /// Whether what is in small files is written on a thread of its own, for a layer that has a core to spare.
    pub write_beside: bool,
}

impl Default for ApplyOptions {
    fn default() -> Self {
        ApplyOptions {
            limits: Limits::default(),
            form: WhiteoutForm::Trusted,
            ownership: Ownership::Keep,
            headroom: Arc::default(),
            lists: ListMemory::default(),
            write_beside: false,
        }
    }
}

/// An extracted layer.
#[derive(Clone, Debug)]
pub struct Applied {
    /// What the tree alone does not say. Its DiffID is not known yet.
    pub record: TreeRecord,
    /// What was left out on purpose, a line each, bounded in number.
    pub notices: Vec<String>,
    /// The record is as large as the lists were, so they count until it goes too.
    _held: Arc<list_memory::Held>,
}

/// What no option lets in.
fn beyond_linux(message: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::limit(message).with_hint("this limit is Linux's own, and no option raises it")
}

/// What this store cannot hold, and another perhaps could.
fn beyond_filesystem(message: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::limit(message).with_hint("a store on another filesystem may be able to hold it")
}

/// Gives the calling thread a umask of its own, zero, so that files come into being with their final mode and need no
/// further call. Where the kernel or a seccomp filter does not allow it nothing changes; extraction notices by itself
/// and is then slower and as right.
///
/// Only for threads that the engine itself made for extraction: the thread also parts with the process's working
/// directory, for good.
pub fn use_private_umask() {
    use rustix::thread::{UnshareFlags, unshare_unsafe};
    // SAFETY: CLONE_FS parts only working directory, root and umask; descriptors stay shared.
    if unsafe { unshare_unsafe(UnshareFlags::FS) }.is_ok() {
        rustix::process::umask(rustix::fs::Mode::empty());
    }
}

//! `quarantine/`: where what is bad goes instead of being deleted, because it may be all that is left of something, and
//! because a mount may still show it. Nothing here is ever read again; whoever is done with it removes it by hand.

use crate::error::{Result, ResultExt};
use crate::io::durable;
use crate::store::Store;
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::renameat;
use std::sync::OnceLock;

/// The directory's name below the store's root.
pub const DIRECTORY: &str = "quarantine";

/// The directory, made when it is first needed.
#[derive(Default)]
pub(super) struct Quarantine(OnceLock<OwnedFd>);

impl Quarantine {
    /// Moves `name` out of the directory `from`, and tells where to, relative to the store's root.
    pub fn take(&self, store: &Store, from: impl AsFd, name: &str, label: &str) -> Result<String> {
        let to = format!("{label}-{}", durable::unique_name());
        let take = || -> Result<()> {
            let dir = match self.0.get() {
                Some(dir) => dir,
                None => {
                    let dir = durable::ensure_dir(store.root(), DIRECTORY)?;
                    self.0.get_or_init(|| dir)
                }
            };
            renameat(from.as_fd(), name, dir, to.as_str())?;
            durable::sync_dir(dir)?;
            durable::sync_dir(from)
        };
        take().doing(|| format!("cannot move {name} to {DIRECTORY}"))?;
        Ok(format!("{DIRECTORY}/{to}"))
    }
}

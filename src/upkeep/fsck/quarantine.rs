//! `quarantine/`: where what is bad goes instead of being deleted, because it may be all that is left of something, and
//! because a mount may still show it. What is in it is never read again, only what it is called; whoever is done with it removes it by hand.

use crate::error::{ErrorKind, Result, ResultExt};
use crate::io::durable;
use crate::oci::Digest;
use crate::store::Store;
use crate::upkeep::measure::names;
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::renameat;
use std::collections::BTreeMap;
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

/// What a blob is called here; something unique follows.
pub(super) fn label_of_blob(digest: &Digest) -> String {
    format!("blob-{}-{}", digest.algorithm().name(), digest.hex())
}

/// The blobs that were put away, each with its place relative to the store's root.
pub(super) fn blobs(store: &Store) -> Result<BTreeMap<Digest, String>> {
    let dir = match durable::open_dir(store.root(), DIRECTORY) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(BTreeMap::new()),
        other => other?,
    };
    let of_name = |name: &std::ffi::CString| {
        let name = name.to_str().ok()?;
        Some((digest_in(name)?, format!("{DIRECTORY}/{name}")))
    };
    Ok(names(&dir)?.iter().filter_map(of_name).collect())
}

fn digest_in(name: &str) -> Option<Digest> {
    let mut parts = name.strip_prefix("blob-")?.split('-');
    Digest::from_parts(parts.next()?, parts.next()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_put_away_tells_its_digest() {
        let digest = Digest::of(b"x");
        assert_eq!(digest_in(&format!("{}-1-0-18ea", label_of_blob(&digest))), Some(digest));
        for name in ["blob-x", "blob-sha256-00-1", "tree-00-1-0-18ea", "meta.db-1-0-18ea", ""] {
            assert_eq!(digest_in(name), None, "{name}");
        }
    }
}

//! Removals that were left to a collection: mounts and snapshots that were in use.

use super::{GcFailure, GcOptions, GcReport};
use crate::error::{Error, ErrorKind, Result};
use crate::metadata::SnapshotRow;
use crate::store::{Store, mounted};
use std::collections::HashSet;

/// Removes what is free by now, and gives what could not be removed.
pub(super) fn finish(store: &Store, options: &GcOptions, report: &mut GcReport) -> Result<Vec<GcFailure>> {
    let finished = match store.finish_deferred(&options.cancel, &options.listener) {
        Err(error) if error.kind() == ErrorKind::Cancelled => return Err(error),
        Err(error) => return Ok(vec![GcFailure::new("what was deferred", error)]),
        Ok(finished) => finished,
    };
    report.deferred = finished.busy;
    let failure = |(key, error): (String, Error)| GcFailure::new(format!("snapshot {key}"), error);
    Ok(finished.failed.into_iter().map(failure).collect())
}

/// What a collection would find; nothing is touched.
#[derive(Debug, Default)]
pub(super) struct Deferred {
    /// The keys of those that are free.
    pub(super) free: HashSet<String>,
    /// Where the others are mounted, or their keys.
    pub(super) busy: Vec<String>,
    /// Those of which it cannot be told.
    pub(super) failed: Vec<GcFailure>,
}

impl Deferred {
    pub(super) fn look(store: &Store) -> Result<Deferred> {
        let mut found = Deferred::default();
        let rows = store.metadata().snapshots_deferred()?;
        if rows.is_empty() {
            return Ok(found);
        }
        let parents: HashSet<String> =
            store.metadata().snapshots()?.into_iter().filter_map(|row| row.parent).collect();
        // A parent stays as long as something stands on it, whoever uses it.
        for row in rows.into_iter().filter(|row| !parents.contains(&row.key)) {
            match found.look_at(store, &row) {
                Ok(()) => {}
                Err(error) => found.failed.push(GcFailure::new(format!("snapshot {}", row.key), error)),
            }
        }
        Ok(found)
    }

    /// A collection takes down the mount itself, so only other users count.
    fn look_at(&mut self, store: &Store, row: &SnapshotRow) -> Result<()> {
        let target = mounted::target_of(row)?;
        let mut in_use = store.in_use(row)?;
        in_use.here.retain(|place| Some(place) != target.as_ref());
        match in_use.is_free() {
            true => drop(self.free.insert(row.key.clone())),
            false => self.busy.push(target.map_or(row.key.clone(), |target| target.display().to_string())),
        }
        Ok(())
    }
}

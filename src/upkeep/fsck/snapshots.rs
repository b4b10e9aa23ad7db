//! Snapshots: rows against directories, both ways, and `snapshot.json` against the row.

use super::Check;
use super::compare::{Owners, compare};
use super::report::{FsckProblem, ProblemKind, ProblemState};
use super::trees::NEEDS_OWNERS;
use crate::error::{ErrorKind, Result};
use crate::io::durable;
use crate::metadata::{Resource, SnapshotKind, SnapshotRow};
use crate::oci::ChainId;
use crate::snapshot::{Layer, SnapshotFile, kind_name};
use crate::store::SnapshotterKind;
use crate::upkeep::measure::names;
use rustix::fs::{AtFlags, statat};
use std::collections::HashSet;
use std::sync::Arc;

impl Check<'_> {
    pub(super) fn snapshots(&self) -> Result<()> {
        let directories = durable::open_dir(self.store.root(), "snapshots")?;
        // The directories first: each gets its number a moment before its row is seen, but for those of whoever writes now.
        let listed: Vec<u64> =
            names(&directories)?.iter().filter_map(|name| name.to_str().ok()?.parse().ok()).collect();
        if !self.store.is_read_only() {
            self.store.metadata().settled()?;
        }
        let rows = self.store.metadata().snapshots()?;
        let parents: HashSet<&str> = rows.iter().filter_map(|row| row.parent.as_deref()).collect();
        // Parents come first, so what stands on something bad is known by then.
        let mut shaky: HashSet<&str> = HashSet::new();
        for row in &rows {
            self.means.cancel.check()?;
            self.findings.count(|checked| checked.snapshots += 1);
            let on_bad = row.parent.as_deref().is_some_and(|parent| shaky.contains(parent));
            if on_bad || row.tree.is_some_and(|tree| self.findings.is_open(&format!("tree {tree}"))) {
                shaky.insert(&row.key);
            }
            let compare = !shaky.contains(row.key.as_str());
            self.snapshot(row, parents.contains(row.key.as_str()), compare)?;
            if self.findings.is_open(&format!("snapshot {}", row.key)) {
                shaky.insert(&row.key);
            }
        }
        let known: HashSet<u64> = self.store.metadata().snapshot_ids()?.into_iter().collect();
        for id in listed.into_iter().filter(|id| !known.contains(id)) {
            let message = "a snapshot that was half removed: nobody knows it";
            self.findings.leftover(format!("snapshots/{id}"), message, "transload gc");
        }
        Ok(())
    }

    /// With `compare`, its content too: what is made of a bad tree proves nothing.
    fn snapshot(&self, row: &SnapshotRow, is_parent: bool, compare: bool) -> Result<()> {
        let fault = self.snapshot_fault(row)?;
        if fault.is_none() {
            self.sound.trusted(Resource::Snapshot(row.key.clone()));
        }
        match fault {
            None if !compare => Ok(()),
            None => match self.snapshot_differs(row)? {
                Some(message) => self.bad_snapshot(row, message),
                None => Ok(()),
            },
            Some((ProblemKind::SnapshotMissing, _)) if !self.still_there(row)? => Ok(()),
            Some((ProblemKind::SnapshotMissing, message)) => self.lost_snapshot(row, is_parent, message),
            Some((kind, message)) => {
                let state = match self.options.repair {
                    false => ProblemState::Found,
                    true => {
                        SnapshotFile::of_row(row).write(self.store.root(), row.id)?;
                        ProblemState::Repaired
                    }
                };
                self.snapshot_problem(row, kind, message, state);
                Ok(())
            }
        }
    }

    /// Whether the row is still there, and old enough to have its directory.
    fn still_there(&self, row: &SnapshotRow) -> Result<bool> {
        let now = self.store.metadata().snapshot_get(&row.key)?;
        Ok(now.is_some_and(|now| now.id == row.id) && self.snapshot_fault(row)?.is_some())
    }

    fn snapshot_problem(&self, row: &SnapshotRow, kind: ProblemKind, message: String, state: ProblemState) {
        let images = self.facts.users_of_snapshot(&row.key);
        self.problem(kind, format!("snapshot {}", row.key), message, images, state);
    }

    /// What is wrong with a snapshot's directory.
    fn snapshot_fault(&self, row: &SnapshotRow) -> Result<Option<(ProblemKind, String)>> {
        let place = format!("snapshots/{}", row.id);
        let missing = |what: String| Ok(Some((ProblemKind::SnapshotMissing, format!("{what} is not there"))));
        if !self.exists(&place)? {
            return missing(place);
        }
        let plain = self.store.format().snapshotter == SnapshotterKind::Plain;
        let fs = format!("{place}/fs");
        if (row.heal || row.tree.is_none() || plain) && !self.exists(&fs)? {
            return missing(fs);
        }
        let found = match SnapshotFile::read(self.store.root(), row.id) {
            Ok(found) => found,
            Err(error) if error.kind() == ErrorKind::NotFound => {
                return Ok(Some((ProblemKind::SnapshotRecord, "its snapshot.json is not there".to_string())));
            }
            Err(error) => return Ok(Some((ProblemKind::SnapshotRecord, error.to_string()))),
        };
        // A commit that is under way, or was interrupted, stands here first.
        let committing = row.kind == SnapshotKind::Active && found.kind == kind_name(SnapshotKind::Committed);
        if !committing && found != SnapshotFile::of_row(row) {
            let message = "its snapshot.json contradicts the database";
            return Ok(Some((ProblemKind::SnapshotRecord, message.to_string())));
        }
        Ok(None)
    }

    /// What is wrong inside the directory of a committed layer, which never changes: the layer's part that depends on what
    /// lies below it, or all of it in a plain store.
    fn snapshot_differs(&self, row: &SnapshotRow) -> Result<Option<String>> {
        let skipped = self.options.quick || self.store.is_read_only() || row.kind != SnapshotKind::Committed;
        if skipped {
            return Ok(None);
        }
        let fresh = match self.store.snapshotter().remake_layer(row, &self.bounds()) {
            Ok(Some(fresh)) => fresh,
            Ok(None) => return Ok(None),
            Err(error) if error.kind() == ErrorKind::Cancelled => return Err(error),
            Err(error) => {
                // What is missing for it has been told of the trees.
                self.findings.unproven(format!("snapshot {}", row.key), error.to_string());
                return Ok(None);
            }
        };
        let root = Arc::new(self.store.sync_handle()?);
        let fresh = Layer::plain(&Arc::new(fresh.fs()?), "");
        let stored = Layer::plain(&root, format!("snapshots/{}/fs", row.id));
        let found = compare(&fresh, &stored, Owners::Compare, self.means.cancel)?;
        Ok((found.count > 0).then(|| found.describe()))
    }

    fn exists(&self, place: &str) -> Result<bool> {
        match statat(self.store.root(), place, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(_) => Ok(true),
            Err(rustix::io::Errno::NOENT) => Ok(false),
            Err(errno) => Err(errno.into()),
        }
    }

    fn bad_snapshot(&self, row: &SnapshotRow, message: String) -> Result<()> {
        let state = match self.options.repair {
            false => ProblemState::Found,
            true => self.make_layer_again(row)?,
        };
        self.snapshot_problem(row, ProblemKind::SnapshotDiffers, message, state);
        Ok(())
    }

    /// A row whose directory is not there. A layer's can be made again; what somebody wrote is lost.
    fn lost_snapshot(&self, row: &SnapshotRow, is_parent: bool, message: String) -> Result<()> {
        let layer = row.kind == SnapshotKind::Committed && row.tree.is_some();
        let wanted = is_parent || !self.facts.users_of_snapshot(&row.key).is_empty();
        if !wanted && layer {
            let message = "it was never finished";
            self.findings.leftover(format!("snapshot {}", row.key), message, "transload gc");
            return Ok(());
        }
        let state = match (self.options.repair, layer) {
            (false, _) => ProblemState::Found,
            (true, true) => match self.make_layer_again(row) {
                Err(error) if error.kind() == ErrorKind::Permission => {
                    return self.snapshot_needs_owners(row, message, &error);
                }
                made => made?,
            },
            (true, false) if is_parent => ProblemState::Remains,
            (true, false) => {
                self.store.snapshotter().remove(&row.key)?;
                ProblemState::Repaired
            }
        };
        self.snapshot_problem(row, ProblemKind::SnapshotMissing, message, state);
        Ok(())
    }

    fn snapshot_needs_owners(&self, row: &SnapshotRow, message: String, error: &crate::Error) -> Result<()> {
        self.problem_mended_by(FsckProblem {
            kind: ProblemKind::SnapshotMissing,
            what: format!("snapshot {}", row.key),
            message: format!("{message}; {error}"),
            images: self.facts.users_of_snapshot(&row.key),
            state: ProblemState::Remains,
            mend: NEEDS_OWNERS.to_string(),
        });
        Ok(())
    }

    fn make_layer_again(&self, row: &SnapshotRow) -> Result<ProblemState> {
        let parent: Option<ChainId> = row.parent.as_deref().map(str::parse).transpose()?;
        let diff_id = row.tree.ok_or_else(|| crate::Error::malformed("a snapshot without a layer"))?;
        let place = format!("snapshots/{}", row.id);
        if self.exists(&place)? {
            let directories = durable::open_dir(self.store.root(), "snapshots")?;
            self.quarantine.take(
                self.store,
                directories,
                &row.id.to_string(),
                &format!("snapshot-{}", row.id),
            )?;
        }
        match self.store.snapshotter().commit_layer(parent.as_ref(), &diff_id, &row.labels, &self.bounds()) {
            Ok(_) => {
                self.sound.trusted(Resource::Snapshot(row.key.clone()));
                Ok(ProblemState::Repaired)
            }
            // Its layer is gone as well, which is told of the tree.
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(ProblemState::NeedsImport),
            Err(error) => Err(error),
        }
    }
}

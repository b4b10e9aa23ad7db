//! Snapshots as full copies, for filesystems that overlayfs cannot use.
//!
//! Every snapshot has all of its files in `snapshots/<n>/fs`; on filesystems with reflinks the copies share their data.
//! Mounts are bind mounts.

use super::copy::{CopyOptions, CopyReport, copy_stack};
use super::filter::Filters;
use super::heal::resolve_links;
use super::merge::{Layer, Stack};
use super::shelf::{self, Filled, Shelf, Staged};
use super::{Bounds, Committed, Remade, Snapshotter, Trees};
use crate::error::{Error, ErrorKind, Result, ResultExt};
use crate::metadata::{Labels, Metadata, NewSnapshot, SnapshotKind, SnapshotRow, Usage};
use crate::mount::Mount;
use crate::oci::{ChainId, DiffId};
use crate::parallel::Cancel;
use rustix::fd::AsFd;
use rustix::fs::RenameFlags;
use std::path::Path;
use std::sync::Arc;

/// The snapshotter that needs nothing of the filesystem.
pub struct PlainSnapshotter {
    shelf: Shelf,
    options: CopyOptions,
}

impl PlainSnapshotter {
    /// The snapshots of the store at `root`, an absolute path; files are copied by this many threads.
    pub fn open(root: &Path, metadata: Arc<Metadata>, threads: usize) -> Result<Self> {
        Ok(PlainSnapshotter {
            shelf: Shelf::open(root, metadata)?,
            options: CopyOptions { threads, ..CopyOptions::default() },
        })
    }

    fn layer(&self, row: &SnapshotRow) -> Layer {
        Layer::plain(&self.shelf.base, Shelf::place(row, "fs"))
    }

    /// All of a snapshot is in its own directory; a view has none and shows its parent's.
    fn stack_of(&self, row: Option<&SnapshotRow>) -> Stack {
        Stack::new(row.map(|row| self.layer(row)).into_iter().collect())
    }

    fn mounts_of(&self, row: &SnapshotRow, parent: Option<&SnapshotRow>) -> Vec<Mount> {
        let read_only = row.kind == SnapshotKind::View;
        let shown = if read_only { parent.unwrap_or(row) } else { row };
        vec![Mount::bind(self.shelf.path(shown, "fs"), read_only)]
    }

    fn make(
        &self,
        key: &str,
        kind: SnapshotKind,
        parent: Option<&str>,
        labels: &Labels,
    ) -> Result<Vec<Mount>> {
        self.shelf.check_free(key)?;
        let below = self.shelf.parent_chain(parent)?;
        let staged = self.shelf.stage()?;
        let fs = staged.make_dir("fs")?;
        if kind == SnapshotKind::Active && !below.is_empty() {
            copy_stack(&self.stack_of(below.first()), fs.as_fd(), &[], &self.options, &Cancel::new())?;
        }
        let new = NewSnapshot { key, kind, parent, tree: None, heal: false, labels, usage: Usage::default() };
        let row = self.shelf.create(staged, &new)?;
        Ok(self.mounts_of(&row, below.first()))
    }

    fn fill(
        &self,
        staged: &Staged<'_>,
        below: &[SnapshotRow],
        diff_id: &DiffId,
        bounds: &Bounds,
    ) -> Result<Filled> {
        let missing = || Error::new(ErrorKind::NotFound, format!("tree {diff_id} is not in the store"));
        let record = self.shelf.trees.stat(diff_id)?.ok_or_else(missing)?;
        let parent = self.stack_of(below.first());
        let mut merged = parent.clone();
        merged.push_top(Layer::recorded(&self.shelf.base, Trees::relative_path(diff_id), &record));
        let links = resolve_links(&record, &merged, &parent, &bounds.cancel)?;
        let to = staged.make_dir("fs")?;
        let options = CopyOptions { headroom: Arc::clone(&bounds.headroom), ..self.options.clone() };
        let report = copy_stack(&merged, to.as_fd(), &links.sources, &options, &bounds.cancel)?;
        Ok(Filled { heal: false, usage: usage_of(&report) })
    }

    /// One prepared above nothing gets its parent's files below its own.
    fn rebase(&self, row: &SnapshotRow, parent: &str) -> Result<()> {
        if row.kind != SnapshotKind::Active || row.parent.is_some() {
            // Nothing to copy, or the transaction refuses it.
            return Ok(());
        }
        let below = self.shelf.parent_chain(Some(parent))?;
        let mut merged = self.stack_of(below.first());
        merged.push_top(self.layer(row));
        let staged = self.shelf.stage()?;
        let to = staged.make_dir("fs")?;
        copy_stack(&merged, to.as_fd(), &[], &self.options, &Cancel::new())?;
        let place = Shelf::place(row, "fs");
        // The old one ends up in the staging place and goes with it.
        rustix::fs::renameat_with(staged.fd(), "fs", &self.shelf.base, place, RenameFlags::EXCHANGE)
            .doing(|| "cannot put the merged files into place")
    }
}

fn usage_of(report: &CopyReport) -> Usage {
    Usage { bytes: report.bytes, inodes: report.inodes }
}

impl Snapshotter for PlainSnapshotter {
    fn stat(&self, key: &str) -> Result<SnapshotRow> {
        self.shelf.get(key)
    }

    fn update(&self, key: &str, labels: &Labels, fields: &[&str]) -> Result<SnapshotRow> {
        self.shelf.update(key, labels, fields)
    }

    fn usage(&self, key: &str) -> Result<Usage> {
        self.shelf.usage(key)
    }

    fn mounts(&self, key: &str) -> Result<Vec<Mount>> {
        let row = self.shelf.get(key)?;
        super::check_mountable(&row)?;
        let parent = row.parent.as_deref().map(|parent| self.shelf.get(parent)).transpose()?;
        Ok(self.mounts_of(&row, parent.as_ref()))
    }

    fn prepare(&self, key: &str, parent: Option<&str>, labels: &Labels) -> Result<Vec<Mount>> {
        shelf::preparing(key, SnapshotKind::Active, parent, || {
            self.make(key, SnapshotKind::Active, parent, labels)
        })
        .doing(|| format!("cannot prepare snapshot {key}"))
    }

    fn view(&self, key: &str, parent: Option<&str>, labels: &Labels) -> Result<Vec<Mount>> {
        shelf::preparing(key, SnapshotKind::View, parent, || {
            self.make(key, SnapshotKind::View, parent, labels)
        })
        .doing(|| format!("cannot make the view {key}"))
    }

    fn commit(&self, name: &str, key: &str, labels: &Labels, rebase: Option<&str>) -> Result<()> {
        let commit = || -> Result<()> {
            if self.shelf.metadata.snapshot_get(name)?.is_some() {
                return Err(Error::new(ErrorKind::AlreadyExists, format!("snapshot {name} exists already")));
            }
            let taken = self.shelf.take(key)?;
            if let Some(parent) = rebase {
                self.rebase(&taken.row, parent)?;
            }
            self.shelf.commit(name, &taken, labels, rebase).map(drop)
        };
        shelf::committing(name, commit).doing(|| format!("cannot commit snapshot {key} as {name}"))
    }

    fn remove(&self, key: &str) -> Result<()> {
        self.shelf.remove(key).doing(|| format!("cannot remove snapshot {key}"))
    }

    fn remake_layer(&self, row: &SnapshotRow, bounds: &Bounds) -> Result<Option<Remade<'_>>> {
        let Some(diff_id) = row.tree else { return Ok(None) };
        let fill = |staged: &Staged<'_>, below: &[SnapshotRow]| self.fill(staged, below, &diff_id, bounds);
        let remake = || self.shelf.remake_layer(row, fill);
        remake().map(Some).doing(|| format!("cannot make layer {diff_id} once more"))
    }

    fn cleanup(&self) -> Result<u64> {
        self.shelf.cleanup()
    }

    fn walk(&self, filters: &Filters, visit: &mut dyn FnMut(&SnapshotRow) -> Result<()>) -> Result<()> {
        self.shelf.walk(filters, visit)
    }

    fn commit_layer(
        &self,
        parent: Option<&ChainId>,
        diff_id: &DiffId,
        labels: &Labels,
        bounds: &Bounds,
    ) -> Result<Committed> {
        let fill = |staged: &Staged<'_>, below: &[SnapshotRow]| self.fill(staged, below, diff_id, bounds);
        self.shelf
            .commit_layer(parent, diff_id, labels, &bounds.cancel, fill)
            .doing(|| format!("cannot commit layer {diff_id}"))
    }

    fn stack(&self, key: &str) -> Result<Stack> {
        let row = self.shelf.get(key)?;
        match (row.kind, &row.parent) {
            (SnapshotKind::View, Some(parent)) => Ok(self.stack_of(Some(&self.shelf.get(parent)?))),
            _ => Ok(self.stack_of(Some(&row))),
        }
    }
}

//! Snapshots without copies: chains of shared trees that overlayfs lays over each other.
//!
//! A layer's snapshot is a row; on disk it has at most a heal directory. What is written goes to `snapshots/<n>/fs`.
//! Mounting is the caller's: this room answers with lists of directories.

use super::filter::Filters;
use super::heal;
use super::merge::{Layer, Stack};
use super::shelf::{self, Filled, Shelf, Staged};
use super::{Bounds, Committed, Remade, Snapshotter, Trees};
use crate::error::{Error, ErrorKind, Result, ResultExt};
use crate::metadata::{Labels, Metadata, NewSnapshot, SnapshotKind, SnapshotRow, Usage};
use crate::mount::{self, Mount, MountKind};
use crate::oci::{ChainId, DiffId};
use crate::tree::WhiteoutForm;
use rustix::fd::AsFd;
use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The snapshotter for filesystems that overlayfs can use.
pub struct OverlaySnapshotter {
    shelf: Shelf,
    form: WhiteoutForm,
}

impl OverlaySnapshotter {
    /// The snapshots of the store at `root`, an absolute path, whose trees have their deletions in this form.
    pub fn open(root: &Path, metadata: Arc<Metadata>, form: WhiteoutForm) -> Result<Self> {
        if form == WhiteoutForm::List {
            let message = "trees without overlayfs marks cannot be mounted by overlayfs";
            return Err(Error::new(ErrorKind::FailedPrecondition, message));
        }
        Ok(OverlaySnapshotter { shelf: Shelf::open(root, metadata)?, form })
    }

    /// The directories of a chain relative to the store's root, top first.
    fn places(&self, chain: &[SnapshotRow]) -> Vec<String> {
        let mut places = Vec::new();
        for row in chain {
            match &row.tree {
                Some(tree) => {
                    places.extend(row.heal.then(|| Shelf::place(row, "fs")));
                    places.push(Trees::relative_path(tree));
                }
                None => places.push(Shelf::place(row, "fs")),
            }
        }
        // An image may list a layer twice, and overlayfs refuses a directory that stands twice. The upper one has all that
        // the lower one has, hides all that it hides, and so makes it invisible.
        let mut seen = HashSet::new();
        places.retain(|place| seen.insert(place.clone()));
        places
    }

    fn stack_of(&self, chain: &[SnapshotRow]) -> Stack {
        self.stack_without(chain, "")
    }

    /// The chain as one tree, but for the layer at `hidden`.
    fn stack_without(&self, chain: &[SnapshotRow], hidden: &str) -> Stack {
        let layer = |place: String| Layer::overlay(&self.shelf.base, place, self.form);
        let places = self.places(chain).into_iter().filter(|place| place != hidden);
        Stack::new(places.map(layer).collect())
    }

    fn mounts_of(&self, row: &SnapshotRow, below: &[SnapshotRow]) -> Vec<Mount> {
        let lower: Vec<PathBuf> =
            self.places(below).iter().map(|place| self.shelf.root.join(place)).collect();
        let read_only = row.kind == SnapshotKind::View;
        let mount = match (lower.as_slice(), read_only) {
            ([], _) => Mount::bind(self.shelf.path(row, "fs"), read_only),
            ([single], true) => Mount::bind(single.clone(), true),
            _ => Mount {
                kind: MountKind::Overlay,
                source: mount::source_name(&self.shelf.root, row.id),
                lower,
                upper: (!read_only).then(|| self.shelf.path(row, "fs")),
                work: (!read_only).then(|| self.shelf.path(row, "work")),
                options: self.options(),
                read_only,
                ids: None,
            },
        };
        vec![mount]
    }

    /// `index` would tie an upper directory to its layers' inodes. Redirects and metadata-only copies would put marks
    /// into what is committed that only some kernels follow; with `userxattr` the kernel has none.
    fn options(&self) -> Vec<String> {
        let options: &[&str] = match self.form {
            WhiteoutForm::User => &["index=off", "userxattr"],
            _ => &["index=off", "redirect_dir=nofollow", "metacopy=off"],
        };
        options.iter().map(|option| option.to_string()).collect()
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
        staged.make_upper(&self.stack_of(&below))?;
        if kind == SnapshotKind::Active {
            staged.make_dir("work")?;
        }
        let new = NewSnapshot { key, kind, parent, tree: None, heal: false, labels, usage: Usage::default() };
        let row = self.shelf.create(staged, &new)?;
        Ok(self.mounts_of(&row, &below))
    }

    fn fill(
        &self,
        staged: &Staged<'_>,
        below: &[SnapshotRow],
        diff_id: &DiffId,
        bounds: &Bounds,
    ) -> Result<Filled> {
        super::check_visible(&*self.shelf.base, self.form)?;
        let missing = || Error::new(ErrorKind::NotFound, format!("tree {diff_id} is not in the store"));
        let record = self.shelf.trees.stat(diff_id)?.ok_or_else(missing)?;
        if record.form != self.form {
            let message = format!("tree {diff_id} marks its deletions in another form than the store");
            return Err(Error::new(ErrorKind::Corrupt, message));
        }
        let place = Trees::relative_path(diff_id);
        let parent = self.stack_without(below, &place);
        let mut merged = parent.clone();
        merged.push_top(Layer::recorded(&self.shelf.base, place, &record));
        let to = staged.make_dir("fs")?;
        let healed = heal::heal(&record, &merged, &parent, to.as_fd(), bounds)?;
        let mut usage = Usage { bytes: record.bytes, inodes: record.inodes };
        if let Some(report) = &healed {
            usage.bytes += report.bytes;
            usage.inodes += report.inodes;
        }
        Ok(Filled { heal: healed.is_some(), usage })
    }
}

impl Snapshotter for OverlaySnapshotter {
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
        let chain = self.shelf.metadata.snapshot_chain(key)?;
        let (row, below) = chain.split_first().expect("the chain begins with the row");
        super::check_mountable(row)?;
        Ok(self.mounts_of(row, below))
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
        let commit = || self.shelf.commit(name, &self.shelf.take(key)?, labels, rebase).map(drop);
        shelf::committing(name, commit).doing(|| format!("cannot commit snapshot {key} as {name}"))
    }

    fn remove(&self, key: &str) -> Result<()> {
        self.shelf.remove(key).doing(|| format!("cannot remove snapshot {key}"))
    }

    fn remake_layer(&self, row: &SnapshotRow, bounds: &Bounds) -> Result<Option<Remade<'_>>> {
        let Some(diff_id) = row.tree.filter(|_| row.heal) else { return Ok(None) };
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
        super::check_visible(&*self.shelf.base, self.form)?;
        Ok(self.stack_of(&self.shelf.metadata.snapshot_chain(key)?))
    }
}

//! What both snapshotters have in common: the rows, and the directories `snapshots/<n>`.
//!
//! A directory is made under `ingest/`, complete with `snapshot.json`, and moved to its number inside the transaction that gives
//! the number. So a directory of a number is complete, a row has its directory, and one that nobody knows was interrupted. Where
//! a row's is missing all the same, a layer's is made good by whoever commits that layer next. No disk is walked or synced inside
//! a transaction.

use super::beneath;
use super::filter::{Filters, kind_name};
use super::merge::Stack;
use super::trees::Trees;
use crate::error::{Error, ErrorKind, Result, ResultExt};
use crate::io::{durable, locked::LockedDir, remove};
use crate::metadata::{Labels, Metadata, NewSnapshot, SnapshotKind, SnapshotRow, Usage};
use crate::oci::{ChainId, DiffId};
use crate::parallel::{Cancel, failpoint};
use crate::trace;
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{self, AtFlags, FileType, FlockOperation, Gid, Mode, OFlags, Uid};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The version of `snapshot.json`.
const VERSION: u32 = 1;

/// `snapshot.json`: what a snapshot's row can be made again from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotFile {
    /// The version of this file.
    pub version: u32,
    /// Key or name.
    pub name: String,
    /// `active`, `view` or `committed`.
    pub kind: String,
    /// The snapshot below.
    pub parent: Option<String>,
    /// The layer, where it was made of one.
    pub tree: Option<DiffId>,
    /// Whether `fs` is a heal directory over that layer.
    pub heal: bool,
}

/// Our own are a few hundred bytes.
const FILE_LIMIT_BYTES: u64 = 1 << 20;

impl SnapshotFile {
    /// What the file of this row says.
    pub fn of_row(row: &SnapshotRow) -> Self {
        SnapshotFile {
            version: VERSION,
            name: row.key.clone(),
            kind: kind_name(row.kind).to_string(),
            parent: row.parent.clone(),
            tree: row.tree,
            heal: row.heal,
        }
    }

    /// Reads the file of the snapshot with this number in the store at `root`. [`ErrorKind::NotFound`] without it,
    /// [`ErrorKind::Corrupt`] if it is not one of ours.
    pub fn read(root: impl AsFd, id: u64) -> Result<Self> {
        use std::io::Read;
        let read = || -> Result<Self> {
            let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let dir = durable::open_dir(durable::open_dir(root.as_fd(), "snapshots")?, &id.to_string())?;
            let file = std::fs::File::from(fs::openat(dir, "snapshot.json", flags, Mode::empty())?);
            let mut json = Vec::new();
            file.take(FILE_LIMIT_BYTES).read_to_end(&mut json)?;
            serde_json::from_slice(&json).map_err(|error| Error::new(ErrorKind::Corrupt, error.to_string()))
        };
        read().doing(|| format!("cannot read snapshots/{id}/snapshot.json"))
    }

    /// Writes the file of the snapshot with this number anew.
    pub fn write(&self, root: impl AsFd, id: u64) -> Result<()> {
        let dir = durable::open_dir(durable::open_dir(root.as_fd(), "snapshots")?, &id.to_string())?;
        write_file(dir.as_fd(), self)
    }

    fn of(new: &NewSnapshot<'_>) -> Self {
        SnapshotFile {
            version: VERSION,
            name: new.key.to_string(),
            kind: kind_name(new.kind).to_string(),
            parent: new.parent.map(str::to_string),
            tree: new.tree,
            heal: new.heal,
        }
    }
}

pub(super) struct Shelf {
    pub root: PathBuf,
    pub base: Arc<OwnedFd>,
    pub trees: Trees,
    pub metadata: Arc<Metadata>,
    snapshots: OwnedFd,
    ingests: Arc<OwnedFd>,
}

impl Shelf {
    pub fn open(root: &Path, metadata: Arc<Metadata>) -> Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let base =
            fs::open(root, flags, Mode::empty()).doing(|| format!("cannot open {}", root.display()))?;
        Ok(Shelf {
            root: root.to_path_buf(),
            trees: Trees::open(base.as_fd())?,
            snapshots: durable::ensure_dir(&base, "snapshots")?,
            ingests: Arc::new(durable::ensure_dir(&base, "ingest")?),
            base: Arc::new(base),
            metadata,
        })
    }

    /// Where a snapshot's directory lies, relative to the store's root.
    pub fn place(row: &SnapshotRow, part: &str) -> String {
        format!("snapshots/{}/{part}", row.id)
    }

    /// The same as an absolute path.
    pub fn path(&self, row: &SnapshotRow, part: &str) -> PathBuf {
        self.root.join(Self::place(row, part))
    }

    pub fn get(&self, key: &str) -> Result<SnapshotRow> {
        let missing = || Error::new(ErrorKind::NotFound, format!("there is no snapshot {key}"));
        self.metadata.snapshot_get(key)?.ok_or_else(missing)
    }

    /// The chain below a new snapshot; checks that the parent can be one.
    pub fn parent_chain(&self, parent: Option<&str>) -> Result<Vec<SnapshotRow>> {
        let Some(parent) = parent else { return Ok(Vec::new()) };
        let chain = self.metadata.snapshot_chain(parent)?;
        if chain.first().is_some_and(|row| row.kind != SnapshotKind::Committed) {
            let message = format!("the parent snapshot {parent} is not committed");
            return Err(Error::new(ErrorKind::FailedPrecondition, message));
        }
        Ok(chain)
    }

    /// Fails early where the transaction would fail later, before anything is written.
    pub fn check_free(&self, key: &str) -> Result<()> {
        if key.is_empty() {
            return Err(Error::new(ErrorKind::InvalidArgument, "a snapshot needs a key"));
        }
        match self.metadata.snapshot_get(key)? {
            Some(_) => Err(Error::new(ErrorKind::AlreadyExists, format!("snapshot {key} exists already"))),
            None => Ok(()),
        }
    }

    pub fn is_complete(&self, row: &SnapshotRow) -> Result<bool> {
        match fs::statat(&self.snapshots, row.id.to_string(), AtFlags::SYMLINK_NOFOLLOW) {
            Ok(_) => Ok(true),
            Err(Errno::NOENT) => Ok(false),
            Err(errno) => {
                Err(errno).doing(|| format!("cannot look up the directory of snapshot {}", row.key))
            }
        }
    }

    /// A place to make a snapshot's directory in.
    pub fn stage(&self) -> Result<Staged<'_>> {
        let name = format!("snapshot-{}", durable::unique_name());
        let dir = LockedDir::acquire(&self.ingests, &name, &Cancel::new(), &mut || {})?;
        Ok(Staged { shelf: self, dir: Some(dir), aside: None })
    }

    /// The one place to make this chain's directory in; waits for whoever is at it already.
    fn stage_layer(&self, chain_id: &ChainId, cancel: &Cancel) -> Result<Staged<'_>> {
        let name = format!("snapshot-{}", chain_id.0.hex());
        let dir = LockedDir::acquire(&self.ingests, &name, cancel, &mut || {})?;
        let staged = Staged { shelf: self, dir: Some(dir), aside: None };
        remove::remove_contents(staged.fd())?;
        Ok(staged)
    }

    /// Makes the row and gives the staged directory its number, in one step: whoever dies leaves both or no row.
    pub fn create(&self, mut staged: Staged<'_>, new: &NewSnapshot<'_>) -> Result<SnapshotRow> {
        staged.write_file(&SnapshotFile::of(new))?;
        let mut placed = None;
        let created = self.metadata.snapshot_publish(new, |id| {
            staged.place(id)?;
            placed = Some(id);
            Ok(())
        });
        if let (Err(_), Some(id)) = (&created, placed) {
            // It has its number and no row. What cannot be removed now is left to gc.
            let _ = self.remove_unknown(id);
        }
        created
    }

    /// Makes the committed snapshot of a layer, unless it is there: `fill` makes its `fs` and tells what to record.
    pub fn commit_layer(
        &self,
        parent: Option<&ChainId>,
        diff_id: &DiffId,
        labels: &Labels,
        cancel: &Cancel,
        fill: impl FnOnce(&Staged<'_>, &[SnapshotRow]) -> Result<Filled>,
    ) -> Result<super::Committed> {
        let chain_id = ChainId::above(parent, diff_id);
        trace::within(
            trace::stage!("snapshot.commit", key = trace::display(&chain_id), parent, existing),
            |span| {
                span.record("parent", parent.map(trace::display));
                let committed = self.commit_chain(&chain_id, parent, diff_id, labels, cancel, fill)?;
                span.record("existing", matches!(committed, super::Committed::Existing));
                Ok(committed)
            },
        )
    }

    fn commit_chain(
        &self,
        chain_id: &ChainId,
        parent: Option<&ChainId>,
        diff_id: &DiffId,
        labels: &Labels,
        cancel: &Cancel,
        fill: impl FnOnce(&Staged<'_>, &[SnapshotRow]) -> Result<Filled>,
    ) -> Result<super::Committed> {
        let name = chain_id.to_string();
        if self.has_layer(&name)?.is_some_and(|complete| complete) {
            return Ok(super::Committed::Existing);
        }
        let mut staged = self.stage_layer(chain_id, cancel)?;
        // Whoever had this place before gave it up a moment before its row can be seen.
        self.metadata.settled()?;
        let incomplete = match self.has_layer(&name)? {
            Some(true) => return Ok(super::Committed::Existing),
            other => other.is_some(),
        };
        let parent = parent.map(ChainId::to_string);
        let below = self.parent_chain(parent.as_deref())?;
        let filled = fill(&staged, &below)?;
        let new = NewSnapshot {
            key: &name,
            kind: SnapshotKind::Committed,
            parent: parent.as_deref(),
            tree: Some(*diff_id),
            heal: filled.heal,
            labels,
            usage: filled.usage,
        };
        match incomplete {
            false => drop(self.create(staged, &new)?),
            true => {
                staged.write_file(&SnapshotFile::of(&new))?;
                staged.place(self.get(&name)?.id)?;
            }
        }
        Ok(super::Committed::New)
    }

    /// Makes what [`Shelf::commit_layer`] would, in a place of its own that goes when it is dropped.
    pub fn remake_layer(
        &self,
        row: &SnapshotRow,
        fill: impl FnOnce(&Staged<'_>, &[SnapshotRow]) -> Result<Filled>,
    ) -> Result<Remade<'_>> {
        let below = self.parent_chain(row.parent.as_deref())?;
        let staged = self.stage()?;
        fill(&staged, &below)?;
        Ok(Remade(staged))
    }

    /// Whether the row is there and, if so, its directory.
    fn has_layer(&self, name: &str) -> Result<Option<bool>> {
        self.metadata.snapshot_get(name)?.map(|row| self.is_complete(&row)).transpose()
    }

    /// Takes the snapshot of this key for a commit, so that nobody else commits it meanwhile: its file is written before its
    /// row, and two would write over each other. Waits for another; [`ErrorKind::Busy`] if that takes too long.
    pub fn take(&self, key: &str) -> Result<Taken> {
        loop {
            let row = self.get(key)?;
            let dir = durable::open_dir(&self.snapshots, &row.id.to_string())?;
            if !lock(&dir).doing(|| format!("cannot lock snapshots/{}", row.id))? {
                let message = format!("someone else has been committing snapshot {key} for {PATIENCE:?}");
                return Err(Error::new(ErrorKind::Busy, message));
            }
            // Whoever had it may have committed it, and the key may have been given anew.
            let now = self.get(key)?;
            if now.id == row.id {
                return Ok(Taken { row: now, _lock: dir });
            }
        }
    }

    /// Measures an active snapshot and turns it into a committed one.
    pub fn commit(
        &self,
        name: &str,
        taken: &Taken,
        labels: &Labels,
        rebase: Option<&str>,
    ) -> Result<SnapshotRow> {
        let (row, key) = (&taken.row, &taken.row.key);
        let usage = self.measure(row)?;
        let is_active = row.kind == SnapshotKind::Active;
        if is_active && name != row.key {
            self.check_free(name)?;
        }
        let committed = self
            .announce(row, name, rebase)
            .and_then(|()| self.metadata.snapshot_commit(key, name, usage, labels, rebase.map(Some)));
        if committed.is_err() && is_active {
            self.describe(row.id);
        }
        committed
    }

    /// Has its file say what an active snapshot is about to become, and waits for the disk: the data has to be there before
    /// a row says that it may be built upon, and the file is what the row can be made again from. Whoever dies in between
    /// leaves it active, to be committed once more.
    fn announce(&self, row: &SnapshotRow, name: &str, rebase: Option<&str>) -> Result<()> {
        if row.kind != SnapshotKind::Active {
            // The transaction refuses it.
            return Ok(());
        }
        let file = SnapshotFile {
            name: name.to_string(),
            kind: kind_name(SnapshotKind::Committed).to_string(),
            parent: rebase.map(str::to_string).or_else(|| row.parent.clone()),
            ..SnapshotFile::of_row(row)
        };
        file.write(&self.base, row.id)?;
        if failpoint::sync("snapshot.sync")? {
            durable::sync_filesystem(&self.base)?;
        }
        Ok(())
    }

    /// Has its file say again what its row says. What fails here is only told by a check.
    fn describe(&self, id: u64) {
        let rows = self.metadata.snapshots().unwrap_or_default();
        if let Some(row) = rows.iter().find(|row| row.id == id) {
            let _ = SnapshotFile::of_row(row).write(&self.base, id);
        }
    }

    pub fn update(&self, key: &str, labels: &Labels, fields: &[&str]) -> Result<SnapshotRow> {
        if fields.is_empty() || fields.contains(&"labels") {
            return self.metadata.snapshot_update_labels(key, labels);
        }
        let mut changed = self.get(key)?.labels;
        for field in fields {
            let Some(label) = field.strip_prefix("labels.") else {
                let message = format!("the field {field} of a snapshot cannot be changed");
                return Err(Error::new(ErrorKind::InvalidArgument, message));
            };
            match labels.get(label) {
                Some(value) => drop(changed.insert(label.to_string(), value.clone())),
                None => drop(changed.remove(label)),
            }
        }
        self.metadata.snapshot_update_labels(key, &changed)
    }

    pub fn usage(&self, key: &str) -> Result<Usage> {
        let row = self.get(key)?;
        if row.kind == SnapshotKind::Active { self.measure(&row) } else { Ok(row.usage) }
    }

    /// Removes the row, then the directory. What cannot be removed is left to [`Shelf::cleanup`].
    pub fn remove(&self, key: &str) -> Result<()> {
        trace::within(trace::stage!("snapshot.remove", key, parent), |span| {
            span.record("key", key);
            let row = self.metadata.snapshot_remove(key)?;
            span.record("parent", row.parent.as_deref());
            let _ = self.remove_directory(&row.id.to_string());
            Ok(())
        })
    }

    fn remove_directory(&self, name: &str) -> Result<()> {
        match self.move_aside(name)? {
            Some(aside) => remove::remove_tree(self.ingests.as_fd(), &aside),
            None => Ok(()),
        }
    }

    /// Removes the directory of a number that no row has, and tells whether there was one. Under the turn of the writers, because
    /// a directory may have its number a moment before its row is seen.
    fn remove_unknown(&self, id: u64) -> Result<bool> {
        let moved = self.metadata.without_snapshot(id, || self.move_aside(&id.to_string()))?;
        match moved.transpose()?.flatten() {
            Some(aside) => remove::remove_tree(self.ingests.as_fd(), &aside).map(|()| true),
            None => Ok(false),
        }
    }

    /// Takes its number from a directory, and tells where under `ingest/` it is now; `None` if there was none.
    fn move_aside(&self, name: &str) -> Result<Option<String>> {
        let tombstone = format!("removed-{}", durable::unique_name());
        match fs::renameat(&self.snapshots, name, &self.ingests, &tombstone) {
            Ok(()) => Ok(Some(tombstone)),
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(errno).doing(|| format!("cannot remove snapshots/{name}")),
        }
    }

    /// Removes directories that no row has, and tells how many.
    pub fn cleanup(&self) -> Result<u64> {
        let mut removed = 0;
        let found = beneath::list(durable::open_dir(&self.snapshots, ".")?.as_fd())
            .doing(|| "cannot list the snapshots")?
            .into_iter()
            .filter_map(|(name, _)| String::from_utf8(name).ok()?.parse().ok());
        let known: HashSet<u64> = self.metadata.snapshot_ids()?.into_iter().collect();
        for id in found.filter(|id| !known.contains(id)) {
            removed += u64::from(self.remove_unknown(id)?);
        }
        Ok(removed)
    }

    pub fn walk(&self, filters: &Filters, visit: &mut dyn FnMut(&SnapshotRow) -> Result<()>) -> Result<()> {
        self.metadata.snapshot_walk(&mut |row| if filters.matches(row) { visit(row) } else { Ok(()) })
    }

    fn measure(&self, row: &SnapshotRow) -> Result<Usage> {
        let place = Self::place(row, "fs");
        disk_usage(self.base.as_fd(), place.as_bytes())
            .doing(|| format!("cannot measure snapshot {}", row.key))
    }
}

/// Prepares a snapshot or a view inside its span.
pub(super) fn preparing<T>(
    key: &str,
    kind: SnapshotKind,
    parent: Option<&str>,
    prepare: impl FnOnce() -> Result<T>,
) -> Result<T> {
    let span = trace::stage!("snapshot.prepare", key = key, parent = parent, kind = kind_name(kind));
    trace::within(span, |_| prepare())
}

/// Commits an active snapshot inside its span.
pub(super) fn committing<T>(name: &str, commit: impl FnOnce() -> Result<T>) -> Result<T> {
    trace::within(trace::stage!("snapshot.commit", key = name, parent, existing = false), |_| commit())
}

/// A snapshot that one caller is about to commit, until this is dropped or the process ends.
pub(super) struct Taken {
    pub row: SnapshotRow,
    /// Its directory, with a `flock`.
    _lock: OwnedFd,
}

/// A commit is one wait for the disk. Who takes longer was stopped.
const PATIENCE: Duration = Duration::from_secs(60);

/// Whether a directory could be locked in time. Also the child of a `fork` holds a lock, until it executes something, so one
/// look would not do.
fn lock(dir: &OwnedFd) -> Result<bool> {
    let (begun, mut pause) = (Instant::now(), Duration::from_millis(1));
    loop {
        match fs::flock(dir, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(true),
            Err(Errno::WOULDBLOCK) if begun.elapsed() > PATIENCE => return Ok(false),
            Err(Errno::WOULDBLOCK) => std::thread::sleep(pause),
            Err(errno) => return Err(errno.into()),
        }
        pause = (pause * 2).min(Duration::from_millis(20));
    }
}

/// What [`Shelf::commit_layer`] records of a layer.
pub(super) struct Filled {
    pub heal: bool,
    pub usage: Usage,
}

/// A layer's directory, made once more. Dropped, it is removed.
pub struct Remade<'a>(Staged<'a>);

impl Remade<'_> {
    /// What is in it.
    pub fn fs(&self) -> Result<OwnedFd> {
        durable::open_dir(self.0.fd(), "fs")
    }
}

/// A snapshot's directory in the making. Dropped, it is removed.
pub(super) struct Staged<'a> {
    shelf: &'a Shelf,
    dir: Option<LockedDir>,
    /// What had its number before and goes with it, under `ingest/`.
    aside: Option<String>,
}

impl Staged<'_> {
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.dir.as_ref().expect("held until placed").fd()
    }

    /// Makes an empty directory that everyone may pass, and opens it.
    pub fn make_dir(&self, name: &str) -> Result<OwnedFd> {
        fs::mkdirat(self.fd(), name, Mode::RWXU).doing(|| format!("cannot create {name}"))?;
        let fd = durable::open_dir(self.fd(), name)?;
        fs::fchmod(&fd, Mode::from_raw_mode(0o755))?;
        Ok(fd)
    }

    /// Makes `fs` for writing, with owner and mode of the root below it.
    pub fn make_upper(&self, below: &Stack) -> Result<OwnedFd> {
        let fd = self.make_dir("fs")?;
        if let Some(root) = below.root()? {
            let stat = root.stat();
            fs::fchown(&fd, Some(Uid::from_raw(stat.st_uid)), Some(Gid::from_raw(stat.st_gid)))?;
            fs::fchmod(&fd, Mode::from_raw_mode(stat.st_mode & 0o7777))?;
        }
        Ok(fd)
    }

    fn write_file(&self, file: &SnapshotFile) -> Result<()> {
        write_file(self.fd(), file)
    }

    fn place(&mut self, id: u64) -> Result<()> {
        failpoint::at("snapshot.publish")?;
        if self.try_place(id)? {
            return Ok(());
        }
        // A power cut or a death took the row that had this number before, and not its directory, which nobody knows now.
        self.aside = self.shelf.move_aside(&id.to_string())?;
        match self.try_place(id)? {
            true => Ok(()),
            false => {
                let message = format!("snapshots/{id} is there without a row, again and again");
                Err(Error::new(ErrorKind::Corrupt, message).with_hint("run 'transload gc'"))
            }
        }
    }

    fn try_place(&mut self, id: u64) -> Result<bool> {
        let dir = self.dir.take().expect("held until placed");
        let placed = dir.publish(self.shelf.snapshots.as_fd(), &id.to_string())?;
        self.dir = placed.err();
        Ok(self.dir.is_none())
    }
}

impl Drop for Staged<'_> {
    fn drop(&mut self) {
        if let Some(dir) = self.dir.take() {
            // Best effort: what stays is nobody's, and gc removes it.
            let _ = remove::remove_contents(dir.fd()).and_then(|()| dir.remove());
        }
        if let Some(aside) = self.aside.take() {
            let _ = remove::remove_tree(self.shelf.ingests.as_fd(), &aside);
        }
    }
}

fn write_file(dir: BorrowedFd<'_>, file: &SnapshotFile) -> Result<()> {
    let json = serde_json::to_vec(file)
        .map_err(|error| Error::new(ErrorKind::Internal, format!("snapshot.json: {error}")))?;
    durable::write_atomic(dir, "snapshot.json", &json, false)
}

/// Blocks and inodes below a directory, the directory included; a file of several names counts once.
fn disk_usage(base: BorrowedFd<'_>, place: &[u8]) -> Result<Usage> {
    let mut usage = Usage::default();
    let mut seen = HashSet::new();
    let mut waiting = vec![place.to_vec()];
    let mut count = |stat: &fs::Stat| {
        if stat.st_nlink < 2 || seen.insert(stat.st_ino) {
            usage.inodes += 1;
            usage.bytes += stat.st_blocks as u64 * 512;
        }
    };
    while let Some(path) = waiting.pop() {
        // Something that vanishes under a running container does not count.
        let Some(dir) = beneath::open_dir(base, &path)? else { continue };
        count(&fs::fstat(&dir)?);
        for (name, stat) in beneath::list(dir.as_fd())? {
            match FileType::from_raw_mode(stat.st_mode) {
                FileType::Directory => waiting.push(super::merge::join(&path, &name)),
                _ => count(&stat),
            }
        }
    }
    Ok(usage)
}

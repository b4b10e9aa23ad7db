//! One directory: opened, versioned, locked, leased.
//!
//! [`Store`] is what every verb borrows. Opening it makes the directory if asked to, refuses what a newer release wrote
//! and filesystems that cannot hold a store, and gathers the rooms below: content and metadata. The store is also an OCI
//! image layout; `index.json` is a view of the metadata that [`Store::refresh_index`] brings up to date.
//!
//! Locks order the processes; `docs/ARCHITECTURE.md` lists them, in their order, and says what each race ends in.

pub mod chains;
mod filesystem;
mod format;
pub mod in_use;
mod index_file;
mod lease;
mod lock;
pub mod mounted;
pub(crate) mod reserve;
mod shown;
mod temporary;

pub use crate::tree::WhiteoutForm;
pub use format::{FORMAT_VERSION, IdRange, SnapshotterKind, StoreFormat};
pub use in_use::{InUse, Removal, RemovalOptions, WhenBusy};
pub use index_file::IndexState;
pub use lease::{Lease, LeaseState, PROCESS_LABEL};
pub use lock::{GcLock, lock_alone};

use self::reserve::Reserve;
use crate::content::ContentStore;
use crate::error::{Error, ErrorKind, Result, ResultExt};
use crate::io::durable;
use crate::metadata::{Metadata, OpenMode};
use crate::parallel::{Cancel, Patience, failpoint};
use crate::snapshot::{OverlaySnapshotter, PlainSnapshotter, Snapshotter, Trees};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{self, Mode, OFlags};
use rustix::io::Errno;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// How a store is opened.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StoreOptions {
    /// Make the directory and what is in it where they are missing.
    pub create: bool,
    /// Write nothing, not even where that would be possible. A store on a read-only filesystem is opened so anyway.
    pub read_only: bool,
    /// Which snapshotter a new store uses: by default overlay, or plain where the filesystem cannot do overlay. An
    /// existing store that uses the other one is refused.
    pub snapshotter: Option<SnapshotterKind>,
    /// How a new store marks deletions: by default as the privileges of this process allow. An existing store that
    /// does it otherwise is refused.
    pub whiteouts: Option<WhiteoutForm>,
}

/// An open store.
pub struct Store {
    path: PathBuf,
    /// The same without links, as the mount table would have it.
    real: PathBuf,
    root: OwnedFd,
    format: StoreFormat,
    read_only: bool,
    content: ContentStore,
    metadata: Arc<Metadata>,
    trees: Trees,
    snapshots: Box<dyn Snapshotter>,
    found_foreign: bool,
    found_damaged: bool,
    /// The last to be dropped: the database's files go before, and leave their room to it.
    reserve: Option<Reserve>,
}

/// Directories of a store besides those that [`ContentStore`] makes.
const DIRECTORIES: [&str; 3] = ["trees", "snapshots", "leases"];

impl Store {
    /// Opens the store at `path`.
    ///
    /// [`ErrorKind::NotFound`] if there is none and none is to be made, [`ErrorKind::FailedPrecondition`] for a directory
    /// that holds something else or a store that this process cannot use, [`ErrorKind::NewerFormat`] for a later
    /// release's, [`ErrorKind::Unsupported`] for a filesystem that cannot hold it.
    pub fn open(path: &Path, options: &StoreOptions) -> Result<Store> {
        Self::open_at(path, options).doing(|| format!("cannot open the store {}", path.display()))
    }

    fn open_at(path: &Path, options: &StoreOptions) -> Result<Store> {
        let path = std::path::absolute(path)?;
        let root = open_root(&path, options.create && !options.read_only)?;
        let real = std::fs::canonicalize(&path)?;
        let read_only = options.read_only || !filesystem::is_writable(root.as_fd())?;
        let mut format = match format::read(root.as_fd())? {
            Some(format) => format,
            None if read_only => return Err(format::check_lost(root.as_fd()).err().unwrap_or_else(no_store)),
            None => create(root.as_fd(), options)?,
        };
        format.check_options(options)?;
        filesystem::check(root.as_fd(), format.snapshotter, read_only)?;
        let mut reserve = None;
        if !read_only {
            format.check_process()?;
            reserve = Some(Reserve::open(root.as_fd(), &format)?);
            complete(root.as_fd())?;
        }
        let content = ContentStore::open(root.as_fd())?;
        // Making an empty database where one was lost would forget every image, and all names with the next index.json.
        let mode = match index_file::is_there(root.as_fd()) {
            _ if read_only => OpenMode::Read,
            true => OpenMode::Write,
            false => OpenMode::Create,
        };
        let metadata = Arc::new(Metadata::open(&path, mode)?);
        if !read_only {
            // The database first: a crash in between is made good by the next opening.
            format::upgrade(root.as_fd(), &mut format)?;
        }
        let trees = Trees::open(root.as_fd())?;
        let snapshots = snapshotter(&real, &metadata, &format)?;
        let found = index_file::look(root.as_fd())?;
        // A new store has none yet.
        let found_damaged = found == index_file::Found::Damaged && metadata.generation()? > 0;
        let store = Store {
            path,
            real,
            root,
            format,
            read_only,
            content,
            metadata,
            trees,
            snapshots,
            found_foreign: found == index_file::Found::Foreign,
            found_damaged,
            reserve,
        };
        store.make_room()?;
        store.catch_up()?;
        Ok(store)
    }

    /// What a crash between a transaction and its view left behind is made good. A full disk must not keep anyone from
    /// opening the store to free some of it.
    fn catch_up(&self) -> Result<()> {
        match self.read_only {
            true => Ok(()),
            false => match self.refresh_index() {
                Err(error) if error.kind() == ErrorKind::NoSpace => Ok(()),
                other => other,
            },
        }
    }

    /// For whoever is about to free some space, or writes hardly any: where room is short, gives them what the store keeps for that. Where it is
    /// short no longer, keeps it again.
    pub(crate) fn make_room(&self) -> Result<()> {
        match self.reserve.as_ref().is_some_and(Reserve::look) {
            true => self.metadata.keep_log_small(),
            false => Ok(()),
        }
    }

    /// [`ErrorKind::NoSpace`] where hardly any room is left, for whoever is about to add something.
    pub(crate) fn check_room(&self) -> Result<()> {
        self.reserve.as_ref().map_or(Ok(()), Reserve::check)
    }

    /// The directory, as an absolute path in the words of whoever opened it.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The directory, open.
    pub fn root(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }

    /// What was decided when the store was made.
    pub fn format(&self) -> &StoreFormat {
        &self.format
    }

    /// Whether nothing can be written.
    pub fn is_read_only(&self) -> bool {
        self.read_only
    }

    /// What the store at `path` says of itself, without opening it; `None` where none was made yet.
    pub fn format_at(path: &Path) -> Result<Option<StoreFormat>> {
        format::read(open_root(path, false)?.as_fd())
    }

    /// Makes the `transload.json` of the store at `root` anew where it is lost, and tells whether it was.
    ///
    /// # Errors
    /// [`ErrorKind::Corrupt`] where nothing tells how the store was made.
    pub(crate) fn restore_format(root: BorrowedFd<'_>) -> Result<bool> {
        if !format::is_lost(root)? {
            return Ok(false);
        }
        if fs::fstat(root)?.st_uid != rustix::process::geteuid().as_raw() {
            let message =
                "the store's transload.json is lost, and only its owner can tell what its files' owners mean";
            return Err(
                Error::new(ErrorKind::Permission, message).with_hint("run it as the owner of the store")
            );
        }
        let trees = Trees::open(root)?;
        let (mut form, mut has_snapshots) = (None, false);
        trees.walk(&mut |diff_id| {
            form = form.or_else(|| trees.stat(&diff_id).ok().flatten().map(|record| record.form));
            Ok(())
        })?;
        for entry in fs::Dir::read_from(durable::ensure_dir(root, "snapshots")?)? {
            has_snapshots |= entry?.file_name().to_bytes().first() != Some(&b'.');
        }
        format::restore(root, form, has_snapshots).map(|()| true)
    }

    /// Whether this process could open the store for writing, however it has. Nothing is written to find out.
    ///
    /// # Errors
    /// What [`Store::open`] would refuse it with: [`ErrorKind::FailedPrecondition`] for another user's store,
    /// [`ErrorKind::Unsupported`] for a filesystem that cannot hold it.
    pub fn could_write(&self) -> Result<bool> {
        if !filesystem::is_writable(self.root())? {
            return Ok(false);
        }
        filesystem::check(self.root(), self.format.snapshotter, false)?;
        self.format.check_process().map(|()| true)
    }

    /// [`ErrorKind::Permission`] where this process does not see how deletions are marked in the trees; for verbs that read or
    /// write trees.
    pub fn check_marks(&self) -> Result<()> {
        crate::snapshot::check_visible(self.root(), self.format.whiteouts)
    }

    /// [`ErrorKind::ReadOnly`] where nothing can be written; for verbs that would otherwise fail half-way.
    pub fn check_writable(&self) -> Result<()> {
        match self.read_only {
            false => Ok(()),
            true => {
                let message = format!("the store {} is open for reading only", self.path.display());
                Err(Error::new(ErrorKind::ReadOnly, message))
            }
        }
    }

    /// The blobs.
    pub fn content(&self) -> &ContentStore {
        &self.content
    }

    /// The extracted layers.
    pub fn trees(&self) -> &Trees {
        &self.trees
    }

    /// The snapshots: overlay or plain, as the store was made.
    pub fn snapshotter(&self) -> &dyn Snapshotter {
        self.snapshots.as_ref()
    }

    /// The database.
    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// Takes a lease for the length of some work. What is on it no collection removes, not even one that runs already.
    pub fn lease(&self) -> Result<Lease<'_>> {
        self.lease_cancellable(&Cancel::new())
    }

    /// As [`Store::lease`]; waiting for whoever replaces the database can be cancelled.
    pub fn lease_cancellable<'a>(&self, patience: impl Into<Patience<'a>>) -> Result<Lease<'_>> {
        self.check_writable()?;
        Lease::take(self, patience.into()).doing(|| "cannot take a lease")
    }

    /// Brings `index.json` up to date with the database, unless it is already. Call it after every change of the image
    /// list; of several at once, one writes.
    ///
    /// Nothing is synced: what a power cut takes of a view, the next opening brings back.
    pub fn refresh_index(&self) -> Result<()> {
        index_file::refresh(self.root(), &self.metadata).doing(|| "cannot update index.json")
    }

    /// Runs what changes the image list, and shows what has become of it, also where that ends early.
    pub(crate) fn changing_images<T>(&self, work: impl FnOnce() -> Result<T>) -> Result<T> {
        let done = work();
        let shown = self.refresh_index();
        // The first failure is the one to tell of.
        done.and_then(|value| shown.map(|()| value))
    }

    /// How `index.json` stands to the database, by all of its bytes.
    pub fn index_state(&self) -> Result<IndexState> {
        index_file::state(self.root(), &self.metadata)
    }

    /// Whether the `index.json` that lay there when the store was opened was someone else's. Opening writes it anew.
    pub fn index_found_foreign(&self) -> bool {
        self.found_foreign
    }

    /// Whether `index.json` was missing or damaged when the store was opened, as a power cut leaves it. Opening writes it anew.
    pub fn index_found_damaged(&self) -> bool {
        self.found_damaged
    }

    /// Writes `index.json` anew, whoever wrote what is there.
    pub fn rewrite_index(&self) -> Result<()> {
        index_file::rewrite(self.root(), &self.metadata).doing(|| "cannot write index.json")
    }

    /// A descriptor of the store's filesystem, to be opened before the first write and handed to
    /// [`durable::sync_filesystem`] after the last.
    pub fn sync_handle(&self) -> Result<OwnedFd> {
        durable::open_dir(&self.root, ".")
    }
}

/// The snapshotter that the store was made for.
fn snapshotter(path: &Path, metadata: &Arc<Metadata>, format: &StoreFormat) -> Result<Box<dyn Snapshotter>> {
    let metadata = Arc::clone(metadata);
    Ok(match format.snapshotter {
        SnapshotterKind::Overlay => Box::new(OverlaySnapshotter::open(path, metadata, format.whiteouts)?),
        SnapshotterKind::Plain => {
            let threads = std::thread::available_parallelism().map_or(1, usize::from);
            Box::new(PlainSnapshotter::open(path, metadata, threads)?)
        }
    })
}

fn no_store() -> Error {
    Error::new(ErrorKind::NotFound, "there is no store")
        .with_hint("'transload import' makes one; --store names another directory")
}

fn open_root(path: &Path, create: bool) -> Result<OwnedFd> {
    if create {
        make_directory(path)?;
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    match fs::open(path, flags, Mode::empty()) {
        Err(Errno::NOENT) => Err(no_store()),
        Err(Errno::NOTDIR) => Err(Error::new(ErrorKind::FailedPrecondition, "it is not a directory")),
        other => Ok(other?),
    }
}

/// Parents are nobody's secret, the store is (CVE-2024-25621: setuid binaries within reach).
fn make_directory(path: &Path) -> Result<()> {
    if path.exists() {
        return Ok(());
    }
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent).doing(|| format!("cannot create {}", parent.display()))?;
    }
    match fs::mkdir(path, Mode::from_raw_mode(0o700)) {
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(errno) => Err(errno).doing(|| format!("cannot create {}", path.display())),
    }
}

/// Turns an empty directory into a store, unless another process has just done so.
fn create(root: BorrowedFd<'_>, options: &StoreOptions) -> Result<StoreFormat> {
    let _lock = lock::directory(root)?;
    if let Some(format) = format::read(root)? {
        return Ok(format);
    }
    format::check_lost(root)?;
    if let Some(name) = format::foreign_entry(root)? {
        let message = format!("the directory is not a store and not empty: it holds {name:?}");
        return Err(Error::new(ErrorKind::FailedPrecondition, message)
            .with_hint("choose an empty or a new directory with --store"));
    }
    if !options.create {
        return Err(no_store());
    }
    fs::fchmod(root, Mode::from_raw_mode(0o700)).doing(|| "cannot make the directory private")?;
    let format = StoreFormat::choose(root, options)?;
    filesystem::check(root, format.snapshotter, false)?;
    format::write(root, &format)?;
    Ok(format)
}

/// Makes what a store consists of, where a crash during its creation left some of it out.
fn complete(root: BorrowedFd<'_>) -> Result<()> {
    for name in DIRECTORIES {
        failpoint::at("store.directory")?;
        durable::ensure_dir(root, name)?;
    }
    index_file::ensure_layout(root)
}

#[cfg(test)]
mod tests;

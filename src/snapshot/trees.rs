//! Extracted layers, one directory each, shared by every chain that contains the layer.
//!
//! `trees/<hex of the DiffId>/` holds `fs`, the layer as a directory tree, and `tree.json`, the [`TreeRecord`] of what the
//! tree alone cannot say. A tree is made under `ingest/` by one owner and appears under its name complete, or not at
//! all; from then on it never changes. Whether the bytes had that DiffId is checked by who publishes; whether they have
//! reached the disk is a matter of the sync before the transaction.

use crate::error::{Error, ErrorKind, Result, ResultExt};
use crate::io::{durable, locked::LockedDir, remove};
use crate::oci::{Algorithm, DiffId, Digest};
use crate::parallel::{Cancel, failpoint};
use crate::tree::TreeRecord;
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{self, AtFlags, Dir, Mode, OFlags};
use rustix::io::Errno;
use std::io::Read;
use std::sync::Arc;

/// Whether something was made or found. Both are success.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Committed {
    /// It was made now.
    New,
    /// It was there already.
    Existing,
}

/// A tree's side list is as long as its layer has entries; one that is longer than this was not written by us.
const RECORD_LIMIT_BYTES: u64 = 1 << 30;

/// The extracted layers of one store.
#[derive(Debug)]
pub struct Trees {
    trees: OwnedFd,
    ingests: Arc<OwnedFd>,
}

/// A published tree.
#[derive(Debug)]
pub struct TreeHandle {
    /// The directory that holds the layer.
    pub fs: OwnedFd,
    /// What the directory alone cannot say.
    pub record: TreeRecord,
}

impl Trees {
    /// Opens the trees of the store at `root`, making the directories that are not there.
    pub fn open(root: BorrowedFd<'_>) -> Result<Self> {
        Ok(Trees {
            trees: durable::ensure_dir(root, "trees")?,
            ingests: Arc::new(durable::ensure_dir(root, "ingest")?),
        })
    }

    /// Where the tree of this layer lies, relative to the store's root.
    pub fn relative_path(diff_id: &DiffId) -> String {
        format!("trees/{}/fs", directory(diff_id))
    }

    /// The directory under `ingest/` whose lock belongs to whoever makes or replaces this tree.
    pub fn working_place(diff_id: &DiffId) -> String {
        format!("diff-{}-{}", diff_id.0.algorithm().name(), diff_id.0.hex())
    }

    /// The record of a tree, `None` if it is not there.
    pub fn stat(&self, diff_id: &DiffId) -> Result<Option<TreeRecord>> {
        let read = || -> Result<Option<TreeRecord>> {
            match self.open_entry(diff_id)? {
                Some(dir) => read_record(dir.as_fd(), diff_id).map(Some),
                None => Ok(None),
            }
        };
        read().doing(|| format!("cannot look up tree {diff_id}"))
    }

    /// The user and group that wrote a tree down: those of its files, where the layer's were left out.
    pub fn written_by(&self, diff_id: &DiffId) -> Result<(u32, u32)> {
        let record = format!("{}/tree.json", directory(diff_id));
        let stat = fs::statat(&self.trees, record, AtFlags::SYMLINK_NOFOLLOW)
            .doing(|| format!("cannot look up tree {diff_id}"))?;
        Ok((stat.st_uid, stat.st_gid))
    }

    /// Whether the tree is there, without reading its record.
    pub fn contains(&self, diff_id: &DiffId) -> Result<bool> {
        match fs::statat(&self.trees, directory(diff_id), AtFlags::SYMLINK_NOFOLLOW) {
            Ok(_) => Ok(true),
            Err(Errno::NOENT) => Ok(false),
            Err(errno) => Err(errno).doing(|| format!("cannot look up tree {diff_id}")),
        }
    }

    /// Opens a tree. [`ErrorKind::NotFound`] if it is not there.
    pub fn open_tree(&self, diff_id: &DiffId) -> Result<TreeHandle> {
        let open = || -> Result<TreeHandle> {
            let missing = || Error::new(ErrorKind::NotFound, "it is not in the store");
            let dir = self.open_entry(diff_id)?.ok_or_else(missing)?;
            let record = read_record(dir.as_fd(), diff_id)?;
            Ok(TreeHandle { fs: durable::open_dir(&dir, "fs")?, record })
        };
        open().doing(|| format!("cannot open tree {diff_id}"))
    }

    fn open_entry(&self, diff_id: &DiffId) -> Result<Option<OwnedFd>> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        match fs::openat(&self.trees, directory(diff_id), flags, Mode::empty()) {
            Ok(fd) => Ok(Some(fd)),
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Starts a tree under `key`, waiting while another owner, in whatever process, works on the same key; `on_wait` is
    /// called once before the first wait. What an earlier owner left behind is removed.
    ///
    /// Afterwards look again whether the tree is there: the one who was waited for may have published it.
    pub fn begin(&self, key: &str, cancel: &Cancel, on_wait: &mut dyn FnMut()) -> Result<TreeIngest<'_>> {
        let dir = LockedDir::acquire(&self.ingests, &format!("tree-{key}"), cancel, on_wait)?;
        self.start(dir)
    }

    /// Starts a tree in `ingest/<place>`; `None` while another owner, in whatever process, holds that place.
    pub fn try_begin(&self, place: &str) -> Result<Option<TreeIngest<'_>>> {
        LockedDir::try_acquire(&self.ingests, place)?.map(|dir| self.start(dir)).transpose()
    }

    /// Starts a tree in a working place of its own.
    pub(crate) fn begin_unique(&self) -> Result<TreeIngest<'_>> {
        self.start(LockedDir::fresh(&self.ingests, &format!("tree-{}", durable::unique_name()))?)
    }

    fn start(&self, dir: LockedDir) -> Result<TreeIngest<'_>> {
        let fresh = || -> Result<OwnedFd> {
            remove::remove_contents(dir.fd())?;
            failpoint::at("tree.create")?;
            fs::mkdirat(dir.fd(), "fs", Mode::from_raw_mode(0o755))?;
            let root = durable::open_dir(dir.fd(), "fs")?;
            // Whatever the umask took away.
            fs::fchmod(&root, Mode::from_raw_mode(0o755))?;
            Ok(root)
        };
        let root = fresh().doing(|| format!("cannot begin {}", dir.name()))?;
        Ok(TreeIngest { trees: self, dir: Some(dir), fs: root })
    }

    /// Removes a tree. One that is not there is removed already.
    pub fn remove(&self, diff_id: &DiffId) -> Result<()> {
        let remove = || self.set_aside(diff_id)?.map_or(Ok(()), |aside| self.remove_aside(&aside));
        remove().doing(|| format!("cannot remove tree {diff_id}"))
    }

    /// Takes away a tree's name, so that nobody meets half a tree under it. Gives the one that it has under `ingest/` until
    /// [`Trees::remove_aside`]; `None` if it is not there.
    fn set_aside(&self, diff_id: &DiffId) -> Result<Option<String>> {
        let tombstone = format!("removed-{}", durable::unique_name());
        match fs::renameat(&self.trees, directory(diff_id), &self.ingests, &tombstone) {
            Ok(()) => Ok(Some(tombstone)),
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Removes what was set aside.
    pub(crate) fn remove_aside(&self, aside: &str) -> Result<()> {
        failpoint::at("tree.remove")?;
        remove::remove_tree(self.ingests.as_fd(), aside)
    }

    /// The layer whose tree has this directory; `None` for a name that is none of ours.
    pub fn diff_id_of(directory: &str) -> Option<DiffId> {
        parse_directory(directory)
    }

    /// Shows every tree to `visit`. Trees that come or go meanwhile may or may not be shown.
    pub fn walk(&self, visit: &mut dyn FnMut(DiffId) -> Result<()>) -> Result<()> {
        for entry in Dir::read_from(&self.trees).doing(|| "cannot list trees")? {
            let entry = entry.doing(|| "cannot list trees")?;
            if let Some(diff_id) = entry.file_name().to_str().ok().and_then(parse_directory) {
                visit(diff_id)?;
            }
        }
        Ok(())
    }

    /// Writes the names of the trees to the disk.
    pub fn sync_names(&self) -> Result<()> {
        durable::sync_dir(&self.trees)
    }
}

/// SHA-256 goes by its hex alone; the length tells the other algorithm apart.
fn directory(diff_id: &DiffId) -> String {
    diff_id.0.hex()
}

fn parse_directory(name: &str) -> Option<DiffId> {
    let algorithm = if name.len() == 64 { Algorithm::Sha256 } else { Algorithm::Sha512 };
    Digest::from_parts(algorithm.name(), name).ok().map(DiffId)
}

fn read_record(dir: BorrowedFd<'_>, diff_id: &DiffId) -> Result<TreeRecord> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = std::fs::File::from(fs::openat(dir, "tree.json", flags, Mode::empty())?);
    let mut bytes = Vec::new();
    file.take(RECORD_LIMIT_BYTES).read_to_end(&mut bytes)?;
    let corrupt =
        |message: String| Error::new(ErrorKind::Corrupt, message).with_hint("run 'transload fsck --repair'");
    let record: TreeRecord =
        serde_json::from_slice(&bytes).map_err(|error| corrupt(format!("tree.json: {error}")))?;
    if record.diff_id != Some(*diff_id) {
        return Err(corrupt("tree.json is that of another layer".into()));
    }
    Ok(record)
}

/// A tree that is being made. Dropped unpublished, it is removed.
#[derive(Debug)]
pub struct TreeIngest<'a> {
    trees: &'a Trees,
    dir: Option<LockedDir>,
    fs: OwnedFd,
}

impl TreeIngest<'_> {
    /// The empty directory that becomes the tree.
    pub fn fs(&self) -> BorrowedFd<'_> {
        self.fs.as_fd()
    }

    /// The working place, as a descriptor of its own. Setting its times shows those who wait in other processes that the
    /// owner is alive.
    pub fn place(&self) -> Result<OwnedFd> {
        let dir = self.dir.as_ref().expect("held until published");
        rustix::io::fcntl_dupfd_cloexec(dir.fd(), 3).doing(|| format!("cannot hold ingest/{}", dir.name()))
    }

    /// Gives the tree its name. Whoever calls this has verified that the bytes have the record's DiffId.
    pub fn publish(mut self, record: &TreeRecord) -> Result<Committed> {
        let diff_id = self.seal(record)?;
        self.name(&diff_id).doing(|| format!("cannot publish tree {diff_id}"))
    }

    /// Writes down what the directory alone cannot say, so that only the tree's name is missing. Whoever calls this has
    /// verified that the bytes have the record's DiffId.
    pub(crate) fn seal(&self, record: &TreeRecord) -> Result<DiffId> {
        let unverified = || Error::new(ErrorKind::Internal, "the tree to be published has no DiffId");
        let diff_id = record.diff_id.ok_or_else(unverified)?;
        let json = serde_json::to_vec(record)
            .map_err(|error| Error::new(ErrorKind::Internal, format!("tree.json: {error}")));
        let dir = self.dir.as_ref().expect("held until published");
        // No sync here: one syncfs before the transaction covers all trees of an import.
        json.and_then(|json| durable::write_atomic(dir.fd(), "tree.json", &json, false))
            .doing(|| format!("cannot publish tree {diff_id}"))?;
        Ok(diff_id)
    }

    /// Gives what was sealed its name. What has it is set aside, and to be removed by [`Trees::remove_aside`].
    pub(crate) fn take_name(&mut self, diff_id: &DiffId) -> Result<Option<String>> {
        let mut name = || -> Result<Option<String>> {
            let aside = self.trees.set_aside(diff_id)?;
            match self.name(diff_id)? {
                Committed::New => Ok(aside),
                Committed::Existing => Err(Error::new(ErrorKind::Internal, "another came in between")),
            }
        };
        name().doing(|| format!("cannot publish tree {diff_id}"))
    }

    fn name(&mut self, diff_id: &DiffId) -> Result<Committed> {
        failpoint::at("tree.publish")?;
        let dir = self.dir.take().expect("held until published");
        match dir.publish(self.trees.trees.as_fd(), &directory(diff_id))? {
            Ok(_) => Ok(Committed::New),
            Err(ours) => {
                self.dir = Some(ours);
                Ok(Committed::Existing)
            }
        }
    }
}

impl Drop for TreeIngest<'_> {
    fn drop(&mut self) {
        if let Some(dir) = self.dir.take() {
            // Best effort: what stays is removed by the next owner of the key, or by gc.
            let _ = remove::remove_contents(dir.fd()).and_then(|()| dir.remove());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::WhiteoutForm;

    fn store() -> (tempfile::TempDir, Trees) {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let root = fs::open(dir.path(), OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).expect("opens");
        let trees = Trees::open(root.as_fd()).expect("opens");
        (dir, trees)
    }

    fn record(name: &str) -> (DiffId, TreeRecord) {
        let diff_id = DiffId(Digest::of(name.as_bytes()));
        (diff_id, TreeRecord { diff_id: Some(diff_id), ..TreeRecord::new(WhiteoutForm::Trusted) })
    }

    fn begin<'a>(trees: &'a Trees, key: &str) -> TreeIngest<'a> {
        trees.begin(key, &Cancel::new(), &mut || {}).expect("begins")
    }

    #[test]
    fn a_tree_appears_complete_or_not_at_all() {
        let (dir, trees) = store();
        let (diff_id, record) = record("a");
        let ingest = begin(&trees, "a");
        fs::mkdirat(ingest.fs(), "etc", Mode::RWXU).expect("makes");
        drop(ingest);
        assert!(trees.stat(&diff_id).expect("looks").is_none());
        assert_eq!(std::fs::read_dir(dir.path().join("ingest")).expect("lists").count(), 0);
        let ingest = begin(&trees, "a");
        assert!(fs::statat(ingest.fs(), "etc", AtFlags::empty()).is_err(), "starts afresh");
        fs::mkdirat(ingest.fs(), "usr", Mode::RWXU).expect("makes");
        assert_eq!(ingest.publish(&record).expect("publishes"), Committed::New);
        let handle = trees.open_tree(&diff_id).expect("opens");
        assert_eq!(handle.record, record);
        assert!(fs::statat(&handle.fs, "usr", AtFlags::empty()).is_ok());
    }

    #[test]
    fn publishing_twice_and_removing_twice_both_succeed() {
        let (dir, trees) = store();
        let (diff_id, record) = record("a");
        assert_eq!(begin(&trees, "1").publish(&record).expect("publishes"), Committed::New);
        assert_eq!(begin(&trees, "2").publish(&record).expect("publishes"), Committed::Existing);
        let mut seen = Vec::new();
        let mut visit = |diff_id| {
            seen.push(diff_id);
            Ok(())
        };
        trees.walk(&mut visit).expect("walks");
        assert_eq!(seen, [diff_id]);
        trees.remove(&diff_id).expect("removes");
        trees.remove(&diff_id).expect("removes");
        assert!(!trees.contains(&diff_id).expect("looks"));
        assert_eq!(std::fs::read_dir(dir.path().join("ingest")).expect("lists").count(), 0);
    }
}

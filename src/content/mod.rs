//! The content store: blobs by digest, which appear complete and verified or not at all.
//!
//! On disk it is the `blobs/` half of an OCI image layout. A blob is written in `ingest/<ref>/data` under that
//! directory's lock, checked, synced and renamed to `blobs/<algorithm>/<hex>`, read-only; from then on it never changes.
//! Who holds a blob, and for how long, is a matter of leases and of `metadata`, not of this room.

mod ingest;

pub use ingest::{BlobIngest, Committed, HEAD_BYTES, IngestRef, IngestStatus};

use crate::error::{Error, ErrorKind, Result, ResultExt};
use crate::io::{durable, locked::LockedDir};
use crate::oci::{Algorithm, Digest};
use crate::parallel::failpoint;
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{self, AtFlags, Mode, OFlags};
use rustix::io::Errno;
use std::fs::File;
use std::io::{self, Read};
use std::sync::Arc;

/// The blobs of one store, and the ingests that lead to them.
#[derive(Debug)]
pub struct ContentStore {
    sha256: OwnedFd,
    sha512: OwnedFd,
    ingests: Arc<OwnedFd>,
}

impl ContentStore {
    /// Opens the content of the store at `root`, making the directories that are not there.
    pub fn open(root: BorrowedFd<'_>) -> Result<Self> {
        let blobs = durable::ensure_dir(root, "blobs")?;
        Ok(ContentStore {
            sha256: durable::ensure_dir(&blobs, Algorithm::Sha256.name())?,
            sha512: durable::ensure_dir(&blobs, Algorithm::Sha512.name())?,
            ingests: Arc::new(durable::ensure_dir(root, "ingest")?),
        })
    }

    fn dir(&self, algorithm: Algorithm) -> BorrowedFd<'_> {
        match algorithm {
            Algorithm::Sha256 => self.sha256.as_fd(),
            Algorithm::Sha512 => self.sha512.as_fd(),
        }
    }

    /// The directory that ingests live in.
    pub fn ingests(&self) -> &Arc<OwnedFd> {
        &self.ingests
    }

    /// The size of a blob in bytes, `None` if it is not there.
    pub fn stat(&self, digest: &Digest) -> Result<Option<u64>> {
        match fs::statat(self.dir(digest.algorithm()), digest.hex(), AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(stat.st_size as u64)),
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(errno).doing(|| format!("cannot look up blob {digest}")),
        }
    }

    /// Opens a blob for reading. Readers do not disturb a delete, nor each other.
    pub fn open_blob(&self, digest: &Digest) -> Result<Blob> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let open = || -> Result<Blob> {
            let fd = fs::openat(self.dir(digest.algorithm()), digest.hex(), flags, Mode::empty())?;
            let size_bytes = fs::fstat(&fd)?.st_size as u64;
            Ok(Blob { file: Arc::new(File::from(fd)), size_bytes, offset: 0 })
        };
        open().doing(|| format!("cannot open blob {digest}"))
    }

    /// The bytes of a small blob; more than `limit_bytes` is an error. The digest is checked.
    pub fn read_document(&self, digest: &Digest, limit_bytes: u64) -> Result<Vec<u8>> {
        let read = || -> Result<Vec<u8>> {
            let blob = self.open_blob(digest)?;
            if blob.size_bytes() > limit_bytes {
                return Err(Error::limit(format!(
                    "{} bytes, at most {limit_bytes} are read",
                    blob.size_bytes()
                )));
            }
            let mut bytes = Vec::with_capacity(blob.size_bytes() as usize);
            blob.take(limit_bytes + 1).read_to_end(&mut bytes)?;
            let mut digester = crate::io::digesting::Digester::new(digest.algorithm());
            digester.update(&bytes);
            let actual = digester.finish();
            if actual != *digest {
                return Err(Error::new(
                    ErrorKind::Corrupt,
                    format!("the bytes on disk have the digest {actual}"),
                )
                .with_mismatch(digest, actual)
                .with_hint("run 'transload fsck --repair', then import the image again"));
            }
            Ok(bytes)
        };
        read().doing(|| format!("cannot read blob {digest}"))
    }

    /// Starts writing under `reference`. [`ErrorKind::Busy`] at once if another writes under the same one; what an
    /// earlier writer left there is dropped.
    pub fn begin(&self, reference: &IngestRef, algorithm: Algorithm) -> Result<BlobIngest> {
        match LockedDir::try_acquire(&self.ingests, reference.name())? {
            Some(dir) => BlobIngest::start(dir, algorithm),
            None => Err(Error::new(ErrorKind::Busy, format!("someone else is writing {}", reference.name()))),
        }
    }

    /// Starts writing bytes that nobody has announced.
    pub(crate) fn begin_unique(&self, algorithm: Algorithm) -> Result<BlobIngest> {
        BlobIngest::start(LockedDir::fresh(&self.ingests, IngestRef::unique().name())?, algorithm)
    }

    /// Writes a small document as a blob. Putting twice is fine.
    pub fn put_document(&self, bytes: &[u8], sync: bool) -> Result<Committed> {
        let digest = Digest::of(bytes);
        if self.stat(&digest)? == Some(bytes.len() as u64) {
            return Ok(Committed::Existing(digest, bytes.len() as u64));
        }
        let mut ingest = self.begin_unique(Algorithm::Sha256)?;
        ingest.write(bytes)?;
        ingest.commit(self, Some(bytes.len() as u64), Some(&digest), sync)
    }

    /// The directory that a blob lies in, and its name there; whether it is there or not.
    pub(crate) fn place(&self, digest: &Digest) -> (BorrowedFd<'_>, String) {
        (self.dir(digest.algorithm()), digest.hex())
    }

    /// Removes a blob; one that is not there is fine. The caller holds what must be held (see `upkeep/gc`).
    pub fn remove(&self, digest: &Digest) -> Result<()> {
        match fs::unlinkat(self.dir(digest.algorithm()), digest.hex(), AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(errno) => Err(errno).doing(|| format!("cannot remove blob {digest}")),
        }
    }

    /// Calls `visit` for every blob, in no particular order. Names that are not digests are passed over.
    pub fn walk(&self, visit: &mut dyn FnMut(Digest, u64) -> Result<()>) -> Result<()> {
        for algorithm in [Algorithm::Sha256, Algorithm::Sha512] {
            let entries = fs::Dir::read_from(self.dir(algorithm)).doing(|| "cannot list the blobs")?;
            for entry in entries {
                let entry = entry.doing(|| "cannot list the blobs")?;
                let Ok(hex) = entry.file_name().to_str() else { continue };
                let Ok(digest) = Digest::from_parts(algorithm.name(), hex) else { continue };
                if let Some(size) = self.stat(&digest)? {
                    visit(digest, size)?;
                }
            }
        }
        Ok(())
    }

    /// Writes the names of all blobs to the disk.
    pub fn sync_names(&self) -> Result<()> {
        durable::sync_dir(&self.sha256)?;
        durable::sync_dir(&self.sha512)
    }
}

/// An open blob: `Read` from its own position, and [`Blob::read_at`] from anywhere.
#[derive(Debug, Clone)]
pub struct Blob {
    file: Arc<File>,
    size_bytes: u64,
    offset: u64,
}

impl Blob {
    /// The size in bytes.
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// Reads at `offset` without moving the position.
    pub fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        std::os::unix::fs::FileExt::read_at(&*self.file, buffer, offset)
    }
}

impl Read for Blob {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.read_at(failpoint::shorten("blob.read", buffer)?, self.offset)?;
        self.offset += count as u64;
        Ok(count)
    }
}

//! One blob being written: hashed as it passes, checked, synced, and only then named.

use super::ContentStore;
use crate::error::{Error, ErrorKind, Result, ResultExt};
use crate::io::{digesting::Digester, durable, locked::LockedDir};
use crate::oci::{Algorithm, Digest};
use crate::parallel::failpoint;
use rustix::fs::{self, AtFlags, Mode, OFlags};
use rustix::io::Errno;
use std::fs::File;
use std::io::Write;

/// How many leading bytes of a blob identify a candidate among those of equal size (see DESIGN, Once only).
pub const HEAD_BYTES: u64 = 64 << 10;

/// How often written pages are handed to the disk early, in bytes, so that the final sync finds little to do.
const WRITE_BEHIND_BYTES: u64 = 8 << 20;

/// The name of an ingest: unique to what is being written.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct IngestRef(String);

impl IngestRef {
    /// The one ingest of a blob whose digest is announced; everyone who writes that blob uses it.
    pub fn blob(digest: &Digest) -> Self {
        IngestRef(format!("blob-{}-{}", digest.algorithm().name(), digest.hex()))
    }

    /// An ingest of bytes that nobody has announced.
    pub fn unique() -> Self {
        IngestRef(format!("blob-{}", durable::unique_name()))
    }

    /// The directory name under `ingest/`.
    pub fn name(&self) -> &str {
        &self.0
    }
}

/// What a commit found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Committed {
    /// The blob was not there before.
    New(Digest, u64),
    /// The blob was there; what was written is gone.
    Existing(Digest, u64),
}

impl Committed {
    /// The digest of the bytes.
    pub fn digest(&self) -> Digest {
        match self {
            Committed::New(digest, _) | Committed::Existing(digest, _) => *digest,
        }
    }

    /// The number of bytes.
    pub fn size_bytes(&self) -> u64 {
        match self {
            Committed::New(_, size) | Committed::Existing(_, size) => *size,
        }
    }
}

/// How far an ingest is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IngestStatus {
    /// The name of the ingest.
    pub reference: IngestRef,
    /// Bytes written so far.
    pub offset: u64,
}

/// A blob being written. Dropped without a commit, it removes itself.
pub struct BlobIngest {
    dir: Option<LockedDir>,
    file: File,
    digester: Digester,
    offset: u64,
    head: Option<Digest>,
    written_behind: u64,
    /// The size of a file whose blocks this one shares.
    cloned_bytes: Option<u64>,
}

const DATA: &str = "data";

impl BlobIngest {
    /// Starts afresh in a locked directory.
    pub(crate) fn start(dir: LockedDir, algorithm: Algorithm) -> Result<Self> {
        failpoint::at("blob.create").doing(|| format!("cannot write ingest/{}", dir.name()))?;
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::TRUNC | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = fs::openat(dir.fd(), DATA, flags, Mode::from_raw_mode(0o600))
            .doing(|| format!("cannot write ingest/{}", dir.name()))?;
        let digester = Digester::new(algorithm);
        Ok(BlobIngest {
            dir: Some(dir),
            file: File::from(file),
            digester,
            offset: 0,
            head: None,
            written_behind: 0,
            cloned_bytes: None,
        })
    }

    fn name(&self) -> &str {
        self.dir.as_ref().map_or("", LockedDir::name)
    }

    /// Takes over all of `source` by sharing its blocks (ioctl_ficlone(2)), where the filesystem can and nothing has been
    /// written yet. Gives a reader of the shared bytes: they stay as they are now, whatever becomes of `source`. Each of them
    /// must pass through [`BlobIngest::write`] all the same, which hashes it and no longer writes.
    pub fn clone_from(&mut self, source: &File) -> Result<Option<File>> {
        if self.offset > 0 || fs::ioctl_ficlone(&self.file, source).is_err() {
            return Ok(None);
        }
        // A descriptor with a position of its own.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let dir = self.dir.as_ref().ok_or_else(over)?;
        let reader = fs::openat(dir.fd(), DATA, flags, Mode::empty())
            .doing(|| format!("cannot read ingest/{}", dir.name()))?;
        self.cloned_bytes = Some(self.file.metadata()?.len());
        Ok(Some(File::from(reader)))
    }

    /// Whether the blocks are shared with another file, so that nothing was written.
    pub fn is_clone(&self) -> bool {
        self.cloned_bytes.is_some()
    }

    /// Appends bytes.
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.hash(bytes);
        if self.is_clone() {
            self.offset += bytes.len() as u64;
            return Ok(());
        }
        let written = failpoint::at("blob.write").and_then(|()| self.file.write_all(bytes));
        written.doing(|| format!("cannot write ingest/{}", self.name()))?;
        self.offset += bytes.len() as u64;
        if self.offset - self.written_behind >= WRITE_BEHIND_BYTES {
            self.write_behind();
        }
        Ok(())
    }

    fn hash(&mut self, bytes: &[u8]) {
        let missing = HEAD_BYTES.saturating_sub(self.offset) as usize;
        if self.offset < HEAD_BYTES && bytes.len() >= missing {
            self.digester.update(&bytes[..missing]);
            self.head = Some(self.digester.clone().finish());
            self.digester.update(&bytes[missing..]);
        } else {
            self.digester.update(bytes);
        }
    }

    /// Starts write-back of what has been written; a hint only, errors surface at the sync.
    fn write_behind(&mut self) {
        use std::os::fd::AsRawFd;
        let (from, count) = (self.written_behind as i64, (self.offset - self.written_behind) as i64);
        // SAFETY: a plain system call on a descriptor that we own; it touches no memory of ours.
        unsafe { libc::sync_file_range(self.file.as_raw_fd(), from, count, libc::SYNC_FILE_RANGE_WRITE) };
        self.written_behind = self.offset;
    }

    /// How far the writing is.
    pub fn status(&self) -> IngestStatus {
        IngestStatus { reference: IngestRef(self.name().to_string()), offset: self.offset }
    }

    /// Throws away what was written and starts again at offset 0.
    pub fn restart(&mut self) -> Result<()> {
        let algorithm = match self.digester {
            Digester::Sha256(_) => Algorithm::Sha256,
            Digester::Sha512(_) => Algorithm::Sha512,
        };
        fs::ftruncate(&self.file, 0).doing(|| format!("cannot truncate ingest/{}", self.name()))?;
        std::io::Seek::rewind(&mut self.file).doing(|| format!("cannot rewind ingest/{}", self.name()))?;
        (self.offset, self.written_behind, self.head, self.cloned_bytes) = (0, 0, None, None);
        self.digester = Digester::new(algorithm);
        Ok(())
    }

    /// The digest of the first 64 KiB, or of all if there are fewer.
    pub fn head(&self) -> Digest {
        self.head.unwrap_or_else(|| self.digester.clone().finish())
    }

    /// The digest of what has been written so far.
    pub fn digest(&self) -> Digest {
        self.digester.clone().finish()
    }

    /// Whether the digest is a SHA-256.
    pub fn is_sha256(&self) -> bool {
        matches!(self.digester, Digester::Sha256(_))
    }

    /// Checks size, then digest, and publishes. On a mismatch the ingest stays usable and keeps its data.
    ///
    /// The ingest's lock is held until the ingest is dropped: who waits for it in another process must find the blob
    /// recorded when it gets the lock, so record first and drop second.
    pub fn commit(
        &mut self,
        content: &ContentStore,
        expected_bytes: Option<u64>,
        expected: Option<&Digest>,
        sync: bool,
    ) -> Result<Committed> {
        let digest = self.digest();
        let commit = || -> Result<Committed> {
            self.check(expected_bytes, expected, &digest)?;
            let dir = self.sync(sync)?;
            failpoint::at("blob.publish")?;
            match durable::publish(dir.fd(), DATA, content.dir(digest.algorithm()), &digest.hex())? {
                true => Ok(Committed::New(digest, self.offset)),
                false => Ok(Committed::Existing(digest, self.offset)),
            }
        };
        commit().doing(|| format!("cannot publish blob {}", expected.unwrap_or(&digest)))
    }

    /// Checks and syncs what was written, so that only its name is missing.
    pub(crate) fn seal(&self, expected: Option<&Digest>, sync: bool) -> Result<Digest> {
        let digest = self.digest();
        let seal = || self.check(None, expected, &digest).and_then(|()| self.sync(sync).map(drop));
        seal().doing(|| format!("cannot publish blob {}", expected.unwrap_or(&digest)))?;
        Ok(digest)
    }

    /// Gives what was sealed its name, and takes it at once from whatever has it.
    pub(crate) fn take_name(&self, content: &ContentStore, digest: &Digest) -> Result<()> {
        let name = || -> Result<()> {
            failpoint::at("blob.publish")?;
            let dir = self.dir.as_ref().ok_or_else(over)?;
            Ok(fs::renameat(dir.fd(), DATA, content.dir(digest.algorithm()), digest.hex())?)
        };
        name().doing(|| format!("cannot publish blob {digest}"))
    }

    fn check(&self, expected_bytes: Option<u64>, expected: Option<&Digest>, actual: &Digest) -> Result<()> {
        if let Some(size) = expected_bytes.filter(|size| *size != self.offset) {
            let message = format!("it has {} bytes, its descriptor says {size}", self.offset);
            return Err(Error::new(ErrorKind::SizeMismatch, message).with_mismatch(size, self.offset));
        }
        if let Some(size) = self.cloned_bytes.filter(|size| *size != self.offset) {
            let message = format!("{} of the {size} bytes that it shares were read", self.offset);
            return Err(Error::new(ErrorKind::SizeMismatch, message).with_mismatch(size, self.offset));
        }
        if let Some(expected) = expected.filter(|expected| *expected != actual) {
            let message = format!("the bytes have the digest {actual}");
            return Err(Error::new(ErrorKind::DigestMismatch, message).with_mismatch(expected, actual));
        }
        Ok(())
    }

    fn sync(&self, sync: bool) -> Result<&LockedDir> {
        let dir = self.dir.as_ref().ok_or_else(over)?;
        // Readable by the owner alone: whoever may read blobs may enter the store, and that is 0700.
        fs::fchmod(&self.file, Mode::from_raw_mode(0o400))?;
        if sync && failpoint::sync("blob.sync")? {
            durable::sync_data(&self.file)?;
        }
        Ok(dir)
    }

    /// Removes the working place.
    fn finish(&mut self) {
        if let Some(dir) = self.dir.take() {
            // Nothing depends on it; what is left of a failure here is swept by gc.
            match fs::unlinkat(dir.fd(), DATA, AtFlags::empty()) {
                Ok(()) | Err(Errno::NOENT) => drop(dir.remove()),
                Err(_) => {}
            }
        }
    }
}

fn over() -> Error {
    Error::new(ErrorKind::FailedPrecondition, "the ingest is over")
}

impl Drop for BlobIngest {
    fn drop(&mut self) {
        self.finish();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fd::AsFd;
    use std::io::Read;

    fn store() -> (tempfile::TempDir, ContentStore) {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let fd = fs::open(dir.path(), OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).expect("opens");
        let content = ContentStore::open(fd.as_fd()).expect("opens");
        (dir, content)
    }

    #[test]
    fn a_blob_is_invisible_until_it_is_complete_and_no_ingest_afterwards() {
        let (dir, content) = store();
        let digest = Digest::of(b"hello");
        let mut ingest = content.begin(&IngestRef::blob(&digest), Algorithm::Sha256).expect("begins");
        ingest.write(b"hel").expect("writes");
        assert_eq!(content.stat(&digest).expect("stats"), None);
        let busy = content.begin(&IngestRef::blob(&digest), Algorithm::Sha256).err().map(|e| e.kind());
        assert_eq!(busy, Some(ErrorKind::Busy));
        ingest.write(b"lo").expect("writes");
        let committed = ingest.commit(&content, Some(5), Some(&digest), true).expect("commits");
        assert_eq!(committed, Committed::New(digest, 5));
        drop(ingest);
        assert_eq!(content.read_document(&digest, 100).expect("reads"), b"hello");
        assert_eq!(std::fs::read_dir(dir.path().join("ingest")).expect("lists").count(), 0);
    }

    #[test]
    fn a_mismatch_keeps_the_ingest_and_its_data() {
        let (_dir, content) = store();
        let digest = Digest::of(b"hello");
        let mut ingest = content.begin(&IngestRef::blob(&digest), Algorithm::Sha256).expect("begins");
        ingest.write(b"hell").expect("writes");
        let kind = |result: Result<Committed>| result.expect_err("refused").kind();
        assert_eq!(kind(ingest.commit(&content, Some(5), Some(&digest), true)), ErrorKind::SizeMismatch);
        assert_eq!(kind(ingest.commit(&content, None, Some(&digest), true)), ErrorKind::DigestMismatch);
        ingest.write(b"o").expect("writes");
        assert_eq!(ingest.commit(&content, None, Some(&digest), true).expect("commits").digest(), digest);
    }

    #[test]
    fn putting_twice_and_removing_twice_succeed() {
        let (dir, content) = store();
        let digest = Digest::of(b"{}");
        assert_eq!(content.put_document(b"{}", true).expect("puts"), Committed::New(digest, 2));
        assert_eq!(content.put_document(b"{}", true).expect("puts"), Committed::Existing(digest, 2));
        let mut other = content.begin(&IngestRef::unique(), Algorithm::Sha256).expect("begins");
        other.write(b"{}").expect("writes");
        assert_eq!(
            other.commit(&content, None, None, true).expect("commits"),
            Committed::Existing(digest, 2)
        );
        drop(other);
        assert_eq!(std::fs::read_dir(dir.path().join("ingest")).expect("lists").count(), 0);
        let mut reader = content.open_blob(&digest).expect("opens");
        content.remove(&digest).expect("removes");
        content.remove(&digest).expect("removes");
        let mut text = String::new();
        reader.read_to_string(&mut text).expect("a reader survives the delete");
        assert_eq!(text, "{}");
    }

    #[test]
    fn the_head_is_that_of_the_first_64_kib_however_it_arrives() {
        let (_dir, content) = store();
        let bytes: Vec<u8> = (0..200_000u32).map(|i| i as u8).collect();
        let mut ingest = content.begin(&IngestRef::unique(), Algorithm::Sha256).expect("begins");
        for chunk in bytes.chunks(7777) {
            ingest.write(chunk).expect("writes");
        }
        assert_eq!(ingest.head(), Digest::of(&bytes[..HEAD_BYTES as usize]));
        assert_eq!(ingest.commit(&content, None, None, false).expect("commits").digest(), Digest::of(&bytes));
    }

    #[test]
    fn sha512_is_as_good_as_sha256() {
        let (_dir, content) = store();
        let mut ingest = content.begin(&IngestRef::unique(), Algorithm::Sha512).expect("begins");
        ingest.write(b"x").expect("writes");
        let digest = ingest.commit(&content, None, None, false).expect("commits").digest();
        assert_eq!(digest.algorithm(), Algorithm::Sha512);
        assert_eq!(content.read_document(&digest, 9).expect("reads"), b"x");
    }
}

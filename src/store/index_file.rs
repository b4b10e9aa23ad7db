//! `oci-layout` and `index.json`, which let others read the store as an OCI image layout (image-spec
//! `image-layout.md`).

use super::lock;
use crate::error::{Error, ErrorKind, Result, ResultExt};
use crate::io::durable;
use crate::metadata::{GENERATION, Metadata};
use crate::oci::Index;
use rustix::fd::BorrowedFd;
use rustix::fs::{self, AtFlags, Mode, OFlags};
use rustix::io::Errno;
use std::fs::File;
use std::os::unix::fs::FileExt;

const LAYOUT: &str = "oci-layout";
const INDEX: &str = "index.json";

/// Our own writer puts the annotations last, so the generation stands within the last bytes.
const TAIL_BYTES: u64 = 256;

/// A hundred thousand images take a tenth of it.
const INDEX_LIMIT_BYTES: u64 = 1 << 30;

pub(super) fn ensure_layout(root: BorrowedFd<'_>) -> Result<()> {
    match fs::statat(root, LAYOUT, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(_) => Ok(()),
        Err(Errno::NOENT) => {
            let _lock = lock::index(root)?;
            durable::write_atomic(root, LAYOUT, b"{\"imageLayoutVersion\":\"1.0.0\"}\n", true)
        }
        Err(errno) => Err(errno).doing(|| format!("cannot look at {LAYOUT}")),
    }
}

/// Writes the view unless it shows the database's state already. The second look is under the lock, so of many that
/// come at once the first writes for all.
pub(super) fn refresh(root: BorrowedFd<'_>, metadata: &Metadata) -> Result<()> {
    if written_generation(root)? == Some(metadata.generation()?) {
        return Ok(());
    }
    let _lock = lock::index(root)?;
    let (generation, index) = metadata.index_view()?;
    if written_generation(root)? == Some(generation) {
        return Ok(());
    }
    durable::write_atomic(root, INDEX, &to_json(&index)?, false)
}

/// How `index.json` stands to the database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IndexState {
    /// It shows the database's state.
    Ours,
    /// It is missing, or shows an earlier state.
    Behind,
    /// Someone else has written it.
    Foreign,
}

/// Whether there is a file at all; only an open database ever made one.
pub(super) fn is_there(root: BorrowedFd<'_>) -> bool {
    fs::statat(root, INDEX, AtFlags::SYMLINK_NOFOLLOW).is_ok()
}

/// Whether there is a file that is not ours: a cheap look at the end of one that is.
pub(super) fn is_foreign(root: BorrowedFd<'_>) -> Result<bool> {
    if written_generation(root)?.is_some() {
        return Ok(false);
    }
    // Half a file is what a power cut leaves of ours, which nobody synced.
    let whole = |json: Vec<u8>| serde_json::from_slice::<serde::de::IgnoredAny>(&json).is_ok();
    Ok(read(root)?.is_some_and(whole))
}

/// Holds the whole file against the database.
pub(super) fn state(root: BorrowedFd<'_>, metadata: &Metadata) -> Result<IndexState> {
    let (generation, index) = metadata.index_view()?;
    if is_foreign(root)? {
        return Ok(IndexState::Foreign);
    }
    match written_generation(root)? {
        Some(written) if written == generation => {}
        Some(written) if written > generation && metadata.generation()? < written => {
            return Ok(IndexState::Foreign);
        }
        _ => return Ok(IndexState::Behind),
    }
    let expected = to_json(&index)?;
    Ok(match read(root)? {
        Some(found) if found == expected => IndexState::Ours,
        // Written between our two looks.
        Some(_) if metadata.generation()? != generation => IndexState::Behind,
        Some(_) => IndexState::Foreign,
        None => IndexState::Behind,
    })
}

/// Writes the view whatever is there.
pub(super) fn rewrite(root: BorrowedFd<'_>, metadata: &Metadata) -> Result<()> {
    let _lock = lock::index(root)?;
    durable::write_atomic(root, INDEX, &to_json(&metadata.index_view()?.1)?, false)
}

fn to_json(index: &Index) -> Result<Vec<u8>> {
    serde_json::to_vec(index).map_err(|error| Error::new(ErrorKind::Internal, error.to_string()))
}

fn read(root: BorrowedFd<'_>) -> Result<Option<Vec<u8>>> {
    use std::io::Read;
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = match fs::openat(root, INDEX, flags, Mode::empty()) {
        Ok(fd) => File::from(fd),
        Err(Errno::NOENT) => return Ok(None),
        Err(errno) => return Err(errno).doing(|| format!("cannot read {INDEX}")),
    };
    let mut json = Vec::new();
    file.take(INDEX_LIMIT_BYTES).read_to_end(&mut json).doing(|| format!("cannot read {INDEX}"))?;
    Ok(Some(json))
}

/// The generation that the file shows; `None` for a file that is missing, damaged or someone else's.
fn written_generation(root: BorrowedFd<'_>) -> Result<Option<u64>> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = match fs::openat(root, INDEX, flags, Mode::empty()) {
        Ok(fd) => File::from(fd),
        Err(Errno::NOENT) => return Ok(None),
        Err(errno) => return Err(errno).doing(|| format!("cannot read {INDEX}")),
    };
    let size = file.metadata()?.len();
    let mut tail = vec![0; size.min(TAIL_BYTES) as usize];
    let offset = size - tail.len() as u64;
    match file.read_exact_at(&mut tail, offset) {
        Ok(()) => Ok(generation_in(&String::from_utf8_lossy(&tail))),
        Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => Ok(None),
        Err(error) => Err(error).doing(|| format!("cannot read {INDEX}")),
    }
}

fn generation_in(tail: &str) -> Option<u64> {
    let (_, rest) = tail.rsplit_once(&format!("\"annotations\":{{\"{GENERATION}\":\""))?;
    rest.strip_suffix("\"}}")?.parse().ok()
}

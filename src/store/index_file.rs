//! `oci-layout` and `index.json`, which let others read the store as an OCI image layout (image-spec
//! `image-layout.md`).

use super::lock;
use crate::error::{Error, ErrorKind, Result, ResultExt};
use crate::io::durable;
use crate::metadata::{GENERATION, Metadata};
use rustix::fd::BorrowedFd;
use rustix::fs::{self, AtFlags, Mode, OFlags};
use rustix::io::Errno;
use std::fs::File;
use std::os::unix::fs::FileExt;

const LAYOUT: &str = "oci-layout";
const INDEX: &str = "index.json";

/// Our own writer puts the annotations last, so the generation stands within the last bytes.
const TAIL_BYTES: u64 = 256;

pub(super) fn ensure_layout(root: BorrowedFd<'_>) -> Result<()> {
    match fs::statat(root, LAYOUT, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(_) => Ok(()),
        Err(Errno::NOENT) => {
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
    let json =
        serde_json::to_vec(&index).map_err(|error| Error::new(ErrorKind::Internal, error.to_string()))?;
    durable::write_atomic(root, INDEX, &json, false)
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

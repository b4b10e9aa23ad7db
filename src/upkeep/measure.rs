//! What directories occupy, looked at by descriptor and never following a link.

use crate::error::{Result, ResultExt};
use rustix::fd::{AsFd, BorrowedFd};
use rustix::fs::{self, AtFlags, FileType, Mode, OFlags};
use rustix::io::Errno;
use std::collections::HashSet;
use std::ffi::CString;

/// What a directory occupies, itself included.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Occupied {
    pub(super) bytes: u64,
    pub(super) inodes: u64,
}

/// The unit of `st_blocks`, whatever the filesystem's own block size is.
const BLOCK_BYTES: u64 = 512;

/// Deeper than this nothing is counted: no archive gets there (see `Limits`), and each level holds a descriptor.
const MAX_DEPTH: usize = 400;

/// The names in a directory, without the two dots. Read to the end first, so that removing does not disturb the list.
pub(super) fn names(dir: impl AsFd) -> Result<Vec<CString>> {
    let mut names = Vec::new();
    for entry in fs::Dir::read_from(dir).doing(|| "cannot list a directory")? {
        let entry = entry.doing(|| "cannot list a directory")?;
        if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
            names.push(entry.file_name().to_owned());
        }
    }
    Ok(names)
}

/// `12.3 MB`.
pub(super) fn size(bytes: u64) -> String {
    const UNITS: [&str; 4] = ["kB", "MB", "GB", "TB"];
    let (mut value, mut unit) = (bytes as f64, "B");
    for next in UNITS {
        if value < 999.95 {
            break;
        }
        (value, unit) = (value / 1000.0, next);
    }
    if unit == "B" { format!("{bytes} B") } else { format!("{value:.1} {unit}") }
}

/// What `name` occupies; nothing if it is gone. Files with several names count once.
pub(super) fn measure(parent: BorrowedFd<'_>, name: &str) -> Result<Occupied> {
    let Ok(name) = CString::new(name) else { return Ok(Occupied::default()) };
    let mut measure = Measure::default();
    measure.walk(parent, &name, 0)?;
    Ok(measure.occupied)
}

#[derive(Default)]
struct Measure {
    occupied: Occupied,
    linked: HashSet<(u64, u64)>,
}

impl Measure {
    fn walk(&mut self, parent: BorrowedFd<'_>, name: &CString, depth: usize) -> Result<()> {
        let stat = match fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            Err(Errno::NOENT) => return Ok(()),
            Err(errno) => return Err(errno.into()),
        };
        let is_dir = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
        if is_dir || stat.st_nlink < 2 || self.linked.insert((stat.st_dev, stat.st_ino)) {
            self.occupied.bytes += stat.st_blocks as u64 * BLOCK_BYTES;
            self.occupied.inodes += 1;
        }
        if !is_dir || depth == MAX_DEPTH {
            return Ok(());
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let dir = match fs::openat(parent, name, flags, Mode::empty()) {
            Ok(dir) => dir,
            // Gone meanwhile, or closed to an owner without privilege: then what is inside is not counted.
            Err(Errno::NOENT | Errno::NOTDIR | Errno::ACCESS) => return Ok(()),
            Err(errno) => return Err(errno.into()),
        };
        names(&dir)?.iter().try_for_each(|name| self.walk(dir.as_fd(), name, depth + 1))
    }
}

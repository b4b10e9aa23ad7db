//! Directories measured and removed by descriptor, never following a link.

use crate::error::{Result, ResultExt};
use crate::io::durable;
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{self, AtFlags, FileType, Mode};
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

/// What `name` occupies; nothing if it is gone. Files with several names count once.
pub(super) fn measure(parent: BorrowedFd<'_>, name: &str) -> Result<Occupied> {
    let Ok(name) = CString::new(name) else { return Ok(Occupied::default()) };
    let mut occupied = Occupied::default();
    let mut linked = HashSet::new();
    walk(parent, name, &mut |stat| {
        if stat.st_nlink < 2 || is_dir(stat) || linked.insert((stat.st_dev, stat.st_ino)) {
            occupied.bytes += stat.st_blocks as u64 * BLOCK_BYTES;
            occupied.inodes += 1;
        }
    })?;
    Ok(occupied)
}

fn is_dir(stat: &fs::Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::Directory
}

/// Depth is bounded by what the kernel lets a path be made of, descriptors by one for each level.
fn walk(parent: BorrowedFd<'_>, name: CString, visit: &mut dyn FnMut(&fs::Stat)) -> Result<()> {
    let stat = match fs::statat(parent, &name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => stat,
        Err(Errno::NOENT) => return Ok(()),
        Err(errno) => return Err(errno.into()),
    };
    visit(&stat);
    if !is_dir(&stat) {
        return Ok(());
    }
    let dir = open(parent, &name)?;
    names(&dir)?.into_iter().try_for_each(|name| walk(dir.as_fd(), name, visit))
}

fn open(parent: BorrowedFd<'_>, name: &CString) -> Result<OwnedFd> {
    use fs::OFlags;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(fs::openat(parent, name, flags, Mode::empty())?)
}

/// Takes a directory away from its final name first, so that a crash leaves no half of it there, and then removes it.
/// One that is gone already is fine. `trash` is a directory that is swept.
pub(super) fn remove(parent: BorrowedFd<'_>, name: &str, trash: BorrowedFd<'_>) -> Result<()> {
    let aside = format!("gc-{}", durable::unique_name());
    match fs::renameat(parent, name, trash, aside.as_str()) {
        Ok(()) => empty_out(trash, &aside),
        Err(Errno::NOENT) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

/// Removes a file, or a directory with all that is in it.
pub(super) fn empty_out(parent: BorrowedFd<'_>, name: &str) -> Result<()> {
    match CString::new(name) {
        Ok(name) => remove_all(parent, &name),
        Err(_) => Ok(()),
    }
}

fn remove_all(parent: BorrowedFd<'_>, name: &CString) -> Result<()> {
    match fs::unlinkat(parent, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        Err(Errno::ISDIR | Errno::PERM) => {}
        Err(errno) => return Err(errno.into()),
    }
    let dir = match open(parent, name) {
        // An image's directories may be closed to an owner without privilege.
        Err(error) if error.kind() == crate::ErrorKind::Permission => {
            fs::chmodat(parent, name, Mode::RWXU, AtFlags::empty())?;
            open(parent, name)?
        }
        other => other?,
    };
    let entries = names(&dir)?;
    if !entries.is_empty() {
        // Likewise one that may be read and not be changed.
        let _ = fs::fchmod(&dir, Mode::RWXU);
    }
    entries.iter().try_for_each(|name| remove_all(dir.as_fd(), name))?;
    match fs::unlinkat(parent, name, AtFlags::REMOVEDIR) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

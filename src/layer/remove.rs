//! Removal by directory handles, following nothing, of what a later entry of the same layer replaces. The tree is no
//! deeper than the limits allow and everything in it is still writable; whole trees are removed by `io/remove.rs`.

use crate::error::Result;
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, openat, statat, unlinkat};
use rustix::io::Errno;
use rustix::path::Arg;

/// Removes `name` from the directory `parent`, with everything in it if it is a directory, and tells how many names
/// went. Something that is not there counts as removed.
pub(super) fn remove_entry(parent: BorrowedFd<'_>, name: impl Arg + Copy) -> Result<u64> {
    match unlinkat(parent, name, AtFlags::empty()) {
        Ok(()) => return Ok(1),
        Err(Errno::NOENT) => return Ok(0),
        Err(Errno::ISDIR | Errno::PERM) => {}
        Err(errno) => return Err(errno.into()),
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let removed = empty_directory(openat(parent, name, flags, Mode::empty())?)?;
    unlinkat(parent, name, AtFlags::REMOVEDIR)?;
    Ok(removed + 1)
}

fn empty_directory(fd: OwnedFd) -> Result<u64> {
    let mut removed = 0;
    let mut entries = Dir::new(fd)?;
    while let Some(entry) = entries.next().transpose()? {
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        let parent = entries.fd()?;
        removed += match is_directory(parent, name, entry.file_type())? {
            true => remove_entry(parent, name)?,
            false => {
                unlinkat(parent, name, AtFlags::empty())?;
                1
            }
        };
    }
    Ok(removed)
}

fn is_directory(parent: impl AsFd, name: &std::ffi::CStr, told: FileType) -> Result<bool> {
    let kind = match told {
        FileType::Unknown => {
            FileType::from_raw_mode(statat(parent, name, AtFlags::SYMLINK_NOFOLLOW)?.st_mode)
        }
        known => known,
    };
    Ok(kind == FileType::Directory)
}

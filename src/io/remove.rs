//! Removing directory trees: by descriptors, never following a link, at any depth, with constant memory.
//!
//! The depth of a tree comes from an archive, so there is no recursion and no descriptor held for each level. A directory
//! that lies deeper than one open path can reach is renamed up to the top first and then removed like the others.

use crate::error::{Result, ResultExt};
use crate::io::durable::unique_name;
use rustix::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use rustix::fs::{self, AtFlags, Dir, FileType, Mode, OFlags};
use rustix::io::Errno;
use std::ffi::{CStr, CString};

/// How many levels one sweep holds open; deeper directories are lifted to the top.
const LEVELS: usize = 32;

/// Removes `name` below `dir`, whatever it is. What is not there (any more) is no error, so two may remove at once.
pub fn remove_tree(dir: BorrowedFd<'_>, name: &str) -> Result<()> {
    let c_name = CString::new(name).map_err(|_| Errno::INVAL)?;
    remove_any(dir, &c_name).doing(|| format!("cannot remove {name}"))
}

/// Removes everything inside `dir`, but not `dir` itself.
pub fn remove_contents(dir: BorrowedFd<'_>) -> Result<()> {
    empty(dir).doing(|| "cannot empty a directory")
}

fn remove_any(dir: BorrowedFd<'_>, name: &CStr) -> rustix::io::Result<()> {
    match fs::unlinkat(dir, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        Err(Errno::ISDIR | Errno::PERM) => {}
        Err(errno) => return Err(errno),
    }
    let Some(inner) = open_writable(dir, name)? else { return Ok(()) };
    empty(inner.as_fd())?;
    drop(inner);
    rmdir(dir, name)
}

fn rmdir(dir: BorrowedFd<'_>, name: &CStr) -> rustix::io::Result<()> {
    match fs::unlinkat(dir, name, AtFlags::REMOVEDIR) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(errno) => Err(errno),
    }
}

/// Opens a directory and makes sure that its owner may list and change it; without privilege a layer's 0555 directory
/// could not be emptied otherwise.
fn open_writable(dir: BorrowedFd<'_>, name: &CStr) -> rustix::io::Result<Option<OwnedFd>> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let fd = match fs::openat(dir, name, flags, Mode::empty()) {
        Ok(fd) => fd,
        Err(Errno::NOENT) => return Ok(None),
        Err(Errno::ACCESS) => {
            let pinned = fs::openat(dir, name, flags | OFlags::PATH, Mode::empty())?;
            fs::chmod(format!("/proc/self/fd/{}", pinned.as_raw_fd()), Mode::RWXU)?;
            fs::openat(dir, name, flags, Mode::empty())?
        }
        Err(errno) => return Err(errno),
    };
    let mode = Mode::from_raw_mode(fs::fstat(&fd)?.st_mode);
    if !mode.contains(Mode::RWXU) {
        fs::fchmod(&fd, Mode::RWXU)?;
    }
    Ok(Some(fd))
}

struct Level {
    name: CString,
    fd: OwnedFd,
    pending: Vec<CString>,
}

fn empty(top: BorrowedFd<'_>) -> rustix::io::Result<()> {
    let mut levels: Vec<Level> = Vec::new();
    let mut top_pending = Vec::new();
    loop {
        let depth = levels.len();
        let (current, pending) = match levels.last_mut() {
            Some(level) => (level.fd.as_fd(), &mut level.pending),
            None => (top, &mut top_pending),
        };
        match pending.pop() {
            Some(sub) if depth < LEVELS => {
                if let Some(fd) = open_writable(current, &sub)? {
                    levels.push(Level { name: sub, fd, pending: Vec::new() });
                }
            }
            Some(sub) => lift(current, &sub, top)?,
            None => {
                // Read again until nothing is left: directories may have been lifted to here meanwhile.
                *pending = unlink_files(current)?;
                if pending.is_empty() {
                    let Some(done) = levels.pop() else { return Ok(()) };
                    let above = levels.last().map_or(top, |level| level.fd.as_fd());
                    rmdir(above, &done.name)?;
                }
            }
        }
    }
}

/// Moves a directory from the depth to the top, where the sweep meets it again.
fn lift(from: BorrowedFd<'_>, name: &CStr, top: BorrowedFd<'_>) -> rustix::io::Result<()> {
    // Moving a directory changes its `..`, for which its owner needs to be allowed to write to it.
    drop(open_writable(from, name)?);
    match fs::renameat(from, name, top, format!(".lifted-{}", unique_name())) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(errno) => Err(errno),
    }
}

/// Removes all that is not a directory, and names the directories that are left.
fn unlink_files(dir: BorrowedFd<'_>) -> rustix::io::Result<Vec<CString>> {
    let mut subs = Vec::new();
    for entry in Dir::read_from(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        if entry.file_type() == FileType::Directory {
            subs.push(name.to_owned());
            continue;
        }
        match fs::unlinkat(dir, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            // Filesystems that do not tell the type: a directory shows itself here.
            Err(Errno::ISDIR | Errno::PERM) if entry.file_type() == FileType::Unknown => {
                subs.push(name.to_owned());
            }
            Err(errno) => return Err(errno),
        }
    }
    Ok(subs)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt, symlink};

    fn open(path: &std::path::Path) -> OwnedFd {
        fs::open(path, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).expect("opens")
    }

    #[test]
    fn links_are_removed_and_not_followed() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let (keep, tree) = (dir.path().join("keep"), dir.path().join("tree"));
        std::fs::create_dir(&keep).expect("makes");
        std::fs::write(keep.join("file"), b"1").expect("writes");
        std::fs::create_dir_all(tree.join("a/b")).expect("makes");
        symlink(&keep, tree.join("a/link")).expect("links");
        symlink(&keep, dir.path().join("top-link")).expect("links");
        std::fs::set_permissions(tree.join("a"), std::fs::Permissions::from_mode(0o555)).expect("chmods");
        let fd = open(dir.path());
        remove_tree(fd.as_fd(), "tree").expect("removes");
        remove_tree(fd.as_fd(), "top-link").expect("removes");
        remove_tree(fd.as_fd(), "absent").expect("already gone");
        assert!(!tree.exists() && keep.join("file").exists());
        assert_eq!(std::fs::read_dir(dir.path()).expect("lists").count(), 1);
    }

    #[test]
    fn depth_costs_neither_stack_nor_descriptors() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let mut at = open(dir.path());
        for _ in 0..3000 {
            fs::mkdirat(&at, "deep", Mode::RWXU).expect("makes");
            at = crate::io::durable::open_dir(&at, "deep").expect("opens");
        }
        drop(at);
        remove_tree(open(dir.path()).as_fd(), "deep").expect("removes");
        assert_eq!(std::fs::read_dir(dir.path()).expect("lists").count(), 0);
    }
}

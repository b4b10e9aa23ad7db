//! Making things last: the one place that syncs and publishes.
//!
//! The order is always data, then the name, then the directory that holds the name (DESIGN, Durability). Errors of a
//! sync are errors: a failed write-back is reported once and never again by the kernel.

use crate::error::{Result, ResultExt};
use crate::parallel::failpoint;
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{self, AtFlags, Mode, OFlags, RenameFlags};
use rustix::io::Errno;
use std::io::Write;
use std::sync::atomic::{AtomicU64, Ordering};

/// Opens a directory below `parent`, without following a link in its place.
pub fn open_dir(parent: impl AsFd, name: &str) -> Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    fs::openat(parent, name, flags, Mode::empty()).doing(|| format!("cannot open the directory {name}"))
}

/// Makes the directory `name` (mode 0700, whatever the umask leaves of it) unless it is there, and opens it.
pub fn ensure_dir(parent: impl AsFd, name: &str) -> Result<OwnedFd> {
    match fs::mkdirat(parent.as_fd(), name, Mode::from_raw_mode(0o700)) {
        Ok(()) | Err(Errno::EXIST) => open_dir(parent, name),
        // A read-only store is still good for reading.
        Err(Errno::ROFS) => open_dir(parent, name),
        Err(errno) => Err(errno).doing(|| format!("cannot create the directory {name}")),
    }
}

/// Writes the file's data to the disk.
pub fn sync_data(file: impl AsFd) -> Result<()> {
    fs::fdatasync(file).doing(|| "cannot sync a file")
}

/// Writes a directory's names to the disk.
pub fn sync_dir(dir: impl AsFd) -> Result<()> {
    fs::fsync(dir).doing(|| "cannot sync a directory")
}

/// Writes everything on the filesystem of `fd` to the disk. Only errors since `fd` was opened are reported, so open it
/// before the first write.
pub fn sync_filesystem(fd: impl AsFd) -> Result<()> {
    fs::syncfs(fd).doing(|| "cannot sync the filesystem")
}

/// Renames without replacing. `Ok(false)` if the target exists.
pub fn publish(from: BorrowedFd<'_>, name: &str, to: BorrowedFd<'_>, target: &str) -> Result<bool> {
    match fs::renameat_with(from, name, to, target, RenameFlags::NOREPLACE) {
        Ok(()) => Ok(true),
        Err(Errno::EXIST | Errno::NOTEMPTY) => Ok(false),
        Err(errno) => Err(errno).doing(|| format!("cannot rename {name} to {target}")),
    }
}

/// Replaces `name` by a file with these bytes, so that a crash leaves the old one or the new one.
pub fn write_atomic(dir: BorrowedFd<'_>, name: &str, bytes: &[u8], sync: bool) -> Result<()> {
    let temporary = format!(".{name}.{}", unique_name());
    let written = write_new(dir, (&temporary, name), bytes, sync)
        .and_then(|()| Ok(failpoint::at_step(name, "rename")?))
        .and_then(|()| fs::renameat(dir, &temporary, dir, name).map_err(Into::into))
        .and_then(|()| if sync && failpoint::sync_step(name, "dirsync")? { sync_dir(dir) } else { Ok(()) });
    if written.is_err() {
        // Best effort: the temporary file is of no use to anyone.
        let _ = fs::unlinkat(dir, &temporary, AtFlags::empty());
    }
    written.doing(|| format!("cannot write {name}"))
}

fn write_new(dir: BorrowedFd<'_>, (temporary, name): (&str, &str), bytes: &[u8], sync: bool) -> Result<()> {
    failpoint::at_step(name, "create")?;
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut file = std::fs::File::from(fs::openat(dir, temporary, flags, Mode::from_raw_mode(0o600))?);
    failpoint::at_step(name, "write")?;
    file.write_all(bytes)?;
    if sync && failpoint::sync_step(name, "sync")? { sync_data(&file) } else { Ok(()) }
}

/// A name that no other thread and no other process of this boot uses at the same time.
pub fn unique_name() -> String {
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    let count = COUNTER.fetch_add(1, Ordering::Relaxed);
    // The clock keeps a later process with the same id apart from what an earlier one left behind.
    let now = failpoint::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    format!("{}-{count}-{:x}", std::process::id(), now.as_nanos())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn publishing_never_replaces() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let fd = fs::open(dir.path(), OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).expect("opens");
        write_atomic(fd.as_fd(), "a", b"1", true).expect("writes");
        write_atomic(fd.as_fd(), "b", b"2", true).expect("writes");
        assert!(!publish(fd.as_fd(), "a", fd.as_fd(), "b").expect("renames or not"));
        assert_eq!(std::fs::read(dir.path().join("b")).expect("reads"), b"2");
        assert!(publish(fd.as_fd(), "a", fd.as_fd(), "c").expect("renames"));
        assert_eq!(std::fs::read_dir(dir.path()).expect("lists").count(), 2);
    }
}

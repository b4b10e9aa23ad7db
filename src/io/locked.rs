//! A directory that one owner holds, in whatever process: the working place of an ingest.
//!
//! The lock is a `flock` on the directory itself, so it ends with its owner however that ends, and needs no clean-up.
//! After locking, the path must still name the locked inode: a publisher renames the directory away, a finisher removes
//! it, and whoever waited must not go on with a directory that is no longer there.

use crate::error::{Error, ErrorKind, Result, ResultExt};
use crate::parallel::Cancel;
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{self, AtFlags, FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use std::sync::Arc;
use std::time::Duration;

/// A directory under a common parent, held by this owner.
#[derive(Debug)]
pub struct LockedDir {
    parent: Arc<OwnedFd>,
    name: String,
    fd: OwnedFd,
}

impl LockedDir {
    /// Makes or opens `name` below `parent` and locks it; `None` while someone else holds it. What an earlier owner left
    /// inside is still there.
    pub fn try_acquire(parent: &Arc<OwnedFd>, name: &str) -> Result<Option<LockedDir>> {
        let attempt = || -> Result<Option<LockedDir>> {
            // Losing the directory between two calls again and again means that others are making progress.
            loop {
                match fs::mkdirat(parent, name, Mode::from_raw_mode(0o700)) {
                    Ok(()) | Err(Errno::EXIST) => {}
                    Err(errno) => return Err(errno.into()),
                }
                match Self::try_open(parent, name)? {
                    Attempt::Locked(dir) => return Ok(Some(dir)),
                    Attempt::Taken => return Ok(None),
                    Attempt::Gone => {}
                }
            }
        };
        attempt().doing(|| format!("cannot lock ingest/{name}"))
    }

    /// Locks `name` if it exists and nobody holds it.
    pub fn try_existing(parent: &Arc<OwnedFd>, name: &str) -> Result<Option<LockedDir>> {
        match Self::try_open(parent, name).doing(|| format!("cannot lock ingest/{name}"))? {
            Attempt::Locked(dir) => Ok(Some(dir)),
            Attempt::Taken | Attempt::Gone => Ok(None),
        }
    }

    fn try_open(parent: &Arc<OwnedFd>, name: &str) -> Result<Attempt> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = match fs::openat(parent, name, flags, Mode::empty()) {
            Ok(fd) => fd,
            Err(Errno::NOENT) => return Ok(Attempt::Gone),
            Err(errno) => return Err(errno.into()),
        };
        match fs::flock(&fd, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => return Ok(Attempt::Taken),
            Err(errno) => return Err(errno.into()),
        }
        let held = fs::fstat(&fd)?;
        match fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(named) if (named.st_dev, named.st_ino) == (held.st_dev, held.st_ino) => {
                Ok(Attempt::Locked(LockedDir { parent: Arc::clone(parent), name: name.to_string(), fd }))
            }
            Ok(_) | Err(Errno::NOENT) => Ok(Attempt::Gone),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Whether someone holds `name` right now.
    pub fn is_taken(parent: &Arc<OwnedFd>, name: &str) -> Result<bool> {
        let attempt = Self::try_open(parent, name).doing(|| format!("cannot look at ingest/{name}"))?;
        Ok(matches!(attempt, Attempt::Taken))
    }

    /// Something that is another whenever something inside `name` has changed: when the directory did, and the file or tree
    /// that grows in it.
    pub fn progress(parent: &Arc<OwnedFd>, name: &str) -> Progress {
        let changed = |path: &str| {
            let stat = fs::statat(parent, path, AtFlags::SYMLINK_NOFOLLOW).ok()?;
            Some((stat.st_mtime, stat.st_mtime_nsec, stat.st_size))
        };
        Progress([format!("{name}/data"), format!("{name}/fs"), name.to_string()].map(|path| changed(&path)))
    }

    /// Shows that the owner is alive to those who wait in other processes.
    pub fn beat(&self) {
        let now = fs::Timespec { tv_sec: 0, tv_nsec: fs::UTIME_NOW };
        // A hint to others; the work does not depend on it.
        let _ = fs::futimens(&self.fd, &fs::Timestamps { last_access: now, last_modification: now });
    }

    /// Like [`LockedDir::try_acquire`], waiting while another holds it. `on_wait` is called once before the first wait.
    pub fn acquire(
        parent: &Arc<OwnedFd>,
        name: &str,
        cancel: &Cancel,
        on_wait: &mut dyn FnMut(),
    ) -> Result<LockedDir> {
        let mut pause = Duration::from_millis(1);
        loop {
            if let Some(dir) = Self::try_acquire(parent, name)? {
                return Ok(dir);
            }
            if pause == Duration::from_millis(1) {
                on_wait();
            }
            cancel.check()?;
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(20));
        }
    }

    /// Makes and locks a directory whose name nobody else uses. A look of [`LockedDir::try_existing`] or [`LockedDir::is_taken`]
    /// in passing may hold it for a moment; that is waited for.
    pub fn fresh(parent: &Arc<OwnedFd>, name: &str) -> Result<LockedDir> {
        Self::acquire(parent, name, &Cancel::new(), &mut || {})
    }

    /// The directory.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Its name below the parent.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Moves the whole directory to its final place. `Ok(Err(self))` if something is there already.
    pub fn publish(self, dir: BorrowedFd<'_>, name: &str) -> Result<std::result::Result<OwnedFd, LockedDir>> {
        match super::durable::publish(self.parent.as_fd(), &self.name, dir, name)? {
            true => Ok(Ok(self.fd)),
            false => Ok(Err(self)),
        }
    }

    /// Removes the directory, which must be empty, and lets go of it.
    pub fn remove(self) -> Result<()> {
        match fs::unlinkat(&self.parent, &self.name, AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(Errno::NOTEMPTY | Errno::EXIST) => {
                Err(Error::new(ErrorKind::FailedPrecondition, format!("ingest/{} is not empty", self.name)))
            }
            Err(errno) => Err(errno).doing(|| format!("cannot remove ingest/{}", self.name)),
        }
    }
}

/// How far the owner of a directory was at some moment; only to be compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress([Option<(i64, u64, i64)>; 3]);

enum Attempt {
    Locked(LockedDir),
    Taken,
    Gone,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parent() -> (tempfile::TempDir, Arc<OwnedFd>) {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let fd = fs::open(dir.path(), OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).expect("opens");
        (dir, Arc::new(fd))
    }

    #[test]
    fn one_owner_at_a_time() {
        let (_dir, parent) = parent();
        let first = LockedDir::try_acquire(&parent, "x").expect("locks").expect("free");
        assert!(LockedDir::try_acquire(&parent, "x").expect("tries").is_none());
        assert!(LockedDir::try_acquire(&parent, "y").expect("tries").is_some());
        drop(first);
        assert!(LockedDir::try_acquire(&parent, "x").expect("tries").is_some());
    }

    #[test]
    fn who_waited_does_not_get_the_directory_that_was_published() {
        let (_dir, parent) = parent();
        let first = LockedDir::try_acquire(&parent, "x").expect("locks").expect("free");
        let inode = |dir: &LockedDir| fs::fstat(dir.fd()).expect("stats").st_ino;
        let published = inode(&first);
        std::thread::scope(|scope| {
            let waiting = scope
                .spawn(|| LockedDir::acquire(&parent, "x", &Cancel::new(), &mut || {}).expect("gets it"));
            std::thread::sleep(Duration::from_millis(20));
            first.publish(parent.as_fd(), "done").expect("renames").expect("free");
            assert_ne!(inode(&waiting.join().expect("no panic")), published);
        });
    }
}

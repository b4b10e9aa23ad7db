//! The store's locks between processes. Each guard has a descriptor of its own, so threads exclude each other as
//! processes do, and the kernel gives back what a dead process held.

use crate::error::{Error, ErrorKind, Result, ResultExt};
use crate::io::durable;
use crate::parallel::Cancel;
use rustix::fd::{BorrowedFd, OwnedFd};
use rustix::fs::{self, FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use std::time::Duration;

const GC_LOCK: &str = "gc.lock";
const INDEX_LOCK: &str = "index.lock";

/// How often a wait looks again.
const PAUSE: Duration = Duration::from_millis(5);

/// The collection's lock, shared by all who add, exclusive for the one who removes. Given back on drop.
#[derive(Debug)]
pub struct GcLock(#[allow(dead_code, reason = "held, not read")] OwnedFd);

impl super::Store {
    /// Keeps the collection out, together with others; waits for a running one.
    pub fn gc_lock_shared(&self, cancel: &Cancel) -> Result<GcLock> {
        let fd = open(self.root(), GC_LOCK)?;
        loop {
            if try_lock(&fd, FlockOperation::NonBlockingLockShared)? {
                return Ok(GcLock(fd));
            }
            cancel.check()?;
            std::thread::sleep(PAUSE);
        }
    }

    /// Keeps everyone out who would add. [`ErrorKind::Busy`] if anyone is at it, unless `wait` is given: then until
    /// they are done or it is cancelled.
    pub fn gc_lock_exclusive(&self, wait: Option<&Cancel>) -> Result<GcLock> {
        let fd = open(self.root(), GC_LOCK)?;
        loop {
            if try_lock(&fd, FlockOperation::NonBlockingLockExclusive)? {
                return Ok(GcLock(fd));
            }
            let Some(cancel) = wait else {
                return Err(Error::new(
                    ErrorKind::Busy,
                    "an import or another collection is at work on the store",
                )
                .with_hint("try again when it is done"));
            };
            cancel.check()?;
            std::thread::sleep(PAUSE);
        }
    }
}

/// As [`super::Store::gc_lock_exclusive`], for a store that cannot be opened.
pub fn lock_alone(root: BorrowedFd<'_>) -> Result<GcLock> {
    let fd = open(root, GC_LOCK)?;
    match try_lock(&fd, FlockOperation::NonBlockingLockExclusive)? {
        true => Ok(GcLock(fd)),
        false => Err(Error::new(ErrorKind::Busy, "someone is at work on the store")
            .with_hint("try again when it is done")),
    }
}

/// Held while `index.json` is written.
pub(super) fn index(root: BorrowedFd<'_>) -> Result<OwnedFd> {
    let fd = open(root, INDEX_LOCK)?;
    block(&fd)?;
    Ok(fd)
}

/// Held on the store's directory itself while it becomes a store.
pub(super) fn directory(root: BorrowedFd<'_>) -> Result<OwnedFd> {
    let fd = durable::open_dir(root, ".")?;
    block(&fd)?;
    Ok(fd)
}

pub(super) fn open(dir: BorrowedFd<'_>, name: &str) -> Result<OwnedFd> {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    fs::openat(dir, name, flags, Mode::from_raw_mode(0o600)).doing(|| format!("cannot open {name}"))
}

pub(super) fn try_lock(fd: &OwnedFd, operation: FlockOperation) -> Result<bool> {
    loop {
        match fs::flock(fd, operation) {
            Ok(()) => return Ok(true),
            Err(Errno::WOULDBLOCK) => return Ok(false),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno).doing(|| "cannot lock"),
        }
    }
}

/// For locks that are held for a moment only.
fn block(fd: &OwnedFd) -> Result<()> {
    try_lock(fd, FlockOperation::LockExclusive).map(drop)
}

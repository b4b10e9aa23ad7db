//! The store's locks between processes. Each guard has a descriptor of its own, so threads exclude each other as
//! processes do, and the kernel gives back what a dead process held.

use crate::error::{Error, ErrorKind, Result, ResultExt};
use crate::io::durable;
use crate::parallel::Cancel;
use rustix::fd::{BorrowedFd, OwnedFd};
use rustix::fs::{self, FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use std::time::{Duration, Instant};

const GC_LOCK: &str = "gc.lock";
const COLLECTION_LOCK: &str = "collection.lock";
const MOUNT_LOCK: &str = "mount.lock";
const MOUNT_TURN: &str = "mount-turn.lock";
const SWEEP_LOCK: &str = "sweep.lock";
const INDEX_LOCK: &str = "index.lock";

const SHARED: FlockOperation = FlockOperation::NonBlockingLockShared;
const EXCLUSIVE: FlockOperation = FlockOperation::NonBlockingLockExclusive;

/// How often a wait looks again.
const PAUSE: Duration = Duration::from_millis(5);

/// For how long a collection that waits for mounts keeps new ones waiting, at first and at most. Between two such times they
/// go on as long: one that takes minutes, because it copies, does not hold up the others.
const TURN: Duration = Duration::from_millis(20);
const LONGEST_TURN: Duration = Duration::from_secs(1);

/// For how long whoever mounts waits for a collection. One that is well lets go of its turn after a second at most, and of the
/// mounts after some transactions; only one that was stopped, or hangs in its filesystem, keeps them for so long.
pub(crate) const MOUNT_PATIENCE: Duration = Duration::from_secs(60);

/// For how long a lock that is free may look taken: whoever starts a program gives it copies of all descriptors, until it runs.
const MOMENT: Duration = Duration::from_millis(200);

/// One of the locks that order collections, imports and mounts. Given back on drop.
#[derive(Debug)]
pub struct GcLock(#[allow(dead_code, reason = "held, not read")] OwnedFd);

impl super::Store {
    /// Has one collection or check work at a time. [`ErrorKind::Busy`] while another does, unless asked to wait for it.
    pub fn collection_lock(&self, wait: bool, cancel: &Cancel) -> Result<GcLock> {
        let fd = open(self.root(), COLLECTION_LOCK)?;
        match wait {
            true => self.patiently(fd, EXCLUSIVE, cancel),
            false => {
                let hint = "wait for it with --wait, or try again when it is done";
                at_once(fd, "another gc or fsck is at work on the store", hint)
            }
        }
    }

    /// Shows, together with others, that someone is at work on the store, so that nobody replaces its database.
    pub fn gc_lock_shared(&self, cancel: &Cancel) -> Result<GcLock> {
        self.patiently(open(self.root(), GC_LOCK)?, SHARED, cancel)
    }

    /// Keeps everyone out who would work on the store. [`ErrorKind::Busy`] if anyone does.
    pub fn gc_lock_exclusive(&self) -> Result<GcLock> {
        lock_alone(self.root())
    }

    /// Has a collection leave alone what is about to be mounted, together with others who mount; waits for a moment if it is
    /// at its snapshots, or has waited for its turn. [`ErrorKind::Busy`] if that takes longer than `patience`: then it was
    /// stopped there.
    pub fn mount_lock_shared(&self, cancel: &Cancel, patience: Duration) -> Result<GcLock> {
        let end = after(patience);
        let _turn = self.shared_within(MOUNT_TURN, end, patience, cancel)?;
        self.shared_within(MOUNT_LOCK, end, patience, cancel)
    }

    /// Waits until nobody is about to mount, and keeps it so. However many mount all the time, it gets its turn.
    pub(crate) fn mount_lock_exclusive(&self, cancel: &Cancel) -> Result<GcLock> {
        let fd = open(self.root(), MOUNT_LOCK)?;
        let mut length = TURN;
        while !try_lock(&fd, EXCLUSIVE)? {
            let turn = self.patiently(open(self.root(), MOUNT_TURN)?, EXCLUSIVE, cancel)?;
            if try_until(&fd, EXCLUSIVE, after(length), cancel)? {
                break;
            }
            drop(turn);
            if try_until(&fd, EXCLUSIVE, after(length), cancel)? {
                break;
            }
            length = (length * 2).min(LONGEST_TURN);
        }
        Ok(GcLock(fd))
    }

    /// Between two times that a collection keeps mounts out: lets in those that wait, each of which looks once in [`PAUSE`].
    pub(crate) fn let_mounts_in(&self) {
        std::thread::sleep(2 * PAUSE);
    }

    /// Between two steps of a collection: nothing is forgotten that is not yet removed. To publish without a claim.
    /// [`ErrorKind::Busy`] if a collection is stopped in the midst of a step for longer than `patience`.
    pub(crate) fn sweep_lock_shared(&self, cancel: &Cancel, patience: Duration) -> Result<GcLock> {
        self.shared_within(SWEEP_LOCK, after(patience), patience, cancel)
    }

    /// One step of a collection: forgetting some things and removing them.
    pub(crate) fn sweep_lock_exclusive(&self, cancel: &Cancel) -> Result<GcLock> {
        self.patiently(open(self.root(), SWEEP_LOCK)?, EXCLUSIVE, cancel)
    }

    /// A lock that a collection has for moments only.
    fn shared_within(
        &self,
        name: &str,
        end: Option<Instant>,
        patience: Duration,
        cancel: &Cancel,
    ) -> Result<GcLock> {
        let fd = open(self.root(), name)?;
        match try_until(&fd, SHARED, end, cancel)? {
            true => Ok(GcLock(fd)),
            false => Err(kept_out(name, patience)),
        }
    }

    fn patiently(&self, fd: OwnedFd, operation: FlockOperation, cancel: &Cancel) -> Result<GcLock> {
        while !try_lock(&fd, operation)? {
            cancel.check()?;
            std::thread::sleep(PAUSE);
        }
        Ok(GcLock(fd))
    }
}

fn kept_out(lock: &str, patience: Duration) -> Error {
    Error::new(ErrorKind::Busy, format!("a gc has been holding {lock} for {patience:?}")).with_hint(format!(
        "'transload doctor' shows the process that holds {lock}; end it, or let it go on, if it is stopped"
    ))
}

/// The end of a wait that begins now; none if it is too far away to be told.
fn after(patience: Duration) -> Option<Instant> {
    Instant::now().checked_add(patience)
}

/// Whether it could be locked by then.
fn try_until(fd: &OwnedFd, operation: FlockOperation, end: Option<Instant>, cancel: &Cancel) -> Result<bool> {
    while !try_lock(fd, operation)? {
        cancel.check()?;
        if end.is_some_and(|end| Instant::now() >= end) {
            return Ok(false);
        }
        std::thread::sleep(PAUSE);
    }
    Ok(true)
}

fn at_once(fd: OwnedFd, busy: &'static str, hint: &'static str) -> Result<GcLock> {
    match try_until(&fd, EXCLUSIVE, after(MOMENT), &Cancel::new())? {
        true => Ok(GcLock(fd)),
        false => Err(Error::new(ErrorKind::Busy, busy).with_hint(hint)),
    }
}

/// As [`super::Store::gc_lock_exclusive`], for a store that cannot be opened.
pub fn lock_alone(root: BorrowedFd<'_>) -> Result<GcLock> {
    at_once(open(root, GC_LOCK)?, "someone is at work on the store", "try again when it is done")
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

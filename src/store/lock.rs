//! The store's locks between processes. Each guard has a descriptor of its own, so threads exclude each other as
//! processes do, and the kernel gives back what a dead process held.

use crate::error::{Error, ErrorKind, Result, ResultExt};
use crate::io::durable;
use crate::parallel::patience::{PAUSE, Wait, refusal};
use crate::parallel::{Cancel, Patience};
use rustix::fd::{BorrowedFd, OwnedFd};
use rustix::fs::{self, FlockOperation, Mode, OFlags};
use std::time::Duration;

pub(super) use crate::parallel::patience::try_lock;

const GC_LOCK: &str = "gc.lock";
const COLLECTION_LOCK: &str = "collection.lock";
const MOUNT_LOCK: &str = "mount.lock";
const MOUNT_TURN: &str = "mount-turn.lock";
const SWEEP_LOCK: &str = "sweep.lock";
const INDEX_LOCK: &str = "index.lock";

const SHARED: FlockOperation = FlockOperation::NonBlockingLockShared;
const EXCLUSIVE: FlockOperation = FlockOperation::NonBlockingLockExclusive;

/// For how long a collection that waits for mounts keeps new ones waiting, at first and at most. Between two such times they
/// go on as long: one that takes minutes, because it copies, does not hold up the others.
const TURN: Duration = Duration::from_millis(20);
const LONGEST_TURN: Duration = Duration::from_secs(1);

/// For how long a lock that is free may look taken: whoever starts a program gives it copies of all descriptors, until it runs.
const MOMENT: Duration = Duration::from_millis(200);

/// One of the locks that order collections, imports and mounts. Given back on drop.
#[derive(Debug)]
pub struct GcLock(#[allow(dead_code, reason = "held, not read")] OwnedFd);

impl super::Store {
    /// Has one collection or check work at a time. [`ErrorKind::Busy`] while another does, unless asked to wait for it.
    pub fn collection_lock<'a>(&self, wait: bool, patience: impl Into<Patience<'a>>) -> Result<GcLock> {
        match wait {
            true => self.wait(COLLECTION_LOCK, EXCLUSIVE, patience.into()),
            false => {
                let busy = Error::new(ErrorKind::Busy, "another gc or fsck is at work on the store");
                let hint = "wait for it with --wait, or try again when it is done";
                at_once(self.root(), COLLECTION_LOCK, busy.with_hint(hint))
            }
        }
    }

    /// Shows, together with others, that someone is at work on the store, so that nobody replaces its database.
    pub fn gc_lock_shared<'a>(&self, patience: impl Into<Patience<'a>>) -> Result<GcLock> {
        self.wait(GC_LOCK, SHARED, patience.into())
    }

    /// Keeps everyone out who would work on the store. [`ErrorKind::Busy`] if anyone does.
    pub fn gc_lock_exclusive(&self) -> Result<GcLock> {
        lock_alone(self.root())
    }

    /// Has a collection leave alone what is about to be mounted, together with others who mount; waits for a moment if it is
    /// at its snapshots, or has waited for its turn. [`ErrorKind::Busy`] if it was stopped there.
    pub fn mount_lock_shared<'a>(&self, patience: impl Into<Patience<'a>>) -> Result<GcLock> {
        let patience = patience.into();
        let _turn = self.wait(MOUNT_TURN, SHARED, patience)?;
        self.wait(MOUNT_LOCK, SHARED, patience)
    }

    /// Waits until nobody is about to mount, and keeps it so. However many mount all the time, it gets its turn.
    pub(crate) fn mount_lock_exclusive<'a>(&self, patience: impl Into<Patience<'a>>) -> Result<GcLock> {
        let (patience, fd) = (patience.into(), open(self.root(), MOUNT_LOCK)?);
        let mut wait = Wait::new(&fd, MOUNT_LOCK, patience);
        let mut length = TURN;
        while !try_lock(&fd, EXCLUSIVE)? {
            let turn = self.wait(MOUNT_TURN, EXCLUSIVE, patience)?;
            if wait.lock_within(length, EXCLUSIVE)? {
                break;
            }
            drop(turn);
            if wait.lock_within(length, EXCLUSIVE)? {
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
    /// [`ErrorKind::Busy`] if a collection was stopped in the midst of a step.
    pub(crate) fn sweep_lock_shared<'a>(&self, patience: impl Into<Patience<'a>>) -> Result<GcLock> {
        self.wait(SWEEP_LOCK, SHARED, patience.into())
    }

    /// One step of a collection: forgetting some things and removing them.
    pub(crate) fn sweep_lock_exclusive<'a>(&self, patience: impl Into<Patience<'a>>) -> Result<GcLock> {
        self.wait(SWEEP_LOCK, EXCLUSIVE, patience.into())
    }

    fn wait(&self, name: &str, operation: FlockOperation, patience: Patience<'_>) -> Result<GcLock> {
        let fd = open(self.root(), name)?;
        Wait::new(&fd, name, patience).lock(operation)?;
        Ok(GcLock(fd))
    }
}

/// For who does not wait.
fn at_once(root: BorrowedFd<'_>, name: &str, busy: Error) -> Result<GcLock> {
    let (fd, cancel) = (open(root, name)?, Cancel::new());
    match Wait::new(&fd, name, Patience::new(&cancel)).lock_within(MOMENT, EXCLUSIVE)? {
        true => Ok(GcLock(fd)),
        false => Err(refusal(&fd, name, busy)?),
    }
}

/// As [`super::Store::gc_lock_exclusive`], for a store that cannot be opened.
pub fn lock_alone(root: BorrowedFd<'_>) -> Result<GcLock> {
    let busy = Error::new(ErrorKind::Busy, "someone is at work on the store");
    at_once(root, GC_LOCK, busy.with_hint("try again when it is done"))
}

/// Held while `index.json` is written.
pub(super) fn index(root: BorrowedFd<'_>) -> Result<OwnedFd> {
    let fd = open(root, INDEX_LOCK)?;
    wait_for(&fd, INDEX_LOCK)?;
    Ok(fd)
}

/// Held on the store's directory itself while it becomes a store.
pub(super) fn directory(root: BorrowedFd<'_>) -> Result<OwnedFd> {
    let fd = durable::open_dir(root, ".")?;
    wait_for(&fd, "the store's directory")?;
    Ok(fd)
}

pub(super) fn open(dir: BorrowedFd<'_>, name: &str) -> Result<OwnedFd> {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    fs::openat(dir, name, flags, Mode::from_raw_mode(0o600)).doing(|| format!("cannot open {name}"))
}

/// For locks that are held for a moment only.
fn wait_for(fd: &OwnedFd, lock: &str) -> Result<()> {
    let cancel = Cancel::new();
    Wait::new(fd, lock, Patience::new(&cancel)).lock(EXCLUSIVE)
}

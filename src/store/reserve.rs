//! Room that is kept back, so that a full disk can be freed.
//!
//! Removing needs room, too: the database writes its log before it forgets anything, and makes its files when it is opened. So
//! `reserve/` keeps some blocks and inodes while there are plenty. A store that is opened where less is left gives them back
//! before it touches the database, and takes them again when it is closed, as far as they are there. Meanwhile it takes
//! nothing in, or an import would use up what `rm` and `gc` live on.

use super::format::IdRange;
use super::{StoreFormat, filesystem};
use crate::error::{Error, ErrorKind, Result};
use crate::io::durable;
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{self, AtFlags, FallocateFlags, FlockOperation, Mode, OFlags, StatVfs};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Where it lies.
pub(crate) const RESERVE: &str = "reserve";

/// As many files, so that inodes are kept as well: for the database's two, `index.json` and some locks.
const FILES: u64 = 8;

/// What a removal and a collection write besides the pages that they change, which are never more than the database has:
/// its shared memory, the lists, some directories.
const BASE_BYTES: u64 = 1 << 20;

/// btrfs writes nothing in place and sets aside many times what a change of its own trees takes, so it is full some MiB before its
/// end: it gets a reserve of so many times the size, and is short so many reserves earlier.
const BTRFS_TIMES: u64 = 4;
const BTRFS_LOW: u64 = 3;

/// The reserve of one store, as one process that has it open sees it.
#[derive(Debug)]
pub(super) struct Reserve {
    root: OwnedFd,
    /// Whether the blocks that ext4 keeps for root are ours.
    privileged: bool,
    base_bytes: u64,
    /// Below how many reserves room is short.
    low: u64,
    /// Held shared while what is reserved is given back: whoever finds it free may take it again.
    given: Mutex<Option<OwnedFd>>,
}

impl Reserve {
    /// Gives the reserve back where room is short, and takes it where there is plenty. What cannot be done is left: the
    /// store works without.
    pub(super) fn open(root: BorrowedFd<'_>, format: &StoreFormat) -> Result<Reserve> {
        let everyone = [IdRange(0, 0, u32::MAX)];
        let magic = filesystem::magic(root)?;
        let is_root = rustix::process::geteuid().is_root() && format.uid_map == everyone;
        let (base_bytes, low) = match magic {
            filesystem::BTRFS => (BTRFS_TIMES * BASE_BYTES, BTRFS_LOW),
            _ => (BASE_BYTES, 1),
        };
        let root = durable::open_dir(root, ".")?;
        let privileged = is_root && magic == filesystem::EXT;
        let reserve = Reserve { root, privileged, base_bytes, low, given: Mutex::new(None) };
        reserve.look();
        Ok(reserve)
    }

    /// Whether room is short, which is answered by giving the reserve back; if it is short no longer, it is taken again.
    pub(super) fn look(&self) -> bool {
        let Some(room) = self.room() else { return false };
        let mut given = self.given();
        let short = room.is_short(given.is_some());
        match (short, given.is_some()) {
            (true, false) => *given = self.give(),
            (false, true) => {
                *given = None;
                self.take(room.wanted_bytes);
            }
            (false, false) if room.is_plenty() || (self.had_one() && !room.is_short(true)) => {
                self.take(room.wanted_bytes);
            }
            _ => {}
        }
        short
    }

    /// [`ErrorKind::NoSpace`] for whoever would add something where room is short.
    pub(super) fn check(&self) -> Result<()> {
        match self.look() {
            false => Ok(()),
            true => {
                let message =
                    "the disk is full: hardly any space or inodes are free on the store's filesystem";
                Err(Error::new(ErrorKind::NoSpace, message))
            }
        }
    }

    /// Whether there ever was a reserve. Who is killed while living on it leaves none; it is taken again as soon as room is
    /// not short with it, and not only when there is plenty.
    fn had_one(&self) -> bool {
        fs::statat(&self.root, RESERVE, AtFlags::SYMLINK_NOFOLLOW).is_ok()
    }

    fn given(&self) -> MutexGuard<'_, Option<OwnedFd>> {
        self.given.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn room(&self) -> Option<Room> {
        let stat = fs::fstatvfs(&self.root).ok()?;
        let database = fs::statat(&self.root, "meta.db", AtFlags::SYMLINK_NOFOLLOW);
        let database_bytes = database.map_or(0, |stat| stat.st_size.unsigned_abs());
        Some(Room::new(&stat, self.privileged, self.base_bytes + database_bytes, self.low))
    }

    /// Removes the files, the last first: it is the one that says that all are there.
    fn give(&self) -> Option<OwnedFd> {
        let dir = durable::open_dir(&self.root, RESERVE).ok()?;
        let _ = fs::flock(&dir, FlockOperation::NonBlockingLockShared);
        let mut removed = false;
        for number in (0..FILES).rev() {
            removed |= fs::unlinkat(&dir, number.to_string(), AtFlags::empty()).is_ok();
        }
        if removed {
            // Freed blocks are nobody's until the journal has them.
            let _ = durable::sync_filesystem(&dir);
        }
        Some(dir)
    }

    /// Takes as much of the reserve as there is, unless it is there, or another process lives on it.
    fn take(&self, wanted_bytes: u64) {
        let each = wanted_bytes / FILES;
        let last = format!("{RESERVE}/{}", FILES - 1);
        let there = fs::statat(&self.root, last, AtFlags::SYMLINK_NOFOLLOW);
        if there.is_ok_and(|stat| stat.st_size.unsigned_abs() >= each) {
            return;
        }
        let Ok(dir) = durable::ensure_dir(&self.root, RESERVE) else { return };
        if fs::flock(&dir, FlockOperation::NonBlockingLockExclusive).is_err() {
            return;
        }
        for number in 0..FILES {
            if !allocate(dir.as_fd(), &number.to_string(), each) {
                return;
            }
        }
    }
}

impl Drop for Reserve {
    fn drop(&mut self) {
        let given = self.given().take();
        if given.is_some() {
            drop(given);
            self.take(self.room().map_or(self.base_bytes, |room| room.wanted_bytes));
        }
    }
}

/// A file with blocks of its own; none is left where there is no room.
fn allocate(dir: BorrowedFd<'_>, name: &str, bytes: u64) -> bool {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let Ok(file) = fs::openat(dir, name, flags, Mode::from_raw_mode(0o600)) else { return false };
    let allocated = fs::fallocate(&file, FallocateFlags::empty(), 0, bytes).is_ok();
    if !allocated {
        let _ = fs::unlinkat(dir, name, AtFlags::empty());
    }
    allocated
}

/// What is free, and what is wanted of it.
struct Room {
    free_bytes: u64,
    /// `None` where inodes are made as they are needed.
    free_inodes: Option<u64>,
    wanted_bytes: u64,
    low: u64,
}

impl Room {
    fn new(stat: &StatVfs, privileged: bool, wanted_bytes: u64, low: u64) -> Room {
        let (blocks, inodes) =
            if privileged { (stat.f_bfree, stat.f_ffree) } else { (stat.f_bavail, stat.f_favail) };
        // Whole blocks for each of the files.
        let wanted_bytes = wanted_bytes.next_multiple_of(FILES << 12);
        let free_inodes = (stat.f_files > 0).then_some(inodes);
        Room { free_bytes: blocks.saturating_mul(stat.f_frsize), free_inodes, wanted_bytes, low }
    }

    /// Short is when there is not as much again as the reserve; what of it was given back is spoken for.
    fn is_short(&self, given: bool) -> bool {
        let given = u64::from(given);
        self.free_bytes < (self.low + given) * self.wanted_bytes
            || self.free_inodes.is_some_and(|inodes| inodes < (2 + given) * FILES)
    }

    /// Plenty is when taking the reserve leaves twice as much before room is short.
    fn is_plenty(&self) -> bool {
        self.free_bytes >= (self.low + 3) * self.wanted_bytes
            && self.free_inodes.is_none_or(|inodes| inodes >= 8 * FILES)
    }
}

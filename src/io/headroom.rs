//! The space that an import leaves to others: one place that looks, whatever is written.
//!
//! Blobs, trees and copies count here what they write, all those of an import together, and whoever comes past the next mark asks
//! the filesystem. So most writes cost an addition, and every 16 MiB a system call.

use crate::error::{Error, ErrorKind, Result, ResultExt};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs;
use std::sync::atomic::{AtomicU64, Ordering};

/// How much is written at most between two looks, in bytes.
const LOOK_EVERY_BYTES: u64 = 16 << 20;

/// Where little is left to others, as many looks come before that much is written. So hardly any of it is taken unseen.
const LOOKS: u64 = 16;

/// Looking more often than this would take longer than what is written.
const LOOK_EVERY_LEAST_BYTES: u64 = 64 << 10;

/// What an inode takes that has no content, in bytes: a directory has a block. Others take less, but there can be many.
pub const INODE_BYTES: u64 = 4096;

/// Space that stays free. By default none does.
///
/// ```
/// use transload::io::headroom::Headroom;
/// let disk = std::fs::File::open("/tmp")?;
/// Headroom::leaving(u64::MAX, &disk)?.spend(1 << 30).expect_err("no disk has that much");
/// Headroom::leaving(0, &disk)?.spend(1 << 30)?;
/// # Ok::<(), transload::Error>(())
/// ```
#[derive(Debug, Default)]
pub struct Headroom {
    kept: Option<Kept>,
}

#[derive(Debug)]
struct Kept {
    filesystem: OwnedFd,
    bytes: u64,
    look_every: u64,
    spent: AtomicU64,
}

impl Headroom {
    /// Leaves so many bytes of a filesystem, which is that of an open file or directory.
    pub fn leaving(bytes: u64, filesystem: impl AsFd) -> Result<Self> {
        if bytes == 0 {
            return Ok(Headroom::default());
        }
        let filesystem = filesystem.as_fd().try_clone_to_owned().doing(|| LOOKING)?;
        let look_every = (bytes / LOOKS).clamp(LOOK_EVERY_LEAST_BYTES, LOOK_EVERY_BYTES);
        Ok(Headroom { kept: Some(Kept { filesystem, bytes, look_every, spent: AtomicU64::new(0) }) })
    }

    /// Leaves what is free now but for so many hundredths of it.
    pub fn taking(percent: u64, filesystem: impl AsFd) -> Result<Self> {
        let free_bytes = free_bytes(filesystem.as_fd())?;
        Self::leaving(free_bytes / 100 * 100_u64.saturating_sub(percent), filesystem)
    }

    /// Counts bytes that are about to be written; [`ErrorKind::NoSpace`] once they would take what is left to others.
    pub fn spend(&self, bytes: u64) -> Result<()> {
        let Some(kept) = &self.kept else { return Ok(()) };
        let before = kept.spent.fetch_add(bytes, Ordering::Relaxed);
        match before / kept.look_every == before.saturating_add(bytes) / kept.look_every {
            true => Ok(()),
            false => kept.look(bytes),
        }
    }
}

impl Kept {
    fn look(&self, wanted_bytes: u64) -> Result<()> {
        match free_bytes(self.filesystem.as_fd())?.saturating_sub(wanted_bytes) < self.bytes {
            true => Err(too_little_left()),
            false => Ok(()),
        }
    }
}

const LOOKING: &str = "cannot look how much space is left";

fn free_bytes(filesystem: BorrowedFd<'_>) -> Result<u64> {
    let stat = fs::fstatvfs(filesystem).doing(|| LOOKING)?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}

fn too_little_left() -> Error {
    let message = "no space is left but the part of what was free that an import leaves to others";
    Error::new(ErrorKind::NoSpace, message)
        .with_hint("free some space, or let the import take all of it with --limit free-space-percent=100")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_writes_add_up_to_a_look() {
        let disk = std::fs::File::open("/tmp").expect("opens");
        // No disk has that much, so the first look refuses.
        let headroom = Headroom::leaving(u64::MAX, &disk).expect("looks");
        let spent = (0..LOOK_EVERY_BYTES / 4096).take_while(|_| headroom.spend(4096).is_ok()).count() as u64;
        assert_eq!(spent, LOOK_EVERY_BYTES / 4096 - 1);
    }

    #[test]
    fn what_does_not_fit_is_refused_before_it_is_written() {
        let disk = std::fs::File::open("/tmp").expect("opens");
        let headroom = Headroom::taking(50, &disk).expect("looks");
        headroom.spend(1).expect("a byte");
        assert_eq!(headroom.spend(u64::MAX / 2).expect_err("too much").kind(), ErrorKind::NoSpace);
        Headroom::taking(100, &disk).expect("looks").spend(u64::MAX).expect("all of it may be taken");
    }
}

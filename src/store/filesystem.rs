//! Which filesystems can hold a store.
//!
//! Network filesystems do not keep SQLite's shared memory coherent between hosts, so a store on one would be lost
//! sooner or later. FUSE and overlayfs cannot be the upper or, with whiteouts of their own, the lower layer of an
//! overlay; a plain store works there.

use super::SnapshotterKind;
use crate::error::{Error, ErrorKind, Result, ResultExt};
use rustix::fd::BorrowedFd;
use rustix::fs::{self, Access, AtFlags, StatVfsMountFlags};
use rustix::io::Errno;

/// From `linux/magic.h`, where it lists them, else from the filesystem's own source.
const NETWORK: [(u64, &str); 5] =
    [(0x6969, "NFS"), (0xff53_4d42, "CIFS"), (0xfe53_4d42, "SMB"), (0x517b, "SMB"), (0x0102_1997, "9p")];
pub(super) const EXT: u64 = 0xef53;
pub(super) const BTRFS: u64 = 0x9123_683e;
const FUSE: u64 = 0x6573_5546;
const OVERLAYFS: u64 = 0x794c_7630;

pub(super) fn magic(root: BorrowedFd<'_>) -> Result<u64> {
    let stat = fs::fstatfs(root).doing(|| "cannot look at the filesystem")?;
    // The type's width and sign differ between architectures; magics have 32 bits.
    Ok(stat.f_type as u64 & 0xffff_ffff)
}

/// Whether this process can write there at all.
pub(super) fn is_writable(root: BorrowedFd<'_>) -> Result<bool> {
    let stat = fs::fstatvfs(root).doing(|| "cannot look at the filesystem")?;
    if stat.f_flag.contains(StatVfsMountFlags::RDONLY) {
        return Ok(false);
    }
    match fs::accessat(root, ".", Access::WRITE_OK, AtFlags::EACCESS) {
        Ok(()) => Ok(true),
        Err(Errno::ACCESS | Errno::ROFS | Errno::PERM) => Ok(false),
        Err(errno) => Err(errno).doing(|| "cannot look at the directory"),
    }
}

/// The filesystem's name, if overlay cannot be built on it.
pub(super) fn no_overlay(root: BorrowedFd<'_>) -> Result<Option<&'static str>> {
    Ok(match magic(root)? {
        FUSE => Some("a FUSE filesystem"),
        OVERLAYFS => Some("overlayfs"),
        _ => None,
    })
}

/// Refuses what cannot work. Reading works everywhere.
pub(super) fn check(root: BorrowedFd<'_>, snapshotter: SnapshotterKind, read_only: bool) -> Result<()> {
    if read_only {
        return Ok(());
    }
    let magic = magic(root)?;
    if let Some((_, name)) = NETWORK.iter().find(|(number, _)| *number == magic) {
        let message = format!("it lies on {name}, where locks and the database are not safe");
        return Err(Error::new(ErrorKind::Unsupported, message)
            .with_hint("choose a directory on a local filesystem with --store"));
    }
    match (snapshotter, no_overlay(root)?) {
        (SnapshotterKind::Overlay, Some(name)) => {
            let message = format!("it lies on {name}, on which the overlay snapshotter cannot work");
            Err(Error::new(ErrorKind::Unsupported, message)
                .with_hint("choose the plain snapshotter, or a directory on another filesystem with --store"))
        }
        _ => Ok(()),
    }
}

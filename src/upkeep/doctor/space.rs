//! The filesystem that the store lies on: what it is, what is left of it, and who may enter.

use super::{Remark, size};
use crate::error::Error;
use crate::upkeep::commands::quoted_path;
use rustix::fs::{Stat, StatVfs, stat, statfs, statvfs};
use std::path::Path;

/// Below either of these the next import may well fail.
const LITTLE_BYTES: u64 = 1 << 30;
const LITTLE_PERCENT: u64 = 5;

/// From `linux/magic.h` and the filesystems' own sources.
const NAMES: [(u64, &str); 13] = [
    (0xef53, "ext4"),
    (0x5846_5342, "xfs"),
    (0x9123_683e, "btrfs"),
    (0x0102_1994, "tmpfs"),
    (0x2fc1_2fc1, "zfs"),
    (0xf2f5_2010, "f2fs"),
    (0xca45_1a4e, "bcachefs"),
    (0x794c_7630, "overlayfs"),
    (0x6573_5546, "fuse"),
    (0x6969, "nfs"),
    (0xff53_4d42, "cifs"),
    (0xfe53_4d42, "smb"),
    (0x0102_1997, "9p"),
];

pub(super) fn look(root: &Path) -> Vec<Remark> {
    match (stat(root), statvfs(root)) {
        (Ok(stat), Ok(filesystem)) => {
            let mut remarks = vec![kind(root), free(&filesystem), inodes(&filesystem)];
            remarks.extend(privacy(root, &stat));
            remarks
        }
        (Err(errno), _) | (_, Err(errno)) => {
            let error = Error::from(errno);
            vec![Remark::fault("filesystem", format!("cannot look at {}: {error}", root.display()))]
        }
    }
}

fn kind(root: &Path) -> Remark {
    let magic = statfs(root).map_or(0, |stat| stat.f_type as u64 & 0xffff_ffff);
    let name = NAMES.iter().find(|(number, _)| *number == magic).map(|(_, name)| *name);
    match name {
        Some(name @ ("nfs" | "cifs" | "smb" | "9p")) => {
            Remark::fault("filesystem", format!("{name}: locks and the database are not safe there"))
                .mend("choose a directory on a local filesystem with --store")
        }
        Some(name @ ("overlayfs" | "fuse")) => {
            Remark::note("filesystem", format!("{name}: only plain snapshots work there, by full copies"))
                .mend("choose a directory on another filesystem with --store, such as a volume")
        }
        Some("tmpfs") => Remark::note("filesystem", "tmpfs: everything is gone with the next boot"),
        Some(name) => Remark::good("filesystem", name),
        None => Remark::good("filesystem", format!("one with the number {magic:#x}")),
    }
}

fn free(filesystem: &StatVfs) -> Remark {
    let (free, all) = (filesystem.f_bavail * filesystem.f_frsize, filesystem.f_blocks * filesystem.f_frsize);
    let says = format!("{} free of {}", size(free), size(all));
    judge("space", says, free, all, LITTLE_BYTES)
}

fn inodes(filesystem: &StatVfs) -> Remark {
    match filesystem.f_files {
        0 => Remark::good("inodes", "made as they are needed"),
        all => {
            let says = format!("{} free of {all}", filesystem.f_favail);
            judge("inodes", says, filesystem.f_favail, all, 0)
        }
    }
}

fn judge(topic: &'static str, says: String, free: u64, all: u64, little: u64) -> Remark {
    let mend = "transload gc, and transload du to see what takes the room";
    match (free, free < little || free < all / 100 * LITTLE_PERCENT) {
        (0, _) => Remark::fault(topic, format!("none: {says}")).mend(mend),
        (_, true) => Remark::note(topic, format!("little: {says}")).mend(mend),
        _ => Remark::good(topic, says),
    }
}

/// Trees hold set-uid programs; nobody else may reach them.
fn privacy(root: &Path, stat: &Stat) -> Option<Remark> {
    let mode = stat.st_mode & 0o7777;
    (mode & 0o077 != 0).then(|| {
        Remark::fault("permissions", format!("others can enter the store: its mode is {mode:04o}"))
            .mend(format!("chmod 0700 {}", quoted_path(root)))
    })
}

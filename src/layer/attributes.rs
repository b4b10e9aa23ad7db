//! Owner, mode, extended attributes and times, put on files in the order that the kernel needs: chown clears setuid
//! bits and capabilities, an ACL rewrites the mode, and everything touches the times.

use super::notices::Notices;
use super::{Ownership, beyond_filesystem, beyond_linux};
use crate::error::{Error, ErrorKind, Result, ResultExt};
use crate::io::tar::{Entry, Mtime};
use rustix::fd::{AsFd, BorrowedFd};
use rustix::fs::{self, AtFlags, Gid, Mode, Timespec, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;

/// The longest name of an extended attribute, from the kernel's `uapi/linux/limits.h`.
const XATTR_NAME_MAX: usize = 255;
/// The longest value, from there too.
const XATTR_SIZE_MAX: usize = 65536;
const TOO_MUCH: &str =
    "the attributes of this file are larger than the store's filesystem holds for one file";
/// A filesystem with so much room has a block for attributes.
const SPARE_BYTES: u64 = 1 << 20;

/// What becomes of an extended attribute of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum XattrVerdict {
    /// It is set.
    Keep,
    /// It is left out and reported.
    Drop,
}

/// Whether an attribute describes the file, or would steer this machine's kernel.
pub fn judge_xattr(name: &[u8]) -> XattrVerdict {
    let is_plain_user =
        name.starts_with(b"user.") && !name.starts_with(b"user.overlay.") && name != b"user.overlay";
    match name {
        b"security.capability" | b"system.posix_acl_access" | b"system.posix_acl_default" => {
            XattrVerdict::Keep
        }
        _ if is_plain_user => XattrVerdict::Keep,
        _ => XattrVerdict::Drop,
    }
}

/// What a file is to look like.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Attributes {
    pub mode: u32,
    pub uid: u64,
    pub gid: u64,
    pub mtime: Mtime,
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Attributes {
    /// Takes the attributes out of an entry.
    pub fn of(entry: &mut Entry) -> Self {
        let xattrs = std::mem::take(&mut entry.xattrs);
        Attributes { mode: entry.mode, uid: entry.uid, gid: entry.gid, mtime: entry.mtime, xattrs }
    }

    /// A directory that nobody described: deterministic, so that equal layers give equal trees.
    pub fn implicit() -> Self {
        Attributes { mode: 0o755, uid: 0, gid: 0, mtime: Mtime::default(), xattrs: Vec::new() }
    }
}

/// What files get by themselves in this store, so that only differences cost a call.
#[derive(Clone, Copy, Debug)]
pub(super) struct Defaults {
    /// The owner of a new file.
    pub uid: u32,
    /// The group of a new file.
    pub gid: u32,
    /// Whether a new file has exactly the mode that was asked for.
    pub exact_mode: bool,
    /// See [`Ownership`].
    pub ownership: Ownership,
}

impl Defaults {
    /// The owner and group to set, or nothing to do.
    pub fn owner_change(&self, uid: u64, gid: u64) -> Result<Option<(Uid, Gid)>> {
        if self.ownership == Ownership::Ignore || (uid == u64::from(self.uid) && gid == u64::from(self.gid)) {
            return Ok(None);
        }
        // The highest number means "leave as it is" to the kernel.
        let id = |id: u64| u32::try_from(id).ok().filter(|&id| id != u32::MAX);
        match (id(uid), id(gid)) {
            (Some(uid), Some(gid)) => Ok(Some((Uid::from_raw(uid), Gid::from_raw(gid)))),
            _ => Err(owner_error(Error::malformed("no such owner can exist"), uid, gid)),
        }
    }
}

pub(super) fn owner_error(error: Error, uid: u64, gid: u64) -> Error {
    error
        .context(format!("cannot give the file to {uid}:{gid}"))
        .with_hint("with --ignore-chown files belong to whoever imports them")
}

fn set_owner_error(errno: Errno, owner: (Uid, Gid)) -> Error {
    let error = match errno {
        // In a user namespace an owner that is not mapped is an invalid argument.
        Errno::INVAL => Error::new(ErrorKind::Permission, "this owner does not exist in the user namespace"),
        errno => errno.into(),
    };
    owner_error(error, owner.0.as_raw().into(), owner.1.as_raw().into())
}

/// Gives an open file or directory its owner.
pub(super) fn set_owner(fd: impl AsFd, owner: (Uid, Gid)) -> Result<()> {
    fs::fchown(fd, Some(owner.0), Some(owner.1)).map_err(|errno| set_owner_error(errno, owner))
}

/// Gives an entry of `dir` its owner, following nothing.
pub(super) fn set_owner_at(dir: BorrowedFd<'_>, base: &[u8], owner: (Uid, Gid)) -> Result<()> {
    let flags = AtFlags::SYMLINK_NOFOLLOW;
    fs::chownat(dir, base, Some(owner.0), Some(owner.1), flags).map_err(|errno| set_owner_error(errno, owner))
}

/// Access and change time alike, as nobody wants the hour of the import in a tree.
pub(super) fn timestamps(mtime: Mtime) -> Timestamps {
    let time = Timespec { tv_sec: mtime.seconds, tv_nsec: mtime.nanoseconds.into() };
    Timestamps { last_access: time, last_modification: time }
}

/// Sets those attributes that are kept, and reports the others.
pub(super) fn set_xattrs(
    fd: BorrowedFd<'_>,
    xattrs: &[(Vec<u8>, Vec<u8>)],
    path: &[u8],
    notices: &mut Notices,
) -> Result<()> {
    for (name, value) in xattrs {
        if judge_xattr(name) == XattrVerdict::Drop {
            notices.add(format!("extended attribute {} is not kept", shown(name)), path);
            continue;
        }
        match set_xattr(fd, name, value) {
            Ok(()) => {}
            Err(errno) if is_harmless(name, errno) => {
                let what = format!("extended attribute {} cannot be set here: {errno}", shown(name));
                notices.add(what, path);
            }
            Err(errno) => {
                let setting = || format!("cannot set the extended attribute {}", shown(name));
                return Err(xattr_error(fd, name, value, errno)).doing(setting);
            }
        }
    }
    Ok(())
}

fn shown(name: &[u8]) -> String {
    let short = name.get(..XATTR_NAME_MAX).unwrap_or(name);
    String::from_utf8_lossy(short).into_owned()
}

fn set_xattr(fd: BorrowedFd<'_>, name: &[u8], value: &[u8]) -> rustix::io::Result<()> {
    // Names that only the error is made of are not worth a copy with a zero at the end.
    match name.len() > XATTR_NAME_MAX {
        true => Err(Errno::RANGE),
        false => fs::fsetxattr(fd, name, value, XattrFlags::empty()),
    }
}

/// Whose fault it is that an attribute cannot be set: mostly the layer's.
fn xattr_error(fd: BorrowedFd<'_>, name: &[u8], value: &[u8], errno: Errno) -> Error {
    let error = match errno {
        Errno::RANGE if name.len() > XATTR_NAME_MAX => {
            Error::malformed("its name is longer than the 255 bytes that Linux allows")
        }
        _ if value.len() > XATTR_SIZE_MAX => {
            beyond_linux("its value is longer than the 64 KiB that Linux allows")
        }
        Errno::INVAL if name == b"user." => Error::malformed("it has no name"),
        Errno::INVAL => Error::malformed(
            "the kernel finds its value invalid, or it names someone whom this user namespace does not have",
        ),
        // Only directories hand an access list down.
        Errno::ACCESS if name == b"system.posix_acl_default" => {
            Error::malformed("only a directory can have one")
        }
        Errno::TOOBIG | Errno::RANGE => beyond_filesystem(TOO_MUCH),
        // ext4 has one block for all attributes of a file.
        Errno::NOSPC if has_space(fd, value.len()) => beyond_filesystem(TOO_MUCH),
        errno => return errno.into(),
    };
    error.with_source(errno)
}

/// Whether the filesystem has room enough and to spare, so that a lack of space is about something else.
fn has_space(fd: BorrowedFd<'_>, wanted_bytes: usize) -> bool {
    let enough = wanted_bytes as u64 + SPARE_BYTES;
    fs::fstatvfs(fd).is_ok_and(|stat| stat.f_bavail.saturating_mul(stat.f_frsize) > enough)
}

/// What the filesystem cannot hold is reported; a missing capability would break a program, so only those who could
/// never set one go without.
fn is_harmless(name: &[u8], errno: Errno) -> bool {
    match (name, errno) {
        (b"security.capability", Errno::PERM) => !rustix::process::geteuid().is_root(),
        (b"security.capability", _) => false,
        (_, errno) => matches!(errno, Errno::OPNOTSUPP | Errno::PERM),
    }
}

/// Sets the mode of an entry that cannot be opened, such as a device, following nothing.
pub(super) fn set_mode_at(dir: BorrowedFd<'_>, base: &[u8], mode: u32) -> Result<()> {
    use rustix::fs::OFlags;
    use std::os::fd::AsRawFd;
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let handle = fs::openat(dir, base, flags, Mode::empty())?;
    // fchmod refuses such a handle; fchmodat2 takes it from Linux 6.6 on, the detour through /proc always has.
    // SAFETY: the arguments are a live descriptor, a NUL-terminated string and numbers.
    let result = unsafe {
        libc::syscall(libc::SYS_fchmodat2, handle.as_raw_fd(), c"".as_ptr(), mode, libc::AT_EMPTY_PATH)
    };
    if result == 0 {
        return Ok(());
    }
    let detour = format!("/proc/self/fd/{}", handle.as_raw_fd());
    Ok(fs::chmod(detour, Mode::from_raw_mode(mode))?)
}

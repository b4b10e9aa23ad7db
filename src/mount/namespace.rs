//! Mounting without privilege: a user namespace in which the caller is root.

use crate::error::{Error, ErrorKind, Result, ResultExt};
use rustix::io::Errno;
use rustix::thread::UnshareFlags;

/// Moves the calling process into a new user and mount namespace in which `uid` and `gid` (its own) are root.
///
/// Only these two ids exist inside: mapping a range of `/etc/subuid` takes a setuid helper program, and no program is
/// ever looked up here. So files of other owners cannot be made, which an import reports or is told to ignore. Mounts
/// made inside vanish with the last process of the namespace.
///
/// To be called before the process has a second thread; with one it fails with [`ErrorKind::FailedPrecondition`].
pub fn enter_user_namespace(uid: u32, gid: u32) -> Result<()> {
    // SAFETY: neither flag separates descriptor tables.
    let entered = unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWUSER | UnshareFlags::NEWNS) };
    entered.map_err(explain).doing(|| "cannot enter a user namespace")?;
    // The kernel lets an unprivileged process map its group only after it has given up changing groups.
    for (file, text) in [
        ("setgroups", "deny".to_string()),
        ("uid_map", format!("0 {uid} 1")),
        ("gid_map", format!("0 {gid} 1")),
    ] {
        std::fs::write(format!("/proc/self/{file}"), text)
            .doing(|| format!("cannot write {file} of the user namespace"))?;
    }
    Ok(())
}

fn explain(errno: Errno) -> Error {
    match errno {
        Errno::PERM | Errno::ACCESS | Errno::NOSPC | Errno::USERS => {
            Error::new(ErrorKind::Permission, "the system does not allow it").with_hint(
                "user namespaces may be switched off (user.max_user_namespaces, kernel.unprivileged_userns_clone, \
                 kernel.apparmor_restrict_unprivileged_userns); run as root instead",
            )
        }
        Errno::INVAL => Error::new(ErrorKind::FailedPrecondition, "the process has more than one thread"),
        errno => errno.into(),
    }
}

//! Idmapped mounts (Linux 5.12; as layers of overlayfs 5.19, given one by one 6.5): what is stored stays, its owners are shown as others.
//!
//! The kernel takes the mapping as a user namespace, which a child of ours makes for a moment. An overlay is put together
//! in a mount namespace of a helper thread, where each lower directory is covered by an idmapped clone of itself: the
//! paths stay the same, nobody else sees the clones, and overlayfs keeps them when the namespace is gone. An upper
//! directory is not mapped. What overlayfs copies up belongs to whom it was shown to belong to.

use super::descriptors::{self, Unable};
use super::ids::{IdMapping, IdMaps};
use super::{Failed, Mount};
use rustix::fd::{AsRawFd, OwnedFd};
use rustix::fs::{self, CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{
    MountPropagationFlags, MoveMountFlags, OpenTreeFlags, mount_change, move_mount, open_tree,
};
use rustix::thread::UnshareFlags;
use std::path::Path;

/// The overlay with its lower layers idmapped, not yet attached to anything.
pub(super) fn overlay(mount: &Mount, maps: &IdMaps) -> Result<OwnedFd, Unable> {
    let users = user_namespace(maps).map_err(Failed::at("user namespace"))?;
    let work = || -> Result<OwnedFd, Unable> {
        private_namespace().map_err(Failed::at("unshare"))?;
        mount.lower.iter().try_for_each(|dir| cover(dir, &users))?;
        descriptors::overlay(mount)
    };
    // A scope, so that everything borrowed here outlives the thread.
    std::thread::scope(|scope| scope.spawn(work).join())
        .unwrap_or_else(|_| Err(Failed::at("helper thread")(Errno::IO).into()))
}

/// Shows the owners of a mount that is not attached yet as the mapping says.
pub(super) fn set(tree: &OwnedFd, maps: &IdMaps) -> Result<(), Failed> {
    let users = user_namespace(maps).map_err(Failed::at("user namespace"))?;
    set_namespace(tree, &users)
}

fn set_namespace(tree: &OwnedFd, users: &OwnedFd) -> Result<(), Failed> {
    let attributes = libc::mount_attr {
        attr_set: libc::MOUNT_ATTR_IDMAP,
        attr_clr: 0,
        propagation: 0,
        userns_fd: users.as_raw_fd() as u64,
    };
    descriptors::set_attributes(tree, &attributes).map_err(Failed::at("idmapped mount"))
}

/// Only to be called on a thread of its own, which ends afterwards.
fn private_namespace() -> rustix::io::Result<()> {
    // SAFETY: NEWNS separates this thread's mounts and working directory from the others'; descriptors stay shared.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNS) }?;
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
}

fn cover(dir: &Path, users: &OwnedFd) -> Result<(), Failed> {
    let tree = open_tree(CWD, dir, OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC)
        .map_err(Failed::at("open_tree"))?;
    set_namespace(&tree, users)?;
    move_mount(&tree, "", CWD, dir, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH).map_err(Failed::at("move_mount"))
}

/// A user namespace with this mapping. It lives as long as the descriptor, or a mount that was made with it.
fn user_namespace(maps: &IdMaps) -> rustix::io::Result<OwnedFd> {
    let child = Child::start()?;
    let write = |file: &str, text: String| {
        let flags = OFlags::WRONLY | OFlags::CLOEXEC;
        let fd = fs::open(format!("/proc/{}/{file}", child.0), flags, Mode::empty())?;
        // The kernel wants all of it in one call.
        rustix::io::write(&fd, text.as_bytes()).map(drop)
    };
    write("uid_map", lines(maps.users()))?;
    write("gid_map", lines(maps.groups()))?;
    fs::open(format!("/proc/{}/ns/user", child.0), OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
}

fn lines(ranges: &[IdMapping]) -> String {
    ranges.iter().map(|range| format!("{} {} {}\n", range.inside, range.outside, range.count)).collect()
}

/// A process that does nothing but be in a new user namespace.
struct Child(libc::pid_t);

impl Child {
    fn start() -> rustix::io::Result<Child> {
        // No exit signal, so that no handler of the caller hears of it and no other wait gets it.
        let flags = libc::CLONE_NEWUSER as libc::c_ulong;
        // SAFETY: without CLONE_VM the child has memory of its own, like after fork(2); it makes system calls only.
        let pid = unsafe { libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0) };
        match pid {
            0 => loop {
                // SAFETY: both only ask the kernel for something. Dies with us, else waits to be killed.
                unsafe {
                    libc::syscall(libc::SYS_prctl, libc::PR_SET_PDEATHSIG, libc::SIGKILL, 0, 0, 0);
                    libc::syscall(libc::SYS_ppoll, 0, 0, 0, 0, 0);
                }
            },
            pid if pid > 0 => Ok(Child(pid as libc::pid_t)),
            _ => Err(descriptors::last_errno()),
        }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        // SAFETY: the child has not been waited for, so the number is still its own; no memory is handed over.
        unsafe {
            libc::kill(self.0, libc::SIGKILL);
            while libc::waitpid(self.0, std::ptr::null_mut(), libc::__WALL) < 0
                && descriptors::last_errno() == Errno::INTR
            {}
        }
    }
}

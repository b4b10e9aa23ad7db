//! The mount API of file descriptors: `fsopen`, `fsconfig`, `fsmount`, `move_mount`.

use super::{Failed, Mount, MountKind, idmapped};
use rustix::fd::{AsFd, AsRawFd, OwnedFd};
use rustix::fs::{self, CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, fsconfig_create,
    fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, move_mount, open_tree,
};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Why it was not mounted this way.
pub(super) enum Unable {
    /// The kernel has not got these calls, or overlayfs has not got `lowerdir+`; another way may do.
    NotHere(Errno),
    /// The kernel has it and refused; another way would be refused too.
    Failed(Failed),
}

impl From<Failed> for Unable {
    fn from(failed: Failed) -> Self {
        match failed.errno {
            Errno::NOSYS => Unable::NotHere(failed.errno),
            _ => Unable::Failed(failed),
        }
    }
}

pub(super) fn mount(mount: &Mount, place: &OwnedFd) -> Result<(), Unable> {
    let tree = match (mount.kind, &mount.ids) {
        (MountKind::Bind, _) => bind(mount)?,
        (MountKind::Overlay, None) => overlay(mount)?,
        (MountKind::Overlay, Some(maps)) => idmapped::overlay(mount, maps)?,
    };
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    Ok(move_mount(&tree, "", place, "", flags).map_err(Failed::at("move_mount"))?)
}

fn bind(mount: &Mount) -> Result<OwnedFd, Unable> {
    // Recursive: a runtime that binds expects what is mounted below, too.
    let flags =
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_RECURSIVE;
    let tree = open_tree(CWD, &mount.source, flags).map_err(Failed::at("open_tree"))?;
    if mount.read_only {
        set_read_only(&tree).map_err(Failed::at("mount_setattr"))?;
    }
    if let Some(maps) = &mount.ids {
        idmapped::set(&tree, maps)?;
    }
    Ok(tree)
}

fn set_read_only(tree: &OwnedFd) -> rustix::io::Result<()> {
    let attributes =
        libc::mount_attr { attr_set: libc::MOUNT_ATTR_RDONLY, attr_clr: 0, propagation: 0, userns_fd: 0 };
    set_attributes(tree, &attributes)
}

/// Changes a whole tree of mounts.
pub(super) fn set_attributes(tree: &OwnedFd, attributes: &libc::mount_attr) -> rustix::io::Result<()> {
    // SAFETY: the pointers are to a C string and to a struct of the size given, and live through the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH | libc::AT_RECURSIVE,
            std::ptr::from_ref(attributes),
            size_of::<libc::mount_attr>(),
        )
    };
    if result == 0 { Ok(()) } else { Err(last_errno()) }
}

pub(super) fn last_errno() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)
}

/// The overlay, not yet attached to anything.
pub(super) fn overlay(mount: &Mount) -> Result<OwnedFd, Unable> {
    let context = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC).map_err(Failed::at("fsopen"))?;
    let configured = configure(&context, mount);
    let logged = |failed: Failed| Failed { log: log_of(&context), ..failed };
    match configured {
        Ok(()) => {}
        Err(Unable::Failed(failed)) => return Err(Unable::Failed(logged(failed))),
        Err(not_here) => return Err(not_here),
    }
    fsconfig_create(&context).map_err(Failed::at("fsconfig")).map_err(logged)?;
    let attributes = match mount.read_only {
        true => MountAttrFlags::MOUNT_ATTR_RDONLY,
        false => MountAttrFlags::empty(),
    };
    Ok(fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes).map_err(Failed::at("fsmount"))?)
}

fn configure(context: &OwnedFd, mount: &Mount) -> Result<(), Unable> {
    let mut keep = Vec::new();
    for (index, lower) in mount.lower.iter().enumerate() {
        match set_path(context, "lowerdir+", lower, &mut keep) {
            // The first one tells whether this overlayfs knows the key.
            Err(Errno::INVAL) if index == 0 => return Err(Unable::NotHere(Errno::INVAL)),
            result => result.map_err(Failed::at("lowerdir"))?,
        }
    }
    if let Some(upper) = &mount.upper {
        set_path(context, "upperdir", upper, &mut keep).map_err(Failed::at("upperdir"))?;
    }
    if let Some(work) = &mount.work {
        set_path(context, "workdir", work, &mut keep).map_err(Failed::at("workdir"))?;
    }
    if fits(mount.source.as_os_str()) {
        fsconfig_set_string(context, "source", &mount.source).map_err(Failed::at("source"))?;
    }
    for option in &mount.options {
        match option.split_once('=') {
            Some((key, value)) => fsconfig_set_string(context, key, value),
            None => fsconfig_set_flag(context, option.as_str()),
        }
        .map_err(Failed::at("fsconfig"))?;
    }
    Ok(())
}

/// The kernel takes strings of up to 256 bytes with the terminating zero.
fn fits(text: &OsStr) -> bool {
    text.as_bytes().len() < 256
}

/// A longer path is named by a descriptor, which has to stay open until the mount is made.
fn set_path(context: &OwnedFd, key: &str, path: &Path, keep: &mut Vec<OwnedFd>) -> rustix::io::Result<()> {
    if fits(path.as_os_str()) {
        return fsconfig_set_string(context, key, path);
    }
    let fd = fs::open(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    fsconfig_set_string(context, key, format!("/proc/self/fd/{}", fd.as_raw_fd()))?;
    keep.push(fd);
    Ok(())
}

/// What the kernel wrote into the context: one message a read, `e ` before an error.
fn log_of(context: &OwnedFd) -> String {
    let mut lines = Vec::new();
    let mut buffer = [0; 1024];
    while let Ok(length @ 1..) = rustix::io::read(context.as_fd(), &mut buffer) {
        let line = String::from_utf8_lossy(&buffer[..length]);
        lines.push(line.trim_start_matches("e ").trim_end().to_string());
    }
    lines.join("; ")
}

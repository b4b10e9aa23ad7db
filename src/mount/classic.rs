//! `mount(2)`, for kernels whose overlayfs does not take its layers one by one.
//!
//! All options travel in one string of at most a page, which 40 layers of ordinary paths overflow. So every directory is
//! opened, and a helper thread whose working directory is `/proc/self/fd` names each by its number. The working directory
//! belongs to the whole process, hence the thread, which has left that sharing.

use super::{Failed, Mount, MountKind};
use rustix::fd::{AsRawFd, OwnedFd};
use rustix::fs::{self, Mode, OFlags, StatVfsMountFlags};
use rustix::io::Errno;
use rustix::mount::MountFlags;
use rustix::thread::UnshareFlags;
use std::ffi::CString;
use std::path::Path;

pub(super) fn mount(mount: &Mount, place: &OwnedFd) -> Result<(), Failed> {
    let place = format!("/proc/self/fd/{}", place.as_raw_fd());
    match mount.kind {
        MountKind::Bind => bind(mount, &place),
        MountKind::Overlay => overlay(mount, &place),
    }
}

fn bind(mount: &Mount, place: &str) -> Result<(), Failed> {
    rustix::mount::mount_bind_recursive(&mount.source, place).map_err(Failed::at("mount"))?;
    if !mount.read_only {
        return Ok(());
    }
    let remounted = remount_read_only(&mount.source, place);
    if remounted.is_err() {
        // Better nothing than something writable. The descriptor names what lies below the mount, hence not `place`.
        if let Ok(path) = fs::readlink(place, Vec::new()) {
            let _ = rustix::mount::unmount(path.as_c_str(), rustix::mount::UnmountFlags::DETACH);
        }
    }
    remounted.map_err(Failed::at("remount"))
}

fn remount_read_only(source: &Path, place: &str) -> rustix::io::Result<()> {
    // What is locked in a user namespace must be repeated, or the kernel refuses.
    let old = fs::statvfs(source)?.f_flag;
    let mut flags = MountFlags::BIND | MountFlags::RDONLY;
    for (seen, flag) in [
        (StatVfsMountFlags::NOSUID, MountFlags::NOSUID),
        (StatVfsMountFlags::NODEV, MountFlags::NODEV),
        (StatVfsMountFlags::NOEXEC, MountFlags::NOEXEC),
        (StatVfsMountFlags::NOATIME, MountFlags::NOATIME),
        (StatVfsMountFlags::RELATIME, MountFlags::RELATIME),
    ] {
        flags.set(flag, old.contains(seen));
    }
    let path = fs::readlink(place, Vec::new())?;
    rustix::mount::mount_remount(path.as_c_str(), flags, c"")
}

fn overlay(mount: &Mount, place: &str) -> Result<(), Failed> {
    let mut layers = Layers::default();
    let lower: Result<Vec<String>, Errno> = mount.lower.iter().map(|dir| layers.name(dir)).collect();
    let mut options = mount.options.clone();
    options.push(format!("lowerdir={}", lower.map_err(Failed::at("lowerdir"))?.join(":")));
    if let (Some(upper), Some(work)) = (&mount.upper, &mount.work) {
        options.push(format!("upperdir={}", layers.name(upper).map_err(Failed::at("upperdir"))?));
        options.push(format!("workdir={}", layers.name(work).map_err(Failed::at("workdir"))?));
    }
    let data = CString::new(options.join(",")).map_err(|_| Failed::at("mount")(Errno::INVAL))?;
    let flags = if mount.read_only { MountFlags::RDONLY } else { MountFlags::empty() };
    let work =
        || in_descriptors(|| rustix::mount::mount(&mount.source, place, "overlay", flags, data.as_c_str()));
    // A scope, so that everything borrowed here outlives the thread.
    let joined = std::thread::scope(|scope| scope.spawn(work).join());
    joined.unwrap_or(Err(Errno::IO)).map_err(Failed::at("mount"))
}

/// Runs `call` where a bare number is an open descriptor. Only to be called on a thread of its own.
fn in_descriptors(call: impl FnOnce() -> rustix::io::Result<()>) -> rustix::io::Result<()> {
    // SAFETY: CLONE_FS separates working directory, root and umask of this thread; descriptors stay shared.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::FS) }?;
    rustix::process::chdir("/proc/self/fd")?;
    call()
}

/// Directories that are named by their descriptors while this lives.
#[derive(Default)]
struct Layers(Vec<OwnedFd>);

impl Layers {
    fn name(&mut self, dir: &Path) -> rustix::io::Result<String> {
        let fd = fs::open(dir, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        let name = fd.as_raw_fd().to_string();
        self.0.push(fd);
        Ok(name)
    }
}

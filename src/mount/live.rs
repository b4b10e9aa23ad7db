//! What the kernel knows of filesystems that no mount table shows: in namespaces that nobody lives in, in those of
//! processes that cannot be looked into, and after a lazy unmount.

use rustix::fd::AsRawFd;
use rustix::fs::{self, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{FsOpenFlags, fsconfig_create, fsconfig_set_string, fsopen};
use std::path::Path;

/// Whether a filesystem of this device, major and minor, lives: it is mounted somewhere, or something in it is held. The
/// number of one that is gone is given to another. `None` where the kernel does not tell.
pub fn is_live(device: (u32, u32)) -> Option<bool> {
    match call(device) {
        Some(false) => {
            // Some sandboxes answer so whatever they are asked.
            let known = fs::stat("/proc").ok()?.st_dev;
            (call((fs::major(known), fs::minor(known))) == Some(true)).then_some(false)
        }
        other => other,
    }
}

/// `ustat(2)`, which looks for a filesystem by its device alone. Only some architectures have it.
#[cfg(target_arch = "x86_64")]
fn call((major, minor): (u32, u32)) -> Option<bool> {
    let number = minor & 0xff | major << 8 | (minor & !0xff) << 12;
    // The kernel's structure has 32 bytes.
    let mut answer = [0_u64; 8];
    // SAFETY: the kernel writes fewer bytes than the array has, and the array lives through the call.
    let result = unsafe { libc::syscall(libc::SYS_ustat, libc::c_ulong::from(number), answer.as_mut_ptr()) };
    match (result, super::descriptors::last_errno()) {
        (0, _) => Some(true),
        (_, Errno::INVAL) => Some(false),
        _ => None,
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn call(_: (u32, u32)) -> Option<bool> {
    None
}

/// Whether an overlay that lives anywhere has this upper directory. `None` where the kernel does not tell, as without the
/// right to mount.
///
/// The kernel marks upper directories in use, and with `index=on` refuses to use one twice. So it is asked for an overlay
/// that it cannot make, because the work directory lies on another filesystem: it looks at that after the mark, and
/// nothing is written. The refusal leaves a line in the kernel's log.
pub fn is_upper_used(upper: &Path) -> Option<bool> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let dir = fs::open(upper, flags, Mode::empty()).ok()?;
    let path = format!("/proc/self/fd/{}", dir.as_raw_fd());
    let context = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC).ok()?;
    for (key, value) in [("lowerdir", &*path), ("upperdir", &*path), ("workdir", "/proc"), ("index", "on")] {
        fsconfig_set_string(&context, key, value).ok()?;
    }
    match fsconfig_create(&context) {
        Err(Errno::BUSY) => Some(true),
        Err(Errno::INVAL) => Some(false),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(target_arch = "x86_64")]
    fn a_filesystem_that_is_mounted_lives_and_a_number_of_none_does_not() {
        let stat = fs::stat("/proc").expect("stats");
        let device = (fs::major(stat.st_dev), fs::minor(stat.st_dev));
        // Where the call is forbidden it does not tell.
        assert!(is_live(device).is_none_or(|live| live));
        assert!(is_live((0, 0xf_fffe)).is_none_or(|live| !live));
    }

    #[test]
    fn a_directory_that_no_overlay_uses_stays_as_it_is() {
        let dir = tempfile::tempdir().expect("a directory");
        assert_ne!(is_upper_used(dir.path()), Some(true));
        assert_eq!(std::fs::read_dir(dir.path()).expect("lists").count(), 0);
        assert_eq!(is_upper_used(&dir.path().join("nothing")), None);
    }
}

//! What this kernel can do, asked of the kernel itself wherever it answers.

use super::Remark;
use crate::layer::Confinement;
use crate::tree::WhiteoutForm;
use rustix::fd::AsFd;
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, open, openat2};
use rustix::io::Errno;
use rustix::mount::{FsOpenFlags, fsconfig_set_string, fsopen};
use std::fs::read_to_string;

pub(super) fn look() -> Vec<Remark> {
    let mut remarks = vec![kernel(), openat2_works(), overlay(), mount_api(), idmap(), landlock()];
    remarks.push(user_namespaces());
    remarks
}

fn kernel() -> Remark {
    let name = rustix::system::uname();
    let text = |part: &std::ffi::CStr| part.to_string_lossy().into_owned();
    let who = match rustix::process::geteuid().is_root() {
        true => "as root",
        false => "without root",
    };
    Remark::good("kernel", format!("Linux {}, {}, {who}", text(name.release()), text(name.machine())))
}

/// Without it nothing is extracted: it is what keeps an archive's paths inside.
fn openat2_works() -> Remark {
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    match openat2(CWD, ".", flags, Mode::empty(), resolve) {
        Ok(_) => Remark::good("openat2", "paths from archives are resolved by the kernel inside their tree"),
        Err(errno) => Remark::fault("openat2", format!("it does not work: {}", said(errno)))
            .mend("use Linux 5.6 or later, and a seccomp profile that allows openat2"),
    }
}

fn overlay() -> Remark {
    let listed = read_to_string("/proc/filesystems")
        .is_ok_and(|text| text.lines().any(|line| line.split_whitespace().last() == Some("overlay")));
    match listed {
        true => Remark::good("overlay", "the kernel has overlayfs"),
        false => Remark::note("overlay", "the kernel does not list overlayfs; it may be a module").mend(
            "modprobe overlay, or use a store with plain snapshots: transload import --snapshotter plain",
        ),
    }
}

/// Whether an overlay can be made layer by layer; without, many layers go through one page of options.
fn mount_api() -> Remark {
    let context = match fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC) {
        Ok(context) => context,
        Err(Errno::PERM) => {
            return Remark::note("mount api", "only root of a namespace may ask; mounts need that anyway");
        }
        Err(errno) => {
            return Remark::note("mount api", format!("fsopen: {}; mount(2) is used instead", said(errno)));
        }
    };
    match fsconfig_set_string(&context, "lowerdir+", "/") {
        Ok(()) => Remark::good("mount api", "fsopen and lowerdir+: any number of layers up to 500"),
        Err(errno) => {
            let says = format!("fsopen, but not lowerdir+ ({}): mount(2) is used instead", said(errno));
            Remark::note("mount api", says)
        }
    }
}

/// The call with nothing to work on: a kernel that has it complains of the descriptor.
fn idmap() -> Remark {
    let attributes = libc::mount_attr {
        attr_set: libc::MOUNT_ATTR_IDMAP,
        attr_clr: 0,
        propagation: 0,
        userns_fd: u64::from(u32::MAX),
    };
    // SAFETY: the pointers are to a C string and to a struct of the size given, and live through the call; no
    // descriptor has the number -1.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            -1,
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            &attributes,
            size_of::<libc::mount_attr>(),
        )
    };
    let errno = Errno::from_io_error(&std::io::Error::last_os_error());
    match (result, errno) {
        (-1, Some(Errno::NOSYS)) => {
            Remark::note("idmapped mounts", "the kernel has none (Linux 5.12): mapped mounts need a copy")
        }
        (-1, Some(Errno::PERM)) => Remark::note("idmapped mounts", "only root may ask"),
        _ => Remark::good("idmapped mounts", "the kernel has them; the filesystem has a say as well"),
    }
}

/// Tried as an import does it: a thread is confined to a place, and then cannot look elsewhere.
fn landlock() -> Remark {
    let (report, holds) = std::thread::scope(|scope| scope.spawn(confined).join())
        .unwrap_or_else(|_| (crate::layer::ConfinementReport::default(), false));
    let unconfined = |why: &str| {
        let says = format!("{why}: the threads that extract are not confined to the store");
        Remark::note("landlock", says).mend("boot with lsm=landlock,… (Linux 5.19 or later)")
    };
    match (report.landlock_abi, report.missing) {
        (0, missing) => unconfined(&missing.unwrap_or_else(|| "it could not be tried".to_string())),
        (_, _) if !holds => unconfined("it does not hold"),
        (_, Some(missing)) => Remark::note(
            "landlock",
            format!("the threads that extract are confined to the store, but {missing}"),
        ),
        (version, None) => Remark::good(
            "landlock",
            format!("version {version}: the threads that extract are confined to the store and the archive"),
        ),
    }
}

/// Confines the calling thread, which is to end, to `/proc`; and whether the root can no longer be listed then.
fn confined() -> (crate::layer::ConfinementReport, bool) {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let Ok(place) = open("/proc", flags, Mode::empty()) else {
        return (crate::layer::confinement_support(), true);
    };
    let confinement = Confinement::new(place.as_fd(), None, WhiteoutForm::Trusted);
    confinement.enter();
    (confinement.report(), open("/", flags, Mode::empty()).err() == Some(Errno::ACCESS))
}

fn user_namespaces() -> Remark {
    let number = |path: &str| read_to_string(path).ok().and_then(|text| text.trim().parse::<u64>().ok());
    let blocked = [
        ("user.max_user_namespaces", number("/proc/sys/user/max_user_namespaces") == Some(0), "15000"),
        (
            "kernel.unprivileged_userns_clone",
            number("/proc/sys/kernel/unprivileged_userns_clone") == Some(0),
            "1",
        ),
        (
            "kernel.apparmor_restrict_unprivileged_userns",
            number("/proc/sys/kernel/apparmor_restrict_unprivileged_userns") == Some(1),
            "0",
        ),
    ];
    match blocked.iter().find(|(_, closed, _)| *closed) {
        None if number("/proc/sys/user/max_user_namespaces").is_none() => Remark::note(
            "user namespaces",
            "the kernel has none: without root nothing can be extracted or mounted",
        ),
        None => Remark::good("user namespaces", "allowed: the tool works without root"),
        Some((name, _, open)) => {
            Remark::note("user namespaces", format!("{name} closes them to everyone but root"))
                .mend(format!("sysctl -w {name}={open}"))
        }
    }
}

/// The kernel's words.
pub(super) fn said(errno: Errno) -> String {
    crate::Error::from(errno).to_string()
}

//! Mounting what a snapshotter describes, and looking at what is mounted.
//!
//! Where the kernel has the mount API of file descriptors and overlayfs takes its layers one by one, that is used: no
//! limit on the number of layers, and nothing is visible before it is complete. Elsewhere `mount(2)` takes all layers
//! in one string of at most a page, so a helper thread with a working directory of its own names them by the numbers
//! of open descriptors, a few bytes each.
//!
//! This room knows system calls and nothing of images. It changes no state of the process but the mount table; only
//! [`enter_user_namespace`] does more, and says so.

mod classic;
mod descriptors;
pub mod holders;
mod idmapped;
mod ids;
mod info;
mod live;
mod namespace;

pub use ids::{IdMapping, IdMaps};
pub use info::{MountInfo, all, is_source_of, list, on_top, source_name, source_parts};
pub use live::{is_live, is_upper_used};
pub use namespace::enter_user_namespace;

use crate::error::{Error, ErrorKind, Result, ResultExt};
use crate::parallel::Cancel;
use crate::trace;
use rustix::fd::OwnedFd;
use rustix::fs::{self, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::UnmountFlags;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tracing::Span;

/// What kind of mount it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MountKind {
    /// One directory shown at another place.
    Bind,
    /// Layers shown as one.
    Overlay,
}

/// One mount, as plain data: what a snapshotter answers and a runtime may perform by itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// What kind of mount it is.
    pub kind: MountKind,
    /// The directory of a bind mount; the name that an overlay shows in the mount table.
    pub source: PathBuf,
    /// The layers of an overlay, top first.
    pub lower: Vec<PathBuf>,
    /// Where an overlay keeps what is written; without it nothing can be.
    pub upper: Option<PathBuf>,
    /// What overlayfs needs beside the upper directory.
    pub work: Option<PathBuf>,
    /// Further options of the filesystem.
    pub options: Vec<String>,
    /// Whether the mount refuses writes.
    pub read_only: bool,
    /// Whose files are shown as whose; by [`mount`] alone, options have no words for it. An overlay's upper directory
    /// is not mapped.
    pub ids: Option<IdMaps>,
}

impl Mount {
    /// A bind mount.
    pub fn bind(source: PathBuf, read_only: bool) -> Self {
        Mount {
            kind: MountKind::Bind,
            source,
            lower: Vec::new(),
            upper: None,
            work: None,
            options: Vec::new(),
            read_only,
            ids: None,
        }
    }

    /// The type as `mount(8)` and runtimes call it.
    pub fn fs_type(&self) -> &'static str {
        match self.kind {
            MountKind::Bind => "bind",
            MountKind::Overlay => "overlay",
        }
    }

    /// All options in the words of `mount(8)` and of runtime configurations.
    pub fn option_list(&self) -> Vec<String> {
        let mut options = self.options.clone();
        match self.kind {
            MountKind::Bind => options.push("rbind".into()),
            MountKind::Overlay => {
                if let (Some(work), Some(upper)) = (&self.work, &self.upper) {
                    options.push(format!("workdir={}", escaped(work)));
                    options.push(format!("upperdir={}", escaped(upper)));
                }
                let lower: Vec<String> = self.lower.iter().map(|dir| escaped(dir)).collect();
                options.push(format!("lowerdir={}", lower.join(":")));
            }
        }
        options.push(if self.read_only { "ro" } else { "rw" }.into());
        options
    }
}

/// Overlayfs separates layers by colons, and options by commas.
fn escaped(path: &Path) -> String {
    let text = path.to_string_lossy();
    text.replace('\\', "\\\\").replace(':', "\\:").replace(',', "\\,")
}

/// Which system calls mount.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MountMethod {
    /// Descriptors where the kernel can, else `mount(2)`.
    #[default]
    Auto,
    /// Only the mount API of file descriptors.
    Descriptors,
    /// Only `mount(2)`.
    Classic,
}

/// How to mount.
#[derive(Clone, Debug)]
pub struct MountOptions {
    /// Which system calls mount.
    pub method: MountMethod,
    /// How often a busy kernel is asked before giving up.
    pub attempts: u32,
    /// Ends the waiting between attempts.
    pub cancel: Cancel,
}

impl Default for MountOptions {
    /// Ten attempts take about a second.
    fn default() -> Self {
        MountOptions { method: MountMethod::Auto, attempts: 10, cancel: Cancel::new() }
    }
}

/// A mount that was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mounted {
    /// How often the kernel was asked.
    pub attempts: u32,
    /// Which system calls did it; never [`MountMethod::Auto`].
    pub method: MountMethod,
}

/// Mounts `mount` at the directory `target`, trying again while the kernel is busy.
pub fn mount(mount: &Mount, target: &Path, options: &MountOptions) -> Result<Mounted> {
    let span = trace::stage!(
        "mount",
        target = trace::display(target.display()),
        kind = mount.fs_type(),
        layers = mount.lower.len() as u64,
        attempts,
    );
    trace::within(span, |span| mount_at(mount, target, options, span))
}

fn mount_at(mount: &Mount, target: &Path, options: &MountOptions, span: &Span) -> Result<Mounted> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let doing = || format!("cannot mount {} at {}", mount.fs_type(), target.display());
    let place = fs::open(target, flags, Mode::empty()).doing(doing)?;
    let mut attempts = 0;
    let method = retried(options, &mut attempts, || once(mount, &place, options.method));
    span.record("attempts", attempts);
    match method {
        Ok(method) => Ok(Mounted { attempts, method }),
        Err(Failure::Cancelled) => Err(Error::cancelled().context(doing())),
        Err(Failure::Kernel(failed)) => Err(explain(mount, failed).context(doing())),
    }
}

/// Mounts all of `mounts` at `target`, the later ones over the earlier ones. Tells how often the kernel was asked.
pub fn mount_all(mounts: &[Mount], target: &Path, options: &MountOptions) -> Result<u32> {
    mounts.iter().try_fold(0, |attempts, one| Ok(attempts + mount(one, target, options)?.attempts))
}

/// Takes down the topmost mount at `target`. [`ErrorKind::Busy`] while something in it is in use,
/// [`ErrorKind::NotFound`] where nothing is mounted.
pub fn unmount(target: &Path) -> Result<()> {
    unmount_counting(target, &Cancel::new()).map(drop)
}

/// As [`unmount`]; the waiting between attempts can be cancelled, and their number is given.
pub fn unmount_counting(target: &Path, cancel: &Cancel) -> Result<u32> {
    let span = trace::stage!("umount", target = trace::display(target.display()), attempts);
    trace::within(span, |span| unmount_at(target, cancel, span))
}

fn unmount_at(target: &Path, cancel: &Cancel, span: &Span) -> Result<u32> {
    let mut attempts = 0;
    let options = MountOptions { attempts: 5, cancel: cancel.clone(), ..MountOptions::default() };
    let doing = || format!("cannot unmount {}", target.display());
    let unmounted = retried(&options, &mut attempts, || {
        rustix::mount::unmount(target, UnmountFlags::NOFOLLOW).map_err(|errno| Failed {
            errno,
            what: "umount",
            log: String::new(),
        })
    });
    span.record("attempts", attempts);
    match unmounted {
        Ok(()) => Ok(attempts),
        Err(Failure::Cancelled) => Err(Error::cancelled().context(doing())),
        Err(Failure::Kernel(failed)) => Err(match failed.errno {
            Errno::BUSY => Error::from(Errno::BUSY)
                .with_hint("a process has its working directory or an open file there; end it and try again"),
            Errno::INVAL => Error::new(ErrorKind::NotFound, "nothing is mounted there"),
            Errno::PERM => {
                Error::from(Errno::PERM).with_hint("unmounting needs root, or the namespace that mounted it")
            }
            errno => errno.into(),
        }
        .context(doing())),
    }
}

/// A system call that failed, and what the kernel wrote about it.
struct Failed {
    errno: Errno,
    what: &'static str,
    log: String,
}

impl Failed {
    fn at(what: &'static str) -> impl Fn(Errno) -> Failed {
        move |errno| Failed { errno, what, log: String::new() }
    }
}

enum Failure {
    Cancelled,
    Kernel(Failed),
}

/// Calls again, with growing pauses, while the kernel says that something is busy for the moment.
fn retried<T>(
    options: &MountOptions,
    attempts: &mut u32,
    mut call: impl FnMut() -> std::result::Result<T, Failed>,
) -> std::result::Result<T, Failure> {
    let mut pause = Duration::from_millis(2);
    loop {
        *attempts += 1;
        match call() {
            Ok(value) => return Ok(value),
            Err(failed) if !may_pass(failed.errno) => return Err(Failure::Kernel(failed)),
            Err(failed) if *attempts >= options.attempts => return Err(Failure::Kernel(failed)),
            Err(_) if options.cancel.is_cancelled() => return Err(Failure::Cancelled),
            Err(_) => std::thread::sleep(pause),
        }
        pause = (pause * 2).min(Duration::from_millis(250));
    }
}

/// What the kernel says of a state that others are about to leave: a mount that is being changed, a lock, memory.
fn may_pass(errno: Errno) -> bool {
    matches!(errno, Errno::BUSY | Errno::AGAIN | Errno::INTR | Errno::NOMEM)
}

fn once(mount: &Mount, place: &OwnedFd, method: MountMethod) -> std::result::Result<MountMethod, Failed> {
    if method != MountMethod::Classic {
        match descriptors::mount(mount, place) {
            Ok(()) => return Ok(MountMethod::Descriptors),
            Err(descriptors::Unable::Failed(failed)) => return Err(failed),
            Err(descriptors::Unable::NotHere(errno)) if method == MountMethod::Descriptors => {
                return Err(Failed::at("the mount API of file descriptors")(errno));
            }
            // It knows nothing of mapped owners.
            Err(descriptors::Unable::NotHere(errno)) if mount.ids.is_some() => {
                return Err(Failed::at("idmapped mount")(errno));
            }
            Err(descriptors::Unable::NotHere(_)) => {}
        }
    }
    if mount.ids.is_some() {
        return Err(Failed::at("idmapped mount")(Errno::OPNOTSUPP));
    }
    classic::mount(mount, place)?;
    Ok(MountMethod::Classic)
}

/// Turns an errno of the kernel into a sentence that says what is missing.
fn explain(mount: &Mount, failed: Failed) -> Error {
    let base = Error::from(failed.errno);
    let mut message = format!("{}: {base}", failed.what);
    if !failed.log.is_empty() {
        message = format!("{message} ({})", failed.log);
    }
    let kind = match failed.errno {
        _ if mount.ids.is_some() && cannot_map(failed.errno) => ErrorKind::Unsupported,
        Errno::NODEV | Errno::NOSYS => ErrorKind::FailedPrecondition,
        _ => base.kind(),
    };
    let error = Error::new(kind, message);
    match hint(mount, failed.errno) {
        Some(hint) => error.with_hint(hint),
        None => error,
    }
}

/// How kernels and filesystems without idmapped mounts, or without them below overlayfs, answer.
fn cannot_map(errno: Errno) -> bool {
    matches!(errno, Errno::INVAL | Errno::OPNOTSUPP | Errno::NOSYS | Errno::PERM | Errno::OVERFLOW)
}

/// `OVL_MAX_STACK` of the kernel's `fs/overlayfs`.
pub(crate) const MAX_LAYERS: usize = 500;

fn hint(mount: &Mount, errno: Errno) -> Option<&'static str> {
    match errno {
        _ if mount.ids.is_some() && cannot_map(errno) => Some(
            "this kernel, filesystem or namespace cannot map owners at a mount; a remapped copy can be used",
        ),
        Errno::PERM | Errno::ACCESS => {
            Some("mounting needs root, or a user namespace: 'transload mount NAME -- COMMAND' makes one")
        }
        Errno::NODEV | Errno::NOSYS => {
            Some("this kernel has no overlayfs; load its module, or make the store with plain snapshots")
        }
        _ if mount.lower.len() > MAX_LAYERS || errno == Errno::TOOBIG => Some(
            "the image has more layers than the kernel mounts; 'transload unpack' writes them as one directory",
        ),
        Errno::BUSY => Some(
            "another overlay uses the same upper or work directory; 'transload doctor' lists the mounts of the store",
        ),
        Errno::INVAL | Errno::OPNOTSUPP if mount.upper.is_some() => Some(upper_hint(mount.upper.as_deref()?)),
        Errno::NOENT | Errno::STALE => Some("a layer is gone; run 'transload fsck'"),
        _ => None,
    }
}

fn upper_hint(upper: &Path) -> &'static str {
    /// From the kernel's `linux/magic.h`.
    const OVERLAYFS: u64 = 0x794c_7630;
    const TMPFS: u64 = 0x0102_1994;
    const NFS: u64 = 0x6969;
    match fs::statfs(upper).map(|stat| stat.f_type as u64) {
        Ok(OVERLAYFS) => {
            "the store lies on an overlay itself, which cannot hold an upper directory; use a volume"
        }
        Ok(TMPFS) => {
            "the store lies on tmpfs, which holds an upper directory only with extended attributes (Linux 6.6)"
        }
        Ok(NFS) => "the store lies on NFS, which cannot hold an upper directory; use a local disk",
        _ => "overlayfs did not take the upper directory; the kernel's log says why",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_refuses_is_explained() {
        let of = |layers: usize| Mount {
            kind: MountKind::Overlay,
            source: "test".into(),
            lower: vec!["/".into(); layers],
            upper: Some("/proc".into()),
            work: Some("/proc".into()),
            options: Vec::new(),
            read_only: false,
            ids: None,
        };
        let table = [
            (2, Errno::PERM, "mounting needs root, or a user namespace"),
            (2, Errno::NODEV, "this kernel has no overlayfs"),
            (501, Errno::INVAL, "more layers than the kernel mounts"),
            (200, Errno::TOOBIG, "more layers than the kernel mounts"),
            (2, Errno::BUSY, "the same upper or work directory"),
            (2, Errno::INVAL, "overlayfs did not take the upper directory"),
            (2, Errno::STALE, "a layer is gone"),
        ];
        for (layers, errno, expected) in table {
            let error = explain(&of(layers), Failed::at("mount")(errno));
            assert!(error.hint().is_some_and(|hint| hint.contains(expected)), "{layers} {errno}: {error:?}");
        }
    }
}

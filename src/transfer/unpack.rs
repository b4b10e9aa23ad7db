//! `unpack`: a snapshot as a plain directory tree, for whoever has no use for mounts.
//!
//! The tree is what a mount would show: owners, modes, attributes, times, hard links, devices, holes. It is made in an
//! empty or a new directory, by any number of threads with the same result. On any failure what was made is removed.

use super::catalogue;
use crate::error::{Error, ErrorKind, Result, ResultExt};
use crate::io::remove;
use crate::parallel::Cancel;
use crate::snapshot::{CopyOptions, CopyReport, Stack, copy_stack};
use crate::store::Store;
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{self, Dir, Mode, OFlags};
use rustix::io::Errno;
use std::path::Path;

/// How to unpack.
#[derive(Clone, Debug)]
pub struct UnpackOptions {
    /// How many files are copied at the same time.
    pub threads: usize,
    /// Without privilege: owners, devices and attributes that the kernel refuses are left out and counted. Otherwise
    /// they are errors.
    pub lenient: bool,
    /// Stops the work; what was made is removed.
    pub cancel: Cancel,
}

/// What was unpacked, and what could not be.
pub type UnpackReport = CopyReport;

/// Copies the root filesystem of an image into `dir`, as [`unpack`] does. The image stays meanwhile, whoever removes it.
pub fn unpack_image(store: &Store, name: &str, dir: &Path, options: &UnpackOptions) -> Result<UnpackReport> {
    let find = || -> Result<_> {
        let (held, inspection) = catalogue::hold(store, name, &options.cancel)?;
        Ok((held, catalogue::stack_of(store, &inspection)?))
    };
    let (_held, stack) = find().doing(|| format!("cannot unpack {name}"))?;
    unpack(&stack, dir, options)
}

/// Copies the merged tree `stack` into `dir`, which must be empty or not be there.
///
/// [`ErrorKind::FailedPrecondition`] if the directory is not empty; then nothing is touched.
pub fn unpack(stack: &Stack, dir: &Path, options: &UnpackOptions) -> Result<UnpackReport> {
    let target = Target::open(dir).doing(|| format!("cannot unpack to {}", dir.display()))?;
    let (threads, lenient) = (options.threads, options.lenient);
    let copying = CopyOptions { threads, lenient, ..CopyOptions::default() };
    let copied = copy_stack(stack, target.fd.as_fd(), &[], &copying, &options.cancel);
    // Where nothing could be held, a layer may have gone while it was listed.
    let copied = copied.and_then(|report| stack.root().map(|_| report));
    if copied.is_err() {
        target.undo(dir);
    } else if stack.layers().is_empty() {
        // Nothing says what the root of an image without layers looks like; elsewhere it would be this.
        fs::fchmod(&target.fd, Mode::from_raw_mode(0o755))
            .doing(|| format!("cannot unpack to {}", dir.display()))?;
    }
    copied.doing(|| format!("cannot unpack to {}", dir.display()))
}

/// The directory to fill.
struct Target {
    fd: OwnedFd,
    made: bool,
}

impl Target {
    fn open(dir: &Path) -> Result<Target> {
        let made = match fs::mkdir(dir, Mode::RWXU) {
            Ok(()) => true,
            Err(Errno::EXIST) => false,
            Err(errno) => return Err(errno.into()),
        };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = fs::open(dir, flags, Mode::empty())?;
        if !made && !is_empty(&fd)? {
            return Err(Error::new(ErrorKind::FailedPrecondition, "the directory is not empty")
                .with_hint("name an empty directory, or one that does not exist"));
        }
        Ok(Target { fd, made })
    }

    /// Best effort: the error that led here is what the caller has to hear of.
    fn undo(&self, dir: &Path) {
        let _ = remove::remove_contents(self.fd.as_fd());
        if self.made {
            let _ = fs::rmdir(dir);
        }
    }
}

fn is_empty(dir: &OwnedFd) -> Result<bool> {
    for entry in Dir::read_from(dir)? {
        let entry = entry?;
        if entry.file_name() != c"." && entry.file_name() != c".." {
            return Ok(false);
        }
    }
    Ok(true)
}

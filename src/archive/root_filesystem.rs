//! Recognises the tar of a root filesystem (`docker export`), which is not an image archive, by its first members:
//! nobody should wait for all of it to be read before being told.

use super::MemberName;
use crate::error::{Error, ErrorKind};
use std::collections::HashSet;

/// Top-level names of a root filesystem; no image archive has one of them.
const NAMES: [&[u8]; 13] = [
    b"bin", b"boot", b"dev", b"etc", b"home", b"lib", b"opt", b"proc", b"root", b"sbin", b"tmp", b"usr",
    b"var",
];

/// So many different ones leave no doubt.
const ENOUGH: usize = 3;

/// Counts what has been seen.
#[derive(Default)]
pub(super) struct RootFilesystem {
    seen: HashSet<&'static [u8]>,
}

impl RootFilesystem {
    /// Takes a member's name in; gives the error once there is no doubt.
    pub(super) fn look(&mut self, name: &MemberName) -> Result<(), Error> {
        let top = name.as_bytes().split(|&byte| byte == b'/').next().unwrap_or_default();
        if let Some(known) = NAMES.iter().find(|known| **known == top) {
            self.seen.insert(known);
        }
        match self.seen.len() >= ENOUGH {
            true => Err(is_root_filesystem()),
            false => Ok(()),
        }
    }
}

fn is_root_filesystem() -> Error {
    Error::new(ErrorKind::NotAnImage, "it is a root filesystem, not an image archive")
        .with_hint("'docker export' writes such; make an image archive with 'docker save' or 'podman save'")
}

/// What [`RootFilesystem::look`] finds in a directory.
pub(super) fn check_directory(dir: &rustix::fd::OwnedFd) -> Result<(), Error> {
    let there =
        |name: &&&[u8]| rustix::fs::statat(dir, **name, rustix::fs::AtFlags::SYMLINK_NOFOLLOW).is_ok();
    match NAMES.iter().filter(there).count() >= ENOUGH {
        true => Err(is_root_filesystem()),
        false => Ok(()),
    }
}

//! Opening what lies below a directory by a path of plain components.
//!
//! No symbolic link is followed on the way and none at the end, so what is opened lies in the layer whatever its owner
//! has put there. Paths longer than the kernel takes at once are walked in pieces.

use crate::error::Result;
use crate::tree::split_path;
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{self, AtFlags, Dir, Mode, OFlags, ResolveFlags, Stat};
use rustix::io::Errno;

/// The kernel takes PATH_MAX (4096) bytes with the terminating zero; a component has at most 255.
const PIECE_BYTES: usize = 3800;

/// Opens `path` below `root`; the empty path is `root` itself. `None` if it is not there.
pub fn open(root: BorrowedFd<'_>, path: &[u8], flags: OFlags) -> rustix::io::Result<Option<OwnedFd>> {
    let mut rest = path;
    let mut above: Option<OwnedFd> = None;
    while rest.len() > PIECE_BYTES {
        let Some(slash) = rest[..PIECE_BYTES].iter().rposition(|&byte| byte == b'/') else {
            return Err(Errno::NAMETOOLONG);
        };
        let base = above.as_ref().map_or(root, |fd| fd.as_fd());
        let directory = OFlags::PATH | OFlags::DIRECTORY;
        let Some(next) = open_piece(base, &rest[..slash], directory)? else { return Ok(None) };
        above = Some(next);
        rest = &rest[slash + 1..];
    }
    let base = above.as_ref().map_or(root, |fd| fd.as_fd());
    open_piece(base, if rest.is_empty() { b"." } else { rest }, flags)
}

fn open_piece(base: BorrowedFd<'_>, path: &[u8], flags: OFlags) -> rustix::io::Result<Option<OwnedFd>> {
    let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    loop {
        match fs::openat2(base, path, flags, Mode::empty(), resolve) {
            Ok(fd) => return Ok(Some(fd)),
            // A link or a file where the path wants a directory: then the path is not there.
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(None),
            // A rename elsewhere made the kernel unsure; it asks to be asked again.
            Err(Errno::AGAIN | Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
}

/// Opens the directory `path` for listing.
pub fn open_dir(root: BorrowedFd<'_>, path: &[u8]) -> rustix::io::Result<Option<OwnedFd>> {
    open(root, path, OFlags::RDONLY | OFlags::DIRECTORY)
}

/// Opens the directory that holds `path`, and gives the name there. The root has none.
pub fn open_parent<'p>(root: BorrowedFd<'_>, path: &'p [u8]) -> Result<(OwnedFd, &'p [u8])> {
    let (parent, name) = split_path(path).ok_or(Errno::INVAL)?;
    let dir = open(root, parent, OFlags::PATH | OFlags::DIRECTORY)?.ok_or(Errno::NOENT)?;
    Ok((dir, name))
}

/// What `path` is, without following it. `None` if it is not there.
pub fn stat(root: BorrowedFd<'_>, path: &[u8]) -> rustix::io::Result<Option<Stat>> {
    match open(root, path, OFlags::PATH)? {
        Some(fd) => fs::fstat(fd).map(Some),
        None => Ok(None),
    }
}

/// The names in a directory, with what they are.
pub fn list(dir: BorrowedFd<'_>) -> rustix::io::Result<Vec<(Vec<u8>, Stat)>> {
    let mut entries = Vec::new();
    for entry in Dir::read_from(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        match fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => entries.push((name.to_bytes().to_vec(), stat)),
            Err(Errno::NOENT) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(entries)
}

//! Directory handles inside one tree, and how to get from a name to a handle without ever leaving it.
//!
//! A name whose directories are all plain is opened by the kernel in one call that follows nothing. Otherwise the walk
//! goes component by component: each is opened without following; a symlink's target is put in its place and is walked
//! from the tree's root or from where it stands. So every handle comes with its real path inside the tree, and nothing
//! that is opened can lie outside.

use super::{beyond_filesystem, beyond_linux};
use crate::error::{Error, ErrorKind, Result};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{Mode, OFlags, ResolveFlags, openat, openat2, readlinkat};
use rustix::io::Errno;
use std::collections::HashMap;
use std::rc::Rc;

/// Handles that are kept open; lanes share one descriptor table of perhaps 1024.
const CACHED: usize = 48;
/// As many symlinks in one walk as the kernel follows.
const SYMLINKS: usize = 40;

/// What the kernel takes at once, without the final zero.
const PATH_MAX: usize = 4095;

/// An open directory and its real path inside the tree.
pub(super) struct Dir {
    fd: OwnedFd,
    path: Vec<u8>,
}

impl Dir {
    /// The real path inside the tree; the root's is empty.
    pub fn path(&self) -> &[u8] {
        &self.path
    }

    /// The real path of something in this directory.
    pub fn path_of(&self, base: &[u8]) -> Vec<u8> {
        match self.path.is_empty() {
            true => base.to_vec(),
            false => [&self.path, &b"/"[..], base].concat(),
        }
    }
}

impl AsFd for Dir {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// What to do about a component that is no directory.
pub(super) trait Missing {
    /// `base` does not exist in `dir`. False gives up; true has made it.
    fn absent(&mut self, dir: &Dir, base: &[u8]) -> Result<bool>;
    /// `base` in `dir` is neither a directory nor a symlink. False gives up; true has made a directory of it.
    fn obstructed(&mut self, dir: &Dir, base: &[u8]) -> Result<bool>;
}

/// Makes nothing: what is not there is not there.
pub(super) struct LookOnly;

impl Missing for LookOnly {
    fn absent(&mut self, _dir: &Dir, _base: &[u8]) -> Result<bool> {
        Ok(false)
    }
    fn obstructed(&mut self, _dir: &Dir, _base: &[u8]) -> Result<bool> {
        Ok(false)
    }
}

/// The handles of one tree.
pub(super) struct Dirs {
    root: Rc<Dir>,
    last: (Vec<u8>, Rc<Dir>),
    cache: HashMap<Vec<u8>, Rc<Dir>>,
    max_depth: usize,
}

impl Dirs {
    /// The handles of the tree whose root is `root`, in which no directory lies deeper than `max_depth`.
    pub fn new(root: BorrowedFd<'_>, max_depth: usize) -> Result<Self> {
        let root = Rc::new(Dir { fd: open_component(root, b".")?, path: Vec::new() });
        Ok(Dirs { last: (Vec::new(), root.clone()), root, cache: HashMap::new(), max_depth })
    }

    /// The handle of a name that was opened lately.
    pub fn recent(&mut self, name: &[u8]) -> Option<Rc<Dir>> {
        if self.last.0 == name {
            return Some(self.last.1.clone());
        }
        let dir = self.cache.get(name)?.clone();
        self.remember_last(name, &dir);
        Some(dir)
    }

    /// The handle of the directory that a cleaned `name` leads to; `None` where `missing` gives up.
    pub fn find(&mut self, name: &[u8], missing: &mut impl Missing) -> Result<Option<Rc<Dir>>> {
        if let Some(dir) = self.recent(name) {
            return Ok(Some(dir));
        }
        let found = match self.open_plain(name)? {
            Some(dir) => Some(Rc::new(dir)),
            None => self.walk(name, missing)?,
        };
        if let Some(dir) = &found {
            if self.cache.len() >= CACHED {
                self.cache.clear();
            }
            self.cache.insert(name.to_vec(), dir.clone());
            self.remember_last(name, dir);
        }
        Ok(found)
    }

    /// Forgets every handle: something that names lead through was replaced.
    pub fn forget(&mut self) {
        self.cache.clear();
        self.last = (Vec::new(), self.root.clone());
    }

    /// Opens a directory by its real path, to read it and change its attributes.
    pub fn open_real(&self, path: &[u8]) -> Result<OwnedFd> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        match path.is_empty() {
            true => openat(&self.root.fd, c".", flags, Mode::empty()),
            false => openat2(&self.root.fd, path, flags, Mode::empty(), plain()),
        }
        .map_err(lookup_error)
    }

    fn remember_last(&mut self, name: &[u8], dir: &Rc<Dir>) {
        self.last.0.clear();
        self.last.0.extend_from_slice(name);
        self.last.1 = dir.clone();
    }

    /// One call if no component is missing or a symlink.
    fn open_plain(&self, path: &[u8]) -> Result<Option<Dir>> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        match openat2(&self.root.fd, path, flags, Mode::empty(), plain()) {
            Ok(fd) => Ok(Some(Dir { fd, path: path.to_vec() })),
            Err(Errno::NOENT | Errno::LOOP | Errno::NOTDIR) => Ok(None),
            Err(errno) => Err(lookup_error(errno)),
        }
    }

    fn walk(&self, name: &[u8], missing: &mut impl Missing) -> Result<Option<Rc<Dir>>> {
        let mut at = self.root.clone();
        let mut ahead: Vec<Vec<u8>> = reversed_components(name).collect();
        let mut symlinks = 0;
        while let Some(component) = ahead.pop() {
            if component == b".." {
                at = self.parent_of(&at)?;
                continue;
            }
            match self.step(&at, &component, missing)? {
                Step::Into(dir) => at = Rc::new(dir),
                Step::GiveUp => return Ok(None),
                Step::Symlink(target) => {
                    symlinks += 1;
                    if symlinks > SYMLINKS {
                        return Err(Error::malformed("the path leads through too many symlinks"));
                    }
                    if target.first() == Some(&b'/') {
                        at = self.root.clone();
                    }
                    ahead.extend(reversed_components(&target));
                }
            }
        }
        Ok(Some(at))
    }

    fn parent_of(&self, dir: &Dir) -> Result<Rc<Dir>> {
        let parent = crate::tree::split_path(&dir.path).map_or(&[][..], |(parent, _)| parent);
        if parent.is_empty() {
            return Ok(self.root.clone());
        }
        let opened = self.open_plain(parent)?;
        opened
            .map(Rc::new)
            .ok_or_else(|| Error::new(ErrorKind::Io, "the tree changes while it is being written"))
    }

    fn step(&self, at: &Dir, base: &[u8], missing: &mut impl Missing) -> Result<Step> {
        match open_component(at.as_fd(), base) {
            Ok(fd) => return self.enter(at, base, fd),
            Err(Errno::NOENT) => {
                if !missing.absent(at, base)? {
                    return Ok(Step::GiveUp);
                }
            }
            // A handle that does not follow finds a symlink not to be a directory.
            Err(Errno::NOTDIR | Errno::LOOP) => match readlinkat(at, base, Vec::new()) {
                Ok(target) => return Ok(Step::Symlink(target.into_bytes())),
                Err(Errno::INVAL) => {
                    if !missing.obstructed(at, base)? {
                        return Ok(Step::GiveUp);
                    }
                }
                Err(errno) => return Err(lookup_error(errno)),
            },
            Err(errno) => return Err(lookup_error(errno)),
        }
        let fd = open_component(at.as_fd(), base).map_err(lookup_error)?;
        self.enter(at, base, fd)
    }

    fn enter(&self, at: &Dir, base: &[u8], fd: OwnedFd) -> Result<Step> {
        let path = at.path_of(base);
        if path.split(|&byte| byte == b'/').count() > self.max_depth {
            return Err(Error::over(
                "path_components",
                format!("the path is deeper than {} directories", self.max_depth),
            ));
        }
        if path.len() > PATH_MAX {
            return Err(beyond_linux(format!("the path is longer than {PATH_MAX} bytes, symlinks followed")));
        }
        Ok(Step::Into(Dir { fd, path }))
    }
}

enum Step {
    Into(Dir),
    Symlink(Vec<u8>),
    GiveUp,
}

fn plain() -> ResolveFlags {
    ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV
}

fn open_component(dir: BorrowedFd<'_>, base: &[u8]) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat(dir, base, flags, Mode::empty())
}

fn reversed_components(path: &[u8]) -> impl Iterator<Item = Vec<u8>> {
    let components = path.split(|&byte| byte == b'/').rev();
    components.filter(|component| !matches!(*component, b"" | b".")).map(<[u8]>::to_vec)
}

/// What the archive's names do to the kernel's lookup is the archive's fault.
pub(super) fn lookup_error(errno: Errno) -> Error {
    match errno {
        Errno::NAMETOOLONG => {
            beyond_filesystem("the name is longer than the filesystem allows").with_source(errno)
        }
        Errno::LOOP => Error::malformed("the path leads through too many symlinks").with_source(errno),
        Errno::NOTDIR => {
            Error::malformed("the path leads through something that is no directory").with_source(errno)
        }
        Errno::NOSYS => Error::new(ErrorKind::Unsupported, "the kernel lacks openat2")
            .with_hint("Linux 5.6 or newer is needed")
            .with_source(errno),
        errno => errno.into(),
    }
}

//! Two directory trees, entry by entry: the layer as it unpacks now, and the tree as it lies in the store.
//!
//! Nothing is followed and no descriptor is held across directories, so neither links nor depth matter.

use crate::error::{Result, ResultExt};
use crate::parallel::Cancel;
use crate::snapshot::{Layer, is_kept_xattr};
use crate::tree::PathBytes;
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{self, FileType, OFlags, Stat};
use rustix::io::Errno;
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::os::unix::fs::FileExt;

/// How many differences are told apart; of a tree that was emptied one wants to know that, and not every name.
const SHOWN: usize = 5;

/// How many bytes of two files are compared at once.
const PIECE_BYTES: usize = 128 << 10;

/// How two trees differ.
#[derive(Debug, Default)]
pub(super) struct Differences {
    pub count: u64,
    /// Whether every entry belongs to the one that [`Owners::Ignore`] names.
    pub of_one: bool,
    shown: Vec<String>,
}

impl Differences {
    fn add(&mut self, path: &[u8], what: impl std::fmt::Display) {
        self.count += 1;
        if self.shown.len() < SHOWN {
            let path = PathBytes::new(path);
            let name = if path.is_root() { ".".to_string() } else { path.to_string() };
            self.shown.push(format!("{name}: {what}"));
        }
    }

    /// One sentence.
    pub fn describe(&self) -> String {
        let more = self.count - self.shown.len() as u64;
        let rest = if more > 0 { format!("; and {more} more") } else { String::new() };
        format!("{}{rest}", self.shown.join("; "))
    }
}

/// Compares the trees `expected` and `actual`.
pub(super) fn compare(
    expected: &Layer,
    actual: &Layer,
    owners: Owners,
    cancel: &Cancel,
) -> Result<Differences> {
    let mut compare = Compare {
        expected,
        actual,
        owners,
        cancel,
        differences: Differences::default(),
        of_one: true,
        links: HashMap::new(),
        links_back: HashMap::new(),
    };
    compare.run()?;
    Ok(Differences { of_one: compare.of_one, ..compare.differences })
}

/// A user and a group.
pub(super) type Owner = (u32, u32);

/// Whose files are to be.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Owners {
    /// As expected.
    Compare,
    /// All of this one, who left out the layer's.
    Of(Owner),
    /// They could not be set here, so they cannot be compared; only whether all are of this one is told.
    Ignore(Owner),
}

struct Compare<'a> {
    expected: &'a Layer,
    actual: &'a Layer,
    owners: Owners,
    cancel: &'a Cancel,
    differences: Differences,
    of_one: bool,
    links: HashMap<u64, (u64, Vec<u8>)>,
    links_back: HashMap<u64, u64>,
}

impl Compare<'_> {
    fn run(&mut self) -> Result<()> {
        let (Some(expected), Some(actual)) = (self.expected.stat(b"")?, self.actual.stat(b"")?) else {
            self.differences.add(b"", "is not there");
            return Ok(());
        };
        let mut waiting = Vec::new();
        if self.node(b"", &expected, &actual)? {
            waiting.push(Vec::new());
        }
        while let Some(dir) = waiting.pop() {
            self.cancel.check()?;
            self.directory(&dir, &mut waiting)
                .doing(|| format!("cannot compare {}", PathBytes::new(dir.clone())))?;
        }
        Ok(())
    }

    fn directory(&mut self, dir: &[u8], waiting: &mut Vec<Vec<u8>>) -> Result<()> {
        let mut actual: BTreeMap<Vec<u8>, Stat> = self.actual.list(dir)?.into_iter().collect();
        for (name, expected) in self.expected.list(dir)? {
            let path = crate::snapshot::join(dir, &name);
            match actual.remove(&name) {
                None => self.differences.add(&path, "is missing"),
                Some(actual) => {
                    if self.node(&path, &expected, &actual)? {
                        waiting.push(path);
                    }
                }
            }
        }
        for name in actual.into_keys() {
            self.differences.add(&crate::snapshot::join(dir, &name), "does not belong there");
        }
        Ok(())
    }

    /// Compares one entry; true for two directories, which have entries of their own.
    fn node(&mut self, path: &[u8], expected: &Stat, actual: &Stat) -> Result<bool> {
        let kind = FileType::from_raw_mode(expected.st_mode);
        if kind != FileType::from_raw_mode(actual.st_mode) {
            self.differences.add(path, format!("is a {}, not a {}", kind_of(actual), kind_of(expected)));
            return Ok(false);
        }
        // A deletion is a device 0:0, of which overlayfs looks at nothing else.
        if kind == FileType::CharacterDevice && expected.st_rdev == 0 && actual.st_rdev == 0 {
            return Ok(false);
        }
        self.attributes(path, expected, actual);
        match kind {
            FileType::RegularFile => self.file(path, expected, actual)?,
            FileType::Directory => self.xattrs(path, &self.opened(path)?)?,
            FileType::Symlink => self.link(path)?,
            _ if expected.st_rdev != actual.st_rdev => self.differences.add(path, "is another device"),
            _ => {}
        }
        if kind != FileType::Directory {
            self.hard_links(path, expected, actual);
        }
        Ok(kind == FileType::Directory)
    }

    fn attributes(&mut self, path: &[u8], expected: &Stat, actual: &Stat) {
        let (was, is) = (expected.st_mode & 0o7777, actual.st_mode & 0o7777);
        if was != is {
            self.differences.add(path, format!("has the mode {is:04o}, not {was:04o}"));
        }
        self.owner(path, (expected.st_uid, expected.st_gid), (actual.st_uid, actual.st_gid));
        if (expected.st_mtime, expected.st_mtime_nsec) != (actual.st_mtime, actual.st_mtime_nsec) {
            self.differences.add(path, "has another time");
        }
    }

    fn owner(&mut self, path: &[u8], expected: Owner, is: Owner) {
        let was = match self.owners {
            Owners::Compare => expected,
            Owners::Of(owner) => owner,
            Owners::Ignore(owner) => {
                self.of_one &= is == owner;
                return;
            }
        };
        if was != is {
            let text = format!("belongs to {}:{}, not to {}:{}", is.0, is.1, was.0, was.1);
            self.differences.add(path, text);
        }
    }

    fn file(&mut self, path: &[u8], expected: &Stat, actual: &Stat) -> Result<()> {
        let (was, is) = (expected.st_size, actual.st_size);
        if was != is {
            self.differences.add(path, format!("has {is} bytes, not {was}"));
            return Ok(());
        }
        let both = self.opened(path)?;
        self.xattrs(path, &both)?;
        if was == 0 {
            return Ok(());
        }
        if let Some(offset) = first_difference(both, self.cancel)? {
            self.differences.add(path, format!("has another content at byte {offset}"));
        }
        Ok(())
    }

    fn opened(&self, path: &[u8]) -> Result<(OwnedFd, OwnedFd)> {
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY;
        let open = |layer: &Layer| -> Result<OwnedFd> { Ok(layer.open(path, flags)?.ok_or(Errno::NOENT)?) };
        Ok((open(self.expected)?, open(self.actual)?))
    }

    fn link(&mut self, path: &[u8]) -> Result<()> {
        let target = |layer: &Layer| -> Result<Vec<u8>> {
            let fd = layer.open(path, OFlags::PATH)?.ok_or(Errno::NOENT)?;
            Ok(fs::readlinkat(fd, "", Vec::new())?.into_bytes())
        };
        if target(self.expected)? != target(self.actual)? {
            self.differences.add(path, "points elsewhere");
        }
        Ok(())
    }

    fn xattrs(&mut self, path: &[u8], (expected, actual): &(OwnedFd, OwnedFd)) -> Result<()> {
        let (expected, mut actual) = (xattrs(expected)?, xattrs(actual)?);
        for (name, value) in expected {
            if actual.remove(&name) != Some(value) {
                let name = String::from_utf8_lossy(&name);
                self.differences.add(path, format!("has lost or changed the attribute {name}"));
            }
        }
        for name in actual.into_keys() {
            let name = String::from_utf8_lossy(&name);
            self.differences.add(path, format!("has the attribute {name}, which does not belong there"));
        }
        Ok(())
    }

    /// Names of one file in the one tree have to be names of one file in the other.
    fn hard_links(&mut self, path: &[u8], expected: &Stat, actual: &Stat) {
        if expected.st_nlink < 2 && actual.st_nlink < 2 {
            return;
        }
        let (other, first) =
            self.links.entry(expected.st_ino).or_insert_with(|| (actual.st_ino, path.to_vec())).clone();
        let back = *self.links_back.entry(actual.st_ino).or_insert(expected.st_ino);
        if other != actual.st_ino {
            let message = format!("is no longer the same file as {}", PathBytes::new(first));
            self.differences.add(path, message);
        } else if back != expected.st_ino {
            self.differences.add(path, "is the same file as another that it should not be");
        }
    }
}

fn kind_of(stat: &Stat) -> &'static str {
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => "file",
        FileType::Directory => "directory",
        FileType::Symlink => "symbolic link",
        FileType::Fifo => "fifo",
        FileType::CharacterDevice => "character device",
        FileType::BlockDevice => "block device",
        _ => "socket or something else",
    }
}

/// Where two files of one size begin to differ.
fn first_difference((expected, actual): (OwnedFd, OwnedFd), cancel: &Cancel) -> Result<Option<u64>> {
    let (expected, actual) = (File::from(expected), File::from(actual));
    let (mut left, mut right) = (vec![0; PIECE_BYTES], vec![0; PIECE_BYTES]);
    let mut offset = 0;
    loop {
        cancel.check()?;
        let count = read_full(&expected, &mut left, offset)?;
        let other = read_full(&actual, &mut right, offset)?;
        if left[..count] != right[..other] {
            let same = left[..count].iter().zip(&right[..other]).take_while(|(a, b)| a == b).count();
            return Ok(Some(offset + same as u64));
        }
        if count < PIECE_BYTES {
            return Ok(None);
        }
        offset += count as u64;
    }
}

fn read_full(file: &File, buffer: &mut [u8], offset: u64) -> Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read_at(&mut buffer[filled..], offset + filled as u64) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(filled)
}

/// Those that an image carries, and overlayfs's own.
fn xattrs(fd: &OwnedFd) -> Result<BTreeMap<Vec<u8>, Vec<u8>>> {
    let names = match grown(|buffer| fs::flistxattr(fd.as_fd(), buffer)) {
        Err(Errno::OPNOTSUPP) => return Ok(BTreeMap::new()),
        other => other?,
    };
    let counts = |name: &&[u8]| {
        let overlay = name.starts_with(b"trusted.overlay.") || name.starts_with(b"user.overlay.");
        overlay || is_kept_xattr(name)
    };
    let mut found = BTreeMap::new();
    for name in names.split(|&byte| byte == 0).filter(|name| !name.is_empty()).filter(counts) {
        found.insert(name.to_vec(), grown(|buffer| fs::fgetxattr(fd.as_fd(), name, buffer))?);
    }
    Ok(found)
}

/// Lists and values have a limit of 64 KiB in the kernel; most are empty or tiny.
fn grown(read: impl Fn(&mut [u8]) -> rustix::io::Result<usize>) -> rustix::io::Result<Vec<u8>> {
    let mut buffer = vec![0; 256];
    loop {
        match read(&mut buffer) {
            Ok(length) => {
                buffer.truncate(length);
                return Ok(buffer);
            }
            Err(Errno::RANGE) if buffer.len() < 65536 => buffer.resize(65536, 0),
            Err(errno) => return Err(errno),
        }
    }
}

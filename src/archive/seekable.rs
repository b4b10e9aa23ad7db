//! Archives whose members can be read in any order and several at once: plain tars, by a list of ranges that is made
//! from the headers alone, and OCI layout directories.
//!
//! Members of one name must be identical; the comparison is made when one of them is asked for. Links between members
//! are followed inside the archive, never in the filesystem: in a directory only regular files are opened, and the
//! kernel is told not to follow links at all.

use super::members::{MAX_LINKS, Members, contradicted, too_large};
use super::root_filesystem::check_directory;
use super::source::not_a_tar;
use super::stream::{MemberGuard, kind};
use super::{MemberKind, MemberName, MemberStat};
use crate::error::{Error, ErrorKind, Result, ResultExt};
use crate::io::tar::{TarInput, TarReader};
use crate::limits::Limits;
use crate::parallel::failpoint;
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{Mode, OFlags, ResolveFlags};
use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::{self, BufRead, Read};
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex};

/// Headers are read in pieces of this size. A header and the extensions before it fit into one piece nearly always, and
/// the data after them is mostly left out.
const WINDOW_BYTES: usize = 4096;

/// Pieces of this size are compared.
const COMPARE_BYTES: usize = 64 << 10;

/// A plain tar or an OCI layout directory. Clones share it.
#[derive(Clone)]
pub struct Seekable(Arc<Backing>);

enum Backing {
    Tar(Tar),
    Directory(OwnedFd),
}

struct Tar {
    file: Arc<File>,
    size_bytes: u64,
    members: HashMap<MemberName, Vec<Slot>>,
    /// Names of several members that have been compared and are identical.
    compared: Mutex<HashSet<MemberName>>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Slot {
    Bytes { offset: u64, size: u64 },
    Link(MemberName),
}

/// Some bytes of some file.
struct Range {
    file: Arc<File>,
    offset: u64,
    size: u64,
    name: MemberName,
}

impl Seekable {
    /// Reads the headers of a tar.
    pub(super) fn tar(file: File, size_bytes: u64, limits: &Limits) -> Result<Self> {
        let file = Arc::new(file);
        let members = index(&file, size_bytes, limits)?;
        Ok(Seekable(Arc::new(Backing::Tar(Tar { file, size_bytes, members, compared: Mutex::default() }))))
    }

    /// Takes a directory.
    pub(super) fn directory(dir: OwnedFd) -> Result<Self> {
        check_directory(&dir)?;
        Ok(Seekable(Arc::new(Backing::Directory(dir))))
    }

    /// The size of the tar; a directory has none.
    pub fn size_bytes(&self) -> Option<u64> {
        match &*self.0 {
            Backing::Tar(tar) => Some(tar.size_bytes),
            Backing::Directory(_) => None,
        }
    }

    pub(super) fn directory_handle(&self) -> Option<BorrowedFd<'_>> {
        match &*self.0 {
            Backing::Tar(_) => None,
            Backing::Directory(dir) => Some(dir.as_fd()),
        }
    }

    /// Whether it is an OCI layout directory.
    pub fn is_directory(&self) -> bool {
        matches!(&*self.0, Backing::Directory(_))
    }

    /// A reader of a member, with a position of its own.
    pub fn reader(&self, name: &MemberName) -> Result<MemberReader> {
        Ok(MemberReader { range: self.needed(name)?, position: 0 })
    }

    /// The file that is this member and nothing else: what can be cloned as a whole. A member of a tar is none.
    pub fn whole_file(&self, name: &MemberName) -> Result<Option<Arc<File>>> {
        match &*self.0 {
            Backing::Tar(_) => Ok(None),
            Backing::Directory(_) => Ok(Some(self.needed(name)?.file)),
        }
    }

    /// Fills `buffer` from `offset` on; a member that ends before is [`ErrorKind::Truncated`].
    pub fn read_range(&self, name: &MemberName, offset: u64, buffer: &mut [u8]) -> Result<()> {
        let range = self.needed(name)?;
        let end = offset.checked_add(buffer.len() as u64);
        if end.is_none_or(|end| end > range.size) {
            return Err(Error::new(ErrorKind::Truncated, format!("{name} has {} bytes only", range.size)));
        }
        range.read_exact_at(buffer, offset)
    }

    fn needed(&self, name: &MemberName) -> Result<Range> {
        let missing = || Error::new(ErrorKind::MissingContent, format!("{name} is not in the archive"));
        self.range(name)?.ok_or_else(missing)
    }

    fn range(&self, name: &MemberName) -> Result<Option<Range>> {
        match &*self.0 {
            Backing::Tar(tar) => tar.range(name),
            Backing::Directory(dir) => open_beneath(dir, name),
        }
    }
}

impl Members for Seekable {
    fn document(&self, name: &MemberName, limit: u64) -> Result<Option<Vec<u8>>> {
        let Some(range) = self.range(name)? else { return Ok(None) };
        if range.size > limit {
            return Err(too_large(name, range.size, limit));
        }
        let mut bytes = vec![0; range.size as usize];
        range.read_exact_at(&mut bytes, 0).doing(|| format!("cannot read {name}"))?;
        Ok(Some(bytes))
    }

    fn stat(&self, name: &MemberName) -> Result<Option<MemberStat>> {
        Ok(self.range(name)?.map(|range| MemberStat { size: range.size, resolved: range.name }))
    }
}

impl Tar {
    fn range(&self, name: &MemberName) -> Result<Option<Range>> {
        let mut at = name;
        for _ in 0..MAX_LINKS {
            let Some(slots) = self.members.get(at) else { return Ok(None) };
            if slots.len() > 1 {
                self.compare(at, slots)?;
            }
            match &slots[0] {
                Slot::Link(target) => at = target,
                slot => return Ok(self.slot_range(at, slot)),
            }
        }
        Err(Error::malformed(format!("the links from {name} on have no end")))
    }

    fn slot_range(&self, name: &MemberName, slot: &Slot) -> Option<Range> {
        match *slot {
            Slot::Bytes { offset, size } => {
                Some(Range { file: self.file.clone(), offset, size, name: name.clone() })
            }
            Slot::Link(_) => None,
        }
    }

    /// Refuses members of one name that differ.
    fn compare(&self, name: &MemberName, slots: &[Slot]) -> Result<()> {
        let compared = || self.compared.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if compared().contains(name) {
            return Ok(());
        }
        for other in &slots[1..] {
            let same = match (self.slot_range(name, &slots[0]), self.slot_range(name, other)) {
                (Some(first), Some(other)) => first.has_same_bytes(&other)?,
                _ => slots[0] == *other,
            };
            if !same {
                return Err(contradicted(name));
            }
        }
        compared().insert(name.clone());
        Ok(())
    }
}

impl Range {
    fn has_same_bytes(&self, other: &Range) -> Result<bool> {
        if self.size != other.size {
            return Ok(false);
        }
        let (mut ours, mut theirs) = (vec![0; COMPARE_BYTES], vec![0; COMPARE_BYTES]);
        let mut done = 0;
        while done < self.size {
            let count = (self.size - done).min(COMPARE_BYTES as u64) as usize;
            self.read_exact_at(&mut ours[..count], done)?;
            other.read_exact_at(&mut theirs[..count], done)?;
            if ours[..count] != theirs[..count] {
                return Ok(false);
            }
            done += count as u64;
        }
        Ok(true)
    }

    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> Result<()> {
        match self.file.read_exact_at(buffer, self.offset + offset) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Err(shrunk()),
            other => other.map_err(Error::from),
        }
    }
}

fn shrunk() -> Error {
    Error::new(ErrorKind::Truncated, "the archive became shorter while it was read")
}

/// A reader of one member, by pread, so that several never disturb each other.
pub struct MemberReader {
    range: Range,
    position: u64,
}

impl MemberReader {
    /// The size of the member.
    pub fn size_bytes(&self) -> u64 {
        self.range.size
    }
}

impl Read for MemberReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.range.size - self.position;
        let wanted = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        if wanted == 0 {
            return Ok(0);
        }
        let buffer = failpoint::shorten("archive.read", &mut buffer[..wanted])?;
        let count = self.range.file.read_at(buffer, self.range.offset + self.position)?;
        if count == 0 {
            return Err(shrunk().into_io());
        }
        self.position += count as u64;
        Ok(count)
    }
}

/// A regular file of a layout directory; no link is followed.
fn open_beneath(dir: &OwnedFd, name: &MemberName) -> Result<Option<Range>> {
    if name.is_root() {
        return Ok(None);
    }
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let file = match rustix::fs::openat2(dir, name.as_bytes(), flags, Mode::empty(), resolve) {
        Ok(file) => File::from(file),
        Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR) => return Ok(None),
        Err(rustix::io::Errno::LOOP) => {
            let message = format!("{name} is reached through a symbolic link");
            return Err(Error::malformed(message).with_hint("an OCI layout directory has plain files only"));
        }
        Err(error) => return Err(error).doing(|| format!("cannot open {name}")),
    };
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(Error::malformed(format!("{name} is not a regular file")));
    }
    Ok(Some(Range { file: Arc::new(file), offset: 0, size: metadata.len(), name: name.clone() }))
}

fn index(file: &Arc<File>, size_bytes: u64, limits: &Limits) -> Result<HashMap<MemberName, Vec<Slot>>> {
    let mut tar = TarReader::new(Window::new(file.clone(), size_bytes), limits);
    let mut guard = MemberGuard::new(limits);
    let mut members: HashMap<MemberName, Vec<Slot>> = HashMap::new();
    loop {
        let entry = match tar.next_entry() {
            Ok(Some(entry)) => entry,
            Ok(None) => return Ok(members),
            Err(error) if guard.members == 0 => return Err(not_a_tar(error)),
            Err(error) => return Err(error),
        };
        let name = guard.admit(&entry)?;
        let slot = match kind(&name, &entry)? {
            MemberKind::File => Slot::Bytes { offset: entry.data_offset, size: entry.stored_bytes },
            MemberKind::Link(target) => Slot::Link(target),
            MemberKind::Other => continue,
        };
        members.entry(name).or_default().push(slot);
    }
}

/// Reads a file in small pieces and jumps over the rest.
struct Window {
    file: Arc<File>,
    size_bytes: u64,
    /// Where the buffer's first byte stands in the file.
    start: u64,
    buffer: Vec<u8>,
    consumed: usize,
}

impl Window {
    fn new(file: Arc<File>, size_bytes: u64) -> Self {
        Window { file, size_bytes, start: 0, buffer: Vec::with_capacity(WINDOW_BYTES), consumed: 0 }
    }

    fn position(&self) -> u64 {
        self.start + self.consumed as u64
    }
}

impl BufRead for Window {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.consumed == self.buffer.len() {
            self.start = self.position();
            self.consumed = 0;
            self.buffer.resize(WINDOW_BYTES, 0);
            let count = self.file.read_at(&mut self.buffer, self.start);
            self.buffer.truncate(*count.as_ref().unwrap_or(&0));
            count?;
        }
        Ok(&self.buffer[self.consumed..])
    }

    fn consume(&mut self, amount: usize) {
        self.consumed += amount;
    }
}

impl Read for Window {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        crate::io::read_buffered(self, buffer)
    }
}

impl TarInput for Window {
    fn skip(&mut self, bytes: u64) -> io::Result<()> {
        let target = self.position().checked_add(bytes).filter(|target| *target <= self.size_bytes);
        let target = target.ok_or(io::ErrorKind::UnexpectedEof)?;
        if target <= self.start + self.buffer.len() as u64 {
            self.consumed = (target - self.start) as usize;
        } else {
            (self.start, self.consumed) = (target, 0);
            self.buffer.clear();
        }
        Ok(())
    }
}

//! Copying a merged tree into a plain directory, with everything that an image can say about a file.
//!
//! Owners, modes, attributes on the allowlist, times to the nanosecond, hard-link groups, devices, holes. Data is shared
//! with the source where the filesystem can (reflinks). The result does not depend on the number of threads: files are
//! copied in parallel, links and the attributes of directories come afterwards, in order.

use super::beneath;
use super::heal::LinkSource;
use super::merge::{Node, Stack};
use super::owners;
use crate::error::{Error, ErrorKind, Result, ResultExt};
use crate::io::headroom::{Headroom, INODE_BYTES};
use crate::mount::IdMaps;
use crate::parallel::{Cancel, Lanes, failpoint};
use crate::tree::PathBytes;
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{
    self, AtFlags, FileType, Gid, Mode, OFlags, SeekFrom, Stat, Timespec, Timestamps, Uid, XattrFlags,
};
use rustix::io::Errno;
use std::collections::HashMap;
use std::ffi::{CStr, CString};
use std::sync::Arc;

/// How much is copied between two looks at the cancellation token.
const CHUNK_BYTES: u64 = 16 << 20;
/// How many files one job of a lane has.
const JOB_FILES: usize = 64;

/// How to copy.
#[derive(Clone, Debug)]
pub struct CopyOptions {
    /// How many files are copied at the same time.
    pub threads: usize,
    /// What the kernel does not allow for want of privilege is left out and counted instead of failing.
    pub lenient: bool,
    /// Copies belong to others than the originals.
    pub owners: Option<IdMaps>,
    /// The space that is left to others; what shares its data with the original takes none.
    pub headroom: Arc<Headroom>,
}

impl Default for CopyOptions {
    fn default() -> Self {
        CopyOptions { threads: 1, lenient: false, owners: None, headroom: Arc::default() }
    }
}

/// What was copied, and what could not be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CopyReport {
    /// Inodes made.
    pub inodes: u64,
    /// Bytes of regular files, holes included.
    pub bytes: u64,
    /// Entries whose owner could not be set.
    pub owners_skipped: u64,
    /// Devices that could not be made.
    pub devices_skipped: u64,
    /// Extended attributes that could not be set.
    pub xattrs_skipped: u64,
}

impl CopyReport {
    fn add(&mut self, other: &CopyReport) {
        self.inodes += other.inodes;
        self.bytes += other.bytes;
        self.owners_skipped += other.owners_skipped;
        self.devices_skipped += other.devices_skipped;
        self.xattrs_skipped += other.xattrs_skipped;
    }
}

/// Owner, mode, attributes and times of something.
#[derive(Clone, Debug)]
pub struct Attributes {
    stat: Stat,
    xattrs: Vec<(CString, Vec<u8>)>,
}

impl Attributes {
    /// Those of an open regular file or directory.
    pub fn read(fd: impl AsFd) -> Result<Self> {
        Ok(Attributes { stat: fs::fstat(&fd)?, xattrs: read_xattrs(fd.as_fd())? })
    }

    /// The same with the owners, and the numbers in attributes, that `maps` shows. Every owner has to have one.
    fn shown_as(mut self, maps: Option<&IdMaps>) -> Result<Self> {
        if let Some(maps) = maps {
            self.stat = owners::stat(&self.stat, maps)?;
            for (name, value) in &mut self.xattrs {
                *value = owners::xattr(name.to_bytes(), std::mem::take(value), maps)?;
            }
        }
        Ok(self)
    }

    /// Whether both look the same to whoever sees them in a mounted tree.
    pub fn looks_like(&self, other: &Attributes) -> bool {
        let key = |stat: &Stat| (stat.st_uid, stat.st_gid, stat.st_mode, stat.st_mtime, stat.st_mtime_nsec);
        key(&self.stat) == key(&other.stat) && self.xattrs == other.xattrs
    }

    /// Gives them to an open file or directory, in the order that the kernel's side effects allow: a change of owner
    /// clears setuid and capabilities.
    pub fn apply(&self, fd: BorrowedFd<'_>, lenient: bool, report: &mut CopyReport) -> Result<()> {
        let owner = fs::fchown(fd, Some(uid(&self.stat)), Some(gid(&self.stat)));
        forgive(owner, lenient, &mut report.owners_skipped).doing(|| "cannot set the owner")?;
        for (name, value) in &self.xattrs {
            let set = fs::fsetxattr(fd, name.as_c_str(), value, XattrFlags::empty());
            forgive(set, lenient, &mut report.xattrs_skipped)
                .doing(|| format!("cannot set the attribute {}", name.to_string_lossy()))?;
        }
        fs::fchmod(fd, mode(&self.stat)).doing(|| "cannot set the mode")?;
        fs::futimens(fd, &times(&self.stat)).doing(|| "cannot set the times")
    }
}

fn forgive(result: rustix::io::Result<()>, lenient: bool, skipped: &mut u64) -> rustix::io::Result<()> {
    match result {
        Err(Errno::PERM | Errno::ACCESS | Errno::OPNOTSUPP | Errno::INVAL) if lenient => {
            *skipped += 1;
            Ok(())
        }
        other => other,
    }
}

fn uid(stat: &Stat) -> Uid {
    Uid::from_raw(stat.st_uid)
}

fn gid(stat: &Stat) -> Gid {
    Gid::from_raw(stat.st_gid)
}

fn mode(stat: &Stat) -> Mode {
    Mode::from_raw_mode(stat.st_mode & 0o7777)
}

fn times(stat: &Stat) -> Timestamps {
    let modified = Timespec { tv_sec: stat.st_mtime as _, tv_nsec: stat.st_mtime_nsec as _ };
    // The access time of an image's file says nothing; taking the modification time keeps copies equal.
    Timestamps { last_access: modified, last_modification: modified }
}

/// The attributes that an image may carry; everything else steers the kernel of this host.
pub fn is_kept_xattr(name: &[u8]) -> bool {
    (name.starts_with(b"user.") && !name.starts_with(b"user.overlay."))
        || name == b"security.capability"
        || name.starts_with(b"system.posix_acl_")
}

fn read_xattrs(fd: BorrowedFd<'_>) -> Result<Vec<(CString, Vec<u8>)>> {
    let read = || -> Result<Vec<(CString, Vec<u8>)>> {
        let names = grown(|buffer| fs::flistxattr(fd, buffer))?;
        let mut xattrs = Vec::new();
        for name in names.split_inclusive(|&byte| byte == 0) {
            let Ok(name) = CStr::from_bytes_with_nul(name) else { continue };
            if is_kept_xattr(name.to_bytes()) {
                xattrs.push((name.to_owned(), grown(|buffer| fs::fgetxattr(fd, name, buffer))?));
            }
        }
        xattrs.sort();
        Ok(xattrs)
    };
    read().doing(|| "cannot read the extended attributes")
}

/// Both lists and values have a limit of 64 KiB in the kernel; most are empty or tiny.
fn grown(read: impl Fn(&mut [u8]) -> rustix::io::Result<usize>) -> rustix::io::Result<Vec<u8>> {
    for size in [256, 65536] {
        let mut buffer = vec![0; size];
        match read(&mut buffer) {
            Ok(length) => {
                buffer.truncate(length);
                return Ok(buffer);
            }
            Err(Errno::RANGE) => {}
            Err(Errno::OPNOTSUPP) => return Ok(Vec::new()),
            Err(errno) => return Err(errno),
        }
    }
    Err(Errno::TOOBIG)
}

/// Copies the merged tree `from` into the empty directory `to`, then makes the hard links of `links`, whose names are free in
/// `from`. The directory itself takes the attributes of the merged root.
pub fn copy_stack(
    from: &Stack,
    to: BorrowedFd<'_>,
    links: &[LinkSource],
    options: &CopyOptions,
    cancel: &Cancel,
) -> Result<CopyReport> {
    let plan = Plan::make(from, to, &options.headroom, cancel)?;
    let mut report = plan.report;
    let copier = Copier { from, to, options, cancel };
    let cancel_lanes = cancel.child();
    let jobs = plan.files.len().div_ceil(JOB_FILES);
    let feed = |lanes: &Lanes<'_, usize>| (0..jobs).try_for_each(|job| lanes.send(job));
    let job = |job: usize| plan.files.chunks(JOB_FILES).nth(job).unwrap_or_default();
    let work = |index: usize| copier.copy_files(job(index));
    let (_, reports) = Lanes::scope(options.threads, &cancel_lanes, || {}, work, feed)?;
    reports.iter().for_each(|copied| report.add(copied));
    for (path, target) in &plan.links {
        cancel.check()?;
        copier.link(path, target)?;
    }
    for link in links {
        cancel.check()?;
        copier.pending(link, &mut report)?;
    }
    // Children before parents, so that nothing changes a directory's times after they have been set.
    for dir in plan.directories.iter().rev() {
        cancel.check()?;
        copier.finish_directory(dir, &mut report)?;
    }
    Ok(report)
}

#[derive(Default)]
struct Plan {
    directories: Vec<Node>,
    files: Vec<Node>,
    links: Vec<(Vec<u8>, Vec<u8>)>,
    report: CopyReport,
}

impl Plan {
    /// Walks the source, makes the directories, and notes the rest.
    fn make(from: &Stack, to: BorrowedFd<'_>, headroom: &Headroom, cancel: &Cancel) -> Result<Plan> {
        let mut plan = Plan::default();
        let mut groups: HashMap<(usize, u64), usize> = HashMap::new();
        from.walk(&mut |node| {
            cancel.check()?;
            if node.is_dir() {
                headroom.spend(INODE_BYTES)?;
                plan.report.inodes += 1;
                plan.directories.push(node.clone());
                return make_directory(to, node.path());
            }
            if node.stat().st_nlink > 1 {
                let key = (node.layer(), node.stat().st_ino);
                if let Some(&first) = groups.get(&key) {
                    let target: &Node = &plan.files[first];
                    plan.links.push((node.path().to_vec(), target.path().to_vec()));
                    return Ok(());
                }
                groups.insert(key, plan.files.len());
            }
            plan.files.push(node.clone());
            Ok(())
        })?;
        Ok(plan)
    }
}

fn make_directory(to: BorrowedFd<'_>, path: &[u8]) -> Result<()> {
    if path.is_empty() {
        return Ok(());
    }
    let make = || -> Result<()> {
        let (dir, name) = beneath::open_parent(to, path)?;
        Ok(fs::mkdirat(dir, name, Mode::RWXU)?)
    };
    make().doing(|| copying(path))
}

fn copying(path: &[u8]) -> String {
    format!("cannot copy {}", PathBytes::new(path))
}

struct Copier<'a> {
    from: &'a Stack,
    to: BorrowedFd<'a>,
    options: &'a CopyOptions,
    cancel: &'a Cancel,
}

impl Copier<'_> {
    fn copy_files(&self, nodes: &[Node]) -> Result<CopyReport> {
        let mut report = CopyReport::default();
        for node in nodes {
            self.cancel.check()?;
            failpoint::at("unpack.entry")?;
            let copy = || -> Result<CopyReport> {
                let (dir, name) = beneath::open_parent(self.to, node.path())?;
                copy_node(self.from, node, dir.as_fd(), name, self.options, self.cancel)
            };
            report.add(&copy().doing(|| copying(node.path()))?);
        }
        Ok(report)
    }

    fn link(&self, path: &[u8], target: &[u8]) -> Result<()> {
        let link = || -> Result<()> {
            let (target_dir, target_name) = beneath::open_parent(self.to, target)?;
            let (dir, name) = beneath::open_parent(self.to, path)?;
            match fs::linkat(target_dir, target_name, dir, name, AtFlags::empty()) {
                // The target was a device that could not be made and has been counted.
                Err(Errno::NOENT) if self.options.lenient => Ok(()),
                other => Ok(other?),
            }
        };
        link().doing(|| format!("cannot link {} to {}", PathBytes::new(path), PathBytes::new(target)))
    }

    fn pending(&self, link: &LinkSource, report: &mut CopyReport) -> Result<()> {
        let path = link.path.as_bytes();
        match &link.shared {
            Some(target) => self.link(path, target),
            None => {
                let (dir, name) = beneath::open_parent(self.to, path)?;
                let copied = copy_node(&link.stack, &link.node, dir.as_fd(), name, self.options, self.cancel);
                report.add(&copied.doing(|| copying(path))?);
                Ok(())
            }
        }
    }

    fn finish_directory(&self, node: &Node, report: &mut CopyReport) -> Result<()> {
        let mut finish = || -> Result<()> {
            let attributes =
                Attributes::read(self.from.open(node)?)?.shown_as(self.options.owners.as_ref())?;
            let dir = beneath::open_dir(self.to, node.path())?.ok_or(Errno::NOENT)?;
            attributes.apply(dir.as_fd(), self.options.lenient, report)
        };
        finish().doing(|| copying(node.path()))
    }
}

/// Copies one thing that is not a directory to `name` in `dir`, which must not exist.
pub fn copy_node(
    from: &Stack,
    node: &Node,
    dir: BorrowedFd<'_>,
    name: &[u8],
    options: &CopyOptions,
    cancel: &Cancel,
) -> Result<CopyReport> {
    let (lenient, maps) = (options.lenient, options.owners.as_ref());
    let mut report = CopyReport { inodes: 1, ..CopyReport::default() };
    options.headroom.spend(INODE_BYTES)?;
    match node.file_type() {
        FileType::RegularFile => {
            let source = from.open(node)?;
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let target = fs::openat(dir, name, flags, Mode::RUSR | Mode::WUSR)?;
            copy_data(&source, &target, &options.headroom, cancel)?;
            report.bytes = node.stat().st_size as u64;
            Attributes::read(&source)?.shown_as(maps)?.apply(target.as_fd(), lenient, &mut report)?;
        }
        FileType::Symlink => {
            fs::symlinkat(from.read_link(node)?, dir, name)?;
            finish_special(&special(node, maps)?, dir, name, lenient, &mut report)?;
        }
        FileType::Directory => {
            return Err(Error::new(ErrorKind::Internal, "a directory is not copied as a file"));
        }
        kind => {
            let made = fs::mknodat(dir, name, kind, mode(node.stat()), node.stat().st_rdev);
            let skipped_before = report.devices_skipped;
            forgive(made, lenient, &mut report.devices_skipped)?;
            if report.devices_skipped > skipped_before {
                report.inodes = 0;
                return Ok(report);
            }
            finish_special(&special(node, maps)?, dir, name, lenient, &mut report)?;
        }
    }
    Ok(report)
}

fn special(node: &Node, maps: Option<&IdMaps>) -> Result<Stat> {
    maps.map_or(Ok(*node.stat()), |maps| owners::stat(node.stat(), maps))
}

/// Owner, mode and times of something that must not be opened.
fn finish_special(
    stat: &Stat,
    dir: BorrowedFd<'_>,
    name: &[u8],
    lenient: bool,
    report: &mut CopyReport,
) -> Result<()> {
    let owner = fs::chownat(dir, name, Some(uid(stat)), Some(gid(stat)), AtFlags::SYMLINK_NOFOLLOW);
    forgive(owner, lenient, &mut report.owners_skipped).doing(|| "cannot set the owner")?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::Symlink {
        // It was made a moment ago in a directory of ours, so no link can stand in its place.
        fs::chmodat(dir, name, mode(stat), AtFlags::empty()).doing(|| "cannot set the mode")?;
    }
    fs::utimensat(dir, name, &times(stat), AtFlags::SYMLINK_NOFOLLOW).doing(|| "cannot set the times")
}

/// Copies the data of a regular file; holes stay holes.
fn copy_data(source: &OwnedFd, target: &OwnedFd, headroom: &Headroom, cancel: &Cancel) -> Result<()> {
    let size = fs::fstat(source)?.st_size as u64;
    if size == 0 || fs::ioctl_ficlone(target, source).is_ok() {
        return Ok(());
    }
    fs::ftruncate(target, size)?;
    let copying = Copying { source, target, headroom, cancel };
    let mut offset = 0;
    while offset < size {
        let Some((start, end)) = next_data(source, offset, size)? else { break };
        copying.range(start, end)?;
        offset = end;
    }
    Ok(())
}

fn next_data(source: &OwnedFd, offset: u64, size: u64) -> Result<Option<(u64, u64)>> {
    let start = match fs::seek(source, SeekFrom::Data(offset)) {
        Ok(start) => start,
        Err(Errno::NXIO) => return Ok(None),
        Err(Errno::INVAL) => return Ok(Some((offset, size))),
        Err(errno) => return Err(errno.into()),
    };
    let end = fs::seek(source, SeekFrom::Hole(start))?;
    Ok((start < size).then_some((start, end.min(size))))
}

/// Data on its way from one file to another.
struct Copying<'a> {
    source: &'a OwnedFd,
    target: &'a OwnedFd,
    headroom: &'a Headroom,
    cancel: &'a Cancel,
}

impl Copying<'_> {
    fn range(&self, start: u64, end: u64) -> Result<()> {
        let (mut read_at, mut write_at) = (start, start);
        while read_at < end {
            self.cancel.check()?;
            let want = (end - read_at).min(CHUNK_BYTES);
            self.headroom.spend(want)?;
            let (read, write) = (Some(&mut read_at), Some(&mut write_at));
            match fs::copy_file_range(self.source, read, self.target, write, want as usize) {
                // Shorter than it was: nobody changes a tree, so this is an I/O oddity; plain reading tells.
                Ok(0) => return self.by_hand(read_at, end),
                Ok(_) => {}
                Err(Errno::XDEV | Errno::NOSYS | Errno::OPNOTSUPP | Errno::INVAL | Errno::PERM) => {
                    return self.by_hand(read_at, end);
                }
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(())
    }

    fn by_hand(&self, start: u64, end: u64) -> Result<()> {
        let mut buffer = vec![0; 128 << 10];
        let mut offset = start;
        while offset < end {
            self.cancel.check()?;
            let want = ((end - offset) as usize).min(buffer.len());
            self.headroom.spend(want as u64)?;
            let read = rustix::io::pread(self.source, &mut buffer[..want], offset)?;
            if read == 0 {
                return Err(Error::new(ErrorKind::Corrupt, "the file is shorter than it says"));
            }
            let mut written = 0;
            while written < read {
                written += rustix::io::pwrite(self.target, &buffer[written..read], offset + written as u64)?;
            }
            offset += read as u64;
        }
        Ok(())
    }
}

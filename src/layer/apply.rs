//! The extraction itself: entry after entry into a tree that nobody else writes to.
//!
//! A small file costs four system calls: create, write, set the times, close. Everything else is done only where an
//! entry differs from what the kernel gives by itself. Directories get owner, attributes, mode and times when all
//! entries are in, so that nothing has to be made below a read-only, set-group-id or ACL-carrying directory.

use super::attributes::{self, Attributes, Defaults};
use super::beside::{self, Beside, Finish};
use super::data::{read_all, write_dense, write_sparse};
use super::dirs::{Dir, Dirs, LookOnly, Missing, lookup_error};
use super::notices::Notices;
use super::remove::remove_entry;
use super::side_list::{Directory, SideList};
use super::whiteout::{Whiteout, is_inside_metadata, whiteout_of};
use super::{Applied, ApplyOptions, Ownership, beyond_linux};
use crate::error::{Error, ErrorKind, Result, ResultExt};
use crate::io::headroom::{Headroom, INODE_BYTES};
use crate::io::tar::{Entry, EntryKind, TarInput, TarReader};
use crate::limits::Limits;
use crate::parallel::{Cancel, failpoint};
use crate::tree::{PathBytes, WhiteoutForm, split_path};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{self, AtFlags, FileType, Mode, OFlags, XattrFlags};
use rustix::io::Errno;

/// How many bytes pass between two reports and looks at the cancellation token.
const REPORT_EVERY: u64 = 128 << 10;
/// The longest name of Linux's filesystems.
const NAME_MAX: usize = 255;
/// Linux's device numbers. mknod(2) drops what is above, and a dropped 1 could leave the 0:0 that deletes.
const MAJOR_BITS: u32 = 12;
const MINOR_BITS: u32 = 20;

/// Extracts the layer that `input` holds, uncompressed, into the empty directory `fs`.
///
/// `advanced` hears of the bytes that have passed. The input comes back standing behind the end of the archive: the
/// caller drains it, because the DiffID covers all of it, and checks that DiffID before the tree is used. On an error
/// the directory holds some part of the layer and is to be removed.
pub fn apply<R: TarInput>(
    input: R,
    fs: BorrowedFd<'_>,
    options: &ApplyOptions,
    cancel: &Cancel,
    advanced: &mut dyn FnMut(u64),
) -> Result<(Applied, R)> {
    match options.write_beside {
        true => beside::with(|beside| extract(input, fs, options, cancel, advanced, beside)),
        false => extract(input, fs, options, cancel, advanced, None),
    }
}

fn extract<R: TarInput>(
    input: R,
    fs: BorrowedFd<'_>,
    options: &ApplyOptions,
    cancel: &Cancel,
    advanced: &mut dyn FnMut(u64),
    beside: Option<&mut Beside>,
) -> Result<(Applied, R)> {
    let mut reader = TarReader::new(input, &options.limits);
    let mut tree = Tree::open(fs, options, beside).doing(|| "cannot prepare the directory of a layer")?;
    let mut ticker = Ticker { cancel, advanced, reported: 0, headroom: &options.headroom };
    while let Some(mut entry) = reader.next_entry()? {
        tree.check_limits(&entry)?;
        let path = clean_path(std::mem::take(&mut entry.path), &options.limits)?;
        tree.extract(path.as_bytes(), &mut entry, &mut reader, &mut ticker)
            .map_err(|error| error.context(format!("cannot extract {path}")))?;
        ticker.reach(reader.position())?;
        if tree.beside.as_ref().is_some_and(|beside| beside.is_over()) {
            break;
        }
    }
    ticker.report(reader.position())?;
    Ok((tree.finish()?, reader.into_inner()))
}

/// Tells the caller how far reading has come, and stops when asked to or where space ends.
struct Ticker<'a> {
    cancel: &'a Cancel,
    advanced: &'a mut dyn FnMut(u64),
    reported: u64,
    headroom: &'a Headroom,
}

impl Ticker<'_> {
    fn reach(&mut self, position: u64) -> Result<()> {
        match position - self.reported >= REPORT_EVERY {
            true => self.report(position),
            false => Ok(()),
        }
    }

    fn report(&mut self, position: u64) -> Result<()> {
        self.cancel.check()?;
        self.headroom.spend(position - self.reported)?;
        (self.advanced)(position - self.reported);
        self.reported = position;
        Ok(())
    }
}

/// The path that an entry's name stands for, and a check of its shape. The usual name needs no copy.
fn clean_path(mut name: Vec<u8>, limits: &Limits) -> Result<PathBytes> {
    while name.len() > 1 && name.ends_with(b"/") {
        name.pop();
    }
    if name.starts_with(b"./") {
        name.drain(..2);
    }
    let (mut count, mut is_clean) = (0, true);
    for component in name.split(|&byte| byte == b'/') {
        if component.len() > NAME_MAX {
            return Err(beyond_linux(format!("a name in the layer is longer than {NAME_MAX} bytes")));
        }
        count += 1;
        is_clean &= !matches!(component, b"" | b"." | b"..");
    }
    let path = if is_clean { PathBytes::new(name) } else { PathBytes::cleaned(&name) };
    if count > limits.path_components && path.components().count() > limits.path_components {
        let cap = limits.path_components;
        return Err(Error::over(
            "path_components",
            format!("a path in the layer has more than {cap} components"),
        ));
    }
    Ok(path)
}

/// A tree that is being written.
struct Tree<'a> {
    options: &'a ApplyOptions,
    beside: Option<&'a mut Beside>,
    defaults: Defaults,
    dirs: Dirs,
    list: SideList,
    notices: Notices,
    entries: u64,
    inodes: u64,
    bytes: u64,
    stored: u64,
}

impl<'a> Tree<'a> {
    fn open(fs: BorrowedFd<'_>, options: &'a ApplyOptions, beside: Option<&'a mut Beside>) -> Result<Self> {
        let defaults = probe(fs, options)?;
        let mut list = SideList::new(&options.lists, options.limits.layer_lists_bytes);
        // Until an entry describes it, the root is as implicit as any other directory.
        list.implicit.insert(Vec::new());
        list.describe(Vec::new(), Directory::new(Attributes::implicit(), None))?;
        Ok(Tree {
            options,
            beside,
            defaults,
            dirs: Dirs::new(fs, options.limits.path_components)?,
            list,
            notices: Notices::default(),
            entries: 0,
            inodes: 1,
            bytes: 0,
            stored: 0,
        })
    }

    fn check_limits(&mut self, entry: &Entry) -> Result<()> {
        let limits = &self.options.limits;
        self.entries += 1;
        if self.entries > limits.layer_entries {
            let message = format!("the layer has more than {} entries", limits.layer_entries);
            return Err(Error::over("layer_entries", message));
        }
        self.stored = entry.data_offset.saturating_add(entry.stored_bytes);
        if self.stored > limits.layer_bytes {
            let message = format!("the layer has more than {} bytes", limits.layer_bytes);
            return Err(Error::over("layer_bytes", message));
        }
        // Holes have no bytes in the layer.
        if entry.size > limits.layer_bytes {
            let message = format!("a file in the layer has more than {} bytes", limits.layer_bytes);
            return Err(Error::over("layer_bytes", message));
        }
        Ok(())
    }

    fn extract<R: TarInput>(
        &mut self,
        path: &[u8],
        entry: &mut Entry,
        reader: &mut TarReader<R>,
        ticker: &mut Ticker<'_>,
    ) -> Result<()> {
        if let EntryKind::Other(flag) = entry.kind {
            self.notices
                .add(format!("an entry of the unknown type {:?} is left out", char::from(flag)), path);
            return Ok(());
        }
        failpoint::at("tree.entry")?;
        let Some((parent, base)) = split_path(path) else { return self.root(entry) };
        if let Some(whiteout) = whiteout_of(base)? {
            return self.whiteout(parent, whiteout);
        }
        let Some(dir) = self.parent(parent)? else { return Ok(()) };
        match entry.kind {
            EntryKind::File => self.file((&dir, base), path, entry, reader, ticker),
            EntryKind::Directory => self.directory(&dir, base, entry),
            EntryKind::Symlink => self.symlink(&dir, base, entry),
            EntryKind::HardLink => self.hard_link(&dir, base, &entry.link),
            EntryKind::CharDevice | EntryKind::BlockDevice | EntryKind::Fifo => self.node(&dir, base, entry),
            EntryKind::Other(_) => Ok(()),
        }
    }

    fn root(&mut self, entry: &mut Entry) -> Result<()> {
        if entry.kind != EntryKind::Directory {
            return Err(Error::malformed("the root of a layer is something other than a directory"));
        }
        self.list.implicit.remove(&b""[..]);
        self.list.describe(Vec::new(), Directory::new(Attributes::of(entry), None))
    }

    /// The directory in which an entry is to be made, itself made where it is missing; `None` where the entry is
    /// bookkeeping that is left out.
    fn parent(&mut self, name: &[u8]) -> Result<Option<std::rc::Rc<Dir>>> {
        if let Some(dir) = self.dirs.recent(name) {
            return Ok(Some(dir));
        }
        if is_inside_metadata(name)? {
            return Ok(None);
        }
        let mut maker = MakeImplicit { list: &mut self.list, defaults: &self.defaults, made: 0 };
        let found = self.dirs.find(name, &mut maker);
        self.inodes += maker.made;
        // One name may ask for hundreds of directories.
        self.options.headroom.spend(maker.made * INODE_BYTES)?;
        found
    }

    fn file<R: TarInput>(
        &mut self,
        (dir, base): (&Dir, &[u8]),
        path: &[u8],
        entry: &Entry,
        reader: &mut TarReader<R>,
        ticker: &mut Ticker<'_>,
    ) -> Result<()> {
        let file = self.create_file(dir, base, entry)?;
        self.bytes += entry.stored_bytes;
        let reached = &mut |position| ticker.reach(position);
        let is_small = entry.size < beside::SMALL && entry.sparse.is_none() && entry.xattrs.is_empty();
        if let Some(beside) = self.beside.as_mut().filter(|_| is_small) {
            let finish = finish_of(&self.defaults, entry)?;
            read_all(reader.data(), entry.size, beside.buffer(), reached)?;
            beside.put(file, entry.size as usize, finish, path.to_vec());
            return Ok(());
        }
        match &entry.sparse {
            None => write_dense(file.as_fd(), reader.data(), entry.size, reached)?,
            Some(regions) => write_sparse(file.as_fd(), reader.data(), entry.size, regions, reached)?,
        }
        self.finish_file(&file, dir, base, entry)
    }

    fn create_file(&mut self, dir: &Dir, base: &[u8], entry: &Entry) -> Result<OwnedFd> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        // Without privilege, attributes can be set only on files that are writable.
        let mode = if entry.xattrs.is_empty() { entry.mode & 0o777 } else { 0o600 };
        self.place(dir, base, || fs::openat(dir, base, flags, Mode::from_raw_mode(mode)))
    }

    fn finish_file(&mut self, file: &OwnedFd, dir: &Dir, base: &[u8], entry: &Entry) -> Result<()> {
        let mut finish = finish_of(&self.defaults, entry)?;
        if !entry.xattrs.is_empty() {
            if let Some(owner) = finish.owner.take() {
                attributes::set_owner(file, owner)?;
            }
            attributes::set_xattrs(file.as_fd(), &entry.xattrs, &dir.path_of(base), &mut self.notices)?;
        }
        finish.apply(file)
    }

    fn directory(&mut self, dir: &Dir, base: &[u8], entry: &mut Entry) -> Result<()> {
        let path = dir.path_of(base);
        let was_deleted = self.list.claim(&path);
        // What lies below must be writable until the end, whoever we are.
        let mode = (entry.mode & 0o777) | 0o700;
        let make = || fs::mkdirat(dir, base, Mode::from_raw_mode(mode));
        let made = match make() {
            Ok(()) => true,
            Err(Errno::EXIST) if file_type(dir, base)? == Some(FileType::Directory) => false,
            Err(Errno::EXIST) => {
                self.make_way(dir, base)?;
                make().map_err(lookup_error)?;
                true
            }
            Err(errno) => return Err(lookup_error(errno)),
        };
        self.inodes += u64::from(made);
        if was_deleted {
            self.mark_opaque(path.clone())?;
        }
        self.list.implicit.remove(&path);
        let mode_now = (made && self.defaults.exact_mode).then_some(mode);
        self.list.describe(path, Directory::new(Attributes::of(entry), mode_now))
    }

    fn symlink(&mut self, dir: &Dir, base: &[u8], entry: &Entry) -> Result<()> {
        if entry.link.is_empty() || entry.link.contains(&0) {
            return Err(Error::malformed("a symlink has no target"));
        }
        self.place(dir, base, || fs::symlinkat(&entry.link[..], dir, base))?;
        self.finish_node(dir, base, entry)
    }

    fn node(&mut self, dir: &Dir, base: &[u8], entry: &Entry) -> Result<()> {
        let (major, minor) = entry.device;
        let (kind, device) = match entry.kind {
            EntryKind::Fifo => (FileType::Fifo, 0),
            EntryKind::BlockDevice => (FileType::BlockDevice, fs::makedev(major, minor)),
            _ => (FileType::CharacterDevice, fs::makedev(major, minor)),
        };
        if kind != FileType::Fifo && (major >= 1 << MAJOR_BITS || minor >= 1 << MINOR_BITS) {
            return self.leave_out("a device whose number no kernel has is left out", dir, base);
        }
        if kind == FileType::CharacterDevice && device == 0 {
            return self.leave_out("a device 0:0, which would delete what is below, is left out", dir, base);
        }
        let mode = Mode::from_raw_mode(entry.mode & 0o777);
        match self.place(dir, base, || fs::mknodat(dir, base, kind, mode, device)) {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::Permission && kind != FileType::Fifo => {
                return self.leave_out(
                    "a device cannot be made without privilege and is left out",
                    dir,
                    base,
                );
            }
            Err(error) => return Err(error),
        }
        self.finish_node(dir, base, entry)
    }

    /// Reports something that is not made; what is linked to it is not made either.
    fn leave_out(&mut self, what: &str, dir: &Dir, base: &[u8]) -> Result<()> {
        let path = dir.path_of(base);
        self.notices.add(what, &path);
        self.list.leave_out(path)
    }

    /// Owner, mode and times of what cannot be opened without consequences.
    fn finish_node(&mut self, dir: &Dir, base: &[u8], entry: &Entry) -> Result<()> {
        if let Some(owner) = self.defaults.owner_change(entry.uid, entry.gid)? {
            attributes::set_owner_at(dir.as_fd(), base, owner)?;
        }
        if !entry.xattrs.is_empty() {
            let what = "extended attributes of something other than a file or directory are not kept";
            self.notices.add(what, &dir.path_of(base));
        }
        if entry.kind != EntryKind::Symlink && (entry.mode > 0o777 || !self.defaults.exact_mode) {
            attributes::set_mode_at(dir.as_fd(), base, entry.mode)?;
        }
        let times = attributes::timestamps(entry.mtime);
        Ok(fs::utimensat(dir, base, &times, AtFlags::SYMLINK_NOFOLLOW)?)
    }

    fn hard_link(&mut self, dir: &Dir, base: &[u8], target: &[u8]) -> Result<()> {
        let target = clean_path(target.to_vec(), &self.options.limits)?;
        if target.is_root() {
            return Err(Error::malformed("a hard link has the root as its target"));
        }
        match self.try_link(dir, base, target.as_bytes())? {
            Linked::Itself => Ok(()),
            Linked::Done => {
                self.list.claim(&dir.path_of(base));
                Ok(())
            }
            Linked::LeftOut => {
                self.leave_out("a hard link to a device that was left out is left out too", dir, base)
            }
            Linked::NoTarget => self.link_later(dir, base, target.as_bytes().to_vec()),
            Linked::Later(target) => self.link_later(dir, base, target),
        }
    }

    /// The target may be in a lower layer, and then that file is meant, whatever gets its name later in this layer: the link is
    /// made where the layer is put into a chain.
    fn link_later(&mut self, dir: &Dir, base: &[u8], target: Vec<u8>) -> Result<()> {
        self.make_way(dir, base)?;
        let path = dir.path_of(base);
        self.list.claim(&path);
        self.list.link_later(path, target)
    }

    fn try_link(&mut self, dir: &Dir, base: &[u8], target: &[u8]) -> Result<Linked> {
        let Some((target_parent, target_base)) = split_path(target) else { return Ok(Linked::NoTarget) };
        let Some(target_dir) = self.dirs.find(target_parent, &mut LookOnly)? else {
            return Ok(Linked::NoTarget);
        };
        let itself = target_dir.path() == dir.path() && target_base == base;
        if let Some(linked) = self.not_made(&target_dir.path_of(target_base), itself) {
            return Ok(linked);
        }
        if itself {
            return Ok(match file_type(dir, base)? {
                Some(_) if !self.list.whiteouts.contains(&dir.path_of(base)) => Linked::Itself,
                _ => Linked::NoTarget,
            });
        }
        // A deleted name is a device in overlayfs form; it must not get a second name.
        if !self.list.whiteouts.is_empty() && self.list.whiteouts.contains(&target_dir.path_of(target_base)) {
            return Ok(Linked::NoTarget);
        }
        let link = || fs::linkat(&*target_dir, target_base, dir, base, AtFlags::empty());
        let result = match link() {
            Err(Errno::EXIST) if same_inode(&target_dir, target_base, dir, base)? => {
                return Ok(Linked::Itself);
            }
            Err(Errno::EXIST) => {
                self.make_way(dir, base)?;
                link()
            }
            other => other,
        };
        match result {
            Ok(()) => Ok(Linked::Done),
            Err(Errno::NOENT) => Ok(Linked::NoTarget),
            Err(Errno::PERM) if file_type(&target_dir, target_base)? == Some(FileType::Directory) => {
                Err(Error::malformed("a hard link has a directory as its target"))
            }
            Err(errno) => Err(lookup_error(errno)),
        }
    }

    /// What becomes of a link to something that this layer has, and that is not in its tree.
    fn not_made(&self, target: &[u8], itself: bool) -> Option<Linked> {
        if let Some(further) = self.list.pending.get(target) {
            return Some(if itself { Linked::Itself } else { Linked::Later(further.clone()) });
        }
        self.list.left_out.contains(target).then_some(if itself { Linked::Itself } else { Linked::LeftOut })
    }

    fn whiteout(&mut self, parent: &[u8], whiteout: Whiteout<'_>) -> Result<()> {
        if whiteout == Whiteout::Metadata {
            return Ok(());
        }
        let Some(dir) = self.parent(parent)? else { return Ok(()) };
        match whiteout {
            Whiteout::Opaque if dir.path().is_empty() => {
                // overlayfs looks at no root's mark. So what is below shows when the image runs.
                self.notices.add("an opaque mark on the root of a layer hides nothing and is left out", b"");
                Ok(())
            }
            Whiteout::Opaque => self.mark_opaque(dir.path().to_vec()),
            Whiteout::Of(name) => self.delete(&dir, name),
            Whiteout::Metadata => Ok(()),
        }
    }

    fn mark_opaque(&mut self, path: Vec<u8>) -> Result<()> {
        self.list.charge(path.len())?;
        self.list.opaque.insert(path);
        Ok(())
    }

    /// Deletes a name of lower layers. The layer's own entry of that name wins, whichever comes first, but a
    /// directory must not show what it had below.
    fn delete(&mut self, dir: &Dir, name: &[u8]) -> Result<()> {
        let path = dir.path_of(name);
        match file_type(dir, name)? {
            Some(FileType::Directory) => {
                self.list.note_deleted(path.clone())?;
                return self.mark_opaque(path);
            }
            Some(_) if self.list.whiteouts.contains(&path) => return Ok(()),
            Some(_) => return self.list.note_deleted(path),
            None if self.list.pending.contains_key(&path) => return self.list.note_deleted(path),
            None => {}
        }
        if self.options.form != WhiteoutForm::List {
            fs::mknodat(dir, name, FileType::CharacterDevice, Mode::empty(), 0)
                .map_err(lookup_error)
                .doing(|| "cannot mark the deletion with a device 0:0")?;
            self.inodes += 1;
        }
        self.list.charge(path.len())?;
        self.list.whiteouts.insert(path);
        Ok(())
    }

    /// Makes an entry; whatever had its name goes first.
    fn place<T>(&mut self, dir: &Dir, base: &[u8], make: impl Fn() -> rustix::io::Result<T>) -> Result<T> {
        if self.list.has_claims() {
            self.list.claim(&dir.path_of(base));
        }
        let made = match make() {
            Err(Errno::EXIST) => {
                self.make_way(dir, base)?;
                make()
            }
            other => other,
        };
        let made = made.map_err(lookup_error)?;
        self.inodes += 1;
        Ok(made)
    }

    /// Removes whatever has this name and what is remembered of it.
    fn make_way(&mut self, dir: &Dir, base: &[u8]) -> Result<()> {
        let kind = file_type(dir, base)?;
        if kind == Some(FileType::Directory) {
            self.list.forget_subtree(&dir.path_of(base));
        }
        if matches!(kind, Some(FileType::Directory | FileType::Symlink)) {
            self.dirs.forget();
        }
        // Second names of a file were not counted when they were made, so this may come out a little low.
        self.inodes = self.inodes.saturating_sub(remove_entry(dir.as_fd(), base)?);
        Ok(())
    }

    fn finish(mut self) -> Result<Applied> {
        let directories = std::mem::take(&mut self.list.directories);
        // From the last to the first, what lies below a directory comes before it.
        for (path, directory) in directories.iter().rev() {
            self.finish_directory(path, directory)
                .map_err(|error| error.context(format!("cannot extract /{}", PathBytes::new(&path[..]))))?;
        }
        let (mut record, held) = self.list.into_record(self.options.form);
        record.owners = Some(self.options.ownership == Ownership::Keep);
        (record.entries, record.inodes, record.bytes) = (self.entries, self.inodes, self.bytes);
        Ok(Applied { record, notices: self.notices.into_lines(), _held: held.into() })
    }

    fn finish_directory(&mut self, path: &[u8], directory: &Directory) -> Result<()> {
        let wanted = &directory.attributes;
        let fd = self.dirs.open_real(path)?;
        if let Some(owner) = self.defaults.owner_change(wanted.uid, wanted.gid)? {
            attributes::set_owner(&fd, owner)?;
        }
        attributes::set_xattrs(fd.as_fd(), &wanted.xattrs, path, &mut self.notices)?;
        if self.list.opaque.contains(path) {
            self.mark_open_directory_opaque(&fd)?;
        }
        if directory.mode_now != Some(wanted.mode) || !wanted.xattrs.is_empty() {
            fs::fchmod(&fd, Mode::from_raw_mode(wanted.mode))?;
        }
        Ok(fs::futimens(&fd, &attributes::timestamps(wanted.mtime))?)
    }

    fn mark_open_directory_opaque(&self, fd: &OwnedFd) -> Result<()> {
        let name = match self.options.form {
            WhiteoutForm::Trusted => c"trusted.overlay.opaque",
            WhiteoutForm::User => c"user.overlay.opaque",
            WhiteoutForm::List => return Ok(()),
        };
        fs::fsetxattr(fd, name, b"y", XattrFlags::empty())
            .doing(|| format!("cannot set {}", name.to_string_lossy()))
    }
}

enum Linked {
    Done,
    /// Both names are the same file already.
    Itself,
    NoTarget,
    /// The target is itself a link to this, which is not there.
    Later(Vec<u8>),
    /// The target is a device that was left out.
    LeftOut,
}

/// Makes the directories that the layer needs and has not mentioned.
struct MakeImplicit<'a> {
    list: &'a mut SideList,
    defaults: &'a Defaults,
    made: u64,
}

impl Missing for MakeImplicit<'_> {
    fn absent(&mut self, dir: &Dir, base: &[u8]) -> Result<bool> {
        fs::mkdirat(dir, base, Mode::from_raw_mode(0o755)).map_err(lookup_error)?;
        self.made += 1;
        let path = dir.path_of(base);
        self.list.charge(path.len())?;
        if self.list.claim(&path) {
            self.list.opaque.insert(path.clone());
        }
        self.list.implicit.insert(path.clone());
        let mode_now = self.defaults.exact_mode.then_some(0o755);
        self.list.describe(path, Directory::new(Attributes::implicit(), mode_now))?;
        Ok(true)
    }

    fn obstructed(&mut self, dir: &Dir, base: &[u8]) -> Result<bool> {
        let path = dir.path_of(base);
        if !self.list.whiteouts.contains(&path) {
            let shown = PathBytes::new(path);
            return Err(Error::malformed(format!("{shown} is not a directory")));
        }
        fs::unlinkat(dir, base, AtFlags::empty()).map_err(lookup_error)?;
        let made = self.absent(dir, base)?;
        // It takes the place of the device that marked the deletion.
        self.made -= 1;
        Ok(made)
    }
}

/// What a new file needs beyond its content and its extended attributes, which change the mode.
fn finish_of(defaults: &Defaults, entry: &Entry) -> Result<Finish> {
    let set_mode = entry.mode > 0o777 || !defaults.exact_mode || !entry.xattrs.is_empty();
    Ok(Finish {
        owner: defaults.owner_change(entry.uid, entry.gid)?,
        mode: set_mode.then_some(Mode::from_raw_mode(entry.mode)),
        times: attributes::timestamps(entry.mtime),
    })
}

/// What has this name, if anything.
fn file_type(dir: &Dir, base: &[u8]) -> Result<Option<FileType>> {
    match fs::statat(dir, base, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(FileType::from_raw_mode(stat.st_mode))),
        Err(Errno::NOENT) => Ok(None),
        Err(errno) => Err(lookup_error(errno)),
    }
}

fn same_inode(one: &Dir, one_base: &[u8], other: &Dir, other_base: &[u8]) -> Result<bool> {
    let stat = |dir: &Dir, base: &[u8]| match fs::statat(dir, base, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some((stat.st_dev, stat.st_ino))),
        Err(Errno::NOENT) => Ok(None),
        Err(errno) => Err(lookup_error(errno)),
    };
    let one = stat(one, one_base)?;
    Ok(one.is_some() && one == stat(other, other_base)?)
}

/// Makes the root neutral, whatever the store's own directory has handed down to it, and finds out what a new file
/// gets by itself: the umask, ACLs, set-group-id and mount options all show in one made on trial.
fn probe(fs: BorrowedFd<'_>, options: &ApplyOptions) -> Result<Defaults> {
    const NAME: &std::ffi::CStr = c".transload-probe";
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let root = fs::openat(fs, c".", flags, Mode::empty())?;
    for acl in [c"system.posix_acl_default", c"system.posix_acl_access"] {
        match fs::fremovexattr(&root, acl) {
            Ok(()) | Err(Errno::NODATA | Errno::OPNOTSUPP) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    fs::fchmod(&root, Mode::from_raw_mode(0o700))?;
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = fs::openat(&root, NAME, flags, Mode::from_raw_mode(0o777))?;
    let stat = fs::fstat(&file);
    fs::unlinkat(&root, NAME, AtFlags::empty())?;
    let stat = stat?;
    let before = fs::fstat(&root)?;
    if options.ownership == Ownership::Keep && (before.st_uid, before.st_gid) != (stat.st_uid, stat.st_gid) {
        let (uid, gid) = (rustix::fs::Uid::from_raw(stat.st_uid), rustix::fs::Gid::from_raw(stat.st_gid));
        attributes::set_owner(&root, (uid, gid))?;
    }
    Ok(Defaults {
        uid: stat.st_uid,
        gid: stat.st_gid,
        exact_mode: stat.st_mode & 0o7777 == 0o777,
        ownership: options.ownership,
    })
}

//! Who holds a mount or a directory: open files, working directories, roots, programs and mappings of every process
//! that can be looked into, and the mounts of every namespace that one of them lives in.
//!
//! A file is matched by the number of the mount that it was opened through, so a file of the same filesystem elsewhere
//! does not count; by the device of an overlay, which finds what was detached lazily, too; or by lying below a directory.
//! Processes that end meanwhile hold nothing. What another user runs cannot be looked into without privilege; it is
//! counted, so that nobody takes silence for an answer. Other pid namespaces than this one and those below cannot be seen.

use super::info::{self, MountInfo};
use crate::error::{Result, ResultExt};
use crate::holder::{Holder, How, Use};
use rustix::fs::{AtFlags, CWD, StatxFlags, statx};
use rustix::io::Errno;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// What is asked about.
#[derive(Clone, Debug, Default)]
pub struct Places {
    /// Numbers of mounts, as [`MountInfo::id`] has them.
    pub mounts: HashSet<u64>,
    /// Devices of filesystems that are of interest as a whole, such as an overlay of one snapshot.
    pub devices: HashSet<(u32, u32)>,
    /// Directories on disk: whatever lies in them, and they themselves. Absolute, without links in them.
    pub directories: Vec<PathBuf>,
}

impl Places {
    /// These mounts, in whatever namespace they are.
    pub fn of_mounts<'a>(mounts: impl IntoIterator<Item = &'a MountInfo>) -> Self {
        let mut places = Places::default();
        for mount in mounts {
            places.mounts.insert(mount.id);
            // An overlay is a filesystem of its own; a bind mount shares its device with all the rest of the disk.
            if mount.fs_type == "overlay" {
                places.devices.insert(mount.device);
            }
        }
        places
    }

    /// These as well.
    pub fn extend(&mut self, more: Places) {
        self.mounts.extend(more.mounts);
        self.devices.extend(more.devices);
        self.directories.extend(more.directories);
    }

    fn is_empty(&self) -> bool {
        self.mounts.is_empty() && self.devices.is_empty() && self.directories.is_empty()
    }
}

/// Who holds what was asked about.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Holders {
    /// The processes, by number.
    pub found: Vec<Holder>,
    /// How many processes could not be looked into for want of privilege.
    pub unreadable: u64,
    /// How many of those could have been given a mount of ours: they belong to this user namespace, and we are its root, but
    /// without the right to look into others (`CAP_SYS_PTRACE`). Nobody else mounts.
    pub closed: u64,
}

/// A mount namespace, seen through one of its processes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Namespace {
    /// What `/proc/<pid>/ns/mnt` says; the same for every process inside.
    pub name: String,
    /// The first process that was found inside.
    pub pid: u32,
    /// Whether this process lives in it.
    pub own: bool,
    /// What is mounted in it, as that process sees it, and what others see that have another root.
    pub mounts: Vec<MountInfo>,
    /// Whether some process sees all of it. One that has changed its root sees what is mounted below that.
    pub whole: bool,
}

/// Looks at every process that can be seen.
///
/// ```no_run
/// use transload::mount::{self, holders::{Places, holders}};
/// let here = mount::all()?.into_iter().filter(|mount| mount.target.ends_with("mnt"));
/// for holder in holders(&Places::of_mounts(&here.collect::<Vec<_>>()))?.found {
///     println!("{holder}");
/// }
/// # Ok::<(), transload::Error>(())
/// ```
pub fn holders(places: &Places) -> Result<Holders> {
    let mut holders = Holders::default();
    if places.is_empty() {
        return Ok(holders);
    }
    let (is_blind, outsiders) = (rustix::process::geteuid().is_root() && !may_look(), outsiders());
    for pid in processes()? {
        match uses_of(pid, places) {
            Ok(uses) if uses.is_empty() => {}
            Ok(uses) => holders.found.extend(Holder::of(pid, uses)),
            Err(Errno::ACCESS | Errno::PERM) => {
                holders.unreadable += 1;
                holders.closed += u64::from(is_blind && belongs_here(pid, outsiders));
            }
            // It has ended.
            Err(_) => {}
        }
    }
    Ok(holders)
}

/// Whether this process may look into all others of its user namespace. Those that are closed all the same are protected
/// by other means.
fn may_look() -> bool {
    const CAP_SYS_PTRACE: u32 = 19;
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let set = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let set = set.and_then(|digits| u64::from_str_radix(digits.trim(), 16).ok());
    set.is_none_or(|set| set & 1 << CAP_SYS_PTRACE != 0)
}

/// The user that processes of outside a user namespace are shown to belong to; none outside of all namespaces.
fn outsiders() -> Option<u32> {
    let map = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    if map.split_whitespace().eq(["0", "0", "4294967295"]) {
        return None;
    }
    let number = std::fs::read_to_string("/proc/sys/kernel/overflowuid").ok();
    Some(number.and_then(|text| text.trim().parse().ok()).unwrap_or(65534))
}

fn belongs_here(pid: u32, outsiders: Option<u32>) -> bool {
    std::fs::metadata(format!("/proc/{pid}")).is_ok_and(|process| Some(process.uid()) != outsiders)
}

/// Every mount namespace that a process lives in, this one's first. Namespaces that cannot be read are left out.
pub fn namespaces() -> Result<Vec<Namespace>> {
    let own = std::fs::read_link("/proc/self/ns/mnt").doing(|| "cannot look at the mount namespace")?;
    let mut found = Found::default();
    // First what this process sees itself: another one may have changed its root.
    let this = std::fs::read_link("/proc/self").ok().and_then(|name| name.to_str()?.parse().ok());
    for pid in this.into_iter().chain(processes()?) {
        found.look(pid, &own);
    }
    let mut namespaces: Vec<Namespace> = found.namespaces.into_values().collect();
    namespaces.sort_by_key(|namespace| (!namespace.own, namespace.pid));
    Ok(namespaces)
}

#[derive(Default)]
struct Found {
    namespaces: BTreeMap<PathBuf, Namespace>,
    /// Whoever lives in the same namespace with the same root sees the same.
    seen: HashSet<(PathBuf, PathBuf)>,
}

impl Found {
    fn look(&mut self, pid: u32, own: &Path) {
        let process = PathBuf::from(format!("/proc/{pid}"));
        let Ok(name) = std::fs::read_link(process.join("ns/mnt")) else { return };
        let view = (name.clone(), std::fs::read_link(process.join("root")).unwrap_or_default());
        if self.seen.contains(&view) {
            return;
        }
        let Ok(table) = std::fs::read(process.join("mountinfo")) else { return };
        let whole = view.1 == Path::new("/");
        self.seen.insert(view);
        let namespace = self.namespaces.entry(name.clone()).or_insert_with(|| Namespace {
            name: name.to_string_lossy().into_owned(),
            pid,
            own: name == own,
            mounts: Vec::new(),
            whole: false,
        });
        let known: HashSet<u64> = namespace.mounts.iter().map(|mount| mount.id).collect();
        let more = info::parse_table(&table).into_iter().filter(|mount| !known.contains(&mount.id));
        namespace.mounts.extend(more);
        namespace.whole |= whole;
    }
}

/// The process by which a namespace that shows `mount` holds it.
pub fn holder_by_mount(namespace: &Namespace, mount: &MountInfo) -> Option<Holder> {
    Holder::of(namespace.pid, vec![Use { how: How::Mount, path: mount.target.clone() }])
}

/// Everything in `/proc` that is a number, in order.
fn processes() -> Result<Vec<u32>> {
    let doing = || "cannot list the processes";
    let mut pids = Vec::new();
    for entry in std::fs::read_dir("/proc").doing(doing)? {
        let name = entry.doing(doing)?.file_name();
        pids.extend(name.to_str().and_then(|name| name.parse::<u32>().ok()));
    }
    pids.sort_unstable();
    Ok(pids)
}

fn uses_of(pid: u32, places: &Places) -> rustix::io::Result<Vec<Use>> {
    let process = PathBuf::from(format!("/proc/{pid}"));
    let mut looking = Looking { places, seen: HashMap::new(), uses: HashSet::new() };
    // Whether we may look at all shows itself here. A kernel thread has none of these.
    looking.link(How::WorkingDirectory, &process.join("cwd"))?;
    looking.link(How::Root, &process.join("root"))?;
    looking.link(How::Executable, &process.join("exe"))?;
    looking.directory(How::OpenFile, &process.join("fd"))?;
    // Needs more privilege than the others; without it the program and the open files have to do.
    let _ = looking.directory(How::MappedFile, &process.join("map_files"));
    let mut uses: Vec<Use> = looking.uses.into_iter().collect();
    // A program is mapped, too, which is no news.
    let program = uses.iter().find(|one| one.how == How::Executable).map(|one| one.path.clone());
    uses.retain(|one| one.how != How::MappedFile || Some(&one.path) != program.as_ref());
    uses.sort();
    Ok(uses)
}

struct Looking<'a> {
    places: &'a Places,
    /// A library is mapped in several pieces.
    seen: HashMap<PathBuf, bool>,
    uses: HashSet<Use>,
}

impl Looking<'_> {
    fn directory(&mut self, how: How, dir: &Path) -> rustix::io::Result<()> {
        let failed = |error: std::io::Error| Errno::from_io_error(&error).unwrap_or(Errno::IO);
        for entry in std::fs::read_dir(dir).map_err(failed)? {
            // Closed meanwhile, or not to be looked at: the others still count.
            let Ok(entry) = entry else { continue };
            let _ = self.link(how, &entry.path());
        }
        Ok(())
    }

    /// A link of `/proc` leads to the thing itself, whatever its path means to us.
    fn link(&mut self, how: How, link: &Path) -> rustix::io::Result<()> {
        let path = match std::fs::read_link(link) {
            Ok(path) => path,
            Err(error) => {
                return match Errno::from_io_error(&error) {
                    Some(Errno::NOENT) | None => Ok(()),
                    Some(errno) => Err(errno),
                };
            }
        };
        // Pipes, sockets and the like lie nowhere.
        if !path.as_os_str().as_bytes().starts_with(b"/") {
            return Ok(());
        }
        let held = match self.seen.get(&path).filter(|_| how == How::MappedFile) {
            Some(held) => *held,
            None => self.is_in(link, &path),
        };
        if how == How::MappedFile {
            self.seen.insert(path.clone(), held);
        }
        if held {
            self.uses.insert(Use { how, path });
        }
        Ok(())
    }

    fn is_in(&self, link: &Path, path: &Path) -> bool {
        if self.places.directories.iter().any(|dir| path.starts_with(dir)) {
            return true;
        }
        // Nothing is asked of a server, and nothing is mounted by looking.
        let flags = AtFlags::NO_AUTOMOUNT | AtFlags::STATX_DONT_SYNC;
        let Ok(stat) = statx(CWD, link, flags, StatxFlags::TYPE | StatxFlags::MNT_ID) else { return false };
        let numbered = stat.stx_mask & StatxFlags::MNT_ID.bits() != 0;
        numbered && self.places.mounts.contains(&stat.stx_mnt_id)
            || self.places.devices.contains(&(stat.stx_dev_major, stat.stx_dev_minor))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of_this_process(places: &Places) -> Vec<Use> {
        let found = holders(places).expect("looks").found;
        found.into_iter().find(|holder| holder.pid == std::process::id()).map_or(Vec::new(), |own| own.uses)
    }

    #[test]
    fn an_open_file_below_a_directory_is_found_and_gone_when_closed() {
        let dir = tempfile::tempdir().expect("a directory");
        let root = std::fs::canonicalize(dir.path()).expect("a path");
        let places = Places { directories: vec![root.join("in")], ..Places::default() };
        std::fs::create_dir(root.join("in")).expect("makes");
        std::fs::create_dir(root.join("inside-not")).expect("makes");
        let beside = std::fs::File::create(root.join("inside-not/x")).expect("makes");
        assert_eq!(of_this_process(&places), []);
        let file = std::fs::File::create(root.join("in/x")).expect("makes");
        assert_eq!(of_this_process(&places), [Use { how: How::OpenFile, path: root.join("in/x") }]);
        drop(file);
        assert_eq!(of_this_process(&places), []);
        drop(beside);
    }

    #[test]
    fn the_mount_that_everything_lies_on_is_held_by_this_very_program() {
        let own = statx(CWD, "/proc/self/exe", AtFlags::empty(), StatxFlags::MNT_ID).expect("statx");
        let places = Places { mounts: [own.stx_mnt_id].into(), ..Places::default() };
        assert!(of_this_process(&places).iter().any(|one| one.how == How::Executable));
    }

    #[test]
    fn the_first_namespace_is_our_own() {
        let namespaces = namespaces().expect("lists");
        assert!(namespaces[0].own && !namespaces[0].mounts.is_empty());
        assert!(namespaces[1..].iter().all(|other| !other.own));
        let mount = &namespaces[0].mounts[0];
        let holder = holder_by_mount(&namespaces[0], mount).expect("a living process");
        assert_eq!(holder.uses, [Use { how: How::Mount, path: mount.target.clone() }]);
    }
}

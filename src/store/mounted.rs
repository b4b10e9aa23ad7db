//! Who uses a mount's snapshot: the labels that say where it is mounted, and whether it still is.
//!
//! A mount goes with its namespace, with a reboot, or under `umount(8)`, and then nobody tells the store. So a collection
//! looks for itself, and gives a snapshot up only if it can see everything that could show it: the boot that the mount was
//! made in is over, or it was made where the processes seen from here live and none of them has it. Where there is any
//! doubt the snapshot stays. Whoever mounts holds the collection's lock shared meanwhile, so none is seen half made.

use super::Store;
use crate::error::{Result, ResultExt};
use crate::metadata::{Labels, SnapshotKind, SnapshotRow};
use crate::mount::{self, MountInfo};
use crate::tree::PathBytes;
use rustix::fs;
use std::collections::HashSet;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// The label that says where a snapshot is mounted.
pub const TARGET_LABEL: &str = "transload.mount.target";

/// The label that says which image a snapshot was made of, as it was named.
pub const IMAGE_LABEL: &str = "transload.mount.image";

/// The label that says which image's chain a mount shows.
pub const CHAIN_LABEL: &str = "transload.mount.chain";

/// The label of a committed snapshot that is a copy of this chain with other owners. It goes when the chain does.
pub const REMAPPED_OF_LABEL: &str = "transload.remapped-of";

/// The label that gives an overlay's device, `major:minor`: it is in no mount table once it was unmounted lazily.
pub const DEVICE_LABEL: &str = "transload.mount.device";

/// The label that says under which boot, and among which processes, it was mounted.
const SEEN_FROM_LABEL: &str = "transload.mount.seen-from";

/// The labels of a snapshot that is to be mounted at `target`. Paths are bytes and labels are text: what is not UTF-8 is
/// escaped, so that equal paths have equal labels.
pub fn labels_of_mount(target: &Path) -> Labels {
    let text = PathBytes::new(target.as_os_str().as_bytes()).to_string();
    let mut labels = Labels::from([(TARGET_LABEL.to_string(), text)]);
    labels
        .extend(here().map(|(boot, processes)| (SEEN_FROM_LABEL.to_string(), format!("{boot} {processes}"))));
    labels
}

/// Where a snapshot is mounted, if its labels say so.
pub fn target_of(row: &SnapshotRow) -> Result<Option<PathBuf>> {
    let Some(label) = row.labels.get(TARGET_LABEL) else { return Ok(None) };
    let target: PathBytes = label.trim_start_matches('/').parse()?;
    Ok(Some(Path::new("/").join(OsStr::from_bytes(target.as_bytes()))))
}

/// The device of a snapshot's overlay in this boot.
pub(super) fn device_of(row: &SnapshotRow) -> Option<(u32, u32)> {
    let (boot, _) = here()?;
    seen_from(row).filter(|(seen, _)| *seen == boot)?;
    let (major, minor) = row.labels.get(DEVICE_LABEL)?.split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

/// This boot, and the namespace whose processes are in `/proc`. `None` where the kernel does not tell.
fn here() -> Option<(String, String)> {
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    let processes = std::fs::read_link("/proc/self/ns/pid").ok()?;
    Some((boot.trim().to_string(), processes.to_string_lossy().into_owned()))
}

impl Store {
    /// The keys of the snapshots among `rows` that were mounted and are no longer.
    pub(crate) fn abandoned_mounts(&self, rows: &[SnapshotRow]) -> Result<HashSet<String>> {
        let mut mounted = Vec::new();
        for row in rows {
            mounted.extend(target_of(row)?.map(|target| (row, target)));
        }
        let (false, Some(here)) = (mounted.is_empty(), here()) else { return Ok(HashSet::new()) };
        let Ok(seen) = mount::everywhere() else { return Ok(HashSet::new()) };
        let root = std::fs::canonicalize(self.path()).unwrap_or_else(|_| self.path().to_path_buf());
        let ours = Ours::find(root.clone())?;
        let known: HashSet<&Path> = mounted.iter().map(|(_, target)| target.as_path()).collect();
        let shown: HashSet<&Path> = seen.iter().map(|mount| mount.target.as_path()).collect();
        // A process that has changed its root sees the mount elsewhere, and a view's lines do not say which it is.
        let stranger = seen.iter().any(|mount| shows_a_view(mount, &root) && !known.contains(&*mount.target));
        let gone = mounted.iter().filter(|(row, target)| match seen_from(row) {
            Some((boot, _)) if boot != here.0 => true,
            Some((_, processes)) if processes == here.1 => {
                let name = mount::source_name(&root, row.id);
                let by_id = seen.iter().any(|mount| mount.source == name || ours.shows(mount, row.id));
                !(shown.contains(target.as_path()) || by_id || stranger && row.kind == SnapshotKind::View)
            }
            _ => false,
        });
        // It may have been unmounted lazily, with someone in it still.
        let held = |row: &SnapshotRow| {
            device_of(row).is_some() && !self.in_use(row).is_ok_and(|found| found.is_free())
        };
        Ok(gone.map(|(row, _)| *row).filter(|row| !held(row)).map(|row| row.key.clone()).collect())
    }
}

fn seen_from(row: &SnapshotRow) -> Option<(&str, &str)> {
    row.labels.get(SEEN_FROM_LABEL)?.split_once(' ')
}

/// An overlay of this store that does not say of which snapshot, or a tree of any store.
fn shows_a_view(mount: &MountInfo, root: &Path) -> bool {
    let tree = || {
        let parent = mount.root.parent().unwrap_or(Path::new("/"));
        parent.parent().is_some_and(|trees| trees.ends_with("trees")) && mount.root.ends_with("fs")
    };
    let nameless =
        || mount.source.as_os_str().as_bytes() == [b"transload:", root.as_os_str().as_bytes()].concat();
    mount.fs_type == "overlay" && nameless() || tree()
}

/// What tells mounts of this store from those of others, whose snapshots have the same numbers.
struct Ours {
    /// The store's root, as this process finds it.
    root: PathBuf,
    /// Its device and file number.
    node: (u64, u64),
    /// Its filesystem and where it lies there, as a bind mount of it would say: the mount table's numbers, which on btrfs
    /// are not those of a file. `None` where the table does not tell.
    place: Option<((u32, u32), PathBuf)>,
}

impl Ours {
    fn find(root: PathBuf) -> Result<Self> {
        let stat = fs::stat(&root).doing(|| format!("cannot look at {}", root.display()))?;
        // Of several at one place the last covers the others.
        let above = |mount: &MountInfo| root.starts_with(&mount.target);
        let own = mount::all()?.into_iter().filter(above).max_by_key(|mount| mount.target.as_os_str().len());
        let place = own.and_then(|mount| {
            let below = root.strip_prefix(&mount.target).ok()?;
            Some((mount.device, mount.root.join(below)))
        });
        Ok(Ours { node: (stat.st_dev, stat.st_ino), root, place })
    }

    /// Whether a mount shows this snapshot's upper directory, or is a bind mount of its own. In doubt it does.
    fn shows(&self, mount: &MountInfo, id: u64) -> bool {
        let part = format!("/snapshots/{id}/");
        if mount.fs_type == "overlay" {
            let store = mount.options.split(',').filter_map(|option| option.split_once(&part)).next();
            return store.is_some_and(|(store, _)| {
                self.is_root(store.split_once('=').map_or(store, |(_, path)| path))
            });
        }
        let text = mount.root.to_string_lossy();
        let Some((store, _)) = text.split_once(&part) else { return false };
        let same = |(device, place): &((u32, u32), PathBuf)| {
            mount.device == *device && Path::new(if store.is_empty() { "/" } else { store }) == place
        };
        self.place.as_ref().is_none_or(same)
    }

    /// Whether a path that a mount names is the store's; true for one that is not seen from here.
    fn is_root(&self, path: &str) -> bool {
        let same = |stat: fs::Stat| (stat.st_dev, stat.st_ino) == self.node;
        self.root == Path::new(path) || fs::stat(path).map_or(true, same)
    }
}

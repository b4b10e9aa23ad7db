//! Who uses a mount's snapshot: the labels that say where it is mounted, and whether it still is.
//!
//! A mount goes with its namespace, with a reboot, or under `umount(8)`, and then nobody tells the store. So a collection
//! looks for itself, and gives a snapshot up only if it is sure that nothing shows it: the boot that the mount was made in
//! is over; or the kernel says that its overlay is gone; or it was made where the processes seen from here live and none of
//! them has it. Where there is any doubt the snapshot stays. Whoever mounts holds the collection's lock shared meanwhile,
//! so none is seen half made.

use super::Store;
use super::shown::{Sight, Snapshot};
use crate::error::Result;
use crate::metadata::{Labels, SnapshotRow};
use crate::mount::holders::{self, Places};
use crate::tree::PathBytes;
use std::cell::OnceCell;
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

/// The labels of a snapshot whose overlay has this device.
pub fn labels_of_device((major, minor): (u32, u32)) -> Labels {
    Labels::from([(DEVICE_LABEL.to_string(), format!("{major}:{minor}"))])
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
            // A label that cannot be read keeps its snapshot, and nothing else.
            if let Ok(Some(_)) = target_of(row) {
                mounted.push((row, Snapshot::of(self, row)?));
            }
        }
        let (false, Some(here)) = (mounted.is_empty(), here()) else { return Ok(HashSet::new()) };
        let Ok(sight) = Sight::look(self) else { return Ok(HashSet::new()) };
        let mut gone = HashSet::new();
        let mut unseen = Vec::new();
        for (row, snapshot) in &mounted {
            let Some((boot, processes)) = seen_from(row) else { continue };
            if boot != here.0 {
                gone.insert(row.key.clone());
            } else if sight.shown(snapshot).is_empty() {
                match sight.is_gone(snapshot) {
                    // Whatever could be seen from where it was mounted, the kernel is the same.
                    Some(true) => drop(gone.insert(row.key.clone())),
                    _ if processes == here.1 => unseen.push((*row, snapshot)),
                    _ => {}
                }
            }
        }
        let known = OnceCell::new();
        unseen.retain(|(_, snapshot)| !self.is_strange(&sight, snapshot, &known));
        gone.extend(free(&sight, &unseen));
        Ok(gone)
    }

    /// Whether a bind mount of the same directory is where no snapshot was mounted. `known` are the places where some were.
    fn is_strange(&self, sight: &Sight, snapshot: &Snapshot, known: &OnceCell<HashSet<PathBuf>>) -> bool {
        let Some(directory) = snapshot.bound_directory() else { return false };
        let targets = || {
            let rows = self.metadata.snapshots().unwrap_or_default();
            rows.iter().filter_map(|row| target_of(row).ok()?).collect()
        };
        sight.is_strange(directory, &|target| known.get_or_init(targets).contains(target))
    }
}

/// The keys of those that nobody holds; they may have been unmounted lazily, with someone in them still. All processes are
/// looked at once, and again only if there is someone.
fn free(sight: &Sight, unseen: &[(&SnapshotRow, &Snapshot)]) -> Vec<String> {
    let mut places = Places::default();
    for (_, snapshot) in unseen {
        places.extend(sight.places(snapshot, &[]));
    }
    let found = holders::holders(&places).ok();
    let is_free = |snapshot: &Snapshot| match &found {
        Some(found) if found.found.is_empty() => sight.hidden(snapshot, found.closed).is_none(),
        _ => sight.in_use(snapshot).is_ok_and(|found| found.is_free()),
    };
    let free = unseen.iter().filter(|(_, snapshot)| is_free(snapshot));
    free.map(|(row, _)| row.key.clone()).collect()
}

/// Whether the boot is over in which it was mounted.
pub(super) fn is_of_earlier_boot(row: &SnapshotRow) -> bool {
    seen_from(row).zip(here()).is_some_and(|((seen, _), (boot, _))| seen != boot)
}

fn seen_from(row: &SnapshotRow) -> Option<(&str, &str)> {
    row.labels.get(SEEN_FROM_LABEL)?.split_once(' ')
}

//! Which mounts show a snapshot, and what may show it where nobody can look.
//!
//! An overlay is known by its device, which is written down when it is mounted, and by its name, `transload:<store>#<n>`.
//! The store in it is the path by which whoever mounted found it, and the same store is found through links and bind
//! mounts, and elsewhere after a move; so directories are compared, not texts. A bind mount is known by the directory that
//! it shows. In doubt a mount shows the snapshot.

use super::{Store, mounted};
use crate::error::{Error, ErrorKind, Result};
use crate::metadata::{SnapshotKind, SnapshotRow};
use crate::mount::holders::{self, Namespace, Places};
use crate::mount::{self, MountInfo, MountKind};
use rustix::fd::{AsRawFd, BorrowedFd};
use rustix::fs::{self, AtFlags, CWD, StatxFlags, statx};
use std::path::{Path, PathBuf};

/// A longer name of an overlay is left out, because the kernel does not take it.
const LONGEST_NAME: usize = 255;

/// All mount tables at one moment, and where the store lies in them.
pub(super) struct Sight {
    /// This process's first.
    pub(super) namespaces: Vec<Namespace>,
    /// The store's directory, now.
    root: PathBuf,
    /// Its device and file number.
    node: (u64, u64),
    home: Option<Home>,
}

/// Where the store lies on its filesystem, in the words of the mount table.
struct Home {
    device: (u32, u32),
    root: PathBuf,
}

impl Home {
    fn of(store: BorrowedFd<'_>, path: &Path, here: &Namespace) -> Option<Home> {
        let stat = statx(store, "", AtFlags::EMPTY_PATH, StatxFlags::MNT_ID).ok();
        let number = stat.filter(|stat| stat.stx_mask & StatxFlags::MNT_ID.bits() != 0);
        let number = number.map(|stat| stat.stx_mnt_id);
        let numbered = here.mounts.iter().find(|mount| Some(mount.id) == number);
        Home::inside(numbered.or_else(|| Home::deepest(path, here))?, path)
    }

    /// The mount that holds the store is the deepest one above it, of several at one place the last.
    fn deepest<'a>(path: &Path, here: &'a Namespace) -> Option<&'a MountInfo> {
        let above = here.mounts.iter().filter(|mount| path.starts_with(&mount.target));
        above.max_by_key(|mount| mount.target.components().count())
    }

    fn inside(mount: &MountInfo, path: &Path) -> Option<Home> {
        let inside = path.strip_prefix(&mount.target).ok()?;
        Some(Home { device: mount.device, root: mount.root.join(inside) })
    }
}

/// How a snapshot is recognised.
pub(super) struct Snapshot {
    id: u64,
    /// Where it was mounted.
    target: Option<PathBuf>,
    /// The device of its overlay in this boot.
    device: Option<(u32, u32)>,
    /// What a mount of it shows.
    shape: Shape,
    /// Whether no mount is made of it itself, or the boot of its mount is over.
    at_rest: bool,
}

enum Shape {
    Overlay {
        upper: Option<PathBuf>,
    },
    /// One directory of the store.
    Bind(PathBuf),
    /// What it stands on is not there.
    Unknown,
}

impl Snapshot {
    pub(super) fn of(store: &Store, row: &SnapshotRow) -> Result<Self> {
        Ok(Snapshot {
            id: row.id,
            target: mounted::target_of(row)?,
            device: mounted::device_of(row),
            shape: Shape::of(store, row),
            at_rest: row.kind == SnapshotKind::Committed || mounted::is_of_earlier_boot(row),
        })
    }

    /// Which directory of the store its mount is, if it is no more than that. A view's is one that others show as well.
    pub(super) fn bound_directory(&self) -> Option<&Path> {
        match &self.shape {
            Shape::Bind(inside) => Some(inside),
            _ => None,
        }
    }
}

impl Shape {
    fn of(store: &Store, row: &SnapshotRow) -> Shape {
        let mounts = match row.kind {
            SnapshotKind::Committed => None,
            _ => store.snapshots.mounts(&row.key).ok(),
        };
        match mounts.and_then(|mut mounts| mounts.pop()) {
            Some(mount) if mount.kind == MountKind::Overlay => Shape::Overlay { upper: mount.upper },
            Some(mount) => match mount.source.strip_prefix(&store.real) {
                Ok(inside) => Shape::Bind(inside.to_path_buf()),
                Err(_) => Shape::Unknown,
            },
            None => Shape::Unknown,
        }
    }
}

impl Sight {
    pub(super) fn look(store: &Store) -> Result<Sight> {
        let namespaces = holders::namespaces()?;
        if !namespaces.first().is_some_and(|first| first.own) {
            return Err(Error::new(ErrorKind::Io, "this process's mount table cannot be read"));
        }
        let stat = fs::fstat(store.root())?;
        let node = (stat.st_dev, stat.st_ino);
        // It may have been moved since it was opened.
        let now = std::fs::read_link(format!("/proc/self/fd/{}", store.root().as_raw_fd()));
        let root = now.ok().filter(|path| node_of(path) == Some(node)).unwrap_or_else(|| store.real.clone());
        let home = Home::of(store.root(), &root, &namespaces[0]);
        Ok(Sight { namespaces, root, node, home })
    }

    /// Every mount, with the namespace that shows it.
    pub(super) fn mounts(&self) -> impl Iterator<Item = (&Namespace, &MountInfo)> {
        self.namespaces
            .iter()
            .flat_map(|namespace| namespace.mounts.iter().map(move |mount| (namespace, mount)))
    }

    /// The mounts that show this snapshot.
    pub(super) fn shown(&self, of: &Snapshot) -> Vec<(&Namespace, &MountInfo)> {
        self.mounts().filter(|(namespace, mount)| self.shows(of, namespace, mount)).collect()
    }

    fn shows(&self, of: &Snapshot, namespace: &Namespace, mount: &MountInfo) -> bool {
        // The store may lie on an overlay itself, which a bind mount of its directories then shows.
        self.is_bound(of, mount) || mount.fs_type == "overlay" && self.is_overlaid(of, namespace, mount)
    }

    /// Whether a mount of this process's namespace shows it.
    pub(super) fn shows_here(&self, of: &Snapshot, mount: &MountInfo) -> bool {
        self.shows(of, &self.namespaces[0], mount)
    }

    fn is_overlaid(&self, of: &Snapshot, namespace: &Namespace, mount: &MountInfo) -> bool {
        let same_device = of.device == Some(mount.device);
        match mount::source_parts(&mount.source) {
            Some((_, Some(id))) if id != of.id => false,
            Some((store, Some(_))) => same_device || self.is_store(store, of, namespace),
            // Earlier releases left out which, and a long name is left out.
            _ => {
                let long = mount::source_name(&self.root, of.id).as_os_str().len() > LONGEST_NAME;
                same_device && (long || of.target.as_deref() == Some(&*mount.target))
                    || self.is_upper(of, namespace, mount)
            }
        }
    }

    /// Whether the options name a directory of the snapshot.
    fn is_upper(&self, of: &Snapshot, namespace: &Namespace, mount: &MountInfo) -> bool {
        let part = format!("/snapshots/{}/", of.id);
        if !mount.options.contains(&part) {
            return false;
        }
        let values = mount.options.split(',').filter_map(|option| option.split_once('='));
        let mut stores = values.flat_map(|(_, value)| value.split(':')).filter_map(|path| {
            let (store, _) = path.split_once(&*part)?;
            Some(Path::new(store))
        });
        stores.any(|store| self.is_store(store, of, namespace))
    }

    /// Whether a path that an overlay names is the store's. Of another namespace's it is the path there or here; where
    /// the snapshot's own device is known, another device with a path of our own is another store at the same place.
    fn is_store(&self, path: &Path, of: &Snapshot, namespace: &Namespace) -> bool {
        let device_tells = of.device.is_some() && !namespace.own;
        if !device_tells && path == self.root {
            return true;
        }
        let here = Some(path.to_path_buf()).filter(|_| !device_tells);
        let below = path.strip_prefix("/").unwrap_or(path);
        let there = Path::new("/proc").join(namespace.pid.to_string()).join("root").join(below);
        let places = here.into_iter().chain(Some(there).filter(|_| !namespace.own));
        let nodes: Vec<(u64, u64)> = places.filter_map(|place| node_of(&place)).collect();
        // A path that leads nowhere may be where the store was before it was moved.
        nodes.contains(&self.node) || nodes.is_empty() && of.device.is_none()
    }

    /// A view's directory is its parent's, which others show as well: then the place tells.
    fn is_bound(&self, of: &Snapshot, mount: &MountInfo) -> bool {
        let Some(inside) = self.inside(mount) else { return false };
        let at_its_place = || of.target.as_deref() == Some(&*mount.target);
        inside.starts_with(format!("snapshots/{}", of.id))
            || match &of.shape {
                Shape::Bind(directory) => inside == directory && at_its_place(),
                Shape::Overlay { .. } => false,
                Shape::Unknown => {
                    (inside.starts_with("trees") || inside.starts_with("snapshots")) && at_its_place()
                }
            }
    }

    /// Which directory of the store a mount shows.
    fn inside<'a>(&self, mount: &'a MountInfo) -> Option<&'a Path> {
        let home = self.home.as_ref().filter(|home| home.device == mount.device)?;
        mount.root.strip_prefix(&home.root).ok()
    }

    /// Whether something shows `directory` of the store at a place that `is_known` does not know. A process that has changed
    /// its root sees a mount elsewhere, and of a view nothing else tells whose it is.
    pub(super) fn is_strange(&self, directory: &Path, is_known: &dyn Fn(&Path) -> bool) -> bool {
        self.mounts().any(|(_, mount)| self.inside(mount) == Some(directory) && !is_known(&mount.target))
    }

    /// What to look for in processes that hold the snapshot, by these mounts or without any.
    pub(super) fn places(&self, of: &Snapshot, shown: &[(&Namespace, &MountInfo)]) -> Places {
        let mut places = Places::of_mounts(shown.iter().map(|(_, mount)| *mount));
        // Where the store lies on an overlay itself, not all that is open there is this snapshot's.
        if let Some(home) = &self.home {
            places.devices.remove(&home.device);
        }
        // What was unmounted lazily is in no table, and lives on as long as it is held.
        places.devices.extend(of.device.filter(|device| !self.is_passed_on(of, *device)));
        places.directories.push(self.root.join(format!("snapshots/{}", of.id)));
        places
    }

    /// Whether another filesystem has the device's number by now. Then the snapshot's is gone.
    fn is_passed_on(&self, of: &Snapshot, device: (u32, u32)) -> bool {
        self.mounts().any(|(namespace, mount)| mount.device == device && !self.shows(of, namespace, mount))
    }

    /// Whether the kernel says that the snapshot's overlay is gone. `None` where it does not tell.
    pub(super) fn is_gone(&self, of: &Snapshot) -> Option<bool> {
        let device = of.device?;
        match mount::is_live(device)? {
            true if self.is_passed_on(of, device) => Some(true),
            live => Some(!live),
        }
    }

    /// Of a snapshot that nothing is seen to show or hold: why it may be in use all the same. `closed` is how many processes could
    /// not be looked into.
    pub(super) fn hidden(&self, of: &Snapshot, closed: u64) -> Option<String> {
        if of.at_rest {
            return None;
        }
        let seen = || Some("it is still mounted where it cannot be seen from here".to_string());
        let gone = self.is_gone(of);
        if gone == Some(true) {
            return None;
        }
        // A device's number may have been given to another filesystem that is not seen; an upper directory tells.
        if let Shape::Overlay { upper: Some(upper) } = &of.shape {
            match mount::is_upper_used(upper) {
                Some(true) => return seen(),
                Some(false) => return None,
                None => {}
            }
        }
        if gone == Some(false) {
            return seen();
        }
        let partly = self.namespaces.iter().filter(|namespace| !namespace.whole).count() as u64;
        let which = match (closed, partly) {
            (0, 0) => return None,
            (0, partly) => format!("{partly} mount namespaces are seen in part only"),
            (closed, _) => format!("{closed} processes could not be looked into"),
        };
        Some(format!("it may be mounted where it cannot be seen from here: {which}"))
    }

    /// What lies on top of the snapshot's mount at `target`, in words. Nothing if it is not there at all.
    pub(super) fn above(&self, of: &Snapshot, target: &Path) -> Result<Option<String>> {
        match mount::on_top(target)? {
            Some(top) if self.shows_here(of, &top) => Ok(None),
            Some(top) => Ok(Some(format!(
                "another mount lies on top of it there: {} ({})",
                top.source.display(),
                top.fs_type
            ))),
            None => {
                let still = |mount: &MountInfo| mount.target == target && self.shows_here(of, mount);
                let hidden = mount::all()?.iter().any(still);
                Ok(hidden.then(|| "another mount hides it, at a directory above it".to_string()))
            }
        }
    }
}

fn node_of(path: &Path) -> Option<(u64, u64)> {
    // Nothing is mounted by looking.
    let stat = fs::statat(CWD, path, AtFlags::NO_AUTOMOUNT).ok()?;
    Some((stat.st_dev, stat.st_ino))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn namespace(own: bool, mounts: Vec<MountInfo>) -> Namespace {
        Namespace { name: "mnt:[1]".into(), pid: std::process::id(), own, mounts, whole: true }
    }

    /// The store at /vol/s of a disk, which is mounted by way of /data.
    fn sight() -> Sight {
        let here =
            namespace(true, vec![MountInfo::of_disk(1, "/", "/"), MountInfo::of_disk(2, "/vol", "/data")]);
        let root = PathBuf::from("/data/s");
        let home = Home::deepest(&root, &here).and_then(|mount| Home::inside(mount, &root));
        Sight { namespaces: vec![here], root, node: (u64::MAX, 1), home }
    }

    fn snapshot(shape: Shape, device: Option<(u32, u32)>) -> Snapshot {
        Snapshot { id: 12, target: Some("/mnt/x".into()), device, shape, at_rest: false }
    }

    fn overlay(device: (u32, u32), source: &str, options: &str) -> MountInfo {
        let (source, options) = (source.into(), options.into());
        MountInfo {
            fs_type: "overlay".into(),
            source,
            options,
            device,
            ..MountInfo::of_disk(4, "/", "/elsewhere")
        }
    }

    #[test]
    fn bind_mounts_of_other_stores_and_disks_are_not_ours() {
        let sight = sight();
        let here = &sight.namespaces[0];
        let of = snapshot(Shape::Bind("trees/ab/fs".into()), None);
        for (root, target, shown) in [
            ("/vol/s/snapshots/12/fs", "/anywhere", true),
            ("/vol/s/snapshots/1/fs", "/anywhere", false),
            ("/vol/s/snapshots/123/fs", "/anywhere", false),
            ("/other/s/snapshots/12/fs", "/anywhere", false),
            ("/vol/s/trees/ab/fs", "/mnt/x", true),
            ("/vol/s/trees/ab/fs", "/mnt/y", false),
            ("/vol/s/trees/cd/fs", "/mnt/x", false),
            ("/vol/s/blobs", "/mnt/x", false),
        ] {
            assert_eq!(
                sight.shows(&of, here, &MountInfo::of_disk(3, root, target)),
                shown,
                "{root} at {target}"
            );
        }
        let below = MountInfo {
            fs_type: "overlay".into(),
            ..MountInfo::of_disk(3, "/vol/s/snapshots/12/fs", "/mnt/x")
        };
        assert!(sight.shows(&of, here, &below), "a store on an overlay");
        let elsewhere =
            MountInfo { device: (8, 2), ..MountInfo::of_disk(3, "/vol/s/snapshots/12/fs", "/mnt/x") };
        assert!(!sight.shows(&of, here, &elsewhere));
        let other_tree = MountInfo::of_disk(3, "/vol/s/trees/ab/fs", "/mnt/x");
        assert!(!sight.shows(&snapshot(Shape::Overlay { upper: None }, None), here, &other_tree));
        assert!(sight.shows(&snapshot(Shape::Unknown, None), here, &other_tree));
    }

    #[test]
    fn an_overlay_is_known_by_its_device_and_its_number_whatever_path_its_name_has() {
        let sight = sight();
        let (here, there) = (&sight.namespaces[0], &namespace(false, Vec::new()));
        let shape = || Shape::Overlay { upper: Some("/data/s/snapshots/12/fs".into()) };
        let (labelled, unlabelled) = (snapshot(shape(), Some((0, 50))), snapshot(shape(), None));
        let named = |device, source: &str| overlay(device, source, "rw");
        for (mount, with_device, without) in [
            (named((0, 50), "transload:/data/s#12"), true, true),
            (named((0, 50), "transload:/link#12"), true, true),
            (named((0, 50), "transload:/data/s#1"), false, false),
            (named((0, 51), "transload:/data/s#12"), true, true),
            // The root directory is there, and is another store.
            (named((0, 51), "transload:/#12"), false, false),
            // Whether the store was there once cannot be told.
            (named((0, 51), "transload:/moved/away#12"), false, true),
            (overlay((0, 51), "overlay", "rw,lowerdir=/a:/b,upperdir=/data/s/snapshots/12/fs"), true, true),
            (overlay((0, 51), "overlay", "rw,lowerdir=/a:/b,upperdir=/data/s/snapshots/2/fs"), false, false),
            (overlay((0, 51), "overlay", "rw,upperdir=/moved/away/snapshots/12/fs"), false, true),
            (overlay((0, 51), "overlay", "rw,lowerdir=/a:/data/s/snapshots/12/fs"), true, true),
        ] {
            assert_eq!(sight.shows(&labelled, here, &mount), with_device, "{mount:?}");
            assert_eq!(sight.shows(&unlabelled, here, &mount), without, "{mount:?}");
        }
        let same_path = named((0, 51), "transload:/data/s#12");
        assert!(!sight.shows(&labelled, there, &same_path), "a container's own store at the same path");
        assert!(sight.shows(&unlabelled, there, &same_path));
        assert!(sight.shows(&labelled, there, &named((0, 50), "transload:/data/s#12")));
    }

    #[test]
    fn what_may_be_mounted_out_of_sight_is_told_where_the_kernel_does_not() {
        let mut sight = sight();
        let bind = || snapshot(Shape::Bind("snapshots/12/fs".into()), None);
        assert_eq!(sight.hidden(&bind(), 0), None);
        assert!(
            sight.hidden(&bind(), 3).is_some_and(|why| why.ends_with("3 processes could not be looked into"))
        );
        assert_eq!(sight.hidden(&Snapshot { at_rest: true, ..bind() }, 3), None);
        sight.namespaces.push(Namespace { whole: false, ..namespace(false, Vec::new()) });
        assert!(sight.hidden(&bind(), 0).is_some_and(|why| why.contains("seen in part")));
    }
}

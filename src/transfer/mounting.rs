//! The mount verbs: an image's root filesystem at a directory, and a bundle for a runtime.
//!
//! Each mount is a snapshot of its own, a view or an active one with its own upper directory; its labels say where it is
//! mounted, so that `umount` and `mount` without arguments find it again in any process.

use super::bundle::{self, BundleOptions, BundleReport, Marks, RootKind};
use super::catalogue::{Inspection, look_into, stack_of, unpacked_chain};
use super::unpack::{UnpackOptions, UnpackReport, unpack};
use crate::error::{Error, ErrorKind, Result, ResultExt};
use crate::io::{durable, remove};
use crate::metadata::SnapshotRow;
use crate::mount;
use crate::parallel::Cancel;
use crate::store::{Store, mounted};
use rustix::fd::AsFd;
use std::path::{Path, PathBuf};

pub use mounted::TARGET_LABEL;

/// The label that says which image a snapshot was made of.
pub const IMAGE_LABEL: &str = "transload.mount.image";

/// How an image is mounted.
#[derive(Clone, Debug, Default)]
pub struct MountOptions {
    /// With an upper directory of its own, to be written; it goes when the mount does.
    pub read_write: bool,
    /// Ends the waiting while the kernel is busy.
    pub cancel: Cancel,
}

/// A mount that this store knows of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountRecord {
    /// The directory.
    pub target: PathBuf,
    /// The image as it was named.
    pub name: Option<String>,
    /// Whether it can be written.
    pub read_write: bool,
    /// The snapshot behind it.
    pub key: String,
}

/// Mounts the root filesystem of an image at a directory that is there. Gives the key of the snapshot behind it. Waits
/// for a collection that runs.
pub fn mount_image(store: &Store, name: &str, target: &Path, options: &MountOptions) -> Result<String> {
    let mount = || {
        store.check_writable()?;
        mount_inspected(store, name, &look_into(store, name)?, target, options)
    };
    mount().doing(|| format!("cannot mount {name} at {}", target.display()))
}

fn mount_inspected(
    store: &Store,
    name: &str,
    inspection: &Inspection,
    target: &Path,
    options: &MountOptions,
) -> Result<String> {
    let chain = unpacked_chain(inspection)?.map(|chain_id| chain_id.to_string());
    let target = std::fs::canonicalize(target)?;
    if !target.is_dir() {
        return Err(Error::new(ErrorKind::FailedPrecondition, "it is not a directory"));
    }
    // A collection takes a snapshot that is not mounted for one that no longer is.
    let _no_gc = store.gc_lock_shared(&options.cancel)?;
    let mut labels = mounted::labels_of_mount(&target);
    let shown = inspection.image.name.clone().unwrap_or_else(|| name.to_string());
    labels.insert(IMAGE_LABEL.to_string(), shown);
    let key = format!("mount-{}", durable::unique_name());
    let snapshots = store.snapshotter();
    let mounts = match options.read_write {
        true => snapshots.prepare(&key, chain.as_deref(), &labels),
        false => snapshots.view(&key, chain.as_deref(), &labels),
    };
    let how = mount::MountOptions { cancel: options.cancel.clone(), ..mount::MountOptions::default() };
    let mounted = mounts.and_then(|mounts| mount::mount_all(&mounts, &target, &how));
    if let Err(error) = mounted {
        // The snapshot has never been used; what is left of it is swept by gc.
        let _ = snapshots.remove(&key);
        return Err(error);
    }
    Ok(key)
}

/// Takes down a mount, or a bundle by its directory, and removes the snapshot behind it. Of a bundle goes what
/// [`bundle_image`] made: a `config.json` that was edited since stays, and so does the directory if it was there before
/// or holds anything else.
pub fn unmount(store: &Store, dir: &Path) -> Result<()> {
    let doing = || format!("cannot unmount {}", dir.display());
    let target = match std::fs::canonicalize(dir) {
        Ok(target) => target,
        Err(_) => std::path::absolute(dir).doing(doing)?,
    };
    let records = mounts(store)?;
    let rootfs = target.join("rootfs");
    let of = |path: &Path| records.iter().rev().find(|record| record.target == path);
    match (of(&target), of(&rootfs)) {
        (Some(record), _) => take_down(store, record),
        (None, Some(record)) => {
            take_down(store, record)?;
            std::fs::remove_dir(&rootfs).doing(|| format!("cannot remove {}", rootfs.display()))?;
            bundle::remove_own(&target).doing(doing)
        }
        (None, None) if is_unpacked_bundle(&target) => remove_unpacked(&target).doing(doing),
        (None, None) => {
            let hint = "'transload mount' lists them";
            Err(Error::new(ErrorKind::NotFound, "it is not a mount of this store").with_hint(hint))
                .doing(doing)
        }
    }
}

fn take_down(store: &Store, record: &MountRecord) -> Result<()> {
    match mount::unmount(&record.target) {
        // Someone has unmounted it without us; the snapshot is still ours to remove.
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        other => other?,
    }
    match store.snapshotter().remove(&record.key) {
        // A collection has seen that it is no longer mounted.
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

fn is_unpacked_bundle(dir: &Path) -> bool {
    bundle::marks(dir).is_some_and(|marks| marks.root == RootKind::Unpacked)
}

fn remove_unpacked(dir: &Path) -> Result<()> {
    let handle = std::fs::File::open(dir)?;
    remove::remove_tree(handle.as_fd(), "rootfs")?;
    bundle::remove_own(dir)
}

/// Every mount that this store has made and not taken down, oldest first.
pub fn mounts(store: &Store) -> Result<Vec<MountRecord>> {
    let mut records = Vec::new();
    let mut visit = |row: &SnapshotRow| {
        if let Some(target) = mounted::target_of(row)? {
            records.push(MountRecord {
                target,
                name: row.labels.get(IMAGE_LABEL).cloned(),
                read_write: row.kind == crate::metadata::SnapshotKind::Active,
                key: row.key.clone(),
            });
        }
        Ok(())
    };
    store.metadata().snapshot_walk(&mut visit).doing(|| "cannot list mounts")?;
    Ok(records)
}

/// Makes an OCI runtime bundle: `config.json`, and `rootfs` with the image mounted for writing. A directory that is
/// there must be empty.
///
/// A rootless bundle gets an unpacked `rootfs` instead: a mount would be gone with the namespace that it was made in.
pub fn bundle_image(store: &Store, name: &str, dir: &Path, options: &BundleOptions) -> Result<BundleReport> {
    let make = || {
        let inspection = look_into(store, name)?;
        let made = prepare_directory(dir).doing(|| format!("cannot use {}", dir.display()))?;
        fill_bundle(store, name, &inspection, dir, made, options).inspect_err(|_| {
            // Back to what was there; the error that counts is the first one.
            let _ = unmount(store, dir);
            let _ = std::fs::remove_dir(dir.join("rootfs"));
            if made {
                let _ = std::fs::remove_dir(dir);
            }
        })
    };
    make().doing(|| format!("cannot make a bundle of {name}"))
}

fn fill_bundle(
    store: &Store,
    name: &str,
    inspection: &Inspection,
    dir: &Path,
    made: bool,
    options: &BundleOptions,
) -> Result<BundleReport> {
    let rootfs = dir.join("rootfs");
    if options.rootless.is_none() {
        std::fs::create_dir(&rootfs).doing(|| format!("cannot create {}", rootfs.display()))?;
        let how = MountOptions { read_write: true, cancel: options.cancel.clone() };
        mount_inspected(store, name, inspection, &rootfs, &how)?;
        let marks = Marks { root: RootKind::Mounted, made };
        return bundle::write_marked(dir, &inspection.config_json, options, marks);
    }
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let how = UnpackOptions { threads, lenient: true, cancel: options.cancel.clone() };
    let unpacked = unpack(&stack_of(store, inspection)?, &rootfs, &how)?;
    let marks = Marks { root: RootKind::Unpacked, made };
    let written = bundle::write_marked(dir, &inspection.config_json, options, marks);
    let mut report = written.inspect_err(|_| {
        let _ = remove_unpacked(dir);
    })?;
    report.notices.extend(left_out(&unpacked));
    Ok(report)
}

fn left_out(report: &UnpackReport) -> Vec<String> {
    let counts = [
        (report.owners_skipped, "owners could not be set"),
        (report.devices_skipped, "devices could not be made"),
        (report.xattrs_skipped, "extended attributes could not be set"),
    ];
    counts.iter().filter(|(count, _)| *count > 0).map(|(count, what)| format!("{count} {what}")).collect()
}

/// Whether the directory was made now.
fn prepare_directory(dir: &Path) -> Result<bool> {
    match std::fs::create_dir(dir) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
            match std::fs::read_dir(dir)?.next() {
                None => Ok(false),
                Some(_) => Err(Error::new(ErrorKind::FailedPrecondition, "the directory is not empty")),
            }
        }
        Err(error) => Err(error.into()),
    }
}

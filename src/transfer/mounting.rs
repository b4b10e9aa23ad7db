//! The mount verbs: an image's root filesystem at a directory, and a bundle for a runtime.
//!
//! Each mount is a snapshot of its own, a view or an active one with its own upper directory; its labels say where it is
//! mounted, so that `umount` and `mount` without arguments find it again in any process.

use super::bundle::{self, BundleOptions, BundleReport};
use super::catalogue::{inspect, unpacked_chain};
use crate::error::{Error, ErrorKind, Result, ResultExt};
use crate::io::durable;
use crate::metadata::{Labels, SnapshotRow};
use crate::mount;
use crate::parallel::Cancel;
use crate::store::Store;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// The label that says where a snapshot is mounted.
pub const TARGET_LABEL: &str = "transload.mount.target";

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

/// Mounts the root filesystem of an image at a directory that is there. Gives the key of the snapshot behind it.
pub fn mount_image(store: &Store, name: &str, target: &Path, options: &MountOptions) -> Result<String> {
    let doing = || format!("cannot mount {name}");
    store.check_writable()?;
    let inspection = inspect(store, name).doing(doing)?;
    let chain = unpacked_chain(&inspection).doing(doing)?.map(|chain_id| chain_id.to_string());
    let target =
        std::fs::canonicalize(target).doing(|| format!("cannot mount {name} at {}", target.display()))?;
    let labels = Labels::from([
        (TARGET_LABEL.to_string(), shown(&target)),
        (IMAGE_LABEL.to_string(), inspection.image.name.unwrap_or_else(|| name.to_string())),
    ]);
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
        return Err(error.context(doing()));
    }
    Ok(key)
}

/// Paths are bytes; labels are text. What is not UTF-8 is escaped, so that equal paths have equal labels.
fn shown(path: &Path) -> String {
    crate::tree::PathBytes::new(path.as_os_str().as_bytes()).to_string()
}

/// Takes down a mount, or a bundle by its directory, and removes the snapshot behind it.
pub fn unmount(store: &Store, dir: &Path) -> Result<()> {
    let target = match std::fs::canonicalize(dir) {
        Ok(target) => target,
        Err(_) => std::path::absolute(dir).doing(|| format!("cannot unmount {}", dir.display()))?,
    };
    let records = mounts(store)?;
    let rootfs = target.join("rootfs");
    let of = |path: &Path| records.iter().rev().find(|record| record.target == path);
    let (record, is_bundle) = match (of(&target), of(&rootfs)) {
        (Some(record), _) => (record, false),
        (None, Some(record)) => (record, true),
        (None, None) => {
            return Err(Error::new(ErrorKind::NotFound, "it is not a mount of this store")
                .context(format!("cannot unmount {}", dir.display()))
                .with_hint("'transload mount' lists them"));
        }
    };
    match mount::unmount(&record.target) {
        // Someone has unmounted it without us; the snapshot is still ours to remove.
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        other => other?,
    }
    store.snapshotter().remove(&record.key)?;
    if is_bundle {
        std::fs::remove_dir(&rootfs).doing(|| format!("cannot remove {}", rootfs.display()))?;
    }
    Ok(())
}

/// Every mount that this store has made and not taken down, oldest first.
pub fn mounts(store: &Store) -> Result<Vec<MountRecord>> {
    let mut records = Vec::new();
    let mut visit = |row: &SnapshotRow| {
        if let Some(target) = row.labels.get(TARGET_LABEL) {
            let target: crate::tree::PathBytes = target.trim_start_matches('/').parse()?;
            let path = Path::new("/").join(std::ffi::OsStr::from_bytes(target.as_bytes()));
            records.push(MountRecord {
                target: path,
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
pub fn bundle_image(store: &Store, name: &str, dir: &Path, options: &BundleOptions) -> Result<BundleReport> {
    let doing = || format!("cannot make a bundle of {name}");
    let inspection = inspect(store, name).doing(doing)?;
    let made = prepare_directory(dir).doing(|| format!("cannot make the bundle {}", dir.display()))?;
    let rootfs = dir.join("rootfs");
    let build = || {
        std::fs::create_dir(&rootfs).doing(|| format!("cannot create {}", rootfs.display()))?;
        mount_image(store, name, &rootfs, &MountOptions { read_write: true, ..MountOptions::default() })?;
        bundle::write(dir, &inspection.config_json, options)
    };
    build().map_err(|error| {
        // Back to what was there; the error that counts is the first one.
        let _ = unmount(store, dir);
        let _ = std::fs::remove_dir(&rootfs);
        if made {
            let _ = std::fs::remove_dir(dir);
        }
        error.context(doing())
    })
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

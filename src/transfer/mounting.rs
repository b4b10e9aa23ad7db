//! The mount verbs: an image's root filesystem at a directory, and a bundle for a runtime.
//!
//! Each mount is a snapshot of its own, a view or an active one with its own upper directory; its labels say where it is
//! mounted, so that `umount` and `mount` without arguments find it again in any process.

use super::bundle::{self, BundleOptions, BundleReport, Marks, RootKind};
use super::catalogue::{self, Inspection, look_into, stack_of, unpacked_chain};
use super::idmapped;
use super::unpack::{UnpackOptions, UnpackReport, unpack};
use crate::error::{Error, ErrorKind, Result, ResultExt};
use crate::io::locked::LockedDir;
use crate::io::{durable, remove};
use crate::metadata::{ImageRow, Labels, SnapshotKind, SnapshotRow};
use crate::mount::{self, IdMaps, Mount, MountKind};
use crate::oci::Digest;
use crate::parallel::{Cancel, Patience};
use crate::progress::{Event, Listener, SnapshotStep, Step};
use crate::store::chains::Chains;
use crate::store::{InUse, Removal, RemovalOptions, Store, in_use, mounted};
use rustix::fd::AsFd;
use std::collections::HashSet;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

pub use mounted::{IMAGE_LABEL, TARGET_LABEL};

/// How an image is mounted.
#[derive(Clone, Debug, Default)]
pub struct MountOptions {
    /// With an upper directory of its own, to be written; it goes when the mount does.
    pub read_write: bool,
    /// Whose files are shown as whose.
    pub ids: Option<IdMaps>,
    /// How that is done.
    pub id_method: IdMethod,
    /// Is told what is done.
    pub listener: Listener,
    /// Ends the waiting while the kernel is busy.
    pub cancel: Cancel,
}

/// How the owners of files are mapped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum IdMethod {
    /// By the kernel where it can, else by a copy.
    #[default]
    Auto,
    /// Only by the kernel; [`ErrorKind::Unsupported`] where it cannot.
    Kernel,
    /// By a copy of the image's files with other owners, which is kept for the next mount that asks for the same.
    Copy,
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
    /// Whether it is seen in a mount table: one that went otherwise than by [`unmount`] is not, and a collection takes what is left.
    pub mounted: bool,
    /// The snapshot behind it.
    pub key: String,
}

/// Mounts the root filesystem of an image at a directory that is there. Gives the key of the snapshot behind it. Waits
/// for a collection that runs.
pub fn mount_image(store: &Store, name: &str, target: &Path, options: &MountOptions) -> Result<String> {
    let inspected = look_into(store, name);
    let mounted = inspected.and_then(|inspection| mount_inspected(store, name, &inspection, target, options));
    mounted.doing(|| format!("cannot mount {name} at {}", target.display()))
}

fn mount_inspected(
    store: &Store,
    name: &str,
    inspection: &Inspection,
    target: &Path,
    options: &MountOptions,
) -> Result<String> {
    store.check_writable()?;
    let chain = unpacked_chain(inspection)?.map(|chain_id| chain_id.to_string());
    let target = std::fs::canonicalize(target)?;
    if !target.is_dir() {
        return Err(Error::new(ErrorKind::FailedPrecondition, "it is not a directory"));
    }
    let patience = Patience::new(&options.cancel).telling(&options.listener);
    let _at_work = store.gc_lock_shared(patience)?;
    // A collection takes a snapshot that is not mounted for one that no longer is.
    let _no_look = store.mount_lock_shared(patience)?;
    let mut labels = mounted::labels_of_mount(&target);
    let shown = inspection.image.name.clone().unwrap_or_else(|| name.to_string());
    labels.insert(IMAGE_LABEL.to_string(), shown);
    labels.extend(chain.clone().map(|chain| (mounted::CHAIN_LABEL.to_string(), chain)));
    let mounting = Mounting { store, chain: chain.as_deref(), target: &target, labels, options };
    let place = hold_place(store, &target, options)?;
    let mounted = check_not_taken(store, &target).and_then(|()| mounting.run());
    // What is left of it is swept by gc.
    let _ = place.remove();
    mounted
}

/// Has those who mount at one place come one after the other, so that the second finds the first's mount. Not by a lock
/// on the directory: that is others' to hold.
fn hold_place(store: &Store, target: &Path, options: &MountOptions) -> Result<LockedDir> {
    let name = format!("mount-{}", Digest::of(target.as_os_str().as_bytes()).hex());
    let tell = || {
        let text = format!("waits for another that mounts at {}", target.display());
        options.listener.event(&Event::Notice(text));
    };
    LockedDir::acquire(store.content().ingests(), &name, &options.cancel, &mut { tell })
}

/// One mount of ours on top of another hides it, and keeps it from being taken down.
fn check_not_taken(store: &Store, target: &Path) -> Result<()> {
    if mount::on_top(target)?.is_none() {
        return Ok(());
    }
    for row in rows_at(store, target)? {
        if store.is_mounted_at(&row, target)? {
            let name = row.labels.get(IMAGE_LABEL).map_or(row.key.as_str(), String::as_str);
            return Err(Error::new(ErrorKind::Busy, format!("{name} is mounted there already"))
                .with_hint("'transload umount' takes it down; what was deferred goes with 'transload gc'"));
        }
    }
    Ok(())
}

/// What was mounted at a place, oldest first.
fn rows_at(store: &Store, target: &Path) -> Result<Vec<SnapshotRow>> {
    let mut rows = Vec::new();
    let mut visit = |row: &SnapshotRow| {
        rows.extend((mounted::target_of(row)?.as_deref() == Some(target)).then(|| row.clone()));
        Ok(())
    };
    store.metadata().snapshot_walk(&mut visit)?;
    Ok(rows)
}

const LOST_LAYERS: &str = "layers of the image are lost, or were not synced before the system went down: \
    'transload fsck --repair' makes them again, and so does importing it again";

/// A mount in the making.
struct Mounting<'a> {
    store: &'a Store,
    chain: Option<&'a str>,
    target: &'a Path,
    labels: Labels,
    options: &'a MountOptions,
}

impl Mounting<'_> {
    fn run(&self) -> Result<String> {
        match &self.options.ids {
            None => self.attempt(self.chain, None),
            Some(maps) => self.mapped(maps),
        }
    }

    fn mapped(&self, maps: &IdMaps) -> Result<String> {
        // An image of nothing has no files to copy.
        let Some(chain) = self.chain else { return self.attempt(None, Some(maps)) };
        let method = self.options.id_method;
        idmapped::check_fits(self.store, chain, maps, &self.options.cancel)?;
        if method != IdMethod::Copy {
            let by_kernel = self.attempt(self.chain, Some(maps));
            let cannot = by_kernel.as_ref().is_err_and(|error| error.kind() == ErrorKind::Unsupported);
            if !cannot || method == IdMethod::Kernel {
                return by_kernel;
            }
        }
        let copy = idmapped::remapped(self.store, chain, maps, self.target, &self.options.cancel)?;
        self.attempt(Some(&copy), None)
    }

    /// Makes a snapshot above `parent` and mounts it, or leaves nothing behind.
    fn attempt(&self, parent: Option<&str>, maps: Option<&IdMaps>) -> Result<String> {
        let key = format!("mount-{}", durable::unique_name());
        let mounted = self.prepare(&key, parent).and_then(|mounts| self.mount(&key, mounts, maps));
        if let Err(error) = mounted {
            // The snapshot has never been used; what is left of it is swept by gc.
            let _ = self.store.snapshotter().remove(&key);
            return Err(error);
        }
        Ok(key)
    }

    fn prepare(&self, key: &str, parent: Option<&str>) -> Result<Vec<Mount>> {
        let started = Instant::now();
        let snapshots = self.store.snapshotter();
        let mounts = match self.options.read_write {
            true => snapshots.prepare(key, parent, &self.labels),
            false => snapshots.view(key, parent, &self.labels),
        };
        let mounts = mounts.map_err(|error| match error.kind() {
            ErrorKind::NotFound => error.with_hint(LOST_LAYERS),
            _ => error,
        })?;
        self.options.listener.snapshot(self.step(Step::Prepare, key, started));
        Ok(mounts)
    }

    fn mount(&self, key: &str, mut mounts: Vec<Mount>, maps: Option<&IdMaps>) -> Result<()> {
        let started = Instant::now();
        let how =
            mount::MountOptions { cancel: self.options.cancel.clone(), ..mount::MountOptions::default() };
        for mount in &mut mounts {
            mount.ids = maps.cloned();
            maps.map_or(Ok(()), |maps| idmapped::own_upper(mount, maps))?;
        }
        let attempts = mount::mount_all(&mounts, self.target, &how)?;
        if mounts.iter().any(|mount| mount.kind == MountKind::Overlay) {
            self.note_device(key).inspect_err(|_| drop(mount::unmount(self.target)))?;
        }
        self.options.listener.snapshot(self.step(Step::Mount, key, started).attempts(attempts));
        Ok(())
    }

    /// An overlay is a filesystem of its own, by whose device it is known even after it was unmounted lazily.
    fn note_device(&self, key: &str) -> Result<()> {
        let device = rustix::fs::stat(self.target)?.st_dev;
        let labels = mounted::labels_of_device((rustix::fs::major(device), rustix::fs::minor(device)));
        let field = format!("labels.{}", mounted::DEVICE_LABEL);
        self.store.snapshotter().update(key, &labels, &[&field]).map(drop)
    }

    fn step(&self, step: Step, key: &str, started: Instant) -> SnapshotStep {
        SnapshotStep {
            step,
            key: key.to_string(),
            digest: self.chain.map(str::to_string),
            target: Some(self.target.to_path_buf()),
            attempts: 1,
            duration: started.elapsed(),
        }
    }
}

/// Takes down a mount, or a bundle by its directory, and removes the snapshot behind it. Of a bundle goes what
/// [`bundle_image`] made: a `config.json` that was edited since stays, and so does the directory if it was there before
/// or holds anything else.
///
/// What is in use is dealt with as `options` say; a bundle whose mount was deferred stays as it is. [`ErrorKind::Busy`]
/// with the processes that use it, [`ErrorKind::NotFound`] for what is no mount of this store.
pub fn unmount(store: &Store, dir: &Path, options: &RemovalOptions) -> Result<Removal> {
    let doing = || format!("cannot unmount {}", dir.display());
    let target = match std::fs::canonicalize(dir) {
        Ok(target) => target,
        Err(_) => std::path::absolute(dir).doing(doing)?,
    };
    let rootfs = target.join("rootfs");
    let of = |path: &Path| row_at(store, path).doing(doing);
    // All else that goes wrong says what was being done.
    let cancelled = |error: Error| match error.kind() {
        ErrorKind::Cancelled => error.context(doing()),
        _ => error,
    };
    let own = of(&target)?;
    let bundled = if own.is_none() { of(&rootfs)? } else { None };
    match (own, bundled) {
        (Some(row), _) => take_down(store, &row, &target, options).map_err(cancelled),
        (None, Some(row)) => match take_down(store, &row, &rootfs, options).map_err(cancelled)? {
            Removal::Deferred => Ok(Removal::Deferred),
            Removal::Done => {
                std::fs::remove_dir(&rootfs).doing(|| format!("cannot remove {}", rootfs.display()))?;
                bundle::remove_own(&target).doing(doing).map(|()| Removal::Done)
            }
        },
        (None, None) if is_unpacked_bundle(&target) => {
            remove_unpacked(&target).doing(doing).map(|()| Removal::Done)
        }
        (None, None) => {
            let hint = "'transload mount' lists them";
            Err(Error::new(ErrorKind::NotFound, "it is not a mount of this store").with_hint(hint))
                .doing(doing)
        }
    }
}

/// What is mounted at a place: of several the one that is seen there, else the last.
fn row_at(store: &Store, target: &Path) -> Result<Option<SnapshotRow>> {
    let mut rows = rows_at(store, target)?;
    if rows.len() > 1
        && let Some(row) = store.on_top(&rows, target)?
    {
        return Ok(Some(row.clone()));
    }
    Ok(rows.pop())
}

fn take_down(store: &Store, row: &SnapshotRow, target: &Path, options: &RemovalOptions) -> Result<Removal> {
    match store.snapshotter().stat(&row.key) {
        // A collection has seen that it is no longer mounted.
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(Removal::Done),
        row => store.take_down(&row?, target, options),
    }
}

/// Before names are removed: whether the root filesystems that go with the last of them are mounted or otherwise in
/// use. An image that keeps another name goes on as before, whoever uses it.
///
/// With [`crate::store::WhenBusy::Defer`] the answer is [`Removal::Deferred`], and nothing needs a mark: a collection
/// keeps what is mounted, and takes it once it no longer is.
pub fn check_unused(store: &Store, names: &[String], options: &RemovalOptions) -> Result<Removal> {
    let check = || -> Result<Removal> {
        let chains = last_chains(store, names)?;
        let mut look = || {
            let users = users_of(store, &chains)?;
            Ok((!users.is_free()).then(|| users.busy()))
        };
        Ok(if in_use::until_free(options, &mut look)? { Removal::Done } else { Removal::Deferred })
    };
    check().doing(|| format!("cannot remove {}", names.join(", ")))
}

/// The chains that no other image has.
fn last_chains(store: &Store, names: &[String]) -> Result<HashSet<String>> {
    // What is not there is for whoever removes to complain about.
    let going: Vec<ImageRow> = names.iter().filter_map(|name| catalogue::find(store, name).ok()).collect();
    let ids: HashSet<u64> = going.iter().map(|image| image.id).collect();
    let chains_of = |image: &ImageRow| -> Vec<String> {
        let chains = image.manifests.iter().filter_map(|manifest| manifest.chain_id);
        chains.map(|chain_id| chain_id.to_string()).collect()
    };
    let mut chains: HashSet<String> = going.iter().flat_map(chains_of).collect();
    for other in store.metadata().images()?.iter().filter(|image| !ids.contains(&image.id)) {
        for chain in chains_of(other) {
            chains.remove(&chain);
        }
    }
    Ok(chains)
}

fn users_of(store: &Store, chains: &HashSet<String>) -> Result<InUse> {
    if chains.is_empty() {
        return Ok(InUse::default());
    }
    let rows = store.metadata().snapshots()?;
    let all = Chains::of(&rows);
    let shows = |row: &&SnapshotRow| {
        row.kind != SnapshotKind::Committed && all.shown_by(row).is_some_and(|chain| chains.contains(chain))
    };
    store.in_use_any(rows.iter().filter(shows))
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
    let list = || -> Result<Vec<MountRecord>> {
        let mut rows = Vec::new();
        let mut visit = |row: &SnapshotRow| {
            rows.extend(mounted::target_of(row)?.map(|target| (target, row.clone())));
            Ok(())
        };
        store.metadata().snapshot_walk(&mut visit)?;
        let seen = store.seen_mounted(rows.iter().map(|(_, row)| row))?;
        let record = |((target, row), mounted): ((PathBuf, SnapshotRow), bool)| MountRecord {
            target,
            name: row.labels.get(IMAGE_LABEL).cloned(),
            read_write: row.kind == SnapshotKind::Active,
            mounted,
            key: row.key,
        };
        Ok(rows.into_iter().zip(seen).map(record).collect())
    };
    list().doing(|| "cannot list mounts")
}

/// Makes an OCI runtime bundle: `config.json`, and `rootfs` with the image mounted for writing. A directory that is
/// there must be empty.
///
/// A rootless bundle gets an unpacked `rootfs` instead: a mount would be gone with the namespace that it was made in.
pub fn bundle_image(store: &Store, name: &str, dir: &Path, options: &BundleOptions) -> Result<BundleReport> {
    let make = || {
        let (_held, inspection) = match options.rootless {
            Some(_) => {
                catalogue::hold(store, name, &options.cancel).map(|(held, found)| (Some(held), found))?
            }
            None => (None, look_into(store, name)?),
        };
        let made = prepare_directory(dir).doing(|| format!("cannot use {}", dir.display()))?;
        fill_bundle(store, name, &inspection, dir, made, options).inspect_err(|_| {
            // Back to what was there; the error that counts is the first one.
            let _ = unmount(store, dir, &RemovalOptions::default());
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
        let (listener, cancel) = (options.listener.clone(), options.cancel.clone());
        let how = MountOptions { read_write: true, listener, cancel, ..MountOptions::default() };
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

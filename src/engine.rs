//! The door: [`Engine`], the one thing that an embedder holds.
//!
//! An engine is an open store with what the verbs share: claims in flight, a memory budget, a thread pool. Clones are
//! cheap and share all of it. There is no global state, nothing is printed, and no environment variable is read. Every
//! call is synchronous and may be made from any thread; inside an async program call it through `spawn_blocking`.

mod meter;

use crate::archive::Input;
use crate::error::{Error, ErrorKind, Result, ResultExt};
use crate::metadata::{ImageLine, ImageRow, Labelled, Labels, Tombstone};
use crate::metrics::Metrics;
use crate::oci::{Digest, Reference};
use crate::parallel::{Budget, Cancel, Pool};
use crate::progress::{Progress, Silent};
use crate::snapshot::Snapshotter;
use crate::store::{LeaseState, Removal, RemovalOptions, SnapshotterKind, Store, StoreOptions, WhenBusy};
use crate::transfer::bundle::{BundleOptions, BundleReport};
use crate::transfer::catalogue::{self, HistoryLine, Inspection, TreeEntry};
use crate::transfer::history::{self, StatsReport};
use crate::transfer::mounting::{self, MountOptions, MountRecord};
use crate::transfer::prewarm::{self, PrewarmOptions, PrewarmReport};
use crate::transfer::unpack::{UnpackOptions, UnpackReport};
use crate::transfer::{
    self, Claims, ExportFormat, ExportReport, ImportOptions, ImportPlan, ImportReport, Resources,
};
use crate::upkeep::{
    self, DoctorReport, DuReport, FsckMeans, FsckOptions, FsckReport, GcItem, GcOptions, GcReport, Rebuilt,
    RestoreReport, WhyReport,
};
use std::collections::HashSet;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How an engine works.
#[derive(Clone, Debug)]
pub struct EngineOptions {
    /// How many lanes an import has at most; with little memory it has fewer.
    pub threads: usize,
    /// The memory for what is in flight, in bytes. Half of it is for the lanes, 2 MiB for each. By default 64 MiB, which is enough
    /// for 16 lanes, and more only for more lanes than that.
    pub memory_bytes: u64,
    /// Memory beyond that for the window of one codec at a time that is larger than what is free of it, in bytes. By default enough
    /// for what `zstd --long` writes and `zstd -d` reads without being asked to, 128 MiB.
    pub window_bytes: u64,
    /// Which snapshotter a new store gets; `None` for what fits the filesystem.
    pub snapshotter: Option<SnapshotterKind>,
    /// Whether a store is made where none is.
    pub create: bool,
    /// Where figures about the work go; by default nowhere.
    pub metrics: Metrics,
}

impl EngineOptions {
    /// Sets how many lanes there are at most, and the memory that so many work with.
    ///
    /// ```
    /// use transload::EngineOptions;
    /// assert_eq!(EngineOptions::default().with_threads(2).memory_bytes, 64 << 20);
    /// assert_eq!(EngineOptions::default().with_threads(32).memory_bytes, 128 << 20);
    /// ```
    pub fn with_threads(mut self, threads: usize) -> Self {
        self.threads = threads;
        self.memory_bytes = (2 * LANE_BYTES).saturating_mul(threads as u64).max(64 << 20);
        self
    }
}

impl Default for EngineOptions {
    fn default() -> Self {
        let options = EngineOptions {
            threads: 1,
            memory_bytes: 0,
            window_bytes: LARGEST_COMMON_WINDOW_BYTES,
            snapshotter: None,
            create: true,
            metrics: Metrics::default(),
        };
        options.with_threads(std::thread::available_parallelism().map_or(1, usize::from))
    }
}

/// How images are removed.
#[derive(Clone, Debug, Default)]
pub struct RemoveOptions {
    /// How long they can be restored; without it, until the next collection.
    pub grace: Duration,
    /// Only tell what would go, or why it is refused.
    pub dry_run: bool,
    /// A digest means all names of its image. Without it one that several names have is refused.
    pub all_names: bool,
    /// What to do about the last name of an image that is mounted or otherwise in use. Deferred, the name goes at once, and
    /// what is mounted with the first collection after it was unmounted.
    pub busy: RemovalOptions,
}

/// What was removed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RemoveReport {
    /// The names, or the targets of unnamed images.
    pub removed: Vec<String>,
    /// How many bytes the next collection frees, once the grace is over.
    pub freed_by_gc_bytes: u64,
    /// Each thing that it removes; only of a dry run.
    pub items: Vec<GcItem>,
}

/// An open store, and everything that can be done with it.
///
/// ```no_run
/// use transload::{Cancel, Engine, ImportOptions, Input, progress::Silent};
/// let engine = Engine::open("/var/lib/transload", Default::default())?;
/// let report =
///     engine.import(Input::Path("image.tar.gz".into()), &ImportOptions::default(), &Silent, &Cancel::new())?;
/// println!("{} images", report.images.len());
/// # Ok::<(), transload::Error>(())
/// ```
#[derive(Clone)]
pub struct Engine {
    inner: Arc<Inner>,
}

struct Inner {
    store: Store,
    claims: Claims,
    budget: Budget,
    pool: Pool,
    threads: usize,
    metrics: Metrics,
}

/// What a lane has at hand: chunks between its stages, the inflater, what is on its way to the disk.
const LANE_BYTES: u64 = 2 << 20;

/// A window of 128 MiB, and what a decoder needs besides.
const LARGEST_COMMON_WINDOW_BYTES: u64 = 136 << 20;

/// As many as half of the memory has room for. The other half is for what waits between a stream and its lanes, and for the
/// windows of codecs.
fn lanes(wanted: usize, memory_bytes: u64) -> usize {
    let room = usize::try_from(memory_bytes / 2 / LANE_BYTES).unwrap_or(usize::MAX);
    wanted.min(room).max(1)
}

impl Engine {
    /// Opens the store at `root`.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] if there is none and none is to be made, [`ErrorKind::NewerFormat`] for a later release's,
    /// [`ErrorKind::Unsupported`] for a filesystem that cannot hold one.
    pub fn open(root: impl AsRef<Path>, options: EngineOptions) -> Result<Engine> {
        let store = StoreOptions {
            create: options.create,
            snapshotter: options.snapshotter,
            ..StoreOptions::default()
        };
        let threads = lanes(options.threads, options.memory_bytes);
        let opened = Store::open(root.as_ref(), &store);
        options.metrics.operation("open", &opened);
        let inner = Inner {
            store: opened?,
            claims: Claims::default(),
            budget: Budget::with_window(options.memory_bytes, options.window_bytes),
            pool: Pool::new(threads),
            threads,
            metrics: options.metrics,
        };
        Ok(Engine { inner: Arc::new(inner) })
    }

    /// The store behind the engine.
    pub fn store(&self) -> &Store {
        &self.inner.store
    }

    fn resources(&self) -> Resources<'_> {
        let Inner { claims, budget, pool, threads, .. } = &*self.inner;
        Resources { claims, budget, pool, threads: *threads }
    }

    /// Runs `work` and counts how it ended.
    fn counted<T>(&self, operation: &str, work: impl FnOnce(&Metrics) -> Result<T>) -> Result<T> {
        let metrics = &self.inner.metrics;
        let result = work(metrics);
        metrics.operation(operation, &result);
        result
    }

    /// Imports every image of an archive. Several threads may import at the same time, also the same archive: each blob
    /// is written once and each layer extracted once.
    ///
    /// # Errors
    /// Kinds for which [`ErrorKind::is_input`] holds if the archive is at fault; [`ErrorKind::Cancelled`]. On any error
    /// nothing of the archive is visible in the store.
    pub fn import(
        &self,
        input: Input,
        options: &ImportOptions,
        progress: &dyn Progress,
        cancel: &Cancel,
    ) -> Result<ImportReport> {
        let (store, resources) = (&self.inner.store, self.resources());
        let (name, started) = (input.name(), Instant::now());
        self.counted("import", |metrics| {
            let report = transfer::import(store, &resources, input, options, progress, cancel);
            // A memory for `stats`; the import has not failed because it could not be written.
            let _ = history::remember(store, &name, &report, started.elapsed());
            report.inspect(|report| meter::import(metrics, report))
        })
    }

    /// What an import would do. Writes nothing; a stream is read to its end for it.
    pub fn plan(&self, input: Input, options: &ImportOptions, cancel: &Cancel) -> Result<ImportPlan> {
        let (store, resources) = (&self.inner.store, self.resources());
        self.counted("plan", |_| transfer::plan_import(store, &resources, input, options, &Silent, cancel))
    }

    /// All images, by name.
    pub fn images(&self) -> Result<Vec<ImageRow>> {
        self.inner.store.metadata().images()
    }

    /// Shows `each` a line for each platform of each image that is here, in the order in which the images came: what
    /// [`Engine::images`] tells, without looking into it, and several times as fast.
    pub fn image_lines(&self, each: impl FnMut(ImageLine<'_>)) -> Result<()> {
        self.inner.store.metadata().image_lines(each)
    }

    /// The image that a name, a digest, or the beginning of a digest means. [`ErrorKind::NotFound`] without one.
    pub fn image(&self, name: &str) -> Result<ImageRow> {
        catalogue::find(&self.inner.store, name)
    }

    /// Looks into an image: manifest, configuration, layers.
    pub fn inspect(&self, name: &str) -> Result<Inspection> {
        catalogue::inspect(&self.inner.store, name)
    }

    /// The history of an image, each line beside the layer that it made.
    pub fn history(&self, name: &str) -> Result<Vec<HistoryLine>> {
        catalogue::history(&self.inner.store, name)
    }

    /// The merged root filesystem of an image, down to `depth` directories, without mounting it.
    pub fn tree(&self, name: &str, depth: usize) -> Result<TreeEntry> {
        catalogue::tree(&self.inner.store, name, depth)
    }

    /// Gives an image another name.
    pub fn tag(&self, name: &str, new: &Reference) -> Result<ImageRow> {
        self.counted("tag", |_| {
            self.inner.store.make_room()?;
            catalogue::tag(&self.inner.store, name, new)
        })
    }

    /// Removes names; the bytes go with the next [`Engine::gc`], and until then [`Engine::restore`] brings them back.
    ///
    /// # Errors
    /// As [`Engine::remove_with`].
    pub fn remove(&self, names: &[String]) -> Result<RemoveReport> {
        self.remove_with(names, &RemoveOptions::default())
    }

    /// As [`Engine::remove`], with a grace, or only telling what would go.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] if one is not there, [`ErrorKind::InvalidArgument`] for a digest that several names have,
    /// [`ErrorKind::FailedPrecondition`] for a pinned image, [`ErrorKind::Busy`] for the last name of one that is in use,
    /// with the processes that hold it; then none goes.
    pub fn remove_with(&self, names: &[String], options: &RemoveOptions) -> Result<RemoveReport> {
        if options.dry_run {
            return self.remove_or_tell(names, options);
        }
        self.counted("rm", |_| {
            self.inner.store.make_room()?;
            self.remove_or_tell(names, options)
        })
    }

    fn remove_or_tell(&self, names: &[String], options: &RemoveOptions) -> Result<RemoveReport> {
        let store = &self.inner.store;
        let images = catalogue::to_remove(store, names, options.all_names)?;
        let removed: Vec<String> = images.iter().map(ImageRow::label_key).collect();
        let without: Vec<&str> = removed.iter().map(String::as_str).collect();
        catalogue::check_unpinned(store, &images)?;
        // Telling what would go waits for nobody.
        if !options.dry_run || options.busy.when_busy == WhenBusy::Refuse {
            self.check_unused(&removed, &options.busy)?;
        }
        if options.dry_run {
            let would = upkeep::would_remove(store, &without)?;
            return Ok(RemoveReport { removed, freed_by_gc_bytes: would.bytes_freed, items: would.items });
        }
        let freed_by_gc_bytes = upkeep::would_free(store, &without)?;
        let grace_ms = u64::try_from(options.grace.as_millis()).unwrap_or(u64::MAX);
        catalogue::remove(store, &images, grace_ms)?;
        Ok(RemoveReport { removed, freed_by_gc_bytes, items: Vec::new() })
    }

    /// Makes removed images visible again, as long as their grace lasts and no collection has come.
    pub fn restore(&self, names: &[String]) -> Result<RestoreReport> {
        self.counted("restore", |_| {
            self.inner.store.make_room()?;
            upkeep::restore(&self.inner.store, names)
        })
    }

    /// The removed images that can still be restored, the last removed first.
    pub fn removed_images(&self) -> Result<Vec<Tombstone>> {
        self.inner.store.metadata().tombstones()
    }

    /// Pins an image, so that neither a policy nor [`Engine::remove`] removes it; or no longer.
    pub fn pin(&self, name: &str, pinned: bool) -> Result<ImageRow> {
        let pin = || -> Result<ImageRow> {
            let image = self.image(name)?;
            self.inner.store.make_room()?;
            upkeep::why::pin(&self.inner.store, &image, pinned)?;
            Ok(image)
        };
        pin().doing(|| format!("cannot {} {name}", if pinned { "pin" } else { "unpin" }))
    }

    /// Which images are pinned: names, or targets of unnamed ones.
    pub fn pinned(&self) -> Result<HashSet<String>> {
        upkeep::why::pinned_images(&self.inner.store)
    }

    /// Changes labels of an image, or of a blob by its whole digest: a value of `None` takes one away. No changes only
    /// look. Gives what is then there.
    pub fn label(&self, name: &str, changes: &[(String, Option<String>)]) -> Result<Labels> {
        let store = &self.inner.store;
        let label = || -> Result<Labels> {
            if !changes.is_empty() {
                store.check_writable()?;
                store.make_room()?;
            }
            let blob = name.parse::<Digest>().ok().filter(|digest| {
                store.content().stat(digest).is_ok_and(|size| size.is_some()) && self.image(name).is_err()
            });
            let image = if blob.is_none() { Some(self.image(name)?.label_key()) } else { None };
            let of = match (&blob, &image) {
                (Some(digest), _) => Labelled::Blob(digest),
                (None, key) => Labelled::Image(key.as_deref().unwrap_or_default()),
            };
            match changes {
                [] => store.metadata().labels(of),
                _ => store.metadata().labels_change(of, changes),
            }
        };
        label().doing(|| format!("cannot label {name}"))
    }

    /// The leases, and what they hold.
    pub fn leases(&self) -> Result<Vec<LeaseState>> {
        self.inner.store.lease_states()
    }

    /// Makes a lease that holds what these images need, for `length` from now or until it is ended.
    ///
    /// # Errors
    /// [`ErrorKind::AlreadyExists`] for a taken id, [`ErrorKind::NotFound`] if an image is not there; then there is no lease.
    pub fn lease_images(&self, id: &str, length: Option<Duration>, names: &[String]) -> Result<()> {
        let hold = || -> Result<()> {
            let images = self.each_once(names)?;
            let store = &self.inner.store;
            store.check_writable()?;
            store.make_room()?;
            store.metadata().lease_images(id, length.map(upkeep::ends_ms), &images)
        };
        hold().doing(|| format!("cannot make lease {id}"))
    }

    /// Lets a lease end after `length` from now, or only when it is ended.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] once it has gone, [`ErrorKind::FailedPrecondition`] for one that ends with a process.
    pub fn lease_renew(&self, id: &str, length: Option<Duration>) -> Result<()> {
        self.inner.store.make_room()?;
        self.inner.store.lease_renew(id, length.map(upkeep::ends_ms))
    }

    /// Ends a lease. [`ErrorKind::FailedPrecondition`] while the process that it belongs to lives.
    pub fn lease_end(&self, id: &str) -> Result<()> {
        self.inner.store.make_room()?;
        self.inner.store.lease_end(id)
    }

    /// Why a blob, a tree or a snapshot is here.
    pub fn why(&self, digest: &str) -> Result<WhyReport> {
        upkeep::why(&self.inner.store, digest)
    }

    /// Removes what nothing refers to, and before that what a policy does not keep, while imports run.
    /// [`ErrorKind::Busy`] while another collection does, unless asked to wait.
    pub fn gc(&self, options: &GcOptions) -> Result<GcReport> {
        if options.dry_run {
            return upkeep::gc(&self.inner.store, options);
        }
        let started = Instant::now();
        self.counted("gc", |metrics| {
            self.inner.store.make_room()?;
            let listener = meter::listener(metrics, false, &options.listener);
            let report = upkeep::gc(&self.inner.store, &GcOptions { listener, ..options.clone() })?;
            // There may be room enough to keep some of it again.
            let kept = self.inner.store.make_room();
            kept.map_err(|error| error.with_images_removed(report.images_removed.clone()))?;
            meter::gc(metrics, &report, started.elapsed());
            Ok(report)
        })
    }

    /// Checks the store, and mends it where asked to; see [`upkeep::fsck()`]. Runs beside imports.
    ///
    /// # Errors
    /// Only if the check could not be done; what is wrong with the store is in the report.
    pub fn fsck(
        &self,
        options: &FsckOptions,
        progress: &dyn Progress,
        cancel: &Cancel,
    ) -> Result<FsckReport> {
        let means = FsckMeans { pool: &self.inner.pool, budget: &self.inner.budget, progress, cancel };
        self.counted("fsck", |_| upkeep::fsck(&self.inner.store, &means, options))
    }

    /// Makes the database of the store at `root` anew from what lies on the disk, if it is damaged or gone; see
    /// [`upkeep::fsck()`]. `None` if it is sound. Open the store and check it with repairs afterwards.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] without a store, [`ErrorKind::Busy`] while someone works on it.
    pub fn rebuild(root: impl AsRef<Path>, cancel: &Cancel) -> Result<Option<Rebuilt>> {
        upkeep::rebuild(root.as_ref(), cancel)
    }

    /// Explains this host and the store at `root`, which need not exist and need not be sound. Changes nothing.
    ///
    /// ```
    /// let report = transload::Engine::doctor("/nowhere");
    /// assert!(report.host.iter().any(|remark| remark.topic == "kernel"));
    /// ```
    pub fn doctor(root: impl AsRef<Path>) -> DoctorReport {
        upkeep::doctor(root.as_ref())
    }

    /// What the store saved so far, and where the time of the last `last` imports went.
    pub fn stats(&self, last: usize) -> Result<StatsReport> {
        self.counted("stats", |_| history::stats(&self.inner.store, last))
    }

    /// What the store occupies.
    pub fn du(&self) -> Result<DuReport> {
        self.counted("du", |metrics| {
            let report = upkeep::du(&self.inner.store)?;
            meter::store(metrics, &report);
            Ok(report)
        })
    }

    /// The snapshots: `prepare`, `view`, `commit`, `mounts`, `remove`.
    pub fn snapshots(&self) -> &dyn Snapshotter {
        self.inner.store.snapshotter()
    }

    /// Whether the images that lose their last name with these are in use: mounted anywhere, or held by a process. Refused,
    /// waited for or answered with [`Removal::Deferred`] as `options` say. Nothing is removed.
    pub fn check_unused(&self, names: &[String], options: &RemovalOptions) -> Result<Removal> {
        mounting::check_unused(&self.inner.store, names, options)
    }

    /// Removes a snapshot that nobody uses; what is in use is dealt with as `options` say. Unlike
    /// [`Snapshotter::remove`], which leaves that question to its caller.
    ///
    /// # Errors
    /// [`ErrorKind::Busy`] with the processes that hold it, [`ErrorKind::FailedPrecondition`] for one with children.
    ///
    /// ```no_run
    /// use transload::{Engine, store::{Removal, RemovalOptions, WhenBusy}};
    /// let engine = Engine::open("/var/lib/transload", Default::default())?;
    /// let options = RemovalOptions { when_busy: WhenBusy::Defer, ..Default::default() };
    /// if engine.remove_snapshot("vm-7", &options)? == Removal::Deferred {
    ///     println!("in use; the next collection that finds it free removes it");
    /// }
    /// # Ok::<(), transload::Error>(())
    /// ```
    pub fn remove_snapshot(&self, key: &str, options: &RemovalOptions) -> Result<Removal> {
        self.inner.store.make_room()?;
        self.inner.store.remove_snapshot(key, options)
    }

    /// Reads in an image's files, or those below some paths, so that its first start finds them in memory.
    pub fn prewarm(&self, name: &str, paths: &[Vec<u8>], cancel: &Cancel) -> Result<PrewarmReport> {
        let options =
            PrewarmOptions { paths: paths.to_vec(), threads: self.inner.threads, cancel: cancel.clone() };
        self.counted("prewarm", |_| prewarm::prewarm(&self.inner.store, name, &options))
    }

    /// Mounts the root filesystem of an image at a directory that is there. Gives the key of the snapshot behind it.
    pub fn mount(&self, name: &str, target: &Path, options: &MountOptions) -> Result<String> {
        let started = Instant::now();
        self.counted("mount", |metrics| {
            let listener = meter::listener(metrics, options.read_write, &options.listener);
            let options = MountOptions { listener, ..options.clone() };
            let key = mounting::mount_image(&self.inner.store, name, target, &options)?;
            meter::mounted(metrics, "mount", started.elapsed());
            Ok(key)
        })
    }

    /// Takes down a mount, or a bundle by its directory, and removes the snapshot behind it. [`ErrorKind::Busy`] while it
    /// is in use, with the processes that hold it.
    pub fn unmount(&self, target: &Path) -> Result<()> {
        self.unmount_with(target, &RemovalOptions::default()).map(drop)
    }

    /// As [`Engine::unmount`]; what is in use is dealt with as `options` say.
    pub fn unmount_with(&self, target: &Path, options: &RemovalOptions) -> Result<Removal> {
        let started = Instant::now();
        self.counted("umount", |metrics| {
            self.inner.store.make_room()?;
            let listener = meter::listener(metrics, false, &options.listener);
            let options = RemovalOptions { listener, ..options.clone() };
            let removal = mounting::unmount(&self.inner.store, target, &options)?;
            if removal == Removal::Done {
                meter::mounted(metrics, "umount", started.elapsed());
            }
            Ok(removal)
        })
    }

    /// The mounts that this store has made and not taken down.
    pub fn mounts(&self) -> Result<Vec<MountRecord>> {
        mounting::mounts(&self.inner.store)
    }

    /// Copies the root filesystem of an image into a directory that is new or empty.
    ///
    /// With `lenient`, owners, devices and attributes that the kernel refuses for want of privilege are left out and
    /// counted; without, they are errors.
    pub fn unpack(&self, name: &str, dir: &Path, lenient: bool, cancel: &Cancel) -> Result<UnpackReport> {
        self.counted("unpack", |_| {
            let options = UnpackOptions { threads: self.inner.threads, lenient, cancel: cancel.clone() };
            transfer::unpack_image(&self.inner.store, name, dir, &options)
        })
    }

    /// Makes an OCI runtime bundle that `runc run` accepts.
    pub fn bundle(&self, name: &str, dir: &Path, options: &BundleOptions) -> Result<BundleReport> {
        self.counted("bundle", |metrics| {
            let listener = meter::listener(metrics, true, &options.listener);
            let options = BundleOptions { listener, ..options.clone() };
            mounting::bundle_image(&self.inner.store, name, dir, &options)
        })
    }

    /// Writes images as an archive that others load.
    pub fn export(
        &self,
        names: &[String],
        format: ExportFormat,
        out: &mut dyn Write,
        cancel: &Cancel,
    ) -> Result<ExportReport> {
        self.counted("export", |_| {
            let images = self.each_once(names).doing(|| format!("cannot export {}", names.join(", ")))?;
            transfer::export(&self.inner.store, &images, format, out, cancel)
        })
    }

    /// The images that names mean; what is named twice, once.
    fn each_once(&self, names: &[String]) -> Result<Vec<ImageRow>> {
        if names.is_empty() {
            return Err(Error::new(ErrorKind::InvalidArgument, "no image was named"));
        }
        let mut images: Vec<ImageRow> = Vec::with_capacity(names.len());
        for name in names {
            let image = self.image(name)?;
            if images.iter().all(|known| known.id != image.id) {
                images.push(image);
            }
        }
        Ok(images)
    }
}

#[cfg(test)]
mod tests {
    use super::lanes;

    #[test]
    fn there_are_as_many_lanes_as_half_of_the_memory_has_room_for() {
        assert_eq!(
            [(16, 64 << 20), (16, 8 << 20), (2, 64 << 20), (4, 0)].map(|(n, bytes)| lanes(n, bytes)),
            [16, 2, 2, 1]
        );
    }
}

//! What takes the room.

use super::fsck::QUARANTINE;
use super::measure::{measure, names};
use super::reach::Needs;
use crate::error::{ErrorKind, Result, ResultExt};
use crate::io::durable;
use crate::metadata::{ImageRow, SnapshotKind};
use crate::oci::{DiffId, Digest};
use crate::store::{Store, mounted, reserve::RESERVE};
use rustix::fd::AsFd;
use rustix::fs::{AtFlags, statat};
use serde::Serialize;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::PathBuf;

/// One kind of thing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Share {
    /// How many there are.
    pub count: u64,
    /// What they occupy.
    pub bytes: u64,
    /// In how many inodes.
    pub inodes: u64,
}

/// What takes the room.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct DuReport {
    /// The blobs, by their sizes.
    pub blobs: Share,
    /// The extracted layers, as recorded.
    pub trees: Share,
    /// Snapshots' own directories: upper directories, full copies, heal directories; measured.
    pub snapshots: Share,
    /// Of these, what belongs to writable mounts: their upper directories with what was written there.
    pub uppers: Share,
    /// Work in progress or abandoned; measured.
    pub ingests: Share,
    /// The database and its log.
    pub metadata_bytes: u64,
    /// What is kept back so that a full disk can be freed.
    pub reserve_bytes: u64,
    /// What `fsck --repair` put away.
    pub quarantine_bytes: u64,
    /// All of it.
    pub total_bytes: u64,
    /// What is left on the store's filesystem for those without privilege.
    pub filesystem_free_bytes: u64,
    /// The size of the store's filesystem.
    pub filesystem_size_bytes: u64,
    /// Each image.
    pub images: Vec<ImageUsage>,
    /// What was written to each active snapshot, mounted or not; measured.
    pub actives: Vec<UpperUsage>,
}

/// What one active snapshot has been written to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct UpperUsage {
    /// The snapshot's key.
    pub key: String,
    /// Where it is mounted, if this store mounted it.
    pub target: Option<PathBuf>,
    /// The image as it was named, if this store mounted it.
    pub name: Option<String>,
    /// What its upper directory occupies; a full copy's is all of the copy.
    pub bytes: u64,
    /// In how many inodes.
    pub inodes: u64,
}

/// What one image takes: its blobs and its extracted layers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ImageUsage {
    /// The row.
    pub id: u64,
    /// The name.
    pub name: Option<String>,
    /// What it points at.
    pub target: Digest,
    /// Bytes that other images need as well.
    pub shared_bytes: u64,
    /// Bytes that go with it.
    pub unique_bytes: u64,
}

/// Measures the store.
pub fn du(store: &Store) -> Result<DuReport> {
    measure_all(store).doing(|| "cannot measure the store")
}

fn measure_all(store: &Store) -> Result<DuReport> {
    let sizes = Sizes::read(store)?;
    let snapshots = directories(store, "snapshots")?;
    let filesystem = rustix::fs::fstatvfs(store.root())?;
    let mut report = DuReport {
        blobs: total(sizes.blobs.values().map(|bytes| (*bytes, 1))),
        trees: total(sizes.trees.values().copied()),
        uppers: uppers(store, &snapshots)?,
        snapshots: total(snapshots.values().copied()),
        ingests: total(directories(store, "ingest")?.into_values()),
        filesystem_free_bytes: filesystem.f_bavail * filesystem.f_frsize,
        filesystem_size_bytes: filesystem.f_blocks * filesystem.f_frsize,
        metadata_bytes: metadata_bytes(store),
        reserve_bytes: beside(store, RESERVE)?,
        quarantine_bytes: beside(store, QUARANTINE)?,
        images: images(store, &sizes)?,
        actives: actives(store)?,
        ..DuReport::default()
    };
    let parts = [report.blobs, report.trees, report.snapshots, report.ingests];
    let beside = report.metadata_bytes + report.reserve_bytes + report.quarantine_bytes;
    report.total_bytes = parts.iter().map(|share| share.bytes).sum::<u64>() + beside;
    Ok(report)
}

/// Sums up pairs of bytes and inodes.
fn total(parts: impl Iterator<Item = (u64, u64)>) -> Share {
    parts.fold(Share::default(), |share, (bytes, inodes)| Share {
        count: share.count + 1,
        bytes: share.bytes + bytes,
        inodes: share.inodes + inodes,
    })
}

struct Sizes {
    blobs: HashMap<Digest, u64>,
    trees: BTreeMap<DiffId, (u64, u64)>,
}

impl Sizes {
    fn read(store: &Store) -> Result<Self> {
        let mut blobs = HashMap::new();
        store.content().walk(&mut |digest, size_bytes| {
            blobs.insert(digest, size_bytes);
            Ok(())
        })?;
        let trees = store.metadata().trees()?;
        let trees = trees.into_iter().map(|row| (row.diff_id, (row.bytes, row.inodes))).collect();
        Ok(Sizes { blobs, trees })
    }
}

/// Bytes and inodes of each directory, by name.
fn directories(store: &Store, parent: &str) -> Result<BTreeMap<String, (u64, u64)>> {
    let dir = durable::open_dir(store.root(), parent)?;
    let mut sizes = BTreeMap::new();
    for name in names(&dir)? {
        let name = name.to_string_lossy().into_owned();
        let occupied = measure(dir.as_fd(), &name)?;
        sizes.insert(name, (occupied.bytes, occupied.inodes));
    }
    Ok(sizes)
}

/// A directory that not every store has.
fn beside(store: &Store, name: &str) -> Result<u64> {
    match statat(store.root(), name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(_) => Ok(measure(store.root(), name)?.bytes),
        Err(_) => Ok(0),
    }
}

/// The directories of active snapshots.
fn uppers(store: &Store, snapshots: &BTreeMap<String, (u64, u64)>) -> Result<Share> {
    let rows = store.metadata().snapshots()?;
    let active = rows.iter().filter(|row| row.kind == SnapshotKind::Active);
    Ok(total(active.filter_map(|row| snapshots.get(&row.id.to_string()).copied())))
}

fn actives(store: &Store) -> Result<Vec<UpperUsage>> {
    let mut actives = Vec::new();
    for row in store.metadata().snapshots()?.into_iter().filter(|row| row.kind == SnapshotKind::Active) {
        let usage = match store.snapshotter().usage(&row.key) {
            // Unmounted and removed since the list was read.
            Err(error) if error.kind() == ErrorKind::NotFound => continue,
            other => other?,
        };
        actives.push(UpperUsage {
            target: mounted::target_of(&row)?,
            name: row.labels.get(mounted::IMAGE_LABEL).cloned(),
            bytes: usage.bytes,
            inodes: usage.inodes,
            key: row.key,
        });
    }
    Ok(actives)
}

fn metadata_bytes(store: &Store) -> u64 {
    let size = |name: &str| {
        statat(store.root(), name, AtFlags::SYMLINK_NOFOLLOW).map_or(0, |stat| stat.st_size as u64)
    };
    ["meta.db", "meta.db-wal", "meta.db-shm", "index.json"].into_iter().map(size).sum()
}

/// Everything that an image needs and that is here, with its size.
fn parts(needs: &Needs<'_>, sizes: &Sizes, image: &ImageRow) -> Result<Vec<(Digest, u64)>> {
    let reach = needs.of_image(image)?;
    let blobs = reach.blobs.iter().filter_map(|digest| Some((*digest, *sizes.blobs.get(digest)?)));
    let unpacked = image.manifests.iter().filter(|manifest| manifest.chain_id.is_some());
    let diff_ids: HashSet<DiffId> =
        unpacked.flat_map(|manifest| manifest.layers.iter().map(|(_, diff_id)| *diff_id)).collect();
    // An uncompressed layer's blob and its tree have the same digest and are two things.
    let trees = diff_ids
        .iter()
        .filter_map(|id| Some((Digest::of(id.to_string().as_bytes()), sizes.trees.get(id)?.0)));
    Ok(blobs.chain(trees).collect())
}

fn images(store: &Store, sizes: &Sizes) -> Result<Vec<ImageUsage>> {
    let facts = store.metadata().facts()?;
    let needs = Needs::new(store, &facts);
    let parts = facts.images.iter().map(|image| parts(&needs, sizes, image)).collect::<Result<Vec<_>>>()?;
    let mut users: HashMap<Digest, u32> = HashMap::new();
    for (digest, _) in parts.iter().flatten() {
        *users.entry(*digest).or_default() += 1;
    }
    let usage = |(image, parts): (ImageRow, Vec<(Digest, u64)>)| {
        let (shared, unique): (Vec<_>, Vec<_>) = parts.into_iter().partition(|(digest, _)| users[digest] > 1);
        let sum = |parts: &[(Digest, u64)]| parts.iter().map(|(_, bytes)| bytes).sum();
        ImageUsage {
            id: image.id,
            name: image.name,
            target: image.target.digest,
            shared_bytes: sum(&shared),
            unique_bytes: sum(&unique),
        }
    };
    Ok(facts.images.iter().cloned().zip(parts).map(usage).collect())
}

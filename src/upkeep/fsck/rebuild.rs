//! A new database for a store that has lost its own, out of what lies on the disk.
//!
//! Names come from `index.json`, images from their manifests and configurations, trees from their `tree.json`, snapshots
//! from their `snapshot.json`. What blobs unpack to is computed by the check that follows. Labels, leases and pins were in
//! the database alone and are lost.
//!
//! The new database is made under `ingest/` and takes its name when it is whole; the old one goes to the quarantine. A
//! crash in between leaves a store without a database, which is refused until this has been run again.

use super::namesakes::{self, Settled};
use super::quarantine;
use crate::archive::{self, Found, FoundManifest, MemberName, MemberStat, Members, Source};
use crate::content::{ContentStore, HEAD_BYTES};
use crate::error::{Error, ErrorKind, Result, ResultExt};
use crate::io::{durable, locked::LockedDir};
use crate::limits::Limits;
use crate::metadata::{
    BlobRow, GENERATION, ImageCommit, Labels, ManifestRow, Metadata, NewImage, OpenMode, SnapshotKind,
    SnapshotRow, TreeRow, Usage,
};
use crate::mount::{self, MountInfo};
use crate::oci::{ChainId, Descriptor, DiffId, Digest, Document, Index, media_type, parse_document};
use crate::parallel::{Budget, Cancel};
use crate::snapshot::{SnapshotFile, Trees};
use crate::store::{Store, StoreOptions, mounted};
use crate::upkeep::measure::names;
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{self, AtFlags, Mode, OFlags};
use rustix::io::Errno;
use serde::Serialize;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::path::Path;
use std::sync::Arc;

const DATABASE: &str = "meta.db";

/// How long an image can be restored of which nobody knows for how long it was to be.
const REMOVED_GRACE_MS: u64 = 7 * 24 * 3600 * 1000;

/// What a rebuild recovered, and what not.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Rebuilt {
    /// Whether the database was made anew. Without, the counts are 0 and only `transload.json` was.
    pub database: bool,
    /// Whether `transload.json` was lost and made anew.
    pub format: bool,
    /// Images.
    pub images: u64,
    /// Blobs.
    pub blobs: u64,
    /// Extracted layers.
    pub trees: u64,
    /// Snapshots.
    pub snapshots: u64,
    /// Where the old database went, relative to the store's root; `None` if there was none.
    pub old: Option<String>,
    /// What was lost, a sentence each.
    pub lost: Vec<String>,
}

/// Makes the database of the store at `root` anew, and `transload.json` where it is lost. `None` if both are sound: the database
/// knows more than the disk does then, and stays.
///
/// # Errors
/// [`ErrorKind::NotFound`] without a store, [`ErrorKind::Busy`] while someone works on it.
pub fn rebuild(root: &Path, cancel: &Cancel) -> Result<Option<Rebuilt>> {
    attempt(root, cancel).doing(|| format!("cannot rebuild the database of {}", root.display()))
}

fn attempt(root: &Path, cancel: &Cancel) -> Result<Option<Rebuilt>> {
    let format = restore_format(root)?;
    let mut rebuilt = Rebuilt { format, ..Rebuilt::default() };
    match Store::open(root, &StoreOptions::default()) {
        Ok(store) if store.metadata().faults().is_ok_and(|faults| faults.is_empty()) => {
            return Ok(format.then_some(rebuilt));
        }
        Ok(_) => {}
        Err(error) if error.kind() == ErrorKind::Corrupt => {}
        Err(error) => return Err(error),
    }
    let root = std::path::absolute(root)?;
    let place = Place::open(&root)?;
    rebuilt.database = true;
    let ingests = Arc::new(durable::ensure_dir(&place.fd, "ingest")?);
    let staged =
        LockedDir::acquire(&ingests, &format!("rebuild-{}", durable::unique_name()), cancel, &mut || {})?;
    place.fill(&root.join("ingest").join(staged.name()), &mut rebuilt, cancel)?;
    let log = fs::statat(staged.fd(), format!("{DATABASE}-wal"), AtFlags::SYMLINK_NOFOLLOW);
    if log.is_ok_and(|log| log.st_size > 0) {
        return Err(Error::new(ErrorKind::Internal, "the new database has not taken in its log"));
    }
    rebuilt.old = place.put_away()?;
    fs::renameat(staged.fd(), DATABASE, &place.fd, DATABASE)
        .doing(|| "cannot put the new database into place")?;
    durable::sync_dir(&place.fd)?;
    let _ = crate::io::remove::remove_contents(staged.fd()).and_then(|()| staged.remove());
    Ok(Some(rebuilt))
}

fn restore_format(root: &Path) -> Result<bool> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    match fs::open(root, flags, Mode::empty()) {
        Ok(fd) => Store::restore_format(fd.as_fd()),
        // Which the opening says better.
        Err(_) => Ok(false),
    }
}

/// The store without its database.
struct Place {
    fd: OwnedFd,
    content: ContentStore,
    trees: Trees,
    source: Source,
    mounts: Vec<MountInfo>,
    _alone: crate::store::GcLock,
}

impl Place {
    fn open(root: &Path) -> Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = fs::open(root, flags, Mode::empty())?;
        let alone = crate::store::lock_alone(fd.as_fd())?;
        let input = archive::Input::Path(root.into());
        Ok(Place {
            content: ContentStore::open(fd.as_fd())?,
            trees: Trees::open(fd.as_fd())?,
            source: archive::open(input, &Limits::default(), &Budget::new(0), &Cancel::new())?,
            mounts: mount::list(root).unwrap_or_default(),
            _alone: alone,
            fd,
        })
    }

    /// Makes the new database in `at`. It is whole when this returns.
    fn fill(&self, at: &Path, rebuilt: &mut Rebuilt, cancel: &Cancel) -> Result<()> {
        let snapshots = self.snapshots(rebuilt)?;
        // What is recorded here counts as durable.
        durable::sync_filesystem(&self.fd)?;
        let metadata = Metadata::open(at, OpenMode::Create)?;
        let trees = self.trees(rebuilt)?;
        let snapshots = metadata.snapshots_restore(&snapshots)?;
        rebuilt.snapshots = snapshots.len() as u64;
        let blobs = self.blobs(cancel)?;
        rebuilt.blobs = blobs.len() as u64;
        let (generation, entries) = self.entries(rebuilt, cancel)?;
        let known: HashSet<String> = snapshots.into_iter().collect();
        let images = self.images(&entries, &known, rebuilt, cancel)?;
        rebuilt.images = images.len() as u64;
        metadata.image_put(&ImageCommit { images, blobs, trees, sync: true, ..ImageCommit::default() })?;
        self.removed(&metadata, &entries, &known, rebuilt, cancel)?;
        metadata.generation_after(generation)?;
        rebuilt
            .lost
            .push("leases, pins, and labels of images and blobs: only the database had them".to_string());
        Ok(())
    }

    fn trees(&self, rebuilt: &mut Rebuilt) -> Result<Vec<TreeRow>> {
        let mut rows = Vec::new();
        self.trees.walk(&mut |diff_id| {
            match self.trees.stat(&diff_id) {
                Ok(Some(record)) => {
                    rows.push(TreeRow { diff_id, bytes: record.bytes, inodes: record.inodes, durable: true });
                }
                Ok(None) => {}
                Err(error) => rebuilt.lost.push(error.to_string()),
            }
            Ok(())
        })?;
        rebuilt.trees = rows.len() as u64;
        Ok(rows)
    }

    fn blobs(&self, cancel: &Cancel) -> Result<Vec<BlobRow>> {
        let mut rows = Vec::new();
        self.content.walk(&mut |digest, size_bytes| {
            cancel.check()?;
            rows.push(BlobRow { digest, size_bytes, head: Some(self.head(&digest)?), durable: true });
            Ok(())
        })?;
        Ok(rows)
    }

    fn head(&self, digest: &Digest) -> Result<Digest> {
        use std::io::Read;
        let mut bytes = Vec::new();
        self.content.open_blob(digest)?.take(HEAD_BYTES).read_to_end(&mut bytes)?;
        Ok(Digest::of(&bytes))
    }

    /// The rows that the directories describe, parents first.
    fn snapshots(&self, rebuilt: &mut Rebuilt) -> Result<Vec<SnapshotRow>> {
        let directories = durable::ensure_dir(&self.fd, "snapshots")?;
        let mut found = Vec::new();
        let ids: BTreeSet<u64> =
            names(&directories)?.iter().filter_map(|name| name.to_str().ok()?.parse().ok()).collect();
        for id in ids {
            let row = SnapshotFile::read(&self.fd, id).and_then(|file| self.snapshot(id, file));
            match row.and_then(|row| Ok((row, namesakes::written(self.fd.as_fd(), id)?))) {
                Ok(row) => found.push(row),
                Err(error) => rebuilt.lost.push(format!("snapshots/{id}: {error}")),
            }
        }
        let Settled { mut rows, interrupted } = namesakes::settle(found);
        rebuilt.lost.extend(namesakes::rename(self.fd.as_fd(), &interrupted)?);
        rows.extend(interrupted.into_iter().map(|(row, _)| row));
        rows.sort_by_key(|row| row.id);
        let (sorted, orphans) = parents_first(rows);
        rebuilt
            .lost
            .extend(orphans.iter().map(|row| format!("snapshot {}: its parent is not there", row.key)));
        Ok(self.find_mounts(sorted, rebuilt))
    }

    /// Where a snapshot is mounted stood in its labels, and is read off the mount table. A view that nothing shows has
    /// nothing to keep and goes.
    fn find_mounts(&self, mut rows: Vec<SnapshotRow>, rebuilt: &mut Rebuilt) -> Vec<SnapshotRow> {
        let chains: Vec<Vec<String>> = rows.iter().map(|row| trees_below(&rows, row)).collect();
        let mut mounts: Vec<&MountInfo> = self.mounts.iter().collect();
        let mut unshown = Vec::new();
        for (row, chain) in
            rows.iter_mut().zip(&chains).filter(|(row, _)| row.kind != SnapshotKind::Committed)
        {
            match mounts.iter().position(|mount| shows(mount, row, chain)) {
                Some(at) => row.labels = labels_of(mounts.remove(at)),
                None => unshown.push(row.key.clone()),
            }
        }
        rebuilt.lost.extend(unshown.iter().map(|key| format!("where snapshot {key} is mounted, if it is")));
        // As long as some mount could not be told, any view may be the one that it shows.
        if mounts.is_empty() {
            rows.retain(|row| row.kind != SnapshotKind::View || !unshown.contains(&row.key));
        }
        rows
    }

    fn snapshot(&self, id: u64, file: SnapshotFile) -> Result<SnapshotRow> {
        let kind = match file.kind.as_str() {
            "active" => SnapshotKind::Active,
            "view" => SnapshotKind::View,
            "committed" => SnapshotKind::Committed,
            other => return Err(Error::new(ErrorKind::Corrupt, format!("the kind {other:?} is not known"))),
        };
        let usage = match &file.tree {
            Some(tree) => self
                .trees
                .stat(tree)
                .ok()
                .flatten()
                .map_or(Usage::default(), |record| Usage { bytes: record.bytes, inodes: record.inodes }),
            None => Usage::default(),
        };
        Ok(SnapshotRow {
            id,
            key: file.name,
            kind,
            parent: file.parent,
            tree: file.tree,
            heal: file.heal,
            usage,
            labels: Labels::new(),
            created_ms: 0,
            updated_ms: 0,
            remove_ms: None,
        })
    }

    /// What `index.json` lists, and its generation. Without one: every document that no other one lists, unnamed.
    fn entries(&self, rebuilt: &mut Rebuilt, cancel: &Cancel) -> Result<(u64, Vec<Descriptor>)> {
        let name = MemberName::parse(b"index.json")?;
        let read = || -> Result<Index> {
            let bytes = members(&self.source)?.document(&name, u64::MAX >> 1)?;
            let bytes = bytes.ok_or_else(|| Error::new(ErrorKind::NotFound, "it is not there"))?;
            match parse_document(&bytes)? {
                Document::Index(index) => Ok(index),
                Document::Manifest(_) => Err(Error::malformed("it is a manifest")),
            }
        };
        match read() {
            Ok(index) => {
                let generation = index.annotations.get(GENERATION).and_then(|text| text.parse().ok());
                Ok((generation.unwrap_or(0), index.manifests))
            }
            Err(error) => {
                let message = format!("the images' names: index.json cannot be read: {error}");
                rebuilt.lost.push(message);
                Ok((0, self.unlisted(cancel)?))
            }
        }
    }

    /// The manifests and indexes among the blobs that no index among them lists.
    fn unlisted(&self, cancel: &Cancel) -> Result<Vec<Descriptor>> {
        let limit_bytes = Limits::default().json_bytes;
        let (mut found, mut listed) = (Vec::new(), HashSet::new());
        self.content.walk(&mut |digest, size_bytes| {
            cancel.check()?;
            if size_bytes > limit_bytes {
                return Ok(());
            }
            let document =
                self.content.read_document(&digest, limit_bytes).and_then(|json| parse_document(&json));
            match document {
                Ok(Document::Index(index)) => {
                    listed.extend(index.manifests.iter().map(|child| child.digest));
                    found.push(Descriptor::new(media_type::INDEX, digest, size_bytes));
                }
                Ok(Document::Manifest(manifest)) => {
                    let kind = if manifest.media_type.is_empty() {
                        media_type::MANIFEST
                    } else {
                        &manifest.media_type
                    };
                    found.push(Descriptor::new(kind, digest, size_bytes));
                }
                Err(_) => {}
            }
            Ok(())
        })?;
        found.retain(|descriptor| !listed.contains(&descriptor.digest));
        Ok(found)
    }

    /// Each entry is read by itself, so that a damaged one costs no other.
    fn images(
        &self,
        entries: &[Descriptor],
        snapshots: &HashSet<String>,
        rebuilt: &mut Rebuilt,
        cancel: &Cancel,
    ) -> Result<Vec<NewImage>> {
        let mut images = Vec::new();
        for entry in entries {
            cancel.check()?;
            let found = OneEntry::new(members(&self.source)?, entry)
                .and_then(|members| archive::find_images(&members, &Limits::default()));
            match found {
                Ok(found) => images.extend(self.new_images(found, snapshots)?),
                Err(error) => rebuilt.lost.push(format!("image {}: {error}", shown(entry))),
            }
        }
        Ok(images)
    }

    /// Images that were removed and not collected yet: nothing lists them, and of their names nothing is left. They can be
    /// restored for a while, as if they had been removed now.
    fn removed(
        &self,
        metadata: &Metadata,
        listed: &[Descriptor],
        snapshots: &HashSet<String>,
        rebuilt: &mut Rebuilt,
        cancel: &Cancel,
    ) -> Result<()> {
        let listed: HashSet<Digest> = listed.iter().map(|entry| entry.digest).collect();
        let mut entries = self.unlisted(cancel)?;
        entries.retain(|entry| !listed.contains(&entry.digest));
        // One that is no longer whole was being collected.
        let images = self.images(&entries, snapshots, &mut Rebuilt::default(), cancel)?;
        if images.is_empty() {
            return Ok(());
        }
        let found: HashSet<Digest> = images.iter().map(|image| image.target.digest).collect();
        metadata.image_put(&ImageCommit { images, sync: true, ..ImageCommit::default() })?;
        for image in metadata.images()?.iter().filter(|image| found.contains(&image.target.digest)) {
            metadata.image_bury(image, REMOVED_GRACE_MS)?;
            rebuilt.lost.push(format!(
                "the name of an image that was removed: for a week 'transload restore {}' brings it back",
                image.target.digest
            ));
        }
        Ok(())
    }

    fn new_images(&self, found: Found, snapshots: &HashSet<String>) -> Result<Vec<NewImage>> {
        let mut images = Vec::new();
        for image in found.images {
            let Some(mut target) = image.target else { continue };
            // The names are put back by the view.
            target.annotations.retain(|key, _| !crate::metadata::is_name_annotation(key));
            let rows = image.manifests.iter().filter_map(|manifest| self.manifest_row(manifest, snapshots));
            let manifests: Vec<ManifestRow> = rows.collect();
            let names = image.names.iter().map(|name| Some(name.to_string()));
            let names: Vec<Option<String>> = names.collect();
            let names = if names.is_empty() { vec![None] } else { names };
            images.extend(names.into_iter().map(|name| NewImage {
                name,
                target: target.clone(),
                manifests: manifests.clone(),
            }));
        }
        Ok(images)
    }

    fn manifest_row(&self, manifest: &FoundManifest, snapshots: &HashSet<String>) -> Option<ManifestRow> {
        let (descriptor, bytes) = manifest.manifest.as_ref()?;
        let mut size_bytes = bytes.len() as u64 + manifest.config_bytes.len() as u64;
        let mut layers = Vec::new();
        for layer in &manifest.layers {
            size_bytes += layer.size;
            layers.push((layer.descriptor.as_ref()?.digest, layer.diff_id?));
        }
        let diff_ids: Vec<DiffId> = layers.iter().map(|(_, diff_id)| *diff_id).collect();
        let top = ChainId::of(&diff_ids).last().copied();
        // Unpacked if its topmost snapshot is there, or can be made of trees that all are.
        let whole = || diff_ids.iter().all(|diff_id| matches!(self.trees.contains(diff_id), Ok(true)));
        let chain_id = top.filter(|top| snapshots.contains(&top.to_string()) || whole());
        Some(ManifestRow {
            digest: descriptor.digest,
            config: manifest.config_digest,
            platform: manifest.platform.clone(),
            chain_id,
            layers,
            size_bytes,
        })
    }

    /// Moves the old database, with its log, out of the way.
    fn put_away(&self) -> Result<Option<String>> {
        let quarantine = durable::ensure_dir(&self.fd, quarantine::DIRECTORY)?;
        let unique = durable::unique_name();
        let mut moved = None;
        for suffix in ["", "-wal", "-shm"] {
            let to = format!("{DATABASE}-{unique}{suffix}");
            match fs::renameat(&self.fd, format!("{DATABASE}{suffix}"), &quarantine, to.as_str()) {
                Ok(()) if suffix.is_empty() => moved = Some(format!("{}/{to}", quarantine::DIRECTORY)),
                Ok(()) | Err(Errno::NOENT) => {}
                Err(errno) => return Err(errno).doing(|| "cannot move the old database away"),
            }
        }
        Ok(moved)
    }
}

fn members(source: &Source) -> Result<&dyn Members> {
    match source {
        Source::Seekable(archive) => Ok(archive),
        Source::Stream(_) => Err(Error::new(ErrorKind::Internal, "a store is a directory")),
    }
}

fn shown(entry: &Descriptor) -> String {
    let name = entry.annotations.iter().find(|(key, _)| crate::metadata::is_name_annotation(key));
    name.map_or_else(|| entry.digest.to_string(), |(_, name)| name.clone())
}

/// A store whose index has one entry only.
struct OneEntry<'a> {
    store: &'a dyn Members,
    index: Vec<u8>,
}

impl<'a> OneEntry<'a> {
    fn new(store: &'a dyn Members, entry: &Descriptor) -> Result<Self> {
        let index = Index {
            schema_version: 2,
            media_type: media_type::INDEX.to_string(),
            manifests: vec![entry.clone()],
            annotations: Default::default(),
        };
        let index =
            serde_json::to_vec(&index).map_err(|error| Error::new(ErrorKind::Internal, error.to_string()))?;
        Ok(OneEntry { store, index })
    }
}

impl Members for OneEntry<'_> {
    fn stat(&self, name: &MemberName) -> Result<Option<MemberStat>> {
        self.store.stat(name)
    }

    fn document(&self, name: &MemberName, limit_bytes: u64) -> Result<Option<Vec<u8>>> {
        match name.as_bytes() {
            b"index.json" => Ok(Some(self.index.clone())),
            name_bytes if name_bytes.starts_with(b"blobs/") => self.store.document(name, limit_bytes),
            _ => Ok(None),
        }
    }
}

/// Sorted so that parents come first; the second list has those whose parents are nowhere.
fn parents_first(mut waiting: Vec<SnapshotRow>) -> (Vec<SnapshotRow>, Vec<SnapshotRow>) {
    let mut sorted: Vec<SnapshotRow> = Vec::with_capacity(waiting.len());
    let mut known: HashSet<String> = HashSet::new();
    loop {
        let before = sorted.len();
        let (ready, rest): (Vec<_>, Vec<_>) = waiting
            .into_iter()
            .partition(|row| row.parent.as_ref().is_none_or(|parent| known.contains(parent)));
        known.extend(ready.iter().map(|row| row.key.clone()));
        sorted.extend(ready);
        waiting = rest;
        if sorted.len() == before {
            return (sorted, waiting);
        }
    }
}

/// The trees that a snapshot stands on, top first, as mounts name them.
fn trees_below(rows: &[SnapshotRow], row: &SnapshotRow) -> Vec<String> {
    let by_key: HashMap<&str, &SnapshotRow> = rows.iter().map(|row| (row.key.as_str(), row)).collect();
    let (mut trees, mut next) = (Vec::new(), row.parent.as_deref());
    // Parents come first, so there is no circle.
    while let Some(below) = next.and_then(|key| by_key.get(key)) {
        trees.extend(below.tree.map(|tree| Trees::relative_path(&tree)));
        next = below.parent.as_deref();
    }
    trees
}

/// Whether a mount shows this snapshot: by the upper directory or the directory that has its number, or, for a view of
/// trees, by those.
fn labels_of(mount: &MountInfo) -> Labels {
    let mut labels = mounted::labels_of_mount(&mount.target);
    if mount.fs_type == "overlay" {
        labels.extend(mounted::labels_of_device(mount.device));
    }
    labels
}

fn shows(mount: &MountInfo, row: &SnapshotRow, trees: &[String]) -> bool {
    let part = format!("snapshots/{}/", row.id);
    if mount.options.contains(&part) || mount.root.to_string_lossy().contains(&part) {
        return true;
    }
    let read_only_overlay = mount.fs_type == "overlay" && !mount.options.contains("upperdir=");
    row.kind == SnapshotKind::View
        && match trees {
            [] => false,
            [single] if mount.root.ends_with(single) => true,
            all => {
                read_only_overlay && in_order(&mount.options, all) && count_trees(&mount.options) == all.len()
            }
        }
}

fn in_order(options: &str, trees: &[String]) -> bool {
    let mut rest = options;
    trees.iter().all(|tree| match rest.find(tree.as_str()) {
        Some(at) => {
            rest = &rest[at + tree.len()..];
            true
        }
        None => false,
    })
}

fn count_trees(options: &str) -> usize {
    options.matches("/trees/").count()
}

//! Stand-in for the door while it is being built elsewhere: the shape that the command line is written against.
#![allow(missing_docs)]

use crate::error::{Error, ErrorKind, Result};
use crate::oci::{ChainId, Descriptor, DiffId, Digest, HistoryEntry, Platform, Reference};
use crate::parallel::Cancel;
use crate::progress::Progress;
use crate::transfer::bundle::{BundleOptions, BundleReport};
use crate::transfer::options::ImportOptions;
use crate::transfer::report::{ImportPlan, ImportReport};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

#[derive(Clone)]
pub struct Engine;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SnapshotterKind {
    Overlay,
    Plain,
}

#[derive(Clone, Debug)]
pub struct EngineOptions {
    pub threads: usize,
    pub memory_bytes: u64,
    pub snapshotter: Option<SnapshotterKind>,
    pub create: bool,
}

impl Default for EngineOptions {
    fn default() -> Self {
        EngineOptions { threads: 2, memory_bytes: 64 << 20, snapshotter: None, create: true }
    }
}

pub enum Input {
    Path(PathBuf),
    Reader { name: String, reader: Box<dyn Read + Send> },
    File { name: String, file: std::fs::File },
}

#[derive(Clone, Debug)]
pub struct ManifestRow {
    pub digest: Digest,
    pub config: Digest,
    pub platform: Platform,
    pub chain_id: Option<ChainId>,
    pub layers: Vec<(Digest, DiffId)>,
    pub size_bytes: u64,
}

#[derive(Clone, Debug)]
pub struct Image {
    pub name: Option<String>,
    pub target: Descriptor,
    pub created_ms: u64,
    pub updated_ms: u64,
    pub manifests: Vec<ManifestRow>,
}

#[derive(Clone, Debug)]
pub struct InspectedLayer {
    pub descriptor: Descriptor,
    pub diff_id: DiffId,
    pub chain_id: ChainId,
}

#[derive(Clone, Debug)]
pub struct Inspection {
    pub image: Image,
    pub manifest: Digest,
    pub config: Digest,
    pub platform: Platform,
    pub chain_id: Option<ChainId>,
    pub layers: Vec<InspectedLayer>,
    pub config_json: Vec<u8>,
}

#[derive(Clone, Debug)]
pub struct HistoryLine {
    pub entry: HistoryEntry,
    pub diff_id: Option<DiffId>,
    pub size_bytes: u64,
}

#[derive(Clone, Debug, Default)]
pub struct RemoveReport {
    pub removed: Vec<String>,
    pub freed_by_gc_bytes: u64,
}

#[derive(Clone, Debug, Default)]
pub struct GcOptions {
    pub dry_run: bool,
}

#[derive(Clone, Debug, Default)]
pub struct GcReport {
    pub blobs: u64,
    pub trees: u64,
    pub snapshots: u64,
    pub ingests: u64,
    pub freed_bytes: u64,
    pub elapsed_ms: u64,
}

#[derive(Clone, Copy, Debug, Default)]
pub struct DuPart {
    pub count: u64,
    pub size_bytes: u64,
}

#[derive(Clone, Debug, Default)]
pub struct DuReport {
    pub blobs: DuPart,
    pub trees: DuPart,
    pub snapshots: DuPart,
    pub ingests: DuPart,
    pub metadata_bytes: u64,
    pub total_bytes: u64,
    pub reclaimable_bytes: u64,
}

#[derive(Clone, Copy, Debug, Default)]
pub struct MountOptions {
    pub read_write: bool,
}

#[derive(Clone, Debug)]
pub struct MountRecord {
    pub target: PathBuf,
    pub name: Option<String>,
    pub read_write: bool,
}

#[derive(Clone, Debug, Default)]
pub struct UnpackReport {
    pub entries: u64,
    pub bytes: u64,
    pub notices: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExportFormat {
    Oci,
    Docker,
}

#[derive(Clone, Debug, Default)]
pub struct ExportReport {
    pub images: Vec<String>,
    pub blobs: u64,
    pub bytes_written: u64,
}

/// An entry of an image's merged root filesystem.
#[derive(Clone, Debug)]
pub struct TreeEntry {
    pub name: Vec<u8>,
    /// Type and permissions, as in `st_mode`.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub size_bytes: u64,
    pub target: Option<Vec<u8>>,
    /// Sorted by name.
    pub children: Vec<TreeEntry>,
    /// Whether there are children that were not read because they are too deep.
    pub more: bool,
}

fn unfinished<T>() -> Result<T> {
    Err(Error::new(ErrorKind::Unsupported, "the engine is not part of this build"))
}

impl Engine {
    pub fn open(_root: impl AsRef<Path>, _options: EngineOptions) -> Result<Engine> {
        Ok(Engine)
    }
    pub fn import(
        &self,
        _input: Input,
        _options: &ImportOptions,
        _progress: &dyn Progress,
        _cancel: &Cancel,
    ) -> Result<ImportReport> {
        unfinished()
    }
    pub fn plan(&self, _input: Input, _options: &ImportOptions, _cancel: &Cancel) -> Result<ImportPlan> {
        unfinished()
    }
    pub fn images(&self) -> Result<Vec<Image>> {
        unfinished()
    }
    pub fn inspect(&self, _name: &str) -> Result<Inspection> {
        unfinished()
    }
    pub fn tree(&self, _name: &str, _depth: usize) -> Result<TreeEntry> {
        unfinished()
    }
    pub fn history(&self, _name: &str) -> Result<Vec<HistoryLine>> {
        unfinished()
    }
    pub fn tag(&self, _name: &str, _new: &Reference) -> Result<Image> {
        unfinished()
    }
    pub fn remove(&self, _names: &[String]) -> Result<RemoveReport> {
        unfinished()
    }
    pub fn gc(&self, _options: &GcOptions) -> Result<GcReport> {
        unfinished()
    }
    pub fn du(&self) -> Result<DuReport> {
        unfinished()
    }
    pub fn mount(&self, _name: &str, _target: &Path, _options: &MountOptions) -> Result<()> {
        unfinished()
    }
    pub fn unmount(&self, _target: &Path) -> Result<()> {
        unfinished()
    }
    pub fn mounts(&self) -> Result<Vec<MountRecord>> {
        unfinished()
    }
    pub fn unpack(&self, _name: &str, _dir: &Path) -> Result<UnpackReport> {
        unfinished()
    }
    pub fn bundle(&self, _name: &str, _dir: &Path, _options: &BundleOptions) -> Result<BundleReport> {
        unfinished()
    }
    pub fn export(
        &self,
        _names: &[String],
        _format: ExportFormat,
        _out: &mut dyn Write,
    ) -> Result<ExportReport> {
        unfinished()
    }
}

//! What each command prints as JSON; docs/json.md shows an example of each. `import` prints the library's own report.
//!
//! These are the contract with scripts: fields are added, never renamed or removed, without a new version.

use super::output::tree::Node;
use serde::Serialize;
use serde_json::Value;

#[derive(Serialize)]
pub struct Inspect {
    pub name: Option<String>,
    pub target: String,
    pub target_media_type: String,
    pub manifest: String,
    pub config: String,
    pub platform: String,
    pub chain_id: Option<String>,
    pub imported: String,
    pub layers: Vec<InspectLayer>,
    pub image_config: Value,
}

#[derive(Serialize)]
pub struct InspectLayer {
    pub digest: String,
    pub diff_id: String,
    pub chain_id: String,
    pub media_type: String,
    pub size_bytes: u64,
}

#[derive(Serialize)]
pub struct Tree {
    pub name: String,
    pub depth: usize,
    pub root: Node,
}

#[derive(Serialize)]
pub struct History {
    pub name: String,
    pub history: Vec<HistoryLine>,
}

#[derive(Serialize)]
pub struct HistoryLine {
    pub created: Option<String>,
    pub created_by: Option<String>,
    pub comment: Option<String>,
    pub author: Option<String>,
    pub empty_layer: bool,
    pub diff_id: Option<String>,
    pub size_bytes: u64,
}

#[derive(Serialize)]
pub struct Tag {
    pub name: String,
    pub target: String,
}

#[derive(Serialize)]
pub struct Du {
    pub blobs: DuPart,
    pub trees: DuPart,
    pub snapshots: DuPart,
    pub ingests: DuPart,
    pub metadata_bytes: u64,
    pub reserve_bytes: u64,
    pub quarantine_bytes: u64,
    pub total_bytes: u64,
    pub reclaimable_bytes: u64,
    pub mounts: Vec<UpperLine>,
}

#[derive(Serialize)]
pub struct UpperLine {
    pub target: Option<String>,
    pub name: Option<String>,
    pub key: String,
    pub upper_bytes: u64,
    pub upper_inodes: u64,
}

#[derive(Clone, Copy, Serialize)]
pub struct DuPart {
    pub count: u64,
    pub size_bytes: u64,
}

#[derive(Serialize)]
pub struct Mounts {
    pub mounts: Vec<MountLine>,
}

#[derive(Serialize)]
pub struct MountLine {
    pub target: String,
    pub name: Option<String>,
    pub mode: &'static str,
    pub mounted: bool,
}

#[derive(Serialize)]
pub struct Umount {
    pub unmounted: Vec<String>,
    pub deferred: Vec<String>,
}

#[derive(Serialize)]
pub struct Prewarm {
    pub name: String,
    pub files: u64,
    pub directories: u64,
    pub bytes: u64,
    pub elapsed_ms: u64,
}

#[derive(Serialize)]
pub struct Unpack {
    pub name: String,
    pub directory: String,
    pub entries: u64,
    pub bytes: u64,
    pub notices: Vec<String>,
}

#[derive(Serialize)]
pub struct Bundle {
    pub name: String,
    pub directory: String,
    pub args: Vec<String>,
    pub uid: u32,
    pub gid: u32,
    pub notices: Vec<String>,
}

#[derive(Serialize)]
pub struct Export {
    pub images: Vec<String>,
    pub format: &'static str,
    pub output: String,
    pub blobs: u64,
    pub bytes_written: u64,
}

#[derive(Serialize)]
pub struct Completions {
    pub shell: &'static str,
    pub script: String,
}

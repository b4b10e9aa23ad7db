//! What an import did, for programs; as JSON it is the contract of `docs/json.md`.

use super::verdict::Finding;
use crate::layer::ConfinementReport;
use crate::oci::{ChainId, DiffId, Digest, Platform};
use crate::progress::Outcome;
use crate::trace::TraceId;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// What an import did.
#[derive(Clone, Debug, Default, Serialize)]
pub struct ImportReport {
    /// The images that are in the store now, one line for each name and platform.
    pub images: Vec<ImageReport>,
    /// What was passed over, and why.
    pub skipped: Vec<SkippedReport>,
    /// Blobs by outcome.
    pub blobs: BlobTotals,
    /// Layer trees by outcome.
    pub trees: TreeTotals,
    /// Snapshots by outcome.
    pub snapshots: SnapshotTotals,
    /// Wall time in milliseconds.
    pub elapsed_ms: u64,
    /// Time in each stage, summed over threads.
    pub stages_ms: StageTimes,
    /// The most memory that this process has had resident, in bytes.
    pub peak_rss_bytes: u64,
    /// The memory budget for what is in flight, in bytes.
    pub memory_budget_bytes: u64,
    /// What joins this report with the spans, log lines and errors of the run.
    pub trace_id: Option<TraceId>,
    /// Notices worth a line to a person.
    pub notices: Vec<String>,
    /// Rights that were taken, and waits for others.
    pub claims: ClaimTotals,
    /// How the threads that extracted were confined.
    pub confinement: ConfinementReport,
    /// How often each digest was claimed, written and extracted, if that was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub audit: Option<AuditReport>,
}

/// One image of an import.
#[derive(Clone, Debug, Serialize)]
pub struct ImageReport {
    /// The name, `None` for an image that the archive does not name.
    pub name: Option<String>,
    /// The descriptor that the archive named: a manifest, or an index.
    pub target: Digest,
    /// The manifest of this platform.
    pub manifest: Digest,
    /// The image configuration.
    pub config: Digest,
    /// The platform.
    #[serde(serialize_with = "as_text")]
    pub platform: Platform,
    /// The identity of the whole stack, `None` where nothing was unpacked.
    pub chain_id: Option<ChainId>,
    /// Whether the name is new, was there, or pointed elsewhere before.
    pub outcome: ImageOutcome,
    /// What the name pointed to before, where it was retagged.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub previous: Option<Digest>,
    /// The layers, bottom first.
    pub layers: Vec<LayerReport>,
}

/// `linux/arm64`, where the derived form would be an object.
fn as_text<S: serde::Serializer>(platform: &Platform, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(platform)
}

/// What became of a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ImageOutcome {
    /// The store did not have it.
    New,
    /// The store had it, with the same target.
    Existing,
    /// The store had it with another target.
    Retagged,
}

/// One layer of an image.
#[derive(Clone, Debug, Serialize)]
pub struct LayerReport {
    /// The digest of the blob.
    pub digest: Digest,
    /// The digest of the uncompressed stream.
    pub diff_id: DiffId,
    /// The identity of the stack up to here.
    pub chain_id: ChainId,
    /// The size of the blob in bytes.
    pub size_bytes: u64,
    /// Regular-file bytes of the tree.
    pub unpacked_bytes: u64,
    /// How the blob came to be there.
    pub blob: Outcome,
    /// How the tree came to be there.
    pub tree: Outcome,
    /// How the snapshot came to be there.
    pub snapshot: Outcome,
    /// How long this import worked on the layer, in milliseconds; 0 where it was there.
    pub elapsed_ms: u64,
}

/// Something that was passed over.
#[derive(Clone, Debug, Serialize)]
pub struct SkippedReport {
    /// What it was: a digest where there is one.
    pub descriptor: String,
    /// Why.
    pub reason: String,
}

/// Blobs by outcome, manifests and configurations included.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct BlobTotals {
    /// Written by this import.
    pub new: u64,
    /// There before.
    pub existing: u64,
    /// Written by another import meanwhile.
    pub shared: u64,
    /// Bytes written.
    pub bytes_written: u64,
    /// Bytes of new blobs that share their blocks with the archive's files instead of being written.
    pub bytes_cloned: u64,
    /// Bytes that did not have to be written.
    pub bytes_skipped: u64,
}

/// Layer trees by outcome.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct TreeTotals {
    /// Extracted by this import.
    pub new: u64,
    /// There before.
    pub existing: u64,
    /// Extracted by another import meanwhile.
    pub shared: u64,
    /// Regular-file bytes written.
    pub bytes_written: u64,
    /// Regular-file bytes that did not have to be written.
    pub bytes_skipped: u64,
    /// Files, directories and other inodes made.
    pub files: u64,
}

/// Rights that an import took, and waits for those who had them.
#[derive(Clone, Debug, Default, Serialize)]
pub struct ClaimTotals {
    /// Rights to write a blob.
    pub blobs: u64,
    /// Rights to extract a layer.
    pub trees: u64,
    /// Waits for another import.
    pub waits: u64,
    /// Waits that ended because the other showed no progress.
    pub takeovers: u64,
}

/// Snapshots by outcome.
#[derive(Clone, Debug, Default, Serialize)]
pub struct SnapshotTotals {
    /// Committed by this import.
    pub new: u64,
    /// There before.
    pub existing: u64,
}

/// Time by stage in milliseconds, summed over threads.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct StageTimes {
    /// Reading the archive.
    pub read: u64,
    /// Decompressing layers.
    pub inflate: u64,
    /// Hashing, and writing blobs, which happens chunk by chunk with it.
    pub hash: u64,
    /// Creating files.
    pub apply: u64,
    /// Waiting for the disk at the end.
    pub sync: u64,
    /// Waiting for other imports.
    pub wait: u64,
}

impl StageTimes {
    /// Adds the times of another import.
    pub fn add(&mut self, other: &StageTimes) {
        let StageTimes { read, inflate, hash, apply, sync, wait } = other;
        self.read += read;
        self.inflate += inflate;
        self.hash += hash;
        self.apply += apply;
        self.sync += sync;
        self.wait += wait;
    }
}

/// How often each digest was claimed, written and extracted by this import.
#[derive(Clone, Debug, Default, Serialize)]
pub struct AuditReport {
    /// Blobs.
    pub blobs: BTreeMap<String, BlobAudit>,
    /// Layer trees, by DiffID.
    pub trees: BTreeMap<String, TreeAudit>,
    /// Snapshots, by chain id.
    pub snapshots: BTreeMap<String, SnapshotAudit>,
    /// Whether nothing was done more than once.
    pub once: bool,
    /// `once`, or the name of the first step that failed.
    pub verdict: &'static str,
    /// What was done more than once, by step.
    pub findings: Vec<Finding>,
}

/// The counts of one snapshot.
#[derive(Clone, Debug, Default, Serialize)]
pub struct SnapshotAudit {
    /// How often it was prepared.
    pub prepared: u64,
}

/// The counts of one blob.
#[derive(Clone, Debug, Default, Serialize)]
pub struct BlobAudit {
    /// How often the right to write it was claimed.
    pub claimed: u64,
    /// How often it was written.
    pub written: u64,
}

/// The counts of one layer tree.
#[derive(Clone, Debug, Default, Serialize)]
pub struct TreeAudit {
    /// How often the right to extract it was claimed.
    pub claimed: u64,
    /// How often it was extracted.
    pub extracted: u64,
}

/// What an import would do; nothing has been written for it.
#[derive(Clone, Debug, Default, Serialize)]
pub struct ImportPlan {
    /// The images that would be there.
    pub images: Vec<PlannedImage>,
    /// What would be passed over, and why.
    pub skipped: Vec<SkippedReport>,
    /// Layer blobs that would be written.
    pub blobs_to_write: u64,
    /// Bytes of them, as far as the archive announces sizes.
    pub bytes_to_write: u64,
    /// Layers that would be extracted.
    pub trees_to_extract: u64,
}

/// An image that an import would bring.
#[derive(Clone, Debug, Serialize)]
pub struct PlannedImage {
    /// The names; none for an unnamed image.
    pub names: Vec<String>,
    /// The platform.
    #[serde(serialize_with = "as_text")]
    pub platform: Platform,
    /// The layers, bottom first.
    pub layers: Vec<PlannedLayer>,
}

/// A layer that an import would look at.
#[derive(Clone, Debug, Serialize)]
pub struct PlannedLayer {
    /// The digest of the blob, where the archive announces it.
    pub digest: Option<Digest>,
    /// The DiffID, where the archive announces it.
    pub diff_id: Option<DiffId>,
    /// The size of the blob in bytes.
    pub size_bytes: u64,
    /// Whether the blob is there already or would be written.
    pub blob: Outcome,
    /// Whether the tree is there already or would be extracted.
    pub tree: Outcome,
}

//! Every figure that there is.
//!
//! Names follow Prometheus' conventions: the unit at the end, base units only, `_total` for what grows. Labels have few
//! values, listed here, with one exception: chain ids, of which the most recently used are kept.

use super::{Kind, Label, Metric};
use crate::error::ErrorKind;

/// Enough for any combination of listed labels.
const ALL_SERIES: usize = 1000;

/// How many chains have a figure of their own. Each is a series in Prometheus for as long as it is exported; an image of
/// 60 layers fits once.
const CHAIN_SERIES: usize = 64;

const fn metric(name: &'static str, kind: Kind, labels: &'static [Label], help: &'static str) -> Metric {
    Metric { name, help, kind, labels, series: ALL_SERIES }
}

const fn label(name: &'static str, values: &'static [&'static str]) -> Label {
    Label { name, values }
}

const OUTCOME: &[Label] = &[label("outcome", &["new", "existing", "shared"])];
const SECONDS: Kind =
    Kind::Histogram(&[0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0]);
const SHORT_SECONDS: Kind =
    Kind::Histogram(&[0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5]);

/// What the engine was asked for, and whether it could be done. A check that finds something wrong could be done.
/// Looking up in the catalogue is not counted.
pub static OPERATIONS: Metric = metric(
    "transload_operations_total",
    Kind::Counter,
    &[
        label(
            "operation",
            &[
                "open", "import", "plan", "mount", "umount", "unpack", "bundle", "export", "tag", "rm",
                "restore", "prewarm", "du", "stats", "gc", "fsck", "rebuild", "doctor",
            ],
        ),
        label("outcome", &["ok", "failed"]),
    ],
    "Calls of the engine, by what was asked for and whether it could be done.",
);

/// Failures by kind.
pub static ERRORS: Metric = metric(
    "transload_errors_total",
    Kind::Counter,
    &[label("kind", &ErrorKind::NAMES)],
    "Failed calls of the engine, by the kind of their error.",
);

/// How long imports took.
pub static IMPORT_DURATION: Metric = metric(
    "transload_import_duration_seconds",
    SECONDS,
    &[],
    "How long successful imports took, by the clock on the wall.",
);

/// Where the time of imports went.
pub static IMPORT_STAGE: Metric = metric(
    "transload_import_stage_seconds_total",
    Kind::Counter,
    &[label("stage", &["read", "inflate", "hash", "apply", "sync", "wait"])],
    "Time that imports spent in each stage, summed over threads.",
);

/// When an import last succeeded.
pub static LAST_IMPORT: Metric = metric(
    "transload_last_import_timestamp_seconds",
    Kind::Gauge,
    &[],
    "When an import last succeeded, in seconds since 1970.",
);

/// The memory of the process.
pub static PEAK_RSS: Metric = metric(
    "transload_import_peak_resident_bytes",
    Kind::Gauge,
    &[],
    "The most memory that the process of the last import has had resident.",
);

/// Blobs by outcome: the hits of deduplication are those that are not new.
pub static BLOBS: Metric = metric(
    "transload_blobs_total",
    Kind::Counter,
    OUTCOME,
    "Blobs that imports looked at: written, there already, or written by another import meanwhile.",
);

/// Bytes of blobs that were written.
pub static BLOB_BYTES_WRITTEN: Metric =
    metric("transload_blob_written_bytes_total", Kind::Counter, &[], "Bytes of blobs that imports wrote.");

/// Bytes of blobs that did not have to be written.
pub static BLOB_BYTES_SKIPPED: Metric = metric(
    "transload_blob_skipped_bytes_total",
    Kind::Counter,
    &[],
    "Bytes of blobs that imports did not have to write.",
);

/// Layers by outcome.
pub static TREES: Metric = metric(
    "transload_trees_total",
    Kind::Counter,
    OUTCOME,
    "Layers that imports looked at: extracted, there already, or extracted by another import meanwhile.",
);

/// Bytes of files that were extracted.
pub static TREE_BYTES: Metric = metric(
    "transload_tree_written_bytes_total",
    Kind::Counter,
    &[],
    "Bytes of files that imports extracted from layers.",
);

/// Bytes of files that did not have to be extracted.
pub static TREE_BYTES_SKIPPED: Metric = metric(
    "transload_tree_skipped_bytes_total",
    Kind::Counter,
    &[],
    "Bytes of files that imports did not have to extract.",
);

/// Files that were extracted.
pub static TREE_FILES: Metric = metric(
    "transload_tree_files_total",
    Kind::Counter,
    &[],
    "Files, directories and other inodes that imports extracted from layers.",
);

/// Rights to write or extract that were taken.
pub static CLAIMS: Metric = metric(
    "transload_claims_total",
    Kind::Counter,
    &[label("what", &["blob", "tree"])],
    "Rights to write a blob or to extract a layer that imports took.",
);

/// Waits for others.
pub static WAITS: Metric = metric(
    "transload_waits_total",
    Kind::Counter,
    &[],
    "Waits for another import that was at the same blob or layer.",
);

/// Stalled owners that were overtaken.
pub static TAKEOVERS: Metric = metric(
    "transload_takeovers_total",
    Kind::Counter,
    &[],
    "Waits that ended because the other import showed no progress.",
);

/// Work that `--audit` saw twice.
pub static AUDIT_FINDINGS: Metric = metric(
    "transload_audit_findings_total",
    Kind::Counter,
    &[label("step", &["plan", "claim", "cross_process", "snapshot", "content_store"])],
    "Blobs, layers and snapshots that an audit found to be made more than once, by the step that failed.",
);

/// Snapshots that were prepared.
pub static PREPARES: Metric = metric(
    "transload_snapshot_prepares_total",
    Kind::Counter,
    &[label("kind", &["layer", "view", "active"])],
    "Snapshots that were prepared: for a layer of an image, for a read-only mount, for a writable one.",
);

/// Layer snapshots that were prepared, by chain id.
pub static CHAIN_PREPARES: Metric = Metric {
    series: CHAIN_SERIES,
    ..metric(
        "transload_chain_prepares_total",
        Kind::Counter,
        &[label("chain_id", &[])],
        "Snapshots that were prepared for a layer, by chain id; only the chains that were used last are kept.",
    )
};

/// How long the kernel took to mount.
pub static MOUNT_DURATION: Metric = metric(
    "transload_mount_duration_seconds",
    SHORT_SECONDS,
    &[label("operation", &["mount", "umount"])],
    "How long mounting and unmounting took, retries included.",
);

/// How often the kernel was asked again.
pub static MOUNT_RETRIES: Metric = metric(
    "transload_mount_retries_total",
    Kind::Counter,
    &[label("operation", &["mount", "umount"])],
    "How often the kernel was asked again, because something was busy, by mounts that succeeded in the end.",
);

/// How long collections took.
pub static GC_DURATION: Metric =
    metric("transload_gc_duration_seconds", SECONDS, &[], "How long collections took.");

/// What collections freed.
pub static GC_FREED: Metric =
    metric("transload_gc_freed_bytes_total", Kind::Counter, &[], "Bytes that collections freed.");

/// What collections removed.
pub static GC_REMOVED: Metric = metric(
    "transload_gc_removed_total",
    Kind::Counter,
    &[label("what", &["blob", "tree", "snapshot", "ingest", "lease"])],
    "Things that collections removed.",
);

/// What collections could not remove.
pub static GC_FAILURES: Metric = metric(
    "transload_gc_failures_total",
    Kind::Counter,
    &[],
    "Things that collections should have removed and could not.",
);

/// What the store holds.
pub static STORE_BYTES: Metric = metric(
    "transload_store_bytes",
    Kind::Gauge,
    &[label("part", &["blobs", "trees", "snapshots", "ingests", "metadata"])],
    "What each part of the store takes on disk, when it was last looked at.",
);

/// How many of each it holds.
pub static STORE_OBJECTS: Metric = metric(
    "transload_store_objects",
    Kind::Gauge,
    &[label("part", &["images", "blobs", "trees", "snapshots", "ingests"])],
    "How many images, blobs, layers, snapshots and unfinished ingests the store has, when it was last looked at.",
);

/// What the writable mounts take.
pub static UPPER_BYTES: Metric = metric(
    "transload_upper_bytes",
    Kind::Gauge,
    &[],
    "What was written to the upper directories of writable mounts, all together.",
);

/// How many writable mounts there are.
pub static UPPER_DIRECTORIES: Metric =
    metric("transload_upper_directories", Kind::Gauge, &[], "Upper directories of writable mounts.");

/// The room that is left.
pub static FILESYSTEM_FREE: Metric = metric(
    "transload_store_filesystem_free_bytes",
    Kind::Gauge,
    &[],
    "Bytes that are left on the store's filesystem.",
);

/// The whole room.
pub static FILESYSTEM_SIZE: Metric =
    metric("transload_store_filesystem_size_bytes", Kind::Gauge, &[], "The size of the store's filesystem.");

/// Which release wrote the figures.
pub static BUILD: Metric = metric(
    "transload_build_info",
    Kind::Gauge,
    &[label("version", &[])],
    "The release that wrote these figures; always 1.",
);

/// All of them, in the order in which they are rendered.
pub static ALL: [&Metric; 32] = [
    &BUILD,
    &OPERATIONS,
    &ERRORS,
    &IMPORT_DURATION,
    &IMPORT_STAGE,
    &LAST_IMPORT,
    &PEAK_RSS,
    &BLOBS,
    &BLOB_BYTES_WRITTEN,
    &BLOB_BYTES_SKIPPED,
    &TREES,
    &TREE_BYTES,
    &TREE_BYTES_SKIPPED,
    &TREE_FILES,
    &CLAIMS,
    &WAITS,
    &TAKEOVERS,
    &AUDIT_FINDINGS,
    &PREPARES,
    &CHAIN_PREPARES,
    &MOUNT_DURATION,
    &MOUNT_RETRIES,
    &GC_DURATION,
    &GC_FREED,
    &GC_REMOVED,
    &GC_FAILURES,
    &STORE_BYTES,
    &STORE_OBJECTS,
    &UPPER_BYTES,
    &UPPER_DIRECTORIES,
    &FILESYSTEM_FREE,
    &FILESYSTEM_SIZE,
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_say_their_unit() {
        let mut names: Vec<&str> = ALL.iter().map(|metric| metric.name).collect();
        for metric in ALL {
            assert!(metric.name.starts_with("transload_") && metric.help.ends_with('.'), "{metric:?}");
            assert_eq!(metric.name.ends_with("_total"), metric.kind == Kind::Counter, "{}", metric.name);
        }
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), ALL.len());
    }
}

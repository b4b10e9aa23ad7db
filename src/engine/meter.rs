//! From what the verbs report to figures: the one place that knows which report feeds which metric.

use crate::metadata::now_ms;
use crate::metrics::{Metric, Metrics, catalog};
use crate::oci::ChainId;
use crate::progress::{Event, Listener, Outcome, SnapshotStep, Step};
use crate::transfer::ImportReport;
use crate::transfer::report::StageTimes;
use crate::upkeep::{DuReport, GcReport};
use std::collections::HashSet;
use std::time::Duration;

/// A finished import.
pub(super) fn import(metrics: &Metrics, report: &ImportReport) {
    metrics.record(&catalog::IMPORT_DURATION, &[], seconds(report.elapsed_ms));
    metrics.count(&catalog::LAST_IMPORT, &[], now_ms() / 1000);
    metrics.count(&catalog::PEAK_RSS, &[], report.peak_rss_bytes);
    stages(metrics, &report.stages_ms);
    let (blobs, trees) = (&report.blobs, &report.trees);
    outcomes(metrics, &catalog::BLOBS, [blobs.new, blobs.existing, blobs.shared]);
    metrics.count(&catalog::BLOB_BYTES_WRITTEN, &[], blobs.bytes_written);
    metrics.count(&catalog::BLOB_BYTES_SKIPPED, &[], blobs.bytes_skipped);
    outcomes(metrics, &catalog::TREES, [trees.new, trees.existing, trees.shared]);
    metrics.count(&catalog::TREE_BYTES, &[], trees.bytes_written);
    metrics.count(&catalog::TREE_BYTES_SKIPPED, &[], trees.bytes_skipped);
    metrics.count(&catalog::TREE_FILES, &[], trees.files);
    metrics.count(&catalog::CLAIMS, &["blob"], report.claims.blobs);
    metrics.count(&catalog::CLAIMS, &["tree"], report.claims.trees);
    metrics.count(&catalog::WAITS, &[], report.claims.waits);
    metrics.count(&catalog::TAKEOVERS, &[], report.claims.takeovers);
    prepares(metrics, report);
    for finding in report.audit.iter().flat_map(|audit| &audit.findings) {
        metrics.count(&catalog::AUDIT_FINDINGS, &[finding.step.name()], 1);
    }
}

fn outcomes(metrics: &Metrics, metric: &'static Metric, [new, existing, shared]: [u64; 3]) {
    metrics.count(metric, &["new"], new);
    metrics.count(metric, &["existing"], existing);
    metrics.count(metric, &["shared"], shared);
}

fn stages(metrics: &Metrics, times: &StageTimes) {
    let StageTimes { read, inflate, hash, apply, sync, wait } = times;
    let all = [
        ("read", read),
        ("inflate", inflate),
        ("hash", hash),
        ("apply", apply),
        ("sync", sync),
        ("wait", wait),
    ];
    for (stage, ms) in all {
        metrics.record(&catalog::IMPORT_STAGE, &[stage], seconds(*ms));
    }
}

/// A chain that several images have is prepared once.
fn prepares(metrics: &Metrics, report: &ImportReport) {
    let layers = report.images.iter().flat_map(|image| &image.layers);
    let prepared: HashSet<ChainId> =
        layers.filter(|layer| layer.snapshot == Outcome::New).map(|layer| layer.chain_id).collect();
    metrics.count(&catalog::PREPARES, &["layer"], prepared.len() as u64);
    for chain_id in prepared {
        metrics.count(&catalog::CHAIN_PREPARES, &[&chain_id.to_string()], 1);
    }
}

/// Counts what is done to snapshots and mounts, and passes it on. `read_write` mounts have active snapshots.
pub(super) fn listener(metrics: &Metrics, read_write: bool, next: &Listener) -> Listener {
    let (metrics, next) = (metrics.clone(), next.clone());
    Listener::new(move |event: &Event| {
        if let Event::Snapshot(done) = event {
            step(&metrics, done, read_write);
        }
        next.event(event);
    })
}

fn step(metrics: &Metrics, done: &SnapshotStep, read_write: bool) {
    let retries = u64::from(done.attempts.saturating_sub(1));
    match done.step {
        Step::Prepare => metrics.count(&catalog::PREPARES, &[if read_write { "active" } else { "view" }], 1),
        Step::Mount => metrics.count(&catalog::MOUNT_RETRIES, &["mount"], retries),
        Step::Unmount => metrics.count(&catalog::MOUNT_RETRIES, &["umount"], retries),
        Step::Remove => {}
    }
}

/// A mount that was made, or taken down.
pub(super) fn mounted(metrics: &Metrics, operation: &str, elapsed: Duration) {
    metrics.record(&catalog::MOUNT_DURATION, &[operation], elapsed.as_secs_f64());
}

/// A collection.
pub(super) fn gc(metrics: &Metrics, report: &GcReport, elapsed: Duration) {
    metrics.record(&catalog::GC_DURATION, &[], elapsed.as_secs_f64());
    metrics.count(&catalog::GC_FREED, &[], report.bytes_freed);
    let removed = [
        ("blob", report.blobs_removed),
        ("tree", report.trees_removed),
        ("snapshot", report.snapshots_removed),
        ("ingest", report.ingests_removed),
        ("lease", report.leases_removed),
    ];
    for (what, count) in removed {
        metrics.count(&catalog::GC_REMOVED, &[what], count);
    }
    metrics.count(&catalog::GC_FAILURES, &[], report.failed.len() as u64);
}

/// What the store holds now.
pub(super) fn store(metrics: &Metrics, report: &DuReport) {
    let parts = [
        ("blobs", report.blobs),
        ("trees", report.trees),
        ("snapshots", report.snapshots),
        ("ingests", report.ingests),
    ];
    for (part, share) in parts {
        metrics.count(&catalog::STORE_BYTES, &[part], share.bytes);
        metrics.count(&catalog::STORE_OBJECTS, &[part], share.count);
    }
    metrics.count(&catalog::STORE_BYTES, &["metadata"], report.metadata_bytes);
    metrics.count(&catalog::STORE_OBJECTS, &["images"], report.images.len() as u64);
    metrics.count(&catalog::UPPER_BYTES, &[], report.uppers.bytes);
    metrics.count(&catalog::UPPER_DIRECTORIES, &[], report.uppers.count);
    metrics.count(&catalog::FILESYSTEM_FREE, &[], report.filesystem_free_bytes);
    metrics.count(&catalog::FILESYSTEM_SIZE, &[], report.filesystem_size_bytes);
}

fn seconds(ms: u64) -> f64 {
    ms as f64 / 1000.0
}

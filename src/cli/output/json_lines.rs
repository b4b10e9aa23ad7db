//! Progress as one JSON object a line on stderr, for programs that draw it themselves.

use serde_json::{Value, json};
use std::io::Write;
use transload::progress::{Event, Progress, Stage};

/// Writes each event as a line.
pub struct JsonLines;

impl Progress for JsonLines {
    fn event(&self, event: &Event) {
        if let Some(value) = value(event) {
            let line = format!("{value}\n");
            // One call, so that lines of several threads do not mix. A closed stderr stops no import.
            let _ = std::io::stderr().lock().write_all(line.as_bytes());
        }
    }
}

/// The event as JSON, or nothing for one that is newer than this file.
pub fn value(event: &Event) -> Option<Value> {
    Some(match event {
        Event::ImportStarted { archive, size_bytes, trace_id } => {
            json!({"event": "import_started", "archive": archive, "size_bytes": size_bytes, "trace_id": trace_id})
        }
        Event::BlobStarted { key, size_bytes, layer } => {
            json!({"event": "blob_started", "key": key, "size_bytes": size_bytes, "layer": layer})
        }
        Event::BlobAdvanced { key, bytes } => json!({"event": "blob_advanced", "key": key, "bytes": bytes}),
        Event::BlobStage { key, stage } => {
            json!({"event": "blob_stage", "key": key, "stage": stage_name(*stage)})
        }
        Event::BlobFinished { key, outcome } => {
            json!({"event": "blob_finished", "key": key, "outcome": outcome})
        }
        Event::BlobClaimed(digest) => json!({"event": "blob_claimed", "digest": digest}),
        Event::BlobWritten { digest, size_bytes } => {
            json!({"event": "blob_written", "digest": digest, "size_bytes": size_bytes})
        }
        Event::TreeClaimed(diff_id) => json!({"event": "tree_claimed", "diff_id": diff_id}),
        Event::TreeExtracted { diff_id, bytes } => {
            json!({"event": "tree_extracted", "diff_id": diff_id, "bytes": bytes})
        }
        Event::SnapshotCommitted(chain_id) => json!({"event": "snapshot_committed", "chain_id": chain_id}),
        Event::Waited { key, duration } => {
            json!({"event": "waited", "key": key, "duration_ms": duration.as_millis() as u64})
        }
        Event::LayerPlanned { digest, diff_id } => {
            json!({"event": "layer_planned", "digest": digest, "diff_id": diff_id})
        }
        Event::Overtaken { key } => json!({"event": "overtaken", "key": key}),
        Event::ImportFailed(kind) => json!({"event": "import_failed", "kind": kind.name()}),
        Event::Notice(text) => json!({"event": "notice", "message": text}),
        Event::StreamAdvanced { bytes } => json!({"event": "stream_advanced", "bytes": bytes}),
        Event::Snapshot(step) => json!({
            "event": step.step.name(),
            "key": step.key,
            "digest": step.digest,
            "target": step.target.as_ref().map(|target| target.display().to_string()),
            "attempts": step.attempts,
            "duration_ms": step.duration.as_secs_f64() * 1000.0,
        }),
        Event::ImportFinished => json!({"event": "import_finished"}),
        Event::CheckStarted { blobs, size_bytes } => {
            json!({"event": "check_started", "blobs": blobs, "size_bytes": size_bytes})
        }
        Event::CheckFinished => json!({"event": "check_finished"}),
        _ => return None,
    })
}

/// The stage in lower case.
pub fn stage_name(stage: Stage) -> &'static str {
    match stage {
        Stage::Queued => "queued",
        Stage::Ingesting => "ingesting",
        Stage::Unpacking => "unpacking",
        Stage::Waiting => "waiting",
        Stage::Verifying => "verifying",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use transload::progress::Outcome;

    #[test]
    fn events_have_a_name_and_plain_fields() {
        let event = Event::BlobFinished { key: "sha256:1".to_string(), outcome: Outcome::Existing };
        assert_eq!(
            value(&event).expect("known"),
            json!({"event":"blob_finished","key":"sha256:1","outcome":"existing"})
        );
    }
}

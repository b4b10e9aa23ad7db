//! Progress as data: what happens, told to whoever listens. Nothing here prints.

use crate::error::ErrorKind;
use crate::oci::{ChainId, DiffId, Digest};
use crate::trace::TraceId;
use std::time::Duration;

/// Something that happened. Events of one digest come in order; events of different digests interleave.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Event {
    /// An archive has been opened.
    ImportStarted {
        /// The archive as the caller named it.
        archive: String,
        /// Its size in bytes, where that is known.
        size_bytes: Option<u64>,
        /// What joins the spans, log lines, report and error of this import.
        trace_id: TraceId,
    },
    /// The plan of this import lists a layer.
    LayerPlanned {
        /// The digest of its blob, where that is known.
        digest: Option<Digest>,
        /// Its DiffID, where that is known.
        diff_id: Option<DiffId>,
    },
    /// A blob of an archive is about to be looked at. `layer` tells whether a bar is worth drawing.
    BlobStarted {
        /// The key that later events of this blob carry: its digest where known, its member's name otherwise.
        key: String,
        /// Its size in bytes.
        size_bytes: u64,
        /// Whether it is a layer.
        layer: bool,
    },
    /// Bytes of a blob have passed.
    BlobAdvanced {
        /// See [`Event::BlobStarted`].
        key: String,
        /// Bytes since the last event, compressed.
        bytes: u64,
    },
    /// A blob enters another stage.
    BlobStage {
        /// See [`Event::BlobStarted`].
        key: String,
        /// The stage.
        stage: Stage,
    },
    /// A blob is finished.
    BlobFinished {
        /// See [`Event::BlobStarted`].
        key: String,
        /// How it came to be there.
        outcome: Outcome,
    },
    /// The right to write a blob was claimed by this import.
    BlobClaimed(Digest),
    /// A blob was written and published by this import.
    BlobWritten {
        /// Its digest.
        digest: Digest,
        /// Its size in bytes.
        size_bytes: u64,
    },
    /// The right to extract a layer was claimed by this import.
    TreeClaimed(DiffId),
    /// A layer was extracted and published by this import.
    TreeExtracted {
        /// Its DiffID.
        diff_id: DiffId,
        /// Regular-file bytes in the tree.
        bytes: u64,
    },
    /// A snapshot was committed by this import.
    SnapshotCommitted(ChainId),
    /// Someone else's work on this key was waited for.
    Waited {
        /// A digest, DiffID or member name.
        key: String,
        /// How long.
        duration: Duration,
    },
    /// Someone else who was at this key showed no progress, and their work is done again.
    Overtaken {
        /// A digest, DiffID or member name.
        key: String,
    },
    /// Something was left out or changed on purpose, worth a line to a person.
    Notice(String),
    /// A stream of this many bytes has been read so far.
    StreamAdvanced {
        /// Bytes of the archive file since the last event.
        bytes: u64,
    },
    /// The import failed.
    ImportFailed(ErrorKind),
    /// The import ended, well or badly.
    ImportFinished,
    /// A check of the store begins to read. Its blobs come as [`Event::BlobStarted`] and what follows.
    CheckStarted {
        /// How many blobs there are.
        blobs: u64,
        /// How many bytes they have.
        size_bytes: u64,
    },
    /// A check of the store is over.
    CheckFinished,
}

/// What a blob is going through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Waiting for a lane.
    Queued,
    /// Being read, hashed and written only.
    Ingesting,
    /// Being read, written and extracted at once.
    Unpacking,
    /// Someone else is at it.
    Waiting,
    /// Already here and being compared.
    Verifying,
}

/// How a blob, tree or snapshot came to be in the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// This import made it.
    New,
    /// It was there before.
    Existing,
    /// Another import had it in flight, and this one waited.
    Shared,
    /// It was not asked for.
    None,
}

/// Receives events, from several threads at once. Must be quick: it is called from the lanes, which are confined
/// (`ImportOptions::confine`): a listener that opens files or sockets does so beforehand, or on a thread of its own.
pub trait Progress: Send + Sync {
    /// Takes one event.
    fn event(&self, event: &Event);
}

/// Listens to nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct Silent;

impl Progress for Silent {
    fn event(&self, _event: &Event) {}
}

impl<F: Fn(&Event) + Send + Sync> Progress for F {
    fn event(&self, event: &Event) {
        self(event)
    }
}

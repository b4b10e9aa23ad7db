//! Progress as data: what happens, told to whoever listens. Nothing here prints.

use crate::error::ErrorKind;
use crate::oci::{ChainId, DiffId, Digest};
use crate::trace::TraceId;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
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
    /// Something was done to a snapshot on the way to a mount, or back.
    Snapshot(SnapshotStep),
}

/// One step of a snapshot's life, done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotStep {
    /// What was done.
    pub step: Step,
    /// The snapshot's key.
    pub key: String,
    /// The ChainID of the image behind it, where there is one.
    pub digest: Option<String>,
    /// The mount point; none of a snapshot that a program prepared for a mount of its own.
    pub target: Option<PathBuf>,
    /// How often the kernel was asked.
    pub attempts: u32,
    /// How long it took, waiting included.
    pub duration: Duration,
}

impl SnapshotStep {
    /// The same, after this many attempts.
    pub fn attempts(mut self, attempts: u32) -> Self {
        self.attempts = attempts;
        self
    }
}

/// What is done to a snapshot. The names are those of the spans, see `docs/events.md`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// It was made, ready to be mounted.
    Prepare,
    /// It was mounted.
    Mount,
    /// It was unmounted.
    Unmount,
    /// It was removed.
    Remove,
}

impl Step {
    /// `snapshot.prepare`, `mount`, `umount` or `snapshot.remove`.
    pub fn name(self) -> &'static str {
        match self {
            Step::Prepare => "snapshot.prepare",
            Step::Mount => "mount",
            Step::Unmount => "umount",
            Step::Remove => "snapshot.remove",
        }
    }
}

/// A listener that options can carry; by default nobody.
///
/// ```
/// use transload::progress::{Event, Listener};
/// let listener = Listener::new(|event: &Event| println!("{event:?}"));
/// listener.event(&Event::Notice("hello".into()));
/// ```
#[derive(Clone)]
pub struct Listener(Arc<dyn Progress>);

impl Listener {
    /// Tells this one.
    pub fn new(progress: impl Progress + 'static) -> Self {
        Listener(Arc::new(progress))
    }

    /// Passes an event on.
    pub fn event(&self, event: &Event) {
        self.0.event(event);
    }

    /// Tells of a step, and those who follow the spans, too.
    pub(crate) fn snapshot(&self, step: SnapshotStep) {
        tracing::debug!(
            target: "transload",
            key = %step.key,
            digest = step.digest.as_deref(),
            place = step.target.as_ref().map(|target| tracing::field::display(target.display())),
            attempts = step.attempts,
            duration_us = step.duration.as_micros() as u64,
            "{}", step.step.name(),
        );
        self.event(&Event::Snapshot(step));
    }
}

impl Progress for Listener {
    fn event(&self, event: &Event) {
        self.0.event(event);
    }
}

impl Default for Listener {
    fn default() -> Self {
        Listener::new(Silent)
    }
}

impl fmt::Debug for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Listener")
    }
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

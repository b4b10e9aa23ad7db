//! What passes by during one import, counted: notices, claims and waits always; with `--audit` every claim, write,
//! extraction and snapshot, as the proof that nothing was done twice.

use super::report::{AuditReport, BlobAudit, ClaimTotals, SnapshotAudit, TreeAudit};
use super::verdict::{Act, Record, What, judge};
use crate::progress::{Event, Progress};
use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

/// Counts what passes by and hands it on.
pub(crate) struct Audit<'a> {
    next: &'a dyn Progress,
    records: Option<Mutex<Vec<Record>>>,
    notices: Mutex<Vec<String>>,
    tally: Tally,
}

#[derive(Default)]
struct Tally {
    blobs_claimed: AtomicU64,
    trees_claimed: AtomicU64,
    waits: AtomicU64,
    takeovers: AtomicU64,
    moved_bytes: AtomicU64,
}

/// A disk writes less than this between two looks; below it there is nothing to win.
const WORTH_WRITING_BYTES: u64 = 4 << 20;

/// More notices than this are of no use to anyone.
const MAX_NOTICES: usize = 1000;

/// What an event says about making things, for an audit. `None` for those that say nothing about it.
///
/// ```
/// use transload::progress::Event;
/// use transload::transfer::{audited, verdict::{Act, What}};
/// let digest = transload::Digest::of(b"");
/// assert_eq!(audited(&Event::BlobClaimed(digest)), Some(Act::Claimed(What::Blob, digest.to_string())));
/// assert_eq!(audited(&Event::Notice("a device was left out".into())), None);
/// ```
pub fn audited(event: &Event) -> Option<Act> {
    Some(match event {
        Event::ImportStarted { .. } => Act::Started,
        Event::ImportFailed(_) => Act::Ended { ok: false },
        // After a failure, too; the failure counts.
        Event::ImportFinished => Act::Ended { ok: true },
        Event::LayerPlanned { digest: Some(digest), .. } => Act::Planned(What::Blob, digest.to_string()),
        Event::BlobClaimed(digest) => Act::Claimed(What::Blob, digest.to_string()),
        Event::BlobWritten { digest, .. } => Act::Made(What::Blob, digest.to_string()),
        Event::TreeClaimed(diff_id) => Act::Claimed(What::Tree, diff_id.to_string()),
        Event::TreeExtracted { diff_id, .. } => Act::Made(What::Tree, diff_id.to_string()),
        Event::SnapshotCommitted(chain_id) => Act::Made(What::Snapshot, chain_id.to_string()),
        _ => return None,
    })
}

impl<'a> Audit<'a> {
    pub(crate) fn new(next: &'a dyn Progress, prove: bool) -> Self {
        let records = prove.then(Mutex::default);
        Audit { next, records, notices: Mutex::default(), tally: Tally::default() }
    }

    /// The notices so far, in order.
    pub(crate) fn take_notices(&self) -> Vec<String> {
        std::mem::take(&mut *lock(&self.notices))
    }

    /// The claims and waits so far.
    pub(crate) fn claims(&self) -> ClaimTotals {
        let Tally { blobs_claimed, trees_claimed, waits, takeovers, moved_bytes: _ } = &self.tally;
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        ClaimTotals {
            blobs: get(blobs_claimed),
            trees: get(trees_claimed),
            waits: get(waits),
            takeovers: get(takeovers),
        }
    }

    /// The counts and the verdict of an import that went well, if they were asked for.
    pub(crate) fn report(&self) -> Option<AuditReport> {
        let mut records = lock(self.records.as_ref()?).clone();
        let end = record(records.len(), Act::Ended { ok: true });
        records.push(end);
        let mut blobs: BTreeMap<String, BlobAudit> = BTreeMap::new();
        let mut trees: BTreeMap<String, TreeAudit> = BTreeMap::new();
        let mut snapshots: BTreeMap<String, SnapshotAudit> = BTreeMap::new();
        for record in &records {
            match &record.act {
                Act::Claimed(What::Blob, key) => blobs.entry(key.clone()).or_default().claimed += 1,
                Act::Made(What::Blob, key) => blobs.entry(key.clone()).or_default().written += 1,
                Act::Claimed(What::Tree, key) => trees.entry(key.clone()).or_default().claimed += 1,
                Act::Made(What::Tree, key) => trees.entry(key.clone()).or_default().extracted += 1,
                Act::Made(What::Snapshot, key) => snapshots.entry(key.clone()).or_default().prepared += 1,
                _ => {}
            }
        }
        let verdict = judge(&records);
        let step = verdict.step.map_or("once", super::verdict::Step::name);
        Some(AuditReport {
            blobs,
            trees,
            snapshots,
            once: verdict.once,
            verdict: step,
            findings: verdict.findings,
        })
    }

    /// Whether enough has gone through the lanes since the last time to be worth sending to the disk.
    pub(crate) fn has_moved(&self) -> bool {
        let moved = self.tally.moved_bytes.load(Ordering::Relaxed) >= WORTH_WRITING_BYTES;
        if moved {
            self.tally.moved_bytes.store(0, Ordering::Relaxed);
        }
        moved
    }

    fn prove(&self, event: &Event) {
        let Some(records) = &self.records else { return };
        let Some(act) = audited(event) else { return };
        let mut records = lock(records);
        let record = record(records.len(), act);
        records.push(record);
    }

    fn count(&self, event: &Event) {
        let (counter, amount) = match event {
            Event::BlobAdvanced { bytes, .. } => (&self.tally.moved_bytes, *bytes),
            Event::BlobClaimed(_) => (&self.tally.blobs_claimed, 1),
            Event::TreeClaimed(_) => (&self.tally.trees_claimed, 1),
            Event::Waited { .. } => (&self.tally.waits, 1),
            Event::Overtaken { .. } => (&self.tally.takeovers, 1),
            _ => return,
        };
        counter.fetch_add(amount, Ordering::Relaxed);
    }

    fn keep_notice(&self, event: &Event) {
        let Event::Notice(text) = event else { return };
        let mut notices = lock(&self.notices);
        if notices.len() < MAX_NOTICES {
            notices.push(text.clone());
        }
    }
}

impl Progress for Audit<'_> {
    fn event(&self, event: &Event) {
        self.count(event);
        self.prove(event);
        self.keep_notice(event);
        self.next.event(event);
    }
}

/// Within one import the order is clock enough, and there is one store and one process.
fn record(at: usize, act: Act) -> Record {
    let [store, process, import] = ["store", "process", "import"].map(str::to_string);
    Record { at_us: at as u64, store, process, import, act }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

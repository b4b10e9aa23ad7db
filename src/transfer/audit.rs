//! The proof, by instrumentation, that nothing is done twice: counts of claims, writes and extractions by digest.

use super::report::{AuditReport, BlobAudit, TreeAudit};
use crate::progress::{Event, Progress};
use std::collections::BTreeMap;
use std::sync::Mutex;

/// Counts what passes by and hands it on.
pub(crate) struct Audit<'a> {
    next: &'a dyn Progress,
    counts: Option<Mutex<Counts>>,
    notices: Mutex<Vec<String>>,
}

#[derive(Default)]
struct Counts {
    blobs: BTreeMap<String, BlobAudit>,
    trees: BTreeMap<String, TreeAudit>,
}

/// More notices than this are of no use to anyone.
const MAX_NOTICES: usize = 1000;

impl<'a> Audit<'a> {
    pub(crate) fn new(next: &'a dyn Progress, count: bool) -> Self {
        Audit { next, counts: count.then(Mutex::default), notices: Mutex::default() }
    }

    /// The notices so far, in order.
    pub(crate) fn take_notices(&self) -> Vec<String> {
        std::mem::take(&mut *lock(&self.notices))
    }

    /// The verdict, if counting was asked for.
    pub(crate) fn report(&self) -> Option<AuditReport> {
        let counts = lock(self.counts.as_ref()?);
        let blobs_once = counts.blobs.values().all(|blob| blob.written <= 1 && blob.claimed <= 1);
        let trees_once = counts.trees.values().all(|tree| tree.extracted <= 1 && tree.claimed <= 1);
        Some(AuditReport {
            blobs: counts.blobs.clone(),
            trees: counts.trees.clone(),
            once: blobs_once && trees_once,
        })
    }

    fn count(&self, event: &Event) {
        let Some(counts) = &self.counts else { return };
        let mut counts = lock(counts);
        match event {
            Event::BlobClaimed(digest) => counts.blobs.entry(digest.to_string()).or_default().claimed += 1,
            Event::BlobWritten { digest, .. } => {
                counts.blobs.entry(digest.to_string()).or_default().written += 1
            }
            Event::TreeClaimed(diff_id) => counts.trees.entry(diff_id.to_string()).or_default().claimed += 1,
            Event::TreeExtracted { diff_id, .. } => {
                counts.trees.entry(diff_id.to_string()).or_default().extracted += 1;
            }
            _ => {}
        }
    }
}

impl Progress for Audit<'_> {
    fn event(&self, event: &Event) {
        self.count(event);
        if let Event::Notice(text) = event {
            let mut notices = lock(&self.notices);
            if notices.len() < MAX_NOTICES {
                notices.push(text.clone());
            }
        }
        self.next.event(event);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

//! What every part of one import works with.

use super::audit::Audit;
use super::claims::{BlobClaim, Claimed, Claims, WaitEnd};
use super::layer_job::StageClock;
use super::options::ImportOptions;
use crate::content::{BlobIngest, Committed};
use crate::error::{Error, ErrorKind, Result};
use crate::layer::{ApplyOptions, Confinement};
use crate::metadata::{BlobRow, Resource};
use crate::oci::{DiffId, Digest};
use crate::parallel::{Budget, Cancel, Pool};
use crate::progress::{Event, Progress};
use crate::store::{Lease, Store};
use crate::trace;
use std::sync::Mutex;

/// One import in progress.
pub(crate) struct Context<'a> {
    pub(crate) store: &'a Store,
    pub(crate) claims: &'a Claims,
    pub(crate) options: &'a ImportOptions,
    pub(crate) audit: &'a Audit<'a>,
    pub(crate) cancel: &'a Cancel,
    pub(crate) budget: &'a Budget,
    pub(crate) pool: &'a Pool,
    pub(crate) threads: usize,
    pub(crate) lease: Lease<'a>,
    pub(crate) apply: ApplyOptions,
    /// What the lanes are confined to.
    pub(crate) confinement: Confinement,
    pub(crate) clock: StageClock,
    /// What this import wrote or relies on; synced and marked at the end.
    pub(crate) touched: Mutex<Vec<Resource>>,
}

impl Context<'_> {
    pub(crate) fn event(&self, event: Event) {
        self.audit.event(&event);
    }

    pub(crate) fn notice(&self, text: impl Into<String>) {
        self.event(Event::Notice(text.into()));
    }

    /// Puts resources on the lease. What is not on it yet may be collected at any moment, so this comes before looking.
    pub(crate) fn hold(&self, resources: Vec<Resource>) -> Result<()> {
        self.lease.add(&resources)?;
        self.touched.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).extend(resources);
        Ok(())
    }

    /// Whether a blob is there and can be trusted. One that lies there without a trusted record (a crash between the
    /// two, or an unsynced write before a power cut) counts as absent.
    pub(crate) fn has_blob(&self, digest: &Digest, size_bytes: Option<u64>) -> Result<bool> {
        let Some(row) = self.store.metadata().blob_get(digest)? else { return Ok(false) };
        let wrong_size = size_bytes.is_some_and(|size| size != row.size_bytes);
        Ok(!wrong_size && self.store.content().stat(digest)? == Some(row.size_bytes))
    }

    /// Whether a tree is there and can be trusted.
    pub(crate) fn has_tree(&self, diff_id: &DiffId) -> Result<bool> {
        Ok(self.store.metadata().tree_get(diff_id)?.is_some() && self.store.trees().stat(diff_id)?.is_some())
    }

    /// Publishes and records what was written, unless it is there and can be trusted. What lies there without a record of its own
    /// was never finished, or was not synced before a power cut, and is replaced.
    pub(crate) fn publish_blob(
        &self,
        ingest: &BlobIngest,
        expected: Option<&Digest>,
        head: Digest,
    ) -> Result<Committed> {
        let digest = ingest.seal(expected, self.options.sync)?;
        let content = self.store.content();
        let size_bytes = ingest.status().offset;
        let row = BlobRow { digest, size_bytes, head: Some(head), durable: false };
        let is_there = || Ok(content.stat(&digest)? == Some(size_bytes));
        let name = || ingest.take_name(content, &digest);
        if !self.store.metadata().blob_publish(&row, is_there, name)? {
            return Ok(Committed::Existing(digest, size_bytes));
        }
        self.event(Event::BlobWritten { digest, size_bytes });
        Ok(Committed::New(digest, size_bytes))
    }

    /// Forgets a blob that was lost, where this import keeps none: then nobody misses it any more.
    pub(crate) fn forget_unwanted(&self, digest: &Digest) -> Result<()> {
        let metadata = self.store.metadata();
        match metadata.blob_get(digest)? {
            Some(_) => metadata.blob_forget_lost(digest, || Ok(self.store.content().stat(digest)?.is_none())),
            None => Ok(()),
        }
    }

    /// Writes a manifest, an index or a configuration, unless it is there or another import is at it.
    ///
    /// It is stored under the digest that others know it by, which need not be a SHA-256.
    pub(crate) fn put_document(&self, digest: Digest, bytes: &[u8]) -> Result<Committed> {
        let size_bytes = bytes.len() as u64;
        self.hold(vec![Resource::Blob(digest)])?;
        loop {
            if self.has_blob(&digest, Some(size_bytes))? {
                return Ok(Committed::Existing(digest, size_bytes));
            }
            let span =
                trace::stage!("claim", kind = "blob", digest = trace::display(digest), role, waited_us);
            let claimed = trace::within(span, |span| {
                let claimed = self.claims.blob(self.store, &digest)?;
                let mine = matches!(claimed, Claimed::Mine(_));
                span.record("role", if mine { "owner" } else { "follower" });
                Ok(claimed)
            })?;
            match claimed {
                Claimed::Mine(claim) => return self.write_document(bytes, &digest, claim),
                Claimed::Taken(other) => {
                    let patience = self.options.patience;
                    if other.join(self.store, self.cancel, patience)? == WaitEnd::Stalled {
                        let message =
                            format!("another import has been writing {digest} for more than {patience:?}");
                        return Err(Error::new(ErrorKind::Busy, message));
                    }
                }
            }
        }
    }

    fn write_document(&self, bytes: &[u8], digest: &Digest, claim: BlobClaim) -> Result<Committed> {
        let (shown, size) = (trace::display(digest), bytes.len());
        let span = trace::stage!(
            "ingest",
            kind = "document",
            digest = shown,
            bytes = size,
            existing,
            codec = "none",
            read_us,
            write_us
        );
        trace::within(span, |span| {
            let committed = self.write_claimed(bytes, digest, claim)?;
            span.record("existing", matches!(committed, Committed::Existing(..)));
            Ok(committed)
        })
    }

    fn write_claimed(&self, bytes: &[u8], digest: &Digest, claim: BlobClaim) -> Result<Committed> {
        let BlobClaim { mut ingest, guard } = claim;
        // Someone may have finished between the look and the claim.
        if self.has_blob(digest, Some(bytes.len() as u64))? {
            drop(ingest);
            guard.finish();
            return Ok(Committed::Existing(*digest, bytes.len() as u64));
        }
        self.event(Event::BlobClaimed(*digest));
        self.apply.headroom.spend(bytes.len() as u64)?;
        ingest.write(bytes)?;
        let committed = self.publish_blob(&ingest, Some(digest), ingest.head())?;
        drop(ingest);
        guard.finish();
        Ok(committed)
    }
}

//! The contents: every blob read once, and with it the layer that it unpacks to.

use super::layer_pass::{PassMeans, Passed, pass};
use super::quarantine::{self, label_of_blob};
use super::report::{FsckProblem, ProblemKind, ProblemState};
use super::{Check, trees};
use crate::content::IngestRef;
use crate::error::{ErrorKind, Result};
use crate::io::{durable, locked::LockedDir};
use crate::metadata::{BlobRow, Labelled, Resource};
use crate::oci::{DiffId, Digest};
use crate::progress::{Event, Outcome, Stage};
use rayon::prelude::*;
use std::collections::BTreeSet;

/// One piece of work for the pool.
enum Job {
    /// A blob that no tree was made of.
    Blob(Digest),
    /// A tree beside its blob.
    Layer(DiffId, Digest),
    /// A tree without one.
    Tree(DiffId),
}

/// What brings back what is gone.
pub(super) const IMPORT_AGAIN: &str = "transload import the archive of these images again";

impl Check<'_> {
    /// Every blob and every tree, many at once, the largest first.
    pub(super) fn contents(&self) -> Result<()> {
        self.lost_blobs()?;
        let jobs = self.jobs()?;
        let size_bytes = self.facts.blobs_on_disk.values().sum();
        self.event(Event::CheckStarted { blobs: self.facts.blobs_on_disk.len() as u64, size_bytes });
        self.means.pool.install(|| {
            jobs.par_iter().with_max_len(1).try_for_each(|job| {
                self.means.cancel.check()?;
                match job {
                    Job::Blob(digest) => self.blob(digest),
                    Job::Layer(diff_id, digest) => trees::layer(self, diff_id, digest),
                    Job::Tree(diff_id) => trees::alone(self, diff_id, "its blob is not here"),
                }
            })
        })
    }

    fn jobs(&self) -> Result<Vec<Job>> {
        let mut jobs = Vec::new();
        let mut with_tree = BTreeSet::new();
        for diff_id in self.trees_to_check()? {
            match self.facts.blob_of(&diff_id).filter(|_| !self.options.quick) {
                Some(digest) => {
                    with_tree.insert(digest);
                    jobs.push(Job::Layer(diff_id, digest));
                }
                None => jobs.push(Job::Tree(diff_id)),
            }
        }
        let plain = self.facts.blobs_on_disk.keys().filter(|digest| !with_tree.contains(*digest));
        jobs.extend(plain.copied().map(Job::Blob));
        let size = |job: &Job| match job {
            Job::Blob(digest) | Job::Layer(_, digest) => self.facts.blobs_on_disk.get(digest).copied(),
            Job::Tree(_) => None,
        };
        jobs.sort_by_key(|job| std::cmp::Reverse(size(job)));
        Ok(jobs)
    }

    pub(super) fn event(&self, event: Event) {
        self.means.progress.event(&event);
    }

    /// Rows whose blobs are not there.
    fn lost_blobs(&self) -> Result<()> {
        let rows =
            self.facts.blob_rows.keys().filter(|digest| !self.facts.blobs_on_disk.contains_key(*digest));
        for digest in rows {
            if self.store.content().stat(digest)?.is_some() {
                continue;
            }
            match self.store.metadata().blob_get(digest)? {
                Some(_) => self.missing_blob(digest)?,
                None if self.is_forgotten(digest)? => {}
                None => self.findings.leftover(
                    format!("blob {digest}"),
                    "it was not synced before the system went down, and is not there",
                    "nothing: an import of it makes it good",
                ),
            }
        }
        Ok(())
    }

    fn is_forgotten(&self, digest: &Digest) -> Result<bool> {
        Ok(!self.store.metadata().blobs()?.iter().any(|row| row.digest == *digest))
    }

    /// Its row stays, so that every check tells of it until an import has brought it back, or one that keeps no blobs has
    /// forgotten it. What nobody needs goes with the next collection, which knows of graces and leases.
    fn missing_blob(&self, digest: &Digest) -> Result<()> {
        let message = match quarantine::blobs(self.store)?.get(digest) {
            Some(place) => format!("it was damaged, and an earlier check put it away as {place}"),
            None => "it is recorded and not there".to_string(),
        };
        match self.facts.users_of_blob(digest).is_empty() {
            true => self.findings.leftover(format!("blob {digest}"), message, "transload gc"),
            false => {
                self.blob_problem(ProblemKind::BlobMissing, digest, message, ProblemState::NeedsImport);
            }
        }
        Ok(())
    }

    pub(super) fn blob_problem(
        &self,
        kind: ProblemKind,
        digest: &Digest,
        message: impl Into<String>,
        state: ProblemState,
    ) {
        let images = self.facts.users_of_blob(digest);
        self.problem(kind, format!("blob {digest}"), message.into(), images, state);
    }

    pub(super) fn problem(
        &self,
        kind: ProblemKind,
        what: String,
        message: String,
        images: Vec<String>,
        state: ProblemState,
    ) {
        let mend = match state {
            ProblemState::Found => "transload fsck --repair",
            ProblemState::Repaired => "",
            ProblemState::NeedsImport => IMPORT_AGAIN,
            ProblemState::Remains => "see the message",
        };
        self.problem_mended_by(FsckProblem { kind, what, message, images, state, mend: mend.to_string() });
    }

    /// A problem that not the usual thing mends.
    pub(super) fn problem_mended_by(&self, problem: FsckProblem) {
        self.event(Event::Notice(format!("{}: {}", problem.what, problem.message)));
        self.findings.problem(problem);
    }

    fn blob(&self, digest: &Digest) -> Result<()> {
        if self.options.quick {
            let size = self.facts.blobs_on_disk.get(digest).copied().unwrap_or(0);
            self.count_blob(size);
            return self.size(digest, size);
        }
        match self.read(digest, None)? {
            Some(passed) => {
                self.count_blob(passed.size_bytes);
                self.judge(digest, &passed).map(drop)
            }
            None => Ok(()),
        }
    }

    /// Reads a blob. `None` if it is gone or cannot be read, which is then told.
    pub(super) fn read(
        &self,
        digest: &Digest,
        unpack: Option<super::layer_pass::Into<'_>>,
    ) -> Result<Option<Passed>> {
        let blob = match self.store.content().open_blob(digest) {
            Ok(blob) => blob,
            Err(error) if error.kind() == ErrorKind::NotFound => {
                if self.store.metadata().blob_get(digest)?.is_some() {
                    self.missing_blob(digest)?;
                }
                return Ok(None);
            }
            Err(error) => {
                self.unreadable(digest, &error)?;
                return Ok(None);
            }
        };
        let key = digest.to_string();
        self.event(Event::BlobStarted { key: key.clone(), size_bytes: blob.size_bytes(), layer: true });
        self.event(Event::BlobStage { key: key.clone(), stage: Stage::Verifying });
        let advanced = |bytes| self.event(Event::BlobAdvanced { key: digest.to_string(), bytes });
        let means = PassMeans { budget: self.means.budget, cancel: self.means.cancel, advanced: &advanced };
        let passed = pass(blob, digest.algorithm(), unpack, &means);
        self.event(Event::BlobFinished { key, outcome: Outcome::Existing });
        match passed {
            Ok(passed) => Ok(Some(passed)),
            Err(error) if error.kind() == ErrorKind::Io || is_about_the_blob(&error) => {
                self.unreadable(digest, &error)?;
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// To move it away it need not be read. It is kept where the fault is this machine's and not the blob's.
    fn unreadable(&self, digest: &Digest, error: &crate::Error) -> Result<()> {
        let message = format!("it cannot be read: {error}");
        let state = match (is_about_the_blob(error), self.options.repair) {
            (false, _) => ProblemState::Remains,
            (true, false) => ProblemState::Found,
            (true, true) => self.put_away(digest)?,
        };
        self.blob_problem(ProblemKind::BlobUnreadable, digest, message, state);
        Ok(())
    }

    pub(super) fn count_blob(&self, size_bytes: u64) {
        self.findings.count(|checked| {
            checked.blobs += 1;
            checked.blob_bytes += size_bytes;
        });
    }

    /// Whether the blob is what its name says.
    pub(super) fn judge(&self, digest: &Digest, passed: &Passed) -> Result<bool> {
        if passed.digest == *digest {
            self.size(digest, passed.size_bytes)?;
            return Ok(true);
        }
        let counts = self.store.metadata().blob_get(digest)?.is_some();
        if !counts && self.facts.users_of_blob(digest).is_empty() {
            self.findings.leftover(
                format!("blob {digest}"),
                "it was never finished: it is not recorded, and its bytes have another digest",
                "transload gc",
            );
            return Ok(false);
        }
        let state = match self.options.repair {
            false => ProblemState::Found,
            true => self.put_away(digest)?,
        };
        let message = match state {
            ProblemState::Remains => {
                format!("its bytes have the digest {}, and an import is at it", passed.digest)
            }
            _ => format!("its bytes have the digest {}", passed.digest),
        };
        self.blob_problem(ProblemKind::BlobDigest, digest, message, state);
        Ok(false)
    }

    /// Moves a bad blob to the quarantine, so that an import writes it again. Its row stays as long as an image needs it.
    fn put_away(&self, digest: &Digest) -> Result<ProblemState> {
        let ingests = self.store.content().ingests();
        let Some(place) = LockedDir::try_acquire(ingests, IngestRef::blob(digest).name())? else {
            return Ok(ProblemState::Remains);
        };
        let directory = format!("blobs/{}", digest.algorithm().name());
        let directory = durable::open_dir(self.store.root(), "blobs")
            .and_then(|blobs| durable::open_dir(blobs, digest.algorithm().name()))
            .map_err(|error| error.context(format!("cannot open {directory}")))?;
        self.quarantine.take(self.store, &directory, &digest.hex(), &label_of_blob(digest))?;
        let needed = !self.facts.users_of_blob(digest).is_empty();
        if !needed {
            self.store.metadata().blob_remove(&[*digest])?;
        }
        // Empty; a leftover would be swept by gc.
        let _ = place.remove();
        Ok(if needed { ProblemState::NeedsImport } else { ProblemState::Repaired })
    }

    /// Holds the size of sound bytes against the row.
    fn size(&self, digest: &Digest, size_bytes: u64) -> Result<()> {
        let Some(row) = self.store.metadata().blob_get(digest)? else {
            return self.unrecorded(digest, size_bytes);
        };
        self.sound.trusted(Resource::Blob(*digest));
        if row.size_bytes == size_bytes {
            return Ok(());
        }
        let message = format!("it has {size_bytes} bytes, {} are recorded", row.size_bytes);
        // Unread bytes prove nothing, so a quick check mends nothing here.
        let state = match self.options.repair && !self.options.quick {
            false => ProblemState::Found,
            true => {
                self.record_size(row, size_bytes)?;
                ProblemState::Repaired
            }
        };
        self.blob_problem(ProblemKind::BlobSize, digest, message, state);
        Ok(())
    }

    fn record_size(&self, row: BlobRow, size_bytes: u64) -> Result<()> {
        let metadata = self.store.metadata();
        let (labels, layer) =
            (metadata.labels(Labelled::Blob(&row.digest))?, metadata.layer_get(&row.digest)?);
        metadata.blob_remove(&[row.digest])?;
        metadata.blob_put(&[BlobRow { size_bytes, ..row.clone() }])?;
        if let Some(layer) = layer {
            metadata.layer_put(&layer.digest, &layer.diff_id, &layer.codec, layer.uncompressed_bytes)?;
        }
        match labels.is_empty() {
            true => Ok(()),
            false => metadata.labels_set(Labelled::Blob(&row.digest), &labels),
        }
    }

    /// A sound blob that no trusted row knows. Nobody relies on it; whoever is about to record it holds it.
    fn unrecorded(&self, digest: &Digest, size_bytes: u64) -> Result<()> {
        if self.facts.is_held(Resource::Blob(*digest)) || self.store.metadata().blob_get(digest)?.is_some() {
            return Ok(());
        }
        let known = self.facts.blob_rows.get(digest);
        let needed = !self.facts.users_of_blob(digest).is_empty();
        if needed && self.options.repair && !self.options.quick {
            let head = known.and_then(|row| row.head);
            self.sound.blob(BlobRow { digest: *digest, size_bytes, head, durable: true });
            return Ok(());
        }
        let message = match (known.is_some(), needed) {
            (true, _) => "it was not synced before the system went down",
            (false, true) => "it is not recorded, though an image names it",
            (false, false) => "it is not recorded",
        };
        let mend = if needed { "transload fsck --repair" } else { "transload gc" };
        self.findings.leftover(format!("blob {digest}"), message, mend);
        Ok(())
    }
}

/// Whether the medium has lost it, or something else is in its place.
fn is_about_the_blob(error: &crate::Error) -> bool {
    use std::error::Error;
    let mut cause: Option<&(dyn Error + 'static)> = Some(error);
    while let Some(one) = cause {
        if let Some(errno) = one.downcast_ref::<std::io::Error>().and_then(std::io::Error::raw_os_error) {
            let of_blob = [libc::EIO, libc::EISDIR, libc::ELOOP, libc::ENXIO, libc::EBADMSG, libc::EUCLEAN];
            return of_blob.contains(&errno);
        }
        cause = one.source();
    }
    false
}

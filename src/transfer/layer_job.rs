//! One layer through all its stages: read, hash, write, inflate, hash, extract, each byte touched once.
//!
//! The job computes and touches only its own working places. What becomes of the results, that is publishing under a
//! computed name and recording, is the business of [`super::publish`].

use super::intake::{Cap, Intake, Sink};
use super::stages::{Unpacked, Upstream, ahead, inflate_span, micros, side_by_side};
use crate::error::{Error, Result};
use crate::io::codec::{Codec, decoder};
use crate::io::digesting::Digester;
use crate::layer::{Applied, ApplyOptions, apply};
use crate::oci::{DiffId, Digest};
use crate::parallel::{Budget, Cancel};
use crate::snapshot::TreeIngest;
use crate::trace;
use std::io::{self, Read};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tracing::Span;

/// How far a layer is unpacked.
pub(crate) enum Unpack<'s> {
    /// Not at all.
    No,
    /// Inflated and hashed, because the tree is there and its DiffID needs proof.
    Verify,
    /// Extracted.
    Extract(TreeIngest<'s>),
}

/// A layer to be worked on.
pub(crate) struct LayerJob<'a> {
    /// The compressed bytes, from wherever they come.
    pub(crate) source: Box<dyn Read + Send + 'a>,
    /// The announced size in bytes.
    pub(crate) size_bytes: Option<u64>,
    /// What happens to the compressed bytes.
    pub(crate) sink: Sink,
    /// What happens to the uncompressed ones.
    pub(crate) unpack: Unpack<'a>,
    /// Whether nobody has said yet that this is a layer at all, so that one that does not unpack is no error.
    pub(crate) speculative: bool,
    /// Whether the stages of this layer run on threads of their own.
    pub(crate) side_by_side: bool,
}

/// What a job works with.
pub(crate) struct LayerWork<'a> {
    pub(crate) apply: &'a ApplyOptions,
    pub(crate) budget: &'a Budget,
    pub(crate) cancel: &'a Cancel,
    pub(crate) advanced: &'a (dyn Fn(u64) + Sync),
    pub(crate) clock: &'a StageClock,
}

/// A layer's uncompressed stream, once it has passed.
pub(crate) struct Unpacking<'s> {
    pub(crate) diff_id: DiffId,
    pub(crate) bytes: u64,
    pub(crate) tree: Option<(TreeIngest<'s>, Applied)>,
}

/// What a job gives.
pub(crate) struct LayerDone<'s> {
    pub(crate) digest: Digest,
    pub(crate) size_bytes: u64,
    pub(crate) head: Digest,
    pub(crate) codec: Codec,
    pub(crate) sink: Sink,
    /// `None` where unpacking was not asked for; an error where it failed and the job was speculative.
    pub(crate) unpacking: Option<Result<Unpacking<'s>>>,
}

/// Time by stage, summed over threads, in microseconds.
#[derive(Default)]
pub(crate) struct StageClock {
    read: AtomicU64,
    hash: AtomicU64,
    inflate: AtomicU64,
    apply: AtomicU64,
    wait: AtomicU64,
}

impl StageClock {
    fn add(counter: &AtomicU64, time: Duration) {
        counter.fetch_add(time.as_micros() as u64, Ordering::Relaxed);
    }

    pub(crate) fn waited(&self, time: Duration) {
        Self::add(&self.wait, time);
    }

    /// The sums in milliseconds.
    pub(crate) fn report(&self) -> super::report::StageTimes {
        let ms = |counter: &AtomicU64| counter.load(Ordering::Relaxed) / 1000;
        super::report::StageTimes {
            read: ms(&self.read),
            hash: ms(&self.hash),
            inflate: ms(&self.inflate),
            apply: ms(&self.apply),
            wait: ms(&self.wait),
            sync: 0,
        }
    }
}

/// Runs one layer through its stages.
pub(crate) fn run<'s>(job: LayerJob<'s>, work: &LayerWork<'_>) -> Result<LayerDone<'s>> {
    let headroom = &work.apply.headroom;
    let mut intake = Intake::new(job.source, job.sink, job.size_bytes, headroom, work.cancel, work.advanced);
    let codec = Codec::sniff(intake.peek()?);
    intake.cap(cap(codec, work.apply.limits.layer_bytes))?;
    let unpacking = match job.unpack {
        Unpack::No => None,
        unpack => match unpack_layer(&mut intake, codec, unpack, job.side_by_side, work) {
            Err(error) if !job.speculative || !error.kind().is_input() => return Err(error),
            outcome => Some(outcome),
        },
    };
    intake.drain()?;
    StageClock::add(&work.clock.read, intake.read_time);
    StageClock::add(&work.clock.hash, intake.sink_time);
    Span::current().record("read_us", micros(intake.read_time)).record("write_us", micros(intake.sink_time));
    let size_bytes = intake.bytes_read();
    let (digest, head) = match &intake.sink {
        Sink::Write(ingest) => (ingest.digest(), ingest.head()),
        Sink::Hash(digester, head) => {
            let digest = digester.clone().finish();
            (digest, head.unwrap_or(digest))
        }
    };
    // A layer that was never compressed has one digest, and it has been computed once.
    let plain = |unpacking: PartUnpacked<'s>| Unpacking {
        diff_id: unpacking.diff_id.unwrap_or(DiffId(digest)),
        bytes: unpacking.bytes.unwrap_or(size_bytes),
        tree: unpacking.tree,
    };
    let unpacking = unpacking.map(|outcome| outcome.map(plain));
    Ok(LayerDone { digest, size_bytes, head, codec, sink: intake.sink, unpacking })
}

/// An unpacking whose DiffID may be that of the blob.
struct PartUnpacked<'s> {
    diff_id: Option<DiffId>,
    bytes: Option<u64>,
    tree: Option<(TreeIngest<'s>, Applied)>,
}

fn unpack_layer<'s>(
    intake: &mut Intake<'_>,
    codec: Codec,
    unpack: Unpack<'s>,
    side: bool,
    work: &LayerWork<'_>,
) -> Result<PartUnpacked<'s>> {
    let sha256 = match &intake.sink {
        Sink::Write(ingest) => ingest.is_sha256(),
        Sink::Hash(digester, _) => matches!(digester, Digester::Sha256(_)),
    };
    if codec == Codec::None && sha256 {
        let tree = match side {
            false => extract(intake, unpack, work, side)?,
            true => ahead(&mut *intake, |piped| extract(piped, unpack, work, side))?,
        };
        return Ok(PartUnpacked { diff_id: None, bytes: None, tree });
    }
    let most = work.apply.limits.layer_bytes;
    if side {
        let done = ahead(&mut *intake, |compressed| {
            let stream = Capped::new(decoder(codec, compressed, work.budget, work.cancel)?, most);
            side_by_side(stream, codec, |piped| extract(piped, unpack, work, side))
        })?;
        StageClock::add(&work.clock.inflate, done.inflate_time);
        StageClock::add(&work.clock.hash, done.hash_time);
        return Ok(PartUnpacked {
            diff_id: Some(DiffId(done.digest)),
            bytes: Some(done.bytes),
            tree: done.value,
        });
    }
    trace::within(inflate_span(codec), |span| inflate(intake, codec, unpack, work, span))
}

/// Inflates, hashes and extracts on one thread.
fn inflate<'s>(
    intake: &mut Intake<'_>,
    codec: Codec,
    unpack: Unpack<'s>,
    work: &LayerWork<'_>,
    span: &Span,
) -> Result<PartUnpacked<'s>> {
    let before = intake.busy();
    let stream = decoder(codec, &mut *intake, work.budget, work.cancel)?;
    let mut stream = Unpacked::new(Capped::new(stream, work.apply.limits.layer_bytes));
    let tree = extract(&mut stream, unpack, work, false)?;
    stream.drain()?;
    let (hash_time, with_intake) = (stream.hash_time, stream.inflate_time);
    let (digest, bytes) = stream.finish();
    // Reading the compressed bytes happens inside, on this thread, and is counted there.
    let inflate_time = with_intake.saturating_sub(intake.busy() - before);
    StageClock::add(&work.clock.inflate, inflate_time);
    StageClock::add(&work.clock.hash, hash_time);
    span.record("bytes", bytes).record("busy_us", micros(inflate_time)).record("hash_us", micros(hash_time));
    Ok(PartUnpacked { diff_id: Some(DiffId(digest)), bytes: Some(bytes), tree })
}

/// How large the blob of a layer may be that may unpack to so many bytes. What cannot be compressed grows by it, at most by a
/// hundredth (bzip2).
fn cap(codec: Codec, limit_bytes: u64) -> Cap {
    let grown = if codec == Codec::None { 0 } else { limit_bytes / 64 };
    Cap { most_bytes: limit_bytes.saturating_add(grown).saturating_add(END_BYTES), limit_bytes }
}

/// Uncompressed bytes up to a limit. The extraction counts what entries have; this also ends what goes on behind the
/// tar's end, or is only inflated for its digest. What was never compressed is capped as it comes in.
struct Capped<R> {
    inner: R,
    left: u64,
    most: u64,
}

impl<R> Capped<R> {
    fn new(inner: R, most: u64) -> Self {
        // The blocks that end a tar are not counted.
        Capped { inner, left: most.saturating_add(END_BYTES), most }
    }
}

/// What may follow the last entry's data: padding, two zero blocks, and filling up to the 10 KiB that tar writes at once.
const END_BYTES: u64 = 64 << 10;

impl<R: Read> Read for Capped<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.left = self.left.checked_sub(count as u64).ok_or_else(|| {
            Error::over("layer_bytes", format!("the layer unpacks to more than {} bytes", self.most))
                .into_io()
        })?;
        Ok(count)
    }
}

/// Extracts the tree, if one is wanted. What lies after the tar's end is left to the caller.
fn extract<'s>(
    input: &mut impl Upstream,
    unpack: Unpack<'s>,
    work: &LayerWork<'_>,
    side: bool,
) -> Result<Option<(TreeIngest<'s>, Applied)>> {
    let Unpack::Extract(tree) = unpack else { return Ok(None) };
    let options = ApplyOptions { write_beside: side, ..work.apply.clone() };
    trace::within(trace::stage!("apply", entries, bytes, busy_us), |span| {
        let (started, before) = (Instant::now(), input.upstream_time());
        let (applied, _) = apply(&mut *input, tree.fs(), &options, work.cancel, &mut |_| {})?;
        let busy = started.elapsed().saturating_sub(input.upstream_time() - before);
        StageClock::add(&work.clock.apply, busy);
        span.record("entries", applied.record.entries).record("bytes", applied.record.bytes);
        span.record("busy_us", micros(busy));
        Ok(Some((tree, applied)))
    })
}

/// Refuses a layer whose uncompressed stream has another digest than its configuration says.
pub(crate) fn check_diff_id(expected: &DiffId, actual: &DiffId) -> Result<()> {
    if expected == actual {
        return Ok(());
    }
    let message = format!("its content has the DiffID {actual}, its configuration says {expected}");
    Err(Error::new(crate::ErrorKind::DigestMismatch, message).with_mismatch(expected, actual))
}

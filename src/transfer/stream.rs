//! Importing from a stream: one pass, no copy of the archive, layers unpacking before the manifest has been seen.
//!
//! The calling thread reads the archive and feeds members to the lanes through short queues of chunks. Small JSON
//! members are kept until the end, because `manifest.json` and `index.json` may come last. A member whose name carries a
//! digest is claimed when its header arrives: if the store has it, it is passed over; if another import is at it, the
//! stream stops reading until that one is done. A member without a digest that begins like a blob of ours is compared
//! with it as it passes.

use super::claims::{BlobClaim, Claimed, Guard, WaitEnd};
use super::context::Context;
use super::intake::{CHUNK_BYTES, Sink};
use super::layer_job::{LayerJob, LayerWork, Unpack, run};
use super::layers::{Layer, ingest_span, publish, record_ingest};
use super::stages::{micros, read_span};
use crate::archive::{KeptDocuments, MemberKind, MemberName, Stream, StreamMember};
use crate::content::{Blob, HEAD_BYTES};
use crate::error::{Error, ErrorKind, Result, ResultExt};
use crate::io::codec::Codec;
use crate::io::tar::begins_tar;
use crate::metadata::Resource;
use crate::oci::{Algorithm, Digest};
use crate::parallel::{Cancel, Lanes};
use crate::progress::{Event, Outcome, Stage};
use crate::trace;
use crossbeam::channel::{Receiver, Sender, bounded};
use std::collections::HashMap;
use std::io::{self, BufRead, Read};
use std::time::{Duration, Instant};
use tracing::Span;

/// What is known of a stream's members once it has passed.
pub(crate) struct Passed {
    pub(crate) documents: KeptDocuments,
    /// Members that went into the store or were found there.
    pub(crate) layers: HashMap<MemberName, PassedLayer>,
}

/// A member that is not a small document.
pub(crate) struct PassedLayer {
    pub(crate) layer: Layer,
    /// Why it could not be unpacked; an error only if a manifest says that it is a layer.
    pub(crate) unpack_error: Option<Error>,
    /// Another member of the same name had other content.
    pub(crate) contradicted: bool,
}

/// A member on its way through a lane.
struct Job<'s> {
    name: MemberName,
    size_bytes: u64,
    digest: Option<Digest>,
    source: Box<dyn Read + Send>,
    sink: Sink,
    unpack: Unpack<'s>,
    blob_guard: Option<Guard>,
    tree_guard: Option<Guard>,
    stalled: bool,
}

/// How many chunks wait between the stream and a lane.
fn queue_chunks(context: &Context<'_>) -> usize {
    let share = context.budget.total_bytes() / 2 / (context.threads as u64 + 2);
    (share / CHUNK_BYTES as u64).clamp(2, 64) as usize
}

/// Reads the whole stream.
pub(crate) fn read<'s>(context: &Context<'s>, stream: &mut Stream) -> Result<Passed> {
    let cancel = context.cancel.child();
    let work = |job: Job<'s>| bring(context, job, &cancel);
    let feed = |lanes: &Lanes<'_, Job<'s>>| feed(context, stream, lanes, &cancel);
    let start = || context.confinement.enter();
    let (mut passed, brought) = Lanes::scope(context.threads, &cancel, start, work, feed)?;
    for (name, layer) in brought {
        passed.insert(name, layer);
    }
    Ok(passed)
}

impl Passed {
    fn insert(&mut self, name: MemberName, layer: PassedLayer) {
        match self.layers.get_mut(&name) {
            None => {
                self.layers.insert(name, layer);
            }
            // Identical duplicates are harmless (`docker save` has written such); differing ones are two images in one.
            Some(first) => first.contradicted |= first.layer.digest != layer.layer.digest,
        }
    }
}

fn feed<'s>(
    context: &Context<'s>,
    stream: &mut Stream,
    lanes: &Lanes<'_, Job<'s>>,
    cancel: &Cancel,
) -> Result<Passed> {
    let mut passed = Passed { documents: KeptDocuments::default(), layers: HashMap::new() };
    let limits = &context.options.limits;
    let mut kept_bytes = 0;
    let mut told_bytes = 0;
    loop {
        let bytes = stream.bytes_read() - told_bytes;
        told_bytes += bytes;
        context.event(Event::StreamAdvanced { bytes });
        let Some(mut member) = stream.next_member()? else { break };
        cancel.check()?;
        let name = member.name().clone();
        match member.kind() {
            MemberKind::File => {}
            MemberKind::Link(target) => {
                passed.documents.add_link(name, target.clone())?;
                continue;
            }
            MemberKind::Other => continue,
        }
        passed.documents.add_file(name.clone(), member.size_bytes())?;
        if is_document(&mut member, limits.json_bytes)? {
            kept_bytes += member.size_bytes();
            if kept_bytes > limits.json_total_bytes {
                return Err(Error::over(
                    "json_total_bytes",
                    "the archive's manifests and configurations are too large together",
                ));
            }
            let mut bytes = Vec::with_capacity(member.size_bytes() as usize);
            member.read_to_end(&mut bytes).doing(|| format!("cannot read {name}"))?;
            passed.documents.add_document(&name, bytes)?;
            continue;
        }
        if announced_digest(&name).is_none() && !may_be_layer(&mut member)? {
            continue;
        }
        let fed = reading(&mut member, |member| feed_member(context, member, lanes, cancel));
        let fed = fed.doing(|| format!("cannot import {name}"))?;
        if let Some(layer) = fed {
            passed.insert(name, PassedLayer { layer, unpack_error: None, contradicted: false });
        }
    }
    Ok(passed)
}

/// Takes in a member inside its span; one that is passed over is read to its end there, so that the span covers it.
fn reading(
    member: &mut StreamMember<'_>,
    feed: impl FnOnce(&mut StreamMember<'_>) -> Result<Option<Layer>>,
) -> Result<Option<Layer>> {
    let span = read_span();
    span.record("member", trace::display(member.name())).record("bytes", member.size_bytes());
    trace::within(span, |span| {
        let started = Instant::now();
        let fed = feed(member)?;
        if fed.is_some() {
            pass(member)?;
            span.record("busy_us", micros(started.elapsed()));
        }
        Ok(fed)
    })
}

/// Reads a member to its end where it lies: `io::copy` would copy every byte once more.
fn pass(member: &mut StreamMember<'_>) -> Result<()> {
    loop {
        let count = match member.fill_buf() {
            Ok([]) => return Ok(()),
            Ok(chunk) => chunk.len(),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error.into()),
        };
        member.consume(count);
    }
}

/// Whether a member is kept as a document: small, and JSON by its first byte. No layer begins like that: tar members
/// whose name starts with a brace would have to be the first entry of an uncompressed layer smaller than the limit, and
/// a tar has a NUL in its first block.
fn is_document(member: &mut StreamMember<'_>, limit: u64) -> Result<bool> {
    if member.size_bytes() > limit {
        return Ok(false);
    }
    let block = member.peek(BLOCK_BYTES)?;
    let first = block.iter().find(|byte| !byte.is_ascii_whitespace());
    Ok(matches!(first, Some(b'{' | b'[')) && !block.contains(&0))
}

/// The size of a tar's blocks.
const BLOCK_BYTES: usize = 512;

/// Whether a member may be a layer: compressed, a tar, or empty. What else lies in archives (`VERSION` files) is passed
/// over.
fn may_be_layer(member: &mut StreamMember<'_>) -> Result<bool> {
    let block = member.peek(BLOCK_BYTES)?;
    let compressed = Codec::sniff(block) != Codec::None;
    Ok(compressed || block.is_empty() || begins_tar(block))
}

/// The digest that a member's name carries: `blobs/sha256/<hex>`, or `<hex>.tar`, whose uncompressed bytes have the
/// DiffID for a digest (skopeo, podman). A wrong guess costs nothing: computed digests decide.
fn announced_digest(name: &MemberName) -> Option<Digest> {
    let text = std::str::from_utf8(name.as_bytes()).ok()?;
    if let Some((algorithm, hex)) = text.strip_prefix("blobs/").and_then(|rest| rest.split_once('/')) {
        return Digest::from_parts(algorithm, hex).ok();
    }
    Digest::from_parts("sha256", text.strip_suffix(".tar")?).ok()
}

/// Sends a member to a lane. `Some` if it did not have to be.
fn feed_member<'s>(
    context: &Context<'s>,
    member: &mut StreamMember<'_>,
    lanes: &Lanes<'_, Job<'s>>,
    cancel: &Cancel,
) -> Result<Option<Layer>> {
    let announced = announced_digest(member.name());
    let size_bytes = member.size_bytes();
    let base = Layer { digest: announced, size_bytes: Some(size_bytes), ..Layer::default() };
    context.event(Event::BlobStarted { key: member.name().to_string(), size_bytes, layer: true });
    let claim = match announced {
        Some(digest) => match claiming(context, member.name(), &digest, size_bytes)? {
            Found::Here(outcome) => return Ok(Some(pass_over(context, member, base, outcome)?)),
            Found::Owned(claim) => *claim,
        },
        None => match compare(context, member, cancel)? {
            Compared::Same(digest) => {
                finished(context, member.name(), Outcome::Existing);
                let layer = Layer { digest: Some(digest), blob: Some(Outcome::Existing), ..base };
                return Ok(Some(layer));
            }
            Compared::Differs(prefix) => Ownership { prefix: Some(prefix), ..Ownership::default() },
            Compared::Unknown => Ownership::default(),
        },
    };
    dispatch(context, member, announced, claim, lanes, cancel)?;
    Ok(None)
}

fn finished(context: &Context<'_>, name: &MemberName, outcome: Outcome) {
    context.event(Event::BlobFinished { key: name.to_string(), outcome });
}

/// What was claimed for a member.
#[derive(Default)]
struct Ownership {
    blob: Option<BlobClaim>,
    stalled: bool,
    /// Bytes that have passed already and are equal to the beginning of one of our blobs.
    prefix: Option<Prefix>,
}

enum Found {
    Here(Outcome),
    Owned(Box<Ownership>),
}

fn claiming(context: &Context<'_>, name: &MemberName, digest: &Digest, size_bytes: u64) -> Result<Found> {
    let span = trace::stage!("claim", kind = "blob", digest = trace::display(digest), role, waited_us);
    trace::within(span, |span| {
        let started = Instant::now();
        let found = claim(context, name, digest, size_bytes)?;
        let role = match &found {
            Found::Owned(_) => "owner",
            Found::Here(Outcome::Shared) => "follower",
            Found::Here(_) => "existing",
        };
        let waited_us = if role == "follower" { micros(started.elapsed()) } else { 0 };
        span.record("role", role).record("waited_us", waited_us);
        Ok(found)
    })
}

/// Claims a blob, waiting for others who are at it. Our own lanes go on meanwhile: they have all their bytes.
fn claim(context: &Context<'_>, name: &MemberName, digest: &Digest, size_bytes: u64) -> Result<Found> {
    context.hold(vec![Resource::Blob(*digest)])?;
    if context.options.discard_blobs {
        return Ok(Found::Owned(Box::default()));
    }
    let mut outcome = Outcome::Existing;
    loop {
        if context.has_blob(digest, Some(size_bytes))? {
            return Ok(Found::Here(outcome));
        }
        match context.claims.blob(context.store, digest)? {
            Claimed::Mine(claim) => {
                // Someone may have finished between the look and the claim.
                if context.has_blob(digest, Some(size_bytes))? {
                    drop(claim.ingest);
                    claim.guard.finish();
                    return Ok(Found::Here(Outcome::Shared));
                }
                context.event(Event::BlobClaimed(*digest));
                let owned = Ownership { blob: Some(claim), ..Ownership::default() };
                return Ok(Found::Owned(Box::new(owned)));
            }
            Claimed::Taken(other) => {
                context.event(Event::BlobStage { key: name.to_string(), stage: Stage::Waiting });
                let started = Instant::now();
                let end = other.join(context.store, context.cancel, context.options.patience)?;
                let duration = started.elapsed();
                context.clock.waited(duration);
                context.event(Event::Waited { key: digest.to_string(), duration });
                outcome = Outcome::Shared;
                if end == WaitEnd::Stalled {
                    context.event(Event::Overtaken { key: digest.to_string() });
                    context
                        .notice(format!("another import of {digest} showed no progress and was overtaken"));
                    return Ok(Found::Owned(Box::new(Ownership { stalled: true, ..Ownership::default() })));
                }
            }
        }
    }
}

/// A member that the store has under the digest that its name carries. With `--verify-source` it is hashed all the same.
fn pass_over(
    context: &Context<'_>,
    member: &mut StreamMember<'_>,
    base: Layer,
    outcome: Outcome,
) -> Result<Layer> {
    if context.options.verify_source
        && let Some(expected) = base.digest
    {
        let mut digester = crate::io::digesting::Digester::new(expected.algorithm());
        loop {
            let chunk = member.fill_buf()?;
            if chunk.is_empty() {
                break;
            }
            digester.update(chunk);
            let count = chunk.len();
            member.consume(count);
        }
        let actual = digester.finish();
        if actual != expected {
            let message = format!("its bytes have the digest {actual}");
            return Err(Error::new(ErrorKind::DigestMismatch, message).with_mismatch(expected, actual));
        }
    }
    finished(context, member.name(), outcome);
    Ok(Layer { blob: Some(outcome), ..base })
}

/// Bytes of a member that have passed and are equal to the first ones of `blob`.
struct Prefix {
    blob: Blob,
    bytes: u64,
}

enum Compared {
    /// The whole member is a blob of ours.
    Same(Digest),
    /// It began like one.
    Differs(Prefix),
    Unknown,
}

/// Compares a member without a usable name with the blob of ours that has its size and its first bytes.
fn compare(context: &Context<'_>, member: &mut StreamMember<'_>, cancel: &Cancel) -> Result<Compared> {
    let size_bytes = member.size_bytes();
    let head_bytes = size_bytes.min(HEAD_BYTES) as usize;
    let head = member.peek(head_bytes)?;
    let candidates = context.store.metadata().blobs_by_head(size_bytes, &Digest::of(head))?;
    let Some(digest) = candidates.first() else { return Ok(Compared::Unknown) };
    context.hold(vec![Resource::Blob(*digest)])?;
    if !context.has_blob(digest, Some(size_bytes))? {
        return Ok(Compared::Unknown);
    }
    let blob = context.store.content().open_blob(digest)?;
    let mut ours = vec![0; CHUNK_BYTES];
    let mut offset = 0;
    loop {
        cancel.check()?;
        let theirs = member.fill_buf()?;
        if theirs.is_empty() {
            return Ok(Compared::Same(*digest));
        }
        let wanted = theirs.len().min(ours.len());
        let count = blob.read_at(&mut ours[..wanted], offset)?;
        let same = count == wanted && theirs[..wanted] == ours[..wanted];
        if !same {
            return Ok(Compared::Differs(Prefix { blob, bytes: offset }));
        }
        member.consume(wanted);
        offset += wanted as u64;
    }
}

/// Starts a lane on a member and feeds it to its end.
fn dispatch<'s>(
    context: &Context<'s>,
    member: &mut StreamMember<'_>,
    announced: Option<Digest>,
    claim: Ownership,
    lanes: &Lanes<'_, Job<'s>>,
    cancel: &Cancel,
) -> Result<()> {
    let (unpack, tree_guard) = speculate(context, announced, claim.stalled)?;
    let algorithm = announced.map_or(Algorithm::Sha256, |digest| digest.algorithm());
    let (sink, blob_guard) = match claim.blob {
        Some(BlobClaim { ingest, guard }) => (Sink::Write(ingest), Some(guard)),
        None if context.options.discard_blobs => (Sink::hash(algorithm), None),
        None => (Sink::Write(context.store.content().begin_unique(algorithm)?), None),
    };
    let (sender, receiver) = bounded(queue_chunks(context));
    let (returned, recycled) = bounded(queue_chunks(context) + 1);
    let rest = ChunkReader { chunks: receiver, returned, current: Vec::new(), position: 0 };
    let source: Box<dyn Read + Send> = match claim.prefix {
        Some(Prefix { blob, bytes }) => Box::new(blob.take(bytes).chain(rest)),
        None => Box::new(rest),
    };
    lanes.send(Job {
        name: member.name().clone(),
        size_bytes: member.size_bytes(),
        digest: announced,
        source,
        sink,
        unpack,
        blob_guard,
        tree_guard,
        stalled: claim.stalled,
    })?;
    let started = Instant::now();
    let blocked = pump(member, &sender, &recycled, cancel)?;
    let busy = started.elapsed().saturating_sub(blocked);
    Span::current().record("busy_us", micros(busy)).record("blocked_us", micros(blocked));
    Ok(())
}

/// Claims the tree of a member that may be a layer. Not getting it is fine: the layer is looked at again at the end.
fn speculate<'s>(
    context: &Context<'s>,
    announced: Option<Digest>,
    stalled: bool,
) -> Result<(Unpack<'s>, Option<Guard>)> {
    if !context.options.unpack {
        return Ok((Unpack::No, None));
    }
    if let Some(digest) = announced.filter(|_| !stalled) {
        if let Some(row) = context.store.metadata().layer_get(&digest)? {
            context.hold(vec![Resource::Tree(row.diff_id)])?;
            if context.has_tree(&row.diff_id)? {
                return Ok((Unpack::No, None));
            }
        }
        let span =
            trace::stage!("claim", kind = "tree", digest = trace::display(digest), role, waited_us = 0);
        return trace::within(span, |span| {
            let claimed = context.claims.tree(context.store, Some(&digest), None)?;
            span.record("role", if matches!(claimed, Claimed::Mine(_)) { "owner" } else { "follower" });
            Ok(match claimed {
                Claimed::Mine(claim) => (Unpack::Extract(claim.ingest), Some(claim.guard)),
                Claimed::Taken(_) => (Unpack::No, None),
            })
        });
    }
    Ok((Unpack::Extract(context.store.trees().begin_unique()?), None))
}

/// Reads the member to its end. An error of the archive goes to the lane as well, so that it does not take the end of
/// its chunks for the end of the member. Gives how long the lane made the stream wait.
fn pump(
    member: &mut StreamMember<'_>,
    lane: &Sender<Result<Vec<u8>>>,
    recycled: &Receiver<Vec<u8>>,
    cancel: &Cancel,
) -> Result<Duration> {
    let mut blocked = Duration::ZERO;
    loop {
        cancel.check()?;
        let mut chunk = recycled.try_recv().unwrap_or_default();
        chunk.resize(CHUNK_BYTES, 0);
        match super::stages::read_full(member, &mut chunk) {
            Ok(0) => return Ok(blocked),
            Ok(count) => chunk.truncate(count),
            Err(error) => {
                let error = Error::from(error);
                // A lane that is gone has failed by itself, and its error is the one that counts.
                let _ = lane.send(Err(error.duplicate()));
                return Err(error);
            }
        }
        let started = Instant::now();
        if lane.send(Ok(chunk)).is_err() {
            return Err(Error::cancelled());
        }
        blocked += started.elapsed();
    }
}

/// The lane's end of the queue.
struct ChunkReader {
    chunks: Receiver<Result<Vec<u8>>>,
    returned: Sender<Vec<u8>>,
    current: Vec<u8>,
    position: usize,
}

impl Read for ChunkReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.position == self.current.len() {
            // The feeder may be gone, or have buffers enough.
            let _ = self.returned.try_send(std::mem::take(&mut self.current));
            self.position = 0;
            match self.chunks.recv() {
                Ok(Ok(chunk)) => self.current = chunk,
                Ok(Err(error)) => return Err(error.into_io()),
                Err(_) => return Ok(0),
            }
        }
        let available = &self.current[self.position..];
        let count = available.len().min(buffer.len());
        buffer[..count].copy_from_slice(&available[..count]);
        self.position += count;
        Ok(count)
    }
}

fn bring(context: &Context<'_>, job: Job<'_>, cancel: &Cancel) -> Result<(MemberName, PassedLayer)> {
    let announced = Layer { digest: job.digest, size_bytes: Some(job.size_bytes), ..Layer::default() };
    trace::within(ingest_span(&announced), |span| {
        let (name, passed) = bring_member(context, job, cancel)?;
        record_ingest(span, &passed.layer);
        Ok((name, passed))
    })
}

fn bring_member(context: &Context<'_>, job: Job<'_>, cancel: &Cancel) -> Result<(MemberName, PassedLayer)> {
    let started = Instant::now();
    let Job { name, size_bytes, digest, source, sink, unpack, blob_guard, tree_guard, stalled } = job;
    let key = name.to_string();
    let stage = if matches!(unpack, Unpack::No) { Stage::Ingesting } else { Stage::Unpacking };
    context.event(Event::BlobStage { key: key.clone(), stage });
    let advanced = |bytes: u64| {
        blob_guard.iter().chain(&tree_guard).for_each(Guard::beat);
        context.event(Event::BlobAdvanced { key: key.clone(), bytes });
    };
    let work = LayerWork {
        apply: &context.apply,
        budget: context.budget,
        cancel,
        advanced: &advanced,
        clock: &context.clock,
    };
    let size = Some(size_bytes);
    let job = LayerJob { source, size_bytes: size, sink, unpack, speculative: true, side_by_side: false };
    let doing = || format!("cannot import {name}");
    let mut done = run(job, &work).doing(doing)?;
    let unpack_error = match done.unpacking.take_if(|unpacking| unpacking.is_err()) {
        Some(Err(error)) => Some(error),
        _ => None,
    };
    // A name that only looks like a digest is no announcement: `<hex>.tar` may be the id of a legacy layer.
    let announced = digest.filter(|_| name.as_bytes().starts_with(b"blobs/"));
    let mut layer = Layer { digest: announced, size_bytes: size, stalled, ..Layer::default() };
    publish(context, &mut layer, done, blob_guard, tree_guard).doing(doing)?;
    layer.elapsed = started.elapsed();
    if let (Some(Outcome::New), Some(diff_id)) = (layer.tree, layer.diff_id) {
        context.event(Event::TreeClaimed(diff_id));
    }
    finished(context, &name, layer.blob.unwrap_or(Outcome::None));
    Ok((name, PassedLayer { layer, unpack_error, contradicted: false }))
}

/// Reads the whole stream for its documents alone, for a plan.
pub(crate) fn read_documents(context: &Context<'_>, stream: &mut Stream) -> Result<KeptDocuments> {
    let mut documents = KeptDocuments::default();
    let limits = &context.options.limits;
    let mut kept_bytes = 0;
    while let Some(mut member) = stream.next_member()? {
        context.cancel.check()?;
        let name = member.name().clone();
        match member.kind() {
            MemberKind::File => documents.add_file(name.clone(), member.size_bytes())?,
            MemberKind::Link(target) => {
                documents.add_link(name, target.clone())?;
                continue;
            }
            MemberKind::Other => continue,
        }
        if is_document(&mut member, limits.json_bytes)? {
            kept_bytes += member.size_bytes();
            if kept_bytes > limits.json_total_bytes {
                return Err(Error::over(
                    "json_total_bytes",
                    "the archive's manifests and configurations are too large together",
                ));
            }
            let mut bytes = Vec::with_capacity(member.size_bytes() as usize);
            member.read_to_end(&mut bytes).doing(|| format!("cannot read {name}"))?;
            documents.add_document(&name, bytes)?;
        }
    }
    Ok(documents)
}

/// A layer as its archive announces it.
pub(crate) fn describe_announced(found: &crate::archive::FoundLayer) -> Layer {
    let announced = found.member.as_ref().and_then(announced_digest);
    Layer {
        member: found.member.clone(),
        digest: found.descriptor.as_ref().map(|descriptor| descriptor.digest).or(announced),
        size_bytes: Some(found.size),
        claimed_diff_id: found.diff_id,
        ..Layer::default()
    }
}

//! The layers of one import, each brought into the store once.
//!
//! Works in rounds. In each, the coordinator claims what is missing, hands what it owns to the lanes, biggest first, and
//! joins those whom it has to wait for after its own work is done; then it asks the store again. A round without work and
//! without waiting is the last. Lanes never wait on lanes.

use super::claims::{BlobClaim, Claimed, Guard, Key, Publication, TreeClaim, WaitEnd, Waiting, publication};
use super::context::Context;
use super::intake::Sink;
use super::layer_job::{LayerDone, LayerJob, LayerWork, Unpack, Unpacking, check_diff_id, run};
use crate::archive::{MemberName, Seekable};
use crate::content::{BlobIngest, Committed};
use crate::error::{Error, ErrorKind, Result, ResultExt};
use crate::io::codec::Codec;
use crate::metadata::{Resource, TreeRow};
use crate::oci::{Algorithm, DiffId, Digest};
use crate::parallel::{Lanes, Patience};
use crate::progress::{Event, Outcome, Stage};
use crate::trace;
use std::io::Read;
use std::time::{Duration, Instant};
use tracing::Span;

/// A layer, and what is known and has been done about it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Layer {
    /// Where its bytes are in the archive; `None` if they are not there, or have passed.
    pub(crate) member: Option<MemberName>,
    /// The announced digest, or the computed one.
    pub(crate) digest: Option<Digest>,
    /// The announced size, or the counted one.
    pub(crate) size_bytes: Option<u64>,
    /// What the configuration says.
    pub(crate) claimed_diff_id: Option<DiffId>,
    /// What was computed, now or by an earlier import of the same blob.
    pub(crate) diff_id: Option<DiffId>,
    pub(crate) codec: Option<Codec>,
    pub(crate) unpacked_bytes: u64,
    /// Inodes of the tree, where this import made it.
    pub(crate) inodes: u64,
    /// How long this import worked on it.
    pub(crate) elapsed: Duration,
    pub(crate) blob: Option<Outcome>,
    /// The blob is new and shares its blocks with the archive's file.
    pub(crate) cloned: bool,
    pub(crate) tree: Option<Outcome>,
    /// The store has a blob that begins like this one: its digest is computed before anything is written.
    pub(crate) compare_first: bool,
    /// How long others' work on it was waited for.
    pub(crate) waited: Option<Duration>,
    pub(crate) stalled: bool,
}

impl Layer {
    /// How progress calls it.
    pub(crate) fn key(&self) -> String {
        match (&self.digest, &self.member) {
            (Some(digest), _) => digest.to_string(),
            (None, Some(member)) => member.to_string(),
            // Of a docker archive that leaves it out.
            (None, None) => {
                self.claimed_diff_id.map_or("(unknown)".to_string(), |diff_id| diff_id.to_string())
            }
        }
    }

    fn there(&self) -> Outcome {
        if self.waited.is_some() { Outcome::Shared } else { Outcome::Existing }
    }

    fn is_settled(&self) -> bool {
        self.blob.is_some() && self.tree.is_some()
    }
}

/// Work on one layer that this import owns.
struct Owned<'s> {
    index: usize,
    sink: Sink,
    unpack: Unpack<'s>,
    blob_guard: Option<Guard>,
    tree_guard: Option<Guard>,
}

/// Brings every layer into the store. `archive` is where members are read from; a layer that is in the store already
/// is read from there.
pub(crate) fn settle(context: &Context<'_>, archive: Option<&Seekable>, layers: &mut [Layer]) -> Result<()> {
    loop {
        let mut owned = Vec::new();
        let mut waiting = Vec::new();
        for (index, layer) in layers.iter_mut().enumerate().filter(|(_, layer)| !layer.is_settled()) {
            context.cancel.check()?;
            let step = claim(context, archive, layer, index)
                .doing(|| format!("cannot import layer {}", layer.key()))?;
            owned.extend(step.owned);
            waiting.extend(step.waiting.map(|waiting| (index, waiting)));
            if layer.is_settled() {
                finished(context, layer);
            }
        }
        if owned.is_empty() && waiting.is_empty() {
            return Ok(());
        }
        work_off(context, archive, layers, owned)?;
        for (index, other) in waiting {
            join(context, &mut layers[index], other)?;
        }
    }
}

fn finished(context: &Context<'_>, layer: &Layer) {
    let outcome = match (layer.blob, layer.tree) {
        (Some(Outcome::New), _) | (_, Some(Outcome::New)) => Outcome::New,
        (Some(Outcome::Shared), _) | (_, Some(Outcome::Shared)) => Outcome::Shared,
        _ => Outcome::Existing,
    };
    context.event(Event::BlobFinished { key: layer.key(), outcome });
}

fn join(context: &Context<'_>, layer: &mut Layer, other: Waiting) -> Result<()> {
    context.event(Event::BlobStage { key: layer.key(), stage: Stage::Waiting });
    let started = Instant::now();
    let end = other.join(context.store, context.cancel, context.options.patience)?;
    let duration = started.elapsed();
    context.clock.waited(duration);
    context.event(Event::Waited { key: layer.key(), duration });
    layer.waited = Some(layer.waited.unwrap_or_default() + duration);
    if end == WaitEnd::Stalled {
        layer.stalled = true;
        context.event(Event::Overtaken { key: layer.key() });
        context.notice(format!(
            "another import of {} showed no progress for {duration:.0?} and was overtaken",
            layer.key()
        ));
    }
    Ok(())
}

#[derive(Default)]
struct Step<'s> {
    owned: Option<Owned<'s>>,
    waiting: Option<Waiting>,
}

/// Claims what is missing of a layer. What the store has is settled here.
fn claim<'s>(
    context: &Context<'s>,
    archive: Option<&Seekable>,
    layer: &mut Layer,
    index: usize,
) -> Result<Step<'s>> {
    let held = layer.digest.map(Resource::Blob).into_iter().chain(layer.claimed_diff_id.map(Resource::Tree));
    context.hold(held.collect())?;
    if layer.digest.is_none() && layer.compare_first {
        layer.compare_first = false;
        let sink = Sink::hash(Algorithm::Sha256);
        let owned = Owned { index, sink, unpack: Unpack::No, blob_guard: None, tree_guard: None };
        return Ok(Step { owned: Some(owned), waiting: None });
    }
    let (blob, waiting) = match layer.blob {
        Some(_) => (None, None),
        None => claiming("blob", layer, |layer| {
            let (blob, waiting) = claim_blob(context, layer)?;
            let role = role(blob.is_some(), waiting.is_some(), layer.blob.is_some());
            Ok(((blob, waiting), role))
        })?,
    };
    if waiting.is_some() {
        return Ok(Step { owned: None, waiting });
    }
    let (tree, waiting) = match layer.tree {
        Some(_) => NOTHING_TO_EXTRACT,
        None if !context.options.unpack => {
            layer.tree = Some(Outcome::None);
            NOTHING_TO_EXTRACT
        }
        None => claiming("tree", layer, |layer| {
            let (tree, waiting) = claim_tree(context, layer)?;
            let role = role(matches!(tree.0, Unpack::Extract(_)), waiting.is_some(), true);
            Ok(((tree, waiting), role))
        })?,
    };
    if layer.blob.is_none() && blob.is_none() {
        layer.blob = Some(Outcome::None);
    }
    let unpack = !matches!(tree.0, Unpack::No);
    if blob.is_none() && !unpack {
        return Ok(Step { owned: None, waiting });
    }
    if layer.member.is_none() || archive.is_none() {
        require_bytes(context, layer, blob.is_some())?;
    }
    let algorithm = layer.digest.map_or(Algorithm::Sha256, |digest| digest.algorithm());
    let (sink, blob_guard) = match blob {
        Some((ingest, guard)) => (Sink::Write(ingest), guard),
        None => (Sink::hash(algorithm), None),
    };
    let owned = Owned { index, sink, unpack: tree.0, blob_guard, tree_guard: tree.1 };
    Ok(Step { owned: Some(owned), waiting })
}

/// Makes a claim inside its span.
fn claiming<T>(
    kind: &'static str,
    layer: &mut Layer,
    claim: impl FnOnce(&mut Layer) -> Result<(T, &'static str)>,
) -> Result<T> {
    let waited_us = layer.waited.unwrap_or_default().as_micros() as u64;
    let span = trace::stage!("claim", kind = kind, digest, role, waited_us = waited_us);
    trace::within(span, |span| {
        let (claimed, role) = claim(layer)?;
        let tree = layer.diff_id.or(layer.claimed_diff_id).filter(|_| kind == "tree");
        span.record("digest", tree.map(|diff_id| diff_id.0).or(layer.digest).map(trace::display));
        span.record("role", role);
        Ok(claimed)
    })
}

/// What a claim made of whoever asked for it.
pub(crate) fn role(owner: bool, follower: bool, existing: bool) -> &'static str {
    match (owner, follower, existing) {
        (true, ..) => "owner",
        (_, true, _) => "follower",
        (.., true) => "existing",
        _ => "none",
    }
}

/// A blob that is neither in the archive nor in the store.
fn require_bytes(context: &Context<'_>, layer: &Layer, write: bool) -> Result<()> {
    let present = match &layer.digest {
        Some(digest) => context.has_blob(digest, layer.size_bytes)?,
        None => false,
    };
    if present && !write {
        return Ok(());
    }
    Err(Error::new(ErrorKind::MissingContent, "it is neither in the archive nor in the store").with_hint(
        "export the image again with all its layers, or import the images that it builds on first",
    ))
}

type BlobToWrite = (BlobIngest, Option<Guard>);

fn claim_blob(context: &Context<'_>, layer: &mut Layer) -> Result<(Option<BlobToWrite>, Option<Waiting>)> {
    let content = context.store.content();
    let Some(digest) = layer.digest else {
        let wanted = !context.options.discard_blobs;
        let ingest = wanted.then(|| content.begin_unique(Algorithm::Sha256)).transpose()?;
        return Ok((ingest.map(|ingest| (ingest, None)), None));
    };
    if context.has_blob(&digest, layer.size_bytes)? {
        layer.blob = Some(layer.there());
        return Ok((None, None));
    }
    if context.options.discard_blobs {
        context.forget_unwanted(&digest)?;
        return Ok((None, None));
    }
    if layer.stalled {
        return Ok((Some((content.begin_unique(digest.algorithm())?, None)), None));
    }
    let BlobClaim { ingest, guard } = match context.claims.blob(context.store, &digest)? {
        Claimed::Mine(claim) => claim,
        Claimed::Taken(other) => return Ok((None, Some(other))),
    };
    // Someone may have finished between the look and the claim.
    if context.has_blob(&digest, layer.size_bytes)? {
        drop(ingest);
        guard.finish();
        layer.blob = Some(Outcome::Shared);
        return Ok((None, None));
    }
    context.event(Event::BlobClaimed(digest));
    Ok((Some((ingest, Some(guard))), None))
}

type TreeToExtract<'s> = (Unpack<'s>, Option<Guard>);

const NOTHING_TO_EXTRACT: (TreeToExtract<'static>, Option<Waiting>) = ((Unpack::No, None), None);

fn claim_tree<'s>(context: &Context<'s>, layer: &mut Layer) -> Result<(TreeToExtract<'s>, Option<Waiting>)> {
    const NOTHING: TreeToExtract<'static> = (Unpack::No, None);
    if let Some(tree) = tree_there(context, layer)? {
        return Ok(((tree, None), None));
    }
    let diff_id = layer.diff_id.or(layer.claimed_diff_id);
    if layer.stalled || (layer.digest.is_none() && diff_id.is_none()) {
        return Ok(((Unpack::Extract(context.store.trees().begin_unique()?), None), None));
    }
    let claimed = context.claims.tree(context.store, layer.digest.as_ref(), diff_id.as_ref())?;
    let TreeClaim { ingest, guard } = match claimed {
        Claimed::Mine(claim) => claim,
        Claimed::Taken(other) => return Ok((NOTHING, Some(other))),
    };
    // Someone may have finished between the look and the claim; the place is free a moment before the tree is recorded.
    context.store.metadata().settled()?;
    if let Some(tree) = tree_there(context, layer)? {
        drop(ingest);
        guard.finish();
        if layer.tree.is_some() {
            layer.tree = Some(Outcome::Shared);
        }
        return Ok(((tree, None), None));
    }
    if let Some(diff_id) = diff_id {
        context.event(Event::TreeClaimed(diff_id));
    }
    Ok(((Unpack::Extract(ingest), Some(guard)), None))
}

/// Settles a tree that is there. `Some` if nothing needs to be claimed: nothing is to be done, or only a proof is
/// missing that this blob unpacks to that tree.
fn tree_there<'s>(context: &Context<'s>, layer: &mut Layer) -> Result<Option<Unpack<'s>>> {
    let metadata = context.store.metadata();
    let known = match &layer.digest {
        Some(digest) => metadata.layer_get(digest)?,
        None => None,
    };
    if let Some(row) = &known {
        if let Some(claimed) = &layer.claimed_diff_id {
            check_diff_id(claimed, &row.diff_id)?;
        }
        layer.diff_id = Some(row.diff_id);
        layer.codec = Codec::from_name(&row.codec);
    }
    let Some(diff_id) = layer.diff_id.or(layer.claimed_diff_id) else { return Ok(None) };
    context.hold(vec![Resource::Tree(diff_id)])?;
    if !context.has_tree(&diff_id)? {
        return Ok(None);
    }
    if layer.diff_id.is_none() {
        return Ok(Some(Unpack::Verify));
    }
    layer.tree = Some(layer.there());
    layer.unpacked_bytes = metadata.tree_get(&diff_id)?.map_or(0, |row| row.bytes);
    Ok(Some(Unpack::No))
}

/// Runs the owned work in lanes, biggest first, and takes the results in.
fn work_off<'s>(
    context: &Context<'s>,
    archive: Option<&Seekable>,
    layers: &mut [Layer],
    mut owned: Vec<Owned<'s>>,
) -> Result<()> {
    let size = |work: &Owned<'_>| layers[work.index].size_bytes.unwrap_or(0);
    owned.sort_by_key(|work| std::cmp::Reverse(size(work)));
    let total: u64 = owned.iter().map(size).sum();
    let lanes = context.threads.min(owned.len()).max(1);
    let shared: &[Layer] = layers;
    let cancel = context.cancel.child();
    let work = |mut work: Owned<'s>| -> Result<(usize, Layer)> {
        let layer = &shared[work.index];
        let index = work.index;
        // A layer that is most of the work would keep one core busy and leave the others idle.
        let side_by_side = context.threads > 1 && size(&work) * context.threads as u64 > total;
        let source = source(context, archive, layer, &mut work.sink)?;
        let bring = |span: &Span| {
            let layer = bring(context, layer, work, source, side_by_side, &cancel)?;
            record_ingest(span, &layer);
            Ok(layer)
        };
        let brought = trace::within(ingest_span(layer), bring);
        brought.doing(|| format!("cannot import layer {}", layer.key())).map(|layer| (index, layer))
    };
    let feed = |lanes: &Lanes<'_, Owned<'s>>| owned.into_iter().try_for_each(|work| lanes.send(work));
    let start = || context.confinement.enter();
    let ((), results) = Lanes::scope(lanes, &cancel, start, work, feed)?;
    for (index, layer) in results {
        layers[index] = layer;
    }
    Ok(())
}

/// The way of one layer through a lane.
pub(crate) fn ingest_span(layer: &Layer) -> Span {
    let span = trace::stage!("ingest", kind = "layer", digest, bytes, existing, codec, read_us, write_us);
    span.record("digest", layer.digest.map(trace::display)).record("bytes", layer.size_bytes);
    span
}

/// What is known of it at its end.
pub(crate) fn record_ingest(span: &Span, layer: &Layer) {
    span.record("digest", layer.digest.map(trace::display)).record("bytes", layer.size_bytes);
    span.record("existing", matches!(layer.blob, Some(Outcome::Existing | Outcome::Shared)));
    span.record("codec", layer.codec.map(|codec| codec.name()));
}

fn source<'a>(
    context: &Context<'_>,
    archive: Option<&'a Seekable>,
    layer: &Layer,
    sink: &mut Sink,
) -> Result<Box<dyn Read + Send + 'a>> {
    let stored = matches!(layer.blob, Some(Outcome::New | Outcome::Existing | Outcome::Shared));
    match (archive, &layer.member, &layer.digest) {
        (_, _, Some(digest)) if stored && !matches!(sink, Sink::Write(_)) => {
            Ok(Box::new(context.store.content().open_blob(digest)?))
        }
        (Some(archive), Some(member), _) => {
            if let Sink::Write(ingest) = sink
                && let Some(file) = archive.whole_file(member)?
                && let Some(cloned) = ingest.clone_from(&file)?
            {
                return Ok(Box::new(cloned));
            }
            Ok(Box::new(archive.reader(member)?))
        }
        _ => Err(Error::new(ErrorKind::Internal, "a layer without bytes was scheduled")),
    }
}

/// Brings one layer through its stages and publishes what came of it.
fn bring<'s>(
    context: &Context<'s>,
    layer: &Layer,
    work: Owned<'s>,
    source: Box<dyn Read + Send + 's>,
    side_by_side: bool,
    cancel: &crate::parallel::Cancel,
) -> Result<Layer> {
    let started = Instant::now();
    let key = layer.key();
    let extracting = matches!(work.unpack, Unpack::Extract(_));
    let stage = if extracting { Stage::Unpacking } else { Stage::Ingesting };
    context.event(Event::BlobStage { key: key.clone(), stage });
    let advanced = |bytes: u64| {
        work.blob_guard.iter().chain(&work.tree_guard).for_each(Guard::beat);
        context.event(Event::BlobAdvanced { key: key.clone(), bytes });
    };
    let layer_work = LayerWork {
        apply: &context.apply,
        budget: context.budget,
        cancel,
        advanced: &advanced,
        clock: &context.clock,
    };
    let size_bytes = layer.size_bytes;
    let job = LayerJob {
        source,
        size_bytes,
        sink: work.sink,
        unpack: work.unpack,
        speculative: false,
        side_by_side,
    };
    let done = run(job, &layer_work)?;
    let mut layer = layer.clone();
    publish(context, &mut layer, done, work.blob_guard, work.tree_guard)?;
    layer.elapsed += started.elapsed();
    if layer.is_settled() {
        finished(context, &layer);
    }
    Ok(layer)
}

/// Publishes a finished layer under its computed names, records it, and lets the followers go on: first the blob, then
/// the tree.
pub(crate) fn publish(
    context: &Context<'_>,
    layer: &mut Layer,
    mut done: LayerDone<'_>,
    blob_guard: Option<Guard>,
    tree_guard: Option<Guard>,
) -> Result<()> {
    let unpacking = done.unpacking.take();
    publish_blob(context, layer, &mut done, blob_guard.is_some())?;
    drop(done.sink);
    if let Some(guard) = blob_guard {
        guard.finish();
    }
    let Some(unpacking) = unpacking.transpose()? else { return Ok(()) };
    let claimed = tree_guard.as_ref().is_some_and(|guard| guard.by_diff_id);
    publish_tree(context, layer, unpacking, done.codec, claimed)?;
    if let Some(guard) = tree_guard {
        guard.finish();
    }
    Ok(())
}

fn publish_blob(
    context: &Context<'_>,
    layer: &mut Layer,
    done: &mut LayerDone<'_>,
    claimed: bool,
) -> Result<()> {
    match &mut done.sink {
        Sink::Write(ingest) => {
            context.hold(vec![Resource::Blob(done.digest)])?;
            let place = match claimed {
                true => None,
                false => Some(to_publish(context, &Key::Blob(done.digest))?),
            };
            let span = publish_span("blob", &done.digest);
            let committed = trace::within(span, |span| {
                let committed = commit_blob(context, layer, ingest, (done.digest, done.head))?;
                span.record("existing", matches!(committed, Committed::Existing(..)));
                Ok(committed)
            })?;
            layer.blob = Some(match committed {
                Committed::New(..) => Outcome::New,
                Committed::Existing(..) => layer.there(),
            });
            layer.cloned = ingest.is_clone();
            place.map(Publication::finish).transpose()?;
        }
        Sink::Hash(..) => check_digest(layer.digest.as_ref(), &done.digest)?,
    }
    layer.digest = Some(done.digest);
    layer.size_bytes = Some(done.size_bytes);
    layer.codec = Some(done.codec);
    Ok(())
}

fn to_publish(context: &Context<'_>, key: &Key) -> Result<Publication> {
    let patience = Patience::new(context.cancel).at_most(context.options.patience).telling(context.audit);
    publication(context.store, key, patience)
}

fn publish_span(kind: &'static str, digest: &Digest) -> Span {
    trace::stage!("publish", kind = kind, digest = trace::display(digest), existing)
}

fn commit_blob(
    context: &Context<'_>,
    layer: &Layer,
    ingest: &BlobIngest,
    (digest, head): (Digest, Digest),
) -> Result<Committed> {
    check_digest(layer.digest.as_ref(), &digest)?;
    // Asked before it is synced, too.
    if context.has_blob(&digest, None)? {
        return Ok(Committed::Existing(digest, ingest.status().offset));
    }
    context.publish_blob(ingest, None, head)
}

fn check_digest(expected: Option<&Digest>, actual: &Digest) -> Result<()> {
    match expected.filter(|expected| *expected != actual) {
        None => Ok(()),
        Some(expected) => {
            let message = format!("its bytes have the digest {actual}");
            Err(Error::new(ErrorKind::DigestMismatch, message).with_mismatch(expected, actual))
        }
    }
}

fn publish_tree(
    context: &Context<'_>,
    layer: &mut Layer,
    unpacking: Unpacking<'_>,
    codec: Codec,
    claimed: bool,
) -> Result<()> {
    let Unpacking { diff_id, bytes, tree } = unpacking;
    if let Some(claimed) = &layer.claimed_diff_id {
        check_diff_id(claimed, &diff_id)?;
    }
    layer.diff_id = Some(diff_id);
    let (metadata, trees) = (context.store.metadata(), context.store.trees());
    if let Some(digest) = &layer.digest {
        metadata.layer_put(digest, &diff_id, codec.name(), bytes)?;
    }
    // Only a proof was wanted; the next round finds the tree.
    let Some((mut ingest, applied)) = tree else { return Ok(()) };
    applied
        .notices
        .into_iter()
        .for_each(|notice| context.notice(format!("layer {}: {notice}", diff_id.0.short())));
    context.hold(vec![Resource::Tree(diff_id)])?;
    let mut record = applied.record;
    record.diff_id = Some(diff_id);
    let place = match claimed {
        true => None,
        false => Some(to_publish(context, &Key::Tree(diff_id))?),
    };
    let row = TreeRow { diff_id, bytes: record.bytes, inodes: record.inodes, durable: false };
    let new = trace::within(publish_span("tree", &diff_id.0), |span| {
        ingest.seal(&record)?;
        let mut aside = None;
        let name = || ingest.take_name(&diff_id).map(|before| aside = before);
        let new = metadata.tree_publish(&row, || trees.contains(&diff_id), name)?;
        span.record("existing", !new);
        // What lay there without a record of its own was never finished.
        aside.map_or(Ok(()), |aside| trees.remove_aside(&aside))?;
        Ok(new)
    })?;
    drop(ingest);
    place.map(Publication::finish).transpose()?;
    layer.unpacked_bytes = record.bytes;
    layer.tree = Some(layer.there());
    if new {
        context.event(Event::TreeExtracted { diff_id, bytes: record.bytes });
        layer.inodes = record.inodes;
        layer.tree = Some(Outcome::New);
    }
    Ok(())
}

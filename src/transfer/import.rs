//! The import verb: open the archive, plan, bring the layers in, commit the chains, sync, make it visible, report.

use super::audit::Audit;
use super::claims::Claims;
use super::context::Context;
use super::layer_job::StageClock;
use super::layers::{Layer, settle};
use super::options::ImportOptions;
use super::plan::{Plan, PlanImage, PlanManifest, describe_seekable, plan};
use super::report::*;
use super::stream::{self, Passed, PassedLayer};
use super::write_behind;
use crate::archive::{self, Found, FoundLayer, Input, Source};
use crate::content::Committed;
use crate::error::{Error, ErrorKind, Result, ResultExt};
use crate::io::codec::Codec;
use crate::io::durable;
use crate::io::headroom::Headroom;
use crate::layer::{ApplyOptions, Confinement, ConfinementReport, Ownership};
use crate::metadata::{self, DocumentReferences, ImageCommit, ManifestRow, NewImage, Resource};
use crate::oci::{ChainId, Descriptor, DiffId, Digest, media_type, parse_document};
use crate::parallel::{Budget, Cancel, Patience, Pool, failpoint};
use crate::progress::{Event, Outcome, Progress};
use crate::snapshot::{Bounds, Committed as LayerCommitted};
use crate::store::Store;
use crate::trace::{self, TraceId};
use std::collections::HashSet;
use std::sync::Arc;
use std::time::Instant;
use tracing::Span;

/// What an import runs with besides its options.
pub struct Resources<'a> {
    /// The claims of this process.
    pub claims: &'a Claims,
    /// The memory for what is in flight.
    pub budget: &'a Budget,
    /// Where many things are hashed at once.
    pub pool: &'a Pool,
    /// How many lanes.
    pub threads: usize,
}

/// Imports every image of an archive.
///
/// # Errors
/// The input's faults have kinds for which [`ErrorKind::is_input`] holds; then, and on every other error, nothing of the
/// archive is visible in the store.
pub fn import(
    store: &Store,
    resources: &Resources<'_>,
    input: Input,
    options: &ImportOptions,
    progress: &dyn Progress,
    cancel: &Cancel,
) -> Result<ImportReport> {
    let started = Instant::now();
    let name = input.name();
    let trace_id = options.trace_id.unwrap_or_else(TraceId::fresh);
    let audit = Audit::new(progress, options.audit);
    let run = |span: &Span| {
        store.check_room()?;
        let source = open(input, options, resources, cancel)?;
        let size_bytes = source.size_bytes();
        span.record("size_bytes", size_bytes);
        audit.event(&Event::ImportStarted { archive: name.clone(), size_bytes, trace_id });
        let mut import = Import::start(store, resources, options, &audit, cancel)?;
        import.confine(&source);
        import.run(source, trace_id, started)
    };
    let threads = resources.threads as u64;
    let (shown, id) = (trace::display(&name), trace::display(trace_id));
    let span = trace::verb!("import", trace_id = id, archive = shown, threads = threads, size_bytes, images);
    let report = trace::within(span, |span| {
        // What a cancellation cuts off looks like a short archive to whoever reads it, and may be heard first.
        let report = run(span).map_err(|error| cancel.check().err().unwrap_or(error))?;
        span.record("images", report.images.len());
        Ok(report)
    });
    if let Err(error) = &report {
        progress.event(&Event::ImportFailed(error.kind()));
    }
    progress.event(&Event::ImportFinished);
    report.doing(|| format!("cannot import {name}")).map_err(|error| error.with_trace_id(trace_id))
}

/// What an import would do. A stream is read to its end for it.
pub fn plan_import(
    store: &Store,
    resources: &Resources<'_>,
    input: Input,
    options: &ImportOptions,
    progress: &dyn Progress,
    cancel: &Cancel,
) -> Result<ImportPlan> {
    let name = input.name();
    let audit = Audit::new(progress, false);
    let run = || {
        let source = archive::open(input, &options.limits, resources.budget, cancel)?;
        Import::start(store, resources, options, &audit, cancel)?.preview(source)
    };
    run().doing(|| format!("cannot plan the import of {name}"))
}

fn open(input: Input, options: &ImportOptions, resources: &Resources<'_>, cancel: &Cancel) -> Result<Source> {
    trace::within(trace::stage!("open", stream), |span| {
        let source = archive::open(input, &options.limits, resources.budget, cancel)?;
        span.record("stream", matches!(source, Source::Stream(_)));
        Ok(source)
    })
}

struct Import<'a> {
    context: Context<'a>,
    /// Opened before the first write, so that every write-back error is seen.
    filesystem: rustix::fd::OwnedFd,
}

impl<'a> Import<'a> {
    fn start(
        store: &'a Store,
        resources: &'a Resources<'a>,
        options: &'a ImportOptions,
        audit: &'a Audit<'a>,
        cancel: &'a Cancel,
    ) -> Result<Self> {
        if options.unpack {
            store.check_marks()?;
        }
        let apply = ApplyOptions {
            limits: options.limits.clone(),
            form: store.format().whiteouts,
            ownership: if options.ignore_chown { Ownership::Ignore } else { Ownership::Keep },
            headroom: Arc::new(Headroom::taking(options.limits.free_space_percent, store.root())?),
            ..ApplyOptions::default()
        };
        let patience = Patience::new(cancel).telling(audit);
        let context = Context {
            store,
            claims: resources.claims,
            options,
            audit,
            cancel,
            budget: resources.budget,
            pool: resources.pool,
            threads: resources.threads.max(1),
            lease: trace::within(trace::stage!("lease"), |_| store.lease_cancellable(patience))?,
            apply,
            confinement: Confinement::none(),
            clock: StageClock::default(),
            touched: Default::default(),
        };
        Ok(Import { context, filesystem: store.sync_handle()? })
    }

    /// Decides what the lanes will be able to reach.
    fn confine(&mut self, source: &Source) {
        if self.context.options.confine {
            let (store, form) = (self.context.store.root(), self.context.apply.form);
            self.context.confinement = Confinement::new(store, source.directory(), form);
        }
    }

    /// How the lanes were confined; a notice where it was wanted and could not be had.
    fn told_confinement(&self) -> ConfinementReport {
        let report = self.context.confinement.report();
        if let (true, Some(missing)) = (self.context.options.confine, &report.missing) {
            self.context.notice(format!("the threads that extracted were not fully confined: {missing}"));
        }
        report
    }

    fn run(self, source: Source, trace_id: TraceId, started: Instant) -> Result<ImportReport> {
        let dirty = || !self.context.cancel.is_cancelled() && self.context.audit.has_moved();
        let mut plan = match self.context.options.sync {
            true => write_behind::during(&self.context.store.sync_handle()?, dirty, || self.bring(source))?,
            false => self.bring(source)?,
        };
        self.context.cancel.check()?;
        let documents = self.store_documents(&mut plan)?;
        let snapshots = self.commit_chains(&plan)?;
        let sync_ms = self.sync()?;
        let committed = self.publish(&plan)?;
        let report = self.report(plan, documents, snapshots, committed, sync_ms, started)?;
        Ok(ImportReport { trace_id: Some(trace_id), ..report })
    }

    /// Brings in the layers that the source has, and settles which those are.
    fn bring(&self, source: Source) -> Result<Plan> {
        Ok(match source {
            Source::Seekable(archive) => {
                let mut plan = planning(|| {
                    let found = archive::find_images(&archive, &self.context.options.limits)?;
                    let mut describe = |layer: &FoundLayer| describe_seekable(&self.context, &archive, layer);
                    plan(&self.context, found, &mut describe)
                })?;
                self.tell_plan(&plan);
                self.announce(&plan);
                settle(&self.context, Some(&archive), &mut plan.layers)?;
                if self.context.options.verify_source {
                    super::verify::verify_members(&self.context, &archive, &plan.layers)?;
                }
                plan
            }
            Source::Stream(mut stream) => {
                let passed = stream::read(&self.context, &mut stream)?;
                let mut plan = planning(|| {
                    let found = archive::find_images(&passed.documents, &self.context.options.limits)?;
                    self.plan_passed(found, &passed)
                })?;
                self.tell_plan(&plan);
                settle(&self.context, None, &mut plan.layers)?;
                self.tell_bound(stream.codec(), &plan);
                plan
            }
        })
    }

    /// Importing again from a compressed archive takes as long as inflating it, which may surprise.
    fn tell_bound(&self, codec: Codec, plan: &Plan) {
        let nothing_new = plan
            .layers
            .iter()
            .all(|layer| layer.blob != Some(Outcome::New) && layer.tree != Some(Outcome::New));
        if codec != Codec::None && nothing_new {
            self.context.notice(format!(
                "everything was there; the time went into inflating the archive's one {codec} stream, which an uncompressed archive saves"
            ));
        }
    }

    fn preview(self, source: Source) -> Result<ImportPlan> {
        let plan = match source {
            Source::Seekable(archive) => {
                let found = archive::find_images(&archive, &self.context.options.limits)?;
                plan(&self.context, found, &mut |layer| describe_seekable(&self.context, &archive, layer))?
            }
            Source::Stream(mut stream) => {
                let documents = stream::read_documents(&self.context, &mut stream)?;
                let found = archive::find_images(&documents, &self.context.options.limits)?;
                plan(&self.context, found, &mut |layer| Ok(stream::describe_announced(layer)))?
            }
        };
        super::preview::preview(&self.context, &plan)
    }

    fn tell_plan(&self, plan: &Plan) {
        for Layer { digest, diff_id, claimed_diff_id, .. } in &plan.layers {
            self.context
                .event(Event::LayerPlanned { digest: *digest, diff_id: diff_id.or(*claimed_diff_id) });
        }
    }

    fn announce(&self, plan: &Plan) {
        for layer in &plan.layers {
            let size_bytes = layer.size_bytes.unwrap_or(0);
            self.context.event(Event::BlobStarted { key: layer.key(), size_bytes, layer: true });
        }
    }

    /// The plan of a stream that has passed: members by what was computed of them.
    fn plan_passed(&self, found: Found, passed: &Passed) -> Result<Plan> {
        plan(&self.context, found, &mut |layer| self.describe_passed(passed, layer))
    }

    fn describe_passed(&self, passed: &Passed, found: &FoundLayer) -> Result<Layer> {
        let announced = found.descriptor.as_ref().map(|descriptor| descriptor.digest);
        let shown = || match (&announced, &found.member) {
            (Some(digest), _) => format!("cannot import layer {digest}"),
            (None, Some(member)) => format!("cannot import layer {member}"),
            (None, None) => "cannot import a layer".to_string(),
        };
        let Some(member) = &found.member else {
            // Not in this archive; perhaps in the store.
            let size_bytes = found.descriptor.as_ref().map(|descriptor| descriptor.size);
            let claimed_diff_id = found.diff_id;
            return Ok(Layer { digest: announced, size_bytes, claimed_diff_id, ..Layer::default() });
        };
        let missing =
            || Error::new(ErrorKind::MissingContent, format!("{member} is no layer")).context(shown());
        let passed = passed.layers.get(member).ok_or_else(missing)?;
        check_passed(passed, found).doing(shown)?;
        let mut layer = passed.layer.clone();
        layer.claimed_diff_id = found.diff_id;
        if let (Some(claimed), Some(actual)) = (&found.diff_id, &layer.diff_id) {
            super::layer_job::check_diff_id(claimed, actual).doing(shown)?;
        }
        Ok(layer)
    }

    /// Writes manifests, configurations and indexes; docker archives get the manifest that their content determines.
    fn store_documents(&self, plan: &mut Plan) -> Result<Vec<Committed>> {
        let mut documents = Vec::new();
        let Plan { images, layers, .. } = plan;
        for planned in images {
            for (digest, bytes, _) in &planned.image.documents {
                documents.push(self.context.put_document(*digest, bytes)?);
            }
            for manifest in &mut planned.manifests {
                complete(manifest, layers)?;
                documents.push(
                    self.context.put_document(manifest.found.config_digest, &manifest.found.config_bytes)?,
                );
                let (descriptor, bytes) = manifest_of(manifest)?;
                documents.push(self.context.put_document(descriptor.digest, bytes)?);
                planned.image.target.get_or_insert_with(|| descriptor.clone());
            }
        }
        let mut seen = HashSet::new();
        documents.retain(|document| seen.insert(document.digest()));
        Ok(documents)
    }

    /// Makes the snapshots of every chain, bottom first.
    fn commit_chains(&self, plan: &Plan) -> Result<std::collections::HashMap<ChainId, Outcome>> {
        let (cancel, headroom) = (self.context.cancel.clone(), Arc::clone(&self.context.apply.headroom));
        let bounds = Bounds { cancel, headroom };
        let mut outcomes = std::collections::HashMap::new();
        for manifest in
            plan.images.iter().flat_map(|image| &image.manifests).filter(|manifest| manifest.unpack)
        {
            let mut parent: Option<ChainId> = None;
            for diff_id in manifest_diff_ids(manifest, &plan.layers)? {
                self.context.cancel.check()?;
                let chain_id = ChainId::above(parent.as_ref(), &diff_id);
                self.context.hold(vec![Resource::Snapshot(chain_id.to_string())])?;
                let snapshots = self.context.store.snapshotter();
                let committed = snapshots
                    .commit_layer(parent.as_ref(), &diff_id, &metadata::Labels::new(), &bounds)
                    .doing(|| format!("cannot commit snapshot {chain_id}"))?;
                let outcome = match committed {
                    LayerCommitted::New => Outcome::New,
                    LayerCommitted::Existing => Outcome::Existing,
                };
                if outcome == Outcome::New {
                    self.context.event(Event::SnapshotCommitted(chain_id));
                }
                outcomes.entry(chain_id).or_insert(outcome);
                parent = Some(chain_id);
            }
        }
        Ok(outcomes)
    }

    /// Waits for the disk, unless everything that this import relies on has reached it before.
    fn sync(&self) -> Result<u64> {
        let started = Instant::now();
        trace::within(trace::stage!("sync", needed), |span| {
            let touched = self.touched();
            let needed =
                self.context.options.sync && !self.context.store.metadata().undurable(&touched)?.is_empty();
            span.record("needed", needed);
            if needed && failpoint::sync("import.sync")? {
                durable::sync_filesystem(&self.filesystem)
            } else {
                Ok(())
            }
        })?;
        Ok(started.elapsed().as_millis() as u64)
    }

    fn touched(&self) -> Vec<Resource> {
        self.context.touched.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).clone()
    }

    /// The one transaction that makes the images visible.
    fn publish(&self, plan: &Plan) -> Result<metadata::ImagesCommitted> {
        let mut images = Vec::new();
        for planned in &plan.images {
            let target = planned.image.target.clone();
            let target =
                target.ok_or_else(|| Error::new(ErrorKind::NoPlatform, "an image without any manifest"))?;
            let manifests = planned.manifests.iter().map(|manifest| manifest_row(manifest, &plan.layers));
            let manifests = manifests.collect::<Result<Vec<_>>>()?;
            for name in names(planned) {
                images.push(NewImage { name, target: target.clone(), manifests: manifests.clone() });
            }
        }
        let durable = if self.context.options.sync { self.touched() } else { Vec::new() };
        let commit = ImageCommit {
            images,
            references: references(plan),
            durable,
            no_retag: self.context.options.no_retag,
            sync: self.context.options.sync,
            ..ImageCommit::default()
        };
        trace::within(trace::stage!("publish", kind = "images", digest, existing), |_| {
            failpoint::at("images.publish")?;
            let committed = self.context.store.metadata().image_put(&commit)?;
            failpoint::at("images.published")?;
            self.context.store.refresh_index()?;
            Ok(committed)
        })
    }

    fn report(
        self,
        plan: Plan,
        documents: Vec<Committed>,
        snapshots: std::collections::HashMap<ChainId, Outcome>,
        committed: metadata::ImagesCommitted,
        sync_ms: u64,
        started: Instant,
    ) -> Result<ImportReport> {
        let mut report =
            ImportReport { memory_budget_bytes: self.context.budget.total_bytes(), ..Default::default() };
        let mut outcomes = committed.images.into_iter();
        for planned in &plan.images {
            for name in names(planned) {
                let committed = outcomes.next();
                for manifest in &planned.manifests {
                    let image =
                        image_report(planned, manifest, &plan.layers, &snapshots, name.clone(), &committed)?;
                    report.images.push(image);
                }
            }
        }
        count_blobs(&mut report.blobs, &plan.layers, &documents);
        count_trees(&mut report.trees, &plan.layers);
        report.snapshots.new = snapshots.values().filter(|outcome| **outcome == Outcome::New).count() as u64;
        report.snapshots.existing = snapshots.len() as u64 - report.snapshots.new;
        report.skipped = plan.skipped;
        report.stages_ms = StageTimes { sync: sync_ms, ..self.context.clock.report() };
        report.peak_rss_bytes = peak_rss_bytes();
        report.confinement = self.told_confinement();
        report.notices = self.context.audit.take_notices();
        report.claims = self.context.audit.claims();
        report.audit = self.context.audit.report();
        report.elapsed_ms = started.elapsed().as_millis() as u64;
        Ok(report)
    }
}

fn planning(make: impl FnOnce() -> Result<Plan>) -> Result<Plan> {
    trace::within(trace::stage!("plan", images, layers), |span| {
        let plan = make()?;
        span.record("images", plan.images.len()).record("layers", plan.layers.len());
        Ok(plan)
    })
}

/// What every document of the archive names, so that no collection has to look into them.
fn references(plan: &Plan) -> Vec<DocumentReferences> {
    let documents = plan.images.iter().flat_map(|planned| &planned.image.documents);
    let indexes = documents.map(|(digest, bytes, _)| (*digest, bytes.as_slice()));
    let manifests = plan.images.iter().flat_map(|planned| &planned.manifests);
    let manifests = manifests.filter_map(|manifest| {
        let (descriptor, bytes) = manifest.found.manifest.as_ref()?;
        Some((descriptor.digest, bytes.as_slice()))
    });
    let mut seen = HashSet::new();
    let once = indexes.chain(manifests).filter(|(digest, _)| seen.insert(*digest));
    once.map(|(digest, bytes)| DocumentReferences::of(digest, parse_document(bytes).ok().as_ref())).collect()
}

fn check_passed(passed: &PassedLayer, found: &FoundLayer) -> Result<()> {
    if passed.contradicted {
        return Err(Error::malformed("the archive holds two members of this name with different content"));
    }
    if let (Some(descriptor), Some(actual)) = (&found.descriptor, &passed.layer.digest) {
        if descriptor.digest != *actual {
            let message = format!("its bytes have the digest {actual}");
            return Err(
                Error::new(ErrorKind::DigestMismatch, message).with_mismatch(descriptor.digest, actual)
            );
        }
        let size = passed.layer.size_bytes.unwrap_or(descriptor.size);
        if descriptor.size != size {
            let message = format!("it has {size} bytes, its descriptor says {}", descriptor.size);
            return Err(Error::new(ErrorKind::SizeMismatch, message).with_mismatch(descriptor.size, size));
        }
    }
    passed.unpack_error.as_ref().map_or(Ok(()), |error| Err(error.duplicate()))
}

fn names(planned: &PlanImage) -> Vec<Option<String>> {
    match planned.image.names.as_slice() {
        [] => vec![None],
        names => names.iter().map(|name| Some(name.to_string())).collect(),
    }
}

fn layer_digest(layer: &Layer) -> Result<Digest> {
    layer.digest.ok_or_else(|| Error::new(ErrorKind::Internal, "a layer has no digest after its import"))
}

fn layer_diff_id(layer: &Layer) -> Result<DiffId> {
    let known = layer.diff_id.or(layer.claimed_diff_id);
    known.ok_or_else(|| Error::new(ErrorKind::Internal, "a layer has no DiffID after its import"))
}

fn manifest_diff_ids(manifest: &PlanManifest, layers: &[Layer]) -> Result<Vec<DiffId>> {
    manifest.layers.iter().map(|index| layer_diff_id(&layers[*index])).collect()
}

/// Makes the configuration of a legacy archive and the manifest of a docker archive, now that the layers are known.
fn complete(manifest: &mut PlanManifest, layers: &[Layer]) -> Result<()> {
    if manifest.found.manifest.is_some() {
        return Ok(());
    }
    let diff_ids = manifest_diff_ids(manifest, layers)?;
    manifest.found.complete_config(&diff_ids)?;
    let mut blobs = Vec::with_capacity(manifest.layers.len());
    for index in &manifest.layers {
        let layer = &layers[*index];
        blobs.push((layer_digest(layer)?, layer.size_bytes.unwrap_or(0), layer.codec.unwrap_or(Codec::None)));
    }
    let config = (manifest.found.config_digest, manifest.found.config_bytes.len() as u64);
    let bytes = archive::docker_manifest(config, &blobs);
    let descriptor = Descriptor::new(media_type::MANIFEST, Digest::of(&bytes), bytes.len() as u64);
    manifest.found.manifest = Some((descriptor, bytes));
    Ok(())
}

fn manifest_of(manifest: &PlanManifest) -> Result<(&Descriptor, &Vec<u8>)> {
    let made = manifest.found.manifest.as_ref().map(|(descriptor, bytes)| (descriptor, bytes));
    made.ok_or_else(|| Error::new(ErrorKind::Internal, "an image has no manifest after its import"))
}

fn manifest_row(manifest: &PlanManifest, layers: &[Layer]) -> Result<ManifestRow> {
    let (descriptor, bytes) = manifest_of(manifest)?;
    let mut rows = Vec::with_capacity(manifest.layers.len());
    let mut size_bytes = bytes.len() as u64 + manifest.found.config_bytes.len() as u64;
    for index in &manifest.layers {
        rows.push((layer_digest(&layers[*index])?, layer_diff_id(&layers[*index])?));
        size_bytes += layers[*index].size_bytes.unwrap_or(0);
    }
    Ok(ManifestRow {
        digest: descriptor.digest,
        config: manifest.found.config_digest,
        platform: manifest.found.platform.clone(),
        chain_id: if manifest.unpack { chain_id(manifest, layers)? } else { None },
        layers: rows,
        size_bytes,
    })
}

fn chain_id(manifest: &PlanManifest, layers: &[Layer]) -> Result<Option<ChainId>> {
    Ok(ChainId::of(&manifest_diff_ids(manifest, layers)?).last().copied())
}

/// The DiffIDs of every layer, those that the archive leaves out as well.
fn whole_stack(manifest: &PlanManifest, layers: &[Layer]) -> Result<Vec<DiffId>> {
    match manifest.layers.len() == manifest.found.layers.len() {
        true => manifest_diff_ids(manifest, layers),
        false => Ok(manifest.found.config.diff_ids.clone()),
    }
}

fn image_report(
    planned: &PlanImage,
    manifest: &PlanManifest,
    layers: &[Layer],
    snapshots: &std::collections::HashMap<ChainId, Outcome>,
    name: Option<String>,
    committed: &Option<metadata::CommittedImage>,
) -> Result<ImageReport> {
    let (descriptor, _) = manifest_of(manifest)?;
    let chain = ChainId::of(&whole_stack(manifest, layers)?);
    let mut reports = Vec::with_capacity(manifest.layers.len());
    for (index, position) in manifest.layers.iter().zip(&manifest.positions) {
        let missing = || Error::new(ErrorKind::Internal, "a layer beyond the stack");
        let chain_id = chain.get(*position).ok_or_else(missing)?;
        let layer = &layers[*index];
        reports.push(LayerReport {
            digest: layer_digest(layer)?,
            diff_id: layer_diff_id(layer)?,
            chain_id: *chain_id,
            size_bytes: layer.size_bytes.unwrap_or(0),
            unpacked_bytes: layer.unpacked_bytes,
            blob: layer.blob.unwrap_or(Outcome::None),
            tree: layer.tree.unwrap_or(Outcome::None),
            snapshot: snapshots.get(chain_id).copied().unwrap_or(Outcome::None),
            elapsed_ms: layer.elapsed.as_millis() as u64,
        });
    }
    let (outcome, previous) = match committed.as_ref().map(|image| &image.outcome) {
        Some(metadata::ImageOutcome::Existing) => (ImageOutcome::Existing, None),
        Some(metadata::ImageOutcome::Retagged { previous }) => {
            (ImageOutcome::Retagged, Some(previous.digest))
        }
        Some(metadata::ImageOutcome::New) | None => (ImageOutcome::New, None),
    };
    Ok(ImageReport {
        name,
        target: planned.image.target.as_ref().map_or(descriptor.digest, |target| target.digest),
        manifest: descriptor.digest,
        config: manifest.found.config_digest,
        platform: manifest.found.platform.clone(),
        chain_id: if manifest.unpack { chain.last().copied() } else { None },
        outcome,
        previous,
        layers: reports,
    })
}

fn count_blobs(totals: &mut BlobTotals, layers: &[Layer], documents: &[Committed]) {
    let of_layer =
        |layer: &Layer| (layer.blob.unwrap_or(Outcome::None), layer.size_bytes.unwrap_or(0), layer.cloned);
    let documents = documents.iter().map(|document| match document {
        Committed::New(_, size) => (Outcome::New, *size, false),
        Committed::Existing(_, size) => (Outcome::Existing, *size, false),
    });
    for (outcome, size, cloned) in layers.iter().map(of_layer).chain(documents) {
        match outcome {
            Outcome::New if cloned => {
                (totals.new, totals.bytes_cloned) = (totals.new + 1, totals.bytes_cloned + size)
            }
            Outcome::New => {
                (totals.new, totals.bytes_written) = (totals.new + 1, totals.bytes_written + size)
            }
            Outcome::Existing => {
                (totals.existing, totals.bytes_skipped) = (totals.existing + 1, totals.bytes_skipped + size)
            }
            Outcome::Shared => {
                (totals.shared, totals.bytes_skipped) = (totals.shared + 1, totals.bytes_skipped + size)
            }
            Outcome::None => {}
        }
    }
}

fn count_trees(totals: &mut TreeTotals, layers: &[Layer]) {
    let mut seen = HashSet::new();
    for layer in layers {
        // Two blobs of different compression have one tree.
        let first = layer.diff_id.is_none_or(|diff_id| seen.insert(diff_id));
        match layer.tree {
            Some(Outcome::New) => {
                totals.new += 1;
                totals.bytes_written += layer.unpacked_bytes;
                totals.files += layer.inodes;
            }
            Some(Outcome::Existing) if first => {
                totals.existing += 1;
                totals.bytes_skipped += layer.unpacked_bytes;
            }
            Some(Outcome::Shared) if first => {
                totals.shared += 1;
                totals.bytes_skipped += layer.unpacked_bytes;
            }
            _ => {}
        }
    }
}

/// The most memory that this process has had resident. Not from getrusage: its figure survives exec and is the parent's
/// where that was larger.
fn peak_rss_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<u64>().ok());
    kib.unwrap_or_default() * 1024
}

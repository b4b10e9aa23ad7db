//! What is to be imported: the images chosen by platform, and their layers, each once.

use super::context::Context;
use super::layer_job::check_diff_id;
use super::layers::Layer;
use super::options::ImportOptions;
use super::report::SkippedReport;
use crate::archive::{Found, FoundImage, FoundLayer, FoundManifest, MemberName, Seekable};
use crate::content::HEAD_BYTES;
use crate::error::{Error, ErrorKind, Result, ResultExt};
use crate::io::codec::Codec;
use crate::oci::{Digest, Platform, PlatformChoice, Reference};
use std::collections::HashMap;

/// The images of one import, and their layers.
pub(crate) struct Plan {
    pub(crate) images: Vec<PlanImage>,
    pub(crate) layers: Vec<Layer>,
    pub(crate) skipped: Vec<SkippedReport>,
}

/// One image: its names, what they point to, and the manifests that were chosen.
pub(crate) struct PlanImage {
    pub(crate) image: FoundImage,
    pub(crate) manifests: Vec<PlanManifest>,
}

/// A chosen manifest: which of the plan's layers it has, and whether it can be unpacked.
pub(crate) struct PlanManifest {
    pub(crate) found: FoundManifest,
    pub(crate) layers: Vec<usize>,
    /// Where each of them stands in the image's stack, which may have layers that are left out.
    pub(crate) positions: Vec<usize>,
    pub(crate) unpack: bool,
}

/// What identifies a layer before its digest is known.
#[derive(PartialEq, Eq, Hash)]
enum LayerKey {
    Digest(Digest),
    Member(MemberName),
}

/// Chooses platforms, applies `--tag`, and collapses layers that stand several times.
pub(crate) fn plan(
    context: &Context<'_>,
    found: Found,
    describe: &mut dyn FnMut(&FoundLayer) -> Result<Layer>,
) -> Result<Plan> {
    let mut skipped: Vec<SkippedReport> = found
        .skipped
        .into_iter()
        .map(|s| SkippedReport { descriptor: s.descriptor, reason: s.reason })
        .collect();
    let mut images = Vec::new();
    let mut table = Table::default();
    for mut image in name(found.images, context.options)? {
        let chosen = choose(&mut image, context, &mut skipped)?;
        let mut manifests = Vec::with_capacity(chosen.len());
        for found in chosen {
            manifests.push(table.add(context, found, describe, &mut skipped)?);
        }
        images.push(PlanImage { image, manifests });
    }
    Ok(Plan { images, layers: table.layers, skipped })
}

/// `--tag` names the one image of the archive.
fn name(mut images: Vec<FoundImage>, options: &ImportOptions) -> Result<Vec<FoundImage>> {
    if options.tags.is_empty() {
        return Ok(images);
    }
    match images.as_mut_slice() {
        [image] => image.names = options.tags.clone(),
        several => {
            let message =
                format!("the archive has {} images, and a name can be given to one only", several.len());
            return Err(Error::new(ErrorKind::InvalidArgument, message).with_hint("import it without --tag"));
        }
    }
    Ok(images)
}

fn choose(
    image: &mut FoundImage,
    context: &Context<'_>,
    skipped: &mut Vec<SkippedReport>,
) -> Result<Vec<FoundManifest>> {
    let manifests = std::mem::take(&mut image.manifests);
    let host = Platform::host();
    let (wanted, lenient) = match &context.options.platform {
        PlatformChoice::All => return Ok(manifests),
        PlatformChoice::Host => (&host, true),
        PlatformChoice::Best(platform) => (platform, false),
    };
    let best = (0..manifests.len()).rev().max_by_key(|at| manifests[*at].platform.fit(wanted));
    let fits = |at: &usize| manifests[*at].platform.fit(wanted).is_some();
    let best = match best.filter(fits) {
        Some(best) => best,
        // There is nothing to choose from, and nobody asked for another platform: what `docker load` does.
        None if lenient && manifests.len() == 1 && image.documents.is_empty() => {
            context.notice(format!(
                "{} is for {}, this machine is {host}",
                shown(image),
                manifests[0].platform
            ));
            0
        }
        None => return Err(no_platform(image, &manifests, wanted)),
    };
    let mut chosen = Vec::new();
    for (at, manifest) in manifests.into_iter().enumerate() {
        if at == best {
            chosen.push(manifest);
        } else if let Some((descriptor, _)) = &manifest.manifest {
            let reason = format!("platform {} was not asked for", manifest.platform);
            skipped.push(SkippedReport { descriptor: descriptor.digest.to_string(), reason });
        }
    }
    Ok(chosen)
}

/// How a message calls an image.
fn shown(image: &FoundImage) -> String {
    let unnamed =
        || image.target.as_ref().map_or("the image".to_string(), |target| target.digest.to_string());
    image.names.first().map_or_else(unnamed, Reference::to_string)
}

fn no_platform(image: &FoundImage, manifests: &[FoundManifest], wanted: &Platform) -> Error {
    let have: Vec<String> = manifests.iter().map(|manifest| manifest.platform.to_string()).collect();
    let have = if have.is_empty() { "none".to_string() } else { have.join(", ") };
    Error::new(ErrorKind::NoPlatform, format!("{} has no image for {wanted}; present: {have}", shown(image)))
        .with_hint("choose one with --platform, or import all with --all-platforms")
}

#[derive(Default)]
struct Table {
    layers: Vec<Layer>,
    index: HashMap<LayerKey, usize>,
}

impl Table {
    fn add(
        &mut self,
        context: &Context<'_>,
        found: FoundManifest,
        describe: &mut dyn FnMut(&FoundLayer) -> Result<Layer>,
        skipped: &mut Vec<SkippedReport>,
    ) -> Result<PlanManifest> {
        let limit = context.options.limits.layers;
        if found.layers.len() > limit {
            return Err(Error::over(
                "layers",
                format!("the image has {} layers, at most {limit} are allowed", found.layers.len()),
            ));
        }
        let mut unpack = context.options.unpack;
        let mut layers = Vec::with_capacity(found.layers.len());
        let mut positions = Vec::with_capacity(found.layers.len());
        for (position, found) in found.layers.iter().enumerate() {
            if let Some(reason) = absent_foreign(context, found)? {
                skipped.push(reason);
                unpack = false;
                continue;
            }
            layers.push(self.add_layer(describe(found)?)?);
            positions.push(position);
        }
        Ok(PlanManifest { found, layers, positions, unpack })
    }

    /// The place of a layer in the plan. One that is there already must be said to have the same DiffID: its content
    /// cannot have two.
    fn add_layer(&mut self, layer: Layer) -> Result<usize> {
        let key = match (&layer.digest, &layer.member) {
            (Some(digest), _) => LayerKey::Digest(*digest),
            (None, Some(member)) => LayerKey::Member(member.clone()),
            (None, None) => LayerKey::Member(MemberName::default()),
        };
        if let Some(index) = self.index.get(&key) {
            let known = &mut self.layers[*index];
            match (&known.claimed_diff_id, &layer.claimed_diff_id) {
                (Some(known), Some(claimed)) => {
                    check_diff_id(known, claimed).doing(|| format!("cannot import layer {}", layer.key()))?;
                }
                _ => known.claimed_diff_id = known.claimed_diff_id.or(layer.claimed_diff_id),
            }
            return Ok(*index);
        }
        self.layers.push(layer);
        self.index.insert(key, self.layers.len() - 1);
        Ok(self.layers.len() - 1)
    }
}

/// A foreign layer that the archive left out on purpose. It is never fetched.
fn absent_foreign(context: &Context<'_>, layer: &FoundLayer) -> Result<Option<SkippedReport>> {
    let Some(descriptor) = layer.descriptor.as_ref().filter(|d| layer.member.is_none() && d.is_foreign())
    else {
        return Ok(None);
    };
    if context.has_blob(&descriptor.digest, Some(descriptor.size))? {
        return Ok(None);
    }
    let reason =
        "a foreign layer that the archive leaves out; its image is stored and cannot be unpacked".to_string();
    Ok(Some(SkippedReport { descriptor: descriptor.digest.to_string(), reason }))
}

/// A layer of a seekable archive, as announced.
pub(crate) fn describe_seekable(
    context: &Context<'_>,
    archive: &Seekable,
    found: &FoundLayer,
) -> Result<Layer> {
    let mut layer = Layer {
        member: found.member.clone(),
        digest: found.descriptor.as_ref().map(|descriptor| descriptor.digest),
        size_bytes: Some(found.descriptor.as_ref().map_or(found.size, |descriptor| descriptor.size)),
        claimed_diff_id: found.diff_id,
        ..Layer::default()
    };
    let (Some(member), None) = (&layer.member, &layer.digest) else { return Ok(layer) };
    let mut head = vec![0; (found.size.min(HEAD_BYTES)) as usize];
    archive.read_range(member, 0, &mut head).doing(|| format!("cannot read {member}"))?;
    match (Codec::sniff(&head), found.diff_id) {
        // The blob of a layer that is not compressed has the layer's DiffID for a digest; it is checked as it passes.
        (Codec::None, Some(diff_id)) => layer.digest = Some(diff_id.0),
        _ => {
            let candidates = context.store.metadata().blobs_by_head(found.size, &Digest::of(&head))?;
            layer.compare_first = !candidates.is_empty();
        }
    }
    Ok(layer)
}

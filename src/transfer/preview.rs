//! `--dry-run`: the plan as plain data, before a byte moves.

use super::context::Context;
use super::layers::Layer;
use super::plan::Plan;
use super::report::{ImportPlan, PlannedImage, PlannedLayer};
use crate::error::Result;
use crate::oci::Reference;
use crate::progress::Outcome;

/// What the plan would do to this store.
pub(crate) fn preview(context: &Context<'_>, plan: &Plan) -> Result<ImportPlan> {
    let layers = plan.layers.iter().map(|layer| planned(context, layer)).collect::<Result<Vec<_>>>()?;
    let mut preview = ImportPlan { skipped: plan.skipped.clone(), ..ImportPlan::default() };
    for layer in &layers {
        if layer.blob == Outcome::New {
            preview.blobs_to_write += 1;
            preview.bytes_to_write += layer.size_bytes;
        }
        preview.trees_to_extract += u64::from(layer.tree == Outcome::New);
    }
    for image in &plan.images {
        for manifest in &image.manifests {
            preview.images.push(PlannedImage {
                names: image.image.names.iter().map(Reference::to_string).collect(),
                platform: manifest.found.platform.clone(),
                layers: manifest.layers.iter().map(|index| layers[*index].clone()).collect(),
            });
        }
    }
    Ok(preview)
}

fn planned(context: &Context<'_>, layer: &Layer) -> Result<PlannedLayer> {
    let blob = match &layer.digest {
        Some(digest) if context.has_blob(digest, layer.size_bytes)? => Outcome::Existing,
        _ if context.options.discard_blobs => Outcome::None,
        _ => Outcome::New,
    };
    let tree = match layer.diff_id.or(layer.claimed_diff_id) {
        _ if !context.options.unpack => Outcome::None,
        Some(diff_id) if context.has_tree(&diff_id)? => Outcome::Existing,
        _ => Outcome::New,
    };
    Ok(PlannedLayer {
        digest: layer.digest,
        diff_id: layer.diff_id.or(layer.claimed_diff_id),
        size_bytes: layer.size_bytes.unwrap_or(0),
        blob,
        tree,
    })
}

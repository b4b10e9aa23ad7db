//! Docker archives: `manifest.json` names the configuration and the layer members of each image.
//!
//! Members may have any name: `<id>/layer.tar`, `<DiffID>.tar`, `<id>.tar.gz`, `sha256:<id>`, `blobs/sha256/<digest>`.
//! Computed digests decide; only where a name is a digest in so many words, the configuration must have it.

use super::found::{Documents, read_config, read_name};
use super::oci_layout::check_digest;
use super::{Format, Found, FoundImage, FoundLayer, FoundManifest, MemberName};
use crate::error::{Error, ErrorKind, Result, ResultExt};
use crate::io::codec::Codec;
use crate::oci::{Descriptor, DiffId, Digest, Manifest, media_type};
use serde::Deserialize;
use std::collections::{BTreeMap, HashMap};

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DockerImage {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    #[serde(default)]
    layers: Option<Vec<String>>,
    /// What foreign layers are, which the archive leaves out.
    #[serde(default)]
    layer_sources: Option<HashMap<String, Descriptor>>,
}

/// Reads `manifest.json`; `None` if there is none.
pub(super) fn read(documents: &Documents<'_>) -> Result<Option<Found>> {
    let Some(bytes) = documents.read_named("manifest.json")? else { return Ok(None) };
    let entries: Vec<DockerImage> = serde_json::from_slice(&bytes)
        .map_err(|error| Error::malformed(format!("cannot read manifest.json: {error}")))?;
    let mut skipped = Vec::new();
    let mut images: Vec<FoundImage> = Vec::new();
    for entry in &entries {
        documents.count()?;
        let tags = entry.repo_tags.as_deref().unwrap_or_default();
        tags.iter().try_for_each(|_| documents.count())?;
        let names: Vec<_> = tags.iter().filter_map(|tag| read_name(tag, &mut skipped)).collect();
        let manifest = read_image(documents, entry).doing(|| "cannot read manifest.json")?;
        let twin = images.iter_mut().find(|image| is_same(&image.manifests, &manifest));
        match twin {
            Some(image) => image.names.extend(names),
            None => images.push(FoundImage {
                names,
                target: None,
                documents: Vec::new(),
                manifests: vec![manifest],
            }),
        }
    }
    Ok(Some(Found { images, skipped, format: Format::Docker }))
}

fn is_same(known: &[FoundManifest], other: &FoundManifest) -> bool {
    known.iter().any(|known| known.config_digest == other.config_digest && known.layers == other.layers)
}

fn read_image(documents: &Documents<'_>, entry: &DockerImage) -> Result<FoundManifest> {
    let names = entry.layers.as_deref().unwrap_or_default();
    documents.check_layers(names.len())?;
    let member = MemberName::parse(entry.config.as_bytes())?;
    let missing =
        || Error::new(ErrorKind::MissingContent, format!("configuration {member} is not in the archive"));
    let config_bytes = documents.read(&member)?.ok_or_else(missing)?;
    let config_digest = config_digest(&member, &config_bytes)?;
    let config = read_config(&config_bytes, names.len(), &member.to_string())?;
    let mut layers = Vec::with_capacity(names.len());
    for (name, diff_id) in names.iter().zip(&config.diff_ids) {
        documents.count()?;
        layers.push(layer(documents, entry, name, diff_id)?);
    }
    Ok(FoundManifest {
        platform: config.platform.clone(),
        config,
        config_bytes,
        config_digest,
        manifest: None,
        layers,
        legacy: None,
    })
}

fn config_digest(member: &MemberName, bytes: &[u8]) -> Result<Digest> {
    match announced(member) {
        Some(digest) => check_digest(&digest, bytes).map(|()| digest),
        None => Ok(Digest::of(bytes)),
    }
}

/// The digest that a name is in so many words: `sha256:<hex>` or `blobs/sha256/<hex>`.
fn announced(member: &MemberName) -> Option<Digest> {
    let text = std::str::from_utf8(member.as_bytes()).ok()?;
    match text.strip_prefix("blobs/") {
        Some(rest) => {
            rest.split_once('/').and_then(|(algorithm, hex)| Digest::from_parts(algorithm, hex).ok())
        }
        None => text.parse().ok(),
    }
}

fn layer(documents: &Documents<'_>, entry: &DockerImage, name: &str, diff_id: &DiffId) -> Result<FoundLayer> {
    let member = MemberName::parse(name.as_bytes())?;
    let diff_id_of = Some(*diff_id);
    if let Some(stat) = documents.members.stat(&member)? {
        return Ok(FoundLayer {
            member: Some(stat.resolved),
            descriptor: None,
            diff_id: diff_id_of,
            size: stat.size,
        });
    }
    let sources = entry.layer_sources.as_ref();
    let foreign =
        sources.and_then(|sources| sources.get(&diff_id.to_string())).filter(|layer| layer.is_foreign());
    Ok(FoundLayer {
        member: None,
        size: foreign.map_or(0, |foreign| foreign.size),
        descriptor: foreign.cloned(),
        diff_id: diff_id_of,
    })
}

/// The OCI manifest that is made for a docker archive: a pure function of what the archive holds. Layers stay as they
/// are and are called what their bytes are.
///
/// ```
/// use transload::{Digest, archive::docker_manifest, io::codec::Codec};
/// let manifest = docker_manifest((Digest::of(b"{}"), 2), &[(Digest::of(b"layer"), 5, Codec::Gzip)]);
/// assert!(manifest.starts_with(br#"{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":"#));
/// ```
pub fn docker_manifest(config: (Digest, u64), layers: &[(Digest, u64, Codec)]) -> Vec<u8> {
    let layer = |(digest, size, codec): &(Digest, u64, Codec)| {
        Descriptor::new(layer_media_type(*codec), *digest, *size)
    };
    let manifest = Manifest {
        schema_version: 2,
        media_type: media_type::MANIFEST.to_string(),
        config: Descriptor::new(media_type::CONFIG, config.0, config.1),
        layers: layers.iter().map(layer).collect(),
        annotations: BTreeMap::new(),
    };
    serde_json::to_vec(&manifest).expect("a manifest is plain data")
}

/// OCI has no types for xz and bzip2, which docker accepts; the usual suffix says it to those who look.
fn layer_media_type(codec: Codec) -> String {
    match codec.media_type() {
        Some(known) => known.to_string(),
        None => format!("{}+{codec}", media_type::LAYER),
    }
}

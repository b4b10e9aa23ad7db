//! OCI image layouts (image-spec `image-layout.md`): `index.json`, nested indexes, manifests, configurations.
//!
//! Every document is verified against digest and size before it is believed. Entries that lead to no image
//! (attestations, artifacts) and those whose blobs the archive leaves out are reported and skipped.

use super::found::{ABSENT, Documents, read_config, read_name};
use super::{Format, Found, FoundImage, FoundLayer, FoundManifest, MemberName, Skipped};
use crate::error::{Error, ErrorKind, Result, ResultExt};
use crate::io::digesting::Digester;
use crate::oci::{Descriptor, Digest, Document, Index, Manifest, Platform, media_type, parse_document};
use serde::Deserialize;
use std::collections::HashSet;

/// The full name that containerd gives an entry.
const CONTAINERD_NAME: &str = "io.containerd.image.name";
/// The name that an OCI layout gives an entry: a full one, or a tag alone.
const REF_NAME: &str = "org.opencontainers.image.ref.name";
/// Says that a manifest is no image but describes one (BuildKit).
const DOCKER_REFERENCE_TYPE: &str = "vnd.docker.reference.type";

const IMAGE_CONFIGS: [&str; 3] = ["", media_type::CONFIG, "application/vnd.docker.container.image.v1+json"];

/// Reads an OCI layout; `None` if the archive has no `index.json`.
pub(super) fn read(documents: &Documents<'_>) -> Result<Option<Found>> {
    let Some(bytes) = documents.read_named("index.json")? else { return Ok(None) };
    check_version(documents)?;
    let index = match parse_document(&bytes).doing(|| "cannot read index.json")? {
        Document::Index(index) => index,
        Document::Manifest(_) => return Err(Error::malformed("index.json is a manifest, not an index")),
    };
    let mut skipped = Vec::new();
    let mut images: Vec<FoundImage> = Vec::new();
    for entry in &index.manifests {
        documents.count()?;
        let names: Vec<_> = name(entry).and_then(|name| read_name(name, &mut skipped)).into_iter().collect();
        let known =
            |image: &&mut FoundImage| image.target.as_ref().is_some_and(|known| known.digest == entry.digest);
        match images.iter_mut().find(known) {
            Some(image) => image.names.extend(names),
            None => {
                let mut walk =
                    Walk { documents, skipped: &mut skipped, seen: HashSet::new(), image: empty(entry) };
                walk.visit(entry, 0)?;
                if !walk.image.manifests.is_empty() {
                    images.push(FoundImage { names, ..walk.image });
                }
            }
        }
    }
    Ok(Some(Found { images, skipped, format: Format::OciLayout }))
}

fn check_version(documents: &Documents<'_>) -> Result<()> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Layout {
        image_layout_version: String,
    }
    // containerd does not ask for the file; where it is, it must be right.
    let Some(bytes) = documents.read_named("oci-layout")? else { return Ok(()) };
    let layout: Layout = serde_json::from_slice(&bytes)
        .map_err(|error| Error::malformed(format!("cannot read oci-layout: {error}")))?;
    match layout.image_layout_version.starts_with("1.") {
        true => Ok(()),
        false => {
            let shown: String = layout.image_layout_version.chars().take(40).collect();
            Err(Error::new(ErrorKind::Unsupported, format!("OCI layout version {shown:?} is not known")))
        }
    }
}

fn name(entry: &Descriptor) -> Option<&str> {
    let annotation =
        |key: &str| entry.annotations.get(key).map(String::as_str).filter(|name| !name.is_empty());
    annotation(CONTAINERD_NAME).or_else(|| annotation(REF_NAME))
}

fn empty(target: &Descriptor) -> FoundImage {
    FoundImage {
        names: Vec::new(),
        target: Some(target.clone()),
        documents: Vec::new(),
        manifests: Vec::new(),
    }
}

/// The walk from one entry of `index.json` down to its manifests.
struct Walk<'a> {
    documents: &'a Documents<'a>,
    skipped: &'a mut Vec<Skipped>,
    seen: HashSet<Digest>,
    image: FoundImage,
}

impl Walk<'_> {
    fn visit(&mut self, descriptor: &Descriptor, depth: usize) -> Result<()> {
        self.documents.count()?;
        let max_depth = self.documents.limits.index_depth;
        if depth > max_depth {
            return Err(Error::over(
                "index_depth",
                format!("its indexes are nested deeper than {max_depth} levels"),
            ));
        }
        if is_attestation(descriptor) {
            self.skip(descriptor, "an attestation");
            return Ok(());
        }
        if !self.seen.insert(descriptor.digest) {
            return Ok(());
        }
        let Some(bytes) = read_blob(self.documents, descriptor)? else {
            self.skip(descriptor, ABSENT);
            return Ok(());
        };
        let reading = || format!("cannot read {}", descriptor.digest);
        if is_other_document(descriptor) {
            self.skip(descriptor, &format!("of type {}, not an image", descriptor.media_type));
            return Ok(());
        }
        let document = parse_document(&bytes).doing(reading)?;
        document.check_descriptor(descriptor).doing(reading)?;
        match document {
            Document::Index(index) => self.visit_index(descriptor, bytes, &index, depth),
            Document::Manifest(manifest) => self.visit_manifest(descriptor, bytes, &manifest),
        }
    }

    fn visit_index(
        &mut self,
        descriptor: &Descriptor,
        bytes: Vec<u8>,
        index: &Index,
        depth: usize,
    ) -> Result<()> {
        let declared =
            [&index.media_type, &descriptor.media_type].into_iter().find(|declared| !declared.is_empty());
        let media_type = declared.map_or(media_type::INDEX, String::as_str).to_string();
        self.image.documents.push((descriptor.digest, bytes, media_type));
        index.manifests.iter().try_for_each(|child| self.visit(child, depth + 1))
    }

    fn visit_manifest(&mut self, descriptor: &Descriptor, bytes: Vec<u8>, manifest: &Manifest) -> Result<()> {
        if let Some(reason) = no_image(manifest) {
            self.skip(descriptor, &reason);
            return Ok(());
        }
        self.documents.check_layers(manifest.layers.len())?;
        let Some(config_bytes) = read_blob(self.documents, &manifest.config)? else {
            self.skip(&manifest.config, ABSENT);
            return Ok(());
        };
        let shown = manifest.config.digest.to_string();
        let config = read_config(&config_bytes, manifest.layers.len(), &shown)?;
        let mut layers = Vec::with_capacity(manifest.layers.len());
        for (layer, diff_id) in manifest.layers.iter().zip(&config.diff_ids) {
            layers.push(FoundLayer { diff_id: Some(*diff_id), ..self.layer(layer)? });
        }
        let given = descriptor.platform.clone().filter(|platform| !platform.os.is_empty());
        let platform = given.unwrap_or_else(|| config.platform.clone());
        // Without a media type anywhere, the shape has decided.
        let declared =
            [&descriptor.media_type, &manifest.media_type].into_iter().find(|declared| !declared.is_empty());
        let mut descriptor = descriptor.clone();
        descriptor.media_type = declared.map_or(media_type::MANIFEST, String::as_str).to_string();
        self.image.manifests.push(FoundManifest {
            platform,
            config,
            config_bytes,
            config_digest: manifest.config.digest,
            manifest: Some((descriptor, bytes)),
            layers,
            legacy: None,
        });
        Ok(())
    }

    fn layer(&self, descriptor: &Descriptor) -> Result<FoundLayer> {
        let stat = self.documents.members.stat(&blob_name(&descriptor.digest)?)?;
        if let Some(stat) = stat.as_ref().filter(|stat| stat.size != descriptor.size) {
            return Err(wrong_size(descriptor, stat.size));
        }
        Ok(FoundLayer {
            member: stat.map(|stat| stat.resolved),
            descriptor: Some(descriptor.clone()),
            diff_id: None,
            size: descriptor.size,
        })
    }

    fn skip(&mut self, descriptor: &Descriptor, reason: &str) {
        self.skipped.push(Skipped { descriptor: descriptor.digest.to_string(), reason: reason.to_string() });
    }
}

fn is_attestation(descriptor: &Descriptor) -> bool {
    let unknown = |platform: &Platform| platform.os == "unknown" && platform.architecture == "unknown";
    descriptor.annotations.contains_key(DOCKER_REFERENCE_TYPE)
        || descriptor.platform.as_ref().is_some_and(unknown)
}

/// A type that is neither a manifest's nor an index's: such things may be listed (image-spec `image-index.md`). No type,
/// or one that only says JSON, leaves it to the shape.
fn is_other_document(descriptor: &Descriptor) -> bool {
    let known = [
        "",
        "application/json",
        media_type::MANIFEST,
        media_type::INDEX,
        media_type::DOCKER_MANIFEST,
        media_type::DOCKER_INDEX,
    ];
    !known.contains(&descriptor.media_type.as_str())
}

/// Why a manifest describes no image, if it does not.
fn no_image(manifest: &Manifest) -> Option<String> {
    let config = manifest.config.media_type.as_str();
    if !IMAGE_CONFIGS.contains(&config) {
        return Some(format!("an artifact of type {config}, not an image"));
    }
    let in_toto = manifest.layers.iter().any(|layer| layer.media_type.starts_with("application/vnd.in-toto"));
    if in_toto {
        return Some("an attestation".to_string());
    }
    // Signatures (cosign) and files (oras) may come with an image's type of configuration.
    let first = manifest.layers.first().filter(|_| !manifest.layers.iter().any(may_be_layer))?;
    Some(format!("an artifact of type {}, not an image", first.media_type))
}

/// Whether a type leaves it open that this is a layer: the bytes decide how it is packed, and few types say that it is none.
fn may_be_layer(layer: &Descriptor) -> bool {
    let names = ["layer", "rootfs", "tar", "octet-stream"];
    layer.media_type.is_empty() || names.iter().any(|name| layer.media_type.contains(name))
}

pub(super) fn blob_name(digest: &Digest) -> Result<MemberName> {
    MemberName::parse(format!("blobs/{}/{}", digest.algorithm().name(), digest.hex()).as_bytes())
}

fn wrong_size(descriptor: &Descriptor, actual: u64) -> Error {
    let message =
        format!("{} has {actual} bytes, its descriptor says {}", descriptor.digest, descriptor.size);
    Error::new(ErrorKind::SizeMismatch, message).with_mismatch(descriptor.size, actual)
}

/// A document by its descriptor, verified; `None` if the archive leaves it out.
fn read_blob(documents: &Documents<'_>, descriptor: &Descriptor) -> Result<Option<Vec<u8>>> {
    let Some(bytes) = documents.read(&blob_name(&descriptor.digest)?)? else { return Ok(None) };
    if bytes.len() as u64 != descriptor.size {
        return Err(wrong_size(descriptor, bytes.len() as u64));
    }
    check_digest(&descriptor.digest, &bytes)?;
    Ok(Some(bytes))
}

pub(super) fn check_digest(expected: &Digest, bytes: &[u8]) -> Result<()> {
    let mut digester = Digester::new(expected.algorithm());
    digester.update(bytes);
    let actual = digester.finish();
    if actual != *expected {
        let message = format!("{expected} has the digest {actual}");
        return Err(Error::new(ErrorKind::DigestMismatch, message).with_mismatch(expected, actual));
    }
    Ok(())
}

//! The images that an archive describes. An OCI layout and a `manifest.json` in one archive (docker 25 and later, our
//! exports) must tell the same story.

use super::legacy::LegacyConfig;
use super::{MemberName, Members, docker, legacy, oci_layout};
use crate::error::{Error, ErrorKind, Result, ResultExt};
use crate::limits::Limits;
use crate::oci::{ConfigSummary, Descriptor, DiffId, Digest, Platform, Reference, parse_config};
use std::cell::Cell;
use std::collections::HashSet;

/// How an archive describes its images.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// `index.json`.
    OciLayout,
    /// `manifest.json`.
    Docker,
    /// Both.
    Both,
    /// `repositories` and a `json` for each layer, as docker wrote before 1.10.
    Legacy,
}

/// All images of an archive.
#[derive(Debug)]
pub struct Found {
    /// The images, in the order in which the archive lists them.
    pub images: Vec<FoundImage>,
    /// What the archive lists and what is no image, or is not there.
    pub skipped: Vec<Skipped>,
    /// How they are described.
    pub format: Format,
}

/// Something that was left out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Skipped {
    /// The digest, or the name where it has none.
    pub descriptor: String,
    /// Why.
    pub reason: String,
}

/// One image: everything that the archive's entry for it leads to.
#[derive(Debug)]
pub struct FoundImage {
    /// Its names; none is normal.
    pub names: Vec<Reference>,
    /// What the archive names: a manifest or an index. Docker archives name none.
    pub target: Option<Descriptor>,
    /// The indexes on the way from the target to the manifests: digest, bytes, media type.
    pub documents: Vec<(Digest, Vec<u8>, String)>,
    /// The manifests that are there, one for each platform.
    pub manifests: Vec<FoundManifest>,
}

/// One platform of an image.
#[derive(Debug)]
pub struct FoundManifest {
    /// The platform.
    pub platform: Platform,
    /// What the configuration says.
    pub config: ConfigSummary,
    /// The configuration.
    pub config_bytes: Vec<u8>,
    /// Its digest.
    pub config_digest: Digest,
    /// The manifest; `None` in docker archives, where it is made by [`super::docker_manifest`] once the layers are
    /// known.
    pub manifest: Option<(Descriptor, Vec<u8>)>,
    /// The layers, bottom first.
    pub layers: Vec<FoundLayer>,
    pub(super) legacy: Option<LegacyConfig>,
}

impl FoundManifest {
    /// Makes the configuration of a legacy archive, which cannot be known before the layers' DiffIDs are. Otherwise
    /// checks nothing and does nothing.
    pub fn complete_config(&mut self, diff_ids: &[DiffId]) -> Result<()> {
        let Some(legacy) = self.legacy.take() else { return Ok(()) };
        self.config_bytes = legacy.complete(diff_ids);
        self.config_digest = Digest::of(&self.config_bytes);
        self.config = parse_config(&self.config_bytes)?;
        Ok(())
    }
}

/// One layer, as the archive announces it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FoundLayer {
    /// The member that holds it, links followed; `None` where the archive leaves it out.
    pub member: Option<MemberName>,
    /// What the manifest says of it.
    pub descriptor: Option<Descriptor>,
    /// What the configuration says of it; legacy archives say nothing.
    pub diff_id: Option<DiffId>,
    /// The size of the member, or else what the descriptor says.
    pub size: u64,
}

/// Reads the descriptions of all images.
///
/// # Errors
/// [`ErrorKind::NotAnImage`] if there is none; [`ErrorKind::Malformed`] where two descriptions contradict each other.
pub fn find_images(members: &dyn Members, limits: &Limits) -> Result<Found> {
    let documents = Documents { members, limits, bytes: Cell::new(0), count: Cell::new(0) };
    let oci = oci_layout::read(&documents)?;
    let docker = docker::read(&documents)?;
    let mut found = match (oci, docker) {
        (Some(oci), Some(docker)) => reconcile(oci, docker)?,
        (Some(found), None) | (None, Some(found)) => found,
        (None, None) => legacy::read(&documents)?.ok_or_else(no_description)?,
    };
    if found.images.is_empty() {
        return Err(no_images(&found));
    }
    for image in &mut found.images {
        image.names = once(std::mem::take(&mut image.names));
    }
    Ok(found)
}

fn no_description() -> Error {
    Error::new(ErrorKind::NotAnImage, "it has neither an index.json nor a manifest.json")
        .with_hint("image archives are made with 'docker save', 'podman save' or 'skopeo copy'")
}

fn no_images(found: &Found) -> Error {
    match found.skipped.as_slice() {
        [] => Error::new(ErrorKind::NotAnImage, "it is an image archive without an image"),
        [first, rest @ ..] => {
            let more = if rest.is_empty() { String::new() } else { format!(" (and {} more)", rest.len()) };
            let absent = found.skipped.iter().any(|skipped| skipped.reason == ABSENT);
            let kind = if absent { ErrorKind::MissingContent } else { ErrorKind::NotAnImage };
            Error::new(kind, format!("it has no image: {}: {}{more}", first.descriptor, first.reason))
        }
    }
}

/// Why something is skipped that a sparse archive leaves out.
pub(super) const ABSENT: &str = "not in the archive";

/// Every image of `manifest.json` must be in the index with the same configuration and layers; names are taken from
/// both.
fn reconcile(mut oci: Found, docker: Found) -> Result<Found> {
    for image in docker.images {
        let [manifest] = image.manifests.as_slice() else {
            return Err(Error::new(ErrorKind::Internal, "a docker image without its one manifest"));
        };
        let twin =
            oci.images.iter_mut().find(|known| known.manifests.iter().any(|known| is_same(known, manifest)));
        let Some(twin) = twin else {
            let name = image.names.first().map_or(manifest.config_digest.to_string(), Reference::to_string);
            let message = format!("manifest.json and index.json contradict each other about {name}");
            return Err(Error::malformed(message));
        };
        twin.names.extend(image.names);
    }
    oci.skipped.extend(docker.skipped);
    oci.format = Format::Both;
    Ok(oci)
}

fn is_same(oci: &FoundManifest, docker: &FoundManifest) -> bool {
    let same_layer = |(oci, docker): (&FoundLayer, &FoundLayer)| match (&oci.member, &docker.member) {
        (Some(oci), Some(docker)) => oci == docker,
        // One of the two describes a layer that was left out by its DiffID alone.
        (None, None) => oci.diff_id == docker.diff_id,
        _ => false,
    };
    oci.config_digest == docker.config_digest
        && oci.layers.len() == docker.layers.len()
        && oci.layers.iter().zip(&docker.layers).all(same_layer)
}

/// Each name once, where it comes first.
fn once(names: Vec<Reference>) -> Vec<Reference> {
    let mut known = HashSet::new();
    names.into_iter().filter(|name| known.insert(name.clone())).collect()
}

/// A name as a reference; one that cannot be is reported.
pub(super) fn read_name(text: &str, skipped: &mut Vec<Skipped>) -> Option<Reference> {
    let name = text.parse().ok();
    if name.is_none() {
        let shown: String = text.chars().take(120).flat_map(char::escape_default).collect();
        skipped.push(Skipped { descriptor: shown, reason: "not a valid image name; left out".to_string() });
    }
    name
}

/// Reads documents within the limits for one and for all of them.
pub(super) struct Documents<'a> {
    pub(super) members: &'a dyn Members,
    pub(super) limits: &'a Limits,
    bytes: Cell<u64>,
    count: Cell<usize>,
}

impl Documents<'_> {
    pub(super) fn read(&self, name: &MemberName) -> Result<Option<Vec<u8>>> {
        let Some(bytes) = self.members.document(name, self.limits.json_bytes)? else { return Ok(None) };
        self.bytes.set(self.bytes.get() + bytes.len() as u64);
        if self.bytes.get() > self.limits.json_total_bytes {
            let message =
                format!("its documents have more than {} bytes together", self.limits.json_total_bytes);
            return Err(Error::over("json_total_bytes", message));
        }
        Ok(Some(bytes))
    }

    pub(super) fn read_named(&self, name: &str) -> Result<Option<Vec<u8>>> {
        self.read(&MemberName::parse(name.as_bytes())?)
    }

    /// Counts one more thing that is listed.
    pub(super) fn count(&self) -> Result<()> {
        self.count.set(self.count.get() + 1);
        match self.count.get() > self.limits.descriptors {
            true => Err(Error::over(
                "descriptors",
                format!("it lists more than {} things", self.limits.descriptors),
            )),
            false => Ok(()),
        }
    }

    pub(super) fn check_layers(&self, count: usize) -> Result<()> {
        match count > self.limits.layers {
            true => Err(Error::over(
                "layers",
                format!("an image has {count} layers, at most {} are allowed", self.limits.layers),
            )),
            false => Ok(()),
        }
    }
}

/// Reads a configuration and compares the number of its layers.
pub(super) fn read_config(bytes: &[u8], layers: usize, shown: &str) -> Result<ConfigSummary> {
    let config = parse_config(bytes).doing(|| format!("cannot read configuration {shown}"))?;
    if config.diff_ids.len() != layers {
        let message =
            format!("configuration {shown} has {} DiffIDs for {layers} layers", config.diff_ids.len());
        return Err(Error::malformed(message).with_mismatch(layers, config.diff_ids.len()));
    }
    Ok(config)
}

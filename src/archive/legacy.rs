//! Archives from before docker 1.10: `repositories` names top layers, `<id>/json` describes a layer and names its
//! parent, `<id>/layer.tar` holds it.
//!
//! Nothing says the DiffIDs, so the configuration is made after the layers have been read: the top layer's `json`
//! without what belongs to the layer alone (`id`, `parent`, sizes), with a `history` from every layer's `json` and a
//! `rootfs` of the computed DiffIDs, keys in alphabetical order. The same archive gives the same configuration always.

use super::found::{Documents, read_name};
use super::{Format, Found, FoundImage, FoundLayer, FoundManifest, Skipped};
use crate::error::{Error, ErrorKind, Result};
use crate::oci::{ConfigSummary, DiffId, Digest, HistoryEntry, parse_config};
use serde::Deserialize;
use serde_json::{Map, Value};
use std::collections::{BTreeMap, HashSet};

/// What belongs to a layer and not to the image.
const LAYER_KEYS: [&str; 8] =
    ["id", "parent", "Size", "parent_id", "layer_id", "throwaway", "history", "rootfs"];

/// A configuration that lacks its DiffIDs.
#[derive(Clone, Debug)]
pub(super) struct LegacyConfig {
    /// The `json` of the top layer.
    top: Map<String, Value>,
    /// What the `json` of every layer tells, bottom first. The rest of it may be large, and is of no use.
    history: Vec<HistoryEntry>,
}

impl LegacyConfig {
    pub(super) fn complete(&self, diff_ids: &[DiffId]) -> Vec<u8> {
        legacy_config(&self.top, &self.history, diff_ids)
    }
}

fn legacy_config(top: &Map<String, Value>, history: &[HistoryEntry], diff_ids: &[DiffId]) -> Vec<u8> {
    let own = top.iter().filter(|(key, _)| !LAYER_KEYS.contains(&key.as_str()));
    let mut config: BTreeMap<&str, Value> = own.map(|(key, value)| (key.as_str(), value.clone())).collect();
    config.entry("architecture").or_insert_with(|| "amd64".into());
    config.entry("os").or_insert_with(|| "linux".into());
    let plain = "history and DiffIDs are plain data";
    config.insert("history", serde_json::to_value(history).expect(plain));
    let diff_ids = serde_json::to_value(diff_ids).expect(plain);
    config.insert("rootfs", serde_json::json!({ "type": "layers", "diff_ids": diff_ids }));
    serde_json::to_vec(&config).expect(plain)
}

fn history_entry(layer: &Map<String, Value>) -> HistoryEntry {
    let text = |key: &str| {
        layer.get(key).and_then(Value::as_str).filter(|text| !text.is_empty()).map(str::to_string)
    };
    let command =
        layer.get("container_config").and_then(|config| config.get("Cmd")).and_then(Value::as_array);
    let command = command.map(|words| words.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(" "));
    HistoryEntry {
        created: text("created"),
        created_by: command.filter(|command| !command.is_empty()),
        author: text("author"),
        comment: text("comment"),
        empty_layer: false,
    }
}

/// A layer's id, used as a path only after it has been parsed (CVE-2014-9357: `../` as an id).
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct LayerId(Digest);

impl LayerId {
    fn parse(text: &str) -> Result<Self> {
        Digest::from_parts("sha256", text).map(LayerId).map_err(|_| {
            let shown: String = text.chars().take(80).collect();
            Error::malformed(format!("{shown:?} is not the id of a layer"))
        })
    }

    fn member(self, file: &str) -> String {
        format!("{}/{file}", self.0.hex())
    }
}

/// Reads `repositories`; `None` if there is none.
pub(super) fn read(documents: &Documents<'_>) -> Result<Option<Found>> {
    let Some(bytes) = documents.read_named("repositories")? else { return Ok(None) };
    let repositories: BTreeMap<String, BTreeMap<String, String>> = serde_json::from_slice(&bytes)
        .map_err(|error| Error::malformed(format!("cannot read repositories: {error}")))?;
    let mut skipped: Vec<Skipped> = Vec::new();
    let mut images: Vec<(LayerId, FoundImage)> = Vec::new();
    for (repository, tags) in &repositories {
        for (tag, id) in tags {
            documents.count()?;
            let id = LayerId::parse(id)?;
            let names: Vec<_> = read_name(&format!("{repository}:{tag}"), &mut skipped).into_iter().collect();
            match images.iter_mut().find(|(known, _)| *known == id) {
                Some((_, image)) => image.names.extend(names),
                None => images.push((id, read_image(documents, id, names)?)),
            }
        }
    }
    let images = images.into_iter().map(|(_, image)| image).collect();
    Ok(Some(Found { images, skipped, format: Format::Legacy }))
}

fn read_image(
    documents: &Documents<'_>,
    top: LayerId,
    names: Vec<crate::oci::Reference>,
) -> Result<FoundImage> {
    let (mut own, mut history) = (None, Vec::new());
    let mut layers = Vec::new();
    let mut seen = HashSet::new();
    let mut next = Some(top);
    while let Some(id) = next {
        documents.count()?;
        documents.check_layers(layers.len() + 1)?;
        if !seen.insert(id) {
            return Err(Error::malformed(format!("layer {} is its own ancestor", id.0.hex())));
        }
        let (description, parent) = read_layer(documents, id)?;
        history.push(history_entry(&description));
        own.get_or_insert(description);
        layers.push(layer(documents, id)?);
        next = parent;
    }
    history.reverse();
    layers.reverse();
    let legacy = LegacyConfig { top: own.unwrap_or_default(), history };
    // Until the DiffIDs are known: right in everything else.
    let config_bytes = legacy.complete(&[]);
    let config: ConfigSummary = parse_config(&config_bytes)?;
    let manifest = FoundManifest {
        platform: config.platform.clone(),
        config_digest: Digest::of(&config_bytes),
        config,
        config_bytes,
        manifest: None,
        layers,
        legacy: Some(legacy),
    };
    Ok(FoundImage { names, target: None, documents: Vec::new(), manifests: vec![manifest] })
}

fn read_layer(documents: &Documents<'_>, id: LayerId) -> Result<(Map<String, Value>, Option<LayerId>)> {
    #[derive(Deserialize)]
    struct Link {
        #[serde(default)]
        id: Option<String>,
        #[serde(default)]
        parent: Option<String>,
    }
    let name = id.member("json");
    let missing = || Error::new(ErrorKind::MissingContent, format!("{name} is not in the archive"));
    let bytes = documents.read_named(&name)?.ok_or_else(missing)?;
    // Unlike other documents it is taken apart whole, which takes many times its size. Real ones have some KiB.
    let most = documents.limits.json_bytes / 8;
    if bytes.len() as u64 > most {
        return Err(Error::over("json_bytes", format!("{name} has more than {most} bytes")));
    }
    let unreadable = |error: serde_json::Error| Error::malformed(format!("cannot read {name}: {error}"));
    let link: Link = serde_json::from_slice(&bytes).map_err(unreadable)?;
    if link.id.as_ref().is_some_and(|own| *own != id.0.hex()) {
        return Err(Error::malformed(format!("{name} describes another layer")));
    }
    let parent =
        link.parent.filter(|parent| !parent.is_empty()).map(|parent| LayerId::parse(&parent)).transpose()?;
    Ok((serde_json::from_slice(&bytes).map_err(unreadable)?, parent))
}

fn layer(documents: &Documents<'_>, id: LayerId) -> Result<FoundLayer> {
    let name = id.member("layer.tar");
    let missing = || Error::new(ErrorKind::MissingContent, format!("{name} is not in the archive"));
    let member = super::MemberName::parse(name.as_bytes())?;
    let stat = documents.members.stat(&member)?.ok_or_else(missing)?;
    Ok(FoundLayer { member: Some(stat.resolved), descriptor: None, diff_id: None, size: stat.size })
}

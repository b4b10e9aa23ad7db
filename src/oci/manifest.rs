//! Manifests, indexes and configurations, told apart by their shape and not by what they are called
//! (CVE-2021-41190: one document read as two things).
//!
//! A document with `manifests` is an index, one with `config` and `layers` a manifest. Both shapes at once, a key that
//! stands twice (also in another case, because Go's decoder ignores case), or a media type that contradicts the shape
//! is refused. No media type at all is normal.

use super::descriptor::null_as_empty;
use super::{Descriptor, DiffId, Platform, media_type};
use crate::error::{Error, Result};
use serde::de::{Deserializer, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use std::collections::BTreeMap;

/// An image manifest (image-spec `manifest.md`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    /// Always 2.
    #[serde(default = "current_version")]
    pub schema_version: u32,
    /// The media type, empty where the document gives none.
    #[serde(default, skip_serializing_if = "String::is_empty", deserialize_with = "null_as_empty")]
    pub media_type: String,
    /// The image configuration.
    pub config: Descriptor,
    /// The layers, bottom first.
    #[serde(default, deserialize_with = "null_as_empty")]
    pub layers: Vec<Descriptor>,
    /// Free-form annotations.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "null_as_empty")]
    pub annotations: BTreeMap<String, String>,
}

/// An image index (image-spec `image-index.md`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Index {
    /// Always 2.
    #[serde(default = "current_version")]
    pub schema_version: u32,
    /// The media type, empty where the document gives none.
    #[serde(default, skip_serializing_if = "String::is_empty", deserialize_with = "null_as_empty")]
    pub media_type: String,
    /// The manifests and indexes that it lists.
    #[serde(default, deserialize_with = "null_as_empty")]
    pub manifests: Vec<Descriptor>,
    /// Free-form annotations.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "null_as_empty")]
    pub annotations: BTreeMap<String, String>,
}

/// Nobody else asks for the version, so some writers leave it out.
fn current_version() -> u32 {
    2
}

/// A manifest or an index, by shape.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Document {
    /// `config` and `layers`.
    Manifest(Box<Manifest>),
    /// `manifests`.
    Index(Index),
}

/// Reads a manifest or an index; the shape decides which.
///
/// ```
/// use transload::oci::{Document, parse_document};
/// let document = parse_document(br#"{"schemaVersion":2,"manifests":[]}"#)?;
/// assert!(matches!(document, Document::Index(_)));
/// assert!(parse_document(br#"{"schemaVersion":2,"manifests":[],"layers":[]}"#).is_err());
/// # Ok::<(), transload::Error>(())
/// ```
pub fn parse_document(json: &[u8]) -> Result<Document> {
    let keys = top_level(json)?;
    let has = |key: &str| keys.iter().any(|(name, _)| name.eq_ignore_ascii_case(key));
    let index = has("manifests");
    let manifest = has("config") || has("layers");
    match (index, manifest) {
        (true, true) => {
            Err(Error::malformed("the document has the shape of an index and of a manifest at once"))
        }
        (false, false) if has("fsLayers") => {
            Err(Error::new(crate::ErrorKind::Unsupported, "Docker schema 1 manifests are not supported"))
        }
        (false, false) => Err(Error::malformed("the document is neither a manifest nor an index")),
        (true, false) => {
            let index: Index = parse(json)?;
            check_type(&index.media_type, &[media_type::INDEX, media_type::DOCKER_INDEX], "an index")?;
            check_version(index.schema_version)?;
            Ok(Document::Index(index))
        }
        (false, true) => {
            let manifest: Manifest = parse(json)?;
            check_type(
                &manifest.media_type,
                &[media_type::MANIFEST, media_type::DOCKER_MANIFEST],
                "a manifest",
            )?;
            check_version(manifest.schema_version)?;
            Ok(Document::Manifest(Box::new(manifest)))
        }
    }
}

impl Document {
    /// Refuses a descriptor whose media type says that this document is the other kind.
    pub fn check_descriptor(&self, descriptor: &Descriptor) -> Result<()> {
        let (wrong, what): (&[&str], _) = match self {
            Document::Manifest(_) => (&[media_type::INDEX, media_type::DOCKER_INDEX], "manifest"),
            Document::Index(_) => (&[media_type::MANIFEST, media_type::DOCKER_MANIFEST], "index"),
        };
        if wrong.contains(&descriptor.media_type.as_str()) {
            let message = format!("its descriptor calls the {what} a {}", descriptor.media_type);
            return Err(Error::malformed(message));
        }
        Ok(())
    }
}

fn check_type(found: &str, allowed: &[&str], shape: &str) -> Result<()> {
    match found.is_empty() || allowed.contains(&found) {
        true => Ok(()),
        false => Err(Error::malformed(format!(
            "the document has the shape of {shape} and the media type {found:?}"
        ))),
    }
}

fn check_version(version: u32) -> Result<()> {
    match version {
        2 => Ok(()),
        other => Err(Error::malformed(format!("schemaVersion is {other}, not 2"))),
    }
}

fn parse<'a, T: Deserialize<'a>>(json: &'a [u8]) -> Result<T> {
    serde_json::from_slice(json).map_err(|error| Error::malformed(error.to_string()))
}

/// The keys of the outermost object, each seen once.
fn top_level(json: &[u8]) -> Result<Vec<(String, &RawValue)>> {
    struct Keys;
    impl<'de> Visitor<'de> for Keys {
        type Value = Vec<(String, &'de RawValue)>;
        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("a JSON object")
        }
        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Self::Value, A::Error> {
            let mut seen = std::collections::HashSet::new();
            let mut keys = Vec::new();
            while let Some((key, value)) = map.next_entry::<String, &RawValue>()? {
                if !seen.insert(key.to_ascii_lowercase()) {
                    return Err(serde::de::Error::custom(format!("the key {key:?} stands twice")));
                }
                keys.push((key, value));
            }
            Ok(keys)
        }
    }
    let mut deserializer = serde_json::Deserializer::from_slice(json);
    let keys = deserializer.deserialize_map(Keys).map_err(|error| Error::malformed(error.to_string()))?;
    deserializer.end().map_err(|error| Error::malformed(error.to_string()))?;
    Ok(keys)
}

/// One line of an image's history (image-spec `config.md`).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HistoryEntry {
    /// When the layer was made, RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created: Option<String>,
    /// The command that made it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created_by: Option<String>,
    /// Who made it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub author: Option<String>,
    /// A free comment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub comment: Option<String>,
    /// Whether the line has no layer.
    #[serde(default, skip_serializing_if = "std::ops::Not::not", deserialize_with = "null_as_empty")]
    pub empty_layer: bool,
}

/// What an import needs of an image configuration; the bytes themselves are stored as they are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigSummary {
    /// The platform that the image is for.
    pub platform: Platform,
    /// The layers' DiffIDs, bottom first.
    pub diff_ids: Vec<DiffId>,
    /// The history, oldest first.
    pub history: Vec<HistoryEntry>,
    /// When the image was made, RFC 3339, as written.
    pub created: Option<String>,
}

#[derive(Deserialize)]
struct RawConfig {
    #[serde(default)]
    rootfs: Option<RawRootfs>,
    #[serde(default, deserialize_with = "history")]
    history: Vec<HistoryEntry>,
    #[serde(default)]
    created: Option<String>,
}

#[derive(Deserialize)]
struct RawRootfs {
    #[serde(default, deserialize_with = "null_as_empty")]
    diff_ids: Vec<DiffId>,
}

/// The most lines of a history: an empty one takes two bytes in a document and a hundred here.
const HISTORY_LINES: usize = 10_000;

fn history<'de, D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Vec<HistoryEntry>, D::Error> {
    struct Lines;
    impl<'de> Visitor<'de> for Lines {
        type Value = Vec<HistoryEntry>;
        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("a list of what was done")
        }
        fn visit_unit<E>(self) -> std::result::Result<Self::Value, E> {
            Ok(Vec::new())
        }
        fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> std::result::Result<Self::Value, A::Error> {
            let mut lines = Vec::new();
            while let Some(line) = list.next_element()? {
                if lines.len() == HISTORY_LINES {
                    let message = format!("its history has more than {HISTORY_LINES} lines");
                    return Err(serde::de::Error::custom(message));
                }
                lines.push(line);
            }
            Ok(lines)
        }
    }
    deserializer.deserialize_any(Lines)
}

/// Reads an image configuration.
pub fn parse_config(json: &[u8]) -> Result<ConfigSummary> {
    top_level(json)?;
    let raw: RawConfig = parse(json)?;
    Ok(ConfigSummary {
        // By itself: whoever flattens one into the other keeps all of the document, many times its size.
        platform: parse(json)?,
        diff_ids: raw.rootfs.map(|rootfs| rootfs.diff_ids).unwrap_or_default(),
        history: raw.history,
        created: raw.created,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shape_decides() {
        let config = r#""config":{"mediaType":"x","digest":"sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855","size":0}"#;
        let ok = |json: &str| parse_document(json.as_bytes());
        assert!(matches!(ok(r#"{"schemaVersion":2,"manifests":null}"#), Ok(Document::Index(_))));
        assert!(matches!(
            ok(&format!(r#"{{"schemaVersion":2,{config},"layers":[]}}"#)),
            Ok(Document::Manifest(_))
        ));
        for bad in [
            format!(r#"{{"schemaVersion":2,"manifests":[],{config}}}"#),
            format!(r#"{{"schemaVersion":2,"Manifests":[],{config}}}"#),
            format!(r#"{{"schemaVersion":2,{config},"layers":[],"layers":[]}}"#),
            format!(r#"{{"schemaVersion":2,{config},"layers":[],"LAYERS":[]}}"#),
            format!(r#"{{"schemaVersion":2,"mediaType":"{}",{config},"layers":[]}}"#, media_type::INDEX),
            r#"{"schemaVersion":1,"manifests":[]}"#.to_string(),
            r#"{"schemaVersion":2,"manifests":[{"digest":"sha256:../../x","size":1}]}"#.to_string(),
            r#"{"schemaVersion":2,"manifests":[]} x"#.to_string(),
            r#"[]"#.to_string(),
        ] {
            assert!(ok(&bad).is_err(), "{bad}");
        }
        let negative = config.replace("\"size\":0", "\"size\":-1");
        assert!(ok(&format!(r#"{{"schemaVersion":2,{negative},"layers":[]}}"#)).is_err());
    }
}

//! What is known of an extracted layer beyond its files: the side list that lies beside a tree as `tree.json`.
//!
//! A layer is extracted without its parents, so some facts cannot be told from the tree alone: which names it deletes,
//! which directories hide what is below, which directories nobody asked for, which hard links point to a lower layer.
//! These facts are recorded here; what to do about them is decided where layers are put into a chain.

use crate::error::{Error, Result};
use crate::oci::DiffId;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::{fmt, str::FromStr};

/// The version of [`TreeRecord`] that this release writes.
pub const TREE_RECORD_VERSION: u32 = 1;

/// How deletions are marked in a tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WhiteoutForm {
    /// Devices 0:0 and `trusted.overlay.*` attributes, for overlayfs mounted with privilege.
    Trusted,
    /// Devices 0:0 and `user.overlay.*` attributes, for overlayfs mounted with `userxattr`.
    User,
    /// Nothing is marked in the tree; the lists of the record say it all.
    List,
}

/// A path below the root of a tree: bytes without a leading or a trailing slash; the root itself is empty.
///
/// As text, bytes that are not printable UTF-8, and `%`, stand as `%XX`.
///
/// ```
/// use transload::tree::PathBytes;
/// let path = PathBytes::new(b"a/100%\xff".to_vec());
/// assert_eq!(path.to_string(), "a/100%25%FF");
/// assert_eq!(path.to_string().parse::<PathBytes>().unwrap(), path);
/// ```
#[derive(Clone, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PathBytes(Vec<u8>);

impl PathBytes {
    /// A path of bytes that are relative already.
    pub fn new(bytes: impl Into<Vec<u8>>) -> Self {
        PathBytes(bytes.into())
    }

    /// The path that a name from an archive stands for: slashes and dots cleaned away, and `..` stops at the root.
    pub fn cleaned(name: &[u8]) -> Self {
        let mut path = Vec::with_capacity(name.len());
        for component in name.split(|&byte| byte == b'/') {
            match component {
                b"" | b"." => {}
                b".." => path.truncate(path.iter().rposition(|&byte| byte == b'/').unwrap_or(0)),
                _ => {
                    if !path.is_empty() {
                        path.push(b'/');
                    }
                    path.extend_from_slice(component);
                }
            }
        }
        PathBytes(path)
    }

    /// The bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Whether this is the root.
    pub fn is_root(&self) -> bool {
        self.0.is_empty()
    }

    /// The directory that holds this, and its name there. The root has neither.
    pub fn split(&self) -> Option<(&[u8], &[u8])> {
        split_path(&self.0)
    }

    /// The components, top first.
    pub fn components(&self) -> impl Iterator<Item = &[u8]> {
        self.0.split(|&byte| byte == b'/').filter(|component| !component.is_empty())
    }
}

/// The directory that holds the relative `path`, and its name there; `None` for the root.
pub fn split_path(path: &[u8]) -> Option<(&[u8], &[u8])> {
    if path.is_empty() {
        return None;
    }
    Some(match path.iter().rposition(|&byte| byte == b'/') {
        Some(slash) => (&path[..slash], &path[slash + 1..]),
        None => (&[], path),
    })
}

impl fmt::Display for PathBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for chunk in self.0.utf8_chunks() {
            for char in chunk.valid().chars() {
                match char {
                    '%' => f.write_str("%25")?,
                    _ if char.is_control() => {
                        char.encode_utf8(&mut [0; 4])
                            .bytes()
                            .try_for_each(|byte| write!(f, "%{byte:02X}"))?;
                    }
                    _ => write!(f, "{char}")?,
                }
            }
            chunk.invalid().iter().try_for_each(|byte| write!(f, "%{byte:02X}"))?;
        }
        Ok(())
    }
}

impl fmt::Debug for PathBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{self}\"")
    }
}

impl FromStr for PathBytes {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self> {
        let invalid = || Error::malformed(format!("{text:?} is not a path of a tree"));
        let bytes = unescaped(text.as_bytes()).ok_or_else(invalid)?;
        let path = PathBytes::cleaned(&bytes);
        if path.0 != bytes || bytes.contains(&0) {
            return Err(invalid());
        }
        Ok(path)
    }
}

fn unescaped(text: &[u8]) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.iter();
    let nibble = |digit: Option<&u8>| char::from(*digit?).to_digit(16).map(|value| value as u8);
    while let Some(&byte) = rest.next() {
        match byte {
            b'%' => bytes.push(nibble(rest.next())? << 4 | nibble(rest.next())?),
            _ => bytes.push(byte),
        }
    }
    Some(bytes)
}

impl Serialize for PathBytes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for PathBytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// A hard link whose target was not in its own layer when it came.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PendingLink {
    /// The name that the link gets.
    pub path: PathBytes,
    /// The name of the file that it links to: in the layers below, and if it is not there, in the layer itself.
    pub target: PathBytes,
}

/// The side list of one tree. Lists are sorted and without duplicates, so equal layers have equal records.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TreeRecord {
    /// See [`TREE_RECORD_VERSION`].
    pub version: u32,
    /// The layer, once its stream is verified.
    pub diff_id: Option<DiffId>,
    /// How deletions are marked in the tree.
    pub form: WhiteoutForm,
    /// Entries of the layer's tar, whiteouts included.
    pub entries: u64,
    /// Files, directories and others that were made in the tree.
    pub inodes: u64,
    /// Bytes of regular files, without holes of sparse files.
    pub bytes: u64,
    /// Names that the layer deletes and does not have itself.
    pub whiteouts: Vec<PathBytes>,
    /// Directories that hide what is below them.
    pub opaque: Vec<PathBytes>,
    /// Directories that the layer needs and does not mention; they were made as root:root 0755.
    pub implicit: Vec<PathBytes>,
    /// Hard links to files of lower layers, or to what only comes after them.
    pub pending_links: Vec<PendingLink>,
    /// Whether files have the owners that the layer says; otherwise they belong to whoever extracted them
    /// (`--ignore-chown`). Records of earlier releases do not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owners: Option<bool>,
}

impl TreeRecord {
    /// The record of an empty tree.
    pub fn new(form: WhiteoutForm) -> Self {
        TreeRecord {
            version: TREE_RECORD_VERSION,
            diff_id: None,
            form,
            entries: 0,
            inodes: 0,
            bytes: 0,
            whiteouts: Vec::new(),
            opaque: Vec::new(),
            implicit: Vec::new(),
            pending_links: Vec::new(),
            owners: None,
        }
    }

    /// Whether this says the same of a layer, however its owners were dealt with.
    pub fn is_of_same_layer(&self, other: &TreeRecord) -> bool {
        *self == TreeRecord { owners: self.owners, ..other.clone() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_of_any_bytes_survive_as_text() {
        let every: Vec<u8> = (1..=255).filter(|byte| *byte != b'/').collect();
        for bytes in [&every[..], b"", b"a/b", "ü/\u{85}".as_bytes(), b"new\nline", b"%41", b"\xff/\xfe"] {
            let path = PathBytes::new(bytes);
            let text = path.to_string();
            assert!(!text.chars().any(char::is_control), "{text:?}");
            assert_eq!(text.parse::<PathBytes>().expect(&text), path);
        }
        for bad in ["/a", "a/", "a//b", "..", "a/../b", "%", "%4", "%zz", "%00"] {
            assert!(bad.parse::<PathBytes>().is_err(), "{bad}");
        }
    }

    #[test]
    fn names_are_cleaned_and_stop_at_the_root() {
        for (name, path) in [
            ("/", ""),
            ("./", ""),
            ("", ""),
            ("..", ""),
            ("//x", "x"),
            ("./a//b/./c/", "a/b/c"),
            ("/a/../../x", "x"),
            ("../../x/..", ""),
            ("a/b/../c", "a/c"),
            ("..a/b..", "..a/b.."),
        ] {
            assert_eq!(PathBytes::cleaned(name.as_bytes()).as_bytes(), path.as_bytes(), "{name}");
        }
    }

    #[test]
    fn a_record_survives_as_json() {
        let mut record = TreeRecord::new(WhiteoutForm::User);
        record.whiteouts.push(PathBytes::new(b"a\xff".to_vec()));
        record.pending_links.push(PendingLink { path: PathBytes::new("a"), target: PathBytes::new("b") });
        let json = serde_json::to_string(&record).expect("plain data");
        assert_eq!(serde_json::from_str::<TreeRecord>(&json).expect("just written"), record);
        assert!(!json.contains("owners"), "as earlier releases wrote it: {json}");
        let kept = TreeRecord { owners: Some(true), ..record.clone() };
        let json = serde_json::to_string(&kept).expect("plain data");
        assert_eq!(serde_json::from_str::<TreeRecord>(&json).expect("just written"), kept);
        assert!(kept != record && kept.is_of_same_layer(&record));
    }
}

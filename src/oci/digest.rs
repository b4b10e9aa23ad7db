//! Digests, and the two identities that are built of them and must not be confused with them: [`DiffId`] and
//! [`ChainId`].
//!
//! The grammar is that of image-spec `descriptor.md`, narrowed to the two registered algorithms: lower-case hex of
//! exactly the right length. Nothing that fails to parse here is ever used as a file name.

use crate::error::{Error, ErrorKind, Result};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::{fmt, str::FromStr};

/// A registered digest algorithm.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Algorithm {
    /// SHA-256, the one that everybody uses.
    Sha256,
    /// SHA-512.
    Sha512,
}

impl Algorithm {
    /// The name as it stands before the colon and as the directory under `blobs/`.
    pub fn name(self) -> &'static str {
        match self {
            Algorithm::Sha256 => "sha256",
            Algorithm::Sha512 => "sha512",
        }
    }
}

/// The content address of some bytes.
///
/// ```
/// use transload::Digest;
/// let digest = Digest::of(b"");
/// assert_eq!(digest.to_string(), "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
/// assert!("sha256:../../x".parse::<Digest>().is_err());
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Digest {
    /// A SHA-256 digest.
    Sha256([u8; 32]),
    /// A SHA-512 digest.
    Sha512([u8; 64]),
}

impl Digest {
    /// The SHA-256 digest of `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        use sha2::Digest as _;
        Digest::Sha256(sha2::Sha256::digest(bytes).into())
    }

    /// The algorithm.
    pub fn algorithm(&self) -> Algorithm {
        match self {
            Digest::Sha256(_) => Algorithm::Sha256,
            Digest::Sha512(_) => Algorithm::Sha512,
        }
    }

    /// The raw bytes.
    pub fn as_bytes(&self) -> &[u8] {
        match self {
            Digest::Sha256(bytes) => bytes,
            Digest::Sha512(bytes) => bytes,
        }
    }

    /// The lower-case hex after the colon, as used for file names.
    pub fn hex(&self) -> String {
        self.with_hex(str::to_string)
    }

    /// Lists of images show a hundred thousand digests, so their text is made in one go, and where it is needed.
    fn with_hex<T>(&self, work: impl FnOnce(&str) -> T) -> T {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        let mut text = [0; 128];
        let bytes = self.as_bytes();
        for (pair, byte) in text.chunks_exact_mut(2).zip(bytes) {
            pair.copy_from_slice(&[DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]]);
        }
        work(str::from_utf8(&text[..2 * bytes.len()]).expect("hex digits are ASCII"))
    }

    /// The first twelve hex digits, for people.
    pub fn short(&self) -> String {
        self.with_hex(|hex| hex[..12].to_string())
    }

    /// The digest whose algorithm and hex are given apart, as in the path `blobs/sha256/<hex>`.
    pub fn from_parts(algorithm: &str, hex: &str) -> Result<Self> {
        match algorithm {
            "sha256" => parse_hex(hex).map(Digest::Sha256),
            "sha512" => parse_hex(hex).map(Digest::Sha512),
            _ => None,
        }
        .ok_or_else(|| invalid(&format!("{algorithm}:{hex}")))
    }
}

fn parse_hex<const N: usize>(hex: &str) -> Option<[u8; N]> {
    let text = hex.as_bytes();
    if text.len() != 2 * N {
        return None;
    }
    let mut bytes = [0; N];
    // Whether a digit is one is asked once for all of them: digits are random, and so would be the jumps.
    let mut seen = 0;
    for (byte, pair) in bytes.iter_mut().zip(text.chunks_exact(2)) {
        let (high, low) = (NIBBLES[usize::from(pair[0])], NIBBLES[usize::from(pair[1])]);
        seen |= high | low;
        *byte = high << 4 | low & 15;
    }
    (seen < 16).then_some(bytes)
}

/// What a lower-case hex digit is worth; no digit is 16 or more.
const NIBBLES: [u8; 256] = {
    let mut nibbles = [16; 256];
    let mut digit = 0;
    while digit < 16 {
        nibbles[b"0123456789abcdef"[digit] as usize] = digit as u8;
        digit += 1;
    }
    nibbles
};

fn invalid(text: &str) -> Error {
    let shown: String = text.chars().take(100).collect();
    Error::new(ErrorKind::Malformed, format!("{shown:?} is not a valid digest"))
        .with_hint("a digest is sha256: or sha512: and lower-case hex digits")
}

impl FromStr for Digest {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self> {
        let (algorithm, hex) = text.split_once(':').ok_or_else(|| invalid(text))?;
        Digest::from_parts(algorithm, hex)
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.algorithm().name())?;
        f.write_str(":")?;
        self.with_hex(|hex| f.write_str(hex))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for Digest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;
        impl serde::de::Visitor<'_> for Text {
            type Value = Digest;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a digest")
            }
            fn visit_str<E: serde::de::Error>(self, text: &str) -> std::result::Result<Digest, E> {
                text.parse().map_err(E::custom)
            }
        }
        deserializer.deserialize_str(Text)
    }
}

/// The digest of a layer's whole uncompressed stream (image-spec `config.md`, Layer DiffID).
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct DiffId(pub Digest);

/// The identity of a stack of layers (image-spec `config.md`, Layer ChainID).
///
/// ```
/// use transload::{ChainId, DiffId, Digest};
/// let (a, b) = (DiffId(Digest::of(b"a")), DiffId(Digest::of(b"b")));
/// let chain = ChainId::of(&[a, b]);
/// assert_eq!(chain, vec![ChainId(a.0), ChainId(a.0).child(&b)]);
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ChainId(pub Digest);

impl ChainId {
    /// `sha256(parent + " " + diff_id)`.
    pub fn child(&self, diff_id: &DiffId) -> ChainId {
        ChainId(Digest::of(format!("{self} {diff_id}").as_bytes()))
    }

    /// The chain id of a layer above `parent`, or of a bottom layer.
    pub fn above(parent: Option<&ChainId>, diff_id: &DiffId) -> ChainId {
        parent.map_or(ChainId(diff_id.0), |parent| parent.child(diff_id))
    }

    /// The chain ids of a stack, bottom first, one for each layer.
    pub fn of(diff_ids: &[DiffId]) -> Vec<ChainId> {
        let mut chain: Vec<ChainId> = Vec::with_capacity(diff_ids.len());
        for diff_id in diff_ids {
            chain.push(ChainId::above(chain.last(), diff_id));
        }
        chain
    }
}

macro_rules! digest_like {
    ($name:ident) => {
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }
        impl FromStr for $name {
            type Err = Error;
            fn from_str(text: &str) -> Result<Self> {
                text.parse().map($name)
            }
        }
    };
}
digest_like!(DiffId);
digest_like!(ChainId);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_well_formed_digests_parse() {
        let good = Digest::of(b"x").to_string();
        assert_eq!(good.parse::<Digest>().map(|d| d.to_string()).ok(), Some(good.clone()));
        let bad = ["", "sha256", "sha256:", "md5:00", "sha256:../../x", "sha256:/etc/passwd"];
        for text in bad.iter().map(|s| s.to_string()).chain([
            good.to_uppercase(),
            good.replace("sha256", "SHA256"),
            format!("{good}0"),
            good[..good.len() - 1].to_string(),
            good.replace("sha256", "sha512"),
            format!("sha256:{}", "é".repeat(32)),
        ]) {
            assert!(text.parse::<Digest>().is_err(), "{text}");
        }
    }
}

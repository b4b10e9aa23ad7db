//! Platforms, and how one is chosen (image-spec `image-index.md`; the normal form is containerd's `platforms`).

use super::descriptor::null_as_empty;
use crate::error::{Error, ErrorKind, Result};
use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr};

/// An operating system and a processor architecture.
///
/// ```
/// use transload::Platform;
/// let platform: Platform = "linux/aarch64".parse()?;
/// assert_eq!(platform.to_string(), "linux/arm64");
/// # Ok::<(), transload::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Platform {
    /// The processor architecture, by Go's names.
    #[serde(default, deserialize_with = "null_as_empty")]
    pub architecture: String,
    /// The operating system, by Go's names.
    #[serde(default, deserialize_with = "null_as_empty")]
    pub os: String,
    /// The variant of the architecture, such as `v7`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
    /// The version of the operating system (Windows).
    #[serde(default, rename = "os.version", skip_serializing_if = "Option::is_none")]
    pub os_version: Option<String>,
}

impl Platform {
    /// A platform in normal form.
    pub fn new(os: &str, architecture: &str, variant: Option<&str>) -> Self {
        let (architecture, variant) = normalise(architecture, variant.filter(|v| !v.is_empty()));
        Platform { architecture, os: os.to_ascii_lowercase(), variant, os_version: None }
    }

    /// The platform that this program was built for.
    pub fn host() -> Self {
        Platform::new(std::env::consts::OS, std::env::consts::ARCH, None)
    }

    /// How well an image for `self` runs where `wanted` is asked for: `None` not at all, higher is better.
    pub fn fit(&self, wanted: &Platform) -> Option<u32> {
        let (own, wanted) = (self.normal(), wanted.normal());
        if own.os != wanted.os || own.architecture != wanted.architecture {
            return None;
        }
        match (variant_rank(&own), variant_rank(&wanted)) {
            (have, want) if have == want => Some(1000),
            (Some(have), Some(want)) if have < want => Some(have),
            _ => None,
        }
    }

    fn normal(&self) -> Platform {
        Platform::new(&self.os, &self.architecture, self.variant.as_deref())
    }
}

/// The rank of a variant: arm without one is v7, arm64 is v8, amd64 is v1 (containerd's defaults).
fn variant_rank(platform: &Platform) -> Option<u32> {
    match platform.variant.as_deref() {
        Some(variant) => variant.strip_prefix('v').and_then(|rank| rank.parse().ok()),
        None if platform.architecture == "arm" => Some(7),
        None if platform.architecture == "arm64" => Some(8),
        None => Some(1),
    }
}

fn normalise(architecture: &str, variant: Option<&str>) -> (String, Option<String>) {
    let architecture = architecture.to_ascii_lowercase();
    let variant = variant.map(str::to_ascii_lowercase);
    let (architecture, variant) = match (architecture.as_str(), variant.as_deref()) {
        ("i386" | "i686" | "x86", _) => ("386", None),
        ("x86_64" | "x86-64" | "amd64", None | Some("v1")) => ("amd64", None),
        ("x86_64" | "x86-64" | "amd64", Some(v)) => ("amd64", Some(v)),
        ("aarch64" | "arm64", None | Some("8" | "v8")) => ("arm64", None),
        ("aarch64" | "arm64", Some(v)) => ("arm64", Some(v)),
        ("armhf", _) => ("arm", Some("v7")),
        ("armel", _) => ("arm", Some("v6")),
        ("arm", Some("5")) => ("arm", Some("v5")),
        ("arm", Some("6")) => ("arm", Some("v6")),
        ("arm", None | Some("7")) => ("arm", Some("v7")),
        ("powerpc64le" | "ppc64el", v) => ("ppc64le", v),
        (other, v) => (other, v),
    };
    (architecture.to_string(), variant.map(str::to_string))
}

impl FromStr for Platform {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self> {
        let parts: Vec<&str> = text.split('/').collect();
        let valid = |part: &&str| {
            !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
        };
        match parts.as_slice() {
            _ if !parts.iter().all(valid) => Err(invalid(text)),
            [os, architecture] => Ok(Platform::new(os, architecture, None)),
            [os, architecture, variant] => Ok(Platform::new(os, architecture, Some(variant))),
            _ => Err(invalid(text)),
        }
    }
}

fn invalid(text: &str) -> Error {
    Error::new(ErrorKind::InvalidArgument, format!("{text:?} is not a platform"))
        .with_hint("write os/architecture or os/architecture/variant, such as linux/arm64")
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        self.variant.as_ref().map_or(Ok(()), |variant| write!(f, "/{variant}"))
    }
}

/// Which platforms of a multi-platform image are wanted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum PlatformChoice {
    /// The best one for this machine; an image that is for one platform only is taken as it is.
    #[default]
    Host,
    /// The best one for this platform, and none other.
    Best(Platform),
    /// Every one that is there.
    All,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variants_fit_downwards_only() {
        let fit = |have: &str, want: &str| {
            let parse = |text: &str| text.parse::<Platform>().expect("a platform in a test");
            parse(have).fit(&parse(want))
        };
        assert!(fit("linux/arm/v6", "linux/arm/v7").is_some());
        assert!(fit("linux/arm/v6", "linux/arm/v7") > fit("linux/arm/v5", "linux/arm/v7"));
        assert!(fit("linux/arm/v7", "linux/arm/v6").is_none());
        assert!(fit("linux/amd64", "linux/x86_64").is_some());
        assert!(fit("linux/amd64/v3", "linux/amd64").is_none());
        assert!(fit("linux/arm64", "linux/amd64").is_none());
    }
}

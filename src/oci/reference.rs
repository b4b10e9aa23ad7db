//! Image names in Docker's normal form: `alpine` is `docker.io/library/alpine:latest`
//! (the grammar of distribution's `reference` package).

use super::Digest;
use crate::error::{Error, ErrorKind, Result};
use serde::{Serialize, Serializer};
use std::{fmt, str::FromStr};

/// The longest name that is accepted, in bytes; the repository part is limited to 255 as in distribution.
const MAX_REPOSITORY_BYTES: usize = 255;
const MAX_TAG_BYTES: usize = 128;

/// A full image name: registry, repository, and a tag or a digest.
///
/// ```
/// use transload::Reference;
/// let name: Reference = "alpine".parse()?;
/// assert_eq!(name.to_string(), "docker.io/library/alpine:latest");
/// assert_eq!("ghcr.io/a/b:1".parse::<Reference>()?.to_string(), "ghcr.io/a/b:1");
/// assert_eq!("localhost:5000/x".parse::<Reference>()?.familiar(), "localhost:5000/x:latest");
/// # Ok::<(), transload::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Reference {
    domain: String,
    path: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

impl Reference {
    /// The registry, such as `docker.io`.
    pub fn domain(&self) -> &str {
        &self.domain
    }

    /// The repository within the registry, such as `library/alpine`.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Registry and repository.
    pub fn repository(&self) -> String {
        format!("{}/{}", self.domain, self.path)
    }

    /// The tag; `None` only where there is a digest.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The digest, where the name carries one.
    pub fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// The short form that Docker shows: `alpine:latest`.
    pub fn familiar(&self) -> String {
        let full = self.to_string();
        let short = full.strip_prefix("docker.io/").unwrap_or(&full);
        let shorter = short.strip_prefix("library/").unwrap_or(short);
        // Of `docker.io/library/a/b` and `docker.io/localhost/a` no part can go: what is left means another image.
        let is_same = |text: &&str| text.parse().is_ok_and(|name: Reference| name == *self);
        [shorter, short].into_iter().find(is_same).unwrap_or(&full).to_string()
    }

    /// The name with this tag instead of its own.
    pub fn with_tag(&self, tag: &str) -> Result<Self> {
        check(tag.len() <= MAX_TAG_BYTES && is_tag(tag), tag)?;
        Ok(Reference { tag: Some(tag.to_string()), digest: None, ..self.clone() })
    }
}

impl FromStr for Reference {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self> {
        check(!text.is_empty() && text.len() <= 1024, text)?;
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => (rest, Some(digest.parse::<Digest>()?)),
            None => (text, None),
        };
        let last_slash = rest.rfind('/').map_or(0, |at| at + 1);
        let (name, tag) = match rest[last_slash..].find(':') {
            Some(colon) => (&rest[..last_slash + colon], Some(&rest[last_slash + colon + 1..])),
            None => (rest, None),
        };
        let (domain, path) = split_domain(name);
        check(path.len() + domain.len() < MAX_REPOSITORY_BYTES && is_domain(&domain), text)?;
        check(path.split('/').all(is_path_component), text)?;
        check(tag.is_none_or(|tag| tag.len() <= MAX_TAG_BYTES && is_tag(tag)), text)?;
        let tag = match (tag, &digest) {
            (Some(tag), _) => Some(tag.to_string()),
            (None, Some(_)) => None,
            (None, None) => Some("latest".to_string()),
        };
        Ok(Reference { domain, path, tag, digest })
    }
}

/// The first component is a registry if it has a dot, a colon or an upper-case letter, or is `localhost`.
fn split_domain(name: &str) -> (String, String) {
    let (domain, path) = match name.split_once('/') {
        Some((first, rest))
            if first == "localhost"
                || first.contains(['.', ':'])
                || first.chars().any(char::is_uppercase) =>
        {
            (first, rest.to_string())
        }
        _ => ("docker.io", name.to_string()),
    };
    let domain = if domain == "index.docker.io" { "docker.io" } else { domain };
    let path = if domain == "docker.io" && !path.contains('/') { format!("library/{path}") } else { path };
    (domain.to_string(), path)
}

fn is_domain(domain: &str) -> bool {
    let (host, port) = match domain.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => (host, Some(port)),
        _ => (domain, None),
    };
    let label = |label: &str| {
        let bytes = label.as_bytes();
        let edge = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
        edge(bytes.first())
            && edge(bytes.last())
            && bytes.iter().all(|b| b.is_ascii_alphanumeric() || *b == b'-')
    };
    let host_ok = match host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        Some(v6) => v6.bytes().all(|b| b.is_ascii_hexdigit() || b == b':'),
        None => host.split('.').all(label),
    };
    host_ok && port.is_none_or(|port| !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit()))
}

/// `[a-z0-9]+` joined by `.`, `_`, `__` or any number of `-`.
fn is_path_component(component: &str) -> bool {
    let word = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = component.as_bytes();
    if !bytes.first().is_some_and(word) || !bytes.last().is_some_and(word) {
        return false;
    }
    let separators = bytes.split(word).filter(|run| !run.is_empty());
    separators.into_iter().all(|run| matches!(run, b"." | b"_" | b"__") || run.iter().all(|b| *b == b'-'))
}

fn is_tag(tag: &str) -> bool {
    let first = tag.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric() || b == b'_');
    first && tag.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
}

fn check(valid: bool, text: &str) -> Result<()> {
    if valid {
        return Ok(());
    }
    let shown: String = text.chars().take(120).collect();
    Err(Error::new(ErrorKind::InvalidArgument, format!("{shown:?} is not a valid image name"))
        .with_hint("an image name looks like docker.io/library/alpine:3.20"))
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.domain, self.path)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        self.digest.as_ref().map_or(Ok(()), |digest| write!(f, "@{digest}"))
    }
}

impl Serialize for Reference {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_take_dockers_normal_form() {
        let table = [
            ("alpine", "docker.io/library/alpine:latest"),
            ("alpine:3.20", "docker.io/library/alpine:3.20"),
            ("user/app", "docker.io/user/app:latest"),
            ("index.docker.io/alpine", "docker.io/library/alpine:latest"),
            ("localhost/a", "localhost/a:latest"),
            ("localhost:5000/a/b:t", "localhost:5000/a/b:t"),
            ("[::1]:5000/a:t", "[::1]:5000/a:t"),
            ("ghcr.io/a__b/c-d.e:T_1", "ghcr.io/a__b/c-d.e:T_1"),
        ];
        for (text, full) in table {
            assert_eq!(text.parse::<Reference>().expect(text).to_string(), full);
        }
        for text in
            ["library/a/b", "docker.io/localhost/a", "docker.io/library/localhost/a", "a/library/b", "alpine"]
        {
            let name: Reference = text.parse().expect(text);
            assert_eq!(name.familiar().parse::<Reference>().expect(text), name, "{text}");
        }
        for bad in
            ["", "A", "a/", "/a", "a//b", "a:", "a:b:c", "a@b", "-a", "a..b", "a:-x", "a b", "ü", "x.y/"]
        {
            assert!(bad.parse::<Reference>().is_err(), "{bad}");
        }
    }
}

//! The name of a member, in normal form: bytes, no empty or `.` components, no leading slash, never `..`.

use crate::error::{Error, Result};
use std::fmt;

/// A member's name in normal form: `./blobs//sha256/x` is `blobs/sha256/x`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MemberName(Vec<u8>);

impl MemberName {
    /// The normal form of `name`; one with `..` is refused.
    ///
    /// ```
    /// use transload::archive::MemberName;
    /// assert_eq!(MemberName::parse(b"./a/./b")?.as_bytes(), b"a/b");
    /// assert!(MemberName::parse(b"a/../b").is_err());
    /// # Ok::<(), transload::Error>(())
    /// ```
    pub fn parse(name: &[u8]) -> Result<Self> {
        let mut normal = Vec::with_capacity(name.len());
        for component in components(name) {
            if component == b".." {
                let shown = String::from_utf8_lossy(&name[..name.len().min(200)]);
                return Err(Error::malformed(format!("the member name {shown:?} leads out of the archive")));
            }
            push(&mut normal, component);
        }
        Ok(MemberName(normal))
    }

    /// The bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Whether it names the archive's root.
    pub fn is_root(&self) -> bool {
        self.0.is_empty()
    }

    /// What a symbolic link of this name with that target points to; `None` if it is absolute or leaves the archive.
    pub(super) fn follow(&self, target: &[u8]) -> Option<MemberName> {
        if target.starts_with(b"/") {
            return None;
        }
        let mut stack: Vec<&[u8]> = components(&self.0).collect();
        stack.pop();
        for component in components(target) {
            match component {
                b".." => drop(stack.pop()?),
                component => stack.push(component),
            }
        }
        Some(MemberName(stack.join(&b'/')))
    }
}

fn components(name: &[u8]) -> impl Iterator<Item = &[u8]> {
    name.split(|&byte| byte == b'/').filter(|component| !component.is_empty() && *component != b".")
}

fn push(name: &mut Vec<u8>, component: &[u8]) {
    if !name.is_empty() {
        name.push(b'/');
    }
    name.extend_from_slice(component);
}

impl fmt::Display for MemberName {
    /// Control characters are escaped, so that a name cannot forge a line of output.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for character in String::from_utf8_lossy(&self.0).chars() {
            match character.is_control() {
                true => write!(f, "{}", character.escape_default())?,
                false => write!(f, "{character}")?,
            }
        }
        Ok(())
    }
}

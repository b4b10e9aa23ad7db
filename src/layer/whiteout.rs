//! Names that delete: image-spec `layer.md`, Whiteouts, and the leftovers of AUFS that inspired them.

use crate::error::{Error, Result};

const PREFIX: &[u8] = b".wh.";
const META_PREFIX: &[u8] = b".wh..wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";

/// What a file name says about deletion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whiteout<'a> {
    /// The sibling of this name is deleted.
    Of(&'a [u8]),
    /// Everything that lower layers have in this directory is deleted.
    Opaque,
    /// Bookkeeping of AUFS, of no meaning to anyone else.
    Metadata,
}

/// What the last component of a path says about deletion, if anything. Names that would delete the directory itself,
/// or something outside it, are errors.
pub fn whiteout_of(base: &[u8]) -> Result<Option<Whiteout<'_>>> {
    let Some(name) = base.strip_prefix(PREFIX) else { return Ok(None) };
    match name {
        b"" | b"." | b".." => Err(invalid(base)),
        _ if base == OPAQUE => Ok(Some(Whiteout::Opaque)),
        _ if base.starts_with(META_PREFIX) => Ok(Some(Whiteout::Metadata)),
        _ => Ok(Some(Whiteout::Of(name))),
    }
}

/// Checks the directory part of a path: true if it lies in a directory of AUFS bookkeeping and is to be left out.
/// Other directories must not have names that delete.
pub(super) fn is_inside_metadata(parent: &[u8]) -> Result<bool> {
    let Some(component) = parent.split(|&byte| byte == b'/').find(|component| component.starts_with(PREFIX))
    else {
        return Ok(false);
    };
    match component.starts_with(META_PREFIX) && component != OPAQUE {
        true => Ok(true),
        false => Err(invalid(component)),
    }
}

fn invalid(name: &[u8]) -> Error {
    Error::malformed(format!("{:?} is not a valid whiteout", String::from_utf8_lossy(name)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_that_delete_a_sibling_are_whiteouts() {
        assert_eq!(whiteout_of(b"file").ok(), Some(None));
        assert_eq!(whiteout_of(b".whfile").ok(), Some(None));
        assert_eq!(whiteout_of(b".wh.a").ok(), Some(Some(Whiteout::Of(b"a"))));
        assert_eq!(whiteout_of(b".wh..hidden").ok(), Some(Some(Whiteout::Of(b".hidden"))));
        assert_eq!(whiteout_of(b".wh..wh..opq").ok(), Some(Some(Whiteout::Opaque)));
        assert_eq!(whiteout_of(b".wh..wh.aufs").ok(), Some(Some(Whiteout::Metadata)));
        for bad in [&b".wh."[..], b".wh..", b".wh..."] {
            assert!(whiteout_of(bad).is_err(), "{bad:?}");
        }
        assert!(is_inside_metadata(b"a/.wh.b").is_err());
        assert!(is_inside_metadata(b".wh..wh.plnk").is_ok_and(|inside| inside));
        assert!(is_inside_metadata(b"usr/lib").is_ok_and(|inside| !inside));
    }
}

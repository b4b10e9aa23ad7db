//! Other owners for a copy: of the file itself, in its access control lists, and in its capabilities.
//!
//! An access control list names users and groups by number. Capabilities count for the root of one user namespace: those
//! of an image mean root of the initial one, in a copy they have to name the number that the image's root is shown as.

use crate::error::{Error, ErrorKind, Result};
use crate::mount::IdMaps;
use rustix::fs::Stat;

/// From the kernel's `uapi/linux/posix_acl_xattr.h`: a head of four bytes, then entries of tag, permissions and number.
const ACL_HEAD_BYTES: usize = 4;
const ACL_ENTRY_BYTES: usize = 8;
const ACL_USER: u16 = 0x02;
const ACL_GROUP: u16 = 0x08;

/// From the kernel's `uapi/linux/capability.h`: the revision is the topmost byte of the first word.
const CAPABILITY_REVISION: u32 = 0xff00_0000;
const CAPABILITY_2: u32 = 0x0200_0000;
const CAPABILITY_3: u32 = 0x0300_0000;
const CAPABILITY_2_BYTES: usize = 20;

/// The same with mapped owners.
pub(super) fn stat(stat: &Stat, maps: &IdMaps) -> Result<Stat> {
    let mut mapped = *stat;
    mapped.st_uid = user(maps, stat.st_uid)?;
    mapped.st_gid = group(maps, stat.st_gid)?;
    Ok(mapped)
}

fn user(maps: &IdMaps, id: u32) -> Result<u32> {
    maps.user(id).ok_or_else(|| left_out("user", id))
}

fn group(maps: &IdMaps, id: u32) -> Result<u32> {
    maps.group(id).ok_or_else(|| left_out("group", id))
}

fn left_out(what: &str, id: u32) -> Error {
    Error::new(ErrorKind::InvalidArgument, format!("the mapping has no number for {what} {id}"))
}

/// The value of an extended attribute for the copy.
pub(super) fn xattr(name: &[u8], value: Vec<u8>, maps: &IdMaps) -> Result<Vec<u8>> {
    match name {
        b"security.capability" => capability(value, maps),
        _ if name.starts_with(b"system.posix_acl_") => access_list(value, maps),
        _ => Ok(value),
    }
}

fn access_list(mut value: Vec<u8>, maps: &IdMaps) -> Result<Vec<u8>> {
    let entries = value.get_mut(ACL_HEAD_BYTES..).unwrap_or_default();
    for entry in entries.chunks_exact_mut(ACL_ENTRY_BYTES) {
        let (head, number) = entry.split_at_mut(4);
        let id = u32::from_le_bytes([number[0], number[1], number[2], number[3]]);
        let mapped = match u16::from_le_bytes([head[0], head[1]]) {
            ACL_USER => user(maps, id)?,
            ACL_GROUP => group(maps, id)?,
            _ => id,
        };
        number.copy_from_slice(&mapped.to_le_bytes());
    }
    Ok(value)
}

/// Revision 2 means root of the initial user namespace, revision 3 names a root.
fn capability(mut value: Vec<u8>, maps: &IdMaps) -> Result<Vec<u8>> {
    let Some(&[a, b, c, d]) = value.first_chunk::<4>() else { return Ok(value) };
    let head = u32::from_le_bytes([a, b, c, d]);
    let root = match (head & CAPABILITY_REVISION, value.get(CAPABILITY_2_BYTES..)) {
        (CAPABILITY_2, Some([])) => 0,
        (CAPABILITY_3, Some(&[a, b, c, d])) => u32::from_le_bytes([a, b, c, d]),
        _ => return Ok(value),
    };
    value.truncate(CAPABILITY_2_BYTES);
    value[..4].copy_from_slice(&(head & !CAPABILITY_REVISION | CAPABILITY_3).to_le_bytes());
    value.extend(user(maps, root)?.to_le_bytes());
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn maps() -> IdMaps {
        let range = "0:100000:1000".parse().expect("a range");
        IdMaps::new(&[range], &[]).expect("a mapping")
    }

    #[test]
    fn access_lists_name_the_mapped_numbers() {
        let entry = |tag: u16, id: u32| [&tag.to_le_bytes()[..], &[7, 0], &id.to_le_bytes()].concat();
        let list = |user, group| {
            [vec![2, 0, 0, 0], entry(1, u32::MAX), entry(ACL_USER, user), entry(ACL_GROUP, group)].concat()
        };
        let mapped = xattr(b"system.posix_acl_access", list(5, 6), &maps()).expect("mapped");
        assert_eq!(mapped, list(100_005, 100_006));
        let error = xattr(b"system.posix_acl_default", list(5, 1000), &maps()).expect_err("left out");
        assert!(error.to_string().contains("group 1000"), "{error}");
        assert_eq!(xattr(b"user.note", list(5, 1000), &maps()).expect("as it is"), list(5, 1000));
    }

    #[test]
    fn capabilities_count_for_the_mapped_root() {
        let second = [&[1, 0, 0, 2][..], &[9; 16]].concat();
        let third = [&[1, 0, 0, 3][..], &[9; 16], &100_000u32.to_le_bytes()].concat();
        assert_eq!(xattr(b"security.capability", second, &maps()).expect("mapped"), third);
        let zero = [&[1, 0, 0, 3][..], &[9; 16], &0u32.to_le_bytes()].concat();
        assert_eq!(xattr(b"security.capability", zero, &maps()).expect("mapped"), third);
        assert_eq!(xattr(b"security.capability", vec![1, 2], &maps()).expect("as it is"), [1, 2]);
    }
}

//! One header block: v7, old GNU and ustar fields, octal or base 256.

use super::{BLOCK, EntryKind, malformed};
use crate::error::Result;

pub(super) fn until_nul(bytes: &[u8]) -> &[u8] {
    let end = bytes.iter().position(|&byte| byte == 0).unwrap_or(bytes.len());
    &bytes[..end]
}

/// Whether a tar begins with such a block: a header whose checksum is right, or the zeros that end an archive.
pub(crate) fn begins_tar(block: &[u8]) -> bool {
    let block: Option<&[u8; BLOCK]> = block.try_into().ok();
    block.is_some_and(|block| checksum_fits(block) || block.iter().all(|byte| *byte == 0))
}

/// Sums the header with the checksum field taken as spaces. Ancient writers summed signed bytes.
pub(super) fn checksum_fits(block: &[u8; BLOCK]) -> bool {
    let Some(stored) = number(&block[148..156]) else { return false };
    let unsigned = |bytes: &[u8]| bytes.iter().map(|&byte| u32::from(byte)).sum::<u32>();
    let sum = unsigned(&block[..148]) + unsigned(&block[156..]) + 8 * u32::from(b' ');
    if stored == i64::from(sum) {
        return true;
    }
    let high_bytes = block[..148].iter().chain(&block[156..]).filter(|&&byte| byte >= 0x80).count();
    stored == i64::from(sum) - 256 * high_bytes as i64
}

/// A numeric field: octal digits between spaces and NULs, or base 256 when the highest bit is set.
pub(super) fn number(field: &[u8]) -> Option<i64> {
    if field[0] & 0x80 != 0 {
        return base_256(field);
    }
    let is_fill = |byte: &u8| *byte == b' ' || *byte == 0;
    let start = field.iter().position(|byte| !is_fill(byte)).unwrap_or(field.len());
    let digits = until_nul(&field[start..]);
    let end = digits.iter().rposition(|byte| !is_fill(byte)).map_or(0, |last| last + 1);
    digits[..end].iter().try_fold(0i64, |value, &digit| match digit {
        b'0'..=b'7' => value.checked_mul(8)?.checked_add(i64::from(digit - b'0')),
        _ => None,
    })
}

/// Two's complement, big endian, in what the marker bit leaves of the field.
fn base_256(field: &[u8]) -> Option<i64> {
    let negative = field[0] & 0x40 != 0;
    let start = if negative { -1i64 } else { 0 };
    let first = if negative { field[0] } else { field[0] & 0x7f };
    std::iter::once(first).chain(field[1..].iter().copied()).try_fold(start, |value, byte| {
        let shifted = value.checked_mul(256)?;
        Some(shifted | i64::from(byte))
    })
}

/// A header block whose checksum is right.
pub(super) struct Header<'a>(pub(super) &'a [u8; BLOCK]);

impl Header<'_> {
    pub(super) fn type_flag(&self) -> u8 {
        self.0[156]
    }

    pub(super) fn kind(&self) -> EntryKind {
        match self.type_flag() {
            0 | b'0' | b'7' | b'S' => EntryKind::File,
            b'1' => EntryKind::HardLink,
            b'2' => EntryKind::Symlink,
            b'3' => EntryKind::CharDevice,
            b'4' => EntryKind::BlockDevice,
            b'5' => EntryKind::Directory,
            b'6' => EntryKind::Fifo,
            other => EntryKind::Other(other),
        }
    }

    /// The name, with the prefix that ustar knows and that GNU uses for other things.
    pub(super) fn path(&self) -> Vec<u8> {
        let name = until_nul(&self.0[..100]);
        let is_ustar = &self.0[257..263] == b"ustar\0";
        let is_star = is_ustar && &self.0[508..512] == b"tar\0";
        let prefix = match (is_star, is_ustar) {
            (true, _) => until_nul(&self.0[345..476]),
            (_, true) => until_nul(&self.0[345..500]),
            _ => &[],
        };
        if prefix.is_empty() {
            return name.to_vec();
        }
        [prefix, b"/", name].concat()
    }

    pub(super) fn number(&self, range: std::ops::Range<usize>) -> Option<i64> {
        number(&self.0[range])
    }

    pub(super) fn unsigned(&self, range: std::ops::Range<usize>, what: &str, at: u64) -> Result<u64> {
        let value = self.number(range).and_then(|value| u64::try_from(value).ok());
        value.ok_or_else(|| malformed(&format!("a tar header has a bad {what}"), at))
    }

    pub(super) fn size(&self, position: u64) -> Result<u64> {
        self.unsigned(124..136, "size", position - BLOCK as u64)
    }

    pub(super) fn device(&self, at: u64) -> Result<(u32, u32)> {
        let part = |range| -> Result<u32> {
            let value = self.unsigned(range, "device number", at)?;
            u32::try_from(value).map_err(|_| malformed("a tar header has a bad device number", at))
        };
        Ok((part(329..337)?, part(337..345)?))
    }
}

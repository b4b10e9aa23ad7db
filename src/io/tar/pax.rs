//! The records of PAX headers: `LENGTH KEY=VALUE` lines that beat what the header after them says.
//!
//! As everywhere in the reader, a malformed record is an error, and what no one asks for is stepped over.

use super::{Entry, EntryKind, Mtime, TarLimits};
use crate::error::{Error, Result};

/// The records of one PAX header that concern us.
#[derive(Default)]
pub(super) struct Pax {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
    uid: Option<u64>,
    gid: Option<u64>,
    mtime: Option<Mtime>,
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    libarchive_xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    pub(super) sparse: Option<PaxSparse>,
}

#[derive(Default)]
pub(super) struct PaxSparse {
    pub(super) major: Option<u64>,
    pub(super) minor: Option<u64>,
    pub(super) real_size: Option<u64>,
    pub(super) name: Option<Vec<u8>>,
    pub(super) map: Option<Vec<u64>>,
    pub(super) pairs: Vec<u64>,
}

impl Pax {
    pub(super) fn parse(content: &[u8], limits: &TarLimits) -> Result<Pax> {
        let mut pax = Pax::default();
        for_each_record(content, |key, value| pax.record(key, value, limits))?;
        Ok(pax)
    }

    fn record(&mut self, key: &[u8], value: &[u8], limits: &TarLimits) -> Result<()> {
        if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
            set_xattr(&mut self.xattrs, name.to_vec(), value.to_vec());
            return Ok(());
        }
        if let Some(name) = key.strip_prefix(b"LIBARCHIVE.xattr.") {
            let name = percent_decoded(name).ok_or_else(|| bad_record(key))?;
            let value = base64_decoded(value).ok_or_else(|| bad_record(key))?;
            set_xattr(&mut self.libarchive_xattrs, name, value);
            return Ok(());
        }
        if let Some(name) = key.strip_prefix(b"GNU.sparse.") {
            return self.sparse.get_or_insert_default().record(name, value, limits);
        }
        match key {
            b"path" => self.path = text(key, value)?,
            b"linkpath" => self.link = text(key, value)?,
            b"size" => self.size = optional_decimal(key, value)?,
            b"uid" => self.uid = optional_decimal(key, value)?,
            b"gid" => self.gid = optional_decimal(key, value)?,
            b"mtime" if value.is_empty() => self.mtime = None,
            b"mtime" => self.mtime = Some(pax_time(value).ok_or_else(|| bad_record(key))?),
            _ => {}
        }
        Ok(())
    }

    pub(super) fn apply(self, entry: &mut Entry) {
        if let Some(path) = self.path {
            entry.path = path;
        }
        if let Some(link) =
            self.link.filter(|_| matches!(entry.kind, EntryKind::HardLink | EntryKind::Symlink))
        {
            entry.link = link;
        }
        entry.stored_bytes = self.size.unwrap_or(entry.stored_bytes);
        entry.uid = self.uid.unwrap_or(entry.uid);
        entry.gid = self.gid.unwrap_or(entry.gid);
        entry.mtime = self.mtime.unwrap_or(entry.mtime);
        entry.xattrs = self.xattrs;
        for (name, value) in self.libarchive_xattrs {
            if !entry.xattrs.iter().any(|(known, _)| *known == name) {
                entry.xattrs.push((name, value));
            }
        }
    }
}

impl PaxSparse {
    fn record(&mut self, name: &[u8], value: &[u8], limits: &TarLimits) -> Result<()> {
        let number = || decimal(value).ok_or_else(|| bad_record(name));
        match name {
            b"major" => self.major = Some(number()?),
            b"minor" => self.minor = Some(number()?),
            b"realsize" | b"size" => self.real_size = Some(number()?),
            b"name" => self.name = text(name, value)?,
            b"map" => self.map = Some(sparse_map(value, limits).ok_or_else(|| bad_record(name))?),
            b"offset" | b"numbytes" => self.pair(name, number()?, limits)?,
            b"numblocks" => drop(number()?),
            _ => {}
        }
        Ok(())
    }

    /// Format 0.0 repeats the two keys in turn.
    fn pair(&mut self, name: &[u8], value: u64, limits: &TarLimits) -> Result<()> {
        let expects_offset = self.pairs.len().is_multiple_of(2);
        if expects_offset != (name == b"offset") {
            return Err(bad_record(name));
        }
        if self.pairs.len() / 2 >= limits.sparse_regions {
            return Err(Error::over(
                "sparse_regions",
                format!("a sparse file has more than {} data regions", limits.sparse_regions),
            ));
        }
        self.pairs.push(value);
        Ok(())
    }
}

fn sparse_map(value: &[u8], limits: &TarLimits) -> Option<Vec<u64>> {
    if value.is_empty() {
        return Some(Vec::new());
    }
    // One beyond the cap is enough for the caller to see that there are too many.
    let cap = limits.sparse_regions.saturating_add(1).saturating_mul(2);
    value.split(|&byte| byte == b',').take(cap).map(decimal).collect()
}

fn set_xattr(xattrs: &mut Vec<(Vec<u8>, Vec<u8>)>, name: Vec<u8>, value: Vec<u8>) {
    match xattrs.iter_mut().find(|(known, _)| *known == name) {
        Some(slot) => slot.1 = value,
        None => xattrs.push((name, value)),
    }
}

/// Calls `each` for every `LENGTH KEY=VALUE\n` record; the lengths must add up to the whole content.
fn for_each_record(content: &[u8], mut each: impl FnMut(&[u8], &[u8]) -> Result<()>) -> Result<()> {
    let mut rest = content;
    while !rest.is_empty() {
        let (key, value, after) =
            split_record(rest).ok_or_else(|| Error::malformed("a PAX header has a bad record"))?;
        each(key, value)?;
        rest = after;
    }
    Ok(())
}

fn split_record(rest: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    // Ten digits are more than any extension that passes the cap needs.
    let space = rest.iter().take(11).position(|&byte| byte == b' ')?;
    let length = usize::try_from(decimal(&rest[..space])?).ok()?;
    let (record, after) = rest.split_at_checked(length)?;
    let body = record.get(space + 1..)?.strip_suffix(b"\n")?;
    let equals = body.iter().position(|&byte| byte == b'=')?;
    let (key, value) = (&body[..equals], &body[equals + 1..]);
    (!key.is_empty() && !key.contains(&0)).then_some((key, value, after))
}

/// A global header is checked and otherwise ignored, as Go's importers do. Where that would make readers disagree on
/// where entries end, the archive is refused.
pub(super) fn check_global(content: &[u8]) -> Result<()> {
    for_each_record(content, |key, _| match key {
        b"size" => Err(Error::malformed("a global PAX header sets the size of entries")),
        _ if key.starts_with(b"GNU.sparse.") => {
            Err(Error::malformed("a global PAX header sets the sparse map of entries"))
        }
        _ => Ok(()),
    })
}

fn bad_record(key: &[u8]) -> Error {
    Error::malformed(format!("a PAX header has a bad value for {:?}", String::from_utf8_lossy(key)))
}

/// A name; an empty one leaves the header's in force.
fn text(key: &[u8], value: &[u8]) -> Result<Option<Vec<u8>>> {
    if value.contains(&0) {
        return Err(bad_record(key));
    }
    Ok((!value.is_empty()).then(|| value.to_vec()))
}

fn optional_decimal(key: &[u8], value: &[u8]) -> Result<Option<u64>> {
    if value.is_empty() {
        return Ok(None);
    }
    decimal(value).filter(|&value| value <= i64::MAX as u64).map(Some).ok_or_else(|| bad_record(key))
}

fn decimal(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() {
        return None;
    }
    digits.iter().try_fold(0u64, |value, &digit| match digit {
        b'0'..=b'9' => value.checked_mul(10)?.checked_add(u64::from(digit - b'0')),
        _ => None,
    })
}

/// Seconds with an optional sign and an optional fraction, of which nanoseconds are kept.
fn pax_time(value: &[u8]) -> Option<Mtime> {
    let (negative, magnitude) = match value.strip_prefix(b"-") {
        Some(magnitude) => (true, magnitude),
        None => (false, value),
    };
    let point = magnitude.iter().position(|&byte| byte == b'.');
    let (whole, fraction) = match point {
        Some(point) => (&magnitude[..point], &magnitude[point + 1..]),
        None => (magnitude, &[][..]),
    };
    let seconds = i64::try_from(decimal(whole)?).ok()?;
    if !fraction.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let digits = fraction.iter().copied().chain(std::iter::repeat(b'0')).take(9);
    let nanoseconds = digits.fold(0, |value, digit| 10 * value + u32::from(digit - b'0'));
    Some(match (negative, nanoseconds) {
        (false, _) => Mtime { seconds, nanoseconds },
        (true, 0) => Mtime { seconds: -seconds, nanoseconds: 0 },
        (true, _) => Mtime { seconds: -seconds - 1, nanoseconds: 1_000_000_000 - nanoseconds },
    })
}

fn percent_decoded(text: &[u8]) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.iter();
    while let Some(&byte) = rest.next() {
        match byte {
            b'%' => bytes.push(hex_digit(*rest.next()?)? << 4 | hex_digit(*rest.next()?)?),
            _ => bytes.push(byte),
        }
    }
    (!bytes.contains(&0)).then_some(bytes)
}

fn hex_digit(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).map(|value| value as u8)
}

/// Base64 with or without the padding, which libarchive leaves out.
fn base64_decoded(text: &[u8]) -> Option<Vec<u8>> {
    let end = text.iter().rposition(|&byte| byte != b'=').map_or(0, |last| last + 1);
    if end % 4 == 1 {
        return None;
    }
    let (mut bytes, mut bits, mut count) = (Vec::with_capacity(end * 3 / 4), 0u32, 0);
    for &digit in &text[..end] {
        bits = bits << 6 | u32::from(base64_digit(digit)?);
        count += 6;
        if count >= 8 {
            count -= 8;
            bytes.push((bits >> count) as u8);
        }
    }
    Some(bytes)
}

fn base64_digit(digit: u8) -> Option<u8> {
    match digit {
        b'A'..=b'Z' => Some(digit - b'A'),
        b'a'..=b'z' => Some(digit - b'a' + 26),
        b'0'..=b'9' => Some(digit - b'0' + 52),
        b'+' => Some(62),
        b'/' => Some(63),
        _ => None,
    }
}

//! The one reader of untrusted tars: outer archives and layers go through the same loop.
//!
//! It reads v7, old GNU, ustar and PAX headers, GNU long names, GNU sparse maps (the old form and PAX 0.0, 0.1, 1.0)
//! and base-256 numbers, and agrees with Go's `archive/tar`, which the reference importers use, on where each entry
//! ends: a PAX `size` beats the header's, entries that are links, directories or devices carry no data, and a
//! malformed extension is an error rather than something to step over. Names are bytes. Every allocation is bounded
//! by [`Limits`]; nothing here panics on bad input. What a name means is left to the caller.

use crate::error::{Error, ErrorKind, Result};
use crate::limits::Limits;
use std::io::{self, BufRead, Read};

/// Tar counts in blocks of this many bytes.
const BLOCK: usize = 512;

/// A buffered input with a cheap way to leave bytes out.
pub trait TarInput: BufRead {
    /// Passes over `bytes` bytes; an input that ends before them is an [`io::ErrorKind::UnexpectedEof`]. Seekable
    /// inputs jump, streams read through.
    fn skip(&mut self, bytes: u64) -> io::Result<()> {
        let mut left = bytes;
        while left > 0 {
            let available = retry(|| self.fill_buf().map(<[u8]>::len))?;
            if available == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let step = usize::try_from(left).unwrap_or(usize::MAX).min(available);
            self.consume(step);
            left -= step as u64;
        }
        Ok(())
    }
}

impl TarInput for &[u8] {}
impl<T: AsRef<[u8]>> TarInput for io::Cursor<T> {}
impl<R: Read> TarInput for io::BufReader<R> {}
impl<R: TarInput + ?Sized> TarInput for &mut R {
    fn skip(&mut self, bytes: u64) -> io::Result<()> {
        (**self).skip(bytes)
    }
}
impl<R: TarInput + ?Sized> TarInput for Box<R> {
    fn skip(&mut self, bytes: u64) -> io::Result<()> {
        (**self).skip(bytes)
    }
}

fn retry<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            other => return other,
        }
    }
}

/// What an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EntryKind {
    /// A regular file, sparse or not.
    File,
    /// Another name of an earlier file.
    HardLink,
    /// A symbolic link.
    Symlink,
    /// A character device.
    CharDevice,
    /// A block device.
    BlockDevice,
    /// A directory.
    Directory,
    /// A named pipe.
    Fifo,
    /// Anything else, by its type flag; it has data that can be read or left.
    Other(u8),
}

impl EntryKind {
    /// Whether the format stores data after a header of this kind.
    fn has_data(self) -> bool {
        matches!(self, EntryKind::File | EntryKind::Other(_))
    }
}

/// A time of change, before or after 1970.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Mtime {
    /// Whole seconds since 1970, rounded towards the past.
    pub seconds: i64,
    /// Nanoseconds to add, below one thousand million.
    pub nanoseconds: u32,
}

/// A range of a sparse file that has data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    /// Where it begins in the file.
    pub offset: u64,
    /// How many bytes it has.
    pub len: u64,
}

/// One entry, with everything that headers and extensions say about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The name as stored: not cleaned, possibly absolute, never with a NUL.
    pub path: Vec<u8>,
    /// What it is.
    pub kind: EntryKind,
    /// The target of a link, otherwise empty.
    pub link: Vec<u8>,
    /// Permission bits with setuid, setgid and sticky.
    pub mode: u32,
    /// The owner.
    pub uid: u64,
    /// The group.
    pub gid: u64,
    /// The time of the last change.
    pub mtime: Mtime,
    /// The size of the file once written: for sparse files with its holes.
    pub size: u64,
    /// How many bytes of data the tar holds for it.
    pub stored_bytes: u64,
    /// Where this data begins in the tar.
    pub data_offset: u64,
    /// Major and minor number of a device.
    pub device: (u32, u32),
    /// Extended attributes, in the order in which they stand.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// The data regions of a sparse file, ordered; their lengths add up to `stored_bytes`.
    pub sparse: Option<Vec<Region>>,
}

/// Reads entry after entry.
pub struct TarReader<R: TarInput> {
    input: R,
    position: u64,
    remaining: u64,
    padding: u64,
    ended: bool,
    limits: TarLimits,
}

struct TarLimits {
    path_bytes: usize,
    extension_bytes: u64,
    sparse_regions: usize,
}

impl<R: TarInput> TarReader<R> {
    /// A reader of the tar that begins where `input` stands; offsets count from there.
    pub fn new(input: R, limits: &Limits) -> Self {
        let limits = TarLimits {
            path_bytes: limits.path_bytes,
            extension_bytes: limits.extension_bytes,
            sparse_regions: limits.sparse_regions,
        };
        TarReader { input, position: 0, remaining: 0, padding: 0, ended: false, limits }
    }

    /// The next entry, passing over what was left unread of the previous one; `None` at the end of the archive: two
    /// zero blocks, or one and then nothing, or simply nothing more at a block boundary.
    pub fn next_entry(&mut self) -> Result<Option<Entry>> {
        let mut extensions: Option<Box<Extensions>> = None;
        loop {
            self.finish_entry()?;
            let Some(block) = self.read_header()? else {
                return match extensions {
                    None => Ok(None),
                    Some(_) => Err(truncated("the tar ends after an extension header")),
                };
            };
            let header = Header(&block);
            match header.type_flag() {
                b'x' => {
                    let content =
                        self.read_extension(&header, "extension_bytes", self.limits.extension_bytes)?;
                    let pax = Pax::parse(&content, &self.limits)?;
                    extensions.get_or_insert_default().pax = pax;
                }
                b'g' => {
                    let content =
                        self.read_extension(&header, "extension_bytes", self.limits.extension_bytes)?;
                    check_global(&content)?;
                }
                b'L' => {
                    let name = self.read_long_name(&header)?;
                    extensions.get_or_insert_default().long_name = name;
                }
                b'K' => {
                    let name = self.read_long_name(&header)?;
                    extensions.get_or_insert_default().long_link = name;
                }
                _ => return self.read_entry(&header, extensions).map(Some),
            }
        }
    }

    /// The stored data of the current entry, from where reading has come to.
    pub fn data(&mut self) -> EntryData<'_, R> {
        EntryData { reader: self }
    }

    /// Stored bytes of the current entry that have not been read.
    pub fn stored_remaining(&self) -> u64 {
        self.remaining
    }

    /// Bytes of the tar that have been read or passed over.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// The input, standing wherever reading has come to. What follows the end of the archive is still in it.
    pub fn into_inner(self) -> R {
        self.input
    }

    fn finish_entry(&mut self) -> Result<()> {
        let remaining = std::mem::take(&mut self.remaining);
        self.skip(remaining)?;
        let padding = std::mem::take(&mut self.padding);
        // Some writers leave out the padding of the last entry; then the input ends exactly here.
        if padding > 0 && !self.at_end()? {
            self.skip(padding)?;
        }
        Ok(())
    }

    fn skip(&mut self, bytes: u64) -> Result<()> {
        if bytes > 0 {
            self.input.skip(bytes).map_err(|error| self.read_error(error))?;
            self.position += bytes;
        }
        Ok(())
    }

    fn at_end(&mut self) -> Result<bool> {
        retry(|| self.input.fill_buf().map(<[u8]>::is_empty)).map_err(|error| self.read_error(error))
    }

    fn read_error(&self, error: io::Error) -> Error {
        match error.kind() {
            io::ErrorKind::UnexpectedEof if error.get_ref().is_none() => {
                truncated("the tar ends in the middle of an entry")
            }
            _ => Error::from(error),
        }
    }

    /// A block whose checksum is right, or `None` at the end of the archive.
    fn read_header(&mut self) -> Result<Option<[u8; BLOCK]>> {
        if self.ended {
            return Ok(None);
        }
        let mut block = [0; BLOCK];
        if !self.read_block(&mut block)? {
            self.ended = true;
            return Ok(None);
        }
        if block[0] == 0 && block == [0; BLOCK] {
            self.ended = true;
            if self.read_block(&mut block)? && block != [0; BLOCK] {
                return Err(malformed("the tar goes on after a zero block", self.position - BLOCK as u64));
            }
            return Ok(None);
        }
        if !checksum_fits(&block) {
            return Err(malformed("a tar header has a wrong checksum", self.position - BLOCK as u64));
        }
        Ok(Some(block))
    }

    /// Fills `block`; false if the input ends before its first byte.
    fn read_block(&mut self, block: &mut [u8; BLOCK]) -> Result<bool> {
        let mut filled = 0;
        while filled < BLOCK {
            let step = {
                let available = match self.input.fill_buf() {
                    Ok(available) => available,
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                    Err(error) => return Err(self.read_error(error)),
                };
                let step = available.len().min(BLOCK - filled);
                block[filled..filled + step].copy_from_slice(&available[..step]);
                step
            };
            if step == 0 {
                return match filled {
                    0 => Ok(false),
                    _ => Err(truncated("the tar ends in the middle of a block")),
                };
            }
            self.input.consume(step);
            self.position += step as u64;
            filled += step;
        }
        Ok(true)
    }

    fn read_needed_block(&mut self) -> Result<[u8; BLOCK]> {
        let mut block = [0; BLOCK];
        match self.read_block(&mut block)? {
            true => Ok(block),
            false => Err(truncated("the tar ends in the middle of an entry")),
        }
    }

    fn begin_data(&mut self, bytes: u64) -> Result<()> {
        let end = self.position.checked_add(bytes).and_then(|end| end.checked_add(BLOCK as u64));
        if end.is_none_or(|end| end > i64::MAX as u64) {
            return Err(malformed("a tar entry is larger than any file can be", self.position));
        }
        self.remaining = bytes;
        self.padding = padding_of(bytes);
        Ok(())
    }

    fn read_extension(&mut self, header: &Header<'_>, limit: &str, cap: u64) -> Result<Vec<u8>> {
        let size = header.size(self.position)?;
        if size > cap {
            return Err(Error::over(
                limit,
                format!("a tar extension header of {size} bytes exceeds the limit of {cap}"),
            ));
        }
        self.begin_data(size)?;
        let mut content = Vec::new();
        self.data().read_to_end(&mut content)?;
        self.finish_entry()?;
        Ok(content)
    }

    fn read_long_name(&mut self, header: &Header<'_>) -> Result<Vec<u8>> {
        // The stored name has a NUL at its end, and some writers fill up the block.
        let cap = self.limits.path_bytes as u64 + BLOCK as u64;
        let mut name = self.read_extension(header, "path_bytes", cap)?;
        name.truncate(until_nul(&name).len());
        Ok(name)
    }

    fn read_entry(&mut self, header: &Header<'_>, extensions: Option<Box<Extensions>>) -> Result<Entry> {
        let mut entry = self.plain_entry(header)?;
        let mut sparse = None;
        if let Some(extensions) = extensions {
            sparse = extensions.apply(&mut entry);
        }
        // A name that ends in a slash was a directory before there was a type for it.
        let data_follows = entry.kind.has_data();
        if header.type_flag() == 0 && entry.path.ends_with(b"/") {
            entry.kind = EntryKind::Directory;
        }
        self.check_name(&entry.path, "path")?;
        self.check_name(&entry.link, "link target")?;
        if header.type_flag() == b'S' {
            self.read_old_sparse(header, &mut entry)?;
        }
        let stored = if data_follows { entry.stored_bytes } else { 0 };
        self.begin_data(stored)?;
        entry.stored_bytes = stored;
        if let Some(sparse) = sparse {
            self.apply_pax_sparse(sparse, &mut entry)?;
        }
        if entry.sparse.is_none() {
            entry.size = stored;
        }
        entry.data_offset = self.position;
        entry.stored_bytes = self.remaining;
        self.check_regions(&entry)?;
        Ok(entry)
    }

    fn plain_entry(&self, header: &Header<'_>) -> Result<Entry> {
        let at = self.position - BLOCK as u64;
        let kind = header.kind();
        let is_device = matches!(kind, EntryKind::CharDevice | EntryKind::BlockDevice);
        let is_link = matches!(kind, EntryKind::HardLink | EntryKind::Symlink);
        let seconds = header.number(136..148).ok_or_else(|| malformed("a tar header has a bad time", at))?;
        Ok(Entry {
            path: header.path(),
            kind,
            link: if is_link { until_nul(&header.0[157..257]).to_vec() } else { Vec::new() },
            mode: header.unsigned(100..108, "mode", at)? as u32 & 0o7777,
            uid: header.unsigned(108..116, "owner", at)?,
            gid: header.unsigned(116..124, "group", at)?,
            mtime: Mtime { seconds, nanoseconds: 0 },
            size: 0,
            stored_bytes: header.size(self.position)?,
            data_offset: 0,
            device: if is_device { header.device(at)? } else { (0, 0) },
            xattrs: Vec::new(),
            sparse: None,
        })
    }

    fn check_name(&self, name: &[u8], what: &str) -> Result<()> {
        if name.len() > self.limits.path_bytes {
            let (length, cap) = (name.len(), self.limits.path_bytes);
            return Err(Error::over(
                "path_bytes",
                format!("a tar entry's {what} of {length} bytes exceeds the limit of {cap}"),
            ));
        }
        Ok(())
    }

    fn read_old_sparse(&mut self, header: &Header<'_>, entry: &mut Entry) -> Result<()> {
        let at = self.position - BLOCK as u64;
        entry.size = header.unsigned(483..495, "sparse size", at)?;
        let mut regions = Vec::new();
        old_sparse_entries(&header.0[386..482], &mut regions).ok_or_else(|| bad_sparse(at))?;
        let mut extended = header.0[482] != 0;
        while extended {
            let block = self.read_needed_block()?;
            let before = regions.len();
            old_sparse_entries(&block[..504], &mut regions).ok_or_else(|| bad_sparse(at))?;
            extended = block[504] != 0;
            if regions.len() == before && extended {
                return Err(bad_sparse(at));
            }
            self.check_region_count(regions.len())?;
        }
        entry.sparse = Some(regions);
        Ok(())
    }

    fn check_region_count(&self, count: usize) -> Result<()> {
        let cap = self.limits.sparse_regions;
        if count > cap {
            return Err(Error::over(
                "sparse_regions",
                format!("a sparse file has more than {cap} data regions"),
            ));
        }
        Ok(())
    }

    fn apply_pax_sparse(&mut self, sparse: PaxSparse, entry: &mut Entry) -> Result<()> {
        let at = self.position - BLOCK as u64;
        if entry.kind != EntryKind::File || entry.sparse.is_some() {
            return Err(bad_sparse(at));
        }
        let version = (sparse.major.unwrap_or(0), sparse.minor.unwrap_or(u64::from(sparse.map.is_some())));
        let regions = match version {
            (0, 0) | (0, 1) => sparse.map.or(Some(sparse.pairs)).ok_or_else(|| bad_sparse(at))?,
            (1, 0) => self.read_sparse_map()?,
            (major, minor) => {
                let message = format!("GNU sparse format {major}.{minor} is not known");
                return Err(Error::new(ErrorKind::Unsupported, message));
            }
        };
        self.check_region_count(regions.len() / 2)?;
        entry.sparse = Some(pair_up(&regions).ok_or_else(|| bad_sparse(at))?);
        entry.size = sparse.real_size.ok_or_else(|| bad_sparse(at))?;
        if let Some(name) = sparse.name {
            self.check_name(&name, "path")?;
            entry.path = name;
        }
        Ok(())
    }

    /// The map of format 1.0: decimal numbers, each on a line, at the head of the data, filled up to a whole block.
    fn read_sparse_map(&mut self) -> Result<Vec<u64>> {
        let mut lines = MapLines { block: [0; BLOCK], next: BLOCK };
        let count = lines.number(self)?;
        let count = usize::try_from(count).unwrap_or(usize::MAX);
        self.check_region_count(count)?;
        (0..2 * count).map(|_| lines.number(self)).collect()
    }

    fn check_regions(&self, entry: &Entry) -> Result<()> {
        let Some(regions) = &entry.sparse else { return Ok(()) };
        let (mut end, mut total) = (0, 0u64);
        for region in regions {
            let fits =
                region.offset >= end && region.len <= entry.size && region.offset <= entry.size - region.len;
            if !fits {
                return Err(bad_sparse(entry.data_offset));
            }
            end = region.offset + region.len;
            total += region.len;
        }
        if total != entry.stored_bytes || entry.size > i64::MAX as u64 {
            return Err(bad_sparse(entry.data_offset));
        }
        Ok(())
    }
}

/// The stored bytes of one entry. An input that ends before them is an error of kind [`ErrorKind::Truncated`].
pub struct EntryData<'a, R: TarInput> {
    reader: &'a mut TarReader<R>,
}

impl<R: TarInput> EntryData<'_, R> {
    /// See [`TarReader::position`].
    pub fn position(&self) -> u64 {
        self.reader.position
    }
}

impl<R: TarInput> BufRead for EntryData<'_, R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        let remaining = usize::try_from(self.reader.remaining).unwrap_or(usize::MAX);
        if remaining == 0 {
            return Ok(&[]);
        }
        let available = self.reader.input.fill_buf()?;
        if available.is_empty() {
            return Err(truncated("the tar ends in the middle of an entry").into_io());
        }
        Ok(&available[..available.len().min(remaining)])
    }

    fn consume(&mut self, amount: usize) {
        self.reader.input.consume(amount);
        self.reader.remaining -= amount as u64;
        self.reader.position += amount as u64;
    }
}

impl<R: TarInput> Read for EntryData<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        crate::io::read_buffered(self, buffer)
    }
}

fn truncated(message: &'static str) -> Error {
    Error::new(ErrorKind::Truncated, message)
}

fn malformed(message: &str, at: u64) -> Error {
    Error::malformed(format!("{message} (at byte {at})"))
}

fn bad_sparse(at: u64) -> Error {
    malformed("a tar entry has an invalid sparse map", at)
}

fn padding_of(bytes: u64) -> u64 {
    bytes.wrapping_neg() % BLOCK as u64
}

fn until_nul(bytes: &[u8]) -> &[u8] {
    let end = bytes.iter().position(|&byte| byte == 0).unwrap_or(bytes.len());
    &bytes[..end]
}

/// Sums the header with the checksum field taken as spaces. Ancient writers summed signed bytes.
fn checksum_fits(block: &[u8; BLOCK]) -> bool {
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
fn number(field: &[u8]) -> Option<i64> {
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
struct Header<'a>(&'a [u8; BLOCK]);

impl Header<'_> {
    fn type_flag(&self) -> u8 {
        self.0[156]
    }

    fn kind(&self) -> EntryKind {
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
    fn path(&self) -> Vec<u8> {
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

    fn number(&self, range: std::ops::Range<usize>) -> Option<i64> {
        number(&self.0[range])
    }

    fn unsigned(&self, range: std::ops::Range<usize>, what: &str, at: u64) -> Result<u64> {
        let value = self.number(range).and_then(|value| u64::try_from(value).ok());
        value.ok_or_else(|| malformed(&format!("a tar header has a bad {what}"), at))
    }

    fn size(&self, position: u64) -> Result<u64> {
        self.unsigned(124..136, "size", position - BLOCK as u64)
    }

    fn device(&self, at: u64) -> Result<(u32, u32)> {
        let part = |range| -> Result<u32> {
            let value = self.unsigned(range, "device number", at)?;
            u32::try_from(value).map_err(|_| malformed("a tar header has a bad device number", at))
        };
        Ok((part(329..337)?, part(337..345)?))
    }
}

fn old_sparse_entries(table: &[u8], regions: &mut Vec<Region>) -> Option<()> {
    for entry in table.chunks_exact(24) {
        if entry[0] == 0 {
            break;
        }
        let field = |bytes| number(bytes).and_then(|value| u64::try_from(value).ok());
        regions.push(Region { offset: field(&entry[..12])?, len: field(&entry[12..])? });
    }
    Some(())
}

fn pair_up(numbers: &[u64]) -> Option<Vec<Region>> {
    if !numbers.len().is_multiple_of(2) {
        return None;
    }
    Some(numbers.chunks_exact(2).map(|pair| Region { offset: pair[0], len: pair[1] }).collect())
}

struct MapLines {
    block: [u8; BLOCK],
    next: usize,
}

impl MapLines {
    fn number<R: TarInput>(&mut self, reader: &mut TarReader<R>) -> Result<u64> {
        let mut digits = 0;
        let mut value = 0u64;
        loop {
            let byte = self.byte(reader)?;
            let bad = || bad_sparse(reader.position);
            match byte {
                b'0'..=b'9' => {
                    let digit = u64::from(byte - b'0');
                    value = value.checked_mul(10).and_then(|v| v.checked_add(digit)).ok_or_else(bad)?;
                    digits += 1;
                }
                b'\n' if digits > 0 => return Ok(value),
                _ => return Err(bad()),
            }
            // Twenty digits are all that a number can have; more would be zeros without end.
            if digits > 20 {
                return Err(bad());
            }
        }
    }

    fn byte<R: TarInput>(&mut self, reader: &mut TarReader<R>) -> Result<u8> {
        if self.next == BLOCK {
            if reader.remaining < BLOCK as u64 {
                return Err(bad_sparse(reader.position));
            }
            reader.data().read_exact(&mut self.block)?;
            self.next = 0;
        }
        self.next += 1;
        Ok(self.block[self.next - 1])
    }
}

/// What headers of type `x`, `L` and `K` say about the entry after them.
#[derive(Default)]
struct Extensions {
    pax: Pax,
    long_name: Vec<u8>,
    long_link: Vec<u8>,
}

impl Extensions {
    fn apply(mut self: Box<Self>, entry: &mut Entry) -> Option<PaxSparse> {
        let sparse = self.pax.sparse.take();
        std::mem::take(&mut self.pax).apply(entry);
        // Go lets the GNU name win where an entry has both.
        if !self.long_name.is_empty() {
            entry.path = self.long_name;
        }
        if !self.long_link.is_empty() && !entry.link.is_empty() {
            entry.link = self.long_link;
        }
        sparse
    }
}

/// The records of one PAX header that concern us.
#[derive(Default)]
struct Pax {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
    uid: Option<u64>,
    gid: Option<u64>,
    mtime: Option<Mtime>,
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    libarchive_xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    sparse: Option<PaxSparse>,
}

#[derive(Default)]
struct PaxSparse {
    major: Option<u64>,
    minor: Option<u64>,
    real_size: Option<u64>,
    name: Option<Vec<u8>>,
    map: Option<Vec<u64>>,
    pairs: Vec<u64>,
}

impl Pax {
    fn parse(content: &[u8], limits: &TarLimits) -> Result<Pax> {
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

    fn apply(self, entry: &mut Entry) {
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
fn check_global(content: &[u8]) -> Result<()> {
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

#[cfg(test)]
pub(crate) mod build;
#[cfg(test)]
mod tests;

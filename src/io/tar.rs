//! The one reader of untrusted tars: outer archives and layers go through the same loop.
//!
//! It reads v7, old GNU, ustar and PAX headers, GNU long names, GNU sparse maps (the old form and PAX 0.0, 0.1, 1.0)
//! and base-256 numbers, and agrees with Go's `archive/tar`, which the reference importers use, on where each entry
//! ends: a PAX `size` beats the header's, entries that are links, directories or devices carry no data, and a
//! malformed extension is an error rather than something to step over. Names are bytes. Every allocation is bounded
//! by [`Limits`]; nothing here panics on bad input. What a name means is left to the caller.

use crate::error::{Error, ErrorKind, Result};
use crate::limits::Limits;
pub(crate) use header::begins_tar;
use header::{Header, checksum_fits, number, until_nul};
use pax::{Pax, PaxSparse, check_global};
use std::io::{self, BufRead, Read};

mod header;
mod pax;

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

#[cfg(test)]
pub(crate) mod build;
#[cfg(test)]
mod tests;

//! Archives that pass once: compressed files and pipes. Members come in the archive's order; one that is not read is
//! passed over.

use super::MemberName;
use super::root_filesystem::RootFilesystem;
use super::source::not_a_tar;
use crate::error::{Error, ErrorKind, Result};
use crate::io::codec::{Codec, decoder};
use crate::io::tar::{Entry, EntryData, EntryKind, TarReader};
use crate::limits::Limits;
use crate::parallel::{Budget, Cancel};
use std::io::{self, BufRead, BufReader, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// The buffers before and after the decoder. Decoders are fastest on large pieces.
const BUFFER_BYTES: usize = 256 << 10;

type Uncompressed = BufReader<Box<dyn Read + Send>>;

/// An archive that is read once, from its beginning to its end.
pub struct Stream {
    tar: Option<TarReader<Uncompressed>>,
    passed: Arc<AtomicU64>,
    size_bytes: Option<u64>,
    codec: Codec,
    guard: MemberGuard,
    trailing_bytes: u64,
    ahead: Vec<u8>,
}

impl Stream {
    pub(super) fn new(
        codec: Codec,
        input: Box<dyn Read + Send>,
        size_bytes: Option<u64>,
        limits: &Limits,
        budget: &Budget,
        cancel: &Cancel,
    ) -> Result<Self> {
        let passed = Arc::new(AtomicU64::new(0));
        let counted = Counted { inner: input, passed: passed.clone() };
        let plain: Box<dyn Read + Send> = match codec {
            Codec::None => Box::new(counted),
            codec => decoder(codec, BufReader::with_capacity(BUFFER_BYTES, counted), budget, cancel)?,
        };
        let tar = TarReader::new(BufReader::with_capacity(BUFFER_BYTES, plain), limits);
        Ok(Stream {
            tar: Some(tar),
            passed,
            size_bytes,
            codec,
            guard: MemberGuard::new(limits),
            trailing_bytes: limits.trailing_bytes,
            ahead: Vec::new(),
        })
    }

    /// The size of the compressed file, where it has one.
    pub fn size_bytes(&self) -> Option<u64> {
        self.size_bytes
    }

    /// How the archive itself is compressed.
    pub fn codec(&self) -> Codec {
        self.codec
    }

    /// How many compressed bytes have been read.
    pub fn bytes_read(&self) -> u64 {
        self.passed.load(Ordering::Relaxed)
    }

    /// The next member, passing over what was left unread of the one before; `None` once the archive has been read to its
    /// end, checksums of its compression included.
    pub fn next_member(&mut self) -> Result<Option<StreamMember<'_>>> {
        let Some(tar) = &mut self.tar else { return Ok(None) };
        let entry = match tar.next_entry() {
            Ok(entry) => entry,
            Err(error) if self.guard.members == 0 => return Err(not_a_tar(error)),
            Err(error) => return Err(error),
        };
        let Some(entry) = entry else {
            let rest = self.tar.take().expect("just used").into_inner();
            drain(rest, self.trailing_bytes)?;
            return Ok(None);
        };
        let name = self.guard.admit(&entry)?;
        self.ahead.clear();
        let tar = self.tar.as_mut().expect("the archive has not ended");
        Ok(Some(StreamMember {
            kind: kind(&name, &entry)?,
            name,
            size_bytes: entry.stored_bytes,
            data: tar.data(),
            ahead: &mut self.ahead,
            consumed: 0,
        }))
    }
}

/// Reads what follows the tar, so that checksums at the very end are verified and a writer's pipe does not break.
fn drain(mut rest: Uncompressed, most: u64) -> Result<()> {
    let mut count = 0;
    loop {
        let available = match rest.fill_buf() {
            Ok(available) => available.len(),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error.into()),
        };
        if available == 0 {
            return Ok(());
        }
        rest.consume(available);
        count += available as u64;
        if count > most {
            let message = format!("more than {most} bytes follow the end of the archive");
            return Err(Error::over("trailing_bytes", message));
        }
    }
}

/// What holds for the members of every archive, whichever way it is read.
pub(super) struct MemberGuard {
    pub(super) members: u64,
    max_members: u64,
    name_bytes: u64,
    max_name_bytes: u64,
    root_filesystem: RootFilesystem,
}

impl MemberGuard {
    pub(super) fn new(limits: &Limits) -> Self {
        MemberGuard {
            members: 0,
            max_members: limits.archive_members,
            name_bytes: 0,
            max_name_bytes: limits.json_total_bytes,
            root_filesystem: RootFilesystem::default(),
        }
    }

    /// Counts an entry and gives its name in normal form.
    pub(super) fn admit(&mut self, entry: &Entry) -> Result<MemberName> {
        self.members += 1;
        self.name_bytes += (entry.path.len() + entry.link.len()) as u64;
        if self.members > self.max_members {
            let message = format!("the archive has more than {} members", self.max_members);
            return Err(Error::over("archive_members", message));
        }
        if self.name_bytes > self.max_name_bytes {
            let message = format!("the names of its members have more than {} bytes", self.max_name_bytes);
            return Err(Error::over("json_total_bytes", message));
        }
        let name = MemberName::parse(&entry.path)?;
        self.root_filesystem.look(&name)?;
        if entry.sparse.is_some() {
            let message = format!("{name} is stored as a sparse file");
            return Err(
                Error::new(ErrorKind::Unsupported, message).with_hint("write the archive without --sparse")
            );
        }
        Ok(name)
    }
}

pub(super) fn kind(name: &MemberName, entry: &Entry) -> Result<MemberKind> {
    Ok(match entry.kind {
        EntryKind::File => MemberKind::File,
        EntryKind::HardLink => MemberKind::Link(MemberName::parse(&entry.link)?),
        EntryKind::Symlink => name.follow(&entry.link).map_or(MemberKind::Other, MemberKind::Link),
        // Contiguous files (7) are regular ones to every reader.
        EntryKind::Other(b'7') => MemberKind::File,
        _ => MemberKind::Other,
    })
}

/// What a member is, as far as images are concerned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MemberKind {
    /// A regular file.
    File,
    /// Another member holds the bytes: a hard link, or a symbolic link as `docker save` writes them.
    Link(MemberName),
    /// A directory, or something that no image archive has a use for.
    Other,
}

/// A member that is passing. Reading it gives its bytes.
pub struct StreamMember<'a> {
    name: MemberName,
    kind: MemberKind,
    size_bytes: u64,
    data: EntryData<'a, Uncompressed>,
    ahead: &'a mut Vec<u8>,
    consumed: usize,
}

impl StreamMember<'_> {
    /// Its name.
    pub fn name(&self) -> &MemberName {
        &self.name
    }

    /// What it is.
    pub fn kind(&self) -> &MemberKind {
        &self.kind
    }

    /// How many bytes it has.
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// The next `count` bytes, or as many as there are, without consuming them.
    pub fn peek(&mut self, count: usize) -> Result<&[u8]> {
        self.ahead.drain(..self.consumed);
        self.consumed = 0;
        let missing = count.saturating_sub(self.ahead.len());
        (&mut self.data).take(missing as u64).read_to_end(self.ahead)?;
        Ok(&self.ahead[..count.min(self.ahead.len())])
    }
}

impl BufRead for StreamMember<'_> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.consumed < self.ahead.len() {
            return Ok(&self.ahead[self.consumed..]);
        }
        self.data.fill_buf()
    }

    fn consume(&mut self, amount: usize) {
        if self.consumed < self.ahead.len() {
            self.consumed += amount;
        } else {
            self.data.consume(amount);
        }
    }
}

impl Read for StreamMember<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        crate::io::read_buffered(self, buffer)
    }
}

/// Counts what is read.
struct Counted<R> {
    inner: R,
    passed: Arc<AtomicU64>,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.passed.fetch_add(count as u64, Ordering::Relaxed);
        Ok(count)
    }
}

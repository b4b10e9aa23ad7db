//! Compression by content: what a stream is compressed with is read from its first bytes and never from a name or a
//! media type, and it is undone in this process.
//!
//! A decoder gives every byte or an error. All members, frames and streams that follow each other are decoded, zero
//! padding after the last one is passed over, anything else there is [`ErrorKind::Malformed`], and a stream that
//! ends early is [`ErrorKind::Truncated`], also when it is empty. Errors travel as [`Error`] inside
//! [`std::io::Error`]. Reading until `Ok(0)` verifies checksums and the end.
//!
//! Memory: the first 10 MiB of a decoder belong to a lane's fixed costs, which covers gzip, bzip2, and zstd and xz at usual
//! levels; what larger windows (zstd `--long`, `xz -9`) need beyond is bought from the [`Budget`] and returned when the
//! decoder is dropped.

use super::gzip::GzipMember;
use crate::error::{Error, ErrorKind, Result};
use crate::oci::media_type;
use crate::parallel::{Budget, Cancel, Grant};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::io::{self, BufRead, Read};
use std::time::{Duration, Instant};
use zstd::stream::raw::{self, Operation};

/// Window memory that needs no purchase: 8 MiB is what every zstd decoder must support (RFC 8878, 3.1.1.1.2), and xz
/// at its default level needs 9 MiB with its state.
const FREE_WINDOW_BYTES: u64 = 10 << 20;

/// How long a decoder waits for others to return memory. Two that each hold a part and wait for the rest would
/// otherwise wait for ever.
const BUDGET_PATIENCE: Duration = Duration::from_secs(60);

/// How finely the need of an xz stream is measured.
const XZ_STEP_BYTES: u64 = 4 << 20;

/// How many first bytes [`Codec::sniff`] needs.
pub const SNIFF_BYTES: usize = 6;

/// A compression format.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Codec {
    /// Not compressed.
    #[default]
    None,
    /// gzip, including BGZF and eStargz.
    Gzip,
    /// Zstandard, including zstd:chunked.
    Zstd,
    /// xz.
    Xz,
    /// bzip2.
    Bzip2,
}

impl Codec {
    /// What the bytes at the head of a stream say; six are enough. What no format claims is not compressed.
    ///
    /// ```
    /// use transload::io::codec::Codec;
    /// assert_eq!(Codec::sniff(b"\x1f\x8b\x08\x00"), Codec::Gzip);
    /// assert_eq!(Codec::sniff(b"etc/"), Codec::None);
    /// ```
    pub fn sniff(head: &[u8]) -> Codec {
        match head {
            [0x1f, 0x8b, 8, ..] => Codec::Gzip,
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Codec::Zstd,
            // A skippable frame: zstd:chunked and pzstd may begin with one.
            [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Codec::Zstd,
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Codec::Xz,
            [b'B', b'Z', b'h', b'1'..=b'9', 0x31 | 0x17, ..] => Codec::Bzip2,
            _ => Codec::None,
        }
    }

    /// The OCI media type of a layer in this format; `None` for the formats that OCI has no type for.
    pub fn media_type(self) -> Option<&'static str> {
        match self {
            Codec::None => Some(media_type::LAYER),
            Codec::Gzip => Some(media_type::LAYER_GZIP),
            Codec::Zstd => Some(media_type::LAYER_ZSTD),
            Codec::Xz | Codec::Bzip2 => None,
        }
    }

    /// The codec of that name.
    pub fn from_name(name: &str) -> Option<Codec> {
        [Codec::None, Codec::Gzip, Codec::Zstd, Codec::Xz, Codec::Bzip2]
            .into_iter()
            .find(|codec| codec.name() == name)
    }

    /// The name, in lower case.
    pub fn name(self) -> &'static str {
        match self {
            Codec::None => "none",
            Codec::Gzip => "gzip",
            Codec::Zstd => "zstd",
            Codec::Xz => "xz",
            Codec::Bzip2 => "bzip2",
        }
    }
}

impl fmt::Display for Codec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The uncompressed bytes of `input`. Give it a buffer of 64 KiB or more, and read into one as large: nothing is
/// copied in between.
///
/// ```
/// use std::io::Read;
/// use transload::{Cancel, io::codec::{Codec, decoder}, parallel::Budget};
/// let mut text = String::new();
/// decoder(Codec::None, &b"plain"[..], &Budget::new(0), &Cancel::new())?.read_to_string(&mut text)?;
/// assert_eq!(text, "plain");
/// # Ok::<(), transload::Error>(())
/// ```
pub fn decoder<'a, R: BufRead + Send + 'a>(
    codec: Codec,
    input: R,
    budget: &Budget,
    cancel: &Cancel,
) -> Result<Box<dyn Read + Send + 'a>> {
    let memory = Memory { budget: budget.clone(), cancel: cancel.clone(), grant: None };
    Ok(match codec {
        Codec::None => Box::new(input),
        Codec::Gzip => Box::new(Decoder::new(input, GzipMember::new())),
        Codec::Zstd => Box::new(Decoder::new(input, ZstdFrame::new(memory)?)),
        Codec::Xz => Box::new(Decoder::new(input, XzStream::new(memory)?)),
        Codec::Bzip2 => Box::new(Decoder::new(input, Bzip2Stream::new())),
    })
}

/// What one step of a decoder did.
pub(super) struct Step {
    pub read: usize,
    pub written: usize,
    /// The member, frame or stream is complete and verified.
    pub ended: bool,
}

/// Decodes one member, frame or stream after another.
pub(super) trait StreamDecoder: Send {
    /// Gets ready for the next one.
    fn begin(&mut self) -> Result<()>;
    /// Decodes from `input` to `output`. An empty input flushes what is held back.
    fn step(&mut self, input: &[u8], output: &mut [u8]) -> Result<Step>;
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    Start,
    Inside,
    Between,
    Padding,
    End,
}

/// The sequence of members, whatever the format.
struct Decoder<R, D> {
    input: R,
    decoder: D,
    place: Place,
    failed: Option<Error>,
}

impl<R: BufRead, D: StreamDecoder> Decoder<R, D> {
    fn new(input: R, decoder: D) -> Self {
        Decoder { input, decoder, place: Place::Start, failed: None }
    }

    fn decode(&mut self, output: &mut [u8]) -> Result<usize> {
        let mut idle = 0;
        while self.place != Place::End {
            let available = match self.input.fill_buf() {
                Ok(available) => available,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error.into()),
            };
            let (read, written) = match self.place {
                Place::Inside => {
                    let step = self.decoder.step(available, output)?;
                    if step.ended {
                        self.place = Place::Between;
                    } else if step.read == 0 && step.written == 0 {
                        idle = check_idle(available.is_empty(), idle)?;
                    }
                    (step.read, step.written)
                }
                _ => (outside(&mut self.place, &mut self.decoder, available)?, 0),
            };
            self.input.consume(read);
            if written > 0 {
                return Ok(written);
            }
        }
        Ok(0)
    }
}

/// No output is normal once or twice inside a header; without any input left it means that the rest is missing.
fn check_idle(at_end: bool, idle: u32) -> Result<u32> {
    match (at_end, idle) {
        (true, _) => Err(Error::new(ErrorKind::Truncated, "the compressed data ends too early")),
        (false, 0..=15) => Ok(idle + 1),
        (false, _) => Err(Error::malformed("the compressed data makes no progress")),
    }
}

/// Decides what comes next outside of a member; gives how many bytes to pass over.
fn outside(place: &mut Place, decoder: &mut impl StreamDecoder, available: &[u8]) -> Result<usize> {
    if available.is_empty() {
        if *place == Place::Start {
            return Err(Error::new(ErrorKind::Truncated, "the compressed data is empty"));
        }
        *place = Place::End;
        return Ok(0);
    }
    let zeros = available.iter().take_while(|&&byte| byte == 0).count();
    if *place != Place::Start && zeros > 0 {
        *place = Place::Padding;
        return Ok(zeros);
    }
    decoder.begin()?;
    *place = Place::Inside;
    Ok(0)
}

impl<R: BufRead, D: StreamDecoder> Read for Decoder<R, D> {
    fn read(&mut self, output: &mut [u8]) -> io::Result<usize> {
        if output.is_empty() {
            return Ok(0);
        }
        if let Some(error) = &self.failed {
            return Err(error.duplicate().into_io());
        }
        self.decode(output).map_err(|error| {
            self.failed = Some(error.duplicate());
            error.into_io()
        })
    }
}

/// Window memory, bought when a stream turns out to need it.
struct Memory {
    budget: Budget,
    cancel: Cancel,
    grant: Option<(Grant, u64)>,
}

impl Memory {
    /// Holds at least `bytes`; what is free needs no purchase.
    fn need(&mut self, bytes: u64) -> Result<()> {
        let bytes = bytes.saturating_sub(FREE_WINDOW_BYTES);
        let held = self.grant.as_ref().map_or(0, |(_, held)| *held);
        if bytes <= held {
            return Ok(());
        }
        self.grant = None;
        self.grant = Some((self.wait_for(bytes)?, bytes));
        Ok(())
    }

    fn wait_for(&self, bytes: u64) -> Result<Grant> {
        let deadline = Instant::now() + BUDGET_PATIENCE;
        loop {
            match self.budget.try_buy_window(bytes) {
                Err(_) if bytes <= self.budget.largest_window_bytes() && Instant::now() < deadline => {
                    self.cancel.check()?;
                    std::thread::sleep(Duration::from_millis(5));
                }
                answer => return answer.map_err(|error| error.context("cannot decompress")),
            }
        }
    }
}

/// Zstandard frames. Their headers are read here first, so that a window is paid for before it is allocated.
struct ZstdFrame {
    decoder: raw::Decoder<'static>,
    memory: Memory,
    stage: ZstdStage,
    header: Vec<u8>,
}

enum ZstdStage {
    Header,
    Skip(u64),
    Body,
}

/// The largest window that is decoded at all; the format allows more and no tool writes it.
const ZSTD_MAX_WINDOW_LOG: u32 = 31;

impl ZstdFrame {
    fn new(memory: Memory) -> Result<Self> {
        let mut decoder = raw::Decoder::new()?;
        let max =
            raw::DParameter::WindowLogMax(ZSTD_MAX_WINDOW_LOG.min(if cfg!(target_pointer_width = "32") {
                30
            } else {
                31
            }));
        decoder.set_parameter(max)?;
        Ok(ZstdFrame { decoder, memory, stage: ZstdStage::Header, header: Vec::new() })
    }

    /// Collects the header; once it is whole, decides how to go on.
    fn read_header(&mut self, input: &mut &[u8]) -> Result<bool> {
        loop {
            let wanted = zstd_header_bytes(&self.header)?;
            if self.header.len() == wanted {
                break;
            }
            let amount = input.len().min(wanted - self.header.len());
            if amount == 0 {
                return Ok(false);
            }
            self.header.extend_from_slice(&input[..amount]);
            *input = &input[amount..];
        }
        if is_skippable(&self.header) {
            let size = self.header[4..8].try_into().expect("a skippable header has eight bytes");
            self.stage = ZstdStage::Skip(u64::from(u32::from_le_bytes(size)));
            return Ok(true);
        }
        // Blocks of 128 KiB are buffered besides the window.
        self.memory.need(zstd_window_bytes(&self.header).saturating_add(256 << 10))?;
        let header = std::mem::take(&mut self.header);
        let mut fed = 0;
        while fed < header.len() {
            let status = self.decoder.run_on_buffers(&header[fed..], &mut []).map_err(zstd_error)?;
            fed += status.bytes_read.max(1);
        }
        self.stage = ZstdStage::Body;
        Ok(true)
    }
}

fn is_skippable(header: &[u8]) -> bool {
    matches!(header, [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..])
}

/// How long the header is, as far as its first bytes tell (RFC 8878, 3.1.1.1).
fn zstd_header_bytes(header: &[u8]) -> Result<usize> {
    if header.len() < 4 {
        return Ok(4);
    }
    if is_skippable(header) {
        return Ok(8);
    }
    if !header.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) {
        return Err(Error::malformed("what follows the zstd data is neither a zstd frame nor zero padding"));
    }
    let Some(&descriptor) = header.get(4) else { return Ok(5) };
    let single_segment = descriptor & 0x20 != 0;
    let dictionary = [0, 1, 2, 4][usize::from(descriptor & 3)];
    let content = [usize::from(single_segment), 2, 4, 8][usize::from(descriptor >> 6)];
    Ok(5 + usize::from(!single_segment) + dictionary + content)
}

/// The window that a whole header asks for.
fn zstd_window_bytes(header: &[u8]) -> u64 {
    let descriptor = header[4];
    if descriptor & 0x20 == 0 {
        let (exponent, mantissa) = (u32::from(header[5] >> 3), u64::from(header[5] & 7));
        let base = 1u64 << (10 + exponent);
        return base + base / 8 * mantissa;
    }
    let field = &header[5 + [0, 1, 2, 4][usize::from(descriptor & 3)]..];
    let value = field.iter().rev().fold(0u64, |value, &byte| value << 8 | u64::from(byte));
    if field.len() == 2 { value + 256 } else { value }
}

fn zstd_error(error: io::Error) -> Error {
    let message = error.to_string();
    if message.contains("too much memory") {
        return Error::limit("the zstd window is larger than any that is decoded");
    }
    Error::malformed(format!("the zstd data is damaged: {message}"))
}

impl StreamDecoder for ZstdFrame {
    fn begin(&mut self) -> Result<()> {
        self.stage = ZstdStage::Header;
        self.header.clear();
        Ok(())
    }

    fn step(&mut self, input: &[u8], output: &mut [u8]) -> Result<Step> {
        let mut rest = input;
        if matches!(self.stage, ZstdStage::Header) && !self.read_header(&mut rest)? {
            return Ok(Step { read: input.len(), written: 0, ended: false });
        }
        match &mut self.stage {
            ZstdStage::Skip(left) => {
                let amount = rest.len().min(usize::try_from(*left).unwrap_or(usize::MAX));
                *left -= amount as u64;
                let read = input.len() - rest.len() + amount;
                Ok(Step { read, written: 0, ended: *left == 0 })
            }
            _ => {
                let status = self.decoder.run_on_buffers(rest, output).map_err(zstd_error)?;
                let read = input.len() - rest.len() + status.bytes_read;
                Ok(Step { read, written: status.bytes_written, ended: status.remaining == 0 })
            }
        }
    }
}

/// xz streams.
struct XzStream {
    stream: liblzma::stream::Stream,
    memory: Memory,
    fresh: bool,
}

impl XzStream {
    fn new(memory: Memory) -> Result<Self> {
        Ok(XzStream { stream: new_xz_stream()?, memory, fresh: true })
    }

    /// Finds out how much the stream needs, pays for it and allows it.
    fn raise_limit(&mut self) -> Result<()> {
        let mut limit = self.stream.memlimit();
        loop {
            limit += XZ_STEP_BYTES;
            if limit > self.memory.budget.total_bytes().saturating_add(FREE_WINDOW_BYTES) {
                let need = limit >> 20;
                let have = self.memory.budget.total_bytes() >> 20;
                let message =
                    format!("the xz data needs {need} MiB of memory or more, the budget is {have} MiB");
                return Err(Error::limit(message).with_hint("raise --memory"));
            }
            match self.stream.set_memlimit(limit) {
                Ok(()) => return self.memory.need(limit),
                Err(liblzma::stream::Error::MemLimit) => {}
                Err(error) => return Err(xz_error(error)),
            }
        }
    }
}

fn new_xz_stream() -> Result<liblzma::stream::Stream> {
    liblzma::stream::Stream::new_stream_decoder(FREE_WINDOW_BYTES, 0).map_err(xz_error)
}

fn xz_error(error: liblzma::stream::Error) -> Error {
    use liblzma::stream::Error as Xz;
    match error {
        Xz::MemLimit => Error::limit("the xz data needs more memory").with_hint("raise --memory"),
        Xz::Format => Error::malformed("what follows the xz data is neither an xz stream nor zero padding"),
        Xz::Options => Error::new(ErrorKind::Unsupported, "the xz data uses an unknown option"),
        Xz::Mem => Error::new(ErrorKind::Io, "no memory for the xz decoder"),
        _ => Error::malformed("the xz data is damaged").with_source(error),
    }
}

impl StreamDecoder for XzStream {
    fn begin(&mut self) -> Result<()> {
        if !std::mem::take(&mut self.fresh) {
            let limit = self.stream.memlimit();
            self.stream = new_xz_stream()?;
            self.stream.set_memlimit(limit).map_err(xz_error)?;
        }
        Ok(())
    }

    fn step(&mut self, input: &[u8], output: &mut [u8]) -> Result<Step> {
        use liblzma::stream::{Action, Error as Xz, Status};
        let (before_in, before_out) = (self.stream.total_in(), self.stream.total_out());
        let ended = match self.stream.process(input, output, Action::Run) {
            Ok(Status::StreamEnd) => true,
            Ok(_) => false,
            Err(Xz::MemLimit) => {
                self.raise_limit()?;
                false
            }
            Err(error) => return Err(xz_error(error)),
        };
        let read = (self.stream.total_in() - before_in) as usize;
        let written = (self.stream.total_out() - before_out) as usize;
        Ok(Step { read, written, ended })
    }
}

/// bzip2 streams.
struct Bzip2Stream {
    stream: bzip2::Decompress,
    fresh: bool,
}

impl Bzip2Stream {
    fn new() -> Self {
        Bzip2Stream { stream: bzip2::Decompress::new(false), fresh: true }
    }
}

impl StreamDecoder for Bzip2Stream {
    fn begin(&mut self) -> Result<()> {
        if !std::mem::take(&mut self.fresh) {
            self.stream = bzip2::Decompress::new(false);
        }
        Ok(())
    }

    fn step(&mut self, input: &[u8], output: &mut [u8]) -> Result<Step> {
        let (before_in, before_out) = (self.stream.total_in(), self.stream.total_out());
        let status = self.stream.decompress(input, output).map_err(bzip2_error)?;
        let read = (self.stream.total_in() - before_in) as usize;
        let written = (self.stream.total_out() - before_out) as usize;
        if status == bzip2::Status::MemNeeded {
            return Err(Error::new(ErrorKind::Io, "no memory for the bzip2 decoder"));
        }
        Ok(Step { read, written, ended: status == bzip2::Status::StreamEnd })
    }
}

fn bzip2_error(error: bzip2::Error) -> Error {
    match error {
        bzip2::Error::DataMagic => {
            Error::malformed("what follows the bzip2 data is neither a bzip2 stream nor zero padding")
        }
        _ => Error::malformed("the bzip2 data is damaged").with_source(error),
    }
}

#[cfg(test)]
#[path = "codec_tests.rs"]
mod tests;

//! The first stage of a blob's way: each chunk is read once, and while it is in cache it is hashed, written and handed on.

use super::stages::Upstream;
use crate::content::{BlobIngest, HEAD_BYTES};
use crate::error::{Error, ErrorKind, Result};
use crate::io::digesting::Digester;
use crate::io::headroom::Headroom;
use crate::io::tar::TarInput;
use crate::oci::{Algorithm, Digest};
use crate::parallel::Cancel;
use std::io::{self, BufRead, Read};
use std::time::{Duration, Instant};

/// The size of a chunk: large enough that system calls do not count, small enough to stay in a second-level cache.
pub(crate) const CHUNK_BYTES: usize = 128 << 10;

/// What happens to each chunk besides being handed on.
pub(crate) enum Sink {
    /// Hashed and written.
    Write(BlobIngest),
    /// Hashed only.
    Hash(Digester, Option<Digest>),
}

impl Sink {
    pub(crate) fn hash(algorithm: Algorithm) -> Self {
        Sink::Hash(Digester::new(algorithm), None)
    }

    fn take(&mut self, chunk: &[u8], offset: u64, headroom: &Headroom) -> Result<()> {
        match self {
            Sink::Write(ingest) => {
                if !ingest.is_clone() {
                    headroom.spend(chunk.len() as u64)?;
                }
                ingest.write(chunk)
            }
            Sink::Hash(digester, head) => {
                let missing = HEAD_BYTES.saturating_sub(offset) as usize;
                if offset < HEAD_BYTES && chunk.len() >= missing {
                    digester.update(&chunk[..missing]);
                    *head = Some(digester.clone().finish());
                    digester.update(&chunk[missing..]);
                } else {
                    digester.update(chunk);
                }
                Ok(())
            }
        }
    }
}

/// The most bytes that a layer's blob may have.
pub(crate) struct Cap {
    pub(crate) most_bytes: u64,
    /// The limit that this comes from.
    pub(crate) limit_bytes: u64,
}

/// Reads a blob's bytes from `source` chunk by chunk, into `sink` and to whoever reads from here.
pub(crate) struct Intake<'a> {
    source: Box<dyn Read + Send + 'a>,
    pub(crate) sink: Sink,
    limit_bytes: Option<u64>,
    cap: Option<Cap>,
    headroom: &'a Headroom,
    buffer: Vec<u8>,
    position: usize,
    filled: usize,
    offset: u64,
    ended: bool,
    failed: Option<Error>,
    cancel: &'a Cancel,
    advanced: &'a (dyn Fn(u64) + Sync),
    pub(crate) read_time: Duration,
    pub(crate) sink_time: Duration,
}

impl<'a> Intake<'a> {
    /// `limit_bytes` is the announced size: one byte more is an error at once, and fewer are one at the end.
    pub(crate) fn new(
        source: Box<dyn Read + Send + 'a>,
        sink: Sink,
        limit_bytes: Option<u64>,
        headroom: &'a Headroom,
        cancel: &'a Cancel,
        advanced: &'a (dyn Fn(u64) + Sync),
    ) -> Self {
        Intake {
            source,
            sink,
            limit_bytes,
            cap: None,
            headroom,
            buffer: vec![0; CHUNK_BYTES],
            position: 0,
            filled: 0,
            offset: 0,
            ended: false,
            failed: None,
            cancel,
            advanced,
            read_time: Duration::ZERO,
            sink_time: Duration::ZERO,
        }
    }

    /// Time spent on reading, hashing and writing so far.
    pub(crate) fn busy(&self) -> Duration {
        self.read_time + self.sink_time
    }

    /// Bytes read so far.
    pub(crate) fn bytes_read(&self) -> u64 {
        self.offset
    }

    /// The first bytes, for sniffing; all of them if the blob is that small.
    pub(crate) fn peek(&mut self) -> Result<&[u8]> {
        Ok(self.fill_buf()?)
    }

    /// Reads to the end, so that digest and size cover everything.
    pub(crate) fn drain(&mut self) -> Result<()> {
        while !self.fill_buf()?.is_empty() {
            let chunk = self.filled - self.position;
            self.consume(chunk);
        }
        Ok(())
    }

    fn next_chunk(&mut self) -> Result<()> {
        self.cancel.check()?;
        let started = Instant::now();
        self.position = 0;
        self.filled = 0;
        // Sources may return little at a time; whole chunks keep every later stage cheap.
        while self.filled < self.buffer.len() && !self.ended {
            match self.source.read(&mut self.buffer[self.filled..]) {
                Ok(0) => self.ended = true,
                Ok(count) => self.filled += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
        let read = Instant::now();
        let chunk = &self.buffer[..self.filled];
        self.check_size(self.offset + chunk.len() as u64)?;
        if !chunk.is_empty() {
            self.sink.take(chunk, self.offset, self.headroom)?;
            self.offset += chunk.len() as u64;
            (self.advanced)(chunk.len() as u64);
        }
        self.read_time += read - started;
        self.sink_time += read.elapsed();
        Ok(())
    }

    /// Refuses a layer that is larger than it may be: at once where its size was announced, else when so much has come.
    pub(crate) fn cap(&mut self, cap: Cap) -> Result<()> {
        self.cap = Some(cap);
        self.check_cap(self.limit_bytes.unwrap_or(self.offset))
    }

    fn check_cap(&self, bytes: u64) -> Result<()> {
        match &self.cap {
            Some(Cap { most_bytes, limit_bytes }) if bytes > *most_bytes => {
                Err(Error::over("layer_bytes", format!("the layer has more than {limit_bytes} bytes")))
            }
            _ => Ok(()),
        }
    }

    fn check_size(&self, bytes: u64) -> Result<()> {
        self.check_cap(bytes)?;
        let Some(expected) = self.limit_bytes else { return Ok(()) };
        if bytes > expected {
            let message = format!("it is longer than the {expected} bytes that its descriptor says");
            return Err(Error::new(ErrorKind::SizeMismatch, message).with_mismatch(expected, "more"));
        }
        if self.ended && bytes < expected {
            let message = format!("it ends after {bytes} of {expected} bytes");
            return Err(Error::new(ErrorKind::SizeMismatch, message).with_mismatch(expected, bytes));
        }
        Ok(())
    }
}

impl Read for Intake<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        crate::io::read_buffered(self, buffer)
    }
}

impl BufRead for Intake<'_> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if let Some(error) = &self.failed {
            return Err(error.duplicate().into_io());
        }
        if self.position == self.filled
            && !self.ended
            && let Err(error) = self.next_chunk()
        {
            self.failed = Some(error.duplicate());
            return Err(error.into_io());
        }
        Ok(&self.buffer[self.position..self.filled])
    }

    fn consume(&mut self, amount: usize) {
        self.position = (self.position + amount).min(self.filled);
    }
}

impl TarInput for Intake<'_> {}

impl Upstream for Intake<'_> {
    fn upstream_time(&self) -> Duration {
        self.busy()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_refused_is_not_gone_on_with() {
        let (headroom, cancel, advanced) = (Headroom::default(), Cancel::new(), |_| {});
        let source = Box::new(io::repeat(1).take(3 * CHUNK_BYTES as u64));
        let sink = Sink::hash(Algorithm::Sha256);
        let mut intake =
            Intake::new(source, sink, Some(2 * CHUNK_BYTES as u64), &headroom, &cancel, &advanced);
        let read = intake.read_to_end(&mut Vec::new());
        assert_eq!(Error::from(read.expect_err("too long")).kind(), ErrorKind::SizeMismatch);
        assert_eq!(intake.drain().expect_err("still too long").kind(), ErrorKind::SizeMismatch);
        assert_eq!(intake.bytes_read(), 2 * CHUNK_BYTES as u64);
    }
}

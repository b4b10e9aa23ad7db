//! The later stages of a layer's way: the uncompressed stream, hashed as it passes, on one thread or on several.
//!
//! With few layers and many cores the stages of one layer run side by side: inflate here, hash there, extract elsewhere,
//! joined by a few recycled buffers. With as many layers as cores each layer stays on one core and in its cache.

use crate::error::{Error, ErrorKind, Result, ResultExt};
use crate::io::codec::Codec;
use crate::io::digesting::Digester;
use crate::io::tar::TarInput;
use crate::oci::{Algorithm, Digest};
use crate::trace;
use crossbeam::channel::{Receiver, Sender, bounded};
use std::io::{self, BufRead, Read};
use std::sync::Arc;
use std::thread::{Scope, ScopedJoinHandle};
use std::time::{Duration, Instant};
use tracing::Span;

/// An input that tells how long it kept its reader waiting, or worked on the reader's own thread.
pub(crate) trait Upstream: TarInput {
    fn upstream_time(&self) -> Duration;
}

/// The size of an uncompressed chunk.
pub(crate) const UNPACKED_CHUNK_BYTES: usize = 256 << 10;

/// How many chunks lie between two stages at most.
const CHUNKS_BETWEEN: usize = 6;

/// An uncompressed layer stream that is hashed as it is read.
pub(crate) struct Unpacked<R> {
    inner: R,
    digester: Digester,
    buffer: Vec<u8>,
    position: usize,
    filled: usize,
    bytes: u64,
    pub(crate) inflate_time: Duration,
    pub(crate) hash_time: Duration,
}

impl<R: Read> Unpacked<R> {
    pub(crate) fn new(inner: R) -> Self {
        Unpacked {
            inner,
            digester: Digester::new(Algorithm::Sha256),
            buffer: vec![0; UNPACKED_CHUNK_BYTES],
            position: 0,
            filled: 0,
            bytes: 0,
            inflate_time: Duration::ZERO,
            hash_time: Duration::ZERO,
        }
    }

    /// Reads to the end, so that digest and size cover everything.
    pub(crate) fn drain(&mut self) -> Result<()> {
        while !self.fill_buf()?.is_empty() {
            self.consume(UNPACKED_CHUNK_BYTES);
        }
        Ok(())
    }

    /// The digest and size of everything read.
    pub(crate) fn finish(self) -> (Digest, u64) {
        (self.digester.finish(), self.bytes)
    }
}

/// Fills as much of `buffer` as there is.
pub(super) fn read_full(reader: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match reader.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

impl<R: Read> Read for Unpacked<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        crate::io::read_buffered(self, buffer)
    }
}

impl<R: Read> BufRead for Unpacked<R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.position == self.filled {
            let started = Instant::now();
            self.position = 0;
            self.filled = 0;
            self.filled = read_full(&mut self.inner, &mut self.buffer)?;
            let inflated = Instant::now();
            self.digester.update(&self.buffer[..self.filled]);
            self.bytes += self.filled as u64;
            self.inflate_time += inflated - started;
            self.hash_time += inflated.elapsed();
        }
        Ok(&self.buffer[self.position..self.filled])
    }

    fn consume(&mut self, amount: usize) {
        self.position = (self.position + amount).min(self.filled);
    }
}

impl<R: Read> TarInput for Unpacked<R> {}

impl<R: Read> Upstream for Unpacked<R> {
    fn upstream_time(&self) -> Duration {
        self.inflate_time + self.hash_time
    }
}

/// A chunk on its way to two readers.
type Chunk = Arc<Vec<u8>>;

/// The reading end of stages that run on other threads.
pub(crate) struct Piped {
    chunks: Receiver<Result<Chunk>>,
    current: Chunk,
    position: usize,
    failed: Option<Error>,
    waited: Duration,
}

impl Piped {
    fn new(chunks: Receiver<Result<Chunk>>) -> Self {
        Piped { chunks, current: Chunk::default(), position: 0, failed: None, waited: Duration::ZERO }
    }

    /// Reads what is left, so that the stages before can finish.
    pub(crate) fn drain(&mut self) -> Result<()> {
        loop {
            let available = self.fill_buf()?.len();
            if available == 0 {
                return Ok(());
            }
            self.consume(available);
        }
    }
}

impl Read for Piped {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        crate::io::read_buffered(self, buffer)
    }
}

impl BufRead for Piped {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if let Some(error) = &self.failed {
            return Err(error.duplicate().into_io());
        }
        if self.position == self.current.len() {
            self.current = Chunk::default();
            self.position = 0;
            let started = Instant::now();
            let received = self.chunks.recv();
            self.waited += started.elapsed();
            match received {
                Ok(Ok(chunk)) => self.current = chunk,
                Ok(Err(error)) => {
                    self.failed = Some(error.duplicate());
                    return Err(error.into_io());
                }
                // The sender is gone: the stream has ended.
                Err(_) => {}
            }
        }
        Ok(&self.current[self.position..])
    }

    fn consume(&mut self, amount: usize) {
        self.position = (self.position + amount).min(self.current.len());
    }
}

impl TarInput for Piped {}

impl Upstream for Piped {
    fn upstream_time(&self) -> Duration {
        self.waited
    }
}

/// What stages on threads of their own found out, and how long they computed; waiting for each other is not in it.
pub(crate) struct SideBySide<T> {
    pub(crate) value: T,
    pub(crate) digest: Digest,
    pub(crate) bytes: u64,
    pub(crate) inflate_time: Duration,
    pub(crate) hash_time: Duration,
}

/// Runs `inner` on one thread and the hash on another, and `consume` on this one. Gives what `consume` gave and the
/// digest and size of the whole stream, which is read to its end if `consume` succeeded.
pub(crate) fn side_by_side<T>(
    inner: impl Read + Send,
    codec: Codec,
    consume: impl FnOnce(&mut Piped) -> Result<T>,
) -> Result<SideBySide<T>> {
    let (to_extract, chunks) = bounded::<Result<Chunk>>(CHUNKS_BETWEEN);
    let (to_hash, hash_chunks) = bounded::<Chunk>(CHUNKS_BETWEEN);
    std::thread::scope(|scope| {
        let hashing = beside(scope, "hash", move || hash_all(&hash_chunks))?;
        let inflate = move || inflate_all(inner, codec, &to_extract, &to_hash);
        let inflating = beside(scope, "inflate", inflate)?;
        let mut piped = Piped::new(chunks);
        let consumed = consume(&mut piped).and_then(|value| piped.drain().map(|()| value));
        // Lets the inflating thread notice that nobody reads any more.
        drop(piped);
        let panicked = |_| Error::new(ErrorKind::Internal, "a hashing or inflating thread panicked");
        let (hashed, inflated) = (hashing.join().map_err(panicked), inflating.join().map_err(panicked));
        let value = consumed?;
        let ((digest, bytes, hash_time), inflate_time) = (hashed?, inflated?);
        Ok(SideBySide { value, digest, bytes, inflate_time, hash_time })
    })
}

/// Runs `inner` on one thread and `consume` on this one, for streams that are hashed already.
pub(crate) fn ahead<T>(inner: impl Read + Send, consume: impl FnOnce(&mut Piped) -> Result<T>) -> Result<T> {
    let (to_extract, chunks) = bounded::<Result<Chunk>>(CHUNKS_BETWEEN);
    std::thread::scope(|scope| {
        beside(scope, "read", move || read_all(inner, &to_extract))?;
        let mut piped = Piped::new(chunks);
        consume(&mut piped).and_then(|value| piped.drain().map(|()| value))
    })
}

/// Starts a thread whose spans belong to the one that is open here.
fn beside<'scope, T: Send + 'scope>(
    scope: &'scope Scope<'scope, '_>,
    name: &str,
    work: impl FnOnce() -> T + Send + 'scope,
) -> Result<ScopedJoinHandle<'scope, T>> {
    let parent = Span::current();
    let named = std::thread::Builder::new().name(name.to_string());
    let started = named.spawn_scoped(scope, move || {
        let _inside = parent.entered();
        work()
    });
    started.doing(|| "cannot start a thread")
}

fn hash_all(chunks: &Receiver<Chunk>) -> (Digest, u64, Duration) {
    let (span, began) = (trace::stage!("hash", bytes, busy_us), thread_time());
    let mut digester = Digester::new(Algorithm::Sha256);
    let mut bytes = 0;
    for chunk in chunks {
        digester.update(&chunk);
        bytes += chunk.len() as u64;
    }
    let busy = thread_time() - began;
    span.record("bytes", bytes).record("busy_us", micros(busy));
    (digester.finish(), bytes, busy)
}

/// Inflates on this thread; gives the time that this took without any waiting.
fn inflate_all(
    inner: impl Read,
    codec: Codec,
    to_extract: &Sender<Result<Chunk>>,
    to_hash: &Sender<Chunk>,
) -> Duration {
    let (span, began) = (inflate_span(codec), thread_time());
    let (bytes, _) = pass_on(inner, to_extract, Some(to_hash));
    let busy = thread_time() - began;
    span.record("bytes", bytes).record("busy_us", micros(busy)).record("hash_us", 0);
    busy
}

fn read_all(inner: impl Read, to_extract: &Sender<Result<Chunk>>) {
    let (span, started) = (read_span(), Instant::now());
    let (bytes, blocked) = pass_on(inner, to_extract, None);
    let busy = started.elapsed().saturating_sub(blocked);
    span.record("bytes", bytes).record("busy_us", micros(busy)).record("blocked_us", micros(blocked));
}

pub(crate) fn read_span() -> Span {
    trace::stage!("read", member, bytes, busy_us, blocked_us)
}

pub(crate) fn inflate_span(codec: Codec) -> Span {
    trace::stage!("inflate", codec = codec.name(), bytes, busy_us, hash_us)
}

pub(crate) fn micros(time: Duration) -> u64 {
    time.as_micros() as u64
}

/// What this thread has computed so far; time in which it slept is not in it.
fn thread_time() -> Duration {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(now.tv_sec as u64, now.tv_nsec as u32)
}

/// Sends chunks to both readers until the stream ends, fails, or nobody extracts any more. Buffers come back by being
/// the last reference: this thread keeps one to each chunk that is out. Gives how many bytes passed, and how long the
/// readers made this thread wait.
fn pass_on(
    mut inner: impl Read,
    to_extract: &Sender<Result<Chunk>>,
    to_hash: Option<&Sender<Chunk>>,
) -> (u64, Duration) {
    let (mut bytes, mut blocked) = (0, Duration::ZERO);
    let mut out: std::collections::VecDeque<Chunk> = std::collections::VecDeque::new();
    loop {
        let oldest = if out.len() > CHUNKS_BETWEEN { out.pop_front() } else { None };
        let mut chunk = oldest.filter(|chunk| Arc::strong_count(chunk) == 1).unwrap_or_default();
        let buffer = Arc::make_mut(&mut chunk);
        buffer.resize(UNPACKED_CHUNK_BYTES, 0);
        match read_full(&mut inner, buffer) {
            Ok(0) => return (bytes, blocked),
            Ok(filled) => buffer.truncate(filled),
            Err(error) => {
                // Nobody listening means that the other side has failed already.
                let _ = to_extract.send(Err(error.into()));
                return (bytes, blocked);
            }
        }
        bytes += chunk.len() as u64;
        let started = Instant::now();
        if to_hash.is_some_and(|to_hash| to_hash.send(Arc::clone(&chunk)).is_err())
            || to_extract.send(Ok(Arc::clone(&chunk))).is_err()
        {
            return (bytes, blocked);
        }
        blocked += started.elapsed();
        out.push_back(chunk);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn side_by_side_gives_what_one_thread_gives() {
        let bytes: Vec<u8> = (0..3_000_000u32).map(|i| (i / 7) as u8).collect();
        let mut copy = Vec::new();
        let done =
            side_by_side(&bytes[..], Codec::None, |piped| Ok(piped.read_to_end(&mut copy)?)).expect("reads");
        assert_eq!((done.value, done.bytes), (bytes.len(), bytes.len() as u64));
        assert!(copy == bytes);
        assert_eq!(done.digest, Digest::of(&bytes));
    }

    #[test]
    fn a_consumer_that_fails_early_stops_the_others() {
        let endless = io::repeat(1);
        let result = side_by_side(endless, Codec::None, |_| Err::<(), _>(Error::malformed("no tar")));
        assert_eq!(result.map(drop).expect_err("refused").to_string(), "no tar");
    }

    #[test]
    fn an_error_of_the_source_reaches_the_consumer() {
        struct Broken;
        impl Read for Broken {
            fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
                Err(Error::new(ErrorKind::Truncated, "gone").into_io())
            }
        }
        let result = side_by_side(Broken, Codec::None, |piped| Ok(piped.read_to_end(&mut Vec::new())?));
        assert_eq!(result.map(drop).expect_err("broken").kind(), ErrorKind::Truncated);
    }
}

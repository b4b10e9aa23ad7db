//! One blob read once: hashed as it passes and, where it is a layer, inflated, hashed again and extracted.

use crate::content::Blob;
use crate::error::{Error, Result};
use crate::io::codec::{Codec, decoder};
use crate::io::digesting::Digester;
use crate::io::tar::TarInput;
use crate::layer::{Applied, ApplyOptions, Ownership, apply};
use crate::limits::Limits;
use crate::oci::{Algorithm, DiffId, Digest};
use crate::parallel::{Budget, Cancel};
use crate::tree::WhiteoutForm;
use rustix::fd::BorrowedFd;
use std::io::{self, BufRead, BufReader, Read};

/// As much as the decoders like to get at once.
const BUFFER_BYTES: usize = 256 << 10;

/// What is worked with.
pub(super) struct PassMeans<'a> {
    pub budget: &'a Budget,
    pub cancel: &'a Cancel,
    pub advanced: &'a (dyn Fn(u64) + Sync),
}

/// A stream that is hashed and counted as it passes.
struct Counted<'a, R> {
    inner: R,
    digester: Digester,
    bytes: u64,
    cancel: &'a Cancel,
    advanced: &'a (dyn Fn(u64) + Sync),
}

impl<R: Read> Read for Counted<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.cancel.check().map_err(Error::into_io)?;
        let count = self.inner.read(buffer)?;
        self.digester.update(&buffer[..count]);
        self.bytes += count as u64;
        (self.advanced)(count as u64);
        Ok(count)
    }
}

/// What a blob turned out to be.
pub(super) struct Passed {
    pub digest: Digest,
    pub size_bytes: u64,
    pub codec: Codec,
    /// `None` where it was not to be unpacked.
    pub unpacked: Option<Result<Unpacked>>,
}

/// What a layer turned out to be.
pub(super) struct Unpacked {
    pub diff_id: DiffId,
    pub bytes: u64,
    /// Where it was extracted.
    pub applied: Option<Applied>,
}

/// How to unpack a layer.
#[derive(Clone, Copy)]
pub(super) struct Into<'a> {
    /// The empty directory to extract into; without it the stream is only hashed.
    pub fs: Option<BorrowedFd<'a>>,
    pub form: WhiteoutForm,
    pub ownership: Ownership,
}

/// Reads a blob to its end. What is wrong with the layer in it is in the answer; what keeps us from reading is an error.
pub(super) fn pass(
    blob: Blob,
    algorithm: Algorithm,
    unpack: Option<Into<'_>>,
    means: &PassMeans<'_>,
) -> Result<Passed> {
    let digester = Digester::new(algorithm);
    let PassMeans { cancel, advanced, .. } = *means;
    let counted = Counted { inner: blob, digester, bytes: 0, cancel, advanced };
    let mut compressed = BufReader::with_capacity(BUFFER_BYTES, counted);
    let codec = Codec::sniff(compressed.fill_buf()?);
    let unpacked = unpack.map(|into| unpack_layer(codec, &mut compressed, into, means));
    drain(&mut compressed)?;
    cancel.check()?;
    let Counted { digester, bytes, .. } = compressed.into_inner();
    Ok(Passed { digest: digester.finish(), size_bytes: bytes, codec, unpacked })
}

fn unpack_layer(
    codec: Codec,
    compressed: &mut (impl BufRead + Send),
    into: Into<'_>,
    means: &PassMeans<'_>,
) -> Result<Unpacked> {
    let stream = decoder(codec, compressed, means.budget, means.cancel)?;
    let inner = Counted {
        inner: stream,
        digester: Digester::new(Algorithm::Sha256),
        bytes: 0,
        cancel: means.cancel,
        advanced: &|_| {},
    };
    let mut stream = BufReader::with_capacity(BUFFER_BYTES, inner);
    let applied = into.fs.map(|fs| extract(&mut stream, fs, &into, means.cancel)).transpose()?;
    drain(&mut stream)?;
    let Counted { digester, bytes, .. } = stream.into_inner();
    Ok(Unpacked { diff_id: DiffId(digester.finish()), bytes, applied })
}

/// The layer was accepted once, perhaps with raised limits, so none is set here but what memory asks for.
fn extract(
    stream: &mut dyn TarInput,
    fs: BorrowedFd<'_>,
    into: &Into<'_>,
    cancel: &Cancel,
) -> Result<Applied> {
    let limits = Limits {
        layer_entries: u64::MAX,
        layer_bytes: u64::MAX,
        extension_bytes: 64 << 20,
        ..Limits::default()
    };
    let (form, ownership) = (into.form, into.ownership);
    let options = ApplyOptions { limits, form, ownership, ..ApplyOptions::default() };
    Ok(apply(stream, fs, &options, cancel, &mut |_| {})?.0)
}

fn drain(stream: &mut impl BufRead) -> Result<()> {
    loop {
        let count = match stream.fill_buf() {
            Ok(bytes) => bytes.len(),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error.into()),
        };
        if count == 0 {
            return Ok(());
        }
        stream.consume(count);
    }
}

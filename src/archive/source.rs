//! Opening an archive: its first bytes and what kind of file it is decide how it is read.

use super::{Seekable, Stream};
use crate::error::{Error, ErrorKind, Result, ResultExt};
use crate::io::codec::{Codec, SNIFF_BYTES};
use crate::limits::Limits;
use crate::parallel::{Budget, Cancel, failpoint};
use rustix::fd::BorrowedFd;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

/// Where an archive comes from.
pub enum Input {
    /// A file, a pipe or an OCI layout directory.
    Path(PathBuf),
    /// An open file or pipe; read from its start if it is a regular file.
    File {
        /// What messages call it.
        name: String,
        /// The file.
        file: File,
    },
    /// Anything that can be read once.
    Reader {
        /// What messages call it.
        name: String,
        /// The reader.
        reader: Box<dyn Read + Send>,
    },
}

impl Input {
    /// What messages call it.
    pub fn name(&self) -> String {
        match self {
            Input::Path(path) => path.display().to_string(),
            Input::File { name, .. } | Input::Reader { name, .. } => name.clone(),
        }
    }
}

/// An archive, opened. There is one of them per import, so its size does not matter.
#[allow(clippy::large_enum_variant)]
pub enum Source {
    /// A plain tar or an OCI layout directory: members can be read in any order, and several at once.
    Seekable(Seekable),
    /// A compressed file or a pipe: one pass.
    Stream(Stream),
}

impl Source {
    /// The directory from which members are still to be opened; other archives are one open file.
    pub fn directory(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Source::Seekable(archive) => archive.directory_handle(),
            Source::Stream(_) => None,
        }
    }

    /// The size of the archive file, where it has one.
    pub fn size_bytes(&self) -> Option<u64> {
        match self {
            Source::Seekable(archive) => archive.size_bytes(),
            Source::Stream(stream) => stream.size_bytes(),
        }
    }
}

/// Opens an archive. Of a plain tar the headers are read here; what is not a tar or too short is refused.
/// A stream that waits for memory, now or later, stops where `cancel` says so.
pub fn open(input: Input, limits: &Limits, budget: &Budget, cancel: &Cancel) -> Result<Source> {
    match input {
        Input::Path(path) => open_file(File::open(path)?, limits, budget, cancel),
        Input::File { file, .. } => open_file(file, limits, budget, cancel),
        Input::Reader { reader, .. } => open_stream(reader, None, limits, budget, cancel),
    }
}

fn open_file(file: File, limits: &Limits, budget: &Budget, cancel: &Cancel) -> Result<Source> {
    let metadata = file.metadata()?;
    if metadata.is_dir() {
        return Seekable::directory(file.into()).map(Source::Seekable);
    }
    if !metadata.is_file() {
        return open_stream(Box::new(file), None, limits, budget, cancel);
    }
    let mut head = [0; SNIFF_BYTES];
    let mut filled = 0;
    while filled < head.len() {
        match file.read_at(&mut head[filled..], filled as u64) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error).doing(|| "cannot read its first bytes"),
        }
    }
    if filled == 0 {
        return Err(empty());
    }
    match Codec::sniff(&head[..filled]) {
        Codec::None => Seekable::tar(file, metadata.len(), limits).map(Source::Seekable),
        _ => {
            // An inherited descriptor may stand anywhere.
            rustix::fs::seek(&file, rustix::fs::SeekFrom::Start(0))?;
            open_stream(Box::new(file), Some(metadata.len()), limits, budget, cancel)
        }
    }
}

fn open_stream(
    mut reader: Box<dyn Read + Send>,
    size_bytes: Option<u64>,
    limits: &Limits,
    budget: &Budget,
    cancel: &Cancel,
) -> Result<Source> {
    reader = failpoint::reader("archive.read", reader);
    let mut head = Vec::with_capacity(SNIFF_BYTES);
    (&mut reader).take(SNIFF_BYTES as u64).read_to_end(&mut head)?;
    if head.is_empty() {
        return Err(empty());
    }
    let codec = Codec::sniff(&head);
    let whole = Box::new(io::Cursor::new(head).chain(reader));
    Stream::new(codec, whole, size_bytes, limits, budget, cancel).map(Source::Stream)
}

fn empty() -> Error {
    Error::new(ErrorKind::Truncated, "it is empty")
}

/// What failing at the very first header means.
pub(super) fn not_a_tar(error: Error) -> Error {
    match error.kind() {
        ErrorKind::Malformed => {
            Error::new(ErrorKind::NotAnImage, "it is neither a tar archive nor compressed in a known way")
                .with_hint("image archives are made with 'docker save', 'podman save' or 'skopeo copy'")
                .with_source(error)
        }
        _ => error,
    }
}

//! Writes archives that others load: an OCI layout tar, and with a `manifest.json` beside it what `docker load` of any
//! age reads as well. Layers are written as they are; docker and skopeo see by the bytes how they are compressed.
//!
//! The same calls write the same bytes: no times, no owners, one order.

use crate::error::{Error, ErrorKind, Result, ResultExt};
use crate::oci::{Digest, Index};
use serde::Serialize;
use std::collections::BTreeSet;
use std::io::{BufReader, Read, Write};

/// Blobs are copied in pieces of this size.
const COPY_BYTES: usize = 256 << 10;

/// An image as `manifest.json` lists it: blobs by digest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DockerImage {
    /// The configuration.
    pub config: Digest,
    /// The layers, bottom first.
    pub layers: Vec<Digest>,
    /// The names, each with its tag.
    pub repo_tags: Vec<String>,
}

/// An OCI layout on its way into a tar.
pub struct LayoutWriter<W: Write> {
    tar: tar::Builder<W>,
    directories: BTreeSet<String>,
}

impl<W: Write> LayoutWriter<W> {
    /// Begins with what makes it recognisable at once.
    pub fn begin(writer: W) -> Result<Self> {
        let mut layout = LayoutWriter { tar: tar::Builder::new(writer), directories: BTreeSet::new() };
        layout.document("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)?;
        layout.directory("blobs/")?;
        layout.directory("blobs/sha256/")?;
        Ok(layout)
    }

    /// Writes a small file.
    pub fn document(&mut self, path: &str, bytes: &[u8]) -> Result<()> {
        let mut header = header(tar::EntryType::Regular, 0o644, bytes.len() as u64);
        self.tar.append_data(&mut header, path, bytes).doing(|| format!("cannot write {path}"))
    }

    /// Writes a blob, which must have exactly `size` bytes. Writing each once is left to the caller.
    pub fn blob(&mut self, digest: &Digest, size: u64, reader: impl Read) -> Result<()> {
        self.directory(&format!("blobs/{}/", digest.algorithm().name()))?;
        let mut header = header(tar::EntryType::Regular, 0o644, size);
        let mut content = BufReader::with_capacity(COPY_BYTES, Exactly { inner: reader, left: size });
        let doing = || format!("cannot write blob {digest}");
        self.tar.append_data(&mut header, blob_path(digest), &mut content).doing(doing)?;
        Ok(())
    }

    /// Writes the index, for docker the list of images too, and the end of the archive.
    pub fn finish(mut self, index: &Index, docker: Option<&[DockerImage]>) -> Result<W> {
        let json = |value: serde_json::Result<Vec<u8>>| value.expect("indexes are plain data");
        self.document("index.json", &json(serde_json::to_vec(index)))?;
        if let Some(images) = docker {
            let listed: Vec<Listed<'_>> = images.iter().map(Listed::from).collect();
            self.document("manifest.json", &json(serde_json::to_vec(&listed)))?;
        }
        let mut writer = self.tar.into_inner().doing(|| "cannot write the end of the archive")?;
        writer.flush().doing(|| "cannot write the end of the archive")?;
        Ok(writer)
    }

    fn directory(&mut self, path: &str) -> Result<()> {
        if !self.directories.insert(path.to_string()) {
            return Ok(());
        }
        let mut header = header(tar::EntryType::Directory, 0o755, 0);
        self.tar.append_data(&mut header, path, &[][..]).doing(|| format!("cannot write {path}"))
    }
}

fn header(kind: tar::EntryType, mode: u32, size: u64) -> tar::Header {
    // GNU headers hold sizes beyond 8 GiB, which ustar's do not.
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(size);
    header.set_mtime(0);
    header.set_uid(0);
    header.set_gid(0);
    header
}

fn blob_path(digest: &Digest) -> String {
    format!("blobs/{}/{}", digest.algorithm().name(), digest.hex())
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Listed<'a> {
    config: String,
    repo_tags: &'a [String],
    layers: Vec<String>,
}

impl<'a> From<&'a DockerImage> for Listed<'a> {
    fn from(image: &'a DockerImage) -> Self {
        Listed {
            config: blob_path(&image.config),
            repo_tags: &image.repo_tags,
            layers: image.layers.iter().map(blob_path).collect(),
        }
    }
}

/// Refuses a reader that has more or fewer bytes than announced: the tar after it would be broken.
struct Exactly<R> {
    inner: R,
    left: u64,
}

impl<R: Read> Read for Exactly<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let wrong = |what: &str| {
            Error::new(ErrorKind::SizeMismatch, format!("it has {what} bytes than announced")).into_io()
        };
        let count = self.inner.read(buffer)?;
        match self.left.checked_sub(count as u64) {
            None => Err(wrong("more")),
            Some(left) if count == 0 && left > 0 && !buffer.is_empty() => Err(wrong("fewer")),
            Some(left) => {
                self.left = left;
                Ok(count)
            }
        }
    }
}

//! The export verb: images of the store as an OCI layout tar that others load, streamed, byte for byte the same each
//! time.

use super::held::Held;
use crate::archive::writer::{DockerImage, LayoutWriter};
use crate::error::{Error, ErrorKind, Result, ResultExt};
use crate::metadata::{ImageRow, ManifestRow};
use crate::oci::{Descriptor, Digest, Document, Index, media_type, parse_document};
use crate::parallel::Cancel;
use crate::store::Store;
use serde::Serialize;
use std::collections::{BTreeMap, HashSet};
use std::io::{self, Read, Write};

/// The largest document that is read back, in bytes.
const DOCUMENT_LIMIT_BYTES: u64 = 64 << 20;

/// For whom an export is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ExportFormat {
    /// An OCI layout.
    #[default]
    Oci,
    /// An OCI layout that `docker load` understands as well.
    Docker,
}

/// What was written.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ExportReport {
    /// The names of the images.
    pub images: Vec<String>,
    /// How many blobs.
    pub blobs: u64,
    /// How many bytes, of blobs alone.
    pub bytes: u64,
    /// What an index lists and the store does not have.
    pub absent: Vec<Digest>,
}

/// Writes `images` to `out`. They stay meanwhile, whoever removes them.
pub fn export(
    store: &Store,
    images: &[ImageRow],
    format: ExportFormat,
    out: impl Write,
    cancel: &Cancel,
) -> Result<ExportReport> {
    let shown = |image: &ImageRow| image.name.clone().unwrap_or_else(|| image.target.digest.to_string());
    let (_held, images) = Held::take(store, images.to_vec(), cancel)
        .doing(|| format!("cannot export {}", images.iter().map(shown).collect::<Vec<_>>().join(", ")))?;
    let mut export = Export {
        store,
        cancel,
        writer: LayoutWriter::begin(out)?,
        seen: HashSet::new(),
        report: ExportReport::default(),
    };
    let mut index = Vec::new();
    let mut docker = Vec::new();
    for image in &images {
        let shown = shown(image);
        let written =
            export.closure(&image.target, 0).map_err(|error| removed_meanwhile(store, image, error));
        written.doing(|| format!("cannot export {shown}"))?;
        index.push(named(&image.target, image.name.as_deref()));
        if format == ExportFormat::Docker {
            add_docker(&mut docker, image, &shown)?;
        }
        export.report.images.push(shown);
    }
    let index = Index {
        schema_version: 2,
        media_type: media_type::INDEX.to_string(),
        manifests: index,
        annotations: BTreeMap::new(),
    };
    let docker = (format == ExportFormat::Docker).then_some(docker.as_slice());
    export.writer.finish(&index, docker)?;
    Ok(export.report)
}

/// The full name under both annotations: containerd reads the first, skopeo and podman the second.
fn named(target: &Descriptor, name: Option<&str>) -> Descriptor {
    let mut descriptor = target.clone();
    if let Some(name) = name {
        descriptor.annotations.insert(crate::metadata::CONTAINERD_NAME.to_string(), name.to_string());
        descriptor.annotations.insert(crate::metadata::REF_NAME.to_string(), name.to_string());
    }
    descriptor
}

fn add_docker(docker: &mut Vec<DockerImage>, image: &ImageRow, shown: &str) -> Result<()> {
    let manifest: &ManifestRow = match image.manifests.as_slice() {
        [manifest] => manifest,
        several => {
            let message = format!("{shown} has {} platforms, docker archives hold one", several.len());
            return Err(
                Error::new(ErrorKind::InvalidArgument, message).with_hint("export it in the oci format")
            );
        }
    };
    let layers: Vec<Digest> = manifest.layers.iter().map(|(digest, _)| *digest).collect();
    // A name with a digest in it is not a tag.
    let tag = image.name.clone().filter(|name| !name.contains('@'));
    match docker.iter_mut().find(|known| known.config == manifest.config && known.layers == layers) {
        Some(known) => known.repo_tags.extend(tag),
        None => {
            docker.push(DockerImage { config: manifest.config, layers, repo_tags: tag.into_iter().collect() })
        }
    }
    Ok(())
}

/// What is missing of an image that is still there was never stored. Where nothing could be held, the image may have gone.
fn removed_meanwhile(store: &Store, image: &ImageRow, error: Error) -> Error {
    let missing = matches!(error.kind(), ErrorKind::NotFound | ErrorKind::FailedPrecondition);
    let is_there = || {
        let images = store.metadata().images();
        images.is_ok_and(|all| all.iter().any(|other| other.target.digest == image.target.digest))
    };
    match missing && !is_there() {
        true => Error::new(ErrorKind::NotFound, "it was removed while it was being read"),
        false => error,
    }
}

struct Export<'a, W: Write> {
    store: &'a Store,
    cancel: &'a Cancel,
    writer: LayoutWriter<W>,
    seen: HashSet<Digest>,
    report: ExportReport,
}

impl<W: Write> Export<'_, W> {
    /// Writes a manifest or an index and everything below it, each blob once. What an index lists beyond what was
    /// imported is left out, as the archive that it came from may have done.
    fn closure(&mut self, target: &Descriptor, depth: usize) -> Result<()> {
        if depth > 16 {
            return Err(Error::limit("indexes are nested deeper than 16 levels"));
        }
        if self.seen.contains(&target.digest) {
            return Ok(());
        }
        let bytes = self.store.content().read_document(&target.digest, DOCUMENT_LIMIT_BYTES)?;
        self.blob(&target.digest)?;
        match parse_document(&bytes)? {
            Document::Index(index) => {
                for child in &index.manifests {
                    match self.store.content().stat(&child.digest)? {
                        Some(_) => self.closure(child, depth + 1)?,
                        None => self.report.absent.push(child.digest),
                    }
                }
            }
            Document::Manifest(manifest) => {
                self.blob(&manifest.config.digest)?;
                for layer in manifest.layers.iter() {
                    if layer.is_foreign() && self.store.content().stat(&layer.digest)?.is_none() {
                        self.report.absent.push(layer.digest);
                        continue;
                    }
                    self.blob(&layer.digest)?;
                }
            }
        }
        Ok(())
    }

    fn blob(&mut self, digest: &Digest) -> Result<()> {
        if !self.seen.insert(*digest) {
            return Ok(());
        }
        let missing = |error: Error| match error.kind() {
            ErrorKind::NotFound => {
                Error::new(ErrorKind::FailedPrecondition, format!("blob {digest} is not in the store"))
                    .with_hint("it was imported with --discard-blobs; import it again without")
            }
            _ => error,
        };
        let blob = self.store.content().open_blob(digest).map_err(missing)?;
        let size_bytes = blob.size_bytes();
        self.writer.blob(digest, size_bytes, Cancellable { inner: blob, cancel: self.cancel })?;
        self.report.blobs += 1;
        self.report.bytes += size_bytes;
        Ok(())
    }
}

/// A reader that stops when the work is cancelled.
struct Cancellable<'a, R> {
    inner: R,
    cancel: &'a Cancel,
}

impl<R: Read> Read for Cancellable<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.cancel.check().map_err(Error::into_io)?;
        self.inner.read(buffer)
    }
}

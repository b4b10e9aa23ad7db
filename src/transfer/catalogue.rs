//! The catalogue verbs: find an image by what people call it, look inside, tag it, remove it.

use super::held::Held;
use crate::error::{Error, ErrorKind, Result, ResultExt};
use crate::metadata::{ImageRow, Labelled, PINNED, PINNED_LABEL};
use crate::oci::{
    ChainId, Descriptor, DiffId, Digest, Document, HistoryEntry, Manifest, Platform, Reference, parse_config,
    parse_document,
};
use crate::parallel::Cancel;
use crate::snapshot::{Node, Stack};
use crate::store::Store;

/// The largest document that is read back, in bytes.
const DOCUMENT_LIMIT_BYTES: u64 = 64 << 20;

/// The shortest beginning of a digest that names an image.
const SHORTEST_PREFIX: usize = 4;

/// An image, looked into.
#[derive(Clone, Debug)]
pub struct Inspection {
    /// The image.
    pub image: ImageRow,
    /// The manifest for this host, or the only one.
    pub manifest: Digest,
    /// Its configuration.
    pub config: Digest,
    /// Its platform.
    pub platform: Platform,
    /// The identity of its whole stack, `None` where it was not unpacked.
    pub chain_id: Option<ChainId>,
    /// Its layers, bottom first.
    pub layers: Vec<InspectedLayer>,
    /// The configuration as it was imported, byte for byte.
    pub config_json: Vec<u8>,
}

/// A layer of an image.
#[derive(Clone, Debug)]
pub struct InspectedLayer {
    /// What the manifest says of it.
    pub descriptor: Descriptor,
    /// The digest of its uncompressed stream.
    pub diff_id: DiffId,
    /// The identity of the stack up to here.
    pub chain_id: ChainId,
}

/// A line of an image's history, with the layer that it made.
#[derive(Clone, Debug)]
pub struct HistoryLine {
    /// What the configuration says.
    pub entry: HistoryEntry,
    /// The layer, for lines that have one.
    pub diff_id: Option<DiffId>,
    /// The size of the layer's blob in bytes.
    pub size_bytes: u64,
}

/// An entry of an image's merged root filesystem.
#[derive(Clone, Debug, Default)]
pub struct TreeEntry {
    /// The last component of its path; empty for the root.
    pub name: Vec<u8>,
    /// Type and permissions, as in `st_mode`.
    pub mode: u32,
    /// The owner.
    pub uid: u32,
    /// The group.
    pub gid: u32,
    /// The size in bytes.
    pub size_bytes: u64,
    /// What a symbolic link points to.
    pub target: Option<Vec<u8>>,
    /// What is in a directory, sorted by name.
    pub children: Vec<TreeEntry>,
    /// Whether there are children that were not read because they are too deep.
    pub more: bool,
}

/// The image that `name` means: a name in any of its forms, the digest of its target, manifest or configuration, or an
/// unambiguous beginning of one.
pub fn find(store: &Store, name: &str) -> Result<ImageRow> {
    let metadata = store.metadata();
    if let Ok(reference) = name.parse::<Reference>()
        && let Some(image) = metadata.image_get(&reference.to_string())?
    {
        return Ok(image);
    }
    let hex = name.strip_prefix("sha256:").or(name.strip_prefix("sha512:")).unwrap_or(name);
    if hex.len() >= SHORTEST_PREFIX && hex.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        let images = metadata.images_by_digest(name)?;
        let targets: std::collections::BTreeSet<_> = images.iter().map(|image| image.target.digest).collect();
        match (targets.len(), images.into_iter().next()) {
            (1, Some(image)) => return Ok(image),
            (0, _) | (_, None) => {}
            (several, _) => {
                let message = format!("{several} images have a digest that begins with {name}");
                return Err(
                    Error::new(ErrorKind::InvalidArgument, message).with_hint("give more of the digest")
                );
            }
        }
    }
    Err(Error::new(ErrorKind::NotFound, format!("there is no image {name}"))
        .with_hint("'transload images' lists what is there"))
}

/// Looks into an image. Of several platforms, the one that fits this host best.
pub fn inspect(store: &Store, name: &str) -> Result<Inspection> {
    look_into(store, name).doing(|| format!("cannot inspect {name}"))
}

/// The same for other verbs, which say themselves what could not be done.
pub(super) fn look_into(store: &Store, name: &str) -> Result<Inspection> {
    look_at(store, find(store, name)?)
}

/// The same for verbs that go on to read the image: it stays, whoever removes it, as long as the first of the two does.
pub(super) fn hold<'a>(store: &'a Store, name: &str, cancel: &Cancel) -> Result<(Held<'a>, Inspection)> {
    let (held, images) = Held::take(store, vec![find(store, name)?], cancel)?;
    let image = images.into_iter().next().expect("one was asked for");
    Ok((held, look_at(store, image)?))
}

fn look_at(store: &Store, image: ImageRow) -> Result<Inspection> {
    let host = Platform::host();
    let best = image.manifests.iter().max_by_key(|manifest| manifest.platform.fit(&host));
    let best = best.ok_or_else(|| Error::new(ErrorKind::Corrupt, "the image has no manifest"))?.clone();
    let manifest = read_manifest(store, &best.digest)?;
    let chain = ChainId::of(&best.layers.iter().map(|(_, diff_id)| *diff_id).collect::<Vec<_>>());
    let layers = best.layers.iter().zip(chain).map(|((digest, diff_id), chain_id)| InspectedLayer {
        descriptor: descriptor_of(&manifest, digest),
        diff_id: *diff_id,
        chain_id,
    });
    Ok(Inspection {
        layers: layers.collect(),
        config_json: store.content().read_document(&best.config, DOCUMENT_LIMIT_BYTES)?,
        manifest: best.digest,
        config: best.config,
        platform: best.platform,
        chain_id: best.chain_id,
        image,
    })
}

fn read_manifest(store: &Store, digest: &Digest) -> Result<Manifest> {
    match parse_document(&store.content().read_document(digest, DOCUMENT_LIMIT_BYTES)?)? {
        Document::Manifest(manifest) => Ok(*manifest),
        Document::Index(_) => Err(Error::new(ErrorKind::Corrupt, format!("{digest} is an index"))),
    }
}

fn descriptor_of(manifest: &Manifest, digest: &Digest) -> Descriptor {
    let found = manifest.layers.iter().find(|layer| layer.digest == *digest);
    found.cloned().unwrap_or_else(|| Descriptor::new("", *digest, 0))
}

/// The history of an image, oldest first, each line beside the layer that it made.
pub fn history(store: &Store, name: &str) -> Result<Vec<HistoryLine>> {
    let read = || -> Result<_> {
        let inspection = look_into(store, name)?;
        let config = parse_config(&inspection.config_json)?;
        Ok((inspection, config))
    };
    let (inspection, config) = read().doing(|| format!("cannot show the history of {name}"))?;
    let mut layers = inspection.layers.into_iter();
    let mut lines: Vec<HistoryLine> = Vec::with_capacity(config.history.len());
    for entry in config.history {
        let layer = if entry.empty_layer { None } else { layers.next() };
        lines.push(line(entry, layer));
    }
    // A history may be shorter than the image, or missing.
    lines.extend(layers.map(|layer| line(HistoryEntry::default(), Some(layer))));
    Ok(lines)
}

fn line(entry: HistoryEntry, layer: Option<InspectedLayer>) -> HistoryLine {
    let size_bytes = layer.as_ref().map_or(0, |layer| layer.descriptor.size);
    HistoryLine { entry, diff_id: layer.map(|layer| layer.diff_id), size_bytes }
}

/// Gives an image another name.
pub fn tag(store: &Store, name: &str, new: &Reference) -> Result<ImageRow> {
    let tag = || {
        store.check_writable()?;
        let image = find(store, name)?;
        store.changing_images(|| store.metadata().image_tag_id(image.id, &new.to_string()))?;
        find(store, &new.to_string())
    };
    tag().doing(|| format!("cannot tag {name}"))
}

/// The images that names mean, each once. All of them must be there.
///
/// A name means the image that has it. A digest, or the beginning of one, means an image only if it is the only one there:
/// several names of one target are several images, and it would be chance which of them goes. With `all_names` it means
/// all of them.
pub fn to_remove(store: &Store, names: &[String], all_names: bool) -> Result<Vec<ImageRow>> {
    let mut images: Vec<ImageRow> = Vec::with_capacity(names.len());
    for name in names {
        for image in meant(store, name, all_names).doing(|| format!("cannot remove {name}"))? {
            if images.iter().all(|known| known.id != image.id) {
                images.push(image);
            }
        }
    }
    Ok(images)
}

fn meant(store: &Store, name: &str, all_names: bool) -> Result<Vec<ImageRow>> {
    let image = find(store, name)?;
    let is_called = |name: Reference| image.name.as_deref() == Some(&name.to_string());
    if name.parse::<Reference>().is_ok_and(is_called) {
        return Ok(vec![image]);
    }
    let mut same = store.metadata().images_by_digest(&image.target.digest.to_string())?;
    same.retain(|other| other.target.digest == image.target.digest);
    if same.len() > 1 && !all_names {
        // The digest in full is the only name that an unnamed one has.
        let is_called = |one: &ImageRow| one.name.is_none() && one.label_key() == name;
        if let Some(unnamed) = same.iter().position(is_called) {
            return Ok(vec![same.swap_remove(unnamed)]);
        }
        let mut names: Vec<String> = same.iter().map(ImageRow::label_key).collect();
        names.sort();
        let message = format!("it has {} names: {}", names.len(), names.join(", "));
        return Err(Error::new(ErrorKind::InvalidArgument, message)
            .with_hint("say which names to remove, or all of them with --all-names"));
    }
    Ok(same)
}

/// Removes images, and keeps what they held for `grace_ms`, so that they can be restored. All or none: a pinned one is
/// [`ErrorKind::FailedPrecondition`].
pub fn remove(store: &Store, images: &[ImageRow], grace_ms: u64) -> Result<()> {
    let shown = || images.iter().map(ImageRow::label_key).collect::<Vec<_>>().join(", ");
    store.check_writable().doing(|| format!("cannot remove {}", shown()))?;
    check_unpinned(store, images)?;
    let bury = |image: &ImageRow| match store.metadata().image_bury(image, grace_ms) {
        Ok(_) => Ok(()),
        // Another process was faster.
        Err(error) if error.kind() == ErrorKind::NotFound && images.len() > 1 => Ok(()),
        Err(error) => Err(error.context(format!("cannot remove {}", image.label_key()))),
    };
    store.changing_images(|| images.iter().try_for_each(bury))
}

/// [`ErrorKind::FailedPrecondition`] if one of the images is pinned.
pub fn check_unpinned(store: &Store, images: &[ImageRow]) -> Result<()> {
    for image in images {
        let labels = store.metadata().labels(Labelled::Image(&image.label_key()))?;
        if labels.get(PINNED_LABEL).is_some_and(|value| value == PINNED) {
            return Err(Error::new(ErrorKind::FailedPrecondition, "it is pinned")
                .with_hint("'transload unpin NAME' first")
                .context(format!("cannot remove {}", image.label_key())));
        }
    }
    Ok(())
}

/// The chain of an image that can be mounted.
pub fn unpacked_chain(inspection: &Inspection) -> Result<Option<ChainId>> {
    if inspection.chain_id.is_none() && !inspection.layers.is_empty() {
        return Err(Error::new(ErrorKind::FailedPrecondition, "the image was imported without unpacking it")
            .with_hint("import it again without --no-unpack"));
    }
    Ok(inspection.chain_id)
}

/// The merged root filesystem of an image, to be read without mounting it.
pub(super) fn stack_of(store: &Store, inspection: &Inspection) -> Result<Stack> {
    match unpacked_chain(inspection)? {
        Some(chain_id) => store.snapshotter().stack(&chain_id.to_string()),
        None => Ok(Stack::new(Vec::new())),
    }
}

/// The merged root filesystem of an image, down to `depth` directories.
pub fn tree(store: &Store, name: &str, depth: usize) -> Result<TreeEntry> {
    let read = || {
        let (_held, inspection) = hold(store, name, &Cancel::new())?;
        let stack = stack_of(store, &inspection)?;
        match stack.root()? {
            Some(root) => entry(&stack, &root, depth),
            None => Ok(TreeEntry::default()),
        }
    };
    read().doing(|| format!("cannot show the tree of {name}"))
}

fn entry(stack: &Stack, node: &Node, depth: usize) -> Result<TreeEntry> {
    let stat = node.stat();
    let mut found = TreeEntry {
        name: node.path().rsplit(|byte| *byte == b'/').next().unwrap_or_default().to_vec(),
        mode: stat.st_mode,
        uid: stat.st_uid,
        gid: stat.st_gid,
        size_bytes: stat.st_size as u64,
        ..TreeEntry::default()
    };
    if node.file_type() == rustix::fs::FileType::Symlink {
        found.target = Some(stack.read_link(node)?);
    }
    if node.is_dir() {
        let mut children = stack.list(node)?;
        children.sort_by(|a, b| a.path().cmp(b.path()));
        match depth {
            0 => found.more = !children.is_empty(),
            _ => {
                found.children =
                    children.iter().map(|child| entry(stack, child, depth - 1)).collect::<Result<_>>()?
            }
        }
    }
    Ok(found)
}

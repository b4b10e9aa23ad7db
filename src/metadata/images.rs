//! The images: names, what they point at, and the manifests behind them that are here.
//!
//! A manifest's row is shared by all images that reach it, so unpacking it for one unpacks it for all.

use super::blobs::{mark, put as put_blobs};
use super::columns::{corrupt, int, json, now_ms, parse, parsed, parsed_opt, to_json, unsigned};
use super::connection::Sync;
use super::index_view::{Listed, generation, next_generation};
use super::references::{self, DocumentReferences};
use super::trees::{put_layers, put_trees};
use super::{BlobRow, LayerRow, Metadata, Resource, TreeRow};
use crate::error::{Error, ErrorKind, Result};
use crate::oci::{ChainId, Descriptor, DiffId, Digest, Platform};
use rusqlite::{Connection, Row, params};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;

/// A manifest of an image that is here.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ManifestRow {
    /// The manifest's digest.
    pub digest: Digest,
    /// The configuration's digest.
    pub config: Digest,
    /// The platform that the image is for.
    pub platform: Platform,
    /// The topmost snapshot; `None` where it was not unpacked.
    pub chain_id: Option<ChainId>,
    /// The layers, bottom first.
    pub layers: Vec<(Digest, DiffId)>,
    /// Manifest, configuration and layers together, as stored.
    pub size_bytes: u64,
}

/// An image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageRow {
    /// The row.
    pub id: u64,
    /// The name in Docker's normal form; an archive may hold images without one.
    pub name: Option<String>,
    /// What the archive named: a manifest or an index.
    pub target: Descriptor,
    /// When it was first imported, in milliseconds since 1970.
    pub created_ms: u64,
    /// When it was last imported, tagged or restored, whether that changed it or not.
    pub updated_ms: u64,
    /// A number that grows with every import, tag or restoration of any image: what is removed by policy or digest must
    /// still be what was chosen.
    pub changed: u64,
    /// The manifests behind `target` that are here.
    pub manifests: Vec<ManifestRow>,
}

impl ImageRow {
    /// What its labels are kept under: the name, or the target's digest, which no name looks like.
    pub fn label_key(&self) -> String {
        self.name.clone().unwrap_or_else(|| self.target.digest.to_string())
    }
}

/// An image to be made visible.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewImage {
    /// See [`ImageRow::name`].
    pub name: Option<String>,
    /// See [`ImageRow::target`].
    pub target: Descriptor,
    /// See [`ImageRow::manifests`].
    pub manifests: Vec<ManifestRow>,
}

/// All that one import records, in one transaction.
#[derive(Clone, Debug, Default)]
pub struct ImageCommit {
    /// The images.
    pub images: Vec<NewImage>,
    /// The blobs that were written or found.
    pub blobs: Vec<BlobRow>,
    /// What they unpack to.
    pub layers: Vec<LayerRow>,
    /// The trees that were extracted or found.
    pub trees: Vec<TreeRow>,
    /// What the documents among the blobs name.
    pub references: Vec<DocumentReferences>,
    /// What else has been synced by now: snapshots, and what others wrote.
    pub durable: Vec<Resource>,
    /// Refuse to take a name from another image.
    pub no_retag: bool,
    /// Come back only when a power cut can no longer undo it.
    pub sync: bool,
}

/// What became of one image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ImageOutcome {
    /// The name was free.
    New,
    /// The name pointed there already.
    Existing,
    /// The name pointed elsewhere.
    Retagged {
        /// Where it pointed.
        previous: Box<Descriptor>,
    },
}

/// One image of a commit, in the order given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommittedImage {
    /// The row.
    pub id: u64,
    /// The name.
    pub name: Option<String>,
    /// What became of it.
    pub outcome: ImageOutcome,
}

/// What a commit did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImagesCommitted {
    /// Each image, in the order given.
    pub images: Vec<CommittedImage>,
    /// The generation of the image list that shows them.
    pub generation: u64,
}

impl Metadata {
    /// Makes images visible, all or none, together with everything that the import learnt.
    ///
    /// With `no_retag` a name that points elsewhere is [`ErrorKind::FailedPrecondition`], and nothing is recorded.
    pub fn image_put(&self, commit: &ImageCommit) -> Result<ImagesCommitted> {
        let sync = if commit.sync { Sync::Full } else { Sync::Lazy };
        self.write(sync, |transaction| {
            put_blobs(transaction, &commit.blobs, self.boot())?;
            put_layers(transaction, &commit.layers)?;
            put_trees(transaction, &commit.trees, self.boot())?;
            references::put(transaction, &commit.references)?;
            mark(transaction, &commit.durable, self.boot())?;
            let put = |image| put_image(transaction, image, commit.no_retag);
            let images = commit.images.iter().map(put).collect::<Result<Vec<_>>>()?;
            listed(transaction, &images)?;
            Ok(ImagesCommitted { images, generation: generation(transaction)? })
        })
    }

    /// The image of this name.
    pub fn image_get(&self, name: &str) -> Result<Option<ImageRow>> {
        self.read(|transaction| one(transaction, "name = ?", name))
    }

    /// The image of this row, named or not.
    pub fn image_by_id(&self, id: u64) -> Result<Option<ImageRow>> {
        self.read(|transaction| one(transaction, "id = ?", int(id)))
    }

    /// The images whose target, manifest or configuration has a digest that begins so; with or without `sha256:`.
    pub fn images_by_digest(&self, prefix: &str) -> Result<Vec<ImageRow>> {
        let begins = |digest: &Digest| {
            let text = digest.to_string();
            text.starts_with(prefix) || digest.hex().starts_with(prefix)
        };
        let mut images = self.images()?;
        images.retain(|image| {
            begins(&image.target.digest)
                || image.manifests.iter().any(|manifest| begins(&manifest.digest) || begins(&manifest.config))
        });
        Ok(images)
    }

    /// All images, by name; those without one first.
    pub fn images(&self) -> Result<Vec<ImageRow>> {
        self.read(all)
    }

    /// Forgets the image of this name and tells what it was. Its blobs stay until the next collection.
    pub fn image_remove(&self, name: &str) -> Result<ImageRow> {
        self.write(Sync::Full, |transaction| {
            let image = one(transaction, "name = ?", name)?.ok_or_else(|| no_image(name))?;
            remove(transaction, &image)?;
            Ok(image)
        })
    }

    /// Forgets the image of this row, named or not.
    pub fn image_remove_id(&self, id: u64) -> Result<ImageRow> {
        self.write(Sync::Full, |transaction| {
            let image = one(transaction, "id = ?", int(id))?.ok_or_else(|| no_image(&id.to_string()))?;
            remove(transaction, &image)?;
            Ok(image)
        })
    }

    /// Gives the image `name` another name, `new`, that points to the same target.
    pub fn image_tag(&self, name: &str, new: &str) -> Result<CommittedImage> {
        self.image_tag_row(new, |transaction| {
            one(transaction, "name = ?", name)?.ok_or_else(|| no_image(name))
        })
    }

    /// As [`Metadata::image_tag`], for an image that may have no name.
    pub fn image_tag_id(&self, id: u64, new: &str) -> Result<CommittedImage> {
        self.image_tag_row(new, |transaction| {
            one(transaction, "id = ?", int(id))?.ok_or_else(|| no_image(&id.to_string()))
        })
    }

    fn image_tag_row(
        &self,
        new: &str,
        find: impl FnOnce(&Connection) -> Result<ImageRow>,
    ) -> Result<CommittedImage> {
        self.write(Sync::Full, |transaction| {
            let image = find(transaction)?;
            let new =
                NewImage { name: Some(new.to_string()), target: image.target, manifests: image.manifests };
            let committed = put_image(transaction, &new, false)?;
            listed(transaction, std::slice::from_ref(&committed))?;
            Ok(committed)
        })
    }
}

pub(super) fn no_image(name: &str) -> Error {
    Error::new(ErrorKind::NotFound, format!("there is no image {name}"))
        .with_hint("'transload images' lists what is there")
}

pub(super) fn put_image(connection: &Connection, image: &NewImage, no_retag: bool) -> Result<CommittedImage> {
    let existing = match &image.name {
        Some(name) => row_of(connection, "name = ?", name)?,
        None => row_of(connection, "name IS NULL AND target = ?", &image.target.digest.to_string())?,
    };
    let (id, outcome) = match existing {
        None => (insert(connection, image)?, ImageOutcome::New),
        Some((id, target)) if target.digest == image.target.digest => (id, ImageOutcome::Existing),
        Some((_, target)) if no_retag => return Err(would_retag(image, &target)),
        Some((id, previous)) => {
            repoint(connection, id, image)?;
            (id, ImageOutcome::Retagged { previous: Box::new(previous) })
        }
    };
    for manifest in &image.manifests {
        let manifest_id = put_manifest(connection, manifest)?;
        references::put_manifest(connection, manifest)?;
        attach(connection, id, manifest_id)?;
    }
    let changed = references::next_change(connection)?;
    connection
        .prepare_cached("UPDATE image SET changed = ?, updated_ms = ? WHERE id = ?")?
        .execute(params![changed, int(now_ms()), id])?;
    let id = u64::try_from(id).unwrap_or(0);
    Ok(CommittedImage { id, name: image.name.clone(), outcome })
}

fn would_retag(image: &NewImage, target: &Descriptor) -> Error {
    let name = image.name.as_deref().unwrap_or_default();
    let message = format!("the name {name} belongs to {} and retagging was forbidden", target.digest);
    Error::new(ErrorKind::FailedPrecondition, message)
        .with_hint("import it under another name with --tag, or leave out --no-retag")
}

fn row_of(connection: &Connection, condition: &str, value: &str) -> Result<Option<(i64, Descriptor)>> {
    let sql = format!("SELECT id, descriptor FROM image WHERE {condition}");
    let mut statement = connection.prepare_cached(&sql)?;
    let mut rows = statement.query([value])?;
    rows.next()?.map(|row| Ok((row.get(0)?, json(row, 1)?))).transpose()
}

fn insert(connection: &Connection, image: &NewImage) -> Result<i64> {
    let (target, descriptor) = (image.target.digest.to_string(), to_json(&image.target)?);
    let now = int(now_ms());
    connection
        .prepare_cached(
            "INSERT INTO image (name, target, descriptor, created_ms, updated_ms) VALUES (?1, ?2, ?3, ?4, ?4)",
        )?
        .execute(params![image.name, target, descriptor, now])?;
    Ok(connection.last_insert_rowid())
}

/// The name moves; what it pointed at before is left to the collection, unless another name holds it.
fn repoint(connection: &Connection, id: i64, image: &NewImage) -> Result<()> {
    let (target, descriptor) = (image.target.digest.to_string(), to_json(&image.target)?);
    detach_all(connection, id)?;
    connection
        .prepare_cached("UPDATE image SET target = ?, descriptor = ? WHERE id = ?")?
        .execute(params![target, descriptor, id])?;
    Ok(())
}

/// Facts about a digest do not change, except that it may have been unpacked since.
fn put_manifest(connection: &Connection, manifest: &ManifestRow) -> Result<i64> {
    let mut statement = connection.prepare_cached(
        "INSERT INTO manifest (digest, config, platform, chain_id, size_bytes, layers) VALUES (?, ?, ?, ?, ?, ?)
         ON CONFLICT (digest) DO UPDATE SET chain_id = coalesce(excluded.chain_id, chain_id),
             size_bytes = max(excluded.size_bytes, size_bytes),
             layers = CASE excluded.layers WHEN '' THEN layers ELSE excluded.layers END
         RETURNING id",
    )?;
    let values = params![
        manifest.digest.to_string(),
        manifest.config.to_string(),
        to_json(&manifest.platform)?,
        manifest.chain_id.map(|chain_id| chain_id.to_string()),
        int(manifest.size_bytes),
        layers_text(&manifest.layers),
    ];
    Ok(statement.query_row(values, |row| row.get(0))?)
}

fn attach(connection: &Connection, image_id: i64, manifest_id: i64) -> Result<()> {
    connection
        .prepare_cached(
            "INSERT INTO image_manifest (image_id, position, manifest_id)
             SELECT ?1, (SELECT coalesce(max(position) + 1, 0) FROM image_manifest WHERE image_id = ?1), ?2
             WHERE NOT EXISTS (SELECT 1 FROM image_manifest WHERE image_id = ?1 AND manifest_id = ?2)",
        )?
        .execute(params![image_id, manifest_id])?;
    Ok(())
}

/// Takes an image's manifests off it and forgets those that no image reaches any more.
fn detach_all(connection: &Connection, image_id: i64) -> Result<()> {
    let manifests: Vec<i64> = connection
        .prepare_cached("SELECT manifest_id FROM image_manifest WHERE image_id = ?")?
        .query_map([image_id], |row| row.get(0))?
        .collect::<rusqlite::Result<_>>()?;
    connection.prepare_cached("DELETE FROM image_manifest WHERE image_id = ?")?.execute([image_id])?;
    let mut forget = connection.prepare_cached(
        "DELETE FROM manifest WHERE id = ?1
         AND NOT EXISTS (SELECT 1 FROM image_manifest WHERE manifest_id = ?1)",
    )?;
    manifests.iter().try_for_each(|id| Ok(forget.execute([id]).map(drop)?))
}

pub(super) fn remove(connection: &Connection, image: &ImageRow) -> Result<()> {
    detach_all(connection, int(image.id))?;
    connection.prepare_cached("DELETE FROM image WHERE id = ?")?.execute([int(image.id)])?;
    connection
        .prepare_cached("DELETE FROM label WHERE kind = 'image' AND key = ?")?
        .execute([image.label_key()])?;
    next_generation(connection, Listed::Otherwise)
}

/// Counts what these do to the image list.
pub(super) fn listed(connection: &Connection, images: &[CommittedImage]) -> Result<()> {
    let retagged = |image: &CommittedImage| matches!(image.outcome, ImageOutcome::Retagged { .. });
    if images.iter().any(retagged) {
        next_generation(connection, Listed::Otherwise)
    } else if images.iter().any(|image| image.outcome == ImageOutcome::New) {
        next_generation(connection, Listed::More)
    } else {
        Ok(())
    }
}

/// Writes the references of every manifest that has a row, for a database of the format that had none.
pub(super) fn record_references(connection: &Connection) -> Result<()> {
    let mut statement = connection.prepare(MANIFEST)?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        references::put_manifest(connection, &manifest(row)?)?;
    }
    Ok(())
}

const IMAGE: &str = "SELECT id, name, descriptor, created_ms, updated_ms, changed FROM image";
const MANIFEST: &str =
    "SELECT m.id, m.digest, m.config, m.platform, m.chain_id, m.size_bytes, m.layers FROM manifest m";

/// The first column is the image's row here.
const ALL_MANIFESTS: &str =
    "SELECT i.image_id, m.digest, m.config, m.platform, m.chain_id, m.size_bytes, m.layers
    FROM image_manifest i JOIN manifest m ON m.id = i.manifest_id ORDER BY i.image_id, i.position";

pub(super) fn one(
    connection: &Connection,
    condition: &str,
    value: impl rusqlite::ToSql,
) -> Result<Option<ImageRow>> {
    let mut statement = connection.prepare_cached(&format!("{IMAGE} WHERE {condition}"))?;
    let mut rows = statement.query([value])?;
    let Some(mut image) = rows.next()?.map(image).transpose()? else { return Ok(None) };
    let sql = format!(
        "{MANIFEST} JOIN image_manifest i ON i.manifest_id = m.id WHERE i.image_id = ? ORDER BY i.position"
    );
    let mut statement = connection.prepare_cached(&sql)?;
    let mut rows = statement.query([int(image.id)])?;
    while let Some(row) = rows.next()? {
        image.manifests.push(manifest(row)?);
    }
    Ok(Some(image))
}

/// Two scans, put together here; a query for each image would cost ten times as much.
pub(super) fn all(connection: &rusqlite::Transaction<'_>) -> Result<Vec<ImageRow>> {
    let mut images = Vec::new();
    let mut position = HashMap::new();
    let mut statement = connection.prepare_cached(IMAGE)?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        images.push(image(row)?);
    }
    // Sorted here: along the index of names the rows would be read in no order at all.
    images.sort_by(|a, b| (&a.name, &a.target.digest).cmp(&(&b.name, &b.target.digest)));
    position.extend(images.iter().enumerate().map(|(at, image)| (image.id, at)));
    let mut statement = connection.prepare_cached(ALL_MANIFESTS)?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let at = *position.get(&unsigned(row, 0)?).ok_or_else(|| corrupt("a manifest lost its image"))?;
        images[at].manifests.push(manifest(row)?);
    }
    Ok(images)
}

fn image(row: &Row<'_>) -> Result<ImageRow> {
    Ok(ImageRow {
        id: unsigned(row, 0)?,
        name: row.get(1)?,
        target: json(row, 2)?,
        created_ms: unsigned(row, 3)?,
        updated_ms: unsigned(row, 4)?,
        changed: unsigned(row, 5)?,
        manifests: Vec::new(),
    })
}

fn manifest(row: &Row<'_>) -> Result<ManifestRow> {
    Ok(ManifestRow {
        digest: parsed(row, 1)?,
        config: parsed(row, 2)?,
        platform: json(row, 3)?,
        chain_id: parsed_opt(row, 4)?,
        size_bytes: unsigned(row, 5)?,
        layers: layers(row.get_ref(6)?.as_str().map_err(|error| corrupt(error.to_string()))?)?,
    })
}

/// `digest diff_id` a line: one column rather than a table, because nobody asks for one layer alone.
fn layers_text(layers: &[(Digest, DiffId)]) -> String {
    let lines: Vec<String> = layers.iter().map(|(digest, diff_id)| format!("{digest} {diff_id}")).collect();
    lines.join("\n")
}

fn layers(text: &str) -> Result<Vec<(Digest, DiffId)>> {
    /// Two SHA-256 digests and what is between them.
    const LINE_BYTES: usize = 144;
    let mut layers = Vec::with_capacity(text.len().div_ceil(LINE_BYTES));
    for line in text.split_terminator('\n') {
        let (digest, diff_id) = line.split_once(' ').ok_or_else(|| corrupt("a layer line is cut"))?;
        layers.push((parse(digest)?, parse(diff_id)?));
    }
    Ok(layers)
}

//! Removed images that can still be restored: what the row was, its labels, and until when it keeps its blobs.
//!
//! Every removal leaves one. A collection drops those whose time is over before it looks for what is dead; until then
//! they hold what the image held.

use super::columns::{int, json, labels, now_ms, to_json, unsigned};
use super::connection::Sync;
use super::images::{self, ImageRow, ManifestRow, NewImage};
use super::{Labels, Metadata, PINNED, PINNED_LABEL};
use crate::error::{Error, ErrorKind, Result};
use crate::oci::Descriptor;
use rusqlite::{Connection, Row, params};

/// An image that was removed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tombstone {
    /// The row; the higher, the later it was removed.
    pub id: u64,
    /// The name that it had.
    pub name: Option<String>,
    /// What it pointed at.
    pub target: Descriptor,
    /// The manifests behind it.
    pub manifests: Vec<ManifestRow>,
    /// Its labels.
    pub labels: Labels,
    /// When it was first imported, in milliseconds since 1970.
    pub created_ms: u64,
    /// When it was removed.
    pub removed_ms: u64,
    /// From when on a collection may take what it holds.
    pub expires_ms: u64,
}

const TOMBSTONE: &str =
    "SELECT id, name, descriptor, manifests, labels, created_ms, removed_ms, expires_ms FROM tombstone";

impl Metadata {
    /// Removes this image as it was read, and keeps what it held for `grace_ms`. [`ErrorKind::NotFound`] without it,
    /// [`ErrorKind::Busy`] where it was imported or tagged again since it was read, [`ErrorKind::FailedPrecondition`] for a
    /// pinned one.
    pub fn image_bury(&self, image: &ImageRow, grace_ms: u64) -> Result<Tombstone> {
        self.write(Sync::Full, |transaction| {
            let now = images::one(transaction, "id = ?", int(image.id))?;
            let now = now.ok_or_else(|| images::no_image(&image.label_key()))?;
            if now.changed != image.changed {
                return Err(Error::new(ErrorKind::Busy, "it was imported or tagged again meanwhile")
                    .with_hint("look at it once more, then try again"));
            }
            bury(transaction, &now, grace_ms)
        })
    }

    /// The removed images that can still be restored, the last removed first.
    pub fn tombstones(&self) -> Result<Vec<Tombstone>> {
        self.read(|transaction| all(transaction))
    }

    /// Makes a removed image visible again, with its labels. [`ErrorKind::NotFound`] once a collection has dropped it,
    /// [`ErrorKind::AlreadyExists`] where the name has been given to another image since.
    pub fn image_restore(&self, id: u64) -> Result<ImageRow> {
        self.write(Sync::Full, |transaction| {
            let found = one(transaction, id)?;
            let found =
                found.ok_or_else(|| Error::new(ErrorKind::NotFound, "it can no longer be restored"))?;
            restore(transaction, &found)
        })
    }

    /// Drops some of the tombstones whose time is over at `now_ms`, and tells how many; none when there are no more. Others
    /// write in between.
    pub fn tombstones_expire(&self, now_ms: u64) -> Result<u64> {
        self.write(Sync::Lazy, |transaction| {
            let sql = "DELETE FROM tombstone
                WHERE id IN (SELECT id FROM tombstone WHERE expires_ms <= ? LIMIT 50)";
            Ok(transaction.prepare_cached(sql)?.execute([int(now_ms)])? as u64)
        })
    }
}

fn bury(connection: &Connection, image: &ImageRow, grace_ms: u64) -> Result<Tombstone> {
    let labels = super::labels::get(connection, "image", &image.label_key())?;
    if labels.get(PINNED_LABEL).is_some_and(|value| value == PINNED) {
        return Err(Error::new(ErrorKind::FailedPrecondition, "it is pinned")
            .with_hint("'transload unpin NAME' first"));
    }
    let now = now_ms();
    connection
        .prepare_cached(
            "INSERT INTO tombstone (name, target, descriptor, manifests, labels, created_ms, removed_ms, expires_ms)
             VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        )?
        .execute(params![
            image.name,
            image.target.digest.to_string(),
            to_json(&image.target)?,
            to_json(&image.manifests)?,
            to_json(&labels)?,
            int(image.created_ms),
            int(now),
            int(now.saturating_add(grace_ms)),
        ])?;
    let id = u64::try_from(connection.last_insert_rowid()).unwrap_or(0);
    images::remove(connection, image)?;
    super::labels::count_change(connection)?;
    one(connection, id)?.ok_or_else(|| Error::new(ErrorKind::Internal, "a tombstone is not where it was put"))
}

fn restore(connection: &Connection, tombstone: &Tombstone) -> Result<ImageRow> {
    if let Some(name) = &tombstone.name
        && let Some(other) = images::one(connection, "name = ?", name)?
        && other.target.digest != tombstone.target.digest
    {
        let message = format!("the name {name} belongs to {} by now", other.target.digest);
        return Err(Error::new(ErrorKind::AlreadyExists, message).with_hint("remove or retag that one first"));
    }
    let new = NewImage {
        name: tombstone.name.clone(),
        target: tombstone.target.clone(),
        manifests: tombstone.manifests.clone(),
    };
    let restored = images::put_image(connection, &new, true)?;
    connection
        .prepare_cached("UPDATE image SET created_ms = min(created_ms, ?) WHERE id = ?")?
        .execute([int(tombstone.created_ms), int(restored.id)])?;
    connection.prepare_cached("DELETE FROM tombstone WHERE id = ?")?.execute([int(tombstone.id)])?;
    images::listed(connection, std::slice::from_ref(&restored))?;
    let image = images::one(connection, "id = ?", int(restored.id))?;
    let image = image.ok_or_else(|| Error::new(ErrorKind::Internal, "a restored image is not there"))?;
    if !tombstone.labels.is_empty() {
        super::labels::put(connection, "image", &image.label_key(), &tombstone.labels)?;
    }
    Ok(image)
}

pub(super) fn all(connection: &Connection) -> Result<Vec<Tombstone>> {
    let mut statement = connection.prepare_cached(&format!("{TOMBSTONE} ORDER BY id DESC"))?;
    let mut rows = statement.query([])?;
    let mut tombstones = Vec::new();
    while let Some(row) = rows.next()? {
        tombstones.push(tombstone(row)?);
    }
    Ok(tombstones)
}

fn one(connection: &Connection, id: u64) -> Result<Option<Tombstone>> {
    let mut statement = connection.prepare_cached(&format!("{TOMBSTONE} WHERE id = ?"))?;
    let mut rows = statement.query([int(id)])?;
    rows.next()?.map(tombstone).transpose()
}

fn tombstone(row: &Row<'_>) -> Result<Tombstone> {
    Ok(Tombstone {
        id: unsigned(row, 0)?,
        name: row.get(1)?,
        target: json(row, 2)?,
        manifests: json(row, 3)?,
        labels: labels(row, 4)?,
        created_ms: unsigned(row, 5)?,
        removed_ms: unsigned(row, 6)?,
        expires_ms: unsigned(row, 7)?,
    })
}

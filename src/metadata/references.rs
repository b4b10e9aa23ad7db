//! What refers to what among blobs: an index to its manifests, a manifest to its configuration and layers. Stored so that
//! both ways are look-ups.
//!
//! A digest's content never changes, so what it names is a fact that stays true; it is forgotten when the blob goes. What
//! images, snapshots and leases refer to stands in their own rows, which have indexes for the way back.

use super::columns::parsed;
use super::connection::Sync;
use super::{ManifestRow, Metadata};
use crate::error::Result;
use crate::oci::{Digest, Document};
use rusqlite::{Connection, OptionalExtension};
use std::collections::HashMap;

/// Everything that one document names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DocumentReferences {
    /// The document.
    pub digest: Digest,
    /// What it names, and whether that may be a document in turn.
    pub names: Vec<(Digest, bool)>,
}

impl DocumentReferences {
    /// What a manifest or an index names; a blob that is neither, `None`, names nothing.
    pub fn of(digest: Digest, document: Option<&Document>) -> Self {
        let names = match document {
            None => Vec::new(),
            Some(Document::Index(index)) => {
                index.manifests.iter().map(|entry| (entry.digest, true)).collect()
            }
            Some(Document::Manifest(manifest)) => {
                let layers = manifest.layers.iter().map(|layer| (layer.digest, false));
                layers.chain([(manifest.config.digest, false)]).collect()
            }
        };
        DocumentReferences { digest, names }
    }
}

/// All references between blobs, in memory: what a collection works on.
#[derive(Clone, Debug, Default)]
pub struct References {
    /// The digests that take part; others refer to them by position.
    pub digests: Vec<Digest>,
    /// Whether the document has been looked into, so that what it names is all here.
    pub read: Vec<bool>,
    /// What each names, and whether that may be a document in turn.
    pub names: Vec<Vec<(u32, bool)>>,
    positions: HashMap<Digest, u32>,
}

impl References {
    /// Where a digest stands, if it takes part.
    pub fn position(&self, digest: &Digest) -> Option<u32> {
        self.positions.get(digest).copied()
    }

    fn push(&mut self, digest: Digest, read: bool) -> u32 {
        let position = self.digests.len() as u32;
        self.positions.insert(digest, position);
        self.digests.push(digest);
        self.read.push(read);
        self.names.push(Vec::new());
        position
    }
}

impl Metadata {
    /// Records what documents name, once they have been looked into. Recording twice is fine.
    pub fn references_put(&self, documents: &[DocumentReferences]) -> Result<()> {
        match documents {
            [] => Ok(()),
            _ => self.write(Sync::Lazy, |transaction| put(transaction, documents)),
        }
    }

    /// All of them, read at once.
    pub fn references(&self) -> Result<References> {
        self.read(|transaction| all(transaction))
    }

    /// What a document names, and whether that may be a document in turn. `None` if nobody has looked into it.
    pub fn references_of(&self, digest: &Digest) -> Result<Option<Vec<(Digest, bool)>>> {
        self.read(|transaction| {
            let found: Option<(i64, bool)> = transaction
                .prepare_cached("SELECT id, read FROM node WHERE digest = ?")?
                .query_row([digest.to_string()], |row| Ok((row.get(0)?, row.get(1)?)))
                .optional()?;
            let Some((id, true)) = found else { return Ok(None) };
            let mut statement = transaction.prepare_cached(
                "SELECT n.digest, r.follow FROM reference r JOIN node n ON n.id = r.to_id WHERE r.from_id = ?",
            )?;
            let mut rows = statement.query([id])?;
            let mut names = Vec::new();
            while let Some(row) = rows.next()? {
                names.push((parsed(row, 0)?, row.get(1)?));
            }
            Ok(Some(names))
        })
    }

    /// The documents that name a blob.
    pub fn referrers(&self, digest: &Digest) -> Result<Vec<Digest>> {
        self.read(|transaction| referrers(transaction, &digest.to_string()))
    }
}

pub(super) fn referrers(connection: &Connection, digest: &str) -> Result<Vec<Digest>> {
    let mut statement = connection.prepare_cached(
        "SELECT f.digest FROM node t JOIN reference r ON r.to_id = t.id JOIN node f ON f.id = r.from_id
         WHERE t.digest = ? ORDER BY f.digest",
    )?;
    let mut rows = statement.query([digest])?;
    let mut referrers = Vec::new();
    while let Some(row) = rows.next()? {
        referrers.push(parsed(row, 0)?);
    }
    Ok(referrers)
}

pub(super) fn put(connection: &Connection, documents: &[DocumentReferences]) -> Result<()> {
    let mut read = connection.prepare_cached("UPDATE node SET read = 1 WHERE id = ? AND NOT read")?;
    for document in documents {
        let from = node(connection, &document.digest)?;
        for (digest, follow) in &document.names {
            refer(connection, from, digest, *follow)?;
        }
        read.execute([from])?;
    }
    Ok(())
}

/// What a manifest's row says. The document may name more: layers that are not here.
pub(super) fn put_manifest(connection: &Connection, manifest: &ManifestRow) -> Result<()> {
    let from = node(connection, &manifest.digest)?;
    let layers = manifest.layers.iter().map(|(digest, _)| digest);
    layers.chain([&manifest.config]).try_for_each(|digest| refer(connection, from, digest, false))
}

fn refer(connection: &Connection, from: i64, digest: &Digest, follow: bool) -> Result<()> {
    let to = node(connection, digest)?;
    connection
        .prepare_cached(
            "INSERT INTO reference (from_id, to_id, follow) VALUES (?, ?, ?)
             ON CONFLICT DO UPDATE SET follow = 1 WHERE excluded.follow AND NOT follow",
        )?
        .execute([from, to, i64::from(follow)])?;
    Ok(())
}

fn node(connection: &Connection, digest: &Digest) -> Result<i64> {
    let digest = digest.to_string();
    let known = connection
        .prepare_cached("SELECT id FROM node WHERE digest = ?")?
        .query_row([&digest], |row| row.get(0))
        .optional()?;
    if let Some(id) = known {
        return Ok(id);
    }
    connection.prepare_cached("INSERT INTO node (digest, read) VALUES (?, 0)")?.execute([&digest])?;
    Ok(connection.last_insert_rowid())
}

/// Forgets what a blob names, and the blob itself unless another still names it.
pub(super) fn forget(connection: &Connection, digest: &str) -> Result<()> {
    let id: Option<i64> = connection
        .prepare_cached("SELECT id FROM node WHERE digest = ?")?
        .query_row([digest], |row| row.get(0))
        .optional()?;
    let Some(id) = id else { return Ok(()) };
    let named: Vec<i64> = connection
        .prepare_cached("SELECT to_id FROM reference WHERE from_id = ?")?
        .query_map([id], |row| row.get(0))?
        .collect::<rusqlite::Result<_>>()?;
    connection.prepare_cached("DELETE FROM reference WHERE from_id = ?")?.execute([id])?;
    connection.prepare_cached("UPDATE node SET read = 0 WHERE id = ?")?.execute([id])?;
    let mut forget = connection.prepare_cached(
        "DELETE FROM node WHERE id = ?1 AND NOT EXISTS (SELECT 1 FROM reference WHERE to_id = ?1)
         AND NOT EXISTS (SELECT 1 FROM reference WHERE from_id = ?1)",
    )?;
    named.iter().chain([&id]).try_for_each(|id| Ok(forget.execute([id]).map(drop)?))
}

pub(super) fn all(connection: &Connection) -> Result<References> {
    let mut references = References::default();
    let mut positions = HashMap::new();
    let mut statement = connection.prepare_cached("SELECT id, digest, read FROM node")?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let position = references.push(parsed(row, 1)?, row.get(2)?);
        positions.insert(row.get::<_, i64>(0)?, position);
    }
    let mut statement = connection.prepare_cached("SELECT from_id, to_id, follow FROM reference")?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let ends = (positions.get(&row.get(0)?), positions.get(&row.get(1)?));
        if let (Some(from), Some(to)) = ends {
            references.names[*from as usize].push((*to, row.get(2)?));
        }
    }
    Ok(references)
}

/// The number of the next change of an image.
pub(super) fn next_change(connection: &Connection) -> Result<i64> {
    let mut statement = connection
        .prepare_cached("UPDATE fact SET value = value + 1 WHERE key = 'changed' RETURNING value")?;
    Ok(statement.query_row([], |row| row.get(0))?)
}
/// The number of the last change of an image, and how often labels have changed.
pub(super) fn changes(connection: &Connection) -> Result<(u64, u64)> {
    let fact = |key: &str| -> Result<u64> {
        let mut statement = connection.prepare_cached("SELECT value FROM fact WHERE key = ?")?;
        let value: i64 = statement.query_row([key], |row| row.get(0))?;
        Ok(u64::try_from(value).unwrap_or(0))
    };
    Ok((fact("changed")?, fact("labels")?))
}

//! What blobs unpack to, and the extracted trees.
//!
//! Both are facts that were computed here; no claim of an archive is ever recorded.

use super::Metadata;
use super::blobs::TRUSTED;
use super::columns::{int, now_ms, parsed, unsigned};
use super::connection::Sync;
use crate::error::Result;
use crate::oci::{DiffId, Digest};
use rusqlite::{Connection, Row, params};

/// What a blob unpacks to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerRow {
    /// The blob.
    pub digest: Digest,
    /// The digest of its whole uncompressed stream.
    pub diff_id: DiffId,
    /// The compression that the bytes showed.
    pub codec: String,
    /// The length of the uncompressed stream.
    pub uncompressed_bytes: u64,
}

/// One extracted layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TreeRow {
    /// The layer.
    pub diff_id: DiffId,
    /// What it occupies, in bytes.
    pub bytes: u64,
    /// How many inodes it occupies.
    pub inodes: u64,
    /// Whether it is known to survive a power cut.
    pub durable: bool,
}

const LAYER: &str = "SELECT digest, diff_id, codec, uncompressed_bytes FROM layer";
const TREE: &str = "SELECT diff_id, bytes, inodes, durable FROM tree";

impl Metadata {
    /// Records what a blob unpacks to, as computed.
    pub fn layer_put(
        &self,
        digest: &Digest,
        diff_id: &DiffId,
        codec: &str,
        uncompressed_bytes: u64,
    ) -> Result<()> {
        let row =
            LayerRow { digest: *digest, diff_id: *diff_id, codec: codec.to_string(), uncompressed_bytes };
        self.write(Sync::Lazy, |transaction| put_layers(transaction, &[row]))
    }

    /// What a blob unpacks to, if that was ever computed.
    pub fn layer_get(&self, digest: &Digest) -> Result<Option<LayerRow>> {
        let sql = format!("{LAYER} WHERE digest = ?1");
        self.look(|transaction| {
            let mut statement = transaction.prepare_cached(&sql)?;
            let mut rows = statement.query([digest.to_string()])?;
            rows.next()?.map(layer).transpose()
        })
    }

    /// The blobs that unpack to this layer.
    pub fn layers_by_diff_id(&self, diff_id: &DiffId) -> Result<Vec<LayerRow>> {
        let sql = format!("{LAYER} WHERE diff_id = ?1");
        self.look(|transaction| {
            let mut statement = transaction.prepare_cached(&sql)?;
            let mut rows = statement.query([diff_id.to_string()])?;
            let mut layers = Vec::new();
            while let Some(row) = rows.next()? {
                layers.push(layer(row)?);
            }
            Ok(layers)
        })
    }

    /// Records an extracted tree. One that is there already stays durable if it was, and is trusted from now on.
    pub fn tree_put(&self, row: &TreeRow) -> Result<()> {
        self.write(Sync::Lazy, |transaction| put_trees(transaction, std::slice::from_ref(row), self.boot()))
    }

    /// Gives a tree its name and records it, in one step, as [`Metadata::blob_publish`] does for blobs. Who waits for the working
    /// place, which goes with the name, calls [`Metadata::settled`] before looking.
    pub(crate) fn tree_publish(
        &self,
        row: &TreeRow,
        is_there: impl FnOnce() -> Result<bool>,
        name: impl FnOnce() -> Result<()>,
    ) -> Result<bool> {
        self.write(Sync::Lazy, |transaction| {
            if trusted(transaction, &row.diff_id, self.boot())?.is_some() && is_there()? {
                return Ok(false);
            }
            // One that is lost may be recorded as synced, which what takes its place is not.
            forget(transaction, &row.diff_id)?;
            name()?;
            put_trees(transaction, std::slice::from_ref(row), self.boot())?;
            Ok(true)
        })
    }

    /// The tree, unless it is unknown or not trusted.
    pub fn tree_get(&self, diff_id: &DiffId) -> Result<Option<TreeRow>> {
        self.look(|transaction| trusted(transaction, diff_id, self.boot()))
    }

    /// Every tree that is recorded, trusted or not.
    pub fn trees(&self) -> Result<Vec<TreeRow>> {
        self.read(|transaction| all(transaction))
    }

    /// Forgets trees. Forgetting twice is fine.
    pub fn tree_remove(&self, diff_ids: &[DiffId]) -> Result<()> {
        self.write(Sync::Lazy, |transaction| diff_ids.iter().try_for_each(|id| forget(transaction, id)))
    }
}

fn trusted(connection: &Connection, diff_id: &DiffId, boot: &str) -> Result<Option<TreeRow>> {
    let mut statement = connection.prepare_cached(&format!("{TREE} WHERE diff_id = ?1 AND {TRUSTED}"))?;
    let mut rows = statement.query(params![diff_id.to_string(), boot])?;
    rows.next()?.map(tree).transpose()
}

fn forget(connection: &Connection, diff_id: &DiffId) -> Result<()> {
    connection.prepare_cached("DELETE FROM tree WHERE diff_id = ?")?.execute([diff_id.to_string()])?;
    Ok(())
}

pub(super) fn all(connection: &Connection) -> Result<Vec<TreeRow>> {
    let mut statement = connection.prepare_cached(TREE)?;
    let mut rows = statement.query([])?;
    let mut trees = Vec::new();
    while let Some(row) = rows.next()? {
        trees.push(tree(row)?);
    }
    Ok(trees)
}

pub(super) fn put_layers(connection: &Connection, rows: &[LayerRow]) -> Result<()> {
    let mut statement = connection.prepare_cached("INSERT OR REPLACE INTO layer VALUES (?, ?, ?, ?)")?;
    for row in rows {
        let (digest, diff_id) = (row.digest.to_string(), row.diff_id.to_string());
        statement.execute(params![digest, diff_id, row.codec, int(row.uncompressed_bytes)])?;
    }
    Ok(())
}

pub(super) fn put_trees(connection: &Connection, rows: &[TreeRow], boot: &str) -> Result<()> {
    let mut statement = connection.prepare_cached(
        "INSERT INTO tree (diff_id, bytes, inodes, durable, boot, created_ms) VALUES (?1, ?2, ?3, ?4, ?5, ?6)
         ON CONFLICT (diff_id) DO UPDATE SET bytes = excluded.bytes, inodes = excluded.inodes,
             boot = excluded.boot, durable = excluded.durable OR durable",
    )?;
    let now = int(now_ms());
    for row in rows {
        statement.execute(params![
            row.diff_id.to_string(),
            int(row.bytes),
            int(row.inodes),
            row.durable,
            boot,
            now
        ])?;
    }
    Ok(())
}

fn layer(row: &Row<'_>) -> Result<LayerRow> {
    Ok(LayerRow {
        digest: parsed(row, 0)?,
        diff_id: parsed(row, 1)?,
        codec: row.get(2)?,
        uncompressed_bytes: unsigned(row, 3)?,
    })
}

fn tree(row: &Row<'_>) -> Result<TreeRow> {
    Ok(TreeRow {
        diff_id: parsed(row, 0)?,
        bytes: unsigned(row, 1)?,
        inodes: unsigned(row, 2)?,
        durable: row.get(3)?,
    })
}

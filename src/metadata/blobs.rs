//! The blobs that the store holds.

use super::columns::{int, now_ms, parsed, parsed_opt, unsigned};
use super::connection::Sync;
use super::{Metadata, Resource, references};
use crate::error::Result;
use crate::oci::Digest;
use rusqlite::{Connection, OptionalExtension, Row, params};

/// A complete, verified blob.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlobRow {
    /// The digest that it was committed with.
    pub digest: Digest,
    /// Its size in bytes.
    pub size_bytes: u64,
    /// The SHA-256 of its first 64 KiB (of all of it, if it is shorter), to find it by its beginning.
    pub head: Option<Digest>,
    /// Whether it is known to survive a power cut.
    pub durable: bool,
}

/// What is trusted: durable, or written since this boot.
pub(super) const TRUSTED: &str = "(durable OR boot = ?2)";

impl Metadata {
    /// Records blobs. One that is there already stays durable if it was, and is trusted from now on.
    pub fn blob_put(&self, rows: &[BlobRow]) -> Result<()> {
        self.write(Sync::Lazy, |transaction| put(transaction, rows, self.boot()))
    }

    /// Gives a blob its name and records it, in one step: of all who publish it, in whatever process, one at a time is between
    /// looking and recording. Where a trusted one of that size is recorded and `is_there`, the answer is `false` and nothing is
    /// done.
    ///
    /// A death in between leaves a file without a record, which counts for nothing.
    pub(crate) fn blob_publish(
        &self,
        row: &BlobRow,
        is_there: impl FnOnce() -> Result<bool>,
        name: impl FnOnce() -> Result<()>,
    ) -> Result<bool> {
        self.write(Sync::Lazy, |transaction| {
            let known = trusted(transaction, &row.digest, self.boot())?;
            if known.as_ref().is_some_and(|known| known.size_bytes == row.size_bytes) && is_there()? {
                return Ok(false);
            }
            if known.is_some() {
                // It is lost, and may be recorded as synced, which what takes its place is not.
                remove(transaction, &row.digest.to_string())?;
            }
            name()?;
            put(transaction, std::slice::from_ref(row), self.boot())?;
            Ok(true)
        })
    }

    /// The blob, unless it is unknown or not trusted.
    pub fn blob_get(&self, digest: &Digest) -> Result<Option<BlobRow>> {
        self.look(|transaction| trusted(transaction, digest, self.boot()))
    }

    /// Every blob that is recorded, trusted or not.
    pub fn blobs(&self) -> Result<Vec<BlobRow>> {
        self.read(|transaction| {
            let mut statement =
                transaction.prepare_cached("SELECT digest, size_bytes, head, durable FROM blob")?;
            let mut rows = statement.query([])?;
            let mut blobs = Vec::new();
            while let Some(row) = rows.next()? {
                blobs.push(blob(row)?);
            }
            Ok(blobs)
        })
    }

    /// Forgets blobs, and what they unpack to. Forgetting twice is fine.
    pub fn blob_remove(&self, digests: &[Digest]) -> Result<()> {
        self.write(Sync::Lazy, |transaction| {
            digests.iter().try_for_each(|digest| remove(transaction, &digest.to_string()))
        })
    }

    /// Forgets that a blob is here, unless `is_gone`, asked inside the transaction, denies it: whoever has just written it
    /// keeps its record. What it unpacks to stays known.
    pub fn blob_forget_lost(&self, digest: &Digest, is_gone: impl FnOnce() -> Result<bool>) -> Result<()> {
        self.write(Sync::Lazy, |transaction| {
            if is_gone()? {
                transaction
                    .prepare_cached("DELETE FROM blob WHERE digest = ?")?
                    .execute([digest.to_string()])?;
            }
            Ok(())
        })
    }

    /// The trusted blobs of this size that begin alike: candidates for a comparison, not yet the answer.
    pub fn blobs_by_head(&self, size_bytes: u64, head: &Digest) -> Result<Vec<Digest>> {
        let sql = format!("SELECT digest FROM blob WHERE size_bytes = ?1 AND head = ?3 AND {TRUSTED}");
        self.look(|transaction| {
            let mut statement = transaction.prepare_cached(&sql)?;
            let mut rows = statement.query(params![int(size_bytes), self.boot(), head.to_string()])?;
            let mut digests = Vec::new();
            while let Some(row) = rows.next()? {
                digests.push(parsed(row, 0)?);
            }
            Ok(digests)
        })
    }

    /// Those of `resources` that are here and trusted but not durable: sync them before reporting success.
    pub fn undurable(&self, resources: &[Resource]) -> Result<Vec<Resource>> {
        self.look(|transaction| {
            let mut undurable = Vec::new();
            for resource in resources {
                let Some((table, column)) = table_of(resource) else { continue };
                let sql = format!("SELECT 1 FROM {table} WHERE {column} = ?1 AND NOT durable AND boot = ?2");
                let found = transaction
                    .prepare_cached(&sql)?
                    .query_row(params![resource.key(), self.boot()], |_| Ok(()))
                    .optional()?;
                undurable.extend(found.map(|()| resource.clone()));
            }
            Ok(undurable)
        })
    }

    /// Records that `resources` have been synced. Those not known are passed over.
    pub fn mark_durable(&self, resources: &[Resource]) -> Result<()> {
        self.write(Sync::Lazy, |transaction| mark(transaction, resources, self.boot()))
    }
}

fn trusted(connection: &Connection, digest: &Digest, boot: &str) -> Result<Option<BlobRow>> {
    let sql = format!("SELECT digest, size_bytes, head, durable FROM blob WHERE digest = ?1 AND {TRUSTED}");
    let mut statement = connection.prepare_cached(&sql)?;
    let mut rows = statement.query(params![digest.to_string(), boot])?;
    rows.next()?.map(blob).transpose()
}

pub(super) fn remove(connection: &Connection, digest: &str) -> Result<()> {
    connection.prepare_cached("DELETE FROM blob WHERE digest = ?")?.execute([digest])?;
    connection.prepare_cached("DELETE FROM layer WHERE digest = ?")?.execute([digest])?;
    connection.prepare_cached("DELETE FROM label WHERE kind = 'blob' AND key = ?")?.execute([digest])?;
    references::forget(connection, digest)
}

pub(super) fn put(connection: &Connection, rows: &[BlobRow], boot: &str) -> Result<()> {
    let mut statement = connection.prepare_cached(
        "INSERT INTO blob (digest, size_bytes, head, durable, boot, created_ms) VALUES (?1, ?2, ?3, ?4, ?5, ?6)
         ON CONFLICT (digest) DO UPDATE SET size_bytes = excluded.size_bytes,
             head = coalesce(excluded.head, head), boot = excluded.boot,
             durable = excluded.durable OR durable
         WHERE head IS NULL OR boot != excluded.boot OR durable < excluded.durable",
    )?;
    let now = int(now_ms());
    for row in rows {
        let head = row.head.map(|head| head.to_string());
        statement.execute(params![
            row.digest.to_string(),
            int(row.size_bytes),
            head,
            row.durable,
            boot,
            now
        ])?;
    }
    Ok(())
}

/// Only what this boot wrote or trusted can have been synced by it.
pub(super) fn mark(connection: &Connection, resources: &[Resource], boot: &str) -> Result<()> {
    for resource in resources {
        let Some((table, column)) = table_of(resource) else { continue };
        let sql = format!("UPDATE {table} SET durable = 1 WHERE {column} = ?1 AND NOT durable AND boot = ?2");
        connection.prepare_cached(&sql)?.execute(params![resource.key(), boot])?;
    }
    Ok(())
}

fn table_of(resource: &Resource) -> Option<(&'static str, &'static str)> {
    match resource {
        Resource::Blob(_) => Some(("blob", "digest")),
        Resource::Tree(_) => Some(("tree", "diff_id")),
        Resource::Snapshot(_) => Some(("snapshot", "key")),
        Resource::Ingest(_) => None,
    }
}

fn blob(row: &Row<'_>) -> Result<BlobRow> {
    Ok(BlobRow {
        digest: parsed(row, 0)?,
        size_bytes: unsigned(row, 1)?,
        head: parsed_opt(row, 2)?,
        durable: row.get(3)?,
    })
}

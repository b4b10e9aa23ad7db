//! Leases: what must not be collected while someone works with it, or for as long as someone said.

use super::columns::{corrupt, int, labels, now_ms, parse, to_json};
use super::connection::Sync;
use super::{ImageRow, Labels, Metadata};
use crate::error::{Error, ErrorKind, Result};
use crate::oci::{DiffId, Digest};
use rusqlite::{Connection, OptionalExtension, params};
use std::collections::HashMap;

/// Something that a lease can hold.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Resource {
    /// A blob.
    Blob(Digest),
    /// An extracted layer.
    Tree(DiffId),
    /// A snapshot, by key or name.
    Snapshot(String),
    /// A blob being written, by its directory's name.
    Ingest(String),
}

impl Resource {
    /// `blob`, `tree`, `snapshot` or `ingest`.
    pub fn kind(&self) -> &'static str {
        match self {
            Resource::Blob(_) => "blob",
            Resource::Tree(_) => "tree",
            Resource::Snapshot(_) => "snapshot",
            Resource::Ingest(_) => "ingest",
        }
    }

    /// Its digest, key or name.
    pub fn key(&self) -> String {
        match self {
            Resource::Blob(digest) => digest.to_string(),
            Resource::Tree(diff_id) => diff_id.to_string(),
            Resource::Snapshot(key) | Resource::Ingest(key) => key.clone(),
        }
    }

    fn from_columns(kind: &str, key: String) -> Result<Self> {
        match kind {
            "blob" => Ok(Resource::Blob(parse(&key)?)),
            "tree" => Ok(Resource::Tree(parse(&key)?)),
            "snapshot" => Ok(Resource::Snapshot(key)),
            "ingest" => Ok(Resource::Ingest(key)),
            other => Err(corrupt(format!("a lease holds something of kind {other:?}"))),
        }
    }
}

/// A lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaseRow {
    /// Its id.
    pub id: String,
    /// When it ends by itself, in milliseconds since 1970.
    pub expires_ms: Option<u64>,
    /// Its labels.
    pub labels: Labels,
    /// When it was made.
    pub created_ms: u64,
}

impl Metadata {
    /// Makes a lease; a taken id is [`ErrorKind::AlreadyExists`].
    pub fn lease_create(&self, id: &str, expires_ms: Option<u64>, labels: &Labels) -> Result<()> {
        self.write(Sync::Lazy, |transaction| create(transaction, id, expires_ms, labels))
    }

    /// Makes a lease that holds what these images need, or none: [`ErrorKind::NotFound`] if one of them is gone by then.
    pub fn lease_images(&self, id: &str, expires_ms: Option<u64>, images: &[ImageRow]) -> Result<()> {
        self.write(Sync::Lazy, |transaction| {
            create(transaction, id, expires_ms, &Labels::new())?;
            super::labels::count_change(transaction)?;
            hold_images(transaction, id, images)?;
            Ok(())
        })
    }

    /// Puts resources on a lease, with what they name. Adding twice is fine; an ended lease is [`ErrorKind::NotFound`]. A
    /// collection that has looked already looks again.
    pub fn lease_add(&self, id: &str, resources: &[Resource]) -> Result<()> {
        self.write(Sync::Lazy, |transaction| {
            super::labels::count_change(transaction)?;
            add(transaction, id, resources)
        })
    }

    /// As [`Metadata::lease_add`], for running work, which names each thing that it needs: what a document names that nobody
    /// has looked into is not held with it.
    pub fn lease_hold(&self, id: &str, resources: &[Resource]) -> Result<()> {
        self.write(Sync::Lazy, |transaction| add(transaction, id, resources))
    }

    /// Puts on a lease of running work what these images need, and gives their rows as they are by then.
    /// [`ErrorKind::NotFound`] if one of them is gone.
    ///
    /// A collection that has looked before saw the images themselves, so it need not look again.
    pub fn lease_hold_images(&self, id: &str, images: &[ImageRow]) -> Result<Vec<ImageRow>> {
        self.write(Sync::Lazy, |transaction| hold_images(transaction, id, images))
    }

    /// Takes resources off a lease.
    pub fn lease_drop(&self, id: &str, resources: &[Resource]) -> Result<()> {
        self.write(Sync::Lazy, |transaction| {
            let mut statement = transaction
                .prepare_cached("DELETE FROM lease_resource WHERE lease_id = ? AND kind = ? AND key = ?")?;
            for resource in resources {
                statement.execute(params![id, resource.kind(), resource.key()])?;
            }
            Ok(())
        })
    }

    /// Ends a lease that still ends when it did as somebody looked: one that was renewed since goes on. Tells whether.
    pub fn lease_end(&self, seen: &LeaseRow) -> Result<bool> {
        self.write(Sync::Lazy, |transaction| {
            let mut statement =
                transaction.prepare_cached("DELETE FROM lease WHERE id = ? AND expires_ms IS ?")?;
            Ok(statement.execute(params![seen.id, seen.expires_ms.map(int)])? > 0)
        })
    }

    /// Ends a lease. Ending twice is fine.
    pub fn lease_remove(&self, id: &str) -> Result<()> {
        self.write(Sync::Lazy, |transaction| {
            transaction.prepare_cached("DELETE FROM lease WHERE id = ?")?.execute([id])?;
            Ok(())
        })
    }

    /// All leases, also those that have expired.
    pub fn leases(&self) -> Result<Vec<LeaseRow>> {
        self.read(|transaction| all(transaction))
    }

    /// Lets a lease end later, or never. [`ErrorKind::NotFound`] once it is gone: what it held may be, too.
    pub fn lease_renew(&self, id: &str, expires_ms: Option<u64>) -> Result<()> {
        self.write(Sync::Lazy, |transaction| {
            exists(transaction, id)?;
            super::labels::count_change(transaction)?;
            transaction
                .prepare_cached("UPDATE lease SET expires_ms = ? WHERE id = ?")?
                .execute(params![expires_ms.map(int), id])?;
            Ok(())
        })
    }

    /// What a lease holds.
    pub fn lease_resources(&self, id: &str) -> Result<Vec<Resource>> {
        self.read(|transaction| {
            exists(transaction, id)?;
            let mut statement =
                transaction.prepare_cached("SELECT kind, key FROM lease_resource WHERE lease_id = ?")?;
            let mut rows = statement.query([id])?;
            let mut resources = Vec::new();
            while let Some(row) = rows.next()? {
                resources.push(Resource::from_columns(&row.get::<_, String>(0)?, row.get(1)?)?);
            }
            Ok(resources)
        })
    }
}

fn create(connection: &Connection, id: &str, expires_ms: Option<u64>, labels: &Labels) -> Result<()> {
    super::labels::told(connection, labels)?;
    let made = connection
        .prepare_cached(
            "INSERT OR IGNORE INTO lease (id, expires_ms, labels, created_ms) VALUES (?, ?, ?, ?)",
        )?
        .execute(params![id, expires_ms.map(int), to_json(labels)?, int(now_ms())])?;
    match made {
        0 => Err(Error::new(ErrorKind::AlreadyExists, format!("lease {id} exists already"))),
        _ => Ok(()),
    }
}

pub(super) fn all(connection: &Connection) -> Result<Vec<LeaseRow>> {
    let mut statement =
        connection.prepare_cached("SELECT id, expires_ms, labels, created_ms FROM lease ORDER BY id")?;
    let mut rows = statement.query([])?;
    let mut leases = Vec::new();
    while let Some(row) = rows.next()? {
        let unsigned = |value: i64| u64::try_from(value).unwrap_or(0);
        leases.push(LeaseRow {
            id: row.get(0)?,
            expires_ms: row.get::<_, Option<i64>>(1)?.map(unsigned),
            labels: labels(row, 2)?,
            created_ms: unsigned(row.get(3)?),
        });
    }
    Ok(leases)
}

/// What every lease holds.
pub(super) fn held(connection: &Connection) -> Result<HashMap<String, Vec<Resource>>> {
    let mut statement = connection.prepare_cached("SELECT lease_id, kind, key FROM lease_resource")?;
    let mut rows = statement.query([])?;
    let mut held: HashMap<String, Vec<Resource>> = HashMap::new();
    while let Some(row) = rows.next()? {
        let resource = Resource::from_columns(&row.get::<_, String>(1)?, row.get(2)?)?;
        held.entry(row.get(0)?).or_default().push(resource);
    }
    Ok(held)
}

/// Whether any lease holds it.
pub(super) fn is_held(connection: &Connection, kind: &str, key: &str) -> Result<bool> {
    let mut statement =
        connection.prepare_cached("SELECT 1 FROM lease_resource WHERE kind = ? AND key = ? LIMIT 1")?;
    Ok(statement.exists([kind, key])?)
}

/// Whether any lease holds it and what it refers to: one without the label `containerd.io/gc.flat`.
pub(super) fn is_held_whole(connection: &Connection, kind: &str, key: &str) -> Result<bool> {
    let mut statement = connection.prepare_cached(
        "SELECT 1 FROM lease_resource r JOIN lease l ON l.id = r.lease_id
         WHERE r.kind = ? AND r.key = ? AND NOT instr(l.labels, '\"containerd.io/gc.flat\"') LIMIT 1",
    )?;
    Ok(statement.exists([kind, key])?)
}

/// Puts the images' targets and chains on a lease, as they are now.
fn hold_images(connection: &Connection, id: &str, images: &[ImageRow]) -> Result<Vec<ImageRow>> {
    let mut rows = Vec::with_capacity(images.len());
    for image in images {
        // Another name of the same index may have other platforms of it.
        let same = super::images::one(connection, "id = ?", int(image.id))?
            .filter(|row| row.target.digest == image.target.digest);
        let still = match same {
            Some(row) => row,
            None => super::images::one(connection, "target = ?", image.target.digest.to_string())?
                .ok_or_else(|| super::images::no_image(&image.label_key()))?,
        };
        let chains = still.manifests.iter().filter_map(|manifest| manifest.chain_id);
        let chains = chains.map(|chain_id| Resource::Snapshot(chain_id.to_string()));
        let held: Vec<Resource> = [Resource::Blob(still.target.digest)].into_iter().chain(chains).collect();
        add(connection, id, &held)?;
        rows.push(still);
    }
    Ok(rows)
}

fn add(connection: &Connection, id: &str, resources: &[Resource]) -> Result<()> {
    exists(connection, id)?;
    let mut statement = connection.prepare_cached("INSERT OR IGNORE INTO lease_resource VALUES (?, ?, ?)")?;
    for resource in resources {
        statement.execute(params![id, resource.kind(), resource.key()])?;
    }
    Ok(())
}

fn exists(connection: &Connection, id: &str) -> Result<()> {
    let found = connection
        .prepare_cached("SELECT 1 FROM lease WHERE id = ?")?
        .query_row([id], |_| Ok(()))
        .optional()?;
    found.ok_or_else(|| Error::new(ErrorKind::NotFound, format!("there is no lease {id}")))
}

//! Labels on images and blobs. Snapshots and leases carry theirs in their own rows.

use super::Metadata;
use super::columns::{labels, to_json};
use super::connection::Sync;
use crate::error::{Error, ErrorKind, Result};
use crate::oci::Digest;
use rusqlite::Connection;
use std::collections::BTreeMap;

/// The label of an image that no policy removes, as Kubernetes knows it; see [`PINNED`].
pub const PINNED_LABEL: &str = "io.cri-containerd.pinned";

/// The value of [`PINNED_LABEL`].
pub const PINNED: &str = "pinned";

/// Free-form labels.
pub type Labels = BTreeMap<String, String>;

/// What carries labels here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Labelled<'a> {
    /// The image of this name; one without a name by its target's digest.
    Image(&'a str),
    /// A blob.
    Blob(&'a Digest),
}

impl Labelled<'_> {
    fn columns(&self) -> (&'static str, String) {
        match self {
            Labelled::Image(name) => ("image", name.to_string()),
            Labelled::Blob(digest) => ("blob", digest.to_string()),
        }
    }

    fn must_exist(&self, connection: &Connection) -> Result<()> {
        let (_, key) = self.columns();
        let (sql, missing) = match self {
            Labelled::Image(_) => (
                "SELECT 1 FROM image WHERE name = ?1 OR (target = ?1 AND name IS NULL)",
                super::images::no_image(&key),
            ),
            Labelled::Blob(_) => (
                "SELECT 1 FROM blob WHERE digest = ?1",
                Error::new(ErrorKind::NotFound, format!("blob {key} is not recorded")),
            ),
        };
        match connection.prepare_cached(sql)?.exists([key])? {
            true => Ok(()),
            false => Err(missing),
        }
    }
}

impl Metadata {
    /// The labels, empty where none were ever set.
    pub fn labels(&self, of: Labelled<'_>) -> Result<Labels> {
        let (kind, key) = of.columns();
        self.read(|transaction| get(transaction, kind, &key))
    }

    /// Replaces the labels.
    pub fn labels_set(&self, of: Labelled<'_>, labels: &Labels) -> Result<()> {
        let (kind, key) = of.columns();
        self.write(Sync::Lazy, |transaction| put(transaction, kind, &key, labels))
    }

    /// Changes some labels and leaves the others: a value of `None` takes one away. Gives what is then there.
    /// [`ErrorKind::NotFound`] if the image or the blob is no longer there: what gets its name or digest next has no labels.
    pub fn labels_change(&self, of: Labelled<'_>, changes: &[(String, Option<String>)]) -> Result<Labels> {
        let (kind, key) = of.columns();
        self.write(Sync::Lazy, |transaction| {
            of.must_exist(transaction)?;
            let mut labels = get(transaction, kind, &key)?;
            for (name, value) in changes {
                match value {
                    Some(value) => drop(labels.insert(name.clone(), value.clone())),
                    None => drop(labels.remove(name)),
                }
            }
            put(transaction, kind, &key, &labels)?;
            Ok(labels)
        })
    }

    /// The labels of all images or of all blobs, by name or digest, of those that have any with `word` in it.
    pub fn labels_with(&self, images: bool, word: &str) -> Result<BTreeMap<String, Labels>> {
        self.read(|transaction| with(transaction, if images { "image" } else { "blob" }, word))
    }
}

pub(super) fn with(connection: &Connection, kind: &str, word: &str) -> Result<BTreeMap<String, Labels>> {
    let mut statement =
        connection.prepare_cached("SELECT key, labels FROM label WHERE kind = ? AND instr(labels, ?)")?;
    let mut rows = statement.query([kind, word])?;
    let mut found = BTreeMap::new();
    while let Some(row) = rows.next()? {
        found.insert(row.get(0)?, labels(row, 1)?);
    }
    Ok(found)
}

/// Tells of labels that a snapshot or a lease gets, if a collection asks for any of them.
pub(super) fn told(connection: &Connection, labels: &Labels) -> Result<()> {
    match labels.keys().any(|name| name.starts_with(super::collection::GC_LABELS)) {
        true => count_change(connection),
        false => Ok(()),
    }
}

/// Tells a collection that has looked that what it has seen is no longer so.
pub(super) fn count_change(connection: &Connection) -> Result<()> {
    connection.prepare_cached("UPDATE fact SET value = value + 1 WHERE key = 'labels'")?.execute([])?;
    Ok(())
}

pub(super) fn get(connection: &Connection, kind: &str, key: &str) -> Result<Labels> {
    let mut statement = connection.prepare_cached("SELECT labels FROM label WHERE kind = ? AND key = ?")?;
    let mut rows = statement.query([kind, key])?;
    rows.next()?.map_or_else(|| Ok(Labels::new()), |row| labels(row, 0))
}

/// No labels are no row.
pub(super) fn put(connection: &Connection, kind: &str, key: &str, labels: &Labels) -> Result<()> {
    match labels.is_empty() {
        true => {
            connection.prepare_cached("DELETE FROM label WHERE kind = ? AND key = ?")?.execute([kind, key])?
        }
        false => connection.prepare_cached("INSERT OR REPLACE INTO label VALUES (?, ?, ?)")?.execute([
            kind,
            key,
            &to_json(labels)?,
        ])?,
    };
    count_change(connection)
}

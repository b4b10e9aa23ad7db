//! The snapshots' rows: kinds, parents and keys, by containerd's rules.
//!
//! A committed snapshot that an import made of a tree can be made again. If it was not durable when the machine went
//! down it reads as absent, and making it again replaces it under a fresh id and takes over its children.

use super::columns::{corrupt, int, labels, now_ms, parsed_opt, to_json, unsigned};
use super::connection::Sync;
use super::{Labels, Metadata};
use crate::error::{Error, ErrorKind, Result};
use crate::oci::DiffId;
use rusqlite::{Connection, OptionalExtension, Row, ToSql, params};
use std::collections::HashMap;

/// What a snapshot is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SnapshotKind {
    /// Read-only, made for a mount.
    View,
    /// Being written.
    Active,
    /// Immutable; may be a parent.
    Committed,
}

/// What a snapshot occupies by itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Bytes.
    pub bytes: u64,
    /// Inodes.
    pub inodes: u64,
}

/// A snapshot to be made.
#[derive(Clone, Debug)]
pub struct NewSnapshot<'a> {
    /// The key (active ones and views) or the name (committed ones).
    pub key: &'a str,
    /// What it is.
    pub kind: SnapshotKind,
    /// The committed snapshot below it.
    pub parent: Option<&'a str>,
    /// The extracted layer that it consists of, where an import made it.
    pub tree: Option<DiffId>,
    /// Whether a heal directory lies over the tree.
    pub heal: bool,
    /// Its labels.
    pub labels: &'a Labels,
    /// What it occupies.
    pub usage: Usage,
}

/// A snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotRow {
    /// The number that its directory is called by; never used twice.
    pub id: u64,
    /// See [`NewSnapshot::key`].
    pub key: String,
    /// See [`NewSnapshot::kind`].
    pub kind: SnapshotKind,
    /// See [`NewSnapshot::parent`].
    pub parent: Option<String>,
    /// See [`NewSnapshot::tree`].
    pub tree: Option<DiffId>,
    /// See [`NewSnapshot::heal`].
    pub heal: bool,
    /// See [`NewSnapshot::usage`].
    pub usage: Usage,
    /// Its labels.
    pub labels: Labels,
    /// When it was made, in milliseconds since 1970.
    pub created_ms: u64,
    /// When it last changed.
    pub updated_ms: u64,
    /// Since when it waits to be removed; see [`Metadata::snapshot_defer_removal`].
    pub remove_ms: Option<u64>,
}

const SNAPSHOT: &str = "SELECT s.id, s.key, s.kind, p.key, s.tree, s.heal, s.bytes, s.inodes, s.labels,
    s.created_ms, s.updated_ms, s.remove_ms FROM snapshot s LEFT JOIN snapshot p ON p.id = s.parent_id";

/// The ids of a snapshot and of all below it.
const LINE: &str = "WITH RECURSIVE line (id) AS (SELECT id FROM snapshot WHERE key = ?1 UNION
    SELECT parent_id FROM snapshot JOIN line USING (id) WHERE parent_id IS NOT NULL) ";

/// Only what can be made again is distrusted; see the file's head.
const TRUSTED: &str = "(s.durable OR s.boot = ?2 OR s.tree IS NULL OR s.kind != 2)";

impl Metadata {
    /// Makes a snapshot.
    ///
    /// [`ErrorKind::AlreadyExists`] where the key is taken, [`ErrorKind::NotFound`] without the parent,
    /// [`ErrorKind::FailedPrecondition`] where the parent is not committed.
    pub fn snapshot_create(&self, new: &NewSnapshot<'_>) -> Result<SnapshotRow> {
        self.snapshot_publish(new, |_| Ok(()))
    }

    /// The same, with what `place` does with its number, in one step: nobody sees the row before that is done, and without it
    /// there is none. A death in between leaves a directory without a row, which counts for nothing.
    pub(crate) fn snapshot_publish(
        &self,
        new: &NewSnapshot<'_>,
        place: impl FnOnce(u64) -> Result<()>,
    ) -> Result<SnapshotRow> {
        self.write(Sync::Lazy, |transaction| {
            let boot = self.boot();
            if get(transaction, new.key, boot)?.is_some() {
                return Err(exists(new.key));
            }
            let parent_id = parent_id(transaction, new.parent, boot)?;
            let untrusted = set_aside(transaction, new.key)?;
            super::labels::told(transaction, new.labels)?;
            insert(transaction, new, parent_id, boot)?;
            if let Some(old) = untrusted {
                replace(transaction, old, transaction.last_insert_rowid())?;
            }
            let row = must_get(transaction, new.key, boot)?;
            place(row.id)?;
            Ok(row)
        })
    }

    /// The snapshot of this key or name, unless it is unknown or not trusted.
    pub fn snapshot_get(&self, key: &str) -> Result<Option<SnapshotRow>> {
        self.look(|transaction| get(transaction, key, self.boot()))
    }

    /// The snapshot of this key or name and all below it, top first. [`ErrorKind::NotFound`] where one is unknown or not
    /// trusted, [`ErrorKind::Corrupt`] where one stands on itself.
    pub fn snapshot_chain(&self, key: &str) -> Result<Vec<SnapshotRow>> {
        let mut rows = self.look(|transaction| {
            let mut statement =
                transaction.prepare_cached(&format!("{LINE}{SNAPSHOT} WHERE s.id IN line AND {TRUSTED}"))?;
            let mut rows = statement.query([key, self.boot()])?;
            let mut found = HashMap::new();
            while let Some(row) = rows.next()? {
                let row = snapshot(row)?;
                found.insert(row.key.clone(), row);
            }
            Ok(found)
        })?;
        let mut chain: Vec<SnapshotRow> = Vec::with_capacity(rows.len());
        let mut next = Some(key.to_string());
        while let Some(key) = next {
            match rows.remove(&key) {
                Some(row) => {
                    next = row.parent.clone();
                    chain.push(row);
                }
                None if chain.iter().any(|row| row.key == key) => {
                    return Err(corrupt(format!("snapshot {key} is its own parent")));
                }
                None => return Err(missing(&key)),
            }
        }
        Ok(chain)
    }

    /// Turns the active snapshot `key` into the committed one `name`; its labels are replaced.
    ///
    /// `parent` rebases: `None` leaves the parent as it is, `Some` gives one to a snapshot that has none, and is
    /// [`ErrorKind::InvalidArgument`] where it has another one. A taken name is [`ErrorKind::AlreadyExists`], and the
    /// active one stays.
    pub fn snapshot_commit(
        &self,
        key: &str,
        name: &str,
        usage: Usage,
        labels: &Labels,
        parent: Option<Option<&str>>,
    ) -> Result<SnapshotRow> {
        let (changed, labels) = (labels, to_json(labels)?);
        self.write(Sync::Full, |transaction| {
            super::labels::told(transaction, changed)?;
            let boot = self.boot();
            let active = must_get(transaction, key, boot)?;
            must_be_active(&active)?;
            if name != key && get(transaction, name, boot)?.is_some() {
                return Err(exists(name));
            }
            let parent = rebased(&active, parent)?;
            let parent_id = parent_id(transaction, parent, boot)?;
            let untrusted = if name == key { None } else { set_aside(transaction, name)? };
            transaction
                .prepare_cached(
                    "UPDATE snapshot SET key = ?1, kind = 2, parent_id = ?2, bytes = ?3, inodes = ?4,
                     labels = ?5, updated_ms = ?6, boot = ?7, durable = 0 WHERE id = ?8",
                )?
                .execute(params![
                    name,
                    parent_id,
                    int(usage.bytes),
                    int(usage.inodes),
                    labels,
                    int(now_ms()),
                    boot,
                    int(active.id)
                ])?;
            if let Some(old) = untrusted {
                replace(transaction, old, int(active.id))?;
            }
            must_get(transaction, name, boot)
        })
    }

    /// Forgets a snapshot and tells what it was; its directory is the caller's to remove afterwards.
    /// [`ErrorKind::FailedPrecondition`] while others stand on it.
    pub fn snapshot_remove(&self, key: &str) -> Result<SnapshotRow> {
        self.write(Sync::Lazy, |transaction| remove(transaction, key))
    }

    /// Marks a snapshot that is busy: it is to be removed once it no longer is. Marking twice keeps the first time.
    /// [`ErrorKind::NotFound`] without it.
    pub fn snapshot_defer_removal(&self, key: &str) -> Result<SnapshotRow> {
        self.write(Sync::Lazy, |transaction| {
            transaction
                .prepare_cached("UPDATE snapshot SET remove_ms = coalesce(remove_ms, ?) WHERE key = ?")?
                .execute(params![int(now_ms()), key])?;
            find(transaction, key)?.ok_or_else(|| missing(key))
        })
    }

    /// The snapshots that wait to be removed, longest first.
    pub fn snapshots_deferred(&self) -> Result<Vec<SnapshotRow>> {
        let sql = format!("{SNAPSHOT} WHERE s.remove_ms IS NOT NULL ORDER BY s.remove_ms, s.id");
        self.read(|transaction| several(transaction, &sql, &[]))
    }

    /// Replaces a snapshot's labels.
    pub fn snapshot_update_labels(&self, key: &str, labels: &Labels) -> Result<SnapshotRow> {
        let (changed, labels) = (labels, to_json(labels)?);
        self.write(Sync::Lazy, |transaction| {
            must_get(transaction, key, self.boot())?;
            super::labels::told(transaction, changed)?;
            transaction
                .prepare_cached("UPDATE snapshot SET labels = ?, updated_ms = ? WHERE key = ?")?
                .execute(params![labels, int(now_ms()), key])?;
            must_get(transaction, key, self.boot())
        })
    }

    /// Records what a snapshot occupies by now.
    pub fn snapshot_update_usage(&self, key: &str, usage: Usage) -> Result<()> {
        self.write(Sync::Lazy, |transaction| {
            let changed = transaction
                .prepare_cached("UPDATE snapshot SET bytes = ?, inodes = ? WHERE key = ?")?
                .execute(params![int(usage.bytes), int(usage.inodes), key])?;
            if changed == 0 { Err(missing(key)) } else { Ok(()) }
        })
    }

    /// Shows every trusted snapshot to `f`, parents before children, until it fails. `f` may call back into the
    /// database: the rows were read before the first call.
    pub fn snapshot_walk(&self, f: &mut dyn FnMut(&SnapshotRow) -> Result<()>) -> Result<()> {
        self.snapshots()?.iter().try_for_each(f)
    }

    /// Every trusted snapshot, parents before children.
    pub fn snapshots(&self) -> Result<Vec<SnapshotRow>> {
        self.read(|transaction| all(transaction, self.boot()))
    }

    /// Runs `work` while no snapshot has this number and none can get it; `None` if one has it.
    pub(crate) fn without_snapshot<T>(&self, id: u64, work: impl FnOnce() -> T) -> Result<Option<T>> {
        self.write(Sync::Lazy, |transaction| {
            let mut statement = transaction.prepare_cached("SELECT 1 FROM snapshot WHERE id = ?")?;
            Ok(if statement.exists([int(id)])? { None } else { Some(work()) })
        })
    }

    /// Every id that a row has, trusted or not: a directory of another number is nobody's.
    pub fn snapshot_ids(&self) -> Result<Vec<u64>> {
        self.read(|transaction| {
            let mut statement = transaction.prepare_cached("SELECT id FROM snapshot ORDER BY id")?;
            let mut rows = statement.query([])?;
            let mut ids = Vec::new();
            while let Some(row) = rows.next()? {
                ids.push(unsigned(row, 0)?);
            }
            Ok(ids)
        })
    }
}

fn all(connection: &Connection, boot: &str) -> Result<Vec<SnapshotRow>> {
    let sql = format!("{SNAPSHOT} WHERE ?1 IS NULL AND {TRUSTED} ORDER BY s.id");
    Ok(parents_first(several(connection, &sql, &[&None::<String>, &boot])?))
}

/// Every row, trusted or not, parents before children.
pub(super) fn all_rows(connection: &Connection) -> Result<Vec<SnapshotRow>> {
    Ok(parents_first(several(connection, &format!("{SNAPSHOT} ORDER BY s.id"), &[])?))
}

fn several(connection: &Connection, sql: &str, values: &[&dyn ToSql]) -> Result<Vec<SnapshotRow>> {
    let mut statement = connection.prepare_cached(sql)?;
    let mut rows = statement.query(values)?;
    let mut snapshots = Vec::new();
    while let Some(row) = rows.next()? {
        snapshots.push(snapshot(row)?);
    }
    Ok(snapshots)
}

/// The keys of those that have this row as their parent.
pub(super) fn children(connection: &Connection, id: u64) -> Result<Vec<String>> {
    let mut statement = connection.prepare_cached("SELECT key FROM snapshot WHERE parent_id = ?")?;
    let keys = statement.query_map([int(id)], |row| row.get(0))?;
    Ok(keys.collect::<rusqlite::Result<_>>()?)
}

/// Ids mostly say it already; a rebase or a replacement can put a parent behind its child.
fn parents_first(rows: Vec<SnapshotRow>) -> Vec<SnapshotRow> {
    let mut waiting: std::collections::VecDeque<SnapshotRow> = rows.into();
    let known: std::collections::HashSet<String> = waiting.iter().map(|row| row.key.clone()).collect();
    let mut shown = std::collections::HashSet::new();
    let mut ordered = Vec::with_capacity(waiting.len());
    let mut put_back = 0;
    while let Some(row) = waiting.pop_front() {
        let ready =
            row.parent.as_ref().is_none_or(|parent| shown.contains(parent) || !known.contains(parent));
        // A circle can not be made through this interface; should one be found, it is shown as it lies.
        if ready || put_back > waiting.len() {
            put_back = 0;
            shown.insert(row.key.clone());
            ordered.push(row);
        } else {
            put_back += 1;
            waiting.push_back(row);
        }
    }
    ordered
}

/// Whether a snapshot that is trusted is made of this tree.
pub(super) fn any_of_tree(connection: &Connection, tree: &str, boot: &str) -> Result<bool> {
    let sql = format!("SELECT 1 FROM snapshot s WHERE s.tree = ?1 AND {TRUSTED} LIMIT 1");
    Ok(connection.prepare_cached(&sql)?.exists([tree, boot])?)
}

/// The row that has this key, trusted or not.
pub(super) fn id_of(connection: &Connection, key: &str) -> Result<Option<u64>> {
    let mut statement = connection.prepare_cached("SELECT id FROM snapshot WHERE key = ?")?;
    let id: Option<i64> = statement.query_row([key], |row| row.get(0)).optional()?;
    Ok(id.and_then(|id| u64::try_from(id).ok()))
}

/// Also what is not trusted any more can be removed.
pub(super) fn remove(connection: &Connection, key: &str) -> Result<SnapshotRow> {
    let snapshot = find(connection, key)?.ok_or_else(|| missing(key))?;
    let child: Option<String> = connection
        .prepare_cached("SELECT key FROM snapshot WHERE parent_id = ? LIMIT 1")?
        .query_row([int(snapshot.id)], |row| row.get(0))
        .optional()?;
    if let Some(child) = child {
        let message = format!("snapshot {key} is the parent of {child}");
        return Err(Error::new(ErrorKind::FailedPrecondition, message));
    }
    connection.prepare_cached("DELETE FROM snapshot WHERE id = ?")?.execute([int(snapshot.id)])?;
    Ok(snapshot)
}

fn exists(key: &str) -> Error {
    Error::new(ErrorKind::AlreadyExists, format!("snapshot {key} exists already"))
}

fn missing(key: &str) -> Error {
    Error::new(ErrorKind::NotFound, format!("there is no snapshot {key}"))
}

fn must_be_active(snapshot: &SnapshotRow) -> Result<()> {
    match snapshot.kind {
        SnapshotKind::Active => Ok(()),
        _ => {
            let message = format!("snapshot {} is not active", snapshot.key);
            Err(Error::new(ErrorKind::FailedPrecondition, message))
        }
    }
}

fn rebased<'a>(active: &'a SnapshotRow, wanted: Option<Option<&'a str>>) -> Result<Option<&'a str>> {
    let has = active.parent.as_deref();
    match wanted {
        None => Ok(has),
        Some(wanted) if has.is_none() || has == wanted => Ok(wanted),
        Some(_) => {
            let message = format!("snapshot {} already has another parent", active.key);
            Err(Error::new(ErrorKind::InvalidArgument, message))
        }
    }
}

fn parent_id(connection: &Connection, parent: Option<&str>, boot: &str) -> Result<Option<i64>> {
    let Some(key) = parent else { return Ok(None) };
    let parent = get(connection, key, boot)?
        .ok_or_else(|| Error::new(ErrorKind::NotFound, format!("there is no parent snapshot {key}")))?;
    match parent.kind {
        SnapshotKind::Committed => Ok(Some(int(parent.id))),
        _ => {
            let message = format!("the parent snapshot {key} is not committed");
            Err(Error::new(ErrorKind::FailedPrecondition, message))
        }
    }
}

fn insert(connection: &Connection, new: &NewSnapshot<'_>, parent_id: Option<i64>, boot: &str) -> Result<()> {
    connection
        .prepare_cached(
            "INSERT INTO snapshot (key, kind, parent_id, tree, heal, bytes, inodes, labels, durable, boot,
             created_ms, updated_ms) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, 0, ?9, ?10, ?10)",
        )?
        .execute(params![
            new.key,
            kind_number(new.kind),
            parent_id,
            new.tree.map(|tree| tree.to_string()),
            new.heal,
            int(new.usage.bytes),
            int(new.usage.inodes),
            to_json(new.labels)?,
            boot,
            int(now_ms())
        ])?;
    Ok(())
}

/// Frees the key of a row that is not trusted. Callers have seen that no trusted one has it.
fn set_aside(connection: &Connection, key: &str) -> Result<Option<i64>> {
    let old: Option<i64> = connection
        .prepare_cached("SELECT id FROM snapshot WHERE key = ?")?
        .query_row([key], |row| row.get(0))
        .optional()?;
    if let Some(id) = old {
        connection
            .prepare_cached("UPDATE snapshot SET key = '\u{7f}untrusted ' || id WHERE id = ?")?
            .execute([id])?;
    }
    Ok(old)
}

fn replace(connection: &Connection, old: i64, new: i64) -> Result<()> {
    connection
        .prepare_cached("UPDATE snapshot SET parent_id = ?1 WHERE parent_id = ?2 AND id != ?1")?
        .execute([new, old])?;
    connection.prepare_cached("DELETE FROM snapshot WHERE id = ?")?.execute([old])?;
    Ok(())
}

fn get(connection: &Connection, key: &str, boot: &str) -> Result<Option<SnapshotRow>> {
    let mut statement = connection.prepare_cached(&format!("{SNAPSHOT} WHERE s.key = ?1 AND {TRUSTED}"))?;
    let mut rows = statement.query([key, boot])?;
    rows.next()?.map(snapshot).transpose()
}

/// The row of this key, trusted or not.
pub(super) fn find(connection: &Connection, key: &str) -> Result<Option<SnapshotRow>> {
    let mut statement = connection.prepare_cached(&format!("{SNAPSHOT} WHERE s.key = ?1"))?;
    let mut rows = statement.query([key])?;
    rows.next()?.map(snapshot).transpose()
}

fn must_get(connection: &Connection, key: &str, boot: &str) -> Result<SnapshotRow> {
    get(connection, key, boot)?.ok_or_else(|| missing(key))
}

/// The numbers are part of the format.
pub(super) fn kind_number(kind: SnapshotKind) -> i64 {
    match kind {
        SnapshotKind::View => 0,
        SnapshotKind::Active => 1,
        SnapshotKind::Committed => 2,
    }
}

fn snapshot(row: &Row<'_>) -> Result<SnapshotRow> {
    let kind = match row.get(2)? {
        0i64 => SnapshotKind::View,
        1 => SnapshotKind::Active,
        2 => SnapshotKind::Committed,
        other => return Err(corrupt(format!("a snapshot has kind {other}"))),
    };
    Ok(SnapshotRow {
        id: unsigned(row, 0)?,
        key: row.get(1)?,
        kind,
        parent: row.get(3)?,
        tree: parsed_opt(row, 4)?,
        heal: row.get(5)?,
        usage: Usage { bytes: unsigned(row, 6)?, inodes: unsigned(row, 7)? },
        labels: labels(row, 8)?,
        created_ms: unsigned(row, 9)?,
        updated_ms: unsigned(row, 10)?,
        remove_ms: row.get::<_, Option<i64>>(11)?.map(|value| u64::try_from(value).unwrap_or(0)),
    })
}

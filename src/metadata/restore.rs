//! Putting back what was read off the disk, where the database was lost, and asking SQLite whether it is sound.

use super::columns::{int, now_ms, to_json};
use super::connection::Sync;
use super::snapshots::kind_number;
use super::{Metadata, SnapshotRow};
use crate::error::Result;
use rusqlite::{Connection, OptionalExtension, params};

/// After so many the picture is clear.
const SHOWN: u32 = 20;

impl Metadata {
    /// What SQLite finds wrong with the database; empty if it is sound. Reads all of it.
    pub fn faults(&self) -> Result<Vec<String>> {
        self.read(|transaction| {
            let mut statement = transaction.prepare(&format!("PRAGMA integrity_check({SHOWN})"))?;
            let lines = statement.query_map([], |row| row.get::<_, String>(0))?;
            let mut faults = lines.collect::<rusqlite::Result<Vec<_>>>()?;
            faults.retain(|line| line != "ok");
            Ok(faults)
        })
    }

    /// Puts snapshots back under the numbers that their directories have; parents come before their children. One whose
    /// key or number is taken, or whose parent is not there, is left out. Gives the keys of those that were put back.
    ///
    /// They count as durable: sync the filesystem first.
    pub fn snapshots_restore(&self, rows: &[SnapshotRow]) -> Result<Vec<String>> {
        self.write(Sync::Full, |transaction| {
            let mut restored = Vec::new();
            for row in rows {
                if restore(transaction, row, self.boot())? {
                    restored.push(row.key.clone());
                }
            }
            Ok(restored)
        })
    }

    /// Sees to it that the generation of the image list is higher than `earlier`.
    pub fn generation_after(&self, earlier: u64) -> Result<()> {
        self.write(Sync::Full, |transaction| {
            transaction
                .prepare_cached("UPDATE fact SET value = max(value, ?1) + 1 WHERE key = 'generation'")?
                .execute([int(earlier)])?;
            super::index_view::rewritten(transaction)
        })
    }
}

fn restore(connection: &Connection, row: &SnapshotRow, boot: &str) -> Result<bool> {
    let parent_id: Option<i64> = match &row.parent {
        None => None,
        Some(parent) => {
            let found = connection
                .prepare_cached("SELECT id FROM snapshot WHERE key = ?")?
                .query_row([parent], |row| row.get(0))
                .optional()?;
            let Some(id) = found else { return Ok(false) };
            Some(id)
        }
    };
    let made = connection
        .prepare_cached(
            "INSERT OR IGNORE INTO snapshot (id, key, kind, parent_id, tree, heal, bytes, inodes, labels, durable,
             boot, created_ms, updated_ms) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, 1, ?10, ?11, ?11)",
        )?
        .execute(params![
            int(row.id),
            row.key,
            kind_number(row.kind),
            parent_id,
            row.tree.map(|tree| tree.to_string()),
            row.heal,
            int(row.usage.bytes),
            int(row.usage.inodes),
            to_json(&row.labels)?,
            boot,
            int(now_ms())
        ])?;
    Ok(made == 1)
}

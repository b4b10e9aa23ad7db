//! The imports that there were, with their reports, for `stats`.
//!
//! What became of an import is told to whoever started it; this is the memory of it. Old entries are forgotten when new
//! ones come, so that the table stays small.

use super::Metadata;
use super::columns::{int, unsigned};
use super::connection::Sync;
use crate::error::Result;
use rusqlite::{Connection, params};

/// How many imports are remembered. A report of an image with fifty layers has some 20 kB.
const KEPT: u64 = 1000;

/// One import that has ended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ImportRecord {
    /// The row; given by [`Metadata::import_history_add`].
    pub id: u64,
    /// When it ended, in milliseconds since 1970.
    pub finished_ms: u64,
    /// How long it took.
    pub elapsed_ms: u64,
    /// How it ended, in one word.
    pub outcome: String,
    /// Its report, as JSON.
    pub report: String,
}

impl Metadata {
    /// Remembers an import and gives its row; the oldest are forgotten.
    pub fn import_history_add(&self, record: &ImportRecord) -> Result<u64> {
        self.import_history_append(|_| Ok(record.clone()))
    }

    /// The same for a record that is made of the one before, so that sums can go on. Nobody adds one in between.
    pub fn import_history_append(
        &self,
        make: impl FnOnce(Option<ImportRecord>) -> Result<ImportRecord>,
    ) -> Result<u64> {
        self.write(Sync::Lazy, |transaction| {
            let record = make(last(transaction, 1)?.pop())?;
            transaction
                .prepare_cached(
                    "INSERT INTO import_history (finished_ms, elapsed_ms, outcome, report) VALUES (?, ?, ?, ?)",
                )?
                .execute(params![
                    int(record.finished_ms),
                    int(record.elapsed_ms),
                    record.outcome,
                    record.report
                ])?;
            let id = transaction.last_insert_rowid();
            transaction
                .prepare_cached("DELETE FROM import_history WHERE id <= ?")?
                .execute([id.saturating_sub(int(KEPT))])?;
            Ok(u64::try_from(id).unwrap_or(0))
        })
    }

    /// The last imports, the newest first.
    pub fn import_history(&self, limit: u64) -> Result<Vec<ImportRecord>> {
        self.read(|transaction| last(transaction, limit))
    }
}

fn last(connection: &Connection, limit: u64) -> Result<Vec<ImportRecord>> {
    let mut statement = connection.prepare_cached(
        "SELECT id, finished_ms, elapsed_ms, outcome, report FROM import_history ORDER BY id DESC LIMIT ?",
    )?;
    let mut rows = statement.query([int(limit)])?;
    let mut records = Vec::new();
    while let Some(row) = rows.next()? {
        records.push(ImportRecord {
            id: unsigned(row, 0)?,
            finished_ms: unsigned(row, 1)?,
            elapsed_ms: unsigned(row, 2)?,
            outcome: row.get(3)?,
            report: row.get(4)?,
        });
    }
    Ok(records)
}

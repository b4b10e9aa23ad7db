//! The ways back: which images need a digest, which snapshots stand on another or are made of a tree.

use super::Metadata;
use crate::error::Result;
use crate::oci::DiffId;
use rusqlite::ToSql;

impl Metadata {
    /// The images, by name or by target where they have none, whose target, manifest or topmost snapshot this is.
    pub fn images_needing(&self, digest: &str) -> Result<Vec<String>> {
        self.strings(
            "SELECT coalesce(name, target) FROM image WHERE target = ?1
             UNION SELECT coalesce(i.name, i.target) FROM manifest m
             JOIN image_manifest a ON a.manifest_id = m.id JOIN image i ON i.id = a.image_id
             WHERE m.digest = ?1 OR m.chain_id = ?1 ORDER BY 1",
            digest,
        )
    }

    /// The snapshots that have this one as their parent.
    pub fn snapshots_on(&self, key: &str) -> Result<Vec<String>> {
        self.strings(
            "SELECT c.key FROM snapshot p JOIN snapshot c ON c.parent_id = p.id WHERE p.key = ? ORDER BY c.key",
            key,
        )
    }

    /// The snapshots that are made of a tree.
    pub fn snapshots_of_tree(&self, diff_id: &DiffId) -> Result<Vec<String>> {
        self.strings("SELECT key FROM snapshot WHERE tree = ? ORDER BY key", diff_id.to_string())
    }

    fn strings(&self, sql: &str, value: impl ToSql) -> Result<Vec<String>> {
        self.read(|transaction| {
            let mut statement = transaction.prepare_cached(sql)?;
            let found = statement.query_map([value], |row| row.get(0))?;
            Ok(found.collect::<rusqlite::Result<_>>()?)
        })
    }
}

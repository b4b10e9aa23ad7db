//! The tables, and the version that they carry.
//!
//! `PRAGMA user_version` is the format. A newer one is refused; an older one will be migrated here, step by step.
//! Format 1 is the first.

use crate::error::{Error, ErrorKind, Result};
use rusqlite::Connection;

/// The format that this release writes.
pub const FORMAT_VERSION: u32 = 1;

/// Ids that name directories come from AUTOINCREMENT, so that a removed one is never handed out again. `boot` is the
/// kernel's boot id at the time of writing: a row that is not durable counts only within that boot.
const FORMAT_1: &str = "
CREATE TABLE fact (key TEXT PRIMARY KEY, value) WITHOUT ROWID;
INSERT INTO fact VALUES ('generation', 0);

CREATE TABLE image (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    name TEXT UNIQUE,
    target TEXT NOT NULL,
    descriptor TEXT NOT NULL,
    created_ms INTEGER NOT NULL,
    updated_ms INTEGER NOT NULL
);
CREATE UNIQUE INDEX image_unnamed ON image (target) WHERE name IS NULL;
CREATE INDEX image_target ON image (target);

CREATE TABLE manifest (
    id INTEGER PRIMARY KEY,
    digest TEXT NOT NULL UNIQUE,
    config TEXT NOT NULL,
    platform TEXT NOT NULL,
    chain_id TEXT,
    size_bytes INTEGER NOT NULL,
    layers TEXT NOT NULL
);
CREATE TABLE image_manifest (
    image_id INTEGER NOT NULL REFERENCES image (id) ON DELETE CASCADE,
    position INTEGER NOT NULL,
    manifest_id INTEGER NOT NULL REFERENCES manifest (id),
    PRIMARY KEY (image_id, position)
) WITHOUT ROWID;
CREATE INDEX image_manifest_manifest ON image_manifest (manifest_id);

CREATE TABLE blob (
    digest TEXT PRIMARY KEY,
    size_bytes INTEGER NOT NULL,
    head TEXT,
    durable INTEGER NOT NULL,
    boot TEXT NOT NULL,
    created_ms INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX blob_head ON blob (size_bytes, head);

CREATE TABLE layer (
    digest TEXT PRIMARY KEY,
    diff_id TEXT NOT NULL,
    codec TEXT NOT NULL,
    uncompressed_bytes INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX layer_diff_id ON layer (diff_id);

CREATE TABLE tree (
    diff_id TEXT PRIMARY KEY,
    bytes INTEGER NOT NULL,
    inodes INTEGER NOT NULL,
    durable INTEGER NOT NULL,
    boot TEXT NOT NULL,
    created_ms INTEGER NOT NULL
) WITHOUT ROWID;

CREATE TABLE snapshot (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    key TEXT NOT NULL UNIQUE,
    kind INTEGER NOT NULL,
    parent_id INTEGER REFERENCES snapshot (id) ON DELETE RESTRICT,
    tree TEXT,
    heal INTEGER NOT NULL,
    bytes INTEGER NOT NULL,
    inodes INTEGER NOT NULL,
    labels TEXT NOT NULL,
    durable INTEGER NOT NULL,
    boot TEXT NOT NULL,
    created_ms INTEGER NOT NULL,
    updated_ms INTEGER NOT NULL
);
CREATE INDEX snapshot_parent ON snapshot (parent_id);

CREATE TABLE lease (
    id TEXT PRIMARY KEY,
    expires_ms INTEGER,
    labels TEXT NOT NULL,
    created_ms INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE lease_resource (
    lease_id TEXT NOT NULL REFERENCES lease (id) ON DELETE CASCADE,
    kind TEXT NOT NULL,
    key TEXT NOT NULL,
    PRIMARY KEY (lease_id, kind, key)
) WITHOUT ROWID;

CREATE TABLE label (
    kind TEXT NOT NULL,
    key TEXT NOT NULL,
    labels TEXT NOT NULL,
    PRIMARY KEY (kind, key)
) WITHOUT ROWID;

PRAGMA user_version = 1;
";

/// The format of an open database; 0 is an empty one.
pub(super) fn version(connection: &Connection) -> Result<u32> {
    Ok(connection.query_row("PRAGMA user_version", [], |row| row.get(0))?)
}

/// Refuses what a newer release wrote.
pub(super) fn check(version: u32) -> Result<()> {
    if version <= FORMAT_VERSION {
        return Ok(());
    }
    let message =
        format!("the store's metadata has format {version}, and this release reads up to {FORMAT_VERSION}");
    Err(Error::new(ErrorKind::NewerFormat, message).with_hint("upgrade transload"))
}

/// Makes the tables inside the caller's transaction, unless another process has just done it.
pub(super) fn create(connection: &Connection) -> Result<()> {
    match version(connection)? {
        0 => Ok(connection.execute_batch(FORMAT_1)?),
        found => check(found),
    }
}

//! The tables, and the version that they carry.
//!
//! `PRAGMA user_version` is the format. A newer one is refused. An older one is brought up to date when it is opened for
//! writing, step by step inside one transaction, and a new one is made by the same steps, so that both end alike. What a
//! format was is never changed here; `testdata/stores` has a sample of each.

use crate::error::{Error, ErrorKind, Result};
use rusqlite::Connection;

/// The format that this release writes.
pub const FORMAT_VERSION: u32 = 2;

/// Format 1, the first. Ids that name directories come from AUTOINCREMENT, so that a removed one is never handed out again. `boot` is the
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

/// Format 2: what refers to what, both ways; removed images that can be restored; removals that wait.
///
/// `node` are digests that take part in a reference; `read` says that the document was looked into, so that everything it
/// names has a row in `reference`. `follow` is set where the named blob may name others in turn: of an index its entries,
/// of a manifest nothing. `changed` orders changes of images, `labels` counts changes of labels: a collection that has
/// looked tells by them what it has not seen.
const FORMAT_2: &str = "
INSERT INTO fact VALUES ('changed', 0), ('labels', 0);

ALTER TABLE image ADD COLUMN changed INTEGER NOT NULL DEFAULT 0;
CREATE INDEX image_changed ON image (changed);
CREATE INDEX manifest_chain ON manifest (chain_id);

CREATE TABLE node (
    id INTEGER PRIMARY KEY,
    digest TEXT NOT NULL UNIQUE,
    read INTEGER NOT NULL
);
CREATE TABLE reference (
    from_id INTEGER NOT NULL REFERENCES node (id),
    to_id INTEGER NOT NULL REFERENCES node (id),
    follow INTEGER NOT NULL,
    PRIMARY KEY (from_id, to_id)
) WITHOUT ROWID;
CREATE INDEX reference_to ON reference (to_id);

CREATE TABLE tombstone (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    name TEXT,
    target TEXT NOT NULL,
    descriptor TEXT NOT NULL,
    manifests TEXT NOT NULL,
    labels TEXT NOT NULL,
    created_ms INTEGER NOT NULL,
    removed_ms INTEGER NOT NULL,
    expires_ms INTEGER NOT NULL
);
CREATE INDEX tombstone_expires ON tombstone (expires_ms);

ALTER TABLE snapshot ADD COLUMN remove_ms INTEGER;
CREATE INDEX snapshot_remove ON snapshot (remove_ms) WHERE remove_ms IS NOT NULL;
CREATE INDEX snapshot_tree ON snapshot (tree);
CREATE INDEX lease_resource_key ON lease_resource (kind, key);

CREATE TABLE import_history (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    finished_ms INTEGER NOT NULL,
    elapsed_ms INTEGER NOT NULL,
    outcome TEXT NOT NULL,
    report TEXT NOT NULL
);

PRAGMA user_version = 2;
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

/// Refuses, for a reader, what would have to be brought up to date first.
pub(super) fn check_current(version: u32) -> Result<()> {
    check(version)?;
    if version == FORMAT_VERSION || version == 0 {
        return Ok(());
    }
    let message =
        format!("the store's metadata has format {version}, and this release reads {FORMAT_VERSION}");
    Err(Error::new(ErrorKind::FailedPrecondition, message)
        .with_hint("open the store once where it can be written, which brings it up to date"))
}

/// Makes the tables, or brings them up to date, inside the caller's transaction, unless another process has just done it.
pub(super) fn migrate(connection: &Connection) -> Result<()> {
    loop {
        match version(connection)? {
            0 => connection.execute_batch(FORMAT_1)?,
            1 => to_format_2(connection)?,
            found => return check(found),
        }
    }
}

/// What manifests name is known from their rows; indexes are looked into by the first collection.
fn to_format_2(connection: &Connection) -> Result<()> {
    connection.execute_batch(FORMAT_2)?;
    super::images::record_references(connection)
}

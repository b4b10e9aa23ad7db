//! The image list as an OCI index, for those who read the store as an OCI image layout.

use super::Metadata;
use super::columns::{int, json, unsigned};
use crate::error::Result;
use crate::oci::Descriptor;
use rusqlite::Connection;

/// The annotation that an OCI layout names its entries with (image-spec `annotations.md`); skopeo looks for it.
pub const REF_NAME: &str = "org.opencontainers.image.ref.name";

/// The annotation that containerd names images with.
pub const CONTAINERD_NAME: &str = "io.containerd.image.name";

/// Whether an annotation of an index entry is one of the names that the view gives.
pub fn is_name_annotation(key: &str) -> bool {
    key == REF_NAME || key == CONTAINERD_NAME
}

/// Which state of the database an `index.json` shows.
pub const GENERATION: &str = "io.transload.generation";

/// The image list, or what was added to it, in the order in which the images came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IndexView {
    /// The state of the list that this shows.
    pub generation: u64,
    /// The last row that is shown.
    pub last_id: u64,
    /// An entry for each image.
    pub manifests: Vec<Descriptor>,
}

/// What a change does to the list as it was shown before.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Listed {
    /// There is more at its end.
    More,
    /// Something in it went, or is another by now.
    Otherwise,
}

impl Metadata {
    /// How often the image list has changed.
    pub fn generation(&self) -> Result<u64> {
        self.look(|transaction| generation(transaction))
    }

    /// The image list as the entries of an index.
    pub fn index_view(&self) -> Result<IndexView> {
        self.read(|transaction| view(transaction, 0))
    }

    /// What came after `last_id` to the list as it was at `generation`; `None` where it is not only longer now.
    pub fn index_added(&self, generation: u64, last_id: u64) -> Result<Option<IndexView>> {
        self.look(|transaction| {
            let only_longer =
                fact(transaction, "rewritten")? <= generation && generation <= self::generation(transaction)?;
            only_longer.then(|| view(transaction, last_id)).transpose()
        })
    }
}

fn view(connection: &Connection, after: u64) -> Result<IndexView> {
    let mut view = IndexView { generation: generation(connection)?, last_id: after, manifests: Vec::new() };
    let mut statement =
        connection.prepare_cached("SELECT id, name, descriptor FROM image WHERE id > ? ORDER BY id")?;
    let mut rows = statement.query([int(after)])?;
    while let Some(row) = rows.next()? {
        view.last_id = unsigned(row, 0)?;
        view.manifests.push(entry(row.get(1)?, json(row, 2)?));
    }
    Ok(view)
}

/// The archive's own annotations stay, except those that would name the entry otherwise than we do.
fn entry(name: Option<String>, mut target: Descriptor) -> Descriptor {
    target.annotations.remove(REF_NAME);
    target.annotations.remove(CONTAINERD_NAME);
    if let Some(name) = name {
        target.annotations.insert(REF_NAME.to_string(), name.clone());
        target.annotations.insert(CONTAINERD_NAME.to_string(), name);
    }
    target
}

pub(super) fn generation(connection: &Connection) -> Result<u64> {
    fact(connection, "generation")
}

fn fact(connection: &Connection, key: &str) -> Result<u64> {
    let mut statement = connection.prepare_cached("SELECT value FROM fact WHERE key = ?")?;
    let mut rows = statement.query([key])?;
    rows.next()?.map_or(Ok(0), |row| unsigned(row, 0))
}

pub(super) fn next_generation(connection: &Connection, listed: Listed) -> Result<()> {
    connection.prepare_cached("UPDATE fact SET value = value + 1 WHERE key = 'generation'")?.execute([])?;
    if listed == Listed::Otherwise { rewritten(connection) } else { Ok(()) }
}

/// No list that was shown before now is the beginning of today's.
pub(super) fn rewritten(connection: &Connection) -> Result<()> {
    let sql = "INSERT INTO fact SELECT 'rewritten', value FROM fact WHERE key = 'generation'
         ON CONFLICT (key) DO UPDATE SET value = excluded.value";
    connection.prepare_cached(sql)?.execute([])?;
    Ok(())
}

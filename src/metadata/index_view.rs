//! The image list as an OCI index, for those who read the store as an OCI image layout.

use super::Metadata;
use super::columns::{json, unsigned};
use crate::error::Result;
use crate::oci::{Descriptor, Index, media_type};
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

impl Metadata {
    /// How often the image list has changed.
    pub fn generation(&self) -> Result<u64> {
        self.read(|transaction| generation(transaction))
    }

    /// The image list as an index, and the generation that it shows.
    pub fn index_view(&self) -> Result<(u64, Index)> {
        self.read(|transaction| {
            let generation = generation(transaction)?;
            let mut manifests = Vec::new();
            let mut statement =
                transaction.prepare_cached("SELECT name, descriptor FROM image ORDER BY name, target")?;
            let mut rows = statement.query([])?;
            while let Some(row) = rows.next()? {
                manifests.push(entry(row.get(0)?, json(row, 1)?));
            }
            let annotations = [(GENERATION.to_string(), generation.to_string())].into();
            let index = Index {
                schema_version: 2,
                media_type: media_type::INDEX.to_string(),
                manifests,
                annotations,
            };
            Ok((generation, index))
        })
    }
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
    let mut statement = connection.prepare_cached("SELECT value FROM fact WHERE key = 'generation'")?;
    let mut rows = statement.query([])?;
    rows.next()?.map_or(Ok(0), |row| unsigned(row, 0))
}

pub(super) fn next_generation(connection: &Connection) -> Result<()> {
    connection.prepare_cached("UPDATE fact SET value = value + 1 WHERE key = 'generation'")?.execute([])?;
    Ok(())
}

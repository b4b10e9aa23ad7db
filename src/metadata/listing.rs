//! The image list as it is shown: tens of thousands of lines of text, not one of which is looked into.

use super::Metadata;
use super::columns::{corrupt, json, unsigned};
use crate::error::Result;
use crate::oci::{Descriptor, Platform};
use rusqlite::Row;

/// One line: an image and a manifest behind it that is here. Digests are text here, as the database has them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageLine {
    /// The name in Docker's normal form; an archive may hold images without one.
    pub name: Option<String>,
    /// The digest of what the archive named: a manifest or an index.
    pub target: String,
    /// When it was first imported, in milliseconds since 1970.
    pub created_ms: u64,
    /// What is here of the image in bytes, as stored; without a manifest the size of the target.
    pub size_bytes: u64,
    /// `None` where nothing behind the target is here.
    pub manifest: Option<ManifestLine>,
}

/// The manifest of an [`ImageLine`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ManifestLine {
    /// The manifest's digest.
    pub digest: String,
    /// The configuration's digest.
    pub config: String,
    /// The platform that it is for, as people write it.
    pub platform: String,
    /// The topmost snapshot; `None` where it was not unpacked.
    pub chain_id: Option<String>,
    /// How many layers it has.
    pub layers: u64,
}

/// In the order of the rows: along the index of names the table would be read in no order at all.
const LINES: &str = "SELECT i.name, i.target, i.created_ms, i.descriptor,
    m.digest, m.config, m.platform, m.chain_id, m.size_bytes, m.layers
    FROM image i LEFT JOIN image_manifest p ON p.image_id = i.id LEFT JOIN manifest m ON m.id = p.manifest_id
    ORDER BY i.id, p.position";

impl Metadata {
    /// One line for each platform of each image that is here, by name; those without one first.
    pub fn image_lines(&self) -> Result<Vec<ImageLine>> {
        let mut lines = self.read(|transaction| {
            let mut statement = transaction.prepare_cached(LINES)?;
            let mut rows = statement.query([])?;
            let (mut lines, mut last) = (Vec::new(), (String::new(), String::new()));
            while let Some(row) = rows.next()? {
                lines.push(line(row, &mut last)?);
            }
            Ok(lines)
        })?;
        lines.sort_by(|a, b| (&a.name, &a.target).cmp(&(&b.name, &b.target)));
        Ok(lines)
    }
}

/// `last` is the platform before, as the database and as people write it; nearly all are the same.
fn line(row: &Row<'_>, last: &mut (String, String)) -> Result<ImageLine> {
    let text =
        |column: usize| row.get_ref(column)?.as_str_or_null().map_err(|error| corrupt(error.to_string()));
    let owned = |column: usize| -> Result<String> { Ok(text(column)?.unwrap_or_default().to_string()) };
    let manifest = match text(4)? {
        None => None,
        Some(digest) => {
            let platform = text(6)?.unwrap_or_default();
            if last.0 != platform {
                *last = (platform.to_string(), json::<Platform>(row, 6)?.to_string());
            }
            Some(ManifestLine {
                digest: digest.to_string(),
                config: owned(5)?,
                platform: last.1.clone(),
                chain_id: text(7)?.map(str::to_string),
                layers: text(9)?.unwrap_or_default().lines().count() as u64,
            })
        }
    };
    Ok(ImageLine {
        name: text(0)?.map(str::to_string),
        target: owned(1)?,
        created_ms: unsigned(row, 2)?,
        size_bytes: match manifest {
            Some(_) => unsigned(row, 8)?,
            None => json::<Descriptor>(row, 3)?.size,
        },
        manifest,
    })
}

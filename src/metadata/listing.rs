//! The image list as it is shown: tens of thousands of lines of text, not one of which is looked into or kept.

use super::Metadata;
use super::columns::{corrupt, json, unsigned};
use crate::error::{Error, Result};
use crate::oci::{Descriptor, Platform};
use rusqlite::Row;

/// One line: an image and a manifest behind it that is here. Digests are text here, as the database has them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ImageLine<'a> {
    /// The name in Docker's normal form; an archive may hold images without one.
    pub name: Option<&'a str>,
    /// The digest of what the archive named: a manifest or an index.
    pub target: &'a str,
    /// When it was first imported, in milliseconds since 1970.
    pub created_ms: u64,
    /// What is here of the image in bytes, as stored; without a manifest the size of the target.
    pub size_bytes: u64,
    /// `None` where nothing behind the target is here.
    pub manifest: Option<ManifestLine<'a>>,
}

/// The manifest of an [`ImageLine`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ManifestLine<'a> {
    /// The manifest's digest.
    pub digest: &'a str,
    /// The configuration's digest.
    pub config: &'a str,
    /// The platform that it is for, as people write it.
    pub platform: &'a str,
    /// The topmost snapshot; `None` where it was not unpacked.
    pub chain_id: Option<&'a str>,
    /// How many layers it has.
    pub layers: u64,
}

/// In the order of the rows: along the index of names the table would be read in no order at all.
const LINES: &str = "SELECT i.name, i.target, i.created_ms, i.descriptor,
    m.digest, m.config, m.platform, m.chain_id, m.size_bytes, m.layers
    FROM image i LEFT JOIN image_manifest p ON p.image_id = i.id LEFT JOIN manifest m ON m.id = p.manifest_id
    ORDER BY i.id, p.position";

impl Metadata {
    /// Shows `each` one line for each platform of each image that is here, in the order in which the images came.
    pub fn image_lines(&self, mut each: impl FnMut(ImageLine<'_>)) -> Result<()> {
        self.read(|transaction| {
            let mut statement = transaction.prepare_cached(LINES)?;
            let mut rows = statement.query([])?;
            // The platform before, as the database and as people write it; nearly all are the same.
            let mut last = (String::new(), String::new());
            while let Some(row) = rows.next()? {
                if let Some(platform) = text(row, 6)?.filter(|platform| last.0 != *platform) {
                    last = (platform.to_string(), json::<Platform>(row, 6)?.to_string());
                }
                each(line(row, &last.1)?);
            }
            Ok(())
        })
    }
}

fn line<'a>(row: &'a Row<'_>, platform: &'a str) -> Result<ImageLine<'a>> {
    let or_none = |column: usize| Ok::<_, Error>(text(row, column)?.unwrap_or_default());
    let manifest = match text(row, 4)? {
        None => None,
        Some(digest) => Some(ManifestLine {
            digest,
            config: or_none(5)?,
            platform,
            chain_id: text(row, 7)?,
            layers: or_none(9)?.lines().count() as u64, // one on a line
        }),
    };
    Ok(ImageLine {
        name: text(row, 0)?,
        target: or_none(1)?,
        created_ms: unsigned(row, 2)?,
        size_bytes: match manifest {
            Some(_) => unsigned(row, 8)?,
            None => json::<Descriptor>(row, 3)?.size,
        },
        manifest,
    })
}

fn text<'a>(row: &'a Row<'_>, column: usize) -> Result<Option<&'a str>> {
    row.get_ref(column)?.as_str_or_null().map_err(|error| corrupt(error.to_string()))
}

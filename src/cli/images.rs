//! `images`: what is here by name. A list may have tens of thousands of lines, so none is kept in more forms than the one
//! that is printed.

use super::args;
use super::commands::{Context, Done};
use super::output::human::{UNNAMED, short};
use super::output::table::{Align, Row, Table};
use super::output::{self, Style, json};
use super::size::{format_size, format_time, rfc3339};
use serde::Serialize;
use transload::Engine;
use transload::metadata::ImageLine;

#[derive(Serialize)]
struct Images {
    images: Vec<Line>,
}

#[derive(Serialize)]
struct Line {
    name: Option<String>,
    target: String,
    manifest: Option<String>,
    config: Option<String>,
    platform: Option<String>,
    chain_id: Option<String>,
    size_bytes: u64,
    layers: u64,
    imported: String,
}

pub fn run(context: &Context, args: &args::Images) -> Done {
    // Nothing was ever imported: that is an empty list, and no reason to make a store.
    let engine = context.store()?.exists().then(|| context.open(false)).transpose()?;
    match context.global.json {
        true => json::print(&view(engine.as_ref())?)?,
        false => output::print(&text(engine.as_ref(), args.digests, &context.style)?)?,
    }
    Ok(0)
}

fn view(engine: Option<&Engine>) -> transload::Result<Images> {
    let mut images = Vec::new();
    if let Some(engine) = engine {
        engine.image_lines(|line| images.push(Line::of(line)))?;
    }
    images.sort_by(|a, b| (&a.name, &a.target).cmp(&(&b.name, &b.target)));
    Ok(Images { images })
}

impl Line {
    fn of(line: ImageLine<'_>) -> Self {
        let manifest = line.manifest;
        Line {
            name: line.name.map(str::to_string),
            target: line.target.to_string(),
            manifest: manifest.map(|manifest| manifest.digest.to_string()),
            config: manifest.map(|manifest| manifest.config.to_string()),
            platform: manifest.map(|manifest| manifest.platform.to_string()),
            chain_id: manifest.and_then(|manifest| manifest.chain_id).map(str::to_string),
            size_bytes: line.size_bytes,
            layers: manifest.map_or(0, |manifest| manifest.layers),
            imported: rfc3339(line.created_ms),
        }
    }
}

/// The columns that the list is sorted by.
const NAME: usize = 0;
const TARGET: usize = 5;

fn text(engine: Option<&Engine>, whole_digests: bool, style: &Style) -> transload::Result<String> {
    let mut table = Table::new(&[
        ("NAME", Align::Left),
        ("PLATFORM", Align::Left),
        ("SIZE", Align::Right),
        ("LAYERS", Align::Right),
        ("IMPORTED", Align::Left),
        ("TARGET", Align::Left),
    ]);
    if let Some(engine) = engine {
        engine.image_lines(|line| {
            table.row([
                line.name.unwrap_or(UNNAMED),
                line.manifest.map_or("-", |manifest| manifest.platform),
                &format_size(line.size_bytes),
                &line.manifest.map_or(0, |manifest| manifest.layers).to_string(),
                &format_time(Some(&rfc3339(line.created_ms))),
                if whole_digests { line.target } else { short(line.target) },
            ]);
        })?;
    }
    if table.is_empty() {
        return Ok("no images yet: transload import ARCHIVE\n".to_string());
    }
    table.sort_by(|a, b| key(a).cmp(&key(b)));
    Ok(table.render(style))
}

/// Those without a name come first, as in the JSON.
fn key<'a>(row: Row<'a>) -> (bool, &'a str, &'a str) {
    (row.cell(NAME) != UNNAMED, row.cell(NAME), row.cell(TARGET))
}

//! Results as people read them: one function per command, from its view to text.

use super::table::{Align, Table};
use super::{Style, printable};
use crate::cli::size::{format_millis, format_size, format_time};
use crate::cli::views;
use serde_json::Value;
use transload::progress::Outcome;
use transload::transfer::report::{
    AuditReport, ImageOutcome, ImageReport, ImportPlan, ImportReport, PlannedImage,
};

/// What stands for an image without a name.
pub const UNNAMED: &str = "<unnamed>";

/// One line for each image, and one for the work.
pub fn import(report: &ImportReport) -> String {
    let mut text: String = report.images.iter().map(image_line).collect();
    for skipped in &report.skipped {
        text.push_str(&printable(&format!("skipped {}: {}", skipped.descriptor, skipped.reason)));
        text.push('\n');
    }
    let cloned = match report.blobs.bytes_cloned {
        0 => String::new(),
        bytes => format!("{} cloned, ", format_size(bytes)),
    };
    text.push_str(&format!(
        "{} written, {cloned}{} already present, in {}\n",
        format_size(report.blobs.bytes_written + report.trees.bytes_written),
        format_size(report.blobs.bytes_skipped),
        format_millis(report.elapsed_ms)
    ));
    if let Some(audit) = &report.audit {
        text.push_str(&audit_line(audit));
    }
    text
}

fn audit_line(audit: &AuditReport) -> String {
    let done = |count: usize, what| plural(count, what);
    let (blobs, trees) = (done(audit.blobs.len(), "blob"), done(audit.trees.len(), "layer"));
    let snapshots = done(audit.snapshots.len(), "snapshot");
    match audit.findings.len() {
        0 => format!("audit: {blobs}, {trees} and {snapshots} made, none of them more than once\n"),
        several => format!("audit: {} made more than once\n", plural(several, "thing")),
    }
}

fn image_line(image: &ImageReport) -> String {
    let name = image.name.as_deref().unwrap_or(UNNAMED);
    let outcome = match (image.outcome, &image.previous) {
        (ImageOutcome::New, _) => "imported".to_string(),
        (ImageOutcome::Existing, _) => "already present".to_string(),
        (ImageOutcome::Retagged, Some(previous)) => format!("retagged (was {})", previous.short()),
        (ImageOutcome::Retagged, None) => "retagged".to_string(),
    };
    let new = image.layers.iter().filter(|layer| is_new(layer.blob) || is_new(layer.tree)).count();
    let layers = match new {
        0 => plural(image.layers.len(), "layer"),
        new => format!("{} ({new} new)", plural(image.layers.len(), "layer")),
    };
    let line =
        format!("{name}  {}  {}  {layers}  {outcome}", image.platform, short(&image.target.to_string()));
    format!("{}\n", printable(&line))
}

fn is_new(outcome: Outcome) -> bool {
    outcome == Outcome::New
}

fn plural(count: usize, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

/// What `--dry-run` found.
pub fn plan(plan: &ImportPlan, style: &Style) -> String {
    let mut text: String = plan.images.iter().map(|image| planned_image(image, style)).collect();
    for skipped in &plan.skipped {
        text.push_str(&printable(&format!("would skip {}: {}", skipped.descriptor, skipped.reason)));
        text.push('\n');
    }
    text.push_str(&format!(
        "would write {} ({}) and extract {}\n",
        plural(plan.blobs_to_write as usize, "blob"),
        format_size(plan.bytes_to_write),
        plural(plan.trees_to_extract as usize, "layer")
    ));
    text
}

fn planned_image(image: &PlannedImage, style: &Style) -> String {
    let names = if image.names.is_empty() { UNNAMED.to_string() } else { image.names.join(", ") };
    let mut text = format!("{}  {}\n", style.heading(&printable(&names)), image.platform);
    for layer in &image.layers {
        let digest = layer.digest.as_ref().map_or_else(|| "-".to_string(), |digest| digest.short());
        let what = match (layer.blob, layer.tree) {
            (Outcome::New, _) => "would be written",
            (_, Outcome::New) => "present, would be extracted",
            _ => "already present",
        };
        text.push_str(&format!("  {digest:12}  {:>10}  {what}\n", format_size(layer.size_bytes)));
    }
    text
}

/// The first twelve digits of a digest.
pub fn short(digest: &str) -> &str {
    let hex = digest.split_once(':').map_or(digest, |(_, hex)| hex);
    hex.get(..12).unwrap_or(hex)
}

pub fn inspect(view: &views::Inspect, style: &Style) -> String {
    let mut text = String::new();
    let mut fact = |name: &str, value: &str| {
        if !value.is_empty() {
            text.push_str(&format!("{} {}\n", style.heading(&format!("{name:12}")), printable(value)));
        }
    };
    fact("Name", view.name.as_deref().unwrap_or(UNNAMED));
    fact("Target", &view.target);
    if view.manifest != view.target {
        fact("Manifest", &view.manifest);
    }
    fact("Config", &view.config);
    fact("Platform", &view.platform);
    fact("Chain", view.chain_id.as_deref().unwrap_or("not unpacked"));
    fact("Created", view.image_config["created"].as_str().unwrap_or_default());
    fact("Imported", &view.imported);
    for (name, key) in CONFIG_FACTS {
        fact(name, &one_line(&view.image_config["config"][key]));
    }
    text.push('\n');
    text.push_str(&layers(view).render(style));
    text
}

const CONFIG_FACTS: [(&str, &str); 9] = [
    ("Entrypoint", "Entrypoint"),
    ("Command", "Cmd"),
    ("User", "User"),
    ("Directory", "WorkingDir"),
    ("Environment", "Env"),
    ("Ports", "ExposedPorts"),
    ("Volumes", "Volumes"),
    ("Stop signal", "StopSignal"),
    ("Labels", "Labels"),
];

/// A value of a configuration on one line: lists and keys side by side, words with blanks in quotes.
fn one_line(value: &Value) -> String {
    let quoted = |text: &str| match text.is_empty() || text.contains(char::is_whitespace) {
        true => format!("{text:?}"),
        false => text.to_string(),
    };
    match value {
        Value::String(text) => text.clone(),
        Value::Array(items) => {
            items.iter().filter_map(Value::as_str).map(quoted).collect::<Vec<_>>().join(" ")
        }
        Value::Object(fields) => {
            let field = |(key, value): (&String, &Value)| match value.as_str() {
                Some(value) => format!("{key}={}", quoted(value)),
                None => key.clone(),
            };
            fields.iter().map(field).collect::<Vec<_>>().join(" ")
        }
        _ => String::new(),
    }
}

fn layers(view: &views::Inspect) -> Table {
    let mut table = Table::new(&[
        ("LAYER", Align::Right),
        ("DIGEST", Align::Left),
        ("DIFF ID", Align::Left),
        ("SIZE", Align::Right),
        ("TYPE", Align::Left),
    ]);
    for (at, layer) in view.layers.iter().enumerate() {
        table.row([
            (at + 1).to_string(),
            short(&layer.digest).to_string(),
            short(&layer.diff_id).to_string(),
            format_size(layer.size_bytes),
            layer.media_type.clone(),
        ]);
    }
    table
}

pub fn history(view: &views::History, style: &Style) -> String {
    let mut table = Table::new(&[
        ("CREATED", Align::Left),
        ("LAYER", Align::Left),
        ("SIZE", Align::Right),
        ("CREATED BY", Align::Left),
    ]);
    for line in &view.history {
        let by = line.created_by.as_deref().or(line.comment.as_deref()).unwrap_or_default();
        table.row([
            format_time(line.created.as_deref()),
            line.diff_id.as_deref().map_or("-", short).to_string(),
            format_size(line.size_bytes),
            by.split_whitespace().collect::<Vec<_>>().join(" "),
        ]);
    }
    table.render(style)
}

pub fn du(view: &views::Du, style: &Style) -> String {
    let mut table = Table::new(&[("WHAT", Align::Left), ("COUNT", Align::Right), ("SIZE", Align::Right)]);
    let parts = [
        ("blobs", view.blobs),
        ("trees", view.trees),
        ("snapshots", view.snapshots),
        ("ingests", view.ingests),
    ];
    for (name, part) in parts {
        table.row([name.to_string(), part.count.to_string(), format_size(part.size_bytes)]);
    }
    table.row(["metadata".to_string(), String::new(), format_size(view.metadata_bytes)]);
    table.row(["reserve".to_string(), String::new(), format_size(view.reserve_bytes)]);
    if view.quarantine_bytes > 0 {
        table.row(["quarantine".to_string(), String::new(), format_size(view.quarantine_bytes)]);
    }
    table.row(["total".to_string(), String::new(), format_size(view.total_bytes)]);
    table.row(["reclaimable".to_string(), String::new(), format_size(view.reclaimable_bytes)]);
    let mut text = table.render(style);
    if !view.mounts.is_empty() {
        text.push('\n');
        text.push_str(&uppers(&view.mounts, style));
    }
    text
}

/// What was written through each mount.
fn uppers(mounts: &[views::UpperLine], style: &Style) -> String {
    let columns = [
        ("WRITTEN TO", Align::Left),
        ("IMAGE", Align::Left),
        ("INODES", Align::Right),
        ("SIZE", Align::Right),
    ];
    let mut table = Table::new(&columns);
    for mount in mounts {
        table.row([
            mount.target.clone().unwrap_or_else(|| format!("snapshot {}", mount.key)),
            mount.name.clone().unwrap_or_else(|| "-".to_string()),
            mount.upper_inodes.to_string(),
            format_size(mount.upper_bytes),
        ]);
    }
    table.render(style)
}

pub fn prewarm(view: &views::Prewarm) -> String {
    let (files, size) = (view.files, format_size(view.bytes));
    format!("{}: {files} files, {size} read in {}\n", view.name, format_millis(view.elapsed_ms))
}

pub fn mounts(view: &views::Mounts, style: &Style) -> String {
    if view.mounts.is_empty() {
        return "nothing is mounted\n".to_string();
    }
    let mut table = Table::new(&[("DIRECTORY", Align::Left), ("MODE", Align::Left), ("IMAGE", Align::Left)]);
    for mount in &view.mounts {
        let gone = if mount.mounted { "" } else { " (no longer mounted; 'transload gc' takes what is left)" };
        table.row([
            mount.target.clone(),
            mount.mode.to_string(),
            format!("{}{gone}", mount.name.as_deref().unwrap_or("-")),
        ]);
    }
    table.render(style)
}

pub fn unpack(view: &views::Unpack) -> String {
    let what = format!("unpacked {} into {}", view.name, view.directory);
    format!("{}: {} entries, {}\n", printable(&what), view.entries, format_size(view.bytes))
}

pub fn bundle(view: &views::Bundle) -> String {
    let text = format!("{} will run {} as {}:{}", view.directory, view.args.join(" "), view.uid, view.gid);
    format!("{}\n", printable(&text))
}

pub fn export(view: &views::Export) -> String {
    let text = format!("wrote {} to {}", view.images.join(", "), view.output);
    let blobs = plural(view.blobs as usize, "blob");
    format!("{}: {blobs}, {}\n", printable(&text), format_size(view.bytes_written))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn configurations_fit_on_lines() {
        let table = [
            (json!(["/bin/sh", "-c", "echo a b"]), "/bin/sh -c \"echo a b\""),
            (json!({"80/tcp": {}, "443/tcp": {}}), "443/tcp 80/tcp"),
            (json!({"k": "v w"}), "k=\"v w\""),
            (json!(null), ""),
            (json!("root"), "root"),
        ];
        for (value, text) in table {
            assert_eq!(one_line(&value), text);
        }
    }
}

//! `transload stats`: what the store saved so far, and where the time of its imports went.

use super::output::Style;
use super::output::plain::short_key;
use super::output::table::{Align, Table};
use super::size::{format_millis, format_size, rfc3339};
use clap::Args;
use serde::Serialize;
use transload::transfer::history::{Day, SlowLayer, StatsReport, Totals};
use transload::transfer::report::StageTimes;

/// Show what the store saved so far: bytes deduplicated, time by stage, slowest layers, trend
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  transload stats
  transload stats --last 5
  transload --json stats | jq .totals.bytes_deduplicated
  transload --metrics-file /var/lib/node_exporter/transload.prom stats    also refreshes the store's gauges")]
pub struct Stats {
    /// Over how many of the last imports to sum up times
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub last: u16,
}

/// What the command prints as JSON: the library's report, with times as text.
#[derive(Serialize)]
pub struct View {
    pub since: Option<String>,
    pub totals: Totals,
    pub looked_at: u64,
    pub elapsed_ms: u64,
    pub stages_ms: StageTimes,
    pub slowest_layers: Vec<SlowLayer>,
    pub trend: Vec<DayView>,
}

#[derive(Serialize)]
pub struct DayView {
    pub day: String,
    #[serde(flatten)]
    pub figures: Day,
}

impl View {
    pub fn of(report: StatsReport) -> Self {
        let StatsReport { totals, looked_at, elapsed_ms, stages_ms, slowest_layers, trend } = report;
        let since = (totals.imports > 0).then(|| rfc3339(totals.since_ms));
        let day = |figures: Day| DayView { day: rfc3339(figures.begin_ms)[..10].to_string(), figures };
        let trend = trend.into_iter().map(day).collect();
        View { since, totals, looked_at, elapsed_ms, stages_ms, slowest_layers, trend }
    }
}

/// For people.
pub fn render(view: &View, style: &Style) -> String {
    let Some(since) = &view.since else { return "nothing was imported yet\n".to_string() };
    let mut text = totals(since, &view.totals);
    if view.looked_at > 0 {
        text.push_str(&format!(
            "\nthe last {} took {}, in all\n",
            imports(view.looked_at),
            format_millis(view.elapsed_ms)
        ));
        text.push_str(&stages(&view.stages_ms, style));
    }
    if !view.slowest_layers.is_empty() {
        text.push('\n');
        text.push_str(&layers(&view.slowest_layers, style));
    }
    text.push('\n');
    text.push_str(&trend(&view.trend, style));
    text
}

fn imports(count: u64) -> String {
    if count == 1 { "import".to_string() } else { format!("{count} imports") }
}

fn totals(since: &str, totals: &Totals) -> String {
    let offered = totals.bytes_written + totals.bytes_deduplicated;
    format!(
        "since {}: {} imports, {} failed\ndeduplicated {} of {} ({})\nwrites avoided: {} of {} blobs, {} of {} layers\n",
        &since[..10],
        totals.imports,
        totals.failed,
        format_size(totals.bytes_deduplicated),
        format_size(offered),
        percent(totals.bytes_deduplicated, offered),
        totals.blobs_avoided,
        totals.blobs_avoided + totals.blobs_written,
        totals.trees_avoided,
        totals.trees_avoided + totals.trees_written,
    )
}

fn percent(part: u64, whole: u64) -> String {
    format!("{:.0} %", 100.0 * part as f64 / whole.max(1) as f64)
}

fn stages(times: &StageTimes, style: &Style) -> String {
    let StageTimes { read, inflate, hash, apply, sync, wait } = times;
    let all = [
        ("read", *read),
        ("inflate", *inflate),
        ("hash", *hash),
        ("apply", *apply),
        ("sync", *sync),
        ("wait", *wait),
    ];
    let sum: u64 = all.iter().map(|(_, ms)| ms).sum();
    let headings =
        [("STAGE", Align::Left), ("TIME", Align::Right), ("SHARE", Align::Right), ("", Align::Left)];
    let mut table = Table::new(&headings);
    for (stage, ms) in all {
        table.row([stage.to_string(), format_millis(ms), percent(ms, sum), bar(ms, sum)]);
    }
    table.render(style)
}

/// Twenty characters are everything.
fn bar(part: u64, whole: u64) -> String {
    "#".repeat((20.0 * part as f64 / whole.max(1) as f64).round() as usize)
}

fn layers(layers: &[SlowLayer], style: &Style) -> String {
    let headings = [
        ("SLOWEST LAYERS", Align::Left),
        ("TIME", Align::Right),
        ("SIZE", Align::Right),
        ("UNPACKED", Align::Right),
    ];
    let mut table = Table::new(&headings);
    for layer in layers {
        table.row([
            short_key(&layer.digest),
            format_millis(layer.elapsed_ms),
            format_size(layer.size_bytes),
            format_size(layer.unpacked_bytes),
        ]);
    }
    table.render(style)
}

fn trend(days: &[DayView], style: &Style) -> String {
    let headings = [
        ("DAY", Align::Left),
        ("IMPORTS", Align::Right),
        ("FAILED", Align::Right),
        ("MEDIAN", Align::Right),
        ("WRITTEN", Align::Right),
        ("DEDUPLICATED", Align::Right),
    ];
    let mut table = Table::new(&headings);
    for DayView { day, figures } in days {
        table.row([
            day.clone(),
            figures.imports.to_string(),
            figures.failed.to_string(),
            format_millis(figures.median_ms),
            format_size(figures.bytes_written),
            format_size(figures.bytes_deduplicated),
        ]);
    }
    table.render(style)
}

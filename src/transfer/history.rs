//! What imports did so far, and what the store saved by that: remembered by the store, summed up for `stats`.
//!
//! Each import leaves one small entry; the store keeps the last thousand. The newest one also carries the totals of all
//! imports that there ever were, so forgetting old entries loses no sum. Remembering is best effort: an import has not
//! failed because its entry could not be written.

use super::report::{BlobTotals, ImportReport, StageTimes, TreeTotals};
use crate::error::{Error, ErrorKind, Result, ResultExt};
use crate::metadata::{ImportRecord, now_ms};
use crate::progress::Outcome;
use crate::store::Store;
use serde::{Deserialize, Serialize};
use std::collections::HashSet;
use std::time::Duration;

/// One import, as it is remembered.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Entry {
    /// The archive as the caller named it.
    pub archive: String,
    /// What joins it with its spans and log lines.
    pub trace_id: Option<String>,
    /// When it ended, in milliseconds since 1970.
    pub finished_ms: u64,
    /// How long it took.
    pub elapsed_ms: u64,
    /// The kind of its error, if it failed.
    pub error: Option<String>,
    /// Blobs by outcome.
    pub blobs: BlobTotals,
    /// Layers by outcome.
    pub trees: TreeTotals,
    /// Time in each stage, summed over threads.
    pub stages_ms: StageTimes,
    /// The layers that took longest, longest first.
    pub slowest_layers: Vec<SlowLayer>,
    /// All imports up to this one.
    pub totals: Totals,
}

/// A layer that took long.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SlowLayer {
    /// The digest of its blob.
    pub digest: String,
    /// Its size in bytes.
    pub size_bytes: u64,
    /// What it unpacked to.
    pub unpacked_bytes: u64,
    /// How long the import worked on it.
    pub elapsed_ms: u64,
}

/// All imports that there ever were.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Totals {
    /// When the first one ended, in milliseconds since 1970.
    pub since_ms: u64,
    /// How many there were.
    pub imports: u64,
    /// How many of them failed.
    pub failed: u64,
    /// Blobs that were written.
    pub blobs_written: u64,
    /// Blobs that did not have to be written.
    pub blobs_avoided: u64,
    /// Layers that were extracted.
    pub trees_written: u64,
    /// Layers that did not have to be extracted.
    pub trees_avoided: u64,
    /// Bytes of blobs and files that were written.
    pub bytes_written: u64,
    /// Bytes of blobs and files that did not have to be written.
    pub bytes_deduplicated: u64,
    /// How long all of them took.
    pub elapsed_ms: u64,
}

/// What the store saved so far, and where the time went.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct StatsReport {
    /// All imports that there ever were.
    pub totals: Totals,
    /// How many of the last imports the rest of this is about; those that failed are not among them.
    pub looked_at: u64,
    /// How long they took together.
    pub elapsed_ms: u64,
    /// Time in each stage, summed over threads and imports.
    pub stages_ms: StageTimes,
    /// The layers that took longest, longest first.
    pub slowest_layers: Vec<SlowLayer>,
    /// The last days on which there was an import, the newest last.
    pub trend: Vec<Day>,
}

/// The imports of one day, in UTC.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Day {
    /// When it began, in milliseconds since 1970.
    pub begin_ms: u64,
    /// Imports that ended on it.
    pub imports: u64,
    /// How many of them failed.
    pub failed: u64,
    /// Bytes of blobs and files that were written.
    pub bytes_written: u64,
    /// Bytes of blobs and files that did not have to be written.
    pub bytes_deduplicated: u64,
    /// The median of how long the successful ones took.
    pub median_ms: u64,
}

/// How many slow layers an entry, and a report, has at most.
const SLOW_LAYERS: usize = 5;

/// How many days a trend has at most.
const DAYS: usize = 14;

const DAY_MS: u64 = 24 * 60 * 60 * 1000;

/// Remembers an import of `archive` that took `elapsed`.
pub fn remember(
    store: &Store,
    archive: &str,
    outcome: &Result<ImportReport>,
    elapsed: Duration,
) -> Result<()> {
    let mut entry = Entry::of(archive, outcome);
    entry.finished_ms = now_ms();
    entry.elapsed_ms = elapsed.as_millis() as u64;
    let word = entry.error.clone().unwrap_or_else(|| "ok".to_string());
    let make = |last: Option<ImportRecord>| {
        // What cannot be read was written by something else; the totals then start anew.
        let last: Option<Entry> = last.and_then(|record| serde_json::from_str(&record.report).ok());
        entry.totals = last.map(|last| last.totals).unwrap_or_default().with(&entry);
        let report = serde_json::to_string(&entry)
            .map_err(|error| Error::new(ErrorKind::Internal, error.to_string()))?;
        let (finished_ms, elapsed_ms) = (entry.finished_ms, entry.elapsed_ms);
        Ok(ImportRecord { id: 0, finished_ms, elapsed_ms, outcome: word, report })
    };
    store.metadata().import_history_append(make).map(drop).doing(|| "cannot remember the import")
}

/// The last imports, the newest first.
pub fn history(store: &Store, limit: u64) -> Result<Vec<Entry>> {
    let records = store.metadata().import_history(limit).doing(|| "cannot read the history of imports")?;
    Ok(records.iter().filter_map(|record| serde_json::from_str(&record.report).ok()).collect())
}

/// Sums up: totals of all imports, times of the last `last` successful ones, a trend of what is remembered.
pub fn stats(store: &Store, last: usize) -> Result<StatsReport> {
    Ok(sum_up(&history(store, u64::MAX)?, last))
}

fn sum_up(entries: &[Entry], last: usize) -> StatsReport {
    let totals = entries.first().map(|entry| entry.totals.clone()).unwrap_or_default();
    let mut report = StatsReport { totals, trend: trend(entries), ..StatsReport::default() };
    for entry in entries.iter().filter(|entry| entry.error.is_none()).take(last) {
        report.looked_at += 1;
        report.elapsed_ms += entry.elapsed_ms;
        report.stages_ms.add(&entry.stages_ms);
        report.slowest_layers.extend(entry.slowest_layers.iter().cloned());
    }
    slowest(&mut report.slowest_layers);
    report
}

fn slowest(layers: &mut Vec<SlowLayer>) {
    layers.retain(|layer| layer.elapsed_ms > 0);
    layers.sort_by_key(|layer| std::cmp::Reverse(layer.elapsed_ms));
    // The same layer may have been slow several times; its slowest time stays.
    let mut seen = HashSet::new();
    layers.retain(|layer| seen.insert(layer.digest.clone()));
    layers.truncate(SLOW_LAYERS);
}

fn trend(entries: &[Entry]) -> Vec<Day> {
    let mut days: Vec<Day> =
        entries.chunk_by(|a, b| a.day_ms() == b.day_ms()).take(DAYS).map(Day::of).collect();
    days.reverse();
    days
}

impl Entry {
    fn of(archive: &str, outcome: &Result<ImportReport>) -> Self {
        let archive = archive.to_string();
        match outcome {
            Err(error) => Entry {
                archive,
                trace_id: error.trace_id().map(|id| id.to_string()),
                error: Some(error.kind().name().to_string()),
                ..Entry::default()
            },
            Ok(report) => Entry {
                archive,
                trace_id: report.trace_id.map(|id| id.to_string()),
                blobs: report.blobs.clone(),
                trees: report.trees.clone(),
                stages_ms: report.stages_ms.clone(),
                slowest_layers: slow_layers(report),
                ..Entry::default()
            },
        }
    }

    fn day_ms(&self) -> u64 {
        self.finished_ms / DAY_MS * DAY_MS
    }

    fn bytes_written(&self) -> u64 {
        self.blobs.bytes_written + self.trees.bytes_written
    }

    fn bytes_deduplicated(&self) -> u64 {
        self.blobs.bytes_skipped + self.trees.bytes_skipped
    }
}

fn slow_layers(report: &ImportReport) -> Vec<SlowLayer> {
    let layers = report.images.iter().flat_map(|image| &image.layers);
    let worked_on = layers.filter(|layer| layer.blob == Outcome::New || layer.tree == Outcome::New);
    let mut layers: Vec<SlowLayer> = worked_on
        .map(|layer| SlowLayer {
            digest: layer.digest.to_string(),
            size_bytes: layer.size_bytes,
            unpacked_bytes: layer.unpacked_bytes,
            elapsed_ms: layer.elapsed_ms,
        })
        .collect();
    slowest(&mut layers);
    layers
}

impl Totals {
    fn with(mut self, entry: &Entry) -> Self {
        if self.imports == 0 {
            self.since_ms = entry.finished_ms;
        }
        self.imports += 1;
        self.failed += u64::from(entry.error.is_some());
        self.blobs_written += entry.blobs.new;
        self.blobs_avoided += entry.blobs.existing + entry.blobs.shared;
        self.trees_written += entry.trees.new;
        self.trees_avoided += entry.trees.existing + entry.trees.shared;
        self.bytes_written += entry.bytes_written();
        self.bytes_deduplicated += entry.bytes_deduplicated();
        self.elapsed_ms += entry.elapsed_ms;
        self
    }
}

impl Day {
    /// Of entries that are all of one day; there is at least one.
    fn of(entries: &[Entry]) -> Self {
        let mut times: Vec<u64> =
            entries.iter().filter(|entry| entry.error.is_none()).map(|entry| entry.elapsed_ms).collect();
        times.sort_unstable();
        Day {
            begin_ms: entries.first().map_or(0, Entry::day_ms),
            imports: entries.len() as u64,
            failed: (entries.len() - times.len()) as u64,
            bytes_written: entries.iter().map(Entry::bytes_written).sum(),
            bytes_deduplicated: entries.iter().map(Entry::bytes_deduplicated).sum(),
            median_ms: times.get(times.len() / 2).copied().unwrap_or(0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(day: u64, elapsed_ms: u64, written: u64, skipped: u64) -> Entry {
        let blobs = BlobTotals {
            new: 1,
            existing: 2,
            bytes_written: written,
            bytes_skipped: skipped,
            ..Default::default()
        };
        let stages_ms = StageTimes { inflate: elapsed_ms / 2, ..Default::default() };
        let layer = SlowLayer { digest: format!("sha256:{elapsed_ms}"), elapsed_ms, ..Default::default() };
        let finished_ms = day * DAY_MS + 5;
        Entry { finished_ms, elapsed_ms, blobs, stages_ms, slowest_layers: vec![layer], ..Default::default() }
    }

    #[test]
    fn the_newest_entry_carries_the_totals_of_all() {
        let mut totals = Totals::default();
        let failed = Entry { error: Some("io".into()), finished_ms: 9 * DAY_MS, ..Entry::default() };
        for entry in [entry(3, 100, 10, 20), entry(3, 300, 1, 2), failed] {
            totals = totals.with(&entry);
        }
        assert_eq!((totals.imports, totals.failed, totals.since_ms), (3, 1, 3 * DAY_MS + 5));
        assert_eq!((totals.blobs_written, totals.blobs_avoided), (2, 4));
        assert_eq!((totals.bytes_written, totals.bytes_deduplicated), (11, 22));
    }

    #[test]
    fn the_last_imports_are_summed_up_and_days_are_apart() {
        let failed = Entry { error: Some("io".into()), ..entry(7, 9, 0, 0) };
        let entries = [failed, entry(7, 400, 4, 0), entry(7, 200, 3, 1), entry(3, 100, 2, 2)];
        let report = sum_up(&entries, 2);
        assert_eq!((report.looked_at, report.elapsed_ms, report.stages_ms.inflate), (2, 600, 300));
        let slow: Vec<u64> = report.slowest_layers.iter().map(|layer| layer.elapsed_ms).collect();
        assert_eq!(slow, [400, 200]);
        let days: Vec<(u64, u64, u64)> =
            report.trend.iter().map(|day| (day.begin_ms / DAY_MS, day.imports, day.failed)).collect();
        assert_eq!(days, [(3, 1, 0), (7, 3, 1)]);
        assert_eq!(report.trend[1].median_ms, 400);
        assert_eq!(sum_up(&[], 5), StatsReport::default());
    }

    #[test]
    fn an_entry_of_another_release_is_still_read() {
        let read: Entry =
            serde_json::from_str("{\"archive\":\"a\",\"novelty\":1,\"totals\":{\"imports\":4}}")
                .expect("reads");
        assert_eq!((read.archive.as_str(), read.totals.imports), ("a", 4));
    }
}

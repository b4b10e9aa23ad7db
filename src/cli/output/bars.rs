//! Bars on a terminal: one for each layer that is being worked on, and one for everything.
//!
//! An image of a hundred layers must fit on a screen, so only a few bars live at a time: a layer gets one when it starts
//! to move and gives it back when it is done; what comes too late for a bar still counts in the last line. Events
//! arrive from every lane; one lock is held for a map look-up, and drawing is throttled by indicatif.

use super::plain::{line, outcome_name, short_key};
use super::printable;
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use transload::progress::{Event, Outcome, Progress, Stage};

/// Live bars at most: half of a small terminal. More lanes than this are rare, and their bytes count all the same.
const MAX_BARS: usize = 10;
/// indicatif redraws this often at most; 10 Hz looks smooth and costs nothing over ssh.
const DRAW_HERTZ: u8 = 10;

/// Draws bars.
pub struct Bars {
    multi: MultiProgress,
    verbose: u8,
    capacity: usize,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    total: Option<ProgressBar>,
    /// The archive is read from its beginning to its end and says how far; otherwise blobs are counted.
    streaming: bool,
    layers: HashMap<String, Layer>,
    live: usize,
    finished: usize,
    present: usize,
}

struct Layer {
    size_bytes: u64,
    seen_bytes: u64,
    stage: Stage,
    bar: Option<ProgressBar>,
}

impl Bars {
    /// Bars on stderr.
    pub fn on_stderr(verbose: u8) -> Self {
        Bars::new(ProgressDrawTarget::stderr_with_hz(DRAW_HERTZ), verbose, MAX_BARS)
    }

    fn new(target: ProgressDrawTarget, verbose: u8, capacity: usize) -> Self {
        let multi = MultiProgress::with_draw_target(target);
        Bars { multi, verbose, capacity, state: Mutex::default() }
    }

    /// A panic elsewhere must not cost the picture.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn start_import(&self, archive: &str, size_bytes: Option<u64>) {
        let bar = match size_bytes {
            Some(size) => ProgressBar::new(size).with_style(total_style()),
            None => ProgressBar::new_spinner().with_style(spinner_style()),
        };
        let mut state = self.state();
        let bar = self.multi.add(bar);
        bar.set_prefix(shortened(archive, 32));
        bar.enable_steady_tick(Duration::from_millis(200));
        *state = State { total: Some(bar), ..State::default() };
    }

    fn start_layer(&self, key: &str, size_bytes: u64) {
        let mut state = self.state();
        let layer = Layer { size_bytes, seen_bytes: 0, stage: Stage::Queued, bar: None };
        state.layers.insert(key.to_string(), layer);
        state.show_count();
    }

    fn advance(&self, key: &str, bytes: u64) {
        let mut state = self.state();
        if let (Some(total), false) = (&state.total, state.streaming) {
            total.inc(bytes);
        }
        let live = state.live;
        let Some(layer) = state.layers.get_mut(key) else { return };
        layer.seen_bytes += bytes;
        match &layer.bar {
            Some(bar) => bar.inc(bytes),
            None if live < self.capacity => {
                layer.bar = Some(self.new_bar(key, layer));
                state.live += 1;
            }
            None => {}
        }
    }

    fn advance_stream(&self, bytes: u64) {
        let mut state = self.state();
        state.streaming = true;
        if let Some(total) = &state.total {
            total.inc(bytes);
        }
    }

    /// A bar above the total.
    fn new_bar(&self, key: &str, layer: &Layer) -> ProgressBar {
        let bar = ProgressBar::new(layer.size_bytes).with_style(layer_style());
        let bar = self.multi.insert_from_back(1, bar);
        bar.set_prefix(short_key(key));
        bar.set_message(stage_text(layer.stage));
        bar.set_position(layer.seen_bytes);
        bar
    }

    fn set_stage(&self, key: &str, stage: Stage) {
        let mut state = self.state();
        let Some(layer) = state.layers.get_mut(key) else { return };
        layer.stage = stage;
        if let Some(bar) = &layer.bar {
            bar.set_message(stage_text(stage));
        }
    }

    fn finish_layer(&self, key: &str, outcome: Outcome) {
        let mut state = self.state();
        let Some(layer) = state.layers.remove(key) else { return };
        state.finished += 1;
        state.present += usize::from(outcome == Outcome::Existing);
        if let Some(bar) = layer.bar {
            bar.finish_with_message(outcome_name(outcome));
            self.multi.remove(&bar);
            state.live -= 1;
        }
        state.show_count();
    }

    fn end(&self) {
        let mut state = self.state();
        for bar in state.layers.drain().filter_map(|(_, layer)| layer.bar) {
            bar.finish_and_clear();
        }
        if let Some(total) = state.total.take() {
            total.finish_and_clear();
        }
        // The result is printed next, and to another stream: no bar may be left on the screen.
        let _ = self.multi.clear();
    }
}

impl State {
    fn show_count(&self) {
        let Some(total) = &self.total else { return };
        let known = self.finished + self.layers.len();
        let present = match self.present {
            0 => String::new(),
            present => format!(", {present} already present"),
        };
        total.set_message(format!("{}/{known} layers{present}", self.finished));
    }
}

impl Progress for Bars {
    fn event(&self, event: &Event) {
        if let Some(line) = line(event, self.verbose) {
            let _ = self.multi.println(printable(&line));
        }
        match event {
            Event::ImportStarted { archive, size_bytes, .. } => self.start_import(archive, *size_bytes),
            Event::BlobStarted { key, size_bytes, layer: true } => self.start_layer(key, *size_bytes),
            Event::BlobAdvanced { key, bytes } => self.advance(key, *bytes),
            Event::BlobStage { key, stage } => self.set_stage(key, *stage),
            Event::BlobFinished { key, outcome } => self.finish_layer(key, *outcome),
            Event::StreamAdvanced { bytes } => self.advance_stream(*bytes),
            Event::CheckStarted { size_bytes, .. } => self.start_import("checking", Some(*size_bytes)),
            Event::ImportFinished | Event::CheckFinished => self.end(),
            _ => {}
        }
    }
}

impl Drop for Bars {
    /// An import that failed says no goodbye.
    fn drop(&mut self) {
        self.end();
    }
}

fn stage_text(stage: Stage) -> &'static str {
    match stage {
        Stage::Queued => "queued",
        Stage::Ingesting => "storing",
        Stage::Unpacking => "unpacking",
        Stage::Waiting => "waiting for another import",
        Stage::Verifying => "already present, comparing",
    }
}

fn shortened(text: &str, limit: usize) -> String {
    let text = printable(text);
    let skip = text.chars().count().saturating_sub(limit);
    text.chars().skip(skip).collect()
}

fn layer_style() -> ProgressStyle {
    style("{prefix:>12} [{bar:24}] {bytes:>10}/{total_bytes:10} {bytes_per_sec:>12} {msg}")
}

fn total_style() -> ProgressStyle {
    style("{prefix} [{bar:24}] {bytes}/{total_bytes} {bytes_per_sec} {msg}")
}

fn spinner_style() -> ProgressStyle {
    style("{prefix} {spinner} {bytes} {bytes_per_sec} {msg}")
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).expect("the template is a constant").progress_chars("=> ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hidden(capacity: usize) -> Bars {
        let bars = Bars::new(ProgressDrawTarget::hidden(), 0, capacity);
        bars.event(&Event::ImportStarted {
            archive: "a.tar".to_string(),
            size_bytes: Some(1000),
            trace_id: transload::TraceId::fresh(),
        });
        bars
    }

    #[test]
    fn a_hundred_layers_share_a_few_bars() {
        let bars = hidden(4);
        for at in 0..100 {
            let key = format!("sha256:{at:064}");
            bars.event(&Event::BlobStarted { key: key.clone(), size_bytes: 10, layer: true });
            bars.event(&Event::BlobAdvanced { key, bytes: 5 });
        }
        let counts = |state: &State| (state.live, state.layers.len());
        assert_eq!(counts(&bars.state()), (4, 100));
        for at in 0..100 {
            let outcome = if at % 2 == 0 { Outcome::New } else { Outcome::Existing };
            bars.event(&Event::BlobFinished { key: format!("sha256:{at:064}"), outcome });
        }
        let state = bars.state();
        assert_eq!((state.live, state.finished, state.present), (0, 100, 50));
    }

    #[test]
    fn events_in_odd_orders_do_no_harm() {
        let bars = hidden(1);
        let key = || "x".to_string();
        bars.event(&Event::BlobAdvanced { key: key(), bytes: 5 });
        bars.event(&Event::BlobFinished { key: key(), outcome: Outcome::New });
        bars.event(&Event::BlobStarted { key: key(), size_bytes: 1, layer: false });
        bars.event(&Event::BlobStage { key: key(), stage: Stage::Waiting });
        bars.event(&Event::StreamAdvanced { bytes: 5000 });
        bars.event(&Event::ImportFinished);
        bars.event(&Event::ImportFinished);
        assert_eq!(bars.state().live, 0);
    }
}

//! Figures about the work: what is counted, under which name, and who takes it.
//!
//! The library counts nothing by itself and knows no global registry. An embedder gives the engine a [`Recorder`]: its
//! own, which hands on to whatever it has, or the [`Registry`] here, which adds up and renders the text form of
//! Prometheus. Every figure is a [`Metric`] of [`catalog`]; `docs/observability.md` says what each is good for.

pub mod catalog;
mod registry;
mod text;

pub use registry::Registry;

use crate::error::Result;
use std::fmt;
use std::sync::Arc;

/// How a figure behaves.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kind {
    /// It only grows: values are added.
    Counter,
    /// It is what it is now: a value replaces the one before.
    Gauge,
    /// Values are sorted into buckets with these upper bounds.
    Histogram(&'static [f64]),
}

/// A label of a figure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Label {
    /// Its name.
    pub name: &'static str,
    /// Every value that it can have; empty where they cannot be listed.
    pub values: &'static [&'static str],
}

/// A figure: its name and what it means.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Metric {
    /// The name, with its unit, as Prometheus' conventions want it.
    pub name: &'static str,
    /// What it means, in a sentence.
    pub help: &'static str,
    /// How it behaves.
    pub kind: Kind,
    /// Its labels, in the order in which values are recorded.
    pub labels: &'static [Label],
    /// At most so many combinations of label values are kept, those that were used last.
    pub series: usize,
}

/// Takes figures, from several threads at once.
///
/// ```
/// use std::sync::Mutex;
/// use transload::metrics::{Metric, Recorder, catalog};
/// #[derive(Default)]
/// struct Lines(Mutex<Vec<String>>);
/// impl Recorder for Lines {
///     fn record(&self, metric: &'static Metric, labels: &[&str], value: f64) {
///         self.0.lock().unwrap().push(format!("{} {labels:?} {value}", metric.name));
///     }
/// }
/// let lines = Lines::default();
/// lines.record(&catalog::BLOBS, &["new"], 3.0);
/// assert_eq!(lines.0.into_inner().unwrap(), ["transload_blobs_total [\"new\"] 3"]);
/// ```
pub trait Recorder: Send + Sync {
    /// Takes one value: to be added to a counter, to replace a gauge, or observed by a histogram. `labels` are in the
    /// order of `metric.labels`.
    fn record(&self, metric: &'static Metric, labels: &[&str], value: f64);
}

/// Where an engine sends its figures; by default nowhere. Clones send to the same place.
#[derive(Clone, Default)]
pub struct Metrics(Option<Arc<dyn Recorder>>);

impl Metrics {
    /// Sends to `recorder`.
    ///
    /// ```
    /// use std::sync::Arc;
    /// use transload::metrics::{Metrics, Registry, catalog};
    /// let registry = Arc::new(Registry::new());
    /// Metrics::to(registry.clone()).record(&catalog::BLOBS, &["new"], 3.0);
    /// assert!(registry.render().contains("transload_blobs_total{outcome=\"new\"} 3\n"));
    /// ```
    pub fn to(recorder: Arc<dyn Recorder>) -> Self {
        Metrics(Some(recorder))
    }

    /// Hands one value on.
    pub fn record(&self, metric: &'static Metric, labels: &[&str], value: f64) {
        debug_assert_eq!(metric.labels.len(), labels.len(), "{}", metric.name);
        if let Some(recorder) = &self.0 {
            recorder.record(metric, labels, value);
        }
    }

    /// Counts a call and how it ended. The engine does so itself; this is for what needs no engine, such as
    /// [`Engine::doctor`](crate::Engine::doctor).
    ///
    /// ```
    /// use std::sync::Arc;
    /// use transload::metrics::{Metrics, Registry};
    /// let registry = Arc::new(Registry::new());
    /// let rebuilt = transload::Engine::rebuild("/nowhere", &Default::default());
    /// Metrics::to(registry.clone()).operation("rebuild", &rebuilt);
    /// assert!(registry.render().contains("transload_errors_total{kind=\"not_found\"} 1\n"));
    /// ```
    pub fn operation<T>(&self, operation: &str, result: &Result<T>) {
        let outcome = if result.is_ok() { "ok" } else { "failed" };
        self.count(&catalog::OPERATIONS, &[operation, outcome], 1);
        if let Err(error) = result {
            self.count(&catalog::ERRORS, &[error.kind().name()], 1);
        }
    }

    /// Adds to a counter, or sets a gauge, of whole things.
    pub fn count(&self, metric: &'static Metric, labels: &[&str], value: u64) {
        self.record(metric, labels, value as f64);
    }
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "Metrics(recorded)" } else { "Metrics(nowhere)" })
    }
}

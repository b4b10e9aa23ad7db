//! A recorder that adds up.

use super::catalog::ALL;
use super::{Kind, Label, Metric, Recorder};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Adds figures up, and renders them in the text form of Prometheus.
///
/// Counters whose label values can be listed start at zero, so that their first increase is seen. No figure has more
/// series than its [`Metric::series`]: beyond that the one that was used least recently goes.
#[derive(Debug)]
pub struct Registry {
    families: Mutex<Vec<Family>>,
}

/// All series of one metric, the most recently used last.
#[derive(Clone, Debug)]
pub(super) struct Family {
    pub(super) metric: &'static Metric,
    pub(super) series: Vec<Series>,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) struct Series {
    pub(super) labels: Vec<String>,
    pub(super) value: Value,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Value {
    Number(f64),
    /// Counts by bucket, not cumulative, the last without a bound.
    Histogram {
        counts: Vec<u64>,
        sum: f64,
    },
}

impl Value {
    pub(super) fn zero(kind: Kind) -> Self {
        match kind {
            Kind::Counter | Kind::Gauge => Value::Number(0.0),
            Kind::Histogram(bounds) => Value::Histogram { counts: vec![0; bounds.len() + 1], sum: 0.0 },
        }
    }

    fn take(&mut self, kind: Kind, value: f64) {
        match (self, kind) {
            (Value::Number(own), Kind::Counter) => *own += value.max(0.0),
            (Value::Number(own), _) => *own = value,
            (Value::Histogram { counts, sum }, Kind::Histogram(bounds)) => {
                counts[bounds.partition_point(|bound| *bound < value)] += 1;
                *sum += value;
            }
            (Value::Histogram { .. }, _) => {}
        }
    }

    /// Goes on from what another registry has: counts are added, a gauge is replaced.
    fn absorb(&mut self, kind: Kind, other: &Value) {
        match (self, other) {
            (Value::Number(own), Value::Number(other)) if kind == Kind::Counter => *own += other,
            (Value::Histogram { counts, sum }, Value::Histogram { counts: more, sum: added }) => {
                counts.iter_mut().zip(more).for_each(|(count, more)| *count += more);
                *sum += added;
            }
            (own, other) => *own = other.clone(),
        }
    }
}

impl Family {
    fn new(metric: &'static Metric) -> Self {
        let combinations = match metric.kind {
            Kind::Gauge => Vec::new(),
            _ => combinations(metric.labels),
        };
        let zero = |labels| Series { labels, value: Value::zero(metric.kind) };
        Family { metric, series: combinations.into_iter().map(zero).collect() }
    }

    /// The series of these labels, made where it is missing, and from now on the most recently used one.
    pub(super) fn series(&mut self, labels: &[impl AsRef<str>]) -> &mut Value {
        let same = |one: &Series| one.labels.iter().map(String::as_str).eq(labels.iter().map(AsRef::as_ref));
        let series = match self.series.iter().position(same) {
            // Where all fit, the order of the catalogue is the better one to read.
            Some(at) if self.series.len() < self.metric.series => return &mut self.series[at].value,
            Some(at) => self.series.remove(at),
            None => Series {
                labels: labels.iter().map(|label| label.as_ref().to_string()).collect(),
                value: Value::zero(self.metric.kind),
            },
        };
        if self.series.len() >= self.metric.series {
            self.series.remove(0);
        }
        self.series.push(series);
        &mut self.series.last_mut().expect("just pushed").value
    }
}

/// Every combination of label values; none where a label has values that cannot be listed.
fn combinations(labels: &[Label]) -> Vec<Vec<String>> {
    let add = |rows: Vec<Vec<String>>, label: &Label| {
        let with = |row: &Vec<String>, value: &str| [row.as_slice(), &[value.to_string()]].concat();
        rows.iter().flat_map(|row| label.values.iter().map(move |value| with(row, value))).collect()
    };
    labels.iter().fold(vec![Vec::new()], add)
}

impl Default for Registry {
    fn default() -> Self {
        Registry::new()
    }
}

impl Registry {
    /// A registry of everything in [`super::catalog`], at zero.
    pub fn new() -> Self {
        Registry { families: Mutex::new(ALL.iter().map(|metric| Family::new(metric)).collect()) }
    }

    /// Adds what `other` has counted, and takes over the gauges that it has.
    ///
    /// ```
    /// use transload::metrics::{Recorder, Registry, catalog};
    /// let (total, run) = (Registry::new(), Registry::new());
    /// total.record(&catalog::WAITS, &[], 1.0);
    /// run.record(&catalog::WAITS, &[], 2.0);
    /// total.absorb(&run);
    /// assert!(total.render().contains("\ntransload_waits_total 3\n"));
    /// ```
    pub fn absorb(&self, other: &Registry) {
        let theirs = other.families().clone();
        for (own, other) in self.families().iter_mut().zip(theirs) {
            for series in &other.series {
                own.series(&series.labels).absorb(other.metric.kind, &series.value);
            }
        }
    }

    pub(super) fn families(&self) -> MutexGuard<'_, Vec<Family>> {
        // Numbers are never half-written.
        self.families.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Recorder for Registry {
    fn record(&self, metric: &'static Metric, labels: &[&str], value: f64) {
        let mut families = self.families();
        if let Some(family) = families.iter_mut().find(|family| family.metric.name == metric.name) {
            family.series(labels).take(metric.kind, value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::catalog::{BLOBS, CHAIN_PREPARES, IMPORT_DURATION};
    use super::*;

    #[test]
    fn counters_that_can_be_listed_start_at_zero() {
        let text = Registry::new().render();
        for outcome in ["new", "existing", "shared"] {
            assert!(text.contains(&format!("transload_blobs_total{{outcome=\"{outcome}\"}} 0\n")), "{text}");
        }
        assert!(!text.contains("chain_prepares_total{"), "{text}");
    }

    #[test]
    fn the_chains_that_were_used_last_are_kept() {
        let registry = Registry::new();
        let chain = |n: usize| format!("sha256:{n:064x}");
        for n in 0..CHAIN_PREPARES.series {
            registry.record(&CHAIN_PREPARES, &[&chain(n)], 1.0);
        }
        registry.record(&CHAIN_PREPARES, &[&chain(0)], 1.0);
        registry.record(&CHAIN_PREPARES, &[&chain(1000)], 1.0);
        let text = registry.render();
        assert!(
            text.contains(&format!("{{chain_id=\"{}\"}} 2\n", chain(0))),
            "used twice, and lately: {text}"
        );
        assert!(!text.contains(&chain(1)), "the oldest one went: {text}");
        assert_eq!(text.matches("chain_prepares_total{").count(), CHAIN_PREPARES.series);
    }

    #[test]
    fn absorbing_adds_counts_and_takes_gauges_over() {
        let (total, run) = (Registry::new(), Registry::new());
        for registry in [&total, &run] {
            registry.record(&BLOBS, &["new"], 2.0);
            registry.record(&IMPORT_DURATION, &[], 0.3);
        }
        run.record(&super::super::catalog::PEAK_RSS, &[], 7.0);
        total.absorb(&run);
        total.absorb(&Registry::new());
        let text = total.render();
        assert!(text.contains("transload_blobs_total{outcome=\"new\"} 4\n"), "{text}");
        assert!(text.contains("transload_import_duration_seconds_bucket{le=\"0.5\"} 2\n"), "{text}");
        assert!(text.contains("transload_import_duration_seconds_count 2\n"), "{text}");
        assert!(text.contains("transload_import_peak_resident_bytes 7\n"), "{text}");
    }
}

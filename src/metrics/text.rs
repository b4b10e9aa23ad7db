//! The text form of Prometheus: written, and read back, so that short-lived processes can count on in one file.

use super::registry::{Family, Registry, Value};
use super::{Kind, Metric};
use crate::error::{Error, Result};
use std::fmt::Write;

/// The first line, by which a file is known as ours.
const MARK: &str = "# Written by transload; counters go on from run to run.";

impl Registry {
    /// Everything in the text exposition format, in the order of the catalogue.
    pub fn render(&self) -> String {
        let mut text = format!("{MARK}\n");
        for family in self.families().iter().filter(|family| !family.series.is_empty()) {
            render_family(&mut text, family).expect("a String takes everything");
        }
        text
    }

    /// What [`Registry::render`] has written, here or in another release. Figures that this release does not know are
    /// left out; a histogram whose buckets have changed starts anew. Empty text is an empty registry.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Malformed`] for a text that is somebody else's.
    ///
    /// ```
    /// use transload::metrics::Registry;
    /// let text = Registry::new().render();
    /// assert_eq!(Registry::parse(&text)?.render(), text);
    /// assert!(Registry::parse("up 1\n").is_err());
    /// # Ok::<(), transload::Error>(())
    /// ```
    pub fn parse(text: &str) -> Result<Registry> {
        let registry = Registry::new();
        if text.trim().is_empty() {
            return Ok(registry);
        }
        if text.lines().next() != Some(MARK) {
            return Err(Error::malformed("it was not written by transload"));
        }
        let mut buckets = Buckets::default();
        for (at, line) in text.lines().enumerate().filter(|(_, line)| !line.starts_with('#')) {
            let sample = parse_line(line);
            let sample = sample.ok_or_else(|| Error::malformed(format!("line {} is no sample", at + 1)))?;
            take_sample(&mut registry.families(), sample, &mut buckets);
        }
        Ok(registry)
    }
}

fn render_family(text: &mut String, Family { metric, series }: &Family) -> std::fmt::Result {
    let name = metric.name;
    let kind = match metric.kind {
        Kind::Counter => "counter",
        Kind::Gauge => "gauge",
        Kind::Histogram(_) => "histogram",
    };
    writeln!(text, "# HELP {name} {}\n# TYPE {name} {kind}", escaped(metric.help, false))?;
    for one in series {
        match (&one.value, metric.kind) {
            (Value::Histogram { counts, sum }, Kind::Histogram(bounds)) => {
                let mut total = 0;
                for (at, count) in counts.iter().enumerate() {
                    total += count;
                    let bound = bounds.get(at).map_or("+Inf".to_string(), f64::to_string);
                    let labels = labels(metric, &one.labels, Some(&bound));
                    writeln!(text, "{name}_bucket{labels} {total}")?;
                }
                let labels = labels(metric, &one.labels, None);
                writeln!(text, "{name}_sum{labels} {sum}\n{name}_count{labels} {total}")?;
            }
            (Value::Number(number), _) => {
                writeln!(text, "{name}{} {number}", labels(metric, &one.labels, None))?;
            }
            (Value::Histogram { .. }, _) => {}
        }
    }
    Ok(())
}

fn labels(metric: &Metric, values: &[String], bound: Option<&str>) -> String {
    let own = metric.labels.iter().zip(values).map(|(label, value)| (label.name, value.as_str()));
    let all: Vec<String> = own
        .chain(bound.map(|bound| ("le", bound)))
        .map(|(name, value)| format!("{name}=\"{}\"", escaped(value, true)))
        .collect();
    if all.is_empty() { String::new() } else { format!("{{{}}}", all.join(",")) }
}

/// Quotes are escaped in label values only.
fn escaped(text: &str, quotes: bool) -> String {
    let text = text.replace('\\', "\\\\").replace('\n', "\\n");
    if quotes { text.replace('"', "\\\"") } else { text }
}

/// One line: a name, labels, a number.
struct Sample {
    name: String,
    labels: Vec<(String, String)>,
    value: f64,
}

fn parse_line(line: &str) -> Option<Sample> {
    let name_ends = line.find(['{', ' '])?;
    let (name, mut rest) = line.split_at(name_ends);
    let mut labels = Vec::new();
    if let Some(inside) = rest.strip_prefix('{') {
        rest = inside;
        while !rest.starts_with('}') {
            let (label, after) = rest.strip_prefix(',').unwrap_or(rest).split_once("=\"")?;
            let (value, after) = unescaped(after)?;
            labels.push((label.to_string(), value));
            rest = after;
        }
        rest = &rest[1..];
    }
    let value = rest.trim().parse::<f64>().ok().filter(|value| value.is_finite())?;
    Some(Sample { name: name.to_string(), labels, value })
}

/// A label's value up to its closing quote, and what follows.
fn unescaped(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Some((value, &text[at + 1..])),
            '\\' => value.push(match chars.next()?.1 {
                'n' => '\n',
                other => other,
            }),
            c => value.push(c),
        }
    }
    None
}

/// The cumulative count of the bucket before, while a histogram's lines are read in order.
#[derive(Default)]
struct Buckets {
    at: usize,
    below: u64,
}

/// Samples of unknown metrics, and of known ones with other labels, are passed over.
fn take_sample(families: &mut [Family], sample: Sample, buckets: &mut Buckets) {
    let Sample { name, mut labels, value } = sample;
    let part = ["_bucket", "_sum", ""].into_iter().find_map(|part| {
        let base = name.strip_suffix(part)?;
        let at = families.iter().position(|family| family.metric.name == base)?;
        Some((part, at))
    });
    let Some((part, at)) = part else { return };
    let family = &mut families[at];
    let bound = if part == "_bucket" { labels.pop().map(|(_, bound)| bound) } else { None };
    if !labels.iter().map(|(name, _)| name.as_str()).eq(family.metric.labels.iter().map(|label| label.name)) {
        return;
    }
    let kind = family.metric.kind;
    let values: Vec<&str> = labels.iter().map(|(_, value)| value.as_str()).collect();
    match (family.series(&values), kind) {
        (Value::Number(number), _) if part.is_empty() => *number = value,
        (Value::Histogram { counts, .. }, Kind::Histogram(bounds)) if part == "_bucket" => {
            take_bucket(counts, bounds, bound.as_deref(), value as u64, buckets);
        }
        // Of a histogram that started anew, the sum goes as well.
        (Value::Histogram { counts, sum }, _) if part == "_sum" => {
            *sum = if counts.iter().any(|count| *count > 0) { value } else { 0.0 };
        }
        _ => {}
    }
}

fn take_bucket(counts: &mut [u64], bounds: &[f64], bound: Option<&str>, total: u64, buckets: &mut Buckets) {
    let expected = bounds.get(buckets.at).map_or("+Inf".to_string(), f64::to_string);
    if buckets.at > bounds.len() || bound != Some(expected.as_str()) {
        // Another release's buckets.
        counts.fill(0);
        buckets.at = usize::MAX;
    } else {
        counts[buckets.at] = total.saturating_sub(buckets.below);
        *buckets = Buckets { at: buckets.at + 1, below: total };
    }
    if bound == Some("+Inf") {
        *buckets = Buckets::default();
    }
}

#[cfg(test)]
mod tests {
    use super::super::Recorder;
    use super::super::catalog::{BLOBS, CHAIN_PREPARES, IMPORT_DURATION, MOUNT_DURATION};
    use super::*;

    #[test]
    fn what_is_written_is_read_back() {
        let registry = Registry::new();
        registry.record(&BLOBS, &["shared"], 12.0);
        registry.record(&CHAIN_PREPARES, &["odd \"chain\"\\\n"], 1.0);
        for seconds in [0.2, 3.5, 1e6] {
            registry.record(&IMPORT_DURATION, &[], seconds);
            registry.record(&MOUNT_DURATION, &["mount"], seconds);
        }
        let text = registry.render();
        assert_eq!(Registry::parse(&text).expect("ours").render(), text);
    }

    #[test]
    fn figures_of_other_releases_do_no_harm() {
        let registry = Registry::new();
        registry.record(&IMPORT_DURATION, &[], 0.2);
        let text = registry.render();
        let newer = text.replace("le=\"0.5\"", "le=\"0.6\"") + "transload_brand_new_total{x=\"y\"} 5\n";
        let read = Registry::parse(&newer).expect("ours").render();
        assert!(!read.contains("brand_new"), "{read}");
        assert!(read.contains("transload_import_duration_seconds_count 0\n"), "it starts anew: {read}");
        assert!(read.contains("transload_import_duration_seconds_sum 0\n"), "{read}");
    }

    #[test]
    fn what_is_not_ours_is_refused() {
        for text in [
            "node_load1 0.5\n",
            "\u{7f}ELF",
            &format!("{MARK}\nbroken{{a=\"b\n"),
            &format!("{MARK}\nx NaN\n"),
        ] {
            assert!(Registry::parse(text).is_err(), "{text:?}");
        }
        assert!(Registry::parse("\n").is_ok());
    }
}

//! `--timeline`: one page that shows where an import's time went. No script, no network, nothing that an archive says
//! gets onto it unescaped.

use super::super::size::{format_millis as millis, format_size as bytes};
use super::analysis::{Bar, Timeline, Work, capital};
use super::blobs::Blob;
use super::sampler::Sample;
use std::fmt::Write;

/// What the page shows.
pub struct Page<'a> {
    pub timeline: &'a Timeline,
    pub samples: &'a [Sample],
    pub blobs: &'a [Blob],
    pub processors: usize,
    /// Spans that were too many to keep.
    pub dropped: u64,
}

const STYLE: &str = include_str!("page.css");

/// More rows of threads than this are of no use to anyone.
const MAX_ROWS: usize = 80;

/// Shorter bars than this part of the whole are not drawn: there may be a hundred thousand of them.
const MIN_SHARE: f64 = 0.000_2;

/// The whole page.
pub fn render(page: &Page<'_>) -> String {
    let timeline = page.timeline;
    let mut html = String::new();
    let title = format!("Import of {}", timeline.archives.join(", "));
    put(
        &mut html,
        format_args!(
            "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n\
         <title>{0}</title>\n<style>{STYLE}</style></head>\n<body>\n{STRIPES}<h1>{0}</h1>\n\
         <p class=\"soft\">transload {1} · {2} processors · trace id <span class=\"mono\">{3}</span></p>\n",
            escape(&title),
            env!("CARGO_PKG_VERSION"),
            page.processors,
            escape(&timeline.trace_id),
        ),
    );
    html += &verdict(timeline);
    html += &facts(page);
    html += &lanes(timeline);
    html += &machine(page);
    html += &bounds(timeline);
    html += &table(page.blobs);
    if page.dropped > 0 {
        put(
            &mut html,
            format_args!("<p class=\"soft\">{} spans were too many and are not shown.</p>\n", page.dropped),
        );
    }
    html + "</body></html>\n"
}

const STRIPES: &str = "<svg width=\"0\" height=\"0\" style=\"position:absolute\" aria-hidden=\"true\"><defs>\
    <pattern id=\"stripes\" width=\"8\" height=\"8\" patternUnits=\"userSpaceOnUse\" patternTransform=\"rotate(45)\">\
    <rect class=\"stripe-ground\" width=\"8\" height=\"8\"/><line class=\"stripe\" x1=\"2\" y1=\"0\" x2=\"2\" y2=\"8\"/></pattern></defs></svg>\n";

fn put(html: &mut String, text: std::fmt::Arguments<'_>) {
    html.write_fmt(text).expect("a String takes everything");
}

/// For text and for attributes. Control characters and those that turn the direction of writing are replaced.
pub fn escape(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            '\'' => safe.push_str("&#39;"),
            '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => {
                safe.push('\u{fffd}')
            }
            letter if letter.is_control() => safe.push('\u{fffd}'),
            letter => safe.push(letter),
        }
    }
    safe
}

fn verdict(timeline: &Timeline) -> String {
    let found = &timeline.verdict;
    let failed = match &timeline.error {
        Some(kind) => format!(
            "<p><b>The import failed: {}.</b> What follows is what it did until then.</p>",
            escape(kind)
        ),
        None => String::new(),
    };
    let class = if timeline.error.is_some() { "verdict failed" } else { "verdict" };
    format!(
        "<section class=\"{class}\" id=\"verdict\">{failed}<p>What bounded this import: <b class=\"bound\">{}</b></p>\n\
         <p>{}</p>\n<p><b>What would help:</b> {}</p></section>\n",
        escape(&found.bound),
        escape(&found.because),
        escape(&found.helps)
    )
}

fn facts(page: &Page<'_>) -> String {
    let fact = |value: String, what: &str| format!("<div><b>{value}</b><span>{what}</span></div>");
    let sum = |of: fn(&Blob) -> u64| page.blobs.iter().map(of).sum::<u64>();
    let written =
        page.blobs.iter().filter(|blob| blob.outcome == "new").map(|blob| blob.size_bytes).sum::<u64>();
    let cpu = page.samples.iter().map(|sample| sample.cpu).sum::<f64>() / page.samples.len().max(1) as f64;
    let facts = [
        fact(millis(page.timeline.duration_us() / 1000), "in all"),
        fact(page.blobs.len().to_string(), "blobs"),
        fact(bytes(written), "of blobs written"),
        fact(bytes(sum(|blob| blob.saved_bytes)), "not written again"),
        fact(format!("{cpu:.1} of {}", page.processors), "processors had, on average"),
    ];
    format!("<div class=\"facts\">{}</div>\n", facts.concat())
}

/// Where something lies on the page, in percent of the whole.
struct Scale {
    begin_us: u64,
    duration_us: f64,
}

impl Scale {
    fn of(timeline: &Timeline) -> Self {
        Scale { begin_us: timeline.begin_us, duration_us: timeline.duration_us().max(1) as f64 }
    }

    fn at(&self, us: u64) -> f64 {
        us.saturating_sub(self.begin_us) as f64 / self.duration_us * 100.0
    }
}

fn lanes(timeline: &Timeline) -> String {
    let scale = Scale::of(timeline);
    let mut html = String::from(
        "<h2>Who did what, and when</h2>\n<p class=\"soft\">One row for each thread, time from left to right. Where stages take turns on one thread, chunk by \
         chunk, a bar shows their shares. A dark line below a bar: it is on the critical path.</p>\n",
    );
    html += &legend(timeline);
    html += &row("path", "Critical path: what nothing could overtake", &timeline.critical, &scale);
    for one in timeline.rows.iter().take(MAX_ROWS) {
        html += &row("lane", &thread_words(&one.name), &one.bars, &scale);
    }
    if timeline.rows.len() > MAX_ROWS {
        put(
            &mut html,
            format_args!(
                "<p class=\"soft\">{} more threads are not shown.</p>\n",
                timeline.rows.len() - MAX_ROWS
            ),
        );
    }
    let ticks = (0..=4).map(|part| format!("<span>{}</span>", millis(timeline.duration_us() * part / 4000)));
    put(&mut html, format_args!("<div class=\"ticks\">{}</div>\n", ticks.collect::<String>()));
    html
}

fn thread_words(name: &str) -> String {
    match name {
        "main" => "Coordinator: opens, plans, reads a stream, commits".to_string(),
        "read" => "Reading ahead for the one big layer".to_string(),
        "inflate" => "Decompressing the one big layer".to_string(),
        "hash" => "DiffID of the one big layer".to_string(),
        name => match name.strip_prefix("lane ").and_then(|number| number.parse::<u32>().ok()) {
            Some(number) => format!("Worker {}", number + 1),
            None => name.to_string(),
        },
    }
}

fn legend(timeline: &Timeline) -> String {
    let used = |work: &Work| {
        let bars = timeline.rows.iter().flat_map(|row| &row.bars);
        bars.flat_map(|bar| &bar.shares).any(|(one, us)| one == work && *us > 0)
    };
    let entry = |work: Work| {
        let (class, words) =
            (work.class(), if work == Work::Other { "idle between chunks, or other" } else { work.words() });
        format!(
            "<li><svg aria-hidden=\"true\"><rect class=\"{class}\" width=\"22\" height=\"14\"/></svg>{words}</li>"
        )
    };
    let entries: String = Work::ALL.into_iter().filter(used).map(entry).collect();
    format!("<ul class=\"legend\">{entries}</ul>\n")
}

fn row(class: &str, name: &str, bars: &[Bar], scale: &Scale) -> String {
    let name = escape(name);
    let mut html = format!(
        "<div class=\"row {class}\"><div class=\"name\">{name}</div><svg class=\"bars\" role=\"img\" aria-label=\"{name}\">"
    );
    bars.iter().for_each(|bar| html += &drawn(bar, scale, class == "lane"));
    html + "</svg></div>\n"
}

fn drawn(bar: &Bar, scale: &Scale, mark: bool) -> String {
    let (left, width) = (scale.at(bar.begin_us), bar.duration_us() as f64 / scale.duration_us * 100.0);
    if width < MIN_SHARE * 100.0 {
        return String::new();
    }
    let mut html = format!("<g><title>{}</title>", escape(&title(bar)));
    let sum = bar.shares.iter().map(|(_, us)| *us).sum::<u64>().max(1) as f64;
    let mut at = left;
    for (work, us) in &bar.shares {
        let part = *us as f64 / sum * width;
        put(
            &mut html,
            format_args!(
                "<rect class=\"{}\" x=\"{at:.3}%\" y=\"0\" width=\"{part:.3}%\" height=\"30\"/>",
                work.class()
            ),
        );
        at += part;
    }
    put(
        &mut html,
        format_args!("<rect class=\"edge\" x=\"{left:.3}%\" y=\"0\" width=\"{width:.3}%\" height=\"30\"/>"),
    );
    if mark && bar.critical {
        put(
            &mut html,
            format_args!(
                "<rect class=\"critical\" x=\"{left:.3}%\" y=\"26\" width=\"{width:.3}%\" height=\"4\"/>"
            ),
        );
    }
    // A letter of the label takes about 0.8 % of a page's width; on a phone about three times as much.
    let needs = bar.label.chars().count() as f64 * 0.8;
    if width > needs + 1.0 {
        let class = if width > needs * 3.0 { "" } else { "short " };
        let first = bar.shares.first().map_or(Work::Other, |(work, _)| *work);
        let dark = if matches!(first, Work::Write | Work::Snapshot | Work::Sync | Work::Apply) {
            "on-dark"
        } else {
            ""
        };
        put(
            &mut html,
            format_args!(
                "<text class=\"{class}{dark}\" x=\"{:.3}%\" dx=\"4\" y=\"19\">{}</text>",
                left,
                escape(&bar.label)
            ),
        );
    }
    html + "</g>"
}

fn title(bar: &Bar) -> String {
    let shares = bar.shares.iter().filter(|(_, us)| *us * 100 >= bar.duration_us());
    let shares: Vec<String> =
        shares.map(|(work, us)| format!("{} {}", work.words(), millis(us / 1000))).collect();
    format!("{}, {}: {}", bar.label, millis(bar.duration_us() / 1000), shares.join(", "))
}

fn machine(page: &Page<'_>) -> String {
    if page.samples.len() < 2 {
        return "<h2>Processors and disk</h2>\n<p class=\"soft\">The import was too short to be sampled.</p>\n".to_string();
    }
    let scale = Scale::of(page.timeline);
    let line = |class: &str, of: &dyn Fn(&Sample) -> f64, most: f64| {
        let points = page.samples.iter().map(|sample| {
            let y = 96.0 - of(sample).min(most) / most.max(0.001) * 90.0;
            format!("{:.1},{y:.1}", scale.at(sample.at_us).min(100.0) * 10.0)
        });
        format!("<polyline class=\"{class}\" points=\"{}\"/>", points.collect::<Vec<_>>().join(" "))
    };
    let graph = |name: &str, lines: String| {
        format!(
            "<div class=\"name soft\">{name}</div><svg class=\"graph\" viewBox=\"0 0 1000 100\" preserveAspectRatio=\"none\" role=\"img\" aria-label=\"{name}\">{lines}</svg>\n"
        )
    };
    let all = page.processors as f64;
    let processors = line("l1", &|sample| sample.cpu, all) + &line("l2", &|sample| sample.machine_cpu, all);
    let most = page.samples.iter().map(|sample| sample.write_mb_s.max(sample.read_mb_s)).fold(1.0, f64::max);
    let disk = line("l1", &|sample| sample.write_mb_s, most) + &line("l2", &|sample| sample.read_mb_s, most);
    format!(
        "<h2>Processors and disk</h2>\n{}{}",
        graph(
            &format!(
                "Processors busy, of {}. Solid: this import; dashed: the whole machine",
                page.processors
            ),
            processors
        ),
        graph(
            &format!(
                "Disk, up to {most:.0} MB/s. Solid: written (into the system's memory first); dashed: read"
            ),
            disk
        )
    )
}

fn bounds(timeline: &Timeline) -> String {
    let duration = timeline.duration_us().max(1);
    let line = |(work, us): &(Work, u64)| {
        format!(
            "<tr><td>{}</td><td class=\"n\">{}</td><td class=\"n\">{} %</td></tr>",
            capital(work.words()),
            millis(us / 1000),
            us * 100 / duration
        )
    };
    let lines: String = timeline.bounds.iter().map(line).collect();
    format!(
        "<h2>What the critical path is made of</h2>\n<table id=\"bounds\"><tr><th>Work</th><th class=\"n\">Time</th><th class=\"n\">Share</th></tr>{lines}</table>\n"
    )
}

fn table(blobs: &[Blob]) -> String {
    let mut html = String::from(
        "<h2>Every blob</h2>\n<p class=\"soft\">Saved: bytes of the blob, and of the files in it, that did not have to be written because the store had them.</p>\n\
         <div class=\"scroll\"><table id=\"blobs\"><tr><th>Blob</th><th>What</th><th class=\"n\">Size</th><th>Outcome</th><th class=\"n\">Saved</th><th class=\"n\">Time</th></tr>\n",
    );
    for blob in blobs {
        let time = blob.duration_us.map_or("–".to_string(), |us| millis(us / 1000));
        put(
            &mut html,
            format_args!(
                "<tr><td class=\"mono\" title=\"{0}\">{1}</td><td>{2}</td><td class=\"n\">{3}</td><td class=\"{4}\">{4}</td><td class=\"n\">{5}</td><td class=\"n\">{time}</td></tr>\n",
                escape(&blob.digest),
                escape(&short(&blob.digest)),
                blob.what,
                bytes(blob.size_bytes),
                blob.outcome,
                bytes(blob.saved_bytes),
            ),
        );
    }
    html + "</table></div>\n"
}

fn short(digest: &str) -> String {
    digest.chars().take(19).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_an_archive_says_is_markup() {
        assert_eq!(escape("<script>\"'&\u{202e}\u{7}x"), "&lt;script&gt;&quot;&#39;&amp;\u{fffd}\u{fffd}x");
        let timeline = Timeline {
            archives: vec!["</title><script>alert(1)</script>".into()],
            end_us: 10,
            ..Timeline::default()
        };
        let html = render(&Page { timeline: &timeline, samples: &[], blobs: &[], processors: 2, dropped: 0 });
        assert!(!html.contains("<script"), "{html}");
    }
}

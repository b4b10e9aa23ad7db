//! `--timeline`: one page that shows where an import's time went. No script, no network, nothing that an archive says
//! gets onto it unescaped.

use super::super::exit;
use super::super::size::{format_millis, format_size as bytes};
use super::analysis::{Timeline, Work, capital};
use super::blobs::Blob;
use super::lanes::{Scale, lanes, textures};
use super::sampler::Sample;
use std::fmt::Write;
use transload::Error;

/// What the page shows.
pub struct Page<'a> {
    pub timeline: &'a Timeline,
    pub samples: &'a [Sample],
    pub blobs: &'a [Blob],
    /// Why the import failed, if it did.
    pub error: Option<&'a Error>,
    pub processors: usize,
    /// Spans that were too many to keep.
    pub dropped: u64,
}

const STYLE: &str = include_str!("page.css");

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
         <title>{0}</title>\n<style>{STYLE}</style></head>\n<body>\n{4}<h1>{0}</h1>\n\
         <p class=\"soft\">transload {1} · {2} processors · trace id <span class=\"mono\">{3}</span></p>\n",
            escape(&title),
            env!("CARGO_PKG_VERSION"),
            page.processors,
            escape(&timeline.trace_id),
            textures(),
        ),
    );
    html += &verdict(timeline, page.error);
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

pub fn put(html: &mut String, text: std::fmt::Arguments<'_>) {
    html.write_fmt(text).expect("a String takes everything");
}

/// A duration of microseconds; short ones with what is behind the point.
pub fn time(us: u64) -> String {
    match us {
        1..1_000 => format!("{:.2} ms", us as f64 / 1000.0),
        1_000..10_000 => format!("{:.1} ms", us as f64 / 1000.0),
        _ => format_millis(us / 1000),
    }
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

fn verdict(timeline: &Timeline, failure: Option<&Error>) -> String {
    let found = &timeline.verdict;
    let bound = format!(
        "<p>What bounded this import: <b class=\"bound\">{}</b></p>\n<p>{}</p>\n",
        escape(&found.bound),
        escape(&found.because)
    );
    let Some(error) = failure else {
        let helps = escape(&found.helps);
        return format!(
            "<section class=\"verdict\" id=\"verdict\">{bound}<p><b>What would help:</b> {helps}</p></section>\n"
        );
    };
    let hint = exit::hint(error)
        .map(|hint| format!("<p><b>What to do:</b> {}.</p>", escape(hint)))
        .unwrap_or_default();
    format!(
        "<section class=\"verdict failed\" id=\"verdict\"><p><b>The import failed:</b> {}.</p>\n{hint}\n<p>What follows is what it did until \
         then.</p>\n{bound}</section>\n",
        escape(&error.to_string())
    )
}

fn facts(page: &Page<'_>) -> String {
    let fact = |value: String, what: &str| format!("<div><b>{value}</b><span>{what}</span></div>");
    let sum = |of: fn(&Blob) -> u64| page.blobs.iter().map(of).sum::<u64>();
    let written =
        page.blobs.iter().filter(|blob| blob.outcome == "new").map(|blob| blob.size_bytes).sum::<u64>();
    let cpu = page.samples.iter().map(|sample| sample.cpu).sum::<f64>() / page.samples.len().max(1) as f64;
    let mut facts = vec![
        fact(time(page.timeline.duration_us()), "in all"),
        fact(page.blobs.len().to_string(), "blobs"),
        fact(bytes(written), "of blobs written"),
        fact(bytes(sum(|blob| blob.saved_bytes)), "not written again"),
    ];
    if !page.samples.is_empty() {
        facts.push(fact(format!("{cpu:.1} of {}", page.processors), "processors had, on average"));
    }
    format!("<div class=\"facts\">{}</div>\n", facts.concat())
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
    let graph = |name: &str, top: &str, lines: String| {
        format!(
            "<div class=\"name soft\">{name}</div><div class=\"scale\"><span>{top}</span><span>0</span></div><svg class=\"graph\" viewBox=\"0 0 1000 100\" \
             preserveAspectRatio=\"none\" role=\"img\" aria-label=\"{name}\">{lines}</svg>\n"
        )
    };
    let all = page.processors as f64;
    let processors = line("l1", &|sample| sample.cpu, all) + &line("l2", &|sample| sample.machine_cpu, all);
    let most = page.samples.iter().map(|sample| sample.write_mb_s.max(sample.read_mb_s)).fold(0.0, f64::max);
    let disk = line("l1", &|sample| sample.write_mb_s, most) + &line("l2", &|sample| sample.read_mb_s, most);
    let top = match most {
        0.0..0.1 => "Disk: next to nothing was written or read".to_string(),
        _ => format!(
            "Disk, up to {most:.1} MB/s. Solid: written (into the system's memory first); dashed: read"
        ),
    };
    let busy =
        format!("Processors busy, of {}. Solid: this import; dashed: the whole machine", page.processors);
    format!(
        "<h2>Processors and disk</h2>\n{}{}{}",
        graph(&busy, &format!("{all:.0}"), processors),
        graph(&top, &format!("{most:.1}"), disk),
        scale.ticks(),
    )
}

fn bounds(timeline: &Timeline) -> String {
    let duration = timeline.duration_us().max(1);
    let line = |(work, us): &(Work, u64)| {
        format!(
            "<tr><td>{}</td><td class=\"n\">{}</td><td class=\"n\">{}</td></tr>",
            capital(work.words()),
            time(*us),
            percent(*us, duration)
        )
    };
    let lines: String = timeline.bounds.iter().map(line).collect();
    format!(
        "<h2>What the critical path is made of</h2>\n<table id=\"bounds\"><tr><th>Work</th><th class=\"n\">Time</th><th class=\"n\">Share</th></tr>{lines}</table>\n"
    )
}

fn percent(part: u64, whole: u64) -> String {
    match part * 100 / whole {
        0 => "under 1 %".to_string(),
        percent => format!("{percent} %"),
    }
}

fn table(blobs: &[Blob]) -> String {
    if blobs.is_empty() {
        return "<h2>Every blob</h2>\n<p class=\"soft\">It did not come to any blob.</p>\n".to_string();
    }
    let mut html = String::from(
        "<h2>Every blob</h2>\n<p class=\"soft\">Saved: bytes of the blob, and of the files in it, that did not have to be written because the store had them.</p>\n\
         <div class=\"scroll\"><table id=\"blobs\"><tr><th>Blob</th><th>What</th><th class=\"n\">Size</th><th>Outcome</th><th class=\"n\">Saved</th><th class=\"n\">Time</th></tr>\n",
    );
    for blob in blobs {
        let time = blob.duration_us.map_or("–".to_string(), time);
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
    fn short_times_are_not_nothing() {
        let times = [0, 9, 340, 5_000, 12_345, 2_000_000].map(time);
        assert_eq!(times, ["0 ms", "0.01 ms", "0.34 ms", "5.0 ms", "12 ms", "2.0 s"]);
    }

    #[test]
    fn nothing_that_an_archive_says_is_markup() {
        assert_eq!(escape("<script>\"'&\u{202e}\u{7}x"), "&lt;script&gt;&quot;&#39;&amp;\u{fffd}\u{fffd}x");
        let timeline = Timeline {
            archives: vec!["</title><script>alert(1)</script>".into()],
            end_us: 10,
            ..Timeline::default()
        };
        let html = render(&Page {
            timeline: &timeline,
            samples: &[],
            blobs: &[],
            error: None,
            processors: 2,
            dropped: 0,
        });
        assert!(!html.contains("<script"), "{html}");
    }
}

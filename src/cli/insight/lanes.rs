//! The rows of bars: who did what, and when. Kinds of work differ by colour and by texture, and what is said about a
//! bar stands above it, on a plain ground.

use super::analysis::{Bar, Timeline, Work};
use super::page::{escape, put, time};

/// More rows of threads than this are of no use to anyone.
const MAX_ROWS: usize = 80;

/// Shorter bars than this part of the whole are not drawn: there may be a hundred thousand of them.
const MIN_SHARE: f64 = 0.000_2;

/// A row from its top: words, bars, the mark of the critical path.
const BAR_TOP: u32 = 15;
const BAR_HEIGHT: u32 = 26;
const MARK_HEIGHT: u32 = 4;

/// Where something lies on the page, in percent of the whole.
pub struct Scale {
    begin_us: u64,
    duration_us: f64,
}

impl Scale {
    pub fn of(timeline: &Timeline) -> Self {
        Scale { begin_us: timeline.begin_us, duration_us: timeline.duration_us().max(1) as f64 }
    }

    pub fn at(&self, us: u64) -> f64 {
        us.saturating_sub(self.begin_us) as f64 / self.duration_us * 100.0
    }

    /// The axis below a picture.
    pub fn ticks(&self) -> String {
        let tick =
            |part: u32| format!("<span>{}</span>", time((self.duration_us * f64::from(part) / 4.0) as u64));
        format!("<div class=\"ticks\">{}</div>\n", (0..=4).map(tick).collect::<String>())
    }
}

/// What makes a kind of work known without its colour: lines over its ground, eight by eight. `light` ones are for dark
/// grounds.
fn texture(work: Work) -> (&'static str, bool) {
    match work {
        Work::Plan => ("M1 2h2M5 6h2", false),
        Work::Read => ("M0 4h8", false),
        Work::Write => ("M4 0v8", true),
        Work::Inflate | Work::Other => ("", false),
        Work::Hash => ("M0 8L8 0M-2 2L2 -2M6 10L10 6", false),
        Work::Apply => ("M0 0L8 8M-2 6L2 10M6 -2L10 2", true),
        Work::Publish => ("M0 4h8M4 0v8", false),
        Work::Snapshot => ("M0 0L8 8M0 8L8 0", true),
        // Wide stripes on the page's own ground: nobody worked here.
        Work::Wait => ("M0 8L8 0M-2 2L2 -2M6 10L10 6", false),
        Work::Sync => ("M0 2h8M0 6h8", true),
    }
}

/// The grounds of all kinds, for the whole page.
pub fn textures() -> String {
    let pattern = |work: Work| {
        let ((lines, light), class) = (texture(work), work.class());
        let tone = if light { "light" } else { "dark" };
        format!(
            "<pattern id=\"{class}\" width=\"8\" height=\"8\" patternUnits=\"userSpaceOnUse\"><rect class=\"ground {class}\" width=\"8\" \
             height=\"8\"/><path class=\"lines {tone} {class}\" d=\"{lines}\"/></pattern>"
        )
    };
    let patterns: String = Work::ALL.into_iter().map(pattern).collect();
    format!(
        "<svg width=\"0\" height=\"0\" class=\"textures\" aria-hidden=\"true\"><defs>{patterns}</defs></svg>\n"
    )
}

/// All rows, with what explains them.
pub fn lanes(timeline: &Timeline) -> String {
    let scale = Scale::of(timeline);
    let mut html = String::from(
        "<h2>Who did what, and when</h2>\n<p class=\"soft\">One row for each thread, time from left to right. Where stages take turns on one thread, chunk by \
         chunk, a bar shows their shares. A thick line below a bar: it is on the critical path.</p>\n",
    );
    html += &legend(timeline);
    html += &row("path", "Critical path: what nothing could overtake", &timeline.critical, &scale);
    for one in timeline.rows.iter().take(MAX_ROWS) {
        html += &row("lane", &thread_words(&one.name), &one.bars, &scale);
    }
    if let Some(more) = timeline.rows.len().checked_sub(MAX_ROWS).filter(|more| *more > 0) {
        put(&mut html, format_args!("<p class=\"soft\">{more} more threads are not shown.</p>\n"));
    }
    html + &scale.ticks()
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
        let words = if work == Work::Other { "idle between chunks, or other" } else { work.words() };
        format!(
            "<li><svg aria-hidden=\"true\"><rect fill=\"url(#{})\" width=\"26\" height=\"16\"/></svg>{words}</li>",
            work.class()
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
    let mut rect = |kind: std::fmt::Arguments<'_>, x: f64, width: f64, y: u32, height: u32| {
        let place = format_args!("x=\"{x:.3}%\" y=\"{y}\" width=\"{width:.3}%\" height=\"{height}\"");
        put(&mut html, format_args!("<rect {kind} {place}/>"));
    };
    let sum = bar.shares.iter().map(|(_, us)| *us).sum::<u64>().max(1) as f64;
    let mut at = left;
    for (work, us) in &bar.shares {
        let part = *us as f64 / sum * width;
        rect(format_args!("fill=\"url(#{})\"", work.class()), at, part, BAR_TOP, BAR_HEIGHT);
        at += part;
    }
    rect(format_args!("class=\"edge\""), left, width, BAR_TOP, BAR_HEIGHT);
    if mark && bar.critical {
        rect(format_args!("class=\"critical\""), left, width, BAR_TOP + BAR_HEIGHT, MARK_HEIGHT);
    }
    html += &label(bar, left, width);
    html + "</g>"
}

/// What a bar is, above it, as far as there is room: a letter takes about 0.6 % of a page's width, on a phone three times
/// as much.
fn label(bar: &Bar, left: f64, width: f64) -> String {
    let needs = |text: &str| text.chars().count() as f64 * 0.6;
    let digest = bar.label.rsplit(' ').next().filter(|word| word.len() == 12 && bar.label.len() > 12);
    let Some(text) =
        [Some(bar.label.as_str()), digest].into_iter().flatten().find(|text| needs(text) < width)
    else {
        return String::new();
    };
    let class = if width < needs(text) * 3.0 { " class=\"short\"" } else { "" };
    format!("<text{class} x=\"{left:.3}%\" y=\"11\">{}</text>", escape(text))
}

fn title(bar: &Bar) -> String {
    let shares = bar.shares.iter().filter(|(_, us)| *us * 100 >= bar.duration_us());
    let shares: Vec<String> = shares.map(|(work, us)| format!("{} {}", work.words(), time(*us))).collect();
    format!("{}, {}: {}", bar.label, time(bar.duration_us()), shares.join(", "))
}

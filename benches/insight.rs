//! What watching costs: an import as it is, and with `--trace` and `--timeline`, in turns, so that whatever else the
//! machine does hits both alike; and what there is to watch costs when nobody does.
//!
//! Watched against not watched: the median of the rounds' differences, by the clock on the wall and in processor time,
//! with the quartiles beside it, which say how much of it is noise.
//!
//! Nobody listens: a build without spans cannot be had in the same run, so it is counted and not compared. Spans of the
//! import times the price of one that nobody hears, measured here; and the clock, which is read for the report's
//! `stages_ms` whether anyone listens or not, [`CLOCKS_PER_CHUNK`] times the price of one reading.
//!
//! Ends with exit code 1 if a median is above what is promised.

mod common;

use common::image;
use std::hint::black_box;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

/// Rounds of one import each way. `--rounds N` for more.
const ROUNDS: usize = 21;

/// What is promised, in percent of an import.
const UNHEARD_PERCENT: f64 = 1.0;
const WATCHED_PERCENT: f64 = 3.0;

/// Stages look at the clock around each chunk of 64 KiB or more; so often at most, all of them together.
const CLOCKS_PER_CHUNK: usize = 12;
const CHUNK_BYTES: usize = 64 << 10;

fn main() -> ExitCode {
    let scratch = common::scratch();
    common::head("insight", scratch.path());
    let factor = common::factor();
    let shapes = [
        ("one big layer", 1, 128, 1_000_000 * factor),
        ("40 layers", 40, 50, 64_000 * factor),
        ("20000 small files", 4, 5000, 300 * factor),
    ];
    let headings = [
        "shape",
        "import, ms",
        "cpu, ms",
        "watched, %",
        "quartiles",
        "watched cpu, %",
        "quartiles",
        "spans",
        "unheard, %",
    ];
    let mut table = common::Table::new(&headings);
    let (span, clock) = (price(unheard_span), price(|_| _ = black_box(Instant::now())));
    let (mut most_watched, mut most_unheard) = (f64::MIN, f64::MIN);
    for (shape, layers, files, bytes) in shapes {
        let layers =
            (0..layers).map(|seed| common::layer(files, bytes, seed as u64).packed(image::Pack::Gzip));
        let count = layers.len();
        let image = layers.fold(image::image().name("bench:1"), image::Image::layer);
        let archive = scratch.path().join("image.tar");
        std::fs::write(&archive, image.oci()).expect("room for the archive");
        let rounds = rounds(&archive, scratch.path());
        let spans = spans(&scratch.path().join("trace.json"));
        let chunks = count * files * bytes / CHUNK_BYTES + count;
        let extra =
            span.as_secs_f64() * spans as f64 + clock.as_secs_f64() * (chunks * CLOCKS_PER_CHUNK) as f64;
        let unheard = extra / rounds.plain.wall.as_secs_f64() * 100.0;
        most_unheard = most_unheard.max(unheard);
        most_watched = most_watched.max(rounds.wall.median()).max(rounds.cpu.median());
        table.row(&[
            shape.into(),
            common::ms(rounds.plain.wall),
            common::ms(rounds.plain.cpu),
            format!("{:+.2}", rounds.wall.median()),
            rounds.wall.quartiles(),
            format!("{:+.2}", rounds.cpu.median()),
            rounds.cpu.quartiles(),
            spans.to_string(),
            format!("{unheard:.3}"),
        ]);
    }
    table.print();
    println!("unheard: a span {} ns, a look at the clock {} ns", span.as_nanos(), clock.as_nanos());
    println!("nobody listens: {most_unheard:.3} % at most, promised {UNHEARD_PERCENT} %");
    println!("--trace and --timeline: {most_watched:.2} % at most, promised {WATCHED_PERCENT} %");
    ExitCode::from(u8::from(most_unheard > UNHEARD_PERCENT || most_watched > WATCHED_PERCENT))
}

/// What one import took.
#[derive(Clone, Copy)]
struct Cost {
    wall: Duration,
    cpu: Duration,
}

/// In percent, in order.
struct Shares(Vec<f64>);

impl Shares {
    fn of(pairs: &[(Cost, Cost)], part: fn(&Cost) -> Duration) -> Self {
        let share = |(plain, watched): &(Cost, Cost)| {
            (part(watched).as_secs_f64() / part(plain).as_secs_f64() - 1.0) * 100.0
        };
        let mut shares: Vec<f64> = pairs.iter().map(share).collect();
        shares.sort_by(f64::total_cmp);
        Shares(shares)
    }

    fn median(&self) -> f64 {
        self.0[self.0.len() / 2]
    }

    fn quartiles(&self) -> String {
        format!("{:+.1} to {:+.1}", self.0[self.0.len() / 4], self.0[self.0.len() * 3 / 4])
    }
}

struct Rounds {
    /// Medians of the import as it is.
    plain: Cost,
    wall: Shares,
    cpu: Shares,
}

/// Every second round is the other way round; one before them, which does not count, warms up.
fn rounds(archive: &Path, scratch: &Path) -> Rounds {
    let (trace, page) = (scratch.join("trace.json"), scratch.join("page.html"));
    let files = ["--trace".as_ref(), trace.as_os_str(), "--timeline".as_ref(), page.as_os_str()];
    let pair = |round: usize| match round % 2 {
        0 => {
            let plain = import(archive, &[]);
            (plain, import(archive, &files))
        }
        _ => {
            let watched = import(archive, &files);
            (import(archive, &[]), watched)
        }
    };
    pair(0);
    let pairs: Vec<(Cost, Cost)> = (0..asked_rounds()).map(pair).collect();
    let middle = |part: fn(&Cost) -> Duration| {
        let mut times: Vec<Duration> = pairs.iter().map(|(plain, _)| part(plain)).collect();
        times.sort();
        times[times.len() / 2]
    };
    Rounds {
        plain: Cost { wall: middle(|cost| cost.wall), cpu: middle(|cost| cost.cpu) },
        wall: Shares::of(&pairs, |cost| cost.wall),
        cpu: Shares::of(&pairs, |cost| cost.cpu),
    }
}

fn asked_rounds() -> usize {
    let args: Vec<String> = std::env::args().collect();
    let given = args.iter().position(|arg| arg == "--rounds").and_then(|at| args.get(at + 1));
    given.map_or(ROUNDS, |text| text.parse().expect("rounds are a number")).max(1)
}

/// The whole program, since the watching is done by its face, into a store of its own.
fn import(archive: &Path, more: &[&std::ffi::OsStr]) -> Cost {
    let store = common::scratch();
    let mut command = Command::new(env!("CARGO_BIN_EXE_transload"));
    command.arg("--store").arg(store.path().join("store")).arg("import").args(more).arg(archive);
    if !rustix::process::geteuid().is_root() {
        command.arg("--ignore-chown");
    }
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let (began, before) = (Instant::now(), children_cpu());
    let status = command.status().expect("the program starts");
    let cost = Cost { wall: began.elapsed(), cpu: children_cpu() - before };
    assert!(status.success(), "{status}");
    cost
}

/// The processor time of all children that have ended.
fn children_cpu() -> Duration {
    // SAFETY: zeros are a valid rusage, and getrusage fills it in.
    let usage = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        assert_eq!(libc::getrusage(libc::RUSAGE_CHILDREN, &mut usage), 0);
        usage
    };
    let time = |time: libc::timeval| Duration::new(time.tv_sec as u64, time.tv_usec as u32 * 1000);
    time(usage.ru_utime) + time(usage.ru_stime)
}

fn spans(trace: &Path) -> usize {
    let trace: serde_json::Value =
        serde_json::from_slice(&std::fs::read(trace).expect("a trace")).expect("JSON");
    trace["traceEvents"].as_array().expect("events").iter().filter(|event| event["ph"] == "X").count()
}

/// The processor time of one call, when there are many.
fn price(call: impl Fn(u32)) -> Duration {
    const CALLS: u32 = 1_000_000;
    let now = || {
        let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
        Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
    };
    let began = now();
    (0..CALLS).for_each(call);
    (now() - began) / CALLS
}

/// A span like the engine's while there is no subscriber: made, three fields recorded, closed.
fn unheard_span(number: u32) {
    let span = tracing::debug_span!(
        target: "transload", "bench", digest = tracing::field::display(black_box(number)),
        bytes = tracing::field::Empty, busy_us = tracing::field::Empty, error = tracing::field::Empty
    );
    span.in_scope(|| {
        black_box(&span).record("bytes", black_box(number)).record("busy_us", number).record("error", "none");
    });
}

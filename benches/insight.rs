//! What watching costs: an import as it is, and with `--trace` and `--timeline`, in turns, so that whatever else the
//! machine does hits both alike; and what the spans cost when nobody listens, as the price of one times their number.

mod common;

use common::image;
use std::hint::black_box;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Rounds of one import each way. `--rounds N` for more.
const ROUNDS: usize = 15;

fn main() {
    let scratch = common::scratch();
    common::head("insight", scratch.path());
    let factor = common::factor();
    let shapes = [
        ("one big layer", vec![common::layer(64, 1_000_000 * factor, 1)]),
        ("40 layers", (0..40).map(|n| common::layer(50, 32_000 * factor, n)).collect()),
        ("20000 small files", (0..4).map(|n| common::layer(5000 * factor, 300, n)).collect()),
    ];
    let headings = ["shape", "import, ms", "watched, ms", "watching, %", "spans", "nobody listens, %"];
    let mut table = common::Table::new(&headings);
    let one_span = unheard_span();
    for (shape, layers) in shapes {
        let image = layers.into_iter().fold(image::image().name("bench:1"), image::Image::layer);
        let archive = scratch.path().join("image.tar");
        std::fs::write(&archive, image.oci()).expect("room for the archive");
        let (plain, watched, share) = rounds(&archive, scratch.path());
        let spans = spans(&scratch.path().join("trace.json"));
        let unheard = one_span.as_secs_f64() * spans as f64 / plain.as_secs_f64() * 100.0;
        let (share, unheard) = (format!("{share:+.2}"), format!("{unheard:.4}"));
        table.row(&[shape.into(), common::ms(plain), common::ms(watched), share, spans.to_string(), unheard]);
    }
    table.print();
    println!("a span that nobody listens to: {} ns", one_span.as_nanos());
}

/// Medians of both, and the median of each round's difference in percent. Every second round is the other way round.
fn rounds(archive: &Path, scratch: &Path) -> (Duration, Duration, f64) {
    let (trace, page) = (scratch.join("trace.json"), scratch.join("page.html"));
    let files = ["--trace".as_ref(), trace.as_os_str(), "--timeline".as_ref(), page.as_os_str()];
    let pairs: Vec<(Duration, Duration)> = (0..asked_rounds())
        .map(|round| match round % 2 {
            0 => (import(archive, &[]), import(archive, &files)),
            _ => {
                let watched = import(archive, &files);
                (import(archive, &[]), watched)
            }
        })
        .collect();
    let share =
        |(plain, watched): &(Duration, Duration)| (watched.as_secs_f64() / plain.as_secs_f64() - 1.0) * 100.0;
    let mut shares: Vec<f64> = pairs.iter().map(share).collect();
    shares.sort_by(f64::total_cmp);
    let middle = |mut times: Vec<Duration>| {
        times.sort();
        times[times.len() / 2]
    };
    let (plain, watched) = pairs.into_iter().unzip();
    (middle(plain), middle(watched), shares[shares.len() / 2])
}

fn asked_rounds() -> usize {
    let args: Vec<String> = std::env::args().collect();
    let given = args.iter().position(|arg| arg == "--rounds").and_then(|at| args.get(at + 1));
    given.map_or(ROUNDS, |text| text.parse().expect("rounds are a number")).max(1)
}

/// The whole program, since the watching is done by its face, into a store of its own.
fn import(archive: &Path, more: &[&std::ffi::OsStr]) -> Duration {
    let store = common::scratch();
    let mut command = Command::new(env!("CARGO_BIN_EXE_transload"));
    command.arg("--store").arg(store.path().join("store")).arg("import").args(more).arg(archive);
    if !rustix::process::geteuid().is_root() {
        command.arg("--ignore-chown");
    }
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let began = Instant::now();
    let status = command.status().expect("the program starts");
    let took = began.elapsed();
    assert!(status.success(), "{status}");
    took
}

fn spans(trace: &Path) -> usize {
    let trace: serde_json::Value =
        serde_json::from_slice(&std::fs::read(trace).expect("a trace")).expect("JSON");
    trace["traceEvents"].as_array().expect("events").iter().filter(|event| event["ph"] == "X").count()
}

/// The price of a span like the engine's while there is no subscriber: made, two fields recorded, closed.
fn unheard_span() -> Duration {
    const SPANS: u32 = 1_000_000;
    let began = Instant::now();
    for number in 0..SPANS {
        let span = tracing::debug_span!(
            target: "transload", "bench", digest = tracing::field::display(black_box(number)),
            bytes = tracing::field::Empty, error = tracing::field::Empty
        );
        span.in_scope(|| {
            black_box(&span).record("bytes", black_box(number)).record("error", "none");
        });
    }
    began.elapsed() / SPANS
}

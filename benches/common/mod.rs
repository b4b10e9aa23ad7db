//! What the benches share: where they write, how they repeat, tables, and made-up data that compresses like files do.
//!
//! No framework: each bench is a program that prints a table and ends within a minute on two cores. `--factor N` (or
//! `TRANSLOAD_BENCH_FACTOR`) multiplies the amount of data.
#![allow(dead_code, reason = "each bench uses its own part")]

#[path = "../../tests/support/image.rs"]
pub mod image;

use std::path::Path;
use std::time::{Duration, Instant};

/// How much more data than by default.
pub fn factor() -> usize {
    let args: Vec<String> = std::env::args().collect();
    let given = args.iter().position(|arg| arg == "--factor").and_then(|at| args.get(at + 1).cloned());
    let given = given.or_else(|| std::env::var("TRANSLOAD_BENCH_FACTOR").ok());
    given.map_or(1, |text| text.parse().expect("a factor is a whole number")).max(1)
}

/// How many lanes an engine gets.
pub fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// A directory in memory where there is /dev/shm, so that the disk is not what is measured.
pub fn scratch() -> tempfile::TempDir {
    let shm = Path::new("/dev/shm");
    let builder = || {
        let mut builder = tempfile::Builder::new();
        builder.prefix("transload-bench-");
        builder
    };
    builder().tempdir_in(shm).or_else(|_| builder().tempdir()).expect("a temporary directory")
}

/// The first line: what this was measured on.
pub fn head(name: &str, scratch: &Path) {
    let kind = rustix::fs::statfs(scratch).map(|stat| stat.f_type as u64).unwrap_or(0);
    let filesystem = match kind {
        0x0102_1994 => "tmpfs".to_string(),
        0xef53 => "ext4".to_string(),
        0x5846_5342 => "xfs".to_string(),
        0x9123_683e => "btrfs".to_string(),
        0x794c_7630 => "overlayfs".to_string(),
        other => format!("filesystem {other:#x}"),
    };
    println!("{name}: {} cores, {filesystem}, factor {}", cores(), factor());
    if cfg!(debug_assertions) {
        println!("(built without optimisation: the figures mean nothing)");
    }
}

/// The median time of several runs. Each gets what `prepare` made for it, which is not timed.
pub fn median<T, R>(runs: usize, mut prepare: impl FnMut() -> T, mut run: impl FnMut(T) -> R) -> Duration {
    let mut times: Vec<Duration> = (0..runs)
        .map(|_| {
            let given = prepare();
            let began = Instant::now();
            let kept = run(given);
            let time = began.elapsed();
            drop(kept);
            time
        })
        .collect();
    times.sort();
    times[times.len() / 2]
}

pub fn ms(time: Duration) -> String {
    format!("{:.1}", time.as_secs_f64() * 1e3)
}

/// Megabytes (10⁶) per second.
pub fn rate(bytes: u64, time: Duration) -> String {
    format!("{:.0}", bytes as f64 / 1e6 / time.as_secs_f64())
}

/// Columns that line up; the first to the left, the others to the right.
pub struct Table(Vec<Vec<String>>);

impl Table {
    pub fn new(head: &[&str]) -> Self {
        Table(vec![head.iter().map(|name| name.to_string()).collect()])
    }

    pub fn row(&mut self, cells: &[String]) {
        self.0.push(cells.to_vec());
    }

    pub fn print(&self) {
        let width = |at: usize| self.0.iter().map(|row| row[at].chars().count()).max().unwrap_or(0);
        for row in &self.0 {
            let cell = |(at, cell): (usize, &String)| match at {
                0 => format!("{cell:<0$}", width(at)),
                _ => format!("{cell:>0$}", width(at)),
            };
            println!("{}", row.iter().enumerate().map(cell).collect::<Vec<_>>().join("  "));
        }
    }
}

/// Bytes that compress about threefold, different for each seed.
pub fn text(bytes: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let words: Vec<[u8; 8]> = (0..4096).map(|_| next().to_le_bytes()).collect();
    let mut out = Vec::with_capacity(bytes + 8);
    while out.len() < bytes {
        out.extend_from_slice(&words[(next() % 4096) as usize]);
    }
    out.truncate(bytes);
    out
}

/// A layer of `files` files of `bytes` each, in directories of a hundred.
pub fn layer(files: usize, bytes: usize, seed: u64) -> image::Layer {
    (0..files).fold(image::layer(), |layer, n| {
        let layer = if n % 100 == 0 { layer.dir(&format!("/s{seed}/d{}", n / 100)) } else { layer };
        let data = text(bytes, seed * 1_000_003 + n as u64);
        layer.file(&format!("/s{seed}/d{}/f{n}", n / 100), data)
    })
}

/// The options that work for root and for others.
pub fn options() -> transload::ImportOptions {
    let ignore_chown = !rustix::process::geteuid().is_root();
    transload::ImportOptions { ignore_chown, ..Default::default() }
}

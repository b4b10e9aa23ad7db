//! Once only, under load: the same and overlapping images imported at the same moment by 1 to 64 threads of one process,
//! and by several processes. Each case has a fresh store.
//!
//! Printed are blobs written ÷ distinct blobs and layers extracted ÷ distinct layers, from the counters of the imports
//! over what lies in the store; wall time against one import; and the time that an import spent waiting for others. A
//! ratio other than 1.000 is a fault, and the program exits with 1.

mod common;

use common::{Table, image};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Barrier;
use std::time::{Duration, Instant};
use transload::{Cancel, Engine, EngineOptions, Input, progress::Silent};

/// Set for the processes that this program starts of itself: the store, then the archives, one a line.
const CHILD: &str = "TRANSLOAD_BENCH_DEDUP_CHILD";

fn main() {
    if let Ok(job) = std::env::var(CHILD) {
        return child(&job);
    }
    let scratch = common::scratch();
    common::head("dedup", scratch.path());
    let mut once = true;
    for (kind, archives) in archives(scratch.path()) {
        let one = one_process(&archives[..1], 1).wall;
        for (what, archives) in [("the same image", &archives[..1]), ("overlapping images", &archives[..])] {
            println!("\n{what}, {kind}; one import takes {} ms", common::ms(one));
            once &= table(archives, one);
        }
    }
    if !once {
        eprintln!("something was written or extracted more than once, or not at all");
        std::process::exit(1);
    }
}

/// Three images of six layers: the second shares four with the first, the third two with each.
fn archives(dir: &Path) -> Vec<(&'static str, Vec<PathBuf>)> {
    let bytes = 20_000 * common::factor();
    let layers: Vec<_> = (0..10).map(|seed| common::layer(30, bytes, seed)).collect();
    let pick = |which: [usize; 6]| which.iter().map(|n| layers[*n].clone()).collect::<Vec<_>>();
    let stacks = [[0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 6, 7], [0, 1, 4, 6, 8, 9]];
    let mut kinds = vec![("plain tar", Vec::new()), ("tar.gz, a stream", Vec::new())];
    for (n, stack) in stacks.into_iter().enumerate() {
        let image = image::image().name(&format!("bench/{n}:1"));
        let plain = pick(stack).into_iter().fold(image, image::Image::layer).oci();
        for (at, data) in [image::gzip(&plain), plain].into_iter().rev().enumerate() {
            let path = dir.join(format!("{n}-{at}"));
            std::fs::write(&path, data).expect("room for the archive");
            kinds[at].1.push(path);
        }
    }
    kinds
}

fn table(archives: &[PathBuf], one: Duration) -> bool {
    let mut table = Table::new(&[
        "importers",
        "blobs",
        "written ÷ distinct",
        "layers",
        "extracted ÷ distinct",
        "ms",
        "× one",
        "waiting, ms each",
    ]);
    let mut once = true;
    let mut row = |name: String, ran: Ran| {
        once &= ran.counts.blobs == ran.distinct.0 && ran.counts.trees == ran.distinct.1;
        let ratio = |done: u64, distinct: u64| format!("{:.3}", done as f64 / distinct as f64);
        table.row(&[
            name,
            ran.distinct.0.to_string(),
            ratio(ran.counts.blobs, ran.distinct.0),
            ran.distinct.1.to_string(),
            ratio(ran.counts.trees, ran.distinct.1),
            common::ms(ran.wall),
            format!("{:.2}", ran.wall.as_secs_f64() / one.as_secs_f64()),
            format!("{:.1}", ran.counts.wait_ms as f64 / ran.importers as f64),
        ]);
    };
    for threads in [1, 2, 4, 8, 16, 32, 64] {
        row(format!("{threads} threads"), one_process(archives, threads));
    }
    for (processes, threads) in [(2, 1), (8, 1), (8, 8)] {
        row(format!("{processes} processes of {threads}"), several_processes(archives, processes, threads));
    }
    table.print();
    once
}

/// What a case came to.
struct Ran {
    importers: usize,
    counts: Counts,
    /// Blobs and trees that lie in the store.
    distinct: (u64, u64),
    wall: Duration,
}

/// The counters of all imports of a process.
#[derive(Default)]
struct Counts {
    blobs: u64,
    trees: u64,
    wait_ms: u64,
}

fn one_process(archives: &[PathBuf], threads: usize) -> Ran {
    let dir = common::scratch();
    let store = dir.path().join("store");
    let engine = open(&store);
    let began = Instant::now();
    let counts = import_all(&engine, archives, threads, 0);
    Ran { importers: threads, counts, wall: began.elapsed(), distinct: distinct(&store) }
}

fn open(store: &Path) -> Engine {
    Engine::open(store, EngineOptions::default()).expect("a store")
}

/// Every thread imports one archive, all at the same moment.
fn import_all(engine: &Engine, archives: &[PathBuf], threads: usize, first: usize) -> Counts {
    let start = Barrier::new(threads);
    let one = |n: usize| {
        start.wait();
        let input = Input::Path(archives[(first + n) % archives.len()].clone());
        engine.import(input, &common::options(), &Silent, &Cancel::new()).expect("our own image")
    };
    let mut counts = Counts::default();
    std::thread::scope(|scope| {
        let one = &one;
        let imports: Vec<_> = (0..threads).map(|n| scope.spawn(move || one(n))).collect();
        for import in imports {
            let report = import.join().expect("no panic");
            counts.blobs += report.blobs.new;
            counts.trees += report.trees.new;
            counts.wait_ms += report.stages_ms.wait;
        }
    });
    counts
}

fn several_processes(archives: &[PathBuf], processes: usize, threads: usize) -> Ran {
    let dir = common::scratch();
    let store = dir.path().join("store");
    drop(open(&store));
    let mut children: Vec<Child> =
        (0..processes).map(|n| start(&store, archives, threads, n * threads)).collect();
    // Each says that it has opened the store; then all may go.
    let mut outputs: Vec<_> =
        children.iter_mut().map(|child| BufReader::new(child.stdout.take().expect("a pipe"))).collect();
    outputs.iter_mut().for_each(|output| assert_eq!(line(output), "ready"));
    let began = Instant::now();
    children.iter_mut().for_each(|child| drop(child.stdin.take()));
    let mut counts = Counts::default();
    for output in &mut outputs {
        let numbers: Vec<u64> = line(output).split(' ').map(|word| word.parse().expect("a count")).collect();
        counts.blobs += numbers[0];
        counts.trees += numbers[1];
        counts.wait_ms += numbers[2];
    }
    let wall = began.elapsed();
    children.iter_mut().for_each(|child| assert!(child.wait().expect("its end").success()));
    Ran { importers: processes * threads, counts, wall, distinct: distinct(&store) }
}

fn start(store: &Path, archives: &[PathBuf], threads: usize, first: usize) -> Child {
    let mut job = format!("{threads}\n{first}\n{}", store.display());
    archives.iter().for_each(|archive| job.push_str(&format!("\n{}", archive.display())));
    let mut command = Command::new(std::env::current_exe().expect("this program"));
    command.env(CHILD, job).stdin(Stdio::piped()).stdout(Stdio::piped());
    command.spawn().expect("this program starts")
}

fn line(reader: &mut impl BufRead) -> String {
    let mut text = String::new();
    reader.read_line(&mut text).expect("a line from the child");
    text.trim_end().to_string()
}

fn child(job: &str) {
    let lines: Vec<&str> = job.lines().collect();
    let number = |at: usize| lines[at].parse::<usize>().expect("a number");
    let archives: Vec<PathBuf> = lines[3..].iter().map(PathBuf::from).collect();
    let engine = open(Path::new(lines[2]));
    println!("ready");
    std::io::stdout().flush().expect("the parent listens");
    // The parent closes our stdin when all are ready.
    let _ = std::io::stdin().read_line(&mut String::new());
    let counts = import_all(&engine, &archives, number(0), number(1));
    println!("{} {} {}", counts.blobs, counts.trees, counts.wait_ms);
}

/// Blobs and trees in the store, counted on the disk.
fn distinct(store: &Path) -> (u64, u64) {
    let count =
        |dir: &str| std::fs::read_dir(store.join(dir)).expect("a directory of the store").count() as u64;
    (count("blobs/sha256"), count("trees"))
}

//! The fuzz targets without a fuzzer: what they do with their input is done with the seeds, and with seeds that were changed at
//! random. That finds less than cargo-fuzz, which sees where an input leads, but it is built and run with all other tests.
//!
//! A test does a thousand changes, the same each time. With `TRANSLOAD_FUZZ_SECONDS` it goes on so long, with others each time;
//! `TRANSLOAD_FUZZ_SEED` repeats a run.

mod support;
#[path = "../fuzz/src/lib.rs"]
mod targets;

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::Path;
use std::process::Command;
use std::sync::LazyLock;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tempfile::TempDir;

/// As much as cargo-fuzz is told to try.
const MOST: usize = 32 << 10;
const FEW: u64 = 1000;

/// Numbers that a reader may stumble over, as text and as bytes.
const WORDS: [&[u8]; 14] = [
    b"0",
    b"-1",
    b"77777777777",
    b"99999999999999999999",
    b"\xff\xff\xff\xff",
    b"\x80\0\0\0",
    b"\0\0\0\0",
    b"..",
    b"/",
    b".wh.",
    b"sha256:",
    b"path=",
    b"size=",
    b"ustar\x0000",
];

/// The corpora, seeded once.
static CORPUS: LazyLock<Option<TempDir>> = LazyLock::new(|| {
    if !support::tools::have(&["python3", "tar"]) {
        return None;
    }
    let dir = support::scratch();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seed.py");
    support::run::run(Command::new("python3").arg(script).arg(dir.path())).ok();
    Some(dir)
});

fn seeds(target: &str) -> Option<Vec<Vec<u8>>> {
    let place = CORPUS.as_ref()?.path().join(target);
    let mut paths: Vec<_> =
        std::fs::read_dir(place).expect("a corpus").map(|entry| entry.expect("an entry").path()).collect();
    paths.sort();
    assert!(paths.len() > 5, "{target} has {} seeds", paths.len());
    Some(paths.iter().map(|path| std::fs::read(path).expect("a seed")).collect())
}

/// Small numbers that anybody can repeat.
struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as usize % end.max(1)
    }

    /// Some part of `length`, in whole blocks half of the time: that is how tars are made.
    fn range(&mut self, length: usize) -> std::ops::Range<usize> {
        let grain = if self.below(2) == 0 { 512 } else { 1 };
        let start = self.below(length / grain + 1) * grain;
        let most = if grain == 1 { 16 } else { 2048 };
        start..(start + (1 + self.below(most / grain)) * grain).min(length).max(start)
    }
}

/// A seed with some changes.
fn changed(random: &mut Random, seeds: &[Vec<u8>]) -> Vec<u8> {
    let mut data = seeds[random.below(seeds.len())].clone();
    data.truncate(MOST);
    for _ in 0..1 + random.below(6) {
        let range = random.range(data.len());
        let at = random.below(data.len());
        match random.below(9) {
            0 | 1 if !data.is_empty() => data[at] ^= 1 << random.below(8),
            2 if !data.is_empty() => data[at] = random.below(256) as u8,
            3 => {
                let word = WORDS[random.below(WORDS.len())];
                let end = (at + word.len()).min(data.len());
                data.splice(at..end, word.iter().copied());
            }
            4 => drop(data.drain(range)),
            5 => {
                let copy = data[range].to_vec();
                data.splice(at..at, copy);
            }
            6 => {
                let other = &seeds[random.below(seeds.len())];
                let copy = other[random.range(other.len())].to_vec();
                data.splice(range, copy);
            }
            7 => data.truncate(at),
            // A digit: sizes, lengths, versions.
            _ => {
                if let Some(digit) = data[at..].iter_mut().find(|byte| byte.is_ascii_digit()) {
                    *digit = b'0' + random.below(10) as u8;
                }
            }
        }
    }
    data.truncate(MOST);
    data
}

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().map(|text| text.parse().expect("a number"))
}

/// Runs one; what it fails on is kept.
fn run(target: &str, run: fn(&[u8]), input: &[u8]) {
    if let Err(panic) = catch_unwind(AssertUnwindSafe(|| run(input))) {
        let path = std::env::temp_dir().join(format!("transload-fuzz-{target}-{}", std::process::id()));
        std::fs::write(&path, input).expect("the input is kept");
        eprintln!("{target}: 'cargo fuzz run {target} {}' shows it again", path.display());
        resume_unwind(panic);
    }
}

fn fuzz(target: &str, one: fn(&[u8])) {
    let Some(seeds) = seeds(target) else { return };
    seeds.iter().for_each(|seed| run(target, one, seed));
    let seconds = number("TRANSLOAD_FUZZ_SECONDS");
    let now = || SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |time| time.as_nanos() as u64);
    let start =
        number("TRANSLOAD_FUZZ_SEED").unwrap_or_else(|| if seconds.is_some() { now() } else { 1 }).max(1);
    eprintln!("{target}: TRANSLOAD_FUZZ_SEED={start}");
    let mut random = Random(start);
    let (began, mut executions) = (Instant::now(), 0);
    loop {
        let enough = match seconds {
            Some(seconds) => began.elapsed() >= Duration::from_secs(seconds),
            None => executions >= FEW,
        };
        if enough {
            break;
        }
        run(target, one, &changed(&mut random, &seeds));
        executions += 1;
    }
    println!("{target}: {executions} executions, 0 findings");
}

#[test]
fn archives() {
    fuzz("archive", targets::archive::run);
}

#[test]
fn codecs() {
    fuzz("codecs", targets::codecs::run);
}

#[test]
fn manifests() {
    fuzz("manifests", targets::manifests::run);
}

#[test]
fn references() {
    fuzz("references", targets::references::run);
}

#[test]
fn tar_layers() {
    fuzz("tar_layer", targets::tar_layer::run);
}

#[test]
fn whiteouts() {
    fuzz("whiteouts", targets::whiteouts::run);
}

#[test]
fn an_entry_that_one_reader_of_tars_sees_alone_is_a_finding() {
    let mut tar = Vec::new();
    targets::entry(&mut tar, b'0', b"one", b"", 0o644, b"data");
    let first = tar.len();
    targets::entry(&mut tar, b'0', b"two", b"", 0o644, b"data");
    for end in [&[][..], &[0; 512], &[0; 1024]] {
        let whole = [&tar[..], end].concat();
        let cut = [&tar[..first], end].concat();
        let entries = targets::tar_layer::ours(&whole).0;
        let finding = |tar: &[u8], entries: &[_], whole| {
            catch_unwind(|| targets::tar_layer::compare_with_tar_core(tar, entries, whole)).is_err()
        };
        assert!(!finding(&whole, &entries, true));
        assert!(finding(&whole, &entries[..1], true), "tar-core alone");
        assert!(!finding(&whole, &entries[..1], false), "who refuses shows nothing more");
        assert!(finding(&cut, &entries, true), "we alone");
    }
}

#[test]
fn a_change_is_one_and_fits() {
    let seeds: Vec<Vec<u8>> = vec![Vec::new(), b"a".to_vec(), vec![7; 5000], vec![b'0'; 2 * MOST]];
    let mut random = Random(1);
    let made: Vec<Vec<u8>> = (0..2000).map(|_| changed(&mut random, &seeds)).collect();
    assert!(made.iter().all(|data| data.len() <= MOST));
    let others = made.iter().filter(|data| !seeds.contains(data)).count();
    assert!(others > 1000, "{others} differ from the seeds");
}

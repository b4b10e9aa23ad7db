//! What each death is set into, and the questions that are asked after it: a directory for stores, the archives, and what importing
//! them one after the other gives; what is wrong with what shows at once; and what is lost or left over once a user has gone on.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::support::run::{Ran, command, run as finished, transload};
use crate::support::scratch;
use crate::support::soundness::{
    Contents, archives, bad_blobs, contents, damage, differences, faulty, leftovers, unpacked, visible,
};
use crate::support::tally::thorough;

pub const FIRST: &str = "example.com/first:1";
pub const SECOND: &str = "example.com/second:1";

/// Archives, and what importing them one after the other gives.
pub struct Scene {
    pub dir: tempfile::TempDir,
    pub archives: Vec<PathBuf>,
    pub first: Contents,
    pub both: Contents,
    /// What each name is when it is unpacked.
    pub roots: Vec<(&'static str, Vec<String>)>,
    runs: u64,
}

impl Scene {
    pub fn new() -> Scene {
        Scene::of(64)
    }

    /// With images of about so many times 50 KiB.
    pub fn of(kib: usize) -> Scene {
        let dir = scratch();
        let archives = archives(dir.path(), kib);
        let store = dir.path().join("expected");
        import(&store, &archives[0]).ok();
        let first = contents(&store);
        import(&store, &archives[1]).ok();
        let both = contents(&store);
        let root = |name| (name, unpacked(&store, "", name, dir.path()).expect("unpacks"));
        let roots = [FIRST, SECOND].map(root).to_vec();
        Scene { dir, archives, first, both, roots, runs: 0 }
    }

    /// The place of one more store.
    pub fn store(&mut self) -> PathBuf {
        self.runs += 1;
        self.dir.path().join(format!("store-{}", self.runs))
    }

    /// The points that a command reaches, each with how often, in a store that `before` has prepared.
    pub fn points(&mut self, before: impl Fn(&Path), args: &[&str]) -> Vec<(String, u64)> {
        let store = self.store();
        before(&store);
        self.points_of(&mut command(&store, args))
    }

    /// The same of a command that has its store.
    pub fn points_of(&self, run: &mut Command) -> Vec<(String, u64)> {
        let report = self.dir.path().join("points");
        let ran = finished(run.env("TRANSLOAD_FAILPOINTS_REPORT", &report));
        let text = std::fs::read_to_string(&report).unwrap_or_else(|e| panic!("{}: {e}", ran.stderr));
        std::fs::remove_file(report).expect("removes");
        let line = |line: &str| {
            let (point, count) = line.split_once(' ').expect("a point and a count");
            (point.to_string(), count.parse().expect("a count"))
        };
        text.lines().map(line).filter(|(point, _)| point != "*").collect()
    }

    /// How long an import takes here, now.
    pub fn one_import(&mut self) -> Duration {
        let store = self.store();
        let started = Instant::now();
        import(&store, &self.archives[0]).ok();
        started.elapsed()
    }

    /// What is wrong with what shows right after a death.
    pub fn at_once(&self, store: &Path, must_show: &[&str], may_show: &[&str]) -> Vec<String> {
        let shown = match visible(store, "") {
            Ok(shown) => shown,
            Err(error) => return vec![error],
        };
        let mut wrong = bad_blobs(store);
        wrong.extend(damage(store, ""));
        wrong.extend(
            must_show.iter().filter(|name| !shown.contains_key(**name)).map(|name| format!("{name} is lost")),
        );
        for name in shown.into_keys() {
            match self.roots.iter().find(|(root, _)| *root == name) {
                Some((_, expected)) if may_show.contains(&name.as_str()) => {
                    match unpacked(store, "", &name, self.dir.path()) {
                        Ok(found) if found == *expected => {}
                        Ok(_) => wrong.push(format!("{name} shows and is another tree")),
                        Err(error) => wrong.push(error),
                    }
                }
                _ => wrong.push(format!("{name} shows and should not")),
            }
        }
        wrong
    }

    /// Goes on after a death as a user would, and tells what is not as it should be: lost, and left over.
    pub fn go_on(&self, store: &Path, again: &[&Path], expected: &Contents) -> (Vec<String>, Vec<String>) {
        let mut wrong = Vec::new();
        for archive in again {
            let ran = import(store, archive);
            if ran.code != Some(0) {
                wrong.push(format!("importing again: {:?} {}", ran.code, ran.stderr));
            }
        }
        let ran = transload(store, ["gc"]);
        if ran.code != Some(0) {
            wrong.push(format!("collecting: {:?} {}", ran.code, ran.stderr));
        }
        wrong.extend(damage(store, ""));
        let (more, less): (Vec<String>, Vec<String>) = differences(expected, &contents(store))
            .into_iter()
            .partition(|line| line.ends_with("is too much"));
        wrong.extend(less);
        let leaked = leftovers(store).into_iter().chain(more).collect();
        let _ = std::fs::remove_dir_all(store);
        (wrong, leaked)
    }
}

pub fn import(store: &Path, archive: &Path) -> Ran {
    transload(store, ["import", "-q", &archive.to_string_lossy()])
}

/// Starts an import with fail points, and does not wait.
pub fn start(store: &Path, archive: &Path, faults: &str) -> Child {
    let mut command = faulty(store, faults, &["import", "-q", &archive.to_string_lossy()]);
    command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("the program starts")
}

/// Which of `count` times to die at: all of them when there is time, else the first, the last and some between.
pub fn moments(count: u64) -> Vec<u64> {
    spread(count, if thorough() { count } else { 4 })
}

/// At most so many of `count` moments and one more, the first and the last among them.
pub fn spread(count: u64, at_most: u64) -> Vec<u64> {
    let step = (count / at_most.clamp(1, count)).max(1);
    let mut moments: Vec<u64> = (1..=count).step_by(step as usize).take(at_most as usize).collect();
    moments.push(count);
    moments.dedup();
    moments
}

/// Whole numbers that look random and are the same in every run.
pub struct Dice(pub u64);

impl Dice {
    pub fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit.max(1)
    }
}

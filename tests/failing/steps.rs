//! Each step fails in turn: of an import, from a file and from a stream, of a removal and of a collection. What is reported as done
//! although a step has failed is named here with the reason; all else ends with exit code 1 and the cause. A swallowed failure of a
//! sync would otherwise be seen by nobody until the power fails.

use super::{FIRST, Scene, failed_well, import};
use crate::support::run::{Ran, run as finished, transload};
use crate::support::soundness::faulty;
use crate::support::tally::{Tally, thorough};
use std::collections::BTreeMap;
use std::path::Path;
use transload::parallel::failpoint;
use transload::snapshot::Labels;
use transload::store::Store;

const ERRORS: [(&str, &str); 3] =
    [("enospc", "No space left"), ("eio", "Input/output error"), ("emfile", "Too many open files")];

/// A step that may fail without the command failing.
struct Spared {
    point: &'static str,
    /// With this error alone.
    error: Option<&'static str>,
    /// The last times that it is reached; before them it must not fail.
    last: u64,
    why: &'static str,
}

const fn spared(point: &'static str, last: u64, why: &'static str) -> Spared {
    Spared { point, error: None, last, why }
}

const fn full(point: &'static str, last: u64) -> Spared {
    Spared { point, error: Some("enospc"), last, why: OPENING }
}

const OPENING: &str =
    "a store on a full disk can be opened, and what is missing of these is written at the next opening";
const LEASE: &str = "a lease that is left ends with its process, and a collection takes it";
const AFTERWARDS: &str =
    "the work is done: its lease ends with its process, and its line in the history is no promise";

const OF_IMPORTS: &[Spared] = &[
    spared("lease.release", 1, LEASE),
    spared("lease.unlink", 1, LEASE),
    spared("transaction.begin", 2, AFTERWARDS),
    spared("transaction.commit", 2, AFTERWARDS),
    spared("transaction.committed", 2, AFTERWARDS),
    full("oci-layout.create", 1),
    full("oci-layout.write", 1),
    full("oci-layout.rename", 1),
    full("index.json.create", 2),
    full("index.json.write", 2),
    full("index.json.rename", 2),
];

const ESTIMATE: &str = "how much the next collection frees is an estimate";
const MEASURE: &str = "what cannot be measured is removed all the same";

const OF_REMOVALS: &[Spared] =
    &[spared("gc.list", u64::MAX, ESTIMATE), spared("gc.measure", u64::MAX, ESTIMATE)];

const OF_COLLECTIONS: &[Spared] = &[spared("gc.measure", u64::MAX, MEASURE)];

/// What is done to a store, and what may fail of it.
struct Work<'a> {
    part: &'static str,
    before: &'a dyn Fn(&Path),
    words: &'a [&'a str],
    spared: &'static [Spared],
    failed: fn(&Ran, &str) -> Vec<String>,
    at_least: u64,
}

impl Work<'_> {
    fn spares(&self, point: &str, error: &str, from_the_end: u64) -> bool {
        let is_this = |spared: &&Spared| {
            let with_this = spared.error.is_none_or(|only| only == error);
            spared.point == point && with_this && from_the_end < spared.last
        };
        let found = self.spared.iter().find(is_this);
        found.iter().for_each(|spared| eprintln!("{point}={error} fails nothing: {}", spared.why));
        found.is_some()
    }
}

impl Scene {
    /// Runs with fail points, and tells which points were reached how often.
    fn with_points(&self, store: &Path, faults: &str, words: &[&str]) -> (Ran, BTreeMap<String, u64>) {
        let report = self.dir.path().join("points");
        let _ = std::fs::remove_file(&report);
        let mut run = faulty(store, faults, words);
        let ran = finished(run.env("TRANSLOAD_FAILPOINTS_REPORT", &report));
        let text = std::fs::read_to_string(&report).unwrap_or_default();
        let line = |line: &str| {
            let (point, count) = line.split_once(' ').expect("a point and a count");
            (point.to_string(), count.parse().expect("a count"))
        };
        (ran, text.lines().map(line).filter(|(point, _)| point != "*").collect())
    }

    /// What is wrong after one fault; `None` if it was not reached, since threads share the steps otherwise every time.
    fn after_a_fault(
        &self,
        work: &Work<'_>,
        point: &str,
        error: &(&str, &str),
        moment: u64,
    ) -> Option<Vec<String>> {
        let store = self.store("store");
        (work.before)(&store);
        let (ran, points) = self.with_points(&store, &format!("{point}={}@{moment}", error.0), work.words);
        let reached = points.get(point).copied().unwrap_or_default();
        if reached < moment {
            ran.ok();
            return None;
        }
        Some(match ran.code {
            Some(0) if work.spares(point, error.0, reached - moment) => Vec::new(),
            Some(0) => vec![format!("{}: done, though this has failed, {} of {reached}", work.part, moment)],
            _ => (work.failed)(&ran, error.1),
        })
    }

    fn each_step_fails(&self, work: &Work<'_>) {
        let mut tally = Tally::new(work.part);
        let store = self.store("counted");
        (work.before)(&store);
        let (ran, points) = self.with_points(&store, "", work.words);
        ran.ok();
        for (number, (point, count)) in points.iter().enumerate() {
            let step = if thorough() { 1 } else { (count / 2).max(1) };
            for moment in (1..=*count).step_by(step as usize) {
                // All three take turns at each point when there is no time for all.
                let one = (number + moment as usize) % 3;
                for error in if thorough() { &ERRORS[..] } else { &ERRORS[one..=one] } {
                    let Some(mut lost) = self.after_a_fault(work, point, error, moment) else { continue };
                    let (more, leaked) = self.usable(&self.dir.path().join("store"));
                    lost.extend(more);
                    tally.fault(&format!("{point}={}@{moment}", error.0), lost, leaked);
                }
            }
        }
        tally.end(work.at_least);
    }
}

fn says_why(ran: &Ran, cause: &str) -> Vec<String> {
    failed_well(ran, &[1], cause)
}

#[test]
fn a_step_that_fails_says_why_and_the_store_stays_usable() {
    let scene = Scene::new();
    scene.each_step_fails(&Work {
        part: "ENOSPC, EIO, EMFILE at each step",
        before: &|_| {},
        words: &scene.words(&["import", "-q"]),
        spared: OF_IMPORTS,
        failed: says_why,
        at_least: 30,
    });
}

#[test]
fn a_step_of_a_stream_that_fails_says_why_and_the_store_stays_usable() {
    let scene = Scene::new();
    let stream = scene.archives[2].to_str().expect("text");
    scene.each_step_fails(&Work {
        part: "ENOSPC, EIO, EMFILE at each step of a stream",
        before: &|_| {},
        words: &["import", "-q", stream],
        spared: OF_IMPORTS,
        failed: says_why,
        at_least: 30,
    });
}

#[test]
fn a_step_of_a_removal_that_fails_says_why_and_the_store_stays_usable() {
    let scene = Scene::new();
    scene.each_step_fails(&Work {
        part: "ENOSPC, EIO, EMFILE at each step of rm",
        before: &|store| drop(import(store, &scene.archives[0]).ok()),
        words: &["rm", FIRST],
        spared: OF_REMOVALS,
        failed: says_why,
        at_least: 5,
    });
}

/// It goes on with the rest, and tells of each thing that it could not remove.
fn says_why_among_others(ran: &Ran, cause: &str) -> Vec<String> {
    let said = format!("{}{}", ran.text(), ran.stderr);
    let well = ran.code == Some(1) && said.contains(cause) && !said.contains("panicked");
    if well { Vec::new() } else { vec![format!("{} ended with {:?}: {said}", ran.command, ran.code)] }
}

#[test]
fn a_step_of_a_collection_that_fails_says_why_and_the_store_stays_usable() {
    let scene = Scene::new();
    scene.each_step_fails(&Work {
        part: "ENOSPC, EIO, EMFILE at each step of gc",
        before: &|store| {
            import(store, &scene.archives[0]).ok();
            transload(store, ["rm", FIRST]).ok();
        },
        words: &["gc"],
        spared: OF_COLLECTIONS,
        failed: says_why_among_others,
        at_least: 10,
    });
}

/// In this process, because no command commits a snapshot; only points that nobody else here reaches.
#[test]
fn a_step_of_a_commit_that_fails_leaves_the_snapshot_to_be_committed_again() {
    let scene = Scene::new();
    let path = scene.store("store");
    import(&path, &scene.archives[0]).ok();
    let store = Store::open(&path, &Default::default()).expect("opens");
    let (snapshots, none) = (store.snapshotter(), Labels::new());
    let commit = |faults: &str| {
        failpoint::configure(faults).expect("fail points");
        let done = snapshots.commit("committed", "active", &none, None);
        let mut points = failpoint::hits();
        failpoint::configure("").expect("none");
        points.retain(|point, _| point.starts_with("snapshot."));
        (done, points)
    };
    let prepare = || snapshots.prepare("active", None, &none).expect("prepares");
    prepare();
    let (done, points) = commit("");
    done.expect("commits");
    assert!(points.contains_key("snapshot.sync") && points.len() > 2, "{points:?}");
    let mut tally = Tally::new("ENOSPC, EIO, EMFILE at each step of a snapshot's commit");
    for (point, (error, cause)) in points.keys().flat_map(|point| ERRORS.map(|error| (point, error))) {
        snapshots.remove("committed").expect("removes");
        prepare();
        let (failed, _) = commit(&format!("{point}={error}"));
        let mut lost = match failed {
            Ok(_) => vec!["committed, though this has failed".to_string()],
            Err(error) if error.to_string().contains(cause) => Vec::new(),
            Err(error) => vec![format!("another cause: {error}")],
        };
        lost.extend(snapshots.stat("committed").is_ok().then(|| "it is committed".to_string()));
        lost.extend(commit("").0.err().map(|error| format!("committed again: {error}")));
        tally.fault(&format!("{point}={error}"), lost, Vec::new());
    }
    snapshots.remove("committed").expect("removes");
    let (lost, leaked) = scene.usable(&path);
    tally.fault("all of them", lost, leaked);
    tally.end(9);
}

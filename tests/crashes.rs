//! The process dies at every durable step, and at random moments, alone and among others; the next one finds a usable store
//! and makes it good, without anyone's help.
//!
//! After each death: the store opens, every blob is what its name says, an image that shows is whole, importing again succeeds
//! and gives, byte for byte, what one import on its own gives, and a collection leaves nothing over.

mod support;

use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use support::run::{Ran, command, run as finished, transload};
use support::scratch;
use support::soundness::{
    Contents, archives, bad_blobs, contents, damage, differences, leftovers, unpacked, visible, with_faults,
};
use support::tally::{Tally, thorough};

const FIRST: &str = "example.com/first:1";
const SECOND: &str = "example.com/second:1";

/// Archives, and what importing them one after the other gives.
struct Scene {
    dir: tempfile::TempDir,
    archives: Vec<PathBuf>,
    first: Contents,
    both: Contents,
    roots: Vec<(&'static str, Vec<String>)>,
    runs: u64,
}

impl Scene {
    fn new() -> Scene {
        let dir = scratch();
        let archives = archives(dir.path(), 64);
        let store = dir.path().join("expected");
        import(&store, &archives[0]).ok();
        let first = contents(&store);
        import(&store, &archives[1]).ok();
        let both = contents(&store);
        let root = |name| (name, unpacked(&store, "", name, dir.path()).expect("unpacks"));
        let roots = [FIRST, SECOND].map(root).to_vec();
        Scene { dir, archives, first, both, roots, runs: 0 }
    }

    fn store(&mut self) -> PathBuf {
        self.runs += 1;
        self.dir.path().join(format!("store-{}", self.runs))
    }

    /// The points that a command reaches, each with how often, in a store that `before` has prepared.
    fn points(&mut self, before: impl Fn(&Path), args: &[&str]) -> Vec<(String, u64)> {
        let store = self.store();
        before(&store);
        let report = self.dir.path().join("points");
        let mut run = command(&store, args);
        run.env("TRANSLOAD_FAILPOINTS_REPORT", &report);
        finished(&mut run).ok();
        let text = std::fs::read_to_string(report).expect("a report");
        let line = |line: &str| {
            let (point, count) = line.split_once(' ').expect("a point and a count");
            (point.to_string(), count.parse().expect("a count"))
        };
        text.lines().map(line).filter(|(point, _)| point != "*").collect()
    }

    /// What is wrong with what shows right after a death.
    fn at_once(&self, store: &Path, must_show: &[&str], may_show: &[&str]) -> Vec<String> {
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
    fn go_on(&self, store: &Path, again: &[&Path], expected: &Contents) -> (Vec<String>, Vec<String>) {
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

fn import(store: &Path, archive: &Path) -> Ran {
    transload(store, ["import", "-q", &archive.to_string_lossy()])
}

/// Which of `count` times to die at: all of them when there is time, else the first, the last and some between.
fn moments(count: u64) -> Vec<u64> {
    let step = if thorough() { 1 } else { (count / 3).max(1) };
    let mut moments: Vec<u64> = (1..=count).step_by(step as usize).collect();
    moments.push(count);
    moments.dedup();
    moments
}

#[test]
fn an_import_that_dies_at_any_step_is_made_good_by_the_next() {
    let mut scene = Scene::new();
    let mut tally = Tally::new("killed at each step of an import");
    let archives = scene.archives.clone();
    // Into a store that is not there yet; and, as a stream, into one that has half of it.
    let rounds: [(&[&Path], &Path, &[&str], bool); 2] =
        [(&[], &archives[0], &[], false), (&[&archives[0]], &archives[1], &[FIRST], true)];
    for (before, archive, shown, second) in rounds {
        let prepare = |store: &Path| before.iter().for_each(|archive| drop(import(store, archive).ok()));
        let args = ["import", "-q", &archive.to_string_lossy()];
        for (point, count) in scene.points(prepare, &args) {
            for moment in moments(count) {
                let store = scene.store();
                prepare(&store);
                let what = format!("{point}=kill@{moment}");
                let ran = with_faults(&store, &what, &args);
                if ran.code.is_some() {
                    // Threads share the steps otherwise every time, and this one was not reached.
                    assert_eq!(ran.code, Some(0), "{what}: {}", ran.stderr);
                    continue;
                }
                let may = [FIRST, SECOND];
                let mut lost = scene.at_once(&store, shown, &may[..1 + usize::from(second)]);
                let expected = if second { &scene.both } else { &scene.first };
                let (more, leaked) = scene.go_on(&store, &[archive], expected);
                lost.extend(more);
                tally.fault(&format!("{} {what}", archive.display()), lost, leaked);
            }
        }
    }
    tally.end(40);
}

#[test]
fn a_removal_or_a_collection_that_dies_at_any_step_is_made_good_by_the_next() {
    let mut scene = Scene::new();
    let mut tally = Tally::new("killed at each step of rm and gc");
    let archives = scene.archives.clone();
    let both = |store: &Path| archives[..2].iter().for_each(|archive| drop(import(store, archive).ok()));
    let removed = |store: &Path| {
        both(store);
        transload(store, ["rm", SECOND]).ok();
    };
    type Round<'a> = (&'a dyn Fn(&Path), &'a [&'a str], &'a [&'a str]);
    let rounds: [Round<'_>; 2] = [(&both, &["rm", SECOND], &[FIRST, SECOND]), (&removed, &["gc"], &[FIRST])];
    for (prepare, args, may_show) in rounds {
        for (point, count) in scene.points(prepare, args) {
            for moment in moments(count) {
                let store = scene.store();
                prepare(&store);
                let what = format!("{point}=kill@{moment}");
                if with_faults(&store, &what, args).code.is_some() {
                    continue;
                }
                let mut lost = scene.at_once(&store, &[FIRST], may_show);
                // Removing again is an answer either way.
                transload(&store, ["rm", SECOND]);
                let (more, leaked) = scene.go_on(&store, &[], &scene.first);
                lost.extend(more);
                tally.fault(&format!("{} {what}", args[0]), lost, leaked);
            }
        }
    }
    tally.end(20);
}

/// Whole numbers that look random and are the same in every run.
struct Dice(u64);

impl Dice {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit.max(1)
    }
}

fn start(store: &Path, archive: &Path) -> Child {
    let mut command = command(store, ["import", "-q", &archive.to_string_lossy()]);
    command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("the program starts")
}

#[test]
fn an_import_killed_at_a_random_moment_is_made_good_by_the_next() {
    let mut scene = Scene::new();
    let mut tally = Tally::new("killed at random moments, alone");
    let mut dice = Dice(0x5eed);
    let store = scene.store();
    let started = Instant::now();
    import(&store, &scene.archives[0]).ok();
    let whole = started.elapsed();
    for _ in 0..if thorough() { 400 } else { 12 } {
        let store = scene.store();
        let mut child = start(&store, &scene.archives[0]);
        std::thread::sleep(Duration::from_micros(dice.below(whole.as_micros() as u64)));
        child.kill().expect("signals");
        let ended = child.wait().expect("ends");
        let done: &[&str] = if ended.success() { &[FIRST] } else { &[] };
        let mut lost = scene.at_once(&store, done, &[FIRST]);
        let (more, leaked) = scene.go_on(&store, &[&scene.archives[0]], &scene.first);
        lost.extend(more);
        tally.fault("kill -9", lost, leaked);
    }
    tally.end(12);
}

#[test]
fn the_death_of_one_importer_among_four_harms_none_of_the_others() {
    let mut scene = Scene::new();
    let mut tally = Tally::new("killed at random moments, among three others");
    let mut dice = Dice(0xfade);
    let store = scene.store();
    let started = Instant::now();
    import(&store, &scene.archives[0]).ok();
    let whole = started.elapsed() * 2;
    for _ in 0..if thorough() { 200 } else { 8 } {
        let store = scene.store();
        let [first, second, stream] = scene.archives.as_slice() else { panic!("three archives") };
        let mut victim = start(&store, first);
        let others: Vec<Child> = [second, stream, first].map(|archive| start(&store, archive)).into();
        std::thread::sleep(Duration::from_micros(dice.below(whole.as_micros() as u64)));
        victim.kill().expect("signals");
        victim.wait().expect("ends");
        let mut lost = Vec::new();
        for other in others {
            let output = other.wait_with_output().expect("ends");
            if !output.status.success() {
                lost.push(format!("another failed: {}", String::from_utf8_lossy(&output.stderr)));
            }
        }
        lost.extend(scene.at_once(&store, &[FIRST, SECOND], &[FIRST, SECOND]));
        let (more, leaked) = scene.go_on(&store, &[], &scene.both);
        lost.extend(more);
        tally.fault("kill -9 of one of four", lost, leaked);
    }
    tally.end(8);
}

#[test]
fn after_a_reboot_a_collection_takes_all_that_a_killed_import_left() {
    let mut scene = Scene::new();
    let store = scene.store();
    let archive = scene.archives[0].to_string_lossy().into_owned();
    assert_eq!(with_faults(&store, "images.publish=kill", &["import", "-q", &archive]).code, None);
    assert!(std::fs::read_dir(store.join("snapshots")).expect("lists").count() > 0);
    let doctor = with_faults(&store, "boot=another", &["doctor"]).ok().text();
    assert!(doctor.contains("not synced before the system went down"), "{doctor}");
    with_faults(&store, "boot=another", &["gc"]).ok();
    for place in ["snapshots", "trees", "blobs/sha256", "ingest", "leases"] {
        assert_eq!(std::fs::read_dir(store.join(place)).expect("lists").count(), 0, "{place}");
    }
    assert_eq!(damage(&store, "boot=another"), Vec::<String>::new());
}

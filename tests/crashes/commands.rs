//! Every other command that writes dies at each of its steps; a program that prepares and commits a snapshot, too.
//!
//! A table: what is there before, what dies, and how somebody goes on. Right after a death the store answers every question as
//! it did before the command or as it does after it, and nothing in between; in the end it is, with all that it answers and
//! holds, what the command gives when nobody disturbs it.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::program::{self, answers_about_snapshots};
use crate::scene::{FIRST, SECOND, Scene, spread};
use crate::support::image::digest;
use crate::support::listing::listing;
use crate::support::mounts::Unmount;
use crate::support::run::{Ran, run};
use crate::support::soundness::{
    Contents, bad_blobs, but_for_now, contents, damage, differences, faulty, leftovers, unpacked, with_faults,
};
use crate::support::tally::{Tally, thorough};
use crate::support::tools::have;

/// `1` and `2` are archives; PLACE is a path outside the store, NEW it or another if it is there, RESULT the newest of the two;
/// `snapshot` is the program of program.rs.
type Words = &'static [&'static str];

/// A command, and what belongs to its death.
struct Deed {
    before: &'static [Words],
    /// What is broken then, for a command that mends it.
    hurt: Option<fn(&Path)>,
    words: Words,
    /// What somebody does after the death before the command is run again. It may find nothing to do.
    tidy: &'static [Words],
    /// The exit codes that are an answer to the command when it is run again.
    answers: &'static [i32],
    /// What comes after it, whether it died or not.
    after: &'static [Words],
}

const fn deed(before: &'static [Words], words: Words) -> Deed {
    Deed { before, hurt: None, words, tidy: &[], answers: &[0], after: &[] }
}

/// One that finds nothing when it is run after it was done.
const fn once(before: &'static [Words], words: Words) -> Deed {
    Deed { answers: &[0, 4], ..deed(before, words) }
}

const OTHER: &str = "example.com/other:1";
const IMPORT: Words = &["import", "-q", "1"];
const IMPORT_SECOND: Words = &["import", "-q", "2"];
const ONE: &[Words] = &[IMPORT];
const BOTH: &[Words] = &[IMPORT, IMPORT_SECOND];
const TAG: Words = &["tag", FIRST, OTHER];
const LABEL: Words = &["label", FIRST, "a=b", "c=d"];
const REMOVE: Words = &["rm", "--grace", "1d", SECOND];
const PREPARE: Words = &["snapshot", "prepare"];
const FILL: Words = &["snapshot", "fill"];
const COMMIT: Words = &["snapshot", "commit"];
const UNMOUNT: Words = &["umount", "PLACE"];

const NAMES: &[Deed] = &[
    deed(ONE, TAG),
    deed(&[IMPORT, IMPORT_SECOND, TAG], &["tag", SECOND, OTHER]),
    deed(ONE, &["pin", FIRST]),
    deed(&[IMPORT, &["pin", FIRST]], &["unpin", FIRST]),
    deed(ONE, LABEL),
    deed(&[IMPORT, LABEL], &["label", FIRST, "a="]),
    once(BOTH, REMOVE),
    once(&[IMPORT, IMPORT_SECOND, REMOVE], &["restore", SECOND]),
];

const CHECKS: &[Deed] = &[
    Deed { hurt: Some(harm_tree), ..deed(BOTH, &["fsck", "--repair"]) },
    // It cannot make a blob, and says so each time, until the image is imported again.
    Deed { hurt: Some(harm_blob), answers: &[0, 1], after: BOTH, ..deed(BOTH, &["fsck", "--repair"]) },
    Deed {
        hurt: Some(lose_database),
        ..deed(&[IMPORT, IMPORT_SECOND, TAG, PREPARE, FILL, COMMIT], &["fsck", "--rebuild"])
    },
];

const MOUNTS: &[Deed] = &[
    Deed { tidy: &[UNMOUNT], after: &[UNMOUNT], ..deed(ONE, &["mount", FIRST, "PLACE"]) },
    Deed { tidy: &[UNMOUNT], after: &[UNMOUNT], ..deed(ONE, &["mount", "--rw", FIRST, "PLACE"]) },
    once(&[IMPORT, &["mount", FIRST, "PLACE"]], UNMOUNT),
    Deed {
        tidy: &[UNMOUNT],
        after: &[&["umount", "RESULT"]],
        ..deed(ONE, &["bundle", FIRST, "NEW", "--", "/bin/true"])
    },
];

const COPIES: &[Deed] = &[deed(ONE, &["unpack", FIRST, "NEW"]), deed(ONE, &["export", "-o", "PLACE", FIRST])];

const SNAPSHOTS: &[Deed] = &[
    Deed { answers: &[0, program::THERE_ALREADY], after: &[FILL, COMMIT], ..deed(ONE, PREPARE) },
    once(&[IMPORT, PREPARE, FILL], COMMIT),
    once(&[IMPORT, PREPARE, FILL, COMMIT], &["rm", "--snapshot", program::COMMITTED]),
];

/// Writes over bytes of a file that are not its first.
fn overwrite(path: &Path) {
    use std::os::unix::fs::FileExt;
    let file = std::fs::OpenOptions::new().write(true).open(path).expect("opens");
    file.write_all_at(b"otherwise", 100).expect("writes");
}

fn harm_tree(store: &Path) {
    let trees = std::fs::read_dir(store.join("trees")).expect("lists");
    let places = trees.map(|tree| tree.expect("an entry").path().join("fs/data/a"));
    overwrite(&places.into_iter().find(|place| place.exists()).expect("a tree with this file"));
}

/// The biggest layer.
fn harm_blob(store: &Path) {
    let blobs = std::fs::read_dir(store.join("blobs/sha256")).expect("lists");
    let by_size = |path: &PathBuf| (std::fs::metadata(path).expect("a blob").len(), path.clone());
    let blob = blobs.map(|blob| blob.expect("an entry").path()).max_by_key(by_size).expect("a blob");
    overwrite(&blob);
}

fn lose_database(store: &Path) {
    for name in ["meta.db", "meta.db-wal", "meta.db-shm"] {
        let gone = std::fs::remove_file(store.join(name));
        assert!(gone.is_ok() || name != "meta.db", "{gone:?}");
    }
}

/// A store, and the places that its commands are given. Nothing stays mounted there.
struct Place {
    store: PathBuf,
    _mounts: [Unmount; 4],
}

impl Place {
    fn of(store: PathBuf) -> Place {
        let (place, again) = (store.with_extension("place"), store.with_extension("again"));
        let mounts = [place.join("rootfs"), place, again.join("rootfs"), again].map(Unmount);
        Place { store, _mounts: mounts }
    }

    fn at(&self, end: &str) -> PathBuf {
        self.store.with_extension(end)
    }

    fn fresh(&self) -> PathBuf {
        self.at(if self.at("place").exists() { "again" } else { "place" })
    }

    fn result(&self) -> PathBuf {
        if self.at("again").exists() { self.at("again") } else { self.at("place") }
    }

    /// What a command gave outside the store.
    fn given(&self) -> Vec<String> {
        let result = self.result();
        if result.is_dir() {
            return but_for_now(listing(&result));
        }
        std::fs::read(result).map_or(Vec::new(), |bytes| vec![digest(&bytes)])
    }

    /// All that the store says when it is asked, but for times.
    fn answers(&self) -> Vec<String> {
        let asked: [Words; 6] =
            [&["images"], &["pin"], &["restore"], &["mount"], &["label", FIRST], &["leases"]];
        let own = self.store.to_string_lossy();
        let answers = asked.iter().map(|words| {
            let ran = with_faults(&self.store, "", &[&["--json"], *words].concat());
            format!("{words:?}: {}", answer(&ran).replace(&*own, "STORE"))
        });
        answers.chain(answers_about_snapshots(&self.store)).collect()
    }
}

fn answer(ran: &Ran) -> String {
    match serde_json::from_slice::<Value>(&ran.stdout) {
        Ok(mut answer) => {
            without_times(&mut answer);
            // What a death left of a mount is told as such; it is none.
            if let Some(mounts) = answer["mounts"].as_array_mut() {
                mounts.retain(|mount| mount["mounted"] == true);
            }
            answer.to_string()
        }
        Err(_) => format!("{:?} {}{}", ran.code, ran.text(), ran.stderr),
    }
}

/// Nor with what a death leaves on purpose.
fn without_times(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields.retain(|name, _| !["imported", "removed_at", "kept_until"].contains(&name.as_str()));
            // The list of what was removed has the name of the time at which each of it was.
            fields.retain(|name, value| name != "removed" || !value.is_string());
            fields.values_mut().for_each(without_times);
        }
        Value::Array(values) => {
            // Leases of the dead hold what they did until a collection takes them.
            values.retain(|value| value["live"] != false);
            values.iter_mut().for_each(without_times);
        }
        _ => {}
    }
}

/// What everything comes to.
struct End {
    given: Vec<String>,
    root: Result<Vec<String>, String>,
    answers: Vec<String>,
    contents: Contents,
}

impl Scene {
    fn command(&self, place: &Place, faults: &str, words: &[&str]) -> Command {
        let word = |word: &&str| match *word {
            "1" => self.archives[0].clone(),
            "2" => self.archives[1].clone(),
            "PLACE" => place.at("place"),
            "NEW" => place.fresh(),
            "RESULT" => place.result(),
            other => other.into(),
        };
        match words {
            ["snapshot", verb] => program::command(&place.store, faults, verb),
            _ => faulty(&place.store, faults, &words.iter().map(word).collect::<Vec<_>>()),
        }
    }

    fn prepared(&mut self, deed: &Deed) -> Place {
        let place = Place::of(self.store());
        if deed.before.iter().chain([&deed.words]).any(|words| words[0] == "mount") {
            std::fs::create_dir(place.at("place")).expect("a mount point");
        }
        for words in deed.before {
            run(&mut self.command(&place, "", words)).ok();
        }
        deed.hurt.inspect(|hurt| hurt(&place.store));
        place
    }

    /// Goes on after the command, and tells what went wrong and what everything came to.
    fn to_the_end(&self, place: &Place, deed: &Deed) -> (Vec<String>, End) {
        let given = place.given();
        let steps = deed.after.iter().chain([&(&["gc"] as Words)]);
        let mut wrong: Vec<String> = steps.filter_map(|words| self.step(place, words, &[0])).collect();
        wrong.extend(damage(&place.store, ""));
        wrong.extend(bad_blobs(&place.store));
        let root = unpacked(&place.store, "", FIRST, self.dir.path());
        (wrong, End { given, root, answers: place.answers(), contents: contents(&place.store) })
    }

    fn step(&self, place: &Place, words: &[&str], answers: &[i32]) -> Option<String> {
        let ran = run(&mut self.command(place, "", words));
        let well = ran.code.is_some_and(|code| answers.contains(&code));
        (!well).then(|| format!("afterwards {words:?}: {:?} {}{}", ran.code, ran.text(), ran.stderr))
    }

    /// What is wrong after a death, and what is left over.
    fn after_death(
        &self,
        place: &Place,
        deed: &Deed,
        possible: &[Vec<String>; 2],
        expected: &End,
    ) -> (Vec<String>, Vec<String>) {
        let mut lost = Vec::new();
        let answers = place.answers();
        if !possible.contains(&answers) {
            lost.push(format!("neither as before nor as after: {answers:#?}\n{possible:#?}"));
        }
        if deed.hurt.is_none() {
            lost.extend(damage(&place.store, "").into_iter().chain(bad_blobs(&place.store)));
        }
        lost.extend(deed.tidy.iter().filter_map(|words| self.step(place, words, &[0, 4])));
        lost.extend(self.step(place, deed.words, deed.answers));
        let (wrong, end) = self.to_the_end(place, deed);
        lost.extend(wrong);
        let same = [
            ("what it gave", end.given == expected.given),
            ("the image", end.root == expected.root),
            ("an answer", end.answers == expected.answers),
        ];
        let differs = same.iter().filter(|(_, same)| !same).map(|(what, _)| format!("{what} is another"));
        lost.extend(differs);
        let (more, less): (Vec<String>, Vec<String>) = differences(&expected.contents, &end.contents)
            .into_iter()
            .partition(|line| line.ends_with("is too much"));
        lost.extend(less);
        (lost, leftovers(&place.store).into_iter().chain(more).collect())
    }

    fn dies_at_each_step(&mut self, deed: &Deed, tally: &mut Tally) {
        let place = self.prepared(deed);
        let before = place.answers();
        let points = self.points_of(&mut self.command(&place, "", deed.words));
        let possible = [before, place.answers()];
        let (wrong, expected) = self.to_the_end(&place, deed);
        assert_eq!(wrong, [] as [&str; 0], "{:?} undisturbed", deed.words);
        for (point, count) in points {
            for moment in spread(count, if thorough() { 12 } else { 1 }) {
                let place = self.prepared(deed);
                let what = format!("{point}=kill@{moment}");
                let ran = run(&mut self.command(&place, &what, deed.words));
                if ran.code.is_some() {
                    // Not reached: threads share the steps otherwise every time.
                    assert!(!ran.stderr.contains("panicked"), "{:?} {what}: {}", deed.words, ran.stderr);
                    continue;
                }
                let (lost, leaked) = self.after_death(&place, deed, &possible, &expected);
                tally.fault(&format!("{:?} {what}", deed.words), lost, leaked);
                let _ = std::fs::remove_dir_all(&place.store);
            }
        }
    }
}

fn all_die(part: &str, deeds: &[Deed], at_least: u64) {
    let mut scene = Scene::of(4);
    let mut tally = Tally::new(part);
    for deed in deeds {
        scene.dies_at_each_step(deed, &mut tally);
    }
    tally.end(at_least);
}

#[test]
fn a_change_of_names_pins_or_labels_that_dies_at_any_step_is_done_or_not_begun() {
    all_die("killed at each step of tag, pin, label, rm --grace and restore", NAMES, 50);
}

#[test]
fn a_repair_or_a_rebuild_that_dies_at_any_step_is_done_again() {
    all_die("killed at each step of fsck --repair and --rebuild", CHECKS, 40);
}

#[test]
fn a_mount_or_a_bundle_that_dies_at_any_step_leaves_nothing_that_stays() {
    if have(&["mount"]) {
        all_die("killed at each step of mount, umount and bundle", MOUNTS, 30);
    }
}

#[test]
fn an_unpacking_or_an_export_that_dies_at_any_step_harms_no_store() {
    all_die("killed at each step of unpack and export", COPIES, 16);
}

#[test]
fn a_snapshot_whose_program_dies_at_any_step_is_active_or_committed_and_whole() {
    all_die("killed at each step of a snapshot's life", SNAPSHOTS, 20);
}

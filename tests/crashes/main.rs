//! The process dies at every durable step, and at random moments, alone and among others; the next one finds a usable store
//! and makes it good, without anyone's help.
//!
//! After each death: the store opens, every blob is what its name says, an image that shows is whole, importing again succeeds
//! and gives, byte for byte, what one import on its own gives, and a collection leaves nothing over.

#[path = "../support/mod.rs"]
mod support;

mod beside;
mod commands;
mod program;
mod scene;

use std::path::Path;
use std::time::Duration;

use scene::{Dice, FIRST, SECOND, Scene, import, moments, start};
use support::run::transload;
use support::soundness::{damage, with_faults};
use support::tally::{Tally, thorough};

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

#[test]
fn an_import_killed_at_a_random_moment_is_made_good_by_the_next() {
    let mut scene = Scene::new();
    let mut tally = Tally::new("killed at random moments, alone");
    let mut dice = Dice(0x5eed);
    let whole = scene.one_import();
    for _ in 0..if thorough() { 400 } else { 12 } {
        let store = scene.store();
        let mut child = start(&store, &scene.archives[0], "");
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

//! One importer of four dies, at each step or at a random moment: the others go on as if it had never been there.

use std::path::Path;
use std::process::Child;
use std::time::Duration;

use crate::scene::{Dice, FIRST, SECOND, Scene, spread, start};
use crate::support::run::until_stopped;
use crate::support::soundness::{contents, differences};
use crate::support::tally::{Tally, thorough};

/// How one importer comes to its step.
#[derive(Clone, Copy, Debug)]
enum Manner {
    /// It stands still at the step, with all that it holds, while the others run into that, and dies there.
    Waits,
    /// It races the others, and may find its work done.
    Races,
}

impl Scene {
    fn three_others(&self, store: &Path) -> Vec<Child> {
        let [first, second, stream] = self.archives.as_slice() else { panic!("three archives") };
        [second, stream, first].map(|archive| start(store, archive, "")).into()
    }

    /// What is wrong, and what is left over, after the death of one of four.
    fn after_one_of_four(&self, store: &Path, others: Vec<Child>) -> (Vec<String>, Vec<String>) {
        let mut lost = Vec::new();
        for other in others {
            let output = other.wait_with_output().expect("ends");
            if !output.status.success() {
                lost.push(format!("another failed: {}", String::from_utf8_lossy(&output.stderr)));
            }
        }
        lost.extend(self.at_once(store, &[FIRST, SECOND], &[FIRST, SECOND]));
        let (more, leaked) = self.go_on(store, &[], &self.both);
        lost.extend(more);
        (lost, leaked)
    }

    /// Lets one of four die at a step. Gives the others, and whether it did die.
    fn one_dies_at(
        &self,
        store: &Path,
        archive: &Path,
        (point, moment): (&str, u64),
        manner: Manner,
        pause: Duration,
    ) -> (Vec<Child>, bool) {
        let action = if matches!(manner, Manner::Waits) { "stop" } else { "kill" };
        let mut victim = start(store, archive, &format!("{point}={action}@{moment}"));
        if matches!(manner, Manner::Waits) {
            until_stopped(&victim);
        }
        let others = self.three_others(store);
        if matches!(manner, Manner::Waits) {
            std::thread::sleep(pause);
            victim.kill().expect("signals");
        }
        let ended = victim.wait_with_output().expect("ends");
        let done = ended.status.code();
        let said = String::from_utf8_lossy(&ended.stderr);
        assert!(matches!(done, None | Some(0)), "{point} {action} {moment}: {done:?} {said}");
        (others, done.is_none())
    }
}

#[test]
fn an_importer_that_dies_at_any_step_harms_none_of_the_three_beside_it() {
    let mut scene = Scene::new();
    let mut tally = Tally::new("killed at each step of an import, among three others");
    let mut dice = Dice(0xbea7);
    let whole = scene.one_import() * 2;
    // A file that is read in any order, and a stream.
    for archive in [scene.archives[0].clone(), scene.archives[2].clone()] {
        let args = ["import", "-q", &archive.to_string_lossy()];
        let points = scene.points(|_| (), &args);
        for (number, (point, count)) in points.iter().enumerate() {
            for (turn, moment) in spread(*count, if thorough() { 6 } else { 1 }).into_iter().enumerate() {
                let one = [Manner::Waits, Manner::Races][(number + turn) % 2];
                let manners: &[_] = if thorough() { &[Manner::Waits, Manner::Races] } else { &[one] };
                for manner in manners {
                    let store = scene.store();
                    let pause = Duration::from_micros(dice.below(whole.as_micros() as u64));
                    let (others, died) = scene.one_dies_at(&store, &archive, (point, moment), *manner, pause);
                    let (lost, leaked) = scene.after_one_of_four(&store, others);
                    let what = format!("{} {manner:?} at {point}, {moment}", archive.display());
                    if died || !lost.is_empty() {
                        tally.fault(&what, lost, leaked);
                    }
                }
            }
        }
    }
    // All that stand still at their step, and more.
    tally.end(if thorough() { 250 } else { 60 });
}

#[test]
fn the_death_of_one_importer_among_four_harms_none_of_the_others() {
    let mut scene = Scene::new();
    let mut tally = Tally::new("killed at random moments, among three others");
    let mut dice = Dice(0xfade);
    let whole = scene.one_import() * 2;
    for _ in 0..if thorough() { 200 } else { 8 } {
        let store = scene.store();
        let mut victim = start(&store, &scene.archives[0], "");
        let others = scene.three_others(&store);
        std::thread::sleep(Duration::from_micros(dice.below(whole.as_micros() as u64)));
        victim.kill().expect("signals");
        victim.wait().expect("ends");
        let (lost, leaked) = scene.after_one_of_four(&store, others);
        tally.fault("kill -9 of one of four", lost, leaked);
    }
    tally.end(8);
}

/// A layer's directory has its number before its row is seen, and its working place is free from then on.
#[test]
fn who_waited_for_a_layer_knows_that_another_has_just_made_it() {
    let mut scene = Scene::new();
    for _ in 0..2 {
        let store = scene.store();
        let slow = |_| start(&store, &scene.archives[0], "transaction.commit=sleep:10");
        for child in (0..4).map(slow).collect::<Vec<_>>() {
            let output = child.wait_with_output().expect("ends");
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        }
        assert_eq!(differences(&scene.first, &contents(&store)), [] as [&str; 0]);
    }
}

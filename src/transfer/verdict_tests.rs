//! Forged logs, one for each verdict.

use super::What::{Blob, Snapshot, Tree};
use super::*;

const KEY: &str = "sha256:aa";

/// `time process import act`, in which act is one of `start`, `end`, `fail`, `gc`, or `plan|claim|make` and `blob|tree|snapshot`.
fn records(log: &str) -> Vec<Record> {
    log.lines().map(str::trim).filter(|line| !line.is_empty()).map(record).collect()
}

fn record(line: &str) -> Record {
    let words: Vec<&str> = line.split_whitespace().collect();
    let key = || {
        let what = match words[4] {
            "blob" => Blob,
            "tree" => Tree,
            "snapshot" => Snapshot,
            other => panic!("{other}"),
        };
        (what, KEY.to_string())
    };
    let act = match words[3] {
        "start" => Act::Started,
        "end" => Act::Ended { ok: true },
        "fail" => Act::Ended { ok: false },
        "gc" => Act::Collected,
        "plan" => Act::Planned(key().0, key().1),
        "claim" => Act::Claimed(key().0, key().1),
        "make" => Act::Made(key().0, key().1),
        other => panic!("{other}"),
    };
    let at_us = words[0].parse().expect("a time");
    Record { at_us, store: "s".into(), process: words[1].into(), import: words[2].into(), act }
}

fn step(log: &str) -> Option<Step> {
    judge(&records(log)).step
}

#[test]
fn one_import_that_does_everything_once_is_fine() {
    let verdict = judge(&records(
        "1 p i start\n2 p i plan blob\n3 p i claim blob\n4 p i make blob\n5 p i claim tree\n6 p i make tree
         7 p i make snapshot\n8 p i end",
    ));
    assert!(verdict.once && verdict.step.is_none());
    assert_eq!((verdict.imports, verdict.processes, verdict.unfinished, verdict.made), (1, 1, 0, 3));
}

#[test]
fn a_plan_that_lists_a_blob_twice_is_the_plans_fault() {
    let log =
        "1 p i plan blob\n2 p i plan blob\n3 p i claim blob\n4 p i claim blob\n5 p i make blob\n9 p i end";
    assert_eq!(step(log), Some(Step::Plan));
    // Listed twice and done once: the claim has caught it.
    assert_eq!(step("1 p i plan blob\n2 p i plan blob\n3 p i claim blob\n4 p i make blob\n9 p i end"), None);
    // Two compressions of one layer are two entries, and one tree.
    let log = "1 p i plan tree\n2 p i plan tree\n3 p i claim tree\n4 p i claim tree\n9 p i end";
    assert_eq!(step(log), Some(Step::Claim));
}

#[test]
fn two_lanes_or_imports_of_one_process_with_one_right_are_the_claims_fault() {
    assert_eq!(
        step("1 p i plan blob\n3 p i claim blob\n4 p i claim blob\n5 p i make blob\n9 p i end"),
        Some(Step::Claim)
    );
    assert_eq!(step("3 p i make tree\n4 p i make tree\n9 p i end"), Some(Step::Claim));
    let log = "1 p i claim blob\n2 p j claim blob\n3 p i make blob\n4 p j make blob\n8 p i end\n9 p j end";
    assert_eq!(step(log), Some(Step::Claim));
}

#[test]
fn two_processes_with_one_right_at_once_are_the_locks_fault() {
    let verdict = judge(&records(
        "1 p i claim tree\n2 q j claim tree\n3 p i make tree\n4 q j make tree\n8 p i end\n9 q j end",
    ));
    assert_eq!(verdict.step, Some(Step::CrossProcess));
    let finding = &verdict.findings[0];
    assert_eq!((finding.what, finding.claimed, finding.made), (Tree, 2, 2));
    assert_eq!(
        (finding.imports.join(" "), finding.processes.join(" ")),
        ("i j".to_string(), "p q".to_string())
    );
    // Records of several logs come in any order.
    let log = "4 q j make tree\n9 q j end\n2 q j claim tree\n1 p i claim tree\n3 p i make tree\n8 p i end";
    assert_eq!(step(log), Some(Step::CrossProcess));
}

#[test]
fn a_snapshot_that_is_prepared_again_is_the_snapshotters_fault() {
    let log =
        "1 p i claim blob\n2 p i make blob\n3 p i make snapshot\n5 p i end\n6 q j make snapshot\n9 q j end";
    let verdict = judge(&records(log));
    assert_eq!(verdict.step, Some(Step::Snapshot));
    assert_eq!(verdict.findings[0].what, Snapshot);
}

#[test]
fn what_was_finished_and_is_written_again_points_at_the_content_store() {
    let log = "1 p i claim blob\n2 p i make blob\n5 p i end\n6 q j claim blob\n7 q j make blob\n9 q j end";
    assert_eq!(step(log), Some(Step::ContentStore));
}

#[test]
fn work_that_is_done_again_for_a_reason_is_no_fault() {
    for (why, log) in [
        (
            "collected meanwhile",
            "1 p i claim blob\n2 p i make blob\n5 p i end\n6 g g gc\n7 q j claim blob\n8 q j make blob\n9 q j end",
        ),
        (
            "failed and handed on",
            "1 p i claim blob\n2 p i fail\n3 q j claim blob\n4 q j make blob\n9 q j end",
        ),
        (
            "handed on while another fails",
            "1 p i claim blob\n3 p j claim blob\n4 p i fail\n5 p j make blob\n9 p j end",
        ),
        ("killed", "1 p i claim blob\n3 q j claim blob\n4 q j make blob\n9 q j end"),
        (
            "killed after writing, and not trusted later",
            "1 p i claim tree\n2 p i make tree\n3 q j claim tree\n4 q j make tree\n9 q j end",
        ),
        (
            "overtaken: claimed by one and made by another",
            "1 p i claim blob\n3 q j make blob\n8 p i end\n9 q j end",
        ),
    ] {
        let verdict = judge(&records(log));
        assert!(verdict.once, "{why}: {verdict:?}");
    }
    // A collection before, or of another store, excuses nothing.
    let log = "1 g g gc\n2 p i make blob\n5 p i end\n7 q j make blob\n9 q j end";
    assert_eq!(step(log), Some(Step::ContentStore));
}

#[test]
fn stores_are_judged_apart_and_the_first_step_counts() {
    let mut other = records("6 q j claim blob\n7 q j make blob\n9 q j end");
    other.iter_mut().for_each(|record| record.store = "t".into());
    let mut log = records("1 p i claim blob\n2 p i make blob\n5 p i end");
    log.extend(other);
    assert!(judge(&log).once);
    log.extend(records("2 p i make snapshot\n3 p i make snapshot\n3 p i claim tree\n3 p i claim tree"));
    let verdict = judge(&log);
    assert_eq!((verdict.step, verdict.findings.len()), (Some(Step::Claim), 2));
}

//! What docs/observability.md promises: figures that Prometheus takes, a dashboard and rules that name only figures that
//! there are, log lines joined by a trace id, verdicts from recorded runs, and what the store saved so far.

mod support;

use serde_json::Value;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use support::image::{Pack, image, layer};
use support::run::{Ran, command, run, run_with_input, transload};
use support::{scratch, tools};
use transload::metrics::catalog;

fn sample(dir: &Path, name: &str) -> PathBuf {
    let below = layer().file("/base", vec![7; 30_000]).packed(Pack::Gzip);
    let bytes = image().name(name).layer(below).layer(layer().file("/top", name)).oci();
    let path = dir.join(format!("{name}.tar"));
    std::fs::write(&path, bytes).expect("an archive");
    path
}

fn garbage(dir: &Path) -> PathBuf {
    let path = dir.join("garbage");
    std::fs::write(&path, [7; 10_000]).expect("garbage");
    path
}

fn words<'a>(before: &[&'a str], path: &'a Path) -> Vec<&'a str> {
    before.iter().copied().chain(path.to_str()).collect()
}

fn docs() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/observability")
}

#[test]
fn figures_count_on_from_run_to_run_and_prometheus_takes_them() {
    let dir = scratch();
    let store = dir.path().join("store");
    let (archive, bad) = (sample(dir.path(), "a"), garbage(dir.path()));
    let file = dir.path().join("transload.prom");
    let figures = |words: &[&str]| {
        let all = ["--metrics-file", file.to_str().expect("text")].into_iter().chain(words.iter().copied());
        transload(&store, all.collect::<Vec<_>>())
    };
    for _ in 0..2 {
        figures(&words(&["import", "--audit"], &archive)).ok();
    }
    figures(&words(&["import"], &bad)).fails(3);
    figures(&["rm", "a"]).ok();
    for words in ["gc", "gc --dry-run", "stats", "du", "fsck", "doctor"] {
        let words: Vec<&str> = words.split(' ').collect();
        figures(&words);
    }
    let text = std::fs::read_to_string(&file).expect("figures");
    for line in [
        "transload_operations_total{operation=\"import\",outcome=\"ok\"} 2",
        "transload_operations_total{operation=\"import\",outcome=\"failed\"} 1",
        "transload_errors_total{kind=\"not_an_image\"} 1",
        "transload_operations_total{operation=\"rm\",outcome=\"ok\"} 1",
        "transload_operations_total{operation=\"gc\",outcome=\"ok\"} 1",
        "transload_operations_total{operation=\"fsck\",outcome=\"ok\"} 1",
        "transload_operations_total{operation=\"doctor\",outcome=\"ok\"} 1",
        "transload_operations_total{operation=\"prewarm\",outcome=\"failed\"} 0",
        "transload_blobs_total{outcome=\"new\"} 4",
        "transload_blobs_total{outcome=\"existing\"} 4",
        "transload_trees_total{outcome=\"existing\"} 2",
        "transload_claims_total{what=\"tree\"} 2",
        "transload_snapshot_prepares_total{kind=\"layer\"} 2",
        "transload_import_duration_seconds_count 2",
        "transload_audit_findings_total{step=\"claim\"} 0",
        "transload_gc_removed_total{what=\"tree\"} 2",
        "transload_store_objects{part=\"images\"} 0",
    ] {
        assert!(text.lines().any(|one| one == line), "{line} is not in\n{text}");
    }
    assert_eq!(text.matches("transload_chain_prepares_total{chain_id=\"sha256:").count(), 2, "{text}");
    if tools::have(&["promtool"]) {
        let checked =
            run_with_input(Command::new("promtool").args(["check", "metrics"]), text.as_bytes()).ok();
        assert_eq!((checked.text().as_str(), checked.stderr.as_str()), ("", ""), "not even a remark");
    }
}

#[test]
fn a_file_that_is_not_ours_is_refused_before_any_work() {
    let dir = scratch();
    let store = dir.path().join("store");
    let archive = sample(dir.path(), "a");
    let before = std::fs::read(&archive).expect("the archive");
    let archive = archive.to_str().expect("text");
    transload(&store, ["--metrics-file", archive, "import", archive]).fails(2);
    assert_eq!(std::fs::read(archive).expect("the archive"), before);
    assert!(!store.exists(), "nothing was begun");
}

#[test]
fn mounts_are_timed() {
    if !rustix::process::geteuid().is_root() {
        return tools::skip("not root");
    }
    let dir = scratch();
    let store = dir.path().join("store");
    transload(&store, words(&["import"], &sample(dir.path(), "a"))).ok();
    let (at, file) = (dir.path().join("at"), dir.path().join("m.prom"));
    std::fs::create_dir(&at).expect("a directory");
    let file_name = file.to_str().expect("text");
    let at = at.to_str().expect("text");
    transload(&store, ["--metrics-file", file_name, "mount", "--rw", "a", at]).ok();
    std::fs::write(Path::new(at).join("new"), vec![1; 50_000]).expect("writes");
    transload(&store, ["--metrics-file", file_name, "stats"]).ok();
    transload(&store, ["--metrics-file", file_name, "umount", at]).ok();
    let text = std::fs::read_to_string(&file).expect("figures");
    for line in [
        "transload_mount_duration_seconds_count{operation=\"mount\"} 1",
        "transload_mount_duration_seconds_count{operation=\"umount\"} 1",
        "transload_mount_retries_total{operation=\"mount\"} 0",
        "transload_snapshot_prepares_total{kind=\"active\"} 1",
        "transload_upper_directories 1",
    ] {
        assert!(text.lines().any(|one| one == line), "{line} is not in\n{text}");
    }
    let upper = text.lines().find_map(|line| line.strip_prefix("transload_upper_bytes ")).expect("a figure");
    assert!(upper.parse::<u64>().expect("a number") >= 50_000, "{upper}");
}

/// Every name of a figure in a text, without what histograms and PromQL add.
fn named(text: &str) -> BTreeSet<String> {
    let names = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    let names = names.filter(|name| name.starts_with("transload_"));
    let base = |name: &str| {
        ["_bucket", "_sum", "_count"]
            .iter()
            .find_map(|end| name.strip_suffix(end))
            .unwrap_or(name)
            .to_string()
    };
    names.map(base).collect()
}

#[test]
fn dashboard_rules_and_manual_name_only_figures_that_there_are() {
    let known: BTreeSet<String> = catalog::ALL.iter().map(|metric| metric.name.to_string()).collect();
    for file in ["dashboard.json", "alerts.yml", "alerts.test.yml", "../observability.md"] {
        let text = std::fs::read_to_string(docs().join(file)).expect(file);
        let named = named(&text);
        assert!(named.len() > 9, "{file} names only {named:?}");
        let unknown: Vec<&String> = named.difference(&known).collect();
        assert!(unknown.is_empty(), "{file} names what nobody counts: {unknown:?}");
    }
    let dashboard: Value =
        serde_json::from_slice(&std::fs::read(docs().join("dashboard.json")).expect("a file")).expect("JSON");
    for panel in dashboard["panels"].as_array().expect("panels") {
        assert!(panel["targets"].as_array().is_some_and(|targets| !targets.is_empty()), "{panel}");
    }
    let read = |file| named(&std::fs::read_to_string(docs().join(file)).expect(file));
    let shown = &read("dashboard.json") | &read("alerts.yml");
    let unused: Vec<_> = known.difference(&shown).collect();
    assert!(unused.is_empty(), "neither the dashboard nor an alert uses {unused:?}");
    let manual = std::fs::read_to_string(docs().join("../observability.md")).expect("the manual");
    let explained = named(&manual);
    let missing: Vec<_> = known.difference(&explained).collect();
    assert!(missing.is_empty(), "the manual does not explain {missing:?}");
}

#[test]
fn rules_fire_when_they_should() {
    if tools::have(&["promtool"]) {
        run(Command::new("promtool").args(["check", "rules"]).arg(docs().join("alerts.yml"))).ok();
        run(Command::new("promtool").args(["test", "rules"]).arg(docs().join("alerts.test.yml"))).ok();
    }
}

/// What the dashboard asks is PromQL: as recording rules its questions are checked like the others.
#[test]
fn the_dashboard_asks_what_prometheus_understands() {
    if !tools::have(&["promtool"]) {
        return;
    }
    let text = std::fs::read_to_string(docs().join("dashboard.json")).expect("a file");
    let dashboard: Value = serde_json::from_str(&text).expect("JSON");
    let panels = dashboard["panels"].as_array().expect("panels").iter();
    let asked = panels.flat_map(|panel| panel["targets"].as_array().expect("targets"));
    let rule = |target: &Value| serde_json::json!({ "record": "asked", "expr": target["expr"] });
    // Each in a group of its own: two rules of one group must not be the same.
    let group = |(number, target)| serde_json::json!({ "name": number, "rules": [rule(target)] });
    let numbered = asked.enumerate().map(|(number, target)| (number.to_string(), target));
    let rules = serde_json::json!({ "groups": numbered.map(group).collect::<Vec<_>>() });
    let dir = scratch();
    let file = dir.path().join("asked.yml");
    // JSON is YAML, too.
    std::fs::write(&file, rules.to_string()).expect("room");
    run(Command::new("promtool").args(["check", "rules", "--lint=none"]).arg(&file)).ok();
}

fn lines(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{line}: {e}"))).collect()
}

#[test]
fn one_trace_id_joins_log_report_and_error() {
    let dir = scratch();
    let store = dir.path().join("store");
    let machine = ["--json", "--log-format", "json", "-vv", "import"];
    let ran = transload(&store, words(&machine, &sample(dir.path(), "a"))).ok();
    let trace_id = ran.json()["trace_id"].clone();
    let log = lines(&ran.stderr);
    assert!(trace_id.as_str().is_some_and(|id| id.len() == 32), "{trace_id}");
    for line in &log {
        assert_eq!(line["trace_id"], trace_id, "{line}");
        assert!(
            line["time"].is_string() && line["level"].is_string() && line["process"].is_string(),
            "{line}"
        );
    }
    for event in ["import_started", "layer_planned", "blob_claimed", "tree_extracted", "import_finished"] {
        assert!(log.iter().any(|line| line["event"] == event), "{event} is not in {log:?}");
    }
    let failed = transload(&store, words(&machine, &garbage(dir.path())));
    assert_eq!(failed.code, Some(3));
    let log = lines(&failed.stderr);
    let (last, error) = (log.last().expect("lines"), &failed.json()["error"]);
    assert_eq!((&last["event"], &last["level"]), (&Value::from("error"), &Value::from("error")));
    assert_eq!((&last["trace_id"], &last["kind"]), (&error["trace_id"], &error["kind"]));
    let quiet = transload(&store, words(&["--log-format", "json", "import"], &sample(dir.path(), "a"))).ok();
    assert_eq!(quiet.stderr, "", "without -v only warnings and errors");
}

fn audit(dir: &Path, log: &Path) -> Ran {
    transload(&dir.join("no-store-is-needed"), words(&["--json", "audit"], log))
}

#[test]
fn recorded_runs_of_several_processes_are_judged_together() {
    let dir = scratch();
    let store = dir.path().join("store");
    let log = dir.path().join("audit.jsonl");
    let archive = sample(dir.path(), "a");
    let recorded = ["--audit-log", log.to_str().expect("text")];
    let import = || words(&[&recorded[..], &["import"]].concat(), &archive).join("\n");
    let import = || command(&store, import().split('\n')).spawn().expect("it starts");
    let mut children: Vec<_> = (0..3).map(|_| import()).collect();
    assert!(children.iter_mut().all(|child| child.wait().expect("it ends").success()));
    let view = audit(dir.path(), &log).ok().json();
    assert_eq!(
        (&view["once"], &view["imports"], &view["processes"]),
        (&true.into(), &3.into(), &3.into()),
        "{view}"
    );
    assert_eq!(view["made"], 4 + 2 + 2, "blobs, layers, snapshots: {view}");

    transload(&store, [&recorded[..], &["rm", "a"]].concat()).ok();
    transload(&store, [&recorded[..], &["gc"]].concat()).ok();
    assert!(import().wait().expect("it ends").success());
    audit(dir.path(), &log).ok();

    // The same log without the collection: what was finished was not there any more.
    let text = std::fs::read_to_string(&log).expect("the log");
    let without: String =
        text.lines().filter(|line| !line.contains("\"gc_")).map(|line| format!("{line}\n")).collect();
    let lost = dir.path().join("lost.jsonl");
    std::fs::write(&lost, without).expect("writes");
    let ran = audit(dir.path(), &lost);
    assert_eq!((ran.code, &ran.json()["step"]), (Some(1), &"snapshot".into()), "{}", ran.text());
    let steps: BTreeSet<String> = ran.json()["findings"]
        .as_array()
        .expect("findings")
        .iter()
        .map(|one| one["step"].to_string())
        .collect();
    assert_eq!(steps.into_iter().collect::<Vec<_>>(), ["\"content_store\"", "\"snapshot\""]);
}

/// A log forged from a real one: its claims and writes again, as if by another process at the same time.
#[test]
fn a_lock_that_does_not_hold_shows_across_logs() {
    let dir = scratch();
    let log = dir.path().join("a.jsonl");
    let recorded = ["--audit-log", log.to_str().expect("text"), "import"];
    transload(&dir.path().join("store"), words(&recorded, &sample(dir.path(), "a"))).ok();
    let forged: String = lines(&std::fs::read_to_string(&log).expect("the log"))
        .into_iter()
        .map(|mut line| {
            line["process"] = "999-forged".into();
            line["import"] = "forged/0".into();
            format!("{line}\n")
        })
        .collect();
    let other = dir.path().join("b.jsonl");
    // Cut off in the middle of a line, as by a kill.
    std::fs::write(&other, forged.trim_end().trim_end_matches('}')).expect("writes");
    let both = words(&["--json", "audit", log.to_str().expect("text")], &other);
    let ran = transload(&dir.path().join("none"), both);
    let view = ran.json();
    assert_eq!((ran.code, &view["step"]), (Some(1), &"cross_process".into()), "{view}");
    assert!(view["conclusion"].as_str().is_some_and(|text| text.contains("flock")), "{view}");
    let text =
        transload(&dir.path().join("none"), words(&["audit", log.to_str().expect("text")], &other)).text();
    assert!(text.contains("cross_process") && text.contains("999-forged"), "{text}");
    let nothing = dir.path().join("nothing");
    std::fs::write(&nothing, "hello\n").expect("writes");
    transload(&dir.path().join("none"), words(&["audit"], &nothing)).fails(3);
}

/// The recorded run with the lines of these events twice, the second time as `again` has changed them.
fn seeded(run: &[Value], events: &[&str], again: impl Fn(&mut Value)) -> String {
    let digest = run.iter().find(|line| line["event"] == "blob_written").expect("a blob")["digest"].clone();
    let is_doubled = |line: &&Value| {
        let of_another = line.get("digest").is_some_and(|one| *one != digest);
        events.contains(&line["event"].as_str().expect("an event")) && !of_another
    };
    let doubled = run.iter().filter(is_doubled).cloned().map(|mut line| {
        again(&mut line);
        line
    });
    run.iter().cloned().chain(doubled).map(|line| format!("{line}\n")).collect()
}

/// Each step that can fail, seeded into the log of a real run.
#[test]
fn an_audit_says_at_which_step_deduplication_failed() {
    let dir = scratch();
    let log = dir.path().join("run.jsonl");
    let recorded = ["--audit-log", log.to_str().expect("text"), "import"];
    transload(&dir.path().join("store"), words(&recorded, &sample(dir.path(), "a"))).ok();
    let run = lines(&std::fs::read_to_string(&log).expect("the log"));
    let other_import = |line: &mut Value| line["import"] = "other/0".into();
    let other_process = |line: &mut Value| {
        (line["import"], line["process"]) = ("other/0".into(), "999-other".into());
    };
    let next_year = |line: &mut Value| {
        other_process(line);
        let later = line["time"].as_str().expect("a time").replacen("20", "21", 1);
        line["time"] = later.into();
    };
    let (made, whole) = (
        ["blob_claimed", "blob_written"],
        ["import_started", "blob_claimed", "blob_written", "import_finished"],
    );
    for (step, conclusion, text) in [
        ("plan", "at the plan", seeded(&run, &["layer_planned", "blob_claimed", "blob_written"], |_| {})),
        ("claim", "at the claim", seeded(&run, &made, |_| {})),
        ("claim", "at the claim", seeded(&run, &whole, other_import)),
        ("cross_process", "between processes", seeded(&run, &whole, other_process)),
        ("snapshot", "at the snapshot", seeded(&run, &["snapshot_committed"], |_| {})),
        ("content_store", "the content store did not", seeded(&run, &whole, next_year)),
    ] {
        let seeded = dir.path().join("seeded.jsonl");
        std::fs::write(&seeded, text).expect("writes");
        let ran = audit(dir.path(), &seeded);
        let view = ran.json();
        assert_eq!((ran.code, &view["step"]), (Some(1), &step.into()), "{view}");
        assert!(view["conclusion"].as_str().is_some_and(|text| text.contains(conclusion)), "{view}");
    }
    let view = audit(dir.path(), &log).ok().json();
    assert!(
        view["step"].is_null()
            && view["conclusion"].as_str().is_some_and(|text| text.contains("content store")),
        "{view}"
    );
}

#[test]
fn stats_say_what_was_saved_and_where_the_time_went() {
    let dir = scratch();
    let store = dir.path().join("store");
    let (a, b) = (sample(dir.path(), "a"), sample(dir.path(), "b"));
    for archive in [&a, &a, &b] {
        transload(&store, words(&["import"], archive)).ok();
    }
    transload(&store, words(&["import"], &garbage(dir.path()))).fails(3);
    let view = transload(&store, ["--json", "stats"]).ok().json();
    let totals = &view["totals"];
    assert_eq!(
        (&totals["imports"], &totals["failed"], &view["looked_at"]),
        (&4.into(), &1.into(), &3.into()),
        "{view}"
    );
    assert_eq!((&totals["trees_written"], &totals["trees_avoided"]), (&3.into(), &3.into()), "{view}");
    assert!(totals["bytes_deduplicated"].as_u64().is_some_and(|bytes| bytes > 60_000), "{view}");
    assert_eq!(
        view["trend"]
            .as_array()
            .expect("days")
            .iter()
            .map(|day| day["imports"].as_u64())
            .sum::<Option<u64>>(),
        Some(4)
    );
    let text = transload(&store, ["stats"]).ok().text();
    assert!(
        text.contains("4 imports, 1 failed") && text.contains("inflate") && text.contains("DAY"),
        "{text}"
    );
    let empty = transload(&dir.path().join("none"), ["stats"]);
    assert_eq!(empty.code, Some(4), "{}", empty.stderr);
}

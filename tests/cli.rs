//! What scripts may rely on: exit codes, where output goes, JSON, pipes.

mod support;

use serde_json::Value;
use std::path::Path;
use std::process::{Command, Stdio};
use support::image::{file, image};
use support::run::{Ran, command, program, transload};
use support::scratch;

fn sample(dir: &Path) -> String {
    let path = dir.join("sample.tar");
    let bytes = image()
        .name("example.com/sample:1")
        .layer(
            file("etc/greeting", "hello\n")
                .dir("usr")
                .file("usr/\u{1b}[31mred", "x")
                .symlink("lib", "usr/lib"),
        )
        .layer(file("etc/second", "two\n"));
    std::fs::write(&path, bytes.docker()).expect("an archive");
    path.display().to_string()
}

#[test]
fn wrong_usage_exits_2_and_says_so_on_stderr_or_as_json() {
    let dir = scratch();
    for words in [
        vec!["frobnicate"],
        vec!["import"],
        vec!["pull", "alpine"],
        vec!["push", "alpine"],
        vec!["fsck", "--repair"],
        vec!["import", "--memory", "much", "a.tar"],
        vec!["import", "--tag", "a", "b.tar", "c.tar"],
        vec!["export", "a", "-o", "-", "--json"],
    ] {
        let ran = transload(dir.path(), &words).fails(2);
        assert!(ran.stderr.starts_with("error: "), "{words:?}: {}", ran.stderr);
        let with_json: Vec<&str> = ["--json"].into_iter().chain(words.iter().copied()).collect();
        let json = transload(dir.path(), &with_json).fails(2).json();
        assert_eq!(json["version"], 1, "{words:?}");
        assert!(json["error"]["message"].as_str().is_some_and(|text| !text.is_empty()), "{words:?}");
    }
}

#[test]
fn help_and_completions_go_to_stdout() {
    let dir = scratch();
    for words in [vec!["--help"], vec!["import", "--help"], vec!["--version"], vec!["completions", "zsh"]] {
        let ran = transload(dir.path(), &words).ok();
        assert!(!ran.stdout.is_empty() && ran.stderr.is_empty(), "{words:?}");
    }
    assert!(std::fs::read_dir(dir.path()).expect("the directory").next().is_none(), "no store was made");
}

#[test]
fn a_missing_archive_is_not_found_and_garbage_is_the_inputs_fault() {
    let dir = scratch();
    let store = dir.path().join("store");
    transload(&store, ["import", "/nowhere/at-all.tar"]).fails(4);
    let garbage = dir.path().join("garbage");
    std::fs::write(&garbage, vec![7_u8; 100_000]).expect("garbage");
    let ran = transload(&store, [Path::new("--json"), Path::new("import"), &garbage]).fails(3);
    assert_eq!(ran.json()["error"]["kind"], "not_an_image");
    transload(&store, ["inspect", "nothing"]).fails(4);
}

#[test]
fn every_command_prints_one_versioned_object() {
    let dir = scratch();
    let store = dir.path().join("store");
    let archive = sample(dir.path());
    let export = dir.path().join("export.tar").display().to_string();
    let rootfs = dir.path().join("rootfs").display().to_string();
    let table: [(&[&str], &str); 11] = [
        (&["import", &archive], "images"),
        (&["import", "--dry-run", &archive], "blobs_to_write"),
        (&["images"], "images"),
        (&["inspect", "example.com/sample:1"], "image_config"),
        (&["inspect", "--tree", "example.com/sample:1"], "root"),
        (&["history", "example.com/sample:1"], "history"),
        (&["tag", "example.com/sample:1", "other"], "target"),
        (&["export", "other", "-o", &export], "bytes_written"),
        (&["unpack", "other", &rootfs], "entries"),
        (&["du"], "reclaimable_bytes"),
        (&["rm", "other", "example.com/sample:1"], "freed_by_gc_bytes"),
    ];
    for (words, field) in table {
        let words: Vec<&str> = ["--json"].into_iter().chain(words.iter().copied()).collect();
        let ran = transload(&store, &words).ok();
        assert_eq!(ran.text().lines().count(), 1, "{words:?}");
        let json: Value = ran.json();
        assert_eq!(json["version"], 1, "{words:?}");
        assert!(!json[field].is_null(), "{words:?} lacks {field}: {json}");
    }
    let freed = transload(&store, ["--json", "gc"]).ok().json();
    assert!(freed["freed_bytes"].as_u64().is_some_and(|bytes| bytes > 0), "{freed}");
}

#[test]
fn people_get_tables_and_trees_that_do_not_steer_their_terminal() {
    let dir = scratch();
    let store = dir.path().join("store");
    transload(&store, ["import".to_string(), sample(dir.path())]).ok();
    let images = transload(&store, ["ls"]).ok().text();
    assert!(images.starts_with("NAME") && images.contains("example.com/sample:1"), "{images}");
    let tree = transload(&store, ["inspect", "--tree", "example.com/sample:1"]).ok().text();
    assert!(tree.contains("├── etc/\n│   ├── greeting (6 B)\n│   └── second (4 B)\n"), "{tree}");
    assert!(
        tree.contains("lib -> usr/lib") && tree.contains("\\x1b[31mred") && !tree.contains('\u{1b}'),
        "{tree}"
    );
}

#[test]
fn a_closed_pipe_is_quiet() {
    let dir = scratch();
    let mut child = Command::new(program())
        .args(["completions", "bash"])
        .env("HOME", dir.path())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("it starts");
    // The script is larger than what a pipe of one page would hold, and nobody reads it.
    drop(child.stdout.take());
    let output = child.wait_with_output().expect("it ends");
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
}

#[test]
fn stdin_is_read_as_a_file_and_as_a_stream() {
    let dir = scratch();
    let archive = std::fs::read(sample(dir.path())).expect("the archive");
    let streamed = dir.path().join("streamed");
    support::run::run_with_input(&mut command(&streamed, ["import", "-"]), &archive).ok();
    let from_file = dir.path().join("from-file");
    let mut import = command(&from_file, ["import", "-"]);
    import.stdin(std::fs::File::open(dir.path().join("sample.tar")).expect("the archive"));
    let output = import.output().expect("it runs");
    Ran::of(&import, output).ok();
    let target =
        |store: &Path| transload(store, ["--json", "images"]).ok().json()["images"][0]["target"].clone();
    assert_eq!(target(&streamed), target(&from_file));
}

#[test]
fn progress_as_json_is_one_object_a_line_on_stderr() {
    let dir = scratch();
    let store = dir.path().join("store");
    let archive = sample(dir.path());
    let ran = transload(&store, ["--progress", "json", "import", &archive]).ok();
    let events: Vec<Value> =
        ran.stderr.lines().map(|line| serde_json::from_str(line).expect("an event")).collect();
    assert!(events.iter().any(|event| event["event"] == "tree_extracted"), "{events:?}");
    assert_eq!(events.last().expect("events")["event"], "import_finished");
}

#[test]
fn a_command_inside_an_image_passes_its_exit_code_on_and_leaves_nothing_behind() {
    let busybox = Path::new("/bin/busybox");
    if !rustix::process::geteuid().is_root() || !busybox.exists() {
        eprintln!("SKIPPED: needs root and a static busybox");
        return;
    }
    let dir = scratch();
    let store = dir.path().join("store");
    let archive = dir.path().join("busybox.tar");
    let layer = file("bin/sh", std::fs::read(busybox).expect("busybox")).mode(0o755).dir("proc").dir("dev");
    std::fs::write(&archive, image().name("box").layer(layer).docker()).expect("an archive");
    transload(&store, [Path::new("import"), &archive]).ok();
    let mut inside =
        command(&store, ["mount", "box", "--", "sh", "-c", "echo in; test -e /proc/1 && exit 7"]);
    let output = inside.env("TMPDIR", dir.path()).output().expect("it runs");
    let ran = Ran::of(&inside, output);
    assert_eq!((ran.code, ran.text().as_str()), (Some(7), "in\n"), "{}", ran.stderr);
    assert_eq!(transload(&store, ["--json", "mount"]).ok().json()["mounts"], Value::Array(Vec::new()));
    let left = std::fs::read_dir(dir.path()).expect("the directory").count();
    assert_eq!(left, 2, "only the store and the archive are left");
}

//! What scripts may rely on: exit codes, where output goes, JSON, pipes.

mod support;

use serde_json::Value;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use support::image::{Pack, file, image, noise};
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
        vec!["fsck", "--mend"],
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
fn an_unnamed_image_that_has_a_named_twin_is_removed_by_its_digest_in_full() {
    let dir = scratch();
    let (store, archive) = (dir.path().join("store"), dir.path().join("unnamed.tar"));
    std::fs::write(&archive, image().layer(file("a", "1")).docker()).expect("an archive");
    let archive = archive.display().to_string();
    transload(&store, ["import", &archive]).ok();
    transload(&store, ["import", "--tag", "example.com/twin:1", &archive]).ok();
    let images = || {
        let json = transload(&store, ["--json", "images"]).ok().json();
        json["images"].as_array().expect("a list").clone()
    };
    let target = images()[0]["target"].as_str().expect("a digest").to_string();
    assert_eq!(images().len(), 2);
    let short = &target["sha256:".len()..][..12];
    assert!(transload(&store, ["rm", short]).fails(2).stderr.contains("it has 2 names"));
    transload(&store, ["rm", &target]).ok();
    let left = images();
    assert_eq!((left.len(), &left[0]["name"]), (1, &Value::from("example.com/twin:1")));
}

#[test]
fn leases_have_a_name_and_end_before_the_year_10000() {
    let dir = scratch();
    transload(dir.path(), ["leases", "add", "", "x"]).fails(2);
    transload(dir.path(), ["leases", "add", "y", "x", "--for", "99999999d"]).fails(2);
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
    let table: [(&[&str], &str); 12] = [
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
        (&["fsck"], "checked"),
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
fn removals_are_held_back_and_undone_and_collections_go_by_policy() {
    let dir = scratch();
    let store = dir.path().join("store");
    let ran = |words: &[&str]| transload(&store, words);
    let json = |words: &[&str]| ran(&[&["--json"], words].concat()).ok().json();
    let (name, other) = ("example.com/sample:1", "example.com/sample:2");
    let archive = sample(dir.path());
    ran(&["import", "-q", &archive]).ok();
    ran(&["tag", name, other]).ok();
    let target = json(&["inspect", name])["target"]["digest"].as_str().map(str::to_string);
    let target = target.unwrap_or_else(|| {
        let images = json(&["images"]);
        images["images"][0]["target"].as_str().expect("a target").to_string()
    });
    // A digest with two names; a pin; a dry run; a lease.
    let error = ran(&["rm", &target]).fails(2).stderr;
    assert!(error.contains(name) && error.contains(other) && error.contains("--all-names"), "{error}");
    ran(&["pin", name]).ok();
    assert_eq!(json(&["pin"])["pinned"], serde_json::json!([name]));
    ran(&["rm", name]).fails(1);
    ran(&["rm", "--dry-run", name]).fails(1);
    ran(&["rm", "--all-names", &target]).fails(1);
    ran(&["unpin", name]).ok();
    assert_eq!(json(&["rm", "--dry-run", name, other])["dry_run"], true);
    ran(&["leases", "add", "held", name, "--for", "1h"]).ok();
    ran(&["leases", "add", "held", name]).fails(1);
    ran(&["rm", "--all-names", &target]).ok();
    assert_eq!(json(&["gc"])["removed"]["blobs"], 0, "a lease holds it");
    let why = json(&["du", "--why", &target]);
    assert_eq!(why["held_by"][0]["kind"], "lease", "{why}");
    ran(&["leases", "renew", "held"]).ok();
    assert_eq!(json(&["leases"])["leases"][0]["expires"], Value::Null);
    ran(&["leases", "end", "held"]).ok();
    ran(&["leases", "end", "held"]).fails(4);
    // Undone within its grace, and not after a collection without one.
    ran(&["import", "-q", &archive]).ok();
    ran(&["rm", "--grace", "1h", name]).ok();
    assert_eq!(json(&["gc"])["removed"]["blobs"], 0, "its grace holds it");
    // What went well before another name failed is in the list that others read.
    ran(&["restore", name, other]).fails(4);
    let index = std::fs::read_to_string(store.join("index.json")).expect("reads");
    assert!(index.contains(name), "{index}");
    let export = dir.path().join("export.tar").display().to_string();
    let once = json(&["export", name, "-o", &export])["blobs"].clone();
    std::fs::remove_file(&export).expect("removes");
    assert_eq!(json(&["export", name, name, "-o", &export])["blobs"], once);
    ran(&["tag", name, other]).ok();
    assert_eq!(json(&["gc", "--keep-last", "1"])["images"], serde_json::json!([name]));
    ran(&["gc", "--older-than", "30"]).fails(2);
    ran(&["rm", other]).ok();
    assert!(json(&["gc"])["freed_bytes"].as_u64().is_some_and(|bytes| bytes > 0));
    ran(&["restore", other]).fails(4);
    assert_eq!(json(&["import", "--gc", &archive])["gc"]["removed"]["blobs"], 0);
}

#[test]
fn an_import_whose_collection_is_incomplete_reports_both_and_ends_with_1() {
    let dir = scratch();
    let store = dir.path().join("store");
    transload(&store, ["import".to_string(), "-q".to_string(), sample(dir.path())]).ok();
    let stuck = store.join("ingest/blob-dead");
    let Some(_mounted) = support::mounts::Small::mount(&stuck, 1 << 20) else { return };
    let import = |words: &[&str]| {
        let archive = sample(dir.path());
        transload(&store, [&["import", "--gc", &archive], words].concat()).fails(1)
    };
    let ran = import(&["--json"]);
    let report = ran.json();
    assert_eq!(report["images"][0]["outcome"], "existing", "{report}");
    assert_eq!(report["gc"]["failed"][0]["what"], "ingest/blob-dead", "{report}");
    assert!(
        ran.stderr.contains("error: the images are imported, and the gc afterwards could not"),
        "{}",
        ran.stderr
    );
    let ran = import(&[]);
    assert!(
        ran.text().contains("removed 0 blobs") && ran.stderr.contains("hint: 'transload gc'"),
        "{}",
        ran.stderr
    );
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

/// Starts `command`, lets it work for a moment, sends it `signal`, and waits; kills it where it does not end by itself.
fn interrupted(command: &mut Command, signal: rustix::process::Signal) -> Ran {
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("it starts");
    // Our end of its stdin, else whoever feeds it would wait for ever for a reader once it is gone.
    command.stdin(Stdio::null());
    std::thread::sleep(Duration::from_millis(400));
    rustix::process::kill_process(rustix::process::Pid::from_child(&child), signal).expect("a signal");
    let deadline = Instant::now() + Duration::from_secs(20);
    while child.try_wait().expect("a child").is_none() {
        if Instant::now() > deadline {
            child.kill().expect("kills");
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    let output = child.wait_with_output().expect("its output");
    Ran::of(command, output)
}

#[test]
fn the_first_ctrl_c_stops_an_import_whose_input_stalls() {
    let dir = scratch();
    let store = dir.path().join("store");
    let archive = std::fs::read(sample(dir.path())).expect("the archive");
    let fifo = dir.path().join("fifo");
    let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
    rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, mode, 0).expect("a FIFO");
    for (input, signal, head) in [
        (Path::new("-"), rustix::process::Signal::INT, &archive[..0]),
        (Path::new("-"), rustix::process::Signal::TERM, &archive[..1700]),
        (&fifo, rustix::process::Signal::INT, &archive[..0]),
    ] {
        let (reader, mut writer) = std::io::pipe().expect("a pipe");
        writer.write_all(head).expect("the beginning");
        let mut import = command(&store, [Path::new("import"), input]);
        interrupted(import.stdin(reader), signal).fails(130);
    }
    assert_eq!(transload(&store, ["--json", "images"]).ok().json()["images"], Value::Array(Vec::new()));
    transload(&store, ["import".to_string(), sample(dir.path())]).ok();
}

#[test]
fn a_terminated_import_leaves_a_store_that_gc_tidies() {
    let dir = scratch();
    let store = dir.path().join("store");
    // Large enough, and hard enough to hash and to sync, that no machine is done in the time given.
    let bytes = image()
        .name("large")
        .layer(file("a", noise(1, 32 << 20)).packed(Pack::Gzip))
        .layer(file("b", noise(2, 32 << 20)).packed(Pack::Gzip))
        .layer(file("c", noise(3, 32 << 20)).packed(Pack::Gzip));
    let archive = bytes.docker();
    let (reader, mut writer) = std::io::pipe().expect("a pipe");
    // The last part never comes, so the import is at work when the signal does.
    let mut import = command(&store, ["import", "-"]);
    import.stdin(reader);
    let ran = std::thread::scope(|scope| {
        scope.spawn(|| {
            let _ = writer.write_all(&archive[..archive.len() - 4096]);
            std::thread::sleep(Duration::from_secs(3));
            drop(writer);
        });
        let ran = interrupted(&mut import, rustix::process::Signal::TERM);
        // With it goes this process's copy of the reading end; the writer would wait for it for ever.
        drop(import);
        ran
    });
    ran.fails(130);
    transload(&store, ["gc"]).ok();
    for (name, what) in
        [("ingest", "ingests"), ("leases", "leases"), ("trees", "trees"), ("snapshots", "snapshots")]
    {
        let left = std::fs::read_dir(store.join(name)).expect(what).count();
        assert_eq!(left, 0, "{what} are left");
    }
    let path = dir.path().join("large.tar");
    std::fs::write(&path, archive).expect("an archive");
    transload(&store, [Path::new("import"), &path]).ok();
}

#[test]
fn an_error_says_once_what_could_not_be_done() {
    let dir = scratch();
    let store = dir.path().join("store");
    transload(&store, ["import".to_string(), sample(dir.path())]).ok();
    let at = dir.path().join("at").display().to_string();
    let table: [(&[&str], &str); 8] = [
        (&["inspect", "nope"], "cannot inspect nope: there is no image nope"),
        (&["inspect", "--tree", "nope"], "cannot show the tree of nope: there is no image nope"),
        (&["history", "nope"], "cannot show the history of nope: there is no image nope"),
        (&["tag", "nope", "x"], "cannot tag nope: there is no image nope"),
        (&["rm", "sample", "nope"], "cannot remove sample: there is no image sample"),
        (&["unpack", "nope", &at], "cannot unpack nope: there is no image nope"),
        (&["bundle", "nope", &at], "cannot make a bundle of nope: there is no image nope"),
        (&["export", "nope", "-o", &at], "cannot export nope: there is no image nope"),
    ];
    for (words, sentence) in table {
        let ran = transload(&store, words).fails(4);
        assert_eq!(ran.stderr.lines().next(), Some(format!("error: {sentence}").as_str()), "{words:?}");
        assert!(!Path::new(&at).exists(), "{words:?} left something");
    }
}

#[test]
fn of_several_archives_the_first_that_fails_ends_the_run_with_one_object() {
    let dir = scratch();
    let store = dir.path().join("store");
    let good = sample(dir.path());
    let bad = dir.path().join("bad.tar").display().to_string();
    std::fs::write(&bad, [7; 4096]).expect("garbage");
    let ran = transload(&store, ["--json", "import", &good, &bad, "/nowhere"]).fails(3);
    assert_eq!(ran.json()["error"]["kind"], "not_an_image");
    let images = transload(&store, ["--json", "images"]).ok().json();
    assert_eq!(images["images"].as_array().map(Vec::len), Some(1), "what came before stays: {images}");
}

/// An image with a shell, or `None` where there is no static busybox or no right to mount it.
fn box_image(dir: &Path) -> Option<String> {
    let busybox = Path::new("/bin/busybox");
    if !rustix::process::geteuid().is_root() || !busybox.exists() {
        eprintln!("SKIPPED: needs root and a static busybox");
        return None;
    }
    let archive = dir.join("busybox.tar");
    let layer = file("bin/sh", std::fs::read(busybox).expect("busybox")).mode(0o755).dir("proc").dir("dev");
    std::fs::write(&archive, image().name("box").layer(layer).docker()).expect("an archive");
    Some(archive.display().to_string())
}

fn names_in(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).expect("a directory");
    let mut names: Vec<String> =
        entries.map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

#[test]
fn umount_takes_a_bundle_down_but_for_what_a_person_wrote() {
    let dir = scratch();
    let store = dir.path().join("store");
    let Some(archive) = box_image(dir.path()) else { return };
    transload(&store, ["import", &archive]).ok();
    let (made, found, edited) =
        (dir.path().join("made"), dir.path().join("found"), dir.path().join("edited"));
    std::fs::create_dir(&found).expect("a directory");
    for bundle in [&made, &found, &edited] {
        transload(&store, [Path::new("bundle"), Path::new("box"), bundle]).ok();
        assert!(bundle.join("rootfs/bin/sh").exists());
    }
    let config = std::fs::read_to_string(edited.join("config.json")).expect("a configuration");
    std::fs::write(edited.join("config.json"), config.replace("transload\"", "mine\"")).expect("edits");
    transload(&store, [Path::new("umount"), &made, &found, &edited]).ok();
    assert!(!made.exists(), "it was made by bundle");
    assert_eq!(names_in(&found), Vec::<String>::new());
    assert_eq!(names_in(&edited), ["config.json"]);
    // A directory that looks the part and is none of ours.
    std::fs::create_dir(found.join("rootfs")).expect("a directory");
    std::fs::write(found.join("config.json"), "{}").expect("a configuration");
    transload(&store, [Path::new("umount"), &found]).fails(4);
    assert_eq!(names_in(&found), ["config.json", "rootfs"]);
}

#[test]
fn without_root_a_bundle_is_unpacked_and_umount_removes_it() {
    let dir = scratch();
    let Some(archive) = box_image(dir.path()) else { return };
    let home = dir.path().join("home");
    std::fs::create_dir(&home).expect("a directory");
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).expect("opens");
    std::os::unix::fs::chown(&home, Some(65534), Some(65534)).expect("gives away");
    // Where the tests are built others may not look.
    let own = dir.path().join("transload");
    std::fs::copy(program(), &own).expect("a copy of the program");
    let as_nobody = |args: &[&str]| {
        let mut command = Command::new(&own);
        command.current_dir(&home).arg("--store").arg("store").args(args).uid(65534).gid(65534);
        support::run::run(&mut command)
    };
    let import = as_nobody(&["import", &archive]);
    if import.stderr.contains("user namespace") {
        eprintln!("SKIPPED: no user namespaces without root");
        return;
    }
    import.ok();
    as_nobody(&["bundle", "box", "b", "--", "sh", "-c", "echo inside"]).ok();
    assert!(home.join("b/rootfs/bin/sh").is_file(), "it is there after the command has ended");
    if Command::new("runc").arg("--version").output().is_ok_and(|output| output.status.success()) {
        let mut runc = Command::new("runc");
        runc.current_dir(home.join("b")).args(["--root", "../runc", "run"]);
        runc.arg(format!("transload-{}", std::process::id())).uid(65534).gid(65534);
        assert_eq!(support::run::run(runc.env("XDG_RUNTIME_DIR", &home)).ok().text(), "inside\n");
    } else {
        eprintln!("SKIPPED: runc is not installed");
    }
    as_nobody(&["umount", "b"]).ok();
    assert!(!home.join("b").exists());
    as_nobody(&["umount", "b"]).fails(4);
}

#[test]
fn gc_frees_what_a_killed_mount_left_and_nothing_that_is_mounted() {
    let dir = scratch();
    let store = dir.path().join("store");
    let Some(archive) = box_image(dir.path()) else { return };
    transload(&store, ["import", &archive]).ok();
    let mut inside = command(&store, ["mount", "--rw", "box", "--", "sh", "-c", "echo ready; exec sleep 60"]);
    let mut child = inside.env("TMPDIR", dir.path()).stdout(Stdio::piped()).spawn().expect("it starts");
    let mut stdout = std::io::BufReader::new(child.stdout.take().expect("a pipe"));
    let mut line = String::new();
    std::io::BufRead::read_line(&mut stdout, &mut line).expect("reads");
    assert_eq!(line, "ready\n");
    let removed = || transload(&store, ["--json", "gc"]).ok().json()["removed"]["snapshots"].as_u64();
    let listed = || transload(&store, ["--json", "mount"]).ok().json()["mounts"].as_array().map(Vec::len);
    assert_eq!((removed(), listed()), (Some(0), Some(1)), "it runs");
    child.kill().expect("kills");
    child.wait().expect("waits");
    // The command goes with it, and with the last process its namespace.
    let deadline = Instant::now() + Duration::from_secs(20);
    while removed() == Some(0) && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(listed(), Some(0));
}

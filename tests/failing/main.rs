//! Systems that fail: full disks, too few descriptors, read errors, short reads, clocks that jump, signals, slow pipes, other users,
//! a database that is damaged or gone. Each time there is one sentence that says what is wrong, an exit code as documented,
//! and a store that can be used afterwards.

#[path = "../support/mod.rs"]
mod support;

mod full;
mod policies;
mod steps;

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};
use rustix::io::{FdFlags, fcntl_setfd};
use rustix::process::{Pid, Resource, Rlimit, Signal, kill_process, setrlimit};
use support::mounts::{Small, Unmount};
use support::run::{Ran, command, run as finished, transload, until_stopped};
use support::scratch;
use support::soundness::{
    Contents, archives, bad_blobs, contents, damage, differences, leftovers, with_faults,
};
use support::tally::{Tally, thorough};
use support::tools::have;
use transload::parallel::Patience;
use transload::{Cancel, Engine, ErrorKind};

const FIRST: &str = "example.com/first:1";

struct Scene {
    dir: tempfile::TempDir,
    archives: Vec<PathBuf>,
    first: Contents,
}

impl Scene {
    fn new() -> Scene {
        Scene::with_files_of(32)
    }

    fn with_files_of(kib: usize) -> Scene {
        let dir = scratch();
        let archives = archives(dir.path(), kib);
        let store = dir.path().join("expected");
        import(&store, &archives[0]).ok();
        Scene { first: contents(&store), dir, archives }
    }

    fn store(&self, name: &str) -> PathBuf {
        let store = self.dir.path().join(name);
        let _ = std::fs::remove_dir_all(&store);
        store
    }

    fn words<'a>(&'a self, first: &'a [&'a str]) -> Vec<&'a str> {
        let archive = self.archives[0].to_str().expect("text");
        first.iter().copied().chain([archive]).collect()
    }

    /// What is wrong with a store in which the first image is imported again, and what is left over.
    fn usable(&self, store: &Path) -> (Vec<String>, Vec<String>) {
        let mut wrong = bad_blobs(store);
        for ran in
            [import(store, &self.archives[0]), transload(store, ["gc"]), transload(store, ["inspect", FIRST])]
        {
            if ran.code != Some(0) {
                wrong.push(format!("afterwards {}: {:?} {}", ran.command, ran.code, ran.stderr));
            }
        }
        wrong.extend(damage(store, ""));
        let (more, less): (Vec<String>, Vec<String>) = differences(&self.first, &contents(store))
            .into_iter()
            .partition(|line| line.ends_with("is too much"));
        wrong.extend(less);
        (wrong, leftovers(store).into_iter().chain(more).collect())
    }
}

fn import(store: &Path, archive: &Path) -> Ran {
    transload(store, ["import", "-q", &archive.to_string_lossy()])
}

/// What is wrong with how a command failed: it must say so once, with the cause, and not panic.
fn failed_well(ran: &Ran, codes: &[i32], cause: &str) -> Vec<String> {
    let errors = ran.stderr.lines().filter(|line| line.starts_with("error: ")).count();
    let well =
        ran.code.is_some_and(|code| codes.contains(&code)) && errors == 1 && ran.stderr.contains(cause);
    let well = well && !ran.stderr.contains("panicked");
    if well { Vec::new() } else { vec![format!("{} ended with {:?}: {}", ran.command, ran.code, ran.stderr)] }
}

#[test]
fn a_read_only_store_can_be_read_and_refuses_the_rest_in_a_sentence() {
    let scene = Scene::new();
    let store = scene.dir.path().join("small");
    let Some(small) = Small::mount(&store, 64 << 20) else { return };
    import(&store, &scene.archives[0]).ok();
    let before = contents(&store);
    small.make_read_only();
    let reading = "images; stats; doctor; du; fsck; restore; pin; leases; mount; gc --dry-run --keep-last 0";
    for words in reading.split("; ").map(|words| words.split(' ')) {
        transload(&store, words).ok();
    }
    transload(&store, ["inspect", FIRST]).ok();
    let second = scene.archives[1].to_string_lossy();
    let at = scene.dir.path().to_string_lossy();
    let writing: [&[&str]; 11] = [
        &["import", "-q", &second],
        &["rm", FIRST],
        &["restore", FIRST],
        &["gc"],
        &["gc", "--keep-last", "0"],
        &["tag", FIRST, "example.com/x:1"],
        &["pin", FIRST],
        &["label", FIRST, "owner=me"],
        &["leases", "add", "kept", FIRST],
        &["mount", FIRST, &at],
        &["fsck", "--repair"],
    ];
    for words in writing {
        assert_eq!(failed_well(&transload(&store, words), &[1], "reading only"), Vec::<String>::new());
    }
    small.make_writable();
    assert_eq!(differences(&before, &contents(&store)), Vec::<String>::new());
    let (lost, leaked) = scene.usable(&store);
    assert!(lost.is_empty() && leaked.is_empty(), "{lost:?} {leaked:?}");
}

#[test]
fn a_mapped_file_without_room_ends_with_a_sentence() {
    let scene = Scene::new();
    let store = scene.store("store");
    let child = slowed(&store, "images.publish=sleep:60000", &scene.words(&["import", "-q"]));
    wait_until(|| store.join("leases").read_dir().is_ok_and(|mut leases| leases.next().is_some()));
    // What the kernel does when a page of the database's shared memory cannot be had.
    signal(&child, Signal::BUS);
    let output = child.wait_with_output().expect("ends");
    let ran = Ran::of(&Command::new("import"), output);
    assert_eq!(failed_well(&ran, &[1], "no space left"), Vec::<String>::new());
    let (lost, leaked) = scene.usable(&store);
    assert!(lost.is_empty() && leaked.is_empty(), "{lost:?} {leaked:?}");
}

fn wait_until(holds: impl Fn() -> bool) {
    while !holds() {
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_stopped_collection_is_named_and_mounts_do_not_wait_for_it_without_end() {
    let scene = Scene::new();
    let store = scene.store("store");
    import(&store, &scene.archives[0]).ok();
    transload(&store, ["rm", FIRST]).ok();
    let collecting = slowed(&store, "gc.aside=stop@1", &["gc"]);
    until_stopped(&collecting);
    let (engine, cancel) = (Engine::open(&store, Default::default()).expect("opens"), Cancel::new());
    let patience = Patience::new(&cancel).at_most(Duration::from_millis(20));
    let mount = || engine.store().mount_lock_shared(patience).map(drop);
    let refused = mount().expect_err("it was stopped among the snapshots");
    assert_eq!(refused.kind(), ErrorKind::Busy, "{refused}");
    assert_eq!(refused.holders().iter().map(|one| one.pid).collect::<Vec<_>>(), [collecting.id()]);
    let said = transload(&store, ["doctor"]).text();
    for expected in [
        format!("mount.lock: process {} (transload), stopped", collecting.id()),
        format!("kill -CONT {}", collecting.id()),
    ] {
        assert!(said.contains(&expected), "{expected} in {said}");
    }
    signal(&collecting, Signal::CONT);
    let ended = collecting.wait_with_output().expect("ends");
    assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stderr));
    mount().expect("nobody has it any more");
    drop(engine);
    let (lost, leaked) = scene.usable(&store);
    assert!(lost.is_empty() && leaked.is_empty(), "{lost:?} {leaked:?}");
}

/// A process that holds a lock of the store and does nothing else.
struct Keeper(Child);

impl Keeper {
    fn of(store: &Path, lock: &str, operation: FlockOperation) -> Keeper {
        let mut options = File::options();
        options.read(true).write(true).create(true).truncate(false);
        let file = options.open(store.join(lock)).expect("opens");
        let mut sleeper = Command::new("sleep");
        // SAFETY: two system calls between fork and exec.
        unsafe {
            sleeper.arg("1000").pre_exec(move || {
                fcntl_setfd(&file, FdFlags::empty())?;
                Ok(flock(&file, operation)?)
            })
        };
        Keeper(sleeper.spawn().expect("starts, and has it"))
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.0.kill().and_then(|()| self.0.wait()).expect("ends");
    }
}

#[test]
fn whoever_waits_for_a_stopped_process_says_which_it_is_and_what_mends_it() {
    let scene = Scene::new();
    let store = scene.store("store");
    import(&store, &scene.archives[0]).ok();
    transload(&store, ["rm", FIRST]).ok();
    let import = scene.words(&["import", "-q"]);
    let (shared, alone) = (FlockOperation::NonBlockingLockShared, FlockOperation::NonBlockingLockExclusive);
    let mut wrong = Vec::new();
    let scenes: [(&str, FlockOperation, &[&[&str]]); 7] = [
        ("collection.lock", alone, &[&["gc"], &["gc", "--wait"], &["fsck"], &["fsck", "--rebuild"]]),
        ("gc.lock", alone, &[&["gc"], &["fsck"], &import]),
        // What gc does with snapshots comes before what it does with layers and blobs.
        ("mount.lock", shared, &[&["gc"]]),
        ("sweep.lock", shared, &[&["gc"]]),
        ("sweep.lock", alone, &[&["gc"]]),
        ("meta.lock", alone, &[&["gc"], &import]),
        ("index.lock", alone, &[&import]),
    ];
    for (lock, operation, commands) in scenes {
        let keeper = Keeper::of(&store, lock, operation);
        signal(&keeper.0, Signal::STOP);
        until_stopped(&keeper.0);
        let pid = keeper.0.id();
        for words in commands {
            let ran = finished(command(&store, *words).env("TRANSLOAD_FAILPOINTS", "patience=20"));
            wrong.extend(failed_well(&ran, &[5], &format!("the process that holds {lock} is stopped")));
            for expected in [format!("process {pid} (sleep): lock "), format!("kill -CONT {pid}")] {
                assert!(ran.stderr.contains(&expected), "{words:?}: {expected} in {}", ran.stderr);
            }
        }
    }
    assert_eq!(wrong, Vec::<String>::new());
    let (lost, leaked) = scene.usable(&store);
    assert!(lost.is_empty() && leaked.is_empty(), "{lost:?} {leaked:?}");
}

#[test]
fn whoever_waits_for_a_process_that_is_well_says_for_which_and_waits_on() {
    let scene = Scene::new();
    let store = scene.store("store");
    import(&store, &scene.archives[0]).ok();
    let at = scene.dir.path().join("at");
    std::fs::create_dir(&at).expect("makes");
    let mount = ["mount", FIRST, at.to_str().expect("text")];
    let _unmount = Unmount(at.clone());
    let mut scenes: Vec<(&str, &[&str])> = vec![("collection.lock", &["fsck", "-v", "--progress", "plain"])];
    if have(&[]) {
        scenes.push(("mount.lock", &mount));
    }
    for (lock, words) in scenes {
        let keeper = Keeper::of(&store, lock, FlockOperation::NonBlockingLockExclusive);
        let expected =
            format!("notice: waits for {lock}, which is held by process {} (sleep)", keeper.0.id());
        let mut waiting = slowed(&store, "patience=1", words);
        let said = BufReader::new(waiting.stderr.take().expect("piped"));
        let mut said = said.lines().map(|line| line.expect("text"));
        assert!(said.any(|line| line == expected), "{words:?}: {expected}");
        // Its patience is over by now.
        drop(keeper);
        let rest: Vec<String> = said.collect();
        assert!(waiting.wait().expect("ends").success(), "{words:?}: {rest:?}");
    }
    if have(&[]) {
        transload(&store, ["umount", mount[2]]).ok();
    }
    let (lost, leaked) = scene.usable(&store);
    assert!(lost.is_empty() && leaked.is_empty(), "{lost:?} {leaked:?}");
}

#[test]
fn with_too_few_descriptors_it_says_so() {
    let scene = Scene::new();
    let mut tally = Tally::new("descriptor limits");
    let mut said = 0;
    for limit in (4..64).step_by(if thorough() { 1 } else { 6 }) {
        let store = scene.store("store");
        let mut run = command(&store, scene.words(&["import", "-q"]));
        // SAFETY: one system call between fork and exec.
        unsafe {
            run.pre_exec(move || {
                setrlimit(Resource::Nofile, Rlimit { current: Some(limit), maximum: Some(limit) })?;
                Ok(())
            })
        };
        let ran = finished(&mut run);
        let loader = ran.code == Some(127);
        let mut lost = match ran.code {
            Some(0) => Vec::new(),
            // Not even the program's libraries could be opened.
            _ if loader => Vec::new(),
            _ => failed_well(&ran, &[1], "Too many open files"),
        };
        said += u64::from(ran.code == Some(1));
        let (more, leaked) = scene.usable(&store);
        lost.extend(more);
        tally.fault(&format!("ulimit -n {limit}"), lost, leaked);
    }
    assert!(said >= 2, "{said} imports met the limit, so this shows nothing");
    tally.end(10);
}

#[test]
fn short_reads_and_a_slow_pipe_change_nothing() {
    let scene = Scene::new();
    let mut tally = Tally::new("short reads, slow pipes");
    // Every read gives one byte: of the archive, and of a blob that an earlier import left packed.
    let store = scene.store("store");
    with_faults(&store, "archive.read=short", &scene.words(&["import", "-q", "--no-unpack"])).ok();
    with_faults(&store, "blob.read=short", &scene.words(&["import", "-q"])).ok();
    let (lost, leaked) = scene.usable(&store);
    tally.fault("one byte at a time", lost, leaked);
    for archive in [&scene.archives[0], &scene.archives[2]] {
        let store = scene.store("store");
        let mut child =
            command(&store, ["import", "-q", "-"]).stdin(Stdio::piped()).spawn().expect("the program starts");
        let mut pipe = child.stdin.take().expect("a pipe");
        for chunk in std::fs::read(archive).expect("an archive").chunks(9973) {
            pipe.write_all(chunk).expect("a reader");
            std::thread::sleep(Duration::from_millis(1));
        }
        drop(pipe);
        assert!(child.wait().expect("ends").success());
        let (lost, leaked) = scene.usable(&store);
        tally.fault("a slow pipe", lost, leaked);
    }
    tally.end(3);
}

#[test]
fn a_clock_that_jumps_changes_nothing() {
    let scene = Scene::new();
    let mut tally = Tally::new("clock jumps");
    for jump in
        ["clock=-100000000", "clock=100000000", "clock=-5000@4", "clock=900000@4", "clock=-1700000000@2"]
    {
        let store = scene.store("store");
        let mut lost = Vec::new();
        for words in
            [scene.words(&["import", "-q"]), vec!["gc"], scene.words(&["import", "-q"]), vec!["images"]]
        {
            let ran = with_faults(&store, jump, &words);
            if ran.code != Some(0) {
                lost.push(format!("{words:?}: {}", ran.stderr));
            }
        }
        let (more, leaked) = scene.usable(&store);
        lost.extend(more);
        tally.fault(jump, lost, leaked);
    }
    // Another importer that seems to have stalled since yesterday is waited for or overtaken, never harmed.
    for jump in ["clock=90000@3", "clock=-90000@3"] {
        let store = scene.store("store");
        let mut slow = slowed(&store, "tree.entry=sleep:10", &scene.words(&["import", "-q"]));
        std::thread::sleep(Duration::from_millis(100));
        let ran = with_faults(&store, jump, &scene.words(&["import", "-q"]));
        let mut lost = if ran.code == Some(0) { Vec::new() } else { vec![ran.stderr] };
        lost.extend((!slow.wait().expect("ends").success()).then(|| "the slow one failed".to_string()));
        let (more, leaked) = scene.usable(&store);
        lost.extend(more);
        tally.fault(&format!("{jump} beside another import"), lost, leaked);
    }
    tally.end(7);
}

fn slowed(store: &Path, faults: &str, words: &[&str]) -> Child {
    let mut run = command(store, words);
    run.env("TRANSLOAD_FAILPOINTS", faults).stdout(Stdio::null()).stderr(Stdio::piped());
    run.spawn().expect("the program starts")
}

fn signal(child: &Child, signal: Signal) {
    kill_process(Pid::from_child(child), signal).expect("it runs");
}

#[test]
fn the_first_signal_ends_the_work_and_the_second_the_process() {
    let scene = Scene::new();
    let mut tally = Tally::new("signals");
    let unpacked = scene.dir.path().join("unpacked");
    let exported = scene.dir.path().join("exported.tar");
    let import_words = scene.words(&["import", "-q"]);
    let unpack_words = ["unpack", FIRST, unpacked.to_str().expect("text")];
    let export_words = ["export", FIRST, "-o", exported.to_str().expect("text")];
    let commands: [(&[&str], &str); 3] = [
        (&import_words, "tree.entry=sleep:40"),
        (&unpack_words, "unpack.entry=sleep:40"),
        (&export_words, "blob.read=sleep:100"),
    ];
    for (words, slow) in commands {
        for (first, again) in [(Signal::TERM, false), (Signal::INT, false), (Signal::INT, true)] {
            let store = scene.store("store");
            if words[0] != "import" {
                import(&store, &scene.archives[0]).ok();
            }
            // To show the second signal, the first must find nobody who looks.
            let faults =
                if again { slow.split(':').next().map(|slow| format!("{slow}:60000")) } else { None };
            let child = slowed(&store, faults.as_deref().unwrap_or(slow), words);
            std::thread::sleep(Duration::from_millis(250));
            let started = Instant::now();
            signal(&child, first);
            if again {
                std::thread::sleep(Duration::from_millis(100));
                signal(&child, first);
            }
            let output = child.wait_with_output().expect("ends");
            let mut lost = Vec::new();
            if output.status.code() != Some(130) {
                lost.push(format!(
                    "ended with {}: {}",
                    output.status,
                    String::from_utf8_lossy(&output.stderr)
                ));
            }
            if started.elapsed() > Duration::from_secs(30) {
                lost.push("it took too long to end".to_string());
            }
            if !again && (unpacked.exists() || exported.exists()) {
                lost.push("half a result is there".to_string());
            }
            let _ = std::fs::remove_dir_all(&unpacked);
            let (more, leaked) = scene.usable(&store);
            lost.extend(more);
            tally.fault(&format!("{first:?} during {}", words[0]), lost, leaked);
        }
    }
    tally.end(9);
}

#[test]
fn another_user_is_told_and_changes_nothing() {
    if !have(&[]) {
        return;
    }
    let scene = Scene::new();
    let store = scene.store("store");
    import(&store, &scene.archives[0]).ok();
    let mut open = std::fs::metadata(scene.dir.path()).expect("the directory").permissions();
    std::os::unix::fs::PermissionsExt::set_mode(&mut open, 0o755);
    std::fs::set_permissions(scene.dir.path(), open).expect("its owner");
    // Where a user cannot go, the program under test may lie.
    let program = scene.dir.path().join("transload");
    std::fs::copy(support::run::program(), &program).expect("a copy");
    for words in [scene.words(&["import", "-q"]), vec!["images"], vec!["gc"], vec!["rm", FIRST]] {
        let mut run = Command::new(&program);
        run.arg("--store").arg(&store).args(&words).uid(65534).gid(65534).stdin(Stdio::null());
        let ran = finished(&mut run);
        assert_eq!(failed_well(&ran, &[1], "ermission denied"), Vec::<String>::new());
    }
    let (lost, leaked) = scene.usable(&store);
    assert!(lost.is_empty() && leaked.is_empty(), "{lost:?} {leaked:?}");
}

#[test]
fn a_damaged_database_is_said_and_nothing_is_removed_for_it() {
    let scene = Scene::new();
    let mut tally = Tally::new("damaged databases");
    type Damage = fn(&Path);
    let damages: [(&str, Damage); 1] = [("overwritten", |db| {
        let size = std::fs::metadata(db).expect("the database").len() as usize;
        std::fs::write(db, support::image::noise(7, size)).expect("the database");
    })];
    for (what, break_it) in damages {
        let store = scene.store("store");
        import(&store, &scene.archives[0]).ok();
        break_it(&store.join("meta.db"));
        for log in ["meta.db-wal", "meta.db-shm"] {
            let _ = std::fs::remove_file(store.join(log));
        }
        let before = contents(&store);
        let mut lost = Vec::new();
        for words in [scene.words(&["import", "-q"]), vec!["images"], vec!["gc"], vec!["rm", FIRST]] {
            let ran = transload(&store, &words);
            lost.extend(failed_well(&ran, &[1], "metadata database"));
        }
        lost.extend(differences(&before, &contents(&store)));
        tally.fault(what, lost, Vec::new());
    }
    tally.end(1);
}

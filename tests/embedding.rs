//! What an embedder may rely on: the engine works inside an async runtime and from many threads, stops when it is told
//! to, and never prints, reads the environment or changes the process around it.

mod support;

use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};
use support::image::{Image, Pack, image, layer};
use transload::progress::{Event, Silent};
use transload::snapshot::{Labels, SnapshotFile};
use transload::{Cancel, Engine, ErrorKind, ImportOptions, Input};

const CHILD: &str = "TRANSLOAD_TEST_EMBEDDING_CHILD";

fn options() -> ImportOptions {
    ImportOptions { ignore_chown: !rustix::process::geteuid().is_root(), audit: true, ..Default::default() }
}

fn open(root: &Path) -> Engine {
    Engine::open(root, Default::default()).expect("a store")
}

fn sample(name: &str, files: usize) -> Image {
    let below =
        (0..files).fold(layer().dir("/d"), |layer, n| layer.file(&format!("/d/{n}"), vec![n as u8; 5000]));
    image().name(name).layer(below).layer(layer().file("/top", name).packed(Pack::Zstd))
}

fn in_memory(image: &Image) -> Input {
    Input::Reader { name: "memory".into(), reader: Box::new(std::io::Cursor::new(image.oci())) }
}

#[test]
fn an_async_program_imports_several_archives_at_once() {
    let store = support::scratch();
    let engine = open(&store.path().join("store"));
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build().expect("a runtime");
    let written: u64 = runtime.block_on(async {
        let tasks: Vec<_> = (0..6)
            .map(|_| {
                let engine = engine.clone();
                let work =
                    move || engine.import(in_memory(&sample("a:1", 20)), &options(), &Silent, &Cancel::new());
                tokio::task::spawn_blocking(work)
            })
            .collect();
        let mut written = 0;
        for task in tasks {
            written += task.await.expect("no panic").expect("an import").blobs.new;
        }
        written
    });
    assert_eq!(written, 4, "two layers, a configuration and a manifest, each once");
    assert_eq!(engine.images().expect("images").len(), 1);
}

#[test]
fn many_threads_share_one_engine() {
    let store = support::scratch();
    let engine = open(&store.path().join("store"));
    let start = Barrier::new(16);
    let one = |n: usize| {
        start.wait();
        let image = sample(&format!("thread:{}", n % 4), 10);
        engine.import(in_memory(&image), &options(), &Silent, &Cancel::new()).expect("an import")
    };
    let reports: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..16).map(|n| scope.spawn(move || one(n))).collect();
        threads.into_iter().map(|thread| thread.join().expect("no panic")).collect()
    });
    assert_eq!(reports.iter().map(|report| report.trees.new).sum::<u64>(), 5, "one below, four on top");
    assert!(reports.iter().all(|report| report.audit.as_ref().is_some_and(|audit| audit.once)));
    assert_eq!(engine.images().expect("images").len(), 4);
}

#[test]
fn a_cancelled_import_leaves_nothing_visible_and_the_next_one_works() {
    let store = support::scratch();
    let engine = open(&store.path().join("store"));
    let cancel = Cancel::new();
    let stop = |event: &Event| {
        if matches!(event, Event::BlobStarted { .. } | Event::BlobClaimed(_)) {
            cancel.cancel();
        }
    };
    let error =
        engine.import(in_memory(&sample("a:1", 200)), &options(), &stop, &cancel).expect_err("cancelled");
    assert_eq!(error.kind(), ErrorKind::Cancelled, "{error}");
    assert!(engine.images().expect("images").is_empty());
    engine.import(in_memory(&sample("a:1", 200)), &options(), &Silent, &Cancel::new()).expect("the next one");
    assert_eq!(engine.images().expect("images").len(), 1);
}

#[test]
fn a_cancellation_before_the_start_is_heard() {
    let store = support::scratch();
    let engine = open(&store.path().join("store"));
    let cancel = Cancel::new();
    cancel.cancel();
    let error =
        engine.import(in_memory(&sample("a:1", 1)), &options(), &Silent, &cancel).expect_err("cancelled");
    assert_eq!(error.kind(), ErrorKind::Cancelled, "{error}");
}

#[test]
fn two_engines_in_one_process_do_not_meet() {
    let store = support::scratch();
    let (one, two) = (open(&store.path().join("one")), open(&store.path().join("two")));
    one.import(in_memory(&sample("a:1", 1)), &options(), &Silent, &Cancel::new()).expect("an import");
    assert!(two.images().expect("images").is_empty());
}

#[test]
fn a_commit_that_was_interrupted_is_no_damage_and_is_done_again() {
    let dir = support::scratch();
    let root = dir.path().join("store");
    let engine = open(&root);
    let (snapshots, none) = (engine.snapshots(), Labels::new());
    snapshots.prepare("work", None, &none).expect("prepares");
    let row = snapshots.stat("work").expect("there");
    std::fs::write(root.join(format!("snapshots/{}/fs/file", row.id)), "mine").expect("writes");
    // As a death leaves it before the row says so, too.
    let file = SnapshotFile { name: "done".into(), kind: "committed".into(), ..SnapshotFile::of_row(&row) };
    file.write(engine.store().root(), row.id).expect("writes");
    let problems = || engine.fsck(&Default::default(), &Silent, &Cancel::new()).expect("checks").problems;
    assert_eq!(problems().len(), 0);
    snapshots.commit("done", "work", &none, None).expect("commits");
    assert_eq!(problems().len(), 0);
    // A committed one that calls itself active is damage.
    SnapshotFile::of_row(&row).write(engine.store().root(), row.id).expect("writes");
    assert_eq!(problems().len(), 1);
}

#[test]
fn a_listener_hears_of_the_end() {
    let store = support::scratch();
    let ended = AtomicBool::new(false);
    let listen = |event: &Event| {
        if matches!(event, Event::ImportFinished) {
            ended.store(true, Ordering::Relaxed);
        }
    };
    let engine = open(&store.path().join("store"));
    engine.import(in_memory(&sample("a:1", 1)), &options(), &listen, &Cancel::new()).expect("an import");
    assert!(ended.load(Ordering::Relaxed));
}

/// Runs this very test in a child whose output is caught and whose environment would mislead a library that looked.
#[test]
fn the_library_is_silent_and_blind_to_the_environment() {
    if let Some(root) = std::env::var_os(CHILD) {
        return silent_child(Path::new(&root));
    }
    let store = support::scratch();
    let decoy = store.path().join("decoy");
    let test = "the_library_is_silent_and_blind_to_the_environment";
    let output = Command::new(std::env::current_exe().expect("this test"))
        .args(["--exact", test, "--nocapture", "--quiet"])
        .env_clear()
        .env(CHILD, store.path().join("store"))
        .envs([("TRANSLOAD_STORE", &decoy), ("HOME", &decoy), ("XDG_DATA_HOME", &decoy), ("TMPDIR", &decoy)])
        .envs([("RUST_LOG", "trace"), ("RAYON_NUM_THREADS", "0"), ("PATH", "/nowhere")])
        .stdin(Stdio::null())
        .output()
        .expect("the child starts");
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{stdout}{stderr}");
    let between = stdout.split("[[[").nth(1).and_then(|rest| rest.split("]]]").next());
    assert_eq!(between, Some(""), "the library printed: {stdout}");
    assert_eq!(stderr, "");
    assert!(!decoy.exists(), "the library followed the environment");
}

/// Works, fails, and checks that the process around the library is as before.
fn silent_child(root: &Path) {
    use std::io::Write;
    let around = || (std::env::current_dir().expect("a directory"), umask());
    let before = around();
    print!("[[[");
    std::io::stdout().flush().expect("stdout");
    let engine = open(root);
    engine.import(in_memory(&sample("a:1", 5)), &options(), &Silent, &Cancel::new()).expect("an import");
    let broken = Input::Reader { name: "broken".into(), reader: Box::new(&b"no archive at all"[..]) };
    engine.import(broken, &options(), &Silent, &Cancel::new()).expect_err("no archive");
    engine.image("absent").expect_err("no such image");
    engine.tree("a:1", 3).expect("a tree");
    engine.gc(&Default::default()).expect("a collection");
    drop(engine);
    print!("]]]");
    assert_eq!(around(), before);
}

/// The umask of this process, read without setting it.
fn umask() -> String {
    let status = std::fs::read_to_string("/proc/self/status").expect("procfs");
    status.lines().find(|line| line.starts_with("Umask:")).unwrap_or_default().to_string()
}

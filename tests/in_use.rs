//! What is in use is neither unmounted nor removed: it is refused with the processes that hold it, waited for, or left to
//! the first collection that finds it free. Real mounts, real holders, other mount namespaces.

mod support;

use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};
use support::image::{file, image};
use support::mounts::Unmount;
use support::run::{Ran, command, transload};
use support::scratch;
use support::tools::have;

const IMAGE: &str = "example.com/held:1";

/// Read-only and to be written.
const EITHER: [&[&str]; 2] = [&[], &["--rw"]];

/// A store with an image of two layers, so that its mounts are overlays.
struct House {
    dir: tempfile::TempDir,
    /// What the image itself has in the store.
    before: usize,
    /// One at a time: a namespace that one test makes has copies of the mounts of all others, who would then be right to
    /// be refused.
    _alone: MutexGuard<'static, ()>,
}

static ALONE: Mutex<()> = Mutex::new(());

impl House {
    fn new() -> Option<House> {
        if !have(&["sleep", "unshare", "sh"]) {
            return None;
        }
        let alone = ALONE.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let mut house = House { dir: scratch(), before: 0, _alone: alone };
        let archive = house.dir.path().join("held.tar");
        let layers = file("etc/a", "1").dir("d").file("d/b", "2");
        let bytes = image().name(IMAGE).layer(layers).layer(file("top", "3")).docker();
        std::fs::write(&archive, bytes).expect("an archive");
        house.run(&["import", &archive.display().to_string()]).ok();
        house.before = house.directories();
        Some(house)
    }

    fn store(&self) -> PathBuf {
        self.dir.path().join("store")
    }

    fn run(&self, words: &[&str]) -> Ran {
        transload(&self.store(), words)
    }

    fn json(&self, words: &[&str]) -> Value {
        let words: Vec<&str> = ["--json"].into_iter().chain(words.iter().copied()).collect();
        self.run(&words).json()
    }

    /// Mounts the image at a new directory; it is unmounted at the end, whatever happens.
    fn mount(&self, name: &str, options: &[&str]) -> (String, Unmount) {
        let at = self.dir.path().join(name);
        std::fs::create_dir(&at).expect("a directory");
        let text = at.display().to_string();
        let words: Vec<&str> = ["mount", IMAGE, &text].into_iter().chain(options.iter().copied()).collect();
        self.run(&words).ok();
        (text, Unmount(at))
    }

    /// How many mounts the store knows of.
    fn mount_count(&self) -> usize {
        self.json(&["mount"])["mounts"].as_array().expect("a list").len()
    }

    /// The directories of snapshots but for the image's own, and what is on its way out.
    fn directories(&self) -> usize {
        let count = |name: &str| std::fs::read_dir(self.store().join(name)).expect("a directory").count();
        count("snapshots") + count("ingest") - self.before
    }
}

/// A process that ends with the test.
struct Process(Child);

impl Process {
    fn start(command: &mut Command) -> Process {
        Process(command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().expect("it starts"))
    }

    /// One whose working directory is `dir`.
    fn in_directory(dir: &str) -> Process {
        Process::start(Command::new("sleep").arg("1000").current_dir(dir))
    }

    fn end(mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Waits for something that another process is about to do.
#[track_caller]
fn eventually(what: &str, mut done: impl FnMut() -> bool) {
    let started = Instant::now();
    while !done() {
        assert!(started.elapsed() < Duration::from_secs(60), "{what} did not happen");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// The error object's holders, as pairs of process and way.
#[track_caller]
fn holders(error: &Value) -> Vec<(u64, String)> {
    assert_eq!(error["error"]["kind"], "busy", "{error}");
    let list = error["error"]["holders"].as_array().map(Vec::as_slice).unwrap_or_default();
    let pairs = list.iter().flat_map(|holder| {
        let uses = holder["uses"].as_array().expect("uses");
        uses.iter().map(move |one| {
            (holder["pid"].as_u64().expect("a pid"), one["how"].as_str().expect("how").into())
        })
    });
    pairs.collect()
}

#[test]
fn a_mount_in_use_is_refused_with_the_processes_and_goes_once_they_are_gone() {
    let Some(house) = House::new() else { return };
    for options in EITHER {
        let (at, _unmount) = house.mount(&format!("mnt{}", options.len()), options);
        let inside = Process::in_directory(&format!("{at}/d"));
        let reader = Process::start(
            Command::new("sh").args(["-c", "exec 7<\"$1\"; exec sleep 1000", "sh"]).arg(format!("{at}/top")),
        );
        let pid = u64::from(inside.0.id());
        let reads = u64::from(reader.0.id());
        let mut seen = Vec::new();
        eventually("the file is open", || {
            seen = holders(&house.json(&["umount", &at]));
            seen.iter().any(|(pid, how)| *pid == reads && how == "open_file")
        });
        assert!(seen.contains(&(pid, "working_directory".into())), "{seen:?}");
        let refused = house.run(&["umount", &at]).fails(5);
        let line = format!("  process {pid} (sleep): working directory {at}/d");
        assert!(refused.stderr.lines().any(|one| one == line), "{}", refused.stderr);
        assert!(refused.stderr.contains("hint: "), "{}", refused.stderr);
        assert_eq!(house.mount_count(), 1, "nothing was half done");
        assert!(Path::new(&at).join("top").exists());
        inside.end();
        reader.end();
        // A shell's child may hold the file a moment longer.
        house.run(&["umount", "--wait", &at]).ok();
        assert_eq!(house.mount_count(), 0);
        assert_eq!(house.directories(), 0, "nothing is left of its upper and work directories");
    }
}

#[test]
fn waiting_ends_with_the_holder_or_with_the_time() {
    let Some(house) = House::new() else { return };
    let (at, _unmount) = house.mount("mnt", &["--rw"]);
    let holder = Process::in_directory(&at);
    let error = house.json(&["umount", "--wait=50ms", &at]);
    assert_eq!(holders(&error).len(), 1, "{error}");
    let mut waiting = Process::start(&mut command(&house.store(), ["umount", "--wait", &at]));
    // Meanwhile another mount of the same image comes and goes.
    let (other, _unmount_other) = house.mount("other", &["--rw"]);
    house.run(&["umount", &other]).ok();
    assert!(waiting.0.try_wait().expect("a child").is_none(), "it waits for the holder");
    holder.end();
    assert!(waiting.0.wait().expect("a child").success());
    assert_eq!(house.directories(), 0);
}

#[test]
fn a_deferred_mount_goes_with_the_first_collection_that_finds_it_free() {
    let Some(house) = House::new() else { return };
    let (at, _unmount) = house.mount("mnt", &["--rw"]);
    std::fs::write(Path::new(&at).join("kept"), "x").expect("writes");
    let holder = Process::in_directory(&at);
    let answer = house.json(&["umount", "--defer", &at]);
    assert_eq!(
        (&answer["deferred"][0], answer["unmounted"].as_array().map(Vec::len)),
        (&Value::from(&*at), Some(0))
    );
    house.run(&["gc"]).ok();
    assert!(Path::new(&at).join("kept").exists(), "it is in use still");
    assert_eq!(house.json(&["gc", "--dry-run"])["deferred"][0], Value::from(&*at));
    holder.end();
    let would = house.json(&["gc", "--dry-run"]);
    assert_eq!(
        (&would["removed"]["snapshots"], &would["deferred"]),
        (&Value::from(1), &serde_json::json!([]))
    );
    let did = house.run(&["--progress", "json", "--json", "gc"]).ok();
    let told = did.stderr.clone();
    let steps: Vec<Value> = told.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let steps: Vec<(&Value, &Value)> = steps.iter().map(|step| (&step["event"], &step["target"])).collect();
    let place = Value::from(&*at);
    assert_eq!(steps, [(&Value::from("umount"), &place), (&Value::from("snapshot.remove"), &place)]);
    let did = did.json();
    assert_eq!((&did["removed"], &did["freed_bytes"]), (&would["removed"], &would["freed_bytes"]));
    assert!(!Path::new(&at).join("top").exists(), "it is unmounted");
    assert_eq!((house.mount_count(), house.directories()), (0, 0));
    let (free, _unmount) = house.mount("free", &[]);
    let answer = house.json(&["umount", "--defer", &free]);
    assert_eq!(answer["unmounted"][0], Value::from(&*free), "what is free goes at once");
}

#[test]
fn a_copy_of_the_mount_in_another_namespace_counts() {
    let Some(house) = House::new() else { return };
    for options in EITHER {
        let (at, _unmount) = house.mount(&format!("mnt{}", options.len()), options);
        let other = Process::start(Command::new("unshare").args(["-m", "sleep", "1000"]));
        let pid = u64::from(other.0.id());
        // Its mounts are its own by the time that it runs the other program.
        let name = || std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        eventually("the namespace is made", || name().trim_end() == "sleep");
        let seen = holders(&house.json(&["umount", &at]));
        assert_eq!(seen, [(pid, "mount".to_string())]);
        // Someone unmounts it here behind our back: a collection must not take it from the others.
        rustix::mount::unmount(&*at, rustix::mount::UnmountFlags::empty()).expect("unmounts");
        house.run(&["gc"]).ok();
        assert_eq!(house.mount_count(), 1);
        assert_eq!(holders(&house.json(&["umount", &at])), [(pid, "mount".to_string())]);
        other.end();
        house.run(&["gc"]).ok();
        assert_eq!((house.mount_count(), house.directories()), (0, 0));
    }
}

#[test]
fn what_was_unmounted_lazily_stays_while_someone_is_in_it() {
    let Some(house) = House::new() else { return };
    let (at, _unmount) = house.mount("mnt", &["--rw"]);
    let holder = Process::in_directory(&at);
    rustix::mount::unmount(&*at, rustix::mount::UnmountFlags::DETACH).expect("unmounts");
    house.run(&["gc"]).ok();
    assert_eq!(house.mount_count(), 1, "the process writes to its upper directory still");
    assert_eq!(holders(&house.json(&["umount", &at])).len(), 1);
    holder.end();
    house.run(&["gc"]).ok();
    assert_eq!((house.mount_count(), house.directories()), (0, 0));
}

#[test]
fn the_last_name_of_a_mounted_image_is_refused_and_others_are_not() {
    let Some(house) = House::new() else { return };
    house.run(&["tag", IMAGE, "second"]).ok();
    let (at, _unmount) = house.mount("mnt", &[]);
    let holder = Process::in_directory(&at);
    house.run(&["rm", "second"]).ok();
    house.run(&["rm", "--dry-run", IMAGE]).fails(5);
    house.run(&["rm", "--dry-run", "--defer", IMAGE]).ok();
    let refused = house.run(&["rm", IMAGE]).fails(5);
    assert!(
        refused.stderr.contains(&format!("it is mounted at {at} and a process uses it")),
        "{}",
        refused.stderr
    );
    assert_eq!(house.json(&["images"])["images"].as_array().map(Vec::len), Some(1));
    house.run(&["rm", "--wait=20ms", IMAGE]).fails(5);
    house.run(&["rm", "--defer", IMAGE]).ok();
    assert_eq!(house.json(&["images"])["images"].as_array().map(Vec::len), Some(0));
    assert_eq!(std::fs::read_to_string(Path::new(&at).join("etc/a")).expect("reads"), "1");
    holder.end();
    house.run(&["umount", &at]).ok();
    assert_eq!(house.directories(), 0);
}

#[test]
fn a_killed_run_leaves_nothing_that_a_collection_does_not_take() {
    let Some(mut house) = House::new() else { return };
    let Some(busybox) = support::tools::busybox() else { return };
    let bytes = image().name("box").layer(file("bin/sh", std::fs::read(busybox).expect("reads")).mode(0o755));
    let archive = house.dir.path().join("box.tar");
    std::fs::write(&archive, bytes.layer(file("x", "1")).docker()).expect("an archive");
    house.run(&["import", &archive.display().to_string()]).ok();
    house.before += house.directories();
    let script = "echo > /started; while :; do :; done";
    let words = ["mount", "--rw", "box", "--", "/bin/sh", "-c", script];
    let running = Process::start(&mut command(&house.store(), words));
    let started = || {
        let dirs = std::fs::read_dir(house.store().join("snapshots")).expect("lists");
        dirs.flatten().any(|dir| dir.path().join("fs/started").exists())
    };
    eventually("the command runs", started);
    house.run(&["gc"]).ok();
    assert!(started(), "it is in use");
    running.end();
    eventually("the namespace is gone", || {
        house.run(&["gc"]).ok();
        house.directories() == 0
    });
}

#[test]
fn a_store_is_the_same_by_every_path_that_leads_to_it() {
    let Some(house) = House::new() else { return };
    let at = |name: &str| house.dir.path().join(name);
    std::os::unix::fs::symlink(house.store(), at("link")).expect("a link");
    std::fs::create_dir(at("bound")).expect("a directory");
    rustix::mount::mount_bind(house.store(), at("bound")).expect("binds");
    let _bound = Unmount(at("bound"));
    let paths = [house.store(), at("link"), at("link/../store"), at("bound")];
    let pairs = [(1, 1), (1, 0), (0, 1), (2, 2), (3, 3), (3, 0), (0, 3)];
    for (number, (mounts, unmounts)) in pairs.into_iter().enumerate() {
        for options in EITHER {
            let mnt = at(&format!("mnt-{number}-{}", options.len()));
            std::fs::create_dir(&mnt).expect("a directory");
            let _guard = Unmount(mnt.clone());
            let text = mnt.display().to_string();
            let words: Vec<&str> =
                ["mount", IMAGE, &text].into_iter().chain(options.iter().copied()).collect();
            transload(&paths[mounts], words).ok();
            let holder = Process::in_directory(&text);
            let (by, to) = (paths[mounts].display(), paths[unmounts].display());
            let refused = transload(&paths[unmounts], ["umount", &text]).fails(5);
            assert!(refused.stderr.contains("a process uses it"), "{by} {to}: {}", refused.stderr);
            transload(&paths[unmounts], ["gc"]).ok();
            assert_eq!(house.directories(), 1, "{by} {to}: what it shows is there still");
            holder.end();
            transload(&paths[unmounts], ["umount", &text]).ok();
            assert!(!mnt.join("top").exists(), "{by} {to}: it is unmounted");
            assert_eq!((house.mount_count(), house.directories()), (0, 0), "{by} {to}");
        }
    }
}

#[test]
fn a_store_that_was_moved_knows_its_mounts() {
    let Some(house) = House::new() else { return };
    for options in EITHER {
        let (at, _unmount) = house.mount(&format!("mnt{}", options.len()), options);
        let moved = house.dir.path().join("moved");
        std::fs::rename(house.store(), &moved).expect("moves");
        // What is elsewhere now would be taken for the store if names alone decided.
        transload(&house.store(), ["import", &house.dir.path().join("held.tar").display().to_string()]).ok();
        let holder = Process::in_directory(&at);
        transload(&moved, ["umount", &at]).fails(5);
        transload(&moved, ["gc"]).ok();
        assert!(Path::new(&at).join("top").exists());
        let snapshots = || std::fs::read_dir(moved.join("snapshots")).expect("lists").count();
        let with = snapshots();
        holder.end();
        transload(&moved, ["umount", &at]).ok();
        assert!(!Path::new(&at).join("top").exists(), "it is unmounted");
        assert_eq!(snapshots(), with - 1);
        std::fs::remove_dir_all(house.store()).expect("removes");
        std::fs::rename(&moved, house.store()).expect("moves back");
    }
}

/// A process in a mount namespace of its own that can see nothing of the mounts there, because it has another root.
fn blind(house: &House) -> Option<Process> {
    let busybox = support::tools::busybox()?;
    let root = house.dir.path().join("root");
    std::fs::create_dir_all(&root).expect("a directory");
    std::fs::copy(busybox, root.join("busybox")).expect("copies");
    let root = root.display().to_string();
    let words = ["-m", "--propagation", "private", "chroot", &root, "/busybox", "sleep", "1000"];
    let process = Process::start(Command::new("unshare").args(words));
    let name = format!("/proc/{}/comm", process.0.id());
    eventually("it has its own mounts and root", || {
        std::fs::read_to_string(&name).is_ok_and(|name| name.trim_end() == "busybox")
    });
    Some(process)
}

#[test]
fn a_copy_that_no_mount_table_shows_keeps_what_is_below_it() {
    let Some(house) = House::new() else { return };
    for options in EITHER {
        let (at, _unmount) = house.mount(&format!("mnt{}", options.len()), options);
        let Some(other) = blind(&house) else { return };
        let done = house.run(&["--json", "umount", &at]).ok();
        assert_eq!(done.json()["deferred"][0], Value::from(&*at));
        assert!(done.stderr.contains("where it cannot be seen from here"), "{}", done.stderr);
        assert!(!Path::new(&at).join("top").exists(), "it is unmounted here");
        house.run(&["gc"]).ok();
        assert_eq!((house.mount_count(), house.directories()), (1, 1), "{options:?}: the copy lives");
        other.end();
        house.run(&["gc"]).ok();
        assert_eq!((house.mount_count(), house.directories()), (0, 0));
    }
}

#[test]
fn a_bind_mount_is_kept_while_there_are_processes_that_cannot_be_looked_into() {
    let Some(mut house) = House::new() else { return };
    if !have(&["setpriv"]) {
        return;
    }
    let archive = house.dir.path().join("single.tar");
    std::fs::write(&archive, image().name("single").layer(file("one", "1")).docker()).expect("an archive");
    house.run(&["import", &archive.display().to_string()]).ok();
    house.before += house.directories();
    let at = house.dir.path().join("mnt");
    std::fs::create_dir(&at).expect("a directory");
    let _guard = Unmount(at.clone());
    let text = at.display().to_string();
    house.run(&["mount", "single", &text]).ok();
    let other =
        Process::start(Command::new("unshare").args(["-m", "--propagation", "private", "sleep", "1000"]));
    let name = format!("/proc/{}/comm", other.0.id());
    eventually("the namespace is made", || {
        std::fs::read_to_string(&name).is_ok_and(|name| name.trim_end() == "sleep")
    });
    let program = command(&house.store(), ["--json", "umount", &text]);
    let mut deprived = Command::new("setpriv");
    deprived.args(["--bounding-set=-sys_ptrace", "--inh-caps=-sys_ptrace"]).arg(program.get_program());
    let output = deprived.args(program.get_args()).output().expect("it starts");
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success() && told.contains("could not be looked into"), "{told}");
    house.run(&["gc"]).ok();
    assert_eq!(house.mount_count(), 1, "the copy is there");
    other.end();
    house.run(&["gc"]).ok();
    assert_eq!((house.mount_count(), house.directories()), (0, 0));
}

/// A tmpfs over a directory, which is unmounted at the end.
fn cover(dir: &Path) -> Unmount {
    rustix::mount::mount("tmpfs", dir, "tmpfs", rustix::mount::MountFlags::empty(), c"").expect("mounts");
    std::fs::write(dir.join("theirs"), "x").expect("writes");
    Unmount(dir.to_path_buf())
}

#[test]
fn what_others_have_mounted_on_top_is_not_taken_down() {
    let Some(house) = House::new() else { return };
    for options in EITHER {
        let (at, _unmount) = house.mount(&format!("mnt{}", options.len()), options);
        let top = cover(Path::new(&at));
        let theirs = || Path::new(&at).join("theirs").exists();
        let refused = house.run(&["umount", &at]).fails(5);
        assert!(refused.stderr.contains("lies on top of it there: tmpfs"), "{}", refused.stderr);
        let again = house.run(&["mount", IMAGE, &at]).fails(5);
        assert!(again.stderr.contains("is mounted there already"), "{}", again.stderr);
        house.run(&["umount", "--defer", &at]).ok();
        let collected = house.run(&["gc"]).ok();
        assert!(collected.stderr.contains(&format!("{at} is still in use")), "{}", collected.stderr);
        assert!(theirs() && house.directories() == 1);
        drop(top);
        assert!(!theirs() && Path::new(&at).join("top").exists(), "ours is there again");
        house.run(&["mount", IMAGE, &at]).fails(5);
        house.run(&["gc"]).ok();
        assert_eq!((house.mount_count(), house.directories()), (0, 0));
        assert!(!Path::new(&at).join("top").exists());
    }
}

#[test]
fn a_mount_below_one_of_others_is_left_alone() {
    let Some(house) = House::new() else { return };
    let above = house.dir.path().join("above");
    std::fs::create_dir(&above).expect("a directory");
    let (at, _unmount) = house.mount("above/mnt", &["--rw"]);
    let top = cover(&above);
    let refused = house.run(&["umount", &at]).fails(5);
    assert!(refused.stderr.contains("another mount hides it"), "{}", refused.stderr);
    drop(top);
    house.run(&["umount", &at]).ok();
    assert_eq!((house.mount_count(), house.directories()), (0, 0));
}

#[test]
fn of_several_that_are_unmounted_a_busy_one_keeps_none_of_the_others() {
    let Some(house) = House::new() else { return };
    let mounts = ["a", "b", "c"].map(|name| house.mount(name, &["--rw"]));
    let [a, b, c] = mounts.each_ref().map(|(at, _)| at.as_str());
    let inside = Process::in_directory(b);
    let ran = house.run(&["umount", a, b, c]).fails(5);
    for expected in
        [format!("notice: unmounted {a}"), format!("notice: unmounted {c}"), format!("cannot unmount {b}")]
    {
        assert!(ran.stderr.contains(&expected), "{expected} in {}", ran.stderr);
    }
    assert_eq!(house.mount_count(), 1);
    inside.end();
    house.run(&["umount", b]).ok();
    assert_eq!((house.mount_count(), house.directories()), (0, 0));
}

#[test]
fn a_mount_that_went_otherwise_is_told_from_those_that_are_there() {
    let Some(house) = House::new() else { return };
    let mounts = ["a", "b"].map(|name| house.mount(name, &[]));
    let [a, b] = mounts.each_ref().map(|(at, _)| at.as_str());
    rustix::mount::unmount(a, rustix::mount::UnmountFlags::empty()).expect("unmounts");
    let mounted = |at: &str| -> Vec<bool> {
        let listed = house.json(&["mount"])["mounts"].clone();
        let of = listed.as_array().expect("a list").iter().filter(|one| one["target"] == at);
        of.map(|one| one["mounted"] == true).collect()
    };
    assert_eq!((mounted(a), mounted(b)), (vec![false], vec![true]));
    assert!(house.run(&["mount"]).ok().text().contains("no longer mounted"));
    house.run(&["gc"]).ok();
    assert_eq!((mounted(a), mounted(b)), (vec![], vec![true]));
}

#[test]
fn a_mount_that_is_gone_goes_although_its_place_shows_something_else() {
    let Some(house) = House::new() else { return };
    for options in EITHER {
        let (at, _unmount) = house.mount(&format!("mnt{}", options.len()), options);
        rustix::mount::unmount(&*at, rustix::mount::UnmountFlags::empty()).expect("unmounts");
        let top = cover(Path::new(&at));
        house.run(&["gc"]).ok();
        assert_eq!((house.mount_count(), house.directories()), (0, 0));
        assert!(Path::new(&at).join("theirs").exists(), "theirs stays");
        house.run(&["mount", IMAGE, &at]).ok();
        assert!(Path::new(&at).join("top").exists(), "on top of theirs");
        house.run(&["umount", &at]).ok();
        assert!(Path::new(&at).join("theirs").exists());
        drop(top);
    }
}

#[test]
fn a_command_ends_with_its_own_code_although_its_mount_is_in_use() {
    let Some(mut house) = House::new() else { return };
    let Some(busybox) = support::tools::busybox() else { return };
    let program = std::fs::read(busybox).expect("reads");
    let layer = file("bin/sh", &*program).mode(0o755).file("bin/sleep", &*program).mode(0o755).dir("dev");
    let archive = house.dir.path().join("box.tar");
    std::fs::write(&archive, image().name("box").layer(layer).layer(file("x", "1")).docker())
        .expect("an archive");
    house.run(&["import", &archive.display().to_string()]).ok();
    house.before += house.directories();
    let run = |script: &str| {
        let words = ["--progress", "json", "mount", "--rw", "box", "--", "/bin/sh", "-c", script];
        support::run::run(command(&house.store(), words).env("TMPDIR", house.dir.path()))
    };
    let ran = run("exit 3");
    assert_eq!(ran.code, Some(3), "{}", ran.stderr);
    assert!(ran.stderr.contains("\"snapshot.remove\""), "its end is told, too: {}", ran.stderr);
    // It has all that it needs before the shell ends: the image loses its /dev then.
    let stays = "(echo >/ready; exec sleep 60) >/dev/null 2>&1 &";
    let ran = run(&format!("{stays} until [ -e /ready ]; do :; done; exit 7"));
    assert_eq!(ran.code, Some(7), "{}", ran.stderr);
    assert!(ran.stderr.contains("the first gc that finds it free removes it"), "{}", ran.stderr);
    assert_eq!(house.directories(), 1, "it is in use");
    let error = house.json(&["rm", "box"]);
    for (pid, _) in holders(&error) {
        let pid = rustix::process::Pid::from_raw(pid as i32).expect("a process");
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
    }
    eventually("a gc takes it", || {
        house.run(&["gc"]).ok();
        house.directories() == 0
    });
}

#[test]
fn a_snapshot_is_removed_through_the_library_once_nobody_uses_it() {
    let Some(house) = House::new() else { return };
    use transload::store::{Removal, RemovalOptions, WhenBusy};
    let engine = transload::Engine::open(house.store(), Default::default()).expect("a store");
    let chain = engine.inspect(IMAGE).expect("an image").chain_id.expect("unpacked").to_string();
    let mounts = engine.snapshots().prepare("vm-1", Some(&chain), &Default::default()).expect("prepares");
    let at = house.dir.path().join("mnt");
    std::fs::create_dir(&at).expect("a directory");
    transload::mount::mount_all(&mounts, &at, &Default::default()).expect("mounts");
    let guard = Unmount(at.clone());
    let error = engine.remove_snapshot("vm-1", &RemovalOptions::default()).expect_err("mounted");
    assert_eq!(error.kind(), transload::ErrorKind::Busy);
    assert!(error.to_string().contains(&format!("it is mounted at {}", at.display())), "{error}");
    let open = std::fs::File::open(at.join("top")).expect("opens");
    let error = engine.remove_snapshot("vm-1", &RemovalOptions::default()).expect_err("open");
    assert_eq!(error.holders().iter().map(|holder| holder.pid).collect::<Vec<_>>(), [std::process::id()]);
    let defer = RemovalOptions { when_busy: WhenBusy::Defer, ..RemovalOptions::default() };
    assert_eq!(engine.remove_snapshot("vm-1", &defer).expect("marks"), Removal::Deferred);
    drop(open);
    engine.gc(&Default::default()).expect("collects");
    assert!(engine.snapshots().stat("vm-1").is_ok(), "whoever mounted it has to unmount it");
    transload::mount::unmount(&at).expect("unmounts");
    std::mem::forget(guard);
    engine.gc(&Default::default()).expect("collects");
    assert!(engine.snapshots().stat("vm-1").is_err());
    assert_eq!(house.directories(), 0);
    let error = engine.remove_snapshot(&chain, &RemovalOptions::default());
    assert!(error.is_ok_and(|done| done == Removal::Done), "a chain that nobody stands on can be made again");
}

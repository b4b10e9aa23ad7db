//! The way to a mount: many at once, each with its own upper directory; each step told; files read in beforehand; owners
//! mapped for user namespaces, by the kernel and by copy with the same result.

mod support;

use serde_json::Value;
use std::collections::{HashMap, HashSet};
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};
use support::image::{Layer, dir, file, image};
use support::listing::{assert_same, listing};
use support::mounts::Unmount;
use support::run::transload;
use support::scratch;
use support::tools::have;
use transload::mount::{IdMapping, IdMaps, Mount};
use transload::progress::{Event, Listener, Silent, SnapshotStep, Step};
use transload::store::{RemovalOptions, SnapshotterKind};
use transload::transfer::mounting::{IdMethod, MountOptions};
use transload::{Cancel, Engine, EngineOptions, ErrorKind, Input};

const IMAGE: &str = "example.com/path:1";

struct House {
    dir: tempfile::TempDir,
    engine: Engine,
}

impl House {
    fn new(layers: Vec<Layer>, kind: SnapshotterKind) -> Option<House> {
        if !have(&["sh"]) {
            return None;
        }
        let dir = scratch();
        let options = EngineOptions { snapshotter: Some(kind), ..EngineOptions::default() };
        let engine = Engine::open(dir.path().join("store"), options).expect("a store");
        import(&engine, layers);
        Some(House { dir, engine })
    }

    fn overlay(layers: Vec<Layer>) -> Option<House> {
        House::new(layers, SnapshotterKind::Overlay)
    }

    fn place(&self, name: &str) -> (PathBuf, Unmount) {
        let at = self.dir.path().join(name);
        std::fs::create_dir(&at).expect("a directory");
        (at.clone(), Unmount(at))
    }

    fn directories(&self) -> usize {
        let count =
            |name| std::fs::read_dir(self.dir.path().join("store").join(name)).expect("lists").count();
        count("snapshots") + count("ingest")
    }
}

fn import(engine: &Engine, layers: Vec<Layer>) {
    let image = layers.into_iter().fold(image().name(IMAGE), |image, layer| image.layer(layer));
    let reader = Box::new(std::io::Cursor::new(image.docker()));
    let input = Input::Reader { name: "memory".into(), reader };
    engine.import(input, &Default::default(), &Silent, &Cancel::new()).expect("imports");
}

fn two_layers() -> Vec<Layer> {
    vec![file("etc/a", "1").dir("d").file("d/b", "22"), file("top", "333")]
}

#[test]
fn fifty_mounts_of_one_image_at_once_do_not_meet() {
    let Some(house) = House::overlay(two_layers()) else { return };
    let steps: Arc<Mutex<Vec<SnapshotStep>>> = Arc::default();
    let heard = Arc::clone(&steps);
    let listener = Listener::new(move |event: &Event| {
        if let Event::Snapshot(step) = event {
            heard.lock().expect("no panic").push(step.clone());
        }
    });
    let chain = house.engine.inspect(IMAGE).expect("an image").chain_id.expect("unpacked").to_string();
    let places: Vec<(PathBuf, Unmount)> = (0..50).map(|n| house.place(&format!("m{n}"))).collect();
    let options = MountOptions { read_write: true, listener: listener.clone(), ..MountOptions::default() };
    std::thread::scope(|scope| {
        for (at, _) in &places {
            let (engine, options) = (&house.engine, &options);
            scope.spawn(move || {
                engine.mount(IMAGE, at, options).expect("mounts");
                std::fs::write(at.join("own"), at.display().to_string()).expect("writes");
                std::fs::remove_file(at.join("top")).expect("removes");
            });
        }
    });
    for (at, _) in &places {
        assert_eq!(std::fs::read_to_string(at.join("own")).expect("reads"), at.display().to_string());
        assert_eq!(std::fs::read_to_string(at.join("etc/a")).expect("reads"), "1");
    }
    let with_mounts = house.directories();
    let uppers = house.engine.du().expect("measures").actives;
    let targets: HashSet<PathBuf> = uppers.iter().filter_map(|upper| upper.target.clone()).collect();
    assert_eq!(targets, places.iter().map(|(at, _)| at.clone()).collect());
    assert!(
        uppers.iter().all(|upper| upper.inodes == 3 && upper.name.as_deref() == Some(IMAGE)),
        "{uppers:?}"
    );
    let options = RemovalOptions { listener, ..RemovalOptions::default() };
    std::thread::scope(|scope| {
        for (at, _) in &places {
            let (engine, options) = (&house.engine, &options);
            scope.spawn(move || engine.unmount_with(at, options).expect("unmounts"));
        }
    });
    assert_eq!(house.directories(), with_mounts - 50, "their upper and work directories are gone");
    every_step_was_told(&steps.lock().expect("no panic"), &chain);
}

#[test]
fn of_many_mounts_onto_one_place_at_once_one_succeeds() {
    let Some(house) = House::overlay(two_layers()) else { return };
    let (at, _unmount) = house.place("mnt");
    let before = house.directories();
    for _ in 0..8 {
        let start = std::sync::Barrier::new(8);
        let mount = || {
            start.wait();
            house.engine.mount(IMAGE, &at, &MountOptions::default()).map(drop)
        };
        let ended: Vec<_> = std::thread::scope(|scope| {
            let mounting: Vec<_> = (0..8).map(|_| scope.spawn(mount)).collect();
            mounting.into_iter().map(|one| one.join().expect("no panic")).collect()
        });
        let (mounted, refused): (Vec<_>, Vec<_>) = ended.into_iter().partition(Result::is_ok);
        assert_eq!(mounted.len(), 1, "{refused:?}");
        for error in refused.into_iter().filter_map(Result::err) {
            assert_eq!(error.kind(), ErrorKind::Busy, "{error}");
        }
        house.engine.unmount_with(&at, &RemovalOptions::default()).expect("unmounts");
        assert!(!at.join("top").exists(), "there was one");
        assert_eq!(house.directories(), before, "and nothing is left of any");
    }
}

fn every_step_was_told(steps: &[SnapshotStep], chain: &str) {
    let mut lives: HashMap<&str, Vec<Step>> = HashMap::new();
    for step in steps {
        assert_eq!((step.digest.as_deref(), step.attempts >= 1), (Some(chain), true), "{step:?}");
        assert!(step.target.is_some(), "{step:?}");
        lives.entry(&step.key).or_default().push(step.step);
    }
    assert_eq!(lives.len(), 50);
    let whole = [Step::Prepare, Step::Mount, Step::Unmount, Step::Remove];
    assert!(lives.values().all(|life| *life == whole), "{lives:?}");
}

#[test]
fn steps_are_lines_of_json_for_those_who_ask() {
    let Some(house) = House::overlay(two_layers()) else { return };
    let store = house.dir.path().join("store");
    let (at, _unmount) = house.place("mnt");
    let at = at.display().to_string();
    let mounted = transload(&store, ["--progress", "json", "mount", IMAGE, &at]).ok();
    let unmounted = transload(&store, ["--progress", "json", "umount", &at]).ok();
    let lines: Vec<Value> = [mounted.stderr, unmounted.stderr]
        .iter()
        .flat_map(|text| text.lines())
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect();
    let names: Vec<&str> = lines.iter().filter_map(|line| line["event"].as_str()).collect();
    assert_eq!(names, ["snapshot.prepare", "mount", "umount", "snapshot.remove"]);
    assert_eq!(lines[1]["attempts"], 1);
    assert!(lines.iter().all(|line| line["target"] == *at), "{lines:?}");
    assert!(lines.iter().all(|line| line["duration_ms"].is_number() && line["key"] == lines[0]["key"]));
}

#[test]
fn prewarm_reads_each_file_once_and_never_leaves_the_root() {
    let base = dir("usr/lib").file("usr/lib/one", vec![1; 3000]).file("usr/lib/two", vec![2; 2 << 20]);
    let base =
        base.symlink("lib", "usr/lib").symlink("out", "../../../etc/passwd").symlink("abs", "/usr/lib/one");
    let layers =
        vec![base.hardlink("same", "usr/lib/one"), file("usr/lib/one", vec![3; 10]).file("more", "x")];
    for kind in [SnapshotterKind::Overlay, SnapshotterKind::Plain] {
        let Some(house) = House::new(layers.clone(), kind) else { return };
        let read = |paths: &[&str]| {
            let paths: Vec<Vec<u8>> = paths.iter().map(|path| path.as_bytes().to_vec()).collect();
            house.engine.prewarm(IMAGE, &paths, &Cancel::new())
        };
        let whole = read(&[]).expect("reads");
        assert_eq!((whole.files, whole.bytes), (4, 10 + 3000 + (2 << 20) + 1), "same, one, two, more");
        let some = read(&["lib/one", "/abs", "../../usr/lib/one", "more"]).expect("reads");
        assert_eq!((some.files, some.bytes, some.directories), (2, 11, 0), "each once");
        let below = read(&["lib"]).expect("reads");
        assert_eq!((below.files, below.directories), (2, 1));
        let error = read(&["more", "out"]).expect_err("it would lead to the host's");
        assert_eq!(error.kind(), ErrorKind::NotFound);
        assert!(error.to_string().contains("out"), "{error}");
        let cancelled = Cancel::new();
        cancelled.cancel();
        let error = house.engine.prewarm(IMAGE, &[], &cancelled).expect_err("cancelled");
        assert_eq!(error.kind(), ErrorKind::Cancelled);
        let store = house.dir.path().join("store");
        let json = transload(&store, ["--json", "prewarm", IMAGE, "/lib"]).ok().json();
        assert_eq!((json["files"].as_u64(), json["bytes"].as_u64()), (Some(2), Some(10 + (2 << 20))));
        transload(&store, ["prewarm", IMAGE, "/nowhere"]).fails(4);
    }
}

#[test]
fn du_shows_what_was_written_through_each_mount() {
    let Some(house) = House::overlay(two_layers()) else { return };
    let store = house.dir.path().join("store");
    let (at, _unmount) = house.place("mnt");
    house.engine.mount(IMAGE, &at, &MountOptions { read_write: true, ..Default::default() }).expect("mounts");
    std::fs::write(at.join("big"), vec![7; 300_000]).expect("writes");
    let json = transload(&store, ["--json", "du"]).ok().json();
    let line = &json["mounts"][0];
    assert_eq!((line["target"].as_str(), line["name"].as_str()), (at.to_str(), Some(IMAGE)));
    assert!(line["upper_bytes"].as_u64().is_some_and(|bytes| bytes >= 300_000), "{json}");
    assert!(transload(&store, ["du"]).ok().text().contains(&at.display().to_string()));
    house.engine.unmount(&at).expect("unmounts");
}

fn owned() -> Vec<Layer> {
    let base =
        dir("./").mode(0o755).dir("home").owner(1000, 100).file("home/x", "1").owner(1000, 33).mode(0o4755);
    let base = base.symlink("home/link", "x").owner(7, 7).dir("tmp").mode(0o1777);
    vec![base, file("root", "2").file("home/y", "3").owner(1001, 0).hardlink("home/z", "home/x")]
}

fn maps(users: &str, groups: &str) -> IdMaps {
    let ranges =
        |text: &str| text.split(' ').map(|one| one.parse().expect("a range")).collect::<Vec<IdMapping>>();
    IdMaps::new(&ranges(users), &ranges(groups)).expect("a mapping")
}

fn mapped(maps: &IdMaps, method: IdMethod, read_write: bool) -> MountOptions {
    MountOptions { ids: Some(maps.clone()), id_method: method, read_write, ..MountOptions::default() }
}

#[test]
fn owners_are_mapped_by_the_kernel_and_by_a_copy_alike() {
    let both = maps("0:100000:1 1000:200000:2 7:300000:1", "0:100000:50 100:5000:1");
    for kind in [SnapshotterKind::Overlay, SnapshotterKind::Plain] {
        let Some(house) = House::new(owned(), kind) else { return };
        let (plain, _plain) = house.place("plain");
        house.engine.mount(IMAGE, &plain, &MountOptions::default()).expect("mounts");
        let original = listing(&plain);
        let shown = |name: &str, method, read_write| {
            let (at, _guard) = house.place(name);
            house.engine.mount(IMAGE, &at, &mapped(&both, method, read_write)).expect("mounts");
            let stat = |path: &str| std::fs::symlink_metadata(at.join(path)).expect("stats");
            let owner = |path: &str| (stat(path).uid(), stat(path).gid());
            assert_eq!(
                [owner(""), owner("root"), owner("home")],
                [(100_000, 100_000), (100_000, 100_000), (200_000, 5000)]
            );
            assert_eq!([owner("home/x"), owner("home/y")], [(200_000, 100_033), (200_001, 100_000)]);
            assert_eq!([owner("home/z"), owner("home/link")], [(200_000, 100_033), (300_000, 100_007)]);
            assert_eq!(stat("home/x").mode() & 0o7777, 0o4755, "a change of owner clears setuid");
            let mut seen = listing(&at);
            // The root of what can be written is a new directory with a time of its own.
            seen.retain(|line| !read_write || !line.starts_with(". "));
            house.engine.unmount(&at).expect("unmounts");
            seen
        };
        let kernel = shown("kernel", IdMethod::Kernel, false);
        assert_same(&format!("{kind:?}: kernel, copy"), &kernel, &shown("copy", IdMethod::Copy, false));
        let written = shown("rw", IdMethod::Kernel, true);
        assert_eq!(written, kernel[1..], "{kind:?}: read-only, writable");
        assert_same(&format!("{kind:?}: both writable"), &written, &shown("copy-rw", IdMethod::Copy, true));
        assert_same(&format!("{kind:?}: what is stored stays"), &original, &listing(&plain));
        house.engine.unmount(&plain).expect("unmounts");
    }
}

#[test]
fn what_is_written_through_a_mapped_mount_belongs_to_whoever_wrote_it() {
    let both = maps("0:100000:1002", "0:100000:1002");
    for (kind, method) in [
        (SnapshotterKind::Overlay, IdMethod::Kernel),
        (SnapshotterKind::Plain, IdMethod::Kernel),
        (SnapshotterKind::Overlay, IdMethod::Copy),
    ] {
        let Some(house) = House::new(owned(), kind) else { return };
        // Whoever writes has to be let in.
        let open: std::fs::Permissions = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(house.dir.path(), open).expect("chmods");
        let (at, _guard) = house.place("mnt");
        house.engine.mount(IMAGE, &at, &mapped(&both, method, true)).expect("mounts");
        let script = "echo 1 > home/new && echo 2 >> home/x && mkdir home/dir && rm home/y";
        let mut shell = Command::new("sh");
        shell.args(["-ec", script]).current_dir(&at).uid(101_000).gid(100_100);
        let done = shell.status().expect("it starts");
        assert!(done.success(), "{kind:?} {method:?}");
        let owner = |path: &str| {
            let stat = std::fs::metadata(at.join(path)).expect("stats");
            (stat.uid(), stat.gid())
        };
        assert_eq!([owner("home/new"), owner("home/dir")], [(101_000, 100_100); 2], "{kind:?} {method:?}");
        assert_eq!(owner("home/x"), (101_000, 100_033), "copied up with its owner");
        assert!(!at.join("home/y").exists());
        house.engine.unmount(&at).expect("unmounts");
    }
}

#[test]
fn a_mapping_that_does_not_fit_is_refused_with_the_numbers() {
    let Some(house) = House::overlay(owned()) else { return };
    let store = house.dir.path().join("store");
    let (at, _guard) = house.place("mnt");
    let at = at.display().to_string();
    let refused =
        transload(&store, ["mount", "--uidmap", "0:100000:1000", "--gidmap", "0:100000:90", IMAGE, &at]);
    let refused = refused.fails(2);
    assert!(refused.stderr.contains("users 1000-1001; groups 100"), "{}", refused.stderr);
    let refused = transload(&store, ["mount", "--uidmap", "0:1:5", "--uidmap", "3:9:9", IMAGE, &at]).fails(2);
    assert!(refused.stderr.contains("0:1:5 and 3:9:9"), "{}", refused.stderr);
    assert!(house.engine.mounts().expect("lists").is_empty());
    // One side alone counts for both.
    transload(&store, ["mount", "--uidmap", "0:100000:65536", IMAGE, &at]).ok();
    let stat = std::fs::metadata(Path::new(&at).join("home")).expect("stats");
    assert_eq!((stat.uid(), stat.gid()), (101_000, 100_100));
    transload(&store, ["umount", &at]).ok();
}

#[test]
fn a_copy_for_a_mapping_is_made_once_and_goes_with_its_chain() {
    let Some(house) = House::overlay(owned()) else { return };
    let both = maps("0:100000:65536", "0:100000:65536");
    let copies = || {
        let mut keys = Vec::new();
        let mut visit = |row: &transload::snapshot::SnapshotRow| {
            keys.extend(row.key.starts_with("remapped-").then(|| row.key.clone()));
            Ok(())
        };
        house.engine.snapshots().walk(&Default::default(), &mut visit).expect("walks");
        keys
    };
    let mount_once = |name: &str, maps: &IdMaps| {
        let (at, _guard) = house.place(name);
        house.engine.mount(IMAGE, &at, &mapped(maps, IdMethod::Copy, true)).expect("mounts");
        house.engine.unmount(&at).expect("unmounts");
    };
    std::thread::scope(|scope| {
        for name in ["a", "b", "c", "d"] {
            let (mount_once, both) = (&mount_once, &both);
            scope.spawn(move || mount_once(name, both));
        }
    });
    assert_eq!(copies().len(), 1);
    mount_once("other", &maps("0:200000:65536", "0:200000:65536"));
    assert_eq!(copies().len(), 2, "each mapping has its own");
    house.engine.gc(&Default::default()).expect("collects");
    assert_eq!(copies().len(), 2, "the image is still there");
    house.engine.remove(&[IMAGE.to_string()]).expect("removes");
    house.engine.gc(&Default::default()).expect("collects");
    assert_eq!((copies().len(), house.directories()), (0, 0));
}

#[test]
fn what_the_kernel_cannot_map_is_copied() {
    let Some(house) = House::overlay(two_layers()) else { return };
    // The kernel maps no mount of overlayfs itself, so a store that lies on one has to make do with copies.
    let (disk, _disk) = house.place("disk");
    house
        .engine
        .mount(IMAGE, &disk, &MountOptions { read_write: true, ..Default::default() })
        .expect("mounts");
    let mut bind = Mount::bind(disk.join("d"), true);
    let both = maps("0:100000:65536", "0:100000:65536");
    bind.ids = Some(both.clone());
    let (at, _at) = house.place("at");
    let error = transload::mount::mount(&bind, &at, &Default::default()).expect_err("refused");
    assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");

    let options = EngineOptions { snapshotter: Some(SnapshotterKind::Plain), ..EngineOptions::default() };
    let inner = Engine::open(disk.join("store"), options).expect("a store");
    import(&inner, owned());
    let refused = inner.mount(IMAGE, &at, &mapped(&both, IdMethod::Kernel, false)).expect_err("refused");
    assert_eq!(refused.kind(), ErrorKind::Unsupported, "{refused}");
    inner.mount(IMAGE, &at, &mapped(&both, IdMethod::Auto, false)).expect("mounts a copy");
    assert_eq!(std::fs::metadata(at.join("home")).expect("stats").uid(), 101_000);
    inner.unmount(&at).expect("unmounts");
    drop(inner);
    house.engine.unmount(&disk).expect("unmounts");
}

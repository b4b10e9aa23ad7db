//! Nothing that is needed is ever collected, and nothing else is left: random imports, tags, removals, restores, pins,
//! leases, cancelled imports and killed processes from several threads, on two engines of one store, while collections run
//! all the time, against a model that knows what each name means.
//!
//! `TRANSLOAD_MODEL_STEPS` is the number of steps (default 240), `TRANSLOAD_MODEL_SEED` where the random numbers begin,
//! `TRANSLOAD_MODEL_SEEDS` how many seeds are tried from there.

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use support::image::{Image, Pack, gzip, image, layer, noise};
use support::run::command;
use support::tally::Executions;
use transload::engine::RemoveOptions;
use transload::metadata::{Labels, Resource};
use transload::progress::{Event, Progress, Silent};
use transload::transfer::ExportFormat;
use transload::upkeep::GcOptions;
use transload::{Cancel, Engine, ErrorKind, ImportOptions, Input};

const THREADS: u64 = 3;
const NAMES: u64 = 4;
/// Steps of each thread between two moments at which everything is compared.
const ROUND: u64 = 20;
const LONG: Duration = Duration::from_secs(3600);

struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % end
    }
}

/// An archive, and what a store that holds nothing else has of it.
struct Archive {
    bytes: Vec<u8>,
    file: PathBuf,
    target: String,
    blobs: BTreeSet<String>,
    trees: BTreeSet<String>,
}

fn open(root: &Path) -> Engine {
    Engine::open(root, Default::default()).expect("a store")
}

fn options(name: &str) -> ImportOptions {
    ImportOptions {
        ignore_chown: !rustix::process::geteuid().is_root(),
        sync: false,
        tags: vec![name.parse().expect("a name")],
        ..Default::default()
    }
}

fn input(archive: &Archive) -> Input {
    Input::Reader { name: "memory".into(), reader: Box::new(std::io::Cursor::new(archive.bytes.clone())) }
}

fn listed(store: &Path, below: &str) -> BTreeSet<String> {
    let names = std::fs::read_dir(store.join(below)).expect("a directory");
    names.map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned()).collect()
}

/// Images that share layers, some of them in both forms; the same layer is stored compressed and not.
fn archives(dir: &Path) -> Vec<Archive> {
    let part = |n: u64| layer().dir("d").file(&format!("d/{n}"), noise(n + 1, 24));
    let of = |layers: &[(u64, Pack)]| {
        layers.iter().fold(image().name("model:1"), |image, (n, pack)| image.layer(part(*n).packed(*pack)))
    };
    let (plain, zip) = (Pack::Plain, Pack::Gzip);
    let images: [Image; 5] = [
        of(&[(0, zip), (1, zip)]),
        of(&[(0, zip), (2, plain)]),
        of(&[(0, plain), (1, zip), (3, Pack::Zstd)]),
        of(&[(2, zip)]),
        of(&[(4, zip), (2, plain), (1, plain)]),
    ];
    let written = images.iter().flat_map(|image| [image.oci(), gzip(&image.docker()), image.docker()]);
    written
        .enumerate()
        .map(|(number, bytes)| {
            let scratch = support::scratch();
            let file = dir.join(number.to_string());
            std::fs::write(&file, &bytes).expect("writes");
            let (blobs, trees) = (BTreeSet::new(), BTreeSet::new());
            let mut archive = Archive { bytes, file, target: String::new(), blobs, trees };
            let engine = open(scratch.path());
            engine.import(input(&archive), &options("one"), &Silent, &Cancel::new()).expect("an import");
            engine.gc(&GcOptions::default()).expect("a collection");
            archive.target = engine.image("one").expect("is there").target.digest.to_string();
            archive.blobs = listed(scratch.path(), "blobs/sha256");
            archive.trees = listed(scratch.path(), "trees");
            archive
        })
        .collect()
}

/// Cancels at a random event.
struct Interrupted<'a> {
    left: AtomicU64,
    cancel: &'a Cancel,
}

impl Progress for Interrupted<'_> {
    fn event(&self, _: &Event) {
        if self.left.fetch_sub(1, Ordering::Relaxed) == 1 {
            self.cancel.cancel();
        }
    }
}

/// What one name means, and what removals of it can still be undone: those without grace perhaps.
#[derive(Clone, Debug, Default)]
struct Expected {
    now: Option<usize>,
    removed: Vec<(usize, bool)>,
}

struct Worker<'a> {
    engine: &'a Engine,
    archives: &'a [Archive],
    random: Random,
    model: &'a mut BTreeMap<String, Expected>,
}

impl Worker<'_> {
    fn name(&mut self) -> String {
        let at = self.random.below(NAMES) as usize;
        self.model.keys().nth(at).expect("a name").clone()
    }

    fn step(&mut self) {
        let name = self.name();
        match self.random.below(12) {
            0..3 => self.import(&name),
            3 => self.interrupted(&name),
            4 => self.tag(&name),
            5 | 6 => self.remove(&name),
            7 => self.restore(&name),
            8 => self.leased(&name),
            9 => self.killed(&name),
            10 => self.pinned(&name),
            _ => self.whole(&name),
        }
    }

    /// A process that imports, removes or collects dies at some moment. What it was at is done or not, and nothing else.
    fn killed(&mut self, name: &str) {
        let at = self.random.below(self.archives.len() as u64) as usize;
        let (archive, store) = (&self.archives[at], self.engine.store().path());
        let file = archive.file.to_string_lossy();
        let what = self.random.below(3);
        let args: &[&str] = match what {
            0 => &["gc", "--wait"],
            1 => &["rm", "--grace", "1h", name],
            _ => &["import", "-q", "--no-sync", "--ignore-chown", "--tag", name, &file],
        };
        let mut command = command(store, args);
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("starts");
        std::thread::sleep(Duration::from_micros(self.random.below(60_000)));
        child.kill().expect("signals");
        let ended = child.wait_with_output().expect("ends");
        let was = self.model[name].now;
        let may_fail = what == 1 && was.is_none();
        let said = String::from_utf8_lossy(&ended.stderr);
        assert!(ended.status.code().is_none_or(|code| code == 0 || may_fail), "{args:?}: {said}");
        let found = self.engine.image(name).ok().map(|image| image.target.digest.to_string());
        let expected = self.model.get_mut(name).expect("a name");
        match (what, found) {
            (1, None) if was.is_some() => {
                expected.removed.extend(expected.now.take().map(|at| (at, true)));
            }
            (2, Some(target)) if target == archive.target => expected.now = Some(at),
            _ => assert!(ended.status.code() != Some(0) || what != 2, "an import succeeded and is not there"),
        }
        self.whole(name);
    }

    /// What is pinned is not removed, and stays so until it is unpinned.
    fn pinned(&mut self, name: &str) {
        if self.model[name].now.is_none() {
            return;
        }
        self.engine.pin(name, true).expect("pins");
        let refused = self.engine.remove(&[name.to_string()]).map_err(|error| error.kind());
        assert_eq!(refused.err(), Some(ErrorKind::FailedPrecondition), "{name}");
        self.whole(name);
        self.engine.pin(name, false).expect("unpins");
    }

    fn import(&mut self, name: &str) {
        let at = self.random.below(self.archives.len() as u64) as usize;
        let report = self.engine.import(input(&self.archives[at]), &options(name), &Silent, &Cancel::new());
        report.unwrap_or_else(|error| panic!("import as {name}: {error}"));
        self.model.entry(name.into()).or_default().now = Some(at);
        self.whole(name);
    }

    fn interrupted(&mut self, name: &str) {
        let at = self.random.below(self.archives.len() as u64) as usize;
        let cancel = Cancel::new();
        let progress = Interrupted { left: AtomicU64::new(self.random.below(12) + 1), cancel: &cancel };
        match self.engine.import(input(&self.archives[at]), &options(name), &progress, &cancel) {
            Ok(_) => self.model.entry(name.into()).or_default().now = Some(at),
            Err(error) => assert_eq!(error.kind(), ErrorKind::Cancelled, "{error}"),
        }
    }

    fn tag(&mut self, name: &str) {
        let new = self.name();
        let Some(at) = self.model[name].now else { return };
        self.engine.tag(name, &new.parse().expect("a name")).expect("tags");
        self.model.entry(new).or_default().now = Some(at);
    }

    fn remove(&mut self, name: &str) {
        let Some(at) = self.model[name].now else { return };
        let kept = self.random.below(2) == 0;
        let grace = if kept { LONG } else { Duration::ZERO };
        let options = RemoveOptions { grace, ..RemoveOptions::default() };
        self.engine.remove_with(&[name.to_string()], &options).expect("removes");
        let expected = self.model.entry(name.into()).or_default();
        expected.now = None;
        expected.removed.push((at, kept));
    }

    /// The last removal that is still there: one without grace perhaps, one with grace surely.
    fn restore(&mut self, name: &str) {
        if self.model[name].now.is_some() {
            return;
        }
        let result = self.engine.restore(&[name.to_string()]);
        // Several archives have one target, so that alone does not say which removal it was.
        let tombstones = self.engine.removed_images().expect("lists").into_iter();
        let kept_left = tombstones
            .filter(|tombstone| tombstone.name.as_deref() == Some(name))
            .filter(|tombstone| tombstone.expires_ms > tombstone.removed_ms)
            .count();
        let archives = self.archives;
        let expected = self.model.entry(name.into()).or_default();
        let surely = expected.removed.iter().rposition(|(_, kept)| *kept);
        match result {
            Ok(report) => {
                let target = report.restored[0].target.digest.to_string();
                let kept_before = expected.removed.iter().filter(|(_, kept)| *kept).count();
                let found = match (kept_before - kept_left, surely) {
                    (0, _) => (surely.map_or(0, |at| at + 1)..expected.removed.len())
                        .rev()
                        .find(|at| archives[expected.removed[*at].0].target == target),
                    (1, Some(at)) => Some(at).filter(|at| archives[expected.removed[*at].0].target == target),
                    other => panic!("{name}: {other:?}, {expected:?}"),
                };
                let found = found.unwrap_or_else(|| panic!("{name} was restored as {target}: {expected:?}"));
                expected.now = Some(expected.removed[found].0);
                expected.removed.truncate(found);
            }
            Err(error) => {
                assert_eq!((error.kind(), surely), (ErrorKind::NotFound, None), "{name}: {error}");
                expected.removed.clear();
            }
        }
        self.whole(name);
    }

    /// What a lease holds outlives its name; and what it refers to.
    fn leased(&mut self, name: &str) {
        let Some(at) = self.model[name].now else { return };
        let store = self.engine.store();
        let id = format!("{name}-{}", self.random.below(u64::MAX));
        store.lease_create(&id, None, &Labels::new()).expect("a lease");
        let target = self.archives[at].target.parse().expect("a digest");
        store.metadata().lease_add(&id, &[Resource::Blob(target)]).expect("adds");
        self.remove(name);
        for _ in 0..3 {
            std::thread::sleep(Duration::from_millis(self.random.below(15)));
            let there = listed(store.path(), "blobs/sha256");
            let lost: Vec<&String> = self.archives[at].blobs.difference(&there).collect();
            assert!(lost.is_empty(), "a lease held {name}, and {lost:?} is gone");
        }
        store.metadata().lease_remove(&id).expect("ends");
    }

    /// The image is what the model says, and every byte of it can be read.
    fn whole(&self, name: &str) {
        match self.model[name].now {
            Some(at) => whole(self.engine, name, &self.archives[at]),
            None => {
                let found = self.engine.image(name).map(|image| image.target.digest.to_string());
                assert_eq!(found.map_err(|error| error.kind()), Err(ErrorKind::NotFound), "{name}");
            }
        }
    }
}

fn whole(engine: &Engine, name: &str, archive: &Archive) {
    let image = engine.image(name).unwrap_or_else(|error| panic!("{name}: {error}"));
    assert_eq!(image.target.digest.to_string(), archive.target, "{name}");
    let names = [name.to_string()];
    let exported = engine.export(&names, ExportFormat::Oci, &mut std::io::sink(), &Cancel::new());
    exported.unwrap_or_else(|error| panic!("export of {name}: {error:?}"));
    let tree = engine.tree(name, 8).unwrap_or_else(|error| panic!("tree of {name}: {error:?}"));
    let files = tree.children.iter().find(|child| child.name == b"d").expect("/d");
    assert!(!files.children.is_empty(), "{name}");
}

fn collect(engine: &Engine, dry_run: bool) {
    let options = GcOptions { wait: true, dry_run, ..GcOptions::default() };
    let report = engine.gc(&options).expect("a collection");
    assert_eq!(report.failed, [], "nothing fails to go");
}

/// Nobody works: what is there is what the model says, and no more.
fn exact(root: &Path, engine: &Engine, archives: &[Archive], model: &mut [BTreeMap<String, Expected>]) {
    collect(engine, false);
    let mut needed: Vec<&Archive> = Vec::new();
    let mut names = BTreeSet::new();
    for (name, expected) in model.iter_mut().flatten() {
        expected.removed.retain(|(_, kept)| *kept);
        needed.extend(expected.removed.iter().map(|(at, _)| &archives[*at]));
        if let Some(at) = expected.now {
            whole(engine, name, &archives[at]);
            needed.push(&archives[at]);
            names.insert(name.clone());
        }
    }
    let all = |of: fn(&Archive) -> &BTreeSet<String>| -> BTreeSet<String> {
        needed.iter().flat_map(|archive| of(archive).iter().cloned()).collect()
    };
    for (place, expected) in
        [("blobs/sha256", all(|archive| &archive.blobs)), ("trees", all(|archive| &archive.trees))]
    {
        let there = listed(root, place);
        let lost: Vec<_> = expected.difference(&there).collect();
        let left: Vec<_> = there.difference(&expected).collect();
        assert!(
            lost.is_empty() && left.is_empty(),
            "{place}: {lost:?} are lost, {left:?} are left; {model:?}"
        );
    }
    let images = engine.images().expect("lists").into_iter().filter_map(|image| image.name);
    assert_eq!(images.collect::<BTreeSet<_>>(), names, "names");
    for left in ["ingest", "leases"] {
        assert!(listed(root, left).is_empty(), "{left}");
    }
    let ids = engine.store().metadata().snapshot_ids().expect("lists");
    let ids: BTreeSet<String> = ids.iter().map(u64::to_string).collect();
    assert_eq!(listed(root, "snapshots"), ids, "snapshots");
}

fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable).ok().map_or(default, |text| text.parse().expect("a number"))
}

#[test]
fn collections_beside_imports_take_all_that_is_dead_and_nothing_that_lives() {
    let scratch = support::scratch();
    let archives = archives(scratch.path());
    let (steps, first) = (number("TRANSLOAD_MODEL_STEPS", 240), number("TRANSLOAD_MODEL_SEED", 1));
    for seed in first..first + number("TRANSLOAD_MODEL_SEEDS", 1) {
        let _row = Executions::of("steps beside collections", steps);
        eprintln!("{steps} steps from seed {seed}");
        play(&scratch.path().join(format!("store-{seed}")), &archives, steps, seed);
    }
}

fn play(root: &Path, archives: &[Archive], steps: u64, seed: u64) {
    let engines = [open(root), open(root)];
    let names = |thread: u64| (0..NAMES).map(move |n| format!("example.com/t{thread}/n{n}:1"));
    let mut model: Vec<BTreeMap<String, Expected>> =
        (0..THREADS).map(|thread| names(thread).map(|name| (name, Expected::default())).collect()).collect();
    for round in 0..steps.div_ceil(ROUND * THREADS) {
        let over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let collector = scope.spawn(|| {
                let mut random = Random(seed + round + 77);
                while !over.load(Ordering::Relaxed) {
                    collect(&engines[random.below(2) as usize], random.below(4) == 0);
                    std::thread::sleep(Duration::from_millis(random.below(8)));
                }
            });
            let workers: Vec<_> = (0u64..)
                .zip(&mut model)
                .map(|(thread, model)| {
                    let engine = &engines[(thread % 2) as usize];
                    let random = Random((seed + 1) * 0x9e37_79b9 + round * 1009 + thread * 7 + 1);
                    let mut worker = Worker { engine, archives, random, model };
                    scope.spawn(move || (0..ROUND).for_each(|_| worker.step()))
                })
                .collect();
            let ended: Vec<_> = workers.into_iter().map(|worker| worker.join()).collect();
            over.store(true, Ordering::Relaxed);
            collector.join().expect("the collections went well");
            for worker in ended {
                worker.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            }
        });
        exact(root, &engines[0], archives, &mut model);
    }
    std::fs::remove_dir_all(root).expect("removes");
}

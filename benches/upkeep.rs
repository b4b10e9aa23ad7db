//! Life after import at size: ten thousand images over three thousand shared layers. Each figure beside its goal; a goal
//! that is missed makes the program fail. `--fill DIR` makes the store there instead, to look at it by hand.

mod common;

use common::Table;
use common::image::{image, layer};
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use transload::metadata::{
    BlobRow, DocumentReferences, ImageCommit, Labels, ManifestRow, NewImage, NewSnapshot, SnapshotKind,
    TreeRow, Usage,
};
use transload::oci::{ChainId, Descriptor, DiffId, Digest, media_type, parse_document};
use transload::progress::Silent;
use transload::upkeep::GcOptions;
use transload::{Cancel, Engine, Input, Platform};

const IMAGES: usize = 10_000;
/// Layers by how high they lie; each stands on one of the row before.
const LAYERS: [usize; 3] = [300, 700, 2_000];
const RUNS: usize = 21;

const GC: Duration = Duration::from_secs(2);
const PAUSE: Duration = Duration::from_millis(20);
const LIST: Duration = Duration::from_millis(50);

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().collect();
    if let Some(at) = args.iter().position(|arg| arg == "--fill") {
        fill(&open(args.get(at + 1).expect("a directory after --fill").as_ref()));
        return ExitCode::SUCCESS;
    }
    let scratch = common::scratch();
    common::head("upkeep", scratch.path());
    let mut verdicts = Verdicts::new();
    let empty = open(&scratch.path().join("empty"));

    let root = scratch.path().join("store");
    let engine = open(&root);
    fill(&engine);
    let collect = || engine.gc(&GcOptions::default()).expect("collects");
    collect();
    let nothing = common::median(RUNS, || (), |()| assert_eq!(collect().blobs_removed, 0));
    verdicts.judge("gc, nothing dead", nothing, GC);
    let list = common::median(RUNS, || (), |()| list(&root));
    verdicts.judge("images, the command", list, LIST);
    let (first, more) = in_turn(&empty, &engine);
    // A tenth is what two measurements of one thing differ by.
    verdicts.judge("one more import, beside the first and a tenth", more, first + first / 10);
    verdicts.judge("the longest pause of imports beside gc", pause(&engine), PAUSE);
    verdicts.end()
}

struct Verdicts(Table, bool);

impl Verdicts {
    fn new() -> Self {
        Verdicts(Table::new(&["what", "ms", "goal, ms", "verdict"]), true)
    }

    fn judge(&mut self, what: &str, measured: Duration, goal: Duration) {
        let reached = measured <= goal;
        self.1 &= reached;
        let verdict = if reached { "reached" } else { "missed" };
        self.0.row(&[what.to_string(), common::ms(measured), common::ms(goal), verdict.to_string()]);
    }

    fn end(self) -> ExitCode {
        self.0.print();
        if self.1 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }
}

fn open(root: &Path) -> Engine {
    Engine::open(root, Default::default()).expect("a store")
}

/// An archive that no store has anything of.
fn next() -> Vec<u8> {
    static NUMBER: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let below = layer().file("base", common::text(40_000, number * 2 + 1));
    let above = layer().file("top", common::text(40_000, number * 2 + 2));
    image().name(&format!("example.com/more/n{number}:1")).layer(below).layer(above).oci()
}

fn import(engine: &Engine, archive: Vec<u8>) {
    let input = Input::Reader { name: "memory".into(), reader: Box::new(std::io::Cursor::new(archive)) };
    engine.import(input, &common::options(), &Silent, &Cancel::new()).expect("an import");
}

/// What an import takes into a store that has next to nothing, and into one that has all of this.
fn in_turn(empty: &Engine, full: &Engine) -> (Duration, Duration) {
    let mut times = [Vec::new(), Vec::new()];
    for round in 0..RUNS {
        for at in [round % 2, 1 - round % 2] {
            times[at].push(timed([empty, full][at]));
        }
    }
    let [first, more] = times.map(|mut times| {
        times.sort();
        times[RUNS / 2]
    });
    (first, more)
}

fn timed(engine: &Engine) -> Duration {
    let archive = next();
    let began = Instant::now();
    import(engine, archive);
    began.elapsed()
}

fn list(root: &Path) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_transload"));
    let status = command.arg("--store").arg(root).arg("images").stdout(Stdio::null()).status();
    assert!(status.expect("starts").success());
}

/// How much longer than usual an import takes at most while a collection removes half of everything: images' documents, and
/// the layers, trees and snapshots that only these images have.
fn pause(engine: &Engine) -> Duration {
    let mut usual: Vec<Duration> = (0..100).map(|_| timed(engine)).collect();
    usual.sort();
    let names: Vec<String> = (0..IMAGES).step_by(2).map(name).collect();
    for name in &names {
        let row = engine.store().metadata().image_get(name).expect("reads").expect("is there");
        engine.store().metadata().image_bury(&row, 0).expect("removes");
    }
    // As every command does that removes images, so that no import has to.
    engine.store().refresh_index().expect("writes");
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let imports = scope.spawn(|| {
            let mut longest = Duration::ZERO;
            while !over.load(Ordering::Relaxed) {
                longest = longest.max(timed(engine));
            }
            longest
        });
        let began = Instant::now();
        let report = engine.gc(&GcOptions::default()).expect("collects");
        println!(
            "the gc beside imports removed {} blobs, {} trees and {} snapshots in {} ms",
            report.blobs_removed,
            report.trees_removed,
            report.snapshots_removed,
            common::ms(began.elapsed())
        );
        // Layers of even numbers are those of images of even numbers. Else the pause would be that of documents alone.
        let layers = LAYERS.iter().sum::<usize>() as u64 / 2;
        assert!(report.trees_removed >= layers && report.snapshots_removed >= layers);
        over.store(true, Ordering::Relaxed);
        let longest = imports.join().expect("no panic");
        println!(
            "an import takes {} ms, the longest of {} without a collection {} ms",
            common::ms(usual[usual.len() / 2]),
            usual.len(),
            common::ms(usual[usual.len() - 1])
        );
        longest.saturating_sub(usual[usual.len() / 2])
    })
}

fn name(number: usize) -> String {
    format!("example.com/app{}:{}", number / 10, number % 10)
}

/// What imports would have left, written at once.
fn fill(engine: &Engine) {
    let store = engine.store();
    let layers: Vec<Vec<Made>> = LAYERS
        .iter()
        .enumerate()
        .map(|(height, count)| (0..*count).map(|at| make_layer(engine, height, at)).collect())
        .collect();
    let blobs = layers.iter().flatten().map(|made| made.blob.clone()).collect::<Vec<_>>();
    store.metadata().blob_put(&blobs).expect("records");
    let mut images = Vec::with_capacity(IMAGES);
    let mut references = Vec::with_capacity(IMAGES);
    let mut chains = std::collections::HashSet::new();
    let mut documents = Vec::with_capacity(2 * IMAGES);
    for number in 0..IMAGES {
        let stack: Vec<&Made> = layers.iter().map(|row| &row[number % row.len()]).collect();
        let chain = make_chain(engine, &stack, &mut chains);
        let config = put(engine, format!(r#"{{"number":{number}}}"#).as_bytes());
        let descriptor = |row: &BlobRow| serde_json::json!({"mediaType": "x", "digest": row.digest, "size": row.size_bytes});
        let json = serde_json::json!({
            "schemaVersion": 2, "config": descriptor(&config),
            "layers": stack.iter().map(|made| descriptor(&made.blob)).collect::<Vec<_>>(),
        });
        let json = json.to_string().into_bytes();
        let manifest = put(engine, &json);
        references.push(DocumentReferences::of(manifest.digest, parse_document(&json).ok().as_ref()));
        let row = ManifestRow {
            digest: manifest.digest,
            config: config.digest,
            platform: Platform::new("linux", "amd64", None),
            chain_id: Some(chain),
            layers: stack.iter().map(|made| (made.blob.digest, made.tree)).collect(),
            size_bytes: manifest.size_bytes,
        };
        let target = Descriptor::new(media_type::MANIFEST, manifest.digest, manifest.size_bytes);
        images.push(NewImage { name: Some(name(number)), target, manifests: vec![row] });
        documents.extend([config, manifest]);
    }
    store.metadata().blob_put(&documents).expect("records");
    store.metadata().image_put(&ImageCommit { images, references, ..Default::default() }).expect("commits");
    store.refresh_index().expect("writes");
}

struct Made {
    blob: BlobRow,
    tree: DiffId,
}

fn put(engine: &Engine, bytes: &[u8]) -> BlobRow {
    let digest = engine.store().content().put_document(bytes, false).expect("puts").digest();
    BlobRow { digest, size_bytes: bytes.len() as u64, head: None, durable: true }
}

fn make_layer(engine: &Engine, height: usize, at: usize) -> Made {
    let tree = DiffId(Digest::of(format!("tree {height} {at}").as_bytes()));
    let fs = engine.store().path().join("trees").join(tree.0.hex()).join("fs");
    std::fs::create_dir_all(&fs).expect("creates");
    std::fs::write(fs.join("file"), format!("{at}")).expect("writes");
    let row = TreeRow { diff_id: tree, bytes: 4096, inodes: 2, durable: true };
    engine.store().metadata().tree_put(&row).expect("records");
    Made { blob: put(engine, format!("layer {height} {at}").as_bytes()), tree }
}

fn make_chain(engine: &Engine, stack: &[&Made], made: &mut std::collections::HashSet<ChainId>) -> ChainId {
    let trees: Vec<DiffId> = stack.iter().map(|made| made.tree).collect();
    let ids = ChainId::of(&trees);
    for (at, chain) in ids.iter().enumerate().filter(|(_, chain)| made.insert(**chain)) {
        let parent = at.checked_sub(1).map(|below| ids[below].to_string());
        let (key, labels) = (chain.to_string(), Labels::new());
        let new = NewSnapshot {
            key: &key,
            kind: SnapshotKind::Committed,
            parent: parent.as_deref(),
            tree: Some(trees[at]),
            heal: false,
            labels: &labels,
            usage: Usage::default(),
        };
        let id = engine.store().metadata().snapshot_create(&new).expect("records").id;
        std::fs::create_dir_all(engine.store().path().join(format!("snapshots/{id}/fs"))).expect("creates");
    }
    *ids.last().expect("three layers")
}

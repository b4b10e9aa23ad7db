//! Any interleaving of imports, removals and collections, through several engines on one store, leaves what doing them in
//! turn leaves: the same names, the same trees, and after a last collection the same blobs, layers and snapshots, whatever
//! their numbers are, and no lease and no work in progress.
//!
//! Each thread has names of its own, so that there is one right answer; the layers are everybody's.

use crate::support::image::{Image, Pack, file, image, layer};
use crate::support::listing::{assert_same, listing};
use crate::support::soundness::{contents, leftovers};
use crate::support::tally::Executions;
use proptest::prelude::*;
use std::path::Path;
use transload::progress::Silent;
use transload::upkeep::GcOptions;
use transload::{Cancel, Engine, EngineOptions, ErrorKind, ImportOptions, Input};

/// One step of a thread; its numbers choose names of its own and images of everybody's.
#[derive(Clone, Debug)]
enum Step {
    Import { name: usize, image: usize },
    Remove { name: usize },
    Collect,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0..2usize, 0..4usize).prop_map(|(name, image)| Step::Import { name, image }),
        2 => (0..2usize).prop_map(|name| Step::Remove { name }),
        1 => Just(Step::Collect),
    ]
}

/// Images that share layers in every way: below, above, and under another compression.
fn images() -> Vec<Image> {
    let base = || file("base", "1").dir("d").file("d/x", vec![7; 20_000]);
    let top = || layer().whiteout("d/x").file("top", "2");
    vec![
        image().layer(base()),
        image().layer(base()).layer(top()),
        image().layer(top().packed(Pack::Zstd)).layer(base().packed(Pack::Plain)),
        image().layer(base().packed(Pack::Zstd)).layer(file("d/y", "3")),
    ]
}

fn run(engine: &Engine, thread: usize, step: &Step) {
    let name = |number: usize| format!("example.com/t{thread}:{number}");
    match step {
        Step::Import { name: number, image } => {
            let tags = vec![name(*number).parse().expect("a name")];
            let options = ImportOptions { tags, sync: false, ignore_chown: true, ..ImportOptions::default() };
            let archive = std::io::Cursor::new(images()[*image].oci());
            let input = Input::Reader { name: "memory".into(), reader: Box::new(archive) };
            engine.import(input, &options, &Silent, &Cancel::new()).expect("an import");
        }
        Step::Remove { name: number } => match engine.remove(&[name(*number)]) {
            Ok(_) => {}
            Err(error) => assert_eq!(error.kind(), ErrorKind::NotFound, "{error}"),
        },
        Step::Collect => collect(engine),
    }
}

fn collect(engine: &Engine) {
    let options = GcOptions { wait: true, ..GcOptions::default() };
    engine.gc(&options).expect("a collection");
}

/// Everything that a store shows, and what lies in it.
fn state(engine: &Engine, root: &Path) -> Vec<String> {
    collect(engine);
    let mut lines = Vec::new();
    for image in engine.images().expect("lists") {
        let name = image.name.as_ref().map(ToString::to_string).unwrap_or_default();
        let at = root.with_extension("unpacked");
        engine.unpack(&name, &at, true, &Cancel::new()).expect("unpacks");
        lines.push(format!("{name} {}", image.target.digest));
        lines.extend(listing(&at).into_iter().map(|line| format!("{name}: {line}")));
        std::fs::remove_dir_all(&at).expect("removes");
    }
    let contents = contents(root);
    lines.extend(
        contents
            .into_iter()
            .flat_map(|(what, lines)| lines.into_iter().map(move |line| format!("{what}: {line}"))),
    );
    // Of two snapshots that say the same one would be seen.
    lines.push(format!("{} snapshots", std::fs::read_dir(root.join("snapshots")).expect("a store").count()));
    assert_eq!(leftovers(root), Vec::<String>::new());
    lines
}

fn open(root: &Path) -> Engine {
    Engine::open(root, EngineOptions { threads: 2, ..EngineOptions::default() }).expect("a store")
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, max_shrink_iters: 20, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_interleaving_of_imports_removals_and_collections_equals_a_sequential_one(
        threads in prop::collection::vec(prop::collection::vec(step(), 1..5), 2..5)
    ) {
        let _row = Executions::of("interleavings of engines", 1);
        let scratch = crate::support::scratch();
        let (together, in_turn) = (scratch.path().join("together"), scratch.path().join("in-turn"));
        // The first engine makes the store; each thread has one of its own, as a process would.
        let first = open(&together);
        std::thread::scope(|scope| {
            for (number, steps) in threads.iter().enumerate() {
                let root = &together;
                scope.spawn(move || {
                    let engine = open(root);
                    steps.iter().for_each(|step| run(&engine, number, step));
                });
            }
        });
        let engine = open(&in_turn);
        for (number, steps) in threads.iter().enumerate() {
            steps.iter().for_each(|step| run(&engine, number, step));
        }
        assert_same("interleaved", &state(&engine, &in_turn), &state(&first, &together));
    }
}

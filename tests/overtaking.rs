//! An import whose maker stalls: another does its work and publishes beside it, and what lies under the names from before counts
//! for nothing until a record says otherwise.

mod support;

use rustix::fd::OwnedFd;
use rustix::fs::{FlockOperation, Mode, OFlags, flock, open};
use std::io::Cursor;
use std::path::Path;
use std::time::Duration;
use support::image::{Image, Layer, image, layer};
use transload::progress::Silent;
use transload::{Cancel, Engine, ImportOptions, Input};

fn bottom() -> Layer {
    layer().dir("/d").file("/d/a", vec![7; 100_000])
}

fn sample() -> Image {
    image().name("example.com/a:1").layer(bottom())
}

fn hex(digest: &str) -> &str {
    digest.strip_prefix("sha256:").expect("a SHA-256")
}

/// Holds a working place, as a maker does that has stopped.
fn stalled(store: &Path, place: &str) -> OwnedFd {
    let path = store.join("ingest").join(place);
    std::fs::create_dir(&path).expect("makes the working place");
    let fd = open(&path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).expect("opens");
    flock(&fd, FlockOperation::NonBlockingLockExclusive).expect("is free");
    fd
}

/// Imports `input`, whose layer is `stored` so, beside stalled makers of its layer, into a store where a crash has left an empty blob and half a tree
/// under their names.
fn overtake(input: Input, stored: &[u8]) {
    let scratch = support::scratch();
    let root = scratch.path().join("store");
    let engine = Engine::open(&root, Default::default()).expect("a store");
    let blob = support::image::digest(stored);
    let (blob, diff_id) = (hex(&blob).to_string(), bottom().diff_id());
    let diff_id = hex(&diff_id);
    let (blob_path, tree_path) = (root.join("blobs/sha256").join(&blob), root.join("trees").join(diff_id));
    std::fs::write(&blob_path, b"").expect("leaves a blob");
    std::fs::create_dir_all(tree_path.join("fs/half")).expect("leaves a tree");
    let places =
        [format!("blob-sha256-{blob}"), format!("tree-sha256-{blob}"), format!("diff-sha256-{diff_id}")];
    let makers = places.map(|place| stalled(&root, &place));
    let options = ImportOptions {
        patience: Duration::from_millis(50),
        ignore_chown: !rustix::process::geteuid().is_root(),
        ..Default::default()
    };
    let report = engine.import(input, &options, &Silent, &Cancel::new()).expect("imports");
    assert!(report.blobs.new >= 1 && report.trees.new == 1, "{report:?}");
    assert!(std::fs::read(&blob_path).expect("the blob") == stored, "the blob is not what was imported");
    assert_eq!(std::fs::read(tree_path.join("fs/d/a")).expect("the file"), vec![7; 100_000]);
    assert!(!tree_path.join("fs/half").exists(), "nothing of what was there is left");
    drop(makers);
    let checked = engine.fsck(&Default::default(), &Silent, &Cancel::new()).expect("checks");
    assert!(checked.problems.is_empty(), "{:?}", checked.problems);
}

#[test]
fn what_a_crash_left_is_replaced_beside_a_stalled_maker() {
    let scratch = support::scratch();
    let path = scratch.path().join("a.tar");
    std::fs::write(&path, sample().oci()).expect("writes the archive");
    overtake(Input::Path(path), &bottom().blob());
}

#[test]
fn the_same_from_a_stream() {
    overtake(
        Input::Reader { name: "memory".into(), reader: Box::new(Cursor::new(sample().oci())) },
        &bottom().blob(),
    );
}

#[test]
fn the_same_from_a_stream_that_announces_no_digest() {
    overtake(
        Input::Reader { name: "memory".into(), reader: Box::new(Cursor::new(sample().docker())) },
        &bottom().tar(),
    );
}

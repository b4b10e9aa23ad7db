mod holds;
mod publishing;
mod snapshots;

use super::*;
use crate::error::{Error, ErrorKind, Result};
use crate::oci::{ChainId, Descriptor, DiffId, Digest, Platform, media_type};
use std::collections::HashSet;
use std::path::Path;
use std::time::{Duration, Instant};

fn open(path: &Path) -> Metadata {
    Metadata::open(path, OpenMode::Create).expect("opens")
}

fn fresh() -> (tempfile::TempDir, Metadata) {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let metadata = open(dir.path());
    (dir, metadata)
}

fn kind<T>(result: Result<T>) -> ErrorKind {
    result.err().expect("is refused").kind()
}

/// Runs a statement behind the library's back.
fn sql(dir: &tempfile::TempDir, statement: &str) {
    let connection = rusqlite::Connection::open(dir.path().join("meta.db")).expect("opens");
    connection.execute_batch(statement).expect("runs");
}

fn digest(seed: impl std::fmt::Display) -> Digest {
    Digest::of(seed.to_string().as_bytes())
}

fn manifest(seed: &str, layers: usize) -> ManifestRow {
    let layer = |i| (digest(format!("blob {i}")), DiffId(digest(format!("layer {i}"))));
    ManifestRow {
        digest: digest(seed),
        config: digest(format!("config of {seed}")),
        platform: Platform::new("linux", "amd64", None),
        chain_id: None,
        layers: (0..layers).map(layer).collect(),
        size_bytes: 7,
    }
}

fn image(name: Option<&str>, seed: &str) -> NewImage {
    NewImage {
        name: name.map(str::to_string),
        target: Descriptor::new(media_type::MANIFEST, digest(seed), 5),
        manifests: vec![manifest(seed, 2)],
    }
}

fn commit(images: Vec<NewImage>) -> ImageCommit {
    ImageCommit { images, ..ImageCommit::default() }
}

fn outcome(metadata: &Metadata, image: NewImage) -> ImageOutcome {
    metadata.image_put(&commit(vec![image])).expect("commits").images.remove(0).outcome
}

#[test]
fn a_newer_format_is_refused_with_a_hint() {
    let (dir, metadata) = fresh();
    drop(metadata);
    sql(&dir, "PRAGMA user_version = 99");
    for mode in [OpenMode::Create, OpenMode::Write, OpenMode::Read] {
        let error = Metadata::open(dir.path(), mode).err().expect("is refused");
        assert_eq!((error.kind(), error.hint()), (ErrorKind::NewerFormat, Some("upgrade transload")));
    }
}

/// The database of a store that release 0.1 made: six images of four archives, labels, a lease.
fn format_1() -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let sample = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/stores/format-1.meta.db");
    std::fs::copy(sample, dir.path().join("meta.db")).expect("the sample is there");
    dir
}

#[test]
fn a_database_of_format_1_is_brought_up_to_date_when_it_is_opened() {
    let dir = format_1();
    let refused = Metadata::open(dir.path(), OpenMode::Read).err().expect("cannot be written");
    assert_eq!((refused.kind(), refused.hint().is_some()), (ErrorKind::FailedPrecondition, true));
    let metadata = Metadata::open(dir.path(), OpenMode::Write).expect("migrates");
    let images = metadata.images().expect("lists");
    assert_eq!((images.len(), metadata.blobs().expect("lists").len()), (6, 13));
    for manifest in images.iter().flat_map(|image| &image.manifests) {
        for (layer, _) in &manifest.layers {
            assert!(metadata.referrers(layer).expect("asks").contains(&manifest.digest));
        }
        assert_eq!(metadata.referrers(&manifest.config).expect("asks"), [manifest.digest]);
        assert_eq!(metadata.references_of(&manifest.digest).expect("asks"), None, "not looked into yet");
    }
    assert_eq!(metadata.lease_resources("by-hand").expect("lists").len(), 1);
    assert_eq!(metadata.tombstones().expect("lists"), []);
    drop(metadata);
    let again = Metadata::open(dir.path(), OpenMode::Read).expect("is up to date");
    assert_eq!(again.images().expect("lists"), images);
}

#[test]
fn a_migrated_database_has_the_tables_of_a_new_one() {
    let schema = |dir: &tempfile::TempDir| -> Vec<String> {
        let connection = rusqlite::Connection::open(dir.path().join("meta.db")).expect("opens");
        let sql = "SELECT sql FROM sqlite_schema WHERE sql IS NOT NULL ORDER BY name";
        let mut statement = connection.prepare(sql).expect("prepares");
        let rows = statement.query_map([], |row| row.get(0)).expect("asks");
        rows.collect::<rusqlite::Result<_>>().expect("reads")
    };
    let (migrated, (new, _metadata)) = (format_1(), fresh());
    open(migrated.path());
    assert_eq!(schema(&migrated), schema(&new));
}

#[test]
fn processes_that_open_an_old_database_at_once_migrate_it_once() {
    let dir = format_1();
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| assert_eq!(open(dir.path()).images().expect("lists").len(), 6));
        }
    });
}

#[test]
fn references_are_looked_up_both_ways_and_go_with_their_blob() {
    let (_dir, metadata) = fresh();
    metadata.image_put(&commit(vec![image(Some("a"), "1"), image(Some("b"), "2")])).expect("commits");
    let layer = manifest("1", 2).layers[0].0;
    let mut both = vec![digest("1"), digest("2")];
    both.sort();
    assert_eq!(metadata.referrers(&layer).expect("asks"), both);
    let index = DocumentReferences { digest: digest("index"), names: vec![(digest("1"), true)] };
    metadata.references_put(&[index.clone(), index]).expect("puts twice");
    assert_eq!(metadata.references_of(&digest("index")).expect("asks"), Some(vec![(digest("1"), true)]));
    let all = metadata.references().expect("reads");
    let at = |of: &Digest| all.position(of).expect("takes part") as usize;
    assert_eq!(all.names[at(&digest("index"))], [(at(&digest("1")) as u32, true)]);
    assert!(all.read[at(&digest("index"))] && !all.read[at(&digest("1"))]);
    metadata.blob_remove(&[digest("1"), digest("index"), digest("config of 1")]).expect("removes");
    assert_eq!(metadata.referrers(&layer).expect("asks"), [digest("2")]);
    let all = metadata.references().expect("reads");
    assert_eq!(all.position(&digest("1")).or(all.position(&digest("index"))), None);
}

#[test]
fn a_removed_image_is_restored_with_its_labels() {
    let (_dir, metadata) = fresh();
    metadata.image_put(&commit(vec![image(Some("a"), "1")])).expect("commits");
    let before = metadata.image_get("a").expect("reads").expect("is there");
    let pinned: Labels = [(PINNED_LABEL.to_string(), PINNED.to_string())].into();
    metadata.labels_set(Labelled::Image("a"), &pinned).expect("sets");
    assert_eq!(kind(metadata.image_bury(&before, 1000)), ErrorKind::FailedPrecondition);
    let labels: Labels = [("owner".to_string(), "me".to_string())].into();
    metadata.labels_set(Labelled::Image("a"), &labels).expect("sets");
    let buried = metadata.image_bury(&before, 1000).expect("buries");
    assert_eq!(buried.expires_ms, buried.removed_ms + 1000);
    assert_eq!(metadata.image_get("a").expect("reads"), None);
    assert!(metadata.labels(Labelled::Image("a")).expect("reads").is_empty());
    assert_eq!(metadata.tombstones_expire(buried.expires_ms - 1).expect("expires"), 0);
    let restored = metadata.image_restore(buried.id).expect("restores");
    assert_eq!((&restored.name, &restored.manifests), (&before.name, &before.manifests));
    assert_eq!(restored.created_ms, before.created_ms);
    assert_eq!(metadata.labels(Labelled::Image("a")).expect("reads"), labels);
    let buried = metadata.image_bury(&restored, 0).expect("buries");
    assert_eq!(metadata.tombstones_expire(buried.expires_ms).expect("expires"), 1);
    assert_eq!(kind(metadata.image_restore(buried.id)), ErrorKind::NotFound);
}

#[test]
fn only_what_was_chosen_is_removed() {
    let (_dir, metadata) = fresh();
    let put = |target| metadata.image_put(&commit(vec![image(Some("a"), target)])).expect("commits");
    let read = || metadata.image_get("a").expect("reads").expect("is there");
    put("1");
    let chosen = read();
    put("2");
    assert_eq!(kind(metadata.image_bury(&chosen, 0)), ErrorKind::Busy, "the name has moved on");
    let chosen = read();
    put("2");
    assert_eq!(kind(metadata.image_bury(&chosen, 0)), ErrorKind::Busy, "someone relies on it anew");
    assert_eq!(read().target.digest, digest("2"));
    metadata.image_bury(&read(), 0).expect("as it is now");
}

#[test]
fn a_name_that_was_given_away_meanwhile_is_not_taken_back() {
    let (_dir, metadata) = fresh();
    let bury = |name| {
        metadata
            .image_bury(&metadata.image_get(name).expect("reads").expect("is there"), 1000)
            .expect("buries")
    };
    metadata.image_put(&commit(vec![image(Some("a"), "1")])).expect("commits");
    let first = bury("a");
    metadata.image_put(&commit(vec![image(Some("a"), "2")])).expect("commits");
    assert_eq!(kind(metadata.image_restore(first.id)), ErrorKind::AlreadyExists);
    bury("a");
    metadata.image_put(&commit(vec![image(Some("a"), "1")])).expect("the same again");
    assert_eq!(metadata.image_restore(first.id).expect("restores").target.digest, digest("1"));
}

#[test]
fn the_last_imports_are_remembered() {
    let (_dir, metadata) = fresh();
    for elapsed_ms in 1..=1003 {
        let record =
            ImportRecord { elapsed_ms, outcome: "done".into(), report: "{}".into(), ..Default::default() };
        assert_eq!(metadata.import_history_add(&record).expect("adds"), elapsed_ms);
    }
    let last = metadata.import_history(2).expect("lists");
    assert_eq!(last.iter().map(|record| record.elapsed_ms).collect::<Vec<_>>(), [1003, 1002]);
    assert_eq!(metadata.import_history(5000).expect("lists").len(), 1000);
}

#[test]
fn a_name_is_new_existing_or_retagged() {
    let (_dir, metadata) = fresh();
    assert_eq!(outcome(&metadata, image(Some("a"), "1")), ImageOutcome::New);
    assert_eq!(metadata.generation().expect("reads"), 1);
    assert_eq!(outcome(&metadata, image(Some("a"), "1")), ImageOutcome::Existing);
    assert_eq!(metadata.generation().expect("reads"), 1);
    let retagged = outcome(&metadata, image(Some("a"), "2"));
    assert!(matches!(retagged, ImageOutcome::Retagged { previous } if previous.digest == digest("1")));
    let row = metadata.image_get("a").expect("reads").expect("is there");
    assert_eq!((row.target.digest, row.manifests), (digest("2"), vec![manifest("2", 2)]));
    assert_eq!(metadata.images().expect("lists").len(), 1);
}

#[test]
fn no_retag_refuses_and_records_nothing_of_the_import() {
    let (_dir, metadata) = fresh();
    metadata.image_put(&commit(vec![image(Some("a"), "1")])).expect("commits");
    let blob = BlobRow { digest: digest("b"), size_bytes: 1, head: None, durable: true };
    let refused = ImageCommit {
        images: vec![image(Some("b"), "1"), image(Some("a"), "2")],
        blobs: vec![blob],
        no_retag: true,
        ..ImageCommit::default()
    };
    let error = metadata.image_put(&refused).expect_err("is refused");
    assert!(error.kind() == ErrorKind::FailedPrecondition && error.to_string().contains("the name a "));
    assert_eq!(metadata.image_get("b").expect("reads"), None);
    assert_eq!(metadata.blob_get(&digest("b")).expect("reads"), None);
    let same = ImageCommit { no_retag: true, ..commit(vec![image(Some("a"), "1")]) };
    metadata.image_put(&same).expect("the same target is no retag");
}

#[test]
fn images_without_a_name_are_one_per_target() {
    let (_dir, metadata) = fresh();
    assert_eq!(outcome(&metadata, image(None, "1")), ImageOutcome::New);
    assert_eq!(outcome(&metadata, image(None, "1")), ImageOutcome::Existing);
    assert_eq!(outcome(&metadata, image(None, "2")), ImageOutcome::New);
    assert_eq!(outcome(&metadata, image(Some("a"), "2")), ImageOutcome::New);
    let index = metadata.index_view().expect("reads");
    let names: Vec<_> = index.manifests.iter().map(|entry| entry.annotations.get(REF_NAME)).collect();
    assert_eq!(names, [None, None, Some(&"a".to_string())]);
    let found = metadata.images_by_digest(&digest("1").hex()[..12]).expect("finds");
    assert_eq!(found.len(), 1);
    let id = found[0].id;
    metadata.image_tag_id(id, "b").expect("tags");
    metadata.image_remove_id(id).expect("removes");
    assert_eq!(kind(metadata.image_remove_id(id)), ErrorKind::NotFound);
    assert_eq!(metadata.image_get("b").expect("reads").map(|row| row.target.digest), Some(digest("1")));
}

#[test]
fn the_lines_of_the_list_say_what_the_images_say() {
    let (_dir, metadata) = fresh();
    let two = NewImage { manifests: vec![manifest("1", 2), manifest("2", 0)], ..image(Some("b"), "1") };
    let none = NewImage { manifests: Vec::new(), ..image(None, "3") };
    metadata.image_put(&commit(vec![two, image(Some("a"), "4"), none])).expect("commits");
    let mut lines = Vec::new();
    let show = |line: ImageLine<'_>| lines.push(format!("{line:?}"));
    metadata.image_lines(show).expect("lists");
    let mut expected = Vec::new();
    for image in metadata.images().expect("lists") {
        let target = image.target.digest.to_string();
        let mut add = |size_bytes, manifest: Option<ManifestLine<'_>>| {
            let (name, created_ms) = (image.name.as_deref(), image.created_ms);
            let line = ImageLine { name, target: &target, created_ms, size_bytes, manifest };
            expected.push(format!("{line:?}"));
        };
        for one in &image.manifests {
            let (digest, config) = (one.digest.to_string(), one.config.to_string());
            let (platform, chain_id) = (one.platform.to_string(), one.chain_id.map(|id| id.to_string()));
            let manifest = ManifestLine {
                digest: &digest,
                config: &config,
                platform: &platform,
                chain_id: chain_id.as_deref(),
                layers: one.layers.len() as u64,
            };
            add(one.size_bytes, Some(manifest));
        }
        if image.manifests.is_empty() {
            add(image.target.size, None);
        }
    }
    lines.sort();
    expected.sort();
    assert_eq!(lines, expected);
    assert_eq!(lines.len(), 4);
}

#[test]
fn a_tag_survives_the_removal_of_the_name_it_was_made_from() {
    let (_dir, metadata) = fresh();
    metadata.image_put(&commit(vec![image(Some("a"), "1")])).expect("commits");
    metadata.image_tag("a", "b").expect("tags");
    assert_eq!(metadata.image_tag("a", "b").expect("tags").outcome, ImageOutcome::Existing);
    let removed = metadata.image_remove("a").expect("removes");
    assert_eq!(removed.manifests.len(), 1);
    assert_eq!(kind(metadata.image_remove("a")), ErrorKind::NotFound);
    assert_eq!(kind(metadata.image_tag("a", "c")), ErrorKind::NotFound);
    let kept = metadata.image_get("b").expect("reads").expect("is there");
    assert_eq!(kept.manifests, [manifest("1", 2)]);
    metadata.image_remove("b").expect("removes");
    assert_eq!(metadata.index_view().expect("reads").manifests, []);
}

#[test]
fn unpacking_for_one_image_unpacks_for_all_and_is_not_forgotten() {
    let (_dir, metadata) = fresh();
    let mut unpacked = image(Some("b"), "1");
    let chain = Some(ChainId(digest("chain")));
    unpacked.manifests[0].chain_id = chain;
    metadata.image_put(&commit(vec![image(Some("a"), "1")])).expect("commits");
    metadata.image_put(&commit(vec![unpacked])).expect("commits");
    metadata.image_put(&commit(vec![image(Some("c"), "1")])).expect("commits");
    for row in metadata.images().expect("lists") {
        assert_eq!(row.manifests[0].chain_id, chain, "{:?}", row.name);
    }
}

#[test]
fn blobs_are_found_by_digest_and_by_size_and_head() {
    let (_dir, metadata) = fresh();
    let row = |seed: u32| BlobRow {
        digest: digest(seed),
        size_bytes: 10,
        head: Some(digest("head")),
        durable: false,
    };
    metadata.blob_put(&[row(1), row(2)]).expect("puts");
    metadata.blob_put(&[row(1)]).expect("puts twice");
    let mut found = metadata.blobs_by_head(10, &digest("head")).expect("finds");
    found.sort();
    let mut expected = vec![digest(1), digest(2)];
    expected.sort();
    assert_eq!(found, expected);
    assert!(metadata.blobs_by_head(11, &digest("head")).expect("finds").is_empty());
    metadata.layer_put(&digest(1), &DiffId(digest("d")), "gzip", 20).expect("puts");
    assert_eq!(metadata.layers_by_diff_id(&DiffId(digest("d"))).expect("finds").len(), 1);
    metadata.blob_remove(&[digest(1)]).expect("removes");
    metadata.blob_remove(&[digest(1)]).expect("removes twice");
    assert_eq!(metadata.blob_get(&digest(1)).expect("reads"), None);
    assert_eq!(metadata.layer_get(&digest(1)).expect("reads"), None);
}

#[test]
fn what_was_not_durable_in_an_earlier_boot_reads_as_absent() {
    let (dir, metadata) = fresh();
    let blob = |seed: &str, durable| BlobRow { digest: digest(seed), size_bytes: 1, head: None, durable };
    let tree = |seed: &str| TreeRow { diff_id: DiffId(digest(seed)), bytes: 1, inodes: 1, durable: false };
    metadata.blob_put(&[blob("lazy", false), blob("kept", true), blob("marked", false)]).expect("puts");
    metadata.tree_put(&tree("lazy")).expect("puts");
    let all = ["lazy", "kept", "marked"].map(|seed| Resource::Blob(digest(seed)));
    let undurable = metadata.undurable(&all).expect("asks");
    assert_eq!(undurable, [all[0].clone(), all[2].clone()]);
    metadata.mark_durable(&all[2..]).expect("marks");
    sql(&dir, "UPDATE blob SET boot = 'earlier'; UPDATE tree SET boot = 'earlier';");
    let seen =
        ["lazy", "kept", "marked"].map(|seed| metadata.blob_get(&digest(seed)).expect("reads").is_some());
    assert_eq!(seen, [false, true, true]);
    assert_eq!(metadata.tree_get(&DiffId(digest("lazy"))).expect("reads"), None);
    metadata.mark_durable(&all[..1]).expect("marks");
    assert_eq!(metadata.blob_get(&digest("lazy")).expect("reads"), None, "marking does not resurrect");
    metadata.blob_put(&[blob("lazy", false)]).expect("puts");
    metadata.tree_put(&tree("lazy")).expect("puts");
    assert!(metadata.blob_get(&digest("lazy")).expect("reads").is_some());
    assert!(metadata.tree_get(&DiffId(digest("lazy"))).expect("reads").is_some());
}

#[test]
fn a_read_only_handle_reads_and_refuses_to_write() {
    let (dir, metadata) = fresh();
    metadata.image_put(&commit(vec![image(Some("a"), "1")])).expect("commits");
    let reader = Metadata::open(dir.path(), OpenMode::Read).expect("opens");
    assert_eq!(reader.images().expect("reads").len(), 1);
    assert_eq!(kind(reader.image_remove("a")), ErrorKind::ReadOnly);
    let missing = tempfile::tempdir().expect("a temporary directory");
    assert!(Metadata::open(missing.path(), OpenMode::Read).is_err());
    assert!(Metadata::open(missing.path(), OpenMode::Write).is_err());
}

#[test]
fn a_failed_transaction_leaves_nothing_and_the_next_one_works() {
    let (_dir, metadata) = fresh();
    let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        metadata.write(connection::Sync::Lazy, |transaction| {
            blobs::put(
                transaction,
                &[BlobRow { digest: digest(1), size_bytes: 1, head: None, durable: true }],
                "b",
            )?;
            panic!("on purpose");
            #[allow(unreachable_code)]
            Ok(())
        })
    }));
    assert!(panicked.is_err());
    assert_eq!(metadata.blobs().expect("reads"), []);
    metadata.image_put(&commit(vec![image(Some("a"), "1")])).expect("commits");
}

/// A writer that fell out of the queue waits for SQLite's busy time-out, half a minute; one that is only slow does not.
const STARVED: Duration = Duration::from_secs(20);

/// Writes for a while and tells the longest wait.
fn hammer(path: &Path, who: &str, count: usize) -> Duration {
    let metadata = open(path);
    let mut longest = Duration::ZERO;
    for round in 0..count {
        let started = Instant::now();
        let new = image(Some(&format!("{who}:{round}")), &format!("{who} {round}"));
        let committed = metadata.image_put(&ImageCommit { sync: round % 8 == 0, ..commit(vec![new]) });
        assert_eq!(committed.expect("commits").images[0].outcome, ImageOutcome::New);
        longest = longest.max(started.elapsed());
        metadata.image_get(&format!("{who}:{round}")).expect("reads").expect("reads its own write");
    }
    longest
}

#[test]
fn threads_with_handles_of_their_own_write_at_once_and_nobody_starves() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let longest = std::thread::scope(|scope| {
        let path = dir.path();
        let writers: Vec<_> =
            (0..8).map(|who| scope.spawn(move || hammer(path, &format!("t{who}"), 60))).collect();
        writers.into_iter().map(|writer| writer.join().expect("no error")).max()
    });
    assert!(longest < Some(STARVED), "{longest:?}");
    assert_eq!(open(dir.path()).images().expect("lists").len(), 8 * 60);
}

#[test]
fn threads_share_one_handle() {
    let (_dir, metadata) = fresh();
    std::thread::scope(|scope| {
        for who in 0..16 {
            let metadata = &metadata;
            scope.spawn(move || {
                for round in 0..20 {
                    let new = image(Some(&format!("{who}:{round}")), &format!("{who} {round}"));
                    metadata.image_put(&commit(vec![new])).expect("commits");
                    metadata.images().expect("lists");
                }
            });
        }
    });
    assert_eq!(metadata.images().expect("lists").len(), 16 * 20);
    assert_eq!(metadata.generation().expect("reads"), 16 * 20);
}

const CHILD: &str = "TRANSLOAD_TEST_METADATA_CHILD";

/// The other half of the next test: does nothing unless that one starts it.
#[test]
fn child_process_that_writes() {
    if let Some(path) = std::env::var_os(CHILD) {
        let longest = hammer(Path::new(&path), &format!("p{}", std::process::id()), 60);
        assert!(longest < STARVED, "waited {longest:?}");
    }
}

#[test]
fn processes_write_at_once_and_nobody_starves() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let program = std::env::current_exe().expect("a test has a program");
    let children: Vec<_> = (0..8)
        .map(|_| {
            std::process::Command::new(&program)
                .args(["--exact", "metadata::tests::child_process_that_writes"])
                .env(CHILD, dir.path())
                .stdout(std::process::Stdio::piped())
                .stderr(std::process::Stdio::piped())
                .spawn()
                .expect("starts")
        })
        .collect();
    for child in children {
        let output = child.wait_with_output().expect("ends");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    }
    assert_eq!(open(dir.path()).images().expect("lists").len(), 8 * 60);
}

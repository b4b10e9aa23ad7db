//! A gallery of broken stores: each is broken in one way, `fsck` has to say in which, `fsck --repair` mends what sound
//! blobs allow, and an import of the same archive brings the rest back. In the end every one of them is what it was.

mod doctor;
mod owners;
mod rebuild;

#[path = "../support/mod.rs"]
mod support;

use serde_json::Value;
use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use support::image::{Image, Pack, file, image, layer};
use support::listing::listing;
use support::run::{Ran, command, run_with_input, transload};
use support::scratch;
use transload::metadata::{Labels, Metadata, OpenMode};

/// A store with one image of two layers, and what to compare it with.
struct House {
    dir: tempfile::TempDir,
    image: Image,
    before: Vec<String>,
}

fn sample() -> Image {
    image()
        .name("example.com/app:1")
        .layer(
            layer()
                .dir("etc")
                .file("etc/greeting", "hello\n")
                .mode(0o640)
                .hardlink("etc/again", "etc/greeting")
                .file("bin/tool", vec![7; 100_000])
                .symlink("lib", "usr/lib")
                .packed(Pack::Gzip),
        )
        // A directory that this layer does not mention, and so a heal directory.
        .layer(file("etc/second", "two\n").whiteout("bin/tool").packed(Pack::Zstd))
}

impl House {
    fn new(options: &[&str]) -> House {
        Self::of(sample(), options)
    }

    fn of(image: Image, options: &[&str]) -> House {
        let dir = scratch();
        fs::write(dir.path().join("app.tar"), image.oci()).expect("an archive");
        let mut house = House { dir, image, before: Vec::new() };
        house.import(options).ok();
        house.before = house.unpacked("before");
        assert_eq!(house.says(&[]), [] as [&str; 0], "a fresh store is sound");
        house
    }

    fn store(&self) -> PathBuf {
        self.dir.path().join("store")
    }

    fn import(&self, options: &[&str]) -> Ran {
        let archive = self.dir.path().join("app.tar").display().to_string();
        transload(&self.store(), ["import"].iter().chain(options).copied().chain([archive.as_str()]))
    }

    fn unpacked(&self, name: &str) -> Vec<String> {
        let to = self.dir.path().join(name);
        transload(&self.store(), ["unpack", "example.com/app:1", &to.display().to_string()]).ok();
        listing(&to)
    }

    fn fsck(&self, options: &[&str]) -> (Ran, Value) {
        let mut ran = transload(&self.store(), ["--json", "fsck"].iter().chain(options).copied());
        ran.stdout = without_store(&ran, &self.store()).into_bytes();
        let json = ran.json();
        (ran, json)
    }

    /// The problems as `kind state`.
    fn says(&self, options: &[&str]) -> Vec<String> {
        let (ran, json) = self.fsck(options);
        let problems = json["problems"].as_array().unwrap_or_else(|| panic!("{json}"));
        let text = |problem: &Value, field: &str| problem[field].as_str().unwrap_or_default().to_string();
        let says: Vec<String> =
            problems.iter().map(|one| format!("{} {}", text(one, "kind"), text(one, "state"))).collect();
        let clean = says.iter().all(|line| line.ends_with(" repaired"));
        assert_eq!(ran.code, Some(i32::from(!clean)), "{json}");
        assert_eq!(json["clean"], clean, "{json}");
        says
    }

    fn leftovers(&self) -> Vec<String> {
        let (ran, json) = self.fsck(&[]);
        assert_eq!(
            (ran.code, &json["clean"]),
            (Some(0), &Value::Bool(true)),
            "leftovers are no problem: {json}"
        );
        let leftovers = json["leftovers"].as_array().expect("a list");
        leftovers.iter().map(|one| one["what"].as_str().unwrap_or_default().to_string()).collect()
    }

    fn blob(&self, bytes: &[u8]) -> PathBuf {
        let digest = support::image::digest(bytes);
        self.store().join("blobs/sha256").join(digest.trim_start_matches("sha256:"))
    }

    fn tree(&self, layer: usize) -> PathBuf {
        let diff_id = self.image.diff_ids()[layer].clone();
        self.store().join("trees").join(diff_id.trim_start_matches("sha256:"))
    }

    fn layer_blob(&self, layer: usize) -> PathBuf {
        let manifest: Value = serde_json::from_slice(&self.image.manifest_bytes()).expect("JSON");
        let digest = manifest["layers"][layer]["digest"].as_str().expect("a digest").to_string();
        self.store().join("blobs/sha256").join(digest.trim_start_matches("sha256:"))
    }

    /// The directory of the topmost layer's snapshot.
    fn top_snapshot(&self) -> PathBuf {
        let numbers = fs::read_dir(self.store().join("snapshots")).expect("snapshots");
        let number = |entry: std::io::Result<fs::DirEntry>| -> u64 {
            entry.expect("an entry").file_name().to_string_lossy().parse().expect("a number")
        };
        let top = numbers.map(number).max().expect("a snapshot");
        self.store().join("snapshots").join(top.to_string())
    }

    /// What everything must come to in the end.
    fn is_as_before(&self) {
        assert_eq!(self.says(&[]), [] as [&str; 0], "sound again");
        assert_eq!(self.unpacked("after"), self.before);
        transload(&self.store(), ["gc"]).ok();
        assert_eq!(self.leftovers(), [] as [&str; 0], "gc takes what is left over");
    }
}

/// What was printed, with commands as for somebody whose store this is by default.
fn without_store(ran: &Ran, store: &Path) -> String {
    ran.text().replace(&format!("--store {} ", store.display()), "")
}

/// Overwrites what is there, whatever its mode, and keeps its times: as a disk does that forgets.
fn flip(path: &Path, offset: u64) {
    let stat = fs::metadata(path).expect("it is there");
    fs::set_permissions(path, fs::Permissions::from_mode(stat.mode() | 0o200)).expect("a mode");
    let file = fs::OpenOptions::new().read(true).write(true).open(path).expect("opens");
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).expect("reads");
    file.write_all_at(&[byte[0] ^ 0x10], offset).expect("writes");
    file.set_modified(stat.modified().expect("a time")).expect("a time");
    fs::set_permissions(path, fs::Permissions::from_mode(stat.mode())).expect("a mode");
}

/// How a store is broken, what `fsck` finds, and what `--repair` makes of it.
type Broken = (&'static str, fn(&House), &'static [&'static str], &'static [&'static str]);

const GALLERY: [Broken; 18] = [
    (
        "a heal directory with another mode",
        |house| {
            let path = house.top_snapshot().join("fs/etc");
            fs::set_permissions(path, fs::Permissions::from_mode(0o777)).expect("a mode");
        },
        &["snapshot_differs found"],
        &["snapshot_differs repaired"],
    ),
    (
        "a flipped byte in a layer's blob",
        |house| flip(&house.layer_blob(0), 200),
        &["blob_digest found"],
        &["blob_digest needs_import"],
    ),
    (
        "a flipped byte in a configuration",
        |house| flip(&house.blob(&house.image.config_bytes()), 20),
        &["blob_digest found"],
        &["blob_digest needs_import"],
    ),
    (
        "a blob cut short",
        |house| {
            let path = house.layer_blob(1);
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("a mode");
            fs::OpenOptions::new().write(true).open(&path).expect("opens").set_len(30).expect("cuts");
        },
        &["blob_digest found"],
        &["blob_digest needs_import"],
    ),
    (
        "a missing layer blob",
        |house| fs::remove_file(house.layer_blob(0)).expect("removes"),
        &["blob_missing needs_import"],
        &["blob_missing needs_import"],
    ),
    (
        "a missing manifest",
        |house| fs::remove_file(house.blob(&house.image.manifest_bytes())).expect("removes"),
        &["blob_missing needs_import"],
        &["blob_missing needs_import"],
    ),
    (
        "a file of a tree cut short",
        |house| fs::write(house.tree(0).join("fs/bin/tool"), "x").expect("writes"),
        &["tree_differs found"],
        &["tree_differs repaired"],
    ),
    (
        "a flipped bit in a file of a tree",
        |house| flip(&house.tree(0).join("fs/bin/tool"), 70_000),
        &["tree_differs found"],
        &["tree_differs repaired"],
    ),
    (
        "a changed mode",
        |house| {
            let path = house.tree(0).join("fs/etc/greeting");
            fs::set_permissions(path, fs::Permissions::from_mode(0o4755)).expect("a mode");
        },
        &["tree_differs found"],
        &["tree_differs repaired"],
    ),
    (
        "a file too many in a tree",
        |house| fs::write(house.tree(1).join("fs/etc/backdoor"), "x").expect("writes"),
        &["tree_differs found"],
        &["tree_differs repaired"],
    ),
    (
        "a file too few in a tree",
        |house| fs::remove_file(house.tree(0).join("fs/lib")).expect("removes"),
        &["tree_differs found"],
        &["tree_differs repaired"],
    ),
    (
        "a hard link that was broken up",
        |house| {
            let path = house.tree(0).join("fs/etc/again");
            let (stat, content) = (fs::metadata(&path).expect("stats"), fs::read(&path).expect("reads"));
            let dir = path.parent().expect("a parent");
            let dir_time = fs::metadata(dir).expect("stats").modified().expect("a time");
            fs::remove_file(&path).expect("removes");
            fs::write(&path, content).expect("writes");
            fs::set_permissions(&path, stat.permissions()).expect("a mode");
            let time = stat.modified().expect("a time");
            fs::File::open(&path).expect("opens").set_modified(time).expect("a time");
            fs::File::open(dir).expect("opens").set_modified(dir_time).expect("a time");
        },
        &["tree_differs found"],
        &["tree_differs repaired"],
    ),
    (
        "a missing tree",
        |house| fs::remove_dir_all(house.tree(0)).expect("removes"),
        &["tree_missing found"],
        &["tree_missing repaired"],
    ),
    (
        "a tree.json of nonsense",
        |house| fs::write(house.tree(1).join("tree.json"), "{\"version\":").expect("writes"),
        &["tree_record found"],
        &["tree_record repaired"],
    ),
    (
        "a tree.json that has forgotten a deletion",
        |house| {
            let path = house.tree(1).join("tree.json");
            let mut record: Value = serde_json::from_slice(&fs::read(&path).expect("reads")).expect("JSON");
            record["whiteouts"] = Value::Array(Vec::new());
            fs::write(&path, record.to_string()).expect("writes");
        },
        &["tree_record found"],
        &["tree_record repaired"],
    ),
    (
        "a snapshot without its directory",
        |house| fs::remove_dir_all(house.top_snapshot()).expect("removes"),
        &["snapshot_missing found"],
        &["snapshot_missing repaired"],
    ),
    (
        "a heal directory that was half removed",
        |house| fs::remove_dir_all(house.top_snapshot().join("fs")).expect("removes"),
        &["snapshot_missing found"],
        &["snapshot_missing repaired"],
    ),
    (
        "a snapshot.json of nonsense",
        |house| fs::write(house.top_snapshot().join("snapshot.json"), "nonsense").expect("writes"),
        &["snapshot_record found"],
        &["snapshot_record repaired"],
    ),
];

#[test]
fn every_broken_store_is_found_mended_and_as_before() {
    for (name, spoil, found, repaired) in GALLERY {
        eprintln!("{name}");
        let house = House::new(&[]);
        spoil(&house);
        assert_eq!(house.says(&[]), found, "{name}");
        assert_eq!(house.says(&[]), found, "{name}: looking changes nothing");
        assert_eq!(house.says(&["--repair"]), repaired, "{name}");
        if repaired.iter().any(|line| line.ends_with("needs_import")) {
            house.import(&[]).ok();
        }
        house.is_as_before();
    }
}

#[test]
fn a_bad_blob_names_its_images_and_is_kept() {
    let house = House::new(&[]);
    flip(&house.layer_blob(0), 200);
    let (_, json) = house.fsck(&["--repair"]);
    assert_eq!(json["problems"][0]["images"], serde_json::json!(["example.com/app:1"]), "{json}");
    let kept: Vec<_> = fs::read_dir(house.store().join("quarantine")).expect("a quarantine").collect();
    assert_eq!(kept.len(), 1, "{kept:?}");
    for options in [&[][..], &["--quick"], &["--repair"]] {
        assert_eq!(house.says(options), ["blob_missing needs_import"], "it is missed until it is imported");
    }
    let said = house.fsck(&[]).1["problems"][0].clone();
    let message = said["message"].as_str().unwrap_or_default();
    assert!(message.contains("an earlier check put it away as quarantine/blob-sha256-"), "{said}");
    assert_eq!(said["mend"], "transload import the archive of these images again");
    fs::remove_dir_all(house.store().join("quarantine")).expect("removes");
    assert_eq!(house.says(&[]), ["blob_missing needs_import"], "also by one who has no quarantine any more");
    assert_eq!(house.unpacked("meanwhile"), house.before, "the image can still be mounted");
    house.import(&[]).ok();
    house.is_as_before();
}

#[test]
fn a_blob_that_was_put_away_is_not_missed_once_it_is_not_wanted() {
    let house = House::new(&[]);
    flip(&house.layer_blob(0), 200);
    assert_eq!(house.says(&["--repair"]), ["blob_digest needs_import"]);
    house.import(&["--discard-blobs"]).ok();
    assert_eq!(house.says(&[]), [] as [&str; 0], "the image was imported without it");
    assert!(!house.layer_blob(0).exists());
    transload(&house.store(), ["rm", "example.com/app:1"]).ok();
    flip(&house.layer_blob(1), 20);
    house.says(&["--repair"]);
    assert_eq!(house.says(&[]), [] as [&str; 0], "no image needs it");
}

#[test]
fn a_missing_blob_is_told_by_every_check_until_it_is_imported_again() {
    let blobs: [fn(&House) -> PathBuf; 3] = [
        |house| house.layer_blob(0),
        |house| house.blob(&house.image.config_bytes()),
        |house| house.blob(&house.image.manifest_bytes()),
    ];
    for blob in blobs {
        let house = House::new(&[]);
        let blob = blob(&house);
        let bytes = fs::read(&blob).expect("reads");
        fs::remove_file(&blob).expect("removes");
        for options in [&[][..], &["--repair"], &[], &["--quick"], &["--repair"], &[]] {
            assert_eq!(house.says(options), ["blob_missing needs_import"], "{options:?}");
        }
        let said = transload(&house.store(), ["fsck"]).text();
        assert!(said.contains("missing  blob ") && said.contains("needed by  example.com/app:1"), "{said}");
        house.import(&[]).ok();
        assert_eq!(fs::read(&blob).expect("it is there again"), bytes);
        house.is_as_before();
    }
}

#[test]
fn a_missing_blob_is_told_no_more_once_no_image_needs_it() {
    let house = House::new(&[]);
    let lose = || {
        house.import(&[]).ok();
        fs::remove_file(house.layer_blob(0)).expect("removes");
        assert_eq!(house.says(&["--repair"]), ["blob_missing needs_import"]);
    };
    lose();
    house.import(&["--discard-blobs"]).ok();
    assert_eq!(house.says(&[]), [] as [&str; 0], "the image was imported without it");
    lose();
    let archive = fs::read(house.dir.path().join("app.tar")).expect("reads");
    run_with_input(&mut command(&house.store(), ["import", "--discard-blobs", "-"]), &archive).ok();
    assert_eq!(house.says(&[]), [] as [&str; 0], "nor from a stream");
    assert!(!house.layer_blob(0).exists());
    lose();
    transload(&house.store(), ["rm", "--grace", "1h", "example.com/app:1"]).ok();
    assert_eq!(house.says(&["--repair"]), [] as [&str; 0], "the image is removed");
    transload(&house.store(), ["restore", "example.com/app:1"]).ok();
    assert_eq!(house.says(&[]), ["blob_missing needs_import"], "and is back");
    transload(&house.store(), ["rm", "example.com/app:1"]).ok();
    transload(&house.store(), ["gc"]).ok();
    assert_eq!(house.leftovers(), [] as [&str; 0]);
}

#[test]
fn without_a_blob_a_tree_is_held_against_its_record_and_the_report_says_so() {
    let house = House::new(&["--discard-blobs"]);
    let (_, json) = house.fsck(&[]);
    assert_eq!(json["checked"]["trees_against_blobs"], 0, "{json}");
    assert_eq!(json["unproven"].as_array().map(Vec::len), Some(2), "{json}");
    fs::remove_file(house.tree(0).join("fs/lib")).expect("removes");
    assert_eq!(house.says(&[]), ["tree_differs found"]);
    assert_eq!(house.says(&["--repair"]), ["tree_differs needs_import"]);
    house.import(&["--discard-blobs"]).ok();
    house.is_as_before();
}

#[test]
fn a_blob_that_cannot_be_read_is_put_away_and_comes_back_with_an_import() {
    let house = House::new(&[]);
    let path = house.layer_blob(0);
    fs::remove_file(&path).expect("removes");
    fs::create_dir(&path).expect("creates");
    assert_eq!(house.says(&[]), ["blob_unreadable found"]);
    assert_eq!(house.says(&["--repair"]), ["blob_unreadable needs_import"]);
    assert_eq!(house.says(&[]), ["blob_missing needs_import"]);
    house.import(&[]).ok();
    house.is_as_before();
}

#[cfg(feature = "failpoints")]
mod failing {
    use super::*;

    fn failing(house: &House, points: &str, args: &[&str]) -> Ran {
        let mut command = command(&house.store(), args);
        let output = command.env("TRANSLOAD_FAILPOINTS", points).output().expect("starts");
        Ran::of(&command, output)
    }

    #[test]
    fn a_blob_on_a_bad_place_of_the_disk_is_put_away() {
        let house = House::new(&[]);
        let found = failing(&house, "blob.read=eio", &["--json", "fsck"]).json();
        assert_eq!(found["problems"][0]["state"], "found", "{found}");
        let json = failing(&house, "blob.read=eio", &["--json", "fsck", "--repair"]).json();
        let problems = json["problems"].as_array().expect("a list");
        assert!(problems.iter().any(|one| one["kind"] == "blob_unreadable"), "{json}");
        assert!(problems.iter().all(|one| one["state"] == "needs_import"), "{json}");
        house.import(&[]).ok();
        house.is_as_before();
    }

    #[test]
    fn what_a_repair_made_of_unsynced_layers_is_still_there_after_the_next_boot() {
        let house = House::new(&[]);
        transload(&house.store(), ["rm", "example.com/app:1"]).ok();
        transload(&house.store(), ["gc"]).ok();
        house.import(&["--no-sync"]).ok();
        let says = |boot: &str, args: &[&str]| {
            let all = ["--json", "fsck"].iter().chain(args).copied().collect::<Vec<_>>();
            let json = failing(&house, &format!("boot={boot}"), &all).json();
            (json["problems"].as_array().map(Vec::len), json["leftovers"].clone())
        };
        let (problems, leftovers) = says("another", &[]);
        assert!(problems > Some(0), "{leftovers}");
        let leftovers = leftovers.as_array().expect("a list").clone();
        let mend = |one: &Value| one["mend"].as_str().is_some_and(|mend| mend.ends_with("fsck --repair"));
        assert!(!leftovers.is_empty() && leftovers.iter().all(mend), "{leftovers:?}");
        let (repaired, left) = says("another", &["--repair"]);
        assert_eq!((repaired, &left), (problems, &serde_json::json!([])));
        let (problems, left) = says("third", &[]);
        // They were made beside the old ones, which nobody knows any more.
        let is_old = |one: &Value| one["what"].as_str().is_some_and(|what| what.starts_with("snapshots/"));
        assert_eq!(problems, Some(0));
        assert!(left.as_array().expect("a list").iter().all(is_old), "{left}");
        let again = failing(&house, "boot=third", &["import", &archive(&house)]).ok();
        assert!(again.text().contains("already present"), "{}", again.text());
    }

    fn archive(house: &House) -> String {
        house.dir.path().join("app.tar").display().to_string()
    }
}

#[test]
fn an_index_that_was_lost_or_cut_short_is_told() {
    let house = House::new(&[]);
    let path = house.store().join("index.json");
    let ours = fs::read_to_string(&path).expect("reads");
    fs::remove_file(&path).expect("removes");
    assert_eq!(house.says(&[]), ["index_damaged repaired"]);
    fs::write(&path, &ours[..ours.len() / 2]).expect("writes");
    assert_eq!(house.says(&[]), ["index_damaged repaired"]);
    assert_eq!(fs::read_to_string(&path).expect("reads"), ours);
    house.is_as_before();
}

#[test]
fn what_somebody_put_among_the_trees_stays_also_when_things_are_collected() {
    let house = House::new(&[]);
    let mine = house.store().join("trees/zzz/mine");
    fs::create_dir_all(&mine).expect("creates");
    assert_eq!(house.leftovers(), ["trees/zzz"]);
    transload(&house.store(), ["rm", "example.com/app:1"]).ok();
    transload(&house.store(), ["gc"]).ok();
    assert!(mine.exists() && !house.tree(0).exists());
}

#[test]
fn what_brings_back_a_tree_without_its_blob_is_an_import() {
    let house = House::new(&["--discard-blobs"]);
    fs::remove_file(house.tree(0).join("fs/lib")).expect("removes");
    let mend = |options: &[&str]| house.fsck(options).1["problems"][0]["mend"].clone();
    let import = "transload import the archive of these images again";
    assert_eq!(mend(&[]), format!("transload fsck --repair, and then {import}"));
    assert_eq!(mend(&["--repair"]), import);
    assert_eq!(mend(&[]), import);
    assert_eq!(house.says(&[]), ["tree_missing needs_import"]);
    house.import(&["--discard-blobs"]).ok();
    house.is_as_before();
}

#[test]
fn of_a_bad_snapshot_and_its_sound_child_only_the_bad_one_is_told() {
    let image = image()
        .name("example.com/app:1")
        .layer(file("one", "1\n"))
        .layer(file("two", "2\n"))
        .layer(file("three", "3\n"));
    let house = House::of(image, &["--snapshotter", "plain"]);
    let (top, count) = (house.top_snapshot(), house.fsck(&[]).1["checked"]["snapshots"].clone());
    assert_eq!(count, 3);
    let number: u64 = top.file_name().expect("a number").to_string_lossy().parse().expect("a number");
    flip(&house.store().join(format!("snapshots/{}/fs/two", number - 1)), 0);
    assert_eq!(house.says(&[]), ["snapshot_differs found"]);
    house.says(&["--repair"]);
    house.is_as_before();
}

#[test]
fn what_a_crash_leaves_is_no_problem_and_gc_takes_it() {
    let house = House::new(&[]);
    let store = house.store();
    fs::create_dir_all(store.join("ingest/blob-left/fs")).expect("creates");
    fs::write(store.join("ingest/blob-left/data"), vec![0; 5000]).expect("writes");
    fs::create_dir_all(store.join("snapshots/999/fs")).expect("creates");
    let stray = b"nobody recorded it";
    fs::write(house.blob(stray), stray).expect("writes");
    {
        let metadata = Metadata::open(&store, OpenMode::Write).expect("opens");
        let labels = Labels::from([(transload::store::PROCESS_LABEL.to_string(), "4194305".to_string())]);
        metadata.lease_create("dead", None, &labels).expect("creates");
    }
    let blob = format!("blob {}", support::image::digest(stray));
    assert_eq!(house.leftovers(), [blob.as_str(), "ingest/blob-left", "lease dead", "snapshots/999"]);
    house.is_as_before();
}

#[test]
fn names_that_nobody_here_gives_are_told() {
    let house = House::new(&[]);
    fs::write(house.store().join("blobs/sha256/README"), "mine").expect("writes");
    fs::create_dir(house.store().join("trees/lost+found")).expect("creates");
    assert_eq!(house.leftovers(), ["blobs/sha256/README", "trees/lost+found"]);
}

#[test]
fn an_index_that_someone_else_wrote_is_told_and_made_anew() {
    let house = House::new(&[]);
    let path = house.store().join("index.json");
    let ours = fs::read_to_string(&path).expect("reads");
    // As another tool writes it: nothing of ours in it. Opening the store makes it anew.
    fs::write(&path, r#"{"schemaVersion":2,"manifests":[]}"#).expect("writes");
    assert_eq!(house.says(&[]), ["index_foreign repaired"]);
    assert_eq!(fs::read_to_string(&path).expect("reads"), ours);
    // As somebody edits it: our mark is still there.
    fs::write(&path, ours.replace("app:1", "app:2")).expect("writes");
    assert_eq!(house.says(&[]), ["index_foreign found"]);
    assert_eq!(house.says(&["--repair"]), ["index_foreign repaired"]);
    assert_eq!(fs::read_to_string(&path).expect("reads"), ours);
    house.is_as_before();
}

#[test]
fn a_quick_check_reads_no_content() {
    let house = House::new(&[]);
    flip(&house.layer_blob(0), 200);
    assert_eq!(house.says(&["--quick"]), [] as [&str; 0]);
    fs::remove_file(house.layer_blob(0)).expect("removes");
    assert_eq!(house.says(&["--quick"]), ["blob_missing needs_import"]);
}

#[test]
fn plain_stores_are_checked_as_well() {
    let house = House::new(&["--snapshotter", "plain"]);
    fs::write(house.tree(0).join("fs/bin/tool"), "x").expect("writes");
    assert_eq!(house.says(&["--repair"]), ["tree_differs repaired"]);
    fs::remove_dir_all(house.top_snapshot()).expect("removes");
    assert_eq!(house.says(&["--repair"]), ["snapshot_missing repaired"]);
    flip(&house.top_snapshot().join("fs/etc/second"), 1);
    assert_eq!(house.says(&["--repair"]), ["snapshot_differs repaired"]);
    house.is_as_before();
}

/// Beside imports, removals and collections, a check finds nothing: what is being written is no problem.
#[test]
fn a_check_beside_running_imports_finds_nothing() {
    let dir = scratch();
    let store = dir.path().join("store");
    let archive = |n: usize| {
        let path = dir.path().join(format!("{n}.tar"));
        let own = format!("only in {n}");
        let image = image()
            .name(&format!("example.com/many:{n}"))
            .layer(file("etc/shared", vec![1; 200_000]))
            .layer(file(&format!("etc/{n}"), own));
        fs::write(&path, image.oci()).expect("an archive");
        path.display().to_string()
    };
    let archives: Vec<String> = (0..12).map(archive).collect();
    transload(&store, ["import", &archives[0]]).ok();
    std::thread::scope(|scope| {
        let (even, odd): (Vec<_>, Vec<_>) = archives.iter().enumerate().partition(|(n, _)| n % 2 == 0);
        for half in [even, odd] {
            let store = &store;
            scope.spawn(move || {
                for (_, archive) in half {
                    transload(store, ["import", archive]).ok();
                }
            });
        }
        for _ in 0..6 {
            let ran = transload(&store, ["--json", "fsck"]).ok();
            assert_eq!(ran.json()["problems"], Value::Array(Vec::new()), "{}", ran.text());
        }
    });
}

#[test]
fn a_store_that_cannot_be_written_is_checked_as_far_as_reading_goes() {
    let dir = scratch();
    let Some(small) = support::mounts::Small::mount(&dir.path().join("store"), 20 << 20) else { return };
    let store = dir.path().join("store");
    let archive = dir.path().join("app.tar");
    fs::write(&archive, sample().oci()).expect("an archive");
    transload(&store, [Path::new("import"), &archive]).ok();
    small.make_read_only();
    let json = transload(&store, ["--json", "fsck"]).ok().json();
    assert_eq!(
        (&json["clean"], &json["checked"]["trees_against_blobs"]),
        (&Value::Bool(true), &Value::from(0))
    );
    transload(&store, ["fsck", "--repair"]).fails(1);
    small.make_writable();
}

#[test]
fn a_cancelled_check_leaves_nothing_behind() {
    let house = House::new(&[]);
    let engine = transload::Engine::open(house.store(), Default::default()).expect("opens");
    let cancel = transload::Cancel::new();
    let stop = |event: &transload::progress::Event| {
        if matches!(event, transload::progress::Event::BlobStarted { .. }) {
            cancel.cancel();
        }
    };
    let error = engine.fsck(&Default::default(), &stop, &cancel).expect_err("cancelled");
    assert_eq!(error.kind(), transload::ErrorKind::Cancelled, "{error}");
    drop(engine);
    assert_eq!(house.leftovers(), [] as [&str; 0]);
}

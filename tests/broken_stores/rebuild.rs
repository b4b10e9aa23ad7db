//! Stores that have lost their database: it is refused, and made anew from what lies on the disk.

use super::{House, flip};
use crate::support;
use crate::support::image::{file, image};
use crate::support::run::transload;
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::{Duration, SystemTime};
use transload::metadata::{Labels, SnapshotRow};
use transload::snapshot::{SnapshotFile, SnapshotKind};
use transload::store::mounted::{DEVICE_LABEL, TARGET_LABEL};

/// How a database is lost.
type Loss = (&'static str, fn(&Path));

const LOSSES: [Loss; 5] = [
    ("without its tables, as when its log was deleted", |store| {
        fs::remove_file(store.join("meta.db")).expect("removes");
        let empty = rusqlite::Connection::open(store.join("meta.db")).expect("opens");
        empty.pragma_update_and_check(None, "journal_mode", "WAL", |_| Ok(())).expect("writes a header");
    }),
    ("garbage", |store| fs::write(store.join("meta.db"), vec![0x5a; 40_000]).expect("writes")),
    ("cut short", |store| {
        let file = fs::OpenOptions::new().write(true).open(store.join("meta.db")).expect("opens");
        file.set_len(8192).expect("cuts");
    }),
    ("empty", |store| fs::write(store.join("meta.db"), "").expect("writes")),
    ("gone", |store| fs::remove_file(store.join("meta.db")).expect("removes")),
];

pub(super) fn lose(store: &Path, how: fn(&Path)) {
    let whole = rusqlite::Connection::open(store.join("meta.db")).expect("opens");
    whole.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).expect("takes in its log");
    drop(whole);
    for log in ["meta.db-wal", "meta.db-shm"] {
        let _ = fs::remove_file(store.join(log));
    }
    how(store);
}

#[test]
fn a_lost_database_is_refused_and_made_anew() {
    for (name, how) in LOSSES {
        eprintln!("{name}");
        let house = House::new(&[]);
        transload(&house.store(), ["tag", "example.com/app:1", "example.com/other:2"]).ok();
        let index = fs::read(house.store().join("index.json")).expect("reads");
        lose(&house.store(), how);
        let refused = transload(&house.store(), ["images"]).fails(1);
        assert!(refused.stderr.contains("fsck --rebuild"), "{name}: {}", refused.stderr);
        assert_eq!(
            fs::read(house.store().join("index.json")).expect("reads"),
            index,
            "{name}: names are kept"
        );
        let (ran, json) = house.fsck(&["--rebuild"]);
        assert_eq!((ran.code, &json["clean"]), (Some(0), &Value::Bool(true)), "{name}: {json}");
        assert_eq!(json["rebuilt"]["images"], 2, "{name}: {json}");
        let lost = json["rebuilt"]["lost"].to_string();
        assert!(lost.contains("leases") && lost.contains("labels"), "{name}: {lost}");
        let images = transload(&house.store(), ["images"]).ok().text();
        assert!(images.contains("app:1") && images.contains("other:2"), "{name}: {images}");
        let again = house.import(&["--audit"]).ok().text();
        assert!(again.contains("already present"), "{name}: nothing was unpacked again: {again}");
        house.is_as_before();
        assert!(house.fsck(&["--rebuild"]).1["rebuilt"].is_null(), "{name}: a sound one stays");
    }
}

#[test]
fn without_an_index_the_images_come_back_without_their_names() {
    let house = House::new(&[]);
    lose(&house.store(), |store| fs::remove_file(store.join("meta.db")).expect("removes"));
    fs::write(house.store().join("index.json"), "{").expect("writes");
    let (_, json) = house.fsck(&["--rebuild"]);
    assert_eq!((&json["clean"], &json["rebuilt"]["images"]), (&Value::Bool(true), &Value::from(1)), "{json}");
    assert!(json["rebuilt"]["lost"].to_string().contains("names"), "{json}");
    house.import(&[]).ok();
    house.is_as_before();
}

#[test]
fn what_is_damaged_besides_the_database_costs_nothing_else() {
    let house = House::new(&[]);
    let other = image().name("example.com/other:1").layer(file("x", "y"));
    let archive = house.dir.path().join("other.tar");
    fs::write(&archive, other.oci()).expect("an archive");
    transload(&house.store(), [Path::new("import"), &archive]).ok();
    flip(&house.blob(&house.image.manifest_bytes()), 30);
    lose(&house.store(), |store| fs::remove_file(store.join("meta.db")).expect("removes"));
    let (ran, json) = house.fsck(&["--rebuild"]);
    assert_eq!((ran.code, &json["rebuilt"]["images"]), (Some(0), &Value::from(1)), "{json}");
    assert!(json["rebuilt"]["lost"].to_string().contains("example.com/app:1"), "{json}");
    transload(&house.store(), ["inspect", "example.com/other:1"]).ok();
    house.import(&[]).ok();
    house.is_as_before();
}

/// Of the keys "a" and "b", begun in this order, the commit of one as "n" dies before its transaction, and then the other is
/// committed. Gives their numbers.
fn a_commit_dies_and_another_takes_the_name(house: &House, dies: &str, wins: &str) -> (u64, u64) {
    let engine = transload::Engine::open(house.store(), Default::default()).expect("opens");
    let (snapshots, none) = (engine.snapshots(), Labels::new());
    for key in ["a", "b"] {
        snapshots.prepare(key, None, &none).expect("prepares");
        let row = snapshots.stat(key).expect("there");
        fs::write(house.store().join(format!("snapshots/{}/fs/file", row.id)), key).expect("writes");
    }
    let row = snapshots.stat(dies).expect("there");
    let file = SnapshotFile { name: "n".into(), kind: "committed".into(), ..SnapshotFile::of_row(&row) };
    file.write(engine.store().root(), row.id).expect("writes");
    let written = fs::File::open(house.store().join(format!("snapshots/{}/snapshot.json", row.id)));
    let an_hour_ago = SystemTime::now() - Duration::from_secs(3600);
    written.and_then(|file| file.set_modified(an_hour_ago)).expect("a time");
    snapshots.commit("n", wins, &none, None).expect("commits");
    snapshots.prepare("above", Some("n"), &none).expect("prepares");
    (row.id, snapshots.stat("n").expect("there").id)
}

#[test]
fn of_two_snapshots_of_one_name_the_committed_one_has_it_and_the_other_is_kept() {
    for (options, dies, wins) in
        [(&[][..], "a", "b"), (&[], "b", "a"), (&["--snapshotter", "plain"], "a", "b")]
    {
        let house = House::new(options);
        let (died, committed) = a_commit_dies_and_another_takes_the_name(&house, dies, wins);
        let kept = format!("interrupted-{died}");
        for time in ["first", "second"] {
            lose(&house.store(), |store| fs::remove_file(store.join("meta.db")).expect("removes"));
            let (ran, json) = house.fsck(&["--rebuild"]);
            assert_eq!((ran.code, &json["clean"]), (Some(0), &Value::Bool(true)), "{json}");
            let told = json["rebuilt"]["lost"]
                .to_string()
                .contains(&format!("as n was interrupted: it is kept, active, as {kept}"));
            assert_eq!(told, time == "first", "{json}");
            let engine = transload::Engine::open(house.store(), Default::default()).expect("opens");
            assert_eq!(engine.snapshots().stat("n").expect("there").id, committed);
            assert_eq!(engine.snapshots().stat("above").expect("there").parent.as_deref(), Some("n"));
            let row = engine.snapshots().stat(&kept).expect("kept");
            assert_eq!((row.id, row.kind), (died, SnapshotKind::Active));
        }
        transload(&house.store(), ["gc"]).ok();
        let file = fs::read_to_string(house.store().join(format!("snapshots/{died}/fs/file")));
        assert_eq!(file.expect("reads"), dies);
        let engine = transload::Engine::open(house.store(), Default::default()).expect("opens");
        engine.snapshots().commit("another", &kept, &Labels::new(), None).expect("commits");
        drop(engine);
        house.is_as_before();
    }
}

#[test]
fn a_rebuild_does_not_begin_while_someone_is_at_work() {
    let house = House::new(&[]);
    let store = transload::Engine::open(house.store(), Default::default()).expect("opens");
    let _lease = store.store().lease().expect("a lease");
    lose(&house.store(), |store| fs::remove_file(store.join("meta.db")).expect("removes"));
    transload(&house.store(), ["fsck", "--rebuild"]).fails(5);
}

/// What is recorded of the devices of mounts, by their places.
fn devices(store: &Path) -> BTreeMap<String, String> {
    let engine = transload::Engine::open(store, Default::default()).expect("opens");
    let mut devices = BTreeMap::new();
    let mut visit = |row: &SnapshotRow| {
        let label = |name: &str| row.labels.get(name).cloned();
        devices.extend(label(TARGET_LABEL).zip(label(DEVICE_LABEL)));
        Ok(())
    };
    engine.store().snapshotter().walk(&Default::default(), &mut visit).expect("walks");
    devices
}

#[test]
fn mounts_outlive_a_lost_database() {
    if !support::tools::have(&["mount"]) {
        return;
    }
    let house = House::new(&[]);
    let (store, at) = (house.store(), |name: &str| house.dir.path().join(name));
    for (name, mode) in [("read", None), ("write", Some("--rw"))] {
        fs::create_dir(at(name)).expect("a directory");
        let target = at(name).display().to_string();
        transload(&store, ["mount"].into_iter().chain(mode).chain(["example.com/app:1", &target])).ok();
    }
    let _taken_down = ["read", "write"].map(|name| support::mounts::Unmount(at(name)));
    fs::write(at("write/mine"), "kept").expect("writes");
    let before = devices(&store);
    assert_eq!(before.len(), 2, "{before:?}");
    lose(&store, |store| fs::remove_file(store.join("meta.db")).expect("removes"));
    let (ran, json) = house.fsck(&["--rebuild"]);
    assert_eq!(ran.code, Some(0), "{json}");
    assert_eq!(json["rebuilt"]["lost"].as_array().map(Vec::len), Some(1), "the mounts are known: {json}");
    let mounts = transload(&store, ["mount"]).ok().text();
    assert!(mounts.contains("/read") && mounts.contains("/write"), "{mounts}");
    assert_eq!(devices(&store), before, "by which a mount is known that was unmounted lazily");
    transload(&store, ["gc"]).ok();
    assert_eq!(fs::read_to_string(at("write/mine")).expect("reads"), "kept");
    assert_eq!(fs::read_to_string(at("read/etc/second")).expect("reads"), "two\n");
    for name in ["read", "write"] {
        transload(&store, [Path::new("umount"), &at(name)]).ok();
    }
    house.is_as_before();
}

#[test]
fn images_that_were_removed_under_grace_can_still_be_restored_after_a_rebuild() {
    let house = House::new(&[]);
    transload(&house.store(), ["rm", "--grace", "1h", "example.com/app:1"]).ok();
    lose(&house.store(), |store| fs::remove_file(store.join("meta.db")).expect("removes"));
    let (ran, json) = house.fsck(&["--rebuild"]);
    assert_eq!((ran.code, &json["rebuilt"]["images"]), (Some(0), &Value::from(0)), "{json}");
    let manifest = support::image::digest(&house.image.manifest_bytes());
    let lost = json["rebuilt"]["lost"].to_string();
    assert!(lost.contains(&format!("transload restore {manifest}")), "{lost}");
    transload(&house.store(), ["gc"]).ok();
    transload(&house.store(), ["restore", &manifest]).ok();
    transload(&house.store(), ["tag", &manifest, "example.com/app:1"]).ok();
    house.is_as_before();
}

#[test]
fn a_store_that_has_lost_how_it_was_made_is_refused_and_told_again() {
    let losses: [fn(&Path); 2] =
        [|path| fs::remove_file(path).expect("removes"), |path| fs::write(path, "garbage").expect("writes")];
    let plain = &["--snapshotter", "plain"][..];
    for (options, lose) in [(&[][..], losses[0]), (&[], losses[1]), (plain, losses[0])] {
        let house = House::new(options);
        let path = house.store().join("transload.json");
        let before = fs::read(&path).expect("reads");
        lose(&path);
        let refused = transload(&house.store(), ["images"]).fails(1);
        assert!(refused.stderr.contains("fsck --rebuild"), "{}", refused.stderr);
        let page = transload(&house.store(), ["doctor"]).text();
        assert!(page.contains("fsck --rebuild"), "{page}");
        let (ran, json) = house.fsck(&["--rebuild"]);
        assert_eq!((ran.code, &json["rebuilt"]["format"]), (Some(0), &Value::Bool(true)), "{json}");
        assert_eq!(json["rebuilt"]["database"], false, "{json}");
        assert_eq!(fs::read(&path).expect("reads"), before);
        house.is_as_before();
    }
}

#[test]
fn a_store_of_which_nothing_tells_how_it_was_made_says_what_to_do() {
    let house = House::new(&[]);
    fs::remove_file(house.store().join("transload.json")).expect("removes");
    for layer in [0, 1] {
        fs::remove_dir_all(house.tree(layer)).expect("removes");
    }
    let refused = transload(&house.store(), ["fsck", "--rebuild"]).fails(1);
    assert!(refused.stderr.contains("no extracted layer is left"), "{}", refused.stderr);
    assert!(refused.stderr.contains("into another store"), "{}", refused.stderr);
}

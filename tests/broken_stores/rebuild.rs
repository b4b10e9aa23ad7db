//! Stores that have lost their database: it is refused, and made anew from what lies on the disk.

use super::{House, flip};
use crate::support;
use crate::support::image::{file, image};
use crate::support::run::transload;
use serde_json::Value;
use std::fs;
use std::path::Path;

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

#[test]
fn a_rebuild_does_not_begin_while_someone_is_at_work() {
    let house = House::new(&[]);
    let store = transload::Engine::open(house.store(), Default::default()).expect("opens");
    let _lease = store.store().lease().expect("a lease");
    lose(&house.store(), |store| fs::remove_file(store.join("meta.db")).expect("removes"));
    transload(&house.store(), ["fsck", "--rebuild"]).fails(5);
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
    lose(&store, |store| fs::remove_file(store.join("meta.db")).expect("removes"));
    let (ran, json) = house.fsck(&["--rebuild"]);
    assert_eq!(ran.code, Some(0), "{json}");
    assert_eq!(json["rebuilt"]["lost"].as_array().map(Vec::len), Some(1), "the mounts are known: {json}");
    let mounts = transload(&store, ["mount"]).ok().text();
    assert!(mounts.contains("/read") && mounts.contains("/write"), "{mounts}");
    transload(&store, ["gc"]).ok();
    assert_eq!(fs::read_to_string(at("write/mine")).expect("reads"), "kept");
    assert_eq!(fs::read_to_string(at("read/etc/second")).expect("reads"), "two\n");
    for name in ["read", "write"] {
        transload(&store, [Path::new("umount"), &at(name)]).ok();
    }
    house.is_as_before();
}

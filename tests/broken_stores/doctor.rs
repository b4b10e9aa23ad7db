//! What `doctor` says of stores like these.

use super::rebuild::lose;
use super::{House, without_store};
use crate::support::mounts::Unmount;
use crate::support::run::{Ran, program, run, transload};
use crate::support::tools::have;
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use transload::metadata::{Labels, Metadata, OpenMode};

/// What `doctor` says of the store: topics that are not good, and the command for each.
fn doctor(store: &Path) -> (Option<i32>, Vec<(String, String)>) {
    let mut ran = transload(store, ["--json", "doctor"]);
    ran.stdout = without_store(&ran, store).into_bytes();
    let json = ran.json();
    let remarks = json["store"].as_array().unwrap_or_else(|| panic!("{json}"));
    let text = |remark: &Value, field: &str| remark[field].as_str().unwrap_or_default().to_string();
    // How full this machine is, and whether it may mount, is not the store's fault.
    let about_host = ["space", "inodes", "filesystem", "mounting"];
    let odd = remarks.iter().filter(|remark| remark["health"] != "good");
    let odd = odd.map(|remark| (text(remark, "topic"), text(remark, "mend")));
    (ran.code, odd.filter(|(topic, _)| !about_host.contains(&topic.as_str())).collect())
}

#[test]
fn doctor_names_what_lies_around_and_what_mends_it() {
    let house = House::new(&[]);
    let store = house.store();
    assert_eq!(doctor(&store).1, []);
    fs::create_dir_all(store.join("ingest/blob-left")).expect("creates");
    fs::create_dir_all(store.join("snapshots/999/fs")).expect("creates");
    fs::create_dir_all(store.join("quarantine")).expect("creates");
    fs::write(store.join("quarantine/blob-x"), "x").expect("writes");
    {
        let metadata = Metadata::open(&store, OpenMode::Write).expect("opens");
        let labels = Labels::from([(transload::store::PROCESS_LABEL.to_string(), "4194305".to_string())]);
        metadata.lease_create("dead", None, &labels).expect("creates");
        let expired =
            Labels::from([("containerd.io/gc.expire".to_string(), "2001-01-01T00:00:00Z".to_string())]);
        metadata.lease_create("over", None, &expired).expect("creates");
        metadata.lease_create("mine", None, &Labels::new()).expect("creates");
    }
    let leases = transload(&store, ["--json", "leases"]).ok().json()["leases"].clone();
    let live: Vec<&Value> = leases.as_array().expect("a list").iter().map(|lease| &lease["live"]).collect();
    assert_eq!(live, [false, true, false], "dead, mine, over");
    let page = transload(&store, ["doctor"]).text();
    assert!(!page.contains("running work") && page.contains("1 lease made by people"), "{page}");
    let (_, said) = doctor(&store);
    let topics: Vec<&str> = said.iter().map(|(topic, _)| topic.as_str()).collect();
    assert_eq!(topics, ["ingest", "half-removed", "leases", "quarantine"], "{said:?}");
    assert!(said.iter().all(|(_, mend)| !mend.is_empty()), "{said:?}");
    transload(&store, ["gc"]).ok();
    fs::remove_dir_all(store.join("quarantine")).expect("removes");
    assert_eq!(doctor(&store).1, []);
}

#[test]
fn doctor_explains_a_store_that_cannot_be_opened() {
    let house = House::new(&[]);
    lose(&house.store(), |store| fs::remove_file(store.join("meta.db")).expect("removes"));
    let (code, said) = doctor(&house.store());
    assert_eq!(code, Some(1));
    assert!(said.iter().any(|(topic, mend)| topic == "store" && mend.contains("--rebuild")), "{said:?}");
    let (_, said) = doctor(&house.dir.path().join("nothing-there"));
    assert_eq!(said, [("store".to_string(), "transload import ARCHIVE".to_string())]);
}

/// Every file, but for what SQLite needs to read its database.
fn files(store: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut waiting = vec![store.to_path_buf()];
    while let Some(path) = waiting.pop() {
        if path.is_symlink() {
            found.insert(
                path.clone(),
                fs::read_link(&path).expect("reads").into_os_string().into_encoded_bytes(),
            );
        } else if path.is_dir() {
            found.insert(path.clone(), Vec::new());
            waiting.extend(fs::read_dir(&path).expect("lists").map(|entry| entry.expect("an entry").path()));
        } else if !path.ends_with("meta.db-shm") && !path.ends_with("meta.db-wal") {
            // A whiteout is a device.
            let bytes = if path.is_file() { fs::read(&path).expect("reads") } else { Vec::new() };
            found.insert(path.clone(), bytes);
        }
    }
    found
}

#[test]
fn doctor_changes_nothing_and_says_what_would_be_brought_up_to_date() {
    let house = House::new(&[]);
    let store = house.store();
    fs::write(store.join("index.json"), r#"{"schemaVersion":2,"manifests":[]}"#).expect("writes");
    let format = fs::read_to_string(store.join("transload.json")).expect("reads");
    let older = format.replacen("\"version\":2", "\"version\":1", 1);
    assert_ne!(format, older);
    fs::write(store.join("transload.json"), older).expect("writes");
    let before = files(&store);
    let (code, said) = doctor(&store);
    assert!(files(&store) == before, "it has changed something");
    let expected = [("format", "transload images"), ("index.json", "transload fsck --repair")];
    assert_eq!(said, expected.map(|(topic, mend)| (topic.to_string(), mend.to_string())));
    assert_eq!(code, Some(0));
    transload(&store, ["images"]).ok();
    assert_eq!(doctor(&store).1, []);
}

#[test]
fn doctor_names_who_holds_a_lock() {
    let house = House::new(&[]);
    let engine = transload::Engine::open(house.store(), Default::default()).expect("opens");
    let lease = engine.store().lease().expect("a lease");
    let ran = transload(&house.store(), ["doctor"]);
    let own = format!("process {} (", std::process::id());
    assert!(ran.text().contains(&own), "the holder of gc.lock: {}", ran.text());
    assert!(ran.text().contains(lease.id()), "the lease: {}", ran.text());
    for lock in ["collection.lock", "mount-turn.lock", "mount.lock", "sweep.lock"] {
        let file = fs::File::create(house.store().join(lock)).expect("opens");
        file.lock().expect("nobody has it");
        let said = transload(&house.store(), ["doctor"]).text();
        assert!(said.contains(&format!("{lock}: {own}")), "{said}");
    }
}

#[test]
fn commands_are_quoted_and_name_a_store_that_is_not_the_usual_one() {
    let house = House::new(&[]);
    let store = house.dir.path().join("my store");
    fs::rename(house.store(), &store).expect("moves");
    fs::create_dir(store.join("quarantine")).expect("creates");
    fs::write(store.join("quarantine/blob-x"), "x").expect("writes");
    fs::create_dir(store.join("ingest/blob-left")).expect("creates");
    let mends = |ran: Ran| -> Vec<String> {
        let json = ran.json();
        let remarks = json["store"].as_array().expect("a list").iter();
        let wanted = remarks.filter(|one| one["topic"] == "ingest" || one["topic"] == "quarantine");
        wanted.map(|one| one["mend"].as_str().unwrap_or_default().to_string()).collect()
    };
    let quoted = format!("'{}'", store.display());
    let remove = format!("rm -r '{}'", store.join("quarantine").display());
    let named = mends(transload(&store, ["--json", "doctor"]));
    assert_eq!(named, [format!("transload --store {quoted} gc"), remove.clone()]);
    let mut usual = std::process::Command::new(program());
    let usual = run(usual.args(["--json", "doctor"]).env("TRANSLOAD_STORE", &store));
    assert_eq!(mends(usual), ["transload gc".to_string(), remove]);
    let text = transload(&store, ["fsck"]).ok().text();
    assert!(text.contains(&format!("transload --store {quoted} gc")), "{text}");
}

#[test]
fn what_a_mount_still_shows_is_not_to_be_removed_from_the_quarantine() {
    if !have(&["mount"]) {
        return;
    }
    let house = House::new(&[]);
    let at = house.dir.path().join("mnt");
    fs::create_dir(&at).expect("a directory");
    let target = at.display().to_string();
    transload(&house.store(), ["mount", "example.com/app:1", &target]).ok();
    let _taken_down = Unmount(at.clone());
    fs::write(house.tree(0).join("fs/more"), "x").expect("writes");
    assert_eq!(house.says(&["--repair"]), ["tree_differs repaired"]);
    let mend = |wanted: &str| {
        let (_, said) = doctor(&house.store());
        said.into_iter().find(|(topic, _)| topic == wanted).map(|(_, mend)| mend)
    };
    assert_eq!(mend("quarantine"), Some(format!("transload umount {target}")));
    transload(&house.store(), ["umount", &target]).ok();
    let remove = format!("rm -r {}", house.store().join("quarantine").display());
    assert_eq!(mend("quarantine"), Some(remove.clone()));
    transload(&house.store(), ["mount", "example.com/app:1", &target]).ok();
    assert_eq!(mend("quarantine"), Some(remove), "this one shows what was made again");
    transload(&house.store(), ["umount", &target]).ok();
}

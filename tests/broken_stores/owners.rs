//! Owners that were lost, and owners that cannot be given: nothing is called sound that is not, and nothing good is replaced.

use super::House;
use crate::support::image::{Image, image, layer};
use crate::support::run::{Ran, program, run};
use crate::support::tools::have;
use serde_json::Value;
use std::fs;
use std::os::unix::fs::{MetadataExt, lchown};
use std::path::{Path, PathBuf};
use std::process::Command;

/// A setuid program of somebody else, and a directory that the layer above does not mention.
fn owned() -> Image {
    image()
        .name("example.com/app:1")
        .layer(
            layer()
                .dir("srv")
                .owner(1000, 100)
                .file("srv/tool", "run\n")
                .owner(1000, 100)
                .mode(0o4755)
                .symlink("srv/link", "tool")
                .owner(1000, 100),
        )
        .layer(layer().file("srv/more", "more\n").owner(1000, 100))
}

/// Everything below, links as they are, to root.
fn give_to_root(path: &Path) {
    lchown(path, Some(0), Some(0)).expect("gives away");
    if path.is_dir() && !path.is_symlink() {
        for entry in fs::read_dir(path).expect("lists") {
            give_to_root(&entry.expect("an entry").path());
        }
    }
}

fn owner(path: PathBuf) -> (u32, u32, u32) {
    let stat = fs::symlink_metadata(path).expect("there");
    (stat.uid(), stat.gid(), stat.mode() & 0o7777)
}

/// The same command without a privilege that root usually has.
fn without(capability: &str, store: &Path, args: &[&str]) -> Ran {
    let mut command = Command::new("setpriv");
    command.arg("--bounding-set").arg(format!("-{capability}")).arg(program()).arg("--store").arg(store);
    run(command.args(args).env_remove("TRANSLOAD_STORE"))
}

#[test]
fn a_tree_that_has_lost_all_its_owners_is_found_and_mended() {
    if !have(&["setpriv"]) {
        return;
    }
    for options in [&[][..], &["--snapshotter", "plain"]] {
        let house = House::of(owned(), options);
        give_to_root(&house.store());
        let found = house.says(&[]);
        assert!(found.iter().filter(|line| *line == "tree_differs found").count() == 2, "{found:?}");
        let repaired = house.says(&["--repair"]);
        assert!(repaired.iter().all(|line| line.ends_with(" repaired")), "{repaired:?}");
        assert_eq!(owner(house.tree(0).join("fs/srv/tool")), (1000, 100, 0o4755));
        house.is_as_before();
    }
}

#[test]
fn owners_that_were_left_out_are_no_fault_unless_someone_gives_a_file_away() {
    if !have(&["setpriv"]) {
        return;
    }
    for options in [&["--ignore-chown"][..], &["--ignore-chown", "--snapshotter", "plain"]] {
        let house = House::of(owned(), options);
        assert_eq!(owner(house.tree(0).join("fs/srv/tool")), (0, 0, 0o4755));
        lchown(house.tree(0).join("fs/srv/link"), Some(1000), Some(100)).expect("gives away");
        let found = house.says(&[]);
        assert_eq!(found, ["tree_differs found"]);
        assert_eq!(house.says(&["--repair"]), ["tree_differs repaired"]);
        assert_eq!(owner(house.tree(0).join("fs/srv/link")), (0, 0, 0o777), "left out again");
        house.is_as_before();
    }
}

/// As a release wrote it that did not say.
fn forget_whether(house: &House, layer: usize) {
    let path = house.tree(layer).join("tree.json");
    let mut record: Value = serde_json::from_slice(&fs::read(&path).expect("reads")).expect("JSON");
    assert!(record.as_object_mut().expect("an object").remove("owners").is_some(), "{record}");
    fs::write(path, record.to_string()).expect("writes");
}

#[test]
fn an_earlier_releases_record_does_not_say_and_owners_are_compared_all_the_same() {
    if !have(&["setpriv"]) {
        return;
    }
    let house = House::of(owned(), &[]);
    forget_whether(&house, 0);
    assert_eq!(house.says(&[]), [] as [&str; 0]);
    give_to_root(&house.tree(0));
    assert_eq!(house.says(&["--repair"]), ["tree_differs repaired"]);
    house.is_as_before();
    forget_whether(&house, 0);
    let json = without("chown", &house.store(), &["--json", "fsck"]).ok().json();
    assert!(json["unproven"].to_string().contains("owners could not be compared"), "{json}");
}

#[test]
fn who_may_not_give_files_away_does_not_replace_good_owners_by_his_own() {
    if !have(&["setpriv"]) {
        return;
    }
    let harms: [fn(&House); 3] = [
        |house| fs::write(house.tree(0).join("fs/srv/tool"), "bad\n").expect("writes"),
        |house| fs::write(house.tree(0).join("tree.json"), "{").expect("writes"),
        |house| fs::remove_dir_all(house.tree(0)).expect("removes"),
    ];
    for harm in harms {
        let house = House::of(owned(), &[]);
        harm(&house);
        let before = fs::symlink_metadata(house.tree(0)).map(|stat| stat.ino()).ok();
        let ran = without("chown", &house.store(), &["--json", "fsck", "--repair"]);
        let (json, now) = (ran.json(), fs::symlink_metadata(house.tree(0)).map(|stat| stat.ino()).ok());
        assert_eq!((ran.code, before), (Some(1), now), "it is left as it is: {json}");
        let problem = &json["problems"][0];
        assert_eq!(problem["state"], "remains", "{json}");
        assert!(problem["mend"].as_str().is_some_and(|mend| mend.contains("CAP_CHOWN")), "{json}");
        let repaired = house.says(&["--repair"]);
        assert!(repaired.iter().all(|line| line.ends_with(" repaired")), "{repaired:?}");
        house.is_as_before();
    }
}

#[test]
fn a_blob_that_is_read_twice_for_its_owners_counts_once() {
    if !have(&["setpriv"]) {
        return;
    }
    let house = House::of(owned(), &[]);
    let blobs = house.fsck(&[]).1["checked"]["blobs"].clone();
    let json = without("chown", &house.store(), &["--json", "fsck"]).ok().json();
    assert_eq!(json["checked"]["blobs"], blobs, "{json}");
}

#[test]
fn who_does_not_see_the_marks_of_deletions_is_refused() {
    if !have(&["setpriv"]) {
        return;
    }
    let image = owned().layer(layer().dir("srv").owner(1000, 100).opaque("srv").file("new", "x"));
    let house = House::of(image, &[]);
    let format = fs::read_to_string(house.store().join("transload.json")).expect("reads");
    if !format.contains("trusted") {
        return;
    }
    let to = house.dir.path().join("hidden").display().to_string();
    let archive = house.dir.path().join("app.tar").display().to_string();
    let refused: [&[&str]; 6] = [
        &["unpack", "example.com/app:1", &to],
        &["inspect", "--tree", "example.com/app:1"],
        &["prewarm", "example.com/app:1"],
        &["fsck"],
        &["fsck", "--repair"],
        &["import", &archive],
    ];
    for args in refused {
        let ran = without("sys_admin", &house.store(), args).fails(1);
        assert!(ran.stderr.contains("hidden from this process"), "{args:?}: {}", ran.stderr);
        assert!(ran.stderr.contains("CAP_SYS_ADMIN"), "{args:?}: {}", ran.stderr);
    }
    without("sys_admin", &house.store(), &["images"]).ok();
    let page = without("sys_admin", &house.store(), &["doctor"]);
    assert_eq!(page.code, Some(1), "{}", page.text());
    assert!(page.text().contains("CAP_SYS_ADMIN"), "{}", page.text());
    house.is_as_before();
}

/// As root of a user namespace that has nobody else.
fn alone(store: &Path, args: &[&str]) -> Ran {
    let mut command = Command::new("unshare");
    command.args(["--user", "--map-root-user"]).arg(program()).arg("--store").arg(store);
    run(command.args(args).env_remove("TRANSLOAD_STORE"))
}

#[test]
fn who_never_could_give_a_file_away_gets_a_lost_tree_back_without_owners() {
    if !have(&["unshare"]) {
        return;
    }
    let house = House::of(owned(), &[]);
    let store = house.dir.path().join("alone");
    let archive = house.dir.path().join("app.tar").display().to_string();
    if alone(&store, &["import", &archive]).code == Some(0) {
        return;
    }
    alone(&store, &["import", "--ignore-chown", &archive]).ok();
    let name = house.tree(0).file_name().expect("a name").to_owned();
    let harms: [fn(&Path); 3] = [
        |tree| fs::remove_dir_all(tree).expect("removes"),
        |tree| fs::write(tree.join("tree.json"), "{").expect("writes"),
        |tree| fs::write(tree.join("fs/srv/tool"), "bad").expect("writes"),
    ];
    for harm in harms {
        alone(&store, &["fsck"]).ok();
        harm(&store.join("trees").join(&name));
        let json = alone(&store, &["--json", "fsck", "--repair"]).ok().json();
        assert_eq!(json["problems"][0]["state"], "repaired", "{json}");
    }
    let json = alone(&store, &["--json", "fsck"]).ok().json();
    assert_eq!(json["unproven"], serde_json::json!([]), "{json}");
}

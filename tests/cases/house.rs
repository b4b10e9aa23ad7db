//! The ways in, a store with a directory beside it that nothing may touch, and the three verdicts: imports, refused, harmless.

use crate::support::listing::{assert_same, listing, listing_without};
use crate::support::mounts::Unmount;
use crate::support::run::{Ran, command, run_with_input, transload};
use crate::support::tools::skip;
use crate::support::{self, image::*};
use serde_json::{Value, json};
use std::io::Read;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// The ways an archive comes in: by path and by stdin, as it is and compressed; a layout also as a directory.
#[derive(Clone, Copy, Debug)]
pub enum Way {
    File,
    GzipFile,
    ZstdFile,
    Stdin,
    GzipStdin,
    Directory,
    XzFile,
    Bzip2Stdin,
}

/// Archives packed so are rare, and what they are packed with is slow: for a few rows.
pub const RARE_WAYS: [Way; 2] = [Way::XzFile, Way::Bzip2Stdin];

pub const WAYS: [Way; 6] =
    [Way::File, Way::GzipFile, Way::ZstdFile, Way::Stdin, Way::GzipStdin, Way::Directory];

/// The ways for an archive that is no layout: it cannot be a directory.
pub const DOCKER_WAYS: [Way; 5] = [Way::File, Way::GzipFile, Way::ZstdFile, Way::Stdin, Way::GzipStdin];

/// Tells `scripts/torture-hostile`, if it asks, what became of an input.
fn count(verdict: &str) {
    use std::io::Write;
    if let Some(path) = std::env::var_os("TRANSLOAD_CASES_LOG") {
        let mut log = std::fs::File::options().append(true).create(true).open(path).expect("a log");
        writeln!(log, "{verdict}").expect("the log can be written");
    }
}

/// Fails if anything around the store has changed, or if anything lies in it where nothing of an image belongs.
#[track_caller]
pub fn assert_untouched(what: &str, house: &House, before: &[String]) {
    let (now, stray) = (house.around(), house.stray());
    if now != before || !stray.is_empty() {
        count("escaped");
    }
    assert_same(what, before, &now);
    assert!(stray.is_empty(), "{what}: in the store, and not where it belongs: {stray:?}");
}

/// Writes the members of a layout as files; false for an archive that is none.
fn lay_out(archive: &[u8], at: &Path) -> bool {
    let mut files = Vec::new();
    let mut tar = tar::Archive::new(archive);
    for entry in tar.entries().expect("a tar") {
        let Ok(mut entry) = entry else { return false };
        let name = entry.path().expect("a name").into_owned();
        let mut data = Vec::new();
        if entry.header().entry_type() != tar::EntryType::Regular || entry.read_to_end(&mut data).is_err() {
            return false;
        }
        files.push((name, data));
    }
    let is_layout = files.iter().any(|(name, _)| name.ends_with("index.json"));
    for (name, data) in files.into_iter().filter(|_| is_layout) {
        let path = at.join(name);
        std::fs::create_dir_all(path.parent().expect("members have names")).expect("a directory");
        std::fs::write(path, data).expect("a member");
    }
    is_layout
}

/// A store, and beside it a directory that nothing may touch.
pub struct House {
    pub dir: TempDir,
}

impl House {
    pub fn new() -> Self {
        Self::at(support::scratch())
    }

    /// On a filesystem in memory, if there is one, for thousands of imports.
    pub fn in_memory() -> Self {
        Self::at(tempfile::tempdir_in("/dev/shm").unwrap_or_else(|_| support::scratch()))
    }

    fn at(dir: TempDir) -> Self {
        let outside = dir.path().join("outside");
        std::fs::create_dir(&outside).expect("a directory");
        std::fs::write(outside.join("victim"), "untouched").expect("a file");
        House { dir }
    }

    pub fn store(&self) -> PathBuf {
        self.dir.path().join("store")
    }

    pub fn outside(&self) -> PathBuf {
        self.dir.path().join("outside")
    }

    /// All that lies around the store. Archives come and go there, so the time of the directory itself is left out.
    pub fn around(&self) -> Vec<String> {
        let mut lines = listing_without(self.dir.path(), &self.store());
        let top: Vec<&str> = lines[0].split(' ').take(4).collect();
        lines[0] = top.join(" ");
        lines
    }

    /// What lies in the store outside of trees and snapshots and is none of the store's own files (docs/store-format.md).
    pub fn stray(&self) -> Vec<PathBuf> {
        let store = self.store();
        let is_known = |path: &PathBuf| {
            let inside = path.strip_prefix(&store).expect("below").to_str().unwrap_or_default();
            match inside.split_once('/') {
                None => is_of_a_store(inside),
                Some((place, name)) => belongs(place, name),
            }
        };
        below(&store).into_iter().filter(|path| !is_known(path)).collect()
    }

    /// What lies where a store without images, and without work in progress, has nothing.
    pub fn left(&self) -> Vec<PathBuf> {
        let places = ["blobs/sha256", "blobs/sha512", "trees", "snapshots", "ingest", "leases"];
        places.iter().flat_map(|place| entries(&self.store().join(place))).collect()
    }

    pub fn import(&self, way: Way, archive: &[u8], more: &[&str]) -> Ran {
        let archive = match way {
            Way::File | Way::Stdin | Way::Directory => archive.to_vec(),
            Way::GzipFile | Way::GzipStdin => gzip(archive),
            Way::ZstdFile => zstd(archive),
            Way::XzFile => xz(archive),
            Way::Bzip2Stdin => bzip2(archive),
        };
        let path = self.dir.path().join("archive");
        let shown = path.to_str().expect("text");
        let mut words = vec!["--json", "import"];
        words.extend(more);
        match way {
            Way::File | Way::GzipFile | Way::ZstdFile | Way::XzFile => {
                std::fs::write(&path, archive).expect("an archive");
                words.push(shown);
                let ran = transload(&self.store(), words);
                std::fs::remove_file(&path).expect("removes");
                ran
            }
            Way::Directory => {
                // What is no layout has one way less to come in by.
                if !lay_out(&archive, &path) {
                    return self.import(Way::File, &archive, more);
                }
                words.push(shown);
                let ran = transload(&self.store(), words);
                std::fs::remove_dir_all(&path).expect("removes");
                ran
            }
            Way::Stdin | Way::GzipStdin | Way::Bzip2Stdin => {
                words.push("-");
                run_with_input(&mut command(&self.store(), words), &archive)
            }
        }
    }

    /// The tree of an image.
    pub fn tree(&self, name: &str) -> Vec<String> {
        let at = self.dir.path().join("unpacked");
        transload(&self.store(), ["unpack", name, at.to_str().expect("text")]).ok();
        let lines = listing(&at);
        std::fs::remove_dir_all(&at).expect("removes");
        lines
    }

    /// The tree of an image, as a mount shows it.
    pub fn mounted(&self, name: &str) -> Vec<String> {
        let at = self.dir.path().join("mounted");
        std::fs::create_dir(&at).expect("a mount point");
        let place = at.to_str().expect("text");
        transload(&self.store(), ["mount", name, place]).ok();
        let _unmount = Unmount(at.clone());
        let lines = listing(&at);
        transload(&self.store(), ["umount", place]).ok();
        lines
    }

    pub fn images(&self) -> Vec<Value> {
        let json = transload(&self.store(), ["--json", "images"]).ok().json();
        json["images"].as_array().expect("images").clone()
    }

    /// The whole look afterwards takes longer than an import, and by other ways it would see the same code.
    fn looked_over(&self, what: &str, way: Way) {
        match way {
            Way::File | Way::GzipStdin => self.is_clean(&format!("{what} {way:?}")),
            _ => assert!(self.images().is_empty(), "{what} {way:?}: {:?}", self.images()),
        }
    }

    /// Nothing is visible, the next import works, and without it nothing stays.
    pub fn is_clean(&self, what: &str) {
        assert!(self.images().is_empty(), "{what}: {:?}", self.images());
        let good = image().name("example.com/good:1").layer(file("good", "good"));
        self.import(Way::File, &good.oci(), &[]).ok();
        transload(&self.store(), ["rm", "example.com/good:1"]).ok();
        transload(&self.store(), ["gc"]).ok();
        assert!(self.left().is_empty(), "{what}: gc leaves {:?}", self.left());
    }
}

/// The names at the top of a store.
fn is_of_a_store(name: &str) -> bool {
    let places = ["blobs", "ingest", "leases", "reserve", "snapshots", "trees"];
    let files = ["transload.json", "oci-layout", "index.json", "index.spare"];
    places.contains(&name) || files.contains(&name) || name.starts_with("meta.db") || name.ends_with(".lock")
}

/// Whether a store has such a thing in one of its places. Where a layer is extracted nothing may be left after the work.
fn belongs(place: &str, name: &str) -> bool {
    let parts: Vec<&str> = name.split('/').collect();
    let is_hex = |name: &str| name.len() >= 64 && name.bytes().all(|byte| byte.is_ascii_hexdigit());
    let is_number = |name: &str| name.bytes().all(|byte| byte.is_ascii_digit());
    match (place, parts.as_slice()) {
        ("blobs", ["sha256" | "sha512"]) => true,
        ("blobs", ["sha256" | "sha512", blob]) => is_hex(blob),
        ("trees", [tree]) => is_hex(tree),
        ("trees", [tree, "tree.json" | "fs"]) => is_hex(tree),
        ("snapshots", [number]) => is_number(number),
        ("snapshots", [number, "snapshot.json" | "fs" | "work"]) => is_number(number),
        ("reserve", [number]) => is_number(number),
        _ => false,
    }
}

/// All that lies below a store, but what is in trees and snapshots.
fn below(store: &Path) -> Vec<PathBuf> {
    let (mut found, mut places) = (Vec::new(), vec![store.to_path_buf()]);
    while let Some(place) = places.pop() {
        for path in entries(&place) {
            if path.symlink_metadata().expect("there").is_dir() && !path.ends_with("fs") {
                places.push(path.clone());
            }
            found.push(path);
        }
    }
    found
}

/// The names in a directory, if there is one.
fn entries(dir: &Path) -> Vec<PathBuf> {
    let Ok(found) = std::fs::read_dir(dir) else { return Vec::new() };
    found.map(|entry| entry.expect("an entry").path()).collect()
}

/// Imports as an OCI layout and as docker-save writes it, by every way in; all give one tree.
#[track_caller]
pub fn both_import(what: &str, image: &Image) -> (Vec<String>, Value) {
    let (tree, json) = imports(what, &image.oci(), NAME);
    let (other, _) = imports_by(what, &DOCKER_WAYS, &image.docker(), NAME);
    assert_same(&format!("{what}: docker-save"), &tree, &other);
    (tree, json)
}

/// Imports by every way in; all give one tree and one manifest.
#[track_caller]
pub fn imports(what: &str, archive: &[u8], name: &str) -> (Vec<String>, Value) {
    imports_by(what, &WAYS, archive, name)
}

#[track_caller]
fn imports_by(what: &str, ways: &[Way], archive: &[u8], name: &str) -> (Vec<String>, Value) {
    let mut first: Option<(Vec<String>, Value)> = None;
    for &way in ways {
        let house = House::new();
        let around = house.around();
        count("tried benign");
        let json = house.import(way, archive, &["--audit"]).ok().json();
        let tree = house.tree(name);
        assert_untouched(what, &house, &around);
        count("imported");
        match &first {
            None => first = Some((tree, json)),
            Some((one, report)) => {
                assert_same(&format!("{what} {way:?}"), one, &tree);
                assert_eq!(report["images"][0]["manifest"], json["images"][0]["manifest"], "{what} {way:?}");
            }
        }
    }
    let (tree, json) = first.expect("there are several ways");
    otherwise(what, archive, name, &tree);
    (tree, json)
}

/// The same tree in a store of full copies, and mounted.
#[track_caller]
fn otherwise(what: &str, archive: &[u8], name: &str, tree: &[String]) {
    let house = House::new();
    house.import(Way::File, archive, &["--snapshotter", "plain"]).ok();
    assert_same(&format!("{what}: overlay, plain"), tree, &house.tree(name));
    if rustix::process::geteuid().is_root() {
        let house = House::new();
        house.import(Way::File, archive, &["--snapshotter", "overlay"]).ok();
        assert_same(&format!("{what}: unpacked, mounted"), tree, &house.mounted(name));
    }
}

/// Refused as an OCI layout and as docker-save writes it, by every way in.
#[track_caller]
pub fn both_refused(what: &str, build: impl Fn(&House) -> Image) {
    refused(what, |house| build(house).oci());
    refused_by(what, &DOCKER_WAYS, |house| build(house).docker());
}

/// Refused by every way in, with one sentence and no trace.
#[track_caller]
pub fn refused(what: &str, build: impl Fn(&House) -> Vec<u8>) {
    refused_by(what, &WAYS, build);
}

#[track_caller]
pub fn refused_by(what: &str, ways: &[Way], build: impl Fn(&House) -> Vec<u8>) {
    for &way in ways {
        let house = House::new();
        let around = house.around();
        count("tried hostile");
        let ran = house.import(way, &build(&house), &[]);
        assert_untouched(what, &house, &around);
        assert_eq!(ran.code, Some(3), "{what} {way:?}: {}{}", ran.text(), ran.stderr);
        ran.fails(3);
        count("refused");
        house.looked_over(what, way);
    }
}

/// Refused or imported, and harmless either way: unpacked or not, nothing outside changes.
#[track_caller]
pub fn harmless(what: &str, ways: &[Way], build: impl Fn(&House) -> Vec<u8>) {
    for &way in ways {
        let house = House::new();
        let around = house.around();
        count("tried hostile");
        let ran = house.import(way, &build(&house), &[]);
        assert!(matches!(ran.code, Some(0 | 3)), "{what} {way:?}: {}{}", ran.text(), ran.stderr);
        let imported = ran.code == Some(0);
        for image in house.images() {
            let name = image["name"].as_str().expect("a name").to_string();
            let at = house.dir.path().join("unpacked");
            let ran = transload(&house.store(), ["unpack", &name, at.to_str().expect("text")]);
            assert!(matches!(ran.code, Some(0 | 3)), "{what} {way:?}: {}", ran.stderr);
            assert_eq!(at.exists(), ran.code == Some(0), "{what} {way:?}: half a tree");
            let _ = std::fs::remove_dir_all(&at);
            transload(&house.store(), ["rm", &name]).ok();
        }
        assert_untouched(what, &house, &around);
        count(if imported { "harmless" } else { "refused" });
        house.looked_over(what, way);
    }
}

/// Harmless as an OCI layout and as docker-save writes it, by every way in.
#[track_caller]
pub fn both_harmless(what: &str, build: impl Fn(&House) -> Image) {
    harmless(what, &WAYS, |house| build(house).oci());
    harmless(what, &DOCKER_WAYS, |house| build(house).docker());
}

pub fn one(layer: Layer) -> Vec<u8> {
    image().name("example.com/a:1").layer(layer).oci()
}

pub fn several(layers: impl IntoIterator<Item = Layer>) -> Image {
    layers.into_iter().fold(image().name("example.com/a:1"), Image::layer)
}

pub const NAME: &str = "example.com/a:1";

#[track_caller]
pub fn has(lines: &[String], start: &str) {
    assert!(lines.iter().any(|line| line.starts_with(start)), "no {start}:\n{}", lines.join("\n"));
}

#[track_caller]
pub fn lacks(lines: &[String], name: &str) {
    let start = format!("{name} ");
    assert!(!lines.iter().any(|line| line.starts_with(&start)), "{name}:\n{}", lines.join("\n"));
}

/// The file of that name in a tree.
pub fn find(below: &Path, name: &str) -> PathBuf {
    let mut places = vec![below.to_path_buf()];
    while let Some(place) = places.pop() {
        for entry in std::fs::read_dir(&place).expect("lists") {
            let path = entry.expect("an entry").path();
            match path.symlink_metadata().expect("there").is_dir() {
                true => places.push(path),
                false if path.ends_with(name) => return path,
                false => {}
            }
        }
    }
    panic!("no {name} below {}", below.display())
}

pub fn root() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        skip("not root");
    }
    root
}

/// Changes the manifest of an OCI layout, and what names it.
pub fn with_manifest(image: &Image, change: impl Fn(&mut Value)) -> Members {
    let old = image.manifest_bytes();
    let mut manifest: Value = serde_json::from_slice(&old).expect("JSON");
    change(&mut manifest);
    let new = manifest.to_string().into_bytes();
    let rename =
        |text: &str| text.replace(&digest(&old)["sha256:".len()..], &digest(&new)["sha256:".len()..]);
    let mut members = image.oci_members();
    for (name, data) in &mut members {
        if *data == old {
            *data = new.clone();
        } else if name == "index.json" {
            let mut index: Value = serde_json::from_slice(data).expect("JSON");
            index["manifests"][0]["size"] = json!(new.len());
            *data = rename(&index.to_string()).into_bytes();
        }
        *name = rename(name);
    }
    members
}

/// Changes `manifest.json` of a docker-save tar.
pub fn with_docker_manifest(image: &Image, change: impl Fn(&mut Value)) -> Vec<u8> {
    let mut members = image.docker_members();
    let (_, data) = members.last_mut().expect("manifest.json is the last");
    let mut manifest: Value = serde_json::from_slice(data).expect("JSON");
    change(&mut manifest);
    *data = manifest.to_string().into_bytes();
    archive(&members)
}

/// Changes the configuration of a docker-save tar, and what names it.
pub fn with_docker_config(image: &Image, change: impl Fn(&mut Value)) -> Vec<u8> {
    let old = image.config_bytes();
    let mut config: Value = serde_json::from_slice(&old).expect("JSON");
    change(&mut config);
    let new = config.to_string().into_bytes();
    let name = |bytes: &[u8]| format!("{}.json", &digest(bytes)["sha256:".len()..]);
    let mut members = image.docker_members();
    for (at, data) in &mut members {
        if *data == old {
            (*at, *data) = (name(&new), new.clone());
        } else if at == "manifest.json" {
            *data = String::from_utf8_lossy(data).replace(&name(&old), &name(&new)).into_bytes();
        }
    }
    archive(&members)
}

/// Changes the configuration of an OCI layout, and what names it.
pub fn with_config(image: &Image, change: impl Fn(&mut Value)) -> Members {
    let old = image.config_bytes();
    let mut config: Value = serde_json::from_slice(&old).expect("JSON");
    change(&mut config);
    let new = config.to_string().into_bytes();
    let mut members = with_manifest(image, |manifest| {
        manifest["config"]["digest"] = json!(digest(&new));
        manifest["config"]["size"] = json!(new.len());
    });
    for (name, data) in &mut members {
        if *data == old {
            *name = format!("blobs/sha256/{}", &digest(&new)["sha256:".len()..]);
            *data = new.clone();
        }
    }
    members
}

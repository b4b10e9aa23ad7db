//! What is in a store, in a form that compares, and what is wrong with it after something went wrong: the questions that every
//! test of crashes, power cuts and failing systems asks.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::SystemTime;

use serde_json::Value;

use super::image::{Image, Pack, digest, gzip, image, layer, noise};
use super::listing::{difference, listing};
use super::run::{Ran, command};

/// Blobs, trees and heal directories by what they are called, with all that determines them.
pub type Contents = BTreeMap<String, Vec<String>>;

/// Two images that share a layer, with whiteouts, implicit directories that need healing and a link to a lower layer's file.
pub fn images(kib: usize) -> [Image; 2] {
    let below = layer()
        .dir("etc")
        .owner(3, 4)
        .mode(0o750)
        .file("etc/passwd", "root\n")
        .dir("data")
        .file("data/a", noise(1, kib << 10))
        .file("data/b", noise(2, kib << 10));
    let upper = layer().whiteout("data/b").file("etc/shadow", "x").hardlink("etc/second", "etc/passwd");
    let mut many = layer().dir("many");
    for number in 0..24 {
        many = many.file(&format!("many/{number}"), noise(100 + number, (kib << 6) + 1024));
    }
    let first = image().name("example.com/first:1").layer(below.clone()).layer(upper).layer(many.clone());
    let other = layer().opaque("data").file("data/c", noise(3, kib << 10)).packed(Pack::Zstd);
    let second = image().name("example.com/second:1").layer(below).layer(other).layer(many);
    [first, second]
}

/// The two images in three archives: the first to be read in any order, both as streams.
pub fn archives(dir: &Path, kib: usize) -> Vec<PathBuf> {
    let [first, second] = images(kib);
    let write = |name: &str, bytes: Vec<u8>| {
        let path = dir.join(name);
        fs::write(&path, bytes).expect("an archive");
        path
    };
    vec![
        write("first.tar", first.oci()),
        write("second.tar.gz", gzip(&second.docker())),
        write("first.tar.gz", gzip(&first.oci())),
    ]
}

/// Runs with fail points set, as described in src/parallel/failpoint.rs.
pub fn with_faults<S: AsRef<OsStr>>(store: &Path, faults: &str, args: &[S]) -> Ran {
    let mut command = faulty(store, faults, args);
    let output = command.output().expect("the program under test starts");
    Ran::of(&command, output)
}

/// As [`with_faults`], not yet started.
pub fn faulty<S: AsRef<OsStr>>(store: &Path, faults: &str, args: &[S]) -> Command {
    let mut command = command(store, args);
    command.env("TRANSLOAD_FAILPOINTS", faults);
    command
}

/// The names of the images that the store shows, and what they point at; the run must succeed.
pub fn visible(store: &Path, faults: &str) -> Result<BTreeMap<String, String>, String> {
    let ran = with_faults(store, faults, &["images", "--json"]);
    // A store that was never made holds nothing.
    if ran.code == Some(4) {
        return Ok(BTreeMap::new());
    }
    if ran.code != Some(0) {
        return Err(format!("the images cannot be listed: {}", ran.stderr));
    }
    let listed: Value = serde_json::from_slice(&ran.stdout).map_err(|error| error.to_string())?;
    let images = listed["images"].as_array().cloned().unwrap_or_default();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_string();
    Ok(images.iter().map(|image| (text(&image["name"]), text(&image["target"]))).collect())
}

/// Blobs under `blobs/` whose bytes are not what their name says.
pub fn bad_blobs(store: &Path) -> Vec<String> {
    let mut bad = Vec::new();
    for path in files(&store.join("blobs/sha256")) {
        let name = path.file_name().expect("a name").to_string_lossy().into_owned();
        let actual = digest(&fs::read(&path).expect("a blob"));
        if actual != format!("sha256:{name}") {
            bad.push(format!("blob {name} holds {actual}"));
        }
    }
    bad
}

/// What an image is when it is unpacked, as a listing, or why it cannot be.
pub fn unpacked(store: &Path, faults: &str, name: &str, scratch: &Path) -> Result<Vec<String>, String> {
    let to = tempfile::Builder::new().prefix("unpacked-").tempdir_in(scratch).expect("a directory");
    let root = to.path().join("root");
    let ran = with_faults(store, faults, &["unpack", name, &root.to_string_lossy()]);
    match ran.code {
        Some(0) => Ok(listing(&root)),
        _ => Err(format!("{name} cannot be unpacked: {}", ran.stderr)),
    }
}

/// All blobs, trees and heal directories.
pub fn contents(store: &Path) -> Contents {
    let mut contents = Contents::new();
    for path in files(&store.join("blobs/sha256")) {
        let bytes = fs::read(&path).expect("a blob");
        contents.insert(format!("blob {}", name_of(&path)), vec![digest(&bytes)]);
    }
    for tree in entries(&store.join("trees")) {
        let mut lines = but_for_now(listing(&tree.join("fs")));
        lines.push(fs::read_to_string(tree.join("tree.json")).unwrap_or_else(|error| error.to_string()));
        contents.insert(format!("tree {}", name_of(&tree)), lines);
    }
    for snapshot in entries(&store.join("snapshots")) {
        let described =
            fs::read_to_string(snapshot.join("snapshot.json")).unwrap_or_else(|error| error.to_string());
        contents.insert(format!("snapshot {described}"), but_for_now(listing(&snapshot.join("fs"))));
    }
    contents
}

/// The lines without times of this day: what no image determines, such as whiteouts, was made just now.
pub fn but_for_now(lines: Vec<String>) -> Vec<String> {
    let since =
        SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("now is after 1970").as_secs()
            - 86400;
    let time = |line: &str| line.split(' ').nth(4).unwrap_or_default().to_string();
    let is_now = |time: &str| time.split('.').next().is_some_and(|s| s.parse().is_ok_and(|s: u64| s > since));
    let masked = |line: String| {
        let time = time(&line);
        if is_now(&time) { line.replacen(&time, "now", 1) } else { line }
    };
    lines.into_iter().map(masked).collect()
}

/// How two stores differ, but for what only one of them is allowed to have.
pub fn differences(expected: &Contents, found: &Contents) -> Vec<String> {
    let mut wrong = Vec::new();
    for (name, lines) in expected {
        match found.get(name) {
            None => wrong.push(format!("{name} is missing")),
            Some(others) => {
                let lines = difference(lines, others);
                wrong.extend((!lines.is_empty()).then(|| format!("{name} differs:\n{}", lines.join("\n"))));
            }
        }
    }
    let more = found.keys().filter(|name| !expected.contains_key(*name));
    wrong.extend(more.map(|name| format!("{name} is too much")));
    wrong
}

/// What a collection should not have left: work in progress, leases, temporary files.
pub fn leftovers(store: &Path) -> Vec<String> {
    let below = |dir: &'static str| {
        entries(&store.join(dir)).into_iter().map(move |path| format!("{dir}/{}", name_of(&path)))
    };
    let hidden = entries(store).into_iter().map(|path| name_of(&path)).filter(|name| name.starts_with('.'));
    below("ingest").chain(below("leases")).chain(hidden).collect()
}

/// What `fsck` finds. Who died while a store was made may have left none.
pub fn damage(store: &Path, faults: &str) -> Vec<String> {
    let ran = with_faults(store, faults, &["fsck"]);
    match ran.code {
        Some(0) => Vec::new(),
        Some(4) if ran.stderr.contains("there is no store") => Vec::new(),
        _ => vec![format!("fsck: {:?} {}{}", ran.code, ran.text(), ran.stderr)],
    }
}

fn entries(dir: &Path) -> Vec<PathBuf> {
    let Ok(found) = fs::read_dir(dir) else { return Vec::new() };
    let mut paths: Vec<PathBuf> = found.map(|entry| entry.expect("an entry").path()).collect();
    paths.sort();
    paths
}

fn files(dir: &Path) -> Vec<PathBuf> {
    entries(dir).into_iter().filter(|path| path.is_file()).collect()
}

fn name_of(path: &Path) -> String {
    path.file_name().expect("a name").to_string_lossy().into_owned()
}

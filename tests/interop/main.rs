//! transload against the tools of its field, and against input that is wrong. The program is run as its users run it; what is
//! right is said by `testdata/foreign/expected.json` (skopeo), by umoci, by containerd's overlay, and by runc and crun.
//!
//! A test that misses a tool, or root, skips loudly; with `CI=true` it fails instead.

#[path = "../support/mod.rs"]
mod support;

mod archives;
mod bad_input;
mod chains;
mod concurrency;
mod handing_on;
mod sharing;
mod trees;

use std::path::{Path, PathBuf};

use serde_json::Value;
use support::foreign;

/// One archive of `testdata/foreign`, and what skopeo sees in it.
struct Foreign {
    file: String,
    kind: String,
    images: Vec<Value>,
}

impl Foreign {
    fn path(&self) -> PathBuf {
        foreign().join(&self.file)
    }

    /// How skopeo addresses image `number`, given the archive uncompressed at `path`.
    fn skopeo_reference(&self, path: &Path, number: usize) -> String {
        let path = path.display();
        if self.kind == "docker" {
            return format!("docker-archive:{path}:@{number}");
        }
        let transport = if self.path().is_dir() { "oci" } else { "oci-archive" };
        match self.images[number]["ref"].as_str() {
            Some(name) => format!("{transport}:{path}:{name}"),
            None => format!("{transport}:{path}"),
        }
    }

    /// The archive as a plain tar, decompressed into `scratch` where it is not one.
    fn plain(&self, scratch: &Path) -> PathBuf {
        let tool = match self.path().extension().and_then(|e| e.to_str()) {
            Some("gz") => "gzip",
            Some("zst") => "zstd",
            Some("xz") => "xz",
            Some("bz2") => "bzip2",
            _ => return self.path(),
        };
        let plain = scratch.join(format!("{}.plain.tar", self.file));
        let out = support::run::run(std::process::Command::new(tool).arg("-dc").arg(self.path())).ok();
        std::fs::write(&plain, out.stdout).expect("a plain tar");
        plain
    }
}

/// All of `testdata/foreign`.
fn all_foreign() -> Vec<Foreign> {
    let text = std::fs::read(foreign().join("expected.json")).expect("expected.json is committed");
    let expected: Value = serde_json::from_slice(&text).expect("expected.json is JSON");
    let archives = expected["archives"].as_object().expect("archives by name");
    assert!(archives.len() >= 25, "testdata/foreign is incomplete: {} archives", archives.len());
    let one = |(file, entry): (&String, &Value)| Foreign {
        file: file.clone(),
        kind: text_of(&entry["kind"]),
        images: list(&entry["images"]),
    };
    archives.iter().map(one).collect()
}

fn text_of(value: &Value) -> String {
    value.as_str().unwrap_or_else(|| panic!("a string expected: {value}")).to_owned()
}

fn list(value: &Value) -> Vec<Value> {
    value.as_array().unwrap_or_else(|| panic!("a list expected: {value}")).clone()
}

fn strings(value: &Value) -> Vec<String> {
    list(value).iter().map(text_of).collect()
}

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or_else(|| panic!("a number expected: {value}"))
}

/// The DiffIDs that an import reports for one image.
fn diff_ids(image: &Value) -> Vec<String> {
    list(&image["layers"]).iter().map(|layer| text_of(&layer["diff_id"])).collect()
}

/// Every regular file below a directory.
fn files_below(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let Ok(entries) = std::fs::read_dir(directory) else { return found };
    for entry in entries {
        let entry = entry.expect("a directory entry");
        if entry.file_type().expect("a file type").is_dir() {
            found.extend(files_below(&entry.path()));
        } else {
            found.push(entry.path());
        }
    }
    found
}

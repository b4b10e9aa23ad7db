//! The Rust files of this crate, for tests that hold pages to them.

use std::path::{Path, PathBuf};

/// Where the crate lies.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// All of them below `dir`.
pub fn sources(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    add(dir, &mut found);
    found
}

fn add(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).expect("a directory") {
        let path = entry.expect("an entry").path();
        match path.is_dir() {
            true => add(&path, found),
            false if path.extension().is_some_and(|extension| extension == "rs") => found.push(path),
            false => {}
        }
    }
}

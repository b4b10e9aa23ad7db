//! What the integration tests share: images built in code, listings of trees that compare, other people's tools, and the
//! program under test. It promises the same bytes for the same builder calls and leaves every judgement to the tests.
// Each test program uses its own part of this.
#![allow(dead_code, reason = "each test program uses its own part")]

pub mod chains;
pub mod disk;
pub mod image;
pub mod listing;
pub mod mounts;
pub mod run;
pub mod soundness;
pub mod tally;
pub mod tools;

use std::path::PathBuf;

/// The archives that other tools made.
pub fn foreign() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("testdata/foreign")
}

/// A directory on a real filesystem that goes when it is dropped. Its path is lower case, which buildah needs.
pub fn scratch() -> tempfile::TempDir {
    tempfile::Builder::new().prefix("transload-test-").tempdir().expect("a temporary directory")
}

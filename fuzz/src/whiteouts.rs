//! Layers of links, directories and whiteouts in any order, really extracted: whatever the names say, nothing outside the
//! tree changes, and whether a whiteout stands before its siblings or behind them makes no difference.
//!
//! The input is a list of entries of four bytes each: what it is, which name, which target, which mode.

use super::entry;
use std::fs::{File, Metadata};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use transload::layer::{ApplyOptions, Ownership, apply};
use transload::tree::{TreeRecord, WhiteoutForm};
use transload::{Cancel, Result};

/// Few names, so that they meet. `victim` lies outside, beside the tree.
const NAMES: [&str; 24] = [
    "a",
    "b",
    "d",
    "d/a",
    "d/b",
    "d/e/f",
    "l",
    "l/x",
    "l/d/a",
    "../victim",
    "/victim",
    ".",
    "d/../../victim",
    ".wh.a",
    ".wh.d",
    "d/.wh.a",
    "d/.wh..wh..opq",
    ".wh..wh..opq",
    "l/.wh.victim",
    "l/.wh..wh..opq",
    ".wh.",
    ".wh...",
    "d/.wh..wh.plnk/x",
    "d/e/.wh.f",
];
const TARGETS: [&str; 8] = ["a", "d", "..", "../victim", "/", "../..", "d/e", "/d/../../victim"];

/// A whiteout, or another entry, as a tar of one entry.
struct Part {
    name: &'static str,
    flag: u8,
    tar: Vec<u8>,
    deletes: bool,
    links: bool,
}

fn parts(data: &[u8]) -> Vec<Part> {
    data.chunks_exact(4).take(24).map(part).collect()
}

fn part(bytes: &[u8]) -> Part {
    let name = NAMES[usize::from(bytes[1]) % NAMES.len()];
    let target = TARGETS[usize::from(bytes[2]) % TARGETS.len()];
    let deletes = name.contains(".wh.");
    let flag = if deletes { b'0' } else { b"0125036"[usize::from(bytes[0]) % 7] };
    let data: &[u8] = if flag == b'0' && !deletes { b"content" } else { b"" };
    let mode = u32::from(bytes[3]) << 4 | 0o400;
    let mut tar = Vec::new();
    entry(&mut tar, flag, name.as_bytes(), target.as_bytes(), mode, data);
    Part { name, flag, tar, deletes, links: matches!(flag, b'1' | b'2') || name.starts_with("l/") }
}

/// Whether something that others lie below is a directory and something else in turn. Then the order counts: what goes with
/// the directory takes its whiteouts with it.
fn changes_its_mind(parts: &[Part]) -> bool {
    let is_above = |above: &Part, part: &Part| {
        part.name.strip_prefix(above.name).is_some_and(|rest| rest.starts_with('/'))
    };
    parts.iter().filter(|part| part.flag != b'5').any(|above| parts.iter().any(|part| is_above(above, part)))
}

fn extract<'a>(parts: impl Iterator<Item = &'a Part>, form: WhiteoutForm) -> Result<TreeRecord> {
    let scratch = tempfile::tempdir_in("/dev/shm").expect("a directory");
    let (tree, victim) = (scratch.path().join("tree"), scratch.path().join("victim"));
    std::fs::create_dir(&tree).expect("a directory");
    std::fs::write(&victim, "untouched").expect("a file");
    let before = facts(&victim);
    let tar: Vec<u8> = parts.flat_map(|part| part.tar.iter().copied()).chain([0; 1024]).collect();
    let options = ApplyOptions { form, ownership: Ownership::Ignore, ..ApplyOptions::default() };
    let fs = File::open(&tree).expect("the directory");
    let applied = apply(&tar[..], fs.as_fd(), &options, &Cancel::new(), &mut |_| {});
    assert_eq!(facts(&victim), before, "the file outside has changed");
    let mut beside: Vec<_> = std::fs::read_dir(&scratch)
        .expect("lists")
        .map(|entry| entry.expect("an entry").file_name())
        .collect();
    beside.sort();
    assert_eq!(beside, ["tree", "victim"], "something was made outside");
    applied.map(|(applied, _)| applied.record)
}

fn facts(at: &Path) -> (u32, u64, u64, i64, Vec<u8>) {
    let stat: Metadata = std::fs::symlink_metadata(at).expect("it is there");
    (stat.mode(), stat.nlink(), stat.len(), stat.mtime_nsec(), std::fs::read(at).expect("readable"))
}

/// See the module.
pub fn run(data: &[u8]) {
    let Some((&first, rest)) = data.split_first() else { return };
    let form = [WhiteoutForm::List, WhiteoutForm::Trusted, WhiteoutForm::User][usize::from(first) % 3];
    let parts = parts(rest);
    let as_given = extract(parts.iter(), form);
    if as_given.is_err() || parts.iter().any(|part| part.links) || changes_its_mind(&parts) {
        return;
    }
    let (deleting, others): (Vec<&Part>, Vec<&Part>) = parts.iter().partition(|part| part.deletes);
    let before = extract(deleting.iter().chain(&others).copied(), form);
    let behind = extract(others.iter().chain(&deleting).copied(), form);
    if let (Ok(before), Ok(behind)) = (before, behind) {
        assert_eq!((before.whiteouts, before.opaque), (behind.whiteouts, behind.opaque));
    }
}

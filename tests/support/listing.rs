//! A directory tree as lines that compare: one for each entry, in byte order, with all that an image can determine. Inode
//! numbers, directory sizes, access and change times are left out, because no image determines them.

use std::collections::{HashMap, HashSet};
use std::ffi::{CStr, CString};
use std::fs::{self, Metadata};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::image::digest;

/// Lists `root` and everything in it: `path type mode uid:gid mtime [size content] [link] [device] [xattrs] [hard link to]`.
pub fn listing(root: &Path) -> Vec<String> {
    lines(root, walk(root, None))
}

/// As [`listing`], without `left_out` and all that is below it.
pub fn listing_without(root: &Path, left_out: &Path) -> Vec<String> {
    lines(root, walk(root, Some(left_out)))
}

fn lines(root: &Path, paths: Vec<PathBuf>) -> Vec<String> {
    // A file with a name outside of the tree, as overlayfs shows one of two links whose other was deleted, has one name here.
    let mut names: HashMap<(u64, u64), Vec<&Path>> = HashMap::new();
    for path in &paths {
        let status = fs::symlink_metadata(path).expect("an entry that stays");
        if !status.is_dir() && status.nlink() > 1 {
            names.entry((status.dev(), status.ino())).or_default().push(path);
        }
    }
    let first: HashMap<&Path, &Path> = names
        .values()
        .filter(|group| group.len() > 1)
        .flat_map(|group| group.iter().map(|path| (*path, group[0])))
        .collect();
    paths.iter().map(|path| line(root, path, first.get(path.as_path()).copied())).collect()
}

/// The lines of `left` and `right` that differ, where a time on the right that is no older than `start` matches any: what no
/// image determines (the root of an overlay, directories that no layer lists) other tools set to the moment of unpacking.
pub fn difference_but_for_now(left: &[String], right: &[String], start: SystemTime) -> Vec<String> {
    let start = start.duration_since(SystemTime::UNIX_EPOCH).expect("now is after 1970").as_secs();
    let field = |line: &str, at: usize| line.split(' ').nth(at).unwrap_or_default().to_owned();
    let is_now = |line: &&String| {
        field(line, 4).split('.').next().is_some_and(|s| s.parse().is_ok_and(|s: u64| s >= start))
    };
    let now: HashSet<String> = right.iter().filter(is_now).map(|line| field(line, 0)).collect();
    let mask = |lines: &[String]| -> Vec<String> {
        let masked = |line: &String| match now.contains(&field(line, 0)) {
            true => line.replacen(&field(line, 4), "now", 1),
            false => line.clone(),
        };
        lines.iter().map(masked).collect()
    };
    difference(&mask(left), &mask(right))
}

/// The lines of two listings that differ, `-` for the first and `+` for the second.
pub fn difference(left: &[String], right: &[String]) -> Vec<String> {
    let only = |these: &[String], others: &[String], sign: char| -> Vec<String> {
        let others: HashSet<&String> = others.iter().collect();
        these.iter().filter(|line| !others.contains(line)).map(|line| format!("{sign} {line}")).collect()
    };
    let mut lines = [only(left, right, '-'), only(right, left, '+')].concat();
    lines.sort_by(|a, b| a[2..].cmp(&b[2..]));
    lines
}

/// Fails with the lines that differ.
#[track_caller]
pub fn assert_same(what: &str, left: &[String], right: &[String]) {
    let lines = difference(left, right);
    assert!(lines.is_empty(), "{what}: the trees differ (- first, + second):\n{}", lines.join("\n"));
}

fn walk(root: &Path, left_out: Option<&Path>) -> Vec<PathBuf> {
    let mut found = vec![root.to_path_buf()];
    let mut pending = vec![root.to_path_buf()];
    while let Some(directory) = pending.pop() {
        for entry in fs::read_dir(&directory).unwrap_or_else(|e| panic!("{}: {e}", directory.display())) {
            let path = entry.expect("a directory entry").path();
            if left_out == Some(path.as_path()) {
                continue;
            }
            if fs::symlink_metadata(&path).expect("an entry that stays").is_dir() {
                pending.push(path.clone());
            }
            found.push(path);
        }
    }
    found.sort_by(|a, b| a.as_os_str().as_bytes().cmp(b.as_os_str().as_bytes()));
    found
}

/// One line; `first` is the first name of the file if it has several in the tree.
fn line(root: &Path, path: &Path, first: Option<&Path>) -> String {
    let status = fs::symlink_metadata(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let name = name_below(root, path);
    let mut text = format!(
        "{name} {} {:04o} {}:{} {}.{:09}",
        kind(&status),
        status.mode() & 0o7777,
        status.uid(),
        status.gid(),
        status.mtime(),
        status.mtime_nsec()
    );
    if status.is_file() {
        let content = fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        text += &format!(" {} {}", status.size(), &digest(&content)["sha256:".len()..][..16]);
    } else if status.is_symlink() {
        text += &format!(" -> {}", escape(fs::read_link(path).expect("a link").as_os_str().as_bytes()));
    } else if status.file_type().is_char_device() || status.file_type().is_block_device() {
        text += &format!(" {}:{}", rustix::fs::major(status.rdev()), rustix::fs::minor(status.rdev()));
    }
    for (key, value) in xattrs(path) {
        text += &format!(" {key}={}", escape(&value));
    }
    if let Some(first) = first {
        text += &format!(" same as {}", name_below(root, first));
    }
    text
}

fn name_below(root: &Path, path: &Path) -> String {
    let relative = path.strip_prefix(root).expect("below the root").as_os_str().as_bytes();
    if relative.is_empty() { ".".into() } else { escape(relative) }
}

fn kind(status: &Metadata) -> &'static str {
    let kind = status.file_type();
    match () {
        () if kind.is_dir() => "dir",
        () if kind.is_symlink() => "link",
        () if kind.is_file() => "file",
        () if kind.is_fifo() => "fifo",
        () if kind.is_char_device() => "char",
        () if kind.is_block_device() => "block",
        () => "other",
    }
}

/// Extended attributes in order, without those that the machine rather than the image sets.
fn xattrs(path: &Path) -> Vec<(String, Vec<u8>)> {
    let path = CString::new(path.as_os_str().as_bytes()).expect("no NUL in a path");
    let mut names = vec![0; 4096];
    let Ok(length) = rustix::fs::llistxattr(path.as_c_str(), &mut names) else { return Vec::new() };
    let mut found: Vec<(String, Vec<u8>)> = names[..length]
        .split_inclusive(|byte| *byte == 0)
        .map(|name| CStr::from_bytes_with_nul(name).expect("names end with NUL"))
        .filter(|name| *name != c"security.selinux")
        .map(|name| {
            let mut value = vec![0; 65536];
            let length =
                rustix::fs::lgetxattr(path.as_c_str(), name, &mut value).expect("an attribute just listed");
            value.truncate(length);
            (escape(name.to_bytes()), value)
        })
        .collect();
    found.sort();
    found
}

/// Bytes as text without ambiguity: what is not graphic ASCII, and the backslash, as `\xNN`.
fn escape(bytes: &[u8]) -> String {
    let mut text = String::new();
    for &byte in bytes {
        match byte {
            b'\\' | 0..=0x20 | 0x7f.. => text += &format!("\\x{byte:02x}"),
            _ => text.push(char::from(byte)),
        }
    }
    text
}

//! A directory tree as lines that compare: one for each entry, in byte order, with all that an image can determine. Inode
//! numbers, directory sizes, access and change times are left out, because no image determines them.

use std::collections::HashMap;
use std::ffi::{CStr, CString};
use std::fs::{self, Metadata};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use super::image::digest;

/// Lists `root` and everything in it: `path type mode uid:gid mtime [size content] [link] [device] [xattrs] [hard link to]`.
pub fn listing(root: &Path) -> Vec<String> {
    let mut lines = Vec::new();
    let mut first_names = HashMap::new();
    for path in walk(root) {
        lines.push(line(root, &path, &mut first_names));
    }
    lines
}

/// The lines of two listings that differ, `-` for the first and `+` for the second.
pub fn difference(left: &[String], right: &[String]) -> Vec<String> {
    let only = |these: &[String], others: &[String], sign: char| -> Vec<String> {
        let others: std::collections::HashSet<&String> = others.iter().collect();
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

fn walk(root: &Path) -> Vec<PathBuf> {
    let mut found = vec![root.to_path_buf()];
    let mut pending = vec![root.to_path_buf()];
    while let Some(directory) = pending.pop() {
        for entry in fs::read_dir(&directory).unwrap_or_else(|e| panic!("{}: {e}", directory.display())) {
            let path = entry.expect("a directory entry").path();
            if fs::symlink_metadata(&path).expect("an entry that stays").is_dir() {
                pending.push(path.clone());
            }
            found.push(path);
        }
    }
    found.sort_by(|a, b| a.as_os_str().as_bytes().cmp(b.as_os_str().as_bytes()));
    found
}

fn line(root: &Path, path: &Path, first_names: &mut HashMap<(u64, u64), String>) -> String {
    let status = fs::symlink_metadata(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let relative = path.strip_prefix(root).expect("below the root").as_os_str().as_bytes();
    let name = if relative.is_empty() { ".".into() } else { escape(relative) };
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
    if !status.is_dir() && status.nlink() > 1 {
        let first = first_names.entry((status.dev(), status.ino())).or_insert_with(|| name.clone());
        text += &format!(" same as {first}");
    }
    text
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

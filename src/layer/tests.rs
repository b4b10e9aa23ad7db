use super::*;
use crate::error::{ErrorKind, Result};
use crate::io::tar::build::{Item, device, dir, file, hard_link, symlink, tar};
use crate::parallel::Cancel;
use crate::tree::{PathBytes, PendingLink};
use rustix::fd::AsFd;
use rustix::fs::{Mode, OFlags, XattrFlags};
use std::fs::{self, Permissions};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// A place with a tree and a canary beside it.
struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        fs::create_dir(dir.path().join("fs")).expect("a directory");
        fs::create_dir(dir.path().join("outside")).expect("a directory");
        fs::write(dir.path().join("outside/victim"), "canary").expect("a file");
        fs::set_permissions(dir.path().join("outside"), Permissions::from_mode(0o711)).expect("a mode");
        Place { dir }
    }

    fn path(&self, path: &str) -> PathBuf {
        self.dir.path().join("fs").join(path)
    }

    fn apply_with(&self, bytes: &[u8], options: &ApplyOptions) -> Result<Applied> {
        let run = |fs: &Path, options: &ApplyOptions| {
            let fd = rustix::fs::open(fs, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty())?;
            apply(bytes, fd.as_fd(), options, &Cancel::new(), &mut |_| {}).map(|(applied, _)| applied)
        };
        let was_empty = shape(&self.path("")).len() == 1;
        let applied = run(&self.path(""), options);
        self.check_canary();
        if was_empty {
            let other = tempfile::tempdir().expect("a directory");
            let beside = run(other.path(), &ApplyOptions { write_beside: true, ..options.clone() });
            assert_eq!(told(&beside), told(&applied), "with a thread beside");
            assert!(applied.is_err() || shape(other.path()) == shape(&self.path("")), "with a thread beside");
        }
        applied
    }

    fn apply(&self, items: &[Item]) -> Result<Applied> {
        self.apply_with(&tar(items), &ApplyOptions::default())
    }

    fn check_canary(&self) {
        let outside = self.dir.path().join("outside");
        let names: Vec<_> = fs::read_dir(&outside).expect("still there").collect();
        assert_eq!(names.len(), 1, "something was written outside");
        assert_eq!(fs::read_to_string(outside.join("victim")).expect("still there"), "canary");
        assert_eq!(fs::metadata(&outside).expect("still there").mode() & 0o7777, 0o711);
        assert_eq!(fs::read_dir(self.dir.path()).expect("still there").count(), 2);
    }

    fn stat(&self, path: &str) -> fs::Metadata {
        fs::symlink_metadata(self.path(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
    }

    fn text(&self, path: &str) -> String {
        fs::read_to_string(self.path(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
    }

    fn is_whiteout(&self, path: &str) -> bool {
        let stat = self.stat(path);
        stat.file_type().is_char_device() && stat.rdev() == 0
    }

    fn xattr(&self, path: &str, name: &str) -> Option<Vec<u8>> {
        let mut value = vec![0; 256];
        let length = rustix::fs::lgetxattr(self.path(path), name, &mut value[..]).ok()?;
        value.truncate(length);
        Some(value)
    }

    fn is_opaque(&self, path: &str) -> bool {
        self.xattr(path, "trusted.overlay.opaque").as_deref() == Some(b"y")
    }
}

/// What an extraction says.
fn told(applied: &Result<Applied>) -> String {
    match applied {
        Ok(applied) => format!("{:?} {:?}", applied.record, applied.notices),
        Err(error) => format!("{:?} {error}", error.kind()),
    }
}

/// All that an import determines of what lies below a directory, itself included.
fn shape(dir: &Path) -> Vec<String> {
    let mut lines = Vec::new();
    let mut waiting = vec![dir.to_path_buf()];
    while let Some(path) = waiting.pop() {
        let stat = fs::symlink_metadata(&path).expect("is there");
        let data = if stat.is_file() { fs::read(&path).expect("reads") } else { Vec::new() };
        let target = fs::read_link(&path).ok();
        if stat.is_dir() {
            waiting.extend(fs::read_dir(&path).expect("lists").map(|entry| entry.expect("an entry").path()));
        }
        let time = (stat.mtime(), stat.mtime_nsec());
        // What marks a deletion is made at no time that an archive says.
        let time = if stat.file_type().is_char_device() { (0, 0) } else { time };
        let shown = path.strip_prefix(dir).expect("is below").to_path_buf();
        let size = if stat.is_dir() { 0 } else { stat.len() };
        lines.push(format!(
            "{shown:?} {:o} {}:{} {time:?} {size} {} {} {data:?} {target:?}",
            stat.mode(),
            stat.uid(),
            stat.gid(),
            stat.rdev(),
            stat.nlink()
        ));
    }
    lines.sort();
    lines
}

/// Most of this needs owners, devices and trusted attributes.
fn is_root() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        eprintln!("SKIPPED: extraction as the layer says needs root");
    }
    root
}

fn paths(list: &[PathBytes]) -> Vec<String> {
    list.iter().map(ToString::to_string).collect()
}

fn good(items: &[Item]) -> (Place, Applied) {
    let place = Place::new();
    let applied = place.apply(items).expect("a good layer");
    (place, applied)
}

fn refused(items: &[Item]) -> ErrorKind {
    let place = Place::new();
    place.apply(items).map(|_| ()).expect_err("a bad layer").kind()
}

#[test]
fn attributes_are_as_the_layer_says() {
    if !is_root() {
        return;
    }
    let items = [
        dir("./").mode(0o750).owner(7, 8),
        dir("d").mode(0o2555).owner(1, 2).pax("mtime", "1234.567890123"),
        file("d/f", "text").mode(0o4711).owner(3, 4).pax("mtime", "-5.25"),
        file("d/none", "").mode(0),
        symlink("d/s", "/no/where").owner(5, 6),
        device("d/p", b'6', 0, 0).mode(0o622),
        device("d/null", b'3', 1, 3).mode(0o6666).owner(9, 9),
        hard_link("d/h", "/d/f"),
        hard_link("d/hs", "d/s"),
        file("x", "").pax("SCHILY.xattr.user.a", "1").pax("SCHILY.xattr.trusted.overlay.opaque", "y"),
    ];
    let (place, applied) = good(&items);
    let root = place.stat("");
    assert_eq!((root.mode() & 0o7777, root.uid(), root.gid()), (0o750, 7, 8));
    let d = place.stat("d");
    assert_eq!((d.mode() & 0o7777, d.uid(), d.gid()), (0o2555, 1, 2));
    assert_eq!((d.mtime(), d.mtime_nsec()), (1234, 567_890_123));
    let f = place.stat("d/f");
    assert_eq!((f.mode() & 0o7777, f.uid(), f.gid(), f.nlink()), (0o4711, 3, 4, 2));
    assert_eq!((f.mtime(), f.mtime_nsec()), (-6, 750_000_000));
    assert_eq!(place.text("d/h"), "text");
    assert_eq!(place.stat("d/none").mode() & 0o7777, 0);
    let s = place.stat("d/s");
    assert_eq!((s.uid(), s.gid(), s.mtime(), s.ino()), (5, 6, 1_000_000_000, place.stat("d/hs").ino()));
    assert_eq!(place.stat("d/p").mode() & 0o7777, 0o622);
    let null = place.stat("d/null");
    assert_eq!((null.mode() & 0o7777, null.rdev(), null.uid()), (0o6666, rustix::fs::makedev(1, 3), 9));
    assert_eq!(place.xattr("x", "user.a").as_deref(), Some(&b"1"[..]));
    assert!(!place.is_opaque("x"));
    assert_eq!(applied.notices.len(), 1, "{:?}", applied.notices);
    assert!(applied.record.implicit.is_empty());
    assert_eq!((applied.record.entries, applied.record.bytes, applied.record.inodes), (10, 4, 8));
}

#[test]
fn modes_and_owners_do_not_depend_on_umask_acls_or_the_stores_directory() {
    if !is_root() {
        return;
    }
    let place = Place::new();
    fs::set_permissions(place.path(""), Permissions::from_mode(0o2777)).expect("a mode");
    std::os::unix::fs::chown(place.path(""), Some(0), Some(77)).expect("an owner");
    // Version 2; user::rwx, group::r-x, mask::r-x, other::---.
    let acl: Vec<u8> =
        [&2u32.to_le_bytes()[..], &entry(1, 7), &entry(4, 5), &entry(16, 5), &entry(32, 0)].concat();
    fn entry(tag: u16, perm: u16) -> Vec<u8> {
        [&tag.to_le_bytes()[..], &perm.to_le_bytes(), &u32::MAX.to_le_bytes()].concat()
    }
    if rustix::fs::setxattr(place.path(""), "system.posix_acl_default", &acl, XattrFlags::empty()).is_err() {
        eprintln!("SKIPPED in part: no ACLs here");
    }
    std::thread::scope(|scope| {
        scope.spawn(|| {
            use_private_umask();
            rustix::process::umask(Mode::from_raw_mode(0o077));
            let items =
                [file("a/f", "").mode(0o666), dir("b").mode(0o777), device("p", b'6', 0, 0).mode(0o666)];
            place.apply(&items).expect("a good layer");
        });
    });
    for (path, mode) in [("", 0o755), ("a", 0o755), ("a/f", 0o666), ("b", 0o777), ("p", 0o666)] {
        let stat = place.stat(path);
        assert_eq!((stat.mode() & 0o7777, stat.gid()), (mode, 0), "{path}");
        assert_eq!(place.xattr(path, "system.posix_acl_access"), None, "{path}");
    }
}

#[test]
fn nothing_gets_outside_through_links_and_dots() {
    if !is_root() {
        return;
    }
    let place = Place::new();
    let outside = place.dir.path().join("outside");
    let outside = outside.to_str().expect("plain");
    let up = "../../../../../../../..".to_string() + outside;
    // T1, T4: files and directories through links; the names land inside.
    let items = [
        symlink("escape", outside),
        file("escape/x", "in"),
        dir("escape/made"),
        symlink("up", &up),
        file("up/y", "in"),
        symlink("parent", ".."),
        file("parent/z", "in"),
        dir("sub"),
        symlink("b", "sub"),
        symlink("a", "b/.."),
        symlink("sub/c", "../.."),
        file("a/sub/c/w", "in"),
        // T2: a directory where a link was.
        symlink("d", outside),
        dir("d").mode(0o777),
        // T8: deletions through links.
        file("escape/.wh.victim", ""),
        file("up/.wh..wh..opq", ""),
        // T7
        file("/abs", "in"),
        file("//abs2", "in"),
        file("a/../../dots", "in"),
        file("../../dots2", "in"),
    ];
    place.apply(&items).expect("a harmless layer");
    let inside = outside.trim_start_matches('/');
    for name in [&format!("{inside}/x"), &format!("{inside}/y"), "z", "w", "abs", "abs2", "dots", "dots2"] {
        assert_eq!(place.text(name), "in", "{name}");
    }
    assert!(place.is_whiteout(&format!("{inside}/victim")));
    assert!(place.is_opaque(inside));
    assert!(place.stat("d").is_dir());
    // T3: a hard link's target is looked for inside only.
    let place = Place::new();
    let applied =
        place.apply(&[hard_link("h", format!("{outside}/victim")), hard_link("i", &up)]).expect("pending");
    assert_eq!(applied.record.pending_links.len(), 2);
    let own = PathBytes::cleaned(outside.as_bytes());
    assert_eq!(applied.record.pending_links[1].target, own);
}

#[test]
fn what_cannot_be_meant_is_refused() {
    if !is_root() {
        return;
    }
    for items in [
        // T6
        vec![symlink(".", "/")],
        vec![symlink("/", "x")],
        vec![symlink("./", "x")],
        vec![file("", "x")],
        // T8
        vec![file(".wh.", "")],
        vec![file("a/.wh..", "")],
        vec![file("a/.wh...", "")],
        vec![file(".wh.a/b", "")],
        // Others
        vec![symlink("a", "b"), symlink("b", "a"), file("a/x", "")],
        vec![file("f", ""), file("f/x", "")],
        vec![dir("d"), hard_link("h", "d")],
        vec![hard_link("h", "/")],
        vec![symlink("s", "")],
    ] {
        assert_eq!(refused(&items), ErrorKind::Malformed, "{:?}", items.last().map(|item| item.name.clone()));
    }
    for items in [vec![file("n".repeat(256), "")], vec![dir("d/".repeat(300))], vec![dir("d/".repeat(1000))]]
    {
        assert_eq!(refused(&items), ErrorKind::LimitExceeded);
    }
    let too_high =
        Place::new().apply(&[file("f", "").owner(u64::from(u32::MAX), 0)]).map(|_| ()).expect_err("no owner");
    assert!(too_high.hint().is_some_and(|hint| hint.contains("--ignore-chown")));
    let options = ApplyOptions { ownership: Ownership::Ignore, ..ApplyOptions::default() };
    let ignored = Place::new().apply_with(&tar(&[file("f", "").owner(1 << 40, 5)]), &options);
    assert!(ignored.is_ok());
}

/// Symlinks can make a path deep that is short as written.
#[test]
fn depth_is_limited_behind_symlinks_too() {
    let deep = "d/".repeat(200);
    let items = [dir(&deep), symlink("s", &deep), dir("s/".to_owned() + &deep)];
    assert_eq!(refused(&items), ErrorKind::LimitExceeded);
}

#[test]
fn entries_and_bytes_are_limited() {
    let limited = |limits| ApplyOptions { limits, ..ApplyOptions::default() };
    let bytes = tar(&[file("a", [1; 5000]), file("b", "")]);
    for limits in
        [Limits { layer_entries: 1, ..Limits::default() }, Limits { layer_bytes: 5000, ..Limits::default() }]
    {
        let error = Place::new().apply_with(&bytes, &limited(limits)).map(|_| ()).expect_err("too much");
        assert_eq!(error.kind(), ErrorKind::LimitExceeded);
    }
}

#[test]
fn whiteouts_mean_the_same_before_and_after_their_siblings() {
    if !is_root() {
        return;
    }
    let entries = [
        file(".wh.gone", ""),
        file(".wh.file", ""),
        file("file", "new"),
        file(".wh.dir", ""),
        dir("dir"),
        file("dir/x", "new"),
        file(".wh.implied", ""),
        file("implied/x", "new"),
        dir("opaque"),
        file("opaque/.wh..wh..opq", ""),
        file("opaque/x", "new"),
        file("sub/.wh.gone", ""),
        file(".wh..wh.plnk/1.2", ""),
        file(".wh..wh.aufs", ""),
    ];
    let backwards: Vec<Item> = entries.iter().rev().cloned().collect();
    let forwards = good(&entries);
    let backwards = good(&backwards);
    for (place, applied) in [&forwards, &backwards] {
        assert_eq!(paths(&applied.record.whiteouts), ["gone", "sub/gone"]);
        assert_eq!(paths(&applied.record.opaque), ["dir", "implied", "opaque"]);
        assert_eq!(paths(&applied.record.implicit), ["", "implied", "sub"]);
        assert!(place.is_whiteout("gone") && place.is_whiteout("sub/gone"));
        assert!(["dir", "implied", "opaque"].iter().all(|name| place.is_opaque(name)));
        assert!(!place.is_opaque("sub") && !place.is_opaque(""));
        for name in ["file", "dir/x", "implied/x", "opaque/x"] {
            assert_eq!(place.text(name), "new");
        }
        assert_eq!(fs::read_dir(place.path("")).expect("a directory").count(), 6);
    }
    assert_eq!(forwards.1.record, backwards.1.record);
}

#[test]
fn a_deleted_name_that_becomes_a_file_and_then_a_directory_hides_what_is_below() {
    if !is_root() {
        return;
    }
    let (delete, file, dir) = (file(".wh.a", ""), file("a", "1"), dir("a"));
    for entries in [
        [delete.clone(), file.clone(), dir.clone()],
        [file.clone(), delete.clone(), dir.clone()],
        [file, dir.clone(), delete.clone()],
        [dir.clone(), delete, dir],
    ] {
        let (place, applied) = good(&entries);
        assert_eq!(paths(&applied.record.opaque), ["a"]);
        assert!(place.is_opaque("a") && applied.record.whiteouts.is_empty());
    }
}

#[test]
fn the_other_forms_mark_with_user_attributes_or_not_at_all() {
    if !is_root() {
        return;
    }
    let bytes = tar(&[file(".wh.gone", ""), file(".wh.d", ""), file("d/x", ""), file("o/.wh..wh..opq", "")]);
    let with = |form| {
        let place = Place::new();
        let options = ApplyOptions { form, ..ApplyOptions::default() };
        let applied = place.apply_with(&bytes, &options).expect("a good layer");
        assert_eq!(paths(&applied.record.whiteouts), ["gone"]);
        assert_eq!(paths(&applied.record.opaque), ["d", "o"]);
        place
    };
    let user = with(WhiteoutForm::User);
    assert!(user.is_whiteout("gone"));
    assert_eq!(user.xattr("o", "user.overlay.opaque").as_deref(), Some(&b"y"[..]));
    let list = with(WhiteoutForm::List);
    assert!(!list.path("gone").exists());
    assert_eq!(list.xattr("o", "user.overlay.opaque"), None);
    assert!(!list.is_opaque("o"));
}

#[test]
fn the_last_entry_of_a_name_wins() {
    if !is_root() {
        return;
    }
    let items = [
        file("f", "first, and longer"),
        hard_link("h", "f"),
        file("f", "second"),
        dir("d").mode(0o700),
        file("d/kept", "kept"),
        dir("d").mode(0o711),
        dir("gone/sub"),
        file("gone/sub/x", ""),
        file("gone/.wh.y", ""),
        hard_link("gone/pending", "nowhere"),
        file("gone", "file now"),
        symlink("s", "d"),
        file("s/through", "through"),
        dir("s"),
        file("s/real", "real"),
        hard_link("h2", "nowhere"),
        file("h2", "file"),
        symlink("t", "x"),
        symlink("t", "y"),
    ];
    let (place, applied) = good(&items);
    assert_eq!((place.text("f"), place.text("h")), ("second".into(), "first, and longer".into()));
    assert_eq!(place.stat("d").mode() & 0o7777, 0o711);
    assert_eq!((place.text("d/kept"), place.text("gone")), ("kept".into(), "file now".into()));
    assert_eq!((place.text("d/through"), place.text("s/real")), ("through".into(), "real".into()));
    assert!(place.stat("s").is_dir() && !place.path("d/real").exists());
    assert_eq!(fs::read_link(place.path("t")).expect("a link"), Path::new("y"));
    let record = applied.record;
    assert_eq!(paths(&record.implicit), [""]);
    assert!(record.whiteouts.is_empty() && record.pending_links.is_empty() && record.opaque.is_empty());
}

fn links(applied: &Applied) -> Vec<(String, String)> {
    let link = |link: &PendingLink| (link.path.to_string(), link.target.to_string());
    applied.record.pending_links.iter().map(link).collect()
}

/// What it leads to may be in a lower layer. So the tree does not have it, whatever the layer itself has later.
#[test]
fn hard_links_wait_for_what_was_not_there_when_they_came() {
    if !is_root() {
        return;
    }
    let items = [
        hard_link("first", "second"),
        hard_link("second", "target"),
        hard_link("third", "second"),
        hard_link("second", "second"),
        hard_link("lib/link", "/usr/../lower/file"),
        file("target", "here"),
        hard_link("fourth", "target"),
        file(".wh.deleted", ""),
        hard_link("undead", "deleted"),
        hard_link("target", "target"),
    ];
    let (place, applied) = good(&items);
    assert_eq!(place.text("fourth"), "here");
    assert_eq!(place.stat("target").nlink(), 2);
    let pending = [
        ("first", "second"),
        ("lib/link", "lower/file"),
        ("second", "target"),
        ("third", "target"),
        ("undead", "deleted"),
    ];
    assert_eq!(links(&applied), pending.map(|(path, target)| (path.to_string(), target.to_string())));
    assert_eq!(paths(&applied.record.implicit), ["", "lib"]);
    assert!(!place.path("undead").exists() && !place.path("second").exists());
}

#[test]
fn a_link_to_a_device_that_was_left_out_is_left_out_too() {
    if !is_root() {
        return;
    }
    let null = || device("null", b'3', 0, 0);
    let items = [null(), hard_link("d/link", "null"), hard_link("second", "d/link"), file("last", "1")];
    let (place, applied) = good(&items);
    assert!(applied.record.pending_links.is_empty() && applied.notices.len() == 2, "{:?}", applied.notices);
    assert!(applied.notices[0].starts_with("a device 0:0"), "{:?}", applied.notices);
    assert!(applied.notices[1].ends_with("d/link and 1 more"), "{:?}", applied.notices);
    assert_eq!(place.text("last"), "1");
    // Something else that has the name since then is something else.
    let (place, _) = good(&[null(), hard_link("link", "null"), file("null", "1"), hard_link("link", "null")]);
    assert_eq!(place.text("link"), "1");
}

#[test]
fn an_opaque_mark_on_the_root_is_reported_and_hides_nothing() {
    if !is_root() {
        return;
    }
    let (place, applied) = good(&[file(".wh..wh..opq", ""), file("d/.wh..wh..opq", "")]);
    assert_eq!(paths(&applied.record.opaque), ["d"]);
    assert!(!place.is_opaque("") && place.is_opaque("d"));
    assert!(applied.notices[0].contains("root"), "{:?}", applied.notices);
}

/// Not the machine's, whatever the kernel's error is called.
#[test]
fn attributes_that_cannot_be_are_the_layers_fault() {
    if !is_root() {
        return;
    }
    let long = format!("user.{}", "n".repeat(300));
    let named = |name: &str, value: &[u8]| vec![file("a", "1").pax(format!("SCHILY.xattr.{name}"), value)];
    // Two entries: for a user and for a group, of a list that a directory hands down.
    let list: Vec<u8> = [[2, 0, 0, 0].as_slice(), &[1, 0, 7, 0], &[255; 4], &[4, 0, 5, 0], &[255; 4]]
        .into_iter()
        .flatten()
        .copied()
        .chain([32, 0, 5, 0, 255, 255, 255, 255])
        .collect();
    let cases = [
        (named("system.posix_acl_access", b"zz"), ErrorKind::Malformed, "invalid"),
        (named("security.capability", b"zz"), ErrorKind::Malformed, "invalid"),
        (named("system.posix_acl_default", &list), ErrorKind::Malformed, "only a directory"),
        (named("user.", b"z"), ErrorKind::Malformed, "no name"),
        (named(&long, b"z"), ErrorKind::Malformed, "255 bytes"),
        (named("user.big", &[b'z'; 70_000]), ErrorKind::LimitExceeded, "64 KiB"),
        (vec![dir("d").pax("SCHILY.xattr.user.", b"z")], ErrorKind::Malformed, "no name"),
    ];
    for (items, kind, why) in cases {
        let error = Place::new().apply(&items).expect_err(why);
        assert!(error.kind() == kind && error.to_string().contains(why), "{error}");
    }
}

/// Twelve directories of 250 bytes, and as many again behind a symlink that leads to them.
#[test]
fn a_tree_deeper_than_the_kernel_takes_at_once_is_beyond_a_limit() {
    let path = |count: usize| vec!["n".repeat(250); count].join("/");
    let items = [dir(path(12)), symlink("s", path(12)), dir(format!("s/{}", path(12)))];
    let error = Place::new().apply(&items).expect_err("too deep");
    assert!(error.kind() == ErrorKind::LimitExceeded && error.to_string().contains("4095"), "{error}");
    assert!(error.hint().is_some_and(|hint| hint.contains("no option")), "{:?}", error.hint());
}

#[test]
fn all_layers_of_an_import_share_the_memory_of_their_lists() {
    if !is_root() {
        return;
    }
    let items: Vec<Item> = (0..50).map(|number| hard_link(format!("l{number}"), "absent")).collect();
    let mut options = ApplyOptions::default();
    options.limits.layer_lists_bytes = 150 << 10;
    let apply = || {
        let place = tempfile::tempdir().expect("a directory");
        let fd = rustix::fs::open(place.path(), OFlags::DIRECTORY, Mode::empty()).expect("opens");
        apply(&tar(&items)[..], fd.as_fd(), &options, &Cancel::new(), &mut |_| {}).map(|(applied, _)| applied)
    };
    let held: Vec<Applied> = std::iter::repeat_with(apply).map_while(Result::ok).take(20).collect();
    assert!((1..10).contains(&held.len()), "{} layers fit", held.len());
    let error = apply().expect_err("no room");
    assert_eq!(error.kind(), ErrorKind::LimitExceeded);
    assert!(error.hint().is_some_and(|hint| hint.contains("layer-lists-bytes")), "{error}");
    drop(held);
    apply().expect("there is room again");
}

#[test]
fn paths_lead_through_symlinks_of_the_layer() {
    if !is_root() {
        return;
    }
    let items = [
        symlink("lib", "usr/lib"),
        file("lib/a", "a"),
        symlink("abs", "/usr/lib/deep"),
        file("abs/b", "b"),
        symlink("far", "../../../../usr"),
        file("far/c", "c"),
        symlink("dangling", "nothing"),
    ];
    let (place, applied) = good(&items);
    assert_eq!([place.text("usr/lib/a"), place.text("usr/lib/deep/b"), place.text("usr/c")], ["a", "b", "c"]);
    assert_eq!(paths(&applied.record.implicit), ["", "usr", "usr/lib", "usr/lib/deep"]);
    let implicit = place.stat("usr/lib");
    assert_eq!((implicit.mode() & 0o7777, implicit.uid(), implicit.mtime()), (0o755, 0, 0));
    // A symlink of a lower layer is not ours to follow.
    let (place, applied) = good(&[file("lib/x", "x")]);
    assert!(place.stat("lib").is_dir());
    assert_eq!(paths(&applied.record.implicit), ["", "lib"]);
}

#[test]
fn names_are_bytes() {
    let (place, _) = good(&[file(b"\xff\n/new\nline", "x"), dir("d/./e//")]);
    let name = std::ffi::OsStr::from_bytes(b"\xff\n/new\nline");
    assert_eq!(fs::read(place.dir.path().join("fs").join(name)).expect("there"), b"x");
    assert!(place.stat("d/e").is_dir());
}

#[test]
fn long_runs_of_zeros_become_holes_and_contents_stay() {
    let mut data = vec![0; 3 << 20];
    data[100] = 1;
    data[(1 << 20) + 5] = 2;
    data[(1 << 20) + 70_000] = 3;
    let mut ends_in_data = data.clone();
    *ends_in_data.last_mut().expect("not empty") = 4;
    let bytes = tar(&[
        file("zeros", &data),
        file("data", &ends_in_data),
        file("all", vec![0; 200_000]),
        file("small", [0; 99]),
    ]);
    for buffer in [1000, 4096, 65_536, 1 << 20, 4 << 20] {
        let place = Place::new();
        let fd = rustix::fs::open(place.path(""), OFlags::DIRECTORY, Mode::empty()).expect("there");
        let input = std::io::BufReader::with_capacity(buffer, &bytes[..]);
        apply(input, fd.as_fd(), &ApplyOptions::default(), &Cancel::new(), &mut |_| {})
            .expect("a good layer");
        assert!(fs::read(place.path("zeros")).expect("there") == data, "{buffer}");
        assert!(fs::read(place.path("data")).expect("there") == ends_in_data, "{buffer}");
        assert_eq!(place.stat("all").len(), 200_000);
        assert_eq!(fs::read(place.path("small")).expect("there"), [0; 99]);
        assert!(place.stat("zeros").blocks() * 512 < 1 << 20, "{buffer}");
        assert_eq!(place.stat("all").blocks(), 0, "{buffer}");
    }
}

#[test]
fn sparse_files_stay_sparse() {
    let sparse =
        file("x", "abcde").pax("GNU.sparse.map", "1048576,3,9000000,2").pax("GNU.sparse.size", "10000000");
    let (place, applied) = good(&[sparse, file("after", "x")]);
    let content = fs::read(place.path("x")).expect("there");
    assert_eq!((&content[1_048_576..1_048_579], &content[9_000_000..9_000_002]), (&b"abc"[..], &b"de"[..]));
    assert_eq!(content.len(), 10_000_000);
    assert_eq!(content.iter().filter(|&&byte| byte != 0).count(), 5);
    assert!(place.stat("x").blocks() < 100);
    assert_eq!(applied.record.bytes, 6);
}

#[test]
fn devices_that_would_delete_are_left_out_and_reported() {
    if !is_root() {
        return;
    }
    let (place, applied) = good(&[device("etc/shadow", b'3', 0, 0), device("sda", b'4', 8, 0)]);
    assert!(!place.path("etc/shadow").exists());
    assert!(place.stat("sda").file_type().is_block_device());
    assert_eq!(applied.notices.len(), 1);
    assert!(applied.record.whiteouts.is_empty());
}

#[test]
fn kept_attributes_are_those_that_describe_the_file() {
    for (name, verdict) in [
        ("user.mime_type", XattrVerdict::Keep),
        ("security.capability", XattrVerdict::Keep),
        ("system.posix_acl_access", XattrVerdict::Keep),
        ("system.posix_acl_default", XattrVerdict::Keep),
        ("user.overlay.opaque", XattrVerdict::Drop),
        ("trusted.overlay.redirect", XattrVerdict::Drop),
        ("security.selinux", XattrVerdict::Drop),
        ("security.ima", XattrVerdict::Drop),
        ("", XattrVerdict::Drop),
    ] {
        assert_eq!(judge_xattr(name.as_bytes()), verdict, "{name}");
    }
}

#[test]
fn capabilities_survive_the_change_of_owner() {
    if !is_root() {
        return;
    }
    // Version 2, effective, CAP_NET_RAW.
    let capability: Vec<u8> =
        [0x0200_0001u32, 1 << 13, 0, 0, 0].iter().flat_map(|word| word.to_le_bytes()).collect();
    let ping =
        file("ping", "elf").mode(0o755).owner(10, 10).pax("SCHILY.xattr.security.capability", &capability);
    let (place, _) = good(&[ping]);
    assert_eq!(place.xattr("ping", "security.capability"), Some(capability));
    assert_eq!((place.stat("ping").uid(), place.stat("ping").mode() & 0o7777), (10, 0o755));
}

#[test]
fn an_empty_layer_is_a_bare_root() {
    for bytes in [&b""[..], &tar(&[])] {
        let place = Place::new();
        let applied = place.apply_with(bytes, &ApplyOptions::default()).expect("a good layer");
        assert_eq!(applied.record.entries, 0);
        assert_eq!((place.stat("").mode() & 0o7777, place.stat("").mtime()), (0o755, 0));
    }
}

#[test]
fn a_layer_cut_anywhere_is_an_error_and_stays_inside() {
    let bytes = tar(&[file("a", [1; 2000]), dir("d"), file("d/b", "x")]);
    for end in (1..2500).step_by(97) {
        let result = Place::new().apply_with(&bytes[..end], &ApplyOptions::default());
        if let Err(error) = result {
            assert_eq!(error.kind(), ErrorKind::Truncated, "cut at {end}");
        }
    }
}

#[test]
fn cancelling_stops_the_extraction() {
    let place = Place::new();
    let fd = rustix::fs::open(place.path(""), OFlags::DIRECTORY, Mode::empty()).expect("there");
    let cancel = Cancel::new();
    cancel.cancel();
    let bytes = tar(&[file("a", [1; 500_000])]);
    let result = apply(&bytes[..], fd.as_fd(), &ApplyOptions::default(), &cancel, &mut |_| {});
    assert_eq!(result.map(|_| ()).expect_err("cancelled").kind(), ErrorKind::Cancelled);
}

//! Layers that reach for what lies outside their tree, and names, owners and attributes that mean more than they seem to.

use crate::house::*;
use crate::support;
use crate::support::image::*;
use crate::support::listing::assert_same;
use std::path::Path;

#[test]
fn t1_t2_t4_t6_t7_links_lead_nowhere_outside() {
    if !root() {
        return;
    }
    let attack = |what: &str, build: &dyn Fn(&str) -> Vec<Layer>| {
        let layers = |house: &House| several(build(house.outside().to_str().expect("text")));
        harmless(what, &[Way::File, Way::Directory], |house| layers(house).oci());
        harmless(what, &[Way::GzipStdin], |house| layers(house).docker());
    };
    attack("write through", &|out| vec![layer().symlink("e", out).file("e/x", "1").file("e/victim", "2")]);
    attack("mkdir through", &|out| vec![layer().symlink("e", out).dir("e/made").mode(0o777)]);
    attack("through a lower one", &|out| {
        vec![layer().symlink("e", out), file("e/x", "1").dir("e").mode(0o777)]
    });
    attack("up", &|_| vec![layer().symlink("s", "../../../..").file("s/transload-escaped", "1")]);
    attack("chmod", &|out| vec![layer().symlink("d", out).dir("d").mode(0o777).owner(7, 7)]);
    attack("chmod of a file", &|out| {
        vec![layer().symlink("l", &format!("{out}/victim")).hardlink("h", "l").mode(0o777).file("l", "new")]
    });
    attack("hard link out", &|out| {
        vec![
            layer()
                .symlink("e", out)
                .hardlink("h", "e/victim")
                .file("h", "new")
                .hardlink("g", &format!("{out}/victim")),
        ]
    });
    attack("chain", &|out| {
        vec![
            layer()
                .dir("b")
                .symlink("a", "b/..")
                .symlink("b/sub", "../..")
                .symlink("sub", "b/sub/..")
                .file(&format!("sub/{out}/x"), "1"),
        ]
    });
    for name in [".", "/", "./"] {
        attack("the root", &|out| vec![layer().symlink(name, out), file("x", "1"), file("victim", "2")]);
    }
    attack("names", &|out| {
        vec![file(&format!("/{out}/x"), "1").file("../../../../../../../tmp/transload-escaped", "2")]
    });
    attack("names that go up inside", &|out| vec![file(&format!("a/../../../../../../../../{out}/x"), "1")]);
    attack("a whiteout through a link", &|out| {
        vec![layer().symlink("e", out).whiteout("e/victim").opaque("e")]
    });
    attack("a lower whiteout", &|out| {
        vec![layer().symlink("e", out), layer().whiteout("e/victim").opaque("e")]
    });
    assert!(!Path::new("/transload-escaped").exists() && !Path::new("/tmp/transload-escaped").exists());
}

#[test]
fn t3_a_hard_link_to_what_is_only_outside_is_refused() {
    refused("hard link", |_| one(layer().hardlink("h", "Cargo.toml")));
    refused("hard link", |_| one(layer().hardlink("h", "etc/passwd")));
}

#[test]
fn t8_whiteouts_without_a_name_are_refused() {
    for name in [".wh.", "d/.wh.", ".wh..", "d/.wh...", "d/.wh.."] {
        refused(name, |_| one(layer().file(name, "")));
    }
}

#[test]
fn t23_the_store_is_private_whatever_the_umask() {
    use std::os::unix::fs::PermissionsExt;
    let house = House::new();
    let path = house.dir.path().join("archive");
    std::fs::write(&path, one(file("su", "1").mode(0o4755))).expect("an archive");
    let script = "umask 0; exec \"$0\" --store \"$1\" import \"$2\"";
    let mut shell = std::process::Command::new("sh");
    shell.args(["-c", script]).arg(support::run::program()).arg(house.store()).arg(&path);
    support::run::run(&mut shell).ok();
    let mode = std::fs::metadata(house.store()).expect("a store").permissions().mode();
    assert_eq!(mode & 0o7777, 0o700);
}

#[test]
fn t24_attributes_that_steer_the_kernel_do_not_arrive() {
    if !root() {
        return;
    }
    let steering = file("lower", "1");
    let above = dir("d")
        .xattr("trusted.overlay.opaque", "y")
        .xattr("trusted.overlay.redirect", "/..")
        .xattr("user.overlay.opaque", "y")
        .xattr("user.kept", "1")
        .file("d/own", "2");
    let (tree, _) = imports("xattrs", &several([steering.file("d/below", "3"), above]).oci(), NAME);
    has(&tree, "d/below file");
    has(&tree, "d/own file");
    let line = tree.iter().find(|line| line.starts_with("d dir")).expect("d");
    assert!(line.contains("user.kept=1") && !line.contains("overlay"), "{line}");
}

#[test]
fn t25_a_device_0_0_deletes_nothing() {
    if !root() {
        return;
    }
    let layers = [file("etc/shadow", "secret"), layer().char_device("etc/shadow", 0, 0)];
    let (tree, _) = imports("0:0", &several(layers).oci(), NAME);
    has(&tree, "etc/shadow file");
}

#[test]
fn t30_one_thread_and_many_give_one_tree() {
    if !root() {
        return;
    }
    let layers = [
        file("d/a", "1").file("d/b", "2").file("gone", "3").file("x/y/z", "4"),
        layer().opaque("d").file("d/c", "5").whiteout("gone").whiteout("x/y"),
        file("x/y/new", "6").whiteout("d/c"),
    ];
    let bytes = several(layers).oci();
    let trees: Vec<_> = ["1", "2", "8"]
        .iter()
        .flat_map(|threads| [Way::File, Way::GzipStdin].map(|way| (threads, way)))
        .map(|(threads, way)| {
            let house = House::new();
            house.import(way, &bytes, &["--threads", threads]).ok();
            house.tree(NAME)
        })
        .collect();
    for tree in &trees {
        assert_same("threads", &trees[0], tree);
    }
    lacks(&trees[0], "d/a");
    lacks(&trees[0], "gone");
    lacks(&trees[0], "x/y/z");
    has(&trees[0], "x/y/new file");
}

#[test]
fn t31_names_are_bytes_and_have_limits() {
    if !root() {
        return;
    }
    let (tree, _) =
        imports("names", &one(file("new\nline", "1").file("b\\ack", "2").file("\u{fc}", "3")), NAME);
    has(&tree, "new\\x0aline file");
    refused("4097 bytes", |_| {
        one(file(&"d/".repeat(2048), "1").file(&format!("{}x", "d/".repeat(2048)), "1"))
    });
    refused("300 components", |_| one(file(&format!("{}x", "d/".repeat(299)), "1")));
    refused("a NUL", |_| one(file(&format!("{}\0x", "d".repeat(120)), "1")));
    refused("a long component", |_| one(file(&"d".repeat(256), "1")));
}

//! Layers that reach for what lies outside their tree, and names, owners and attributes that mean more than they seem to.

use crate::house::*;
use crate::support;
use crate::support::image::*;
use crate::support::listing::assert_same;
use crate::support::tools::skip;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;

#[test]
fn t1_t2_t4_t6_t7_links_lead_nowhere_outside() {
    if !root() {
        return;
    }
    let attack = |what: &str, build: &dyn Fn(&str) -> Vec<Layer>| {
        both_harmless(what, |house| several(build(house.outside().to_str().expect("text"))));
    };
    let through = |out: &str| vec![layer().symlink("e", out).file("e/x", "1").file("e/victim", "2")];
    attack("write through", &through);
    let build = |house: &House| several(through(house.outside().to_str().expect("text")));
    harmless("write through", &RARE_WAYS, |house| build(house).oci());
    harmless("write through", &RARE_WAYS, |house| build(house).docker());
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
    for name in [&b"."[..], b"/", b"./", b"//", b"./."] {
        attack("the root", &|out| {
            vec![layer().symlink("r", out).named(name), file("x", "1").file("victim", "2")]
        });
    }
    for slashes in ["", "/", "//"] {
        let start = slashes.as_bytes();
        attack("names", &|out| {
            let place = [start, out.as_bytes(), b"/x"].concat();
            vec![file("x", "1").named(&place).file("../../../../../../../tmp/transload-escaped", "2")]
        });
    }
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
    for target in ["Cargo.toml", "etc/passwd"] {
        both_refused(target, |_| several([layer().hardlink("h", target)]));
    }
    if root() {
        let (tree, _) =
            both_import("a twin", &several([file("Cargo.toml", "its own").hardlink("h", "Cargo.toml")]));
        has(&tree, "h file");
    }
}

#[test]
fn t2_a_directory_that_is_said_twice_gets_its_last_mode() {
    if !root() {
        return;
    }
    let twice = dir("d").mode(0o700).symlink("l", "d").file("d/x", "1").dir("d").mode(0o711).owner(7, 8);
    let (tree, _) = both_import("a directory twice", &several([twice]));
    has(&tree, "d dir 0711 7:8");
    has(&tree, "l link");
}

#[test]
fn t7_absolute_names_and_dots_land_at_the_root() {
    if !root() {
        return;
    }
    let names = [&b"/one"[..], b"//two", b"a/../../three", b"..//..//four", b"/../five"];
    let image = several([names.iter().fold(layer(), |layer, name| layer.file("x", "1").named(name))]);
    let (tree, _) = both_import("absolute names and dots", &image);
    for name in ["one", "two", "three", "four", "five"] {
        has(&tree, &format!("{name} file"));
    }
}

#[test]
fn t8_whiteouts_without_a_name_are_refused() {
    for name in [".wh.", "d/.wh.", ".wh..", "d/.wh...", "d/.wh.."] {
        both_refused(name, |_| several([layer().file(name, "")]));
    }
    if root() {
        let layers = [file("d/..x", "1").file("d/kept", "2"), layer().whiteout("d/..x")];
        let (tree, _) = both_import("a name that begins with dots", &several(layers));
        has(&tree, "d/kept file");
        lacks(&tree, "d/..x");
    }
}

#[test]
fn t23_the_store_is_private_whatever_the_umask() {
    let house = House::new();
    let path = house.dir.path().join("archive");
    std::fs::write(&path, one(file("su", "1").mode(0o4755))).expect("an archive");
    let script = "umask 0; exec \"$0\" --store \"$1\" import \"$2\"";
    let mut shell = std::process::Command::new("sh");
    shell.args(["-c", script]).arg(support::run::program()).arg(house.store()).arg(&path);
    support::run::run(&mut shell).ok();
    let mode = std::fs::metadata(house.store()).expect("a store").permissions().mode();
    assert_eq!(mode & 0o7777, 0o700);
    if !root() {
        return;
    }
    // The file has its bit, as an image must; another user does not come to it.
    std::fs::set_permissions(house.dir.path(), PermissionsExt::from_mode(0o755)).expect("its owner");
    let su = find(&house.store().join("trees"), "su");
    let su = su.to_str().expect("text");
    let reach = |uid: u32| {
        let mut look = std::process::Command::new("stat");
        support::run::run(look.args(["-c", "%a", su]).uid(uid)).text()
    };
    assert_eq!((reach(0).as_str(), reach(65534).as_str()), ("4755\n", ""));
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
    let (tree, _) = both_import("xattrs", &several([steering.file("d/below", "3"), above]));
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
    let layers =
        [file("etc/shadow", "secret"), layer().char_device("etc/shadow", 0, 0).block_device("disk", 8, 0)];
    let (tree, json) = both_import("0:0", &several(layers));
    has(&tree, "etc/shadow file");
    has(&tree, "disk block");
    assert!(json.to_string().contains("a device 0:0"), "{json}");
}

/// A tool that keeps no devices leaves the same out.
#[test]
fn t25_a_link_to_a_device_that_is_left_out_is_left_out_too() {
    if !root() {
        return;
    }
    let null = layer().char_device("null", 0, 0).char_device("far", 1 << 12, 0);
    let layers = [null.hardlink("one", "null").hardlink("two", "far").file("kept", "1")];
    let (tree, json) = both_import("links to devices", &several(layers));
    has(&tree, "kept file");
    lacks(&tree, "one");
    lacks(&tree, "two");
    assert!(json.to_string().contains("a hard link to a device that was left out"), "{json}");
}

/// It is the layer that is wrong, not the machine: exit code 3.
#[test]
fn t24_attributes_that_cannot_be_are_the_inputs_fault() {
    if !root() {
        return;
    }
    let named =
        |name: &'static str, value: Vec<u8>| move |_: &House| several([file("a", "1").xattr(name, &value)]);
    both_refused("an access list that is none", named("system.posix_acl_access", b"zz".to_vec()));
    both_refused("capabilities that are none", named("security.capability", b"zz".to_vec()));
    both_refused("an attribute without a name", named("user.", b"1".to_vec()));
    both_refused("an attribute of 70,000 bytes", named("user.large", vec![b'z'; 70_000]));
    // How much a file may have beside its content is for the filesystem to say; a full disk is something else.
    both_harmless("an attribute of 5,000 bytes", named("user.large", vec![b'z'; 5000]));
}

#[test]
fn t25_a_device_whose_number_the_kernel_would_cut_to_0_0_deletes_nothing() {
    if !root() {
        return;
    }
    for (major, minor) in [(4096, 0), (0, 1 << 20), (8192, 1 << 20)] {
        let layers =
            [file("etc/shadow", "secret"), layer().char_device("etc/shadow", major, minor).file("own", "1")];
        let (tree, json) = both_import("cut to 0:0", &several(layers));
        has(&tree, "etc/shadow file");
        has(&tree, "own file");
        assert!(json.to_string().contains("no kernel has"), "{json}");
    }
}

#[test]
fn b10_t25_devices_without_privilege_are_left_out_and_reported() {
    if !root() {
        return;
    }
    let layers = [file("dev/kept", "1").char_device("dev/null", 1, 3).block_device("dev/sda", 8, 0)];
    for bytes in [several(layers.clone()).oci(), several(layers).docker()] {
        let house = House::new();
        let home = house.dir.path().join("home");
        std::fs::create_dir(&home).expect("a directory");
        std::fs::set_permissions(house.dir.path(), PermissionsExt::from_mode(0o755)).expect("its owner");
        std::os::unix::fs::chown(&home, Some(65534), Some(65534)).expect("gives away");
        // Where the tests are built others may not look.
        let program = house.dir.path().join("transload");
        std::fs::copy(support::run::program(), &program).expect("a copy of the program");
        let words = ["--json", "--store", "store", "import", "-"];
        let mut import = std::process::Command::new(&program);
        import.args(words).current_dir(&home).uid(65534).gid(65534);
        let ran = support::run::run_with_input(&mut import, &bytes);
        if ran.stderr.contains("user namespace") {
            skip("no user namespaces without root");
            return;
        }
        let json = ran.ok().json();
        assert!(json.to_string().contains("a device cannot be made without privilege"), "{json}");
        let place = home.join("store/trees");
        assert_eq!(std::fs::read(find(&place, "kept")).expect("the file"), b"1");
        assert!(!find(&place, "kept").with_file_name("null").exists());
    }
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
    let image = several(layers);
    let mut trees = Vec::new();
    for bytes in [image.oci(), image.docker()] {
        for (threads, way) in
            ["1", "2", "8"].iter().flat_map(|n| [Way::File, Way::GzipStdin].map(|way| (n, way)))
        {
            let house = House::new();
            house.import(way, &bytes, &["--threads", threads]).ok();
            trees.push(house.tree(NAME));
        }
    }
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
    let long = "d".repeat(255);
    let odd =
        file("new\nline", "1").file("b\\ack", "2").file("\u{fc}", "3").file("x", "4").named(b"\xff\xfe");
    let (tree, _) = both_import("names", &several([odd.file(&long, "5")]));
    for name in ["new\\x0aline", "\\xff\\xfe", &long] {
        has(&tree, &format!("{name} file"));
    }
    for (what, name) in [
        ("4097 bytes", format!("{}x", "d/".repeat(2048))),
        ("300 components", format!("{}x", "d/".repeat(299))),
        ("a NUL", format!("{}\0x", "d".repeat(120))),
        ("a long component", "d".repeat(256)),
    ] {
        both_refused(what, |_| several([file(&name, "1")]));
    }
}

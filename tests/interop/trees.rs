//! The tree of an image: as containerd's overlay shows it, as umoci unpacks it except where docs/tree-semantics.md says
//! why not, and the same however it is made.

use std::collections::HashMap;
use std::path::Path;
use std::time::SystemTime;

use serde_json::Value;

use crate::support::image::{Image, Layer, Pack, dir, file, image, layer};
use crate::support::listing::{assert_same, difference_but_for_now, listing};
use crate::support::mounts::Unmount;
use crate::support::run::{run, transload};
use crate::support::scratch;
use crate::support::tools::{Daemon, have, skopeo_copy, umoci_unpack};
use crate::{all_foreign, list, strings, text_of};

/// What the two reference tools make of one image; None where a tool cannot unpack it.
pub struct Oracle {
    pub umoci: Option<Vec<String>>,
    pub containerd: Option<Vec<String>>,
}

/// Asks both tools about the image at `reference`, an argument for skopeo.
fn ask(scratch: &Path, daemon: &mut Daemon, number: usize, reference: &str) -> Oracle {
    let layout = scratch.join(format!("layout-{number}"));
    let gzip = ["--dest-compress", "--dest-compress-format", "gzip"];
    skopeo_copy(scratch, &gzip, reference, &format!("oci:{}:x", layout.display()));
    let umoci = Some(listing(&umoci_unpack(&layout, "x", &scratch.join(format!("umoci-{number}")))));
    let name = format!("docker.io/test/tree:{number}");
    let archive = scratch.join(format!("for-containerd-{number}.tar"));
    skopeo_copy(
        scratch,
        &[],
        &format!("oci:{}:x", layout.display()),
        &format!("oci-archive:{}:{name}", archive.display()),
    );
    run(&mut daemon.ctr(&["images", "import", "--no-unpack", &archive.to_string_lossy()])).ok();
    let at = scratch.join(format!("containerd-mount-{number}"));
    let containerd = daemon.mount_image(&name, &at).then(|| listing(&at));
    Oracle { umoci, containerd }
}

/// Where umoci and containerd disagree, and whom we follow: the sections of docs/tree-semantics.md, tested.
struct Disagreement {
    about: &'static str,
    follows: Tool,
    concerns: fn(name: &str) -> bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Tool {
    Umoci,
    Containerd,
}

const DISAGREEMENTS: [Disagreement; 4] = [
    Disagreement { about: "the root's own entry", follows: Tool::Umoci, concerns: |name| name == "." },
    Disagreement {
        about: "times before 1970",
        follows: Tool::Umoci,
        concerns: |name| name == "usr/share/labelled",
    },
    Disagreement {
        about: "a path through a lower layer's symlink",
        follows: Tool::Containerd,
        concerns: |name| name.starts_with("merged/"),
    },
    Disagreement {
        about: "an opaque mark on the root",
        follows: Tool::Containerd,
        concerns: |name| name == "below-the-root-mark",
    },
];

/// Fails unless our tree is the one both tools show, or, where they disagree, the documented one of the two.
#[track_caller]
pub fn assert_as_documented(what: &str, ours: &[String], oracle: &Oracle, start: SystemTime) {
    let mut surprises = Vec::new();
    for (tool, theirs) in [(Tool::Containerd, &oracle.containerd), (Tool::Umoci, &oracle.umoci)] {
        let Some(theirs) = theirs else { continue };
        let name = if tool == Tool::Umoci { "umoci" } else { "containerd" };
        for line in difference_but_for_now(ours, theirs, start) {
            let entry = line[2..].split(' ').next().unwrap_or_default();
            let known = DISAGREEMENTS.iter().any(|known| known.follows != tool && (known.concerns)(entry));
            if !known {
                surprises.push(format!("{name}: {line}"));
            }
        }
    }
    assert!(surprises.is_empty(), "{what}: - is ours, + is theirs:\n{}", surprises.join("\n"));
}

#[test]
fn every_documented_disagreement_has_its_section() {
    let document = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/tree-semantics.md"))
        .expect("the document");
    for known in DISAGREEMENTS {
        let heading =
            document.lines().any(|line| line.starts_with('#') && line.to_lowercase().contains(known.about));
        assert!(heading, "docs/tree-semantics.md has no section about {}", known.about);
    }
}

#[test]
fn unpacked_trees_equal_containerds_and_umocis() {
    if !have(&["skopeo", "umoci", "containerd", "ctr", "gzip", "zstd", "xz", "bzip2"]) {
        return;
    }
    let scratch = scratch();
    let mut daemon = Daemon::containerd(scratch.path());
    let start = SystemTime::now();
    let mut oracles: HashMap<Vec<String>, Oracle> = HashMap::new();
    let mut archives = all_foreign();
    // skopeo does not read the oldest format; it shares its layers with one that skopeo does read.
    archives.sort_by_key(|archive| archive.kind == "docker-legacy");
    for archive in &archives {
        let plain = archive.plain(scratch.path());
        let store = scratch.path().join(format!("store-{}", archive.file));
        let report = transload(&store, ["import", "--json", &archive.path().to_string_lossy()]).ok().json();
        for (number, expected) in archive.images.iter().enumerate() {
            let diff_ids = strings(&expected["diff_ids"]);
            if !oracles.contains_key(&diff_ids) {
                let reference = archive.skopeo_reference(&plain, number);
                let count = oracles.len();
                let oracle = ask(scratch.path(), &mut daemon, count, &reference);
                oracles.insert(diff_ids.clone(), oracle);
            }
            let oracle = &oracles[&diff_ids];
            let ours = list(&report["images"]).into_iter().find(|image| crate::diff_ids(image) == diff_ids);
            let ours = ours.unwrap_or_else(|| panic!("{}: image {number} is not reported", archive.file));
            let at = scratch.path().join(format!("unpacked-{}-{number}", archive.file));
            transload(&store, ["unpack", &reference(&ours), &at.to_string_lossy()]).ok();
            let unpacked = listing(&at);
            assert_as_documented(&archive.file, &unpacked, oracle, start);
        }
    }
}

/// How our commands call an image of a report.
fn reference(image: &Value) -> String {
    image["name"].as_str().map_or_else(|| text_of(&image["target"]), str::to_owned)
}

#[test]
fn a_mounted_image_equals_the_unpacked_one() {
    if !have(&[]) {
        return;
    }
    for file in [
        "skopeo-docker.tar",
        "buildah-docker.tar",
        "docker-save.tar",
        "umoci-repacked.tar",
        "skopeo-oci-twice.tar",
    ] {
        let scratch = scratch();
        let store = scratch.path().join("store");
        let path = crate::foreign().join(file).to_string_lossy().into_owned();
        transload(&store, ["import", "--tag", "test/mounted:1", &path]).ok();
        let unpacked = scratch.path().join("unpacked");
        transload(&store, ["unpack", "test/mounted:1", &unpacked.to_string_lossy()]).ok();
        let mounted = scratch.path().join("mounted");
        std::fs::create_dir(&mounted).expect("a mount point");
        transload(&store, ["mount", "test/mounted:1", &mounted.to_string_lossy()]).ok();
        let unmount = Unmount(mounted.clone());
        assert_same(&format!("{file}: mounted and unpacked"), &listing(&mounted), &listing(&unpacked));
        transload(&store, ["umount", &mounted.to_string_lossy()]).ok();
        drop(unmount);
        assert!(listing(&mounted).len() == 1, "{file}: umount leaves an empty mount point");
    }
}

#[test]
fn the_number_of_threads_does_not_change_the_tree() {
    if !have(&[]) {
        return;
    }
    for image in awkward_images() {
        let (what, image) = image;
        let scratch = scratch();
        let archive = scratch.path().join("image.tar");
        std::fs::write(&archive, image.name("test/threads:1").oci()).expect("an archive");
        let tree = |threads: &str| {
            let store = scratch.path().join(format!("store-{threads}"));
            let at = scratch.path().join(format!("tree-{threads}"));
            transload(&store, ["import", "--threads", threads, &archive.to_string_lossy()]).ok();
            transload(&store, ["unpack", "test/threads:1", &at.to_string_lossy()]).ok();
            listing(&at)
        };
        assert_same(&format!("{what}: one thread and eight"), &tree("1"), &tree("8"));
    }
}

#[test]
fn awkward_images_unpack_and_mount_as_the_reference_tools_show_them() {
    if !have(&["skopeo", "umoci", "containerd", "ctr"]) {
        return;
    }
    let scratch = scratch();
    let mut daemon = Daemon::containerd(scratch.path());
    let start = SystemTime::now();
    for (number, (what, image)) in awkward_images().into_iter().enumerate() {
        let archive = scratch.path().join(format!("image-{number}.tar"));
        std::fs::write(&archive, image.name("docker.io/test/awkward:1").oci()).expect("an archive");
        let reference = format!("oci-archive:{}:docker.io/test/awkward:1", archive.display());
        let oracle = ask(scratch.path(), &mut daemon, number, &reference);
        let lower_link = what.starts_with("a hard link to a file of a lower layer");
        assert_eq!(oracle.containerd.is_none(), lower_link, "{what}: what containerd can unpack has changed");

        let store = scratch.path().join(format!("store-{number}"));
        transload(&store, ["import", &archive.to_string_lossy()]).ok();
        let unpacked = scratch.path().join(format!("unpacked-{number}"));
        transload(&store, ["unpack", "test/awkward:1", &unpacked.to_string_lossy()]).ok();
        assert_as_documented(&format!("{what}, unpacked"), &listing(&unpacked), &oracle, start);
        let mounted = scratch.path().join(format!("mounted-{number}"));
        std::fs::create_dir(&mounted).expect("a mount point");
        transload(&store, ["mount", "test/awkward:1", &mounted.to_string_lossy()]).ok();
        let _unmount = Unmount(mounted.clone());
        assert_as_documented(&format!("{what}, mounted"), &listing(&mounted), &oracle, start);
    }
}

/// Images that go wrong when layers are unpacked without their parents; each is named after what it tests.
fn awkward_images() -> Vec<(&'static str, Image)> {
    let three = |a: Layer, b: Layer, c: Layer| image().layer(a).layer(b).layer(c);
    let odd = (1_600_000_000, 123_456_789);
    vec![
        (
            "an implicit directory takes nothing from the directory below",
            three(
                dir("/usr")
                    .owner(3, 4)
                    .mode(0o750)
                    .mtime(odd.0, odd.1)
                    .xattr("user.kept", "yes")
                    .file("/usr/old", "1"),
                file("/usr/share/new", "2"),
                file("/opt/deep/er/x", "3"),
            ),
        ),
        (
            "a hard link to a file of a lower layer",
            three(
                dir("/a")
                    .file("/a/one", "data")
                    .owner(5, 6)
                    .mode(0o4755)
                    .xattr("user.note", "n")
                    .mtime(odd.0, odd.1),
                layer().dir("/b").hardlink("/b/two", "/a/one"),
                layer().dir("/c").hardlink("/c/three", "/b/two"),
            ),
        ),
        (
            "a path through a lower layer's symlink",
            image()
                .layer(
                    dir("/merged")
                        .dir("/merged/usr")
                        .dir("/merged/usr/lib")
                        .file("/merged/usr/lib/a", "1")
                        .symlink("/merged/lib", "usr/lib"),
                )
                .layer(file("/merged/lib/b", "2")),
        ),
        (
            "a symlink replaced by a directory entry",
            three(
                dir("/usr").dir("/usr/lib").file("/usr/lib/a", "1").symlink("/lib", "usr/lib"),
                dir("/lib").file("/lib/b", "2"),
                dir("/lib").file("/lib/c", "3"),
            ),
        ),
        (
            "absolute and dangling symlinks on the way inside one layer",
            image().layer(
                dir("/real")
                    .symlink("/absolute", "/real")
                    .file("/absolute/x", "1")
                    .symlink("/up", "../../../real")
                    .file("/up/y", "2"),
            ),
        ),
        (
            "whiteouts before and after their siblings",
            three(
                dir("/d").file("/d/a", "1").file("/d/b", "2").file("/d/c", "3"),
                layer().dir("/d").whiteout("/d/a").file("/d/b", "new").whiteout("/d/c"),
                layer().dir("/d").file("/d/a", "back"),
            ),
        ),
        (
            "an opaque directory hides what is below and not its own layer",
            three(
                dir("/d").file("/d/a", "1").dir("/d/sub").file("/d/sub/x", "1"),
                layer().dir("/d").file("/d/own", "2").opaque("/d").file("/d/later", "3"),
                layer().dir("/d").dir("/d/sub").file("/d/sub/y", "2"),
            ),
        ),
        (
            "an opaque mark on the root hides nothing",
            image().layer(file("/below-the-root-mark", "1")).layer(layer().opaque("").file("/own", "2")),
        ),
        (
            "a hard link to a file of a lower layer whose name has another file later",
            three(
                dir("/a").file("/a/one", "old").dir("/b").file("/b/in", "1"),
                layer().dir("/a").hardlink("/c", "/a/one").file("/a/one", "new").hardlink("/b", "/c"),
                file("/d", "2"),
            ),
        ),
        (
            "directories become files and files directories",
            three(
                dir("/x").file("/x/in", "1").file("/y", "1").symlink("/z", "x"),
                file("/x", "now a file").dir("/y").file("/y/in", "2").dir("/z").file("/z/in", "3"),
                layer().dir("/x").file("/x/again", "4").whiteout("/y"),
            ),
        ),
        (
            "a deleted directory comes back empty",
            three(dir("/d").file("/d/a", "1"), layer().whiteout("/d"), layer().dir("/d").mode(0o700)),
        ),
        ("one layer twice", {
            let l = dir("/d").file("/d/a", "1");
            three(l.clone(), layer().whiteout("/d/a"), l)
        }),
        (
            "every packing of a layer",
            image()
                .layer(file("/gzip", "a".repeat(5000)))
                .layer(file("/members", "b".repeat(5000)).packed(Pack::GzipMembers))
                .layer(file("/zstd", "c".repeat(5000)).packed(Pack::Zstd))
                .layer(file("/frames", "d".repeat(5000)).packed(Pack::ZstdFrames))
                .layer(file("/plain", "e".repeat(5000)).packed(Pack::Plain)),
        ),
        (
            "the root's own attributes",
            three(dir("./").mode(0o711).owner(1, 2).mtime(odd.0, odd.1), file("/a", "1"), dir("/b")),
        ),
        (
            "nodes and links",
            image().layer(
                layer()
                    .dir("/dev")
                    .char_device("/dev/null", 1, 3)
                    .fifo("/dev/pipe")
                    .owner(9, 9)
                    .symlink("/dev/link", "/absolute/target")
                    .owner(7, 8)
                    .mtime(odd.0, odd.1)
                    .file("/f", "x")
                    .mode(0o6711)
                    .hardlink("/g", "/f")
                    .mode(0o6711),
            ),
        ),
    ]
}

/// The large real images of `scripts/make-corpus`, where `TRANSLOAD_CORPUS` names their directory. They are not committed, so
/// their absence is no failure, not even where nothing else may be skipped.
#[test]
fn the_corpus_unpacks_as_umoci_unpacks_it() {
    let Some(corpus) = std::env::var_os("TRANSLOAD_CORPUS") else {
        eprintln!("SKIPPED: TRANSLOAD_CORPUS is not set");
        return;
    };
    if !have(&["skopeo", "umoci"]) {
        return;
    }
    let corpus = Path::new(&corpus);
    for (file, tag) in [
        ("debian/debian-oci.tar", "corpus/debian:1"),
        ("debian/debian-docker.tar.gz", "corpus/debian:1"),
        ("debian/debian-oci-zstd.tar", "corpus/debian:zstd"),
        ("many/many-60k-oci.tar", "corpus/many:60k"),
    ] {
        let start = SystemTime::now();
        let scratch = scratch();
        let store = scratch.path().join("store");
        transload(&store, ["import", &corpus.join(file).to_string_lossy()]).ok();
        let ours = scratch.path().join("ours");
        transload(&store, ["unpack", tag, &ours.to_string_lossy()]).ok();
        // umoci reads neither zstd nor docker archives; those are the same image.
        let same = if file.starts_with("debian") {
            ("debian/debian-oci.tar", "corpus/debian:1")
        } else {
            (file, tag)
        };
        let layout = scratch.path().join("layout");
        let from = format!("oci-archive:{}:{}", corpus.join(same.0).display(), same.1);
        skopeo_copy(scratch.path(), &[], &from, &format!("oci:{}:x", layout.display()));
        let theirs = listing(&umoci_unpack(&layout, "x", &scratch.path().join("theirs")));
        let oracle = Oracle { umoci: Some(theirs), containerd: None };
        assert_as_documented(file, &listing(&ours), &oracle, start);
    }
}

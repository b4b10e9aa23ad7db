//! The cases that an importer meets, end to end: what must import does so with one tree by every way in, and what is refused
//! or harmless touches nothing outside, leaves nothing visible, and the next import works.

mod support;

use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use support::image::*;
use support::listing::{assert_same, listing};
use support::run::{Ran, command, run_with_input, transload};
use support::tools::skip;
use tempfile::TempDir;

/// The ways an archive comes in: by path and by stdin, as it is and compressed.
#[derive(Clone, Copy, Debug)]
enum Way {
    File,
    GzipFile,
    Stdin,
    GzipStdin,
}

const WAYS: [Way; 4] = [Way::File, Way::GzipFile, Way::Stdin, Way::GzipStdin];

/// A store, and beside it a directory that nothing may touch.
struct House {
    dir: TempDir,
}

impl House {
    fn new() -> Self {
        let dir = support::scratch();
        let outside = dir.path().join("outside");
        std::fs::create_dir(&outside).expect("a directory");
        std::fs::write(outside.join("victim"), "untouched").expect("a file");
        House { dir }
    }

    fn store(&self) -> PathBuf {
        self.dir.path().join("store")
    }

    fn outside(&self) -> PathBuf {
        self.dir.path().join("outside")
    }

    fn import(&self, way: Way, archive: &[u8], more: &[&str]) -> Ran {
        let archive = match way {
            Way::File | Way::Stdin => archive.to_vec(),
            Way::GzipFile | Way::GzipStdin => gzip(archive),
        };
        let mut words = vec!["--json", "import"];
        words.extend(more);
        match way {
            Way::File | Way::GzipFile => {
                let path = self.dir.path().join("archive");
                std::fs::write(&path, archive).expect("an archive");
                words.push(path.to_str().expect("text"));
                transload(&self.store(), words)
            }
            Way::Stdin | Way::GzipStdin => {
                words.push("-");
                run_with_input(&mut command(&self.store(), words), &archive)
            }
        }
    }

    /// The tree of an image.
    fn tree(&self, name: &str) -> Vec<String> {
        let at = self.dir.path().join("unpacked");
        transload(&self.store(), ["unpack", name, at.to_str().expect("text")]).ok();
        let lines = listing(&at);
        std::fs::remove_dir_all(&at).expect("removes");
        lines
    }

    fn images(&self) -> Vec<Value> {
        let json = transload(&self.store(), ["--json", "images"]).ok().json();
        json["images"].as_array().expect("images").clone()
    }

    /// Nothing is visible, the next import works, and without it nothing stays.
    fn is_clean(&self, what: &str) {
        assert!(self.images().is_empty(), "{what}: {:?}", self.images());
        let good = image().name("example.com/good:1").layer(file("good", "good"));
        self.import(Way::File, &good.oci(), &[]).ok();
        transload(&self.store(), ["rm", "example.com/good:1"]).ok();
        transload(&self.store(), ["gc"]).ok();
        for place in ["blobs/sha256", "trees", "ingest"] {
            let left: Vec<_> = std::fs::read_dir(self.store().join(place))
                .expect("a store")
                .map(|entry| entry.expect("an entry").path())
                .collect();
            assert!(left.is_empty(), "{what}: gc leaves {left:?}");
        }
    }
}

/// Imports by every way in; all give one tree and one manifest.
#[track_caller]
fn imports(what: &str, archive: &[u8], name: &str) -> (Vec<String>, Value) {
    let mut first: Option<(Vec<String>, Value)> = None;
    for way in WAYS {
        let house = House::new();
        let outside = listing(&house.outside());
        let json = house.import(way, archive, &["--audit"]).ok().json();
        let tree = house.tree(name);
        assert_same(what, &outside, &listing(&house.outside()));
        match &first {
            None => first = Some((tree, json)),
            Some((one, report)) => {
                assert_same(&format!("{what} {way:?}"), one, &tree);
                assert_eq!(report["images"][0]["manifest"], json["images"][0]["manifest"], "{what} {way:?}");
            }
        }
    }
    first.expect("there are several ways")
}

/// Refused by every way in, with one sentence and no trace.
#[track_caller]
fn refused(what: &str, build: impl Fn(&House) -> Vec<u8>) {
    for way in WAYS {
        let house = House::new();
        let outside = listing(&house.outside());
        let ran = house.import(way, &build(&house), &[]);
        assert_eq!(ran.code, Some(3), "{what} {way:?}: {}{}", ran.text(), ran.stderr);
        ran.fails(3);
        assert_same(what, &outside, &listing(&house.outside()));
        house.is_clean(&format!("{what} {way:?}"));
    }
}

/// Refused or imported, and harmless either way: unpacked or not, nothing outside changes.
#[track_caller]
fn harmless(what: &str, build: impl Fn(&House) -> Vec<u8>) {
    for way in [Way::File, Way::GzipStdin] {
        let house = House::new();
        let outside = listing(&house.outside());
        let ran = house.import(way, &build(&house), &[]);
        assert!(matches!(ran.code, Some(0 | 3)), "{what} {way:?}: {}{}", ran.text(), ran.stderr);
        for image in house.images() {
            let name = image["name"].as_str().expect("a name").to_string();
            let at = house.dir.path().join("unpacked");
            let ran = transload(&house.store(), ["unpack", &name, at.to_str().expect("text")]);
            assert!(matches!(ran.code, Some(0 | 3)), "{what} {way:?}: {}", ran.stderr);
            transload(&house.store(), ["rm", &name]).ok();
        }
        assert_same(what, &outside, &listing(&house.outside()));
        house.is_clean(&format!("{what} {way:?}"));
    }
}

fn one(layer: Layer) -> Vec<u8> {
    image().name("example.com/a:1").layer(layer).oci()
}

fn several(layers: impl IntoIterator<Item = Layer>) -> Image {
    layers.into_iter().fold(image().name("example.com/a:1"), Image::layer)
}

const NAME: &str = "example.com/a:1";

#[track_caller]
fn has(lines: &[String], start: &str) {
    assert!(lines.iter().any(|line| line.starts_with(start)), "no {start}:\n{}", lines.join("\n"));
}

#[track_caller]
fn lacks(lines: &[String], name: &str) {
    let start = format!("{name} ");
    assert!(!lines.iter().any(|line| line.starts_with(&start)), "{name}:\n{}", lines.join("\n"));
}

fn root() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        skip("not root");
    }
    root
}

#[test]
fn b1_b6_b8_b11_plain_oddities_of_layers_import() {
    if !root() {
        return;
    }
    let odd = layer()
        .dir("./")
        .mode(0o750)
        .file("./a/b/c", "deep")
        .symlink("dangling", "nowhere")
        .symlink("up", "../../../../etc")
        .packed(Pack::Plain)
        .without_end();
    for archive in [several([odd.clone(), layer()]).oci(), several([odd, layer()]).docker()] {
        let (tree, _) = imports("odd", &archive, NAME);
        has(&tree, "a/b/c file");
        has(&tree, "dangling link");
        has(&tree, "up link");
        assert!(tree[0].contains(" dir 0750 "), "{}", tree[0]);
    }
}

#[test]
fn b2_b3_b5_symlinked_directories_import_and_stay_inside() {
    if !root() {
        return;
    }
    let within = layer()
        .dir("usr")
        .dir("usr/lib")
        .symlink("lib", "usr/lib")
        .file("lib/one", "1")
        .symlink("abs", "/usr/lib")
        .file("abs/two", "2")
        .symlink("far", "../../../usr/lib")
        .file("far/three", "3");
    let (tree, _) = imports("within one layer", &one(within), NAME);
    for name in ["one", "two", "three"] {
        has(&tree, &format!("usr/lib/{name} file"));
    }
    let below = layer().dir("usr").dir("usr/lib").symlink("lib", "usr/lib");
    imports("across layers", &several([below, layer().file("lib/one", "1")]).oci(), NAME);
}

#[test]
fn b4_absolute_hard_links_lead_inside() {
    if !root() {
        return;
    }
    let (tree, _) = imports("hard link", &one(file("a", "1").hardlink("b", "/a").hardlink("c", "./a")), NAME);
    has(&tree, "b file");
    assert_eq!(tree.iter().filter(|line| line.contains(" same as a")).count(), 3, "{tree:?}");
}

#[test]
fn b7_a_layer_listed_twice_imports_once() {
    if !root() {
        return;
    }
    let twice = several([file("a", "1"), layer().whiteout("a"), file("a", "1")]);
    for archive in [twice.oci(), twice.docker()] {
        let (tree, json) = imports("twice", &archive, NAME);
        has(&tree, "a file");
        assert_eq!(json["images"][0]["layers"].as_array().map(Vec::len), Some(3));
        assert_eq!(json["trees"]["new"], 2, "{json}");
    }
}

#[test]
fn b9_directories_and_files_replace_each_other() {
    if !root() {
        return;
    }
    let layers = [file("x/inner", "1").file("y", "2"), file("x", "now a file").file("y/inner", "3")];
    let (tree, _) = imports("replaced", &several(layers).docker(), NAME);
    has(&tree, "x file");
    has(&tree, "y dir");
    has(&tree, "y/inner file");
}

#[test]
fn b10_devices_import() {
    if !root() {
        return;
    }
    let (tree, _) = imports("devices", &one(layer().char_device("dev/null", 1, 3).fifo("pipe")), NAME);
    has(&tree, "dev/null char");
    has(&tree, "pipe fifo");
}

/// Changes the manifest of an OCI layout, and what names it.
fn with_manifest(image: &Image, change: impl Fn(&mut Value)) -> Members {
    let old = image.manifest_bytes();
    let mut manifest: Value = serde_json::from_slice(&old).expect("JSON");
    change(&mut manifest);
    let new = manifest.to_string().into_bytes();
    let rename =
        |text: &str| text.replace(&digest(&old)["sha256:".len()..], &digest(&new)["sha256:".len()..]);
    let mut members = image.oci_members();
    for (name, data) in &mut members {
        if *data == old {
            *data = new.clone();
        } else if name == "index.json" {
            let mut index: Value = serde_json::from_slice(data).expect("JSON");
            index["manifests"][0]["size"] = json!(new.len());
            *data = rename(&index.to_string()).into_bytes();
        }
        *name = rename(name);
    }
    members
}

/// Changes the configuration of an OCI layout, and what names it.
fn with_config(image: &Image, change: impl Fn(&mut Value)) -> Members {
    let old = image.config_bytes();
    let mut config: Value = serde_json::from_slice(&old).expect("JSON");
    change(&mut config);
    let new = config.to_string().into_bytes();
    let mut members = with_manifest(image, |manifest| {
        manifest["config"]["digest"] = json!(digest(&new));
        manifest["config"]["size"] = json!(new.len());
    });
    for (name, data) in &mut members {
        if *data == old {
            *name = format!("blobs/sha256/{}", &digest(&new)["sha256:".len()..]);
            *data = new.clone();
        }
    }
    members
}

#[test]
fn b12_an_absent_foreign_layer_is_reported_and_the_image_stored() {
    let foreign = json!({"mediaType": "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
        "digest": digest(b"far away"), "size": 8, "urls": ["http://127.0.0.1:9/never"]});
    let base = several([file("a", "1"), file("b", "2")]);
    let gone = base.oci_members()[0].0.clone();
    let mut members = with_manifest(&base, |manifest| manifest["layers"][0] = foreign.clone());
    members.retain(|(name, _)| *name != gone);
    for way in WAYS {
        let house = House::new();
        let json = house.import(way, &archive(&members), &[]).ok().json();
        assert_eq!(json["skipped"][0]["descriptor"], digest(b"far away").as_str(), "{way:?}: {json}");
        assert_eq!(house.images().len(), 1);
    }
}

#[test]
fn b13_names_with_a_leading_dot_import() {
    if !root() {
        return;
    }
    let members: Members =
        several([file("a", "1")]).oci_members().into_iter().map(|(n, d)| (format!("./{n}"), d)).collect();
    let (tree, _) = imports("dots", &archive(&members), NAME);
    has(&tree, "a file");
}

/// A docker archive of older days: `<id>/layer.tar` or what `layer_name` says, packed as asked, and a configuration
/// whose name has a prefix.
fn flat_docker(image: &Image, layers: &[Layer], suffix: &str, config_name: &str) -> Vec<u8> {
    let names: Vec<String> = (0..layers.len()).map(|at| format!("{at:064}{suffix}")).collect();
    let mut members: Members = names.iter().cloned().zip(layers.iter().map(Layer::blob)).collect();
    members.push((config_name.into(), image.config_bytes()));
    let manifest = json!([{"Config": config_name, "RepoTags": [NAME], "Layers": names}]);
    members.push(("manifest.json".into(), manifest.to_string().into_bytes()));
    archive(&members)
}

#[test]
fn b15_b20_flat_archives_with_layers_of_every_packing_import() {
    if !root() {
        return;
    }
    for pack in [Pack::Plain, Pack::Gzip, Pack::GzipMembers, Pack::Zstd, Pack::ZstdFrames] {
        let layers =
            [file("a", vec![7; 5000]).packed(pack), layer().whiteout("a").file("b", "2").packed(pack)];
        let image = several(layers.clone());
        let config = digest(&image.config_bytes());
        for (suffix, config) in
            [(".tar.gz", config.clone()), ("/layer.tar", format!("{}.json", &config[7..])), (".tar", config)]
        {
            let (tree, _) = imports(suffix, &flat_docker(&image, &layers, suffix, &config), NAME);
            has(&tree, "b file");
            lacks(&tree, "a");
        }
        let (tree, _) = imports("oci", &image.oci(), NAME);
        has(&tree, "b file");
    }
}

/// A layer as stargz-snapshotter makes one: a gzip member for each entry, the table of contents as the last entry, and a
/// footer that is an empty member with the table's place in its extra field.
fn estargz(entries: &[Layer]) -> (Vec<u8>, Vec<u8>) {
    let toc = file("stargz.index.json", r#"{"version":1,"entries":[]}"#);
    let mut blob = Vec::new();
    let mut tar = Vec::new();
    for entry in entries {
        let entry = entry.clone().without_end().tar();
        blob.extend(gzip(&entry));
        tar.extend(entry);
    }
    let place = blob.len();
    let toc = toc.tar();
    blob.extend(gzip(&toc));
    tar.extend(toc);
    let mut footer = vec![0x1f, 0x8b, 8, 4, 0, 0, 0, 0, 0, 255, 26, 0, b'S', b'G', 22, 0];
    footer.extend(format!("{place:016x}STARGZ").as_bytes());
    footer.extend([1, 0, 0, 255, 255]);
    footer.extend([0; 8]);
    assert_eq!(footer.len(), 51);
    blob.extend(footer);
    (blob, tar)
}

#[test]
fn b20_estargz_imports() {
    if !root() {
        return;
    }
    let (blob, tar) = estargz(&[file("a", "1"), file("d/b", vec![3; 9000])]);
    let placeholder = several([file("placeholder", "")]);
    let old_config = digest(&placeholder.config_bytes());
    let mut config: Value = serde_json::from_slice(&placeholder.config_bytes()).expect("JSON");
    config["rootfs"]["diff_ids"] = json!([digest(&tar)]);
    let config = config.to_string().into_bytes();
    let mut members = with_manifest(&placeholder, |manifest| {
        manifest["config"]["digest"] = json!(digest(&config));
        manifest["config"]["size"] = json!(config.len());
        manifest["layers"][0]["digest"] = json!(digest(&blob));
        manifest["layers"][0]["size"] = json!(blob.len());
    });
    members.retain(|(name, _)| !name.ends_with(&old_config[7..]));
    members[0] = (format!("blobs/sha256/{}", &digest(&blob)[7..]), blob);
    members.push((format!("blobs/sha256/{}", &digest(&config)[7..]), config));
    let (tree, _) = imports("estargz", &archive(&members), NAME);
    has(&tree, "a file");
    has(&tree, "d/b file");
}

#[test]
fn b16_several_images_in_one_archive_import() {
    if !root() {
        return;
    }
    let shared = file("shared", "1");
    let first = image().name(NAME).layer(shared.clone());
    let second =
        image().name("example.com/b:2").name("example.com/b:3").layer(shared).layer(file("own", "2"));
    let both = [first, second];
    for bytes in [archive(&oci_members(&both)), archive(&docker_members(&both))] {
        for way in WAYS {
            let house = House::new();
            house.import(way, &bytes, &["--audit"]).ok();
            assert_eq!(house.images().len(), 3, "{way:?}");
            has(&house.tree("example.com/b:3"), "own file");
            lacks(&house.tree(NAME), "own");
        }
    }
}

#[test]
fn b17_of_a_sparse_index_the_present_platforms_import() {
    let images = ["amd64", "arm64"].map(|arch| image().architecture(arch).layer(file("for", arch)));
    let [here, gone] = &images;
    let list = json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests":
        images.iter().map(|image| json!({"mediaType": "application/vnd.oci.image.manifest.v1+json",
            "digest": digest(&image.manifest_bytes()), "size": image.manifest_bytes().len(),
            "platform": {"os": "linux", "architecture": if std::ptr::eq(image, here) { "amd64" } else { "arm64" }}}))
            .collect::<Vec<_>>()}).to_string().into_bytes();
    let index = json!({"schemaVersion": 2, "manifests": [{"mediaType": "application/vnd.oci.image.index.v1+json",
        "digest": digest(&list), "size": list.len(), "annotations": {"org.opencontainers.image.ref.name": NAME}}]});
    let mut members = oci_members(&images);
    members.retain(|(name, _)| name != "index.json");
    members.push((format!("blobs/sha256/{}", &digest(&list)[7..]), list.clone()));
    members.push(("index.json".into(), index.to_string().into_bytes()));
    let mut sparse = members.clone();
    sparse.retain(|(_, data)| *data != gone.manifest_bytes() && *data != gone.config_bytes());
    for way in WAYS {
        let house = House::new();
        let json = house.import(way, &archive(&sparse), &["--all-platforms"]).ok().json();
        assert_eq!(json["images"].as_array().map(Vec::len), Some(1), "{way:?}: {json}");
        assert_eq!(json["images"][0]["target"], digest(&list).as_str(), "the index stays as it is");
        assert_eq!(json["skipped"][0]["descriptor"], digest(&gone.manifest_bytes()).as_str());
        let house = House::new();
        let json = house.import(way, &archive(&members), &["--all-platforms"]).ok().json();
        assert_eq!(json["images"].as_array().map(Vec::len), Some(2), "{way:?}: {json}");
    }
}

#[test]
fn b18_legacy_archives_with_repositories_only_import() {
    if !root() {
        return;
    }
    let (bottom, top) = ("1".repeat(64), "2".repeat(64));
    let v1 = |id: &str, parent: Option<&str>| {
        let mut v1 =
            json!({"id": id, "os": "linux", "architecture": "amd64", "created": "2014-01-01T00:00:00Z"});
        if let Some(parent) = parent {
            v1["parent"] = json!(parent);
        }
        v1.to_string().into_bytes()
    };
    let members: Members = vec![
        (format!("{top}/json"), v1(&top, Some(&bottom))),
        (format!("{top}/VERSION"), b"1.0".to_vec()),
        (format!("{top}/layer.tar"), layer().whiteout("a").file("b", "2").tar()),
        (format!("{bottom}/json"), v1(&bottom, None)),
        (format!("{bottom}/VERSION"), b"1.0".to_vec()),
        (format!("{bottom}/layer.tar"), file("a", "1").tar()),
        ("repositories".into(), json!({"example.com/a": {"1": top}}).to_string().into_bytes()),
    ];
    let (tree, _) = imports("legacy", &archive(&members), NAME);
    has(&tree, "b file");
    lacks(&tree, "a");
}

#[test]
fn b19_t28_layers_that_are_symlinks_to_layers_import() {
    if !root() {
        return;
    }
    let shared = file("a", "1");
    let image = several([shared.clone(), layer().whiteout("a"), shared.clone()]);
    let config = format!("{}.json", &digest(&image.config_bytes())[7..]);
    let manifest = json!([{"Config": config, "RepoTags": [NAME], "Layers": ["0/layer.tar", "1/layer.tar", "2/layer.tar"]}]);
    let tar = |target: &str| {
        layer()
            .file("0/layer.tar", shared.tar())
            .file("1/layer.tar", layer().whiteout("a").tar())
            .symlink("2/layer.tar", target)
            .symlink("3/layer.tar", "../0/layer.tar")
            .file(&config, image.config_bytes())
            .file("manifest.json", manifest.to_string())
            .tar()
    };
    for target in ["../0/layer.tar", "../3/layer.tar"] {
        let (tree, _) = imports(target, &tar(target), NAME);
        has(&tree, "a file");
    }
    for target in ["../2/layer.tar", "../../../../../../etc/passwd", "/etc/passwd"] {
        refused(target, |_| tar(target));
    }
}

#[test]
fn an_image_without_layers_imports_and_unpacks_to_an_empty_tree() {
    if !root() {
        return;
    }
    for bytes in [several([]).oci(), several([]).docker()] {
        for way in WAYS {
            let house = House::new();
            house.import(way, &bytes, &["--audit"]).ok();
            assert_eq!(house.tree(NAME).len(), 1, "{way:?}");
        }
    }
}

#[test]
fn one_tree_under_two_compressions_in_one_image_is_extracted_once() {
    if !root() {
        return;
    }
    let image = several([
        file("a", "1").packed(Pack::Gzip),
        layer().whiteout("a"),
        file("a", "1").packed(Pack::Zstd),
    ]);
    let (tree, json) = imports("two compressions", &image.oci(), NAME);
    has(&tree, "a file");
    assert_eq!(json["trees"]["new"], 2, "{json}");
}

#[test]
fn t1_t2_t4_t6_t7_links_lead_nowhere_outside() {
    if !root() {
        return;
    }
    let attack = |what: &str, build: &dyn Fn(&str) -> Vec<Layer>| {
        harmless(what, |house| several(build(house.outside().to_str().expect("text"))).oci());
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
fn t12_sizes_that_lie_are_refused() {
    let sample = || several([file("a", "1")]);
    for change in [json!(-1), json!("1"), json!(u64::MAX)] {
        refused("a size", |_| {
            archive(&with_manifest(&sample(), |m| m["layers"][0]["size"] = change.clone()))
        });
    }
    for by in [-1_i64, 1] {
        refused("one off", |_| {
            archive(&with_manifest(&sample(), |m| {
                m["layers"][0]["size"] = json!(m["layers"][0]["size"].as_i64().expect("a size") + by);
            }))
        });
    }
}

#[test]
fn t13_a_document_with_both_shapes_is_refused_and_one_without_a_type_imports() {
    let sample = || several([file("a", "1")]);
    let untyped = with_manifest(&sample(), |m| {
        m.as_object_mut().expect("an object").remove("mediaType");
    });
    House::new().import(Way::File, &archive(&untyped), &[]).ok();
    refused("both shapes", |_| archive(&with_manifest(&sample(), |m| m["manifests"] = json!([]))));
    refused("a type against the shape", |_| {
        archive(&with_manifest(&sample(), |m| {
            m["mediaType"] = json!("application/vnd.oci.image.index.v1+json")
        }))
    });
    refused("keys that stand twice", |_| {
        let mut members = sample().oci_members();
        for (name, data) in &mut members {
            if name == "index.json" {
                let text = String::from_utf8(data.clone()).expect("text");
                *data = text.replacen('{', r#"{"manifests":[],"#, 1).into_bytes();
            }
        }
        archive(&members)
    });
}

#[test]
fn t14_digests_that_are_none_are_refused() {
    let upper = format!("sha256:{}", "A".repeat(64));
    for text in ["sha256:../../x", "sha256:abc", upper.as_str(), "md5:d41d8cd98f00b204e9800998ecf8427e", ""] {
        refused(text, |_| {
            archive(&with_manifest(&several([file("a", "1")]), |m| m["layers"][0]["digest"] = json!(text)))
        });
    }
}

#[test]
fn t15_a_claim_to_anothers_tree_is_refused_also_if_the_store_has_it() {
    let honest = several([file("a", "1")]);
    let other = several([file("b", "2")]);
    let stolen = honest.diff_ids();
    let liar = archive(&with_config(&other, |config| config["rootfs"]["diff_ids"] = json!(stolen)));
    refused("alone", |_| liar.clone());
    for way in WAYS {
        let house = House::new();
        house.import(Way::File, &honest.oci(), &["--tag", "example.com/honest:1"]).ok();
        house.import(way, &liar, &[]).fails(3);
        house.import(Way::File, &other.oci(), &["--tag", "example.com/other:1"]).ok();
        house.import(way, &liar, &[]).fails(3);
        assert_eq!(house.images().len(), 2);
    }
}

#[test]
fn t15_a_blob_listed_twice_with_two_diff_ids_is_refused() {
    let twice = several([file("a", "1"), file("a", "1")]);
    let wrong = digest(b"another");
    let lie = || archive(&with_config(&twice, |config| config["rootfs"]["diff_ids"][1] = json!(wrong)));
    refused("two DiffIDs for one blob", |_| lie());
}

#[test]
fn t15_two_images_that_disagree_about_one_layer_are_refused() {
    let first = image().name(NAME).layer(file("a", "1"));
    let second = image().name("example.com/b:1").config(json!({"User": "1"})).layer(file("a", "1"));
    let lie = || {
        let mut members =
            with_config(&second, |config| config["rootfs"]["diff_ids"][0] = json!(digest(b"x")));
        let named = |members: &Members| -> Value {
            let (_, data) = members.iter().find(|(name, _)| name == "index.json").expect("an index");
            serde_json::from_slice(data).expect("JSON")
        };
        let mut index = named(&members);
        let also = named(&first.oci_members())["manifests"][0].clone();
        index["manifests"].as_array_mut().expect("manifests").insert(0, also);
        members.retain(|(name, _)| name != "index.json");
        let have: Vec<String> = members.iter().map(|(name, _)| name.clone()).collect();
        members.extend(
            first.oci_members().into_iter().filter(|(name, _)| name != "index.json" && !have.contains(name)),
        );
        members.push(("index.json".into(), index.to_string().into_bytes()));
        archive(&members)
    };
    refused("two images, one layer, two DiffIDs", |_| lie());
}

#[test]
fn t18_an_archive_cut_anywhere_leaves_the_next_import_free() {
    let image = several([file("a", vec![1; 3000])]);
    let whole = image.docker();
    let house = House::new();
    // What follows manifest.json is only the end.
    let needed = whole.len() - 1024;
    for end in (0..needed).step_by(509) {
        for way in [Way::File, Way::GzipStdin] {
            house.import(way, &whole[..end], &[]).fails(3);
        }
    }
    let packed = gzip(&whole);
    for end in (1..packed.len()).step_by(97) {
        house.import(Way::Stdin, &packed[..end], &[]).fails(3);
    }
    house.is_clean("truncated");
    house.import(Way::GzipStdin, &whole, &[]).ok();
}

#[test]
fn t19_t20_cycles_and_diamonds_end_soon() {
    let base = several([file("a", "1")]);
    let diamond = |levels: usize| {
        let manifest = base.manifest_bytes();
        let mut members = base.oci_members();
        members.retain(|(name, _)| name != "index.json");
        let mut below = json!({"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": digest(&manifest), "size": manifest.len()});
        for _ in 0..levels {
            let list =
                json!({"schemaVersion": 2, "manifests": [below.clone(), below]}).to_string().into_bytes();
            below = json!({"mediaType": "application/vnd.oci.image.index.v1+json", "digest": digest(&list), "size": list.len()});
            members.push((format!("blobs/sha256/{}", &digest(&list)[7..]), list));
        }
        below["annotations"] = json!({"org.opencontainers.image.ref.name": NAME});
        members.push((
            "index.json".into(),
            json!({"schemaVersion": 2, "manifests": [below]}).to_string().into_bytes(),
        ));
        archive(&members)
    };
    refused("30 levels", |_| diamond(30));
    House::new().import(Way::File, &diamond(3), &[]).ok();
}

#[test]
fn t21_configurations_are_stored_and_not_obeyed() {
    let config = json!({"User": "4294967296:../../etc", "WorkingDir": "/../../..", "Labels": {"../x": "/etc/passwd"},
        "Volumes": {"/etc": {}}});
    let image = several([file("a", "1")]).config(config);
    harmless("a hostile configuration", |_| image.oci());
    refused("more DiffIDs than layers", |_| {
        archive(&with_config(&image, |c| {
            c["rootfs"]["diff_ids"] = json!([image.diff_ids()[0], digest(b"x")])
        }))
    });
}

#[test]
fn t22_an_archive_does_not_take_a_name_silently() {
    for way in WAYS {
        let house = House::new();
        house.import(way, &several([file("a", "1")]).docker(), &[]).ok();
        let before = house.images();
        house.import(way, &several([file("b", "2")]).docker(), &["--no-retag"]);
        assert_eq!(before, house.images(), "{way:?}");
        let json = house.import(way, &several([file("b", "2")]).docker(), &[]).ok().json();
        assert_eq!(json["images"][0]["outcome"], "retagged", "{way:?}");
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
fn t28_an_archive_that_is_two_images_is_refused() {
    let one = several([file("a", "1").packed(Pack::Plain)]);
    let other = several([file("b", "2").packed(Pack::Plain)]);
    // As docker writes since version 25: manifest.json names the layout's blobs.
    let both = |first: &Image, second: &Image| {
        let mut members = first.oci_members();
        let place = |digest: &str| format!("blobs/sha256/{}", &digest["sha256:".len()..]);
        let layers: Vec<String> = second.diff_ids().iter().map(|id| place(id)).collect();
        let manifest =
            json!([{"Config": place(&digest(&second.config_bytes())), "RepoTags": [NAME], "Layers": layers}]);
        members.retain(|(name, _)| name != "index.json");
        let missing = second.oci_members().into_iter().filter(|(name, _)| name.starts_with("blobs/"));
        let missing: Members =
            missing.filter(|(name, _)| members.iter().all(|(known, _)| known != name)).collect();
        members.extend(missing);
        members.extend(first.oci_members().into_iter().filter(|(name, _)| name == "index.json"));
        members.push(("manifest.json".into(), manifest.to_string().into_bytes()));
        archive(&members)
    };
    House::new().import(Way::File, &both(&one, &one), &[]).ok();
    refused("layout and manifest.json differ", |_| both(&one, &other));
    let twice = |data: Vec<u8>| {
        let mut members = one.docker_members();
        members.insert(0, (members[0].0.clone(), data));
        archive(&members)
    };
    let layer_bytes = one.docker_members()[0].1.clone();
    House::new().import(Way::GzipStdin, &twice(layer_bytes.clone()), &[]).ok();
    House::new().import(Way::File, &twice(layer_bytes.clone()), &[]).ok();
    let mut changed = layer_bytes;
    changed[520] ^= 1;
    refused("members that differ", |_| twice(changed.clone()));
}

#[test]
fn t29_oddities_of_compressed_layers_and_archives() {
    let good = several([file("a", "1")]).docker();
    let padded = [gzip(&good), vec![0; 1000]].concat();
    House::new().import(Way::Stdin, &padded, &[]).ok();
    let members: Vec<u8> = good.chunks(1000).flat_map(gzip).collect();
    House::new().import(Way::Stdin, &members, &[]).ok();
    House::new().import(Way::File, &members, &[]).ok();
    let refuse = |what: &str, bytes: Vec<u8>| {
        let house = House::new();
        for way in [Way::File, Way::Stdin] {
            house.import(way, &bytes, &[]).fails(3);
        }
        house.is_clean(what);
    };
    refuse("garbage", [gzip(&good), b"garbage".to_vec()].concat());
    let mut wrong = gzip(&good);
    let at = wrong.len() - 6;
    wrong[at] ^= 1;
    refuse("a wrong checksum", wrong);
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

#[test]
fn importing_again_with_discarded_blobs_extracts_nothing() {
    if !root() {
        return;
    }
    for way in WAYS {
        let house = House::new();
        let bytes = several([file("a", "1"), file("b", "2").packed(Pack::Zstd)]).oci();
        house.import(way, &bytes, &["--discard-blobs", "--audit"]).ok();
        let again = house.import(way, &bytes, &["--discard-blobs", "--audit"]).ok().json();
        assert_eq!(again["trees"]["new"], 0, "{way:?}: {again}");
        let trees = again["audit"].to_string();
        assert!(!trees.contains("\"extracted\":1"), "{way:?}: {trees}");
        has(&house.tree(NAME), "a file");
    }
}

#[test]
fn an_import_without_unpacking_is_completed_by_the_next() {
    if !root() {
        return;
    }
    for way in WAYS {
        let house = House::new();
        let bytes = several([file("a", "1")]).oci();
        house.import(way, &bytes, &["--no-unpack"]).ok();
        house.import(way, &bytes, &["--dry-run"]).ok();
        let json = house.import(way, &bytes, &["--verify-source", "--audit"]).ok().json();
        assert_eq!((&json["blobs"]["new"], &json["trees"]["new"]), (&json!(0), &json!(1)), "{way:?}: {json}");
        has(&house.tree(NAME), "a file");
    }
}

//! What must import, though it looks odd: rows B1 to B20. Over-strict readers broke real images as often as careless ones let attackers in.

use crate::house::*;
use crate::support::image::*;
use serde_json::{Value, json};

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
    let (tree, _) = both_import("odd", &several([odd, layer()]));
    has(&tree, "a/b/c file");
    has(&tree, "dangling link");
    has(&tree, "up link");
    assert!(tree[0].contains(" dir 0750 "), "{}", tree[0]);
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
    let (tree, _) = both_import("within one layer", &several([within]));
    for name in ["one", "two", "three"] {
        has(&tree, &format!("usr/lib/{name} file"));
    }
    let below = layer().dir("usr").dir("usr/lib").symlink("lib", "usr/lib");
    both_import("across layers", &several([below, layer().file("lib/one", "1")]));
}

#[test]
fn b4_absolute_hard_links_lead_inside() {
    if !root() {
        return;
    }
    let (tree, _) =
        both_import("hard link", &several([file("a", "1").hardlink("b", "/a").hardlink("c", "./a")]));
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
    let (tree, _) = both_import("replaced", &several(layers));
    has(&tree, "x file");
    has(&tree, "y dir");
    has(&tree, "y/inner file");
}

#[test]
fn b10_devices_import() {
    if !root() {
        return;
    }
    let (tree, _) = both_import(
        "devices",
        &several([layer().char_device("dev/null", 1, 3).fifo("pipe").block_device("sda", 8, 0)]),
    );
    has(&tree, "dev/null char");
    has(&tree, "sda block");
    has(&tree, "pipe fifo");
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
    let image = several([file("a", "1")]);
    for members in [image.oci_members(), image.docker_members()] {
        let dotted: Members = members.into_iter().map(|(name, data)| (format!("./{name}"), data)).collect();
        let (tree, _) = imports("dots", &archive(&dotted), NAME);
        has(&tree, "a file");
    }
}

/// A tar with a long name in the way of each age: what v7 has no room for, the prefix of ustar, and GNU's own entry.
fn of_each_age() -> Vec<u8> {
    let long = format!("{}/deep", "d".repeat(120));
    let mut tar = tar::Builder::new(Vec::new());
    let mut append = |mut header: tar::Header, name: &str| {
        header.set_mode(0o640);
        header.set_size(3);
        header.set_mtime(1_717_243_200);
        match name.len() > 100 && header.as_gnu().is_none() {
            // The path goes to the prefix and the name.
            true => {
                header.set_path(name).expect("a name that can be split");
                header.set_cksum();
                tar.append(&header, &b"abc"[..]).expect("a tar in memory");
            }
            false => tar.append_data(&mut header, name, &b"abc"[..]).expect("a tar in memory"),
        }
    };
    append(tar::Header::new_old(), "v7");
    append(tar::Header::new_ustar(), &long);
    append(tar::Header::new_gnu(), &format!("{long}-gnu"));
    append(tar::Header::new_gnu(), "gnu");
    tar.into_inner().expect("a tar in memory")
}

#[test]
fn b14_old_and_gnu_headers_and_the_prefix_of_ustar_import() {
    if !root() {
        return;
    }
    let (tree, _) = both_import("headers of each age", &several([raw_layer(of_each_age())]));
    let long = "d".repeat(120);
    for name in ["v7", "gnu", &format!("{long}/deep"), &format!("{long}/deep-gnu")] {
        has(&tree, &format!("{name} file 0640 "));
    }
}

/// A docker archive of older days: `<id>/layer.tar` or what `layer_name` says, packed as asked, and a configuration
/// whose name has a prefix.
pub fn flat_docker(image: &Image, layers: &[Layer], suffix: &str, config_name: &str) -> Vec<u8> {
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

//! Indexes, manifests and configurations that lie, contradict each other, or lead in circles.

use crate::house::*;
use crate::support::image::*;
use serde_json::{Value, json};

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
        refused("the configuration one off", |_| {
            archive(&with_manifest(&sample(), |m| {
                m["config"]["size"] = json!(m["config"]["size"].as_i64().expect("a size") + by);
            }))
        });
        refused("the manifest one off", |_| {
            archive(&with_index(&sample(), |index| {
                let size = &mut index["manifests"][0]["size"];
                *size = json!(size.as_i64().expect("a size") + by);
            }))
        });
    }
    let wrong_size = with_manifest(&sample(), |m| m["layers"][0]["size"] = json!(1));
    refused_by("a size", &RARE_WAYS, |_| archive(&wrong_size));
    // A header says as much as there is, and the next one begins where it ends.
    for size in [0, 511, 513, 1 << 20] {
        let image = sample();
        let layer = format!("{}.tar", &image.diff_ids()[0][7..]);
        let member = tar_member(tar::EntryType::Regular, &layer, size, &image.layers[0].tar());
        let rest: Members = image.docker_members().into_iter().skip(1).collect();
        refused("a member of another size", |_| [member.clone(), archive(&rest)].concat());
    }
}

/// Changes `index.json` of an OCI layout.
fn with_index(image: &Image, change: impl Fn(&mut Value)) -> Members {
    let mut members = image.oci_members();
    let (_, data) = members.iter_mut().find(|(name, _)| name == "index.json").expect("an index");
    let mut index: Value = serde_json::from_slice(data).expect("JSON");
    change(&mut index);
    *data = index.to_string().into_bytes();
    members
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
    refused("keys that stand twice in manifest.json", |_| {
        let mut members = sample().docker_members();
        let (_, data) = members.last_mut().expect("manifest.json");
        *data = String::from_utf8_lossy(data).replacen('{', r#"{"Layers":[],"#, 1).into_bytes();
        archive(&members)
    });
}

/// Other tools are written in Go, which takes `null` for what is empty and asks for no version.
#[test]
fn b17_null_is_what_is_empty_and_a_version_may_be_missing() {
    let twin = with_index(&several([file("a", "1")]), |index| {
        index.as_object_mut().expect("an object").remove("schemaVersion");
        index["mediaType"] = Value::Null;
        let entry = &mut index["manifests"][0];
        (entry["mediaType"], entry["urls"]) = (Value::Null, Value::Null);
        entry["platform"] = json!({"architecture": null, "os": null, "variant": null});
    });
    imports("null", &archive(&twin), NAME);
    let twin = with_docker_config(&several([file("a", "1")]), |config| {
        config["history"] = json!([{"created_by": null, "empty_layer": null}]);
    });
    House::new().import(Way::File, &twin, &[]).ok();
}

/// As `cosign save` and `oras` write them: an image's type of configuration, and layers that are none.
#[test]
fn b17_signatures_and_files_beside_an_image_are_skipped_and_reported() {
    let mut members = several([file("a", "1")]).oci_members();
    let mut add = |data: Vec<u8>| -> Value {
        let described = json!({"digest": digest(&data), "size": data.len()});
        members.push((format!("blobs/sha256/{}", &digest(&data)["sha256:".len()..]), data));
        described
    };
    let of_type = |mut descriptor: Value, media_type: &str| {
        descriptor["mediaType"] = json!(media_type);
        descriptor
    };
    let mut artifacts = Vec::new();
    for (config, layer, media_type) in [
        (
            json!({"os": "", "architecture": "", "rootfs": {"type": "layers", "diff_ids": [digest(b"{}")]}}),
            &br#"{"critical":{"type":"cosign container image signature"}}"#[..],
            "application/vnd.dev.cosign.simplesigning.v1+json",
        ),
        (json!({}), b"hello", "application/vnd.example.file"),
    ] {
        let config =
            of_type(add(config.to_string().into_bytes()), "application/vnd.oci.image.config.v1+json");
        let layers = [of_type(add(layer.to_vec()), media_type)];
        let manifest = json!({"schemaVersion": 2, "config": config, "layers": layers});
        let manifest = add(manifest.to_string().into_bytes());
        artifacts.push(of_type(manifest, "application/vnd.oci.image.manifest.v1+json"));
    }
    let (_, data) = members.iter_mut().find(|(name, _)| name == "index.json").expect("an index");
    let mut index: Value = serde_json::from_slice(data).expect("JSON");
    index["manifests"].as_array_mut().expect("a list").extend(artifacts);
    *data = index.to_string().into_bytes();
    let (_, report) = imports("artifacts", &archive(&members), NAME);
    let reasons: Vec<&str> = report["skipped"]
        .as_array()
        .expect("a list")
        .iter()
        .filter_map(|one| one["reason"].as_str())
        .collect();
    assert!(reasons.iter().all(|reason| reason.starts_with("an artifact of type")), "{reasons:?}");
    assert_eq!(reasons.len(), 2, "{reasons:?}");
    let alone = members.iter_mut().find(|(name, _)| name == "index.json").expect("an index");
    index["manifests"].as_array_mut().expect("a list").remove(0);
    alone.1 = index.to_string().into_bytes();
    let bytes = archive(&members);
    refused("artifacts alone", |_| bytes.clone());
}

#[test]
fn t12_a_document_does_not_grow_in_memory() {
    let lines = |count: usize| json!(vec![json!({}); count]);
    let sample = || several([file("a", "1")]);
    // Two bytes each in the archive, a hundred in memory.
    refused_by("a long history", &DOCKER_WAYS, |_| {
        with_docker_config(&sample(), |config| config["history"] = lines(200_000))
    });
    let twin = with_docker_config(&sample(), |config| config["history"] = lines(1_000));
    House::new().import(Way::File, &twin, &[]).ok();
    let ids = ["1".repeat(64), "2".repeat(64), "3".repeat(64), "4".repeat(64)];
    let ids = ids.each_ref().map(String::as_str);
    let chain = [(ids[0], Some(ids[1])), (ids[1], Some(ids[2])), (ids[2], Some(ids[3])), (ids[3], None)];
    // What is left of a layer's description is its line of the history; one is looked at at a time.
    let of_zeros = |count: usize| legacy_with(&chain, &json!({"x": vec![0; count]}));
    refused_by("a description of 4 MiB", &DOCKER_WAYS, |_| of_zeros(2 << 20));
    let report = House::new().import(Way::File, &of_zeros(1 << 18), &[]).ok().json();
    let peak = report["peak_rss_bytes"].as_u64().expect("a number of bytes");
    assert!(peak < 128 << 20, "{peak} bytes, for four descriptions of 512 KiB");
}

#[test]
fn t12_names_are_counted_and_each_is_taken_once() {
    let tags: Vec<String> = (0..2_000).map(|at| format!("example.com/many:{at}")).collect();
    let twice = |tags: &[String]| {
        with_docker_manifest(&several([file("a", "1")]), |m| {
            m[0]["RepoTags"] = json!(tags);
            let same = m[0].clone();
            m.as_array_mut().expect("a list").push(same);
        })
    };
    let house = House::new();
    house.import(Way::File, &twice(&tags), &[]).ok();
    assert_eq!(house.images().len(), tags.len());
    let error =
        House::new().import(Way::File, &twice(&tags), &["--limit", "descriptors=3000"]).fails(3).stderr;
    assert!(error.contains("descriptors"), "{error}");
}

#[test]
fn t14_digests_that_are_none_are_refused() {
    let upper = format!("sha256:{}", "A".repeat(64));
    for text in ["sha256:../../x", "sha256:abc", upper.as_str(), "md5:d41d8cd98f00b204e9800998ecf8427e", ""] {
        refused(text, |_| {
            archive(&with_manifest(&several([file("a", "1")]), |m| m["layers"][0]["digest"] = json!(text)))
        });
        refused(text, |_| {
            archive(&with_manifest(&several([file("a", "1")]), |m| m["config"]["digest"] = json!(text)))
        });
        refused(text, |_| {
            archive(&with_index(&several([file("a", "1")]), |m| m["manifests"][0]["digest"] = json!(text)))
        });
        refused(text, |_| {
            with_docker_config(&several([file("a", "1")]), |c| c["rootfs"]["diff_ids"][0] = json!(text))
        });
    }
}

#[test]
fn t14_members_are_looked_for_in_the_archive_alone() {
    let image = several([file("a", "1")]);
    for name in ["/etc/passwd", "../../../../../../etc/passwd", "blobs/sha256/../../x", "", "nowhere.tar"] {
        refused(name, |_| with_docker_manifest(&image, |m| m[0]["Layers"][0] = json!(name)));
        refused(name, |_| with_docker_manifest(&image, |m| m[0]["Config"] = json!(name)));
    }
    // What goes up and comes down again within the archive is a name like others: it is asked for by what it means.
    let twin = with_docker_manifest(&image, |m| {
        m[0]["Config"] = json!(format!("./{}", m[0]["Config"].as_str().expect("a name")));
    });
    House::new().import(Way::File, &twin, &[]).ok();
}

#[test]
fn t15_a_claim_to_anothers_tree_is_refused_also_if_the_store_has_it() {
    let honest = several([file("a", "1")]);
    let other = several([file("b", "2")]);
    let stolen = honest.diff_ids();
    let liar = archive(&with_config(&other, |config| config["rootfs"]["diff_ids"] = json!(stolen)));
    refused("alone", |_| liar.clone());
    let docker = with_docker_config(&other, |config| config["rootfs"]["diff_ids"] = json!(stolen));
    refused_by("docker-save", &DOCKER_WAYS, |_| docker.clone());
    refused_by("docker-save", &RARE_WAYS, |_| docker.clone());
    for way in DOCKER_WAYS {
        let house = House::new();
        house.import(Way::File, &honest.oci(), &["--tag", "example.com/honest:1"]).ok();
        house.import(way, &docker, &[]).fails(3);
        assert_eq!(house.images().len(), 1);
    }
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

/// Indexes, each of which lists the next one twice.
pub fn diamond(levels: usize) -> Vec<u8> {
    let base = several([file("a", "1")]);
    let manifest = base.manifest_bytes();
    let mut members = base.oci_members();
    members.retain(|(name, _)| name != "index.json");
    let mut below = json!({"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": digest(&manifest), "size": manifest.len()});
    for _ in 0..levels {
        let list = json!({"schemaVersion": 2, "manifests": [below.clone(), below]}).to_string().into_bytes();
        below = json!({"mediaType": "application/vnd.oci.image.index.v1+json", "digest": digest(&list), "size": list.len()});
        members.push((format!("blobs/sha256/{}", &digest(&list)[7..]), list));
    }
    below["annotations"] = json!({"org.opencontainers.image.ref.name": NAME});
    members.push((
        "index.json".into(),
        json!({"schemaVersion": 2, "manifests": [below]}).to_string().into_bytes(),
    ));
    archive(&members)
}

#[test]
fn t19_t20_cycles_and_diamonds_end_soon() {
    refused("30 levels", |_| diamond(30));
    House::new().import(Way::File, &diamond(3), &[]).ok();
}

/// A `repositories`-only archive whose layers are called by these ids, each with its parent.
fn legacy(layers: &[(&str, Option<&str>)]) -> Vec<u8> {
    legacy_with(layers, &json!({}))
}

/// The same, and more in each description.
fn legacy_with(layers: &[(&str, Option<&str>)], more: &Value) -> Vec<u8> {
    let mut members = Members::new();
    for (id, parent) in layers {
        let mut v1 = more.clone();
        v1["id"] = json!(id);
        v1["os"] = json!("linux");
        v1["architecture"] = json!("amd64");
        v1["created"] = json!("2014-01-01T00:00:00Z");
        parent.iter().for_each(|parent| v1["parent"] = json!(parent));
        members.push((format!("{id}/json"), v1.to_string().into_bytes()));
        members.push((format!("{id}/layer.tar"), file("a", id).tar()));
    }
    members
        .push(("repositories".into(), json!({"example.com/a": {"1": layers[0].0}}).to_string().into_bytes()));
    archive(&members)
}

#[test]
fn t19_legacy_ids_are_no_paths_and_no_layer_is_its_own_ancestor() {
    let ids = ["1".repeat(64), "2".repeat(64)];
    let (a, b) = (ids[0].as_str(), ids[1].as_str());
    for id in ["../../x", "/etc", "1", "", "..", &"A".repeat(64), &"1".repeat(65)] {
        refused_by(id, &DOCKER_WAYS, |_| legacy(&[(id, None)]));
        // An empty parent is none, as in archives of the time.
        if !id.is_empty() {
            refused_by(id, &DOCKER_WAYS, |_| legacy(&[(a, Some(id))]));
        }
    }
    refused_by("its own parent", &DOCKER_WAYS, |_| legacy(&[(a, Some(a))]));
    refused_by("a circle", &DOCKER_WAYS, |_| legacy(&[(a, Some(b)), (b, Some(a))]));
    refused_by("a parent that is not there", &DOCKER_WAYS, |_| legacy(&[(a, Some(b))]));
    House::new().import(Way::File, &legacy(&[(a, Some(b)), (b, None)]), &[]).ok();
}

#[test]
fn t21_configurations_are_stored_and_not_obeyed() {
    let config = json!({"User": "2147483648:../../etc", "WorkingDir": "/../../..", "Labels": {"../x": "/etc/passwd"},
        "Volumes": {"/etc": {}}});
    let image = several([file("a", "1")]).config(config);
    both_harmless("a hostile configuration", |_| image.clone());
    // Nobody reads the groups of an image while it is imported.
    let group =
        [tar_member(tar::EntryType::Regular, "etc/group", 256 << 20, &[]), vec![0; 256 << 20], vec![0; 1024]];
    let group =
        several([raw_layer(group.concat()).packed(Pack::Zstd)]).config(json!({"User": "somebody:somegroup"}));
    House::new().import(Way::File, &group.oci(), &["--memory", "64MiB"]).ok();
    refused("more DiffIDs than layers", |_| {
        archive(&with_config(&image, |c| {
            c["rootfs"]["diff_ids"] = json!([image.diff_ids()[0], digest(b"x")])
        }))
    });
    let docker = with_docker_config(&image, |c| c["rootfs"]["diff_ids"] = json!([]));
    refused_by("fewer DiffIDs than layers", &DOCKER_WAYS, |_| docker.clone());
}

#[test]
fn t22_an_archive_does_not_take_a_name_silently() {
    let (one, other) = (several([file("a", "1")]), several([file("b", "2")]));
    for (way, format) in WAYS.iter().flat_map(|&way| [Image::docker, Image::oci].map(|format| (way, format)))
    {
        let house = House::new();
        house.import(way, &format(&one), &[]).ok();
        let before = house.images();
        let refused = house.import(way, &format(&other), &["--no-retag"]).fails(1);
        assert!(refused.stderr.contains(NAME), "{way:?}: {}", refused.stderr);
        assert_eq!(before, house.images(), "{way:?}");
        let json = house.import(way, &format(&one), &["--no-retag"]).ok().json();
        assert_ne!(json["images"][0]["outcome"], "retagged", "{way:?}: its own name");
        let json = house.import(way, &format(&other), &[]).ok().json();
        assert_eq!(json["images"][0]["outcome"], "retagged", "{way:?}");
    }
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

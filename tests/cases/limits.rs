//! T10, T11, T12: what asks for more than anybody has, the flag that raises each limit, and the twin that imports.

use crate::house::*;
use crate::support::image::*;
use crate::support::mounts::Small;
#[cfg(feature = "failpoints")]
use crate::support::run::{command, run};
use std::os::unix::fs::MetadataExt;
use tar::EntryType;
use transload::Limits;

const END: [u8; 1024] = [0; 1024];

/// The layer of `tar` stored as zstd, which packs a gigabyte of zeros in a moment.
fn packed(tar: Vec<u8>) -> Vec<u8> {
    one(raw_layer(tar).packed(Pack::Zstd))
}

fn zeros(mib: u64) -> Vec<u8> {
    let data = vec![0; (mib << 20) as usize];
    [tar_member(EntryType::Regular, "zeros", mib << 20, &data), END.to_vec()].concat()
}

/// Refused with these words, imported with those.
#[track_caller]
fn refused_unless(what: &str, archive: &[u8], refused: &[&str], allowed: &[&str]) {
    for way in [Way::File, Way::GzipStdin] {
        let house = House::new();
        let ran = house.import(way, archive, refused).fails(3);
        assert!(ran.stderr.contains("hint: "), "{what}: no hint at the flag:\n{}", ran.stderr);
        house.is_clean(what);
        house.import(way, archive, allowed).ok();
    }
}

/// An image with a sparse file, by its map as PAX 1.0 has it.
fn sparse(map: &str, real_size: &str) -> Image {
    sparse_with(map, real_size, &[])
}

fn sparse_with(map: &str, real_size: &str, content: &[u8]) -> Image {
    let records = [
        ("GNU.sparse.major", "1"),
        ("GNU.sparse.minor", "0"),
        ("GNU.sparse.name", "sparse"),
        ("GNU.sparse.realsize", real_size),
    ];
    let mut data = map.as_bytes().to_vec();
    data.resize(data.len().next_multiple_of(512), 0);
    data.extend_from_slice(content);
    let member = tar_member(EntryType::Regular, "GNUSparseFile.0/sparse", data.len() as u64, &data);
    several([raw_layer([pax(&records), member, END.to_vec()].concat())])
}

#[test]
fn t10_sparse_maps_without_bound_are_refused() {
    both_refused("ten million regions announced", |_| sparse("10000000\n", "1000"));
    both_refused("a number of regions without end", |_| sparse(&"1".repeat(400), "1000"));
    both_refused("regions that are not there", |_| sparse("1000\n0\n1\n", "1000"));
    both_refused("a size beyond any file", |_| sparse("1\n0\n0\n", "18446744073709551615"));
    both_refused("a size beyond the limit of a layer", |_| sparse("1\n0\n0\n", "4611686018427387904"));
    if root() {
        let thousand: String = (0..1000).map(|at| format!("{}\n0\n", at * 4096)).collect();
        let (tree, _) = both_import("a thousand regions", &sparse(&format!("1000\n{thousand}"), "4096000"));
        has(&tree, "sparse file");
    }
}

/// What the log of logins looks like on a machine with high user numbers: the benign twin of a bomb.
#[test]
fn t11_a_huge_sparse_lastlog_imports_and_takes_no_space() {
    let lastlog = sparse_with("1\n300000000000\n512\n", "300000000512", &[b'x'; 512]);
    for (way, lastlog) in WAYS.iter().flat_map(|&way| [(way, lastlog.oci()), (way, lastlog.docker())]) {
        let house = House::new();
        house.import(way, &lastlog, &[]).ok();
        let stat = std::fs::metadata(find(&house.store().join("trees"), "sparse")).expect("the file");
        assert_eq!(stat.len(), 300_000_000_512, "{way:?}");
        assert!(stat.blocks() * 512 < 1 << 20, "{way:?}: {} blocks", stat.blocks());
    }
}

#[test]
fn t11_a_layer_that_unpacks_beyond_the_limit_is_refused_and_zeros_take_no_space() {
    let bomb = packed(zeros(256));
    assert!(bomb.len() < 1 << 20, "{} bytes are no bomb", bomb.len());
    refused_unless("256 MiB of zeros", &bomb, &["--max-layer-size", "200MiB"], &[]);
    let house = House::new();
    house.import(Way::File, &bomb, &[]).ok();
    let tree = std::fs::read_dir(house.store().join("trees")).expect("trees").next().expect("a tree");
    let file = find(&tree.expect("an entry").path(), "zeros");
    let stat = std::fs::metadata(file).expect("the file");
    assert_eq!(stat.len(), 256 << 20);
    assert!(stat.blocks() * 512 < 1 << 20, "{} blocks for zeros", stat.blocks());
}

#[test]
fn t11_a_bomb_behind_the_end_of_the_layer_counts_too() {
    let tar = [tar_member(EntryType::Regular, "a", 0, &[]), END.to_vec(), vec![0; 64 << 20]].concat();
    refused_unless("zeros behind the end", &packed(tar.clone()), &["--max-layer-size", "32MiB"], &[]);
    refused_unless("the same, not packed", &one(raw_layer(tar)), &["--max-layer-size", "32MiB"], &[]);
}

#[test]
fn t11_the_blob_of_a_layer_is_no_larger_than_what_it_may_unpack_to() {
    let layer = file("noise", noise(7, 24 << 20)).packed(Pack::Gzip);
    let (unpacked, packed) = (layer.tar().len(), layer.blob().len());
    assert!(packed > unpacked, "noise was packed to {packed} of {unpacked} bytes");
    let image = one(layer);
    refused_unless(
        "a blob of 24 MiB",
        &image,
        &["--no-unpack", "--max-layer-size", "1MiB"],
        &["--no-unpack"],
    );
    let limit = format!("layer-bytes={unpacked}");
    House::new().import(Way::File, &image, &["--limit", &limit]).ok();
}

/// A layer of one frame that asks for a window of 2^`log` bytes.
fn with_window(log: u8) -> Vec<u8> {
    let tar = file("a", "1").tar();
    let size = u32::try_from(tar.len()).expect("small");
    // Magic, no options, the window, and one last block that is stored as it is.
    let header = [0x28, 0xb5, 0x2f, 0xfd, 0, (log - 10) << 3];
    let block = (size << 3 | 1).to_le_bytes();
    let blob = [&header[..], &block[..3], &tar].concat();
    let mut members = docker_members(&[several([file("a", "1")])]);
    members[0].1 = blob;
    archive(&members)
}

/// What `zstd --long` writes, `zstd -d` reads without a word.
#[test]
fn b20_a_window_as_zstd_long_writes_it_imports_without_a_flag() {
    House::new().import(Way::File, &with_window(27), &[]).ok();
    House::new().import(Way::Stdin, &with_window(27), &["--threads", "1"]).ok();
    let error = House::new().import(Way::File, &with_window(27), &["--memory", "64MiB"]).fails(3).stderr;
    assert!(error.contains("--memory"), "{error}");
}

#[test]
fn t11_a_window_of_two_gigabytes_is_refused_with_a_hint() {
    let bytes = with_window(31);
    refused("a window of 2 GiB", |_| bytes.clone());
    let ran = House::new().import(Way::File, &bytes, &[]).fails(3);
    assert!(ran.stderr.contains("--memory"), "{}", ran.stderr);
}

#[test]
fn memory_does_not_grow_with_what_a_layer_unpacks_to() {
    let large = several([raw_layer(zeros(192)).packed(Pack::Zstd)]).oci();
    for way in WAYS {
        let json = House::new().import(way, &large, &["--memory", "32MiB"]).ok().json();
        let peak = json["peak_rss_bytes"].as_u64().expect("a number of bytes");
        // The program itself is in it, and what threads have on their stacks.
        assert!(peak < 96 << 20, "{way:?}: {peak} bytes");
    }
}

/// Four layers of a hundred links, each held up a millisecond at every one of them: together, two do not fit.
#[cfg(feature = "failpoints")]
#[test]
fn t11_the_lists_of_layers_that_are_extracted_together_have_one_limit() {
    let links = |at: usize| {
        (0..100)
            .fold(layer(), |layer, link| layer.hardlink(&format!("l{at}-{link}"), "a").owner(at as u64, 0))
    };
    let image = several(std::iter::once(file("a", "1")).chain((0..4).map(links))).oci();
    let import = |threads: &str| {
        let house = House::new();
        let at = house.dir.path().join("archive");
        std::fs::write(&at, &image).expect("an archive");
        let words = ["import", "--threads", threads, "--limit", "layer-lists-bytes=150000"];
        let mut import = command(&house.store(), words);
        import.arg(&at).env("TRANSLOAD_FAILPOINTS", "tree.entry=sleep:1");
        run(&mut import)
    };
    let ran = import("4").fails(3);
    assert!(ran.stderr.contains("--limit layer-lists-bytes="), "{}", ran.stderr);
    import("1").ok();
}

/// There the bytes alone say how a layer is packed.
#[test]
fn t11_bombs_of_docker_archives_are_refused() {
    let behind = [tar_member(EntryType::Regular, "a", 0, &[]), END.to_vec(), vec![0; 64 << 20]].concat();
    for (what, tar) in [("zeros", zeros(64)), ("zeros behind the end", behind)] {
        let layers = [raw_layer(tar).packed(Pack::Zstd)];
        let image = several(layers.clone());
        let config = format!("{}.json", &digest(&image.config_bytes())["sha256:".len()..]);
        let bomb = crate::benign::flat_docker(&image, &layers, ".tar", &config);
        assert!(bomb.len() < 1 << 20, "{} bytes are no bomb", bomb.len());
        refused_unless(what, &bomb, &["--max-layer-size", "32MiB"], &[]);
    }
}

/// Behind a symlink a path may begin anew, so names that each have a limit can still lead as deep as they like.
#[test]
fn t11_a_tree_deeper_than_the_kernel_takes_a_path_is_refused() {
    let path = |count: usize| vec!["n".repeat(250); count].join("/");
    both_refused("a deep tree", |_| {
        several([layer().dir(&path(12)).symlink("s", &path(12)).file(&format!("s/{}/f", path(5)), "1")])
    });
}

#[test]
fn t11_entries_names_and_extensions_have_limits() {
    let many = one((0..200).fold(layer(), |layer, at| layer.file(&format!("f{at}"), "")));
    refused_unless("200 entries", &many, &["--max-entries", "100"], &[]);
    let name = |flag: u8, size: u64| {
        let member = tar_member(EntryType::new(flag), "././@LongLink", size, &[b'n'; 4096]);
        several([raw_layer([member, END.to_vec()].concat())])
    };
    for flag in [b'L', b'K', b'x', b'g'] {
        both_refused(&format!("a gigabyte in an extension {:?}", char::from(flag)), |_| name(flag, 1 << 30));
    }
}

#[test]
fn t12_documents_layers_and_members_have_limits() {
    let image = several([file("a", "1"), file("b", "2"), file("c", "3")]);
    refused_unless("three layers", &image.oci(), &["--max-layers", "2"], &[]);
    refused_unless("members", &image.oci(), &["--max-members", "3"], &[]);
    let large = image.config(serde_json::json!({"Labels": {"l": "x".repeat(100 << 10)}}));
    refused_unless("a configuration", &large.oci(), &["--max-json-size", "64KiB"], &[]);
    let huge = |size: u64| tar_member(EntryType::Regular, "manifest.json", size, b"[{}]");
    refused("a manifest.json of 5 GB", |_| huge(5 << 30));
}

/// For each limit an archive, what it is tightened to so that the archive is beyond it, and the ways in where it counts.
fn beyond() -> Vec<(&'static str, u64, Vec<u8>, &'static [Way])> {
    const BOTH: &[Way] = &[Way::File, Way::GzipStdin];
    let three = several([file("a", "1"), file("b", "2"), file("c", "3")]).oci();
    let large =
        several([file("a", "1")]).config(serde_json::json!({"Labels": {"l": "x".repeat(100 << 10)}})).oci();
    let deep = one(file(&format!("{}f", "d/".repeat(150)), ""));
    let extended =
        [pax(&[("comment", &"x".repeat(2000))]), tar_member(EntryType::Regular, "a", 0, &[]), END.to_vec()];
    let extended = one(raw_layer(extended.concat()));
    let many = one((0..200).fold(layer(), |layer, at| layer.dir(&format!("d{at}"))));
    let map: String = (0..200).map(|at| format!("{}\n0\n", at * 4096)).collect();
    let padded = [several([file("a", "1")]).docker(), vec![0; 64 << 10]].concat();
    vec![
        ("json_bytes", 64 << 10, large.clone(), BOTH),
        ("json_total_bytes", 64 << 10, large, BOTH),
        ("path_bytes", 200, deep.clone(), BOTH),
        ("path_components", 100, deep, BOTH),
        ("extension_bytes", 1000, extended, BOTH),
        ("layer_entries", 100, many.clone(), BOTH),
        ("layer_bytes", 1 << 20, packed(zeros(2)), BOTH),
        ("layer_lists_bytes", 10_000, many, BOTH),
        ("sparse_regions", 100, sparse(&format!("200\n{map}"), "819200").oci(), BOTH),
        ("archive_members", 3, three.clone(), BOTH),
        // A plain archive is not read beyond its end.
        ("trailing_bytes", 10_000, padded, &[Way::GzipStdin]),
        ("layers", 2, three, BOTH),
        ("index_depth", 2, crate::documents::diamond(3), BOTH),
        ("descriptors", 2, crate::documents::diamond(3), BOTH),
    ]
}

#[test]
fn each_limit_is_named_by_its_error_and_raised_it_lets_the_input_in() {
    let mut left: Vec<&str> = Limits::NAMES.to_vec();
    // That one is about the disk: the next test.
    left.retain(|name| *name != "free_space_percent");
    for (name, tight, archive, ways) in beyond() {
        let flag = name.replace('_', "-");
        for &way in ways {
            let house = House::new();
            let ran = house.import(way, &archive, &["--limit", &format!("{flag}={tight}")]).fails(3);
            assert!(ran.stderr.contains(&format!("--limit {flag}=")), "{name} {way:?}: {}", ran.stderr);
            assert!(house.images().is_empty(), "{name} {way:?}");
            house.import(way, &archive, &[]).ok();
        }
        left.retain(|other| *other != name);
    }
    assert!(left.is_empty(), "no archive is beyond {left:?}");
}

#[test]
fn t11_layers_leave_a_part_of_the_free_space_to_others() {
    let tar = [tar_member(EntryType::Regular, "a", 10 << 20, &vec![b'a'; 10 << 20]), END.to_vec()].concat();
    let bomb = packed(tar);
    assert!(bomb.len() < 1 << 20, "{} bytes are no bomb", bomb.len());
    for way in [Way::File, Way::GzipStdin] {
        let house = House::new();
        let Some(_disk) = Small::mount(&house.store(), 16 << 20) else { return };
        let ran = house.import(way, &bomb, &["--limit", "free-space-percent=50"]).fails(1);
        assert!(ran.stderr.contains("--limit free-space-percent=100"), "{}", ran.stderr);
        house.is_clean("a bomb on a small disk");
        house.import(way, &bomb, &[]).ok();
    }
}

/// On a disk of 32 MiB: with half of it for the import it is refused, with all of it it is let in.
#[track_caller]
fn leaves_half_of_a_small_disk(what: &str, ways: &[Way], archive: &[u8], more: &[&str]) {
    for &way in ways {
        let house = House::new();
        let Some(_disk) = Small::mount(&house.store(), 32 << 20) else { return };
        let half = [more, &["--limit", "free-space-percent=50"]].concat();
        let ran = house.import(way, archive, &half).fails(1);
        assert!(ran.stderr.contains("--limit free-space-percent=100"), "{what} {way:?}: {}", ran.stderr);
        house.is_clean(what);
        house.import(way, archive, more).ok();
    }
}

/// What an archive packs a thousandfold is written to the store as it is.
#[test]
fn t11_blobs_leave_a_part_of_the_free_space_to_others() {
    const WAYS: &[Way] = &[Way::File, Way::ZstdFile, Way::GzipStdin];
    let data = vec![b'a'; 20 << 20];
    let layer =
        raw_layer([tar_member(EntryType::Regular, "a", data.len() as u64, &data), END.to_vec()].concat());
    let layer = layer.packed(Pack::Plain);
    leaves_half_of_a_small_disk("a layer that is only stored", WAYS, &one(layer), &["--no-unpack"]);
    // No manifest knows it, but that may come last.
    let zeros = vec![0; 20 << 20];
    let name = format!("blobs/{}", digest(&zeros).replace(':', "/"));
    let mut members = several([file("a", "1")]).oci_members();
    members.insert(0, (name, zeros));
    leaves_half_of_a_small_disk("zeros", &[Way::ZstdFile, Way::GzipStdin], &archive(&members), &[]);
}

/// A hard link to a lower layer's file is a copy of it for that chain, and every layer of a plain store has all files.
#[test]
fn t11_copies_for_chains_leave_a_part_of_the_free_space_to_others() {
    let data = vec![b'a'; 4 << 20];
    let links = (0..4).map(|number| layer().hardlink(&format!("link-{number}"), "a"));
    let layers = std::iter::once(file("a", &data)).chain(links).map(|layer| layer.packed(Pack::Zstd));
    let image = several(layers).oci();
    for snapshotter in ["overlay", "plain"] {
        let more = ["--snapshotter", snapshotter];
        leaves_half_of_a_small_disk(snapshotter, &[Way::File, Way::GzipStdin], &image, &more);
    }
}

//! Bytes that end early, go on too long, or unpack to more than anybody has.

use crate::house::*;
use crate::support::image::*;

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
fn t29_oddities_of_compressed_layers_and_archives() {
    let good = several([file("a", "1")]).docker();
    let padded = [gzip(&good), vec![0; 1000]].concat();
    House::new().import(Way::Stdin, &padded, &[]).ok();
    let members: Vec<u8> = good.chunks(1000).flat_map(gzip).collect();
    House::new().import(Way::Stdin, &members, &[]).ok();
    House::new().import(Way::File, &members, &[]).ok();
    for odd in [bgzf(&good), frames(&good)] {
        House::new().import(Way::Stdin, &odd, &[]).ok();
        House::new().import(Way::File, &odd, &[]).ok();
    }
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

/// The layer's blob is this, and everything that names it says so.
fn with_blob(image: &Image, blob: &[u8]) -> Vec<u8> {
    let old = image.layers[0].blob();
    let mut members = with_manifest(image, |manifest| {
        manifest["layers"][0]["digest"] = serde_json::json!(digest(blob));
        manifest["layers"][0]["size"] = serde_json::json!(blob.len());
    });
    for (name, data) in &mut members {
        if *data == old {
            (*name, *data) = (format!("blobs/sha256/{}", &digest(blob)["sha256:".len()..]), blob.to_vec());
        }
    }
    archive(&members)
}

/// Blocks that say their own size in an extra field, and an empty one at the end.
fn bgzf(data: &[u8]) -> Vec<u8> {
    let block = |data: &[u8]| {
        let plain = gzip(data);
        let size = u16::try_from(plain.len() + 8 - 1).expect("a small block").to_le_bytes();
        let extra = [6, 0, b'B', b'C', 2, 0, size[0], size[1]];
        [&[0x1f, 0x8b, 8, 4, 0, 0, 0, 0, 0, 255], &extra[..], &plain[10..]].concat()
    };
    data.chunks(900).chain([&[][..]]).flat_map(block).collect()
}

fn frames(data: &[u8]) -> Vec<u8> {
    pack(data, Pack::ZstdFrames)
}

/// Also where a tar of a layer ends within a compressed stream that goes on.
#[test]
fn t29_oddities_of_layers_whose_digests_are_right() {
    if !root() {
        return;
    }
    let gz = several([file("a", "1").packed(Pack::Gzip)]);
    let zst = several([file("a", "1").packed(Pack::Zstd)]);
    let tar = gz.layers[0].tar();
    let good: [(&str, &Image, Vec<u8>); 5] = [
        ("zeros behind", &gz, [gzip(&tar), vec![0; 3000]].concat()),
        ("members", &gz, tar.chunks(300).flat_map(gzip).collect()),
        ("BGZF", &gz, bgzf(&tar)),
        ("frames with others between", &zst, frames(&tar)),
        ("zstd that is called gzip", &gz, zstd(&tar)),
    ];
    for (what, image, blob) in good {
        let (tree, _) = imports(what, &with_blob(image, &blob), NAME);
        has(&tree, "a file");
    }
    let cut = |bytes: Vec<u8>| bytes[..bytes.len() - 1].to_vec();
    let mut wrong = gzip(&tar);
    let at = wrong.len() - 8;
    wrong[at] ^= 1;
    let bad: [(&str, &Image, Vec<u8>); 6] = [
        ("garbage", &gz, [gzip(&tar), b"garbage".to_vec()].concat()),
        ("a wrong checksum", &gz, wrong),
        ("gzip that is cut", &gz, cut(gzip(&tar))),
        ("a second member that is cut", &gz, [gzip(&tar), cut(gzip(b"more"))].concat()),
        ("garbage behind a frame", &zst, [zstd(&tar), b"garbage".to_vec()].concat()),
        ("zstd that is cut", &zst, cut(zstd(&tar))),
    ];
    for (what, image, blob) in bad {
        refused(what, |_| with_blob(image, &blob));
    }
}

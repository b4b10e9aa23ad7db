//! Bytes that end early, go on too long, or unpack to more than anybody has.

use crate::house::*;
use crate::support::image::*;
use transload::progress::Silent;
use transload::{Cancel, Engine, EngineOptions, ErrorKind, ImportOptions, Input};

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

/// Imports in this process, because there are thousands: 0 for images, 3 for the input's fault.
fn import_here(engine: &Engine, archive: Vec<u8>) -> Result<Vec<String>, ErrorKind> {
    let input = Input::Reader { name: "a stream".into(), reader: Box::new(std::io::Cursor::new(archive)) };
    let options = ImportOptions { sync: false, ignore_chown: true, ..ImportOptions::default() };
    let report = engine.import(input, &options, &Silent, &Cancel::new()).map_err(|error| error.kind())?;
    Ok(report.images.iter().map(|image| image.manifest.to_string()).collect())
}

fn small_archives() -> Vec<(&'static str, Vec<u8>)> {
    let image = |pack| several([file("a", "some text").symlink("b", "a").packed(pack)]);
    let docker = image(Pack::Plain).docker();
    vec![
        ("docker.tar.gz", gzip(&docker)),
        ("docker.tar.zst", zstd_checked(&docker)),
        ("layout.tar.gz", gzip(&image(Pack::Gzip).oci())),
        ("layout.tar.zst", zstd(&image(Pack::Zstd).oci())),
    ]
}

/// With a checksum, which zstd leaves out unless it is asked: nothing else covers a document that an archive names as it likes.
fn zstd_checked(data: &[u8]) -> Vec<u8> {
    let mut encoder = zstd::Encoder::new(Vec::new(), 3).expect("an encoder");
    encoder.include_checksum(true).expect("a parameter that zstd knows");
    std::io::Write::write_all(&mut encoder, data).expect("compressing in memory");
    encoder.finish().expect("compressing in memory")
}

#[test]
fn t18_a_small_archive_cut_at_any_byte_is_refused() {
    let dir = crate::support::scratch();
    let engine = Engine::open(dir.path().join("store"), EngineOptions::default()).expect("a store");
    for (name, whole) in small_archives() {
        for end in 0..whole.len() {
            let error = import_here(&engine, whole[..end].to_vec()).expect_err("something is missing");
            assert!(error.is_input(), "{name} cut at {end}: {error:?}");
        }
        assert!(engine.images().expect("lists").is_empty(), "{name}");
    }
    for (name, whole) in small_archives() {
        assert!(import_here(&engine, whole).is_ok(), "{name}");
    }
}

#[test]
fn a_flipped_bit_anywhere_is_refused_or_changes_nothing() {
    let dir = crate::support::scratch();
    let engine = Engine::open(dir.path().join("store"), EngineOptions::default()).expect("a store");
    for (name, whole) in small_archives() {
        let fresh = Engine::open(dir.path().join(name), EngineOptions::default()).expect("a store");
        let right = import_here(&fresh, whole.clone()).expect("imports");
        for at in 0..whole.len() {
            let mut changed = whole.clone();
            changed[at] ^= 1 << (at % 8);
            match import_here(&engine, changed) {
                // Some header bits mean nothing: a time, an operating system.
                Ok(images) => assert_eq!(images, right, "{name}, byte {at}"),
                Err(kind) => assert!(kind.is_input(), "{name}, byte {at}: {kind:?}"),
            }
        }
    }
}

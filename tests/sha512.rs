//! SHA-512 is as good as SHA-256: a layout whose every document and layer goes by its SHA-512 imports, can be looked
//! into, and survives a collection.

use std::path::Path;
use transload::io::digesting::Digester;
use transload::progress::Silent;
use transload::upkeep::GcOptions;
use transload::{Algorithm, Cancel, Digest, Engine, ImportOptions, Input};

fn sha512(bytes: &[u8]) -> Digest {
    let mut digester = Digester::new(Algorithm::Sha512);
    digester.update(bytes);
    digester.finish()
}

fn put(layout: &Path, bytes: &[u8]) -> Digest {
    let digest = sha512(bytes);
    let blobs = layout.join("blobs/sha512");
    std::fs::create_dir_all(&blobs).expect("makes the directory");
    std::fs::write(blobs.join(digest.hex()), bytes).expect("writes a blob");
    digest
}

fn layout(dir: &Path) {
    let mut header = tar::Header::new_gnu();
    header.set_size(5);
    header.set_mode(0o644);
    header.set_uid(u64::from(rustix::process::geteuid().as_raw()));
    header.set_gid(u64::from(rustix::process::getegid().as_raw()));
    let mut layer = tar::Builder::new(Vec::new());
    layer.append_data(&mut header, "hello", &b"world"[..]).expect("a member");
    let layer = layer.into_inner().expect("a tar");
    let layer_digest = put(dir, &layer);
    let config = format!(
        r#"{{"architecture":"amd64","os":"linux","rootfs":{{"type":"layers","diff_ids":["{}"]}}}}"#,
        Digest::of(&layer)
    );
    let config_digest = put(dir, config.as_bytes());
    let manifest = format!(
        r#"{{"schemaVersion":2,"config":{{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"{config_digest}","size":{}}},"layers":[{{"mediaType":"application/vnd.oci.image.layer.v1.tar","digest":"{layer_digest}","size":{}}}]}}"#,
        config.len(),
        layer.len()
    );
    let manifest_digest = put(dir, manifest.as_bytes());
    let index = format!(
        r#"{{"schemaVersion":2,"manifests":[{{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"{manifest_digest}","size":{}}}]}}"#,
        manifest.len()
    );
    std::fs::write(dir.join("index.json"), index).expect("writes the index");
    std::fs::write(dir.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).expect("writes the marker");
}

#[test]
fn an_image_of_sha512_documents_stays_whole() {
    let scratch = tempfile::tempdir().expect("a temporary directory");
    let source = scratch.path().join("layout");
    std::fs::create_dir(&source).expect("makes the directory");
    layout(&source);
    let engine = Engine::open(scratch.path().join("store"), Default::default()).expect("opens");
    let options = ImportOptions { ignore_chown: true, ..ImportOptions::default() };
    let report = engine.import(Input::Path(source), &options, &Silent, &Cancel::new()).expect("imports");
    let target = report.images[0].target.to_string();
    assert!(target.starts_with("sha512:"), "{target}");
    for _ in 0..2 {
        let tree = engine.tree(&target, 1).expect("shows the tree");
        assert_eq!(tree.children.iter().map(|entry| entry.name.as_slice()).collect::<Vec<_>>(), [b"hello"]);
        assert_eq!(engine.inspect(&target).expect("looks into it").layers.len(), 1);
        // Nothing of it may be taken for garbage.
        let collected = engine.gc(&GcOptions::default()).expect("collects");
        assert_eq!((collected.blobs_removed, collected.trees_removed), (0, 0));
    }
}

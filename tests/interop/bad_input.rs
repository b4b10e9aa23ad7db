//! Input that is wrong and stores that cannot take it: one sentence, the documented exit code, nothing visible afterwards,
//! and the next import works.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::support::image::{Image, Members, archive, digest, file, gzip, image, layer, zstd};
use crate::support::mounts::Small;
use crate::support::run::{command, run_with_input, transload};
use crate::support::scratch;
use crate::support::tools::have;

const NAME: &str = "docker.io/test/bad:1";

fn good() -> Image {
    let lower = layer().dir("/etc").file("/etc/a", "1".repeat(3000)).dir("/usr");
    image().name(NAME).layer(lower).layer(file("/etc/b", "2".repeat(2000)).whiteout("/etc/a"))
}

/// Whatever happened, nothing is to be seen of it, and the store takes a good archive.
#[track_caller]
fn assert_unharmed(what: &str, store: &Path, scratch: &Path) {
    let listed = transload(store, ["images", "--json"]).ok().json();
    assert_eq!(listed["images"].as_array().map(Vec::len), Some(0), "{what}: {listed}");
    for blob in crate::files_below(&store.join("blobs")) {
        let data = fs::read(&blob).expect("a blob");
        let name = blob.file_name().expect("a file").to_string_lossy().into_owned();
        assert_eq!(digest(&data), format!("sha256:{name}"), "{what}: a blob under the wrong name");
    }
    let path = write(scratch, "good.tar", &good().oci());
    let report = transload(store, ["import", "--json", "--audit", &path.to_string_lossy()]).ok().json();
    assert_eq!(report["images"][0]["name"], NAME, "{what}: {report}");
}

fn write(scratch: &Path, name: &str, data: &[u8]) -> PathBuf {
    let path = scratch.join(name);
    fs::write(&path, data).expect("an archive");
    path
}

/// Imports `data` as a file and as a stream; both must fail with `code` and say `say`.
#[track_caller]
fn refused(what: &str, data: &[u8], code: i32, say: &[&str]) {
    let scratch = scratch();
    let path = write(scratch.path(), "bad.tar", data);
    for stream in [false, true] {
        let store = scratch.path().join(format!("store-{stream}"));
        let ran = if stream {
            run_with_input(&mut command(&store, ["import", "-"]), data)
        } else {
            transload(&store, ["import", &path.to_string_lossy()])
        };
        assert_eq!(ran.code, Some(code), "{what} (stream: {stream}): {}", ran.stderr);
        let ran = ran.fails(code);
        for word in say {
            assert!(
                ran.stderr.contains(word),
                "{what} (stream: {stream}): {word:?} is not in: {}",
                ran.stderr
            );
        }
        assert_unharmed(&format!("{what} (stream: {stream})"), &store, scratch.path());
    }
}

fn member<'a>(members: &'a mut Members, name: &str) -> &'a mut Vec<u8> {
    let found = members.iter_mut().find(|(known, _)| known == name);
    &mut found.unwrap_or_else(|| panic!("no member {name}")).1
}

fn blob_name(data: &[u8]) -> String {
    format!("blobs/sha256/{}", digest(data).trim_start_matches("sha256:"))
}

/// The layout of `good` with another manifest, and an index that names it.
fn with_manifest(change: impl FnOnce(&mut Value)) -> Members {
    let image = good();
    let mut members = image.oci_members();
    let mut manifest: Value = serde_json::from_slice(&image.manifest_bytes()).expect("a manifest");
    change(&mut manifest);
    let manifest = manifest.to_string().into_bytes();
    members.retain(|(name, _)| *name != blob_name(&image.manifest_bytes()));
    members.insert(0, (blob_name(&manifest), manifest.clone()));
    let index = member(&mut members, "index.json");
    let mut value: Value = serde_json::from_slice(index).expect("an index");
    value["manifests"][0]["digest"] = digest(&manifest).into();
    value["manifests"][0]["size"] = manifest.len().into();
    *index = value.to_string().into_bytes();
    members
}

#[test]
fn an_archive_cut_off_anywhere_is_refused_and_the_next_import_works() {
    let shapes = [
        ("oci", good().oci()),
        ("docker", good().docker()),
        ("oci.gz", gzip(&good().oci())),
        ("docker.zst", zstd(&good().docker())),
    ];
    for (what, whole) in shapes {
        let scratch = scratch();
        let store = scratch.path().join("store");
        // The zeros at the end of a tar are no loss; everything before them is.
        let meaningful = whole.len() - whole.iter().rev().take_while(|byte| **byte == 0).count();
        let end = if what.contains('.') { whole.len() } else { meaningful };
        for part in 0..24 {
            let cut = end * part / 24;
            let data = &whole[..cut];
            let path = write(scratch.path(), "cut", data);
            let say = format!("{what} cut at {cut} of {}", whole.len());
            let ran = transload(&store, ["import", &path.to_string_lossy()]);
            assert_eq!(ran.code, Some(3), "{say}: {}", ran.stderr);
            ran.fails(3);
            let ran = run_with_input(&mut command(&store, ["import", "-"]), data);
            assert_eq!(ran.code, Some(3), "{say}, stdin: {}", ran.stderr);
            ran.fails(3);
        }
        assert_unharmed(what, &store, scratch.path());
    }
}

#[test]
fn a_blob_with_other_bytes_than_its_digest_is_refused() {
    let image = good();
    for (what, blob) in [("layer", 0), ("config", 2), ("manifest", 3)] {
        let mut members = image.oci_members();
        let data = &mut members[blob].1;
        let last = data.len() - 1;
        data[last] ^= 0x20;
        refused(&format!("a {what} with another byte"), &archive(&members), 3, &[]);
    }
}

#[test]
fn a_wrong_size_is_refused() {
    for delta in [-1, 1] {
        let members = with_manifest(|manifest| {
            let size = &mut manifest["layers"][0]["size"];
            *size = (size.as_i64().expect("a size") + delta).into();
        });
        refused(&format!("a size {delta} off"), &archive(&members), 3, &["bytes", "descriptor"]);
    }
    let members = with_manifest(|manifest| manifest["layers"][0]["size"] = json!(-1));
    refused("a negative size", &archive(&members), 3, &[]);
}

#[test]
fn a_wrong_diff_id_is_refused() {
    let image = good();
    let other = digest(b"something else");
    let mut members = image.docker_members();
    let old = image.config_bytes();
    let new =
        String::from_utf8(old.clone()).expect("JSON").replace(&image.diff_ids()[1], &other).into_bytes();
    let config_name = |bytes: &[u8]| format!("{}.json", digest(bytes).trim_start_matches("sha256:"));
    members.retain(|(name, _)| *name != config_name(&old));
    members.insert(0, (config_name(&new), new.clone()));
    let manifest = member(&mut members, "manifest.json");
    *manifest = String::from_utf8(manifest.clone())
        .expect("JSON")
        .replace(&config_name(&old), &config_name(&new))
        .into_bytes();
    refused("a docker config with another DiffID", &archive(&members), 3, &[]);

    let size = new.len();
    let mut members = with_manifest(|manifest| {
        manifest["config"]["digest"] = digest(&new).into();
        manifest["config"]["size"] = size.into();
    });
    members.insert(0, (blob_name(&new), new));
    refused("an OCI config with another DiffID", &archive(&members), 3, &[]);
}

#[test]
fn a_missing_blob_is_refused() {
    for (what, position) in [("layer", 0), ("config", 2), ("manifest", 3)] {
        let mut members = good().oci_members();
        members.remove(position);
        refused(&format!("an archive without its {what}"), &archive(&members), 3, &[]);
    }
    let mut members = good().docker_members();
    members.remove(0);
    refused("a docker archive without a layer", &archive(&members), 3, &[]);
}

#[test]
fn another_platform_is_refused_by_name() {
    let scratch = scratch();
    let path = write(scratch.path(), "arm.tar", &good().architecture("riscv64").oci());
    let store = scratch.path().join("store");
    let ran = transload(&store, ["import", "--platform", "linux/amd64", &path.to_string_lossy()]);
    assert!(matches!(ran.code, Some(3 | 4)), "{:?} {}", ran.code, ran.stderr);
    assert!(ran.stderr.contains("riscv64") || ran.stderr.contains("amd64"), "{}", ran.stderr);
    assert_unharmed("another platform", &store, scratch.path());
}

#[test]
fn what_is_not_an_image_is_refused() {
    refused("nothing at all", b"", 3, &[]);
    refused("text", b"hello, I am no archive\n", 3, &[]);
    refused("an empty tar", &[0; 10240], 3, &[]);
    refused("a gzip of text", &gzip(b"hello"), 3, &[]);
    refused("a truncated gzip header", &[0x1f, 0x8b, 8], 3, &[]);
    refused("zeros", &vec![0; 100_000], 3, &[]);
}

#[test]
fn a_root_filesystem_tar_gets_a_hint() {
    let rootfs = layer()
        .dir("/bin")
        .dir("/etc")
        .file("/etc/passwd", "root:x:0:0::/:/bin/sh\n")
        .dir("/usr")
        .dir("/usr/bin")
        .file("/usr/bin/sh", "x")
        .dir("/var")
        .tar();
    refused("a root filesystem", &rootfs, 3, &["hint: "]);
}

#[test]
fn a_missing_archive_and_wrong_usage_have_codes_of_their_own() {
    let scratch = scratch();
    transload(scratch.path(), ["import", "/nonexistent/archive.tar"]).fails(4);
    assert_eq!(transload(scratch.path(), ["import"]).code, Some(2));
    assert_eq!(transload(scratch.path(), ["import", "--no-such-option", "x"]).code, Some(2));
    transload(scratch.path(), ["unpack", "test/none:1", &scratch.path().join("x").to_string_lossy()])
        .fails(4);
    let ran = transload(scratch.path(), ["--json", "inspect", "test/none:1"]).fails(4);
    assert_eq!(ran.json()["error"]["kind"], "not_found", "{}", ran.text());
}

#[test]
fn a_read_only_store_is_refused_and_usable_once_writable() {
    if !have(&[]) {
        return;
    }
    let scratch = scratch();
    let Some(small) = Small::mount(&scratch.path().join("fs"), 16 << 20) else { return };
    let store = scratch.path().join("fs/store");
    transload(&store, ["images"]).ok();
    small.make_read_only();
    let path = write(scratch.path(), "good.tar", &good().oci());
    let ran = transload(&store, ["import", &path.to_string_lossy()]).fails(1);
    assert!(ran.stderr.to_lowercase().contains("read-only"), "{}", ran.stderr);
    small.make_writable();
    assert_unharmed("a read-only store", &store, scratch.path());
}

#[test]
fn a_full_disk_is_said_and_leaves_the_store_usable() {
    if !have(&[]) {
        return;
    }
    for compressed in [false, true] {
        let scratch = scratch();
        let Some(_small) = Small::mount(&scratch.path().join("fs"), 4 << 20) else { return };
        let store = scratch.path().join("fs/store");
        let large = image().name("test/large:1").layer(file("/large", random(6 << 20))).oci();
        let data = if compressed { gzip(&large) } else { large };
        let path = write(scratch.path(), "large.tar", &data);
        let ran = transload(&store, ["import", &path.to_string_lossy()]).fails(1);
        assert!(ran.stderr.contains("space"), "{}", ran.stderr);
        assert_unharmed("a full disk", &store, scratch.path());
    }
}

/// Bytes that do not compress.
fn random(length: usize) -> Vec<u8> {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut bytes = Vec::with_capacity(length);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes
}

#[test]
fn a_layer_that_podman_wrote_without_its_last_zeros_is_refused() {
    if !have(&[]) {
        return;
    }
    let archive = fs::read(crate::foreign().join("podman-oci-zstd-chunked-wrong.tar")).expect("a fixture");
    refused("podman's zstd:chunked", &archive, 3, &["DiffID"]);
}

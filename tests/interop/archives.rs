//! What an import makes of other tools' archives: the images skopeo sees, once.

use std::collections::BTreeSet;
use std::fs;

use serde_json::Value;

use crate::support::run::{command, run_with_input, transload};
use crate::support::scratch;
use crate::support::tools::have;
use crate::{Foreign, all_foreign, diff_ids, list, number, strings, text_of};

/// What decides whether two sightings of an image agree.
type Identity = (Option<String>, Option<String>, Option<String>, Vec<String>);

fn expected_identity(archive: &Foreign, image: &Value) -> Identity {
    let field = |name: &str| image[name].as_str().map(str::to_owned);
    (field("target"), field("manifest"), field("config"), strings(&image["diff_ids"]))
        .only_what(archive.kind.as_str())
}

trait OnlyWhat {
    fn only_what(self, kind: &str) -> Identity;
}

impl OnlyWhat for Identity {
    /// A docker archive has no manifest of its own, and the oldest kind no config either.
    fn only_what(self, kind: &str) -> Identity {
        match kind {
            "oci" => self,
            "docker" => (None, None, self.2, self.3),
            _ => (None, None, None, self.3),
        }
    }
}

fn reported_identity(archive: &Foreign, image: &Value) -> Identity {
    let field = |name: &str| image[name].as_str().map(str::to_owned);
    (field("target"), field("manifest"), field("config"), diff_ids(image)).only_what(archive.kind.as_str())
}

#[track_caller]
fn check(archive: &Foreign, report: &Value) {
    let expected: BTreeSet<Identity> = archive.images.iter().map(|i| expected_identity(archive, i)).collect();
    let reported: BTreeSet<Identity> =
        list(&report["images"]).iter().map(|i| reported_identity(archive, i)).collect();
    assert_eq!(reported, expected, "{}", archive.file);
    // Names that other tools wrote in full are taken as they are; `1` alone is a tag, and whose is for the importer to say.
    let names: Vec<&str> =
        report["images"].as_array().into_iter().flatten().filter_map(|i| i["name"].as_str()).collect();
    for name in
        archive.images.iter().flat_map(|image| strings(&image["names"])).filter(|name| name.contains('/'))
    {
        assert!(names.contains(&name.as_str()), "{}: {name} is not among {names:?}", archive.file);
    }
    assert!(report["audit"].is_object(), "{}: --audit gives an object: {report}", archive.file);
}

#[test]
fn every_archive_gives_the_images_that_skopeo_sees() {
    if !have(&[]) {
        return; // the fixtures have owners and devices
    }
    for archive in all_foreign() {
        let scratch = scratch();
        let ran =
            transload(scratch.path(), ["import", "--json", "--audit", &archive.path().to_string_lossy()])
                .ok();
        check(&archive, &ran.json());
    }
}

#[test]
fn a_stream_on_stdin_gives_the_same_images() {
    if !have(&[]) {
        return; // the fixtures have owners and devices
    }
    for archive in all_foreign().iter().filter(|archive| archive.path().is_file()) {
        let scratch = scratch();
        let bytes = fs::read(archive.path()).expect("a fixture");
        let ran =
            run_with_input(&mut command(scratch.path(), ["import", "--json", "--audit", "-"]), &bytes).ok();
        check(archive, &ran.json());
    }
}

#[test]
fn importing_everything_again_writes_nothing() {
    if !have(&[]) {
        return; // the fixtures have owners and devices
    }
    let store = scratch();
    let paths: Vec<String> = all_foreign().iter().map(|a| a.path().to_string_lossy().into_owned()).collect();
    for path in &paths {
        transload(store.path(), ["import", path]).ok();
    }
    for path in &paths {
        let again = transload(store.path(), ["import", "--json", "--audit", path]).ok().json();
        assert_nothing_new(path, &again);
    }
    for archive in all_foreign().iter().filter(|archive| archive.path().is_file()) {
        let bytes = fs::read(archive.path()).expect("a fixture");
        let again =
            run_with_input(&mut command(store.path(), ["import", "--json", "--audit", "-"]), &bytes).ok();
        assert_nothing_new(&archive.file, &again.json());
    }
}

#[track_caller]
fn assert_nothing_new(what: &str, report: &Value) {
    for (object, field) in [
        ("blobs", "new"),
        ("blobs", "bytes_written"),
        ("trees", "new"),
        ("trees", "bytes_written"),
        ("snapshots", "new"),
    ] {
        assert_eq!(number(&report[object][field]), 0, "{what}: {object}.{field}: {report}");
    }
}

/// Stored twice under two compressions, a layer is two blobs and one tree.
#[test]
fn a_layer_is_extracted_once_whatever_its_compression() {
    if !have(&[]) {
        return; // the fixtures have owners and devices
    }
    let store = scratch();
    let named = |file: &str| all_foreign().into_iter().find(|a| a.file == file).expect("a fixture");
    let first =
        transload(store.path(), ["import", "--json", &named("skopeo-oci-zstd.tar").path().to_string_lossy()]);
    let first = first.ok().json();
    assert_eq!(number(&first["trees"]["new"]), 2, "{first}");
    for file in [
        "skopeo-oci-unnamed.tar",
        "podman-oci-zstd-chunked.tar",
        "skopeo-docker-tiny.tar.xz",
        "skopeo-oci-plain.tar",
    ] {
        let report =
            transload(store.path(), ["import", "--json", &named(file).path().to_string_lossy()]).ok().json();
        assert_eq!(number(&report["trees"]["new"]), 0, "{file}: {report}");
    }
}

#[test]
fn what_a_sparse_archive_lacks_is_reported_and_the_rest_imports() {
    if !have(&[]) {
        return; // the fixtures have owners and devices
    }
    let store = scratch();
    let archives = all_foreign();
    let sparse = archives.iter().find(|a| a.file == "containerd-sparse.tar").expect("a fixture");
    let path = sparse.path().to_string_lossy().into_owned();
    let report = transload(store.path(), ["import", "--json", "--all-platforms", &path]).ok().json();
    let skipped: Vec<String> = list(&report["skipped"]).iter().map(|s| text_of(&s["descriptor"])).collect();
    for absent in strings(&sparse.images[0]["skipped"]) {
        assert!(skipped.contains(&absent), "{absent} is not among {skipped:?}");
    }
    assert_eq!(list(&report["images"])[0]["target"], sparse.images[0]["target"]);
}

#[test]
fn all_platforms_of_a_complete_index_import() {
    if !have(&[]) {
        return; // the fixtures have owners and devices
    }
    let store = scratch();
    let path = crate::foreign().join("buildah-index.tar");
    let report =
        transload(store.path(), ["import", "--json", "--all-platforms", &path.to_string_lossy()]).ok().json();
    let platforms: BTreeSet<String> =
        list(&report["images"]).iter().map(|i| text_of(&i["platform"])).collect();
    assert_eq!(platforms.len(), 2, "{report}");
    let arm = transload(
        scratch().path(),
        ["import", "--json", "--platform", "linux/arm64", &path.to_string_lossy()],
    )
    .ok()
    .json();
    assert!(text_of(&arm["images"][0]["platform"]).starts_with("linux/arm64"), "{arm}");
}

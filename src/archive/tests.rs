//! Archives of the real tools, made-up ones, and broken ones; every one both ways in.

use super::writer::{DockerImage, LayoutWriter};
use super::*;
use crate::error::{ErrorKind, Result};
use crate::limits::Limits;
use crate::oci::{DiffId, Digest};
use crate::parallel::{Budget, Cancel};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::io::{Cursor, Read, Write};
use std::path::Path;

struct Archive(tar::Builder<Vec<u8>>);

impl Archive {
    fn new() -> Self {
        Archive(tar::Builder::new(Vec::new()))
    }

    fn entry(mut self, kind: tar::EntryType, name: &str, link: &str, bytes: &[u8]) -> Self {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
        header.as_mut_bytes()[157..157 + link.len()].copy_from_slice(link.as_bytes());
        header.set_cksum();
        self.0.append(&header, bytes).expect("memory");
        self
    }

    fn file(self, name: &str, bytes: impl AsRef<[u8]>) -> Self {
        self.entry(tar::EntryType::Regular, name, "", bytes.as_ref())
    }

    fn symlink(self, name: &str, target: &str) -> Self {
        self.entry(tar::EntryType::Symlink, name, target, b"")
    }

    fn blob(self, bytes: &[u8]) -> Self {
        self.file(&blob(bytes), bytes)
    }

    fn bytes(self) -> Vec<u8> {
        self.0.into_inner().expect("memory")
    }
}

fn blob(bytes: &[u8]) -> String {
    format!("blobs/sha256/{}", Digest::of(bytes).hex())
}

fn as_json(value: &Value) -> Vec<u8> {
    serde_json::to_vec(value).expect("plain data")
}

fn descriptor(media_type: &str, bytes: &[u8]) -> Value {
    json!({"mediaType": media_type, "digest": Digest::of(bytes).to_string(), "size": bytes.len()})
}

const MANIFEST: &str = crate::oci::media_type::MANIFEST;
const INDEX: &str = crate::oci::media_type::INDEX;

fn config(layers: &[&[u8]]) -> Vec<u8> {
    let diff_ids: Vec<String> = layers.iter().map(|layer| Digest::of(layer).to_string()).collect();
    as_json(
        &json!({"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": diff_ids}}),
    )
}

fn manifest(config: &[u8], layers: &[&[u8]]) -> Vec<u8> {
    let layers: Vec<Value> = layers.iter().map(|l| descriptor(crate::oci::media_type::LAYER, l)).collect();
    as_json(
        &json!({"schemaVersion": 2, "config": descriptor(crate::oci::media_type::CONFIG, config), "layers": layers}),
    )
}

fn index(manifests: Vec<Value>) -> Vec<u8> {
    as_json(&json!({"schemaVersion": 2, "manifests": manifests}))
}

fn named(mut descriptor: Value, name: &str) -> Value {
    descriptor["annotations"] = json!({"org.opencontainers.image.ref.name": name});
    descriptor
}

fn budget() -> Budget {
    Budget::new(64 << 20)
}

fn read(input: Input) -> Result<Source> {
    open(input, &Limits::default(), &budget(), &Cancel::new())
}

fn open_seekable(bytes: &[u8]) -> Result<Seekable> {
    let mut file = tempfile::tempfile().expect("a temporary file");
    file.write_all(bytes).expect("space");
    match read(Input::File { name: "test".into(), file })? {
        Source::Seekable(archive) => Ok(archive),
        Source::Stream(_) => panic!("a plain tar is seekable"),
    }
}

fn passed(reader: Box<dyn Read + Send>) -> Result<KeptDocuments> {
    let source = read(Input::Reader { name: "test".into(), reader })?;
    let Source::Stream(mut stream) = source else { panic!("a reader is a stream") };
    let mut documents = KeptDocuments::default();
    while let Some(mut member) = stream.next_member()? {
        let name = member.name().clone();
        match member.kind().clone() {
            MemberKind::Link(target) => documents.add_link(name, target)?,
            MemberKind::Other => {}
            MemberKind::File => {
                documents.add_file(name.clone(), member.size_bytes())?;
                if member.peek(1)?.first().is_some_and(|first| b"{[".contains(first)) {
                    let mut bytes = Vec::new();
                    member.read_to_end(&mut bytes)?;
                    documents.add_document(&name, bytes)?;
                }
            }
        }
    }
    Ok(documents)
}

/// Both ways must say the same.
fn find(bytes: &[u8]) -> Result<Found> {
    let seekable = open_seekable(bytes).and_then(|archive| find_images(&archive, &Limits::default()));
    let streamed = passed(Box::new(Cursor::new(bytes.to_vec())))
        .and_then(|documents| find_images(&documents, &Limits::default()));
    match (&seekable, &streamed) {
        (Ok(one), Ok(other)) => assert_eq!(format!("{one:?}"), format!("{other:?}")),
        (Err(one), Err(other)) => assert_eq!(one.kind(), other.kind(), "{one} / {other}"),
        (one, other) => panic!("seekable {one:?}, stream {other:?}"),
    }
    seekable
}

fn refused(bytes: &[u8], kind: ErrorKind) -> crate::Error {
    let error = find(bytes).expect_err("must be refused");
    assert_eq!(error.kind(), kind, "{error}");
    error
}

fn names(found: &Found) -> Vec<Vec<String>> {
    found.images.iter().map(|image| image.names.iter().map(ToString::to_string).collect()).collect()
}

#[test]
fn what_other_tools_wrote_is_found_as_skopeo_sees_it() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/foreign");
    let Ok(expected) = std::fs::read(dir.join("expected.json")) else {
        return eprintln!("SKIPPED: testdata/foreign is not there");
    };
    let expected: Value = serde_json::from_slice(&expected).expect("JSON");
    for (name, archive) in expected["archives"].as_object().expect("archives") {
        let path = dir.join(name);
        let found = match read(Input::Path(path.clone())).expect(name) {
            Source::Seekable(archive) => find_images(&archive, &Limits::default()),
            Source::Stream(_) => {
                let file = std::fs::File::open(&path).expect(name);
                passed(Box::new(file)).and_then(|documents| find_images(&documents, &Limits::default()))
            }
        };
        let found = found.unwrap_or_else(|error| panic!("{name}: {error}"));
        if path.is_file() {
            let file = std::fs::File::open(&path).expect(name);
            let streamed =
                passed(Box::new(file)).and_then(|documents| find_images(&documents, &Limits::default()));
            assert_eq!(format!("{:?}", streamed.expect(name)), format!("{found:?}"), "{name}");
        }
        check_foreign(name, archive, &found);
    }
}

fn check_foreign(name: &str, archive: &Value, found: &Found) {
    let images = archive["images"].as_array().expect("images");
    let text = |value: &Value| value.as_str().map(str::to_string);
    for image in images {
        let config = text(&image["config"]).unwrap_or_default();
        let wanted: Vec<Value> = image["diff_ids"].as_array().expect("diff_ids").clone();
        let manifests =
            || found.images.iter().flat_map(|found| found.manifests.iter().map(move |m| (found, m)));
        let same = |(_, m): &(&FoundImage, &FoundManifest)| {
            let legacy = m.layers.iter().all(|layer| layer.diff_id.is_none());
            m.config_digest.to_string() == config || legacy
        };
        let (of, manifest) =
            manifests().find(same).unwrap_or_else(|| panic!("{name}: no image with {config}: {found:?}"));
        let diff_ids: Vec<Value> =
            manifest.config.diff_ids.iter().map(|id| Value::from(id.to_string())).collect();
        if !diff_ids.is_empty() {
            assert_eq!(diff_ids, wanted, "{name}");
        }
        assert_eq!(manifest.layers.len(), wanted.len(), "{name}");
        if let Some(digest) = text(&image["manifest"]) {
            let own = manifest.manifest.as_ref().expect("an OCI manifest");
            assert_eq!(own.0.digest.to_string(), digest, "{name}");
            assert_eq!(Digest::of(&own.1), own.0.digest, "{name}");
        }
        if let Some(target) = text(&image["target"]) {
            assert_eq!(of.target.as_ref().map(|target| target.digest.to_string()), Some(target), "{name}");
        }
        let wanted: BTreeSet<String> =
            image["names"].as_array().into_iter().flatten().filter_map(text).collect();
        let have: BTreeSet<String> = of.names.iter().map(ToString::to_string).collect();
        if !wanted.iter().all(|name| name.contains('/') && name.contains(':')) {
            eprintln!("{name}: skopeo {wanted:?}, here {have:?}");
            continue;
        }
        assert_eq!(have, wanted, "{name}");
    }
}

fn docker(layers: &[&str], config: &str, tags: Value) -> Vec<u8> {
    as_json(&json!([{"Config": config, "RepoTags": tags, "Layers": layers}]))
}

#[test]
fn b13_b15_b19_docker_names_of_every_style() {
    let layer = b"a layer".as_slice();
    let config = config(&[layer, layer]);
    let config_name = format!("sha256:{}", Digest::of(&config).hex());
    let archive = Archive::new()
        .file("./abc.tar.gz", layer)
        .symlink("./0001/layer.tar", "../abc.tar.gz")
        .file(&format!("./{config_name}"), &config)
        .file("./manifest.json", docker(&["abc.tar.gz", "0001/layer.tar"], &config_name, Value::Null));
    let found = find(&archive.bytes()).expect("an image");
    let [image] = found.images.as_slice() else { panic!("one image") };
    assert!(image.names.is_empty() && image.target.is_none());
    let member = MemberName::parse(b"abc.tar.gz").ok();
    assert!(image.manifests[0].layers.iter().all(|layer| layer.member == member && layer.size == 7));
    assert_eq!(image.manifests[0].config_digest, Digest::of(&config));
}

#[test]
fn b12_b17_what_a_sparse_archive_leaves_out_is_reported() {
    let (here, gone) = (config(&[b"layer"]), config(&[b"gone"]));
    let (present, absent) = (manifest(&here, &[b"layer"]), manifest(&gone, &[b"gone"]));
    let list = index(vec![descriptor(MANIFEST, &present), descriptor(MANIFEST, &absent)]);
    let top = index(vec![named(descriptor(INDEX, &list), "example.org/sparse:1")]);
    let archive = Archive::new().file("index.json", top).blob(&list).blob(&present).blob(&here);
    let found = find(&archive.bytes()).expect("the present one");
    assert_eq!(names(&found), [["example.org/sparse:1"]]);
    assert_eq!(found.images[0].documents.len(), 1);
    assert_eq!(found.images[0].manifests.len(), 1);
    assert_eq!(found.images[0].manifests[0].layers[0].member, None);
    assert_eq!(found.skipped.len(), 1);
    assert_eq!(found.skipped[0].descriptor, Digest::of(&absent).to_string());
}

#[test]
fn b18_legacy_archives_are_chained_by_parent() {
    let (bottom, top) = ("1".repeat(64), "2".repeat(64));
    let v1 = |id: &str, parent: &str| {
        as_json(&json!({"id": id, "parent": parent, "os": "linux", "architecture": "arm64",
        "created": "2014-01-01T00:00:00Z", "container_config": {"Cmd": ["/bin/sh", "-c", id]}, "config": {"Cmd": ["sh"]}}))
    };
    let archive = |parent: &str| {
        Archive::new()
            .file(&format!("{top}/json"), v1(&top, &bottom))
            .file(&format!("{top}/layer.tar"), "top")
            .file(&format!("{bottom}/json"), v1(&bottom, parent))
            .file(&format!("{bottom}/layer.tar"), "bottom")
            .file("repositories", as_json(&json!({"old/app": {"1": top, "2": top}})))
            .bytes()
    };
    let mut found = find(&archive("")).expect("legacy");
    assert_eq!(names(&found), [["docker.io/old/app:1", "docker.io/old/app:2"]]);
    let manifest = &mut found.images[0].manifests[0];
    assert_eq!(manifest.layers.iter().map(|layer| layer.size).collect::<Vec<_>>(), [6, 3]);
    let diff_ids = [DiffId(Digest::of(b"bottom")), DiffId(Digest::of(b"top"))];
    manifest.complete_config(&diff_ids).expect("a configuration");
    assert_eq!(manifest.config.diff_ids, diff_ids);
    assert_eq!(manifest.config.history.len(), 2);
    assert_eq!(manifest.platform.to_string(), "linux/arm64");
    assert_eq!(manifest.config_digest, Digest::of(&manifest.config_bytes));
    let json: Value = serde_json::from_slice(&manifest.config_bytes).expect("JSON");
    assert!(json.get("id").is_none() && json["config"]["Cmd"][0] == "sh");
    for parent in [top.as_str(), "../../x"] {
        refused(&archive(parent), ErrorKind::Malformed);
    }
}

#[test]
fn t12_t14_t21_documents_that_lie() {
    let layer = b"layer".as_slice();
    let good = config(&[layer]);
    let whole = |config: &[u8], manifest: &[u8], top: Vec<u8>| {
        Archive::new().file("index.json", top).blob(config).blob(manifest).blob(layer).bytes()
    };
    let image = manifest(&good, &[layer]);
    let top = |descriptor: Value| index(vec![descriptor]);
    assert!(find(&whole(&good, &image, top(descriptor(MANIFEST, &image)))).is_ok());
    assert!(find(&whole(&good, &image, top(descriptor("", &image)))).is_ok());
    refused(&whole(&good, &image, top(descriptor(INDEX, &image))), ErrorKind::Malformed);
    for size in [json!(-1), json!(1.5), json!("1")] {
        let mut wrong = descriptor(MANIFEST, &image);
        wrong["size"] = size;
        refused(&whole(&good, &image, top(wrong)), ErrorKind::Malformed);
    }
    let mut wrong = descriptor(MANIFEST, &image);
    wrong["size"] = json!(image.len() + 1);
    refused(&whole(&good, &image, top(wrong)), ErrorKind::SizeMismatch);
    let mut wrong = descriptor(MANIFEST, &image);
    wrong["digest"] = json!("sha256:../../x");
    refused(&whole(&good, &image, top(wrong)), ErrorKind::Malformed);
    let two = manifest(&good, &[layer, layer]);
    refused(&whole(&good, &two, top(descriptor(MANIFEST, &two))), ErrorKind::Malformed);
    let bent = Archive::new()
        .file("index.json", top(descriptor(MANIFEST, &image)))
        .file(&blob(&image), vec![b'{'; image.len()]);
    refused(&bent.bytes(), ErrorKind::DigestMismatch);
    let large = Archive::new().file("manifest.json", [b"[", vec![b' '; 9 << 20].as_slice()].concat());
    refused(&large.bytes(), ErrorKind::LimitExceeded);
}

#[test]
fn t19_t20_indexes_nested_too_deep_and_diamonds() {
    let layer = b"layer".as_slice();
    let config = config(&[layer]);
    let image = manifest(&config, &[layer]);
    let nest = |depth: usize| {
        let mut archive = Archive::new().blob(&config).blob(&image).blob(layer);
        let mut below = descriptor(MANIFEST, &image);
        for _ in 0..depth {
            let list = index(vec![below.clone(), below]);
            below = descriptor(INDEX, &list);
            archive = archive.blob(&list);
        }
        archive.file("index.json", index(vec![below])).bytes()
    };
    let found = find(&nest(7)).expect("a diamond is fine");
    assert_eq!((found.images[0].manifests.len(), found.images[0].documents.len()), (1, 7));
    refused(&nest(30), ErrorKind::LimitExceeded);
}

#[test]
fn t28_layout_and_manifest_json_agree_or_are_refused() {
    let layer = b"layer".as_slice();
    let config = config(&[layer]);
    let image = manifest(&config, &[layer]);
    let with = |docker_layer: &str, manifests: Vec<Value>| {
        let config_name = blob(&config);
        Archive::new()
            .blob(&config)
            .blob(&image)
            .blob(layer)
            .file("other.tar", "other")
            .file("index.json", index(manifests))
            .file("manifest.json", docker(&[docker_layer], &config_name, json!(["app:1", "app:2"])))
            .bytes()
    };
    let own = || vec![named(descriptor(MANIFEST, &image), "example.org/app:0")];
    let found = find(&with(&blob(layer), own())).expect("one story");
    assert_eq!(found.format, Format::Both);
    assert_eq!(names(&found), [["example.org/app:0", "docker.io/library/app:1", "docker.io/library/app:2"]]);
    refused(&with("other.tar", own()), ErrorKind::Malformed);
    refused(&with(&blob(layer), vec![]), ErrorKind::Malformed);
}

#[test]
fn t28_duplicate_members_must_be_identical_if_they_are_used() {
    let layer = b"layer".as_slice();
    let config = config(&[layer]);
    let base = |first: &str, second: &str| {
        Archive::new()
            .file("l.tar", layer)
            .file("c.json", &config)
            .file("unused", first)
            .file("unused", second)
            .file("manifest.json", docker(&["l.tar"], "c.json", Value::Null))
    };
    assert!(find(&base("a", "b").bytes()).is_ok());
    assert!(find(&base("a", "a").file("c.json", &config).bytes()).is_ok());
    let mut other = config.clone();
    *other.last_mut().expect("not empty") = b' ';
    refused(&base("a", "a").file("c.json", &other).bytes(), ErrorKind::Malformed);
    let differing = open_seekable(&base("a", "a").file("l.tar", "LAYER").bytes()).expect("a tar");
    let name = MemberName::parse(b"l.tar").expect("a name");
    assert_eq!(differing.reader(&name).err().map(|error| error.kind()), Some(ErrorKind::Malformed));
}

#[test]
fn links_that_lead_in_circles_or_out_are_no_members() {
    let config = config(&[b"x"]);
    let base = |target: &str| {
        Archive::new()
            .file("c.json", &config)
            .symlink("l.tar", target)
            .file("manifest.json", docker(&["l.tar"], "c.json", Value::Null))
            .bytes()
    };
    refused(&base("l.tar"), ErrorKind::Malformed);
    for outside in ["../../etc/passwd", "/etc/passwd", "nowhere"] {
        let found = find(&base(outside)).expect("the layer is absent");
        assert_eq!(found.images[0].manifests[0].layers[0].member, None, "{outside}");
    }
    refused(&Archive::new().file("a/../../b", "x").bytes(), ErrorKind::Malformed);
}

#[test]
fn attestations_and_artifacts_are_skipped_with_a_reason() {
    let layer = b"layer".as_slice();
    let config = config(&[layer]);
    let image = manifest(&config, &[layer]);
    let artifact = String::from_utf8(manifest(&config, &[layer])).expect("JSON");
    let artifact = artifact
        .replace(crate::oci::media_type::CONFIG, "application/vnd.cncf.helm.config.v1+json")
        .into_bytes();
    let mut attestation = descriptor(MANIFEST, &artifact);
    attestation["annotations"] = json!({"vnd.docker.reference.type": "attestation-manifest"});
    let list = index(vec![descriptor(MANIFEST, &image), attestation]);
    let top = index(vec![named(descriptor(INDEX, &list), "a/b:1"), descriptor(MANIFEST, &artifact)]);
    let archive = Archive::new()
        .file("index.json", top)
        .blob(&list)
        .blob(&image)
        .blob(&artifact)
        .blob(&config)
        .blob(layer);
    let found = find(&archive.bytes()).expect("one image");
    assert_eq!(found.images.len(), 1);
    let reasons: Vec<&str> = found.skipped.iter().map(|skipped| skipped.reason.as_str()).collect();
    assert_eq!(
        reasons,
        ["an attestation", "an artifact of type application/vnd.cncf.helm.config.v1+json, not an image"]
    );
}

#[test]
fn names_of_layout_entries() {
    let layer = b"layer".as_slice();
    let config = config(&[layer]);
    let image = manifest(&config, &[layer]);
    let table = [
        ("latest", Some("docker.io/library/latest:latest")),
        ("app:1.0", Some("docker.io/library/app:1.0")),
        ("ghcr.io/a/b:1", Some("ghcr.io/a/b:1")),
        ("V1", None),
    ];
    for (written, name) in table {
        let top = index(vec![named(descriptor(MANIFEST, &image), written)]);
        let found =
            find(&Archive::new().file("index.json", top).blob(&image).blob(&config).blob(layer).bytes());
        let found = found.expect("an image");
        let have = found.images[0].names.first().map(ToString::to_string);
        assert_eq!(have.as_deref(), name);
        assert_eq!(found.skipped.len(), usize::from(name.is_none()));
    }
}

#[test]
fn what_is_no_image_says_so() {
    for bytes in [&b"hello"[..], &[b'x'; 2000], b"PK\x03\x04rest of a zip archive", b"{\"schemaVersion\":2}"]
    {
        let error = find(bytes).expect_err("not an archive");
        assert!(matches!(error.kind(), ErrorKind::NotAnImage | ErrorKind::Truncated), "{error}");
    }
    refused(b"", ErrorKind::Truncated);
    refused(&[0; 10240], ErrorKind::NotAnImage);
    refused(&Archive::new().file("a", "b").bytes(), ErrorKind::NotAnImage);
    let rootfs = Archive::new().file("bin/sh", "x").file("etc/passwd", "y").file("usr/bin/env", "z");
    let error = refused(&rootfs.bytes(), ErrorKind::NotAnImage);
    assert!(error.to_string().contains("root filesystem") && error.hint().is_some());
}

#[test]
fn a_tar_cut_anywhere_is_refused_unless_nothing_is_missing() {
    let layer = vec![7; 700];
    let config = config(&[&layer]);
    let archive = Archive::new()
        .file("l.tar", &layer)
        .file("c.json", &config)
        .file("manifest.json", docker(&["l.tar"], "c.json", json!(["a:1"])));
    let whole = archive.bytes();
    let content_end = whole.len() - 1024;
    for end in (0..content_end - 511).step_by(37).chain((0..content_end - 511).step_by(512)) {
        let error = find(&whole[..end]).expect_err("cut");
        assert!(error.kind().is_input(), "{end}: {error}");
    }
    let last =
        Archive::new().file("manifest.json", docker(&["l.tar"], "c.json", Value::Null)).file("l.tar", &layer);
    let mut cut = last.bytes();
    cut.truncate(512 * 3 + 300);
    refused(&cut, ErrorKind::Truncated);
}

#[test]
fn members_are_read_by_range_and_by_several_at_once() {
    let data: Vec<u8> = (0..100_000u32).flat_map(u32::to_le_bytes).collect();
    let archive =
        open_seekable(&Archive::new().file("a", "x").file("b", &data).file("c", "y").bytes()).expect("a tar");
    let name = MemberName::parse(b"b").expect("a name");
    let mut range = [0; 1000];
    archive.read_range(&name, 5000, &mut range).expect("inside");
    assert_eq!(range, data[5000..6000]);
    assert!(archive.read_range(&name, data.len() as u64 - 1, &mut range).is_err());
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let mut bytes = Vec::new();
                archive.reader(&name).expect("there").read_to_end(&mut bytes).expect("whole");
                assert!(bytes == data);
            });
        }
    });
}

#[test]
fn who_waits_for_memory_to_unpack_an_archive_can_be_cancelled() {
    let mut encoder = liblzma::write::XzEncoder::new(Vec::new(), 9);
    encoder.write_all(&Archive::new().file("a", b"x").bytes()).expect("memory");
    let reader = Box::new(Cursor::new(encoder.finish().expect("memory")));
    let (budget, cancel) = (Budget::new(128 << 20), Cancel::new());
    let _all = budget.try_buy(128 << 20).expect("nobody has any");
    let source = open(Input::Reader { name: "t".into(), reader }, &Limits::default(), &budget, &cancel);
    let Ok(Source::Stream(mut stream)) = source else { panic!("a stream") };
    cancel.cancel();
    assert_eq!(stream.next_member().map(drop).expect_err("no memory").kind(), ErrorKind::Cancelled);
}

#[test]
fn peeking_consumes_nothing() {
    let data: Vec<u8> = (0..500_000u32).flat_map(u32::to_le_bytes).collect();
    let bytes = Archive::new().file("a", &data).file("b", "after").bytes();
    let source = read(Input::Reader { name: "t".into(), reader: Box::new(Cursor::new(bytes)) });
    let Ok(Source::Stream(mut stream)) = source else { panic!("a stream") };
    let mut member = stream.next_member().expect("a").expect("a");
    assert_eq!(member.peek(64 << 10).expect("ahead"), &data[..64 << 10]);
    let mut first = [0; 100];
    member.read_exact(&mut first).expect("data");
    assert_eq!(member.peek(1000).expect("ahead"), &data[100..1100]);
    let mut rest = Vec::new();
    member.read_to_end(&mut rest).expect("data");
    assert!([&first[..], &rest].concat() == data);
    drop(member);
    let mut member = stream.next_member().expect("b").expect("b");
    member.peek(3).expect("ahead");
    drop(member);
    assert!(stream.next_member().expect("end").is_none());
    assert!(stream.bytes_read() > 2_000_000);
}

#[test]
fn a_layout_directory_is_read_without_following_links() {
    let dir = tempfile::tempdir().expect("a directory");
    let layer = b"layer".as_slice();
    let config = config(&[layer]);
    let image = manifest(&config, &[layer]);
    std::fs::create_dir_all(dir.path().join("blobs/sha256")).expect("space");
    for bytes in [layer, &config, &image] {
        std::fs::write(dir.path().join(blob(bytes)), bytes).expect("space");
    }
    std::fs::write(dir.path().join("index.json"), index(vec![descriptor(MANIFEST, &image)])).expect("space");
    let opened = || match read(Input::Path(dir.path().into())) {
        Ok(Source::Seekable(archive)) => archive,
        _ => panic!("a directory is seekable"),
    };
    assert!(opened().is_directory());
    assert_eq!(find_images(&opened(), &Limits::default()).expect("an image").images.len(), 1);
    let path = dir.path().join(blob(layer));
    std::fs::remove_file(&path).expect("there");
    std::os::unix::fs::symlink("/etc/passwd", &path).expect("space");
    let error = find_images(&opened(), &Limits::default()).expect_err("a link");
    assert_eq!(error.kind(), ErrorKind::Malformed);
}

/// An image whose layer is a real tar, for tools that look inside.
fn export(with_docker: bool) -> Vec<u8> {
    let layer = Archive::new().file("hello", "world").bytes();
    let config = config(&[&layer]);
    let image = manifest(&config, &[&layer]);
    let mut writer = LayoutWriter::begin(Vec::new()).expect("memory");
    for bytes in [&layer, &config, &image] {
        writer.blob(&Digest::of(bytes), bytes.len() as u64, &bytes[..]).expect("memory");
    }
    let top = index(vec![named(descriptor(MANIFEST, &image), "example.org/app:1")]);
    let docker = [DockerImage {
        config: Digest::of(&config),
        layers: vec![Digest::of(&layer)],
        repo_tags: vec!["example.org/app:1".into()],
    }];
    let index = serde_json::from_slice(&top).expect("an index");
    writer.finish(&index, with_docker.then_some(&docker[..])).expect("memory")
}

#[test]
fn an_export_is_deterministic_and_found_again() {
    for with_docker in [false, true] {
        assert!(export(with_docker) == export(with_docker));
        let found = find(&export(with_docker)).expect("an image");
        assert_eq!(found.format, if with_docker { Format::Both } else { Format::OciLayout });
        assert_eq!(names(&found), [["example.org/app:1"]]);
    }
    let mut writer = LayoutWriter::begin(Vec::new()).expect("memory");
    for size in [3, 5] {
        let error = writer.blob(&Digest::of(b"four"), size, &b"four"[..]).expect_err("another size");
        assert_eq!(error.kind(), ErrorKind::SizeMismatch);
    }
}

#[test]
fn skopeo_reads_our_exports() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("export.tar");
    std::fs::write(&path, export(true)).expect("space");
    for transport in ["oci-archive", "docker-archive"] {
        let source = format!("{transport}:{}", path.display());
        let target = format!("dir:{}", dir.path().join(transport).display());
        let run = std::process::Command::new("skopeo")
            .args(["--insecure-policy", "copy", "-q", &source, &target])
            .output();
        match run {
            Err(_) => return eprintln!("SKIPPED: skopeo is not there"),
            Ok(output) => assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr)),
        }
    }
}

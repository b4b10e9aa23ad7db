//! Images built in code: `image().layer(file("/etc/a", "1").whiteout("/etc/b"))`, written as a docker-save tar, an OCI
//! layout tar or a list of members that a test may spoil first. Every byte is determined by the calls. Names, targets and
//! sizes are taken as they are, hostile ones too.

use std::io::Write;
use std::path::Path;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tar::{EntryType, Header};

/// The members of an archive, in order.
pub type Members = Vec<(String, Vec<u8>)>;

/// How a layer is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pack {
    Plain,
    Gzip,
    /// Several gzip members, as pigz and bgzip write.
    GzipMembers,
    Zstd,
    /// Frames with skippable ones between, as zstd:chunked and seekable files have.
    ZstdFrames,
}

/// Bytes that do not compress, from a small generator so that they are the same in every run.
pub fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    std::iter::repeat_with(next).flatten().take(length).collect()
}

/// An empty image for linux/amd64.
pub fn image() -> Image {
    Image { names: Vec::new(), layers: Vec::new(), config: json!({}), architecture: "amd64".into() }
}

/// A layer with one file.
pub fn file(path: &str, content: impl AsRef<[u8]>) -> Layer {
    layer().file(path, content)
}

/// A layer with one directory.
pub fn dir(path: &str) -> Layer {
    layer().dir(path)
}

/// A layer without entries.
pub fn layer() -> Layer {
    Layer { entries: Vec::new(), pack: Pack::Gzip, end_blocks: true, raw: None }
}

/// A layer whose tar was made elsewhere, byte by byte.
pub fn raw_layer(tar: Vec<u8>) -> Layer {
    Layer { raw: Some(tar), ..layer() }
}

/// One entry: what its header says, and its data.
#[derive(Clone, Debug)]
struct Entry {
    name: Vec<u8>,
    kind: EntryType,
    link: Vec<u8>,
    data: Vec<u8>,
    mode: u32,
    owner: (u64, u64),
    device: (u32, u32),
    /// Seconds and nanoseconds.
    mtime: (i64, u32),
    xattrs: Vec<(String, Vec<u8>)>,
}

/// A layer's entries in order, and how they are stored.
#[derive(Clone, Debug)]
pub struct Layer {
    entries: Vec<Entry>,
    pack: Pack,
    end_blocks: bool,
    /// Instead of all entries.
    raw: Option<Vec<u8>>,
}

impl Layer {
    pub fn file(self, path: &str, content: impl AsRef<[u8]>) -> Self {
        self.entry(path.as_bytes(), EntryType::Regular, b"", content.as_ref(), 0o644)
    }
    pub fn dir(self, path: &str) -> Self {
        self.entry(path.as_bytes(), EntryType::Directory, b"", b"", 0o755)
    }
    pub fn symlink(self, path: &str, target: &str) -> Self {
        self.entry(path.as_bytes(), EntryType::Symlink, target.as_bytes(), b"", 0o777)
    }
    pub fn hardlink(self, path: &str, target: &str) -> Self {
        let target = target.trim_start_matches('/').as_bytes().to_vec();
        self.entry(path.as_bytes(), EntryType::Link, &target, b"", 0o644)
    }
    pub fn fifo(self, path: &str) -> Self {
        self.entry(path.as_bytes(), EntryType::Fifo, b"", b"", 0o600)
    }
    pub fn char_device(self, path: &str, major: u32, minor: u32) -> Self {
        let made = self.entry(path.as_bytes(), EntryType::Char, b"", b"", 0o666);
        made.change(|entry| entry.device = (major, minor))
    }
    pub fn block_device(self, path: &str, major: u32, minor: u32) -> Self {
        let made = self.entry(path.as_bytes(), EntryType::Block, b"", b"", 0o660);
        made.change(|entry| entry.device = (major, minor))
    }
    /// Deletes `path` in the layers below.
    pub fn whiteout(self, path: &str) -> Self {
        let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
        let marker = format!("{parent}/.wh.{name}");
        self.entry(marker.as_bytes(), EntryType::Regular, b"", b"", 0o644)
    }
    /// Hides what the layers below have in the directory `path`.
    pub fn opaque(self, path: &str) -> Self {
        let marker = format!("{}/.wh..wh..opq", path.trim_end_matches('/'));
        self.entry(marker.as_bytes(), EntryType::Regular, b"", b"", 0o644)
    }
    pub fn mode(self, mode: u32) -> Self {
        self.change(|entry| entry.mode = mode)
    }
    pub fn owner(self, uid: u64, gid: u64) -> Self {
        self.change(|entry| entry.owner = (uid, gid))
    }
    pub fn mtime(self, seconds: i64, nanoseconds: u32) -> Self {
        self.change(|entry| entry.mtime = (seconds, nanoseconds))
    }
    pub fn xattr(self, name: &str, value: impl AsRef<[u8]>) -> Self {
        self.change(|entry| entry.xattrs.push((name.into(), value.as_ref().to_vec())))
    }
    /// Names the entry added last byte for byte: with a slash in front, or with what is no text.
    pub fn named(self, name: &[u8]) -> Self {
        self.change(|entry| entry.name = name.to_vec())
    }
    pub fn packed(mut self, pack: Pack) -> Self {
        self.pack = pack;
        self
    }
    /// Leaves out the two blocks of zeros at the end.
    pub fn without_end(mut self) -> Self {
        self.end_blocks = false;
        self
    }

    fn entry(mut self, name: &[u8], kind: EntryType, link: &[u8], data: &[u8], mode: u32) -> Self {
        let name = name.strip_prefix(b"/").unwrap_or(name).to_vec();
        self.entries.push(Entry {
            name,
            kind,
            link: link.to_vec(),
            data: data.to_vec(),
            mode,
            owner: (0, 0),
            device: (0, 0),
            mtime: (1_717_243_200, 0),
            xattrs: Vec::new(),
        });
        self
    }

    /// Changes the entry added last.
    fn change(mut self, with: impl FnOnce(&mut Entry)) -> Self {
        with(self.entries.last_mut().expect("attributes follow the entry they belong to"));
        self
    }

    /// The uncompressed tar.
    pub fn tar(&self) -> Vec<u8> {
        if let Some(raw) = &self.raw {
            return raw.clone();
        }
        let mut out = Vec::new();
        for entry in &self.entries {
            entry.write(&mut out);
        }
        if self.end_blocks {
            out.extend_from_slice(&[0; 1024]);
        }
        out
    }

    pub fn diff_id(&self) -> String {
        digest(&self.tar())
    }

    /// Names, kinds and targets, for the message of a test that fails.
    pub fn outline(&self) -> String {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let entry = |entry: &Entry| format!("{:?} {} {}", entry.kind, text(&entry.name), text(&entry.link));
        self.entries.iter().map(entry).collect::<Vec<_>>().join(", ")
    }

    /// The tar as the image stores it.
    pub fn blob(&self) -> Vec<u8> {
        pack(&self.tar(), self.pack)
    }

    fn media_type(&self) -> &'static str {
        match self.pack {
            Pack::Plain => "application/vnd.oci.image.layer.v1.tar",
            Pack::Gzip | Pack::GzipMembers => "application/vnd.oci.image.layer.v1.tar+gzip",
            Pack::Zstd | Pack::ZstdFrames => "application/vnd.oci.image.layer.v1.tar+zstd",
        }
    }
}

impl Entry {
    fn write(&self, out: &mut Vec<u8>) {
        let mut extensions = Vec::new();
        if self.name.len() > 100 {
            record(&mut extensions, "path", &self.name);
        }
        if self.link.len() > 100 {
            record(&mut extensions, "linkpath", &self.link);
        }
        if self.mtime.1 != 0 || self.mtime.0 < 0 {
            record(&mut extensions, "mtime", decimal_time(self.mtime).as_bytes());
        }
        for (name, value) in &self.xattrs {
            record(&mut extensions, &format!("SCHILY.xattr.{name}"), value);
        }
        if !extensions.is_empty() {
            let mut header = self.header(b"PaxHeaders/x", b"", EntryType::XHeader, extensions.len());
            header.set_cksum();
            append(out, &header, &extensions);
        }
        let mut header = self.header(&self.name, &self.link, self.kind, self.data.len());
        header.set_cksum();
        append(out, &header, &self.data);
    }

    fn header(&self, name: &[u8], link: &[u8], kind: EntryType, size: usize) -> Header {
        let mut header = Header::new_ustar();
        let old = header.as_old_mut();
        let short = name.len().min(100);
        old.name[..short].copy_from_slice(&name[..short]);
        let short = link.len().min(100);
        old.linkname[..short].copy_from_slice(&link[..short]);
        header.set_entry_type(kind);
        header.set_mode(self.mode);
        header.set_uid(self.owner.0);
        header.set_gid(self.owner.1);
        header.set_mtime(u64::try_from(self.mtime.0).unwrap_or(0));
        header.set_size(size as u64);
        if matches!(kind, EntryType::Char | EntryType::Block) {
            header.set_device_major(self.device.0).expect("a ustar header has device numbers");
            header.set_device_minor(self.device.1).expect("a ustar header has device numbers");
        }
        header
    }
}

fn append(out: &mut Vec<u8>, header: &Header, data: &[u8]) {
    out.extend_from_slice(header.as_bytes());
    out.extend_from_slice(data);
    out.resize(out.len().next_multiple_of(512), 0);
}

/// A member of a tar that is written by hand: its header says `size`, whatever `data` has.
pub fn tar_member(kind: EntryType, name: &str, size: u64, data: &[u8]) -> Vec<u8> {
    let mut header = Header::new_ustar();
    header.set_path(name).expect("a short name");
    header.set_entry_type(kind);
    header.set_mode(0o644);
    header.set_size(size);
    header.set_cksum();
    let mut out = Vec::new();
    append(&mut out, &header, data);
    out
}

/// A PAX header with these records.
pub fn pax(records: &[(&str, &str)]) -> Vec<u8> {
    let mut data = Vec::new();
    records.iter().for_each(|(key, value)| record(&mut data, key, value.as_bytes()));
    tar_member(EntryType::XHeader, "PaxHeaders/x", data.len() as u64, &data)
}

/// A PAX record, whose length counts its own digits.
fn record(out: &mut Vec<u8>, key: &str, value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while length != rest + length.to_string().len() {
        length = rest + length.to_string().len();
    }
    out.extend_from_slice(format!("{length} {key}=").as_bytes());
    out.extend_from_slice(value);
    out.push(b'\n');
}

/// Seconds since 1970 as PAX writes them; before it, the fraction counts the other way.
fn decimal_time((seconds, nanoseconds): (i64, u32)) -> String {
    match (seconds, nanoseconds) {
        (s, 0) => s.to_string(),
        (s, n) if s >= 0 => format!("{s}.{n:09}"),
        (s, n) => format!("-{}.{:09}", -(s + 1), 1_000_000_000 - n),
    }
}

/// Compresses as `how` says.
pub fn pack(data: &[u8], how: Pack) -> Vec<u8> {
    match how {
        Pack::Plain => data.to_vec(),
        Pack::Gzip => gzip(data),
        Pack::GzipMembers => data.chunks(700).flat_map(gzip).collect(),
        Pack::Zstd => zstd(data),
        Pack::ZstdFrames => {
            let skippable = [0x50, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, b'x', b'y', b'z'];
            data.chunks(700).flat_map(|chunk| [zstd(chunk), skippable.to_vec()].concat()).collect()
        }
    }
}

pub fn gzip(data: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::new(6));
    encoder.write_all(data).expect("writing to memory");
    encoder.finish().expect("writing to memory")
}

pub fn zstd(data: &[u8]) -> Vec<u8> {
    zstd::stream::encode_all(data, 3).expect("compressing in memory")
}

pub fn xz(data: &[u8]) -> Vec<u8> {
    let mut encoder = liblzma::write::XzEncoder::new(Vec::new(), 1);
    encoder.write_all(data).expect("writing to memory");
    encoder.finish().expect("writing to memory")
}

pub fn bzip2(data: &[u8]) -> Vec<u8> {
    let mut encoder = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::fast());
    encoder.write_all(data).expect("writing to memory");
    encoder.finish().expect("writing to memory")
}

/// `sha256:…` of the bytes.
pub fn digest(data: &[u8]) -> String {
    use std::fmt::Write;
    let mut text = String::from("sha256:");
    for byte in Sha256::digest(data) {
        write!(text, "{byte:02x}").expect("writing to memory");
    }
    text
}

fn hex(digest: &str) -> &str {
    digest.strip_prefix("sha256:").expect("digests made here are sha256")
}

/// A plain tar of the members; a name that ends in `/` is a directory.
pub fn archive(members: &Members) -> Vec<u8> {
    let mut tar = layer();
    for (name, data) in members {
        tar = if name.ends_with('/') { tar.dir(name) } else { tar.file(name, data) };
    }
    tar.tar()
}

/// An image: layers from the lowest, names, and what its config adds.
#[derive(Clone, Debug)]
pub struct Image {
    names: Vec<String>,
    pub layers: Vec<Layer>,
    config: Value,
    architecture: String,
}

impl Image {
    pub fn name(mut self, name: &str) -> Self {
        self.names.push(name.into());
        self
    }
    pub fn layer(mut self, layer: Layer) -> Self {
        self.layers.push(layer);
        self
    }
    pub fn architecture(mut self, name: &str) -> Self {
        self.architecture = name.into();
        self
    }
    /// The `config` object of the image config: Env, Cmd and the like.
    pub fn config(mut self, config: Value) -> Self {
        self.config = config;
        self
    }

    pub fn diff_ids(&self) -> Vec<String> {
        self.layers.iter().map(Layer::diff_id).collect()
    }

    pub fn config_bytes(&self) -> Vec<u8> {
        let config = json!({
            "created": "2024-06-01T12:00:00Z", "architecture": self.architecture, "os": "linux", "config": self.config,
            "rootfs": {"type": "layers", "diff_ids": self.diff_ids()},
            "history": self.layers.iter().map(|_| json!({"created_by": "test"})).collect::<Vec<_>>(),
        });
        config.to_string().into_bytes()
    }

    pub fn manifest_bytes(&self) -> Vec<u8> {
        let config = self.config_bytes();
        let layers: Vec<Value> = self
            .layers
            .iter()
            .map(|layer| {
                let blob = layer.blob();
                json!({"mediaType": layer.media_type(), "digest": digest(&blob), "size": blob.len()})
            })
            .collect();
        let manifest = json!({
            "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": digest(&config), "size": config.len()},
            "layers": layers,
        });
        manifest.to_string().into_bytes()
    }

    fn descriptors(&self) -> Vec<Value> {
        let manifest = self.manifest_bytes();
        let plain = json!({
            "mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": digest(&manifest), "size": manifest.len(),
            "platform": {"os": "linux", "architecture": self.architecture},
        });
        if self.names.is_empty() {
            return vec![plain];
        }
        let named = |name: &String| {
            let mut descriptor = plain.clone();
            descriptor["annotations"] = json!({"org.opencontainers.image.ref.name": name});
            descriptor
        };
        self.names.iter().map(named).collect()
    }

    /// The members of an OCI layout tar: layers, config, manifest, then the index.
    pub fn oci_members(&self) -> Members {
        oci_members(std::slice::from_ref(self))
    }
    /// An OCI layout tar.
    pub fn oci(&self) -> Vec<u8> {
        archive(&self.oci_members())
    }
    /// An OCI layout directory.
    pub fn oci_dir(&self, at: &Path) {
        for (name, data) in self.oci_members() {
            let path = at.join(name);
            std::fs::create_dir_all(path.parent().expect("members have names")).expect("a directory");
            std::fs::write(path, data).expect("a member");
        }
    }
    /// The members of a docker-save tar as skopeo writes one; layers are plain, whatever their packing.
    pub fn docker_members(&self) -> Members {
        docker_members(std::slice::from_ref(self))
    }
    /// A docker-save tar.
    pub fn docker(&self) -> Vec<u8> {
        archive(&self.docker_members())
    }
}

/// The members of an OCI layout with several images; nothing is in it twice.
pub fn oci_members(images: &[Image]) -> Members {
    let mut members = Members::new();
    let mut blob = |data: Vec<u8>| put(&mut members, format!("blobs/sha256/{}", hex(&digest(&data))), data);
    for image in images {
        image.layers.iter().for_each(|layer| blob(layer.blob()));
        blob(image.config_bytes());
        blob(image.manifest_bytes());
    }
    let manifests: Vec<Value> = images.iter().flat_map(Image::descriptors).collect();
    members.push((
        "index.json".into(),
        json!({"schemaVersion": 2, "manifests": manifests}).to_string().into_bytes(),
    ));
    members.push(("oci-layout".into(), br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec()));
    members
}

/// The members of a docker-save tar with several images; nothing is in it twice.
pub fn docker_members(images: &[Image]) -> Members {
    let mut members = Members::new();
    let mut manifest = Vec::new();
    for image in images {
        for layer in &image.layers {
            let tar = layer.tar();
            put(&mut members, format!("{}.tar", hex(&digest(&tar))), tar);
        }
        let config = image.config_bytes();
        let config_name = format!("{}.json", hex(&digest(&config)));
        let layers: Vec<String> = image.diff_ids().iter().map(|id| format!("{}.tar", hex(id))).collect();
        manifest.push(json!({"Config": config_name, "RepoTags": image.names, "Layers": layers}));
        put(&mut members, config_name, config);
    }
    members.push(("manifest.json".into(), Value::from(manifest).to_string().into_bytes()));
    members
}

fn put(members: &mut Members, name: String, data: Vec<u8>) {
    if members.iter().all(|(known, _)| *known != name) {
        members.push((name, data));
    }
}

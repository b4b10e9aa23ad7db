//! T18: small archives of every format, cut at each of their bytes and with a wrong bit in each, by both ways in. Imported in
//! this process, because there are thousands, and each into a store that holds nothing: what is cut is refused, what is
//! changed is refused or means the same, and nothing stays or gets out.

use crate::house::*;
use crate::support::image::*;
use crate::support::listing::listing;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use transload::metadata::ImageRow;
use transload::progress::Silent;
use transload::upkeep::GcOptions;
use transload::{Cancel, Digest, Engine, EngineOptions, ErrorKind, ImportOptions, Input};

/// What an import made: the manifests, and the layers by what they unpack to.
type Made = (Vec<Digest>, Vec<String>);

fn import(engine: &Engine, input: Input) -> Result<Made, ErrorKind> {
    let options = ImportOptions { sync: false, ignore_chown: true, ..ImportOptions::default() };
    let report = engine.import(input, &options, &Silent, &Cancel::new()).map_err(|error| error.kind())?;
    let manifests = report.images.iter().map(|image| image.manifest).collect();
    let layers = report.images.iter().flat_map(|image| &image.layers);
    Ok((manifests, layers.map(|layer| layer.diff_id.to_string()).collect()))
}

fn stream(archive: &[u8]) -> Input {
    Input::Reader { name: "a stream".into(), reader: Box::new(std::io::Cursor::new(archive.to_vec())) }
}

/// A file that can be read at any place, as a path gives one.
fn file_of(archive: &[u8]) -> Input {
    let fd = rustix::fs::memfd_create(c"archive", rustix::fs::MemfdFlags::CLOEXEC).expect("a file in memory");
    let mut file = File::from(fd);
    file.write_all(archive).expect("memory can be written");
    Input::File { name: "a file".into(), file }
}

fn sample(pack: Pack) -> Image {
    several([file("a", "some text").symlink("b", "a").packed(pack)])
}

/// A small archive, and what holds for it.
struct Small {
    name: &'static str,
    bytes: Vec<u8>,
    /// From here on nothing is missing if it is cut: the blocks of zeros at the end of a plain tar.
    needed: usize,
    /// Where documents lie that no digest covers, so that another bit may be another image: a plain docker-save tar says
    /// itself what its configuration and its names are.
    own_word: Vec<std::ops::Range<usize>>,
}

impl Small {
    fn packed(name: &'static str, bytes: Vec<u8>) -> Small {
        Small { name, needed: bytes.len(), bytes, own_word: Vec::new() }
    }

    fn plain(name: &'static str, members: &Members) -> Small {
        let bytes = archive(members);
        let (mut at, mut own_word, mut needed) = (0, Vec::new(), 0);
        for (member, data) in members {
            let content = at + 512..at + 512 + data.len();
            if member.ends_with(".json") {
                own_word.push(content.clone());
            }
            // That file says a version, and may be missing.
            needed = if member == "oci-layout" { needed } else { content.end };
            at = content.end.next_multiple_of(512);
        }
        assert_eq!(at + 1024, bytes.len(), "a header and the data of each, and the end");
        Small { name, bytes, needed, own_word }
    }
}

static SMALL: LazyLock<Vec<Small>> = LazyLock::new(|| {
    let docker = sample(Pack::Plain);
    vec![
        Small::packed("docker.tar.gz", gzip(&docker.docker())),
        Small::packed("docker.tar.zst", zstd_checked(&docker.docker())),
        Small::packed("docker.tar.xz", xz(&docker.docker())),
        Small::packed("layout.tar.bz2", bzip2(&sample(Pack::Gzip).oci())),
        Small::packed("layout.tar.gz", gzip(&sample(Pack::Gzip).oci())),
        Small::packed("layout.tar.zst", zstd(&sample(Pack::Zstd).oci())),
        Small::plain("docker.tar", &docker.docker_members()),
        Small::plain("layout.tar", &sample(Pack::Gzip).oci_members()),
    ]
});

/// With a checksum, which zstd leaves out unless it is asked: nothing else covers a document that an archive names as it
/// likes.
fn zstd_checked(data: &[u8]) -> Vec<u8> {
    let mut encoder = zstd::Encoder::new(Vec::new(), 3).expect("an encoder");
    encoder.include_checksum(true).expect("a parameter that zstd knows");
    encoder.write_all(data).expect("compressing in memory");
    encoder.finish().expect("compressing in memory")
}

/// A store with something beside it, and the look at both when all is over.
struct Bench {
    house: House,
    engine: Engine,
    around: Vec<String>,
}

impl Bench {
    fn new() -> Bench {
        let house = House::in_memory();
        let engine = Engine::open(house.store(), EngineOptions::default()).expect("a store");
        Bench { around: house.around(), engine, house }
    }

    fn images(&self) -> Vec<String> {
        // A changed name may be none.
        let name = |row: ImageRow| row.name.unwrap_or_else(|| row.target.digest.to_string());
        self.engine.images().expect("lists").into_iter().map(name).collect()
    }

    fn remove_all(&self) {
        // First the names, then what has none and can be told by its digest alone.
        let (nameless, named): (Vec<_>, Vec<_>) =
            self.images().into_iter().partition(|name| name.starts_with("sha256:"));
        for images in [named, nameless].iter().filter(|images| !images.is_empty()) {
            self.engine.remove(images).expect("removes");
        }
    }

    /// Imports into the store while it holds nothing, and sees to it that afterwards it does again.
    fn attempt(&self, what: &str, input: Input) -> Result<Made, ErrorKind> {
        let made = import(&self.engine, input);
        assert_eq!(self.images().is_empty(), made.is_err(), "{what}: {:?}", self.images());
        if made.is_ok() {
            self.remove_all();
        }
        // What had come whole before a stream was refused is nobody's, so a collection takes it.
        if !self.house.left().is_empty() {
            self.engine.gc(&GcOptions::default()).expect("a collection");
        }
        assert_eq!(self.house.left(), Vec::<PathBuf>::new(), "{what}: this is left");
        made
    }

    /// Nothing outside has changed; nothing stays in the store, and the next import works.
    fn end(self, what: &str) {
        drop(self.engine);
        assert_untouched(what, &self.house, &self.around);
        self.house.is_clean(what);
    }
}

/// What a way in is called, and how bytes go in by it.
type Way = (&'static str, fn(&[u8]) -> Input);

const BOTH_WAYS: [Way; 2] = [("stream", stream), ("file", file_of)];

#[test]
fn t18_a_small_archive_cut_at_any_byte_is_refused() {
    for small in SMALL.iter() {
        let right = import(&Bench::new().engine, stream(&small.bytes)).expect("the whole archive");
        for (way, input) in BOTH_WAYS {
            let bench = Bench::new();
            for end in 0..small.bytes.len() {
                let what = format!("{} as a {way}, cut at {end}", small.name);
                match bench.attempt(&what, input(&small.bytes[..end])) {
                    Ok(made) => {
                        assert!(end >= small.needed, "{what}, is taken for whole");
                        assert_eq!(made, right, "{what}");
                    }
                    Err(kind) => assert!(kind.is_input(), "{what}: {kind:?}"),
                }
            }
            bench.end(small.name);
        }
    }
}

#[test]
fn t18_a_flipped_bit_anywhere_is_refused_or_changes_nothing() {
    for small in SMALL.iter() {
        let right = import(&Bench::new().engine, stream(&small.bytes)).expect("the whole archive");
        for (way, input) in BOTH_WAYS {
            let bench = Bench::new();
            for at in 0..small.bytes.len() {
                let what = format!("{} as a {way}, byte {at}", small.name);
                let mut changed = small.bytes.clone();
                changed[at] ^= 1 << (at % 8);
                match bench.attempt(&what, input(&changed)) {
                    Ok((manifests, layers)) => {
                        // Some bits of headers mean nothing: a time, an operating system.
                        let may_differ = small.own_word.iter().any(|range| range.contains(&at));
                        assert!(may_differ || manifests == right.0, "{what}: another image");
                        assert_eq!(layers, right.1, "{what}: another tree");
                    }
                    Err(kind) => assert!(kind.is_input(), "{what}: {kind:?}"),
                }
            }
            bench.end(small.name);
        }
    }
}

/// The files of a layout directory.
fn layout(at: &Path) -> Vec<PathBuf> {
    sample(Pack::Gzip).oci_dir(at);
    let mut files: Vec<PathBuf> = listing(at)
        .iter()
        .filter(|line| line.contains(" file "))
        .filter_map(|line| Some(at.join(line.split(' ').next()?)))
        .collect();
    files.sort();
    assert_eq!(files.len(), 5, "layer, configuration, manifest, index.json, oci-layout");
    files
}

#[test]
fn t18_a_directory_with_a_damaged_file_is_refused_or_changes_nothing() {
    let bench = Bench::new();
    let at = bench.house.dir.path().join("layout");
    let right = import(&Bench::new().engine, {
        layout(&at);
        Input::Path(at.clone())
    })
    .expect("the whole layout");
    let try_it = |what: &str, may_pass: bool| match bench.attempt(what, Input::Path(at.clone())) {
        Ok(made) => assert!(may_pass && made == right, "{what} is taken for whole: {made:?}"),
        Err(kind) => assert!(kind.is_input(), "{what}: {kind:?}"),
    };
    for path in layout(&at) {
        let whole = std::fs::read(&path).expect("a file");
        let name = path.strip_prefix(&at).expect("below").display().to_string();
        for end in 0..whole.len() {
            std::fs::write(&path, &whole[..end]).expect("a file");
            try_it(&format!("{name} cut at {end}"), false);
        }
        let is_blob = name.starts_with("blobs/");
        for byte in 0..whole.len() {
            let mut changed = whole.clone();
            changed[byte] ^= 1 << (byte % 8);
            std::fs::write(&path, &changed).expect("a file");
            // An index says itself what its names and annotations are; what it leads to has digests.
            try_it(&format!("{name} with byte {byte} changed"), !is_blob);
        }
        std::fs::remove_file(&path).expect("removes");
        // An older layout may lack its version; nothing may come from elsewhere, and nobody waits for a pipe.
        try_it(&format!("no {name}"), name == "oci-layout");
        let elsewhere = bench.house.outside().join("victim");
        std::os::unix::fs::symlink(elsewhere, &path).expect("a link");
        try_it(&format!("{name} as a link"), false);
        std::fs::remove_file(&path).expect("removes");
        let fifo = rustix::fs::FileType::Fifo;
        rustix::fs::mknodat(rustix::fs::CWD, &path, fifo, rustix::fs::Mode::RUSR, 0).expect("a pipe");
        try_it(&format!("{name} as a pipe"), false);
        std::fs::remove_file(&path).expect("removes");
        std::fs::create_dir(&path).expect("a directory");
        try_it(&format!("{name} as a directory"), false);
        std::fs::remove_dir(&path).expect("removes");
        std::fs::write(&path, &whole).expect("a file");
    }
    try_it("the layout as it was", true);
    std::fs::remove_dir_all(&at).expect("removes");
    bench.end("a layout directory");
}

//! Whole archives, plain and compressed: nothing panics, reading in any order and reading once tell the same story, and
//! every member that is promised can be read to its end.

use super::mend_checksums;
use std::fs::File;
use std::io::{Read, Write};
use transload::archive::{Found, KeptDocuments, MemberKind, Source, Stream, find_images, open};
use transload::io::codec::Codec;
use transload::{Cancel, Input, Limits, Result, parallel::Budget};

fn limits() -> Limits {
    Limits { json_bytes: 64 << 10, descriptors: 500, ..Limits::default() }
}

fn memory_file(data: &[u8]) -> File {
    let fd = rustix::fs::memfd_create(c"archive", rustix::fs::MemfdFlags::CLOEXEC).expect("a file in memory");
    let mut file = File::from(fd);
    file.write_all(data).expect("memory can be written");
    file
}

/// Takes in a stream as an import does, with every file for a document that is small enough to be one.
fn kept(stream: &mut Stream) -> Result<KeptDocuments> {
    let mut kept = KeptDocuments::default();
    while let Some(mut member) = stream.next_member()? {
        let (name, size) = (member.name().clone(), member.size_bytes());
        match member.kind().clone() {
            MemberKind::File if size <= limits().json_bytes => {
                let mut bytes = Vec::new();
                member.read_to_end(&mut bytes)?;
                assert_eq!(bytes.len() as u64, size);
                kept.add_file(name.clone(), size)?;
                kept.add_document(&name, bytes)?;
            }
            MemberKind::File => kept.add_file(name, size)?,
            MemberKind::Link(target) => kept.add_link(name, target)?,
            MemberKind::Other => {}
        }
    }
    Ok(kept)
}

/// What the two ways of reading have to agree on.
fn story(found: &Found) -> Vec<String> {
    let image = |image: &transload::archive::FoundImage| {
        let manifests: Vec<_> =
            image.manifests.iter().map(|one| (&one.config_digest, &one.layers, &one.manifest)).collect();
        format!("{:?} {:?} {manifests:?}", image.names, image.target)
    };
    found.images.iter().map(image).collect()
}

fn read_layers(archive: &transload::archive::Seekable, found: &Found) {
    for layer in found.images.iter().flat_map(|one| &one.manifests).flat_map(|one| &one.layers) {
        let Some(member) = &layer.member else { continue };
        let mut bytes = Vec::new();
        archive
            .reader(member)
            .expect("a member that was found")
            .read_to_end(&mut bytes)
            .expect("is in the file");
        assert_eq!(bytes.len() as u64, layer.size);
    }
}

/// See the module.
pub fn run(data: &[u8]) {
    let mut data = data.to_vec();
    if Codec::sniff(&data) == Codec::None {
        mend_checksums(&mut data);
    }
    let (limits, budget) = (limits(), Budget::new(0));
    let once = std::io::Cursor::new(data.clone());
    let stream = open(
        Input::Reader { name: "a stream".into(), reader: Box::new(once) },
        &limits,
        &budget,
        &Cancel::new(),
    );
    let streamed = stream.and_then(|source| match source {
        Source::Stream(mut stream) => kept(&mut stream),
        Source::Seekable(_) => unreachable!("a reader cannot seek"),
    });
    let streamed = streamed.and_then(|kept| find_images(&kept, &limits));
    let file = Input::File { name: "a file".into(), file: memory_file(&data) };
    let Ok(Source::Seekable(archive)) = open(file, &limits, &budget, &Cancel::new()) else { return };
    let seeked = find_images(&archive, &limits);
    if let Ok(found) = &seeked {
        read_layers(&archive, found);
    }
    if let (Ok(seeked), Ok(streamed)) = (&seeked, &streamed) {
        assert_eq!(story(seeked), story(streamed));
    }
}

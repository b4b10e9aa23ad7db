//! The documents of an archive, whole: nothing panics, and what is found by a reader that seeks and by one that cannot
//! is the same.
//!
//! The input is several documents with 0xff between them. In a document, `@1` stands for the digest of document 1 and
//! `#1` for its size, so that the fuzzer can build indexes, manifests and configurations that refer to each other.

use transload::archive::{KeptDocuments, MemberName, find_images};
use transload::oci::{Document, parse_config, parse_document};
use transload::{Digest, Limits};

fn name(name: &str) -> MemberName {
    MemberName::parse(name.as_bytes()).expect("a plain name")
}

/// Replaces `@N` and `#N` by what earlier documents are.
fn resolve(text: &[u8], earlier: &[Vec<u8>]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut bytes = text.iter().copied().peekable();
    while let Some(byte) = bytes.next() {
        let known = bytes.peek().and_then(|next| earlier.get(usize::from(next.wrapping_sub(b'0'))));
        match (byte, known) {
            (b'@', Some(document)) => out.extend(Digest::of(document).to_string().bytes()),
            (b'#', Some(document)) => out.extend(document.len().to_string().bytes()),
            _ => {
                out.push(byte);
                continue;
            }
        }
        bytes.next();
    }
    out
}

fn add(kept: &mut KeptDocuments, at: &str, document: &[u8]) {
    let at = name(at);
    kept.add_file(at.clone(), document.len() as u64).expect("files can be added");
    kept.add_document(&at, document.to_vec()).expect("documents can be added");
}

/// See the module.
pub fn run(data: &[u8]) {
    let limits = Limits { descriptors: 200, ..Limits::default() };
    let mut documents: Vec<Vec<u8>> = Vec::new();
    for text in data.split(|&byte| byte == 0xff).take(10) {
        documents.push(resolve(text, &documents));
    }
    let mut kept = KeptDocuments::default();
    for document in &documents {
        if let Ok(parsed) = parse_document(document) {
            let written = match &parsed {
                Document::Manifest(manifest) => serde_json::to_vec(manifest),
                Document::Index(index) => serde_json::to_vec(index),
            };
            let again = parse_document(&written.expect("what was read can be written"));
            assert_eq!(again.ok(), Some(parsed));
        }
        if let Ok(config) = parse_config(document) {
            assert!(config.diff_ids.len() <= document.len() / 64 + 1);
        }
        let digest = Digest::of(document);
        add(&mut kept, &format!("blobs/sha256/{}", digest.hex()), document);
        add(&mut kept, &format!("{}.json", digest.hex()), document);
    }
    let last = documents.last().map_or(&[][..], Vec::as_slice);
    match data.first() {
        Some(b'[') => add(&mut kept, "manifest.json", last),
        Some(b'r') => add(&mut kept, "repositories", last),
        Some(b'b') if documents.len() > 1 => {
            add(&mut kept, "index.json", &documents[documents.len() - 2]);
            add(&mut kept, "manifest.json", last);
        }
        _ => add(&mut kept, "index.json", last),
    }
    if let Ok(found) = find_images(&kept, &limits) {
        assert!(!found.images.is_empty());
        for manifest in found.images.iter().flat_map(|image| &image.manifests) {
            assert_eq!(Digest::of(&manifest.config_bytes), manifest.config_digest);
            if let Some((descriptor, bytes)) = &manifest.manifest {
                assert_eq!(Digest::of(bytes), descriptor.digest);
            }
            assert!(manifest.layers.len() <= limits.layers);
        }
    }
}

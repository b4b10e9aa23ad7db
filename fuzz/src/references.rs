//! Names, digests, platforms: what is accepted reads back as itself and holds nothing that could be a path.

use transload::{Digest, Platform, Reference};

/// See the module.
pub fn run(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(name) = text.parse::<Reference>() {
        let full = name.to_string();
        assert_eq!(full.parse::<Reference>().ok().as_ref(), Some(&name), "{full:?}");
        assert_eq!(name.familiar().parse::<Reference>().ok().as_ref(), Some(&name), "{:?}", name.familiar());
        assert!(full.is_ascii() && !full.bytes().any(|byte| byte <= b' '), "{full:?}");
        assert!(
            name.path().split('/').all(|part| !part.is_empty() && part != "." && part != ".."),
            "{full:?}"
        );
    }
    if let Ok(digest) = text.parse::<Digest>() {
        assert_eq!(digest.to_string(), text);
        assert!(digest.hex().bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte)));
        assert_eq!(digest.hex().len(), 2 * digest.as_bytes().len());
    }
    if let Ok(platform) = text.parse::<Platform>() {
        assert_eq!(platform.to_string().parse::<Platform>().ok(), Some(platform));
    }
}

//! Digests computed as bytes pass.

use crate::oci::{Algorithm, Digest};
use sha2::Digest as _;

/// A running digest.
///
/// ```
/// use transload::{Algorithm, Digest, io::digesting::Digester};
/// let mut digester = Digester::new(Algorithm::Sha256);
/// digester.update(b"ab");
/// digester.update(b"c");
/// assert_eq!(digester.finish(), Digest::of(b"abc"));
/// ```
#[derive(Clone)]
pub enum Digester {
    /// SHA-256.
    Sha256(sha2::Sha256),
    /// SHA-512.
    Sha512(Box<sha2::Sha512>),
}

impl Digester {
    /// A digest of nothing yet.
    pub fn new(algorithm: Algorithm) -> Self {
        match algorithm {
            Algorithm::Sha256 => Digester::Sha256(sha2::Sha256::new()),
            Algorithm::Sha512 => Digester::Sha512(Box::new(sha2::Sha512::new())),
        }
    }

    /// Takes in more bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        match self {
            Digester::Sha256(state) => state.update(bytes),
            Digester::Sha512(state) => state.update(bytes),
        }
    }

    /// The digest of everything taken in.
    pub fn finish(self) -> Digest {
        match self {
            Digester::Sha256(state) => Digest::Sha256(state.finalize().into()),
            Digester::Sha512(state) => Digest::Sha512(state.finalize().into()),
        }
    }
}

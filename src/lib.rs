//! Container image archives in; verified blobs, deduplicated layers and mountable root filesystems out.
#![warn(missing_docs)]

pub mod engine;
pub mod error;
pub mod limits;
pub mod oci;
pub mod parallel;
pub mod progress;
pub mod transfer;

pub use error::{Error, ErrorKind, Result, ResultExt, Retry};
pub use limits::Limits;
pub use oci::{Algorithm, ChainId, Descriptor, DiffId, Digest, Platform, PlatformChoice, Reference};
pub use parallel::Cancel;

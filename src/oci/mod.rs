//! The nouns of the OCI image specification, as types: parsed once at the door, passed as types inside.
//!
//! Everything here is plain data and pure functions; nothing touches a file.

mod descriptor;
mod digest;
mod manifest;
mod platform;
mod reference;

pub(crate) use descriptor::null_as_empty;
pub use descriptor::{Descriptor, media_type};
pub use digest::{Algorithm, ChainId, DiffId, Digest};
pub use manifest::{ConfigSummary, Document, HistoryEntry, Index, Manifest, parse_config, parse_document};
pub use platform::{Platform, PlatformChoice};
pub use reference::Reference;

//! Container image archives in; verified blobs, deduplicated layers and mountable root filesystems out.
#![warn(missing_docs)]

pub mod archive;
pub mod content;
pub mod engine;
pub mod error;
pub mod holder;
pub mod io;
pub mod layer;
pub mod limits;
pub mod metadata;
pub mod metrics;
pub mod mount;
pub mod oci;
pub mod parallel;
pub mod progress;
pub mod snapshot;
pub mod store;
pub mod trace;
pub mod transfer;
pub mod tree;
pub mod upkeep;

pub use archive::Input;
pub use engine::{Engine, EngineOptions};
pub use error::{Error, ErrorKind, Result, ResultExt, Retry};
pub use holder::{Holder, How, Use};
pub use limits::Limits;
pub use oci::{Algorithm, ChainId, Descriptor, DiffId, Digest, Platform, PlatformChoice, Reference};
pub use parallel::Cancel;
pub use trace::TraceId;
pub use transfer::{ImportOptions, ImportPlan, ImportReport};

//! What an import is asked to do.

use crate::limits::Limits;
use crate::oci::{PlatformChoice, Reference};
use crate::trace::TraceId;
use std::time::Duration;

/// What an import is asked to do. The default imports the host's platform, unpacks it and syncs it.
#[derive(Clone, Debug)]
pub struct ImportOptions {
    /// Names to give to the image, instead of those in the archive.
    pub tags: Vec<Reference>,
    /// Which platforms of a multi-platform image are wanted.
    pub platform: PlatformChoice,
    /// Whether layers are extracted. Without, only blobs are stored and DiffIDs stay unverified.
    pub unpack: bool,
    /// Whether layer blobs are left out of the store: the tree is all that stays.
    pub discard_blobs: bool,
    /// Whether what the store has already is read from the archive and checked all the same.
    pub verify_source: bool,
    /// Whether success is reported only after everything has reached the disk.
    pub sync: bool,
    /// Whether a name that belongs to another image is left alone and the import refused.
    pub no_retag: bool,
    /// Whether claims, writes and extractions are counted for each digest.
    pub audit: bool,
    /// Whether owners that cannot be set are passed over.
    pub ignore_chown: bool,
    /// Whether the threads that the import makes are confined to the store and the archive, as far as the kernel can. It
    /// never touches the calling thread.
    pub confine: bool,
    /// Caps on what the input may ask for.
    pub limits: Limits,
    /// How long another import that holds a claim may show no progress before its work is taken over.
    pub patience: Duration,
    /// What joins the spans, log lines, report and error of this run; `None` for one of its own.
    pub trace_id: Option<TraceId>,
}

impl Default for ImportOptions {
    fn default() -> Self {
        ImportOptions {
            tags: Vec::new(),
            platform: PlatformChoice::default(),
            unpack: true,
            discard_blobs: false,
            verify_source: false,
            sync: true,
            no_retag: false,
            audit: false,
            ignore_chown: false,
            confine: true,
            limits: Limits::default(),
            patience: Duration::from_secs(30),
            trace_id: None,
        }
    }
}

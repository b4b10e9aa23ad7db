//! Images that a verb reads, kept from every collection until it is done.

use crate::error::{ErrorKind, Result};
use crate::metadata::ImageRow;
use crate::parallel::Cancel;
use crate::store::{Lease, Store};

/// Keeps what images need for as long as it lives.
#[must_use]
pub(super) struct Held<'a> {
    _lease: Option<Lease<'a>>,
}

impl<'a> Held<'a> {
    /// Holds images that were found a moment ago, and gives their rows as they are now. [`ErrorKind::NotFound`] if one has
    /// gone since.
    ///
    /// Nothing is held in a store that is open for reading only, nor on a disk that has no room for a lease: an image must
    /// be readable there, too. Whoever reads it then has to see for himself that nothing went missing.
    pub(super) fn take(
        store: &'a Store,
        found: Vec<ImageRow>,
        cancel: &Cancel,
    ) -> Result<(Self, Vec<ImageRow>)> {
        if store.is_read_only() {
            return Ok((Held { _lease: None }, found));
        }
        store.make_room()?;
        let hold = || -> Result<_> {
            let lease = store.lease_cancellable(cancel)?;
            let images = lease.add_images(&found)?;
            Ok((Held { _lease: Some(lease) }, images))
        };
        match hold() {
            Err(error) if error.kind() == ErrorKind::NoSpace => Ok((Held { _lease: None }, found)),
            other => other,
        }
    }
}

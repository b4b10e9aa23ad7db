//! Undoing a removal: an image that `rm` or a policy has taken away, as long as no collection has taken its tombstone.

use crate::error::{Error, ErrorKind, Result, ResultExt};
use crate::metadata::{ImageRow, Tombstone};
use crate::oci::{Digest, Reference};
use crate::store::Store;

/// What was restored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RestoreReport {
    /// The images.
    pub restored: Vec<ImageRow>,
}

/// Makes removed images visible again: of several removals of one name, the last.
///
/// # Errors
/// [`ErrorKind::NotFound`] if there is none or a collection has taken it, [`ErrorKind::AlreadyExists`] where the name
/// belongs to another image by now. Those before it are restored.
pub fn restore(store: &Store, names: &[String]) -> Result<RestoreReport> {
    store.check_writable().doing(|| format!("cannot restore {}", names.join(", ")))?;
    let one = |name: &String| restore_one(store, name).doing(|| format!("cannot restore {name}"));
    let restored = store.changing_images(|| names.iter().map(one).collect())?;
    Ok(RestoreReport { restored })
}

/// A collection that runs meanwhile may take a removal whose grace is over; then it is the one before.
fn restore_one(store: &Store, name: &str) -> Result<ImageRow> {
    let tombstones = store.metadata().tombstones()?;
    for found in tombstones.iter().filter(|tombstone| is_called(tombstone, name)) {
        match store.metadata().image_restore(found.id) {
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            other => return other,
        }
    }
    Err(Error::new(
        ErrorKind::NotFound,
        "no image of that name was removed, or a collection has taken it since",
    )
    .with_hint("'transload restore' without a name lists what can be restored"))
}

fn is_called(tombstone: &Tombstone, name: &str) -> bool {
    let by_name =
        name.parse::<Reference>().is_ok_and(|name| tombstone.name.as_deref() == Some(&name.to_string()));
    by_name || name.parse::<Digest>().is_ok_and(|digest| tombstone.target.digest == digest)
}

//! A cancellation token: cheap to check between chunks, shared by cloning.

use crate::error::{Error, Result};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Asks running work to stop. Clones share one flag; a [`Cancel::child`] also stops when its parent does.
///
/// ```
/// use transload::Cancel;
/// let cancel = Cancel::new();
/// let child = cancel.child();
/// child.cancel();
/// assert!(cancel.check().is_ok() && child.check().is_err());
/// ```
#[derive(Clone, Debug, Default)]
pub struct Cancel {
    own: Arc<AtomicBool>,
    parent: Option<Arc<Cancel>>,
}

impl Cancel {
    /// A token that nobody has cancelled.
    pub fn new() -> Self {
        Cancel::default()
    }

    /// A token that can be cancelled by itself and is cancelled with its parent.
    pub fn child(&self) -> Self {
        Cancel { own: Arc::default(), parent: Some(Arc::new(self.clone())) }
    }

    /// Asks for a stop. Safe to call from a signal handler's thread and more than once.
    pub fn cancel(&self) {
        self.own.store(true, Ordering::Relaxed);
    }

    /// Whether a stop was asked for.
    pub fn is_cancelled(&self) -> bool {
        self.own.load(Ordering::Relaxed) || self.parent.as_ref().is_some_and(|parent| parent.is_cancelled())
    }

    /// An error of kind [`crate::ErrorKind::Cancelled`] once a stop was asked for.
    pub fn check(&self) -> Result<()> {
        if self.is_cancelled() { Err(Error::cancelled()) } else { Ok(()) }
    }
}

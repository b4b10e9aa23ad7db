//! The memory that the side lists of layers take: one counter for all layers that are worked on at the same time.

use crate::error::{Error, Result};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// What all lists that share it hold together, in bytes. Clones share it.
///
/// [`crate::Limits::layer_lists_bytes`] is the most that it may be.
#[derive(Clone, Debug, Default)]
pub struct ListMemory {
    held_bytes: Arc<AtomicUsize>,
}

/// What the lists of one layer hold; it is given back when this is dropped.
#[derive(Debug)]
pub(super) struct Held {
    memory: ListMemory,
    bytes: usize,
    most_bytes: usize,
}

impl Held {
    /// Nothing yet; all that share `memory` may hold `most_bytes` together.
    pub fn nothing(memory: &ListMemory, most_bytes: usize) -> Self {
        Held { memory: memory.clone(), bytes: 0, most_bytes }
    }

    /// Counts bytes that a list is about to take; [`crate::ErrorKind::LimitExceeded`] where there are too many.
    pub fn take(&mut self, bytes: usize) -> Result<()> {
        self.bytes += bytes;
        let before = self.memory.held_bytes.fetch_add(bytes, Ordering::Relaxed);
        match before.saturating_add(bytes) > self.most_bytes {
            true => Err(Error::over(
                "layer_lists_bytes",
                "the layers have more directories, deletions and links than fit into memory",
            )),
            false => Ok(()),
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.memory.held_bytes.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_share_what_they_may_hold_and_give_it_back() {
        let memory = ListMemory::default();
        let [mut one, mut other] = [Held::nothing(&memory, 100), Held::nothing(&memory, 100)];
        one.take(60).expect("fits");
        other.take(40).expect("fits");
        other.take(1).expect_err("too much together");
        drop(other);
        one.take(40).expect("fits again");
        drop(one);
        assert_eq!(memory.held_bytes.load(Ordering::Relaxed), 0);
    }
}

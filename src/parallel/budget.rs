//! One byte budget for everything that is in flight: buffers between stages, codec windows.

use super::Cancel;
use crate::error::{Error, Result};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

/// How often a waiting buyer looks whether it has been cancelled.
const CANCEL_POLL: Duration = Duration::from_millis(50);

/// A number of bytes that may be in flight at once. Clones share it.
#[derive(Clone, Debug)]
pub struct Budget {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    total_bytes: u64,
    free_bytes: Mutex<u64>,
    returned: Condvar,
}

impl Budget {
    /// A budget of `total_bytes`.
    pub fn new(total_bytes: u64) -> Self {
        let shared = Shared { total_bytes, free_bytes: Mutex::new(total_bytes), returned: Condvar::new() };
        Budget { shared: Arc::new(shared) }
    }

    /// The whole budget, in bytes.
    pub fn total_bytes(&self) -> u64 {
        self.shared.total_bytes
    }

    /// Buys `bytes` at once or says that they can never be had or are taken now ([`crate::ErrorKind::LimitExceeded`]).
    pub fn try_buy(&self, bytes: u64) -> Result<Grant> {
        let mut free = self.lock();
        if *free < bytes {
            return Err(self.too_much(bytes));
        }
        *free -= bytes;
        Ok(Grant { budget: self.clone(), bytes })
    }

    /// Buys `bytes`, waiting until others return theirs. More than the whole budget is refused at once.
    pub fn buy(&self, bytes: u64, cancel: &Cancel) -> Result<Grant> {
        if bytes > self.shared.total_bytes {
            return Err(self.too_much(bytes));
        }
        let mut free = self.lock();
        while *free < bytes {
            cancel.check()?;
            let waited = self.shared.returned.wait_timeout(free, CANCEL_POLL);
            free = waited.unwrap_or_else(|poisoned| poisoned.into_inner()).0;
        }
        *free -= bytes;
        Ok(Grant { budget: self.clone(), bytes })
    }

    fn too_much(&self, bytes: u64) -> Error {
        let total = self.shared.total_bytes >> 20;
        Error::limit(format!(
            "{} MiB of memory are needed, the budget is {total} MiB",
            bytes.div_ceil(1 << 20)
        ))
        .with_hint("raise --memory")
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, u64> {
        self.shared.free_bytes.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

/// Bytes bought from a [`Budget`]; dropping it returns them.
#[derive(Debug)]
pub struct Grant {
    budget: Budget,
    bytes: u64,
}

impl Drop for Grant {
    fn drop(&mut self) {
        *self.budget.lock() += self.bytes;
        self.budget.shared.returned.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buyer_waits_for_what_others_return() {
        let budget = Budget::new(10);
        let first = budget.buy(8, &Cancel::new()).expect("8 of 10");
        assert!(budget.try_buy(3).is_err());
        assert!(budget.buy(11, &Cancel::new()).is_err());
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| budget.buy(10, &Cancel::new()).is_ok());
            drop(first);
            assert!(waiting.join().expect("no panic"));
        });
        assert!(budget.try_buy(10).is_ok());
    }

    #[test]
    fn a_cancelled_buyer_gives_up() {
        let budget = Budget::new(1);
        let _all = budget.try_buy(1).expect("free");
        let cancel = Cancel::new();
        cancel.cancel();
        assert!(budget.buy(1, &cancel).is_err());
    }
}

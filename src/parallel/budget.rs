//! One byte budget for everything that is in flight: buffers between stages, codec windows.

use super::Cancel;
use crate::error::{Error, Result};
use std::sync::atomic::{AtomicBool, Ordering};
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
    window_bytes: u64,
    window_taken: AtomicBool,
}

impl Budget {
    /// A budget of `total_bytes`.
    pub fn new(total_bytes: u64) -> Self {
        Self::with_window(total_bytes, 0)
    }

    /// The same, and besides `window_bytes` for the window of one codec at a time that needs more than is free.
    pub fn with_window(total_bytes: u64, window_bytes: u64) -> Self {
        let shared = Shared {
            total_bytes,
            free_bytes: Mutex::new(total_bytes),
            returned: Condvar::new(),
            window_bytes,
            window_taken: AtomicBool::new(false),
        };
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
        Ok(Grant { budget: self.clone(), of: Share::Bytes(bytes) })
    }

    /// As [`Budget::try_buy`], for the window of a codec, which may have what is set aside for one.
    pub(crate) fn try_buy_window(&self, bytes: u64) -> Result<Grant> {
        let refused = match self.try_buy(bytes) {
            Err(refused) if bytes <= self.shared.window_bytes => refused,
            other => return other,
        };
        match self.shared.window_taken.swap(true, Ordering::AcqRel) {
            true => Err(refused),
            false => Ok(Grant { budget: self.clone(), of: Share::Window }),
        }
    }

    /// The largest window that can ever be had.
    pub(crate) fn largest_window_bytes(&self) -> u64 {
        self.shared.total_bytes.max(self.shared.window_bytes)
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
        Ok(Grant { budget: self.clone(), of: Share::Bytes(bytes) })
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
    of: Share,
}

#[derive(Debug)]
enum Share {
    Bytes(u64),
    /// What is set aside for one window.
    Window,
}

impl Drop for Grant {
    fn drop(&mut self) {
        match self.of {
            Share::Bytes(bytes) => *self.budget.lock() += bytes,
            Share::Window => self.budget.shared.window_taken.store(false, Ordering::Release),
        }
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
    fn one_window_at_a_time_is_larger_than_the_budget() {
        let budget = Budget::with_window(10, 100);
        assert!(budget.try_buy(11).is_err() && budget.try_buy_window(101).is_err());
        let window = budget.try_buy_window(100).expect("is set aside");
        assert!(budget.try_buy_window(100).is_err());
        let _small = budget.try_buy_window(10).expect("is in the budget");
        drop(window);
        assert!(budget.try_buy_window(100).is_ok());
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

//! shuttle's condition variable never comes back from `wait_timeout` by itself, but a real one does: here a thread of its own,
//! which runs whenever shuttle lets it, wakes who waits.

use shuttle::sync::MutexGuard;
use std::cell::Cell;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, LockResult};
use std::time::Duration;

/// So often on one variable. Then it waits like shuttle's, so that whoever is never woken is found.
const TIMEOUTS: usize = 3;

std::thread_local! {
    /// shuttle runs all threads of a schedule on one real thread.
    static WAITS: Cell<usize> = const { Cell::new(0) };
}

/// How often somebody has begun to wait since it was asked last, in the test that asks.
pub fn waits() -> usize {
    WAITS.replace(0)
}

#[derive(Debug)]
pub struct Condvar {
    inner: Arc<shuttle::sync::Condvar>,
    timeouts: AtomicUsize,
}

impl Condvar {
    pub fn new() -> Self {
        Condvar { inner: Arc::new(shuttle::sync::Condvar::new()), timeouts: AtomicUsize::new(0) }
    }

    pub fn notify_all(&self) {
        self.inner.notify_all();
    }

    pub fn wait_timeout<'a, T>(
        &self,
        guard: MutexGuard<'a, T>,
        duration: Duration,
    ) -> LockResult<(MutexGuard<'a, T>, shuttle::sync::WaitTimeoutResult)> {
        WAITS.set(WAITS.get() + 1);
        if self.timeouts.fetch_add(1, Ordering::Relaxed) < TIMEOUTS {
            let inner = Arc::clone(&self.inner);
            shuttle::thread::spawn(move || inner.notify_all());
        }
        self.inner.wait_timeout(guard, duration)
    }
}

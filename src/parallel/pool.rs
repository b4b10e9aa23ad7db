//! The rayon pool of one engine, made when it is first needed and never the global one.

use crate::error::{Error, ErrorKind, Result};
use std::sync::OnceLock;

/// A pool for pure computing: hashing or inflating many things that nobody waits for in between.
#[derive(Debug)]
pub struct Pool {
    threads: usize,
    pool: OnceLock<rayon::ThreadPool>,
}

impl Pool {
    /// A pool that will have `threads` threads.
    pub fn new(threads: usize) -> Self {
        Pool { threads, pool: OnceLock::new() }
    }

    /// Runs `work` inside the pool, so that parallel iterators use its threads.
    pub fn install<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        if self.pool.get().is_none() {
            let made = rayon::ThreadPoolBuilder::new().num_threads(self.threads).build();
            let made = made.map_err(|error| {
                Error::new(ErrorKind::Io, format!("cannot start {} threads", self.threads)).with_source(error)
            })?;
            // Another thread may have been quicker; one pool is as good as the other.
            let _ = self.pool.set(made);
        }
        self.pool.get().expect("just set").install(work)
    }
}

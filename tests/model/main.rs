//! Concurrency, explored and not hoped for.
//!
//! `in_flight` compiles the real `src/parallel/in_flight.rs` with shuttle's primitives in the place of those in
//! `src/parallel/sync.rs`, and lets shuttle choose who runs at each step: two thousand schedules of each case, half of them
//! at random and half with few preemptions. `processes` does so two hundred times, at random, with the real locks between
//! processes on a real directory. `interleavings` runs whole engines and compares with one that did everything in turn.

mod condvar;
mod in_flight;
mod interleavings;
mod processes;
#[path = "../support/mod.rs"]
mod support;

/// The surroundings that `in_flight.rs` has in the crate.
#[path = "../../src/parallel"]
mod parallel {
    pub use transload::Cancel;

    pub mod sync {
        pub use crate::condvar::Condvar;
        pub use shuttle::sync::{Arc, Mutex, MutexGuard};
        pub use shuttle_dashmap::DashMap;
        pub use shuttle_dashmap::mapref::entry::Entry;
    }

    #[allow(dead_code, missing_docs, reason = "the crate uses all of it")]
    pub mod in_flight;
}

mod error {
    pub use transload::Result;
}

use support::tally::Executions;

/// Schedules that are tried of each case, half of them at random and half by their preemptions.
const SCHEDULES: usize = 2_000;

/// Runs `case` under many schedules.
fn explore(case: impl Fn() + Send + Sync + Clone + 'static) {
    let _row = Executions::of("schedules of claims between threads", SCHEDULES as u64);
    shuttle::check_random(case.clone(), SCHEDULES / 2);
    shuttle::check_pct(case, SCHEDULES / 2, 3);
}

//! Work in parallel: once-only claims, bounded lanes of scoped threads, a byte budget, cancellation, waiting for locks.

mod budget;
mod cancel;
#[cfg(feature = "failpoints")]
pub mod failpoint;
#[cfg(not(feature = "failpoints"))]
#[path = "failpoint_off.rs"]
pub(crate) mod failpoint;
pub mod in_flight;
#[cfg(test)]
mod in_flight_tests;
mod lanes;
pub(crate) mod lock_table;
pub(crate) mod patience;
mod pool;
pub(crate) mod queue;
mod sync;

pub use budget::{Budget, Grant};
pub use cancel::Cancel;
pub use in_flight::{Claim, InFlight, Owner, Ticket, Waited};
pub use lanes::Lanes;
pub use patience::Patience;
pub use pool::Pool;

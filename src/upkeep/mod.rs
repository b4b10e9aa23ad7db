//! Care of the store: what can go, and what takes the room.

pub mod doctor;
pub mod du;
pub mod fsck;
pub mod gc;
mod measure;
mod reach;

pub use doctor::{DoctorReport, doctor};
pub use du::{DuReport, ImageUsage, Share, UpperUsage, du};
pub use fsck::{FsckMeans, FsckOptions, FsckReport, Rebuilt, fsck, rebuild};
pub use gc::{GcFailure, GcOptions, GcReport, gc, would_free};

/// Milliseconds since 1970, as leases count them.
fn now_ms() -> u64 {
    let since = crate::parallel::failpoint::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

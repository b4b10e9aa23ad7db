//! Care of the store: what can go, and what takes the room.

mod commands;
pub mod doctor;
pub mod du;
pub mod fsck;
pub mod gc;
pub mod labels;
mod measure;
mod reach;
pub mod restore;
pub mod why;

use crate::metadata::now_ms;

pub use commands::quoted;
pub use doctor::{DoctorReport, doctor};
pub use du::{DuReport, ImageUsage, Share, UpperUsage, du};
pub use fsck::{FsckMeans, FsckOptions, FsckReport, Rebuilt, fsck, rebuild};
pub use gc::{GcFailure, GcItem, GcOptions, GcReport, gc, would_free, would_remove};
pub use restore::{RestoreReport, restore};
pub use why::{Holder, WhyReport, why};

/// When something ends that lasts so long from now on, in milliseconds since 1970.
pub(crate) fn ends_ms(length: std::time::Duration) -> u64 {
    now_ms().saturating_add(u64::try_from(length.as_millis()).unwrap_or(u64::MAX))
}

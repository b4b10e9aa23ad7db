//! Care of the store: what can go, and what takes the room.

pub mod du;
pub mod gc;
mod measure;
mod reach;

pub use du::{DuReport, ImageUsage, Share, du};
pub use gc::{GcFailure, GcOptions, GcReport, gc, would_free};

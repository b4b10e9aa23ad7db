//! The verbs that move images in and out.

pub mod bundle;
pub mod options;
pub mod report;
mod users;

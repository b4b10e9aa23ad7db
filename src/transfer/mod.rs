//! The verbs that move images in and out.

pub mod bundle;
mod users;

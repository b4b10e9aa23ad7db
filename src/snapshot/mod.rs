//! Extracted layers, and layered root filesystems made of them.
//!
//! [`trees`] holds each layer once; a [`Snapshotter`] makes chains of them: `overlay` by stacking, `plain` by copying.
//! What depends on a layer's parent lies in a small heal directory of the chain.

pub mod trees;

pub use trees::{Committed, TreeHandle, TreeIngest, Trees};

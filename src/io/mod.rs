//! Tools that touch bytes and files and know nothing of images: codecs, digests, durable writes, locked directories,
//! the tar reader.

pub mod codec;
pub mod digesting;
pub mod durable;
mod gzip;
pub mod locked;
pub mod remove;
pub mod tar;

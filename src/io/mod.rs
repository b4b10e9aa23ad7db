//! Tools that touch bytes and files and know nothing of images: codecs, digests, durable writes, locked directories,
//! the tar reader, the space that is left to others.

pub mod codec;
pub mod digesting;
pub mod durable;
mod gzip;
pub mod headroom;
mod inflate;
pub mod locked;
pub mod remove;
pub mod tar;

/// `Read::read` for what is read chunk by chunk through [`std::io::BufRead`].
pub(crate) fn read_buffered(reader: &mut impl std::io::BufRead, buffer: &mut [u8]) -> std::io::Result<usize> {
    let available = reader.fill_buf()?;
    let count = available.len().min(buffer.len());
    buffer[..count].copy_from_slice(&available[..count]);
    reader.consume(count);
    Ok(count)
}

//! File contents: written straight from the reader's buffer, with holes where there is nothing but zeros.

use super::{beyond_filesystem, beyond_linux};
use crate::error::{Error, Result};
use crate::io::tar::{EntryData, Region, TarInput};
use crate::parallel::failpoint;
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::ftruncate;
use rustix::io::{Errno, pwrite};
use std::io::BufRead;

/// Runs of zeros from this size on become holes. Smaller ones would only fragment files.
const HOLE: usize = 64 << 10;
static ZEROS: [u8; HOLE] = [0; HOLE];

/// Is told how far reading has come, and may say stop.
pub(super) type Reached<'a> = &'a mut dyn FnMut(u64) -> Result<()>;

/// Writes the whole of an entry's data to the empty `file`.
pub(super) fn write_dense<R: TarInput>(
    file: BorrowedFd<'_>,
    mut data: EntryData<'_, R>,
    size: u64,
    reached: Reached<'_>,
) -> Result<()> {
    if size == 0 {
        return Ok(());
    }
    let mut writer = Writer { file, offset: 0, zeros: 0 };
    writer.copy(&mut data, size, size >= HOLE as u64, reached)?;
    writer.end(size)
}

/// Writes the data regions of a sparse entry to the empty `file` and gives it its size.
pub(super) fn write_sparse<R: TarInput>(
    file: BorrowedFd<'_>,
    mut data: EntryData<'_, R>,
    size: u64,
    regions: &[Region],
    reached: Reached<'_>,
) -> Result<()> {
    let mut writer = Writer { file, offset: 0, zeros: 0 };
    for region in regions {
        writer.settle()?;
        writer.offset = region.offset;
        writer.copy(&mut data, region.len, true, reached)?;
    }
    writer.zeros = writer.zeros.max(1);
    writer.end(size)
}

/// Writes `bytes` to the empty `file`, as they are.
pub(super) fn write_all(file: &OwnedFd, bytes: &[u8]) -> Result<()> {
    Writer { file: file.as_fd(), offset: 0, zeros: 0 }.put(bytes)
}

/// Appends the whole of an entry's data to `buffer`.
pub(super) fn read_all<R: TarInput>(
    mut data: EntryData<'_, R>,
    size: u64,
    buffer: &mut Vec<u8>,
    reached: Reached<'_>,
) -> Result<()> {
    pieces(&mut data, size, reached, |bytes| {
        buffer.extend_from_slice(bytes);
        Ok(())
    })
}

/// Shows `each` the next `size` bytes, piece by piece.
fn pieces<R: TarInput>(
    data: &mut EntryData<'_, R>,
    size: u64,
    reached: Reached<'_>,
    mut each: impl FnMut(&[u8]) -> Result<()>,
) -> Result<()> {
    let mut left = size;
    while left > 0 {
        let bytes = match data.fill_buf() {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error.into()),
        };
        if bytes.is_empty() {
            return Err(Error::malformed("a file has less data than its size says"));
        }
        let amount = usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len());
        each(&bytes[..amount])?;
        data.consume(amount);
        left -= amount as u64;
        reached(data.position())?;
    }
    Ok(())
}

struct Writer<'a> {
    file: BorrowedFd<'a>,
    /// Where the next byte goes, held-back zeros not counted.
    offset: u64,
    /// Zeros that have been read and not written.
    zeros: u64,
}

impl Writer<'_> {
    fn copy<R: TarInput>(
        &mut self,
        data: &mut EntryData<'_, R>,
        size: u64,
        holes: bool,
        reached: Reached<'_>,
    ) -> Result<()> {
        pieces(data, size, reached, |bytes| match holes {
            true => self.put_with_holes(bytes),
            false => self.put(bytes),
        })
    }

    fn put(&mut self, mut bytes: &[u8]) -> Result<()> {
        while !bytes.is_empty() {
            failpoint::at("tree.write")?;
            match pwrite(self.file, bytes, self.offset) {
                Ok(written) => {
                    self.offset += written as u64;
                    bytes = &bytes[written..];
                }
                Err(Errno::INTR) => {}
                Err(errno) => return Err(size_error(errno)),
            }
        }
        Ok(())
    }

    /// Writes in as few calls as possible what lies between the aligned pieces that are all zeros.
    fn put_with_holes(&mut self, bytes: &[u8]) -> Result<()> {
        let begin = self.offset + self.zeros;
        let (mut written, mut at) = (0, 0);
        while at < bytes.len() {
            let into_piece = ((begin + at as u64) % HOLE as u64) as usize;
            let end = bytes.len().min(at + HOLE - into_piece);
            let piece = &bytes[at..end];
            if is_zero(piece) {
                self.put(&bytes[written..at])?;
                self.zeros += piece.len() as u64;
                written = end;
            } else if self.zeros > 0 {
                self.settle()?;
            }
            at = end;
        }
        self.put(&bytes[written..])
    }

    /// Decides what becomes of zeros that were held back: long runs are left out, short ones written.
    fn settle(&mut self) -> Result<()> {
        let zeros = std::mem::take(&mut self.zeros);
        if zeros < HOLE as u64 {
            self.put(&ZEROS[..zeros as usize])
        } else {
            self.offset += zeros;
            Ok(())
        }
    }

    fn end(&mut self, size: u64) -> Result<()> {
        if self.zeros > 0 {
            ftruncate(self.file, size).map_err(size_error)?;
        }
        Ok(())
    }
}

/// Holes cost the archive nothing, so its files may be as large as it likes.
fn size_error(errno: Errno) -> Error {
    match errno {
        Errno::FBIG => {
            beyond_filesystem("the file is larger than the store's filesystem allows").with_source(errno)
        }
        // An offset beyond what the kernel can count.
        Errno::INVAL | Errno::OVERFLOW => {
            beyond_linux("the file is larger than Linux allows").with_source(errno)
        }
        errno => errno.into(),
    }
}

/// Most pieces that are not zero show it in their first word.
fn is_zero(piece: &[u8]) -> bool {
    let (start, rest) = piece.split_at(piece.len().min(16));
    start.iter().all(|&byte| byte == 0) && rest.chunks(HOLE).all(|chunk| *chunk == ZEROS[..chunk.len()])
}

//! One gzip member at a time (RFC 1952), over a raw inflater that is reset and kept between members: BGZF and eStargz
//! have thousands of members in a layer. Header flags and header checksum are understood, the checksum and the length
//! at the end are verified. How members follow each other is left to [`super::codec`].

use super::codec::{Step, StreamDecoder};
use super::inflate::{Damaged, Inflate};
use crate::error::{Error, Result};
use flate2::Crc;

const FLAG_HEADER_CRC: u8 = 2;
const FLAG_EXTRA: u8 = 4;
const FLAG_NAME: u8 = 8;
const FLAG_COMMENT: u8 = 16;
const FLAGS_RESERVED: u8 = 0xe0;
const FIXED_BYTES: usize = 10;
const TRAILER_BYTES: usize = 8;

/// Decodes members.
pub(super) struct GzipMember {
    inflater: Inflate,
    stage: Stage,
    flags: u8,
    /// A field that may arrive in pieces.
    field: [u8; FIXED_BYTES],
    filled: usize,
    header_crc: Crc,
    data_crc: Crc,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    Fixed,
    ExtraLength,
    Extra(usize),
    Name,
    Comment,
    HeaderCrc,
    Body,
    Trailer,
}

impl GzipMember {
    pub(super) fn new() -> Self {
        GzipMember {
            inflater: Inflate::new(),
            stage: Stage::Fixed,
            flags: 0,
            field: [0; FIXED_BYTES],
            filled: 0,
            header_crc: Crc::new(),
            data_crc: Crc::new(),
        }
    }

    /// Collects a field of `size` bytes; true once it is whole.
    fn collect(&mut self, size: usize, input: &mut &[u8]) -> bool {
        let amount = input.len().min(size - self.filled);
        self.field[self.filled..self.filled + amount].copy_from_slice(&input[..amount]);
        *input = &input[amount..];
        self.filled += amount;
        if self.filled < size {
            return false;
        }
        self.filled = 0;
        true
    }

    fn u32_at(&self, at: usize) -> u32 {
        let bytes = self.field[at..at + 4].try_into().expect("four bytes of a field of ten");
        u32::from_le_bytes(bytes)
    }

    /// One part of the header; false if it needs more input.
    fn header_part(&mut self, input: &mut &[u8]) -> Result<bool> {
        match self.stage {
            Stage::Fixed => self.fixed(input),
            Stage::ExtraLength => {
                if !self.collect(2, input) {
                    return Ok(false);
                }
                self.header_crc.update(&self.field[..2]);
                let length = u16::from_le_bytes([self.field[0], self.field[1]]);
                self.stage = Stage::Extra(usize::from(length));
                Ok(true)
            }
            Stage::Extra(left) => {
                let amount = left.min(input.len());
                self.header_crc.update(&input[..amount]);
                *input = &input[amount..];
                self.stage = Stage::Extra(left - amount);
                if left == amount {
                    self.stage = self.after_extra();
                }
                Ok(left == amount)
            }
            Stage::Name => Ok(self.text(input, Self::after_name)),
            Stage::Comment => Ok(self.text(input, Self::after_comment)),
            Stage::HeaderCrc => self.check_header(input),
            Stage::Body | Stage::Trailer => Ok(true),
        }
    }

    fn fixed(&mut self, input: &mut &[u8]) -> Result<bool> {
        let whole = self.collect(FIXED_BYTES, input);
        let seen = if whole { FIXED_BYTES } else { self.filled };
        let magic = [0x1f, 0x8b, 8];
        if self.field[..seen.min(3)] != magic[..seen.min(3)] {
            return Err(Error::malformed(
                "what follows the gzip data is neither a gzip member nor zero padding",
            ));
        }
        if !whole {
            return Ok(false);
        }
        self.flags = self.field[3];
        if self.flags & FLAGS_RESERVED != 0 {
            return Err(Error::malformed("a gzip header has unknown flags"));
        }
        self.header_crc.update(&self.field);
        self.stage = if self.flags & FLAG_EXTRA != 0 { Stage::ExtraLength } else { self.after_extra() };
        Ok(true)
    }

    /// Text that ends with a NUL and may be of any length: nothing of it is kept.
    fn text(&mut self, input: &mut &[u8], next: fn(&Self) -> Stage) -> bool {
        let end = input.iter().position(|&byte| byte == 0);
        let amount = end.map_or(input.len(), |end| end + 1);
        self.header_crc.update(&input[..amount]);
        *input = &input[amount..];
        if end.is_some() {
            self.stage = next(self);
        }
        end.is_some()
    }

    fn check_header(&mut self, input: &mut &[u8]) -> Result<bool> {
        if !self.collect(2, input) {
            return Ok(false);
        }
        let stored = u16::from_le_bytes([self.field[0], self.field[1]]);
        if stored != (self.header_crc.sum() & 0xffff) as u16 {
            return Err(Error::malformed("a gzip header has a wrong checksum"));
        }
        self.stage = Stage::Body;
        Ok(true)
    }

    fn after_extra(&self) -> Stage {
        if self.flags & FLAG_NAME != 0 { Stage::Name } else { self.after_name() }
    }

    fn after_name(&self) -> Stage {
        if self.flags & FLAG_COMMENT != 0 { Stage::Comment } else { self.after_comment() }
    }

    fn after_comment(&self) -> Stage {
        if self.flags & FLAG_HEADER_CRC != 0 { Stage::HeaderCrc } else { Stage::Body }
    }

    fn inflate(&mut self, input: &mut &[u8], output: &mut [u8]) -> Result<usize> {
        let damaged = |Damaged(what)| Error::malformed(format!("the gzip data is damaged: {what}"));
        let progress = self.inflater.inflate(input, output).map_err(damaged)?;
        *input = &input[progress.read..];
        self.data_crc.update(&output[..progress.written]);
        if progress.ended {
            self.stage = Stage::Trailer;
        }
        Ok(progress.written)
    }

    /// Collects the checksum and the length, whose first bytes the inflater may have taken with the last of the data.
    fn trailer(&mut self, input: &mut &[u8]) -> bool {
        while let Some(byte) = self.inflater.leftover() {
            self.field[self.filled] = byte;
            self.filled += 1;
        }
        self.collect(TRAILER_BYTES, input)
    }

    fn check_trailer(&self) -> Result<()> {
        if self.u32_at(0) != self.data_crc.sum() {
            return Err(Error::malformed("the gzip data has a wrong checksum"));
        }
        if self.u32_at(4) != self.data_crc.amount() {
            return Err(Error::malformed("the gzip data has a wrong length"));
        }
        Ok(())
    }
}

impl StreamDecoder for GzipMember {
    fn begin(&mut self) -> Result<()> {
        self.inflater.reset();
        self.stage = Stage::Fixed;
        self.filled = 0;
        self.header_crc.reset();
        self.data_crc.reset();
        Ok(())
    }

    fn step(&mut self, input: &[u8], output: &mut [u8]) -> Result<Step> {
        let mut rest = input;
        let mut written = 0;
        let mut ended = false;
        loop {
            match self.stage {
                Stage::Body => {
                    written = self.inflate(&mut rest, output)?;
                    if self.stage == Stage::Body {
                        break;
                    }
                }
                Stage::Trailer => {
                    if self.trailer(&mut rest) {
                        self.check_trailer()?;
                        ended = true;
                    }
                    break;
                }
                _ => {
                    if !self.header_part(&mut rest)? {
                        break;
                    }
                }
            }
        }
        Ok(Step { read: input.len() - rest.len(), written, ended })
    }
}

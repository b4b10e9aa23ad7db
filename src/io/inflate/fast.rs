//! The loop in which the time goes: whole symbols, with plenty of input and of room.
//!
//! Sixty-four bits of input are taken at a time and without a branch. A table is looked into before the bits are refilled, so that
//! the look does not wait for the memory that the refill reads. A match of up to 32 bytes from 16 or more back, which most are, is copied
//! by two fixed pieces, without a branch on its length.

use super::table::*;
use super::{Damaged, WINDOW_BYTES};

/// A piece of a match.
const PIECE_BYTES: usize = 16;
/// What one round may read: the eight bytes of each of three refills.
pub(super) const INPUT_SLACK: usize = 3 * 8;
/// What one round may write: three literals, the longest match, and pieces that end beyond it.
pub(super) const OUTPUT_SLACK: usize = 3 + 258 + 3 * PIECE_BYTES;

const LITLEN_MASK: u64 = (1 << LITLEN_BITS) - 1;
const DISTANCE_MASK: u64 = (1 << DISTANCE_BITS) - 1;

/// What the loop works with and does not change.
pub(super) struct Fixed<'a> {
    pub(super) input: &'a [u8],
    pub(super) litlen: &'a [u32; LITLEN_ENTRIES],
    pub(super) distance: &'a [u32; DISTANCE_ENTRIES],
    /// Output of earlier calls: the last `known` bytes of it.
    pub(super) window: &'a [u8; WINDOW_BYTES],
    pub(super) known: usize,
}

/// Where the loop stands.
pub(super) struct Place {
    /// In the input.
    pub(super) at: usize,
    /// In the output.
    pub(super) out: usize,
    pub(super) bits: u64,
    /// How many of them count; above the low eight bits lies rubbish while the loop runs.
    pub(super) count: u32,
}

/// Decodes until less input than [`INPUT_SLACK`] or less room than [`OUTPUT_SLACK`] is left; true at the end of the block.
pub(super) fn run(fixed: &Fixed<'_>, output: &mut [u8], place: &mut Place) -> Result<bool, Damaged> {
    let Fixed { input, litlen, distance: distances, window, known } = *fixed;
    let last_in = input.len() - INPUT_SLACK;
    let last_out = output.len() - OUTPUT_SLACK;
    let Place { mut at, mut out, mut bits, mut count } = *place;
    macro_rules! refill {
        () => {
            let word: [u8; 8] = input[at..at + 8].try_into().expect("a slice of eight bytes");
            bits |= u64::from_le_bytes(word).wrapping_shl(count);
            at += 7 - (count >> 3 & 7) as usize;
            count |= 56;
        };
    }
    macro_rules! consume {
        ($entry:expr) => {
            // The shift looks at six bits; the low eight of the count are right, since they never go below zero.
            bits = bits.wrapping_shr($entry);
            count = count.wrapping_sub($entry);
        };
    }
    macro_rules! literal {
        ($entry:expr) => {
            consume!($entry);
            output[out] = ($entry >> 16) as u8;
            out += 1;
        };
    }
    refill!();
    let mut entry = litlen[(bits & LITLEN_MASK) as usize];
    let ended = loop {
        if at > last_in || out > last_out {
            break false;
        }
        if entry & LITERAL != 0 {
            literal!(entry);
            entry = litlen[(bits & LITLEN_MASK) as usize];
            if entry & LITERAL != 0 {
                literal!(entry);
                entry = litlen[(bits & LITLEN_MASK) as usize];
                if entry & LITERAL != 0 {
                    literal!(entry);
                    entry = litlen[(bits & LITLEN_MASK) as usize];
                    refill!();
                    continue;
                }
            }
        }
        if entry & SPECIAL != 0 {
            if entry & SPECIAL == LINK {
                entry = litlen[linked(entry, LITLEN_BITS, bits)];
            }
            if entry & LITERAL != 0 {
                literal!(entry);
                entry = litlen[(bits & LITLEN_MASK) as usize];
                refill!();
                continue;
            }
            if entry & SPECIAL == END {
                consume!(entry);
                break true;
            }
            if entry & SPECIAL != 0 {
                return Err(Damaged("an invalid length"));
            }
        }
        // 56 bits were there; two literals and a length take 42 at most, and the root of the distances wants 8.
        let length = value(entry, bits);
        consume!(entry);
        entry = distances[(bits & DISTANCE_MASK) as usize];
        refill!();
        if entry & SPECIAL != 0 {
            if entry & SPECIAL == LINK {
                entry = distances[linked(entry, DISTANCE_BITS, bits)];
            }
            if entry & SPECIAL != 0 {
                return Err(Damaged("an invalid distance"));
            }
        }
        // 28 of the 56 bits at most, so that there are enough for the next look.
        let distance = value(entry, bits);
        consume!(entry);
        entry = litlen[(bits & LITLEN_MASK) as usize];
        refill!();
        if distance > out {
            if distance > out + known {
                return Err(Damaged("a distance before the start"));
            }
            copy_from_window(output, out, distance, length, window);
        } else if distance >= PIECE_BYTES {
            copy_piece(output, out - distance, out);
            copy_piece(output, out - distance + PIECE_BYTES, out + PIECE_BYTES);
            if length > 2 * PIECE_BYTES {
                copy_pieces(output, out + 2 * PIECE_BYTES, distance, length - 2 * PIECE_BYTES);
            }
        } else {
            copy_near(output, out, distance, length);
        }
        out += length;
    };
    *place = Place { at, out, bits, count: count & 63 };
    Ok(ended)
}

#[inline(always)]
fn copy_piece(output: &mut [u8], from: usize, to: usize) {
    let piece: [u8; PIECE_BYTES] = output[from..from + PIECE_BYTES].try_into().expect("a slice of a piece");
    output[to..to + PIECE_BYTES].copy_from_slice(&piece);
}

/// The rest of a long match; ends up to a piece beyond it.
#[inline(never)]
fn copy_pieces(output: &mut [u8], out: usize, distance: usize, length: usize) {
    for to in (out..out + length).step_by(PIECE_BYTES) {
        copy_piece(output, to - distance, to);
    }
}

/// A match from close by, where what is read is partly what is written.
#[inline(never)]
fn copy_near(output: &mut [u8], out: usize, distance: usize, length: usize) {
    if distance == 1 {
        let byte = output[out - 1];
        output[out..out + length].fill(byte);
        return;
    }
    // Eight bytes are written, of which `distance` are right; the next round writes over the others.
    for to in (out..out + length).step_by(distance.min(8)) {
        let piece: [u8; 8] =
            output[to - distance..to - distance + 8].try_into().expect("a slice of eight bytes");
        output[to..to + 8].copy_from_slice(&piece);
    }
}

/// A match that begins in the output of an earlier call.
#[cold]
#[inline(never)]
pub(super) fn copy_from_window(
    output: &mut [u8],
    out: usize,
    distance: usize,
    length: usize,
    window: &[u8; WINDOW_BYTES],
) {
    let back = distance - out;
    let amount = length.min(back);
    let from = WINDOW_BYTES - back;
    output[out..out + amount].copy_from_slice(&window[from..from + amount]);
    for to in out + amount..out + length {
        output[to] = output[to - distance];
    }
}

//! Decoding tables of a canonical Huffman code (RFC 1951, 3.2.2): one look with as many bits as the root has, and a second one for
//! longer codes.
//!
//! An entry: bits 0-7 are how many bits the symbol uses up, its extra bits included; bits 8-12 how many of them are the code, or, in a
//! link, how many bits index the second table; bits 13-15 what it is; bits 16-31 the value: a literal, the base of a length or
//! distance, or where the second table begins.

use super::Damaged;

/// A literal, or a code length.
pub(super) const LITERAL: u32 = 1 << 15;
/// A code that is longer than the root.
pub(super) const LINK: u32 = 1 << 14;
/// The end of the block.
pub(super) const END: u32 = 1 << 13;
/// What no symbol has.
pub(super) const INVALID: u32 = LINK | END;
/// The bits in which anything but a literal, a length or a distance differs from those.
pub(super) const SPECIAL: u32 = LINK | END;

pub(super) const LITLEN_BITS: u32 = 11;
pub(super) const DISTANCE_BITS: u32 = 8;
pub(super) const PRECODE_BITS: u32 = 7;

/// The root and the most that second tables take with codes of up to 15 bits: zlib's `enough` gives 2,342 for 288 symbols with 11 bits, and 402
/// for 32 symbols with 8.
pub(super) const LITLEN_ENTRIES: usize = 2342;
pub(super) const DISTANCE_ENTRIES: usize = 402;
pub(super) const PRECODE_ENTRIES: usize = 1 << PRECODE_BITS;

pub(super) const LITLEN_SYMBOLS: usize = 288;
pub(super) const DISTANCE_SYMBOLS: usize = 32;
pub(super) const PRECODE_SYMBOLS: usize = 19;
pub(super) const END_OF_BLOCK: usize = 256;

const MAX_CODE_BITS: usize = 15;

/// Entries without the length of their code, which [`build`] adds.
pub(super) const LITLEN: [u32; LITLEN_SYMBOLS] = litlen();
pub(super) const DISTANCE: [u32; DISTANCE_SYMBOLS] = distance();
pub(super) const PRECODE: [u32; PRECODE_SYMBOLS] = precode();

/// RFC 1951, 3.2.5. Lengths 286 and 287 take part in the fixed code and mean nothing.
const fn litlen() -> [u32; LITLEN_SYMBOLS] {
    let mut entries = [INVALID; LITLEN_SYMBOLS];
    let mut symbol = 0;
    while symbol < END_OF_BLOCK {
        entries[symbol] = LITERAL | (symbol as u32) << 16;
        symbol += 1;
    }
    entries[END_OF_BLOCK] = END;
    let mut base = 3;
    while symbol < 284 {
        symbol += 1;
        let step = symbol as u32 - 257;
        let extra = if step < 8 { 0 } else { step / 4 - 1 };
        entries[symbol] = base << 16 | extra;
        base += 1 << extra;
    }
    entries[285] = 258 << 16;
    entries
}

/// RFC 1951, 3.2.5. Distances 30 and 31 mean nothing.
const fn distance() -> [u32; DISTANCE_SYMBOLS] {
    let mut entries = [INVALID; DISTANCE_SYMBOLS];
    let (mut symbol, mut base) = (0, 1);
    while symbol < 30 {
        let extra = if symbol < 4 { 0 } else { symbol as u32 / 2 - 1 };
        entries[symbol] = base << 16 | extra;
        base += 1 << extra;
        symbol += 1;
    }
    entries
}

/// RFC 1951, 3.2.7: code lengths, and three ways to repeat one.
const fn precode() -> [u32; PRECODE_SYMBOLS] {
    let mut entries = [0; PRECODE_SYMBOLS];
    let mut symbol = 0;
    while symbol < PRECODE_SYMBOLS {
        let extra = match symbol {
            16 => 2,
            17 => 3,
            18 => 7,
            _ => 0,
        };
        entries[symbol] = LITERAL | (symbol as u32) << 16 | extra;
        symbol += 1;
    }
    entries
}

/// Whether a code uses all of its space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Space {
    Full,
    /// No code at all, or a single one of one bit, which zlib allows: what is left decodes to [`INVALID`].
    Sparse,
}

/// Fills `table` from the lengths of the codes; zero is no code. Refuses what zlib refuses: too many codes, and, but for [`Space::Sparse`], too few.
pub(super) fn build(
    lengths: &[u8],
    symbols: &[u32],
    root_bits: u32,
    table: &mut [u32],
) -> Result<Space, Damaged> {
    let mut counts = [0u16; MAX_CODE_BITS + 1];
    for &length in lengths {
        counts[usize::from(length)] += 1;
    }
    counts[0] = 0;
    let space = space(&counts)?;
    let (sorted, total) = sorted(lengths, &counts);
    let sorted = &sorted[..total];
    if space == Space::Sparse {
        // Looked at only once a bit is there, as a code would be.
        table[..1 << root_bits].fill(INVALID | 1 << 8 | 1);
        for &symbol in sorted {
            let made = entry(symbols, symbol, 1);
            table[..1 << root_bits].iter_mut().step_by(2).for_each(|place| *place = made);
        }
        return Ok(space);
    }
    let (first_long, code) = fill_root(sorted, &counts, symbols, root_bits, table);
    fill_links(&sorted[first_long..], &mut counts, symbols, root_bits, code, table);
    Ok(space)
}

fn entry(symbols: &[u32], symbol: u16, bits: u32) -> u32 {
    symbols[usize::from(symbol)] + (bits << 8 | bits)
}

fn space(counts: &[u16; MAX_CODE_BITS + 1]) -> Result<Space, Damaged> {
    let mut left = 1i32;
    for &count in &counts[1..] {
        left = (left << 1) - i32::from(count);
        if left < 0 {
            return Err(Damaged("a code has too many symbols"));
        }
    }
    let longer = counts[2..].iter().any(|&count| count > 0);
    match left {
        0 => Ok(Space::Full),
        _ if longer => Err(Damaged("a code has too few symbols")),
        _ => Ok(Space::Sparse),
    }
}

/// The symbols that have a code, by its length and then by their number, and how many they are.
fn sorted(lengths: &[u8], counts: &[u16; MAX_CODE_BITS + 1]) -> ([u16; LITLEN_SYMBOLS], usize) {
    let mut next = [0u16; MAX_CODE_BITS + 2];
    for bits in 1..=MAX_CODE_BITS {
        next[bits + 1] = next[bits] + counts[bits];
    }
    let total = usize::from(next[MAX_CODE_BITS + 1]);
    let mut sorted = [0; LITLEN_SYMBOLS];
    for (symbol, &length) in lengths.iter().enumerate().filter(|(_, length)| **length > 0) {
        let place = &mut next[usize::from(length)];
        sorted[usize::from(*place)] = symbol as u16;
        *place += 1;
    }
    (sorted, total)
}

/// Codes that fit into the root. The table of codes of up to n bits is that of n - 1 bits twice, with the new codes put in; gives
/// how many symbols were placed, and the next code.
fn fill_root(
    sorted: &[u16],
    counts: &[u16; MAX_CODE_BITS + 1],
    symbols: &[u32],
    root_bits: u32,
    table: &mut [u32],
) -> (usize, u32) {
    let (mut placed, mut code) = (0, 0u32);
    for bits in 1..=root_bits {
        let half = 1 << (bits - 1);
        table.copy_within(..half, half);
        for &symbol in &sorted[placed..placed + usize::from(counts[bits as usize])] {
            table[reversed(code, bits)] = entry(symbols, symbol, bits);
            code += 1;
        }
        placed += usize::from(counts[bits as usize]);
        code <<= 1;
    }
    (placed, code)
}

/// Longer codes, in second tables behind the root. `code` is the first of `root_bits + 1` bits; `counts` are used up.
fn fill_links(
    sorted: &[u16],
    counts: &mut [u16; MAX_CODE_BITS + 1],
    symbols: &[u32],
    root_bits: u32,
    mut code: u32,
    table: &mut [u32],
) {
    let root_mask = (1 << root_bits) - 1;
    let mut bits = root_bits + 1;
    let (mut prefix, mut start, mut size) = (usize::MAX, 0, 0);
    let mut free = 1 << root_bits;
    for &symbol in sorted {
        while counts[bits as usize] == 0 {
            bits += 1;
            code <<= 1;
        }
        let place = reversed(code, bits);
        if place & root_mask != prefix {
            prefix = place & root_mask;
            let index_bits = index_bits(counts, bits, root_bits);
            (start, size) = (free, 1usize << index_bits);
            free += size;
            table[prefix] = LINK | (start as u32) << 16 | index_bits << 8 | root_bits;
        }
        let made = entry(symbols, symbol, bits);
        let stride = 1 << (bits - root_bits);
        table[start + (place >> root_bits)..start + size]
            .iter_mut()
            .step_by(stride)
            .for_each(|at| *at = made);
        counts[bits as usize] -= 1;
        code += 1;
    }
}

/// How many bits index the second table that begins with the next code: as many as it takes for the codes that are left to fill it.
fn index_bits(counts: &[u16; MAX_CODE_BITS + 1], bits: u32, root_bits: u32) -> u32 {
    let mut index_bits = bits - root_bits;
    let mut room = (1 << index_bits) - i32::from(counts[bits as usize]);
    while room > 0 && ((root_bits + index_bits) as usize) < MAX_CODE_BITS {
        index_bits += 1;
        room = (room << 1) - i32::from(counts[(root_bits + index_bits) as usize]);
    }
    index_bits
}

/// A code as it appears in the bits of the stream: its first bit lowest.
fn reversed(code: u32, bits: u32) -> usize {
    (code.reverse_bits() >> (32 - bits)) as usize
}

/// The entry of the symbol that `bits` begin with.
pub(super) fn look_up(table: &[u32], root_bits: u32, bits: u64) -> u32 {
    let entry = table[(bits & ((1 << root_bits) - 1)) as usize];
    match entry & SPECIAL == LINK {
        true => table[linked(entry, root_bits, bits)],
        false => entry,
    }
}

/// Where a link leads.
#[inline(always)]
pub(super) fn linked(entry: u32, root_bits: u32, bits: u64) -> usize {
    let index = bits >> root_bits & ((1 << (entry >> 8 & 0x1f)) - 1);
    (entry >> 16) as usize + index as usize
}

/// The base of a length or distance, and its extra bits.
#[inline(always)]
pub(super) fn value(entry: u32, bits: u64) -> usize {
    // Shifts take the low six bits of their count, and the rest of the entry does not matter.
    let used = bits & 1u64.wrapping_shl(entry).wrapping_sub(1);
    (entry >> 16) as usize + used.wrapping_shr(entry >> 8) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bases_are_those_of_the_rfc() {
        let bases = |entries: &[u32]| entries.iter().map(|entry| entry >> 16).collect::<Vec<_>>();
        assert_eq!(
            bases(&LITLEN[257..286]),
            [
                3, 4, 5, 6, 7, 8, 9, 10, 11, 13, 15, 17, 19, 23, 27, 31, 35, 43, 51, 59, 67, 83, 99, 115,
                131, 163, 195, 227, 258
            ]
        );
        assert_eq!(bases(&DISTANCE[..8]), [1, 2, 3, 4, 5, 7, 9, 13]);
        assert_eq!((DISTANCE[29] >> 16, DISTANCE[29] & 0xff), (24577, 13));
        assert_eq!((LITLEN[284] & 0xff, LITLEN[285] & 0xff), (5, 0));
        assert_eq!((LITLEN[286], DISTANCE[30]), (INVALID, INVALID));
    }

    #[test]
    fn codes_with_too_many_or_too_few_symbols_are_refused() {
        let mut table = [0; DISTANCE_ENTRIES];
        let mut build = |lengths: &[u8]| build(lengths, &DISTANCE, DISTANCE_BITS, &mut table);
        assert_eq!(build(&[1, 1]), Ok(Space::Full));
        assert_eq!(build(&[0, 1]), Ok(Space::Sparse));
        assert_eq!(build(&[0, 0]), Ok(Space::Sparse));
        assert!(build(&[1, 1, 1]).is_err());
        assert!(build(&[2, 2]).is_err());
        assert!(build(&[0, 2]).is_err());
    }

    #[test]
    fn the_deepest_codes_fit_their_tables() {
        // One code of each length and two of the longest need the longest second tables.
        let mut lengths = [0u8; LITLEN_SYMBOLS];
        (1..=15).for_each(|bits| lengths[bits] = bits as u8);
        lengths[16] = 15;
        let mut table = [0; LITLEN_ENTRIES];
        assert_eq!(build(&lengths, &LITLEN, LITLEN_BITS, &mut table), Ok(Space::Full));
        let all_ones = look_up(&table, LITLEN_BITS, 0x7fff);
        assert_eq!((all_ones >> 16, all_ones & 0xff), (16, 15));
        let last_but_one = look_up(&table, LITLEN_BITS, 0x3fff);
        assert_eq!(last_but_one >> 16, 15);
    }
}

//! Raw deflate (RFC 1951), inflated as a stream: the one stage of an import that cannot be spread over cores, so it is our own.
//!
//! It accepts and refuses what zlib does, and may be interrupted at any byte of input and of output. Its output is the caller's buffer,
//! in which matches are copied, so a large one is worth while: give it 64 KiB or more. Only the 32 KiB that a later call may refer to
//! are copied aside. All of it is safe code. How fast it is beside zlib-rs, `cargo bench --bench inflate` tells.
//!
//! [`fast`] decodes where there is plenty of input and room, the functions here near the ends of both; [`table`] makes the decoding tables.

mod fast;
mod table;
#[cfg(test)]
mod tests;

use fast::{Fixed, INPUT_SLACK, OUTPUT_SLACK, Place, copy_from_window};
use table::*;

/// The farthest that a match reaches back (RFC 1951, 2).
const WINDOW_BYTES: usize = 32 << 10;

/// The order in which the lengths of the code for code lengths are stored (RFC 1951, 3.2.7).
const PRECODE_ORDER: [u8; PRECODE_SYMBOLS] =
    [16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15];

/// Why a stream is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Damaged(pub(crate) &'static str);

/// What a call did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Progress {
    /// Bytes of the input that are used up.
    pub(crate) read: usize,
    /// Bytes of the output that were written.
    pub(crate) written: usize,
    /// The last block is complete.
    pub(crate) ended: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Header,
    StoredLength,
    Stored { left: usize },
    PrecodeLengths { read: usize },
    CodeLengths { read: usize },
    Symbols,
    Ended,
}

/// A stream that is being inflated.
pub(crate) struct Inflate {
    stage: Stage,
    last_block: bool,
    /// Input that was taken and not used yet: the low `count` bits; the others are zero between calls.
    bits: u64,
    count: u32,
    /// A match that the output had no room for: how much of it is left, and its distance.
    pending: (usize, usize),
    /// Output of earlier calls: the last `known` bytes of the window.
    window: Box<[u8; WINDOW_BYTES]>,
    known: usize,
    codes: Box<Codes>,
}

/// The codes of a block.
struct Codes {
    litlen: [u32; LITLEN_ENTRIES],
    distance: [u32; DISTANCE_ENTRIES],
    precode: [u32; PRECODE_ENTRIES],
    /// Code lengths as they are read: first of the precode, then of the other two, one behind the other.
    lengths: [u8; LITLEN_SYMBOLS + DISTANCE_SYMBOLS],
    litlen_count: usize,
    distance_count: usize,
    precode_count: usize,
    /// The tables are those of the fixed code.
    fixed: bool,
}

/// Input and output of a call, and how far it is.
struct Cursor<'a> {
    input: &'a [u8],
    at: usize,
    output: &'a mut [u8],
    out: usize,
}

/// Whether there is more to do with what there is.
#[derive(PartialEq, Eq)]
enum Next {
    Go,
    /// Input or output is used up.
    Wait,
}

impl Inflate {
    pub(crate) fn new() -> Self {
        Inflate {
            stage: Stage::Header,
            last_block: false,
            bits: 0,
            count: 0,
            pending: (0, 0),
            window: Box::new([0; WINDOW_BYTES]),
            known: 0,
            codes: Box::new(Codes {
                litlen: [0; LITLEN_ENTRIES],
                distance: [0; DISTANCE_ENTRIES],
                precode: [0; PRECODE_ENTRIES],
                lengths: [0; LITLEN_SYMBOLS + DISTANCE_SYMBOLS],
                litlen_count: 0,
                distance_count: 0,
                precode_count: 0,
                fixed: false,
            }),
        }
    }

    /// Gets ready for another stream.
    pub(crate) fn reset(&mut self) {
        self.stage = Stage::Header;
        self.last_block = false;
        (self.bits, self.count, self.pending, self.known) = (0, 0, (0, 0), 0);
    }

    /// After the end, the next byte that was taken from the input and does not belong to the stream; seven at most.
    pub(crate) fn leftover(&mut self) -> Option<u8> {
        self.drop_bits(self.count % 8);
        (self.count > 0).then(|| self.take(8) as u8)
    }

    /// Inflates until input or output is used up, or the stream has ended.
    pub(crate) fn inflate(&mut self, input: &[u8], output: &mut [u8]) -> Result<Progress, Damaged> {
        let mut cursor = Cursor { input, at: 0, output, out: 0 };
        while self.stage != Stage::Ended && self.advance(&mut cursor)? == Next::Go {}
        let (read, written) = (cursor.at, cursor.out);
        self.remember(&output[..written]);
        Ok(Progress { read, written, ended: self.stage == Stage::Ended })
    }

    fn advance(&mut self, cursor: &mut Cursor) -> Result<Next, Damaged> {
        match self.stage {
            Stage::Header => self.header(cursor),
            Stage::StoredLength => self.stored_length(cursor),
            Stage::Stored { left } => Ok(self.stored(cursor, left)),
            Stage::PrecodeLengths { read } => self.precode_lengths(cursor, read),
            Stage::CodeLengths { read } => self.code_lengths(cursor, read),
            Stage::Symbols => self.symbols(cursor),
            Stage::Ended => Ok(Next::Wait),
        }
    }

    /// Keeps what a later call may refer to.
    fn remember(&mut self, written: &[u8]) {
        let new = written.len().min(WINDOW_BYTES);
        self.window.copy_within(new.., 0);
        self.window[WINDOW_BYTES - new..].copy_from_slice(&written[written.len() - new..]);
        self.known = (self.known + new).min(WINDOW_BYTES);
    }

    /// Takes input until there are `wanted` bits, of which 56 are the most; false if there is too little.
    fn need(&mut self, cursor: &mut Cursor, wanted: u32) -> bool {
        while self.count < wanted {
            let Some(&byte) = cursor.input.get(cursor.at) else { return false };
            cursor.at += 1;
            self.bits |= u64::from(byte) << self.count;
            self.count += 8;
        }
        true
    }

    fn drop_bits(&mut self, count: u32) {
        self.bits >>= count;
        self.count -= count;
    }

    fn take(&mut self, count: u32) -> usize {
        let value = self.bits & ((1 << count) - 1);
        self.drop_bits(count);
        value as usize
    }

    /// The head of a block, with the counts of a dynamic one.
    fn header(&mut self, cursor: &mut Cursor) -> Result<Next, Damaged> {
        if self.last_block {
            self.stage = Stage::Ended;
            return Ok(Next::Go);
        }
        let whole = self.need(cursor, 3) && (self.bits >> 1 & 3 != 2 || self.need(cursor, 17));
        if !whole {
            return Ok(Next::Wait);
        }
        self.last_block = self.take(1) == 1;
        self.stage = match self.take(2) {
            0 => {
                self.drop_bits(self.count % 8);
                Stage::StoredLength
            }
            1 => {
                self.codes.use_fixed()?;
                Stage::Symbols
            }
            2 => {
                let counts = (257 + self.take(5), 1 + self.take(5), 4 + self.take(4));
                self.codes.begin(counts)?;
                Stage::PrecodeLengths { read: 0 }
            }
            _ => return Err(Damaged("a block of an unknown type")),
        };
        Ok(Next::Go)
    }

    fn stored_length(&mut self, cursor: &mut Cursor) -> Result<Next, Damaged> {
        if !self.need(cursor, 32) {
            return Ok(Next::Wait);
        }
        let (left, complement) = (self.take(16), self.take(16));
        if left ^ complement != 0xffff {
            return Err(Damaged("the length of a stored block"));
        }
        self.stage = Stage::Stored { left };
        Ok(Next::Go)
    }

    fn stored(&mut self, cursor: &mut Cursor, mut left: usize) -> Next {
        while left > 0 && self.count > 0 && cursor.room() > 0 {
            let byte = self.take(8) as u8;
            cursor.literal(byte);
            left -= 1;
        }
        if self.count == 0 {
            left -= cursor.pass(left);
        }
        self.stage = if left == 0 { Stage::Header } else { Stage::Stored { left } };
        if left == 0 { Next::Go } else { Next::Wait }
    }

    fn precode_lengths(&mut self, cursor: &mut Cursor, mut read: usize) -> Result<Next, Damaged> {
        while read < self.codes.precode_count {
            if !self.need(cursor, 3) {
                self.stage = Stage::PrecodeLengths { read };
                return Ok(Next::Wait);
            }
            self.codes.lengths[usize::from(PRECODE_ORDER[read])] = self.take(3) as u8;
            read += 1;
        }
        self.codes.build_precode()?;
        self.stage = Stage::CodeLengths { read: 0 };
        Ok(Next::Go)
    }

    /// The lengths of both codes, with repetitions.
    fn code_lengths(&mut self, cursor: &mut Cursor, mut read: usize) -> Result<Next, Damaged> {
        let wanted = self.codes.litlen_count + self.codes.distance_count;
        while read < wanted {
            // The longest is 14 bits; near the end of the input there may be fewer and still enough.
            self.need(cursor, 14);
            let entry = look_up(&self.codes.precode, PRECODE_BITS, self.bits);
            if entry & 0xff > self.count {
                self.stage = Stage::CodeLengths { read };
                return Ok(Next::Wait);
            }
            let extra = self.take(entry & 0xff) >> (entry >> 8 & 0x1f);
            read += self.codes.repeat(read, (entry >> 16) as u8, extra)?;
        }
        self.codes.build_both()?;
        self.stage = Stage::Symbols;
        Ok(Next::Go)
    }

    fn symbols(&mut self, cursor: &mut Cursor) -> Result<Next, Damaged> {
        while self.stage == Stage::Symbols {
            self.pending.0 -= self.copy(cursor);
            if cursor.room() == 0 {
                return Ok(Next::Wait);
            }
            self.fast(cursor)?;
            if self.stage == Stage::Symbols && self.symbol(cursor)? == Next::Wait {
                return Ok(Next::Wait);
            }
        }
        Ok(Next::Go)
    }

    /// As many symbols as there is plenty of input and room for.
    fn fast(&mut self, cursor: &mut Cursor) -> Result<(), Damaged> {
        if cursor.input.len() - cursor.at < INPUT_SLACK || cursor.room() < OUTPUT_SLACK {
            return Ok(());
        }
        let mut place = Place { at: cursor.at, out: cursor.out, bits: self.bits, count: self.count };
        let Codes { litlen, distance, .. } = &*self.codes;
        let (window, known) = (&*self.window, self.known);
        let fixed = Fixed { input: cursor.input, litlen, distance, window, known };
        let ended = fast::run(&fixed, cursor.output, &mut place)?;
        // Whole bytes that were taken in this call and not used go back.
        let unused = ((place.count / 8) as usize).min(place.at - cursor.at);
        self.count = place.count - 8 * unused as u32;
        self.bits = place.bits & ((1 << self.count) - 1);
        (cursor.at, cursor.out) = (place.at - unused, place.out);
        if ended {
            self.stage = Stage::Header;
        }
        Ok(())
    }

    /// One symbol, of whatever input there is.
    fn symbol(&mut self, cursor: &mut Cursor) -> Result<Next, Damaged> {
        // A length and a distance with their extra bits: 15 + 5 + 15 + 13.
        self.need(cursor, 48);
        let entry = look_up(&self.codes.litlen, LITLEN_BITS, self.bits);
        let used = entry & 0xff;
        if used > self.count {
            return Ok(Next::Wait);
        }
        match entry & (LITERAL | SPECIAL) {
            0 => return self.a_match(cursor, entry),
            LITERAL => cursor.literal((entry >> 16) as u8),
            END => self.stage = Stage::Header,
            _ => return Err(Damaged("an invalid length")),
        }
        self.drop_bits(used);
        Ok(Next::Go)
    }

    fn a_match(&mut self, cursor: &mut Cursor, entry: u32) -> Result<Next, Damaged> {
        let length = value(entry, self.bits);
        let used = entry & 0xff;
        let bits = self.bits >> used;
        let entry = look_up(&self.codes.distance, DISTANCE_BITS, bits);
        if used + (entry & 0xff) > self.count {
            return Ok(Next::Wait);
        }
        if entry & SPECIAL != 0 {
            return Err(Damaged("an invalid distance"));
        }
        let distance = value(entry, bits);
        if distance > cursor.out + self.known {
            return Err(Damaged("a distance before the start"));
        }
        self.drop_bits(used + (entry & 0xff));
        self.pending = (length, distance);
        Ok(Next::Go)
    }

    /// Copies as much of the pending match as there is room for.
    fn copy(&self, cursor: &mut Cursor) -> usize {
        let (length, distance) = self.pending;
        let amount = length.min(cursor.room());
        if amount > 0 && distance > cursor.out {
            copy_from_window(cursor.output, cursor.out, distance, amount, &self.window);
        } else {
            for to in cursor.out..cursor.out + amount {
                cursor.output[to] = cursor.output[to - distance];
            }
        }
        cursor.out += amount;
        amount
    }
}

impl Cursor<'_> {
    fn room(&self) -> usize {
        self.output.len() - self.out
    }

    fn literal(&mut self, byte: u8) {
        self.output[self.out] = byte;
        self.out += 1;
    }

    /// Moves up to `most` bytes from input to output.
    fn pass(&mut self, most: usize) -> usize {
        let amount = most.min(self.input.len() - self.at).min(self.room());
        self.output[self.out..self.out + amount].copy_from_slice(&self.input[self.at..self.at + amount]);
        self.at += amount;
        self.out += amount;
        amount
    }
}

impl Codes {
    /// The tables of a block with the fixed code (RFC 1951, 3.2.6).
    fn use_fixed(&mut self) -> Result<(), Damaged> {
        if !self.fixed {
            let lengths: [u8; LITLEN_SYMBOLS] = std::array::from_fn(|symbol| match symbol {
                144..=255 => 9,
                256..=279 => 7,
                _ => 8,
            });
            build(&lengths, &LITLEN, LITLEN_BITS, &mut self.litlen)?;
            build(&[5; DISTANCE_SYMBOLS], &DISTANCE, DISTANCE_BITS, &mut self.distance)?;
            self.fixed = true;
        }
        Ok(())
    }

    /// Starts the codes of a dynamic block: how many lengths, distances, and lengths of the precode there are.
    fn begin(&mut self, counts: (usize, usize, usize)) -> Result<(), Damaged> {
        (self.litlen_count, self.distance_count, self.precode_count) = counts;
        self.fixed = false;
        if self.litlen_count > 286 || self.distance_count > 30 {
            return Err(Damaged("too many codes"));
        }
        self.lengths[..PRECODE_SYMBOLS].fill(0);
        Ok(())
    }

    fn build_precode(&mut self) -> Result<(), Damaged> {
        let space = build(&self.lengths[..PRECODE_SYMBOLS], &PRECODE, PRECODE_BITS, &mut self.precode)?;
        match space {
            Space::Full => Ok(()),
            Space::Sparse => Err(Damaged("the code of the code lengths has too few symbols")),
        }
    }

    /// Takes one code length, or a repetition; gives how many lengths that is.
    fn repeat(&mut self, read: usize, symbol: u8, extra: usize) -> Result<usize, Damaged> {
        let (length, count) = match symbol {
            0..=15 => (symbol, 1),
            16 if read == 0 => return Err(Damaged("a repetition of no code length")),
            16 => (self.lengths[read - 1], 3 + extra),
            17 => (0, 3 + extra),
            _ => (0, 11 + extra),
        };
        if read + count > self.litlen_count + self.distance_count {
            return Err(Damaged("more code lengths than codes"));
        }
        self.lengths[read..read + count].fill(length);
        Ok(count)
    }

    fn build_both(&mut self) -> Result<(), Damaged> {
        let all = &self.lengths[..self.litlen_count + self.distance_count];
        let (litlen, distance) = all.split_at(self.litlen_count);
        if litlen[END_OF_BLOCK] == 0 {
            return Err(Damaged("no code for the end of a block"));
        }
        build(litlen, &LITLEN, LITLEN_BITS, &mut self.litlen)?;
        build(distance, &DISTANCE, DISTANCE_BITS, &mut self.distance)?;
        Ok(())
    }
}

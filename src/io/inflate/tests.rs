//! Against flate2: what it inflates we inflate, what it refuses we refuse, however the bytes arrive.

use super::*;
use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};
use proptest::prelude::*;

/// A stream that did not end is `None`, one that was refused, too.
fn theirs(packed: &[u8]) -> Option<Vec<u8>> {
    let (mut inflater, mut out) = (Decompress::new(false), Vec::with_capacity(1 << 16));
    loop {
        let (read, written) = (inflater.total_in() as usize, inflater.total_out());
        match inflater.decompress_vec(&packed[read..], &mut out, FlushDecompress::None) {
            Ok(Status::StreamEnd) => return Some(out),
            Ok(_)
                if inflater.total_in() as usize == read
                    && inflater.total_out() == written
                    && out.len() < out.capacity() =>
            {
                return None;
            }
            Ok(_) => out.reserve(1 << 16),
            Err(_) => return None,
        }
    }
}

/// In pieces of these sizes, over and over.
fn ours(packed: &[u8], pieces: &[(usize, usize)]) -> Option<(Vec<u8>, usize)> {
    let (mut inflate, mut out, mut at) = (Inflate::new(), Vec::new(), 0);
    for &(input, output) in pieces.iter().cycle() {
        let mut buffer = vec![0xa5; output];
        let end = packed.len().min(at + input);
        let progress = inflate.inflate(&packed[at..end], &mut buffer).ok()?;
        out.extend_from_slice(&buffer[..progress.written]);
        at += progress.read;
        if progress.ended {
            let leftover = std::iter::from_fn(|| inflate.leftover()).count();
            return Some((out, at - leftover));
        }
        if at == packed.len() && progress.written < output {
            return None;
        }
    }
    None
}

const WHOLE: [(usize, usize); 1] = [(usize::MAX >> 1, 1 << 18)];

fn deflate(data: &[u8], level: u32) -> Vec<u8> {
    let mut packed = Vec::with_capacity(data.len() + 1024);
    let mut compress = Compress::new(Compression::new(level), false);
    let status = compress.compress_vec(data, &mut packed, FlushCompress::Finish).expect("compresses");
    assert_eq!(status, Status::StreamEnd);
    packed
}

/// Repetitive, noisy, and everything between: copies from near and far, runs, and bytes of a small or a full alphabet.
fn data() -> impl Strategy<Value = Vec<u8>> {
    let part = prop_oneof![
        (any::<u8>(), 1..3000usize).prop_map(|(byte, count)| vec![byte; count]),
        proptest::collection::vec(any::<u8>(), 1..2000),
        proptest::collection::vec(0..4u8, 1..3000),
        (1..40usize, 1..2000usize)
            .prop_map(|(period, count)| (0..count).map(|at| (at % period) as u8).collect()),
    ];
    (proptest::collection::vec(part, 0..12), proptest::collection::vec((0..9usize, 1..60_000usize), 0..6))
        .prop_map(|(parts, copies)| {
            let mut data = parts.concat();
            for (which, most) in copies {
                let from = data.len() * which / 9;
                let end = data.len().min(from + most);
                data.extend_from_within(from..end);
            }
            data
        })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    #[test]
    fn what_flate2_packs_comes_out_again(data in data(), level in 0..10u32) {
        let packed = deflate(&data, level);
        let (out, used) = ours(&packed, &WHOLE).expect("inflates");
        prop_assert!(out == data);
        prop_assert_eq!(used, packed.len());
    }

    #[test]
    fn pieces_of_any_size_make_no_difference(
        data in data(),
        level in 0..10u32,
        pieces in proptest::collection::vec((1..400usize, 1..2000usize), 1..8),
    ) {
        let packed = deflate(&data, level);
        let (out, used) = ours(&packed, &pieces).expect("inflates");
        prop_assert!(out == data);
        prop_assert_eq!(used, packed.len());
    }

    #[test]
    fn damage_is_judged_as_flate2_judges_it(
        data in data(),
        level in 1..10u32,
        flips in proptest::collection::vec((any::<prop::sample::Index>(), 0..8u32), 1..4),
        cut in any::<prop::sample::Index>(),
    ) {
        let mut packed = deflate(&data, level);
        for (index, bit) in flips {
            let at = index.index(packed.len());
            packed[at] ^= 1 << bit;
        }
        let out = ours(&packed, &WHOLE).map(|(out, _)| out);
        prop_assert!(out == theirs(&packed));
        let cut = &packed[..cut.index(packed.len())];
        prop_assert!(ours(cut, &WHOLE).map(|(out, _)| out) == theirs(cut));
    }

    #[test]
    fn noise_is_judged_as_flate2_judges_it(noise in proptest::collection::vec(any::<u8>(), 0..400)) {
        prop_assert!(ours(&noise, &WHOLE).map(|(out, _)| out) == theirs(&noise));
        prop_assert!(ours(&noise, &[(1, 1)]).map(|(out, _)| out) == theirs(&noise));
    }
}

#[test]
fn every_truncation_waits_for_more_and_gives_what_there_is() {
    let data: Vec<u8> = (0..5000u32).map(|i| ((i * i) >> 7) as u8).collect();
    let packed = deflate(&data, 6);
    for end in 0..packed.len() {
        let mut out = vec![0; 8000];
        let progress = Inflate::new().inflate(&packed[..end], &mut out).expect("no damage");
        assert!(!progress.ended, "{end}");
        assert!(data.starts_with(&out[..progress.written]), "{end}");
    }
}

#[test]
fn a_match_reaches_back_32_kib_over_many_calls_and_no_farther() {
    // 32 KiB of noise, then the same once more: as far back as it goes.
    let mut seed = 1u32;
    let mut noise = vec![0u8; WINDOW_BYTES];
    for byte in &mut noise {
        seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        *byte = (seed >> 24) as u8;
    }
    // Stored block, then a fixed block of matches of length 258 and distance 32768: 00001010 and so on is easier to write bit by bit.
    let mut bits = Bits::default();
    bits.push(0, 3);
    bits.align();
    bits.push(0x8000, 16);
    bits.push(0x7fff, 16);
    noise.iter().for_each(|&byte| bits.push(u32::from(byte), 8));
    bits.push(0b011, 3);
    bits.push_code(0b1100_0101, 8);
    bits.push_code(29, 5);
    bits.push((1 << 13) - 1, 13);
    bits.push_code(0, 7);
    let expected = [&noise[..], &noise[..258]].concat();
    for pieces in [&WHOLE[..], &[(7, 11)], &[(1000, 300)]] {
        assert!(ours(&bits.bytes, pieces).expect("inflates").0 == expected);
    }
    // One byte of output less, and the distance is before the start.
    let mut short = Bits::default();
    short.push(0, 3);
    short.align();
    short.push(0x7fff, 16);
    short.push(0x8000, 16);
    noise[1..].iter().for_each(|&byte| short.push(u32::from(byte), 8));
    short.push(0b011, 3);
    short.push_code(0b1100_0101, 8);
    short.push_code(29, 5);
    short.push((1 << 13) - 1, 13);
    short.push_code(0, 7);
    short.push(0, 32);
    assert_eq!(ours(&short.bytes, &WHOLE), None);
}

/// Bits as deflate packs them.
#[derive(Default)]
struct Bits {
    bytes: Vec<u8>,
    free: u32,
}

impl Bits {
    fn push(&mut self, value: u32, count: u32) {
        for at in 0..count {
            if self.free == 0 {
                self.bytes.push(0);
                self.free = 8;
            }
            let last = self.bytes.last_mut().expect("pushed above");
            *last |= ((value >> at & 1) as u8) << (8 - self.free);
            self.free -= 1;
        }
    }

    /// A Huffman code, whose first bit is its highest.
    fn push_code(&mut self, code: u32, count: u32) {
        (0..count).rev().for_each(|at| self.push(code >> at, 1));
    }

    fn align(&mut self) {
        self.free = 0;
    }
}

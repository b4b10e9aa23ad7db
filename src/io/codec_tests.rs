//! Every codec gives all the bytes or an error.

use super::*;
use std::io::Write;

const CODECS: [Codec; 4] = [Codec::Gzip, Codec::Zstd, Codec::Xz, Codec::Bzip2];

fn sample(bytes: usize) -> Vec<u8> {
    let mut state = 1u32;
    let next = |_| {
        state = state.wrapping_mul(1664525).wrapping_add(1013904223);
        if state >> 30 == 0 { (state >> 16) as u8 } else { b'a' + (state >> 29) as u8 }
    };
    (0..bytes).map(next).collect()
}

fn compress(codec: Codec, data: &[u8]) -> Vec<u8> {
    match codec {
        Codec::None => data.to_vec(),
        Codec::Gzip => {
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            encoder.write_all(data).and_then(|()| encoder.finish()).expect("memory")
        }
        Codec::Zstd => {
            let mut encoder = zstd::stream::Encoder::new(Vec::new(), 1).expect("encoder");
            encoder.include_checksum(true).expect("parameter");
            encoder.write_all(data).and_then(|()| encoder.finish()).expect("memory")
        }
        Codec::Xz => {
            let mut encoder = liblzma::write::XzEncoder::new(Vec::new(), 1);
            encoder.write_all(data).and_then(|()| encoder.finish()).expect("memory")
        }
        Codec::Bzip2 => {
            let mut encoder = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::fast());
            encoder.write_all(data).and_then(|()| encoder.finish()).expect("memory")
        }
    }
}

/// Reads in pieces of `piece` bytes on both sides.
fn decode_in(codec: Codec, data: &[u8], piece: usize, budget: u64) -> Result<Vec<u8>> {
    let input = io::BufReader::with_capacity(piece, data);
    let mut reader = decoder(codec, input, &Budget::new(budget), &Cancel::new())?;
    let (mut output, mut buffer) = (Vec::new(), vec![0; piece]);
    loop {
        match reader.read(&mut buffer)? {
            0 => return Ok(output),
            amount => output.extend_from_slice(&buffer[..amount]),
        }
    }
}

fn decode(codec: Codec, data: &[u8]) -> Result<Vec<u8>> {
    decode_in(codec, data, 64 << 10, 64 << 20)
}

#[test]
fn every_codec_is_recognised_and_decoded_in_any_pieces() {
    for codec in CODECS {
        for size in [0, 1, 300_000] {
            let data = sample(size);
            let packed = compress(codec, &data);
            assert_eq!(Codec::sniff(&packed[..SNIFF_BYTES]), codec);
            for piece in [1, 7, 4096, 1 << 20] {
                assert_eq!(
                    decode_in(codec, &packed, piece, 0).expect("whole"),
                    data,
                    "{codec} {size} {piece}"
                );
            }
        }
    }
    assert_eq!(Codec::sniff(b""), Codec::None);
    assert_eq!(Codec::sniff(b"BZhello"), Codec::None);
}

#[test]
fn t29_members_follow_each_other_and_zero_padding_ends_them() {
    for codec in CODECS {
        let (first, second) = (compress(codec, b"first "), compress(codec, b"second"));
        let joined = [&first[..], &second, &compress(codec, b"")].concat();
        assert_eq!(decode(codec, &joined).expect("members"), b"first second");
        let padded = [&joined[..], &[0; 2000]].concat();
        assert_eq!(decode_in(codec, &padded, 100, 0).expect("padding"), b"first second");
    }
}

#[test]
fn t29_garbage_after_the_end_is_refused() {
    for codec in CODECS {
        let whole = compress(codec, b"content");
        for garbage in [
            &b"garbage, more than a header"[..],
            b"\0\0\0\0garbage, more than a header",
            b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff",
        ] {
            let error = decode(codec, &[&whole[..], garbage].concat()).expect_err("garbage");
            assert_eq!(error.kind(), ErrorKind::Malformed, "{codec}: {error}");
        }
    }
}

#[test]
fn a_stream_cut_anywhere_is_truncated_and_never_short() {
    for codec in CODECS {
        let whole = compress(codec, &sample(3000));
        for end in 0..whole.len() {
            let error = decode(codec, &whole[..end]).expect_err("cut");
            assert_eq!(error.kind(), ErrorKind::Truncated, "{codec} at {end}: {error}");
        }
    }
}

#[test]
fn a_changed_byte_never_changes_the_content_silently() {
    let data = sample(2000);
    for codec in CODECS {
        let whole = compress(codec, &data);
        for at in 0..whole.len() {
            let mut bent = whole.clone();
            bent[at] ^= 0x41;
            if let Ok(output) = decode(codec, &bent) {
                assert_eq!(output, data, "{codec} at {at}");
            }
        }
    }
}

#[test]
fn an_error_stays() {
    let whole = compress(Codec::Gzip, b"x");
    let budget = Budget::new(0);
    let mut reader = decoder(Codec::Gzip, &whole[..12], &budget, &Cancel::new()).expect("decoder");
    let mut buffer = [0; 8];
    let errors = (0..8).filter(|_| reader.read(&mut buffer).is_err()).count();
    assert!(errors >= 6, "{errors}");
}

#[test]
fn b20_many_small_gzip_members() {
    let members: Vec<u8> = (0..5000u32).flat_map(|n| compress(Codec::Gzip, &n.to_le_bytes())).collect();
    let plain: Vec<u8> = (0..5000u32).flat_map(u32::to_le_bytes).collect();
    assert_eq!(decode(Codec::Gzip, &members).expect("members"), plain);
}

#[test]
fn gzip_headers_with_every_field() {
    let packed = flate2::GzBuilder::new()
        .extra(&b"BC\x02\0\0\0"[..])
        .filename("name")
        .comment("comment")
        .write(Vec::new(), flate2::Compression::default());
    let mut encoder = packed;
    encoder.write_all(b"data").expect("memory");
    let mut whole = encoder.finish().expect("memory");
    for piece in [1, 64] {
        assert_eq!(decode_in(Codec::Gzip, &whole, piece, 0).expect("fields"), b"data");
    }
    whole[3] |= 0x80;
    assert!(decode(Codec::Gzip, &whole).is_err());
}

#[test]
fn b20_skippable_frames_anywhere() {
    let skip = [&[0x53, 0x2a, 0x4d, 0x18, 5, 0, 0, 0][..], b"hello"].concat();
    let frame = compress(Codec::Zstd, b"data");
    let whole = [&skip[..], &frame, &skip, &frame, &skip].concat();
    assert_eq!(Codec::sniff(&whole), Codec::Zstd);
    for piece in [1, 3, 4096] {
        assert_eq!(decode_in(Codec::Zstd, &whole, piece, 0).expect("frames"), b"datadata");
    }
    let error = decode(Codec::Zstd, &whole[..whole.len() - 1]).expect_err("cut");
    assert_eq!(error.kind(), ErrorKind::Truncated);
}

#[test]
fn t11_a_window_beyond_the_budget_is_refused_with_a_hint() {
    let mut long = zstd::stream::Encoder::new(Vec::new(), 1).expect("encoder");
    long.set_parameter(raw::CParameter::WindowLog(26)).expect("parameter");
    let long = long.write_all(b"x").and_then(|()| long.finish()).expect("memory");
    let large_xz = {
        let mut encoder = liblzma::write::XzEncoder::new(Vec::new(), 9);
        encoder.write_all(b"x").and_then(|()| encoder.finish()).expect("memory")
    };
    let endless = [0x28, 0xb5, 0x2f, 0xfd, 0, 0xff, 1, 0, 0];
    for (codec, data) in [(Codec::Zstd, &long[..]), (Codec::Xz, &large_xz), (Codec::Zstd, &endless)] {
        let error = decode_in(codec, data, 4096, 32 << 20).expect_err("too large");
        assert_eq!(error.kind(), ErrorKind::LimitExceeded, "{error}");
        assert_eq!(error.hint(), Some("raise --memory"));
    }
    assert_eq!(decode_in(Codec::Zstd, &long, 4096, 128 << 20).expect("fits"), b"x");
    assert_eq!(decode_in(Codec::Xz, &large_xz, 4096, 128 << 20).expect("fits"), b"x");
}

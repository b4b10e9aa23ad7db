//! Compressed streams: however the bytes arrive the outcome is one, and what our framing accepts as gzip or zstd means
//! to the reference decoder what it means to us.

use std::io::{BufRead, Read};
use transload::io::codec::{Codec, decoder};
use transload::{Cancel, Error, ErrorKind, parallel::Budget};

/// Enough to reach every state, and little enough for a thousand inputs a second.
const MOST: u64 = 128 << 10;

/// Hands out a few bytes at a time.
struct Drops<'a>(&'a [u8], usize);

impl Read for Drops<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let count = self.fill_buf()?.len().min(buffer.len());
        buffer[..count].copy_from_slice(&self.0[..count]);
        self.consume(count);
        Ok(count)
    }
}

impl BufRead for Drops<'_> {
    fn fill_buf(&mut self) -> std::io::Result<&[u8]> {
        Ok(&self.0[..self.0.len().min(self.1)])
    }
    fn consume(&mut self, amount: usize) {
        self.0 = &self.0[amount..];
    }
}

/// All the output, or what it was refused for. `None`: more than we care to look at.
fn decode(codec: Codec, input: impl BufRead + Send, step: usize) -> Option<Result<Vec<u8>, ErrorKind>> {
    let kind = |error: std::io::Error| Error::from(error).kind();
    let mut decoder = match decoder(codec, input, &Budget::new(0), &Cancel::new()) {
        Ok(decoder) => decoder,
        Err(error) => return Some(Err(error.kind())),
    };
    let (mut output, mut buffer) = (Vec::new(), vec![0; step]);
    loop {
        match decoder.read(&mut buffer) {
            Ok(0) => return Some(Ok(output)),
            Ok(count) => output.extend_from_slice(&buffer[..count]),
            Err(error) => return Some(Err(kind(error))),
        }
        if output.len() as u64 > MOST {
            return None;
        }
    }
}

/// What is damaged at its end may be seen to be too long before it is seen to be damaged.
fn is_one(outcome: Option<Result<Vec<u8>, ErrorKind>>, whole: &Result<Vec<u8>, ErrorKind>) -> bool {
    outcome.as_ref().map_or(whole.is_err(), |outcome| outcome == whole)
}

/// See the module.
pub fn run(data: &[u8]) {
    let codec = Codec::sniff(data);
    let Some(whole) = decode(codec, data, 64 << 10) else { return };
    let step = 1 + data.len() % 13;
    assert!(is_one(decode(codec, Drops(data, step), 64 << 10), &whole), "in steps of {step}");
    assert!(is_one(decode(codec, data, 1 + step * 7), &whole), "to buffers of {}", 1 + step * 7);
    let Ok(ours) = whole else { return };
    if codec == Codec::Gzip {
        let mut theirs = Vec::new();
        // Padding after the last member is ours to allow; theirs ends there, with all of the output.
        let _ = flate2::bufread::MultiGzDecoder::new(data).take(MOST + 1).read_to_end(&mut theirs);
        assert_eq!(theirs, ours);
    }
}

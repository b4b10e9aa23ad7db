//! Decompression on one core, each codec.
//!
//! With `--gzip FILE` it inflates that file once instead and throws the result away: the floor of importing a stream
//! again, which scripts/bench-compare measures.

mod common;

use common::{Table, image};
use std::io::{BufRead, BufReader, Read, Write};
use transload::Cancel;
use transload::io::codec::{Codec, decoder};
use transload::parallel::Budget;

fn main() {
    let args: Vec<String> = std::env::args().collect();
    if let Some(file) = args.iter().position(|arg| arg == "--gzip").and_then(|at| args.get(at + 1)) {
        let file = std::fs::File::open(file).expect("the file that was given");
        println!("{}", inflate(Codec::Gzip, BufReader::with_capacity(128 << 10, file)));
        return;
    }
    let scratch = common::scratch();
    common::head("inflate", scratch.path());
    let data = common::text(16_000_000 * common::factor(), 1);
    let mut table = Table::new(&["codec", "compressed MB", "ms", "MB/s out"]);
    for (name, codec, packed) in [
        ("none", Codec::None, data.clone()),
        ("gzip", Codec::Gzip, image::gzip(&data)),
        ("zstd", Codec::Zstd, image::zstd(&data)),
        ("xz", Codec::Xz, xz(&data)),
        ("bzip2", Codec::Bzip2, bzip2(&data)),
    ] {
        let time =
            common::median(3, || (), |()| assert_eq!(inflate(codec, packed.as_slice()), data.len() as u64));
        let size = format!("{:.1}", packed.len() as f64 / 1e6);
        table.row(&[name.into(), size, common::ms(time), common::rate(data.len() as u64, time)]);
    }
    table.print();
}

fn inflate(codec: Codec, packed: impl BufRead + Send) -> u64 {
    let budget = Budget::new(256 << 20);
    let mut reader = decoder(codec, packed, &budget, &Cancel::new()).expect("a decoder");
    let (mut buffer, mut total) = (vec![0; 128 << 10], 0);
    loop {
        match reader.read(&mut buffer).expect("our own bytes") {
            0 => return total,
            count => total += count as u64,
        }
    }
}

fn xz(data: &[u8]) -> Vec<u8> {
    let mut encoder = liblzma::write::XzEncoder::new(Vec::new(), 1);
    encoder.write_all(data).expect("writing to memory");
    encoder.finish().expect("writing to memory")
}

fn bzip2(data: &[u8]) -> Vec<u8> {
    let mut encoder = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::fast());
    encoder.write_all(data).expect("writing to memory");
    encoder.finish().expect("writing to memory")
}

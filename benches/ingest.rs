//! Blobs into the content store: hashed, written, published; by size, and with and without the sync.

mod common;

use common::Table;
use rustix::fd::AsFd;
use transload::Algorithm;
use transload::content::{ContentStore, IngestRef};

fn main() {
    let scratch = common::scratch();
    common::head("ingest", scratch.path());
    let factor = common::factor();
    let mut table = Table::new(&["shape", "ms", "MB/s", "blobs/s", "ms with sync"]);
    for (shape, blobs, bytes) in [
        ("2000 of 4 KB", 2000 * factor, 4_000),
        ("64 of 1 MB", 64 * factor, 1_000_000),
        ("1 of 100 MB", 1, 100_000_000 * factor),
    ] {
        let data = common::text(bytes, 1);
        let time = |sync| {
            common::median(3, common::scratch, |dir| {
                ingest(dir.path(), &data, blobs, sync);
                dir
            })
        };
        let (fast, synced) = (time(false), time(true));
        let each = format!("{:.0}", blobs as f64 / fast.as_secs_f64());
        table.row(&[
            shape.into(),
            common::ms(fast),
            common::rate((blobs * bytes) as u64, fast),
            each,
            common::ms(synced),
        ]);
    }
    table.print();
}

fn ingest(dir: &std::path::Path, data: &[u8], blobs: usize, sync: bool) {
    let root = std::fs::File::open(dir).expect("the directory");
    let content = ContentStore::open(root.as_fd()).expect("a content store");
    for n in 0..blobs as u64 {
        let mut blob = content.begin(&IngestRef::unique(), Algorithm::Sha256).expect("an ingest");
        // The first bytes make each blob another one.
        blob.write(&n.to_le_bytes()).expect("room");
        for chunk in data.chunks(128 << 10) {
            blob.write(chunk).expect("room");
        }
        blob.commit(&content, None, None, sync).expect("a blob");
    }
}

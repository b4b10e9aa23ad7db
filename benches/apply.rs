//! One layer into a directory, from an uncompressed tar in memory: what creating the files costs.

mod common;

use common::{Table, image};
use rustix::fd::AsFd;
use transload::Cancel;
use transload::layer::{ApplyOptions, Ownership, apply};

fn main() {
    let scratch = common::scratch();
    common::head("apply", scratch.path());
    let factor = common::factor();
    let deep = (0..40).fold(String::new(), |path, n| format!("{path}/level{n}"));
    let deep = (0..2000 * factor).fold(image::layer(), |layer, n| layer.file(&format!("{deep}/f{n}"), b"x"));
    let links =
        (0..5000 * factor).fold(image::file("/f", "x"), |layer, n| layer.hardlink(&format!("/l{n}"), "/f"));
    let mut table = Table::new(&["shape", "entries", "ms", "entries/s", "MB/s"]);
    for (shape, layer) in [
        ("one big file", common::layer(1, 64_000_000 * factor, 1)),
        ("files of 1 KB", common::layer(10_000 * factor, 1_000, 2)),
        ("files 40 deep", deep),
        ("hard links", links),
    ] {
        let tar = layer.tar();
        let mut entries = 0;
        let run = |dir: tempfile::TempDir| {
            entries = extract(dir.path(), &tar);
            dir
        };
        let time = common::median(3, common::scratch, run);
        let each = format!("{:.0}", entries as f64 / time.as_secs_f64());
        table.row(&[
            shape.into(),
            entries.to_string(),
            common::ms(time),
            each,
            common::rate(tar.len() as u64, time),
        ]);
    }
    table.print();
}

fn extract(dir: &std::path::Path, tar: &[u8]) -> u64 {
    let root = std::fs::File::open(dir).expect("the directory");
    let ownership = if rustix::process::geteuid().is_root() { Ownership::Keep } else { Ownership::Ignore };
    let options = ApplyOptions { ownership, ..Default::default() };
    let (applied, _) =
        apply(tar, root.as_fd(), &options, &Cancel::new(), &mut |_| {}).expect("our own layer");
    applied.record.entries
}

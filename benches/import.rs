//! A whole import, with its sync: one big layer, many layers, many small files, everything already present; from a plain
//! tar, which lanes read side by side, and from a gzipped one, which is read once.

mod common;

use common::{Table, image};
use std::path::{Path, PathBuf};
use transload::{Cancel, Engine, EngineOptions, Input, progress::Silent};

fn main() {
    let scratch = common::scratch();
    common::head("import", scratch.path());
    let factor = common::factor();
    let shapes = [
        ("one big layer", vec![common::layer(64, 1_000_000 * factor, 1)]),
        ("40 layers", (0..40).map(|n| common::layer(50, 32_000 * factor, n)).collect()),
        ("20000 small files", (0..4).map(|n| common::layer(5000 * factor, 300, n)).collect()),
    ];
    let mut table =
        Table::new(&["shape", "archive", "MB unpacked", "1 lane, ms", "all lanes, ms", "MB/s", "again, ms"]);
    for (shape, layers) in shapes {
        let bytes: u64 = layers.iter().map(|layer: &image::Layer| layer.tar().len() as u64).sum();
        let image = layers.into_iter().fold(image::image().name("bench:1"), image::Image::layer);
        let plain = image.oci();
        for (kind, data) in [("tar", plain.clone()), ("tar.gz", image::gzip(&plain))] {
            let archive = scratch.path().join(kind);
            std::fs::write(&archive, data).expect("room for the archive");
            let one = common::median(3, common::scratch, |store| import(store, &archive, 1));
            let all = common::median(3, common::scratch, |store| import(store, &archive, common::cores()));
            let present = || import(common::scratch(), &archive, common::cores());
            let again = common::median(3, present, |store| import(store, &archive, common::cores()));
            let size = format!("{:.1}", bytes as f64 / 1e6);
            let (rate, again) = (common::rate(bytes, all), common::ms(again));
            table.row(&[shape.into(), kind.into(), size, common::ms(one), common::ms(all), rate, again]);
        }
    }
    table.print();
}

/// Imports, and gives the directory back so that removing it is not timed.
fn import(store: tempfile::TempDir, archive: &Path, threads: usize) -> tempfile::TempDir {
    let options = EngineOptions { threads, ..Default::default() };
    let engine = Engine::open(root(&store), options).expect("a store");
    let input = Input::Path(archive.to_path_buf());
    engine.import(input, &common::options(), &Silent, &Cancel::new()).expect("our own image");
    store
}

fn root(store: &tempfile::TempDir) -> PathBuf {
    store.path().join("store")
}

//! A progress listener of one's own: counts bytes from several threads, and prints a line for each finished layer.
//!
//!     cargo run --example progress -- testdata/foreign/skopeo-oci.tar

use std::collections::HashSet;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use transload::progress::{Event, Progress};
use transload::{Cancel, Engine, ImportOptions, Input};

/// Events come from the lanes of the import, several at once, so counters are atomic and the handler is short.
#[derive(Default)]
struct Layers {
    known: Mutex<HashSet<String>>,
    bytes: AtomicU64,
}

impl Progress for Layers {
    fn event(&self, event: &Event) {
        let mut known = self.known.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        match event {
            Event::BlobStarted { key, layer: true, size_bytes } => {
                println!("{key}: {size_bytes} bytes to come");
                known.insert(key.clone());
            }
            Event::BlobAdvanced { bytes, .. } => {
                self.bytes.fetch_add(*bytes, Ordering::Relaxed);
            }
            Event::BlobFinished { key, outcome } if known.contains(key) => println!("{key}: {outcome:?}"),
            Event::Notice(text) => println!("note: {text}"),
            // `Event` grows: what a listener does not know it passes over.
            _ => {}
        }
    }
}

fn main() -> transload::Result<()> {
    let archive = std::env::args().nth(1).unwrap_or_else(|| "testdata/foreign/skopeo-oci.tar".to_string());
    let options = ImportOptions { ignore_chown: !rustix::process::geteuid().is_root(), ..Default::default() };
    let layers = Layers::default();

    let engine = Engine::open("target/example-store", Default::default())?;
    let report = engine.import(Input::Path(archive.into()), &options, &layers, &Cancel::new())?;
    println!("{} bytes passed, {} blobs were new", layers.bytes.load(Ordering::Relaxed), report.blobs.new);
    Ok(())
}

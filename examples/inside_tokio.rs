//! An import inside an async program. The engine is synchronous and makes its own threads, so it goes through
//! `spawn_blocking` and never holds up the executor; a dropped client or a signal ends it through the token.
//!
//!     cargo run --example inside_tokio -- testdata/foreign/skopeo-oci.tar testdata/foreign/podman-oci.tar

use transload::progress::Silent;
use transload::transfer::ImportReport;
use transload::{Cancel, Engine, ImportOptions, Input};

/// Cancels when the future that owns it is dropped, which is how async programs stop things.
struct CancelOnDrop(Cancel);

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        self.0.cancel();
    }
}

async fn import(engine: Engine, archive: String) -> transload::Result<ImportReport> {
    let guard = CancelOnDrop(Cancel::new());
    let cancel = guard.0.clone();
    let options = ImportOptions { ignore_chown: !rustix::process::geteuid().is_root(), ..Default::default() };
    let work = move || engine.import(Input::Path(archive.into()), &options, &Silent, &cancel);
    tokio::task::spawn_blocking(work).await.expect("an import does not panic")
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> transload::Result<()> {
    let mut archives: Vec<String> = std::env::args().skip(1).collect();
    if archives.is_empty() {
        archives = vec!["testdata/foreign/skopeo-oci.tar".to_string()];
    }
    let engine = Engine::open("target/example-store", Default::default())?;
    // All at once: clones of an engine share what is in flight, so a layer that two archives have is extracted once.
    let imports: Vec<_> =
        archives.into_iter().map(|archive| tokio::spawn(import(engine.clone(), archive))).collect();
    for import in imports {
        let report = import.await.expect("an import does not panic")?;
        println!("{} images, {} blobs written", report.images.len(), report.blobs.new);
    }
    Ok(())
}

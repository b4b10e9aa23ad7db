//! The shortest embedding: import an archive, list what the store holds.
//!
//!     cargo run --example embed -- testdata/foreign/skopeo-oci.tar
//!
//! The store is made in `target/example-store`.

use transload::{Cancel, Engine, ImportOptions, Input, progress::Silent};

fn main() -> transload::Result<()> {
    let archive = std::env::args().nth(1).unwrap_or_else(|| "testdata/foreign/skopeo-oci.tar".to_string());
    let options = ImportOptions { ignore_chown: !rustix::process::geteuid().is_root(), ..Default::default() };

    let engine = Engine::open("target/example-store", Default::default())?;
    engine.import(Input::Path(archive.into()), &options, &Silent, &Cancel::new())?;
    for image in engine.images()? {
        println!("{} {}", image.name.as_deref().unwrap_or("<none>"), image.target.digest);
    }
    Ok(())
}

//! From an archive to a running container: import, then either a bundle for a runtime, or snapshots under one's own
//! control, as a runtime that embeds the library has them. Needs root.
//!
//!     cargo build --example run_container
//!     sudo target/debug/examples/run_container testdata/foreign/skopeo-oci.tar [/usr/bin/runc]
//!
//! Without the path of a runtime, the command line to start the container is printed and the bundle stays.

use std::path::Path;
use std::process::Command;
use transload::mount::{self, MountOptions};
use transload::transfer::bundle::BundleOptions;
use transload::{Cancel, Engine, Error, ErrorKind, Input, Result, progress::Silent};

fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let archive = args.next().unwrap_or_else(|| "testdata/foreign/skopeo-oci.tar".to_string());
    let runtime = args.next();
    if !rustix::process::geteuid().is_root() {
        return Err(Error::new(ErrorKind::InvalidArgument, "mounting needs root"));
    }
    let engine = Engine::open("target/example-store", Default::default())?;
    let report = engine.import(Input::Path(archive.into()), &Default::default(), &Silent, &Cancel::new())?;
    let image =
        report.images.first().ok_or_else(|| Error::new(ErrorKind::NotFound, "no image for this host"))?;
    let chain =
        image.chain_id.ok_or_else(|| Error::new(ErrorKind::NotFound, "the image was not unpacked"))?;

    write_a_layer(&engine, &chain.to_string())?;
    run(&engine, &image.manifest.to_string(), runtime.as_deref())
}

/// What a builder does: a writable snapshot above the image, a change, a commit, a read-only view of the result.
fn write_a_layer(engine: &Engine, image: &str) -> Result<()> {
    let snapshots = engine.snapshots();
    let labels = Default::default();
    let target = Path::new("target/example-mount");
    std::fs::create_dir_all(target)?;

    let mounts = snapshots.prepare("example-work", Some(image), &labels)?;
    mount::mount_all(&mounts, target, &MountOptions::default())?;
    std::fs::write(target.join("greeting"), "hello from above\n")?;
    mount::unmount(target)?;
    snapshots.commit("example-result", "example-work", &labels, None)?;

    snapshots.view("example-view", Some("example-result"), &labels)?;
    for one in snapshots.mounts("example-view")? {
        println!("a runtime would mount: type {} options {}", one.fs_type(), one.option_list().join(","));
    }
    // Children first; the directories go with the next `cleanup`.
    snapshots.remove("example-view")?;
    snapshots.remove("example-result")?;
    snapshots.cleanup()?;
    Ok(())
}

/// What someone with a runtime does: a bundle, a run, and the bundle taken down.
fn run(engine: &Engine, image: &str, runtime: Option<&str>) -> Result<()> {
    let bundle = Path::new("target/example-bundle");
    let options = BundleOptions {
        args: vec!["/bin/busybox".into(), "echo".into(), "hello from inside".into()],
        ..Default::default()
    };
    engine.bundle(image, bundle, &options)?;
    let Some(runtime) = runtime else {
        println!("runc run --bundle {} example", bundle.display());
        println!("transload --store target/example-store umount {}", bundle.display());
        return Ok(());
    };
    let ran = Command::new(runtime).arg("run").arg("--bundle").arg(bundle).arg("transload-example").status();
    engine.unmount(bundle)?;
    match ran?.success() {
        true => Ok(()),
        false => Err(Error::new(ErrorKind::Io, format!("{runtime} failed"))),
    }
}

//! T16 and T17: nothing is fetched that an archive points to, and no program is run that it, or PATH, offers.

use crate::house::*;
use crate::support::image::*;
use crate::support::run::{command, run, run_with_input};
use serde_json::json;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

#[test]
fn t16_foreign_layers_are_never_fetched() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.set_nonblocking(true).expect("a listener that does not wait");
    let url = format!("http://{}/layer", listener.local_addr().expect("an address"));
    let base = several([file("a", "1"), file("b", "2")]);
    let foreign = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip";
    let present = with_manifest(&base, |manifest| {
        manifest["layers"][0]["urls"] = json!([url]);
        manifest["layers"][0]["mediaType"] = json!(foreign);
    });
    let gone = base.oci_members()[0].0.clone();
    let mut absent = present.clone();
    absent.retain(|(name, _)| *name != gone);
    for way in WAYS {
        House::new().import(way, &archive(&present), &[]).ok();
        let json = House::new().import(way, &archive(&absent), &[]).ok().json();
        assert_eq!(json["skipped"].as_array().map(Vec::len), Some(1), "{way:?}: {json}");
    }
    let knocked = listener.accept().map(|(_, peer)| peer);
    assert!(knocked.is_err(), "someone has come to fetch it: {knocked:?}");
}

/// Programs that leave a mark when they are run, under every name that an importer might look for.
fn trojans(at: &Path) {
    std::fs::create_dir(at).expect("a directory");
    let names =
        ["unpigz", "pigz", "gzip", "gunzip", "zcat", "zstd", "unzstd", "xz", "unxz", "bzip2", "tar", "sh"];
    for name in names {
        let path = at.join(name);
        let script = format!("#!/bin/sh\necho \"$0\" >> {}\nexit 1\n", at.join("was-run").display());
        std::fs::write(&path, script).expect("a script");
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).expect("can be run");
    }
}

#[test]
fn t17_no_program_on_path_is_run() {
    let house = House::new();
    let bin = house.dir.path().join("bin");
    trojans(&bin);
    let layers =
        [Pack::Plain, Pack::Gzip, Pack::Zstd].map(|pack| file("a", format!("{pack:?}")).packed(pack));
    let (bytes, docker) = (several(layers.clone()).oci(), several(layers).docker());
    let inputs = [gzip(&bytes), zstd(&bytes), bytes, gzip(&docker), zstd(&docker), docker];
    for (at, archive) in inputs.into_iter().enumerate() {
        let store = house.dir.path().join(format!("store-{at}"));
        let path = house.dir.path().join("archive");
        std::fs::write(&path, &archive).expect("an archive");
        let words = ["--json", "import", path.to_str().expect("text")];
        run(command(&store, words).env("PATH", &bin)).ok();
        let store = house.dir.path().join(format!("stream-{at}"));
        run_with_input(command(&store, ["import", "-"]).env("PATH", &bin), &archive).ok();
    }
    let foreign = crate::support::foreign();
    for name in ["skopeo-docker-tiny.tar.xz", "skopeo-docker-tiny.tar.bz2"] {
        let path = foreign.join(name);
        run(command(&house.store(), ["import", path.to_str().expect("text")]).env("PATH", &bin)).ok();
    }
    assert!(!bin.join("was-run").exists(), "{:?}", std::fs::read_to_string(bin.join("was-run")));
}

//! What transload hands on: its store and its exports as skopeo, umoci, containerd, podman and docker read them, and bundles as runc
//! and crun run them.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::SystemTime;

use serde_json::Value;

use crate::support::listing::{assert_same, listing};
use crate::support::run::{Ran, run, run_with_input, transload};
use crate::support::scratch;
use crate::support::tools::{Daemon, have, podman, skip, skopeo, skopeo_copy, umoci_unpack};
use crate::trees::{Oracle, assert_as_documented};
use crate::{diff_ids, list, strings, text_of};

const NAME: &str = "docker.io/test/handed-on:1";

/// A store with one image in it, and what the import reported.
fn store_with(scratch: &Path, file: &str) -> (PathBuf, Value) {
    let store = scratch.join("store");
    let path = crate::foreign().join(file);
    let report = transload(&store, ["import", "--json", "--tag", NAME, &path.to_string_lossy()]).ok().json();
    let image = list(&report["images"]).into_iter().next().expect("one image");
    (store, image)
}

/// A file that `transload export` wrote.
fn exported(store: &Path, scratch: &Path, options: &[&str]) -> PathBuf {
    let out = scratch.join(format!("export{}.tar", options.concat()));
    let out_text = out.to_string_lossy().into_owned();
    transload(store, [&["export"], options, &["-o", &out_text, NAME]].concat()).ok();
    out
}

/// What `transload export -o -` writes.
fn streamed(store: &Path, options: &[&str]) -> Vec<u8> {
    transload(store, [&["export"], options, &["-o", "-", NAME]].concat()).ok().stdout
}

fn raw_digest(scratch: &Path, what: &[&str], reference: &str) -> String {
    let ran = run(skopeo(scratch).arg("inspect").args(what).arg("--raw").arg(reference)).ok();
    crate::support::image::digest(&ran.stdout)
}

fn skopeo_diff_ids(scratch: &Path, reference: &str) -> Vec<String> {
    let ran = run(skopeo(scratch).args(["inspect", "--config", "--raw", reference])).ok();
    let config: Value = serde_json::from_slice(&ran.stdout).expect("a config");
    strings(&config["rootfs"]["diff_ids"])
}

const FILES: [&str; 6] = [
    "skopeo-oci.tar",
    "skopeo-docker.tar",
    "skopeo-oci-zstd.tar",
    "docker-save-multi.tar.gz",
    "containerd-sparse.tar",
    "podman-oci-zstd-chunked.tar",
];

#[test]
fn skopeo_reads_our_store_and_our_exports_with_digests_unchanged() {
    if !have(&["skopeo"]) {
        return;
    }
    for file in FILES {
        if file.contains("multi") {
            continue; // several images, one of which --tag could not name
        }
        let scratch = scratch();
        let (store, image) = store_with(scratch.path(), file);
        let target = text_of(&image["target"]);
        let export = exported(&store, scratch.path(), &[]);
        for from in [format!("oci:{}:{NAME}", store.display()), format!("oci-archive:{}", export.display())] {
            assert_eq!(raw_digest(scratch.path(), &[], &from), target, "{file}: {from}");
            assert_eq!(
                Some(raw_digest(scratch.path(), &["--config"], &from).as_str()),
                image["config"].as_str(),
                "{file}: {from}"
            );
            let to = scratch.path().join("copy");
            skopeo_copy(
                scratch.path(),
                &["--dest-oci-accept-uncompressed-layers"],
                &from,
                &format!("oci:{}:x", to.display()),
            );
            let copied = raw_digest(scratch.path(), &[], &format!("oci:{}:x", to.display()));
            assert_eq!(copied, text_of(&image["manifest"]), "{file}: copied from {from}");
            std::fs::remove_dir_all(&to).expect("a directory just made");
        }
        let docker = exported(&store, scratch.path(), &["--format", "docker"]);
        let from = format!("docker-archive:{}:{NAME}", docker.display());
        assert_eq!(
            Some(raw_digest(scratch.path(), &["--config"], &from).as_str()),
            image["config"].as_str(),
            "{file}: {from}"
        );
        assert_eq!(skopeo_diff_ids(scratch.path(), &from), diff_ids(&image), "{file}: {from}");
    }
}

#[test]
fn importing_our_own_exports_gives_the_same_manifest() {
    for file in FILES.iter().filter(|file| !file.contains("multi")) {
        let scratch = scratch();
        let (store, image) = store_with(scratch.path(), file);
        for options in [&[][..], &["--format", "docker"]] {
            let export = exported(&store, scratch.path(), options);
            let again = scratch.path().join(format!("again{}", options.len()));
            let report = transload(&again, ["import", "--json", &export.to_string_lossy()]).ok().json();
            let found = &report["images"][0];
            assert_eq!(found["manifest"], image["manifest"], "{file} {options:?}: {report}");
            assert_eq!(found["target"], image["target"], "{file} {options:?}: {report}");
            assert_eq!(found["name"], NAME, "{file} {options:?}: {report}");
        }
        assert_eq!(
            streamed(&store, &[]),
            std::fs::read(exported(&store, scratch.path(), &[])).expect("an export"),
            "{file}"
        );
    }
}

#[test]
fn umoci_unpacks_our_store_to_our_tree() {
    if !have(&["umoci", "skopeo"]) {
        return;
    }
    let scratch = scratch();
    let (store, _) = store_with(scratch.path(), "skopeo-oci.tar");
    // umoci wants tags without a slash.
    let path = crate::foreign().join("skopeo-oci.tar").to_string_lossy().into_owned();
    transload(&store, ["import", "--tag", NAME, &path]).ok();
    let layout = scratch.path().join("layout");
    skopeo_copy(
        scratch.path(),
        &[],
        &format!("oci:{}:{NAME}", store.display()),
        &format!("oci:{}:x", layout.display()),
    );
    let theirs = umoci_unpack(&layout, "x", &scratch.path().join("bundle"));
    let ours = scratch.path().join("ours");
    transload(&store, ["unpack", NAME, &ours.to_string_lossy()]).ok();
    assert_same("unpack and umoci over our store", &listing(&ours), &listing(&theirs));
}

#[test]
fn containerd_imports_our_exports() {
    if !have(&["containerd", "ctr"]) {
        return;
    }
    let scratch = scratch();
    let mut daemon = Daemon::containerd(scratch.path());
    let start = SystemTime::now();
    for (number, file) in FILES.into_iter().filter(|file| !file.contains("multi")).enumerate() {
        let here = scratch.path().join(number.to_string());
        std::fs::create_dir(&here).expect("a directory");
        let (store, image) = store_with(&here, file);
        let ours = here.join("ours");
        transload(&store, ["unpack", NAME, &ours.to_string_lossy()]).ok();
        for (options, base) in [(&[][..], "oci"), (&["--format", "docker"], "docker")] {
            let archive = streamed(&store, options);
            run_with_input(&mut daemon.ctr(&["images", "import", "--no-unpack", "-"]), &archive).ok();
            let listed = run(&mut daemon.ctr(&["images", "ls"])).ok().text();
            let line = listed
                .lines()
                .find(|line| line.starts_with(NAME))
                .unwrap_or_else(|| panic!("{file} {base}: {listed}"));
            assert!(line.contains(&text_of(&image["target"])), "{file} {base}: {line}");
            let at = here.join(format!("mounted-{base}"));
            assert!(daemon.mount_image(NAME, &at), "{file} {base}: containerd cannot unpack it");
            let oracle = Oracle { umoci: None, containerd: Some(listing(&at)) };
            assert_as_documented(&format!("{file} {base}"), &listing(&ours), &oracle, start);
        }
    }
}

#[test]
fn podman_loads_our_exports() {
    if !have(&["podman"]) {
        return;
    }
    for file in ["skopeo-oci.tar", "skopeo-docker.tar", "docker-save.tar"] {
        for options in [&[][..], &["--format", "docker"]] {
            let scratch = scratch();
            let (store, image) = store_with(scratch.path(), file);
            run_with_input(podman(scratch.path()).args(["load", "-q"]), &streamed(&store, options)).ok();
            let shown = run(podman(scratch.path()).args(["image", "inspect", NAME])).ok();
            assert_loaded(file, &shown, &image, "Id");
        }
    }
}

#[test]
fn docker_loads_our_exports() {
    if !have(&["dockerd", "docker"]) {
        return;
    }
    let scratch = scratch();
    let daemon = Daemon::docker(scratch.path());
    for (number, file) in ["skopeo-oci.tar", "skopeo-docker.tar", "docker-save.tar"].into_iter().enumerate() {
        let here = scratch.path().join(number.to_string());
        std::fs::create_dir(&here).expect("a directory");
        let (store, image) = store_with(&here, file);
        run_with_input(
            &mut daemon.docker_command(&["load", "-q"]),
            &streamed(&store, &["--format", "docker"]),
        )
        .ok();
        let shown = run(&mut daemon.docker_command(&["image", "inspect", NAME])).ok();
        assert_loaded(file, &shown, &image, "Id");
    }
}

/// Docker's and podman's id of an image is the digest of its config.
#[track_caller]
fn assert_loaded(file: &str, shown: &Ran, image: &Value, id: &str) {
    let shown: Value = serde_json::from_slice(&shown.stdout).expect("inspect prints JSON");
    let config = text_of(&image["config"]);
    let found = text_of(&shown[0][id]);
    assert_eq!(found.trim_start_matches("sha256:"), config.trim_start_matches("sha256:"), "{file}");
    assert_eq!(strings(&shown[0]["RootFS"]["Layers"]), diff_ids(image), "{file}");
}

#[test]
fn a_bundle_runs_in_runc() {
    if !have(&["runc"]) {
        return;
    }
    bundle_prints(|state, bundle| {
        let mut command = Command::new("runc");
        command.arg("--root").arg(state).args(["run", "--bundle"]).arg(bundle);
        command
    });
}

#[test]
fn a_bundle_runs_in_crun() {
    if !have(&["crun", "unshare"]) {
        return;
    }
    bundle_prints(|state, bundle| {
        // crun refuses machines with both cgroup versions mounted; in a mount namespace of its own there is only one.
        let script = "umount -R /sys/fs/cgroup/unified 2>/dev/null; exec crun --root \"$0\" run --bundle \"$1\" \"$2\"";
        let mut command = Command::new("unshare");
        command.args(["-m", "sh", "-c", script]).arg(state).arg(bundle);
        command
    });
}

/// Runs base's own command in a bundle: `echo inside; id`, in /home/user.
fn bundle_prints(runtime: impl Fn(&Path, &Path) -> Command) {
    if !Path::new("/sys/fs/cgroup").exists() {
        return skip("no cgroups here");
    }
    let scratch = scratch();
    let (store, _) = store_with(scratch.path(), "skopeo-docker.tar");
    let bundle = scratch.path().join("bundle");
    transload(&store, ["bundle", NAME, &bundle.to_string_lossy()]).ok();
    let state = scratch.path().join("state");
    let id = format!("transload-test-{}", std::process::id());
    let ran = run(runtime(&state, &bundle).arg(&id));
    let gone = transload(&store, ["umount", &bundle.to_string_lossy()]);
    let ran = ran.ok();
    assert_eq!(ran.text(), "inside\nuid=0(root) gid=0(root)\n", "{}", ran.stderr);
    gone.ok();
}

//! The bundles that we write start under the runtimes that people have.

mod support;

use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Command, Output};
use transload::transfer::bundle::{self, BundleOptions};

/// A root filesystem of a static busybox.
fn busybox_rootfs(busybox: &Path, dir: &Path) {
    let bin = dir.join("rootfs/bin");
    std::fs::create_dir_all(&bin).expect("bin");
    std::fs::create_dir_all(dir.join("rootfs/etc")).expect("etc");
    std::fs::create_dir_all(dir.join("rootfs/data")).expect("data");
    std::fs::write(dir.join("rootfs/data/seed"), "seeded\n").expect("a file in the volume");
    std::fs::write(dir.join("rootfs/etc/passwd"), "app:x:1000:50::/:/bin/sh\n").expect("passwd");
    std::fs::write(dir.join("rootfs/etc/group"), "wheel:x:10:app\n").expect("group");
    std::fs::copy(busybox, bin.join("busybox")).expect("a copy of busybox");
    for name in ["sh", "id", "cat", "pwd", "echo", "touch"] {
        symlink("busybox", bin.join(name)).expect("a link to busybox");
    }
}

fn run(runtime: &str, dir: &Path) -> Output {
    let id = format!("transload-test-{runtime}-{}", std::process::id());
    let output =
        Command::new(runtime).current_dir(dir).args(["run", &id]).output().expect("the runtime starts");
    // crun refuses hosts where cgroup v1 and v2 both carry controllers, whatever the bundle. It looks at the mounts, so
    // it gets a view without v2.
    if !String::from_utf8_lossy(&output.stderr).contains("hybrid mode not supported") {
        return output;
    }
    eprintln!("{runtime} does not support this host's cgroups: hiding version 2 from it");
    let script = format!("umount /sys/fs/cgroup/unified && exec {runtime} run {id}");
    let mut command = Command::new("unshare");
    command.current_dir(dir).args(["--mount", "sh", "-c", &script]).output().expect("unshare starts")
}

#[test]
fn runc_and_crun_start_a_bundle() {
    let Some(busybox) = support::tools::busybox() else { return };
    let config = br#"{"os":"linux","architecture":"amd64","config":{"User":"app","WorkingDir":"/data",
        "Env":["HELLO=from inside"],"Entrypoint":["/bin/sh","-c"],"Volumes":{"/data":{}},
        "Cmd":["echo $HELLO; pwd; id -u; id -g; id -G; cat seed"]}}"#;
    for runtime in ["runc", "crun"] {
        if !support::tools::have(&[runtime]) {
            continue;
        }
        let dir = tempfile::tempdir().expect("a directory");
        busybox_rootfs(&busybox, dir.path());
        bundle::write(dir.path(), config, &BundleOptions::default()).expect("a bundle");
        let output = run(runtime, dir.path());
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{runtime}: {stderr}");
        let stdout = String::from_utf8_lossy(&output.stdout);
        assert_eq!(stdout, "from inside\n/data\n1000\n50\n50 10\nseeded\n", "{runtime}: {stderr}");
    }
}

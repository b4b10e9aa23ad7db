//! Other people's tools, each with configuration and state of its own in a scratch directory, so that the machine's images
//! and settings neither help nor harm. A missing tool skips a test loudly, and fails it where `CI=true` says that all
//! must be there.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::run::{Ran, run};

/// Says that something is not tested here; fails where nothing may be skipped.
#[track_caller]
pub fn skip(why: &str) {
    assert!(std::env::var("CI").as_deref() != Ok("true"), "CI=true, and yet: {why}");
    eprintln!("SKIPPED: {why}");
}

/// Whether all of `tools` are installed and the test is root, which all of them want.
#[track_caller]
pub fn have(tools: &[&str]) -> bool {
    if !rustix::process::geteuid().is_root() {
        skip("not root");
        return false;
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let missing = |tool: &&&str| {
        !std::env::split_paths(&path)
            .chain(["/usr/sbin".into(), "/sbin".into()])
            .any(|dir| dir.join(tool).is_file())
    };
    match tools.iter().find(missing) {
        Some(tool) => {
            skip(&format!("{tool} not installed"));
            false
        }
        None => true,
    }
}

/// Where the static busybox is, if it is installed and the test is root.
#[track_caller]
pub fn busybox() -> Option<PathBuf> {
    let places = ["/bin/busybox", "/usr/bin/busybox"].map(PathBuf::from);
    have(&["busybox"]).then(|| places.into_iter().find(|path| path.exists())).flatten()
}

/// skopeo with a policy that accepts everything.
pub fn skopeo(scratch: &Path) -> Command {
    let policy = scratch.join("policy.json");
    std::fs::write(&policy, r#"{"default":[{"type":"insecureAcceptAnything"}]}"#).expect("a policy file");
    let mut command = Command::new("skopeo");
    command.arg("--policy").arg(policy).args(["--override-os", "linux", "--override-arch", "amd64"]);
    command
}

/// Copies an image with skopeo.
#[track_caller]
pub fn skopeo_copy(scratch: &Path, options: &[&str], from: &str, to: &str) -> Ran {
    run(skopeo(scratch).args(["copy", "-q"]).args(options).args([from, to])).ok()
}

/// Podman with storage below `scratch`.
pub fn podman(scratch: &Path) -> Command {
    let conf = scratch.join("podman-containers.conf");
    std::fs::write(&conf, "[engine]\ncgroup_manager = \"cgroupfs\"\nevents_logger = \"none\"\n")
        .expect("a config file");
    let mut command = Command::new("podman");
    command.env("CONTAINERS_CONF", conf).env("HOME", scratch).env("XDG_RUNTIME_DIR", scratch);
    command.args(["--log-level", "error", "--storage-driver", "vfs", "--root"]).arg(scratch.join("podman"));
    command.arg("--runroot").arg(scratch.join("podman-run"));
    command
}

/// Unpacks an image of an OCI layout with umoci; the tree is in the directory that comes back.
#[track_caller]
pub fn umoci_unpack(layout: &Path, tag: &str, bundle: &Path) -> PathBuf {
    run(Command::new("umoci")
        .args(["unpack", "--image"])
        .arg(format!("{}:{tag}", layout.display()))
        .arg(bundle))
    .ok();
    bundle.join("rootfs")
}

/// A daemon of the test's own, ended when dropped.
pub struct Daemon {
    child: Child,
    socket: PathBuf,
    mounted: Vec<PathBuf>,
}

impl Daemon {
    /// Starts containerd with its root, state and socket below `scratch`.
    pub fn containerd(scratch: &Path) -> Self {
        let base = scratch.join("containerd");
        std::fs::create_dir_all(&base).expect("a directory");
        let show = base.display();
        let config = format!(
            "version = 2\nroot = \"{show}/root\"\nstate = \"{show}/state\"\n\
             disabled_plugins = [\"io.containerd.grpc.v1.cri\", \"io.containerd.internal.v1.opt\"]\n\
             [grpc]\naddress = \"{show}/sock\"\n[ttrpc]\naddress = \"{show}/ttrpc\"\n"
        );
        std::fs::write(base.join("config.toml"), config).expect("a config file");
        let mut command = Command::new("containerd");
        command.arg("--config").arg(base.join("config.toml"));
        Self::start(command, &base, |daemon| daemon.ctr(&["version"]))
    }

    /// Starts dockerd without a network, its state and socket below `scratch`.
    pub fn docker(scratch: &Path) -> Self {
        let base = scratch.join("docker");
        std::fs::create_dir_all(&base).expect("a directory");
        let mut command = Command::new("dockerd");
        command.args([
            "--iptables=false",
            "--ip6tables=false",
            "--bridge=none",
            "--storage-driver=vfs",
            "--data-root",
        ]);
        command
            .arg(base.join("data"))
            .arg("--exec-root")
            .arg(base.join("exec"))
            .arg("--pidfile")
            .arg(base.join("pid"));
        command.arg("--host").arg(format!("unix://{}/sock", base.display()));
        Self::start(command, &base, |daemon| daemon.docker_command(&["version"]))
    }

    fn start(mut command: Command, base: &Path, probe: impl Fn(&Self) -> Command) -> Self {
        let log = std::fs::File::create(base.join("log")).expect("a log file");
        command.stdin(Stdio::null()).stdout(log.try_clone().expect("a descriptor")).stderr(log);
        let child = command.spawn().unwrap_or_else(|e| panic!("{command:?}: {e}"));
        let mut daemon = Self { child, socket: base.join("sock"), mounted: Vec::new() };
        let until = Instant::now() + Duration::from_secs(30);
        while run(&mut probe(&daemon)).code != Some(0) {
            let ended = daemon.child.try_wait().expect("a child").is_some();
            let log = || std::fs::read_to_string(base.join("log")).unwrap_or_default();
            assert!(!ended && Instant::now() < until, "{command:?} does not answer:\n{}", log());
            std::thread::sleep(Duration::from_millis(50));
        }
        daemon
    }

    pub fn ctr(&self, args: &[&str]) -> Command {
        let mut command = Command::new("ctr");
        command.arg("--address").arg(&self.socket).args(["--namespace", "test"]).args(args);
        command
    }

    pub fn docker_command(&self, args: &[&str]) -> Command {
        // Docker's own client as Debian installs it; another one may be in front of it on PATH.
        let client =
            ["/usr/bin/docker", "docker"].into_iter().find(|c| Path::new(c).exists()).unwrap_or("docker");
        let mut command = Command::new(client);
        command.arg("--host").arg(format!("unix://{}", self.socket.display())).args(args);
        command
    }

    /// Mounts an image of containerd's, unpacked by containerd's overlay snapshotter. False where it cannot unpack the image.
    #[track_caller]
    pub fn mount_image(&mut self, name: &str, at: &Path) -> bool {
        std::fs::create_dir_all(at).expect("a mount point");
        let show = at.to_str().expect("scratch paths are text");
        let ran = run(&mut self.ctr(&["images", "mount", "--platform", "linux/amd64", name, show]));
        if ran.stderr.contains("failed to extract layer") {
            return false;
        }
        ran.ok();
        self.mounted.push(at.to_path_buf());
        true
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        for at in &self.mounted {
            let _ = rustix::mount::unmount(at, rustix::mount::UnmountFlags::DETACH);
        }
        // SIGTERM first: a killed dockerd leaves its containerd behind.
        let pid = rustix::process::Pid::from_child(&self.child);
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        let until = Instant::now() + Duration::from_secs(10);
        while Instant::now() < until && matches!(self.child.try_wait(), Ok(None)) {
            std::thread::sleep(Duration::from_millis(50));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

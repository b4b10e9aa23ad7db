//! `mount NAME -- COMMAND`: a command with the image as its root, in a mount namespace of its own.
//!
//! The mount is visible to nobody else and goes away with the namespace, whatever happens to this process. That is a
//! convenience and no sandbox: the command runs with this process's rights, and with the host's `/proc` and `/dev`
//! where the image has such directories.

use rustix::mount::{MountPropagationFlags, UnmountFlags, mount_bind_recursive, mount_change, unmount};
use rustix::thread::{UnshareFlags, unshare_unsafe};
use serde_json::Value;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use transload::{Error, ErrorKind, Result, ResultExt};

const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Gives this thread, and what it starts, mounts of its own. Call it before any thread is started.
pub fn private_mounts() -> Result<()> {
    let doing = || "cannot make a mount namespace";
    // SAFETY: no other thread exists yet, so none can be surprised that the working directory is no longer shared.
    unsafe { unshare_unsafe(UnshareFlags::NEWNS) }
        .map_err(|errno| needs_privilege(errno.into()))
        .doing(doing)?;
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    mount_change("/", private).doing(doing)
}

/// Takes this namespace's copies of other mounts of the store away. The command cannot see them, and they would keep
/// anyone from unmounting the originals for as long as it runs.
pub fn leave_other_mounts(store: &Path) {
    let copies = transload::mount::list(store).unwrap_or_default();
    for copy in copies.iter().rev() {
        // In a user namespace they are locked; then they stay.
        let _ = unmount(&copy.target, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW);
    }
}

fn needs_privilege(error: Error) -> Error {
    match error.kind() {
        ErrorKind::Permission => error.with_hint("run as root, or allow user namespaces"),
        _ => error,
    }
}

/// An empty directory to mount on, removed at the end.
pub struct Directory(PathBuf);

impl Directory {
    pub fn new() -> Result<Self> {
        let parent = std::env::temp_dir();
        for attempt in 0..100 {
            let path = parent.join(format!("transload-{}-{attempt}", std::process::id()));
            match std::fs::create_dir(&path) {
                Ok(()) => return Ok(Directory(path)),
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error).doing(|| format!("cannot create {}", path.display())),
            }
        }
        Err(Error::new(ErrorKind::AlreadyExists, "every name is taken"))
            .doing(|| format!("cannot create a directory in {}", parent.display()))
    }

    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Directory {
    /// Never recursively: if something is still mounted there, it stays.
    fn drop(&mut self) {
        let _ = std::fs::remove_dir(&self.0);
    }
}

/// Runs `command` with `root` as its root and waits for it; the number is its exit code.
pub fn run(root: &Path, command: &[OsString], image_config: &[u8]) -> Result<u8> {
    let (program, arguments) = command.split_first().expect("clap gives at least one word");
    bind_host(root, "proc");
    bind_host(root, "dev");
    ignore_terminal_signals();
    let status = child(root, program, arguments, image_config).status();
    // The image cannot be unmounted with something mounted in it.
    ["dev", "proc"].iter().for_each(|name| release_host(root, name));
    match status {
        Ok(status) => Ok(exit_code(status)),
        Err(error) => {
            let error = Error::from(error).context(format!("cannot run {} in the image", program.display()));
            Err(error)
        }
    }
}

/// Where the image has such a directory. A command may do without, so failing is no failure.
fn bind_host(root: &Path, name: &str) {
    let target = root.join(name);
    if target.symlink_metadata().is_ok_and(|metadata| metadata.is_dir()) {
        let _ = mount_bind_recursive(Path::new("/").join(name), target);
    }
}

/// Lazily, because what the command left behind may still use it. In this namespace nobody else sees it go.
fn release_host(root: &Path, name: &str) {
    let _ = unmount(root.join(name), UnmountFlags::DETACH | UnmountFlags::NOFOLLOW);
}

fn child(root: &Path, program: &OsStr, arguments: &[OsString], image_config: &[u8]) -> Command {
    let root = root.to_path_buf();
    let mut command = Command::new(program);
    command.args(arguments).env_clear().envs(environment(image_config));
    // The kernel resolves it inside the new root; an image without it gets the root.
    let directory = working_directory(image_config);
    // SAFETY: only system calls between fork and exec; the paths were allocated before.
    unsafe {
        command.pre_exec(move || {
            rustix::process::chroot(&root)?;
            rustix::process::chdir("/")?;
            let _ = rustix::process::chdir(&directory);
            restore_signals()
        });
    }
    command
}

/// The image's variables, as a container would have them; the terminal's type comes from outside.
fn environment(image_config: &[u8]) -> Vec<(OsString, OsString)> {
    let config: Value = serde_json::from_slice(image_config).unwrap_or_default();
    let mut variables = vec![("PATH".into(), DEFAULT_PATH.into()), ("HOME".into(), "/root".into())];
    if let Some(term) = std::env::var_os("TERM") {
        variables.push(("TERM".into(), term));
    }
    let own = config["config"]["Env"].as_array().map(Vec::as_slice).unwrap_or_default();
    let own = own.iter().filter_map(Value::as_str).filter(|entry| !entry.contains('\0'));
    let own = own.filter_map(|entry| entry.split_once('=')).filter(|(name, _)| !name.is_empty());
    variables.extend(own.map(|(name, value)| (OsString::from(name), OsString::from(value))));
    variables
}

fn working_directory(image_config: &[u8]) -> PathBuf {
    let config: Value = serde_json::from_slice(image_config).unwrap_or_default();
    let directory = config["config"]["WorkingDir"].as_str().filter(|path| !path.contains('\0'));
    PathBuf::from(OsStr::from_bytes(directory.unwrap_or("/").as_bytes()))
}

/// Ctrl-C is for the command; this process stays to clean up.
fn ignore_terminal_signals() {
    // SAFETY: SIG_IGN is a valid disposition for both.
    unsafe {
        libc::signal(libc::SIGINT, libc::SIG_IGN);
        libc::signal(libc::SIGQUIT, libc::SIG_IGN);
    }
}

/// Ignored signals survive exec. And when this process dies, the command goes with it.
fn restore_signals() -> std::io::Result<()> {
    // SAFETY: SIG_DFL is a valid disposition for both.
    unsafe {
        libc::signal(libc::SIGINT, libc::SIG_DFL);
        libc::signal(libc::SIGQUIT, libc::SIG_DFL);
    }
    Ok(rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::TERM))?)
}

/// As a shell would have it: 128 and the signal's number for a command that a signal ended.
fn exit_code(status: ExitStatus) -> u8 {
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal)).unwrap_or(1);
    u8::try_from(code).unwrap_or(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_image_decides_about_the_environment() {
        let variables = environment(br#"{"config":{"Env":["PATH=/x","A=b=c","=bad","alone"]}}"#);
        let last =
            |name: &str| variables.iter().rfind(|(key, _)| key == name).map(|(_, value)| value.clone());
        assert_eq!(last("PATH"), Some("/x".into()));
        assert_eq!(last("A"), Some("b=c".into()));
        assert!(last("").is_none() && last("alone").is_none());
        assert_eq!(working_directory(br#"{"config":null}"#), Path::new("/"));
    }

    #[test]
    fn a_command_runs_inside_and_its_exit_code_comes_out() {
        if !rustix::process::geteuid().is_root() || !Path::new("/bin/busybox").exists() {
            eprintln!("SKIPPED: needs root and a static busybox");
            return;
        }
        let root = tempfile::tempdir().expect("a directory");
        std::fs::create_dir(root.path().join("bin")).expect("bin");
        std::fs::copy("/bin/busybox", root.path().join("bin/sh")).expect("busybox");
        let config = br#"{"config":{"Env":["CODE=7"],"WorkingDir":"/bin"}}"#;
        let run = |script: &str| {
            let status = child(root.path(), OsStr::new("sh"), &["-c".into(), script.into()], config).status();
            exit_code(status.expect("it starts"))
        };
        assert_eq!(run("test -x ./sh && test ! -e /usr && exit $CODE"), 7);
        assert_eq!(run("kill -9 $$"), 137);
        assert!(child(root.path(), OsStr::new("nothing"), &[], config).status().is_err());
    }
}

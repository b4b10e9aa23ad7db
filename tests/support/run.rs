//! The program under test, run as its users run it: as a process with a store of its own and nothing inherited that could
//! change what it does.

use std::ffi::OsStr;
use std::io::Write;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use serde_json::Value;

/// What a run left behind.
pub struct Ran {
    pub command: String,
    /// The exit code; None after a signal.
    pub code: Option<i32>,
    pub stdout: Vec<u8>,
    pub stderr: String,
}

impl Ran {
    pub fn of(command: &Command, output: Output) -> Self {
        Self {
            command: format!("{command:?}"),
            code: output.status.code(),
            stdout: output.stdout,
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// Fails the test unless the run succeeded.
    #[track_caller]
    pub fn ok(self) -> Self {
        assert_eq!(self.code, Some(0), "{}\n{}{}", self.command, self.text(), self.stderr);
        self
    }

    /// Fails the test unless the run ended with `code` and one sentence that says what went wrong.
    #[track_caller]
    pub fn fails(self, code: i32) -> Self {
        assert_eq!(self.code, Some(code), "{}\n{}{}", self.command, self.text(), self.stderr);
        let errors: Vec<&str> = self.stderr.lines().filter(|line| line.starts_with("error: ")).collect();
        assert_eq!(errors.len(), 1, "{}: one sentence expected:\n{}", self.command, self.stderr);
        assert!(!self.stderr.contains("panicked at"), "{}: {}", self.command, self.stderr);
        self
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// The one JSON object that `--json` promises.
    #[track_caller]
    pub fn json(&self) -> Value {
        let value: Value = serde_json::from_slice(&self.stdout)
            .unwrap_or_else(|e| panic!("{}: {e}:\n{}\n{}", self.command, self.text(), self.stderr));
        assert_eq!(value["version"], 1, "{}: {value}", self.command);
        value
    }
}

/// Where the program under test was built.
pub fn program() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_transload"))
}

/// `transload --store STORE ARGS…`, not yet started.
pub fn command<S: AsRef<OsStr>>(store: &Path, args: impl IntoIterator<Item = S>) -> Command {
    let mut command = Command::new(program());
    command.arg("--store").arg(store).args(args).env_remove("TRANSLOAD_STORE").stdin(Stdio::null());
    command
}

/// Runs it to its end.
pub fn transload<S: AsRef<OsStr>>(store: &Path, args: impl IntoIterator<Item = S>) -> Ran {
    let mut command = command(store, args);
    let output = command.output().expect("the program under test starts");
    Ran::of(&command, output)
}

/// Runs any command to its end.
pub fn run(command: &mut Command) -> Ran {
    let output = command.stdin(Stdio::null()).output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    Ran::of(command, output)
}

/// Runs any command with `input` on its stdin. A reader that stops early is its own affair.
pub fn run_with_input(command: &mut Command, input: &[u8]) -> Ran {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    let mut stdin = child.stdin.take().expect("a piped stdin");
    let output = std::thread::scope(|scope| {
        scope.spawn(move || {
            let _ = stdin.write_all(input);
        });
        child.wait_with_output().expect("a child's output")
    });
    Ran::of(command, output)
}

/// Waits until a process that stops itself has done so, or has ended.
pub fn until_stopped(child: &Child) {
    let stat = format!("/proc/{}/stat", child.id());
    let is_stopped = |stat: String| [") T ", ") Z "].iter().any(|state| stat.contains(state));
    while !std::fs::read_to_string(&stat).is_ok_and(is_stopped) {
        std::thread::sleep(Duration::from_millis(5));
    }
}

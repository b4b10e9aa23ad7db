//! Fail points: the steps that durability rests on, by name, and what a test wants to happen at them.
//!
//! Only builds with the feature `failpoints` have this; in all others its place is taken by `failpoint_off.rs`, whose
//! functions are empty. What is wanted is set by [`configure`] for the whole process, because that is what dies. A
//! description is a list of `POINT=ACTION`, separated by `;`:
//!
//! - `POINT` is a name from docs/durability.md, or `*` for every one of them.
//! - `ACTION` is `kill` (SIGKILL to this process), `stop` (SIGSTOP), `enospc`, `eio` or `emfile` (the step fails so), `skip` (a sync is left
//!   out and taken for done), `short` (a read gives one byte), `sleep:MS`. It may end in `@N`, for the Nth time the point is
//!   reached, or `@N+`, from the Nth time on; otherwise it holds every time.
//! - `write-behind=MS` has an import send to the disk what it has written, that often. Without it nothing goes there but by the
//!   syncs that have names, so that a test that leaves one out shows the same each time.
//! - `patience=MS` has whoever waits for a lock give up so early behind a process that is stopped.
//! - `boot=NAME` gives the kernel's boot another id; `clock=SECONDS` or `clock=SECONDS@N` sets the system's clock forward (or, below
//!   zero, back), from the Nth look at it on.

use crate::error::{Error, ErrorKind, Result};
use std::collections::BTreeMap;
use std::io::{self, Read};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Action {
    Kill,
    Stop,
    Fail(i32),
    Skip,
    Short,
    Sleep(u64),
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Fault {
    point: String,
    action: Action,
    from: u64,
    to: u64,
}

#[derive(Default)]
struct State {
    faults: Vec<Fault>,
    hits: BTreeMap<String, u64>,
    boot: Option<String>,
    clock: Option<(i64, u64)>,
    looks: u64,
    write_behind: Option<Duration>,
    patience: Option<Duration>,
}

static STATE: Mutex<State> = Mutex::new(State {
    faults: Vec::new(),
    hits: BTreeMap::new(),
    boot: None,
    clock: None,
    looks: 0,
    write_behind: None,
    patience: None,
});

fn state() -> MutexGuard<'static, State> {
    STATE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Sets what happens from now on, and counts from zero again. [`ErrorKind::InvalidArgument`] for what it does not understand.
///
/// ```
/// use transload::parallel::failpoint;
/// failpoint::configure("blob.sync=skip; images.publish=kill@2")?;
/// assert!(failpoint::configure("blob.sync=jump").is_err());
/// # failpoint::configure("")?;
/// # Ok::<(), transload::Error>(())
/// ```
pub fn configure(description: &str) -> Result<()> {
    let mut new = State::default();
    for part in description.split(';').map(str::trim).filter(|part| !part.is_empty()) {
        let understood = part.split_once('=').and_then(|(point, wanted)| add(&mut new, point, wanted));
        understood.ok_or_else(|| {
            Error::new(ErrorKind::InvalidArgument, format!("the fail point {part:?} is not understood"))
        })?;
    }
    *state() = new;
    Ok(())
}

fn add(state: &mut State, point: &str, wanted: &str) -> Option<()> {
    let (what, when) = wanted.split_once('@').unwrap_or((wanted, "1+"));
    let (from, to) = match when.strip_suffix('+') {
        Some(from) => (from.parse().ok()?, u64::MAX),
        None => (when.parse().ok()?, when.parse().ok()?),
    };
    match point {
        "boot" => state.boot = Some(wanted.to_string()),
        "write-behind" => state.write_behind = Some(Duration::from_millis(wanted.parse().ok()?)),
        "patience" => state.patience = Some(Duration::from_millis(wanted.parse().ok()?)),
        "clock" => state.clock = Some((what.parse().ok()?, from)),
        point => state.faults.push(Fault { point: point.to_string(), action: action(what)?, from, to }),
    }
    Some(())
}

fn action(text: &str) -> Option<Action> {
    Some(match text {
        "kill" => Action::Kill,
        "stop" => Action::Stop,
        "enospc" => Action::Fail(libc::ENOSPC),
        "eio" => Action::Fail(libc::EIO),
        "emfile" => Action::Fail(libc::EMFILE),
        "skip" => Action::Skip,
        "short" => Action::Short,
        other => Action::Sleep(other.strip_prefix("sleep:")?.parse().ok()?),
    })
}

/// How often each point has been reached; `*` is all of them together.
pub fn hits() -> BTreeMap<String, u64> {
    state().hits.clone()
}

/// Counts, and finds what is wanted here now.
fn reach(point: &str) -> Option<Action> {
    let mut state = state();
    let mut count = |name: &str| {
        let hits = state.hits.entry(name.to_string()).or_default();
        *hits += 1;
        *hits
    };
    let (own, all) = (count(point), count("*"));
    let wanted = |fault: &&Fault| {
        let reached = if fault.point == "*" { all } else { own };
        (fault.point == "*" || fault.point == point) && (fault.from..=fault.to).contains(&reached)
    };
    state.faults.iter().find(wanted).map(|fault| fault.action)
}

fn act(action: Option<Action>) -> io::Result<()> {
    match action {
        Some(Action::Kill) => die(),
        Some(Action::Stop) => {
            Ok(rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::STOP)?)
        }
        Some(Action::Fail(errno)) => Err(io::Error::from_raw_os_error(errno)),
        Some(Action::Sleep(ms)) => {
            std::thread::sleep(Duration::from_millis(ms));
            Ok(())
        }
        Some(Action::Skip | Action::Short) | None => Ok(()),
    }
}

fn die() -> ! {
    let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
    // The signal is on its way.
    loop {
        std::thread::sleep(Duration::from_secs(1));
    }
}

/// Stands before a step.
pub fn at(point: &str) -> io::Result<()> {
    act(reach(point))
}

/// Stands before one step, `what.step`, of several that belong together.
pub fn at_step(what: &str, step: &str) -> io::Result<()> {
    at(&format!("{what}.{step}"))
}

/// Stands before a sync and tells whether it is to happen.
pub fn sync(point: &str) -> io::Result<bool> {
    let action = reach(point);
    act(action)?;
    Ok(action != Some(Action::Skip))
}

/// As [`sync`], for one step of several.
pub fn sync_step(what: &str, step: &str) -> io::Result<bool> {
    sync(&format!("{what}.{step}"))
}

/// Stands before a read and gives as much of the buffer as may be filled.
pub fn shorten<'a>(point: &str, buffer: &'a mut [u8]) -> io::Result<&'a mut [u8]> {
    let action = reach(point);
    act(action)?;
    let length = if action == Some(Action::Short) { buffer.len().min(1) } else { buffer.len() };
    Ok(&mut buffer[..length])
}

/// A reader whose every read is a point.
pub fn reader(point: &'static str, inner: Box<dyn Read + Send>) -> Box<dyn Read + Send> {
    struct Faulty(&'static str, Box<dyn Read + Send>);
    impl Read for Faulty {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let buffer = shorten(self.0, buffer)?;
            self.1.read(buffer)
        }
    }
    Box::new(Faulty(point, inner))
}

/// The boot id to use in place of the kernel's.
pub fn boot() -> Option<String> {
    state().boot.clone()
}

/// How often an import sends what it has written to the disk.
pub fn write_behind() -> Option<Duration> {
    state().write_behind
}

/// How long a wait for a lock lasts behind a process that is stopped, if not as usual.
pub fn patience() -> Option<Duration> {
    state().patience
}

/// The system's clock.
pub fn now() -> SystemTime {
    let mut state = state();
    state.looks += 1;
    let jump = state.clock.filter(|(_, from)| state.looks >= *from).map_or(0, |(seconds, _)| seconds);
    let by = Duration::from_secs(jump.unsigned_abs());
    if jump < 0 { SystemTime::now() - by } else { SystemTime::now() + by }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptions_say_where_what_and_when() {
        let parse = |text: &str| {
            let mut state = State::default();
            let (point, wanted) = text.split_once('=')?;
            add(&mut state, point, wanted).map(|()| state.faults)
        };
        let fault = |action, from, to| Some(vec![Fault { point: "a".to_string(), action, from, to }]);
        assert_eq!(parse("a=kill"), fault(Action::Kill, 1, u64::MAX));
        assert_eq!(parse("a=stop@2"), fault(Action::Stop, 2, 2));
        assert_eq!(parse("a=enospc@3"), fault(Action::Fail(libc::ENOSPC), 3, 3));
        assert_eq!(parse("a=sleep:20@3+"), fault(Action::Sleep(20), 3, u64::MAX));
        for wrong in ["a=", "a=kil", "a=kill@", "a=kill@x", "a=sleep", "clock=x"] {
            assert_eq!(parse(wrong), None, "{wrong}");
        }
    }
}

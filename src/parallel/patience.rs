//! Waiting for a lock between processes: for as long as those who hold it are well, and not without end for one that
//! was stopped.
//!
//! The kernel gives back what a dead process held, but not what a stopped one holds (SIGSTOP, Ctrl-Z), and a stopped one
//! may stay so for days. So whoever waits looks now and then at who holds the lock. A holder that is well is waited for,
//! however slow it is. When nobody who holds it has been seen well for a minute, the wait ends with an error that names
//! them.
//!
//! A lock is tried for again and again instead of queued for, so that every wait can be cancelled. The one that everyone
//! wants all the time has a [`super::queue`].

use super::Cancel;
use super::failpoint;
use super::lock_table::{LockTable, is_stopped};
use crate::error::{Error, ErrorKind, Result, ResultExt};
use crate::holder::{Holder, How, Use};
use crate::progress::{Event, Progress, Silent};
use rustix::fd::{AsFd, AsRawFd, OwnedFd};
use rustix::fs::{self, FlockOperation};
use rustix::io::Errno;
use std::time::{Duration, Instant};

/// How often a wait tries again.
pub(crate) const PAUSE: Duration = Duration::from_millis(5);

/// How often a wait looks at who holds the lock. Often enough to see a process well that is stopped for moments all the
/// time, because somebody traces it.
pub(super) const LOOK: Duration = Duration::from_secs(1);

/// How often at the most one look looks.
const LOOKS: u32 = 5;

/// After how long it is worth telling for whom one waits.
const WORTH_TELLING: Duration = Duration::from_secs(5);

/// For how long nobody who holds the lock may be well. Who presses Ctrl-Z by mistake has time to notice.
const LONGEST: Duration = Duration::from_secs(60);

/// How somebody waits for a lock that other processes may hold. Made of a [`Cancel`], it waits as everyone does.
#[derive(Clone, Copy)]
pub struct Patience<'a> {
    cancel: &'a Cancel,
    progress: &'a dyn Progress,
    longest: Duration,
}

impl<'a> Patience<'a> {
    /// Ends when it is cancelled, and after a minute in which nobody who holds the lock was well: stopped, or not to be
    /// seen.
    pub fn new(cancel: &'a Cancel) -> Self {
        Patience { cancel, progress: &Silent, longest: failpoint::patience().unwrap_or(LONGEST) }
    }

    /// The same, with another time than a minute.
    pub fn at_most(self, longest: Duration) -> Self {
        Patience { longest, ..self }
    }

    /// The same, and when it takes long this one is told who is waited for, by an [`Event::Notice`].
    pub fn telling(self, progress: &'a dyn Progress) -> Self {
        Patience { progress, ..self }
    }

    /// An error once it was cancelled.
    pub(crate) fn check(&self) -> Result<()> {
        self.cancel.check()
    }
}

impl<'a> From<&'a Cancel> for Patience<'a> {
    fn from(cancel: &'a Cancel) -> Self {
        Patience::new(cancel)
    }
}

/// One wait for one lock.
pub(crate) struct Wait<'a> {
    fd: &'a OwnedFd,
    lock: &'a str,
    patience: Patience<'a>,
    started: Instant,
    looked: Instant,
    /// When somebody who holds it was last seen well.
    well: Instant,
    told: bool,
}

impl<'a> Wait<'a> {
    /// Begins now. `lock` is what people know it by.
    pub(crate) fn new(fd: &'a OwnedFd, lock: &'a str, patience: Patience<'a>) -> Self {
        let now = Instant::now();
        Wait { fd, lock, patience, started: now, looked: now, well: now, told: false }
    }

    /// The same, if somebody was seen well when another waited.
    pub(super) fn well_since(self, well: Instant) -> Self {
        Wait { well, ..self }
    }

    pub(super) fn well(&self) -> Instant {
        self.well
    }

    pub(super) fn longest(&self) -> Duration {
        self.patience.longest
    }

    /// Waits until it is locked. [`ErrorKind::Busy`] if that cannot be expected.
    pub(crate) fn lock(&mut self, operation: FlockOperation) -> Result<()> {
        self.lock_within(Duration::MAX, operation).map(drop)
    }

    /// The same for so long at most; whether it is locked then.
    pub(crate) fn lock_within(&mut self, length: Duration, operation: FlockOperation) -> Result<bool> {
        let started = Instant::now();
        while !try_lock(self.fd, operation)? {
            self.patience.check()?;
            if started.elapsed() >= length {
                return Ok(false);
            }
            if self.looked.elapsed() >= LOOK.min(self.patience.longest)
                && let Err(hopeless) = self.look()
            {
                // Whoever had it may have given it back while we looked.
                return if try_lock(self.fd, operation)? { Ok(true) } else { Err(hopeless) };
            }
            std::thread::sleep(PAUSE);
        }
        Ok(true)
    }

    /// [`ErrorKind::Busy`] if nobody who holds it has been well for too long.
    pub(super) fn look(&mut self) -> Result<()> {
        let holding = Holding::of(self.fd)?;
        self.looked = Instant::now();
        if holding.goes_on() {
            self.well = self.looked;
            self.tell(&holding);
            return Ok(());
        }
        match self.well.elapsed() < self.patience.longest {
            true => Ok(()),
            false => Err(holding.hopeless(self.lock)),
        }
    }

    fn tell(&mut self, holding: &Holding) {
        if !self.told && self.started.elapsed() >= WORTH_TELLING.min(self.patience.longest) {
            self.told = true;
            let who: Vec<String> =
                holding.well.iter().map(|one| format!("process {} ({})", one.pid, one.command)).collect();
            let text = format!("waits for {}, which is held by {}", self.lock, who.join(", "));
            self.patience.progress.event(&Event::Notice(text));
        }
    }
}

/// The refusal of who does not wait: `busy`, or better if there is better to say.
pub(crate) fn refusal(fd: &OwnedFd, lock: &str, busy: Error) -> Result<Error> {
    let holding = Holding::of(fd)?;
    Ok(match holding.stopped.is_empty() {
        true => busy.with_holders(holding.well),
        false => holding.hopeless(lock),
    })
}

/// Who holds a lock, as far as they can be seen.
struct Holding {
    well: Vec<Holder>,
    stopped: Vec<Holder>,
}

impl Holding {
    /// The kernel gives its list in pieces, and while locks come and go one may be missing in it. So who sees nobody looks again.
    fn of(fd: &OwnedFd) -> Result<Self> {
        let mut holding = Self::look(fd)?;
        for _ in 1..LOOKS {
            if !(holding.well.is_empty() && holding.stopped.is_empty()) {
                break;
            }
            holding = Self::look(fd)?;
        }
        Ok(holding)
    }

    fn look(fd: &OwnedFd) -> Result<Self> {
        let stat = fs::fstat(fd)?;
        let path = std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd())).unwrap_or_default();
        let mut holding = Holding { well: Vec::new(), stopped: Vec::new() };
        for process in LockTable::read(fd.as_fd()).holders(&stat) {
            let holder = || Holder::of(process, vec![Use { how: How::Lock, path: path.clone() }]);
            match is_stopped(process) {
                Some(true) => holding.stopped.extend(holder()),
                Some(false) => holding.well.extend(holder()),
                None => {}
            }
        }
        Ok(holding)
    }

    /// Whether it will be given back: by all of those who share it.
    fn goes_on(&self) -> bool {
        self.stopped.is_empty() && !self.well.is_empty()
    }

    fn hopeless(self, lock: &str) -> Error {
        let busy = |message: String| Error::new(ErrorKind::Busy, message);
        if self.stopped.is_empty() {
            return busy(format!("a process that cannot be seen from here holds {lock}"))
                .with_hint("it may run in another container: let it go on, or end it, there");
        }
        let message = match self.stopped.len() {
            1 => format!("the process that holds {lock} is stopped"),
            many => format!("{many} processes that hold {lock} are stopped"),
        };
        let numbers: Vec<String> = self.stopped.iter().map(|holder| holder.pid.to_string()).collect();
        let numbers = numbers.join(" ");
        let hint = format!("'kill -CONT {numbers}' lets it go on, 'kill -KILL {numbers}' ends it");
        busy(message).with_holders(self.stopped).with_hint(hint)
    }
}

/// Whether it could be locked at once.
pub(crate) fn try_lock(fd: &OwnedFd, operation: FlockOperation) -> Result<bool> {
    loop {
        match fs::flock(fd, operation) {
            Ok(()) => return Ok(true),
            Err(Errno::WOULDBLOCK) => return Ok(false),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno).doing(|| "cannot lock"),
        }
    }
}

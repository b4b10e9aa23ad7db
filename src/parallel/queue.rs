//! Queueing for a lock between processes that is held for moments and wanted all the time: in the order of coming, which
//! trying again and again ([`super::patience`]) does not give, and yet not without end behind a process that was stopped.
//!
//! The kernel queues whoever blocks in flock(2), and only a signal ends that, which is not a library's to send. So where
//! the lock is taken, a thread blocks with an open file of its own, and who waits looks now and then at who holds the
//! lock. When the wait ends without it, the thread stays in the queue and gives the lock back as soon as it gets it;
//! until then whoever asks next takes over its place. So a queue has one such thread at most.

use super::Cancel;
use super::patience::{LOOK, Patience, Wait, try_lock};
use crate::error::{Result, ResultExt};
use rustix::fd::OwnedFd;
use rustix::fs::{self, FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

const EXCLUSIVE: FlockOperation = FlockOperation::NonBlockingLockExclusive;

/// One user of a lock file; several have one each.
pub(crate) struct Queue {
    path: PathBuf,
    /// What people know it by.
    name: &'static str,
    fd: OwnedFd,
    waiting: Option<Waiting>,
}

/// A place in the kernel's queue, and when somebody who held the lock was last seen well.
struct Waiting {
    place: Arc<Place>,
    well: Instant,
}

impl Queue {
    /// Opens the lock file `name`, which is made where it is missing.
    pub(crate) fn open(dir: &Path, name: &'static str) -> Result<Self> {
        let path = dir.join(name);
        Ok(Queue { fd: open(&path)?, path, name, waiting: None })
    }

    /// Waits for its turn. [`crate::ErrorKind::Busy`] if that cannot be expected, because whoever has it was stopped.
    pub(crate) fn take(&mut self) -> Result<Turn<'_>> {
        if self.waiting.is_none() && try_lock(&self.fd, EXCLUSIVE)? {
            return Ok(Turn(&self.fd));
        }
        self.fd = self.wait()?;
        Ok(Turn(&self.fd))
    }

    fn wait(&mut self) -> Result<OwnedFd> {
        let Waiting { place, well } = match self.waiting.take() {
            Some(waiting) if waiting.place.is_wanted_again() => waiting,
            _ => Waiting { place: Place::queue(&self.path)?, well: Instant::now() },
        };
        let cancel = Cancel::new();
        let mut wait = Wait::new(&self.fd, self.name, Patience::new(&cancel)).well_since(well);
        let look = LOOK.min(wait.longest());
        loop {
            if let Some(fd) = place.lock_within(look) {
                return fd;
            }
            if let Err(hopeless) = wait.look() {
                let well = wait.well();
                // It may have been given back while we looked.
                return place.leave().unwrap_or_else(|| {
                    self.waiting = Some(Waiting { place, well });
                    Err(hopeless)
                });
            }
        }
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        // Its thread gives the lock back when it comes.
        if let Some(waiting) = self.waiting.take() {
            waiting.place.leave();
        }
    }
}

/// Held until it is dropped.
pub(crate) struct Turn<'a>(&'a OwnedFd);

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let _ = fs::flock(self.0, FlockOperation::Unlock);
    }
}

/// What the thread that blocks and the one that waits for it tell each other.
#[derive(Default)]
struct Place {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
enum State {
    #[default]
    Wanted,
    /// Nobody waits for it.
    Left,
    /// The file with the lock, or why there is none.
    Come(Result<OwnedFd>),
    /// The thread has ended.
    Over,
}

impl Place {
    fn queue(path: &Path) -> Result<Arc<Place>> {
        let (place, fd) = (Arc::<Place>::default(), open(path)?);
        let theirs = Arc::clone(&place);
        std::thread::Builder::new()
            .name("queue".into())
            .spawn(move || theirs.come(block(fd)))
            .doing(|| format!("cannot queue for {}", path.display()))?;
        Ok(place)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn come(&self, fd: Result<OwnedFd>) {
        let mut state = self.state();
        *state = match *state {
            State::Wanted => State::Come(fd),
            _ => State::Over,
        };
        self.changed.notify_all();
    }

    fn lock_within(&self, length: Duration) -> Option<Result<OwnedFd>> {
        let is_wanted = |state: &mut State| matches!(state, State::Wanted);
        let waited = self.changed.wait_timeout_while(self.state(), length, is_wanted);
        let (mut state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        take(&mut state)
    }

    /// Waits no longer, unless it has come.
    fn leave(&self) -> Option<Result<OwnedFd>> {
        let mut state = self.state();
        take(&mut state).or_else(|| {
            *state = State::Left;
            None
        })
    }

    /// Takes over a place that was left. `false` if it has been given up.
    fn is_wanted_again(&self) -> bool {
        let mut state = self.state();
        let is_left = matches!(*state, State::Left);
        if is_left {
            *state = State::Wanted;
        }
        is_left
    }
}

fn take(state: &mut State) -> Option<Result<OwnedFd>> {
    match std::mem::replace(state, State::Over) {
        State::Come(fd) => Some(fd),
        other => {
            *state = other;
            None
        }
    }
}

fn open(path: &Path) -> Result<OwnedFd> {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    fs::open(path, flags, Mode::from_raw_mode(0o600)).doing(|| format!("cannot open {}", path.display()))
}

fn block(fd: OwnedFd) -> Result<OwnedFd> {
    loop {
        match fs::flock(&fd, FlockOperation::LockExclusive) {
            Ok(()) => return Ok(fd),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno).doing(|| "cannot lock"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU64, Ordering};

    const NAME: &str = "some.lock";

    fn queue(dir: &Path) -> Queue {
        Queue::open(dir, NAME).expect("opens")
    }

    #[test]
    fn one_has_it_at_a_time_and_everyone_gets_a_turn() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let (inside, turns) = (AtomicU64::new(0), AtomicU64::new(0));
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    let mut queue = queue(dir.path());
                    for _ in 0..50 {
                        let _turn = queue.take().expect("its turn");
                        assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0);
                        std::thread::yield_now();
                        inside.fetch_sub(1, Ordering::SeqCst);
                        turns.fetch_add(1, Ordering::SeqCst);
                    }
                });
            }
        });
        assert_eq!(turns.into_inner(), 8 * 50);
    }

    /// The place that somebody leaves behind another queue's turn, with `then` done to it before that turn ends.
    fn after_leaving<T>(dir: &Path, then: impl FnOnce(Arc<Place>) -> T) -> T {
        let mut holder = queue(dir);
        let turn = holder.take().expect("free");
        let place = Place::queue(&dir.join(NAME)).expect("queues");
        assert!(place.lock_within(Duration::from_millis(5)).is_none() && place.leave().is_none());
        let left = then(place);
        drop(turn);
        left
    }

    #[test]
    fn a_lock_that_comes_when_nobody_waits_any_more_is_given_back() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let place = after_leaving(dir.path(), |place| place);
        let mut other = queue(dir.path());
        drop(other.take().expect("is not kept by one who has left"));
        // By now, or soon, its thread is over.
        let mut state = place.state();
        while !matches!(*state, State::Over) {
            state = place.changed.wait(state).expect("no panic");
        }
        drop(state);
        assert!(!place.is_wanted_again());
    }

    #[test]
    fn who_asks_next_takes_over_the_place_that_was_left() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let place = after_leaving(dir.path(), |place| {
            assert!(place.is_wanted_again());
            place
        });
        let fd = place.lock_within(Duration::MAX).expect("comes").expect("locks");
        assert!(!try_lock(&queue(dir.path()).fd, EXCLUSIVE).expect("tries"), "it has it");
        drop(fd);
        assert!(try_lock(&queue(dir.path()).fd, EXCLUSIVE).expect("tries"));
    }
}

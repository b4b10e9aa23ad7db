//! Bounded lanes: a few scoped threads that take jobs one after another.
//!
//! The first error cancels the rest, and everyone has been joined when [`Lanes::scope`] returns. A lane computes, reads or writes;
//! it does not wait for another lane.

use super::Cancel;
use crate::error::{Error, ErrorKind, Result, ResultExt};
use crossbeam::channel::{Receiver, Sender, bounded};
use std::sync::Mutex;
use std::thread::Builder;
use tracing::Span;

/// The sending side of running lanes.
pub struct Lanes<'a, J> {
    jobs: Sender<J>,
    cancel: &'a Cancel,
}

impl<J: Send> Lanes<'_, J> {
    /// Hands a job to the next free lane, waiting for one. An error when the lanes have been cancelled.
    pub fn send(&self, job: J) -> Result<()> {
        self.cancel.check()?;
        // Refused only when every lane has ended, which they do early only on cancellation.
        self.jobs.send(job).map_err(|_| Error::cancelled())
    }

    /// Runs `feed` beside `threads` lanes. `start` is called once on each lane's own thread; `work` does one job.
    /// `cancel` should be a child of the caller's token: it is cancelled on the first error.
    pub fn scope<R: Send, T>(
        threads: usize,
        cancel: &Cancel,
        start: impl Fn() + Sync,
        work: impl Fn(J) -> Result<R> + Sync,
        feed: impl FnOnce(&Lanes<'_, J>) -> Result<T>,
    ) -> Result<(T, Vec<R>)> {
        let (sender, receiver) = bounded::<J>(0);
        let outcome = Outcome { results: Mutex::new(Vec::new()), error: Mutex::new(None) };
        let fed = std::thread::scope(|scope| {
            for number in 0..threads.max(1) {
                let (receiver, parent) = (receiver.clone(), Span::current());
                let lane = || {
                    let _inside = parent.entered();
                    lane(receiver, cancel, &start, &work, &outcome)
                };
                let started = Builder::new().name(format!("lane {number}")).spawn_scoped(scope, lane);
                started.doing(|| "cannot start a thread")?;
            }
            // The lanes' own clones are the only receivers, so that a send fails once all lanes are gone.
            drop(receiver);
            let lanes = Lanes { jobs: sender, cancel };
            let fed = feed(&lanes);
            if fed.is_err() {
                cancel.cancel();
            }
            fed
        });
        let error = outcome.error.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner());
        match (error, fed) {
            // Whoever only noticed the cancellation says less than the one that caused it.
            (Some(error), Err(fed)) if error.kind() == ErrorKind::Cancelled => Err(fed),
            (Some(error), _) => Err(error),
            (None, Err(error)) => Err(error),
            (None, Ok(value)) => {
                let results = outcome.results.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner());
                Ok((value, results))
            }
        }
    }
}

struct Outcome<R> {
    results: Mutex<Vec<R>>,
    error: Mutex<Option<Error>>,
}

fn lane<J, R>(
    jobs: Receiver<J>,
    cancel: &Cancel,
    start: &impl Fn(),
    work: &impl Fn(J) -> Result<R>,
    outcome: &Outcome<R>,
) {
    start();
    for job in jobs {
        if cancel.is_cancelled() {
            // Dropping the job lets go of its claims. Jobs are drained so that the feeder does not hang.
            continue;
        }
        let worked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| work(job)))
            .unwrap_or_else(|_| Err(Error::new(ErrorKind::Internal, "a worker thread panicked")));
        match worked {
            Ok(result) => lock(&outcome.results).push(result),
            Err(error) => {
                cancel.cancel();
                let mut first = lock(&outcome.error);
                let only_cancelled = first.as_ref().is_none_or(|first| first.kind() == ErrorKind::Cancelled);
                if only_cancelled {
                    *first = Some(error);
                }
            }
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(threads: usize, jobs: Vec<u32>, work: impl Fn(u32) -> Result<u32> + Sync) -> Result<Vec<u32>> {
        let feed = |lanes: &Lanes<'_, u32>| jobs.into_iter().try_for_each(|job| lanes.send(job));
        Lanes::scope(threads, &Cancel::new(), || {}, work, feed).map(|(_, mut results)| {
            results.sort_unstable();
            results
        })
    }

    #[test]
    fn every_job_is_done_once() {
        let done = run(3, (0..100).collect(), |job| Ok(job * 2)).expect("no error");
        assert_eq!(done, (0..100).map(|job| job * 2).collect::<Vec<_>>());
    }

    #[test]
    fn the_first_error_wins_and_stops_the_rest() {
        let error = run(2, (0..1000).collect(), |job| match job {
            3 => Err(Error::malformed("three")),
            _ => Ok(job),
        });
        assert_eq!(error.expect_err("three fails").to_string(), "three");
    }

    #[test]
    fn a_panic_is_an_error_and_nobody_hangs() {
        let error = run(2, (0..50).collect(), |job| if job == 7 { panic!("on purpose") } else { Ok(job) });
        assert_eq!(error.expect_err("a panic").kind(), ErrorKind::Internal);
    }
}

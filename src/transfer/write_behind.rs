//! The disk works while the import does: what has been written is sent to it again and again, so that the wait at the end is for
//! the last part only.
//!
//! The kernel begins by itself only when a tenth of the memory is dirty, or after half a minute. Blobs are sent on as they grow
//! ([`crate::content`]); files of trees are too small and too many for that, and go with the whole filesystem.

use crate::error::{Error, ErrorKind, Result};
use crate::io::durable;
use crate::parallel::failpoint;
use crossbeam::channel::{RecvTimeoutError, bounded};
use rustix::fd::OwnedFd;
use std::time::{Duration, Instant};

/// Runs `work` while a thread has `filesystem` write back what is dirty, as often as there is something to write; at most half of the
/// time, because others have to write as well.
///
/// The descriptor is only for this: each one hears of a failed write once, and who waits at the end is to hear of all. Some failures
/// are told to nobody twice, so what fails here is a failure of the whole.
pub(super) fn during<T>(
    filesystem: &OwnedFd,
    is_dirty: impl Fn() -> bool + Sync,
    work: impl FnOnce() -> Result<T>,
) -> Result<T> {
    match failpoint::write_behind() {
        Some(period) => every(period, filesystem, is_dirty, work),
        None => work(),
    }
}

fn every<T>(
    period: Duration,
    filesystem: &OwnedFd,
    is_dirty: impl Fn() -> bool + Sync,
    work: impl FnOnce() -> Result<T>,
) -> Result<T> {
    let (over, ended) = bounded::<()>(0);
    std::thread::scope(|scope| {
        let is_dirty = &is_dirty;
        let named = std::thread::Builder::new().name("write back".to_string());
        let writing = named.spawn_scoped(scope, move || {
            let mut pause = period;
            while ended.recv_timeout(pause) == Err(RecvTimeoutError::Timeout) {
                if is_dirty() {
                    let began = Instant::now();
                    durable::sync_filesystem(filesystem)?;
                    pause = period.max(began.elapsed());
                }
            }
            Ok(())
        });
        // Without a thread the wait comes at the end.
        let Ok(writing) = writing else { return work() };
        let done = work();
        drop(over);
        let written =
            writing.join().map_err(|_| Error::new(ErrorKind::Internal, "a writing thread panicked"));
        done.and_then(|value| written?.map(|()| value))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{Mode, OFlags, open};

    /// Works until the other thread has looked, and so is about to sync.
    fn beside(filesystem: OFlags, result: Result<u8>) -> Result<u8> {
        let fd = open("/tmp", filesystem | OFlags::DIRECTORY, Mode::empty()).expect("opens");
        let (looked, looks) = crossbeam::channel::unbounded();
        let is_dirty = move || looked.send(()).is_ok();
        every(Duration::from_millis(1), &fd, is_dirty, || {
            looks.recv().expect("it looks");
            result
        })
    }

    #[test]
    fn what_fails_on_the_way_to_the_disk_fails_the_whole() {
        assert_eq!(beside(OFlags::RDONLY, Ok(7)).expect("nothing fails"), 7);
        // Nothing can be synced by such a descriptor.
        assert!(beside(OFlags::PATH, Ok(7)).is_err());
        let own = beside(OFlags::PATH, Err(Error::malformed("no tar"))).expect_err("is refused");
        assert_eq!(own.to_string(), "no tar");
    }
}

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
use std::time::Instant;

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
    let Some(period) = failpoint::write_behind() else { return work() };
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

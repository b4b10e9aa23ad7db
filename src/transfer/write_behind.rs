//! The disk works while the import does: what has been written is sent to it again and again, so that the wait at the end is for
//! the last part only.
//!
//! The kernel begins by itself only when a tenth of the memory is dirty, or after half a minute. Blobs are sent on as they grow
//! ([`crate::content`]); files of trees are too small and too many for that, and go with the whole filesystem.

use crate::error::{Result, ResultExt};
use crate::io::durable;
use crate::parallel::failpoint;
use crossbeam::channel::{RecvTimeoutError, bounded};
use rustix::fd::OwnedFd;

/// Runs `work` while a thread has `filesystem` write back what is dirty, as often as there is something to write.
///
/// The descriptor is only for this: each one hears of a failed write once, and who waits at the end is to hear of all.
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
        let started = named.spawn_scoped(scope, move || {
            while ended.recv_timeout(period) == Err(RecvTimeoutError::Timeout) {
                if is_dirty() {
                    let _ = durable::sync_filesystem(filesystem);
                }
            }
        });
        started.doing(|| "cannot start a thread")?;
        let done = work();
        drop(over);
        done
    })
}

//! Small files' second half on a thread of its own: what is in them, owner, mode and times.
//!
//! Names are made, replaced and linked by the thread that reads the tar, one entry after the other, so their order means
//! what it always means. Here nobody looks a name up: a file comes as a descriptor, opened for the first time, and whatever
//! becomes of its name meanwhile, it is the same file.

use super::attributes;
use super::data::write_all;
use crate::error::{Error, ErrorKind, Result};
use crate::tree::PathBytes;
use crossbeam::channel::{Receiver, Sender, bounded, unbounded};
use rustix::fd::OwnedFd;
use rustix::fs::{self, Gid, Mode, Timestamps, Uid};
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

/// Larger files, which may have holes, are written where they are read, in pieces.
pub(super) const SMALL: u64 = 64 << 10;

/// How many files, and how many bytes, wait for each other before they are handed over.
const BATCH_FILES: usize = 32;
const BATCH_BYTES: usize = 256 << 10;

/// What one extraction with a thread beside it may have open: three batches, directories, and some to spare. All extractions of a
/// process share its descriptors.
const DESCRIPTORS: u64 = 256;

/// How many there are in this process.
static LIVE: AtomicU64 = AtomicU64::new(0);

struct Share;

impl Share {
    /// `None` where the others leave too few descriptors.
    fn take() -> Option<Share> {
        let live = LIVE.fetch_add(1, Ordering::Relaxed) + 1;
        let share = Share;
        let most = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
        most.is_none_or(|most| live.saturating_mul(DESCRIPTORS) <= most).then_some(share)
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        LIVE.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What is still to be done to a file that has its name.
pub(super) struct Finish {
    pub owner: Option<(Uid, Gid)>,
    pub mode: Option<Mode>,
    pub times: Timestamps,
}

impl Finish {
    /// In the order that the kernel needs: chown clears setuid bits, and everything touches the times.
    pub fn apply(&self, file: &OwnedFd) -> Result<()> {
        if let Some(owner) = self.owner {
            attributes::set_owner(file, owner)?;
        }
        if let Some(mode) = self.mode {
            fs::fchmod(file, mode)?;
        }
        Ok(fs::futimens(file, &self.times)?)
    }
}

struct Waiting {
    file: OwnedFd,
    data: Range<usize>,
    finish: Finish,
    path: Vec<u8>,
}

#[derive(Default)]
struct Batch {
    data: Vec<u8>,
    files: Vec<Waiting>,
}

/// The way to the other thread.
pub(super) struct Beside {
    batches: Sender<Batch>,
    empty: Receiver<Batch>,
    batch: Batch,
    is_over: bool,
}

impl Beside {
    /// Room for a file's bytes; they are appended.
    pub fn buffer(&mut self) -> &mut Vec<u8> {
        &mut self.batch.data
    }

    /// Hands over a file whose bytes are the last `size` of the buffer.
    pub fn put(&mut self, file: OwnedFd, size: usize, finish: Finish, path: Vec<u8>) {
        let end = self.batch.data.len();
        self.batch.files.push(Waiting { file, data: end - size..end, finish, path });
        if self.batch.files.len() >= BATCH_FILES || end >= BATCH_BYTES {
            self.flush();
        }
    }

    /// Whether the other thread has failed: what comes now is in vain.
    pub fn is_over(&self) -> bool {
        self.is_over
    }

    fn flush(&mut self) {
        let full = std::mem::replace(&mut self.batch, self.empty.try_recv().unwrap_or_default());
        self.is_over |= self.batches.send(full).is_err();
    }
}

/// Runs `work` with a thread beside it, and gives what it gives once that thread has finished every file. Without one where
/// descriptors are few.
pub(super) fn with<T>(work: impl FnOnce(Option<&mut Beside>) -> Result<T>) -> Result<T> {
    match Share::take() {
        Some(_share) => with_thread(work),
        None => work(None),
    }
}

fn with_thread<T>(work: impl FnOnce(Option<&mut Beside>) -> Result<T>) -> Result<T> {
    let (batches, received) = bounded::<Batch>(1);
    let (back, empty) = unbounded();
    std::thread::scope(|scope| {
        let named = std::thread::Builder::new().name("write".to_string());
        let finishing = named.spawn_scoped(scope, move || finish_all(&received, &back));
        let Ok(finishing) = finishing else { return work(None) };
        let mut beside = Beside { batches, empty, batch: Batch::default(), is_over: false };
        let done = work(Some(&mut beside));
        if done.is_ok() {
            beside.flush();
        }
        // Lets the other thread notice that nothing more comes.
        drop(beside);
        let finished = finishing.join();
        finished.map_err(|_| Error::new(ErrorKind::Internal, "a writing thread panicked"))??;
        done
    })
}

fn finish_all(batches: &Receiver<Batch>, back: &Sender<Batch>) -> Result<()> {
    for mut batch in batches {
        for Waiting { file, data, finish, path } in batch.files.drain(..) {
            write_all(&file, &batch.data[data])
                .and_then(|()| finish.apply(&file))
                .map_err(|error| error.context(format!("cannot extract {}", PathBytes::new(path))))?;
        }
        batch.data.clear();
        // Nobody wants it back at the end.
        let _ = back.send(batch);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::tar::Mtime;

    fn finish() -> Finish {
        Finish { owner: None, mode: None, times: attributes::timestamps(Mtime::default()) }
    }

    #[test]
    fn a_file_that_cannot_be_written_ends_it_and_is_named() {
        let read_only = || OwnedFd::from(std::fs::File::open("/dev/null").expect("opens"));
        let error = with_thread(|beside| {
            let beside = beside.expect("a thread");
            while !beside.is_over() {
                beside.buffer().push(b'x');
                beside.put(read_only(), 1, finish(), b"some/file".to_vec());
            }
            Ok(())
        });
        let error = error.expect_err("nothing can be written").to_string();
        assert!(error.contains("cannot extract some/file"), "{error}");
    }

    #[test]
    fn what_fails_here_is_told_when_nothing_fails_there() {
        let error = with_thread(|beside| {
            let file = OwnedFd::from(tempfile::tempfile().expect("a file"));
            beside.expect("a thread").put(file, 0, finish(), b"file".to_vec());
            Err::<(), _>(Error::malformed("no tar"))
        });
        assert_eq!(error.expect_err("refused").to_string(), "no tar");
    }
}

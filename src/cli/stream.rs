//! A pipe to import from: stdin, or a FIFO by its name.
//!
//! Whoever feeds a pipe may stall for ever, and a plain `read` would then sit there through the first Ctrl-C. So the pipe
//! is waited for in short turns, and the cancel token is looked at in between.

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;
use transload::{Cancel, Error, Result, ResultExt};

/// How long a Ctrl-C may go unnoticed.
const TURN: Timespec = Timespec { tv_sec: 0, tv_nsec: 50_000_000 };

/// A reader that gives up when it is told to.
pub struct Stream {
    file: File,
    cancel: Cancel,
}

impl Stream {
    /// Reads `file`, whatever it is.
    pub fn new(file: File, cancel: &Cancel) -> Self {
        Stream { file, cancel: cancel.clone() }
    }

    /// Opens the FIFO at `path`; `None` if it is something else or not there, which others tell of. Opening one
    /// ordinarily would wait for a writer.
    pub fn open_fifo(path: &Path, cancel: &Cancel) -> Result<Option<Self>> {
        if !std::fs::metadata(path).is_ok_and(|metadata| metadata.file_type().is_fifo()) {
            return Ok(None);
        }
        let opened = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path);
        let file = opened.doing(|| format!("cannot read {}", path.display()))?;
        Ok(Some(Stream::new(file, cancel)))
    }

    fn wait(&self) -> io::Result<()> {
        let mut fds = [PollFd::new(&self.file, PollFlags::IN)];
        loop {
            self.cancel.check().map_err(Error::into_io)?;
            match poll(&mut fds, Some(&TURN)) {
                Ok(0) | Err(Errno::INTR) => {}
                Ok(_) => return Ok(()),
                Err(errno) => return Err(errno.into()),
            }
        }
    }
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            self.wait()?;
            match self.file.read(buffer) {
                // Somebody else reads the same pipe.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                other => return other,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn a_stalled_pipe_can_be_cancelled_and_a_fed_one_is_read_to_its_end() {
        let (reader, mut writer) = io::pipe().expect("a pipe");
        let cancel = Cancel::new();
        let mut stream = Stream::new(File::from(std::os::fd::OwnedFd::from(reader)), &cancel);
        writer.write_all(b"abc").expect("writes");
        let mut first = [0; 8];
        assert_eq!(stream.read(&mut first).expect("reads"), 3);
        cancel.cancel();
        let error = Error::from(stream.read(&mut first).expect_err("cancelled"));
        assert_eq!(error.kind(), transload::ErrorKind::Cancelled);
        drop(writer);
        let mut stream = Stream { cancel: Cancel::new(), ..stream };
        assert_eq!(stream.read(&mut first).expect("reads"), 0);
    }

    #[test]
    fn a_fifo_without_a_writer_does_not_hold_anyone_up() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("fifo");
        let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
        rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, mode, 0).expect("a FIFO");
        let cancel = Cancel::new();
        let mut stream = Stream::open_fifo(&path, &cancel).expect("opens").expect("it is one");
        let writer = std::thread::spawn(move || std::fs::write(path, "late"));
        let mut text = String::new();
        stream.read_to_string(&mut text).expect("reads");
        assert_eq!(text, "late");
        writer.join().expect("no panic").expect("writes");
        assert!(Stream::open_fifo(dir.path(), &cancel).expect("looks").is_none());
    }
}

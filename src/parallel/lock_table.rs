//! Who holds which lock, as the kernel lists it in `/proc/locks`, and whether those processes were stopped.
//!
//! A process in another container or pid namespace than this one and those below is not listed.

use rustix::fd::{AsRawFd, BorrowedFd};
use rustix::fs::{Stat, major, minor};
use std::collections::HashMap;
use std::fs::read_to_string;

type Device = (u32, u32);

/// The locks on files of one filesystem, at one moment.
pub(crate) struct LockTable {
    /// What the table calls the filesystem, where that is known.
    device: Option<Device>,
    holders: HashMap<(Device, u64), Vec<u32>>,
}

impl LockTable {
    /// Reads it, for files on the filesystem that this one lies on.
    pub(crate) fn read(on: BorrowedFd<'_>) -> Self {
        let text = read_to_string("/proc/locks").unwrap_or_default();
        let mut holders: HashMap<_, Vec<u32>> = HashMap::new();
        for (file, process) in text.lines().filter_map(parse) {
            holders.entry(file).or_default().push(process);
        }
        LockTable { device: device(on), holders }
    }

    /// The processes that hold a lock on this file, this one included; each once, in order.
    pub(crate) fn holders(&self, stat: &Stat) -> Vec<u32> {
        let device = self.device.unwrap_or((major(stat.st_dev), minor(stat.st_dev)));
        let mut processes = self.holders.get(&(device, stat.st_ino)).cloned().unwrap_or_default();
        processes.sort_unstable();
        processes.dedup();
        processes
    }
}

/// `7: FLOCK  ADVISORY  WRITE 1234 08:01:5678 0 EOF`; lines with an arrow are of those who wait.
fn parse(line: &str) -> Option<((Device, u64), u32)> {
    let fields: Vec<&str> = line.split_whitespace().collect();
    if fields.get(1) == Some(&"->") {
        return None;
    }
    let process = fields.get(4)?.parse().ok()?;
    let mut file = fields.get(5)?.split(':');
    let major = u32::from_str_radix(file.next()?, 16).ok()?;
    let minor = u32::from_str_radix(file.next()?, 16).ok()?;
    Some((((major, minor), file.next()?.parse().ok()?), process))
}

/// The device of the filesystem as a whole: on btrfs `stat` gives each subvolume's own.
fn device(file: BorrowedFd<'_>) -> Option<Device> {
    let info = read_to_string(format!("/proc/self/fdinfo/{}", file.as_raw_fd())).ok()?;
    let mount = info.lines().find_map(|line| line.strip_prefix("mnt_id:"))?.trim();
    let table = std::fs::read("/proc/self/mountinfo").ok()?;
    let table = String::from_utf8_lossy(&table);
    let line = table.lines().find(|line| line.split(' ').next() == Some(mount))?;
    let (major, minor) = line.split(' ').nth(2)?.split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

/// Whether a process does nothing until somebody lets it go on: after SIGSTOP or Ctrl-Z, or for a debugger. `None` for
/// one that cannot be seen.
pub(crate) fn is_stopped(process: u32) -> Option<bool> {
    let stat = read_to_string(format!("/proc/{process}/stat")).ok()?;
    // The name before the state is anyone's choice.
    let state = stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next());
    Some(matches!(state, Some('T' | 't')))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_the_lock_table_is_read() {
        let line = "7: FLOCK  ADVISORY  WRITE 1234 08:1f:5678 0 EOF";
        assert_eq!(parse(line), Some((((8, 0x1f), 5678), 1234)));
        assert_eq!(parse("7: -> FLOCK  ADVISORY  WRITE 1234 08:1f:5678 0 EOF"), None);
        assert_eq!(parse(""), None);
    }

    #[test]
    fn our_own_lock_is_found_and_we_are_not_stopped() {
        use rustix::fd::AsFd;
        let file = tempfile::tempfile().expect("a file");
        let stat = rustix::fs::fstat(&file).expect("stats");
        let holders = || LockTable::read(file.as_fd()).holders(&stat);
        assert_eq!(holders(), Vec::<u32>::new());
        rustix::fs::flock(&file, rustix::fs::FlockOperation::LockExclusive).expect("locks");
        assert_eq!(holders(), [std::process::id()]);
        assert_eq!(is_stopped(std::process::id()), Some(false));
        assert_eq!(is_stopped(0), None);
    }
}

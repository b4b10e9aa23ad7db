//! Who holds the store's locks. The kernel gives back what a dead process held, so a lock is never stale; it may be held
//! for long, and then one wants to know by whom.

use super::{Remark, count};
use crate::error::Result;
use crate::io::{durable, locked::LockedDir};
use crate::store::{PROCESS_LABEL, Store};
use crate::upkeep::measure::names;
use rustix::fd::{AsFd, AsRawFd, OwnedFd};
use rustix::fs::{AtFlags, FileType, Stat, major, minor, statat};
use std::collections::HashMap;
use std::os::unix::net::UnixStream;

/// What is locked and what that means.
const LOCKS: [(&str, &str); 7] = [
    ("gc.lock", "imports and other work hold it together, 'fsck --rebuild' alone"),
    ("collection.lock", "held by one gc or fsck at a time"),
    (
        "mount.lock",
        "who mounts holds it together with others, gc alone while it looks for mounts that are gone",
    ),
    ("mount-turn.lock", "held by gc while it waits for its turn at mount.lock"),
    ("sweep.lock", "held by gc for moments, while it removes some things"),
    ("meta.lock", "held while a transaction is written"),
    ("index.lock", "held while index.json is written"),
];

pub(super) fn look(store: &Store) -> Result<Vec<Remark>> {
    let holders = Holders::read();
    let (mut held, mut stopped) = (Vec::new(), Vec::new());
    for (name, meaning) in LOCKS {
        if let Ok(stat) = statat(store.root(), name, AtFlags::SYMLINK_NOFOLLOW) {
            held.extend(holders.of(&stat).iter().map(|who| format!("{name}: {who}; {meaning}")));
            stopped.extend(holders.processes(&stat).into_iter().filter(|process| is_stopped(*process)));
        }
    }
    let ingests = store.content().ingests();
    for name in names(ingests)? {
        let name = name.to_string_lossy().into_owned();
        if LockedDir::is_taken(ingests, &name).unwrap_or(false) {
            let who = statat(ingests, name.as_str(), AtFlags::SYMLINK_NOFOLLOW).map(|stat| holders.of(&stat));
            let who = who.unwrap_or_default().join(", ");
            held.push(format!("ingest/{name}: {who}"));
        }
    }
    let mut remarks = vec![match held.len() {
        0 => Remark::good("locks", "nobody holds one"),
        number => Remark::good("locks", format!("{} held", count(number, "lock"))).items(held),
    }];
    remarks.extend(who_is_stopped(stopped));
    remarks.extend(leases(store, &holders)?);
    remarks.extend(sockets(store)?);
    Ok(remarks)
}

/// A stopped process keeps its locks, and whoever needs one of them waits.
fn who_is_stopped(mut processes: Vec<u32>) -> Option<Remark> {
    processes.sort_unstable();
    processes.dedup();
    let numbers: Vec<String> = processes.iter().map(u32::to_string).collect();
    let says = match processes.len() {
        0 => return None,
        1 => "a process that holds a lock is stopped, and whoever needs that waits".to_string(),
        many => format!("{many} processes that hold locks are stopped, and whoever needs those waits"),
    };
    let who = processes.into_iter().map(name_of).collect();
    Some(Remark::note("stopped", says).items(who).mend(format!("kill -CONT {}", numbers.join(" "))))
}

/// Sockets in the store: a process that dies leaves its own lying about, and who knocks there is refused.
fn sockets(store: &Store) -> Result<Option<Remark>> {
    let (mut served, mut stale) = (Vec::new(), Vec::new());
    for name in names(store.root())? {
        let stat = statat(store.root(), &name, AtFlags::SYMLINK_NOFOLLOW);
        if stat.is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Socket) {
            let name = name.to_string_lossy();
            // The store's own path may be longer than the address of a socket.
            let address = format!("/proc/self/fd/{}/{name}", store.root().as_raw_fd());
            let refused = UnixStream::connect(address)
                .is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionRefused);
            let path = store.path().join(name.as_ref()).display().to_string();
            if refused { stale.push(path) } else { served.push(path) }
        }
    }
    Ok(match (stale.is_empty(), served.is_empty()) {
        (true, true) => None,
        (true, false) => Some(Remark::good("sockets", "somebody answers").items(served)),
        (false, _) => {
            let quoted: Vec<String> =
                stale.iter().map(|path| format!("'{}'", path.replace('\'', "'\\''"))).collect();
            let says = format!("{} that nobody answers at", count(stale.len(), "socket"));
            Some(Remark::note("sockets", says).items(stale).mend(format!("rm {}", quoted.join(" "))))
        }
    })
}

/// Work that is going on, and what people hold.
fn leases(store: &Store, holders: &Holders) -> Result<Vec<Remark>> {
    let files: OwnedFd = durable::open_dir(store.root(), "leases")?;
    let now_ms = crate::upkeep::now_ms();
    let (mut work, mut kept) = (Vec::new(), Vec::new());
    for lease in store.metadata().leases()? {
        if !store.lease_is_live(&lease, now_ms)? {
            continue;
        }
        if !lease.labels.contains_key(PROCESS_LABEL) {
            kept.push(lease.id);
            continue;
        }
        let who = statat(files.as_fd(), lease.id.as_str(), AtFlags::SYMLINK_NOFOLLOW)
            .map(|stat| holders.of(&stat).join(", "))
            .unwrap_or_else(|_| "no process".to_string());
        work.push(format!("{}: {who}", lease.id));
    }
    let of_work = format!("{} of running work", count(work.len(), "lease"));
    let of_people = format!("{} made by people, until ended or expired", count(kept.len(), "lease"));
    let remarks = [("work", of_work, work), ("kept", of_people, kept)].into_iter();
    let remarks = remarks.filter(|(_, _, items)| !items.is_empty());
    Ok(remarks.map(|(topic, says, items)| Remark::good(topic, says).items(items)).collect())
}

/// Who holds which file, by `/proc/locks`.
pub(super) struct Holders(HashMap<(u32, u32, u64), Vec<u32>>);

impl Holders {
    pub fn read() -> Self {
        let text = std::fs::read_to_string("/proc/locks").unwrap_or_default();
        let mut holders: HashMap<_, Vec<u32>> = HashMap::new();
        for (file, process) in text.lines().filter_map(parse) {
            holders.entry(file).or_default().push(process);
        }
        Holders(holders)
    }

    /// The holders of a file, as people know them.
    pub fn of(&self, stat: &Stat) -> Vec<String> {
        self.processes(stat).into_iter().map(name_of).collect()
    }

    /// The holders of a file other than this process.
    pub fn processes(&self, stat: &Stat) -> Vec<u32> {
        let file = (major(stat.st_dev), minor(stat.st_dev), stat.st_ino);
        let mut processes = self.0.get(&file).cloned().unwrap_or_default();
        processes.sort_unstable();
        processes.dedup();
        processes.retain(|process| *process != std::process::id());
        processes
    }
}

/// `7: FLOCK  ADVISORY  WRITE 1234 08:01:5678 0 EOF`; lines with an arrow are of those who wait.
fn parse(line: &str) -> Option<((u32, u32, u64), u32)> {
    let fields: Vec<&str> = line.split_whitespace().collect();
    if fields.get(1) == Some(&"->") {
        return None;
    }
    let process = fields.get(4)?.parse().ok()?;
    let mut file = fields.get(5)?.split(':');
    let major = u32::from_str_radix(file.next()?, 16).ok()?;
    let minor = u32::from_str_radix(file.next()?, 16).ok()?;
    Some(((major, minor, file.next()?.parse().ok()?), process))
}

/// A process by number and name, and whether it lives.
pub(super) fn name_of(process: u32) -> String {
    match std::fs::read_to_string(format!("/proc/{process}/comm")) {
        Ok(name) if is_stopped(process) => format!("process {process} ({}), stopped", name.trim()),
        Ok(name) => format!("process {process} ({}), alive", name.trim()),
        Err(_) if process == 0 => "a process that cannot be seen from here".to_string(),
        Err(_) => format!("process {process}, which cannot be seen any more"),
    }
}

/// Whether a process does nothing until somebody lets it go on: after SIGSTOP or Ctrl-Z, or for a debugger.
fn is_stopped(process: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
    // The name before the state is anyone's choice.
    let state = stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next());
    matches!(state, Some('T' | 't'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_the_lock_table_is_read() {
        let line = "7: FLOCK  ADVISORY  WRITE 1234 08:1f:5678 0 EOF";
        assert_eq!(parse(line), Some(((8, 0x1f, 5678), 1234)));
        assert_eq!(parse("7: -> FLOCK  ADVISORY  WRITE 1234 08:1f:5678 0 EOF"), None);
        assert_eq!(parse(""), None);
    }

    #[test]
    fn a_socket_that_nobody_answers_at_is_stale() {
        use crate::store::StoreOptions;
        use std::os::unix::net::UnixListener;
        let dir = tempfile::tempdir().expect("a temporary directory");
        let options = StoreOptions { create: true, ..StoreOptions::default() };
        let store = Store::open(dir.path(), &options).expect("opens");
        assert_eq!(sockets(&store).expect("looks"), None);
        let path = dir.path().join("daemon.sock");
        let listener = UnixListener::bind(&path).expect("binds");
        let served = sockets(&store).expect("looks").expect("finds it");
        assert_eq!((served.health, served.mend), (super::super::Health::Good, None));
        drop(listener);
        let stale = sockets(&store).expect("looks").expect("finds it");
        assert_eq!(stale.mend, Some(format!("rm '{}'", path.display())));
    }
}

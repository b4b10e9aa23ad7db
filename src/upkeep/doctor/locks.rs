//! Who holds the store's locks. The kernel gives back what a dead process held, so a lock is never stale; it may be held
//! for long, and then one wants to know by whom.

use super::{Remark, count};
use crate::error::Result;
use crate::io::{durable, locked::LockedDir};
use crate::parallel::lock_table::{LockTable, is_stopped};
use crate::store::{PROCESS_LABEL, Store};
use crate::upkeep::commands::quoted;
use crate::upkeep::measure::names;
use rustix::fd::{AsFd, AsRawFd, OwnedFd};
use rustix::fs::{AtFlags, FileType, Stat, statat};
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
    let table = LockTable::read(store.root());
    let (mut held, mut stopped) = (Vec::new(), Vec::new());
    for (name, meaning) in LOCKS {
        if let Ok(stat) = statat(store.root(), name, AtFlags::SYMLINK_NOFOLLOW) {
            held.extend(names_of(&table, &stat).iter().map(|who| format!("{name}: {who}; {meaning}")));
            let holders = others(&table, &stat).into_iter();
            stopped.extend(holders.filter(|process| is_stopped(*process) == Some(true)));
        }
    }
    let ingests = store.content().ingests();
    for name in names(ingests)? {
        let name = name.to_string_lossy().into_owned();
        if LockedDir::is_taken(ingests, &name).unwrap_or(false) {
            let who =
                statat(ingests, name.as_str(), AtFlags::SYMLINK_NOFOLLOW).map(|stat| names_of(&table, &stat));
            let who = who.unwrap_or_default().join(", ");
            held.push(format!("ingest/{name}: {who}"));
        }
    }
    let mut remarks = vec![match held.len() {
        0 => Remark::good("locks", "nobody holds one"),
        number => Remark::good("locks", format!("{} held", count(number, "lock"))).items(held),
    }];
    remarks.extend(who_is_stopped(stopped));
    remarks.extend(leases(store, &table)?);
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
            let words: Vec<_> = stale.iter().map(|path| quoted(path)).collect();
            let mend = format!("rm {}", words.join(" "));
            let says = format!("{} that nobody answers at", count(stale.len(), "socket"));
            Some(Remark::note("sockets", says).items(stale).mend(mend))
        }
    })
}

/// Work that is going on, and what people hold.
fn leases(store: &Store, table: &LockTable) -> Result<Vec<Remark>> {
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
            .map(|stat| names_of(table, &stat).join(", "))
            .unwrap_or_else(|_| "no process".to_string());
        work.push(format!("{}: {who}", lease.id));
    }
    let of_work = format!("{} of running work", count(work.len(), "lease"));
    let of_people = format!("{} made by people, until ended or expired", count(kept.len(), "lease"));
    let remarks = [("work", of_work, work), ("kept", of_people, kept)].into_iter();
    let remarks = remarks.filter(|(_, _, items)| !items.is_empty());
    Ok(remarks.map(|(topic, says, items)| Remark::good(topic, says).items(items)).collect())
}

/// The holders of a file other than this process.
fn others(table: &LockTable, stat: &Stat) -> Vec<u32> {
    let mut processes = table.holders(stat);
    processes.retain(|process| *process != std::process::id());
    processes
}

/// The same, as people know them.
fn names_of(table: &LockTable, stat: &Stat) -> Vec<String> {
    others(table, stat).into_iter().map(name_of).collect()
}

/// A process by number and name, and whether it lives.
pub(super) fn name_of(process: u32) -> String {
    match std::fs::read_to_string(format!("/proc/{process}/comm")) {
        Ok(name) if is_stopped(process) == Some(true) => {
            format!("process {process} ({}), stopped", name.trim())
        }
        Ok(name) => format!("process {process} ({}), alive", name.trim()),
        Err(_) if process == 0 => "a process that cannot be seen from here".to_string(),
        Err(_) => format!("process {process}, which cannot be seen any more"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
        assert_eq!(stale.mend, Some(format!("rm {}", path.display())));
    }
}

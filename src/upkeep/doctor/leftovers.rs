//! What lies around: work that was cut short, snapshots that were half removed, leases of the dead, the quarantine, and a
//! database or index that someone else had a hand in.

use super::{BRING_UP_TO_DATE, Remark, count, quarantine, size};
use crate::error::Result;
use crate::io::{durable, locked::LockedDir};
use crate::store::{IndexState, PROCESS_LABEL, Store};
use crate::upkeep::measure::{measure, names};
use rustix::fd::AsFd;
use std::collections::HashSet;

pub(super) fn look(store: &Store) -> Result<Vec<Remark>> {
    let found = [
        database(store)?,
        index(store)?,
        ingests(store)?,
        snapshots(store)?,
        unsynced(store)?,
        leases(store)?,
        quarantine::look(store)?,
    ];
    Ok(found.into_iter().flatten().collect())
}

fn database(store: &Store) -> Result<Option<Remark>> {
    let faults = store.metadata().faults()?;
    let images = store.metadata().images()?.len();
    Ok(Some(match faults.is_empty() {
        true => Remark::good("database", format!("sound; {}", count(images, "image"))),
        false => Remark::fault("database", "it is damaged").items(faults).mend("transload fsck --rebuild"),
    }))
}

fn index(store: &Store) -> Result<Option<Remark>> {
    let state = if store.index_found_foreign() { IndexState::Foreign } else { store.index_state()? };
    Ok(match state {
        IndexState::Ours => None,
        IndexState::Behind => Some(
            Remark::note(
                "index.json",
                "it does not show the latest images; the next command that writes brings it up to date",
            )
            .mend(BRING_UP_TO_DATE),
        ),
        IndexState::Foreign => Some(
            Remark::note(
                "index.json",
                "someone else has written it; it is a view of the database and not read",
            )
            .mend("transload fsck --repair"),
        ),
    })
}

fn ingests(store: &Store) -> Result<Option<Remark>> {
    let ingests = store.content().ingests();
    let (mut left, mut bytes) = (Vec::new(), 0);
    for name in names(ingests)? {
        let name = name.to_string_lossy().into_owned();
        if !LockedDir::is_taken(ingests, &name).unwrap_or(false) {
            bytes += measure(ingests.as_fd(), &name)?.bytes;
            left.push(name);
        }
    }
    Ok(some(&left, |number| {
        format!("{} of work that was cut short, {}", count(number, "leftover"), size(bytes))
    })
    .map(|says| Remark::note("ingest", says).items(left).mend("transload gc")))
}

fn snapshots(store: &Store) -> Result<Option<Remark>> {
    // The directories first: each gets its number a moment before its row is seen, but for those of whoever writes now.
    let listed = names(durable::open_dir(store.root(), "snapshots")?)?;
    if !store.is_read_only() {
        store.metadata().settled()?;
    }
    let known: HashSet<u64> = store.metadata().snapshot_ids()?.into_iter().collect();
    let number = |name: &std::ffi::CString| name.to_str().ok()?.parse::<u64>().ok();
    let left = listed.iter().filter_map(number).filter(|id| !known.contains(id));
    let left: Vec<String> = left.map(|id| format!("snapshots/{id}")).collect();
    Ok(some(&left, |number| format!("{} without a record", count(number, "snapshot")))
        .map(|says| Remark::note("half-removed", says).items(left).mend("transload gc")))
}

/// Layers of images that nobody trusts since the last boot.
fn unsynced(store: &Store) -> Result<Option<Remark>> {
    let trusted: HashSet<u64> = store.metadata().snapshots()?.into_iter().map(|row| row.id).collect();
    let left: Vec<String> = store
        .metadata()
        .snapshot_ids()?
        .into_iter()
        .filter(|id| !trusted.contains(id))
        .map(|id| format!("snapshots/{id}"))
        .collect();
    Ok(some(&left, |number| format!("{} not synced before the system went down", count(number, "snapshot")))
        .map(|says| {
            Remark::note("unsynced", says)
                .items(left)
                .mend("transload fsck --repair, or an import again; transload gc where no image needs them")
        }))
}

fn leases(store: &Store) -> Result<Option<Remark>> {
    let now_ms = crate::upkeep::now_ms();
    let mut dead = Vec::new();
    for lease in store.metadata().leases()? {
        if !store.lease_is_live(&lease, now_ms)? {
            let owner = lease.labels.get(PROCESS_LABEL);
            dead.push(match owner {
                Some(process) if !lease.is_over(now_ms) => format!("{}: process {process} is gone", lease.id),
                _ => format!("{}: expired", lease.id),
            });
        }
    }
    Ok(some(&dead, |number| format!("{} of dead processes, or expired", count(number, "lease")))
        .map(|says| Remark::note("leases", says).items(dead).mend("transload gc")))
}

/// The sentence, where there is anything to say it of.
fn some(items: &[String], says: impl FnOnce(usize) -> String) -> Option<String> {
    (!items.is_empty()).then(|| says(items.len()))
}

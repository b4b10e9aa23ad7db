//! A snapshot that somebody writes into and commits. No command does that, so the library does it here, in this process.

use std::path::{Path, PathBuf};

use transload::parallel::failpoint;
use transload::snapshot::Labels;
use transload::store::Store;

use crate::support::image::noise;

const ACTIVE: &str = "work";
const COMMITTED: &str = "mine";

/// The files in it: some of them too small for a block of their own.
fn files() -> impl Iterator<Item = (String, Vec<u8>)> {
    (0..8).map(|number| (format!("file-{number}"), noise(number, 64 << (2 * number))))
}

/// Opens the store with these faults in this process; without them again afterwards.
fn with_store<T>(
    store: &Path,
    faults: &str,
    work: impl FnOnce(&Store) -> transload::Result<T>,
) -> transload::Result<T> {
    failpoint::configure(faults)?;
    let done = Store::open(store, &Default::default()).and_then(|store| work(&store));
    failpoint::configure("")?;
    done
}

fn fs_of(store: &Store, key: &str) -> transload::Result<PathBuf> {
    let id = store.snapshotter().stat(key)?.id;
    Ok(store.path().join(format!("snapshots/{id}/fs")))
}

/// Prepares one above a layer, writes into it and commits it.
pub fn commit(store: &Path, faults: &str) {
    let commit = |store: &Store| {
        let (snapshots, none) = (store.snapshotter(), Labels::new());
        let mut layer = None;
        snapshots.walk(&Default::default(), &mut |row| {
            layer = Some(row.key.clone());
            Ok(())
        })?;
        snapshots.prepare(ACTIVE, layer.as_deref(), &none)?;
        for (name, bytes) in files() {
            std::fs::write(fs_of(store, ACTIVE)?.join(name), bytes)?;
        }
        snapshots.commit(COMMITTED, ACTIVE, &none, None)
    };
    with_store(store, faults, commit).expect("commits");
}

/// What is wrong with it after `boot`. It is removed, so that the store is again what it would be without it.
pub fn lost(store: &Path, boot: &str) -> Vec<String> {
    let look = |store: &Store| {
        let place = fs_of(store, COMMITTED)?;
        let bad = |(name, bytes): (String, Vec<u8>)| match std::fs::read(place.join(&name)) {
            Ok(found) if found == bytes => None,
            Ok(found) => {
                Some(format!("{name} of the committed snapshot has {} of {} bytes", found.len(), bytes.len()))
            }
            Err(error) => Some(format!("{name} of the committed snapshot: {error}")),
        };
        let lost = files().filter_map(bad).collect();
        store.snapshotter().remove(COMMITTED)?;
        Ok(lost)
    };
    with_store(store, boot, look).unwrap_or_else(|error| vec![error.to_string()])
}

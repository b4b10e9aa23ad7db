//! What `fsck` put away, and whether it may go: a mount that was made before goes on showing what was moved from under it.

use super::{Remark, count, size};
use crate::error::Result;
use crate::io::durable;
use crate::metadata::{SnapshotKind, SnapshotRow};
use crate::mount;
use crate::store::{SnapshotterKind, Store, mounted};
use crate::upkeep::commands::quoted_path;
use crate::upkeep::fsck::QUARANTINE;
use crate::upkeep::measure::{measure, names};
use rustix::fs::{AtFlags, statat};
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

pub(super) fn look(store: &Store) -> Result<Option<Remark>> {
    let Ok(dir) = durable::open_dir(store.root(), QUARANTINE) else { return Ok(None) };
    let kept: Vec<String> = names(&dir)?.iter().map(|name| name.to_string_lossy().into_owned()).collect();
    if kept.is_empty() {
        return Ok(None);
    }
    let says = format!(
        "{} that fsck put away, {}",
        count(kept.len(), "thing"),
        size(measure(store.root(), QUARANTINE)?.bytes)
    );
    let shown = Shown::of(store, &kept)?;
    Ok(Some(match shown.is_empty() {
        true => {
            let path = quoted_path(&store.path().join(QUARANTINE));
            Remark::note("quarantine", says).items(kept).mend(format!("rm -r {path}"))
        }
        false => {
            let says = format!("{says}; it has to stay as long as mounts or snapshots show some of it");
            Remark::note("quarantine", says).items(shown.lines()).mend(shown.mend())
        }
    }))
}

/// What still shows something that was put away.
struct Shown {
    targets: BTreeSet<PathBuf>,
    /// Of programs, which tell nobody where.
    keys: BTreeSet<String>,
}

impl Shown {
    fn of(store: &Store, kept: &[String]) -> Result<Shown> {
        let away: BTreeMap<&str, i128> =
            kept.iter().filter_map(|name| Some((place_of(name)?, moved_ms(store, name)))).collect();
        let mut shown = Shown { targets: BTreeSet::new(), keys: BTreeSet::new() };
        let rows = store.metadata().snapshots()?;
        let gone = store.abandoned_mounts(&rows)?;
        let in_use =
            rows.iter().filter(|row| row.kind != SnapshotKind::Committed && !gone.contains(&row.key));
        for row in in_use {
            let before = |place: &String| {
                away.get(place.as_str()).is_some_and(|moved_ms| i128::from(row.created_ms) <= *moved_ms)
            };
            if places(store, row)?.iter().any(before) {
                match mounted::target_of(row)? {
                    Some(target) => drop(shown.targets.insert(target)),
                    None => drop(shown.keys.insert(row.key.clone())),
                }
            }
        }
        // The kernel follows what is bound to where it was moved.
        let part = format!("/{QUARANTINE}/");
        let bound = mount::list(store.path())?.into_iter();
        let bound = bound.filter(|mount| mount.root.to_string_lossy().contains(&part));
        shown.targets.extend(bound.map(|mount| mount.target));
        Ok(shown)
    }

    fn is_empty(&self) -> bool {
        self.targets.is_empty() && self.keys.is_empty()
    }

    fn lines(&self) -> Vec<String> {
        let targets = self.targets.iter().map(|target| target.display().to_string());
        targets.chain(self.keys.iter().map(|key| format!("snapshot {key}"))).collect()
    }

    fn mend(&self) -> String {
        let targets: Vec<String> = self.targets.iter().map(|target| quoted_path(target)).collect();
        match targets.is_empty() {
            false => format!("transload umount {}", targets.join(" ")),
            true => "where the program that made them does not: transload rm --snapshot KEY".to_string(),
        }
    }
}

/// What the places were called that a snapshot's mount is made of.
fn places(store: &Store, row: &SnapshotRow) -> Result<Vec<String>> {
    let chain = store.metadata().snapshot_chain(&row.key)?;
    let snapshot = |row: &SnapshotRow| format!("snapshot-{}", row.id);
    if store.format().snapshotter == SnapshotterKind::Plain {
        return Ok(chain.iter().take(2).map(snapshot).collect());
    }
    let tree = |row: &SnapshotRow| row.tree.map(|tree| format!("tree-{}", tree.0.hex()));
    Ok(chain.iter().flat_map(|row| [Some(snapshot(row)), tree(row)]).flatten().collect())
}

/// What it was called before something unique was added.
fn place_of(name: &str) -> Option<&str> {
    let (kind, rest) = name.split_once('-')?;
    let end = kind.len() + 1 + rest.find('-').unwrap_or(rest.len());
    matches!(kind, "tree" | "snapshot").then_some(&name[..end])
}

/// When it was put away, which the kernel notes as a change of it; if it cannot be told, just now.
fn moved_ms(store: &Store, name: &str) -> i128 {
    match statat(store.root(), format!("{QUARANTINE}/{name}"), AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => i128::from(stat.st_ctime) * 1000 + i128::from(stat.st_ctime_nsec) / 1_000_000,
        Err(_) => i128::MAX,
    }
}

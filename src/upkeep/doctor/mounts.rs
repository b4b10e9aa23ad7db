//! Mounts and snapshots in use: what is recorded against what the mount table shows.

use super::{Remark, count};
use crate::error::Result;
use crate::holder::{Holder, How};
use crate::metadata::{SnapshotKind, SnapshotRow};
use crate::mount::holders::{Places, holders};
use crate::mount::{self, MountInfo};
use crate::store::{Store, mounted};
use crate::upkeep::commands::quoted_path;
use std::collections::HashSet;
use std::path::{Path, PathBuf};

pub(super) fn look(store: &Store) -> Result<Vec<Remark>> {
    let rows = store.metadata().snapshots()?;
    let gone = store.abandoned_mounts(&rows)?;
    let mut known: HashSet<PathBuf> = HashSet::new();
    let (mut live, mut stale, mut orphans) = (Vec::new(), Vec::new(), Vec::new());
    for row in rows.iter().filter(|row| row.kind != SnapshotKind::Committed) {
        match mounted::target_of(row)? {
            Some(target) if gone.contains(&row.key) => {
                stale.push(format!("{} ({})", target.display(), row.key))
            }
            Some(target) => {
                live.push(target.clone());
                known.insert(target);
            }
            None => orphans.push(line(row)),
        }
    }
    let shown = mount::list(store.path())?;
    let unknown = shown.iter().filter(|mount| !known.contains(&mount.target));
    let unknown: Vec<&Path> = unknown.map(|mount| mount.target.as_path()).collect();
    let live = live.iter().take(LOOKED_INTO).map(|target| with_holders(&shown, target)).collect();
    Ok([mounts(live), stale_mounts(stale), unknown_mounts(unknown), orphaned(orphans)]
        .into_iter()
        .flatten()
        .collect())
}

/// For each mount all processes are looked at; a page has no room for more.
const LOOKED_INTO: usize = 50;

/// A mount, and the processes that keep it from being taken down.
fn with_holders(shown: &[MountInfo], target: &Path) -> String {
    let here = shown.iter().filter(|mount| mount.target == target);
    let found = holders(&Places::of_mounts(here)).map(|holders| holders.found).unwrap_or_default();
    // That a mount namespace has the mount keeps nobody from taking it down here.
    let holds = |holder: &&Holder| holder.uses.iter().any(|one| one.how != How::Mount);
    let who: Vec<String> = found.iter().filter(holds).map(Holder::to_string).collect();
    match who.is_empty() {
        true => target.display().to_string(),
        false => format!("{}: in use by {}", target.display(), who.join("; ")),
    }
}

fn line(row: &SnapshotRow) -> String {
    format!("{} (snapshots/{})", row.key, row.id)
}

fn mounts(live: Vec<String>) -> Option<Remark> {
    Some(match live.len() {
        0 => Remark::good("mounts", "nothing is mounted"),
        number => Remark::good("mounts", count(number, "mount")).items(live),
    })
}

fn stale_mounts(stale: Vec<String>) -> Option<Remark> {
    let says = format!("{} went without umount: a reboot, or umount(8)", count(stale.len(), "mount"));
    (!stale.is_empty()).then(|| Remark::note("stale mounts", says).items(stale).mend("transload gc"))
}

fn unknown_mounts(unknown: Vec<&Path>) -> Option<Remark> {
    let words: Vec<String> = unknown.iter().map(|target| quoted_path(target)).collect();
    let mend = format!("umount {}", words.join(" "));
    let unknown: Vec<String> = unknown.iter().map(|target| target.display().to_string()).collect();
    let says = format!("{} of this store that nothing is recorded of", count(unknown.len(), "mount"));
    (!unknown.is_empty()).then(|| Remark::note("unknown mounts", says).items(unknown).mend(mend))
}

fn orphaned(orphans: Vec<String>) -> Option<Remark> {
    let says = format!("{} in use by nobody that is recorded", count(orphans.len(), "snapshot"));
    (!orphans.is_empty()).then(|| {
        Remark::note("snapshots", says)
            .items(orphans)
            .mend("where the program that made them does not: transload rm --snapshot KEY")
    })
}

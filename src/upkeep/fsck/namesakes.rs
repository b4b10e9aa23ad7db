//! Directories of snapshots that say they are the same one, and which of them it is.
//!
//! Key and name stand in `snapshot.json` before the row has them, so the file of a commit that died says what its
//! snapshot never became, and somebody may have committed that name since. A directory whose row went and which was not
//! removed any more says so as well. Only the database knew better.

use crate::error::Result;
use crate::metadata::{SnapshotKind, SnapshotRow};
use crate::snapshot::SnapshotFile;
use rustix::fd::BorrowedFd;
use rustix::fs::{AtFlags, statat};
use std::collections::BTreeMap;

/// When a `snapshot.json` was written, to the nanosecond.
pub(super) type Written = (i64, u64);

/// When the file of the snapshot with this number was written.
pub(super) fn written(root: BorrowedFd<'_>, id: u64) -> Result<Written> {
    let stat = statat(root, format!("snapshots/{id}/snapshot.json"), AtFlags::SYMLINK_NOFOLLOW)?;
    Ok((stat.st_mtime, stat.st_mtime_nsec))
}

/// Those that are what they say, and the others.
#[derive(Debug, Default)]
pub(super) struct Settled {
    pub rows: Vec<SnapshotRow>,
    /// Each under a key of its own, active, with the name that it does not have.
    pub interrupted: Vec<(SnapshotRow, String)>,
}

/// Of several the one that said so last has the name: whoever commits a name has seen that it is free. That is mostly the
/// one with the highest number, which decides between equal times; but a number is given when a snapshot is begun, not
/// when it is committed.
///
/// What somebody wrote into one of the others is kept. A layer's snapshot can be made again, and a view has nothing to keep.
pub(super) fn settle(found: Vec<(SnapshotRow, Written)>) -> Settled {
    let mut by_key: BTreeMap<String, Vec<(Written, SnapshotRow)>> = BTreeMap::new();
    for (row, written) in found {
        by_key.entry(row.key.clone()).or_default().push((written, row));
    }
    let mut settled = Settled::default();
    for (name, mut namesakes) in by_key {
        namesakes.sort_by_key(|(written, row)| (*written, row.id));
        settled.rows.extend(namesakes.pop().map(|(_, row)| row));
        let kept = namesakes.into_iter().map(|(_, row)| row).filter(was_written_to);
        settled.interrupted.extend(kept.map(|row| (interrupted(row), name.clone())));
    }
    settled
}

fn was_written_to(row: &SnapshotRow) -> bool {
    row.tree.is_none() && row.kind != SnapshotKind::View
}

fn interrupted(row: SnapshotRow) -> SnapshotRow {
    SnapshotRow { key: format!("interrupted-{}", row.id), kind: SnapshotKind::Active, ..row }
}

/// Has the files of the others say what they are now, so that nobody takes them for the namesake again. Gives what there is
/// to tell.
pub(super) fn rename(root: BorrowedFd<'_>, interrupted: &[(SnapshotRow, String)]) -> Result<Vec<String>> {
    let rename = |(row, name): &(SnapshotRow, String)| {
        SnapshotFile::of_row(row).write(root, row.id)?;
        Ok(format!(
            "the key of a snapshot whose commit as {name} was interrupted: it is kept, active, as {}",
            row.key
        ))
    };
    interrupted.iter().map(rename).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metadata::{Labels, Usage};
    use crate::oci::{DiffId, Digest};

    fn row(id: u64, key: &str, kind: SnapshotKind) -> SnapshotRow {
        SnapshotRow {
            id,
            key: key.to_string(),
            kind,
            parent: None,
            tree: None,
            heal: false,
            usage: Usage::default(),
            labels: Labels::new(),
            created_ms: 0,
            updated_ms: 0,
            remove_ms: None,
        }
    }

    type Shown = Vec<(u64, String)>;

    fn settled(found: &[(SnapshotRow, Written)]) -> (Shown, Shown) {
        let settled = settle(found.to_vec());
        let shown = |row: &SnapshotRow| (row.id, row.key.clone());
        (
            settled.rows.iter().map(shown).collect(),
            settled.interrupted.iter().map(|(row, _)| shown(row)).collect(),
        )
    }

    #[test]
    fn the_last_to_say_so_has_the_name_and_the_others_keep_what_was_written() {
        use SnapshotKind::*;
        let text = |id: u64, key: &str| (id, key.to_string());
        let twice = |first: Written, second: Written| {
            [(row(3, "n", Committed), first), (row(7, "n", Committed), second)]
        };
        assert_eq!(settled(&twice((1, 0), (1, 5))), (vec![text(7, "n")], vec![text(3, "interrupted-3")]));
        assert_eq!(
            settled(&twice((1, 5), (1, 5))),
            (vec![text(7, "n")], vec![text(3, "interrupted-3")]),
            "equal"
        );
        assert_eq!(
            settled(&twice((2, 0), (1, 5))),
            (vec![text(3, "n")], vec![text(7, "interrupted-7")]),
            "the later"
        );
        let alone = [(row(1, "a", Active), (1, 1)), (row(2, "b", View), (1, 1))];
        assert_eq!(settled(&alone), (vec![text(1, "a"), text(2, "b")], vec![]));
    }

    #[test]
    fn what_can_be_made_again_is_not_kept_twice() {
        let layer = |id| SnapshotRow {
            tree: Some(DiffId(Digest::of(b"x"))),
            ..row(id, "n", SnapshotKind::Committed)
        };
        assert_eq!(settled(&[(layer(3), (1, 1)), (layer(7), (1, 1))]), (vec![(7, "n".to_string())], vec![]));
        let view = |id| row(id, "v", SnapshotKind::View);
        assert_eq!(settled(&[(view(3), (1, 1)), (view(7), (1, 1))]), (vec![(7, "v".to_string())], vec![]));
    }
}

//! Whether a snapshot is in use, by whom, and what to do then.
//!
//! A snapshot is in use while it is mounted in any mount namespace that can be read, or a process has something of it
//! open, mapped, as its working directory, root or program, or the kernel says that its overlay lives where nobody can
//! look. How its mounts are recognised is told in `shown.rs`.
//!
//! Taking a mount down and removing its snapshot is done here, because both who unmounts and the collection do it.

use super::shown::{Sight, Snapshot};
use super::{Store, mounted};
use crate::error::{Error, ErrorKind, Result, ResultExt};
use crate::holder::{Holder, How};
use crate::metadata::SnapshotRow;
use crate::mount::holders::{self, Namespace};
use crate::mount::{self, MountInfo};
use crate::parallel::Cancel;
use crate::progress::{Event, Listener, SnapshotStep, Step};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// What to do about something in use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WhenBusy {
    /// Fail with [`ErrorKind::Busy`] and the processes that hold it, see [`Error::holders`].
    #[default]
    Refuse,
    /// Wait until it is free, at most for this long.
    Wait(Option<Duration>),
    /// Mark it; the first collection that finds it free removes it.
    Defer,
}

/// What became of something that was to be removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Removal {
    /// It is gone.
    Done,
    /// It is in use and marked, see [`WhenBusy::Defer`].
    Deferred,
}

/// What became of the removals that were deferred, by key.
#[derive(Debug, Default)]
pub(crate) struct Finished {
    /// Gone.
    pub removed: Vec<String>,
    /// Still in use: where it is mounted, or its key.
    pub busy: Vec<String>,
    /// Could not be removed for another reason than being in use.
    pub failed: Vec<(String, Error)>,
}

/// How something is removed.
#[derive(Clone, Debug, Default)]
pub struct RemovalOptions {
    /// What to do while it is in use.
    pub when_busy: WhenBusy,
    /// Ends the waiting.
    pub cancel: Cancel,
    /// Is told what is done.
    pub listener: Listener,
}

/// Where a snapshot is mounted and who holds it.
#[derive(Clone, Debug, Default)]
pub struct InUse {
    /// Where this process's namespace shows it.
    pub here: Vec<PathBuf>,
    /// Processes that have something of it open, mapped, as working directory, root or program.
    pub processes: Vec<Holder>,
    /// Other namespaces that show it and would still do so after unmounting it here, each by one of its processes.
    pub elsewhere: Vec<Holder>,
    /// How many processes could not be looked into for want of privilege.
    pub unreadable: u64,
    /// Why it may be in use although nobody is seen to use it.
    pub hidden: Option<String>,
}

impl InUse {
    /// Everyone who holds it, but for mounts of this namespace.
    pub fn holders(&self) -> Vec<Holder> {
        let mut holders = self.processes.clone();
        for other in &self.elsewhere {
            match holders.iter_mut().find(|holder| holder.pid == other.pid) {
                Some(holder) => holder.uses.extend(other.uses.iter().cloned()),
                None => holders.push(other.clone()),
            }
        }
        holders
    }

    /// Whether nobody shows or holds it, as far as can be told.
    pub fn is_free(&self) -> bool {
        self.here.is_empty()
            && self.processes.is_empty()
            && self.elsewhere.is_empty()
            && self.hidden.is_none()
    }

    /// Takes in who uses another snapshot.
    pub fn merge(&mut self, other: InUse) {
        self.here.extend(other.here);
        self.elsewhere.extend(other.elsewhere);
        for process in other.processes {
            match self.processes.iter_mut().find(|known| known.pid == process.pid) {
                Some(known) => known.uses.extend(process.uses),
                None => self.processes.push(process),
            }
        }
        self.unreadable = self.unreadable.max(other.unreadable);
        self.hidden = self.hidden.take().or(other.hidden);
    }

    /// [`ErrorKind::Busy`], with the mounts in the sentence and the processes as facts.
    pub fn busy(&self) -> Error {
        let holders = self.holders();
        let mounted = match self.here.as_slice() {
            [] => None,
            places => {
                let places: Vec<String> = places.iter().map(|place| place.display().to_string()).collect();
                Some(format!("it is mounted at {}", places.join(", ")))
            }
        };
        let used = match holders.len() {
            0 if mounted.is_some() => None,
            0 => Some(self.hidden.clone().unwrap_or_else(|| "it is in use".to_string())),
            1 => Some("a process uses it".to_string()),
            several => Some(format!("{several} processes use it")),
        };
        let mut message = [mounted, used].into_iter().flatten().collect::<Vec<_>>().join(" and ");
        if holders.is_empty() && self.hidden.is_none() && self.unreadable > 0 {
            message.push_str(&format!(" ({} processes could not be looked into)", self.unreadable));
        }
        Error::new(ErrorKind::Busy, message).with_holders(holders).with_hint(
            "end what uses it, wait for it with --wait, or leave it to a later 'transload gc' with --defer",
        )
    }
}

/// How long a copy of a mount in another namespace is given to go away: whoever makes a namespace has copies of all
/// mounts for a moment.
const MOMENT: Duration = Duration::from_secs(1);

/// Asks `look` until it has no objection any more, as `options` say. `false`: it has, and the removal is to be deferred.
pub fn until_free(options: &RemovalOptions, look: &mut dyn FnMut() -> Result<Option<Error>>) -> Result<bool> {
    let started = Instant::now();
    let mut pause = Duration::from_millis(20);
    loop {
        let Some(busy) = look()? else { return Ok(true) };
        let passing = !busy.holders().is_empty()
            && busy.holders().iter().flat_map(|holder| &holder.uses).all(|one| one.how == How::Mount);
        match options.when_busy {
            WhenBusy::Refuse if passing && started.elapsed() < MOMENT => {}
            WhenBusy::Refuse => return Err(busy),
            WhenBusy::Defer => return Ok(false),
            WhenBusy::Wait(Some(longest)) if started.elapsed() >= longest => return Err(busy),
            WhenBusy::Wait(_) => {}
        }
        options.cancel.check()?;
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(200));
    }
}

impl Store {
    /// Who uses this snapshot.
    pub fn in_use(&self, row: &SnapshotRow) -> Result<InUse> {
        self.look()?.in_use(&Snapshot::of(self, row)?).doing(|| cannot_tell(&row.key))
    }

    /// Who uses any of these snapshots.
    pub(crate) fn in_use_any<'a>(&self, rows: impl Iterator<Item = &'a SnapshotRow>) -> Result<InUse> {
        let mut users = InUse::default();
        let mut rows = rows.peekable();
        if rows.peek().is_some() {
            let sight = self.look()?;
            for row in rows {
                users.merge(sight.in_use(&Snapshot::of(self, row)?).doing(|| cannot_tell(&row.key))?);
            }
        }
        Ok(users)
    }

    /// All that is mounted now.
    pub(super) fn look(&self) -> Result<Sight> {
        Sight::look(self).doing(|| "cannot look at what is mounted")
    }

    /// Removes a snapshot that nobody uses. One that is in use is dealt with as `options` say.
    ///
    /// # Errors
    /// [`ErrorKind::Busy`] with the holders; [`ErrorKind::FailedPrecondition`] for the parent of another snapshot, which
    /// is not waited for; [`ErrorKind::NotFound`].
    pub fn remove_snapshot(&self, key: &str, options: &RemovalOptions) -> Result<Removal> {
        self.remove_snapshot_by(key, options, &|key| self.snapshots.remove(key))
    }

    fn remove_snapshot_by(
        &self,
        key: &str,
        options: &RemovalOptions,
        remove: &dyn Fn(&str) -> Result<()>,
    ) -> Result<Removal> {
        let attempt = || -> Result<Removal> {
            self.check_writable()?;
            let row = self.snapshots.stat(key)?;
            let mut look = || {
                let in_use = self.in_use(&row)?;
                Ok((!in_use.is_free()).then(|| in_use.busy()))
            };
            match until_free(options, &mut look)? {
                true => drop_snapshot(&row, options, remove),
                false => self.defer(&row),
            }
        };
        attempt().doing(|| format!("cannot remove snapshot {key}"))
    }

    /// Takes down the mount of a snapshot at `target` and removes the snapshot. One that is in use is dealt with as
    /// `options` say; with [`WhenBusy::Defer`] the mount stays as it is until then.
    pub fn take_down(&self, row: &SnapshotRow, target: &Path, options: &RemovalOptions) -> Result<Removal> {
        self.take_down_by(row, target, options, &|key| self.snapshots.remove(key))
    }

    fn take_down_by(
        &self,
        row: &SnapshotRow,
        target: &Path,
        options: &RemovalOptions,
        remove: &dyn Fn(&str) -> Result<()>,
    ) -> Result<Removal> {
        let snapshot = Snapshot::of(self, row)?;
        let mut look = || -> Result<Option<Error>> {
            let sight = self.look()?;
            let mut in_use = sight.in_use(&snapshot).doing(|| cannot_tell(&row.key))?;
            let there = in_use.here.iter().any(|place| place == target);
            in_use.here.retain(|place| place != target);
            match in_use.is_free() {
                false => Ok(Some(in_use.busy().context(cannot_unmount(target)))),
                true if there => match sight.above(&snapshot, target)? {
                    Some(what) => Ok(Some(covered(what).context(cannot_unmount(target)))),
                    None => self.try_unmount(row, target, options),
                },
                // Someone has unmounted it without us; the snapshot is still ours to remove.
                true => Ok(None),
            }
        };
        match until_free(options, &mut look)? {
            false => self.defer(row),
            // Someone may have made a namespace with a copy of it since.
            true if !self.is_free_in_a_moment(row, options)? => self.defer(row),
            true => drop_snapshot(row, options, remove),
        }
    }

    /// Whether a snapshot that was just unmounted is free, once those have gone on who only pass by. With
    /// [`WhenBusy::Defer`] nobody waits, because others wait for a collection that does this.
    fn is_free_in_a_moment(&self, row: &SnapshotRow, options: &RemovalOptions) -> Result<bool> {
        let when_busy = match options.when_busy {
            WhenBusy::Defer => WhenBusy::Defer,
            _ => WhenBusy::Wait(Some(MOMENT)),
        };
        let options = RemovalOptions { when_busy, ..options.clone() };
        let mut look = || {
            let in_use = self.in_use(row)?;
            Ok((!in_use.is_free()).then(|| in_use.busy()))
        };
        match until_free(&options, &mut look) {
            // It is unmounted by now, so what is left to do is left to the next collection.
            Err(error) if error.kind() == ErrorKind::Cancelled => Ok(false),
            Err(error) if error.kind() == ErrorKind::Busy => {
                let notice = format!("what was written to the mount is kept until a later gc: {error}");
                options.listener.event(&Event::Notice(notice));
                Ok(false)
            }
            other => other,
        }
    }

    /// Which of these snapshots is the one whose mount at `target` is seen there, because no other mount lies on top of it.
    pub(crate) fn on_top<'a>(
        &self,
        rows: &'a [SnapshotRow],
        target: &Path,
    ) -> Result<Option<&'a SnapshotRow>> {
        let Some(top) = mount::on_top(target)? else { return Ok(None) };
        let sight = self.look()?;
        for row in rows {
            if sight.shows_here(&Snapshot::of(self, row)?, &top) {
                return Ok(Some(row));
            }
        }
        Ok(None)
    }

    /// Whether a mount of this snapshot is at `target`, seen or with others on top of it.
    pub(crate) fn is_mounted_at(&self, row: &SnapshotRow, target: &Path) -> Result<bool> {
        let (sight, snapshot) = (self.look()?, Snapshot::of(self, row)?);
        Ok(sight.shown(&snapshot).iter().any(|(namespace, mount)| namespace.own && mount.target == target))
    }

    /// Whether each of these snapshots is seen in a mount table, of whatever namespace can be looked into.
    pub(crate) fn seen_mounted<'a>(&self, rows: impl Iterator<Item = &'a SnapshotRow>) -> Result<Vec<bool>> {
        let sight = self.look()?;
        rows.map(|row| Ok(!sight.shown(&Snapshot::of(self, row)?).is_empty())).collect()
    }

    /// The error if it is busy after all.
    fn try_unmount(
        &self,
        row: &SnapshotRow,
        target: &Path,
        options: &RemovalOptions,
    ) -> Result<Option<Error>> {
        let started = Instant::now();
        match mount::unmount_counting(target, &options.cancel) {
            Ok(attempts) => {
                options.listener.snapshot(step(Step::Unmount, row, started).attempts(attempts));
                Ok(None)
            }
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            // The kernel knows of someone whom we do not see.
            Err(error) if error.kind() == ErrorKind::Busy => {
                Ok(Some(InUse::default().busy().context(cannot_unmount(target))))
            }
            Err(error) => Err(error),
        }
    }

    fn defer(&self, row: &SnapshotRow) -> Result<Removal> {
        self.metadata.snapshot_defer_removal(&row.key)?;
        Ok(Removal::Deferred)
    }

    /// Forgets what was deferred and is no longer in use, taking down its mounts in this namespace first, for a collection:
    /// the directories, which no record has then, are the collection's to remove. Nobody mounts meanwhile, and nobody who
    /// wants to waits longer than it takes to look at one of them.
    pub(crate) fn finish_deferred(&self, cancel: &Cancel, listener: &Listener) -> Result<Finished> {
        let mut finished = Finished::default();
        let options =
            RemovalOptions { when_busy: WhenBusy::Defer, cancel: cancel.clone(), listener: listener.clone() };
        let forget = |key: &str| self.metadata.snapshot_remove(key).map(drop);
        for row in self.metadata.snapshots_deferred()? {
            let no_mounts = self.mount_lock_exclusive(cancel)?;
            let target = mounted::target_of(&row)?;
            let done = match &target {
                Some(target) => self.take_down_by(&row, target, &options, &forget),
                None => self.remove_snapshot_by(&row.key, &options, &forget),
            };
            drop(no_mounts);
            self.let_mounts_in();
            match done {
                Ok(Removal::Done) => finished.removed.push(row.key),
                Ok(Removal::Deferred) => {
                    finished.busy.push(target.map_or(row.key, |target| target.display().to_string()));
                }
                // It has become a parent meanwhile, or is one still; or someone else has removed it.
                Err(error) if matches!(error.kind(), ErrorKind::FailedPrecondition | ErrorKind::NotFound) => {
                }
                Err(error) if error.kind() == ErrorKind::Cancelled => return Err(error),
                Err(error) => finished.failed.push((row.key, error)),
            }
        }
        Ok(finished)
    }
}

fn drop_snapshot(
    row: &SnapshotRow,
    options: &RemovalOptions,
    remove: &dyn Fn(&str) -> Result<()>,
) -> Result<Removal> {
    let started = Instant::now();
    match remove(&row.key) {
        // A collection has seen that it is no longer mounted.
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        other => other?,
    }
    options.listener.snapshot(removed(row, started));
    Ok(Removal::Done)
}

/// What is told of a snapshot that was removed.
pub(crate) fn removed(row: &SnapshotRow, started: Instant) -> SnapshotStep {
    step(Step::Remove, row, started)
}

fn cannot_tell(key: &str) -> String {
    format!("cannot tell who uses snapshot {key}")
}

fn covered(what: String) -> Error {
    Error::new(ErrorKind::Busy, what)
        .with_hint("unmount that first, with the command that mounted it or umount(8)")
}

fn cannot_unmount(target: &Path) -> String {
    format!("cannot unmount {}", target.display())
}

fn step(step: Step, row: &SnapshotRow, started: Instant) -> SnapshotStep {
    let digest = row.labels.get(mounted::CHAIN_LABEL).or(row.parent.as_ref());
    SnapshotStep {
        step,
        key: row.key.clone(),
        digest: digest.cloned(),
        target: mounted::target_of(row).ok().flatten(),
        attempts: 1,
        duration: started.elapsed(),
    }
}

/// Whether unmounting `ours` takes `theirs` away, too: the mount below it passes on what happens to the one below theirs.
fn goes_with(ours: &MountInfo, here: &Namespace, theirs: &MountInfo, there: &Namespace) -> bool {
    let below = |mount: &MountInfo, namespace: &Namespace| {
        namespace.mounts.iter().find(|other| other.id == mount.parent).cloned()
    };
    let (Some(from), Some(to)) = (below(ours, here), below(theirs, there)) else { return false };
    from.shared.is_some() && (to.shared == from.shared || to.follows == from.shared)
}

impl Sight {
    /// Who uses a snapshot.
    pub(super) fn in_use(&self, snapshot: &Snapshot) -> Result<InUse> {
        let shown = self.shown(snapshot);
        let here = &self.namespaces[0];
        let of_here = shown.iter().filter(|(namespace, _)| namespace.own);
        let own: Vec<&MountInfo> = of_here.map(|(_, mount)| *mount).collect();
        let stays = |(namespace, mount): &&(&Namespace, &MountInfo)| {
            !namespace.own && !own.iter().any(|ours| goes_with(ours, here, mount, namespace))
        };
        let by = |(namespace, mount): &(&Namespace, &MountInfo)| holders::holder_by_mount(namespace, mount);
        let found = holders::holders(&self.places(snapshot, &shown))?;
        let hidden = match shown.is_empty() && found.found.is_empty() {
            true => self.hidden(snapshot, found.closed),
            false => None,
        };
        Ok(InUse {
            here: own.iter().map(|mount| mount.target.clone()).collect(),
            elsewhere: shown.iter().filter(stays).filter_map(by).collect(),
            processes: found.found,
            unreadable: found.unreadable,
            hidden,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn namespace(mounts: Vec<MountInfo>) -> Namespace {
        Namespace { name: "mnt:[1]".into(), pid: 1, own: true, mounts, whole: true }
    }

    #[test]
    fn a_shared_parent_takes_the_copies_of_a_mount_along() {
        let shared = |id, group| MountInfo { shared: Some(group), ..MountInfo::of_disk(id, "/", "/") };
        let child = |id, parent| MountInfo { parent, ..MountInfo::of_disk(id, "/x", "/mnt/x") };
        let (ours, theirs) = (child(20, 10), child(40, 30));
        let here = namespace(vec![shared(10, 7), ours.clone()]);
        let follows = MountInfo { follows: Some(7), ..MountInfo::of_disk(30, "/", "/") };
        for (below, goes) in [
            (shared(30, 7), true),
            (follows, true),
            (shared(30, 8), false),
            (MountInfo::of_disk(30, "/", "/"), false),
        ] {
            let there = namespace(vec![below, theirs.clone()]);
            assert_eq!(goes_with(&ours, &here, &theirs, &there), goes);
        }
        let private = namespace(vec![MountInfo::of_disk(10, "/", "/"), ours.clone()]);
        let there = namespace(vec![MountInfo::of_disk(30, "/", "/"), theirs.clone()]);
        assert!(!goes_with(&ours, &private, &theirs, &there));
    }

    #[test]
    fn a_wait_has_an_end() {
        let busy = || Ok(Some(Error::new(ErrorKind::Busy, "held")));
        let options = |when_busy| RemovalOptions { when_busy, ..RemovalOptions::default() };
        let ask = |when_busy| until_free(&options(when_busy), &mut || busy()).map_err(|error| error.kind());
        assert_eq!(ask(WhenBusy::Refuse), Err(ErrorKind::Busy));
        assert_eq!(ask(WhenBusy::Defer), Ok(false));
        assert_eq!(ask(WhenBusy::Wait(Some(Duration::ZERO))), Err(ErrorKind::Busy));
        let cancelled = options(WhenBusy::Wait(None));
        cancelled.cancel.cancel();
        assert_eq!(
            until_free(&cancelled, &mut || busy()).map_err(|error| error.kind()),
            Err(ErrorKind::Cancelled)
        );
        let mut left = 3;
        let mut soon = || {
            left -= 1;
            if left == 0 { Ok(None) } else { busy() }
        };
        assert_eq!(
            until_free(&options(WhenBusy::Wait(None)), &mut soon).map_err(|error| error.kind()),
            Ok(true)
        );
    }
}

//! Which images a collection removes before it looks for what is dead: those whose time is over, and those that a policy
//! does not keep.
//!
//! Never a pinned image, and never one that is mounted: a snapshot that is in use stands on it.

use super::plan::{Listing, Plan};
use super::{GcOptions, GcReport, now_ms, remove_dead};
use crate::error::{Error, ErrorKind, Result, ResultExt};
use crate::metadata::{Facts, ImageRow, Labels, LeaseRow, SnapshotKind, SnapshotRow, expires_ms};
use crate::store::Store;
use crate::store::chains::Chains;
use crate::store::mounted::IMAGE_LABEL;
use crate::upkeep::labels::{is_pinned, refer_to_images};
use crate::upkeep::measure::size;
use crate::upkeep::reach::{Needs, Without};
use std::collections::{BTreeMap, HashMap, HashSet};

/// [`ErrorKind::InvalidArgument`] for what can never come true, before an image goes for it.
pub(super) fn check(store: &Store, options: &GcOptions) -> Result<()> {
    let Some(goal) = options.until_free_bytes else { return Ok(()) };
    if !options.grace.is_zero() {
        let message =
            "what is removed with a grace frees nothing, so it cannot be removed until something is free";
        return Err(Error::new(ErrorKind::InvalidArgument, message));
    }
    let stat = rustix::fs::fstatvfs(store.root()).doing(|| "cannot look at the filesystem")?;
    let all = stat.f_blocks.saturating_mul(stat.f_frsize);
    if goal > all {
        let (goal, all) = (size(goal), size(all));
        let message = format!("{goal} can never be free: the store's filesystem has {all} in all");
        return Err(Error::new(ErrorKind::InvalidArgument, message));
    }
    Ok(())
}

/// The images that a dry run would remove.
#[derive(Debug, Default)]
pub(super) struct Choice {
    pub(super) ids: HashSet<u64>,
    pub(super) names: Vec<String>,
    pub(super) free_bytes: Option<u64>,
    pub(super) goal_missed: bool,
    pub(super) images_left: u64,
}

impl Choice {
    /// As if the snapshots `free`, by key, had gone before.
    pub(super) fn make(
        store: &Store,
        options: &GcOptions,
        listing: &Listing,
        free: &HashSet<String>,
    ) -> Result<Choice> {
        let mut chosen = chosen(store, options, free)?;
        let mut choice = Choice::default();
        if let Some(goal) = options.until_free_bytes {
            let free_bytes = free_bytes(store)?;
            let candidates = candidates(store, options, free)?;
            let needed = goal.saturating_sub(free_bytes);
            let (count, freed) = fewest(store, listing, &candidates, needed, free)?;
            choice.free_bytes = Some(free_bytes.saturating_add(freed));
            choice.goal_missed = freed < needed;
            choice.images_left = if choice.goal_missed { (candidates.len() - count) as u64 } else { 0 };
            chosen.extend(candidates.into_iter().take(count));
        }
        choice.ids = chosen.iter().map(|image| image.id).collect();
        choice.names = chosen.iter().map(ImageRow::label_key).collect();
        choice.names.sort();
        choice.names.dedup();
        Ok(choice)
    }
}

/// Removes the images whose time is over, and those that `keep_last` and `older_than` do not keep.
pub(super) fn remove_chosen(store: &Store, options: &GcOptions, report: &mut GcReport) -> Result<()> {
    bury(store, &chosen(store, options, &HashSet::new())?, options, report)
}

/// Removes images until enough is free, looking at the filesystem after each collection. What could not be removed does not
/// keep others from going. Ends where removing images frees nothing: what they have is held by something else, or all of it
/// could not be removed.
pub(super) fn remove_until_free(store: &Store, options: &GcOptions, report: &mut GcReport) -> Result<()> {
    let Some(goal) = options.until_free_bytes else { return Ok(()) };
    let none = HashSet::new();
    loop {
        options.cancel.check()?;
        let free = free_bytes(store)?;
        let candidates = if free < goal { candidates(store, options, &none)? } else { Vec::new() };
        report.free_bytes = Some(free);
        report.goal_missed = free < goal;
        report.images_left = candidates.len() as u64;
        if candidates.is_empty() {
            return Ok(());
        }
        let listing = Listing::read(store);
        // What is dead after a collection could not be removed, and will not be by the next one.
        let (_, stuck) = fewest(store, &listing, &[], 0, &none)?;
        let (count, freed) = fewest(store, &listing, &candidates, stuck.saturating_add(goal - free), &none)?;
        if freed <= stuck {
            return Ok(());
        }
        let before = report.bytes_freed;
        bury(store, &candidates[..count], options, report)?;
        remove_dead(store, options, report)?;
        if report.bytes_freed == before {
            let free = free_bytes(store)?;
            report.free_bytes = Some(free);
            report.goal_missed = free < goal;
            report.images_left = self::candidates(store, options, &none)?.len() as u64;
            return Ok(());
        }
    }
}

pub(super) fn bury(
    store: &Store,
    images: &[ImageRow],
    options: &GcOptions,
    report: &mut GcReport,
) -> Result<()> {
    match images.is_empty() {
        true => Ok(()),
        false => store.changing_images(|| {
            images.chunks(AT_ONCE).try_for_each(|some| {
                bury_some(store, some, options, report)?;
                store.let_mounts_in();
                Ok(())
            })
        }),
    }
}

fn bury_some(store: &Store, some: &[ImageRow], options: &GcOptions, report: &mut GcReport) -> Result<()> {
    let grace_ms = u64::try_from(options.grace.as_millis()).unwrap_or(u64::MAX);
    options.cancel.check()?;
    // Nobody mounts meanwhile, so what is not in use now is not in use when it goes.
    let _no_mounts = store.mount_lock_exclusive(&options.cancel)?;
    let in_use = InUse::read(store, &store.metadata().snapshots()?, &HashSet::new())?;
    for image in some.iter().filter(|image| !in_use.has(image)) {
        match store.metadata().image_bury(image, grace_ms) {
            Ok(_) => report.images_removed.push(image.label_key()),
            // Someone was faster: it is gone, pinned, or was imported again.
            Err(error) if FASTER.contains(&error.kind()) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// How many images are removed while nobody can mount.
const AT_ONCE: usize = 16;

const FASTER: [ErrorKind; 3] = [ErrorKind::NotFound, ErrorKind::FailedPrecondition, ErrorKind::Busy];

/// Expired ones, and without a goal those that the policies remove at once.
fn chosen(store: &Store, options: &GcOptions, free: &HashSet<String>) -> Result<Vec<ImageRow>> {
    let removable = removable(store, free)?;
    let now = now_ms();
    let (expired, others): (Vec<_>, Vec<_>) =
        removable.into_iter().partition(|(_, labels)| expires_ms(labels).is_some_and(|at| at <= now));
    let mut chosen: Vec<ImageRow> = expired.into_iter().map(|(image, _)| image).collect();
    let asked = options.keep_last.is_some() || options.older_than.is_some();
    if asked && options.until_free_bytes.is_none() {
        chosen.extend(unkept(others.into_iter().map(|(image, _)| image).collect(), store, options, now)?);
    }
    Ok(chosen)
}

/// What may go until enough is free, first what has not been imported, tagged or restored for longest.
fn candidates(store: &Store, options: &GcOptions, free: &HashSet<String>) -> Result<Vec<ImageRow>> {
    let images = removable(store, free)?.into_iter().map(|(image, _)| image).collect();
    let mut candidates = unkept(images, store, options, now_ms())?;
    candidates.sort_by_key(|image| (image.updated_ms, image.id));
    Ok(candidates)
}

/// Those that neither `keep_last` nor `older_than` keeps. Pinned ones count among the last of their repository.
fn unkept(images: Vec<ImageRow>, store: &Store, options: &GcOptions, now_ms: u64) -> Result<Vec<ImageRow>> {
    let kept = match options.keep_last {
        Some(count) => last_of_each(&store.metadata().images()?, count),
        None => HashSet::new(),
    };
    let age = options.older_than.map(|age| u64::try_from(age.as_millis()).unwrap_or(u64::MAX));
    let old = |image: &ImageRow| age.is_none_or(|age| image.updated_ms.saturating_add(age) <= now_ms);
    Ok(images.into_iter().filter(|image| !kept.contains(&image.id) && old(image)).collect())
}

/// The rows of the images of each repository that were imported, tagged or restored last. Those without a name are one repository.
fn last_of_each(images: &[ImageRow], count: usize) -> HashSet<u64> {
    let mut repositories: BTreeMap<&str, Vec<(u64, u64)>> = BTreeMap::new();
    for image in images {
        let name = image.name.as_deref().unwrap_or_default();
        repositories.entry(repository(name)).or_default().push((image.updated_ms, image.id));
    }
    let last = |mut images: Vec<(u64, u64)>| {
        images.sort_unstable_by(|a, b| b.cmp(a));
        images.into_iter().take(count).map(|(_, id)| id)
    };
    repositories.into_values().flat_map(last).collect()
}

/// A full name without its tag and digest; a colon before the last slash is a port's.
fn repository(name: &str) -> &str {
    let name = name.split('@').next().unwrap_or(name);
    match name.rsplit_once(':') {
        Some((repository, tag)) if !tag.contains('/') => repository,
        _ => name,
    }
}

/// The images that are neither pinned nor in use nor referred to, with their labels, as if the snapshots `free` had gone
/// before.
fn removable(store: &Store, free: &HashSet<String>) -> Result<Vec<(ImageRow, Labels)>> {
    let facts = store.metadata().facts()?;
    let in_use = InUse::read(store, &facts.snapshots, free)?;
    let referred_to = referred_to(store, &facts)?;
    let labels = |image: &ImageRow| facts.image_labels.get(&image.label_key()).cloned().unwrap_or_default();
    let with_labels = facts.images.iter().map(|image| (image.clone(), labels(image)));
    let may_go = |(image, labels): &(ImageRow, Labels)| {
        !is_pinned(labels) && !in_use.has(image) && !referred_to.contains(&image.label_key())
    };
    Ok(with_labels.filter(may_go).collect())
}

/// The images, by name or target, to which labels of something needed refer. An expired image is needed only so.
fn referred_to(store: &Store, facts: &Facts) -> Result<HashSet<String>> {
    let of_leases = facts.leases.iter().map(|(lease, _)| &lease.labels);
    let others = facts.image_labels.values().chain(facts.blob_labels.values());
    let others = others.chain(facts.snapshots.iter().map(|row| &row.labels));
    let others = others.chain(facts.tombstones.iter().map(|tombstone| &tombstone.labels));
    if !of_leases.chain(others).any(refer_to_images) {
        return Ok(HashSet::new());
    }
    let rows: Vec<LeaseRow> = facts.leases.iter().map(|(lease, _)| lease.clone()).collect();
    let now = now_ms();
    let is_over = |image: &ImageRow| {
        let labels = facts.image_labels.get(&image.label_key());
        labels.and_then(expires_ms).is_some_and(|at| at <= now)
    };
    let without = Without {
        image: &|_| false,
        expired: &is_over,
        tombstone: &super::is_over,
        leases: &super::gone_leases(store, &rows),
        snapshots: &HashSet::new(),
    };
    Ok(Needs::new(store, facts).of_all(&without)?.images)
}

/// What is mounted, or otherwise stands on an image's topmost layer.
#[derive(Default)]
struct InUse {
    /// The images by whose names it was mounted. Others of the same layers may go: the mount stays as it is.
    names: HashSet<String>,
    /// The layers of which nobody knows under whose name they are in use, or whose name means something else by now.
    chains: HashSet<String>,
}

impl InUse {
    fn read(store: &Store, rows: &[SnapshotRow], free: &HashSet<String>) -> Result<InUse> {
        let chains = Chains::of(rows);
        let mut in_use = InUse::default();
        let used = |row: &&SnapshotRow| row.kind != SnapshotKind::Committed && !free.contains(&row.key);
        for row in rows.iter().filter(used) {
            let Some(chain) = chains.shown_by(row) else { continue };
            let name = row.labels.get(IMAGE_LABEL);
            let image = name.map(|name| store.metadata().image_get(name)).transpose()?.flatten();
            match image.filter(|image| chains_of(image).any(|own| own == *chain)) {
                Some(image) => in_use.names.insert(image.label_key()),
                None => in_use.chains.insert(chain.to_string()),
            };
        }
        Ok(in_use)
    }

    fn has(&self, image: &ImageRow) -> bool {
        self.names.contains(&image.label_key()) || chains_of(image).any(|chain| self.chains.contains(&chain))
    }
}

fn chains_of(image: &ImageRow) -> impl Iterator<Item = String> {
    image.manifests.iter().filter_map(|manifest| manifest.chain_id).map(|chain| chain.to_string())
}

/// How many of `candidates`, from the front, have to go until `needed` bytes are dead, and how many bytes are then: fewer
/// than needed if all of them do not suffice, and then none goes that frees nothing.
fn fewest(
    store: &Store,
    listing: &Listing,
    candidates: &[ImageRow],
    needed: u64,
    free: &HashSet<String>,
) -> Result<(usize, u64)> {
    let position: HashMap<u64, usize> =
        candidates.iter().enumerate().map(|(at, image)| (image.id, at)).collect();
    let freed = |count: usize| -> Result<u64> {
        let gone = |image: &ImageRow| position.get(&image.id).is_some_and(|at| *at < count);
        Ok(Plan::make_after(store, listing, &gone, &super::is_over, free)?.bytes())
    };
    let needed = needed.min(freed(candidates.len())?);
    let (mut low, mut high) = (0, candidates.len());
    while low < high {
        let middle = low.midpoint(high);
        if freed(middle)? < needed { low = middle + 1 } else { high = middle }
    }
    Ok((low, freed(low)?))
}

/// What an unprivileged user could still write.
fn free_bytes(store: &Store) -> Result<u64> {
    // What was removed may count as taken until then.
    crate::io::durable::sync_filesystem(store.root())?;
    let stat = rustix::fs::fstatvfs(store.root()).doing(|| "cannot look at the filesystem")?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_repository_is_a_name_without_its_tag() {
        let table = [
            ("docker.io/library/alpine:3.20", "docker.io/library/alpine"),
            ("localhost:5000/app:1", "localhost:5000/app"),
            ("localhost:5000/app@sha256:00", "localhost:5000/app"),
            ("localhost:5000/app", "localhost:5000/app"),
            ("", ""),
        ];
        for (name, expected) in table {
            assert_eq!(repository(name), expected, "{name}");
        }
    }
}

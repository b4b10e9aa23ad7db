//! An image for a user namespace: whether a mapping fits it, and a remapped copy where the kernel cannot map.
//!
//! A mapping has to have a number for every owner in the tree, else files would belong to nobody. The owners of a chain
//! never change, so they are noted in a label of its snapshot. A remapped copy is a committed snapshot under a key made of
//! the chain and the mapping: made once, used by every mount that asks for the same, gone with the chain.

use crate::error::{Error, ErrorKind, Result, ResultExt};
use crate::io::durable;
use crate::metadata::Labels;
use crate::mount::{IdMaps, Mount};
use crate::oci::Digest;
use crate::parallel::Cancel;
use crate::snapshot::{CopyOptions, Stack, copy_stack};
use crate::store::{Store, mounted};
use rustix::fd::AsFd;
use rustix::fs::{self, Gid, Mode, OFlags, Uid};
use std::collections::BTreeSet;
use std::path::Path;

pub use mounted::REMAPPED_OF_LABEL;

/// The label of a chain that says who owns something in it: `users/groups`, as ranges.
const OWNERS_LABEL: &str = "transload.owners";

/// Labels are read with every row; a longer list of owners is looked up each time.
const MAX_LABEL_BYTES: usize = 2048;

/// How many ranges a sentence names.
const NAMED: usize = 8;

/// Refuses a mapping that leaves out an owner of the chain, with the numbers. [`ErrorKind::InvalidArgument`].
pub(super) fn check_fits(store: &Store, chain: &str, maps: &IdMaps, cancel: &Cancel) -> Result<()> {
    let owners = owners_of(store, chain, cancel)?;
    let left_out = |ids: &BTreeSet<u32>, shown: &dyn Fn(u32) -> Option<u32>| -> BTreeSet<u32> {
        ids.iter().copied().filter(|id| shown(*id).is_none()).collect()
    };
    let users = left_out(&owners.users, &|id| maps.user(id));
    let groups = left_out(&owners.groups, &|id| maps.group(id));
    let sides = [("users", users), ("groups", groups)];
    let clashes: Vec<String> = sides
        .iter()
        .filter(|(_, ids)| !ids.is_empty())
        .map(|(side, ids)| format!("{side} {}", named(&ranges(ids))))
        .collect();
    match clashes.is_empty() {
        true => Ok(()),
        false => {
            let message =
                format!("the mapping has no number for owners of the image's files: {}", clashes.join("; "));
            Err(Error::new(ErrorKind::InvalidArgument, message)
                .with_hint("map ranges that hold these numbers with --uidmap and --gidmap"))
        }
    }
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Owners {
    users: BTreeSet<u32>,
    groups: BTreeSet<u32>,
}

fn owners_of(store: &Store, chain: &str, cancel: &Cancel) -> Result<Owners> {
    let row = store.snapshotter().stat(chain)?;
    if let Some(owners) = row.labels.get(OWNERS_LABEL).and_then(|label| parse(label)) {
        return Ok(owners);
    }
    let owners = look(&store.snapshotter().stack(chain)?, cancel)?;
    let text = format!("{}/{}", ranges(&owners.users).join(","), ranges(&owners.groups).join(","));
    if text.len() <= MAX_LABEL_BYTES {
        let labels = Labels::from([(OWNERS_LABEL.to_string(), text)]);
        // A note that is lost is made again.
        let _ = store.snapshotter().update(chain, &labels, &[&format!("labels.{OWNERS_LABEL}")]);
    }
    Ok(owners)
}

fn look(stack: &Stack, cancel: &Cancel) -> Result<Owners> {
    let mut owners = Owners::default();
    stack.walk(&mut |node| {
        cancel.check()?;
        owners.users.insert(node.stat().st_uid);
        owners.groups.insert(node.stat().st_gid);
        Ok(())
    })?;
    Ok(owners)
}

/// `0-2`, `33`: numbers that follow each other as one range.
fn ranges(ids: &BTreeSet<u32>) -> Vec<String> {
    let mut ranges: Vec<(u32, u32)> = Vec::new();
    for &id in ids {
        match ranges.last_mut() {
            Some((_, last)) if last.checked_add(1) == Some(id) => *last = id,
            _ => ranges.push((id, id)),
        }
    }
    let text = |(first, last): &(u32, u32)| match first == last {
        true => first.to_string(),
        false => format!("{first}-{last}"),
    };
    ranges.iter().map(text).collect()
}

fn named(ranges: &[String]) -> String {
    match ranges.len() > NAMED {
        true => format!("{} and {} more ranges", ranges[..NAMED].join(", "), ranges.len() - NAMED),
        false => ranges.join(", "),
    }
}

/// `None` for what this release did not write.
fn parse(label: &str) -> Option<Owners> {
    let (users, groups) = label.split_once('/')?;
    Some(Owners { users: parse_ranges(users)?, groups: parse_ranges(groups)? })
}

fn parse_ranges(text: &str) -> Option<BTreeSet<u32>> {
    let mut ids = BTreeSet::new();
    for range in text.split(',').filter(|range| !range.is_empty()) {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        ids.extend(first.parse::<u32>().ok()?..=last.parse().ok()?);
    }
    Some(ids)
}

/// The committed snapshot that is the chain with its owners changed; made where it is not there yet.
pub(super) fn remapped(
    store: &Store,
    chain: &str,
    maps: &IdMaps,
    target: &Path,
    cancel: &Cancel,
) -> Result<String> {
    let key = format!("remapped-{}", Digest::of(format!("{chain} {maps}").as_bytes()).hex());
    let snapshots = store.snapshotter();
    match snapshots.stat(&key) {
        Ok(_) => return Ok(key),
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let making = format!("{key}-{}", durable::unique_name());
    // Like a mount of which nothing is mounted: should this process die, a collection takes it away.
    let mounts = snapshots.prepare(&making, None, &mounted::labels_of_mount(target))?;
    let labels = Labels::from([(REMAPPED_OF_LABEL.to_string(), chain.to_string())]);
    let made = copy(&snapshots.stack(chain)?, &mounts, maps, cancel)
        .and_then(|()| snapshots.commit(&key, &making, &labels, None));
    match made {
        Ok(()) => Ok(key),
        Err(error) => {
            let _ = snapshots.remove(&making);
            // Someone else has been faster.
            if error.kind() == ErrorKind::AlreadyExists { Ok(key) } else { Err(error) }
        }
    }
    .doing(|| format!("cannot make a copy of {chain} with other owners"))
}

fn copy(from: &Stack, mounts: &[Mount], maps: &IdMaps, cancel: &Cancel) -> Result<()> {
    let [place] = mounts else {
        return Err(Error::new(ErrorKind::Internal, "a snapshot above nothing is not one directory"));
    };
    let to = fs::open(&place.source, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let options = CopyOptions { threads, owners: Some(maps.clone()), ..CopyOptions::default() };
    copy_stack(from, to.as_fd(), &[], &options, cancel).map(drop)
}

/// Gives the upper directory of an idmapped overlay, which is not mapped itself, to whom its root is shown to belong to.
pub(super) fn own_upper(mount: &Mount, maps: &IdMaps) -> Result<()> {
    let Some(upper) = &mount.upper else { return Ok(()) };
    let own = || -> Result<()> {
        let dir = fs::open(upper, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        let stat = fs::fstat(&dir)?;
        let (user, group) = (maps.user(stat.st_uid), maps.group(stat.st_gid));
        Ok(fs::fchown(&dir, user.map(Uid::from_raw), group.map(Gid::from_raw))?)
    };
    own().doing(|| format!("cannot give {} to its mapped owner", upper.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn owners_are_noted_as_ranges_and_read_back() {
        let ids: BTreeSet<u32> = [0, 1, 2, 33, 1000, 1001, u32::MAX].into();
        let text = ranges(&ids);
        assert_eq!(text, ["0-2", "33", "1000-1001", "4294967295"]);
        assert_eq!(parse_ranges(&text.join(",")), Some(ids));
        assert_eq!(parse("0/"), Some(Owners { users: [0].into(), groups: BTreeSet::new() }));
        assert_eq!((parse("0"), parse("x/0"), parse("5-/0")), (None, None, None));
        let many: Vec<String> = (0..10).map(|n| n.to_string()).collect();
        assert_eq!(named(&many), "0, 1, 2, 3, 4, 5, 6, 7 and 2 more ranges");
    }
}

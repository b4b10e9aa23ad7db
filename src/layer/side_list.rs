//! What is remembered of a layer while it is extracted: the lists of its record, and what directories are to look like
//! in the end. All of it is keyed by the real path inside the tree, symlinks followed, and bounded in memory.

use super::attributes::Attributes;
use super::list_memory::{Held, ListMemory};
use crate::error::Result;
use crate::tree::{PathBytes, PendingLink, TreeRecord, WhiteoutForm};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

/// What a path costs in a list beside its bytes, in bytes: its place in a tree that is two thirds full, and what the allocator
/// adds; then the same path in the record and in the text of `tree.json`.
const PATH_COST: usize = 128;
/// What the looks of a directory cost, in such a tree.
const DIRECTORY_COST: usize = 128;
/// What a link costs beyond its two paths: where it leads is looked up for all links of a layer at once.
const LINK_COST: usize = 512;
/// What an extended attribute costs beside its bytes.
const XATTR_COST: usize = 96;

type Path = Vec<u8>;

/// What a directory is to look like.
pub(super) struct Directory {
    /// In the end.
    pub attributes: Attributes,
    /// The mode that it has for the time being, where that is known.
    pub mode_now: Option<u32>,
}

impl Directory {
    /// A directory that has a mode already and gets the attributes later.
    pub fn new(attributes: Attributes, mode_now: Option<u32>) -> Self {
        Directory { attributes, mode_now }
    }
}

/// See the module.
pub(super) struct SideList {
    /// Names that are deleted; in overlayfs forms there is a device 0:0 for each.
    pub whiteouts: BTreeSet<Path>,
    /// Names that were deleted and that something of this layer has now: a directory that comes to have one hides what
    /// is below, whatever had it in between.
    pub deleted: BTreeSet<Path>,
    /// Directories that hide what is below.
    pub opaque: BTreeSet<Path>,
    /// Directories that no entry has mentioned so far.
    pub implicit: BTreeSet<Path>,
    /// Hard links whose target has not been seen, with that target.
    pub pending: BTreeMap<Path, Path>,
    /// What directories get once everything is in them.
    pub directories: BTreeMap<Path, Directory>,
    /// Devices that were left out, and what was to be linked to them.
    pub left_out: BTreeSet<Path>,
    held: Held,
}

impl SideList {
    /// Empty; with all that share `memory` it may hold `most_bytes`.
    pub fn new(memory: &ListMemory, most_bytes: usize) -> Self {
        SideList {
            whiteouts: BTreeSet::new(),
            deleted: BTreeSet::new(),
            opaque: BTreeSet::new(),
            implicit: BTreeSet::new(),
            pending: BTreeMap::new(),
            directories: BTreeMap::new(),
            left_out: BTreeSet::new(),
            held: Held::nothing(memory, most_bytes),
        }
    }

    /// Accounts for a path of this many bytes in one of the lists. Nothing is given back before the end: the cap is against floods.
    pub fn charge(&mut self, path_bytes: usize) -> Result<()> {
        // In the list, in the record, and as text.
        self.held.take(3 * path_bytes + PATH_COST)
    }

    /// Remembers what a directory is to look like in the end.
    pub fn describe(&mut self, path: Path, directory: Directory) -> Result<()> {
        let xattr = |(name, value): &(Vec<u8>, Vec<u8>)| name.len() + value.len() + XATTR_COST;
        let xattrs: usize = directory.attributes.xattrs.iter().map(xattr).sum();
        self.charge(path.len())?;
        self.held.take(DIRECTORY_COST + xattrs)?;
        self.directories.insert(path, directory);
        Ok(())
    }

    /// Remembers a hard link whose target is not there.
    pub fn link_later(&mut self, path: Path, target: Path) -> Result<()> {
        self.charge(path.len())?;
        self.charge(target.len())?;
        self.held.take(LINK_COST)?;
        self.pending.insert(path, target);
        Ok(())
    }

    /// Notes that something was left out, and that no link to it can be made.
    pub fn leave_out(&mut self, path: Path) -> Result<()> {
        self.charge(path.len())?;
        self.left_out.insert(path);
        Ok(())
    }

    /// Tells that an entry now has this name. True if the name had been deleted before in this layer.
    pub fn claim(&mut self, path: &[u8]) -> bool {
        if !self.pending.is_empty() {
            self.pending.remove(path);
        }
        if !self.left_out.is_empty() {
            self.left_out.remove(path);
        }
        if !self.whiteouts.is_empty()
            && let Some(path) = self.whiteouts.take(path)
        {
            self.deleted.insert(path);
            return true;
        }
        !self.deleted.is_empty() && self.deleted.contains(path)
    }

    /// Notes that a name was deleted which something of this layer has.
    pub fn note_deleted(&mut self, path: Path) -> Result<()> {
        self.charge(path.len())?;
        self.deleted.insert(path);
        Ok(())
    }

    /// Whether [`SideList::claim`] could matter to anyone.
    pub fn has_claims(&self) -> bool {
        !self.pending.is_empty() || !self.whiteouts.is_empty() || !self.left_out.is_empty()
    }

    /// Forgets a directory and everything below it.
    pub fn forget_subtree(&mut self, path: &[u8]) {
        for set in [&mut self.whiteouts, &mut self.opaque, &mut self.implicit] {
            set.remove(path);
            for below in set.range::<[u8], _>(below(path).as_range()).cloned().collect::<Vec<_>>() {
                set.remove(&below);
            }
        }
        forget_keys(&mut self.pending, path);
        forget_keys(&mut self.directories, path);
    }

    /// The lists as a record, and what it holds of the memory.
    pub fn into_record(self, form: WhiteoutForm) -> (TreeRecord, Held) {
        let paths = |set: BTreeSet<Path>| set.into_iter().map(PathBytes::new).collect();
        let links = self.pending.into_iter();
        let link =
            |(path, target)| PendingLink { path: PathBytes::new(path), target: PathBytes::new(target) };
        let record = TreeRecord {
            whiteouts: paths(self.whiteouts),
            opaque: paths(self.opaque),
            implicit: paths(self.implicit),
            pending_links: links.map(link).collect(),
            ..TreeRecord::new(form)
        };
        (record, self.held)
    }
}

fn forget_keys<V>(map: &mut BTreeMap<Path, V>, path: &[u8]) {
    map.remove(path);
    for below in map.range::<[u8], _>(below(path).as_range()).map(|(key, _)| key.clone()).collect::<Vec<_>>()
    {
        map.remove(&below);
    }
}

/// Everything below a directory: from `path/` to before `path0`, the byte after the slash.
struct Below(Path, Path);

impl Below {
    fn as_range(&self) -> (Bound<&[u8]>, Bound<&[u8]>) {
        (Bound::Included(&self.0), Bound::Excluded(&self.1))
    }
}

fn below(path: &[u8]) -> Below {
    Below([path, b"/"].concat(), [path, b"0"].concat())
}

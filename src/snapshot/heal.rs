//! What a layer cannot know without its parents, mended for one chain.
//!
//! A tree is extracted once and shared by all chains, so things in it may be wrong for a chain: *implicit
//! directories*, which stand there as root:root 0755 and would hide the attributes of the same directory below, and
//! *hard links to a lower layer's file*, or to what came after them, which are missing. Both go into a heal directory that
//! the mount lays over the tree: the directories with the attributes they should show, the files as one copy under both
//! names. A third thing is overlayfs's own: a whiteout that has nothing to delete is seen unless its directory is merged
//! with another.

use super::Bounds;
use super::beneath;
use super::copy::{Attributes, CopyOptions, CopyReport, copy_node};
use super::merge::{Node, Stack, join};
use crate::error::{Error, Result, ResultExt};
use crate::io::headroom::INODE_BYTES;
use crate::parallel::Cancel;
use crate::tree::{PathBytes, PendingLink, TreeRecord, WhiteoutForm, split_path};
use rustix::fd::{AsFd, BorrowedFd};
use rustix::fs::{self, AtFlags, Mode};
use rustix::io::Errno;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

/// A pending hard link, resolved in its chain.
#[derive(Clone, Debug)]
pub struct LinkSource {
    /// The name that the link gets.
    pub path: PathBytes,
    /// The name, in the merged tree or among the links before this one, of the same file.
    pub shared: Option<Vec<u8>>,
    /// Where the file itself is read.
    pub stack: Arc<Stack>,
    /// The file itself.
    pub node: Node,
    /// What tells it from other files.
    file: File,
}

/// A file's layer in the merged tree, and its inode there.
type File = (usize, u64);

/// The names, in the merged tree, of files that may have several.
type Namesakes = HashMap<File, Vec<Vec<u8>>>;

/// The pending links of a tree, resolved in its chain.
pub struct Links {
    /// In the order of their names.
    pub sources: Vec<LinkSource>,
    namesakes: Namesakes,
}

/// Finds what the pending links of a tree link to. `merged` is the tree over `parent`.
///
/// The file is looked for in the chain below first, where it was when the layer was made, then in the layer itself. A
/// target that is nowhere is [`crate::ErrorKind::Malformed`].
pub fn resolve_links(record: &TreeRecord, merged: &Stack, parent: &Stack, cancel: &Cancel) -> Result<Links> {
    let mut sources = find_sources(&record.pending_links, merged, parent, cancel)?;
    let namesakes = namesakes(&sources, merged, cancel)?;
    share(&mut sources, merged, &namesakes)?;
    Ok(Links { sources, namesakes })
}

fn find_sources(
    links: &[PendingLink],
    merged: &Stack,
    parent: &Stack,
    cancel: &Cancel,
) -> Result<Vec<LinkSource>> {
    if links.is_empty() {
        return Ok(Vec::new());
    }
    let (merged, parent) = (Arc::new(merged.clone()), Arc::new(parent.clone()));
    let mut ends = Ends::of(links);
    let source = |link| {
        cancel.check()?;
        find_source(link, &mut ends, &merged, &parent)
    };
    links.iter().map(source).collect()
}

fn find_source<'a>(
    link: &'a PendingLink,
    ends: &mut Ends<'a>,
    merged: &Arc<Stack>,
    parent: &Arc<Stack>,
) -> Result<LinkSource> {
    let broken =
        |why: &str| Error::malformed(format!("{} is a hard link to {}, which {why}", link.path, link.target));
    let end = ends.end_of(link, parent)?.ok_or_else(|| broken("links back to it"))?;
    let (node, stack) = match parent.lookup(end.as_bytes())? {
        Some(node) => (node, parent),
        None => {
            let own = merged.lookup(end.as_bytes())?;
            (own.ok_or_else(|| broken("is neither in the layer nor below it"))?, merged)
        }
    };
    if node.is_dir() {
        return Err(broken("is a directory"));
    }
    // One layer more is on top of the merged tree.
    let layer = node.layer() + usize::from(Arc::ptr_eq(stack, parent));
    let file = (layer, node.stat().st_ino);
    Ok(LinkSource { path: link.path.clone(), shared: None, stack: Arc::clone(stack), node, file })
}

/// Where the pending links of a layer, which may link to each other, lead to.
struct Ends<'a>(HashMap<&'a PathBytes, &'a PathBytes>);

impl<'a> Ends<'a> {
    fn of(links: &'a [PendingLink]) -> Self {
        Ends(links.iter().map(|link| (&link.path, &link.target)).collect())
    }

    /// What is in the chain below, or no link of these; `None` where they go in a circle. What was passed on the way leads to
    /// the end at once from then on, so that a chain is walked once, and not from each of its links.
    fn end_of(&mut self, link: &'a PendingLink, parent: &Stack) -> Result<Option<&'a PathBytes>> {
        let (mut at, mut passed) = (&link.target, Vec::new());
        while let Some(next) = self.0.get(at).copied() {
            if passed.len() == self.0.len() {
                return Ok(None);
            }
            if parent.lookup(at.as_bytes())?.is_some() {
                break;
            }
            passed.push(at);
            at = next;
        }
        self.0.extend(passed.into_iter().map(|path| (path, at)));
        Ok(Some(at))
    }
}

/// Looks for the names of linked files that have several.
fn namesakes(links: &[LinkSource], merged: &Stack, cancel: &Cancel) -> Result<Namesakes> {
    let several = links.iter().filter(|link| link.node.stat().st_nlink > 1);
    let mut namesakes: Namesakes = several.map(|link| (link.file, Vec::new())).collect();
    if !namesakes.is_empty() {
        merged.walk(&mut |node| {
            cancel.check()?;
            if !node.is_dir()
                && let Some(names) = namesakes.get_mut(&(node.layer(), node.stat().st_ino))
            {
                names.push(node.path().to_vec());
            }
            Ok(())
        })?;
    }
    Ok(namesakes)
}

/// Links to a file that is visible share it, under whatever name; those to one that no name shows any more share the first
/// copy.
fn share(links: &mut [LinkSource], merged: &Stack, namesakes: &Namesakes) -> Result<()> {
    let mut first: HashMap<File, Vec<u8>> = HashMap::new();
    for link in links {
        let visible = match namesakes.get(&link.file) {
            Some(names) => names.first().cloned(),
            None => own_name(link, merged)?,
        };
        link.shared = visible.or_else(|| first.get(&link.file).cloned());
        if link.shared.is_none() {
            first.insert(link.file, link.path.as_bytes().to_vec());
        }
    }
    Ok(())
}

/// The name of a linked file, if the merged tree shows the file by it.
fn own_name(link: &LinkSource, merged: &Stack) -> Result<Option<Vec<u8>>> {
    let path = link.node.path();
    let is_it = |seen: &Node| (seen.layer(), seen.stat().st_ino) == link.file;
    Ok(merged.exact(path)?.filter(is_it).map(|_| path.to_vec()))
}

/// Fills the empty directory `to` with what a tree needs healed above `parent`; `merged` is the tree over `parent`, as
/// [`Layer::recorded`](super::merge::Layer::recorded) reads it. `Ok(None)` if that is nothing; then `to` is still empty.
pub fn heal(
    record: &TreeRecord,
    merged: &Stack,
    parent: &Stack,
    to: BorrowedFd<'_>,
    bounds: &Bounds,
) -> Result<Option<CopyReport>> {
    let cancel = &bounds.cancel;
    let Links { sources: links, namesakes } = resolve_links(record, merged, parent, cancel)?;
    let copying = CopyOptions { headroom: Arc::clone(&bounds.headroom), ..CopyOptions::default() };
    let (directories, report) = (BTreeMap::new(), CopyReport::default());
    let mut healer = Healer { merged, to, namesakes, directories, copying, cancel, report };
    for path in &record.implicit {
        cancel.check()?;
        healer.implicit(path).doing(|| format!("cannot heal {path}"))?;
    }
    for link in &links {
        cancel.check()?;
        healer.link(link).doing(|| format!("cannot heal the hard link {}", link.path))?;
    }
    if record.form != WhiteoutForm::List {
        healer.marks(record)?;
    }
    match healer.directories.is_empty() {
        true => Ok(None),
        false => healer.finish(),
    }
}

struct Healer<'a> {
    merged: &'a Stack,
    to: BorrowedFd<'a>,
    /// Names that are still to be linked.
    namesakes: Namesakes,
    copying: CopyOptions,
    cancel: &'a Cancel,
    /// What was made in the heal directory, and what it has to look like; `None` for what no layer mentions.
    directories: BTreeMap<Vec<u8>, Option<Attributes>>,
    report: CopyReport,
}

impl Healer<'_> {
    fn implicit(&mut self, path: &PathBytes) -> Result<()> {
        let Some(node) = self.merged.lookup(path.as_bytes())? else { return Ok(()) };
        let from_below = node.layer() > 0 && node.is_dir() && node.path() == path.as_bytes();
        if !from_below {
            return Ok(());
        }
        let wanted = Attributes::read(self.merged.open(&node)?)?;
        let own = self.merged.layers()[0].open_dir(path.as_bytes())?.ok_or(Errno::NOENT)?;
        match Attributes::read(own)?.looks_like(&wanted) {
            true => Ok(()),
            false => self.directory(path.as_bytes()),
        }
    }

    /// overlayfs filters its marks only in directories that it merges: elsewhere a deleted name is still listed. So a
    /// directory with a whiteout that deletes nothing here gets a second layer, and so does a lone tree with any mark.
    fn marks(&mut self, record: &TreeRecord) -> Result<()> {
        if self.merged.layers().len() == 1 && !(record.whiteouts.is_empty() && record.opaque.is_empty()) {
            self.note(b"")?;
        }
        let parents: BTreeSet<&[u8]> =
            record.whiteouts.iter().filter_map(|path| path.split().map(|(parent, _)| parent)).collect();
        for parent in parents {
            self.cancel.check()?;
            let node = self.merged.lookup(parent)?;
            if node.is_some_and(|node| node.is_dir() && node.layers().len() == 1 && node.path() == parent) {
                self.directory(parent).doing(|| format!("cannot heal {}", PathBytes::new(parent)))?;
            }
        }
        Ok(())
    }

    /// Makes a directory and those above it.
    fn directory(&mut self, path: &[u8]) -> Result<()> {
        let mut at = Vec::new();
        self.note(&at)?;
        for name in PathBytes::new(path).components() {
            at = join(&at, name);
            if !self.directories.contains_key(&at) {
                let (dir, name) = beneath::open_parent(self.to, &at)?;
                fs::mkdirat(dir, name, Mode::RWXU)?;
                self.note(&at)?;
            }
        }
        Ok(())
    }

    fn note(&mut self, path: &[u8]) -> Result<()> {
        if self.directories.contains_key(path) {
            return Ok(());
        }
        let node = self.merged.lookup(path)?.filter(|node| node.is_dir() && node.path() == path);
        let attributes = node.map(|node| Attributes::read(self.merged.open(&node)?)).transpose()?;
        self.directories.insert(path.to_vec(), attributes);
        self.report.inodes += 1;
        self.copying.headroom.spend(INODE_BYTES)
    }

    fn link(&mut self, link: &LinkSource) -> Result<()> {
        let path = link.path.as_bytes();
        let parent = |path| split_path(path).map_or(&[][..], |(parent, _)| parent);
        let Some(target) = &link.shared else {
            self.directory(parent(path))?;
            return self.copy(link, path);
        };
        self.directory(parent(target))?;
        if beneath::stat(self.to, target)?.is_none() {
            self.copy(link, target)?;
        }
        // The first link to a file finds its other names; for all further ones they are there.
        let others = self.namesakes.remove(&link.file).unwrap_or_default();
        for name in others.iter().map(Vec::as_slice).chain([path]) {
            self.cancel.check()?;
            self.directory(parent(name))?;
            if beneath::stat(self.to, name)?.is_none() {
                let (target_dir, target_name) = beneath::open_parent(self.to, target)?;
                let (dir, name) = beneath::open_parent(self.to, name)?;
                fs::linkat(target_dir, target_name, dir, name, AtFlags::empty())?;
            }
        }
        Ok(())
    }

    fn copy(&mut self, link: &LinkSource, path: &[u8]) -> Result<()> {
        let (dir, name) = beneath::open_parent(self.to, path)?;
        let copied = copy_node(&link.stack, &link.node, dir.as_fd(), name, &self.copying, self.cancel)?;
        self.report.inodes += copied.inodes;
        self.report.bytes += copied.bytes;
        Ok(())
    }

    fn finish(mut self) -> Result<Option<CopyReport>> {
        // Deeper paths sort behind their parents.
        for (path, attributes) in self.directories.iter().rev() {
            self.cancel.check()?;
            let dir = beneath::open_dir(self.to, path)?.ok_or(Errno::NOENT)?;
            match attributes {
                Some(attributes) => attributes.apply(dir.as_fd(), false, &mut self.report)?,
                None => fs::fchmod(&dir, Mode::from_raw_mode(0o755))?,
            }
        }
        Ok(Some(self.report))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn links(targets: impl IntoIterator<Item = (usize, usize)>) -> Vec<PendingLink> {
        let name = |number: usize| PathBytes::new(number.to_string());
        targets
            .into_iter()
            .map(|(path, target)| PendingLink { path: name(path), target: name(target) })
            .collect()
    }

    /// As many steps; from each link to the end there would be twenty thousand million.
    #[test]
    fn a_long_chain_of_links_is_walked_once() {
        let links = links((0..200_000).map(|number| (number, number + 1)));
        let mut ends = Ends::of(&links);
        let (end, nothing) = (&links[199_999].target, Stack::default());
        assert!(links.iter().all(|link| ends.end_of(link, &nothing).expect("looks") == Some(end)));
    }

    #[test]
    fn links_in_a_circle_have_no_end_and_those_beside_it_do() {
        let links = links([(0, 1), (1, 2), (2, 1), (3, 3), (4, 5), (5, 6)]);
        let mut ends = Ends::of(&links);
        let has_end = |link| ends.end_of(link, &Stack::default()).expect("looks").is_some();
        let found: Vec<bool> = links.iter().map(has_end).collect();
        assert_eq!(found, [false, false, false, false, true, true]);
    }
}

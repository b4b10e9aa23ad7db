//! What a layer cannot know without its parents, mended for one chain.
//!
//! A tree is extracted once and shared by all chains, so things in it may be wrong for a chain: *implicit
//! directories*, which stand there as root:root 0755 and would hide the attributes of the same directory below, and
//! *hard links to a lower layer's file*, which are missing. Both go into a heal directory that the mount lays over the
//! tree: the directories with the attributes they should show, the files as one copy under both names. A third thing is
//! overlayfs's own: a whiteout that has nothing to delete is seen unless its directory is merged with another.

use super::beneath;
use super::copy::{Attributes, CopyOptions, CopyReport, copy_node};
use super::merge::{Node, Stack, join};
use crate::error::{Error, Result, ResultExt};
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
}

/// Finds what the pending links of a tree link to. `merged` is the tree over `parent`.
///
/// The file is looked for in the chain below first, where it was when the layer was made, then in the layer itself. A
/// target that is nowhere is [`crate::ErrorKind::Malformed`].
pub fn resolve_links(record: &TreeRecord, merged: &Stack, parent: &Stack) -> Result<Vec<LinkSource>> {
    if record.pending_links.is_empty() {
        return Ok(Vec::new());
    }
    let (merged, parent) = (Arc::new(merged.clone()), Arc::new(parent.clone()));
    let targets: HashMap<&PathBytes, &PathBytes> =
        record.pending_links.iter().map(|link| (&link.path, &link.target)).collect();
    let mut groups: HashMap<(bool, usize, Vec<u8>), Vec<u8>> = HashMap::new();
    let mut sources = Vec::new();
    for link in &record.pending_links {
        let mut source = resolve_link(link, &targets, &merged, &parent)?;
        if source.shared.is_none() {
            // Not visible under its own name any more, but links to it are still one file.
            let below = Arc::ptr_eq(&source.stack, &parent);
            let key = (below, source.node.layer(), source.node.path().to_vec());
            match groups.get(&key) {
                Some(first) => source.shared = Some(first.clone()),
                None => drop(groups.insert(key, link.path.as_bytes().to_vec())),
            }
        }
        sources.push(source);
    }
    Ok(sources)
}

fn resolve_link(
    link: &PendingLink,
    targets: &HashMap<&PathBytes, &PathBytes>,
    merged: &Arc<Stack>,
    parent: &Arc<Stack>,
) -> Result<LinkSource> {
    let broken =
        |why: &str| Error::malformed(format!("{} is a hard link to {}, which {why}", link.path, link.target));
    let mut target = &link.target;
    for _ in 0..=targets.len() {
        match targets.get(target) {
            Some(next) => target = next,
            None => break,
        }
    }
    if targets.contains_key(target) {
        return Err(broken("links back to it"));
    }
    let found = |stack: &Arc<Stack>, node: Node, shared| LinkSource {
        path: link.path.clone(),
        shared,
        stack: Arc::clone(stack),
        node,
    };
    let source = match parent.lookup(target.as_bytes())? {
        Some(node) => {
            let seen = merged.lookup(node.path())?;
            // One layer more on top, hence the + 1.
            let visible =
                seen.is_some_and(|seen| seen.layer() == node.layer() + 1 && seen.path() == node.path());
            let shared = visible.then(|| node.path().to_vec());
            found(parent, node, shared)
        }
        None => match merged.lookup(target.as_bytes())? {
            Some(node) => {
                let shared = Some(node.path().to_vec());
                found(merged, node, shared)
            }
            None => return Err(broken("is neither in the layer nor below it")),
        },
    };
    match source.node.is_dir() {
        true => Err(broken("is a directory")),
        false => Ok(source),
    }
}

/// Fills the empty directory `to` with what a tree needs healed above `parent`; `merged` is the tree over `parent`, as
/// [`Layer::recorded`](super::merge::Layer::recorded) reads it. `Ok(None)` if that is nothing; then `to` is still empty.
pub fn heal(
    record: &TreeRecord,
    merged: &Stack,
    parent: &Stack,
    to: BorrowedFd<'_>,
    cancel: &Cancel,
) -> Result<Option<CopyReport>> {
    let links = resolve_links(record, merged, parent)?;
    let mut healer = Healer { merged, to, directories: BTreeMap::new(), report: CopyReport::default() };
    for path in &record.implicit {
        cancel.check()?;
        healer.implicit(path).doing(|| format!("cannot heal {path}"))?;
    }
    let groups = groups(&links, merged)?;
    for link in &links {
        cancel.check()?;
        let others = groups.get(&file_of(link)).map_or(&[][..], Vec::as_slice);
        healer.link(link, others, cancel).doing(|| format!("cannot heal the hard link {}", link.path))?;
    }
    if record.form != WhiteoutForm::List {
        healer.marks(record)?;
    }
    match healer.directories.is_empty() {
        true => Ok(None),
        false => healer.finish(),
    }
}

/// What tells a linked file from others: its layer in the merged tree, and its inode there.
fn file_of(link: &LinkSource) -> (usize, u64) {
    (link.node.layer() + 1, link.node.stat().st_ino)
}

/// Names by file, see [`file_of`].
type LinkGroups = HashMap<(usize, u64), Vec<Vec<u8>>>;

/// The other names, in the merged tree, of linked files that have several: they stay one file with the link.
fn groups(links: &[LinkSource], merged: &Stack) -> Result<LinkGroups> {
    let several = links.iter().filter(|link| link.shared.is_some() && link.node.stat().st_nlink > 1);
    let mut groups: LinkGroups = several.map(|link| (file_of(link), Vec::new())).collect();
    if !groups.is_empty() {
        merged.walk(&mut |node| {
            if !node.is_dir()
                && let Some(names) = groups.get_mut(&(node.layer(), node.stat().st_ino))
            {
                names.push(node.path().to_vec());
            }
            Ok(())
        })?;
    }
    Ok(groups)
}

struct Healer<'a> {
    merged: &'a Stack,
    to: BorrowedFd<'a>,
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
        Ok(())
    }

    fn link(&mut self, link: &LinkSource, others: &[Vec<u8>], cancel: &Cancel) -> Result<()> {
        let path = link.path.as_bytes();
        let parent = |path| split_path(path).map_or(&[][..], |(parent, _)| parent);
        let Some(target) = &link.shared else {
            self.directory(parent(path))?;
            return self.copy(link, path, cancel);
        };
        self.directory(parent(target))?;
        if beneath::stat(self.to, target)?.is_none() {
            self.copy(link, target, cancel)?;
        }
        for name in others.iter().map(Vec::as_slice).chain([path]) {
            self.directory(parent(name))?;
            if beneath::stat(self.to, name)?.is_none() {
                let (target_dir, target_name) = beneath::open_parent(self.to, target)?;
                let (dir, name) = beneath::open_parent(self.to, name)?;
                fs::linkat(target_dir, target_name, dir, name, AtFlags::empty())?;
            }
        }
        Ok(())
    }

    fn copy(&mut self, link: &LinkSource, path: &[u8], cancel: &Cancel) -> Result<()> {
        let (dir, name) = beneath::open_parent(self.to, path)?;
        let copied = copy_node(&link.stack, &link.node, dir.as_fd(), name, &CopyOptions::default(), cancel)?;
        self.report.inodes += copied.inodes;
        self.report.bytes += copied.bytes;
        Ok(())
    }

    fn finish(mut self) -> Result<Option<CopyReport>> {
        // Deeper paths sort behind their parents.
        for (path, attributes) in self.directories.iter().rev() {
            let dir = beneath::open_dir(self.to, path)?.ok_or(Errno::NOENT)?;
            match attributes {
                Some(attributes) => attributes.apply(dir.as_fd(), false, &mut self.report)?,
                None => fs::fchmod(&dir, Mode::from_raw_mode(0o755))?,
            }
        }
        Ok(Some(self.report))
    }
}

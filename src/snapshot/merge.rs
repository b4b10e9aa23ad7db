//! A stack of layers read as one tree, the way overlayfs shows it, without mounting anything.
//!
//! The topmost layer that has a name decides what it is; directories are merged until a layer hides what is below:
//! by a whiteout, an opaque mark, or something that is no directory. Nothing here follows a symbolic link out of a
//! layer; inside the merged tree [`Stack::lookup`] follows them as a root filesystem would.
//!
//! A [`Node`] holds no descriptor, so deep trees and long chains cost none.

use super::beneath;
use crate::error::{Error, ErrorKind, Result, ResultExt};
use crate::tree::{PathBytes, TreeRecord, WhiteoutForm, split_path};
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{self, FileType, OFlags, Stat};
use rustix::io::Errno;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

/// As many links as the kernel follows for one path.
const LINKS: usize = 40;

/// One layer of a [`Stack`].
#[derive(Clone, Debug)]
pub struct Layer {
    /// Long chains and many of them at once: a layer holds no descriptor of its own, but its place below this one.
    base: Arc<OwnedFd>,
    place: Vec<u8>,
    marks: Marks,
    implicit: Arc<HashSet<PathBytes>>,
    /// Names that the layer gives to files of the layers below; they are not made yet, and what had them is hidden.
    links: Arc<Names>,
}

/// Names by the directory that holds them.
type Names = HashMap<Vec<u8>, HashSet<Vec<u8>>>;

/// How a layer says what it hides.
#[derive(Clone, Debug)]
enum Marks {
    /// It hides nothing.
    None,
    /// By devices 0:0, and this attribute on directories.
    OnDisk(&'static str),
    /// By the lists of its record.
    Listed(Arc<Lists>),
}

#[derive(Debug)]
struct Lists {
    whiteouts: Names,
    opaque: HashSet<Vec<u8>>,
}

impl Layer {
    /// The directory `place` below `base`, which hides nothing, such as a full copy.
    pub fn plain(base: &Arc<OwnedFd>, place: impl Into<Vec<u8>>) -> Self {
        let (base, place) = (Arc::clone(base), place.into());
        Layer { base, place, marks: Marks::None, implicit: Arc::default(), links: Arc::default() }
    }

    /// A directory that overlayfs can mount: a tree in overlayfs form, an upper directory, a heal directory.
    pub fn overlay(base: &Arc<OwnedFd>, place: impl Into<Vec<u8>>, form: WhiteoutForm) -> Self {
        let mut layer = Layer::plain(base, place);
        layer.marks = match form {
            WhiteoutForm::Trusted => Marks::OnDisk("trusted.overlay.opaque"),
            WhiteoutForm::User => Marks::OnDisk("user.overlay.opaque"),
            WhiteoutForm::List => Marks::None,
        };
        layer
    }

    /// A tree with its record. Its implicit directories take the attributes of those below, as if they had been healed; where
    /// its pending links will be there is nothing.
    pub fn recorded(base: &Arc<OwnedFd>, place: impl Into<Vec<u8>>, record: &TreeRecord) -> Self {
        let mut layer = Layer::overlay(base, place, record.form);
        layer.implicit = Arc::new(record.implicit.iter().cloned().collect());
        layer.links = Arc::new(by_directory(record.pending_links.iter().map(|link| &link.path)));
        if record.form == WhiteoutForm::List {
            layer.marks = Marks::Listed(Arc::new(lists(record)));
        }
        layer
    }

    /// Opens something in the layer without following a link; the empty path is the layer itself.
    pub fn open(&self, path: &[u8], flags: OFlags) -> rustix::io::Result<Option<OwnedFd>> {
        let inside = match (self.place.is_empty(), path.is_empty()) {
            (_, true) => &self.place,
            (true, _) => path,
            _ => &join(&self.place, path),
        };
        beneath::open(self.base.as_fd(), inside, flags)
    }

    /// Opens a directory of the layer for listing.
    pub fn open_dir(&self, path: &[u8]) -> rustix::io::Result<Option<OwnedFd>> {
        self.open(path, OFlags::RDONLY | OFlags::DIRECTORY)
    }

    /// The names in a directory of the layer, with what they are; none where there is no such directory.
    pub fn list(&self, path: &[u8]) -> rustix::io::Result<Vec<(Vec<u8>, Stat)>> {
        match self.open_dir(path)? {
            Some(dir) => beneath::list(dir.as_fd()),
            None => Ok(Vec::new()),
        }
    }

    /// What something in the layer is, without following it.
    pub fn stat(&self, path: &[u8]) -> rustix::io::Result<Option<Stat>> {
        self.open(path, OFlags::PATH)?.map(fs::fstat).transpose()
    }

    fn gone(&self, path: &[u8]) -> Error {
        let what = PathBytes::new(join(&self.place, path));
        Error::new(ErrorKind::Corrupt, format!("the layer's directory {what} is gone"))
            .with_hint("run 'transload fsck --repair'")
    }

    fn is_whiteout(&self, path: &[u8], stat: &Stat) -> bool {
        match &self.marks {
            Marks::None => false,
            Marks::OnDisk(_) => is_whiteout_device(stat),
            Marks::Listed(lists) => lists.deletes(path),
        }
    }

    /// Whether the layer deletes `path` without having anything by that name.
    fn deletes_absent(&self, path: &[u8]) -> bool {
        has(&self.links, path) || matches!(&self.marks, Marks::Listed(lists) if lists.deletes(path))
    }

    /// The names that it deletes in a directory without having anything there.
    fn deleted_absent(&self, dir: &[u8]) -> impl Iterator<Item = &Vec<u8>> {
        let listed = match &self.marks {
            Marks::Listed(lists) => lists.whiteouts.get(dir),
            _ => None,
        };
        listed.into_iter().chain(self.links.get(dir)).flatten()
    }

    fn is_opaque(&self, path: &[u8]) -> Result<bool> {
        match &self.marks {
            Marks::None => Ok(false),
            Marks::Listed(lists) => Ok(lists.opaque.contains(path)),
            Marks::OnDisk(attribute) => {
                let Some(dir) = self.open_dir(path)? else { return Ok(false) };
                has_opaque_mark(&dir, attribute)
            }
        }
    }
}

fn is_whiteout_device(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice && stat.st_rdev == 0
}

fn has_opaque_mark(dir: impl AsFd, attribute: &str) -> Result<bool> {
    let mut value = [0u8; 4];
    match fs::fgetxattr(dir, attribute, &mut value[..]) {
        Ok(length) => Ok(&value[..length] == b"y"),
        Err(Errno::NODATA | Errno::OPNOTSUPP | Errno::RANGE) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}

fn lists(record: &TreeRecord) -> Lists {
    let opaque = record.opaque.iter().map(|path| path.as_bytes().to_vec()).collect();
    Lists { whiteouts: by_directory(&record.whiteouts), opaque }
}

fn by_directory<'a>(paths: impl IntoIterator<Item = &'a PathBytes>) -> Names {
    let mut names = Names::new();
    for (dir, name) in paths.into_iter().filter_map(PathBytes::split) {
        names.entry(dir.to_vec()).or_default().insert(name.to_vec());
    }
    names
}

fn has(names: &Names, path: &[u8]) -> bool {
    let inside = |(dir, name)| names.get(dir).is_some_and(|names: &HashSet<_>| names.contains(name));
    !names.is_empty() && split_path(path).is_some_and(inside)
}

impl Lists {
    fn deletes(&self, path: &[u8]) -> bool {
        has(&self.whiteouts, path)
    }
}

/// Something in a merged tree.
#[derive(Clone)]
pub struct Node {
    path: Vec<u8>,
    /// Top first; more than one only for a directory.
    layers: Vec<usize>,
    /// The layer, and the position in `layers`, that gives the attributes.
    source: usize,
    stat: Stat,
}

impl std::fmt::Debug for Node {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let path = PathBytes::new(self.path.clone());
        f.debug_struct("Node").field("path", &path).field("layers", &self.layers).finish_non_exhaustive()
    }
}

impl Node {
    /// Where it lies in the merged tree: no link in it, no slash at either end; empty for the root.
    pub fn path(&self) -> &[u8] {
        &self.path
    }

    /// What the merged tree shows of it.
    pub fn stat(&self) -> &Stat {
        &self.stat
    }

    /// The layer that it is shown from, counted from the top.
    pub fn layer(&self) -> usize {
        self.source
    }

    /// The layers that contribute to it, top first.
    pub fn layers(&self) -> &[usize] {
        &self.layers
    }

    /// The kind of file.
    pub fn file_type(&self) -> FileType {
        FileType::from_raw_mode(self.stat.st_mode)
    }

    /// Whether it is a directory.
    pub fn is_dir(&self) -> bool {
        self.file_type() == FileType::Directory
    }
}

/// Layers, top first, read as one tree.
#[derive(Clone, Debug, Default)]
pub struct Stack {
    layers: Vec<Layer>,
}

impl Stack {
    /// A stack of these layers, top first.
    pub fn new(layers: Vec<Layer>) -> Self {
        Stack { layers }
    }

    /// Puts a layer on top.
    pub fn push_top(&mut self, layer: Layer) {
        self.layers.insert(0, layer);
    }

    /// Puts a layer below all others.
    pub fn push_bottom(&mut self, layer: Layer) {
        self.layers.push(layer);
    }

    /// The layers, top first.
    pub fn layers(&self) -> &[Layer] {
        &self.layers
    }

    /// The root directory; `None` for a stack of no layers. overlayfs merges the roots of all layers: an opaque mark counts on
    /// no root.
    pub fn root(&self) -> Result<Option<Node>> {
        let mut found = Vec::new();
        for (index, layer) in self.layers.iter().enumerate() {
            found.push((index, layer.stat(b"")?.ok_or_else(|| layer.gone(b""))?));
        }
        Ok(self.directory(Vec::new(), found))
    }

    /// What lies at `path`. Links on the way are followed inside the merged tree; one at the end is what is found.
    pub fn lookup(&self, path: &[u8]) -> Result<Option<Node>> {
        self.resolve(path, false)
    }

    /// Like [`Stack::lookup`], following a link at the end too.
    pub fn resolve(&self, path: &[u8], follow_last: bool) -> Result<Option<Node>> {
        let walk = || -> Result<Option<Node>> {
            let Some(root) = self.root()? else { return Ok(None) };
            self.descend(root, path, follow_last)
        };
        walk().doing(|| format!("cannot look up {}", PathBytes::new(path)))
    }

    /// What lies at `path` if nothing on the way there is a link.
    pub fn exact(&self, path: &[u8]) -> Result<Option<Node>> {
        let mut at = self.root()?;
        for name in PathBytes::new(path).components() {
            let Some(dir) = at.filter(Node::is_dir) else { return Ok(None) };
            at = self.child(&dir, name)?;
        }
        Ok(at)
    }

    fn descend(&self, root: Node, path: &[u8], follow_last: bool) -> Result<Option<Node>> {
        let mut waiting = reversed_components(path);
        let mut trail = vec![root];
        let mut links = 0;
        while let Some(name) = waiting.pop() {
            if name == b".." {
                // The root is its own parent.
                trail.truncate((trail.len() - 1).max(1));
                continue;
            }
            let dir = trail.last().expect("the root stays");
            let Some(child) = self.child(dir, &name)? else { return Ok(None) };
            let last = waiting.is_empty();
            match child.file_type() {
                FileType::Symlink if !last || follow_last => {
                    links += 1;
                    if links > LINKS {
                        let message = "the path leads through too many symlinks";
                        return Err(Error::malformed(message).with_source(Errno::LOOP));
                    }
                    let target = self.read_link(&child)?;
                    if target.starts_with(b"/") {
                        trail.truncate(1);
                    }
                    waiting.extend(reversed_components(&target));
                }
                FileType::Directory => trail.push(child),
                _ if last => return Ok(Some(child)),
                _ => return Ok(None),
            }
        }
        Ok(trail.pop())
    }

    /// What `name` is in a directory of this stack.
    pub fn child(&self, dir: &Node, name: &[u8]) -> Result<Option<Node>> {
        let path = join(&dir.path, name);
        let mut found = Vec::new();
        for (position, &index) in dir.layers.iter().enumerate() {
            let layer = &self.layers[index];
            let Some(stat) = layer.stat(&path)? else {
                if layer.deletes_absent(&path) {
                    break;
                }
                continue;
            };
            let is_dir = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
            if !is_dir && found.is_empty() && !layer.is_whiteout(&path, &stat) {
                return Ok(Some(Node { path, layers: vec![index], source: index, stat }));
            }
            if !is_dir {
                break;
            }
            found.push((index, stat));
            let lowest = position + 1 == dir.layers.len();
            if !lowest && (layer.deletes_absent(&path) || layer.is_opaque(&path)?) {
                break;
            }
        }
        Ok(self.directory(path, found))
    }

    /// A directory takes its attributes from the topmost layer that mentions it.
    fn directory(&self, path: Vec<u8>, found: Vec<(usize, Stat)>) -> Option<Node> {
        let path = PathBytes::new(path);
        let explicit = found.iter().position(|(index, _)| !self.layers[*index].implicit.contains(&path));
        let (source, stat) = *found.get(explicit.unwrap_or(found.len().checked_sub(1)?))?;
        let layers = found.iter().map(|(index, _)| *index).collect();
        Some(Node { path: path.as_bytes().to_vec(), layers, source, stat })
    }

    /// What a directory of this stack holds, sorted by name.
    pub fn list(&self, dir: &Node) -> Result<Vec<Node>> {
        let mut names: BTreeMap<Vec<u8>, Merging> = BTreeMap::new();
        for (position, &index) in dir.layers.iter().enumerate() {
            let lowest = position + 1 == dir.layers.len();
            self.merge_layer(dir, index, lowest, &mut names)
                .doing(|| format!("cannot list {}", PathBytes::new(dir.path.clone())))?;
        }
        let node = |(name, merging): (Vec<u8>, Merging)| match merging.found {
            Found::Nothing => None,
            Found::File(layer, stat) => {
                Some(Node { path: join(&dir.path, &name), layers: vec![layer], source: layer, stat })
            }
            Found::Directory(layers) => self.directory(join(&dir.path, &name), layers),
        };
        Ok(names.into_iter().filter_map(node).collect())
    }

    fn merge_layer(
        &self,
        dir: &Node,
        index: usize,
        lowest: bool,
        names: &mut BTreeMap<Vec<u8>, Merging>,
    ) -> Result<()> {
        let layer = &self.layers[index];
        // It was there when the directory was found. Without it the list would be shorter than the directory.
        let fd = layer.open_dir(&dir.path)?.ok_or_else(|| layer.gone(&dir.path))?;
        for (name, stat) in beneath::list(fd.as_fd())? {
            let merging = names.entry(name.clone()).or_default();
            if merging.closed {
                continue;
            }
            let path = join(&dir.path, &name);
            if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
                merging.closed = true;
                if matches!(merging.found, Found::Nothing) && !layer.is_whiteout(&path, &stat) {
                    merging.found = Found::File(index, stat);
                }
                continue;
            }
            match &mut merging.found {
                Found::Directory(layers) => layers.push((index, stat)),
                found => *found = Found::Directory(vec![(index, stat)]),
            }
            merging.closed = !lowest && layer.is_opaque(&path)?;
        }
        for name in layer.deleted_absent(&dir.path) {
            names.entry(name.clone()).or_default().closed = true;
        }
        Ok(())
    }

    /// Shows the whole tree: a directory before what it holds, names in the order of their bytes.
    pub fn walk(&self, visit: &mut dyn FnMut(&Node) -> Result<()>) -> Result<()> {
        let mut waiting: Vec<Node> = self.root()?.into_iter().collect();
        while let Some(node) = waiting.pop() {
            visit(&node)?;
            if node.is_dir() {
                waiting.extend(self.list(&node)?.into_iter().rev());
            }
        }
        Ok(())
    }

    /// Opens a regular file or a directory for reading.
    pub fn open(&self, node: &Node) -> Result<OwnedFd> {
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY;
        let kind = node.file_type();
        if kind != FileType::RegularFile && kind != FileType::Directory {
            return Err(Errno::INVAL).doing(|| format!("cannot open {node:?}"));
        }
        let open = || -> Result<OwnedFd> {
            Ok(self.layers[node.source].open(&node.path, flags)?.ok_or(Errno::NOENT)?)
        };
        open().doing(|| format!("cannot open {}", PathBytes::new(node.path.clone())))
    }

    /// Where a symbolic link points.
    pub fn read_link(&self, node: &Node) -> Result<Vec<u8>> {
        let fd = self.layers[node.source].open(&node.path, OFlags::PATH)?.ok_or(Errno::NOENT)?;
        Ok(fs::readlinkat(fd, "", Vec::new())?.into_bytes())
    }

    /// Reads a small file whole; one that is longer is [`crate::ErrorKind::LimitExceeded`].
    pub fn read(&self, node: &Node, limit_bytes: u64) -> Result<Vec<u8>> {
        use std::io::Read;
        let mut bytes = Vec::new();
        let read = std::fs::File::from(self.open(node)?).take(limit_bytes + 1).read_to_end(&mut bytes)?;
        if read as u64 > limit_bytes {
            let path = PathBytes::new(node.path.clone());
            return Err(Error::limit(format!("{path} is longer than {limit_bytes} bytes")));
        }
        Ok(bytes)
    }
}

#[derive(Default)]
struct Merging {
    found: Found,
    /// A layer above hides what the ones below have.
    closed: bool,
}

#[derive(Default)]
enum Found {
    #[default]
    Nothing,
    File(usize, Stat),
    Directory(Vec<(usize, Stat)>),
}

fn reversed_components(path: &[u8]) -> Vec<Vec<u8>> {
    let plain = |component: &&[u8]| !component.is_empty() && *component != b".";
    path.split(|&byte| byte == b'/').filter(plain).rev().map(<[u8]>::to_vec).collect()
}

/// `dir/name`, where the root is the empty path.
pub fn join(dir: &[u8], name: &[u8]) -> Vec<u8> {
    if dir.is_empty() { name.to_vec() } else { [dir, b"/", name].concat() }
}

//! Chains of layers made by chance, the same for a seed in every run: few names, so that layers meet at them.

use std::collections::BTreeMap;

use super::image::{Layer, layer};

/// What a name is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    File,
    Dir,
    Link,
    Gone,
}

type Names = BTreeMap<String, Kind>;

/// Up to four layers.
///
/// A tame chain is what tools make: directories before what they hold, no name twice in a layer, deletions of what is there.
/// A wild one also has what none should make: links forward and to anything, names that come again as something else, paths
/// through symlinks, deletions of nothing, opaque roots.
pub fn chain(seed: u64, wild: bool) -> Vec<Layer> {
    let mut chance = Chance(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    let mut below = Names::new();
    let count = 1 + chance.below(4);
    let mut layers = Vec::new();
    for _ in 0..count {
        let (names, opaque) = (Names::new(), Vec::new());
        let mut making = Making { chance: &mut chance, below: &below, names, opaque, layer: layer() };
        let entries = 1 + making.chance.below(8);
        (0..entries).for_each(|_| making.entry(wild));
        let Making { names, opaque, layer, .. } = making;
        layers.push(layer);
        opaque.iter().for_each(|path| below.retain(|name, _| !name.starts_with(path)));
        lay_over(&mut below, names);
    }
    layers
}

/// What is in a chain, for the message of a test that fails.
pub fn outline(layers: &[Layer]) -> String {
    layers.iter().map(Layer::outline).collect::<Vec<_>>().join("; ")
}

/// How many chains are tried, and from which seed on: few by default.
pub fn seeds(few: u64, many: u64) -> std::ops::Range<u64> {
    let first = std::env::var("TRANSLOAD_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(1);
    first..first + if super::tally::thorough() { many } else { few }
}

fn lay_over(below: &mut Names, names: Names) {
    for (path, kind) in names {
        if kind != Kind::Dir || below.get(&path) != Some(&Kind::Dir) {
            let inside = format!("{path}/");
            below.retain(|name, _| *name != path && !name.starts_with(&inside));
        }
        if kind != Kind::Gone {
            below.insert(path, kind);
        }
    }
}

struct Chance(u64);

impl Chance {
    fn below(&mut self, most: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 33) as usize % most
    }

    fn one<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len())]
    }

    fn path(&mut self) -> String {
        let depth = self.one(&[1, 1, 2, 2, 3]);
        (0..depth).map(|_| self.one(&["a", "b", "c", "d"])).collect::<Vec<_>>().join("/")
    }
}

/// A layer on the way, with what it has so far and what lies below it.
struct Making<'a> {
    chance: &'a mut Chance,
    below: &'a Names,
    names: Names,
    /// Directories that hide what is below, each with a slash at the end.
    opaque: Vec<String>,
    layer: Layer,
}

impl Making<'_> {
    fn entry(&mut self, wild: bool) {
        let path = self.chance.path();
        let is_wild = wild && self.chance.below(3) == 0;
        if !is_wild && self.names.contains_key(&path) {
            return;
        }
        match self.chance.below(if is_wild { 12 } else { 11 }) {
            0..=2 => self.made(&path, Kind::File, is_wild, |layer, chance| {
                let content = "x".repeat(chance.one(&[0, 1, 600]));
                layer
                    .file(&path, content)
                    .mode(chance.one(&[0o644, 0o4755, 0o600]))
                    .owner(chance.one(&[0, 7]), 0)
            }),
            3 => self.made(&path, Kind::Dir, is_wild, |layer, chance| {
                layer.dir(&path).mode(chance.one(&[0o755, 0o500]))
            }),
            4 => self.made(&path, Kind::Link, is_wild, |layer, chance| {
                layer.symlink(&path, chance.one(&["a", "../b", "/c/d", "nowhere"]))
            }),
            5..=7 => self.hard_link(&path, is_wild),
            8 | 9 => self.whiteout(&path, is_wild),
            10 => self.opaque(&path, is_wild),
            _ => self.odd(&path),
        }
    }

    /// Adds an entry, and in a tame layer the directories that it lies in.
    fn made(&mut self, path: &str, kind: Kind, is_wild: bool, add: impl FnOnce(Layer, &mut Chance) -> Layer) {
        if !is_wild && !self.directories_of(path) {
            return;
        }
        let mtime = 1 + self.chance.below(1_000_000_000) as i64;
        let layer = std::mem::replace(&mut self.layer, layer());
        self.layer = add(layer, self.chance).mtime(mtime, 0);
        self.names.insert(path.to_owned(), kind);
    }

    fn directories_of(&mut self, path: &str) -> bool {
        let ends = path.match_indices('/').map(|(at, _)| &path[..at]);
        let ends: Vec<&str> = ends.collect();
        let free = |end: &&str| self.names.get(*end).is_none_or(|kind| *kind == Kind::Dir);
        if !ends.iter().all(free) {
            return false;
        }
        for end in ends {
            if !self.names.contains_key(end) {
                let mode = self.chance.one(&[0o755, 0o700, 0o1777, 0o2755]);
                let owner = self.chance.one(&[0, 5]);
                self.made(end, Kind::Dir, true, |layer, _| layer.dir(end).mode(mode).owner(owner, 0));
            }
        }
        true
    }

    fn hard_link(&mut self, path: &str, is_wild: bool) {
        if !is_wild && !self.directories_of(path) {
            return;
        }
        let target = if is_wild { Some(self.chance.path()) } else { self.target(path) };
        let Some(target) = target else { return };
        self.made(path, Kind::File, is_wild, |layer, _| layer.hardlink(path, &target));
    }

    /// A file of this layer, or one below that still shows, and that the link itself does not hide.
    fn target(&mut self, link: &str) -> Option<String> {
        let inside = format!("{link}/");
        let is_file = |(path, kind): (&String, &Kind)| (*kind == Kind::File).then(|| path.clone());
        let shows = |path: &String| {
            let hides =
                |(end, _): (usize, &str)| self.names.get(&path[..end]).is_some_and(|kind| *kind != Kind::Dir);
            let free = path != link && !path.starts_with(&inside) && !self.names.contains_key(path);
            free && !path.match_indices('/').any(hides)
        };
        let mut targets: Vec<String> = self.below.iter().filter_map(is_file).filter(shows).collect();
        targets.extend(self.names.iter().filter_map(is_file));
        (!targets.is_empty()).then(|| targets.swap_remove(self.chance.below(targets.len())))
    }

    fn whiteout(&mut self, path: &str, is_wild: bool) {
        if is_wild || self.below.contains_key(path) {
            self.made(path, Kind::Gone, is_wild, |layer, _| layer.whiteout(path));
        }
    }

    fn opaque(&mut self, path: &str, is_wild: bool) {
        if is_wild || self.directories_of(&format!("{path}/in")) {
            self.layer = std::mem::replace(&mut self.layer, layer()).opaque(path);
            self.opaque.push(format!("{path}/"));
        }
    }

    /// What no layer should have.
    fn odd(&mut self, path: &str) {
        let layer = std::mem::replace(&mut self.layer, layer());
        self.layer = match self.chance.below(3) {
            0 => layer.opaque(""),
            1 => layer.char_device(path, 0, 0),
            _ => layer.fifo(path),
        };
    }
}

//! Power cuts: imports, removals and collections on ext4, xfs and btrfs, with and without somebody who keeps the store open, cut
//! off at random moments and right after something was reported as done, then mounted with journal replay.
//!
//! After each cut: what was reported as done is there, what was removed is gone, what shows is whole, every name under `blobs/`
//! holds its bytes, importing again gives what it gives anywhere, and a collection leaves nothing over. With one sync taken out by
//! a fail point a cut at its moment must show it (missing.rs); else either the sync or this test is worth nothing.
//!
//! `cargo test --features failpoints --test power -- [--cuts N] [--disk NAME] [--sync POINT]… [--scratch DIR]`

#[path = "../support/mod.rs"]
mod support;

mod committed;
mod missing;
mod work;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use support::disk::{KINDS, Kind, Shelf};
use support::soundness::{
    Contents, archives, bad_blobs, contents, damage, differences, leftovers, unpacked, visible, with_faults,
};
use support::tally::Tally;
use work::{Account, FIRST, Manner, SECOND, Work};

/// Cuts of one disk's life; then the disk is made anew. Where there are few cuts for a filesystem the lives are shorter, down
/// to one cut among the first work and one when all that a manner does has been done once.
const CUTS_OF_A_LIFE: std::ops::RangeInclusive<usize> = 2..=10;

/// A manner has done all that it does once, more or less, when so much is reported as done.
const ONE_ROUND: usize = 4;

const MANNERS: [Manner; 4] = [Manner::Churn, Manner::Fresh, Manner::Unsynced, Manner::Retag];

struct Options {
    cuts: usize,
    disk: Option<String>,
    syncs: Vec<String>,
    scratch: Option<PathBuf>,
}

impl Options {
    fn of_process() -> Options {
        let mut options = Options { cuts: 16, disk: None, syncs: Vec::new(), scratch: None };
        let mut words = std::env::args().skip(1);
        // What cargo hands to every test program is passed over.
        while let Some(word) = words.next() {
            match word.as_str() {
                "--cuts" => options.cuts = words.next().and_then(|text| text.parse().ok()).expect("--cuts N"),
                "--disk" => options.disk = words.next(),
                "--sync" => options.syncs.extend(words.next()),
                "--scratch" => options.scratch = words.next().map(PathBuf::from),
                _ => {}
            }
        }
        options
    }
}

/// Everything that stays the same from cut to cut.
struct House {
    // Unmounted before its directory goes.
    shelf: Shelf,
    dir: tempfile::TempDir,
    archives: Vec<PathBuf>,
    both: Contents,
    roots: BTreeMap<&'static str, Vec<String>>,
    targets: BTreeMap<&'static str, String>,
    numbers: u64,
    /// How many lives were lived in each manner, without and with somebody who keeps the store open.
    lives: BTreeMap<(Manner, bool), usize>,
}

/// A cut, and when it was made.
struct Cut {
    image: PathBuf,
    from: Instant,
    to: Instant,
}

fn main() {
    let options = Options::of_process();
    if !support::tools::have(&["mkfs.ext4", "mkfs.xfs", "mkfs.btrfs", "btrfs", "mount", "umount"]) {
        return;
    }
    let mut house = House::new(&options);
    let kinds: Vec<&Kind> =
        KINDS.iter().filter(|kind| options.disk.as_deref().is_none_or(|name| name == kind.name)).collect();
    if options.syncs.is_empty() {
        for (number, kind) in kinds.iter().enumerate() {
            house.must_survive(kind, number, options.cuts.div_ceil(kinds.len()));
        }
        println!("lives: {:?}", house.lives);
        let all = MANNERS
            .iter()
            .all(|manner| [false, true].iter().any(|kept| house.lives.contains_key(&(*manner, *kept))));
        let both = [false, true].iter().all(|kept| house.lives.keys().any(|(_, is)| is == kept));
        assert!(options.cuts < 4 * MANNERS.len() || all && both, "{:?}", house.lives);
    }
    // What the others hide differs from kernel to kernel.
    let (strict, lenient): (Vec<&Kind>, Vec<&Kind>) =
        kinds.iter().partition(|kind| kind.name == KINDS[1].name);
    for kind in strict {
        house.each_sync(kind, &options.syncs, true);
    }
    for kind in lenient.into_iter().filter(|_| !options.syncs.is_empty()) {
        house.each_sync(kind, &options.syncs, false);
    }
}

impl House {
    fn new(options: &Options) -> House {
        let place = options.scratch.clone().unwrap_or_else(|| {
            let memory = PathBuf::from("/dev/shm");
            if memory.is_dir() { memory } else { std::env::temp_dir() }
        });
        let dir = tempfile::Builder::new().prefix("transload-power-").tempdir_in(place).expect("a directory");
        let archives = archives(dir.path(), 48);
        let store = dir.path().join("expected");
        for archive in &archives[..2] {
            with_faults(&store, "", &["import", "-q", &archive.to_string_lossy()]).ok();
        }
        let root = |name| unpacked(&store, "", name, dir.path()).expect("unpacks");
        let roots = [FIRST, SECOND].map(|name| (name, root(name))).into();
        let shown = visible(&store, "").expect("two images");
        let targets = [FIRST, SECOND].map(|name| (name, shown[name].clone())).into();
        let both = contents(&store);
        let shelf = Shelf::new(dir.path());
        House { shelf, dir, archives, both, roots, targets, numbers: 0x5eed, lives: BTreeMap::new() }
    }

    fn dice(&mut self, below: u64) -> u64 {
        self.numbers ^= self.numbers << 13;
        self.numbers ^= self.numbers >> 7;
        self.numbers ^= self.numbers << 17;
        self.numbers % below
    }

    /// Each filesystem begins with another manner, so that a few lives are enough for all of them; and half of them with what
    /// an import sends to the disk while it works, as everywhere but in tests, the others with the last wait alone. In half of
    /// them somebody keeps the store open: else the last to close it puts the log away and so waits for the disk.
    fn must_survive(&mut self, kind: &Kind, first: usize, cuts: usize) {
        let mut tally = Tally::new(&format!("power cuts on {}", kind.name));
        let of_a_life = (cuts / MANNERS.len()).clamp(*CUTS_OF_A_LIFE.start(), *CUTS_OF_A_LIFE.end());
        for life in 0..cuts.div_ceil(of_a_life) {
            let left = (cuts - life * of_a_life).min(of_a_life);
            let manner = MANNERS[(first + life) % MANNERS.len()];
            let faults = ["", "write-behind=20"][(first / 2 + life / MANNERS.len()) % 2];
            let kept = (life + life / MANNERS.len()) % 2 == 1;
            let what = format!("{manner:?}{} on {}", if kept { ", kept open," } else { "" }, kind.name);
            for (lost, leaked) in self.live(kind, manner, faults, kept, left) {
                tally.fault(&what, lost, leaked);
            }
            *self.lives.entry((manner, kept)).or_default() += 1;
        }
        tally.end(cuts as u64);
    }

    /// One life of a disk: work, cuts, and what each of them shows.
    fn live(
        &mut self,
        kind: &Kind,
        manner: Manner,
        faults: &str,
        kept: bool,
        cuts: usize,
    ) -> Vec<(Vec<String>, Vec<String>)> {
        let disk = self.shelf.disk(kind);
        let account = Account::default();
        let taken = {
            let live = kind.mount(&disk, &self.dir.path().join("live"));
            let work = Work {
                manner,
                at: live.path(),
                archives: &self.archives.clone(),
                faults,
                kept,
                account: &account,
                fresh: Default::default(),
            };
            std::thread::scope(|scope| {
                scope.spawn(|| work.run());
                let taken = (0..cuts).map(|number| {
                    // One cut at least comes late enough for whatever the manner does.
                    if number + 1 == cuts {
                        account.wait_for(ONE_ROUND, Duration::from_secs(10));
                    }
                    self.take(&disk, number, &account)
                });
                let taken = taken.collect::<Vec<_>>();
                account.stop();
                taken
            })
        };
        let failed = std::mem::take(&mut *account.problems.lock().expect("no panic"));
        let mut found: Vec<_> =
            taken.iter().enumerate().map(|(n, cut)| self.check(kind, manner, cut, &account, n)).collect();
        if let Some(first) = found.first_mut() {
            first.0.extend(failed);
        }
        found
    }

    /// Half of the cuts come at any moment, the others right after something is reported as done.
    fn take(&mut self, disk: &Path, number: usize, account: &Account) -> Cut {
        match self.dice(2) {
            0 => std::thread::sleep(Duration::from_millis(5 + self.dice(250))),
            _ => account.wait_for_one(Duration::from_secs(2)),
        }
        let from = Instant::now();
        let image = self.shelf.cut(disk, number);
        Cut { image, from, to: Instant::now() }
    }

    fn check(
        &self,
        kind: &Kind,
        manner: Manner,
        cut: &Cut,
        account: &Account,
        number: usize,
    ) -> (Vec<String>, Vec<String>) {
        let (mut lost, mut leaked) = (Vec::new(), Vec::new());
        let at = self.dir.path().join("recovered");
        match kind.recover(&cut.image, &at) {
            Err(error) => lost.push(error),
            Ok(recovered) => {
                // The machine has come up again. What was begun last is what the cut may have hurt.
                let boot = format!("boot=after-{number}");
                for store in account.stores(cut.to).into_iter().rev().take(3) {
                    let allowed = account.allowed(&store, cut.from, cut.to);
                    let store = recovered.path().join(store);
                    lost.extend(self.at_once(&store, &boot, manner, &allowed));
                    let (more, less) = self.go_on(&store, &boot);
                    lost.extend(more);
                    leaked.extend(less);
                }
            }
        }
        let _ = std::fs::remove_file(&cut.image);
        (lost, leaked)
    }

    fn at_once(
        &self,
        store: &Path,
        boot: &str,
        manner: Manner,
        allowed: &BTreeMap<&'static str, std::collections::BTreeSet<bool>>,
    ) -> Vec<String> {
        let shown = match visible(store, boot) {
            Ok(shown) => shown,
            Err(error) => return vec![error],
        };
        let mut wrong = Vec::new();
        for (name, may) in allowed {
            let there = shown.contains_key(*name);
            if !may.contains(&there) {
                wrong.push(format!("{name} is {}", if there { "back" } else { "lost" }));
            }
        }
        // Without syncs nothing is promised of what was written, but that it is never taken for what it is not.
        let unsynced = matches!(manner, Manner::Unsynced | Manner::Retag);
        if !unsynced {
            wrong.extend(bad_blobs(store));
            wrong.extend(damage(store, boot));
        }
        for (name, target) in &shown {
            let synced =
                if manner == Manner::Retag { *target == self.targets[FIRST] } else { name == SECOND };
            match unpacked(store, boot, name, self.dir.path()) {
                Ok(found)
                    if self.targets.iter().any(|(name, is)| is == target && self.roots[name] == found) => {}
                Ok(_) => wrong.push(format!("{name} shows and is another tree")),
                Err(_) if unsynced && !synced => {}
                Err(error) => wrong.push(error),
            }
        }
        wrong
    }

    fn go_on(&self, store: &Path, boot: &str) -> (Vec<String>, Vec<String>) {
        let mut wrong = Vec::new();
        let archives = self.archives[..2].iter().map(|archive| archive.to_string_lossy().into_owned());
        let imports = archives.map(|archive| vec!["import".to_string(), "-q".to_string(), archive]);
        for args in imports.chain([vec!["gc".to_string()]]) {
            let words: Vec<&str> = args.iter().map(String::as_str).collect();
            let ran = with_faults(store, boot, &words);
            if ran.code != Some(0) {
                wrong.push(format!("afterwards {words:?} ends with {:?}: {}", ran.code, ran.stderr));
            }
        }
        let (more, less): (Vec<String>, Vec<String>) = differences(&self.both, &contents(store))
            .into_iter()
            .partition(|line| line.ends_with("is too much"));
        wrong.extend(less);
        (wrong, leftovers(store).into_iter().chain(more).collect())
    }
}

//! What goes on while the power may fail: imports, removals and collections, and the account of what was reported as done when.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex};
use std::time::{Duration, Instant};

use transload::store::Store;

use crate::support::soundness::with_faults;

/// Something that changes whether an image is there.
struct Change {
    store: String,
    image: &'static str,
    /// Whether the image is there afterwards; `None` where nothing is promised until the next change.
    there: Option<bool>,
    began: Instant,
    ended: Option<Instant>,
}

/// What was started and what was reported as done.
#[derive(Default)]
pub struct Account {
    changes: Mutex<Vec<Change>>,
    done: Condvar,
    stop: AtomicBool,
    pub problems: Mutex<Vec<String>>,
}

impl Account {
    fn run(&self, to: &Change, run: impl FnOnce() -> Result<(), String>) {
        let at = {
            let mut changes = self.changes.lock().expect("no panic");
            changes.push(Change { store: to.store.clone(), began: Instant::now(), ended: None, ..*to });
            changes.len() - 1
        };
        match run() {
            Ok(()) => self.changes.lock().expect("no panic")[at].ended = Some(Instant::now()),
            Err(error) => self.problems.lock().expect("no panic").push(error),
        }
        self.done.notify_all();
    }

    /// Waits until something more is reported as done, or for `at_most`.
    pub fn wait_for_one(&self, at_most: Duration) {
        let before = ended(&self.changes.lock().expect("no panic"));
        self.wait_for(before + 1, at_most);
    }

    /// Waits until so many have been reported as done, or for `at_most`.
    pub fn wait_for(&self, count: usize, at_most: Duration) {
        let changes = self.changes.lock().expect("no panic");
        let _ = self.done.wait_timeout_while(changes, at_most, |changes| ended(changes) < count);
    }

    pub fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    fn goes_on(&self) -> bool {
        !self.stop.load(Ordering::Relaxed)
    }

    /// For each image of a store whether it may be there, and whether it may be missing, after a cut between two moments.
    pub fn allowed(&self, store: &str, from: Instant, to: Instant) -> BTreeMap<&'static str, BTreeSet<bool>> {
        let mut allowed: BTreeMap<&'static str, BTreeSet<bool>> = BTreeMap::new();
        let changes = self.changes.lock().expect("no panic");
        for change in changes.iter().filter(|change| change.store == store && change.began <= to) {
            let may = allowed.entry(change.image).or_insert_with(|| [false].into());
            if change.there.is_none() {
                may.extend([true, false]);
            }
            let Some(there) = change.there else { continue };
            if change.ended.is_some_and(|ended| ended <= from) {
                *may = [there].into();
            } else {
                may.insert(there);
            }
        }
        allowed
    }

    /// The stores on which work had begun, in the order in which it did.
    pub fn stores(&self, until: Instant) -> Vec<String> {
        let changes = self.changes.lock().expect("no panic");
        let mut stores: Vec<String> = Vec::new();
        for change in changes.iter().filter(|change| change.began <= until) {
            if !stores.contains(&change.store) {
                stores.push(change.store.clone());
            }
        }
        stores
    }
}

fn ended(changes: &[Change]) -> usize {
    changes.iter().filter(|change| change.ended.is_some()).count()
}

/// How the workers work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Manner {
    /// Three at once in one store: imports, removals, collections.
    Churn,
    /// Imports, each into a store that it makes.
    Fresh,
    /// As churn, with imports that do not wait for the disk among them.
    Unsynced,
    /// A name is given to one image and, without waiting for the disk, to another; then the first is collected.
    Retag,
}

/// Somebody who keeps stores open. Whoever closes one as the last puts its log away, which waits for the disk and hides a missing
/// sync.
#[derive(Default)]
pub struct Keeper(BTreeMap<PathBuf, Store>);

impl Keeper {
    /// Opens one unless it has it; tells whether that was possible.
    pub fn keep(&mut self, store: &Path) -> bool {
        if !self.0.contains_key(store) {
            let Ok(open) = Store::open(store, &Default::default()) else { return false };
            self.0.insert(store.to_path_buf(), open);
        }
        true
    }

    /// Lets go of all but these.
    fn only(&mut self, stores: &[PathBuf]) {
        self.0.retain(|store, _| stores.contains(store));
    }
}

/// How many stores are kept open at once: those that a cut can hurt.
const KEPT: usize = 4;

/// Does it until told to stop.
pub struct Work<'a> {
    pub manner: Manner,
    pub at: &'a Path,
    pub archives: &'a [PathBuf],
    pub faults: &'a str,
    /// Whether somebody else keeps each store open as soon as it can be opened.
    pub kept: bool,
    pub account: &'a Account,
    pub fresh: AtomicUsize,
}

pub const FIRST: &str = "example.com/first:1";
pub const SECOND: &str = "example.com/second:1";
pub const THIRD: &str = "example.com/third:1";

impl Work<'_> {
    /// The whole of it; returns when the account is stopped.
    pub fn run(&self) {
        std::thread::scope(|scope| {
            if self.kept {
                scope.spawn(|| self.keep_open());
            }
            match self.manner {
                Manner::Fresh => {
                    scope.spawn(|| self.make_stores(0));
                    scope.spawn(|| self.make_stores(1));
                }
                Manner::Retag => {
                    scope.spawn(|| self.retag());
                }
                _ => {
                    scope.spawn(|| self.come_and_go(FIRST, 0, &[]));
                    scope.spawn(|| self.come_and_go(SECOND, 1, &[]));
                    scope.spawn(|| self.come_and_go(THIRD, 2, &["--tag", THIRD]));
                }
            }
        });
    }

    fn keep_open(&self) {
        let mut keeper = Keeper::default();
        while self.account.goes_on() {
            let stores = self.account.stores(Instant::now());
            let last = stores.iter().rev().take(KEPT).map(|store| self.at.join(store)).collect::<Vec<_>>();
            keeper.only(&last);
            for store in &last {
                // One that is about to be made is there in a moment.
                keeper.keep(store);
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn make_stores(&self, archive: usize) {
        while self.account.goes_on() {
            let store = format!("store-{}", self.fresh.fetch_add(1, Ordering::Relaxed));
            self.import(&store, [FIRST, SECOND][archive], archive, &[]);
        }
    }

    fn come_and_go(&self, image: &'static str, archive: usize, options: &[&str]) {
        let mut round = archive;
        while self.account.goes_on() {
            round += 1;
            self.import("store", image, archive, options);
            if round.is_multiple_of(2) {
                self.remove("store", image);
            }
            // Busy while the others import, which is an answer.
            with_faults(&self.at.join("store"), self.faults, &["gc"]);
        }
    }

    fn retag(&self) {
        while self.account.goes_on() {
            let archives = [0, 1].map(|number: usize| self.archives[number].to_string_lossy());
            let args = ["import", "-q", "--tag", THIRD, &archives[0]];
            self.change("store", THIRD, Some(true), &args);
            let args = ["import", "-q", "--tag", THIRD, "--no-sync", &archives[1]];
            self.change("store", THIRD, Some(true), &args);
            self.change("store", THIRD, Some(true), &["gc"]);
        }
    }

    fn import(&self, store: &str, image: &'static str, archive: usize, options: &[&str]) {
        let unsynced = self.manner == Manner::Unsynced && image != SECOND;
        let archive = self.archives[archive].to_string_lossy();
        let mut args = vec!["import", "-q", &archive];
        args.extend(options);
        args.extend(unsynced.then_some("--no-sync"));
        self.change(store, image, (!unsynced).then_some(true), &args);
    }

    fn remove(&self, store: &str, image: &'static str) {
        self.change(store, image, Some(false), &["rm", image]);
    }

    fn change(&self, store: &str, image: &'static str, there: Option<bool>, args: &[&str]) {
        let now = Instant::now();
        let change = Change { store: store.to_string(), image, there, began: now, ended: None };
        self.account.run(&change, || {
            let ran = with_faults(&self.at.join(store), self.faults, args);
            match ran.code {
                Some(0) => Ok(()),
                code => Err(format!("{args:?} ended with {code:?}: {}", ran.stderr)),
            }
        });
    }
}

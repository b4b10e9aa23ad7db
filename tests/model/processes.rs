//! The protocol between processes: a `flock` on a working place decides who makes a thing, the thing appears by a rename,
//! and whoever waited looks again. The locks, the directories and the renames are the real ones (`io::locked`); each
//! shuttle thread is a process, with a descriptor of its own for each lock, and may be killed between any two calls.

use crate::support::tally::Executions;
use rustix::fd::OwnedFd;
use rustix::fs::{AtFlags, Mode, OFlags};
use shuttle::sync::atomic::{AtomicUsize, Ordering};
use shuttle::{rand::Rng, thread};
use std::path::Path;
use std::sync::Arc;
use transload::io::locked::LockedDir;

/// A store of one thing: `ingest/place` while it is being made, `done` afterwards.
struct World {
    dir: tempfile::TempDir,
    ingest: Arc<OwnedFd>,
    root: OwnedFd,
    working: AtomicUsize,
    made: AtomicUsize,
}

const PLACE: &str = "place";

fn open(path: &Path) -> OwnedFd {
    rustix::fs::open(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .expect("opens")
}

impl World {
    fn new() -> Arc<Self> {
        // On tmpfs, because there are thousands of them.
        let dir = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).expect("a directory");
        let ingest = dir.path().join("ingest");
        std::fs::create_dir(&ingest).expect("a directory");
        let (ingest, root) = (Arc::new(open(&ingest)), open(dir.path()));
        Arc::new(World { dir, ingest, root, working: AtomicUsize::new(0), made: AtomicUsize::new(0) })
    }

    fn is_done(&self) -> bool {
        thread::yield_now();
        rustix::fs::statat(&self.root, "done", AtFlags::SYMLINK_NOFOLLOW).is_ok()
    }
}

/// What becomes of a process while it holds the place.
#[derive(Clone, Copy, Debug)]
enum Fate {
    Lives,
    /// The kernel closes its descriptors, and what it made stays where it is.
    Killed,
    /// It fails, tidies, and lets go.
    Fails,
    Any,
}

impl Fate {
    fn choose(self) -> Fate {
        match self {
            Fate::Any => {
                [Fate::Lives, Fate::Killed, Fate::Fails][shuttle::rand::thread_rng().gen_range(0..3)]
            }
            fate => fate,
        }
    }
}

/// One import of the thing: true if it is there in the end.
fn import(world: &World, fate: Fate) -> bool {
    loop {
        if world.is_done() {
            return true;
        }
        thread::yield_now();
        let Some(place) = LockedDir::try_acquire(&world.ingest, PLACE).expect("locks") else {
            thread::yield_now();
            continue;
        };
        // Someone may have finished between the look and the lock.
        if world.is_done() {
            thread::yield_now();
            place.remove().expect("an empty place");
            return true;
        }
        assert_eq!(world.working.fetch_add(1, Ordering::SeqCst), 0, "two processes work at once");
        thread::yield_now();
        match fate.choose() {
            Fate::Lives | Fate::Any => {
                world.made.fetch_add(1, Ordering::SeqCst);
                world.working.fetch_sub(1, Ordering::SeqCst);
                let published = place.publish(rustix::fd::AsFd::as_fd(&world.root), "done").expect("renames");
                assert!(published.is_ok(), "it was there already");
                return true;
            }
            Fate::Killed => {
                world.working.fetch_sub(1, Ordering::SeqCst);
                drop(place);
                return false;
            }
            Fate::Fails => {
                world.working.fetch_sub(1, Ordering::SeqCst);
                place.remove().expect("an empty place");
                return false;
            }
        }
    }
}

/// Sweeps what nobody holds, as gc does.
fn sweep(world: &World) {
    thread::yield_now();
    if let Some(place) = LockedDir::try_existing(&world.ingest, PLACE).expect("locks") {
        thread::yield_now();
        place.remove().expect("an empty place");
    }
}

fn all_at_once(fates: &'static [Fate], gc: bool, check: fn(&World)) {
    let schedules = crate::SCHEDULES / 10;
    let case = move || {
        let world = World::new();
        let mut threads: Vec<_> = fates
            .iter()
            .map(|fate| {
                let world = Arc::clone(&world);
                thread::spawn(move || import(&world, *fate))
            })
            .collect();
        if gc {
            let world = Arc::clone(&world);
            threads.push(thread::spawn(move || {
                sweep(&world);
                false
            }));
        }
        for thread in threads {
            thread.join().expect("no panic");
        }
        check(&world);
        // Whatever happened, the next one succeeds and leaves nothing.
        assert!(import(&world, Fate::Lives));
        assert_eq!(world.made.load(Ordering::SeqCst), 1, "made more than once");
        sweep(&world);
        assert_eq!(std::fs::read_dir(world.dir.path().join("ingest")).expect("lists").count(), 0);
    };
    let _row = Executions::of("schedules of claims between processes", schedules as u64);
    shuttle::check_random(case, schedules);
}

fn is_made(world: &World) {
    assert_eq!(world.made.load(Ordering::SeqCst), 1);
}

#[test]
fn of_several_processes_one_makes_it() {
    all_at_once(&[Fate::Lives; 3], false, is_made);
    all_at_once(&[Fate::Lives; 3], true, is_made);
}

#[test]
fn the_work_of_one_that_is_killed_is_taken_over() {
    all_at_once(&[Fate::Killed, Fate::Lives, Fate::Lives], true, is_made);
}

#[test]
fn the_work_of_one_that_fails_is_taken_over() {
    all_at_once(&[Fate::Fails, Fate::Lives, Fate::Lives], true, is_made);
}

#[test]
fn whatever_happens_to_them_it_is_made_at_most_once_and_nothing_stays() {
    all_at_once(&[Fate::Any; 4], true, |world| assert!(world.made.load(Ordering::SeqCst) <= 1));
}

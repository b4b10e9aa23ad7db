//! Claims between threads: whatever happens to owners and followers, each finds out, one at a time works, what one
//! finishes all see, and nothing is left behind.

use crate::condvar::waits;
use crate::explore;
use crate::parallel::in_flight::{Claim, InFlight, Owner, Waited};
use shuttle::sync::atomic::{AtomicUsize, Ordering};
use shuttle::{rand::Rng, thread};
use std::sync::Arc;
use std::time::Duration;
use transload::{Cancel, ErrorKind};

/// How an owner ends.
#[derive(Clone, Copy, Debug)]
enum End {
    Finish,
    /// An error or a panic: both drop the owner.
    Drop,
    Any,
}

#[derive(Default)]
struct World {
    working: AtomicUsize,
    finished: AtomicUsize,
}

type Map = InFlight<u32, u32>;

/// The work of one key. The store, which every owner asks first, is `finished`.
fn work(world: &World, owner: Owner<u32, u32>, end: End) {
    if world.finished.load(Ordering::SeqCst) > 0 {
        return owner.finish(1);
    }
    assert_eq!(world.working.fetch_add(1, Ordering::SeqCst), 0, "two work at once");
    thread::yield_now();
    let finishes = match end {
        End::Finish => true,
        End::Drop => false,
        End::Any => shuttle::rand::thread_rng().gen_bool(0.5),
    };
    world.finished.fetch_add(usize::from(finishes), Ordering::SeqCst);
    world.working.fetch_sub(1, Ordering::SeqCst);
    match finishes {
        true => owner.finish(1),
        false => drop(owner),
    }
}

/// What an import does about one key.
fn claim_and_work(map: &Map, world: &World, cancel: &Cancel, end: End) {
    match map.claim(7) {
        Claim::Owner(owner) => work(world, owner, end),
        Claim::Follower(ticket) => match ticket.wait(cancel, None) {
            Ok(Waited::Done(value)) => assert_eq!(value, 1),
            Ok(Waited::Yours(owner)) => work(world, owner, end),
            Err(error) => assert!(error.kind() == ErrorKind::Cancelled && cancel.is_cancelled(), "{error}"),
        },
    }
}

/// Lets each of `ends` loose on one key, and looks at what is left. The last may be cancelled at any moment.
fn all_at_once(ends: &'static [End], cancel_last: bool, check: fn(&World)) {
    explore(move || {
        let (map, world) = (Map::new(), Arc::new(World::default()));
        let threads: Vec<_> = ends
            .iter()
            .enumerate()
            .map(|(at, end)| {
                let (map, world, cancel) = (map.clone(), Arc::clone(&world), Cancel::new());
                if cancel_last && at + 1 == ends.len() {
                    let cancel = cancel.clone();
                    thread::spawn(move || cancel.cancel());
                }
                thread::spawn(move || claim_and_work(&map, &world, &cancel, *end))
            })
            .collect();
        threads.into_iter().for_each(|thread| thread.join().expect("no panic"));
        assert!(map.is_empty(), "{} keys are left in the map", map.len());
        check(&world);
    });
}

fn finished_once(world: &World) {
    assert_eq!(world.finished.load(Ordering::SeqCst), 1);
}

#[test]
fn of_all_who_come_at_once_one_works() {
    all_at_once(&[End::Finish; 4], false, finished_once);
}

#[test]
fn an_owner_that_fails_or_panics_hands_on_until_one_finishes() {
    all_at_once(&[End::Drop, End::Finish, End::Finish], false, finished_once);
    all_at_once(&[End::Drop, End::Drop, End::Finish], false, finished_once);
}

#[test]
fn if_all_fail_nothing_is_left_and_nobody_hangs() {
    all_at_once(&[End::Drop; 4], false, |world| assert_eq!(world.finished.load(Ordering::SeqCst), 0));
}

#[test]
fn any_mix_of_ends_finishes_at_most_once() {
    all_at_once(&[End::Any; 4], false, |world| assert!(world.finished.load(Ordering::SeqCst) <= 1));
}

#[test]
fn a_cancelled_follower_takes_nothing_with_it() {
    all_at_once(&[End::Finish; 3], true, finished_once);
    all_at_once(&[End::Drop, End::Finish, End::Finish], true, finished_once);
}

/// While it waits, in some schedules; in others it comes too late, or is cancelled before.
#[test]
fn a_follower_that_waits_is_told_that_it_is_cancelled() {
    let told = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let seen = Arc::clone(&told);
    explore(move || {
        let (map, cancel) = (Map::new(), Cancel::new());
        let Claim::Owner(owner) = map.claim(7) else { panic!("nobody was before it") };
        let (other, token) = (map.clone(), cancel.clone());
        let follower = thread::spawn(move || {
            let Claim::Follower(ticket) = other.claim(7) else { return false };
            waits();
            let waited = ticket.wait(&token, None);
            waited.is_err() && waits() > 0
        });
        let canceller = thread::spawn(move || cancel.cancel());
        // Work, so that there is something to wait for.
        (0..8).for_each(|_| thread::yield_now());
        owner.finish(1);
        canceller.join().expect("no panic");
        let told = follower.join().expect("no panic");
        seen.fetch_add(usize::from(told), Ordering::SeqCst);
        assert!(map.is_empty(), "{} keys are left in the map", map.len());
    });
    let told = told.load(Ordering::SeqCst);
    assert!(told > 10, "{told} schedules only, so this shows nothing");
}

#[test]
fn a_panic_in_an_owner_hands_on() {
    explore(|| {
        let (map, world) = (Map::new(), Arc::new(World::default()));
        let (other, seen) = (map.clone(), Arc::clone(&world));
        let follower = thread::spawn(move || claim_and_work(&other, &seen, &Cancel::new(), End::Finish));
        let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            if let Claim::Owner(_owner) = map.claim(7) {
                std::panic::resume_unwind(Box::new("on purpose"));
            }
        }));
        follower.join().expect("no panic");
        assert!(panicked.is_err() || world.finished.load(Ordering::SeqCst) == 1);
        claim_and_work(&map, &world, &Cancel::new(), End::Finish);
        assert!(map.is_empty());
        finished_once(&world);
    });
}

/// An owner without progress loses its claim at any moment. Then two may work, which the store permits (publishing is
/// idempotent); only one result counts, and nobody hangs.
#[test]
fn an_overtaken_owner_finishes_silently() {
    explore(|| {
        let map = Map::new();
        let threads: Vec<_> = (0..3)
            .map(|number| {
                let map = map.clone();
                thread::spawn(move || match map.claim(7) {
                    Claim::Owner(owner) => owner.finish(number),
                    Claim::Follower(ticket) => match ticket.wait(&Cancel::new(), Some(Duration::ZERO)) {
                        Ok(Waited::Done(value)) => assert!(value < 3),
                        Ok(Waited::Yours(owner)) => {
                            assert_eq!(*owner.key(), 7);
                            owner.finish(number);
                        }
                        Err(error) => panic!("nobody cancelled: {error}"),
                    },
                })
            })
            .collect();
        threads.into_iter().for_each(|thread| thread.join().expect("no panic"));
        assert!(map.is_empty());
    });
}

/// Imports claim before they work and never wait while a lane of theirs still has to: opposite orders cannot cycle.
#[test]
fn two_keys_in_opposite_orders_never_deadlock() {
    explore(|| {
        let map = Map::new();
        let threads = [[1, 2], [2, 1]].map(|keys| {
            let map = map.clone();
            thread::spawn(move || {
                let (mut owned, mut followed) = (Vec::new(), Vec::new());
                for key in keys {
                    match map.claim(key) {
                        Claim::Owner(owner) => owned.push(owner),
                        Claim::Follower(ticket) => followed.push(ticket),
                    }
                }
                owned.into_iter().for_each(|owner| owner.finish(1));
                for ticket in followed {
                    assert!(matches!(ticket.wait(&Cancel::new(), None), Ok(Waited::Done(1))));
                }
            })
        });
        threads.into_iter().for_each(|thread| thread.join().expect("no panic"));
        assert!(map.is_empty());
    });
}

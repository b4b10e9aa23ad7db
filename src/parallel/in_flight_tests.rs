//! The map with real threads. Every interleaving of small cases is explored in `tests/model`, which compiles `in_flight.rs`
//! with other primitives; so the tests are not in that file.

use super::{Cancel, Claim, InFlight, Owner, Ticket, Waited};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

fn own(map: &InFlight<u32, u32>) -> Owner<u32, u32> {
    match map.claim(1) {
        Claim::Owner(owner) => owner,
        Claim::Follower(_) => panic!("expected to own"),
    }
}

fn follow(map: &InFlight<u32, u32>) -> Ticket<u32, u32> {
    match map.claim(1) {
        Claim::Follower(ticket) => ticket,
        Claim::Owner(_) => panic!("expected to follow"),
    }
}

#[test]
fn a_dropped_owner_hands_on_to_exactly_one_follower() {
    let map = InFlight::new();
    let owner = own(&map);
    let worked = AtomicUsize::new(0);
    let tickets: Vec<_> = (0..8).map(|_| follow(&map)).collect();
    std::thread::scope(|scope| {
        for ticket in tickets {
            scope.spawn(|| match ticket.wait(&Cancel::new(), None).expect("not cancelled") {
                Waited::Done(value) => assert_eq!(value, 5),
                Waited::Yours(owner) => {
                    worked.fetch_add(1, Ordering::Relaxed);
                    std::thread::sleep(Duration::from_millis(20));
                    owner.finish(5);
                }
            });
        }
        drop(owner);
    });
    assert_eq!(worked.load(Ordering::Relaxed), 1);
    assert!(map.is_empty());
}

#[test]
fn a_panicking_owner_hands_on() {
    let map = InFlight::new();
    let owner = own(&map);
    let ticket = follow(&map);
    let panicked = std::thread::spawn(move || {
        let _owner = owner;
        panic!("on purpose");
    });
    assert!(panicked.join().is_err());
    assert!(matches!(ticket.wait(&Cancel::new(), None), Ok(Waited::Yours(_))));
}

#[test]
fn a_stalled_owner_loses_the_claim_and_its_finish_counts_for_nothing() {
    let map = InFlight::new();
    let stalled = own(&map);
    let ticket = follow(&map);
    let Ok(Waited::Yours(second)) = ticket.wait(&Cancel::new(), Some(Duration::from_millis(60))) else {
        panic!("the stalled owner keeps the claim")
    };
    assert!(stalled.is_lost());
    let third = follow(&map);
    stalled.finish(1);
    second.finish(2);
    assert!(matches!(third.wait(&Cancel::new(), None), Ok(Waited::Done(2))));
}

#[test]
fn a_cancelled_follower_stops_and_leaves_the_owner_alone() {
    let map = InFlight::new();
    let owner = own(&map);
    let cancel = Cancel::new();
    cancel.cancel();
    assert!(follow(&map).wait(&cancel, None).is_err());
    let ticket = follow(&map);
    owner.finish(3);
    assert!(matches!(ticket.wait(&Cancel::new(), None), Ok(Waited::Done(3))));
}

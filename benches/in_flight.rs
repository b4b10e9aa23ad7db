//! Claims a second by threads: each key claimed by one, and all threads after few keys.

mod common;

use common::Table;
use std::time::Instant;
use transload::Cancel;
use transload::parallel::{Claim, InFlight, Waited};

/// How long a case takes about.
const CLAIMS: usize = 400_000;

fn main() {
    let scratch = common::scratch();
    common::head("in_flight", scratch.path());
    let mut table =
        Table::new(&["threads", "own keys, claims/s", "64 keys shared, claims/s", "of them waited"]);
    for threads in [1, 2, 4, 8, 16, 32, 64] {
        let (own, _) = run(threads, u64::MAX);
        let (shared, waited) = run(threads, 64);
        table.row(&[threads.to_string(), format!("{own:.0}"), format!("{shared:.0}"), waited.to_string()]);
    }
    table.print();
}

/// Claims a second, and how many found another at work.
fn run(threads: usize, keys: u64) -> (f64, usize) {
    let map: InFlight<u64, ()> = InFlight::new();
    let each = CLAIMS * common::factor() / threads;
    let work = &|thread: usize| {
        let mut waited = 0;
        for n in 0..each {
            match map.claim((thread * each + n) as u64 % keys) {
                Claim::Owner(owner) => owner.finish(()),
                Claim::Follower(ticket) => {
                    waited += 1;
                    if let Ok(Waited::Yours(owner)) = ticket.wait(&Cancel::new(), None) {
                        owner.finish(());
                    }
                }
            }
        }
        waited
    };
    let began = Instant::now();
    let waited = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..threads).map(|thread| scope.spawn(move || work(thread))).collect();
        threads.into_iter().map(|thread| thread.join().expect("no panic")).sum()
    });
    assert!(map.is_empty(), "every claim has ended");
    ((each * threads) as f64 / began.elapsed().as_secs_f64(), waited)
}

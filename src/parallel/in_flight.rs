//! Once-only work: whoever claims a key first owns it, everyone else follows and shares the result.
//!
//! [`InFlight::claim`] answers at once: [`Claim::Owner`] does the work and [`Owner::finish`]es it;
//! [`Claim::Follower`] holds a [`Ticket`] and [`Ticket::wait`]s for the result. An owner that is dropped unfinished, by
//! error, cancellation or panic, hands the work to one of its followers, so nobody hangs. An owner that shows no
//! progress for longer than a follower's patience loses the claim.
//!
//! Abandoned work stays under its key as long as someone waits for it, so that exactly one of them takes it over.
//! An entry vanishes from the map when it is finished: from then on the store itself answers "already here". The
//! value reaches the followers through the slot that their tickets share. No `DashMap` guard is held across a wait.

use super::Cancel;
use super::sync::{Arc, Condvar, DashMap, Entry, Mutex, MutexGuard};
use crate::error::Result;
use std::hash::Hash;
use std::time::{Duration, Instant};

/// How often a waiting follower looks whether it has been cancelled.
const CANCEL_POLL: Duration = Duration::from_millis(50);

/// Keys that are being worked on. Clones share the map.
#[derive(Debug)]
pub struct InFlight<K: Eq + Hash, V> {
    map: Arc<DashMap<K, Arc<Slot<V>>>>,
}

impl<K: Eq + Hash, V> Clone for InFlight<K, V> {
    fn clone(&self) -> Self {
        InFlight { map: Arc::clone(&self.map) }
    }
}

#[derive(Debug)]
struct Slot<V> {
    state: Mutex<State<V>>,
    changed: Condvar,
}

#[derive(Debug)]
struct State<V> {
    /// Counts owners; an owner whose number is not the current one has lost the claim.
    generation: u64,
    followers: usize,
    phase: Phase<V>,
    last_progress: Instant,
}

#[derive(Debug)]
enum Phase<V> {
    Working,
    /// The owner let go unfinished; the first follower to look takes over.
    Abandoned,
    Done(V),
}

/// The answer to a claim.
#[derive(Debug)]
pub enum Claim<K: Eq + Hash + Clone, V: Clone> {
    /// The caller does the work.
    Owner(Owner<K, V>),
    /// Someone else does; wait for it.
    Follower(Ticket<K, V>),
}

/// The answer to a wait.
#[derive(Debug)]
pub enum Waited<K: Eq + Hash + Clone, V: Clone> {
    /// The work is done, by another.
    Done(V),
    /// The other let go or stalled; the caller does the work now.
    Yours(Owner<K, V>),
}

/// The right to do the work of one key. Dropped unfinished, it hands the work on.
#[derive(Debug)]
#[must_use = "an owner that is dropped hands the work on"]
pub struct Owner<K: Eq + Hash + Clone, V: Clone> {
    map: InFlight<K, V>,
    key: K,
    slot: Arc<Slot<V>>,
    generation: u64,
}

/// A place in the queue behind an owner.
#[derive(Debug)]
pub struct Ticket<K: Eq + Hash + Clone, V: Clone> {
    map: InFlight<K, V>,
    key: K,
    slot: Arc<Slot<V>>,
}

impl<K: Eq + Hash, V> Default for InFlight<K, V> {
    fn default() -> Self {
        InFlight { map: Arc::new(DashMap::new()) }
    }
}

impl<K: Eq + Hash + Clone, V: Clone> InFlight<K, V> {
    /// An empty map.
    ///
    /// ```
    /// use transload::parallel::{Cancel, Claim, InFlight, Waited};
    /// let blobs: InFlight<u32, &str> = InFlight::new();
    /// let Claim::Owner(owner) = blobs.claim(7) else { panic!("nobody was before us") };
    /// let Claim::Follower(ticket) = blobs.claim(7) else { panic!("7 is taken") };
    /// owner.finish("written");
    /// assert!(matches!(ticket.wait(&Cancel::new(), None), Ok(Waited::Done("written"))));
    /// ```
    pub fn new() -> Self {
        Self::default()
    }

    /// Claims `key`, without waiting.
    ///
    /// An owner looks into the store before it works: what was finished a moment ago is no longer in the map.
    pub fn claim(&self, key: K) -> Claim<K, V> {
        match self.map.entry(key.clone()) {
            Entry::Occupied(entry) => {
                let slot = Arc::clone(entry.get());
                // Joined while the entry is held, so that nobody forgets the slot in between.
                let generation = slot.join();
                drop(entry);
                match generation {
                    Some(generation) => Claim::Owner(Owner { map: self.clone(), key, slot, generation }),
                    None => Claim::Follower(Ticket { map: self.clone(), key, slot }),
                }
            }
            Entry::Vacant(entry) => {
                let slot = Arc::new(Slot::new());
                entry.insert(Arc::clone(&slot));
                Claim::Owner(Owner { map: self.clone(), key, slot, generation: 0 })
            }
        }
    }

    /// How many keys are being worked on.
    pub fn len(&self) -> usize {
        self.map.len()
    }

    /// Whether nothing is being worked on.
    pub fn is_empty(&self) -> bool {
        self.map.is_empty()
    }

    /// Takes `slot` out of the map if nobody needs it any more.
    fn forget(&self, key: &K, slot: &Arc<Slot<V>>) {
        self.map.remove_if(key, |_, present| Arc::ptr_eq(present, slot) && present.is_over());
    }
}

impl<V> Slot<V> {
    fn new() -> Self {
        let state =
            State { generation: 0, followers: 0, phase: Phase::Working, last_progress: Instant::now() };
        Slot { state: Mutex::new(state), changed: Condvar::new() }
    }

    /// Becomes the owner of abandoned work (`Some` generation) or a follower.
    fn join(&self) -> Option<u64> {
        let mut state = self.lock();
        if matches!(state.phase, Phase::Abandoned) {
            return Some(state.take_over());
        }
        state.followers += 1;
        None
    }

    fn is_over(&self) -> bool {
        let state = self.lock();
        match state.phase {
            Phase::Working => false,
            Phase::Abandoned => state.followers == 0,
            Phase::Done(_) => true,
        }
    }

    /// A panic while holding this lock is impossible short of a bug in here; the state stays whole either way.
    fn lock(&self) -> MutexGuard<'_, State<V>> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl<V> State<V> {
    fn take_over(&mut self) -> u64 {
        self.generation += 1;
        self.phase = Phase::Working;
        self.last_progress = Instant::now();
        self.generation
    }
}

impl<K: Eq + Hash + Clone, V: Clone> Owner<K, V> {
    /// The key that is owned.
    pub fn key(&self) -> &K {
        &self.key
    }

    /// Says that the work goes on. Call it every few chunks.
    pub fn beat(&self) {
        self.slot.lock().last_progress = Instant::now();
    }

    /// Whether the claim was lost to a follower that ran out of patience.
    pub fn is_lost(&self) -> bool {
        self.slot.lock().generation != self.generation
    }

    /// Hands `value` to all followers and forgets the key. A lost claim finishes silently: the other's result counts.
    pub fn finish(self, value: V) {
        self.settle(Phase::Done(value));
    }

    fn settle(&self, phase: Phase<V>) {
        let mut state = self.slot.lock();
        if state.generation != self.generation || !matches!(state.phase, Phase::Working) {
            return;
        }
        state.phase = phase;
        drop(state);
        self.map.forget(&self.key, &self.slot);
        self.slot.changed.notify_all();
    }
}

impl<K: Eq + Hash + Clone, V: Clone> Drop for Owner<K, V> {
    fn drop(&mut self) {
        self.settle(Phase::Abandoned);
    }
}

impl<K: Eq + Hash + Clone, V: Clone> Ticket<K, V> {
    /// The key that is waited for.
    pub fn key(&self) -> &K {
        &self.key
    }

    /// Waits until the owner finishes or lets go. With `patience`, an owner that shows no progress for that long
    /// loses the claim to this follower.
    pub fn wait(self, cancel: &Cancel, patience: Option<Duration>) -> Result<Waited<K, V>> {
        let mut state = self.slot.lock();
        loop {
            let stalled = patience.is_some_and(|patience| state.last_progress.elapsed() > patience);
            match &state.phase {
                Phase::Done(value) => return Ok(Waited::Done(value.clone())),
                Phase::Working if !stalled => cancel.check()?,
                Phase::Working | Phase::Abandoned => {
                    let generation = state.take_over();
                    drop(state);
                    let (map, key, slot) = (self.map.clone(), self.key.clone(), Arc::clone(&self.slot));
                    return Ok(Waited::Yours(Owner { map, key, slot, generation }));
                }
            }
            let waited = self.slot.changed.wait_timeout(state, CANCEL_POLL);
            state = waited.unwrap_or_else(|poisoned| poisoned.into_inner()).0;
        }
    }
}

impl<K: Eq + Hash + Clone, V: Clone> Drop for Ticket<K, V> {
    fn drop(&mut self) {
        self.slot.lock().followers -= 1;
        self.map.forget(&self.key, &self.slot);
    }
}

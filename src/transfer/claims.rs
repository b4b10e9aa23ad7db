//! The right to write a blob or to extract a layer, once per store: the in-flight map between the threads of this
//! process, a `flock` on the working place between processes.
//!
//! A claim never waits. Whoever does not get it receives a [`Waiting`] and joins it after its own work is done, so
//! opposite orders cannot cycle; a wait ends without a claim, and the store is asked again.

use crate::content::{BlobIngest, IngestRef};
use crate::error::{Error, ErrorKind, Result};
use crate::io::locked::LockedDir;
use crate::oci::{DiffId, Digest};
use crate::parallel::{Cancel, Claim, InFlight, Owner, Patience, Ticket};
use crate::snapshot::{TreeIngest, Trees};
use crate::store::{GcLock, Store};
use crate::trace;
use rustix::fd::OwnedFd;
use rustix::fs::{Timespec, Timestamps, UTIME_NOW, futimens};
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// What can be in flight. A layer is claimed under every identity that is known of it: by its blob before a stream has
/// shown its manifest, by its DiffID where two blobs of different compression unpack to one tree.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Key {
    Blob(Digest),
    TreeOfBlob(Digest),
    Tree(DiffId),
}

impl Key {
    /// The name of the directory under `ingest/` whose lock decides between processes.
    fn place(&self) -> String {
        match self {
            Key::Blob(digest) => IngestRef::blob(digest).name().to_string(),
            Key::TreeOfBlob(digest) => format!("tree-{}-{}", digest.algorithm().name(), digest.hex()),
            Key::Tree(diff_id) => Trees::working_place(diff_id),
        }
    }
}

/// The claims of one engine. Clones share them; other engines, in this process or another, are met at the locks.
#[derive(Clone, Debug, Default)]
pub struct Claims {
    in_flight: InFlight<Key, ()>,
}

/// A claim that was taken by another.
pub(crate) enum Waiting {
    Thread(Ticket<Key, ()>),
    Process { place: String, _owner: Option<Owner<Key, ()>> },
}

/// How a wait ended.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum WaitEnd {
    /// The other has finished or let go.
    Over,
    /// The other shows no progress; go on without it.
    Stalled,
}

/// A claim, or someone to wait for.
pub(crate) enum Claimed<T> {
    Mine(T),
    Taken(Waiting),
}

/// The right to write one blob.
pub(crate) struct BlobClaim {
    pub(crate) ingest: BlobIngest,
    pub(crate) guard: Guard,
}

/// The right to extract one layer.
pub(crate) struct TreeClaim<'s> {
    pub(crate) ingest: TreeIngest<'s>,
    pub(crate) guard: Guard,
}

/// Keeps a claim alive. Dropped, it hands the work on; [`Guard::finish`] ends it well.
#[derive(Default)]
pub(crate) struct Guard {
    owners: Vec<Owner<Key, ()>>,
    extra: Option<LockedDir>,
    /// The working place of a tree, to show others in other processes that its owner is alive.
    place: Option<OwnedFd>,
    /// Whether the layer is claimed by its DiffID, and not only by its blob.
    pub(crate) by_diff_id: bool,
    beaten: Mutex<Option<Instant>>,
}

/// How often a working owner shows that it is alive.
const BEAT: Duration = Duration::from_millis(500);

impl Guard {
    /// Says that the work goes on. Cheap enough to call with every chunk.
    pub(crate) fn beat(&self) {
        let mut beaten = self.beaten.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if beaten.is_none_or(|at| at.elapsed() > BEAT) {
            *beaten = Some(Instant::now());
            self.owners.iter().for_each(Owner::beat);
            self.extra.iter().for_each(LockedDir::beat);
            let now = Timespec { tv_sec: 0, tv_nsec: UTIME_NOW };
            let now = Timestamps { last_access: now, last_modification: now };
            // A hint to others; the work does not depend on it.
            if let Some(place) = &self.place {
                let _ = futimens(place, &now);
            }
        }
    }

    /// The work is done and recorded: followers go on.
    pub(crate) fn finish(mut self) {
        self.give_back();
        for owner in self.owners.drain(..) {
            owner.finish(());
        }
    }

    /// The lock goes before the owners: a follower in this process that asks the other lock must find it free.
    fn give_back(&mut self) {
        if let Some(dir) = self.extra.take() {
            // It is empty; a leftover would be swept by gc.
            let _ = dir.remove();
        }
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.give_back();
    }
}

impl Claims {
    /// Claims the writing of a blob whose digest is announced.
    pub(crate) fn blob(&self, store: &Store, digest: &Digest) -> Result<Claimed<BlobClaim>> {
        let key = Key::Blob(*digest);
        let owner = match self.in_flight.claim(key.clone()) {
            Claim::Owner(owner) => owner,
            Claim::Follower(ticket) => return Ok(Claimed::Taken(Waiting::Thread(ticket))),
        };
        match store.content().begin(&IngestRef::blob(digest), digest.algorithm()) {
            Ok(ingest) => {
                let mut guard = Guard::default();
                guard.owners.push(owner);
                Ok(Claimed::Mine(BlobClaim { ingest, guard }))
            }
            Err(error) if error.kind() == ErrorKind::Busy => {
                Ok(Claimed::Taken(Waiting::Process { place: key.place(), _owner: Some(owner) }))
            }
            Err(error) => Err(error),
        }
    }

    /// Claims the extraction of a layer under what is known of it; at least one of the two is.
    pub(crate) fn tree<'s>(
        &self,
        store: &'s Store,
        blob: Option<&Digest>,
        diff_id: Option<&DiffId>,
    ) -> Result<Claimed<TreeClaim<'s>>> {
        let keys: Vec<Key> = blob
            .map(|digest| Key::TreeOfBlob(*digest))
            .into_iter()
            .chain(diff_id.map(|id| Key::Tree(*id)))
            .collect();
        let mut guard = Guard::default();
        guard.by_diff_id = diff_id.is_some();
        for key in &keys {
            match self.in_flight.claim(key.clone()) {
                Claim::Owner(owner) => guard.owners.push(owner),
                Claim::Follower(ticket) => return Ok(Claimed::Taken(Waiting::Thread(ticket))),
            }
        }
        let [place, extra @ ..] = keys.as_slice() else {
            return Err(Error::new(ErrorKind::Internal, "a layer without any identity was claimed"));
        };
        if let Some(key) = extra.first() {
            match LockedDir::try_acquire(store.content().ingests(), &key.place())? {
                Some(dir) => guard.extra = Some(dir),
                None => return Ok(Claimed::Taken(Waiting::Process { place: key.place(), _owner: None })),
            }
        }
        match store.trees().try_begin(&place.place())? {
            Some(ingest) => {
                guard.place = Some(ingest.place()?);
                Ok(Claimed::Mine(TreeClaim { ingest, guard }))
            }
            None => Ok(Claimed::Taken(Waiting::Process { place: place.place(), _owner: None })),
        }
    }
}

/// How long a finished blob that nobody announced waits for another writer of the same bytes.
const PUBLICATION_WAIT: Duration = Duration::from_secs(1);

/// The right to publish something that was not announced.
pub(crate) enum Publication {
    /// Nobody else makes or removes it.
    Alone(LockedDir),
    /// Someone else is making it, and both publish the same (see [`Metadata::blob_publish`](crate::metadata::Metadata)), so this
    /// is right as well, and only less frugal. Nobody removes it: no collection is
    /// between forgetting a thing and removing it as long as this is held.
    Beside { _no_sweep: GcLock },
}

impl Publication {
    /// It is published. The place is empty; a leftover would be swept by gc.
    pub(crate) fn finish(self) -> Result<()> {
        match self {
            Publication::Alone(place) => place.remove(),
            Publication::Beside { .. } => Ok(()),
        }
    }
}

/// Takes the place of the announced makers of something, for the moment of publishing what was not announced. What is
/// published is on our lease by now; look after this whether it is there. [`ErrorKind::Busy`] if a collection was stopped
/// in the midst of removing things.
pub(crate) fn publication(store: &Store, key: &Key, patience: Patience<'_>) -> Result<Publication> {
    let started = Instant::now();
    loop {
        if let Some(place) = LockedDir::try_acquire(store.content().ingests(), &key.place())? {
            return Ok(Publication::Alone(place));
        }
        if started.elapsed() > PUBLICATION_WAIT {
            break;
        }
        patience.check()?;
        std::thread::sleep(Duration::from_millis(2));
    }
    Ok(Publication::Beside { _no_sweep: store.sweep_lock_shared(patience)? })
}

impl Waiting {
    /// Waits until the other has finished or let go, or has shown no progress for `patience`.
    pub(crate) fn join(self, store: &Store, cancel: &Cancel, patience: Duration) -> Result<WaitEnd> {
        let span = trace::stage!("wait", key = self.key(), owner = self.owner(), stalled);
        trace::within(span, |span| {
            let end = self.wait(store, cancel, patience)?;
            span.record("stalled", end == WaitEnd::Stalled);
            Ok(end)
        })
    }

    /// The working place that is waited for; a blob's carries its digest, a layer's its blob's or its DiffID.
    fn key(&self) -> String {
        match self {
            Waiting::Thread(ticket) => ticket.key().place(),
            Waiting::Process { place, .. } => place.clone(),
        }
    }

    fn owner(&self) -> &'static str {
        match self {
            Waiting::Thread(_) => "thread",
            Waiting::Process { .. } => "process",
        }
    }

    fn wait(self, store: &Store, cancel: &Cancel, patience: Duration) -> Result<WaitEnd> {
        match self {
            Waiting::Thread(ticket) => {
                let started = Instant::now();
                match ticket.wait(cancel, Some(patience))? {
                    crate::parallel::Waited::Done(()) => Ok(WaitEnd::Over),
                    // Letting go of it at once hands it on or back to us; the store is asked again either way.
                    crate::parallel::Waited::Yours(_) if started.elapsed() < patience => Ok(WaitEnd::Over),
                    crate::parallel::Waited::Yours(_) => Ok(WaitEnd::Stalled),
                }
            }
            Waiting::Process { place, _owner } => wait_for_process(store, &place, &_owner, cancel, patience),
        }
    }
}

fn wait_for_process(
    store: &Store,
    place: &str,
    owner: &Option<Owner<Key, ()>>,
    cancel: &Cancel,
    patience: Duration,
) -> Result<WaitEnd> {
    let ingests = store.content().ingests();
    let mut pause = Duration::from_millis(1);
    // Whether the other's marks move is what counts, and for how long they have not by our own watch: the clock that they
    // show may be set at any time.
    let (mut seen, mut since) = (None, Instant::now());
    while LockedDir::is_taken(ingests, place)? {
        cancel.check()?;
        if let Some(owner) = owner {
            owner.beat();
        }
        let now = Some(LockedDir::progress(ingests, place));
        if now != seen {
            (seen, since) = (now, Instant::now());
        } else if since.elapsed() > patience {
            return Ok(WaitEnd::Stalled);
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(20));
    }
    Ok(WaitEnd::Over)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::progress::Event;
    use crate::store::StoreOptions;

    #[test]
    fn who_overtakes_a_stalled_maker_publishes_only_while_no_collection_sweeps() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let options = StoreOptions { create: true, ..StoreOptions::default() };
        let store = Store::open(dir.path(), &options).expect("opens");
        let (key, cancel) = (Key::Blob(Digest::of(b"x")), Cancel::new());
        let alone = publication(&store, &key, (&cancel).into()).expect("free");
        assert!(matches!(alone, Publication::Alone(_)));
        let sweeping = store.sweep_lock_exclusive(&cancel).expect("locks");
        let cancelled = Cancel::new();
        let told = |_: &Event| cancelled.cancel();
        let patience = Patience::new(&cancelled).at_most(Duration::from_millis(1)).telling(&told);
        let refused = publication(&store, &key, patience).err().map(|error| error.kind());
        assert_eq!(refused, Some(ErrorKind::Cancelled), "never without any lock");
        assert!(cancelled.is_cancelled(), "it waited for the sweep");
        drop(sweeping);
        let beside = publication(&store, &key, (&cancel).into()).expect("no sweep");
        assert!(matches!(beside, Publication::Beside { .. }));
        let kept_out = store.sweep_lock_exclusive(&cancelled).err().map(|error| error.kind());
        assert_eq!(kept_out, Some(ErrorKind::Cancelled), "and the collection waits for it");
        beside.finish().expect("lets go");
        store.sweep_lock_exclusive(&cancel).expect("free again");
    }
}

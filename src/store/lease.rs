//! Leases of running work.
//!
//! A lease is a row in the database and a locked file `leases/<id>`. The kernel lets go of the lock when the process
//! dies, so a dead one's lease is recognised at once and needs no time-out.

use super::{GcLock, Store, lock};
use crate::error::{Error, ErrorKind, Result, ResultExt};
use crate::io::durable;
use crate::metadata::{ImageRow, Labels, LeaseRow, Resource, now_ms};
use crate::parallel::{Patience, failpoint};
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{self, AtFlags, FlockOperation, Mode, OFlags};
use rustix::io::Errno;

/// The label of leases that end with the process that took them; its value is the process id, for people.
pub const PROCESS_LABEL: &str = "transload.process";

const DIRECTORY: &str = "leases";

/// Holds what it was given until it is dropped, or its process dies.
///
/// Put things on it first and look at them second: what was seen before it was held may be gone.
pub struct Lease<'a> {
    store: &'a Store,
    id: String,
    directory: OwnedFd,
    _alive: OwnedFd,
    _at_work: GcLock,
}

impl<'a> Lease<'a> {
    pub(super) fn take(store: &'a Store, patience: Patience<'_>) -> Result<Self> {
        let at_work = store.gc_lock_shared(patience)?;
        let directory = durable::open_dir(store.root(), DIRECTORY)?;
        failpoint::at("lease.create")?;
        let (id, alive) = locked_file(&directory)?;
        failpoint::at("lease.record")?;
        let labels = [(PROCESS_LABEL.to_string(), std::process::id().to_string())].into();
        let lease = Lease { store, id, directory, _alive: alive, _at_work: at_work };
        store.metadata.lease_create(&lease.id, None, &labels)?;
        Ok(lease)
    }

    /// The lease's id.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Puts things on the lease, whether they exist yet or not.
    pub fn add(&self, resources: &[Resource]) -> Result<()> {
        match resources {
            [] => Ok(()),
            _ => self.store.metadata.lease_hold(&self.id, resources),
        }
    }

    /// Puts on the lease what images need, and gives their rows as they are then. [`ErrorKind::NotFound`] if one of them
    /// is gone.
    pub fn add_images(&self, images: &[ImageRow]) -> Result<Vec<ImageRow>> {
        self.store.metadata.lease_hold_images(&self.id, images)
    }
}

impl Drop for Lease<'_> {
    fn drop(&mut self) {
        // What fails here is taken for a dead process's lease by the next collection.
        let _ = failpoint::at("lease.release")
            .map_err(Into::into)
            .and_then(|()| self.store.metadata.lease_remove(&self.id));
        let _ = failpoint::at("lease.unlink");
        let _ = fs::unlinkat(&self.directory, self.id.as_str(), AtFlags::empty());
    }
}

/// A new file with our lock on it. A collection may see it before it is locked and sweep it; then there is a next one.
fn locked_file(directory: &OwnedFd) -> Result<(String, OwnedFd)> {
    loop {
        let id = durable::unique_name();
        let file = lock::open(directory.as_fd(), &id)?;
        if lock::try_lock(&file, FlockOperation::NonBlockingLockExclusive)?
            && still_named(directory, &id, &file)?
        {
            return Ok((id, file));
        }
    }
}

fn still_named(directory: &OwnedFd, name: &str, file: &OwnedFd) -> Result<bool> {
    let held = fs::fstat(file)?;
    match fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(named) => Ok((named.st_dev, named.st_ino) == (held.st_dev, held.st_ino)),
        Err(Errno::NOENT) => Ok(false),
        Err(errno) => Err(errno).doing(|| format!("cannot look at lease {name}")),
    }
}

/// A lease as people see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaseState {
    /// The row.
    pub row: LeaseRow,
    /// Whether it holds: it has not expired, and its process, if it has one, lives.
    pub live: bool,
    /// The process that it ends with.
    pub process: Option<u32>,
    /// What it holds.
    pub resources: Vec<Resource>,
}

impl Store {
    /// Makes a lease that ends when it is removed, or at `expires_ms` (in milliseconds since 1970) unless it is renewed;
    /// the process does not matter. [`ErrorKind::AlreadyExists`] for a taken id.
    pub fn lease_create(&self, id: &str, expires_ms: Option<u64>, labels: &Labels) -> Result<()> {
        self.check_writable()?;
        self.metadata.lease_create(id, expires_ms, labels)
    }

    /// Lets a lease end at another time. [`ErrorKind::NotFound`] once it has gone, and what it held may be gone too.
    /// [`ErrorKind::FailedPrecondition`] for one that ends with a process.
    pub fn lease_renew(&self, id: &str, expires_ms: Option<u64>) -> Result<()> {
        let renew = || -> Result<()> {
            self.check_writable()?;
            let row = self.lease_row(id)?;
            if row.labels.contains_key(PROCESS_LABEL) {
                return Err(Error::new(ErrorKind::FailedPrecondition, "it ends with its process"));
            }
            self.metadata.lease_renew(id, expires_ms)
        };
        renew().doing(|| format!("cannot renew lease {id}"))
    }

    /// Puts things on a lease, with what they name. The lease goes on until it ends.
    pub fn lease_add(&self, id: &str, resources: &[Resource]) -> Result<()> {
        self.check_writable()?;
        self.metadata.lease_add(id, resources)
    }

    /// Ends a lease. [`ErrorKind::NotFound`] without it, [`ErrorKind::FailedPrecondition`] for one whose process lives: that
    /// counts on what it holds.
    pub fn lease_end(&self, id: &str) -> Result<()> {
        let end = || -> Result<()> {
            self.check_writable()?;
            let row = self.lease_row(id)?;
            if let (Some(process), true) = (row.labels.get(PROCESS_LABEL), self.lease_is_live(&row, 0)?) {
                let message = format!("process {process} holds it and is alive");
                return Err(
                    Error::new(ErrorKind::FailedPrecondition, message).with_hint("it ends with the process")
                );
            }
            self.metadata.lease_remove(id)
        };
        end().doing(|| format!("cannot end lease {id}"))
    }

    fn lease_row(&self, id: &str) -> Result<LeaseRow> {
        let found = self.metadata.leases()?.into_iter().find(|row| row.id == id);
        found.ok_or_else(|| {
            Error::new(ErrorKind::NotFound, "there is no such lease")
                .with_hint("'transload leases' lists them")
        })
    }

    /// All leases, and what they hold.
    pub fn lease_states(&self) -> Result<Vec<LeaseState>> {
        let now_ms = now_ms();
        let mut states = Vec::new();
        for row in self.metadata.leases()? {
            let live = self.lease_is_live(&row, now_ms)?;
            let process = row.labels.get(PROCESS_LABEL).and_then(|pid| pid.parse().ok());
            let resources = match self.metadata.lease_resources(&row.id) {
                // It ended since we looked.
                Err(error) if error.kind() == ErrorKind::NotFound => continue,
                other => other?,
            };
            states.push(LeaseState { row, live, process, resources });
        }
        Ok(states)
    }

    /// Whether a lease still holds: it has not expired, by its own time or by its label, and the process that it belongs to,
    /// if any, lives.
    pub fn lease_is_live(&self, lease: &LeaseRow, now_ms: u64) -> Result<bool> {
        if lease.is_over(now_ms) {
            return Ok(false);
        }
        if !lease.labels.contains_key(PROCESS_LABEL) {
            return Ok(true);
        }
        let directory = durable::open_dir(self.root(), DIRECTORY)?;
        Ok(!is_free(&directory, &lease.id)?.0)
    }

    /// Removes the files of leases whose processes are dead. Their rows are the caller's to remove.
    pub(crate) fn sweep_lease_files(&self) -> Result<()> {
        let directory = durable::open_dir(self.root(), DIRECTORY)?;
        for entry in fs::Dir::read_from(&directory).doing(|| "cannot list the leases")? {
            let entry = entry.doing(|| "cannot list the leases")?;
            let Ok(name) = entry.file_name().to_str() else { continue };
            if name == "." || name == ".." {
                continue;
            }
            // The lock is held while the name goes, so that nobody else gets it on a file without a name.
            if let (true, Some(_held)) = is_free(&directory, name)? {
                match fs::unlinkat(&directory, name, AtFlags::empty()) {
                    Ok(()) | Err(Errno::NOENT) => {}
                    Err(errno) => return Err(errno).doing(|| format!("cannot remove lease file {name}")),
                }
            }
        }
        Ok(())
    }
}

/// Whether nobody holds the file, and if so our own lock on it where it exists.
fn is_free(directory: &OwnedFd, name: &str) -> Result<(bool, Option<OwnedFd>)> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = match fs::openat(directory, name, flags, Mode::empty()) {
        Ok(file) => file,
        Err(Errno::NOENT) => return Ok((true, None)),
        Err(errno) => return Err(errno).doing(|| format!("cannot look at lease {name}")),
    };
    match lock::try_lock(&file, FlockOperation::NonBlockingLockExclusive)? {
        true => Ok((true, Some(file))),
        false => Ok((false, None)),
    }
}

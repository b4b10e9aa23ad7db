//! Leases of running work.
//!
//! A lease is a row in the database and a locked file `leases/<id>`. The kernel lets go of the lock when the process
//! dies, so a dead one's lease is recognised at once and needs no time-out.

use super::{GcLock, Store, lock};
use crate::error::{Result, ResultExt};
use crate::io::durable;
use crate::metadata::{LeaseRow, Resource};
use crate::parallel::{Cancel, failpoint};
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
    _no_gc: GcLock,
}

impl<'a> Lease<'a> {
    pub(super) fn take(store: &'a Store, cancel: &Cancel) -> Result<Self> {
        let no_gc = store.gc_lock_shared(cancel)?;
        let directory = durable::open_dir(store.root(), DIRECTORY)?;
        failpoint::at("lease.create")?;
        let (id, alive) = locked_file(&directory)?;
        failpoint::at("lease.record")?;
        let labels = [(PROCESS_LABEL.to_string(), std::process::id().to_string())].into();
        let lease = Lease { store, id, directory, _alive: alive, _no_gc: no_gc };
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
            _ => self.store.metadata.lease_add(&self.id, resources),
        }
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

impl Store {
    /// Whether a lease still holds: it has not expired, and the process that it belongs to, if any, lives.
    pub fn lease_is_live(&self, lease: &LeaseRow, now_ms: u64) -> Result<bool> {
        if lease.expires_ms.is_some_and(|expires| expires <= now_ms) {
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

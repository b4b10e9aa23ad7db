//! What is left over: work that was cut short, leases of dead processes, names that do not belong there. None of it
//! harms; the next collection takes what is ours.

use super::Check;
use crate::error::Result;
use crate::io::{durable, locked::LockedDir};
use crate::metadata::Resource;
use crate::oci::Digest;
use crate::upkeep::commands::quoted_path;
use crate::upkeep::measure::{measure, names};
use rustix::fd::AsFd;

impl Check<'_> {
    pub(super) fn leftovers(&self) -> Result<()> {
        self.left_ingests()?;
        self.left_leases()?;
        self.strangers("trees", |name| Digest::from_parts(algorithm_of(name), name).is_ok())?;
        self.strangers("snapshots", |name| name.parse::<u64>().is_ok())?;
        self.strangers("blobs/sha256", |name| Digest::from_parts("sha256", name).is_ok())?;
        self.strangers("blobs/sha512", |name| Digest::from_parts("sha512", name).is_ok())
    }

    /// Directories whose owner is gone. One that is locked is being worked in.
    fn left_ingests(&self) -> Result<()> {
        let ingests = self.store.content().ingests();
        for name in names(ingests)? {
            let name = name.to_string_lossy().into_owned();
            // A stray file cannot be locked, and counts as abandoned.
            let taken = LockedDir::is_taken(ingests, &name).unwrap_or(false);
            if taken || self.facts.is_held(Resource::Ingest(name.clone())) {
                continue;
            }
            let bytes = measure(ingests.as_fd(), &name)?.bytes;
            // Finished meanwhile.
            if rustix::fs::statat(ingests, name.as_str(), rustix::fs::AtFlags::SYMLINK_NOFOLLOW).is_err() {
                continue;
            }
            let message = format!("work that was cut short; it occupies {bytes} bytes");
            self.findings.leftover(format!("ingest/{name}"), message, "transload gc");
        }
        Ok(())
    }

    fn left_leases(&self) -> Result<()> {
        for lease in self.store.metadata().leases()? {
            if !self.store.lease_is_live(&lease, self.facts.now_ms)? {
                let message = match lease.labels.get(crate::store::PROCESS_LABEL) {
                    Some(process) if !lease.is_over(self.facts.now_ms) => {
                        format!("process {process}, which took it, is gone")
                    }
                    _ => "it has expired".to_string(),
                };
                self.findings.leftover(format!("lease {}", lease.id), message, "transload gc");
            }
        }
        Ok(())
    }

    /// Names that nobody here gives.
    fn strangers(&self, directory: &str, is_ours: impl Fn(&str) -> bool) -> Result<()> {
        let mut dir = durable::open_dir(self.store.root(), ".")?;
        for part in directory.split('/') {
            dir = durable::open_dir(&dir, part)?;
        }
        for name in names(&dir)? {
            let name = name.to_string_lossy();
            if !is_ours(&name) {
                let what = format!("{directory}/{name}");
                let path = quoted_path(&self.store.path().join(&what));
                let mend = format!("look at {path} and remove it by hand");
                self.findings.leftover(what, "it was put there by someone else", mend);
            }
        }
        Ok(())
    }
}

/// SHA-256 goes by its hex alone; the length tells the other algorithm apart.
fn algorithm_of(name: &str) -> &'static str {
    if name.len() == 64 { "sha256" } else { "sha512" }
}

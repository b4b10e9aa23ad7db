//! One page that explains the host and the store: what the kernel can do, what lies around, who holds what, and for each
//! thing that is not as it should be the command that mends it.
//!
//! Nothing is changed: the store is opened for reading, and what the next command that writes would bring up to date is told.
//! Where it can be tried it is tried: an overlay is mounted for a moment in a mount namespace that nobody sees. A store that
//! cannot even be opened is explained as far as that goes.

mod host;
mod layers;
mod leftovers;
mod locks;
mod mounts;
mod overlay;
mod quarantine;
mod space;

use super::commands;
use super::measure::size;
use crate::error::{Error, ErrorKind};
use crate::store::{FORMAT_VERSION, Store, StoreOptions};
use serde::Serialize;
use std::path::{Path, PathBuf};

/// How a thing is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Health {
    /// As it should be.
    Good,
    /// Worth knowing: something is missing that has a substitute, or lies around.
    Note,
    /// Something does not work, or will soon not.
    Fault,
}

/// One line of the page.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Remark {
    /// What it is about.
    pub topic: &'static str,
    /// How it is.
    pub health: Health,
    /// A sentence.
    pub says: String,
    /// What there is of it: paths, processes, ids.
    pub items: Vec<String>,
    /// The command that mends it.
    pub mend: Option<String>,
}

impl Remark {
    fn good(topic: &'static str, says: impl Into<String>) -> Self {
        Remark { topic, health: Health::Good, says: says.into(), items: Vec::new(), mend: None }
    }

    fn note(topic: &'static str, says: impl Into<String>) -> Self {
        Remark { health: Health::Note, ..Remark::good(topic, says) }
    }

    fn fault(topic: &'static str, says: impl Into<String>) -> Self {
        Remark { health: Health::Fault, ..Remark::good(topic, says) }
    }

    fn items(mut self, items: Vec<String>) -> Self {
        self.items = items;
        self
    }

    fn mend(mut self, command: impl Into<String>) -> Self {
        self.mend = Some(command.into());
        self
    }
}

/// The page.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DoctorReport {
    /// Whether nothing is a fault.
    pub healthy: bool,
    /// The kernel and what it allows.
    pub host: Vec<Remark>,
    /// Where the store is, or would be.
    pub path: PathBuf,
    /// The store.
    pub store: Vec<Remark>,
}

/// One part of the page about the store.
type Part = fn(&Store) -> crate::Result<Vec<Remark>>;

impl DoctorReport {
    /// Has the commands that mend something name the store, for somebody whose store is another one by default.
    pub fn name_store(&mut self, store: &Path) {
        let mends = self.store.iter_mut().filter_map(|remark| remark.mend.as_mut());
        mends.for_each(|mend| commands::name_store(mend, store));
    }
}

/// Any command that opens the store for writing brings it up to date; this one does nothing else.
const BRING_UP_TO_DATE: &str = "transload images";

/// Looks at the host and at the store at `root`, which need not exist.
pub fn doctor(root: &Path) -> DoctorReport {
    let host = host::look();
    let store = look_at_store(root);
    let healthy = host.iter().chain(&store).all(|remark| remark.health != Health::Fault);
    DoctorReport { healthy, host, path: root.to_path_buf(), store }
}

fn look_at_store(root: &Path) -> Vec<Remark> {
    if !root.exists() {
        return vec![Remark::note("store", "there is none yet").mend("transload import ARCHIVE")];
    }
    let mut remarks = space::look(root);
    let outdated = outdated(root);
    let is_outdated = outdated.is_some();
    remarks.extend(outdated);
    let store = match Store::open(root, &StoreOptions { read_only: true, ..StoreOptions::default() }) {
        Ok(store) => store,
        // What is in it can be told once it is up to date.
        Err(_) if is_outdated => return remarks,
        Err(error) => {
            remarks.push(cannot("store", &error));
            return remarks;
        }
    };
    let writable = store.could_write().unwrap_or_else(|error| {
        remarks.push(cannot("store", &error));
        false
    });
    remarks.push(format_of(&store, writable));
    remarks.extend(store.check_marks().err().map(|error| cannot("marks", &error)));
    let parts: [(&'static str, Part); 5] = [
        ("mounts", mounts::look),
        ("layers", layers::look),
        ("leftovers", leftovers::look),
        ("locks", locks::look),
        ("overlay", if writable { overlay::look } else { overlay::not_tried }),
    ];
    for (topic, part) in parts {
        match part(&store) {
            Ok(found) => remarks.extend(found),
            Err(error) => remarks.push(cannot(topic, &error)),
        }
    }
    remarks
}

/// A store of an earlier release.
fn outdated(root: &Path) -> Option<Remark> {
    let format = Store::format_at(root).ok()??;
    (format.version < FORMAT_VERSION).then(|| {
        let says = format!(
            "it has format {}, of an earlier release; the next command that writes gives it format {FORMAT_VERSION}, \
             which that release does not read",
            format.version
        );
        Remark::note("format", says).mend(BRING_UP_TO_DATE)
    })
}

/// What could not be looked at is a fault by itself.
fn cannot(topic: &'static str, error: &Error) -> Remark {
    let remark = Remark::fault(topic, error.to_string());
    match (error.hint(), error.kind()) {
        (Some(hint), _) => remark.mend(hint.to_string()),
        (None, ErrorKind::Permission) => remark.mend("run it as the owner of the store, or as root"),
        (None, _) => remark,
    }
}

fn format_of(store: &Store, writable: bool) -> Remark {
    let format = store.format();
    let says = format!(
        "format {}, {:?} snapshots, deletions marked in the form {:?}{}",
        format.version,
        format.snapshotter,
        format.whiteouts,
        if writable { "" } else { ", open for reading only" }
    );
    Remark::good("store", says.to_lowercase())
}

/// `1 ingest`, `2 ingests`.
fn count(number: usize, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}

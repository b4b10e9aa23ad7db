//! `transload.json`: what was decided when the store was made, and never changes after, but for the number of the format.

use super::{StoreOptions, filesystem};
use crate::error::{Error, ErrorKind, Result, ResultExt};
use crate::io::durable;
use crate::tree::WhiteoutForm;
use rustix::fd::BorrowedFd;
use rustix::fs::{self, AtFlags, Mode, OFlags, XattrFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use std::io::Read;

/// The format that this release writes.
pub const FORMAT_VERSION: u32 = 2;

const FILE: &str = "transload.json";

/// Nothing that we write there comes near it.
const MAX_FILE_BYTES: u64 = 64 << 10;

/// What turns trees into root filesystems.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SnapshotterKind {
    /// overlayfs mounts over shared trees.
    Overlay,
    /// Full copies, for filesystems without overlay.
    Plain,
}

/// One line of a uid or gid map: inside, outside, count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdRange(pub u32, pub u32, pub u32);

/// What was decided when the store was made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoreFormat {
    /// The format of the whole directory.
    pub version: u32,
    /// Its snapshotter.
    pub snapshotter: SnapshotterKind,
    /// Its form of whiteouts.
    pub whiteouts: WhiteoutForm,
    /// The user ids of the namespace that made it; owners in the trees mean something only there.
    pub uid_map: Vec<IdRange>,
    /// The group ids likewise.
    pub gid_map: Vec<IdRange>,
}

impl StoreFormat {
    /// Decides for a new store: as asked, else as filesystem and privileges allow.
    pub(super) fn choose(root: BorrowedFd<'_>, options: &StoreOptions) -> Result<Self> {
        let snapshotter = match options.snapshotter {
            Some(kind) => kind,
            None if filesystem::no_overlay(root)?.is_some() => SnapshotterKind::Plain,
            None => SnapshotterKind::Overlay,
        };
        let whiteouts = match (options.whiteouts, snapshotter) {
            (Some(form), _) => form,
            (None, SnapshotterKind::Plain) => WhiteoutForm::List,
            (None, SnapshotterKind::Overlay) if can_trust(root)? => WhiteoutForm::Trusted,
            (None, SnapshotterKind::Overlay) => WhiteoutForm::User,
        };
        let (uid_map, gid_map) = (id_map("uid_map"), id_map("gid_map"));
        Ok(StoreFormat { version: FORMAT_VERSION, snapshotter, whiteouts, uid_map, gid_map })
    }

    /// What a store was made as whose trees mark deletions so.
    fn of_trees(whiteouts: WhiteoutForm) -> Self {
        let snapshotter = match whiteouts {
            WhiteoutForm::List => SnapshotterKind::Plain,
            WhiteoutForm::Trusted | WhiteoutForm::User => SnapshotterKind::Overlay,
        };
        let (uid_map, gid_map) = (id_map("uid_map"), id_map("gid_map"));
        StoreFormat { version: FORMAT_VERSION, snapshotter, whiteouts, uid_map, gid_map }
    }

    /// Refuses a caller that asks for something else than what the store is.
    pub(super) fn check_options(&self, options: &StoreOptions) -> Result<()> {
        let other = |what: &str, has: String| {
            let message = format!("the store {what} {has}, which was decided when it was made");
            Err(Error::new(ErrorKind::FailedPrecondition, message)
                .with_hint("leave the choice out, or make another store with --store"))
        };
        if options.snapshotter.is_some_and(|kind| kind != self.snapshotter) {
            return other("uses the snapshotter", format!("{:?}", self.snapshotter).to_lowercase());
        }
        if options.whiteouts.is_some_and(|form| form != self.whiteouts) {
            return other("marks deletions in the form", format!("{:?}", self.whiteouts).to_lowercase());
        }
        Ok(())
    }

    /// Refuses a process to which the marks or the owners in the trees would mean something else.
    pub(super) fn check_process(&self) -> Result<()> {
        let here = (id_map("uid_map"), id_map("gid_map"));
        if (&self.uid_map, &self.gid_map) != (&here.0, &here.1) {
            let who = if self.whiteouts == WhiteoutForm::Trusted { "root" } else { "another user namespace" };
            let message =
                format!("the store was made by {who}, and its files' owners mean something else here");
            return Err(Error::new(ErrorKind::FailedPrecondition, message)
                .with_hint("use it as the user who made it, or choose another store with --store"));
        }
        if self.whiteouts == WhiteoutForm::Trusted && !rustix::process::geteuid().is_root() {
            return Err(Error::new(
                ErrorKind::FailedPrecondition,
                "the store was made by root and needs root",
            )
            .with_hint("run as root, or choose another store with --store"));
        }
        Ok(())
    }
}

/// Whether this process may set `trusted.*` attributes here. Asked by doing it: capabilities, namespaces and the
/// filesystem all have a say.
fn can_trust(root: BorrowedFd<'_>) -> Result<bool> {
    const PROBE: &str = "trusted.overlay.transload";
    match fs::fsetxattr(root, PROBE, b"y", XattrFlags::empty()) {
        Ok(()) => {
            fs::fremovexattr(root, PROBE).doing(|| "cannot take back a probe")?;
            Ok(true)
        }
        Err(Errno::PERM | Errno::ACCESS | Errno::NOTSUP) => Ok(false),
        Err(errno) => Err(errno).doing(|| "cannot probe for trusted attributes"),
    }
}

/// Without procfs, maps are empty, and equal to each other.
fn id_map(file: &str) -> Vec<IdRange> {
    let text = std::fs::read_to_string(format!("/proc/self/{file}")).unwrap_or_default();
    text.lines().filter_map(id_range).collect()
}

fn id_range(line: &str) -> Option<IdRange> {
    let mut numbers = line.split_whitespace().map(str::parse);
    let mut next = || numbers.next()?.ok();
    Some(IdRange(next()?, next()?, next()?))
}

#[derive(Deserialize)]
struct VersionOnly {
    version: u32,
}

/// The store's decisions; `None` where there is no store.
pub(super) fn read(root: BorrowedFd<'_>) -> Result<Option<StoreFormat>> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = match fs::openat(root, FILE, flags, Mode::empty()) {
        Ok(fd) => std::fs::File::from(fd),
        Err(Errno::NOENT) => return Ok(None),
        Err(errno) => return Err(errno).doing(|| format!("cannot read {FILE}")),
    };
    let mut json = Vec::new();
    file.take(MAX_FILE_BYTES).read_to_end(&mut json).doing(|| format!("cannot read {FILE}"))?;
    let parsed = parse(&json).map(Some).doing(|| format!("cannot read {FILE}"));
    parsed.map_err(|error| match error.kind() {
        ErrorKind::Corrupt => error.with_hint(REBUILD),
        _ => error,
    })
}

const REBUILD: &str = "run 'transload fsck --rebuild'";

/// What a directory without decisions has that is a store all the same.
const PARTS: [&str; 4] = ["oci-layout", "blobs", "trees", "snapshots"];

/// Whether everything else of a store is there.
fn has_parts(root: BorrowedFd<'_>) -> bool {
    PARTS.iter().all(|part| fs::statat(root, *part, AtFlags::SYMLINK_NOFOLLOW).is_ok())
}

/// [`ErrorKind::Corrupt`] for a store that has lost its decisions.
pub(super) fn check_lost(root: BorrowedFd<'_>) -> Result<()> {
    match has_parts(root) {
        false => Ok(()),
        true => {
            let message = format!("the store's {FILE} is gone, which says how it was made");
            Err(Error::new(ErrorKind::Corrupt, message).with_hint(REBUILD))
        }
    }
}

/// Whether a store has lost its decisions.
pub(super) fn is_lost(root: BorrowedFd<'_>) -> Result<bool> {
    match read(root) {
        Ok(Some(_)) => Ok(false),
        Err(error) if error.kind() != ErrorKind::Corrupt => Err(error),
        Ok(None) | Err(_) => Ok(has_parts(root)),
    }
}

/// Makes lost decisions anew out of what the extracted layers say. The maps are those of this process, which has to be the
/// owner's.
pub(super) fn restore(root: BorrowedFd<'_>, form: Option<WhiteoutForm>, has_snapshots: bool) -> Result<()> {
    let format = match form {
        Some(form) => StoreFormat::of_trees(form),
        // With nothing extracted any decision is as good.
        None if !has_snapshots => StoreFormat::choose(root, &StoreOptions::default())?,
        None => {
            let message = format!(
                "{FILE} is lost, and with it how deletions are marked; no extracted layer is left that would tell"
            );
            return Err(Error::new(ErrorKind::Corrupt, message).with_hint(
                "keep what is in snapshots/, and import the images into another store with --store",
            ));
        }
    };
    write(root, &format)
}

/// The version is looked at first: a newer format may have other fields.
fn parse(json: &[u8]) -> Result<StoreFormat> {
    let corrupt = |error: serde_json::Error| Error::new(ErrorKind::Corrupt, error.to_string());
    let VersionOnly { version } = serde_json::from_slice(json).map_err(corrupt)?;
    if version > FORMAT_VERSION {
        let message =
            format!("the store has format {version}, and this release reads up to {FORMAT_VERSION}");
        return Err(Error::new(ErrorKind::NewerFormat, message).with_hint("upgrade transload"));
    }
    serde_json::from_slice(json).map_err(corrupt)
}

/// Says that the store has been brought up to date. Other releases' numbers are looked at first, so they refuse it from
/// now on.
pub(super) fn upgrade(root: BorrowedFd<'_>, format: &mut StoreFormat) -> Result<()> {
    if format.version < FORMAT_VERSION {
        format.version = FORMAT_VERSION;
        write(root, format)?;
    }
    Ok(())
}

pub(super) fn write(root: BorrowedFd<'_>, format: &StoreFormat) -> Result<()> {
    let mut json =
        serde_json::to_vec(format).map_err(|error| Error::new(ErrorKind::Internal, error.to_string()))?;
    json.push(b'\n');
    durable::write_atomic(root, FILE, &json, true)
}

/// An entry that shows the directory to be someone else's. A fresh ext4 and an interrupted creation of ours leave
/// some that do not.
pub(super) fn foreign_entry(root: BorrowedFd<'_>) -> Result<Option<String>> {
    for entry in fs::Dir::read_from(root).doing(|| "cannot list the directory")? {
        let entry = entry.doing(|| "cannot list the directory")?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let ours = name.starts_with(&format!(".{FILE}."));
        if !ours && !matches!(name.as_str(), "." | ".." | "lost+found") {
            return Ok(Some(name));
        }
    }
    Ok(None)
}

//! Extracted layers: unpacked once more beside what lies there, and compared entry by entry.
//!
//! What is right is decided by the code that extracts for imports, into a place of its own that goes afterwards; so a
//! check needs room for one layer in each thread. Where that cannot be had, or without the blob, only the tree's own record
//! is looked at, and the report says so.

use super::Check;
use super::blobs::IMPORT_AGAIN;
use super::compare::{Differences, Owners, compare};
use super::layer_pass::{Into, Passed, Unpacked};
use super::report::{FsckProblem, ProblemKind, ProblemState};
use crate::error::{Error, ErrorKind, Result};
use crate::io::{durable, locked::LockedDir};
use crate::layer::Ownership;
use crate::metadata::{Resource, TreeRow};
use crate::oci::{DiffId, Digest};
use crate::snapshot::{Layer, TreeIngest, Trees};
use crate::tree::TreeRecord;
use std::collections::BTreeSet;
use std::sync::Arc;

/// What is wrong with a tree.
type Wrong = (ProblemKind, String);

impl Check<'_> {
    /// Trees that are there, and those that an image or a snapshot needs.
    pub(super) fn trees_to_check(&self) -> Result<Vec<DiffId>> {
        let mut trees = self.needed_trees();
        for diff_id in &self.facts.trees_on_disk {
            // A row that was not durable when the power failed counts for nothing, and an import makes the tree again.
            if trees.contains(diff_id) || self.store.metadata().tree_get(diff_id)?.is_some() {
                trees.insert(*diff_id);
            } else if !self.facts.is_held(Resource::Tree(*diff_id)) {
                let message = "it was never finished, or not on the disk when the power failed";
                self.findings.leftover(format!("tree {diff_id}"), message, "transload gc");
            }
        }
        for diff_id in self.facts.tree_rows.keys().filter(|diff_id| !trees.contains(diff_id)) {
            // The row comes first when a layer is published, so one alone is work that was cut short.
            let there = self.store.trees().contains(diff_id)?;
            if !there && !self.facts.is_held(Resource::Tree(*diff_id)) {
                let message = "it is recorded and was never finished";
                self.findings.leftover(format!("tree {diff_id}"), message, "transload gc");
            }
        }
        Ok(trees.into_iter().collect())
    }

    fn needed_trees(&self) -> BTreeSet<DiffId> {
        let of_images = self.facts.images.iter().flat_map(|image| &image.manifests);
        let of_images = of_images.filter(|manifest| manifest.chain_id.is_some());
        let of_images = of_images.flat_map(|manifest| manifest.layers.iter().map(|(_, diff_id)| *diff_id));
        of_images.chain(self.facts.snapshots.iter().filter_map(|row| row.tree)).collect()
    }

    fn tree_problem(&self, diff_id: &DiffId, (kind, message): Wrong, state: ProblemState) {
        let images = self.facts.users_of_tree(diff_id);
        self.problem(kind, format!("tree {diff_id}"), message, images, state);
    }

    /// One that `mend` mends.
    fn tree_problem_mended_by(
        &self,
        diff_id: &DiffId,
        (kind, message): Wrong,
        state: ProblemState,
        mend: String,
    ) {
        let (what, images) = (format!("tree {diff_id}"), self.facts.users_of_tree(diff_id));
        self.problem_mended_by(FsckProblem { kind, what, message, images, state, mend });
    }
}

/// What is missing where a tree cannot be made with its owners.
pub(super) const NEEDS_OWNERS: &str =
    "run it with the privilege to give files away (CAP_CHOWN): transload fsck --repair";

/// Checks a blob and the tree that was made of it.
pub(super) fn layer(check: &Check<'_>, diff_id: &DiffId, digest: &Digest) -> Result<()> {
    let record = check.store.trees().stat(diff_id);
    let record = record.ok().flatten();
    let form = record.as_ref().map_or(check.store.format().whiteouts, |record| record.form);
    let mut ownership = match record.and_then(|record| record.owners) {
        Some(false) => Ownership::Ignore,
        _ => Ownership::Keep,
    };
    loop {
        let staged = stage(check)?;
        let into = Into { fs: staged.as_ref().map(|staged| staged.fs()), form, ownership };
        let Some(mut passed) = check.read(digest, Some(into))? else {
            return alone(check, diff_id, "its blob cannot be read");
        };
        if is_about_owners(&passed) && ownership == Ownership::Keep {
            ownership = Ownership::Ignore;
            continue;
        }
        check.count_blob(passed.size_bytes);
        let unpacked = passed.unpacked.take();
        if !check.judge(digest, &passed)? {
            return alone(check, diff_id, "its blob is damaged");
        }
        let Some(unpacked) = unpacked else { return Ok(()) };
        return beside(check, diff_id, (digest, passed.codec.name()), unpacked, staged);
    }
}

/// A place to unpack into; `None` where nothing can be written.
fn stage<'c>(check: &Check<'c>) -> Result<Option<TreeIngest<'c>>> {
    if check.store.is_read_only() {
        return Ok(None);
    }
    let place = format!("fsck-{}", durable::unique_name());
    match check.store.trees().try_begin(&place) {
        Err(error) if cannot_write(&error) => Ok(None),
        other => other,
    }
}

fn cannot_write(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::NoSpace | ErrorKind::ReadOnly)
}

fn is_about_owners(passed: &Passed) -> bool {
    matches!(&passed.unpacked, Some(Err(error)) if error.kind() == ErrorKind::Permission)
}

/// A tree whose blob is sound: `unpacked` is what it should be.
fn beside(
    check: &Check<'_>,
    diff_id: &DiffId,
    (digest, codec): (&Digest, &str),
    unpacked: Result<Unpacked>,
    staged: Option<TreeIngest<'_>>,
) -> Result<()> {
    let unpacked = match unpacked {
        Ok(unpacked) => unpacked,
        Err(error) if error.kind() == ErrorKind::Cancelled => return Err(error),
        // This machine is at fault, or its limits are.
        Err(error) if !error.kind().is_input() || error.kind() == ErrorKind::LimitExceeded => {
            return alone(check, diff_id, &format!("its blob could not be unpacked beside it: {error}"));
        }
        Err(error) => {
            let message = format!("it does not unpack: {error}");
            check.blob_problem(ProblemKind::LayerMismatch, digest, message, ProblemState::Remains);
            return alone(check, diff_id, "its blob does not unpack");
        }
    };
    if unpacked.diff_id != *diff_id {
        return mismatch(check, diff_id, (digest, codec), &unpacked);
    }
    // A rebuilt database does not know it yet; it has just been computed.
    if check.options.repair && check.store.metadata().layer_get(digest)?.is_none() {
        check.store.metadata().layer_put(digest, diff_id, codec, unpacked.bytes)?;
    }
    let (Some(staged), Some(applied)) = (staged, unpacked.applied) else {
        return alone(check, diff_id, "there is nowhere to unpack its blob to");
    };
    let expected = TreeRecord { diff_id: Some(*diff_id), ..applied.record };
    let wrong = differences(check, diff_id, &staged, &expected)?;
    check.findings.count(|checked| {
        checked.trees += 1;
        checked.trees_against_blobs += 1;
    });
    let Some((wrong, may_replace)) = wrong else { return recorded(check, diff_id, Some(&expected)) };
    if !may_replace {
        let state = if check.options.repair { ProblemState::Remains } else { ProblemState::Found };
        let mend = match wrong.0 {
            ProblemKind::TreeMissing => format!("{NEEDS_OWNERS}, or {IMPORT_AGAIN}"),
            _ => NEEDS_OWNERS.to_string(),
        };
        check.tree_problem_mended_by(diff_id, wrong, state, mend);
        return Ok(());
    }
    let state = match check.options.repair {
        false => ProblemState::Found,
        true => replace(check, diff_id, staged, &expected)?,
    };
    check.tree_problem(diff_id, wrong, state);
    Ok(())
}

/// The blob is sound and is not the layer that it is said to be.
fn mismatch(
    check: &Check<'_>,
    diff_id: &DiffId,
    (digest, codec): (&Digest, &str),
    unpacked: &Unpacked,
) -> Result<()> {
    let metadata = check.store.metadata();
    let message = format!("it unpacks to {}, not to {diff_id}", unpacked.diff_id);
    let state = match metadata.layer_get(digest)?.filter(|row| row.diff_id == *diff_id) {
        Some(_) if check.options.repair => {
            metadata.layer_put(digest, &unpacked.diff_id, codec, unpacked.bytes)?;
            ProblemState::Repaired
        }
        Some(_) => ProblemState::Found,
        None => ProblemState::Remains,
    };
    check.blob_problem(ProblemKind::LayerMismatch, digest, message, state);
    alone(check, diff_id, "the blob that is said to unpack to it does not")
}

/// What is wrong with the tree, and whether the fresh one may take its place. Owners that this process cannot give are never
/// thrown away for its own.
fn differences(
    check: &Check<'_>,
    diff_id: &DiffId,
    staged: &TreeIngest<'_>,
    expected: &TreeRecord,
) -> Result<Option<(Wrong, bool)>> {
    let has_owners = expected.owners == Some(true);
    // What is there does not say whose it was to be.
    let may_make = has_owners || never_had_others(check);
    let wrong = |kind, message: String, may_replace| Ok(Some(((kind, message), may_replace)));
    let found = match check.store.trees().stat(diff_id) {
        Ok(None) if gone_by_itself(check, diff_id)? => return Ok(None),
        Ok(None) => {
            return wrong(ProblemKind::TreeMissing, "it is needed and not there".to_string(), may_make);
        }
        Err(error) => return wrong(ProblemKind::TreeRecord, error.to_string(), may_make),
        Ok(Some(found)) => found,
    };
    let may_replace = has_owners || found.owners == Some(false);
    if !found.is_of_same_layer(expected) {
        let message = "its tree.json contradicts its blob".to_string();
        return wrong(ProblemKind::TreeRecord, message, may_replace || (found.owners.is_none() && may_make));
    }
    match beside_each_other(check, diff_id, staged, (expected, &found)) {
        Ok(compared) => {
            // A record that does not say: all belonging to one, they were left out.
            let left_out = found.owners.is_none() && compared.of_one;
            if !has_owners && found.owners != Some(false) && !left_out {
                let message =
                    "its owners could not be compared: this process may not give files away (CAP_CHOWN)";
                check.findings.unproven(format!("tree {diff_id}"), message);
            }
            match compared.count {
                0 => Ok(None),
                _ => wrong(ProblemKind::TreeDiffers, compared.describe(), may_replace || left_out),
            }
        }
        Err(error) if error.kind() == ErrorKind::Cancelled => Err(error),
        Err(error) => wrong(
            ProblemKind::TreeUnreadable,
            error.to_string(),
            may_replace || found.owners.is_none() && may_make,
        ),
    }
}

/// Whether whoever filled this store could never give a file away: it was no root, or there is nobody else in its user namespace.
fn never_had_others(check: &Check<'_>) -> bool {
    let users: u64 = check.store.format().uid_map.iter().map(|range| u64::from(range.2)).sum();
    users == 1 || !rustix::process::geteuid().is_root()
}

fn beside_each_other(
    check: &Check<'_>,
    diff_id: &DiffId,
    staged: &TreeIngest<'_>,
    (expected, found): (&TreeRecord, &TreeRecord),
) -> Result<Differences> {
    let owners = match (found.owners, expected.owners) {
        (Some(false), _) => Owners::Of(check.store.trees().written_by(diff_id)?),
        (_, Some(true)) => Owners::Compare,
        _ => Owners::Ignore(check.store.trees().written_by(diff_id)?),
    };
    let base = Arc::new(rustix::io::fcntl_dupfd_cloexec(staged.fs(), 3)?);
    let root = Arc::new(check.store.sync_handle()?);
    let fresh = Layer::plain(&base, "");
    let stored = Layer::plain(&root, Trees::relative_path(diff_id));
    compare(&fresh, &stored, owners, check.means.cancel)
}

/// Puts the fresh tree into the place of the bad one. What was there may be mounted, so it is kept.
fn replace(
    check: &Check<'_>,
    diff_id: &DiffId,
    staged: TreeIngest<'_>,
    record: &TreeRecord,
) -> Result<ProblemState> {
    let place = Trees::working_place(diff_id);
    let Some(place) = LockedDir::try_acquire(check.store.content().ingests(), &place)? else {
        return Ok(ProblemState::Remains);
    };
    let handle = check.store.sync_handle()?;
    put_away(check, diff_id)?;
    // The row may say that the tree is durable, so it has to be before it has its name.
    durable::sync_filesystem(&handle)?;
    let row = row_of(diff_id, record);
    staged.publish(record)?;
    durable::sync_filesystem(&handle)?;
    check.store.metadata().tree_put(&row)?;
    // Empty; a leftover would be swept by gc.
    let _ = place.remove();
    Ok(ProblemState::Repaired)
}

fn put_away(check: &Check<'_>, diff_id: &DiffId) -> Result<()> {
    if !check.store.trees().contains(diff_id)? {
        return Ok(());
    }
    let trees = durable::open_dir(check.store.root(), "trees")?;
    let name = diff_id.0.hex();
    check.quarantine.take(check.store, &trees, &name, &format!("tree-{name}")).map(drop)
}

/// Whether a row knows a tree that looks sound; `proven` is the record of one that was compared with its blob.
fn recorded(check: &Check<'_>, diff_id: &DiffId, proven: Option<&TreeRecord>) -> Result<()> {
    if check.store.metadata().tree_get(diff_id)?.is_some() {
        check.sound.trusted(Resource::Tree(*diff_id));
        return Ok(());
    }
    if check.facts.is_held(Resource::Tree(*diff_id)) {
        return Ok(());
    }
    let needed = check.needed_trees().contains(diff_id);
    if let Some(record) = proven.filter(|_| needed && check.options.repair) {
        check.sound.tree(row_of(diff_id, record));
        return Ok(());
    }
    let message = match check.facts.tree_rows.contains_key(diff_id) {
        true => "it was not synced before the system went down",
        false => "it is not recorded",
    };
    let mend = match (needed, check.facts.blob_of(diff_id).is_some()) {
        (true, true) => "transload fsck --repair",
        (true, false) => IMPORT_AGAIN,
        (false, _) => "transload gc",
    };
    check.findings.leftover(format!("tree {diff_id}"), message, mend);
    Ok(())
}

fn row_of(diff_id: &DiffId, record: &TreeRecord) -> TreeRow {
    TreeRow { diff_id: *diff_id, bytes: record.bytes, inodes: record.inodes, durable: true }
}

/// Checks what can be checked of a tree without its blob.
pub(super) fn alone(check: &Check<'_>, diff_id: &DiffId, why: &str) -> Result<()> {
    check.findings.count(|checked| checked.trees += 1);
    let wrong = match check.store.trees().open_tree(diff_id) {
        Ok(tree) => by_record(check, diff_id, &tree.record)?,
        Err(error) if error.kind() == ErrorKind::NotFound => {
            if gone_by_itself(check, diff_id)? {
                return Ok(());
            }
            Some((ProblemKind::TreeMissing, "it is needed, or half there".to_string()))
        }
        Err(error) => Some((ProblemKind::TreeRecord, error.to_string())),
    };
    let Some(wrong) = wrong else {
        // A quick check was never meant to prove anything.
        if !check.options.quick {
            let message = format!("{why}: only its tree.json was held against it");
            check.findings.unproven(format!("tree {diff_id}"), message);
        }
        return recorded(check, diff_id, None);
    };
    let needed = !check.facts.users_of_tree(diff_id).is_empty();
    // What is gone already no repair makes again without its blob.
    let gone = !check.store.trees().contains(diff_id)? && check.facts.blob_of(diff_id).is_none();
    let (state, mend) = match (check.options.repair, needed) {
        (false, true) if gone => (ProblemState::NeedsImport, IMPORT_AGAIN.to_string()),
        (false, true) if check.facts.blob_of(diff_id).is_none() => {
            (ProblemState::Found, format!("transload fsck --repair, and then {IMPORT_AGAIN}"))
        }
        (false, _) => (ProblemState::Found, "transload fsck --repair".to_string()),
        (true, _) => {
            put_away(check, diff_id)?;
            check.store.metadata().tree_remove(&[*diff_id])?;
            match needed {
                true => (ProblemState::NeedsImport, IMPORT_AGAIN.to_string()),
                false => (ProblemState::Repaired, String::new()),
            }
        }
    };
    check.tree_problem_mended_by(diff_id, wrong, state, mend);
    Ok(())
}

/// Whether a tree that is not there was collected, or nobody needs it.
fn gone_by_itself(check: &Check<'_>, diff_id: &DiffId) -> Result<bool> {
    let needed = check.needed_trees().contains(diff_id);
    Ok(!needed && !check.store.trees().contains(diff_id)?)
}

/// What `tree.json` says must be there, and at least as many entries as it counts. More may come of names that a layer
/// has twice.
fn by_record(check: &Check<'_>, diff_id: &DiffId, record: &TreeRecord) -> Result<Option<Wrong>> {
    let root = Arc::new(check.store.sync_handle()?);
    let layer = Layer::plain(&root, Trees::relative_path(diff_id));
    let wrong = |message: String| Ok(Some((ProblemKind::TreeDiffers, message)));
    for path in record.opaque.iter().chain(&record.implicit) {
        if layer.open_dir(path.as_bytes())?.is_none() {
            return wrong(format!("the directory {path}, which tree.json names, is not there"));
        }
    }
    let inodes = count_inodes(check, &layer)?;
    match inodes < record.inodes {
        true => wrong(format!("it has {inodes} entries, tree.json says {}", record.inodes)),
        false => Ok(None),
    }
}

fn count_inodes(check: &Check<'_>, layer: &Layer) -> Result<u64> {
    let mut seen = BTreeSet::new();
    let mut waiting = vec![Vec::new()];
    while let Some(dir) = waiting.pop() {
        check.means.cancel.check()?;
        seen.extend(layer.stat(&dir)?.map(|stat| stat.st_ino));
        for (name, stat) in layer.list(&dir)? {
            let is_dir = rustix::fs::FileType::from_raw_mode(stat.st_mode) == rustix::fs::FileType::Directory;
            seen.insert(stat.st_ino);
            if is_dir {
                waiting.push(crate::snapshot::join(&dir, &name));
            }
        }
    }
    Ok(seen.len() as u64)
}

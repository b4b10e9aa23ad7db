//! Images: the documents that they need, and the chain of snapshots that they stand on.

use super::Check;
use super::facts::image_name;
use super::report::{FsckProblem, ProblemKind, ProblemState};
use super::trees::NEEDS_OWNERS;
use crate::error::{ErrorKind, Result};
use crate::metadata::{ImageRow, Labels, ManifestRow, Resource};
use crate::oci::{ChainId, DiffId, Digest};

impl Check<'_> {
    pub(super) fn images(&self) -> Result<()> {
        for image in &self.facts.images {
            self.means.cancel.check()?;
            self.findings.count(|checked| checked.images += 1);
            self.documents(image)?;
            for manifest in image.manifests.iter().filter(|manifest| manifest.chain_id.is_some()) {
                self.chain(image, manifest)?;
            }
        }
        Ok(())
    }

    /// Whether the image is still what it was when the check began. What was removed may be collected by now.
    fn is_current(&self, image: &ImageRow) -> Result<bool> {
        Ok(self.store.metadata().image_by_id(image.id)?.is_some_and(|now| now.target == image.target))
    }

    /// Target, manifests and configurations have to be here; layers may have been discarded, and what a sparse index
    /// lists may be elsewhere.
    fn documents(&self, image: &ImageRow) -> Result<()> {
        let of_manifests = image.manifests.iter().flat_map(|manifest| [manifest.digest, manifest.config]);
        let needed: Vec<Digest> = [image.target.digest].into_iter().chain(of_manifests).collect();
        for digest in needed {
            // What was put away or is recorded and missing has been told already.
            let told = self.findings.is_bad(&format!("blob {digest}"));
            if !told && self.store.content().stat(&digest)?.is_none() && self.is_current(image)? {
                let state = match self.options.repair {
                    true => ProblemState::NeedsImport,
                    false => ProblemState::Found,
                };
                let message = format!("it lacks {digest}");
                let what = format!("image {}", image_name(image));
                self.problem(ProblemKind::ImageIncomplete, what, message, vec![image_name(image)], state);
            }
        }
        Ok(())
    }

    /// Every layer of an unpacked image has a snapshot.
    fn chain(&self, image: &ImageRow, manifest: &ManifestRow) -> Result<()> {
        let diff_ids: Vec<DiffId> = manifest.layers.iter().map(|(_, diff_id)| *diff_id).collect();
        let mut parent: Option<ChainId> = None;
        for (diff_id, chain_id) in diff_ids.iter().zip(ChainId::of(&diff_ids)) {
            let key = chain_id.to_string();
            if self.store.metadata().snapshot_get(&key)?.is_none() && self.is_current(image)? {
                let state = self.make_chain(parent.as_ref(), diff_id)?;
                let what = format!("snapshot {key}");
                let images = vec![image_name(image)];
                let message = "it is needed and not recorded, or was not synced before the system went down";
                let (kind, message) = (ProblemKind::SnapshotMissing, message.to_string());
                match state {
                    ProblemState::Remains => {
                        let mend = NEEDS_OWNERS.to_string();
                        self.problem_mended_by(FsckProblem { kind, what, message, images, state, mend });
                    }
                    _ => self.problem(kind, what, message, images, state),
                }
            }
            parent = Some(chain_id);
        }
        Ok(())
    }

    fn make_chain(&self, parent: Option<&ChainId>, diff_id: &DiffId) -> Result<ProblemState> {
        if !self.options.repair {
            return Ok(ProblemState::Found);
        }
        match self.store.snapshotter().commit_layer(parent, diff_id, &Labels::new(), &self.bounds()) {
            Ok(_) => {
                let key = ChainId::above(parent, diff_id).to_string();
                self.sound.trusted(Resource::Snapshot(key));
                Ok(ProblemState::Repaired)
            }
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(ProblemState::NeedsImport),
            Err(error) if error.kind() == ErrorKind::Permission => Ok(ProblemState::Remains),
            Err(error) => Err(error),
        }
    }
}

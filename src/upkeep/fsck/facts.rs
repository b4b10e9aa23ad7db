//! What a check starts from: what lies on the disk, what is recorded, and who needs what.
//!
//! Directories are listed before the rows are read. So a file that is listed and has no row was either never recorded
//! or is recorded by now; both are looked at again where it matters.

use crate::error::Result;
use crate::metadata::{BlobRow, ImageRow, Resource, SnapshotRow, TreeRow};
use crate::oci::{ChainId, DiffId, Digest};
use crate::store::Store;
use crate::upkeep::reach::Needs;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

/// See the module.
pub(super) struct Facts {
    pub blobs_on_disk: BTreeMap<Digest, u64>,
    pub trees_on_disk: BTreeSet<DiffId>,
    pub blob_rows: HashMap<Digest, BlobRow>,
    pub tree_rows: HashMap<DiffId, TreeRow>,
    pub snapshots: Vec<SnapshotRow>,
    pub images: Vec<ImageRow>,
    /// What running work holds.
    pub held: HashSet<Resource>,
    pub now_ms: u64,
    users: HashMap<Digest, BTreeSet<String>>,
    tree_users: HashMap<DiffId, BTreeSet<String>>,
    snapshot_users: HashMap<String, BTreeSet<String>>,
    /// The blobs that unpack to a tree, by what manifests say and what was computed.
    layers: BTreeMap<DiffId, BTreeSet<Digest>>,
}

impl Facts {
    pub fn read(store: &Store) -> Result<Self> {
        let (mut blobs_on_disk, mut trees_on_disk) = (BTreeMap::new(), BTreeSet::new());
        store.content().walk(&mut |digest, size| {
            blobs_on_disk.insert(digest, size);
            Ok(())
        })?;
        store.trees().walk(&mut |diff_id| {
            trees_on_disk.insert(diff_id);
            Ok(())
        })?;
        let metadata = store.metadata();
        let mut facts = Facts {
            blobs_on_disk,
            trees_on_disk,
            blob_rows: metadata.blobs()?.into_iter().map(|row| (row.digest, row)).collect(),
            tree_rows: metadata.trees()?.into_iter().map(|row| (row.diff_id, row)).collect(),
            snapshots: metadata.snapshots()?,
            images: metadata.images()?,
            held: HashSet::new(),
            now_ms: crate::upkeep::now_ms(),
            users: HashMap::new(),
            tree_users: HashMap::new(),
            snapshot_users: HashMap::new(),
            layers: BTreeMap::new(),
        };
        facts.read_leases(store)?;
        facts.read_users(store)?;
        facts.read_layers(store)?;
        Ok(facts)
    }

    fn read_leases(&mut self, store: &Store) -> Result<()> {
        for lease in store.metadata().leases()? {
            if store.lease_is_live(&lease, self.now_ms)? {
                // One that ends meanwhile holds nothing.
                self.held.extend(store.metadata().lease_resources(&lease.id).unwrap_or_default());
            }
        }
        Ok(())
    }

    fn read_users(&mut self, store: &Store) -> Result<()> {
        let recorded = store.metadata().facts()?;
        let needs = Needs::new(store, &recorded);
        for image in &self.images {
            let name = image_name(image);
            for digest in needs.of_image(image)?.blobs {
                self.users.entry(digest).or_default().insert(name.clone());
            }
            for manifest in image.manifests.iter().filter(|manifest| manifest.chain_id.is_some()) {
                let diff_ids: Vec<DiffId> = manifest.layers.iter().map(|(_, diff_id)| *diff_id).collect();
                for (diff_id, chain_id) in diff_ids.iter().zip(ChainId::of(&diff_ids)) {
                    self.tree_users.entry(*diff_id).or_default().insert(name.clone());
                    self.snapshot_users.entry(chain_id.to_string()).or_default().insert(name.clone());
                }
            }
        }
        Ok(())
    }

    fn read_layers(&mut self, store: &Store) -> Result<()> {
        let manifests = self.images.iter().flat_map(|image| &image.manifests);
        let claimed = manifests.flat_map(|manifest| manifest.layers.iter());
        let pairs: Vec<(Digest, DiffId)> = claimed.copied().collect();
        for (digest, diff_id) in pairs {
            self.layers.entry(diff_id).or_default().insert(digest);
        }
        let trees = self.trees_on_disk.iter().chain(self.tree_rows.keys()).copied().collect::<BTreeSet<_>>();
        for diff_id in trees {
            let rows = store.metadata().layers_by_diff_id(&diff_id)?;
            self.layers.entry(diff_id).or_default().extend(rows.iter().map(|row| row.digest));
        }
        Ok(())
    }

    /// A blob on the disk that is said to unpack to this layer.
    pub fn blob_of(&self, diff_id: &DiffId) -> Option<Digest> {
        let known = self.layers.get(diff_id)?;
        known.iter().find(|digest| self.blobs_on_disk.contains_key(*digest)).copied()
    }

    /// The images that need a blob.
    pub fn users_of_blob(&self, digest: &Digest) -> Vec<String> {
        list(self.users.get(digest))
    }

    /// The images that need a tree.
    pub fn users_of_tree(&self, diff_id: &DiffId) -> Vec<String> {
        list(self.tree_users.get(diff_id))
    }

    /// The images that need a snapshot.
    pub fn users_of_snapshot(&self, key: &str) -> Vec<String> {
        list(self.snapshot_users.get(key))
    }

    /// Whether running work holds this.
    pub fn is_held(&self, resource: Resource) -> bool {
        self.held.contains(&resource)
    }
}

fn list(names: Option<&BTreeSet<String>>) -> Vec<String> {
    names.into_iter().flatten().cloned().collect()
}

/// What people call an image.
pub(super) fn image_name(image: &ImageRow) -> String {
    image.name.clone().unwrap_or_else(|| image.target.digest.to_string())
}

//! Images that cannot be mounted because overlayfs does not take so many layers.

use super::{Remark, count};
use crate::error::Result;
use crate::mount::MAX_LAYERS;
use crate::store::{SnapshotterKind, Store};

pub(super) fn look(store: &Store) -> Result<Vec<Remark>> {
    if store.format().snapshotter == SnapshotterKind::Plain {
        return Ok(Vec::new());
    }
    let mut found = Vec::new();
    for image in store.metadata().images()? {
        for manifest in &image.manifests {
            // Each layer is one directory, or two with what it takes from those below it.
            let Some(chain) = manifest.chain_id.filter(|_| 2 * manifest.layers.len() > MAX_LAYERS) else {
                continue;
            };
            let directories = store.snapshotter().stack(&chain.to_string())?.layers().len();
            if directories > MAX_LAYERS {
                found.push(format!("{}: {directories}", image.label_key()));
            }
        }
    }
    if found.is_empty() {
        return Ok(Vec::new());
    }
    let says =
        format!("{} with more layers than overlayfs mounts, {MAX_LAYERS}", count(found.len(), "image"));
    Ok(vec![Remark::note("layers", says).items(found).mend("transload unpack NAME DIR")])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metadata::{
        ImageCommit, Labels, ManifestRow, NewImage, NewSnapshot, SnapshotKind, TreeRow, Usage,
    };
    use crate::oci::{ChainId, Descriptor, DiffId, Digest, Platform, media_type};
    use crate::store::StoreOptions;

    /// An image of so many layers, of which so many stand with a directory of their own beside the tree.
    fn put(store: &Store, name: &str, layers: usize, healed: usize) {
        let of = |what: &str, number: usize| Digest::of(format!("{name} {what} {number}").as_bytes());
        let trees: Vec<DiffId> = (0..layers).map(|number| DiffId(of("tree", number))).collect();
        let chain = ChainId::of(&trees);
        for (at, tree) in trees.iter().enumerate() {
            let row = TreeRow { diff_id: *tree, bytes: 1, inodes: 1, durable: true };
            store.metadata().tree_put(&row).expect("records");
            let parent = at.checked_sub(1).map(|below| chain[below].to_string());
            let new = NewSnapshot {
                key: &chain[at].to_string(),
                kind: SnapshotKind::Committed,
                parent: parent.as_deref(),
                tree: Some(*tree),
                heal: at < healed,
                labels: &Labels::new(),
                usage: Usage::default(),
            };
            store.metadata().snapshot_create(&new).expect("records");
        }
        let manifest = ManifestRow {
            digest: of("manifest", 0),
            config: of("config", 0),
            platform: Platform::new("linux", "amd64", None),
            chain_id: chain.last().copied(),
            layers: trees.iter().enumerate().map(|(at, tree)| (of("blob", at), *tree)).collect(),
            size_bytes: 1,
        };
        let target = Descriptor::new(media_type::MANIFEST, manifest.digest, 1);
        let image = NewImage { name: Some(name.to_string()), target, manifests: vec![manifest] };
        let commit = ImageCommit { images: vec![image], ..ImageCommit::default() };
        store.metadata().image_put(&commit).expect("commits");
    }

    #[test]
    fn an_image_of_more_layers_than_can_be_mounted_is_named() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let options = StoreOptions {
            create: true,
            snapshotter: Some(SnapshotterKind::Overlay),
            ..StoreOptions::default()
        };
        let store = Store::open(dir.path(), &options).expect("opens");
        put(&store, "r/few:1", 260, 240);
        assert_eq!(look(&store).expect("looks"), []);
        put(&store, "r/many:1", 260, 241);
        let found = look(&store).expect("looks");
        assert_eq!(found[0].items, ["r/many:1: 501"]);
    }
}

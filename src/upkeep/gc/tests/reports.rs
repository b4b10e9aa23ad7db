//! What `du` tells of a store.

use super::*;

#[test]
fn why_something_is_here_is_told_by_the_shortest_way() {
    let (dir, store) = fresh();
    let a = put_image(dir.path(), &store, "a", &["base", "one"]);
    put_image(dir.path(), &store, "b", &["base", "two"]);
    let why = |digest: &str| crate::upkeep::why(&store, digest).expect("tells");
    let holders = |report: crate::upkeep::WhyReport| -> Vec<String> {
        report.held_by.into_iter().map(|holder| format!("{} {}", holder.kind, holder.name)).collect()
    };
    let layer = why(&a.blobs[0].to_string());
    assert_eq!(layer.held_by[0].via, [format!("blob {}", a.manifest), format!("blob {}", a.blobs[0])]);
    assert_eq!(holders(layer), ["image a", "image b"]);
    assert_eq!(holders(why(&a.blobs[1].to_string()[..20])), ["image a"]);
    assert_eq!(holders(why(&a.trees[0].to_string())), ["image a", "image b"]);
    let lease = store.lease().expect("takes one");
    lease.add(&[Resource::Blob(a.manifest)]).expect("adds");
    assert_eq!(
        holders(why(&a.manifest.to_string())),
        ["image a".to_string(), format!("lease {}", lease.id())]
    );
    let garbage = put(&store, b"garbage");
    assert_eq!(why(&garbage.to_string()).held_by, []);
    let unknown = crate::upkeep::why(&store, &Digest::of(b"?").to_string()).err().map(|error| error.kind());
    assert_eq!(unknown, Some(ErrorKind::NotFound));
}

#[test]
fn du_tells_what_is_shared_from_what_is_not() {
    let (dir, store) = fresh();
    put_image(dir.path(), &store, "a", &["base", "one"]);
    put_image(dir.path(), &store, "b", &["base", "two"]);
    let report = du::du(&store).expect("measures");
    assert_eq!((report.blobs.count, report.trees.count, report.trees.bytes), (7, 3, 300));
    assert_eq!((report.snapshots.count, report.ingests.count), (3, 0));
    let base = "layer base".len() as u64 + 100;
    for image in &report.images {
        assert_eq!(image.shared_bytes, base, "{:?}", image.name);
        assert!(image.unique_bytes > 100);
    }
    let unique: u64 = report.images.iter().map(|image| image.unique_bytes).sum();
    assert_eq!(unique + base, report.blobs.bytes + report.trees.bytes);
    assert!(report.total_bytes > report.blobs.bytes + report.trees.bytes);
    store.metadata().image_tag("a", "c").expect("tags");
    let report = du::du(&store).expect("measures");
    let unique =
        |name: &str| report.images.iter().find(|i| i.name.as_deref() == Some(name)).map(|i| i.unique_bytes);
    assert_eq!((unique("a"), unique("c")), (Some(0), Some(0)), "two names of one image share all of it");
}

fn holders(store: &Store, digest: &str) -> Vec<String> {
    let report = crate::upkeep::why(store, digest).expect("tells");
    report.held_by.into_iter().map(|holder| format!("{} {}", holder.kind, holder.name)).collect()
}

#[test]
fn why_tells_what_a_collection_keeps() {
    use crate::metadata::Labelled;
    use crate::store::mounted::REMAPPED_OF_LABEL;
    let (dir, store) = fresh();
    let made = put_image(dir.path(), &store, "a", &["base"]);
    let chain = &made.chains[0];
    let user = |key: &str, labels: &[(&str, &str)]| {
        snapshot(&store, key, SnapshotKind::Committed, None, None);
        let labels = labels.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect();
        store.metadata().snapshot_update_labels(key, &labels).expect("labels");
    };
    let [by_snapshot, by_lease, by_image] =
        ["by a snapshot", "by a lease", "by an image"].map(|text| put(&store, text.as_bytes()));
    user("mine", &[("containerd.io/gc.ref.content.0", &by_snapshot.to_string())]);
    user("copy", &[(REMAPPED_OF_LABEL, chain)]);
    let labels = Labels::from([("containerd.io/gc.ref.content".to_string(), by_lease.to_string())]);
    store.lease_create("lease", None, &labels).expect("creates");
    label(&store, Labelled::Image("a"), "containerd.io/gc.ref.content", &by_image.to_string());
    assert_eq!(collect_now(&store), GcReport::default());
    let table = [
        ("mine", "snapshot mine"),
        ("copy", "image a"),
        (chain.as_str(), "image a"),
        (&by_snapshot.to_string(), "snapshot mine"),
        (&by_lease.to_string(), "lease lease"),
        (&by_image.to_string(), "image a"),
    ];
    for (asked, expected) in table {
        assert_eq!(holders(&store, asked), [expected], "{asked}");
    }
    let copy = crate::upkeep::why(&store, "copy").expect("tells");
    assert_eq!(copy.held_by[0].via, [format!("snapshot {chain}"), "snapshot copy".to_string()]);
}

/// Whatever is held by nothing goes, and whatever is held by something stays.
#[test]
fn why_and_a_collection_agree_on_everything() {
    use crate::metadata::Labelled;
    let (dir, store) = fresh();
    let a = put_image(dir.path(), &store, "a", &["base", "one"]);
    let b = put_image(dir.path(), &store, "b", &["base", "two"]);
    let [root, kept, garbage] = ["root", "kept", "garbage"].map(|text| put(&store, text.as_bytes()));
    label(&store, Labelled::Blob(&root), "containerd.io/gc.root", "");
    label(&store, Labelled::Blob(&root), "containerd.io/gc.ref.content", &kept.to_string());
    label(&store, Labelled::Blob(&garbage), "containerd.io/gc.ref.content", &b.manifest.to_string());
    snapshot(&store, "rw", SnapshotKind::Active, Some(&b.chains[0]), None);
    let flat = Labels::from([("containerd.io/gc.flat".to_string(), String::new())]);
    store.lease_create("flat", None, &flat).expect("creates");
    store.lease_add("flat", &[Resource::Blob(b.manifest)]).expect("adds");
    store.metadata().image_remove("b").expect("removes");
    let everything = || -> Vec<String> {
        let blobs = [&a, &b].into_iter().flat_map(|made| made.blobs.iter().map(Digest::to_string));
        let trees = [&a, &b].into_iter().flat_map(|made| made.trees.iter().map(DiffId::to_string));
        let chains = [&a, &b].into_iter().flat_map(|made| made.chains.iter().cloned());
        let others = [root, kept, garbage].map(|digest| digest.to_string());
        blobs.chain(trees).chain(chains).chain(others).chain(["rw".to_string()]).collect()
    };
    let told: Vec<(String, bool)> =
        everything().into_iter().map(|one| (one.clone(), holders(&store, &one).is_empty())).collect();
    assert!(told.iter().any(|(_, dead)| *dead) && told.iter().any(|(_, dead)| !dead));
    collect_now(&store);
    for (one, dead) in told {
        assert_eq!(crate::upkeep::why(&store, &one).is_err(), dead, "{one}");
    }
}

#[test]
fn everything_that_a_collection_would_remove_can_be_asked_about() {
    let (dir, store) = fresh();
    let made = put_image(dir.path(), &store, "a", &["base", "top"]);
    store.metadata().image_remove("a").expect("removes");
    snapshot(&store, "rw", SnapshotKind::Active, Some(&made.chains[0]), None);
    snapshot(&store, "rw-2", SnapshotKind::Active, None, None);
    let unrecorded = DiffId(Digest::of(b"unrecorded"));
    let place = dir.path().join("trees").join(unrecorded.0.hex());
    std::fs::create_dir_all(place.join("fs")).expect("creates");
    reboot(&store);
    assert_eq!(
        holders(&store, &made.chains[0]),
        ["snapshot rw"],
        "an earlier boot left it, and it is in use"
    );
    assert_eq!(holders(&store, "rw"), ["snapshot rw"], "a whole name is no beginning of another");
    let items = gc(&store, &dry()).expect("plans").items;
    let would_go = |key: &str| items.iter().any(|item| item.key == key);
    assert!(would_go(&made.chains[1]) && would_go(&unrecorded.to_string()), "{items:?}");
    for item in &items {
        let why = crate::upkeep::why(&store, &item.key).expect("tells");
        let told = (why.what.as_slice(), why.size_bytes, why.held_by.len());
        assert_eq!(told, (&[item.kind][..], item.size_bytes, 0), "{item:?}");
    }
}

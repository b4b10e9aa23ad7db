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

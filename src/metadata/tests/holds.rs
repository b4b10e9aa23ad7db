//! Leases and labels.

use super::*;

#[test]
fn leases_hold_what_they_are_given() {
    let (_dir, metadata) = fresh();
    let none = Labels::new();
    metadata.lease_create("l", Some(5), &none).expect("creates");
    assert_eq!(kind(metadata.lease_create("l", None, &none)), ErrorKind::AlreadyExists);
    let resources = [
        Resource::Blob(digest("b")),
        Resource::Ingest("i".to_string()),
        Resource::Snapshot("s".to_string()),
        Resource::Tree(DiffId(digest("t"))),
    ];
    metadata.lease_add("l", &resources).expect("adds");
    metadata.lease_add("l", &resources[..1]).expect("adds twice");
    let mut held = metadata.lease_resources("l").expect("lists");
    held.sort();
    let mut expected = resources.to_vec();
    expected.sort();
    assert_eq!(held, expected);
    metadata.lease_drop("l", &resources[1..]).expect("drops");
    assert_eq!(metadata.lease_resources("l").expect("lists"), resources[..1]);
    metadata.lease_remove("l").expect("removes");
    metadata.lease_remove("l").expect("removes twice");
    assert_eq!(kind(metadata.lease_add("l", &resources)), ErrorKind::NotFound);
}

#[test]
fn labels_go_with_what_they_are_on() {
    let (_dir, metadata) = fresh();
    let labels: Labels = [("k".to_string(), "v".to_string())].into();
    metadata.image_put(&commit(vec![image(Some("a"), "1")])).expect("commits");
    metadata.labels_set(Labelled::Image("a"), &labels).expect("sets");
    assert_eq!(metadata.labels(Labelled::Image("a")).expect("reads"), labels);
    metadata.image_remove("a").expect("removes");
    assert!(metadata.labels(Labelled::Image("a")).expect("reads").is_empty());
}

#[test]
fn what_is_gone_gets_no_label_that_the_next_of_its_name_would_inherit() {
    let (_dir, metadata) = fresh();
    let change = [("k".to_string(), Some("v".to_string()))];
    metadata.image_put(&commit(vec![image(Some("a"), "1"), image(None, "1")])).expect("commits");
    let unnamed = digest("1").to_string();
    for key in ["a", &unnamed] {
        metadata.labels_change(Labelled::Image(key), &change).expect("sets");
    }
    metadata.image_remove("a").expect("removes");
    assert_eq!(kind(metadata.labels_change(Labelled::Image("a"), &change)), ErrorKind::NotFound);
    metadata.image_put(&commit(vec![image(Some("a"), "1")])).expect("commits");
    assert!(metadata.labels(Labelled::Image("a")).expect("reads").is_empty());
    let blob = BlobRow { digest: digest(1), size_bytes: 1, head: None, durable: true };
    metadata.blob_put(&[blob]).expect("puts");
    metadata.labels_change(Labelled::Blob(&digest(1)), &change).expect("sets");
    metadata.blob_remove(&[digest(1)]).expect("removes");
    assert_eq!(kind(metadata.labels_change(Labelled::Blob(&digest(1)), &change)), ErrorKind::NotFound);
}

#[test]
fn a_lease_of_images_of_which_one_is_gone_is_not_made() {
    let (_dir, metadata) = fresh();
    metadata.image_put(&commit(vec![image(Some("a"), "1"), image(Some("b"), "2")])).expect("commits");
    let images = metadata.images().expect("lists");
    metadata.image_remove("b").expect("removes");
    assert_eq!(kind(metadata.lease_images("mine", None, &images)), ErrorKind::NotFound);
    assert_eq!(metadata.leases().expect("lists"), []);
    metadata.lease_images("mine", Some(7), &images[..1]).expect("leases");
    assert!(metadata.lease_resources("mine").expect("lists").contains(&Resource::Blob(digest("1"))));
    assert_eq!(kind(metadata.lease_images("mine", None, &images[..1])), ErrorKind::AlreadyExists);
}

#[test]
fn a_lease_of_an_image_holds_the_platforms_that_this_name_has() {
    let (_dir, metadata) = fresh();
    let chain = |seed: &str| ManifestRow { chain_id: Some(ChainId(digest(seed))), ..manifest(seed, 1) };
    let of = |name, manifests| NewImage { manifests, ..image(Some(name), "index") };
    let images = vec![of("a", vec![chain("1")]), of("b", vec![chain("1"), chain("2")])];
    metadata.image_put(&commit(images)).expect("commits");
    let named_b = metadata.image_get("b").expect("reads").expect("is there");
    metadata.lease_images("mine", None, &[named_b]).expect("leases");
    let held = metadata.lease_resources("mine").expect("lists");
    for seed in ["1", "2"] {
        assert!(held.contains(&Resource::Snapshot(ChainId(digest(seed)).to_string())), "{seed}: {held:?}");
    }
}

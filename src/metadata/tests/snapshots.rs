//! The snapshots' rows.

use super::*;

#[test]
fn a_removal_that_waits_is_remembered() {
    let (_dir, metadata) = fresh();
    let none = Labels::new();
    metadata.snapshot_create(&snapshot("busy", SnapshotKind::Active, None, &none)).expect("creates");
    assert_eq!(metadata.snapshots_deferred().expect("lists"), []);
    let marked = metadata.snapshot_defer_removal("busy").expect("marks");
    assert!(marked.remove_ms.is_some());
    assert_eq!(metadata.snapshot_defer_removal("busy").expect("marks").remove_ms, marked.remove_ms);
    assert_eq!(metadata.snapshots_deferred().expect("lists"), [marked]);
    assert_eq!(kind(metadata.snapshot_defer_removal("nothing")), ErrorKind::NotFound);
    metadata.snapshot_remove("busy").expect("removes");
    assert_eq!(metadata.snapshots_deferred().expect("lists"), []);
}

fn snapshot<'a>(
    key: &'a str,
    kind: SnapshotKind,
    parent: Option<&'a str>,
    labels: &'a Labels,
) -> NewSnapshot<'a> {
    NewSnapshot { key, kind, parent, tree: None, heal: false, labels, usage: Usage::default() }
}

#[test]
fn snapshots_keep_containerds_rules() {
    use SnapshotKind::{Active, Committed, View};
    let (_dir, metadata) = fresh();
    let none = Labels::new();
    let create =
        |key, kind, parent| metadata.snapshot_create(&snapshot(key, kind, parent, &none)).map(|row| row.id);
    let usage = Usage { bytes: 3, inodes: 2 };
    let first = create("active", Active, None).expect("creates");
    assert_eq!(kind(create("active", Active, None)), ErrorKind::AlreadyExists);
    assert_eq!(kind(create("x", Active, Some("nowhere"))), ErrorKind::NotFound);
    assert_eq!(kind(create("x", Active, Some("active"))), ErrorKind::FailedPrecondition);
    let labels: Labels = [("a/b".to_string(), "c".to_string())].into();
    let base = metadata.snapshot_commit("active", "base", usage, &labels, None).expect("commits");
    assert_eq!((base.id, base.kind, base.usage), (first, Committed, usage));
    assert_eq!(base.labels, labels);
    assert_eq!(metadata.snapshot_get("active").expect("reads"), None);
    create("view", View, Some("base")).expect("creates");
    assert_eq!(
        kind(metadata.snapshot_commit("view", "v", usage, &none, None)),
        ErrorKind::FailedPrecondition
    );
    create("top", Active, Some("base")).expect("creates");
    assert_eq!(kind(metadata.snapshot_commit("top", "base", usage, &none, None)), ErrorKind::AlreadyExists);
    assert_eq!(metadata.snapshot_get("top").expect("reads").map(|row| row.kind), Some(Active));
    assert_eq!(kind(metadata.snapshot_remove("base")), ErrorKind::FailedPrecondition);
    assert_eq!(kind(metadata.snapshot_remove("nowhere")), ErrorKind::NotFound);
    let last = metadata.snapshot_remove("top").expect("removes").id;
    assert!(create("next", Active, None).expect("creates") > last, "ids are never used twice");
}

#[test]
fn a_rebase_gives_a_parent_and_never_changes_one() {
    use SnapshotKind::Active;
    let (_dir, metadata) = fresh();
    let none = Labels::new();
    let usage = Usage::default();
    for key in ["a", "b", "c"] {
        metadata.snapshot_create(&snapshot(key, Active, None, &none)).expect("creates");
    }
    let commit = |key, name, parent| metadata.snapshot_commit(key, name, usage, &none, parent);
    commit("a", "A", None).expect("commits");
    assert_eq!(kind(commit("b", "B", Some(Some("nowhere")))), ErrorKind::NotFound);
    assert_eq!(commit("b", "B", Some(Some("A"))).expect("rebases").parent.as_deref(), Some("A"));
    metadata.snapshot_create(&snapshot("d", Active, Some("A"), &none)).expect("creates");
    assert_eq!(kind(commit("d", "D", Some(Some("B")))), ErrorKind::InvalidArgument);
    assert_eq!(kind(commit("d", "D", Some(None))), ErrorKind::InvalidArgument);
    commit("d", "D", Some(Some("A"))).expect("the same parent is fine");
    commit("c", "C", Some(Some("D"))).expect("rebases onto a later one");
    let mut seen = HashSet::new();
    let mut check = |row: &SnapshotRow| {
        assert!(row.parent.as_ref().is_none_or(|parent| seen.contains(parent)), "{}", row.key);
        seen.insert(row.key.clone());
        Ok(())
    };
    metadata.snapshot_walk(&mut check).expect("walks");
    assert_eq!(seen.len(), 4);
}

#[test]
fn a_chain_is_read_top_first_and_must_be_whole() {
    use SnapshotKind::{Active, Committed};
    let (dir, metadata) = fresh();
    let none = Labels::new();
    let layer = |key: &str, parent| {
        let tree = Some(DiffId(digest(key)));
        metadata
            .snapshot_create(&NewSnapshot { tree, ..snapshot(key, Committed, parent, &none) })
            .expect("creates");
    };
    layer("base", None);
    layer("middle", Some("base"));
    layer("other", Some("base"));
    metadata.snapshot_create(&snapshot("top", Active, Some("middle"), &none)).expect("creates");
    let keys = |key| {
        let chain = metadata.snapshot_chain(key)?;
        Ok::<_, crate::Error>(chain.into_iter().map(|row| row.key).collect::<Vec<_>>())
    };
    assert_eq!(keys("top").expect("reads"), ["top", "middle", "base"]);
    assert_eq!(keys("base").expect("reads"), ["base"]);
    assert_eq!(kind(keys("nowhere")), ErrorKind::NotFound);
    sql(&dir, "UPDATE snapshot SET boot = 'earlier' WHERE key = 'middle'");
    assert_eq!(kind(keys("top")), ErrorKind::NotFound, "one in the middle is not trusted");
    assert_eq!(keys("other").expect("reads"), ["other", "base"]);
    sql(
        &dir,
        "UPDATE snapshot SET parent_id = (SELECT id FROM snapshot WHERE key = 'other') WHERE key = 'base'",
    );
    assert_eq!(kind(keys("other")), ErrorKind::Corrupt, "a circle ends");
}

#[test]
fn an_undurable_chain_of_an_earlier_boot_is_made_again_below_its_children() {
    use SnapshotKind::{Active, Committed};
    let (dir, metadata) = fresh();
    let none = Labels::new();
    let chain =
        |key| NewSnapshot { tree: Some(DiffId(digest("t"))), ..snapshot(key, Committed, None, &none) };
    let old = metadata.snapshot_create(&chain("chain")).expect("creates").id;
    metadata.snapshot_create(&snapshot("mine", Active, Some("chain"), &none)).expect("creates");
    sql(&dir, "UPDATE snapshot SET boot = 'earlier'");
    assert_eq!(metadata.snapshot_get("chain").expect("reads"), None);
    assert!(metadata.snapshot_get("mine").expect("reads").is_some(), "what cannot be made again is kept");
    let new = metadata.snapshot_create(&chain("chain")).expect("creates").id;
    assert!(new > old);
    let mine = metadata.snapshot_get("mine").expect("reads").expect("is there");
    assert_eq!(mine.parent.as_deref(), Some("chain"));
    assert!(!metadata.snapshot_ids().expect("lists").contains(&old));
}

#[test]
fn a_snapshot_whose_directory_cannot_be_placed_has_no_row() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let (metadata, none) = (open(dir.path()), Labels::new());
    let new = snapshot("key", SnapshotKind::Active, None, &none);
    let full = |_| Err(crate::Error::new(ErrorKind::NoSpace, "no room"));
    assert_eq!(metadata.snapshot_publish(&new, full).expect_err("fails").kind(), ErrorKind::NoSpace);
    assert!(metadata.snapshot_get("key").expect("reads").is_none());
    let mut placed = None;
    let row = metadata.snapshot_publish(&new, |id| {
        placed = Some(id);
        Ok(())
    });
    assert_eq!(placed, Some(row.expect("creates").id));
}

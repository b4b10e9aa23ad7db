//! Which images a policy removes, and what brings them back.

use super::*;

#[test]
fn a_removed_image_can_be_restored_until_its_grace_is_over_and_a_collection_came() {
    let (dir, store) = fresh();
    let made = put_image(dir.path(), &store, "docker.io/library/a:1", &["base", "top"]);
    let name = ["a:1".to_string()];
    let bury = |grace_ms| {
        let row = store.metadata().image_get("docker.io/library/a:1").expect("reads").expect("is there");
        store.metadata().image_bury(&row, grace_ms).expect("removes");
    };
    bury(3_600_000);
    assert_eq!(collect_now(&store), GcReport::default(), "within its grace");
    crate::upkeep::restore(&store, &name).expect("restores");
    bury(0);
    crate::upkeep::restore(&store, &name).expect("restores: no collection came");
    assert!(is_here(&store, &made));
    bury(0);
    assert_eq!(collect_now(&store).blobs_removed, 4);
    let gone = crate::upkeep::restore(&store, &name).err().map(|error| error.kind());
    assert_eq!(gone, Some(ErrorKind::NotFound));
}

#[test]
fn policies_spare_what_is_pinned_in_use_or_among_the_last() {
    use crate::metadata::{Labelled, PINNED, PINNED_LABEL};
    let (dir, store) = fresh();
    let names = ["r/app:1", "r/app:2", "r/app:3", "r/app:4", "r/other:1"];
    let made = names.map(|name| {
        std::thread::sleep(std::time::Duration::from_millis(2));
        put_image(dir.path(), &store, name, &[name])
    });
    label(&store, Labelled::Image("r/app:1"), PINNED_LABEL, PINNED);
    snapshot(&store, "mounted", SnapshotKind::View, Some(&made[1].chains[0]), None);
    let policy = GcOptions { keep_last: Some(1), ..GcOptions::default() };
    let would = gc(&store, &GcOptions { dry_run: true, ..policy.clone() }).expect("plans");
    assert_eq!(would.images_removed, ["r/app:3"]);
    let old = GcOptions { older_than: Some(Duration::from_secs(3600)), ..policy.clone() };
    assert_eq!(gc(&store, &old).expect("collects"), GcReport::default(), "none of them is old");
    let report = gc(&store, &policy).expect("collects");
    assert_eq!((report.images_removed, report.bytes_freed), (would.images_removed, would.bytes_freed));
    assert_eq!(made.each_ref().map(|made| is_here(&store, made)), [true, true, false, true, true]);
    let all = GcOptions {
        older_than: Some(Duration::ZERO),
        grace: Duration::from_secs(3600),
        ..GcOptions::default()
    };
    let report = gc(&store, &all).expect("collects");
    assert_eq!(
        (report.images_removed.len(), report.blobs_removed),
        (2, 0),
        "with a grace they can be restored"
    );
}

/// More is never free.
fn whole_disk(store: &Store) -> u64 {
    let stat = rustix::fs::fstatvfs(store.root()).expect("a filesystem");
    stat.f_blocks * stat.f_frsize
}

#[test]
fn what_can_never_be_free_is_refused_before_an_image_goes_for_it() {
    let (dir, store) = fresh();
    let made = put_image(dir.path(), &store, "a", &["base"]);
    let goal = Some(whole_disk(&store) + 1);
    for dry_run in [true, false] {
        let too_much = GcOptions { until_free_bytes: goal, dry_run, ..GcOptions::default() };
        let refused = gc(&store, &too_much).err().map(|error| error.kind());
        assert_eq!(refused, Some(ErrorKind::InvalidArgument));
    }
    assert!(is_here(&store, &made) && store.metadata().image_get("a").expect("reads").is_some());
}

#[test]
fn images_go_until_enough_is_free_and_not_before() {
    let (dir, store) = fresh();
    put_image(dir.path(), &store, "a", &["base"]);
    let enough = GcOptions { until_free_bytes: Some(1), ..GcOptions::default() };
    let report = gc(&store, &enough).expect("collects");
    assert_eq!((report.images_removed.len(), report.goal_missed), (0, false));
    let too_much = GcOptions { until_free_bytes: Some(whole_disk(&store)), ..GcOptions::default() };
    let would = gc(&store, &GcOptions { dry_run: true, ..too_much.clone() }).expect("plans");
    assert_eq!((would.images_removed, would.goal_missed), (vec!["a".to_string()], true));
    let report = gc(&store, &too_much).expect("collects");
    assert_eq!((report.images_removed, report.goal_missed), (vec!["a".to_string()], true));
    assert_eq!(count(dir.path(), "trees"), 0);
}

#[test]
fn of_several_images_of_the_same_layers_only_the_mounted_one_is_spared() {
    use crate::store::mounted::IMAGE_LABEL;
    let (dir, store) = fresh();
    let names = ["r/app:1", "r/app:2", "r/app:3"];
    let made = names.map(|name| put_image(dir.path(), &store, name, &["base"]));
    let chain = made[0].chains[0].as_str();
    snapshot(&store, "mounted", SnapshotKind::View, Some(chain), None);
    let mounted_as = |name: &str| {
        let labels = Labels::from([(IMAGE_LABEL.to_string(), name.to_string())]);
        store.metadata().snapshot_update_labels("mounted", &labels).expect("labels");
    };
    let all = GcOptions { keep_last: Some(0), ..GcOptions::default() };
    let would = || gc(&store, &GcOptions { dry_run: true, ..all.clone() }).expect("plans").images_removed;
    mounted_as("r/app:9");
    assert_eq!(would(), [""; 0], "there is no such image, so any of them may be meant");
    mounted_as("r/app:2");
    assert_eq!(would(), ["r/app:1", "r/app:3"]);
    let report = gc(&store, &all).expect("collects");
    assert_eq!(
        (report.images_removed, report.trees_removed),
        (vec!["r/app:1".to_string(), "r/app:3".to_string()], 0)
    );
    assert!(store.metadata().image_get("r/app:2").expect("reads").is_some());
}

#[test]
fn an_image_that_is_imported_again_is_new_again() {
    let (dir, store) = fresh();
    let made = ["r/app:1", "r/app:2"].map(|name| put_image(dir.path(), &store, name, &[name]));
    force(&store, "UPDATE image SET updated_ms = updated_ms - 3600000");
    put_image(dir.path(), &store, "r/app:1", &["r/app:1"]);
    let hour = GcOptions { older_than: Some(Duration::from_secs(1800)), ..GcOptions::default() };
    let last = GcOptions { keep_last: Some(1), ..GcOptions::default() };
    for policy in [hour, last] {
        let would = gc(&store, &GcOptions { dry_run: true, ..policy }).expect("plans");
        assert_eq!(would.images_removed, ["r/app:2"]);
    }
    assert_eq!(made.each_ref().map(|made| is_here(&store, made)), [true, true]);
}

#[test]
fn an_image_that_is_imported_again_after_it_was_chosen_stays() {
    let (dir, store) = fresh();
    put_image(dir.path(), &store, "a", &["base"]);
    let chosen = store.metadata().images().expect("lists");
    let made = put_image(dir.path(), &store, "a", &["base", "top"]);
    let mut report = GcReport::default();
    policy::bury(&store, &chosen, &GcOptions::default(), &mut report).expect("removes");
    assert_eq!(report.images_removed, Vec::<String>::new());
    collect_now(&store);
    assert!(is_here(&store, &made));
}

#[test]
fn removing_until_enough_is_free_stops_where_it_frees_nothing() {
    let (dir, store) = fresh();
    let made = put_image(dir.path(), &store, "a", &["base"]);
    let held: Vec<Resource> = made.blobs.iter().map(|digest| Resource::Blob(*digest)).collect();
    let held = held.into_iter().chain(made.trees.iter().map(|id| Resource::Tree(*id)));
    let held = held.chain(made.chains.iter().map(|key| Resource::Snapshot(key.clone())));
    store.lease_create("kept", None, &Labels::new()).expect("creates");
    store.metadata().lease_add("kept", &held.collect::<Vec<_>>()).expect("holds");
    let goal = GcOptions { until_free_bytes: Some(whole_disk(&store)), ..GcOptions::default() };
    let with_grace = GcOptions { grace: Duration::from_secs(60), ..goal.clone() };
    assert_eq!(gc(&store, &with_grace).err().map(|error| error.kind()), Some(ErrorKind::InvalidArgument));
    let report = gc(&store, &goal).expect("collects");
    assert!(report.goal_missed && report.images_left == 1);
    assert!(is_here(&store, &made));
}

#[test]
fn a_mount_of_a_snapshot_of_ones_own_spares_the_image_below_it_and_not_those_below_that() {
    let (dir, store) = fresh();
    let [top, base] = [("r/top:1", &["base", "top"][..]), ("r/base:1", &["base"])]
        .map(|(name, layers)| put_image(dir.path(), &store, name, layers));
    snapshot(&store, "mine", SnapshotKind::Committed, top.chains.last().map(String::as_str), None);
    snapshot(&store, "mine-2", SnapshotKind::Committed, Some("mine"), None);
    snapshot(&store, "vm", SnapshotKind::Active, Some("mine-2"), None);
    let all = GcOptions { older_than: Some(Duration::ZERO), ..GcOptions::default() };
    let report = gc(&store, &all).expect("collects");
    assert_eq!(report.images_removed, ["r/base:1"]);
    assert!(is_here(&store, &top) && base.chains[0] == top.chains[0]);
}

//! Snapshots end to end: layers extracted for real, put into chains by both snapshotters, mounted both ways and unpacked.
//! All of these ways have to show one and the same tree, and the snapshotters keep one contract.

mod bounds;
mod chains;
mod commits;

#[path = "../support/mod.rs"]
mod support;

use rustix::fd::AsFd;
use rustix::fs::{Mode, OFlags};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use support::image::{Layer, dir, file, layer};
use support::listing::{assert_same, listing};
use support::scratch;
use transload::metadata::{Metadata, OpenMode};
use transload::mount::{self, Mount, MountKind, MountMethod, MountOptions};
use transload::snapshot::{
    Bounds, Committed, Filters, Labels, OverlaySnapshotter, PlainSnapshotter, SnapshotFile, SnapshotKind,
    Snapshotter, Trees,
};
use transload::transfer::{UnpackOptions, unpack};
use transload::tree::WhiteoutForm;
use transload::{Cancel, ChainId, DiffId, ErrorKind};

/// A store with nothing but trees and snapshots.
struct House {
    dir: tempfile::TempDir,
    trees: Trees,
    form: WhiteoutForm,
    snapshots: Box<dyn Snapshotter>,
}

impl House {
    fn new(form: WhiteoutForm) -> House {
        let dir = scratch();
        let root = dir.path().join("store");
        std::fs::create_dir(&root).expect("a directory");
        let metadata = Arc::new(Metadata::open(&root, OpenMode::Create).expect("a database"));
        let fd = rustix::fs::open(&root, OFlags::DIRECTORY, Mode::empty()).expect("opens");
        let trees = Trees::open(fd.as_fd()).expect("trees");
        let snapshots: Box<dyn Snapshotter> = match form {
            WhiteoutForm::List => Box::new(PlainSnapshotter::open(&root, metadata, 2).expect("opens")),
            form => Box::new(OverlaySnapshotter::open(&root, metadata, form).expect("opens")),
        };
        House { dir, trees, form, snapshots }
    }

    fn both() -> Vec<House> {
        vec![House::new(WhiteoutForm::Trusted), House::new(WhiteoutForm::List)]
    }

    /// Their `snapshot.json` says what their rows say, also after something was refused.
    fn assert_described(&self, keys: &[&str]) {
        for key in keys {
            let row = self.snapshots.stat(key).expect("there");
            let root = std::fs::File::open(self.dir.path().join("store")).expect("opens");
            let file = SnapshotFile::read(&root, row.id).expect("reads");
            assert_eq!(file, SnapshotFile::of_row(&row));
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        let path = self.dir.path().join(name);
        std::fs::create_dir_all(&path).expect("a directory");
        path
    }

    /// Extracts a layer as an import would.
    fn tree(&self, layer: &Layer) -> DiffId {
        self.try_tree(layer).expect("extracts")
    }

    fn try_tree(&self, layer: &Layer) -> transload::Result<DiffId> {
        let diff_id: DiffId = layer.diff_id().parse().expect("a digest");
        let ingest = self.trees.begin(&diff_id.0.hex(), &Cancel::new(), &mut || {}).expect("begins");
        let options = transload::layer::ApplyOptions { form: self.form, ..Default::default() };
        let tar = layer.tar();
        let (applied, _) =
            transload::layer::apply(&tar[..], ingest.fs(), &options, &Cancel::new(), &mut |_| {})?;
        let record = transload::tree::TreeRecord { diff_id: Some(diff_id), ..applied.record };
        ingest.publish(&record).expect("publishes");
        Ok(diff_id)
    }

    fn commit(&self, parent: Option<&ChainId>, diff_id: &DiffId) -> transload::Result<Committed> {
        self.snapshots.commit_layer(parent, diff_id, &Labels::new(), &Bounds::default())
    }

    fn try_chain(&self, layers: &[Layer]) -> transload::Result<String> {
        let mut parent: Option<ChainId> = None;
        for layer in layers {
            let diff_id = self.try_tree(layer)?;
            self.commit(parent.as_ref(), &diff_id)?;
            parent = Some(ChainId::above(parent.as_ref(), &diff_id));
        }
        Ok(parent.expect("a layer").to_string())
    }

    fn chain(&self, layers: &[Layer]) -> String {
        self.try_chain(layers).expect("a chain")
    }

    fn view(&self, key: &str, parent: &str) -> Vec<Mount> {
        self.snapshots.view(key, Some(parent), &Labels::new()).expect("a view")
    }

    fn unpacked(&self, name: &str, threads: usize) -> Vec<String> {
        let to = self.path(&format!("unpacked-{threads}"));
        let options = UnpackOptions { threads, lenient: false, cancel: Cancel::new() };
        unpack(&self.snapshots.stack(name).expect("a stack"), &to, &options).expect("unpacks");
        let lines = listing(&to);
        std::fs::remove_dir_all(&to).expect("removes");
        lines
    }

    fn mounted<T>(&self, mounts: &[Mount], look: impl FnOnce(&Path) -> T) -> T {
        self.mounted_by(MountMethod::Auto, mounts, look)
    }

    fn mounted_by<T>(&self, method: MountMethod, mounts: &[Mount], look: impl FnOnce(&Path) -> T) -> T {
        let at = self.path("mounted");
        let options = MountOptions { method, ..MountOptions::default() };
        mount::mount_all(mounts, &at, &options).expect("mounts");
        let guard = support::mounts::Unmount(at.clone());
        let seen = look(&at);
        mount::unmount(&at).expect("unmounts");
        std::mem::forget(guard);
        seen
    }
}

fn root() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        eprintln!("SKIPPED: needs root");
    }
    root
}

/// Every way to look at the chain shows this tree; it is returned as seen through overlayfs.
fn everywhere(what: &str, layers: &[Layer]) -> Vec<String> {
    try_everywhere(what, layers).expect("a chain")
}

/// The same for layers that may be no chain; then the snapshotters say so alike.
fn try_everywhere(what: &str, layers: &[Layer]) -> transload::Result<Vec<String>> {
    let [overlay, plain] = [House::new(WhiteoutForm::Trusted), House::new(WhiteoutForm::List)];
    let [name, copy] = [overlay.try_chain(layers), plain.try_chain(layers)];
    let told = |made: &transload::Result<String>| made.as_ref().map_err(|error| error.to_string()).cloned();
    assert_eq!(told(&name), told(&copy), "{what}: overlay, plain");
    let (name, copy) = (name?, copy?);
    let view = overlay.view("view", &name);
    let seen = overlay.mounted(&view, listing);
    assert_same(&format!("{what}: mounted, unpacked"), &seen, &overlay.unpacked(&name, 1));
    assert_same(&format!("{what}: 1 and 4 threads"), &seen, &overlay.unpacked(&name, 4));
    assert_same(&format!("{what}: overlay, plain"), &seen, &plain.unpacked(&copy, 2));
    let view = plain.view("view", &copy);
    assert_same(&format!("{what}: plain, mounted"), &seen, &plain.mounted(&view, listing));
    Ok(seen)
}

#[track_caller]
fn assert_line(lines: &[String], start: &str) {
    assert!(lines.iter().any(|line| line.starts_with(start)), "no {start:?} in:\n{}", lines.join("\n"));
}

#[track_caller]
fn assert_gone(lines: &[String], name: &str) {
    let start = format!("{name} ");
    assert!(!lines.iter().any(|line| line.starts_with(&start)), "{name} is still in:\n{}", lines.join("\n"));
}

#[test]
fn an_implicit_directory_shows_the_attributes_of_the_one_below() {
    if !root() {
        return;
    }
    let base = dir("srv").mode(0o1770).owner(7, 8).mtime(1_000, 123_456_789).xattr("user.a", "b");
    let base = base.dir("srv/data").mode(0o700).mtime(2_000, 5).file("srv/data/old", "1");
    let seen = everywhere("implicit", &[base, file("srv/data/new", "2"), file("srv/third", "3")]);
    assert_line(&seen, "srv dir 1770 7:8 1000.123456789 user.a=b");
    assert_line(&seen, "srv/data dir 0700 0:0 2000.000000005");
    assert_line(&seen, "srv/data/new file");
    assert_line(&seen, "srv/third file");
}

#[test]
fn an_implicit_root_shows_the_attributes_of_the_one_below() {
    if !root() {
        return;
    }
    let seen = everywhere("root", &[dir("./").mode(0o711).owner(1, 2).mtime(77, 1), file("a", "1")]);
    assert_line(&seen, ". dir 0711 1:2 77.000000001");
}

#[test]
fn an_implicit_directory_over_something_else_stays_as_it_is() {
    if !root() {
        return;
    }
    let seen = everywhere("file below", &[file("x", "1"), file("x/in", "2")]);
    assert_line(&seen, "x dir 0755 0:0");
    let seen = everywhere("link below", &[dir("usr/lib").symlink("lib", "usr/lib"), file("lib/a", "2")]);
    assert_line(&seen, "lib dir 0755 0:0");
    assert_line(&seen, "lib/a file");
    assert_gone(&seen, "usr/lib/a");
    let deleted = [dir("d").mode(0o700).file("d/a", "1"), layer().whiteout("d"), file("d/b", "2")];
    let seen = everywhere("deleted below", &deleted);
    assert_line(&seen, "d dir 0755 0:0");
    assert_gone(&seen, "d/a");
}

#[test]
fn whiteouts_and_opaque_directories_hide_what_is_below_and_nothing_else() {
    if !root() {
        return;
    }
    let base = file("a/x", "1").file("a/y", "2").file("b/x", "3").dir("b/sub").file("b/sub/deep", "4");
    let change = layer().whiteout("a/x").opaque("b").file("b/new", "5").dir("b/sub").whiteout("never/there");
    for order in [change.clone(), file("b/new", "5").dir("b/sub").opaque("b").whiteout("a/x")] {
        let seen = everywhere("hidden", &[base.clone(), order]);
        assert_gone(&seen, "a/x");
        assert_gone(&seen, "b/x");
        assert_gone(&seen, "b/sub/deep");
        assert_line(&seen, "a/y file");
        assert_line(&seen, "b/new file");
        assert_line(&seen, "b/sub dir");
    }
    let seen = everywhere("marks of a lone layer", &[change]);
    assert_gone(&seen, "a/x");
    assert_line(&seen, "b/new file");
}

#[test]
fn directories_and_files_replace_each_other() {
    if !root() {
        return;
    }
    let layers = [
        file("a/in", "1").file("b", "2").symlink("c", "a"),
        file("a", "now a file").dir("b").file("b/in", "3").dir("c").file("c/own", "4"),
        dir("a").file("a/again", "5"),
    ];
    let seen = everywhere("replaced", &layers);
    assert_line(&seen, "a/again file");
    assert_gone(&seen, "a/in");
    assert_line(&seen, "b/in file");
    assert_line(&seen, "c/own file");
    assert_gone(&seen, "c/in");
}

#[test]
fn a_hard_link_to_a_lower_layer_is_one_file_under_both_names() {
    if !root() {
        return;
    }
    let base = dir("usr/lib").mode(0o750).mtime(5, 0).symlink("lib", "usr/lib");
    let base = base.file("usr/lib/t", "data").mode(0o4711).owner(3, 4).mtime(9, 9).xattr("user.k", "v");
    let upper = layer().hardlink("bin/link", "lib/t").hardlink("other", "bin/link");
    let seen = everywhere("hard link", &[base.clone(), upper]);
    assert_line(&seen, "bin/link file 4711 3:4 9.000000009");
    for name in ["usr/lib/t", "other"] {
        let line = seen.iter().find(|line| line.starts_with(&format!("{name} "))).expect(name);
        assert!(line.contains("user.k=v") && line.ends_with("same as bin/link"), "{line}");
    }
    assert_line(&seen, "usr/lib dir 0750 0:0 5.000000000");
    let hidden = layer().hardlink("kept", "usr/lib/t").whiteout("usr/lib/t");
    let seen = everywhere("linked, then deleted", &[base, hidden]);
    assert_line(&seen, "kept file 4711 3:4");
    assert_gone(&seen, "usr/lib/t");
}

#[test]
fn a_hard_link_to_nothing_names_both_sides() {
    for house in House::both() {
        if !root() {
            return;
        }
        let error = house.try_chain(&[file("a", "1"), layer().hardlink("b", "absent")]).expect_err("refused");
        assert_eq!(error.kind(), ErrorKind::Malformed);
        assert!(error.to_string().contains('b') && error.to_string().contains("absent"), "{error}");
        assert!(house.chain(&[file("a", "1"), file("c", "2")]).starts_with("sha256:"), "still usable");
    }
}

#[test]
fn special_files_and_hostile_names_survive_every_way() {
    if !root() {
        return;
    }
    let odd = file("new\nline", "1").file("sp ace", "2").fifo("pipe").char_device("null", 1, 3);
    let odd = odd.symlink("dangling", "/nowhere/../x").file("a/b/c/d/e/f", "").hardlink("linked", "sp ace");
    let seen = everywhere("odd", &[odd, dir("a").mode(0o2775)]);
    assert_line(&seen, "null char 0666 0:0");
    assert_line(&seen, "pipe fifo 0600");
    assert_line(&seen, "a dir 2775");
}

#[test]
fn a_chain_of_128_layers_mounts_both_ways() {
    if !root() {
        return;
    }
    let house = House::new(WhiteoutForm::Trusted);
    let layers: Vec<Layer> =
        (0..128).map(|n| file(&format!("f{n}"), n.to_string()).file("top", n.to_string())).collect();
    let name = house.chain(&layers);
    let view = house.view("view", &name);
    let unpacked = house.unpacked(&name, 1);
    for method in [MountMethod::Descriptors, MountMethod::Classic] {
        let seen = house.mounted_by(method, &view, |at| {
            assert_eq!(std::fs::read_to_string(at.join("top")).expect("reads"), "127");
            listing(at)
        });
        assert_same(&format!("{method:?}"), &seen, &unpacked);
    }
    let rw = house.snapshots.prepare("rw", Some(&name), &Labels::new()).expect("prepares");
    for method in [MountMethod::Descriptors, MountMethod::Classic] {
        house.mounted_by(method, &rw, |at| std::fs::write(at.join("f0"), "changed").expect("writes"));
    }
    assert_eq!(
        std::fs::read_to_string(rw[0].upper.as_ref().expect("an upper").join("f0")).expect("reads"),
        "changed"
    );
}

#[test]
fn a_layer_is_shared_by_chains_and_committed_once() {
    if !root() {
        return;
    }
    for house in House::both() {
        let (a, b) = (dir("d").mode(0o700), dir("d").mode(0o711));
        let top = file("d/x", "1");
        let (one, two) = (house.chain(&[a.clone(), top.clone()]), house.chain(&[b, top.clone()]));
        assert_line(&house.unpacked(&one, 1), "d dir 0700");
        assert_line(&house.unpacked(&two, 1), "d dir 0711");
        let [a, top] = [a.diff_id(), top.diff_id()].map(|id| id.parse::<DiffId>().expect("a digest"));
        let parent = ChainId::above(None, &a);
        let again = house.commit(Some(&parent), &top).expect("commits");
        assert_eq!(again, Committed::Existing);
        let absent = ChainId::above(Some(&parent), &a);
        let error = house.commit(Some(&absent), &top).expect_err("no parent");
        assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
        // One layer twice in a chain is two snapshots.
        let twice = house.commit(Some(&ChainId::above(Some(&parent), &top)), &top);
        assert_eq!(twice.expect("commits"), Committed::New);
    }
}

#[test]
fn the_contract_of_snapshotters() {
    if !root() {
        return;
    }
    for house in House::both() {
        kinds_and_names(&house);
        writing_and_committing(&house);
        removing(&house);
        rebasing(&house);
        labels_and_filters(&house);
    }
}

fn kind_of<T: std::fmt::Debug>(result: transload::Result<T>) -> ErrorKind {
    result.expect_err("refused").kind()
}

fn kinds_and_names(house: &House) {
    let (s, none) = (&house.snapshots, Labels::new());
    let base = house.chain(&[file("a", "1")]);
    s.prepare("active", Some(&base), &none).expect("prepares");
    s.view("look", Some(&base), &none).expect("views");
    for taken in ["active", "look", &base] {
        assert_eq!(kind_of(s.prepare(taken, None, &none)), ErrorKind::AlreadyExists);
        assert_eq!(kind_of(s.view(taken, None, &none)), ErrorKind::AlreadyExists);
    }
    assert_eq!(kind_of(s.prepare("x", Some("absent"), &none)), ErrorKind::NotFound);
    assert_eq!(kind_of(s.prepare("x", Some("active"), &none)), ErrorKind::FailedPrecondition);
    assert_eq!(kind_of(s.view("x", Some("look"), &none)), ErrorKind::FailedPrecondition);
    assert_eq!(kind_of(s.commit("x", "look", &none, None)), ErrorKind::FailedPrecondition);
    assert_eq!(kind_of(s.commit(&base, "active", &none, None)), ErrorKind::AlreadyExists);
    assert_eq!(s.stat("active").expect("still there").kind, SnapshotKind::Active);
    assert_eq!(s.stat("look").expect("there").kind, SnapshotKind::View);
    house.assert_described(&["active", "look", &base]);
    assert_eq!(kind_of(s.mounts(&base)), ErrorKind::FailedPrecondition);
    assert_eq!(kind_of(s.mounts("absent")), ErrorKind::NotFound);
    assert_eq!(kind_of(s.stat("absent")), ErrorKind::NotFound);
    assert_eq!(kind_of(s.usage("absent")), ErrorKind::NotFound);
    for key in ["active", "look"] {
        s.remove(key).expect("removes");
    }
}

fn writing_and_committing(house: &House) {
    let (s, none) = (&house.snapshots, Labels::new());
    let first = s.prepare("first", None, &none).expect("prepares");
    assert_eq!((first.len(), first[0].kind, first[0].read_only), (1, MountKind::Bind, false));
    house.mounted(&first, |at| {
        std::fs::write(at.join("kept"), "1").expect("writes");
        std::fs::write(at.join("gone"), vec![1; 100_000]).expect("writes");
        std::fs::create_dir(at.join("dir")).expect("makes");
        std::fs::set_permissions(at, PermissionsExt::from_mode(0o751)).expect("chmods");
        std::os::unix::fs::chown(at, Some(12), Some(13)).expect("chowns");
    });
    let measured = s.usage("first").expect("measures");
    assert!(measured.bytes >= 100_000 && measured.inodes == 4, "{measured:?}");
    let labels: Labels = [("new".to_string(), "1".to_string())].into();
    s.commit("one", "first", &labels, None).expect("commits");
    assert_eq!(kind_of(s.stat("first")), ErrorKind::NotFound);
    let row = s.stat("one").expect("committed");
    assert_eq!((row.kind, &row.labels, row.usage), (SnapshotKind::Committed, &labels, measured));
    house.assert_described(&["one"]);

    let second = s.prepare("second", Some("one"), &none).expect("prepares");
    house.mounted(&second, |at| {
        let root = std::fs::metadata(at).expect("stats");
        assert_eq!((root.uid(), root.gid(), root.mode() & 0o7777), (12, 13, 0o751), "as its parent's root");
        std::fs::remove_file(at.join("gone")).expect("removes");
        std::fs::remove_dir(at.join("dir")).expect("removes");
        std::fs::create_dir(at.join("dir")).expect("makes again");
        std::fs::write(at.join("dir/new"), "2").expect("writes");
    });
    assert_eq!(s.mounts("second").expect("mounts"), second);
    s.commit("two", "second", &none, None).expect("commits");
    let view = house.view("see", "two");
    let seen = house.mounted(&view, |at| {
        let error = std::fs::write(at.join("kept"), "2").expect_err("read-only");
        assert_eq!(error.kind(), std::io::ErrorKind::ReadOnlyFilesystem);
        listing(at)
    });
    assert_gone(&seen, "gone");
    assert_line(&seen, "dir/new file");
    assert_same("committed: mounted, unpacked", &seen, &house.unpacked("two", 2));
    let mut three = house.view("one-below", "one");
    assert_eq!((three.remove(0).kind, three.len()), (MountKind::Bind, 0), "one directory is a bind mount");
    for key in ["see", "one-below"] {
        s.remove(key).expect("removes");
    }
}

fn removing(house: &House) {
    let s = &house.snapshots;
    assert_eq!(kind_of(s.remove("one")), ErrorKind::FailedPrecondition, "it has a child");
    s.remove("two").expect("removes");
    s.remove("one").expect("removes");
    assert_eq!(kind_of(s.remove("one")), ErrorKind::NotFound);
    let snapshots = house.dir.path().join("store/snapshots");
    std::fs::create_dir_all(snapshots.join("999/fs/deep")).expect("an orphan");
    assert_eq!(s.cleanup().expect("cleans"), 1);
    assert_eq!(s.cleanup().expect("cleans"), 0);
    let ingest = std::fs::read_dir(house.dir.path().join("store/ingest")).expect("lists");
    assert_eq!(ingest.count(), 0, "nothing stays behind");
}

fn rebasing(house: &House) {
    let (s, none) = (&house.snapshots, Labels::new());
    let base = house.chain(&[file("base", "1")]);
    let alone = s.prepare("alone", None, &none).expect("prepares");
    house.mounted(&alone, |at| std::fs::write(at.join("own"), "2").expect("writes"));
    assert_eq!(kind_of(s.commit("rebased", "alone", &none, Some("absent"))), ErrorKind::NotFound);
    house.assert_described(&["alone"]);
    s.commit("rebased", "alone", &none, Some(&base)).expect("commits");
    assert_eq!(s.stat("rebased").expect("there").parent.as_deref(), Some(base.as_str()));
    let seen = house.unpacked("rebased", 1);
    assert_line(&seen, "base file");
    assert_line(&seen, "own file");
    s.prepare("has-parent", Some("rebased"), &none).expect("prepares");
    assert_eq!(kind_of(s.commit("x", "has-parent", &none, Some(&base))), ErrorKind::InvalidArgument);
    house.assert_described(&["rebased", "has-parent"]);
    s.commit("x", "has-parent", &none, Some("rebased")).expect("the same parent is fine");
}

fn labels_and_filters(house: &House) {
    let s = &house.snapshots;
    let labels: Labels = [("a/b", "x"), ("keep", "1")].map(|(k, v)| (k.to_string(), v.to_string())).into();
    s.prepare("labelled", None, &labels).expect("prepares");
    let changed: Labels = [("a/b".to_string(), "y".to_string())].into();
    assert_eq!(s.update("labelled", &changed, &["labels.a/b"]).expect("updates").labels.len(), 2);
    assert_eq!(s.update("labelled", &Labels::new(), &["labels.keep"]).expect("updates").labels, changed);
    assert_eq!(kind_of(s.update("labelled", &changed, &["parent"])), ErrorKind::InvalidArgument);
    assert_eq!(kind_of(s.update("absent", &changed, &[])), ErrorKind::NotFound);
    let names = |filters: &[&str]| {
        let mut names = Vec::new();
        let filters = Filters::parse(filters.iter().copied()).expect("well formed");
        let mut visit = |row: &transload::snapshot::SnapshotRow| {
            names.push(row.key.clone());
            Ok(())
        };
        s.walk(&filters, &mut visit).expect("walks");
        names
    };
    assert_eq!(names(&[r#"labels."a/b"==y,kind==active"#]), ["labelled"]);
    assert_eq!(names(&["parent==rebased", "name==labelled"]).len(), 2);
    assert!(names(&[]).len() > 2);
    s.update("labelled", &Labels::new(), &[]).expect("updates");
    assert!(s.stat("labelled").expect("there").labels.is_empty());
}

#[test]
fn unpack_refuses_a_full_directory_and_leaves_nothing_behind() {
    if !root() {
        return;
    }
    let house = House::new(WhiteoutForm::Trusted);
    let name = house.chain(&[file("a", "1").file("b/c", vec![1; 3 << 20])]);
    let stack = house.snapshots.stack(&name).expect("a stack");
    let options = UnpackOptions { threads: 2, lenient: false, cancel: Cancel::new() };
    let full = house.path("full");
    std::fs::write(full.join("mine"), "1").expect("writes");
    assert_eq!(kind_of(unpack(&stack, &full, &options)), ErrorKind::FailedPrecondition);
    assert_eq!(listing(&full).len(), 2);
    let Some(small) = support::mounts::Small::mount(&house.path("small"), 1 << 20) else { return };
    let target = house.dir.path().join("small/target");
    assert_eq!(kind_of(unpack(&stack, &target, &options)), ErrorKind::NoSpace);
    assert!(!target.exists());
    drop(small);
    let cancelled = Cancel::new();
    cancelled.cancel();
    let options = UnpackOptions { cancel: cancelled, ..options };
    assert_eq!(kind_of(unpack(&stack, &house.dir.path().join("new"), &options)), ErrorKind::Cancelled);
    assert!(!house.dir.path().join("new").exists());
}

#[test]
fn mounts_of_a_store_are_listed_and_errors_say_what_is_missing() {
    if !root() {
        return;
    }
    let house = House::new(WhiteoutForm::Trusted);
    let store = house.dir.path().join("store");
    let name = house.chain(&[file("a", "1"), file("b", "2").whiteout("a")]);
    let single = house.chain(&[file("a", "1")]);
    for (key, parent) in [("overlay", &name), ("bind", &single)] {
        let view = house.view(key, parent);
        house.mounted(&view, |at| {
            let listed = mount::list(&store).expect("lists");
            assert_eq!(listed.len(), 1, "{key}: {listed:?}");
            assert_eq!(listed[0].target, at);
            assert!(listed[0].read_only);
            let inside = std::fs::File::open(at.join("b")).or_else(|_| std::fs::File::open(at.join("a")));
            assert_eq!(kind_of(mount::unmount(at)), ErrorKind::Busy);
            drop(inside);
        });
        let at = house.path("mounted");
        assert_eq!(kind_of(mount::unmount(&at)), ErrorKind::NotFound);
        let classic = house.mounted_by(MountMethod::Classic, &view, |at| {
            std::fs::write(at.join("x"), "1").expect_err("read-only").kind()
        });
        assert_eq!(classic, std::io::ErrorKind::ReadOnlyFilesystem);
    }
    let mut broken = house.snapshots.mounts("overlay").expect("mounts");
    broken[0].lower.push(house.dir.path().join("absent"));
    for method in [MountMethod::Descriptors, MountMethod::Classic] {
        let options = MountOptions { method, ..MountOptions::default() };
        let error = mount::mount(&broken[0], &house.path("mounted"), &options).expect_err("refused");
        assert!(error.hint().is_some_and(|hint| hint.contains("fsck")), "{method:?}: {error}");
    }
}

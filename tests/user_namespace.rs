//! The same without privilege: a store whose trees carry `user.overlay.*` marks, mounted in a user namespace.
//!
//! A program of its own without the test harness, because only a process with a single thread may enter a user
//! namespace.

use rustix::fd::AsFd;
use rustix::fs::{Mode, OFlags};
use std::path::Path;
use std::sync::Arc;
use transload::metadata::{Metadata, OpenMode};
use transload::mount::{self, MountMethod, MountOptions};
use transload::snapshot::{Bounds, Labels, OverlaySnapshotter, Snapshotter, Trees};
use transload::tree::{PathBytes, TreeRecord, WhiteoutForm};
use transload::{Cancel, ChainId, DiffId, Digest, ErrorKind};

fn main() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let (uid, gid) = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
    match mount::enter_user_namespace(uid, gid) {
        Ok(()) => {}
        Err(error) if error.kind() == ErrorKind::Permission => {
            eprintln!("SKIPPED: {error}");
            return;
        }
        Err(error) => panic!("{error}"),
    }
    assert!(rustix::process::getuid().is_root(), "root inside");
    mounts_hide_what_user_marks_delete(dir.path());
    let refused = std::thread::spawn(move || mount::enter_user_namespace(0, 0).expect_err("two threads"));
    assert_eq!(refused.join().expect("no panic").kind(), ErrorKind::FailedPrecondition);
}

fn mounts_hide_what_user_marks_delete(dir: &Path) {
    let (store, at) = (dir.join("store"), dir.join("at"));
    std::fs::create_dir(&store).expect("makes");
    std::fs::create_dir(&at).expect("makes");
    let metadata = Arc::new(Metadata::open(&store, OpenMode::Create).expect("a database"));
    let root = rustix::fs::open(&store, OFlags::DIRECTORY, Mode::empty()).expect("opens");
    let trees = Trees::open(root.as_fd()).expect("trees");
    let snapshots = OverlaySnapshotter::open(&store, metadata, WhiteoutForm::User).expect("opens");
    let lower = tree(&trees, "lower", |fs| {
        std::fs::create_dir(fs.join("d")).expect("makes");
        std::fs::write(fs.join("d/hidden"), "1").expect("writes");
        std::fs::write(fs.join("deleted"), "1").expect("writes");
        std::fs::write(fs.join("kept"), "1").expect("writes");
        (Vec::new(), Vec::new())
    });
    let upper = tree(&trees, "upper", |fs| {
        std::fs::create_dir(fs.join("d")).expect("makes");
        let handle = std::fs::File::open(fs.join("d")).expect("opens");
        let flags = rustix::fs::XattrFlags::empty();
        rustix::fs::fsetxattr(handle, "user.overlay.opaque", b"y", flags).expect("marks");
        let kind = rustix::fs::FileType::CharacterDevice;
        rustix::fs::mknodat(rustix::fs::CWD, fs.join("deleted"), kind, Mode::empty(), 0).expect("a whiteout");
        (vec![PathBytes::new("deleted")], vec![PathBytes::new("d")])
    });
    let parent = ChainId::above(None, &lower);
    snapshots.commit_layer(None, &lower, &Labels::new(), &Bounds::default()).expect("commits");
    snapshots.commit_layer(Some(&parent), &upper, &Labels::new(), &Bounds::default()).expect("commits");
    let name = parent.child(&upper).to_string();
    let view = snapshots.view("view", Some(&name), &Labels::new()).expect("a view");
    let active = snapshots.prepare("active", Some(&name), &Labels::new()).expect("prepares");
    for method in [MountMethod::Auto, MountMethod::Classic] {
        let options = MountOptions { method, ..MountOptions::default() };
        for mounts in [&view, &active] {
            mount::mount_all(mounts, &at, &options).expect("mounts");
            assert!(at.join("kept").exists() && !at.join("deleted").exists());
            assert_eq!(std::fs::read_dir(at.join("d")).expect("lists").count(), 0, "opaque");
            mount::unmount(&at).expect("unmounts");
        }
    }
    let mut names = Vec::new();
    let stack = snapshots.stack(&name).expect("a stack");
    let mut visit = |node: &transload::snapshot::Node| {
        names.push(node.path().to_vec());
        Ok(())
    };
    stack.walk(&mut visit).expect("walks");
    assert_eq!(names, [&b""[..], b"d", b"kept"]);
}

type Lists = (Vec<PathBytes>, Vec<PathBytes>);

fn tree(trees: &Trees, name: &str, fill: impl FnOnce(&Path) -> Lists) -> DiffId {
    use std::os::fd::AsRawFd;
    let diff_id = DiffId(Digest::of(name.as_bytes()));
    let ingest = trees.begin(name, &Cancel::new(), &mut || {}).expect("begins");
    let (whiteouts, opaque) = fill(Path::new(&format!("/proc/self/fd/{}", ingest.fs().as_raw_fd())));
    let record =
        TreeRecord { diff_id: Some(diff_id), whiteouts, opaque, ..TreeRecord::new(WhiteoutForm::User) };
    ingest.publish(&record).expect("publishes");
    diff_id
}

use super::*;
use crate::metadata::{ImageCommit, NewImage, Resource};
use crate::oci::{Descriptor, Digest, media_type};
use crate::parallel::{Cancel, Patience};
use crate::progress::Event;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

fn options() -> StoreOptions {
    StoreOptions { create: true, ..StoreOptions::default() }
}

fn open(path: &Path) -> Store {
    Store::open(path, &options()).expect("opens")
}

fn kind(result: Result<Store>) -> ErrorKind {
    result.err().expect("is refused").kind()
}

/// A minimal image, complete enough for other tools.
fn put_image(store: &Store, name: &str) -> Digest {
    let config = br#"{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":[]}}"#;
    let config_digest = store.content().put_document(config, false).expect("puts").digest();
    let manifest = format!(
        r#"{{"schemaVersion":2,"mediaType":"{}","config":{{"mediaType":"{}","digest":"{config_digest}","size":{}}},"layers":[]}}"#,
        media_type::MANIFEST,
        media_type::CONFIG,
        config.len()
    );
    let target = store.content().put_document(manifest.as_bytes(), false).expect("puts").digest();
    let image = NewImage {
        name: Some(name.to_string()),
        target: Descriptor::new(media_type::MANIFEST, target, manifest.len() as u64),
        manifests: Vec::new(),
    };
    let commit = ImageCommit { images: vec![image], ..ImageCommit::default() };
    store.metadata().image_put(&commit).expect("commits");
    store.refresh_index().expect("writes");
    target
}

#[test]
fn a_new_store_is_private_whatever_the_directory_was() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let mode = |path: &Path| std::fs::metadata(path).expect("stats").permissions().mode() & 0o7777;
    let deep = dir.path().join("a/b/store");
    open(&deep);
    assert_eq!(mode(&deep), 0o700);
    let wide = dir.path().join("wide");
    std::fs::create_dir(&wide).expect("creates");
    std::fs::set_permissions(&wide, std::fs::Permissions::from_mode(0o777)).expect("chmods");
    open(&wide);
    assert_eq!(mode(&wide), 0o700);
    for name in ["oci-layout", "index.json", "blobs/sha256", "ingest", "trees", "snapshots", "meta.db"] {
        assert!(wide.join(name).exists(), "{name}");
    }
}

#[test]
fn what_is_not_a_store_is_refused_and_left_alone() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let missing = dir.path().join("missing");
    assert_eq!(kind(Store::open(&missing, &StoreOptions::default())), ErrorKind::NotFound);
    assert!(!missing.exists());
    std::fs::write(dir.path().join("thesis.tex"), "x").expect("writes");
    assert_eq!(kind(Store::open(dir.path(), &options())), ErrorKind::FailedPrecondition);
    assert_eq!(std::fs::read_dir(dir.path()).expect("lists").count(), 1);
}

#[test]
fn an_interrupted_creation_is_completed() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    std::fs::write(dir.path().join(".transload.json.1-0-0"), "{").expect("writes");
    std::fs::create_dir(dir.path().join("lost+found")).expect("creates");
    open(dir.path());
    std::fs::remove_file(dir.path().join("oci-layout")).expect("removes");
    std::fs::remove_dir(dir.path().join("trees")).expect("removes");
    open(dir.path());
    assert!(dir.path().join("oci-layout").exists() && dir.path().join("trees").exists());
}

#[test]
fn the_marker_that_a_power_cut_left_empty_is_written_anew() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let marker = dir.path().join("oci-layout");
    open(dir.path());
    let whole = std::fs::read(&marker).expect("reads");
    for left in ["", "\0\0\0\0", "{\"imageLay"] {
        std::fs::write(&marker, left).expect("writes");
        open(dir.path());
        assert_eq!(std::fs::read(&marker).expect("reads"), whole, "after {left:?}");
    }
    std::fs::write(&marker, r#"{ "imageLayoutVersion": "1.0.0" }"#).expect("writes");
    open(dir.path());
    assert_ne!(std::fs::read(&marker).expect("reads"), whole, "another's is left as it is");
}

#[test]
fn a_newer_store_is_refused_whatever_its_fields_are() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    std::fs::write(dir.path().join("transload.json"), r#"{"version":99,"shape":"new"}"#).expect("writes");
    let error = Store::open(dir.path(), &options()).err().expect("is refused");
    assert_eq!((error.kind(), error.hint()), (ErrorKind::NewerFormat, Some("upgrade transload")));
}

#[test]
fn the_choices_of_the_creation_stay() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let plain = StoreOptions { snapshotter: Some(SnapshotterKind::Plain), ..options() };
    let store = Store::open(dir.path(), &plain).expect("opens");
    assert_eq!(store.format().whiteouts, WhiteoutForm::List);
    let overlay = StoreOptions { snapshotter: Some(SnapshotterKind::Overlay), ..options() };
    assert_eq!(kind(Store::open(dir.path(), &overlay)), ErrorKind::FailedPrecondition);
    let user = StoreOptions { whiteouts: Some(WhiteoutForm::User), ..options() };
    assert_eq!(kind(Store::open(dir.path(), &user)), ErrorKind::FailedPrecondition);
    assert_eq!(open(dir.path()).format().snapshotter, SnapshotterKind::Plain);
}

#[test]
fn a_store_of_another_user_namespace_is_refused() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let mut format = open(dir.path()).format().clone();
    format.uid_map = vec![IdRange(0, 1000, 1), IdRange(1, 100_000, 65536)];
    let json = serde_json::to_vec(&format).expect("serialises");
    std::fs::write(dir.path().join("transload.json"), json).expect("writes");
    assert_eq!(kind(Store::open(dir.path(), &options())), ErrorKind::FailedPrecondition);
}

#[test]
fn many_open_a_new_store_at_once() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let path = dir.path().join("store");
    std::thread::scope(|scope| {
        for _ in 0..16 {
            scope.spawn(|| open(&path));
        }
    });
}

#[test]
fn a_collection_gets_its_turn_however_many_mount() {
    use std::sync::atomic::{AtomicBool, Ordering};
    let dir = tempfile::tempdir().expect("a temporary directory");
    let store = open(dir.path());
    let (over, cancel) = (AtomicBool::new(false), Cancel::new());
    let mount_often = || {
        let mut mounts = 0;
        while mounts < 2000 && !over.load(Ordering::Relaxed) {
            let _mounting = store.mount_lock_shared(&cancel).expect("locks");
            std::thread::sleep(std::time::Duration::from_millis(3));
            mounts += 1;
        }
        mounts
    };
    std::thread::scope(|scope| {
        let first = store.mount_lock_shared(&cancel).expect("locks");
        let mounting: Vec<_> = (0..4).map(|_| scope.spawn(mount_often)).collect();
        let collecting = scope.spawn(|| drop(store.mount_lock_exclusive(&cancel).expect("gets its turn")));
        drop(first);
        collecting.join().expect("no panic");
        over.store(true, Ordering::Relaxed);
        let mounts: Vec<i32> = mounting.into_iter().map(|one| one.join().expect("no panic")).collect();
        assert!(mounts.iter().all(|mounts| *mounts < 2000), "it came last: {mounts:?}");
    });
}

#[test]
fn a_mount_that_takes_long_does_not_hold_up_others_while_a_collection_waits() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let store = open(dir.path());
    let cancel = Cancel::new();
    let _long = store.mount_lock_shared(&cancel).expect("locks");
    std::thread::scope(|scope| {
        let collecting = scope.spawn(|| store.mount_lock_exclusive(&cancel).map(drop));
        for _ in 0..20 {
            store.mount_lock_shared(&Cancel::new()).expect("does not wait for the long one");
        }
        cancel.cancel();
        collecting.join().expect("no panic").expect_err("the long one is still there");
    });
}

#[test]
fn whoever_waits_for_one_that_is_well_waits_on_and_says_for_whom_until_cancelled() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let store = open(dir.path());
    let waits_for = |lock: &str| {
        let cancel = Cancel::new();
        let told = |event: &Event| {
            let Event::Notice(text) = event else { panic!("{event:?}") };
            let expected = format!("waits for {lock}, which is held by process {}", std::process::id());
            assert!(text.starts_with(&expected), "{text}");
            cancel.cancel();
        };
        let patience = Patience::new(&cancel).at_most(Duration::ZERO).telling(&told);
        let ended = store.mount_lock_shared(patience).err().map(|error| error.kind());
        assert_eq!(ended, Some(ErrorKind::Cancelled));
    };
    let collecting = store.mount_lock_exclusive(&Cancel::new()).expect("locks");
    waits_for("mount.lock");
    drop(collecting);
    let turn = lock::open(store.root(), "mount-turn.lock").expect("opens");
    assert!(lock::try_lock(&turn, rustix::fs::FlockOperation::NonBlockingLockExclusive).expect("locks"));
    waits_for("mount-turn.lock");
    drop(turn);
    let cancel = Cancel::new();
    store.mount_lock_shared(Patience::new(&cancel).at_most(Duration::MAX)).expect("nobody has it");
}

#[test]
fn the_view_shows_what_a_change_did_that_ended_early() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let store = open(dir.path());
    put_image(&store, "docker.io/library/a:1");
    let ended = store.changing_images(|| -> Result<()> {
        store.metadata().image_tag("docker.io/library/a:1", "docker.io/library/b:1")?;
        Err(Error::cancelled())
    });
    assert_eq!(ended.err().map(|error| error.kind()), Some(ErrorKind::Cancelled));
    let index = std::fs::read_to_string(dir.path().join("index.json")).expect("reads");
    assert!(index.contains("docker.io/library/b:1"));
}

#[test]
fn the_view_follows_the_database_and_is_repaired_when_behind() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let index = dir.path().join("index.json");
    let read = || std::fs::read_to_string(&index).expect("reads");
    let store = open(dir.path());
    assert!(read().contains("\"manifests\":[]"));
    put_image(&store, "docker.io/library/a:1");
    assert!(read().contains("docker.io/library/a:1"));
    let inode = || std::os::unix::fs::MetadataExt::ino(&std::fs::metadata(&index).expect("stats"));
    let before = inode();
    store.refresh_index().expect("looks");
    assert_eq!(inode(), before, "an up-to-date view is not written again");
    for damage in ["", "{}", "{\"schemaVersion\":2,\"manifests\":[]}"] {
        std::fs::write(&index, damage).expect("writes");
        open(dir.path());
        assert!(read().contains("docker.io/library/a:1"), "{damage}");
    }
}

#[test]
fn a_long_view_grows_at_its_end_and_never_under_a_reader() {
    use std::io::Read;
    use std::os::unix::fs::MetadataExt;
    let dir = tempfile::tempdir().expect("a temporary directory");
    let index = dir.path().join("index.json");
    let inode = || std::fs::metadata(&index).expect("stats").ino();
    let store = open(dir.path());
    let expect_whole = || {
        assert_eq!(store.index_state().expect("looks"), IndexState::Ours, "as if written in one go");
    };
    for number in 0..100 {
        put_image(&store, &format!("docker.io/library/a{number}:1"));
        expect_whole();
    }
    let (one, _) = (inode(), put_image(&store, "docker.io/library/b:1"));
    let (other, _) = (inode(), put_image(&store, "docker.io/library/b:2"));
    assert_ne!(one, other);
    assert_eq!(inode(), one, "two files take turns");
    let mut reader = std::fs::File::open(&index).expect("opens");
    let shown = std::fs::read(&index).expect("reads");
    for number in 3..9 {
        put_image(&store, &format!("docker.io/library/b:{number}"));
        expect_whole();
    }
    let mut still = Vec::new();
    reader.read_to_end(&mut still).expect("reads");
    assert!(still == shown, "what is open does not change");

    store.metadata().image_tag("docker.io/library/a0:1", "docker.io/library/b:1").expect("tags");
    store.refresh_index().expect("writes");
    expect_whole();
    store.metadata().image_remove("docker.io/library/a7:1").expect("removes");
    put_image(&store, "docker.io/library/c:1");
    expect_whole();
    assert!(!std::fs::read_to_string(&index).expect("reads").contains("/a7:1"));

    // A spare that has another name, and one that is ahead of the list, serve nobody.
    put_image(&store, "docker.io/library/c:11");
    let spare = dir.path().join("index.spare");
    let link = dir.path().join("link");
    std::fs::hard_link(&spare, &link).expect("links");
    let linked = std::fs::read(&link).expect("reads");
    put_image(&store, "docker.io/library/c:12");
    expect_whole();
    assert!(std::fs::read(&link).expect("reads") == linked, "what has another name does not change");
    std::fs::copy(&spare, dir.path().join("earlier")).expect("copies");
    std::fs::copy(&index, &spare).expect("copies");
    std::fs::rename(dir.path().join("earlier"), &index).expect("renames");
    put_image(&store, "docker.io/library/c:13");
    expect_whole();

    // Another tool adds to the list and keeps the annotations; half a spare is what a crash leaves.
    put_image(&store, "docker.io/library/c:2");
    let foreign = std::fs::read_to_string(&index).expect("reads").replacen("[{", "[{\"digest\":\"x\"},{", 1);
    std::fs::write(&index, foreign).expect("writes");
    let spare =
        std::fs::OpenOptions::new().write(true).open(dir.path().join("index.spare")).expect("a spare");
    spare.set_len(spare.metadata().expect("stats").len() - 3).expect("cuts");
    drop(spare);
    put_image(&store, "docker.io/library/c:3");
    expect_whole();
}

#[test]
fn skopeo_finds_an_image_by_its_full_name() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let store = open(dir.path());
    // skopeo's own grammar has no double underscore, so it cannot ask for such a name.
    for name in ["docker.io/library/alpine:3.20", "localhost:5000/a_b/c-d:T_1"] {
        put_image(&store, name);
        let reference = format!("oci:{}:{name}", dir.path().display());
        let output =
            match std::process::Command::new("skopeo").args(["inspect", "--raw", &reference]).output() {
                Ok(output) => output,
                Err(error) => return eprintln!("SKIPPED: skopeo cannot be run: {error}"),
            };
        assert!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

#[test]
fn a_lease_holds_until_it_is_dropped() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let store = open(dir.path());
    let blob = Resource::Blob(Digest::of(b"x"));
    let lease = store.lease().expect("takes one");
    lease.add(std::slice::from_ref(&blob)).expect("adds");
    let row = store.metadata().leases().expect("lists").pop().expect("is there");
    assert!(store.lease_is_live(&row, 0).expect("looks"));
    assert_eq!(store.metadata().lease_resources(lease.id()).expect("lists"), [blob]);
    let second = store.lease().expect("many at once");
    drop((lease, second));
    assert!(store.metadata().leases().expect("lists").is_empty());
    assert_eq!(std::fs::read_dir(dir.path().join("leases")).expect("lists").count(), 0);
}

#[test]
fn one_collection_works_at_a_time_and_leaves_mounts_in_the_making_alone() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let store = open(dir.path());
    let kind = |result: Result<GcLock>| result.err().map(|error| error.kind());
    let first = store.collection_lock(false, &Cancel::new()).expect("takes it");
    assert_eq!(kind(store.collection_lock(false, &Cancel::new())), Some(ErrorKind::Busy));
    let cancelled = Cancel::new();
    cancelled.cancel();
    assert_eq!(kind(store.collection_lock(true, &cancelled)), Some(ErrorKind::Cancelled));
    let lease = store.lease().expect("imports do not wait for it");
    let mount = store.mount_lock_shared(&Cancel::new()).expect("mounts do not wait for it");
    assert_eq!(kind(store.mount_lock_exclusive(&cancelled)), Some(ErrorKind::Cancelled));
    drop((first, mount));
    store.mount_lock_exclusive(&Cancel::new()).expect("free again");
    assert_eq!(kind(store.gc_lock_exclusive()), Some(ErrorKind::Busy), "someone is at work");
    drop(lease);
    store.gc_lock_exclusive().expect("free again");
}

#[test]
fn a_lease_that_is_renewed_goes_on() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let store = open(dir.path());
    store.lease_create("mine", Some(1), &Default::default()).expect("creates");
    let state = |store: &Store| store.lease_states().expect("lists").pop().expect("is there");
    assert!(!state(&store).live);
    store.lease_renew("mine", None).expect("renews");
    assert!(state(&store).live && state(&store).process.is_none());
    let own = store.lease().expect("takes one");
    let states = store.lease_states().expect("lists");
    let own = states.iter().find(|state| state.row.id == own.id()).expect("is listed");
    assert_eq!((own.live, own.process), (true, Some(std::process::id())));
    let gone = store.lease_renew("other", None).err().map(|error| error.kind());
    assert_eq!(gone, Some(ErrorKind::NotFound));
}

#[test]
fn a_dead_process_leaves_no_live_lease() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let store = open(dir.path());
    let labels = [(PROCESS_LABEL.to_string(), "1".to_string())].into();
    store.metadata().lease_create("dead", None, &labels).expect("creates");
    std::fs::write(dir.path().join("leases/dead"), "").expect("writes");
    store.metadata().lease_create("pinned", None, &Default::default()).expect("creates");
    store.metadata().lease_create("expired", Some(5), &Default::default()).expect("creates");
    let live: Vec<String> = store
        .metadata()
        .leases()
        .expect("lists")
        .into_iter()
        .filter(|lease| store.lease_is_live(lease, 10).expect("looks"))
        .map(|lease| lease.id)
        .collect();
    assert_eq!(live, ["pinned"]);
    store.sweep_lease_files().expect("sweeps");
    assert_eq!(std::fs::read_dir(dir.path().join("leases")).expect("lists").count(), 0);
}

#[test]
fn a_store_on_a_read_only_filesystem_can_be_read() {
    use std::process::Command;
    let dir = tempfile::tempdir().expect("a temporary directory");
    let (store, mounted) = (dir.path().join("store"), dir.path().join("mounted"));
    put_image(&open(&store), "docker.io/library/a:1");
    std::fs::create_dir(&mounted).expect("creates");
    let run = |program: &str, args: &[&std::ffi::OsStr]| {
        Command::new(program).args(args).output().is_ok_and(|output| output.status.success())
    };
    let bound = run("mount", &["--bind".as_ref(), store.as_ref(), mounted.as_ref()])
        && run("mount", &["-o".as_ref(), "remount,bind,ro".as_ref(), mounted.as_ref()]);
    if !bound {
        return eprintln!("SKIPPED: no right to mount");
    }
    let seen = Store::open(&mounted, &options()).and_then(|store| {
        let refused = store.lease().err().map(|error| error.kind());
        Ok((store.is_read_only(), store.metadata().images()?.len(), refused))
    });
    assert!(run("umount", &[mounted.as_ref()]));
    assert_eq!(seen.expect("opens"), (true, 1, Some(ErrorKind::ReadOnly)));
    let asked = StoreOptions { read_only: true, ..StoreOptions::default() };
    assert!(Store::open(&store, &asked).expect("opens").is_read_only());
}

#[test]
fn overlay_on_overlay_is_refused_with_a_hint_and_plain_is_chosen() {
    let dir = tempfile::tempdir_in("/dev/shm").expect("a temporary directory");
    for name in ["lower", "upper", "work", "merged"] {
        std::fs::create_dir(dir.path().join(name)).expect("creates");
    }
    let at = |name: &str| dir.path().join(name).display().to_string();
    let layers = format!("lowerdir={},upperdir={},workdir={}", at("lower"), at("upper"), at("work"));
    let mount = ["-t", "overlay", "overlay", "-o", &layers, &at("merged")];
    if !std::process::Command::new("mount").args(mount).output().is_ok_and(|output| output.status.success()) {
        return eprintln!("SKIPPED: no right to mount overlayfs");
    }
    let path = dir.path().join("merged/store");
    let overlay = StoreOptions { snapshotter: Some(SnapshotterKind::Overlay), ..options() };
    let refused = Store::open(&path, &overlay).err();
    let chosen = Store::open(&path, &options()).map(|store| store.format().snapshotter);
    let unmounted = std::process::Command::new("umount").arg(dir.path().join("merged")).status();
    assert!(unmounted.is_ok_and(|status| status.success()));
    let refused = refused.expect("is refused");
    assert!(
        refused.kind() == ErrorKind::Unsupported && refused.hint().is_some_and(|hint| hint.contains("plain"))
    );
    assert_eq!(chosen.expect("opens"), SnapshotterKind::Plain);
}

#[test]
fn a_store_of_format_1_is_brought_up_to_date_and_says_so() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    drop(open(dir.path()));
    let decisions = dir.path().join("transload.json");
    let text = std::fs::read_to_string(&decisions).expect("reads");
    std::fs::write(&decisions, text.replace("\"version\":2", "\"version\":1")).expect("writes");
    for name in ["meta.db", "meta.db-wal", "meta.db-shm", "index.json"] {
        let _ = std::fs::remove_file(dir.path().join(name));
    }
    let sample = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/stores/format-1.meta.db");
    std::fs::copy(sample, dir.path().join("meta.db")).expect("the sample is there");
    let store = Store::open(dir.path(), &StoreOptions::default()).expect("opens and migrates");
    assert_eq!(store.format().version, FORMAT_VERSION);
    assert_eq!(store.metadata().images().expect("lists").len(), 6);
    assert_eq!(std::fs::read_to_string(&decisions).expect("reads"), text);
}

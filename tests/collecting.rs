//! Collections beside readers, and collections that meet failures. Whoever reads an image has it until the end, also when others
//! remove it meanwhile: the reader is stopped in the middle, the image goes, and the reader goes on. What cannot be looked at or
//! removed is told at the end, and keeps nothing else from being removed.

mod support;

use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use support::image::{file, image};
use support::listing::listing;
use support::run::{Ran, transload, until_stopped};
use support::scratch;
use support::soundness::{faulty, with_faults};
use transload::parallel::failpoint;
use transload::transfer::bundle::{BundleOptions, Rootless};
use transload::{Cancel, Engine, ErrorKind, ImportOptions, Input, progress::Silent};

const IMAGE: &str = "example.com/read:1";

struct House {
    dir: tempfile::TempDir,
}

impl House {
    fn new() -> House {
        let house = House { dir: scratch() };
        house.import();
        house
    }

    fn import(&self) {
        let archive = self.path("read.tar");
        let below = file("etc/a", "1").dir("d").file("d/b", "2").file("d/c", "3");
        let bytes = image().name(IMAGE).layer(below).layer(file("top", "4").file("d/e", "5")).oci();
        std::fs::write(&archive, bytes).expect("an archive");
        self.run(&["import", "-q", &archive.display().to_string()]).ok();
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn store(&self) -> PathBuf {
        self.path("store")
    }

    fn run(&self, words: &[&str]) -> Ran {
        transload(&self.store(), words)
    }

    /// Starts a command and lets it run into a fail point, where it is stopped.
    fn stopped(&self, point: &str, words: &[&str]) -> Child {
        let mut command = faulty(&self.store(), &format!("{point}=stop@1"), words);
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it starts");
        until_stopped(&child);
        child
    }

    fn failing(&self, faults: &str, words: &[&str]) -> Ran {
        with_faults(&self.store(), faults, words)
    }

    fn count(&self, part: &str) -> usize {
        std::fs::read_dir(self.store().join(part)).expect("a directory").count()
    }

    /// What each blob directory, `trees` and `snapshots` hold.
    fn held(&self) -> [usize; 3] {
        ["blobs/sha256", "trees", "snapshots"].map(|part| self.count(part))
    }
}

#[track_caller]
fn go_on(child: Child) -> Vec<u8> {
    kill_process(Pid::from_child(&child), Signal::CONT).expect("it is there");
    let ended = child.wait_with_output().expect("ends");
    assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stderr));
    ended.stdout
}

#[test]
fn an_image_that_is_removed_while_it_is_read_is_read_to_its_end() {
    let house = House::new();
    let [there, apart] = ["there", "apart"].map(|name| house.path(name).display().to_string());
    let verbs: [(&str, Vec<&str>); 4] = [
        ("unpack.entry", vec!["unpack", IMAGE, &there]),
        ("blob.read", vec!["export", IMAGE, "-o", "-"]),
        ("lease.release", vec!["prewarm", IMAGE]),
        ("lease.release", vec!["inspect", "--tree", IMAGE]),
    ];
    house.run(&["unpack", IMAGE, &apart]).ok();
    let whole = house.held();
    for (point, words) in &verbs {
        let undisturbed = words.iter().all(|word| *word != there).then(|| house.run(words).ok().stdout);
        let child = house.stopped(point, words);
        house.run(&["rm", IMAGE]).ok();
        house.run(&["gc"]).ok();
        assert_eq!(house.held(), whole, "{words:?} has it still");
        let read = go_on(child);
        if words[0] != "prewarm" {
            assert!(undisturbed.is_none_or(|expected| expected == read), "{words:?}");
        }
        house.run(&["gc"]).ok();
        assert_eq!((house.count("trees"), house.count("leases")), (0, 0), "{words:?} has let go of it");
        house.import();
    }
    assert_eq!(listing(Path::new(&there)), listing(Path::new(&apart)));
}

#[test]
fn a_bundle_that_is_unpacked_holds_its_image() {
    let house = House::new();
    let engine = Engine::open(house.store(), Default::default()).expect("opens");
    failpoint::configure("").expect("counts from zero");
    let ids = Rootless { uid: 0, gid: 0 };
    let options = BundleOptions { rootless: Some(ids), ..BundleOptions::default() };
    engine.bundle(IMAGE, &house.path("bundle"), &options).expect("a bundle");
    assert_eq!(failpoint::hits().get("lease.create"), Some(&1));
    assert_eq!(house.count("leases"), 0);
}

/// A writer that has the image removed as soon as it gets something.
struct Remover<'a>(&'a House, Vec<u8>);

impl std::io::Write for Remover<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if self.1.is_empty() {
            self.0.run(&["rm", IMAGE]).ok();
            self.0.run(&["gc"]).ok();
        }
        self.1.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn of_an_export_the_archive_is_whole_whoever_removes_the_image() {
    let house = House::new();
    let engine = Engine::open(house.store(), Default::default()).expect("opens");
    let mut out = Remover(&house, Vec::new());
    let names = [IMAGE.to_string()];
    engine.export(&names, Default::default(), &mut out, &Cancel::new()).expect("exports");
    let error = engine.image(IMAGE).expect_err("it was removed");
    assert_eq!(error.kind(), ErrorKind::NotFound);
    let input = Input::Reader { name: "memory".into(), reader: Box::new(std::io::Cursor::new(out.1)) };
    let options = ImportOptions { ignore_chown: !rustix::process::geteuid().is_root(), ..Default::default() };
    let report = engine.import(input, &options, &Silent, &Cancel::new()).expect("imports");
    assert_eq!(report.blobs.new, 0, "a collection that came meanwhile has left all of it");
}

#[test]
fn what_cannot_be_measured_goes_and_what_cannot_be_listed_keeps_nothing_else() {
    let house = House::new();
    house.failing("gc.measure=eio", &["rm", IMAGE]).ok();
    house.failing("gc.measure=eio", &["gc"]).ok();
    assert_eq!(house.held(), [0, 0, 0]);
    house.import();
    house.run(&["rm", IMAGE]).ok();
    let ran = house.failing("gc.list=eio@1", &["gc"]);
    assert!(ran.code == Some(1) && ran.stderr.contains("cannot remove trees: "), "{}", ran.stderr);
    assert_eq!(house.held(), [0, 0, 0], "what the database knows of is not listed");
}

/// More is never free.
fn whole_disk(house: &House) -> String {
    let stat = rustix::fs::statvfs(house.dir.path()).expect("a filesystem");
    (stat.f_blocks * stat.f_frsize).to_string()
}

#[test]
fn images_go_until_enough_is_free_although_something_else_cannot_be_removed() {
    let house = House::new();
    std::fs::create_dir(house.store().join("ingest/stray")).expect("a directory");
    let until = ["--json", "gc", "--until-free", &whole_disk(&house)];
    let ran = house.failing("gc.aside=eio@1", &until);
    assert_eq!(ran.code, Some(1), "{}", ran.stderr);
    assert_eq!(ran.json()["images"], serde_json::json!([IMAGE]));
    assert_eq!(house.held(), [0, 0, 0]);
    house.import();
    house.run(&["leases", "add", "mine", IMAGE]).ok();
    let ran = house.run(&until[1..]);
    assert!(ran.code == Some(1) && ran.stderr.contains("1 more may be removed"), "{}", ran.stderr);
    house.run(&["inspect", IMAGE]).ok();
}

#[test]
fn a_snapshot_that_a_program_left_goes_by_name_unless_something_needs_it() {
    let house = House::new();
    let before = house.held();
    let engine = Engine::open(house.store(), Default::default()).expect("opens");
    let chain = engine.inspect(IMAGE).expect("inspects").chain_id.expect("unpacked").to_string();
    let (snapshots, none) = (engine.snapshots(), Default::default());
    snapshots.prepare("vm", Some(&chain), &none).expect("prepares");
    snapshots.commit("base", "vm", &none, None).expect("commits");
    snapshots.prepare("vm-7", Some("base"), &none).expect("prepares");
    let page = house.run(&["doctor"]).text();
    assert!(page.contains("vm-7") && page.contains("rm --snapshot KEY"), "{page}");
    house.run(&["rm", "--snapshot", "base"]).fails(1);
    house.run(&["rm", "--snapshot", &chain]).fails(1);
    house.run(&["rm", "--snapshot", "nothing"]).fails(4);
    house.run(&["rm", "--snapshot", "vm-7"]).ok();
    house.run(&["rm", "--snapshot", "base"]).ok();
    assert_eq!(house.held(), before);
}

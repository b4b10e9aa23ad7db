//! Full disks: the store is usable before, while and after nothing is free, whatever is asked of it meanwhile.

use super::{Scene, failed_well, import};
use crate::support::disk::{FEW_INODES, FULL, Kind, Mounted, filesystem};
use crate::support::run::{Ran, transload};
use crate::support::soundness::{contents, visible, with_faults};
use crate::support::tally::{Tally, thorough};
use crate::support::tools::have;
use std::io::Write;
use std::path::{Path, PathBuf};

/// A small filesystem, mounted, and what is done on it.
struct Full<'a> {
    scene: &'a Scene,
    store: PathBuf,
    filler: PathBuf,
    _disk: Mounted,
}

impl<'a> Full<'a> {
    fn new(scene: &'a Scene, kind: &Kind) -> Full<'a> {
        let image = scene.dir.path().join("disk");
        filesystem(kind, &image);
        let disk = Mounted::new(&image, &scene.dir.path().join("full"), "defaults").expect("mounts");
        Full { scene, store: disk.path().join("store"), filler: disk.path().join("filler"), _disk: disk }
    }

    /// A store, with two images whose removal must be possible, or empty.
    fn begin(&self, with_images: bool) {
        let _ = std::fs::remove_dir_all(&self.store);
        transload(&self.store, ["gc"]);
        if with_images {
            let [first, second, ..] = &self.scene.archives[..] else { panic!("two archives") };
            transload(&self.store, ["import", "-q", "--tag", "old", &first.to_string_lossy()]).ok();
            import(&self.store, second).ok();
        }
    }

    /// What goes wrong on a disk that is as full as it is now, and once it is no longer.
    fn go_through(&self, with_images: bool) -> (Vec<String>, Vec<String>) {
        let mut lost = Vec::new();
        may_be_refused(&import(&self.store, &self.scene.archives[0]), &mut lost);
        if with_images {
            self.must_do(&["images"], &mut lost);
            self.must_do(&["inspect", "old"], &mut lost);
            self.write_a_little(&mut lost);
            self.free_all(&mut lost);
        }
        std::fs::remove_dir_all(&self.filler).expect("the filler");
        let (more, leaked) = self.scene.usable(&self.store);
        lost.extend(more);
        (lost, leaked)
    }

    fn must_do(&self, words: &[&str], lost: &mut Vec<String>) {
        let ran = transload(&self.store, words);
        if ran.code != Some(0) {
            lost.push(format!("cannot be done on a full disk: {words:?}: {:?} {}", ran.code, ran.stderr));
        }
    }

    /// All else that writes: it is done or refused, and what was done can be undone.
    fn write_a_little(&self, lost: &mut Vec<String>) {
        let at = self.scene.dir.path().join("mount");
        std::fs::create_dir_all(&at).expect("a directory");
        let at = at.to_str().expect("text");
        let second = "example.com/second:1";
        let commands: [(&[&str], &[&str]); 8] = [
            (&["tag", "old", "new"], &["images"]),
            (&["pin", "old"], &["unpin", "old"]),
            (&["label", "old", "owner=me"], &["label", "old", "owner="]),
            (&["leases", "add", "kept", "old"], &["leases", "end", "kept"]),
            (&["mount", "--rw", "old", at], &["umount", at]),
            (&["mount", "old", at], &["umount", at]),
            (&["rm", "--grace", "1h", second], &["restore", second]),
            (&["fsck", "--repair"], &["du"]),
        ];
        for (write, undo) in commands {
            if may_be_refused(&transload(&self.store, write), lost) {
                self.must_do(undo, lost);
            }
        }
    }

    /// Every image can go, and then nothing is left of any.
    fn free_all(&self, lost: &mut Vec<String>) {
        let names = visible(&self.store, "").unwrap_or_else(|error| {
            lost.push(error);
            Default::default()
        });
        let words: Vec<&str> = ["rm"].into_iter().chain(names.keys().map(String::as_str)).collect();
        self.must_do(&words, lost);
        self.must_do(&["gc"], lost);
        lost.extend(contents(&self.store).keys().map(|what| format!("{what} takes room still")));
    }
}

/// Whether it was done; how it was refused otherwise is told if it is not as it should be.
fn may_be_refused(ran: &Ran, lost: &mut Vec<String>) -> bool {
    if ran.code != Some(0) {
        lost.extend(failed_well(ran, &[1], "space"));
    }
    ran.code == Some(0)
}

#[test]
fn a_disk_that_is_full_at_any_point_can_be_freed_and_used_again() {
    if !have(&["mkfs.ext4", "mkfs.xfs", "mkfs.btrfs", "mount", "umount"]) {
        return;
    }
    let scene = Scene::with_files_of(512);
    let mut tally = Tally::new("full filesystems");
    for kind in FULL {
        let full = Full::new(&scene, &kind);
        let steps = if thorough() { 48 } else { 8 };
        for step in 0..steps {
            let with_images = step % 2 == 0;
            full.begin(with_images);
            let left = step * 6144 / steps;
            fill(&full.filler, left);
            let (lost, leaked) = full.go_through(with_images);
            tally.fault(&format!("{} with {left} KiB left", kind.name), lost, leaked);
        }
    }
    tally.end(24);
}

/// Whether the store has its reserve, whole.
fn has_reserve(store: &Path) -> bool {
    (0..8).all(|number| {
        let file = std::fs::metadata(store.join("reserve").join(number.to_string()));
        file.is_ok_and(|file| file.len() >= (1 << 20) / 8)
    })
}

#[test]
fn a_reserve_that_a_killed_process_gave_back_is_taken_again() {
    if !have(&["mkfs.ext4", "mkfs.xfs", "mkfs.btrfs", "mount", "umount"]) {
        return;
    }
    let scene = Scene::new();
    for kind in FULL {
        let full = Full::new(&scene, &kind);
        full.begin(true);
        for (name, room_again) in [("old", "little"), ("example.com/second:1", "all")] {
            assert!(has_reserve(&full.store), "{}: at first", kind.name);
            fill(&full.filler, 0);
            let ran = with_faults(&full.store, "transaction.commit=kill", &["rm", name]);
            assert_eq!(ran.code, None, "{}: {}", kind.name, ran.stderr);
            assert!(!has_reserve(&full.store), "{}: it was given back", kind.name);
            transload(&full.store, ["images"]).ok();
            match room_again {
                "all" => std::fs::remove_dir_all(&full.filler).expect("the filler"),
                // Not enough to call it plenty.
                _ => leave_room(&full.filler, if kind.name == "btrfs" { 21 << 20 } else { 7 << 19 }),
            }
            transload(&full.store, ["images"]).ok();
            assert!(has_reserve(&full.store), "{}: with {room_again} room again", kind.name);
            let _ = std::fs::remove_dir_all(&full.filler);
            transload(&full.store, ["rm", name]).ok();
        }
    }
}

/// Removes some of the filler, until so many bytes are free.
fn leave_room(filler: &Path, bytes: u64) {
    let free = || {
        let stat = rustix::fs::statvfs(filler).expect("the filler's filesystem");
        stat.f_bfree * stat.f_frsize
    };
    for entry in std::fs::read_dir(filler).expect("the filler") {
        if free() >= bytes {
            break;
        }
        std::fs::remove_file(entry.expect("an entry").path()).expect("the filler");
        rustix::fs::syncfs(std::fs::File::open(filler).expect("the directory")).expect("syncs");
    }
}

#[test]
fn a_disk_without_inodes_can_be_freed_and_used_again() {
    if !have(&["mkfs.ext4", "mount", "umount"]) {
        return;
    }
    let scene = Scene::new();
    let mut tally = Tally::new("filesystems without inodes");
    let full = Full::new(&scene, &FEW_INODES);
    for left in [0, 1, 4, 20, 60] {
        full.begin(true);
        std::fs::create_dir(&full.filler).expect("a directory");
        let mut count = 0;
        while std::fs::File::create(full.filler.join(count.to_string())).is_ok() {
            count += 1;
        }
        for number in count - left.min(count)..count {
            std::fs::remove_file(full.filler.join(number.to_string())).expect("the filler");
        }
        let (lost, leaked) = full.go_through(true);
        tally.fault(&format!("{left} inodes left"), lost, leaked);
    }
    tally.end(5);
}

/// Takes all the space there is but for some KiB: many files, of which the last are removed again.
fn fill(dir: &Path, leave_kib: usize) {
    std::fs::create_dir(dir).expect("a directory");
    let mut files: Vec<(PathBuf, usize)> = Vec::new();
    for kib in [1024, 64, 16, 4] {
        loop {
            let path = dir.join(files.len().to_string());
            let written = std::fs::File::create(&path)
                .and_then(|mut file| file.write_all(&vec![1; kib << 10]).and_then(|()| file.sync_data()));
            files.push((path, if written.is_ok() { kib } else { 0 }));
            if written.is_err() {
                break;
            }
        }
    }
    let mut left = leave_kib;
    while left > 0 {
        let Some((path, kib)) = files.pop() else { break };
        // The one for which there was no room at all was never made.
        let _ = std::fs::remove_file(path);
        left = left.saturating_sub(kib);
    }
    rustix::fs::syncfs(std::fs::File::open(dir).expect("the directory")).expect("syncs");
}

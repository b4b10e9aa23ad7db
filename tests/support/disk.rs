//! A disk that can lose its power: a filesystem in a file that lies on an xfs with reflinks. Cloning that file gives, in one moment,
//! what had reached the disk by then; mounting the clone replays the journal as a machine does that comes up again.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::run::run;

/// A filesystem to test on.
#[derive(Clone, Copy, Debug)]
pub struct Kind {
    pub name: &'static str,
    make: &'static [&'static str],
    options: &'static str,
    mib: u64,
}

/// ext4 as it comes hides missing syncs: it writes a file before a rename over another one, and commits every 5 seconds.
pub static KINDS: [Kind; 4] = [
    Kind { name: "ext4", make: &["mkfs.ext4", "-q", "-F"], options: "defaults", mib: 192 },
    Kind {
        name: "ext4,noauto_da_alloc,commit=300",
        make: &["mkfs.ext4", "-q", "-F"],
        options: "noauto_da_alloc,commit=300",
        mib: 192,
    },
    Kind { name: "xfs", make: &["mkfs.xfs", "-q", "-f"], options: "defaults", mib: 320 },
    Kind { name: "btrfs", make: &["mkfs.btrfs", "-q", "-f"], options: "commit=300", mib: 256 },
];

/// A filesystem in a file, mounted while this exists.
pub struct Mounted {
    at: PathBuf,
}

impl Mounted {
    pub fn new(image: &Path, at: &Path, options: &str) -> Result<Mounted, String> {
        std::fs::create_dir_all(at).expect("a mount point");
        let mut mount = Command::new("mount");
        let ran = run(mount.arg("-o").arg(format!("loop,{options}")).arg(image).arg(at));
        match ran.code {
            Some(0) => Ok(Mounted { at: at.to_path_buf() }),
            _ => Err(format!("{}: {}", ran.command, ran.stderr)),
        }
    }

    pub fn path(&self) -> &Path {
        &self.at
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // A process that is only just gone may hold it for a moment.
        for _ in 0..50 {
            if run(Command::new("umount").arg(&self.at)).code == Some(0) {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(100));
        }
        run(Command::new("umount").arg("-l").arg(&self.at));
    }
}

/// Where disks lie: an xfs of its own, because only reflinks make a cut one moment.
pub struct Shelf {
    outer: Mounted,
}

impl Shelf {
    pub fn new(dir: &Path) -> Shelf {
        let image = dir.join("outer");
        File::create(&image).and_then(|file| file.set_len(6 << 30)).expect("a file with room");
        run(Command::new("mkfs.xfs").args(["-q", "-f", "-m", "reflink=1"]).arg(&image)).ok();
        Shelf { outer: Mounted::new(&image, &dir.join("shelf"), "defaults").expect("an xfs") }
    }

    /// A fresh filesystem's file.
    pub fn disk(&self, kind: &Kind) -> PathBuf {
        let image = self.outer.path().join("disk");
        filesystem(kind, &image);
        image
    }

    /// What has reached the disk at this moment.
    pub fn cut(&self, disk: &Path, number: usize) -> PathBuf {
        let cut = self.outer.path().join(format!("cut-{number}"));
        let to = File::create(&cut).expect("a file");
        rustix::fs::ioctl_ficlone(&to, File::open(disk).expect("the disk")).expect("an xfs with reflinks");
        cut
    }
}

impl Kind {
    /// Mounts a disk to work on it.
    pub fn mount(&self, disk: &Path, at: &Path) -> Mounted {
        Mounted::new(disk, at, self.options).expect("a fresh filesystem")
    }

    /// Mounts what a power cut left, which replays the journal.
    pub fn recover(&self, cut: &Path, at: &Path) -> Result<Mounted, String> {
        if self.name == "btrfs" {
            // It would take the clone for the disk that it has seen before.
            run(Command::new("btrfs").args(["device", "scan", "--forget"]));
        }
        Mounted::new(cut, at, "defaults")
    }
}

/// Small filesystems, to be full soon. Nothing is kept for root. ext4 as small as this has blocks of 1 KiB, so that of a page that
/// is mapped a part can be missing.
pub const FULL: [Kind; 3] = [
    Kind {
        name: "ext4",
        make: &["mkfs.ext4", "-q", "-F", "-m", "0", "-N", "4096"],
        options: "defaults",
        mib: 32,
    },
    Kind { name: "xfs", make: &["mkfs.xfs", "-q", "-f"], options: "defaults", mib: 320 },
    Kind { name: "btrfs", make: &["mkfs.btrfs", "-q", "-f", "--mixed"], options: "defaults", mib: 48 },
];

/// One whose inodes are few.
pub const FEW_INODES: Kind = Kind {
    name: "ext4",
    make: &["mkfs.ext4", "-q", "-F", "-m", "0", "-N", "512"],
    options: "defaults",
    mib: 32,
};

/// Makes a filesystem in a file.
pub fn filesystem(kind: &Kind, image: &Path) {
    let _ = std::fs::remove_file(image);
    File::create(image).and_then(|file| file.set_len(kind.mib << 20)).expect("a file with room");
    run(Command::new(kind.make[0]).args(&kind.make[1..]).arg(image)).ok();
}

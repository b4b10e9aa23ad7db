//! Blocks shared with an OCI layout directory, on a filesystem that can.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::image::{Image, digest, file, image, layer};
use crate::support::run::{run, transload};
use crate::support::scratch;
use crate::support::tools::have;

/// A fresh xfs in a file, mounted until it is dropped.
struct Xfs(PathBuf);

impl Xfs {
    fn mount(scratch: &Path) -> Option<Self> {
        if !have(&["mkfs.xfs", "mount", "umount"]) {
            return None;
        }
        let (backing, at) = (scratch.join("xfs.img"), scratch.join("xfs"));
        // The smallest that mkfs.xfs makes; almost all of it stays a hole.
        fs::File::create(&backing).and_then(|file| file.set_len(320 << 20)).expect("a backing file");
        fs::create_dir(&at).expect("a mount point");
        run(Command::new("mkfs.xfs").args(["-q", "-m", "reflink=1"]).arg(&backing)).ok();
        run(Command::new("mount").args(["-o", "loop"]).arg(&backing).arg(&at)).ok();
        Some(Xfs(at))
    }
}

impl Drop for Xfs {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

fn sample() -> Image {
    let noise: Vec<u8> = (0..200_000u32).flat_map(|i| i.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
    image().name("docker.io/test/shared:1").layer(file("/data", noise)).layer(layer().file("/etc/a", "1"))
}

fn blob_path(root: &Path, image: &Image, number: usize) -> PathBuf {
    let digest = digest(&image.layers[number].blob());
    root.join("blobs/sha256").join(digest.trim_start_matches("sha256:"))
}

#[test]
fn blobs_of_a_layout_directory_share_their_blocks_and_not_their_fate() {
    let scratch = scratch();
    let Some(xfs) = Xfs::mount(scratch.path()) else { return };
    let (layout, store) = (xfs.0.join("layout"), xfs.0.join("store"));
    let image = sample();
    image.oci_dir(&layout);
    let report = transload(&store, ["import", "--json", &layout.to_string_lossy()]).ok().json();
    let layers: u64 = image.layers.iter().map(|layer| layer.blob().len() as u64).sum();
    assert_eq!(report["blobs"]["bytes_cloned"], layers, "{report}");
    let documents = (image.config_bytes().len() + image.manifest_bytes().len()) as u64;
    assert_eq!(report["blobs"]["bytes_written"], documents, "{report}");
    // What is done to the directory afterwards does not reach the store.
    fs::write(blob_path(&layout, &image, 0), "changed").expect("the layout's blob is changed");
    let stored = fs::read(blob_path(&store, &image, 0)).expect("the store's blob");
    assert!(stored == image.layers[0].blob(), "the store's blob changed with the layout's");
}

#[test]
fn a_damaged_blob_is_refused_although_its_blocks_were_shared() {
    let scratch = scratch();
    let Some(xfs) = Xfs::mount(scratch.path()) else { return };
    let (layout, store) = (xfs.0.join("layout"), xfs.0.join("store"));
    let image = sample();
    image.oci_dir(&layout);
    let path = blob_path(&layout, &image, 0);
    let mut damaged = fs::read(&path).expect("a blob");
    *damaged.last_mut().expect("not empty") ^= 1;
    fs::write(&path, damaged).expect("the damage");
    transload(&store, ["import", &layout.to_string_lossy()]).fails(3);
    assert!(!blob_path(&store, &image, 0).exists());
    image.oci_dir(&layout);
    transload(&store, ["import", &layout.to_string_lossy()]).ok();
}

#[test]
fn across_filesystems_blobs_are_copied() {
    let scratch = scratch();
    let Some(xfs) = Xfs::mount(scratch.path()) else { return };
    let layout = xfs.0.join("layout");
    sample().oci_dir(&layout);
    let store = scratch.path().join("store");
    let report = transload(&store, ["import", "--json", &layout.to_string_lossy()]).ok().json();
    assert_eq!(report["blobs"]["bytes_cloned"], 0, "{report}");
}

//! Many importers of one archive into one store: each blob is written once, each layer is extracted once, and all succeed. The
//! program's own account (`--audit`) and the kernel's (strace) must agree.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::support::image::{Image, Pack, gzip, image, layer, noise};
use crate::support::run::{Ran, command, program, transload};
use crate::support::scratch;
use crate::support::tools::have;
use crate::{files_below, number};

const PROCESSES: usize = 8;

/// Six layers, large enough that importers meet in the middle of them.
fn meeting_place() -> Image {
    let mut image = image().name("test/once:1");
    for number in 0..6 {
        let mut contents = layer().dir(&format!("/part-{number}"));
        for file in 0..40 {
            contents = contents.file(&format!("/part-{number}/{file}"), noise(number * 100 + file, 20_000));
        }
        image = image.layer(contents.packed(if number % 2 == 0 { Pack::Gzip } else { Pack::Zstd }));
    }
    image
}

/// The shapes that the promise is made for.
fn archives(scratch: &Path) -> Vec<PathBuf> {
    let image = meeting_place();
    let write = |name: &str, data: &[u8]| {
        let path = scratch.join(name);
        fs::write(&path, data).expect("an archive");
        path
    };
    let mut archives = vec![
        write("layout.tar", &image.oci()),
        write("layout.tar.gz", &gzip(&image.oci())),
        write("docker.tar", &image.docker()),
        write("docker.tar.gz", &gzip(&image.docker())),
    ];
    if have(&[]) {
        // Its owners and devices want root.
        archives
            .extend(["skopeo-docker.tar", "skopeo-docker.tar.gz"].map(|file| crate::foreign().join(file)));
    }
    archives
}

#[test]
fn eight_processes_write_each_blob_once() {
    let scratch = scratch();
    for archive in archives(scratch.path()) {
        let store = scratch.path().join("store");
        let args = ["import", "--json", "--audit", "--threads", "8", &archive.to_string_lossy()];
        let children: Vec<_> = (0..PROCESSES)
            .map(|_| {
                let mut command = command(&store, args);
                command.stdout(Stdio::piped()).stderr(Stdio::piped());
                let child = command.spawn().expect("the program starts");
                (command, child)
            })
            .collect();
        let reports: Vec<Value> = children
            .into_iter()
            .map(|(command, child)| {
                Ran::of(&command, child.wait_with_output().expect("its output")).ok().json()
            })
            .collect();
        let show = archive.display();
        let sum = |object: &str, field: &str| {
            reports.iter().map(|report| number(&report[object][field])).sum::<u64>()
        };
        assert_eq!(
            sum("blobs", "new"),
            files_below(&store.join("blobs")).len() as u64,
            "{show}: blobs written"
        );
        let trees = fs::read_dir(store.join("trees")).expect("trees").count() as u64;
        assert_eq!(sum("trees", "new"), trees, "{show}: layers extracted");
        assert_eq!(
            sum("snapshots", "new"),
            reports[0]["images"][0]["layers"].as_array().map_or(0, Vec::len) as u64,
            "{show}"
        );
        fs::remove_dir_all(&store).expect("the store just made");
    }
}

#[test]
fn the_kernel_saw_each_blob_and_tree_published_once() {
    if !have(&["strace"]) {
        return;
    }
    let scratch = scratch();
    for archive in archives(scratch.path()) {
        let store = scratch.path().join("store");
        let traces = scratch.path().join("traces");
        fs::create_dir(&traces).expect("a directory");
        let mut shell = Command::new("strace");
        shell.args([
            "-ff",
            "-q",
            "-y",
            "-s",
            "4096",
            "-e",
            "trace=openat,rename,renameat,renameat2,link,linkat,unlinkat",
            "-o",
        ]);
        shell.arg(traces.join("t")).args(["sh", "-c"]);
        shell.arg("fail=0; pids=; for i in 1 2 3 4 5 6 7 8; do \"$0\" --store \"$1\" import --threads 8 \"$2\" & pids=\"$pids $!\"; done; for p in $pids; do wait \"$p\" || fail=1; done; exit $fail");
        shell.arg(program()).arg(&store).arg(&archive);
        crate::support::run::run(&mut shell).ok();
        let published = published(&traces, &store);
        let show = archive.display();
        for path in files_below(&store.join("blobs")) {
            assert_eq!(
                published.get(&path),
                Some(&1),
                "{show}: {}\n{}",
                path.display(),
                mentions(&traces, &path)
            );
        }
        for entry in fs::read_dir(store.join("trees")).expect("trees") {
            let path = entry.expect("an entry").path();
            assert_eq!(
                published.get(&path),
                Some(&1),
                "{show}: {}\n{}",
                path.display(),
                mentions(&traces, &path)
            );
        }
        fs::remove_dir_all(&traces).expect("the traces just made");
        fs::remove_dir_all(&store).expect("the store just made");
    }
}

/// What the kernel was asked about a file, for the message of a failing test.
fn mentions(traces: &Path, path: &Path) -> String {
    let name = path.file_name().expect("a file").to_string_lossy().into_owned();
    let mut found = String::new();
    for trace in files_below(traces) {
        let text = fs::read(trace).expect("a trace");
        for line in String::from_utf8_lossy(&text)
            .lines()
            .filter(|line| line.contains(&name) && !line.starts_with("openat"))
        {
            found.push_str(line);
            found.push('\n');
        }
    }
    found
}

/// How often something was given each name below the store, by a rename or link that succeeded.
fn published(traces: &Path, store: &Path) -> BTreeMap<PathBuf, usize> {
    let mut counts = BTreeMap::new();
    for trace in files_below(traces) {
        for line in String::from_utf8_lossy(&fs::read(trace).expect("a trace")).lines() {
            let moves = line.starts_with("rename") || line.starts_with("link");
            if !moves || !line.ends_with("= 0") {
                continue;
            }
            // renameat2(7</store/ingest/x>, "data", 5</store/blobs/sha256>, "0123…", RENAME_NOREPLACE) = 0
            let mut quoted = line.split('"');
            let (directory, name) = (quoted.nth(2).unwrap_or_default(), quoted.next().unwrap_or_default());
            let directory = directory
                .split_once('<')
                .and_then(|(_, rest)| rest.rsplit_once('>'))
                .map_or("", |(path, _)| path);
            let path = Path::new(directory).join(name);
            if path.starts_with(store) {
                *counts.entry(path).or_default() += 1;
            }
        }
    }
    counts
}

/// Different images that share layers, imported at the same moment.
#[test]
fn overlapping_images_share_what_they_have_in_common() {
    let scratch = scratch();
    let store = scratch.path().join("store");
    let shared: Vec<_> = (0..4).map(|n| layer().file(&format!("/shared-{n}"), noise(n, 20_000))).collect();
    let paths: Vec<PathBuf> = (0..PROCESSES)
        .map(|n| {
            let mut image = image().name(&format!("test/overlap:{n}"));
            // Opposite orders: half of them meet the layers from the other end.
            let order: Vec<usize> = if n % 2 == 0 { (0..4).collect() } else { (0..4).rev().collect() };
            for at in order {
                image = image.layer(shared[at].clone());
            }
            let path = scratch.path().join(format!("{n}.tar"));
            fs::write(&path, image.layer(layer().file("/own", n.to_string())).oci()).expect("an archive");
            path
        })
        .collect();
    let children: Vec<_> = paths
        .iter()
        .map(|path| {
            let mut command = command(&store, ["import", "--json", "--audit", &path.to_string_lossy()]);
            command.stdout(Stdio::piped()).stderr(Stdio::piped());
            let child = command.spawn().expect("the program starts");
            (command, child)
        })
        .collect();
    let mut trees = 0;
    for (command, child) in children {
        let report = Ran::of(&command, child.wait_with_output().expect("its output")).ok().json();
        trees += number(&report["trees"]["new"]);
    }
    assert_eq!(trees, 4 + PROCESSES as u64, "four shared trees and one of each image's own");
    let listed = transload(&store, ["images", "--json"]).ok().json();
    assert_eq!(listed["images"].as_array().map(Vec::len), Some(PROCESSES), "{listed}");
}

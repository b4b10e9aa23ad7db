//! A program that embeds the library and writes snapshots, which no command does: this test program, run once more.

use std::path::{Path, PathBuf};
use std::process::Command;

use transload::parallel::failpoint;
use transload::snapshot::Labels;
use transload::store::Store;
use transload::{Error, ErrorKind, Result};

use crate::support::image::noise;

pub const ACTIVE: &str = "work";
pub const COMMITTED: &str = "mine";

/// How it ends when what it is to prepare is there.
pub const THERE_ALREADY: i32 = 7;

const VERB: &str = "TRANSLOAD_TEST_CRASHES_VERB";
const STORE: &str = "TRANSLOAD_TEST_CRASHES_STORE";

/// It with one verb: prepare, fill or commit.
pub fn command(store: &Path, faults: &str, verb: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().expect("this program"));
    command.args(["--exact", "program::child_that_writes_a_snapshot", "--nocapture", "--quiet"]);
    command.env(VERB, verb).env(STORE, store).env("TRANSLOAD_FAILPOINTS", faults);
    command
}

/// The other half of it: does nothing unless [`command`] starts it.
#[test]
fn child_that_writes_a_snapshot() {
    let (Ok(verb), Some(store)) = (std::env::var(VERB), std::env::var_os(STORE)) else { return };
    let faults = std::env::var("TRANSLOAD_FAILPOINTS").unwrap_or_default();
    failpoint::configure(&faults).expect("understood");
    let done = Store::open(Path::new(&store), &Default::default()).and_then(|store| write(&store, &verb));
    if let Some(path) = std::env::var_os("TRANSLOAD_FAILPOINTS_REPORT") {
        let line = |(point, count): (String, u64)| format!("{point} {count}\n");
        let lines: Vec<String> = failpoint::hits().into_iter().map(line).collect();
        std::fs::write(path, lines.concat()).expect("a report");
    }
    std::process::exit(done.map_or_else(|error| code(&error), |()| 0));
}

fn write(store: &Store, verb: &str) -> Result<()> {
    let (snapshots, none) = (store.snapshotter(), Labels::new());
    match verb {
        "prepare" => {
            let mut layer = None;
            snapshots.walk(&Default::default(), &mut |row| {
                layer = layer.take().max(Some(row.key.clone()));
                Ok(())
            })?;
            snapshots.prepare(ACTIVE, layer.as_deref(), &none).map(drop)
        }
        "fill" => {
            for number in 0..8 {
                let at = fs_of(store, ACTIVE)?.join(format!("file-{number}"));
                std::fs::write(at, noise(number, 64 << number))?;
            }
            Ok(())
        }
        _ => snapshots.commit(COMMITTED, ACTIVE, &none, None).map(drop),
    }
}

fn fs_of(store: &Store, key: &str) -> Result<PathBuf> {
    let id = store.snapshotter().stat(key)?.id;
    Ok(store.path().join(format!("snapshots/{id}/fs")))
}

fn code(error: &Error) -> i32 {
    eprintln!("error: {error}");
    match error.kind() {
        ErrorKind::NotFound => 4,
        ErrorKind::AlreadyExists => THERE_ALREADY,
        _ => 1,
    }
}

/// What the store says of its snapshots, a line each.
pub fn answers_about_snapshots(store: &Path) -> Vec<String> {
    let look = |store: &Store| {
        let mut lines = Vec::new();
        store.snapshotter().walk(&Default::default(), &mut |row| {
            if [ACTIVE, COMMITTED].contains(&row.key.as_str()) {
                lines.push(format!("snapshot {}: {:?} above {:?}", row.key, row.kind, row.parent));
            }
            Ok(())
        })?;
        Ok(lines)
    };
    Store::open(store, &Default::default()).and_then(|store| look(&store)).unwrap_or_default()
}

//! The lanes of an import are confined, and nobody else is.

use crate::house::*;
use crate::support::image::*;
use crate::support::run::transload;
use crate::support::tools::skip;
use std::fs::File;
use std::path::PathBuf;
use std::sync::Mutex;
use std::thread::ThreadId;
use transload::layer::confinement_support;
use transload::progress::{Event, Progress};
use transload::{Cancel, Engine, ImportOptions, Input};

fn have_landlock() -> bool {
    let support = confinement_support();
    support.missing.iter().for_each(|missing| skip(missing));
    support.landlock_abi > 0
}

/// Tries to open a file outside whenever a thread of the import tells of progress.
struct Spy {
    outside: PathBuf,
    caller: ThreadId,
    seen: Mutex<Vec<(bool, bool)>>,
}

impl Progress for Spy {
    fn event(&self, event: &Event) {
        let of_lane = matches!(event, Event::BlobAdvanced { .. } | Event::BlobStage { .. });
        let is_caller = std::thread::current().id() == self.caller;
        if of_lane || is_caller {
            self.seen.lock().expect("not poisoned").push((is_caller, File::open(&self.outside).is_ok()));
        }
    }
}

fn spy(house: &House, input: Input, confine: bool) -> Vec<(bool, bool)> {
    let engine = Engine::open(house.store(), Default::default()).expect("a store");
    let outside = house.outside().join("victim");
    let spy = Spy { outside, caller: std::thread::current().id(), seen: Mutex::default() };
    let options = ImportOptions { ignore_chown: true, confine, ..ImportOptions::default() };
    engine.import(input, &options, &spy, &Cancel::new()).expect("imports");
    spy.seen.into_inner().expect("not poisoned")
}

#[test]
fn lanes_cannot_open_outside_and_the_caller_can() {
    if !have_landlock() {
        return;
    }
    let image = several([file("a", vec![1; 300_000]).packed(Pack::Plain), file("b", "2")]);
    let layout = crate::support::scratch();
    image.oci_dir(layout.path());
    let stream = || Box::new(std::io::Cursor::new(image.oci()));
    let inputs: [&dyn Fn() -> Input; 2] = [&|| Input::Path(layout.path().to_path_buf()), &|| Input::Reader {
        name: "a stream".into(),
        reader: stream(),
    }];
    for input in inputs {
        let seen = spy(&House::new(), input(), true);
        let lanes: Vec<_> = seen.iter().filter(|(caller, _)| !caller).collect();
        assert!(!lanes.is_empty() && lanes.iter().all(|(_, opened)| !opened), "{seen:?}");
        assert!(seen.iter().any(|(caller, _)| *caller) && seen.iter().all(|(caller, open)| *open || !caller));
        let free = spy(&House::new(), input(), false);
        assert!(free.iter().all(|(_, opened)| *opened), "{free:?}");
    }
}

#[test]
fn doctor_tells_whether_threads_can_be_confined() {
    let house = House::new();
    house.import(Way::File, &one(file("a", "1")), &[]).ok();
    let json = transload(&house.store(), ["--json", "doctor"]).json();
    let remarks = json["host"].as_array().unwrap_or_else(|| panic!("{json}"));
    let landlock =
        remarks.iter().find(|remark| remark["topic"] == "landlock").unwrap_or_else(|| panic!("{json}"));
    let support = confinement_support();
    let says = landlock["says"].as_str().expect("text");
    match support.missing {
        None => assert!(says.contains(&format!("version {}", support.landlock_abi)), "{landlock}"),
        Some(missing) => assert!(says.contains(&missing) && landlock["mend"].is_string(), "{landlock}"),
    }
}

#[test]
fn the_report_tells_of_the_confinement_and_of_its_absence() {
    if !have_landlock() {
        return;
    }
    for way in WAYS {
        let house = House::new();
        let json = house.import(way, &one(file("a", "1")), &[]).ok().json();
        let abi = confinement_support().landlock_abi;
        assert_eq!(json["confinement"], serde_json::json!({ "landlock_abi": abi }), "{way:?}");
        let json = house.import(way, &one(file("b", "1")), &["--no-confine"]).ok().json();
        assert_eq!(json["confinement"]["landlock_abi"], 0);
        assert!(json["confinement"]["missing"].is_string(), "{json}");
    }
}

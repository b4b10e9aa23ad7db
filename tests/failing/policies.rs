//! Collections that end in the middle, by a failure or by Ctrl-C: they say which images are gone by then.

use super::{FIRST, Scene, import, signal, slowed, wait_until};
use crate::support::run::Ran;
use crate::support::soundness::with_faults;
use rustix::process::Signal;
use serde_json::json;
use std::path::PathBuf;
use std::process::Command;
use transload::Engine;

const SECOND: &str = "example.com/second:1";

impl Scene {
    fn store_of_two(&self) -> PathBuf {
        let store = self.store("store");
        for archive in &self.archives[..2] {
            import(&store, archive).ok();
        }
        store
    }
}

fn assert_tells_both(ran: &Ran) {
    for name in [FIRST, SECOND] {
        assert!(ran.stderr.contains(&format!("\n  removed {name}\n")), "{}", ran.stderr);
    }
}

#[test]
fn a_policy_that_fails_half_way_says_which_images_it_removed() {
    let scene = Scene::new();
    let stat = rustix::fs::statvfs(scene.dir.path()).expect("a filesystem");
    // All of it is never free, so every image goes for it.
    let all = (stat.f_blocks * stat.f_frsize).to_string();
    for (fault, policy) in [
        ("gc.forget=eio", ["--keep-last", "0"]),
        ("gc.sync=eio", ["--older-than", "0s"]),
        ("gc.forget=eio@2", ["--until-free", &all]),
    ] {
        let words = [&["--json", "gc"][..], &policy].concat();
        let ran = with_faults(&scene.store_of_two(), fault, &words).fails(1);
        assert_tells_both(&ran);
        let mut told = ran.json()["error"]["images_removed"].clone();
        told.as_array_mut().expect("a list").sort_by_key(|name| name.to_string());
        assert_eq!(told, json!([FIRST, SECOND]), "{policy:?}");
        let machine = ["--log-format", "json", "gc", policy[0], policy[1]];
        let ran = with_faults(&scene.store_of_two(), fault, &machine);
        assert_eq!(ran.code, Some(1), "{}", ran.stderr);
        assert!(ran.stderr.contains("\"images_removed\":[") && ran.stderr.contains(SECOND), "{}", ran.stderr);
    }
    let ran = with_faults(&scene.store_of_two(), "gc.forget=eio", &["--json", "gc"]).fails(1);
    assert_eq!(ran.json()["error"].get("images_removed"), None, "none was");
}

#[test]
fn a_policy_that_is_stopped_by_a_signal_says_which_images_it_removed() {
    let scene = Scene::new();
    let store = scene.store_of_two();
    // The images go first, and then the collection waits for this.
    let lock = std::fs::File::create(store.join("sweep.lock")).expect("opens");
    lock.lock().expect("nobody has it");
    let collecting = slowed(&store, "", &["gc", "--keep-last", "0"]);
    let engine = Engine::open(&store, Default::default()).expect("opens");
    wait_until(|| engine.images().expect("images").is_empty());
    signal(&collecting, Signal::INT);
    let ran = Ran::of(&Command::new("gc"), collecting.wait_with_output().expect("ends")).fails(130);
    assert_tells_both(&ran);
    drop((lock, engine));
    let (lost, leaked) = scene.usable(&store);
    assert!(lost.is_empty() && leaked.is_empty(), "{lost:?} {leaked:?}");
}

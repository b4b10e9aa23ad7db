//! What a power cut shows when one sync is left out. Each cut comes at the very moment that the sync is for, so it shows every
//! time; the same cut with the sync in its place shows nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::Child;

use crate::House;
use crate::committed;
use crate::support::disk::Kind;
use crate::support::run::run;
use crate::support::soundness::{faulty, with_faults};
use crate::support::tally::Tally;
use crate::work::{FIRST, Keeper, Manner, SECOND, THIRD};

/// What waits for a sync.
enum Deed {
    Command(&'static [&'static str]),
    Commit,
}

/// A sync that something waits for, and what to do up to the moment that it is for.
struct Scene {
    sync: &'static str,
    /// The commands before the deed that leaves it out; `1` and `2` are the archives of the first and the second image.
    before: &'static [&'static [&'static str]],
    deed: Deed,
    /// The point at which it stops, if not at its end.
    stops: Option<&'static str>,
    /// Whether somebody else waits for the disk before the power fails, which takes all names there but not all data.
    others: bool,
    manner: Manner,
    /// Whether each image may be there, and may be missing.
    allowed: &'static [(&'static str, &'static [bool])],
    /// Whether ext4 that hides nothing shows it. What is not shown is held back by a later sync of the same command.
    shown: bool,
}

const IMPORT: Deed = Deed::Command(&["import", "-q", "1"]);
const OTHER: &[&[&str]] = &[&["import", "-q", "2"]];
const UNPUBLISHED: &[(&str, &[bool])] = &[(FIRST, &[false]), (SECOND, &[true])];
const PUBLISHED: &[(&str, &[bool])] = &[(FIRST, &[true]), (SECOND, &[true])];
const ALONE: &[(&str, &[bool])] = &[(FIRST, &[false])];

const SCENES: &[Scene] = &[
    Scene {
        sync: "blob.sync",
        before: OTHER,
        deed: IMPORT,
        stops: Some("import.sync"),
        others: true,
        manner: Manner::Churn,
        allowed: UNPUBLISHED,
        shown: true,
    },
    reported("import.sync"),
    reported("transaction.sync"),
    Scene {
        sync: "gc.sync",
        before: &[
            &["import", "-q", "--tag", THIRD, "1"],
            &["import", "-q", "--tag", THIRD, "--no-sync", "2"],
        ],
        deed: Deed::Command(&["gc"]),
        stops: None,
        others: true,
        manner: Manner::Retag,
        allowed: &[(THIRD, &[true])],
        shown: true,
    },
    // The row is waited for, which takes all names, the file's too, but not what is in the files.
    Scene {
        sync: "snapshot.sync",
        before: OTHER,
        deed: Deed::Commit,
        stops: None,
        others: false,
        manner: Manner::Churn,
        allowed: &[(SECOND, &[true])],
        shown: true,
    },
    made("transload.json.sync", true),
    made("transload.json.dirsync", false),
];

/// A sync that an import waits for before it reports the image.
const fn reported(sync: &'static str) -> Scene {
    Scene {
        sync,
        before: OTHER,
        deed: IMPORT,
        stops: None,
        others: false,
        manner: Manner::Churn,
        allowed: PUBLISHED,
        shown: true,
    }
}

/// A sync of what is written when a store is made.
const fn made(sync: &'static str, shown: bool) -> Scene {
    Scene {
        sync,
        before: &[],
        deed: IMPORT,
        stops: Some("import.sync"),
        others: true,
        manner: Manner::Fresh,
        allowed: ALONE,
        shown,
    }
}

impl House {
    /// Every sync, or those that are named: with it, and without it.
    pub fn each_sync(&mut self, kind: &Kind, only: &[String], required: bool) {
        let mut tally = Tally::new(&format!("power cuts at each sync on {}", kind.name));
        let mut cuts = 0;
        let named = |scene: &&Scene| only.iter().any(|sync| sync == "all" || sync == scene.sync);
        for scene in SCENES.iter().filter(|scene| only.is_empty() || named(scene)) {
            let what = format!("{} on {}", scene.sync, kind.name);
            let wrong = self.scene(kind, scene, "");
            tally.fault(&what, wrong, Vec::new());
            cuts += 1;
            let wrong = self.scene(kind, scene, &format!("{}=skip", scene.sync));
            println!(
                "{}",
                serde_json::json!({"part": format!("without {what}"), "shown": !wrong.is_empty(), "first": wrong.first()})
            );
            if required {
                assert_eq!(
                    !wrong.is_empty(),
                    scene.shown,
                    "whether a cut shows that {what} is missing: {wrong:?}"
                );
            }
        }
        tally.end(cuts);
    }

    /// Up to the moment, the cut, and what is wrong after it.
    fn scene(&mut self, kind: &Kind, scene: &Scene, faults: &str) -> Vec<String> {
        let disk = self.shelf.disk(kind);
        let live = kind.mount(&disk, &self.dir.path().join("live"));
        let store = live.path().join("store");
        let mut elsewhere = Keeper::default();
        for args in scene.before {
            with_faults(&store, "", &self.words(args)).ok();
            assert!(elsewhere.keep(&store), "opens");
        }
        let stops = scene.stops.map(|point| format!("{point}=stop")).unwrap_or_default();
        let child = self.up_to(&store, &format!("{faults};{stops}"), scene);
        if scene.others {
            let file = File::create(live.path().join("other")).expect("a file");
            file.sync_all().expect("syncs");
        }
        let cut = self.shelf.cut(&disk, 0);
        if let Some(mut child) = child {
            child.kill().expect("it is stopped");
            child.wait().expect("ends");
        }
        drop((elsewhere, live));
        let recovered = kind.recover(&cut, &self.dir.path().join("recovered"));
        let wrong = match &recovered {
            Err(error) => vec![error.clone()],
            Ok(recovered) => self.after(&recovered.path().join("store"), scene),
        };
        drop(recovered);
        std::fs::remove_file(cut).expect("removes");
        wrong
    }

    fn after(&self, store: &Path, scene: &Scene) -> Vec<String> {
        let allowed: BTreeMap<&'static str, BTreeSet<bool>> =
            scene.allowed.iter().map(|(name, may)| (*name, may.iter().copied().collect())).collect();
        let boot = "boot=after";
        let mut wrong = self.at_once(store, boot, scene.manner, &allowed);
        if matches!(scene.deed, Deed::Commit) {
            wrong.extend(committed::lost(store, boot));
        }
        let marker = std::fs::read_to_string(store.join("oci-layout")).unwrap_or_default();
        wrong.extend((!marker.contains("1.0.0")).then(|| format!("oci-layout holds {marker:?}")));
        let (more, leaked) = self.go_on(store, boot);
        wrong.extend(more.into_iter().chain(leaked));
        wrong
    }

    /// Does it to its end, or has it stand still where the scene says so.
    fn up_to(&self, store: &Path, faults: &str, scene: &Scene) -> Option<Child> {
        let Deed::Command(words) = scene.deed else {
            committed::commit(store, faults);
            return None;
        };
        let mut command = faulty(store, faults, &self.words(words));
        if scene.stops.is_none() {
            run(&mut command).ok();
            return None;
        }
        let child = command.spawn().expect("the program under test starts");
        let (_, status) = rustix::process::waitpid(
            rustix::process::Pid::from_raw(child.id() as i32),
            rustix::process::WaitOptions::UNTRACED,
        )
        .expect("waits")
        .expect("it stops or ends");
        let status = std::process::ExitStatus::from_raw(status.as_raw());
        assert!(
            status.stopped_signal().is_some(),
            "{}: it ended before {:?}: {status}",
            scene.sync,
            scene.stops
        );
        Some(child)
    }

    fn words(&self, args: &[&str]) -> Vec<String> {
        let word = |arg: &&str| match *arg {
            "1" => self.archives[0].to_string_lossy().into_owned(),
            "2" => self.archives[1].to_string_lossy().into_owned(),
            other => other.to_string(),
        };
        args.iter().map(word).collect()
    }
}

//! The spans of real work against docs/events.md: every name and field of the page is told, nothing else is, and every
//! span of an import belongs to it, whichever thread it comes from.

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Arc, Mutex};
use support::image::{Image, Pack, gzip, image, layer};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing_subscriber::layer::{Context, SubscriberExt};
use tracing_subscriber::registry::LookupSpan;
use transload::content::IngestRef;
use transload::io::locked::LockedDir;
use transload::progress::Silent;
use transload::upkeep::GcOptions;
use transload::{Cancel, Engine, EngineOptions, ImportOptions, ImportReport, Input, TraceId};

/// One span as it was told.
#[derive(Clone, Debug, Default)]
struct Told {
    name: &'static str,
    level: String,
    target: String,
    declared: BTreeSet<String>,
    fields: BTreeMap<String, String>,
    /// The names from the root down, itself last.
    path: Vec<&'static str>,
    root: u64,
    thread: Option<String>,
    closed: bool,
}

#[derive(Clone, Default)]
struct Collector(Arc<Mutex<BTreeMap<u64, Told>>>);

impl Collector {
    fn told(&self) -> Vec<Told> {
        self.0.lock().expect("no panic").values().cloned().collect()
    }

    fn take(&self) -> Vec<Told> {
        std::mem::take(&mut *self.0.lock().expect("no panic")).into_values().collect()
    }

    fn change(&self, id: &Id, change: impl FnOnce(&mut Told)) {
        if let Some(told) = self.0.lock().expect("no panic").get_mut(&id.into_u64()) {
            change(told);
        }
    }
}

struct Fields<'a>(&'a mut BTreeMap<String, String>);

impl Visit for Fields<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        self.0.insert(field.name().to_string(), format!("{value:?}"));
    }
    fn record_str(&mut self, field: &Field, value: &str) {
        self.0.insert(field.name().to_string(), value.to_string());
    }
}

impl<S: tracing::Subscriber + for<'a> LookupSpan<'a>> tracing_subscriber::Layer<S> for Collector {
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let metadata = attributes.metadata();
        let scope: Vec<_> = context.span_scope(id).expect("it is new").from_root().collect();
        let mut told = Told {
            name: metadata.name(),
            level: metadata.level().to_string(),
            target: metadata.target().to_string(),
            declared: metadata.fields().iter().map(|field| field.name().to_string()).collect(),
            path: scope.iter().map(|span| span.name()).collect(),
            root: scope[0].id().into_u64(),
            thread: std::thread::current().name().map(str::to_string),
            ..Told::default()
        };
        attributes.record(&mut Fields(&mut told.fields));
        self.0.lock().expect("no panic").insert(id.into_u64(), told);
    }
    fn on_record(&self, id: &Id, values: &Record<'_>, _: Context<'_, S>) {
        self.change(id, |told| values.record(&mut Fields(&mut told.fields)));
    }
    fn on_close(&self, id: Id, _: Context<'_, S>) {
        self.change(&id, |told| told.closed = true);
    }
}

/// Name to fields, as the page's table has them.
fn documented() -> BTreeMap<String, BTreeSet<String>> {
    let page = include_str!("../docs/events.md");
    let rows = page.lines().filter_map(|line| line.strip_prefix("| `"));
    let ticked = |cell: &str| cell.split('`').skip(1).step_by(2).map(str::to_string).collect();
    let row = |row: &str| {
        let (name, rest) = row.split_once('`').expect("a name");
        let fields = rest.split('|').nth(1).expect("a second column");
        let mut fields: BTreeSet<String> = ticked(fields);
        fields.insert("error".to_string());
        (name.to_string(), fields)
    };
    rows.map(row).collect()
}

fn sample(name: &str) -> Image {
    let big = (0..40u8).fold(layer(), |layer, n| {
        let noise: Vec<u8> =
            (0..60_000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8 ^ n).collect();
        layer.file(&format!("/big/{n}"), noise)
    });
    image().name(name).layer(big.packed(Pack::Gzip)).layer(layer().file("/top", name).packed(Pack::Gzip))
}

struct Work {
    engine: Engine,
    collector: Collector,
}

impl Work {
    fn options() -> ImportOptions {
        let ignore_chown = !rustix::process::geteuid().is_root();
        ImportOptions { ignore_chown, trace_id: Some(TraceId::fresh()), ..Default::default() }
    }

    /// Imports, checks that all spans belong to the import, and gives them.
    fn import(&self, archive: &Path, options: &ImportOptions) -> (ImportReport, Vec<Told>) {
        self.collector.take();
        let input = Input::Path(archive.to_path_buf());
        let report = self.engine.import(input, options, &Silent, &Cancel::new()).expect("an import");
        let told = self.collector.take();
        let import = told.iter().find(|told| told.name == "import").expect("an import");
        assert_eq!(import.fields["trace_id"], options.trace_id.expect("given").to_string());
        assert_eq!(report.trace_id, options.trace_id);
        for span in &told {
            assert_eq!(span.path[0], "import", "{span:?} is outside");
            assert_eq!(span.root, import.root, "{span:?}");
            assert!(span.closed, "{span:?} is still open");
            assert!(!span.fields.contains_key("error"), "{span:?}");
        }
        (report, told)
    }
}

fn named<'a>(told: &'a [Told], name: &str) -> Vec<&'a Told> {
    told.iter().filter(|told| told.name == name).collect()
}

#[test]
fn spans_are_what_the_page_says() {
    let collector = Collector::default();
    let subscriber = tracing_subscriber::registry().with(collector.clone());
    tracing::subscriber::set_global_default(subscriber).expect("the first one");
    let scratch = support::scratch();
    let options = EngineOptions { threads: 3, ..Default::default() };
    let engine = Engine::open(scratch.path().join("store"), options).expect("a store");
    let work = Work { engine, collector };
    let mut told = Vec::new();

    let seekable = scratch.path().join("a.tar");
    std::fs::write(&seekable, sample("a:1").oci()).expect("room");
    let (report, spans) = work.import(&seekable, &Work::options());
    check_seekable(&report, &spans);
    told.extend(spans);

    let verify = ImportOptions { verify_source: true, ..Work::options() };
    told.extend(work.import(&seekable, &verify).1);

    let streamed = scratch.path().join("b.tar.gz");
    std::fs::write(&streamed, gzip(&sample("b:1").docker())).expect("room");
    let (_, spans) = work.import(&streamed, &Work::options());
    assert!(named(&spans, "read").iter().any(|read| read.fields.contains_key("member")));
    told.extend(spans);

    told.extend(wait_for_another(&work, scratch.path()));
    told.extend(fail(&work, scratch.path()));
    work.engine.remove(&["docker.io/library/b:1".to_string()]).expect("removed");
    work.engine.gc(&GcOptions::default()).expect("collected");
    let mounted = mount(&work, scratch.path());
    told.extend(work.collector.take());

    let mut documented = documented();
    let mut seen: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for span in told {
        assert_eq!(span.target, "transload");
        let verb = matches!(span.name, "import" | "gc");
        assert_eq!(span.level, if verb { "INFO" } else { "DEBUG" }, "{}", span.name);
        seen.insert(span.name.to_string(), span.declared);
    }
    if !mounted {
        ["mount", "umount"].iter().for_each(|name| drop(documented.remove(*name)));
    }
    assert_eq!(seen, documented);
}

fn check_seekable(report: &ImportReport, told: &[Told]) {
    let layers = &report.images[0].layers;
    let ingests = named(told, "ingest");
    for layer in layers {
        let digest = layer.digest.to_string();
        let ingest = ingests.iter().find(|one| one.fields["digest"] == digest).expect("each layer is told");
        assert_eq!(ingest.fields["bytes"], layer.size_bytes.to_string());
        assert_eq!((&ingest.fields["existing"][..], &ingest.fields["codec"][..]), ("false", "gzip"));
        assert!(ingest.thread.as_ref().is_some_and(|name| name.starts_with("lane ")), "{ingest:?}");
    }
    let owners = named(told, "claim").into_iter().filter(|claim| claim.fields["role"] == "owner").count();
    assert_eq!(owners, 6, "two blobs, two trees, a configuration and a manifest");
    // The big layer is most of the work, so its stages have threads of their own, inside its span all the same.
    let hash = named(told, "hash");
    assert_eq!(hash[0].path, ["import", "ingest", "hash"]);
    assert_eq!(hash[0].thread.as_deref(), Some("hash"));
    let applied: u64 = named(told, "apply").iter().map(|apply| number(apply, "bytes")).sum();
    assert_eq!(applied, report.trees.bytes_written);
    assert_eq!(named(told, "snapshot.commit").len(), 2);
    assert_eq!(named(told, "sync")[0].fields["needed"], "true");
}

fn number(told: &Told, field: &str) -> u64 {
    told.fields[field].parse().expect("a number")
}

/// Another process holds the place of a blob; it lets go when the import is seen to wait.
fn wait_for_another(work: &Work, scratch: &Path) -> Vec<Told> {
    let image = image().name("w:1").layer(layer().file("/waited-for", "x").packed(Pack::Gzip));
    let archive = scratch.join("w.tar");
    std::fs::write(&archive, image.oci()).expect("room");
    let digest = support::image::digest(&layer().file("/waited-for", "x").packed(Pack::Gzip).blob());
    let place = IngestRef::blob(&digest.parse().expect("a digest"));
    let ingests = work.engine.store().content().ingests();
    let held = LockedDir::try_acquire(ingests, place.name()).expect("a store").expect("free");
    let (_, told) = std::thread::scope(|scope| {
        scope.spawn(|| {
            while !work.collector.told().iter().any(|told| told.name == "wait") {
                std::thread::sleep(std::time::Duration::from_millis(2));
            }
            held.remove().expect("let go");
        });
        work.import(&archive, &Work::options())
    });
    let wait = named(&told, "wait")[0];
    assert_eq!((&wait.fields["owner"][..], &wait.fields["stalled"][..]), ("process", "false"));
    let hex = digest.trim_start_matches("sha256:");
    assert!(wait.fields["key"].contains(hex), "{wait:?}");
    let claims: Vec<_> =
        named(&told, "claim").into_iter().filter(|one| one.fields["digest"] == digest).collect();
    assert_eq!(claims[0].fields["role"], "follower");
    assert_eq!(claims[1].fields["role"], "owner");
    assert!(number(claims[1], "waited_us") > 0);
    told
}

/// A failed import tells the kind on the way up, and its error carries the trace id.
fn fail(work: &Work, scratch: &Path) -> Vec<Told> {
    let archive = scratch.join("short.tar");
    let whole = sample("short:1").oci();
    std::fs::write(&archive, &whole[..whole.len() / 2]).expect("room");
    let options = Work::options();
    let failed = work.engine.import(Input::Path(archive), &options, &Silent, &Cancel::new());
    let error = failed.expect_err("half an archive");
    assert_eq!(error.trace_id(), options.trace_id);
    let told = work.collector.take();
    let import = named(&told, "import");
    assert_eq!(import[0].fields["error"], error.kind().name());
    told
}

/// False where this may not mount.
fn mount(work: &Work, scratch: &Path) -> bool {
    let target = scratch.join("mnt");
    std::fs::create_dir(&target).expect("a directory");
    if let Err(error) = work.engine.mount("a:1", &target, &Default::default()) {
        support::tools::skip(&format!("cannot mount: {error}"));
        return false;
    }
    work.engine.unmount(&target).expect("unmounted");
    true
}

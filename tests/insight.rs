//! `import --trace`, `--timeline` and `--otlp`: the trace field by field against the Trace Event Format, the page by its
//! structure and in a browser, the spans as a collector receives them.

mod support;

use serde_json::Value;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::process::Command;
use support::image::{Pack, file, gzip, image, layer};
use support::run::{Ran, run, transload};
use support::{foreign, scratch, tools};

/// One layer that is most of the work, so that its stages run side by side, and a few small ones.
fn archive(dir: &Path, name: &str) -> PathBuf {
    let noise: Vec<u8> = (0..3_000_000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 11) as u8).collect();
    let big = layer().file("/big", noise).packed(Pack::Gzip);
    let small = |n: u8| file(&format!("/small/{n}"), vec![n; 20_000]).packed(Pack::Gzip);
    let image = (0..4).fold(image().name(name).layer(big), |image, n| image.layer(small(n)));
    let path = dir.join("image.tar");
    std::fs::write(&path, image.oci()).expect("room");
    path
}

fn import(store: &Path, archive: &Path, options: &[&str]) -> Ran {
    let archive = archive.to_str().expect("a plain path");
    let mut args = vec!["--json", "import", "--threads", "3"];
    if !rustix::process::geteuid().is_root() {
        args.push("--ignore-chown");
    }
    args.extend(options);
    args.push(archive);
    transload(store, args)
}

fn read_json(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).expect("it was written")).expect("JSON")
}

/// Every rule of the Trace Event Format that a viewer relies on; gives the complete events.
fn validate(trace: &Value) -> Vec<Value> {
    let events = trace["traceEvents"].as_array().expect("traceEvents");
    let mut named: HashSet<u64> = HashSet::new();
    let mut flows: BTreeMap<u64, Vec<(String, f64, u64)>> = BTreeMap::new();
    let mut complete = Vec::new();
    assert!(matches!(trace["displayTimeUnit"].as_str(), Some("ms" | "ns")));
    for event in events {
        let phase = event["ph"].as_str().expect("ph");
        let fields: Vec<&str> = event.as_object().expect("an object").keys().map(String::as_str).collect();
        assert_eq!(fields, known_fields(phase), "{event}");
        assert!(event["name"].is_string() && event["pid"].is_u64() && event["tid"].is_u64(), "{event}");
        let tid = event["tid"].as_u64().expect("a thread");
        match phase {
            "M" => {
                let args = event["args"].as_object().expect("args");
                match event["name"].as_str().expect("a name") {
                    "thread_name" => {
                        assert!(args["name"].is_string());
                        named.insert(tid);
                    }
                    "process_name" => assert!(args["name"].is_string()),
                    "thread_sort_index" => assert!(args["sort_index"].is_i64()),
                    other => panic!("unknown metadata {other}"),
                }
            }
            "X" => {
                assert!(event["ts"].is_u64() && event["dur"].is_u64() && event["cat"].is_string(), "{event}");
                assert!(event["args"].is_object(), "{event}");
                complete.push(event.clone());
            }
            "s" | "t" | "f" => {
                assert_eq!((&event["name"], &event["cat"]), (&Value::from("layer"), &Value::from("flow")));
                let at = (phase.to_string(), event["ts"].as_f64().expect("ts"), tid);
                flows.entry(event["id"].as_u64().expect("id")).or_default().push(at);
                assert!(phase != "f" || event["bp"] == "e", "{event}");
            }
            "C" => {
                assert!(event["ts"].is_u64());
                let series = event["args"].as_object().expect("args");
                assert!(!series.is_empty() && series.values().all(Value::is_number), "{event}");
            }
            other => panic!("phase {other} is not written"),
        }
    }
    assert!(!flows.is_empty(), "no flows");
    for (id, steps) in &flows {
        let phases: String = steps.iter().map(|(phase, ..)| phase.as_str()).collect();
        assert!(phases.starts_with('s') && phases.ends_with('f'), "flow {id}: {phases}");
        assert!(phases[1..phases.len() - 1].bytes().all(|phase| phase == b't'), "flow {id}: {phases}");
        assert!(steps.is_sorted_by_key(|(_, ts, _)| *ts), "flow {id} goes back in time");
        for (_, ts, tid) in steps {
            let encloses = |event: &&Value| {
                let (begin, dur) = (event["ts"].as_f64().expect("ts"), event["dur"].as_f64().expect("dur"));
                event["tid"] == *tid && begin <= *ts && *ts <= begin + dur
            };
            assert!(complete.iter().any(|event| encloses(&event)), "flow {id} is bound to nothing at {ts}");
        }
    }
    nested(&complete);
    let unnamed = complete.iter().find(|event| !named.contains(&event["tid"].as_u64().expect("tid")));
    assert!(unnamed.is_none(), "a thread has no name: {unnamed:?}");
    complete
}

/// What an event of a phase has, by name; each is required, and viewers know no other.
fn known_fields(phase: &str) -> &'static [&'static str] {
    match phase {
        "M" => &["args", "name", "ph", "pid", "tid"],
        "X" => &["args", "cat", "dur", "name", "ph", "pid", "tid", "ts"],
        "C" => &["args", "name", "ph", "pid", "tid", "ts"],
        "f" => &["bp", "cat", "id", "name", "ph", "pid", "tid", "ts"],
        _ => &["cat", "id", "name", "ph", "pid", "tid", "ts"],
    }
}

/// Complete events of one thread lie inside each other or apart, or viewers draw nonsense.
fn nested(complete: &[Value]) {
    let mut threads: HashMap<u64, Vec<(u64, u64, String)>> = HashMap::new();
    for event in complete {
        let number = |field: &str| event[field].as_u64().expect("a number");
        let name = event["name"].as_str().expect("a name").to_string();
        threads.entry(number("tid")).or_default().push((number("ts"), number("ts") + number("dur"), name));
    }
    for events in threads.values_mut() {
        events.sort_by_key(|(begin, end, _)| (*begin, std::cmp::Reverse(*end)));
        let mut open: Vec<&(u64, u64, String)> = Vec::new();
        for event in events.iter() {
            while open.last().is_some_and(|last| last.1 <= event.0) {
                open.pop();
            }
            let fits = open.last().is_none_or(|last| event.1 <= last.1);
            assert!(fits, "{event:?} leaves {:?}", open.last());
            open.push(event);
        }
    }
}

/// Layers lie on the lanes of their threads, and an arrow leads from thread to thread where their stages do.
fn lanes_and_arrows(trace: &Value) {
    let events = trace["traceEvents"].as_array().expect("traceEvents");
    let of = |phases: &'static [&str]| {
        events.iter().filter(|event| phases.contains(&event["ph"].as_str().expect("ph")))
    };
    let threads: HashMap<u64, &str> = of(&["M"])
        .filter(|event| event["name"] == "thread_name")
        .map(|event| (event["tid"].as_u64().expect("tid"), event["args"]["name"].as_str().expect("a name")))
        .collect();
    for event in of(&["X"]).filter(|event| event["args"]["kind"] == "layer") {
        assert!(threads[&event["tid"].as_u64().expect("tid")].starts_with("lane "), "{event}");
    }
    let mut ways: HashMap<u64, HashSet<u64>> = HashMap::new();
    for arrow in of(&["s", "t", "f"]) {
        ways.entry(arrow["id"].as_u64().expect("id"))
            .or_default()
            .insert(arrow["tid"].as_u64().expect("tid"));
    }
    assert_eq!(ways.len(), 5, "a flow for each layer");
    assert!(ways.values().any(|threads| threads.len() >= 3), "the big layer's stages have threads: {ways:?}");
}

/// With `TRANSLOAD_CORPUS=archive:archive… cargo test --test insight corpus -- --nocapture`: real archives give valid traces and
/// pages, of a size that can be opened.
#[test]
fn a_corpus_gives_valid_traces_and_pages() {
    let corpus = std::env::var("TRANSLOAD_CORPUS").unwrap_or_default();
    for archive in corpus.split(':').filter(|archive| !archive.is_empty()) {
        let dir = scratch();
        let (trace, page) = (dir.path().join("trace.json"), dir.path().join("page.html"));
        let files = ["--trace", trace.to_str().expect("plain"), "--timeline", page.to_str().expect("plain")];
        import(&dir.path().join("store"), Path::new(archive), &files).ok();
        let complete = validate(&read_json(&trace));
        well_formed(&std::fs::read_to_string(&page).expect("a page"));
        let size = |path: &Path| std::fs::metadata(path).expect("a file").len();
        println!("{archive}: {} spans, {} B, {} B", complete.len(), size(&trace), size(&page));
        assert!(size(&trace) < 16 << 20 && size(&page) < 4 << 20, "too large to be opened");
    }
}

fn names(complete: &[Value]) -> HashSet<&str> {
    complete.iter().filter_map(|event| event["name"].as_str()).collect()
}

#[test]
fn a_trace_is_in_the_trace_event_format_field_by_field() {
    let dir = scratch();
    let trace = dir.path().join("trace.json");
    let image = archive(dir.path(), "traced:1");
    let store = dir.path().join("store");
    let report = import(&store, &image, &["--trace", trace.to_str().expect("plain")]).ok().json();
    let complete = validate(&read_json(&trace));
    for name in
        ["import", "plan", "claim", "ingest", "read", "inflate", "hash", "apply", "snapshot.commit", "sync"]
    {
        assert!(names(&complete).contains(name), "{name} is missing");
    }
    let root = complete.iter().find(|event| event["name"] == "import").expect("an import");
    assert_eq!(root["args"]["trace_id"], report["trace_id"]);
    lanes_and_arrows(&read_json(&trace));
    assert_eq!(std::fs::read_dir(dir.path()).expect("lists").count(), 3, "a temporary file was left");
    // Archives that others made, compressed and from a pipe too.
    for name in ["docker-save-multi.tar.gz", "skopeo-docker-tiny.tar.xz", "podman-docker.tar"] {
        let store = dir.path().join(format!("store-{name}"));
        import(
            &store,
            &foreign().join(name),
            &["--trace", trace.to_str().expect("plain"), "--all-platforms"],
        )
        .ok();
        validate(&read_json(&trace));
    }
}

/// Trace, audit log, log lines and report are joined by one id, and neither takes anything from the others.
#[test]
fn whatever_a_run_tells_has_one_trace_id() {
    let dir = scratch();
    let path = |name: &str| dir.path().join(name).to_str().expect("plain").to_string();
    let (trace, audit, metrics) = (path("trace.json"), path("audit.jsonl"), path("t.prom"));
    let image = archive(dir.path(), "joined:1");
    let options = ["--trace", &trace, "--audit-log", &audit, "--metrics-file", &metrics, "--audit"];
    let more = ["--log-format", "json", "-v"];
    let ran = import(&dir.path().join("store"), &image, &[&options[..], &more].concat()).ok();
    let report = ran.json();
    let complete = validate(&read_json(Path::new(&trace)));
    let root = complete.iter().find(|event| event["name"] == "import").expect("an import");
    assert_eq!(root["args"]["trace_id"], report["trace_id"]);
    assert_eq!(report["audit"]["findings"].as_array().map(Vec::len), Some(0), "{report}");
    let recorded = std::fs::read_to_string(&audit).expect("an audit log");
    for text in [&recorded, &ran.stderr] {
        assert!(text.contains("import_finished"), "{text}");
        for line in text.lines() {
            let line: Value = serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"));
            assert_eq!(line["trace_id"], report["trace_id"], "{line}");
        }
    }
    assert!(
        std::fs::read_to_string(&metrics)
            .expect("figures")
            .contains("transload_import_duration_seconds_count 1")
    );
}

#[test]
fn a_failed_import_is_told_about_as_well() {
    let dir = scratch();
    let image = archive(dir.path(), "broken:1");
    let whole = std::fs::read(&image).expect("an archive");
    std::fs::write(&image, gzip(&whole[..whole.len() / 2])).expect("room");
    let (trace, page) = (dir.path().join("t.json"), dir.path().join("t.html"));
    let files = ["--trace", trace.to_str().expect("plain"), "--timeline", page.to_str().expect("plain")];
    let failed = import(&dir.path().join("store"), &image, &files).fails(3);
    let failure = failed.json();
    let trace = read_json(&trace);
    let events = trace["traceEvents"].as_array().expect("events");
    let root = events.iter().find(|event| event["name"] == "import").expect("an import");
    assert_eq!(root["args"]["error"], failure["error"]["kind"]);
    assert_eq!(root["args"]["trace_id"], failure["error"]["trace_id"]);
    let page = std::fs::read_to_string(page).expect("a page");
    let sentence = failure["error"]["message"].as_str().expect("a sentence").replace('\'', "&#39;");
    assert!(
        page.contains("The import failed:</b>") && page.contains(&sentence),
        "{sentence} is not on\n{page}"
    );
    let nowhere = dir.path().join("no/such/dir/t.json");
    let refused = import(&dir.path().join("never"), &image, &["--trace", nowhere.to_str().expect("plain")]);
    refused.fails(4);
    assert!(!dir.path().join("never").exists(), "refused before anything is done");
}

#[test]
fn a_file_that_cannot_be_written_is_named_and_the_import_stays() {
    let dir = scratch();
    let image = archive(dir.path(), "full:1");
    let store = dir.path().join("store");
    let ran = import(&store, &image, &["--trace", "/dev/full", "--timeline", "/dev/full"]).ok();
    assert_eq!(ran.stderr.matches("notice: cannot write /dev/full: ").count(), 2, "{}", ran.stderr);
    assert_eq!(ran.json()["blobs"]["new"], 7);
}

#[test]
fn a_file_with_two_purposes_is_refused_before_anything_is_done() {
    let dir = scratch();
    let image = archive(dir.path(), "twice:1");
    let before = std::fs::read(&image).expect("an archive");
    let (store, both) = (dir.path().join("store"), dir.path().join("both"));
    let (both_name, archive_name) = (both.to_str().expect("plain"), image.to_str().expect("plain"));
    for files in [
        ["--trace", both_name, "--timeline", both_name],
        ["--trace", both_name, "--metrics-file", both_name],
        ["--timeline", archive_name, "--trace", both_name],
    ] {
        let refused = import(&store, &image, &files).fails(2);
        assert_eq!(refused.json()["error"]["kind"], "invalid_argument", "{files:?}");
    }
    let left: Vec<_> =
        std::fs::read_dir(dir.path()).expect("lists").map(|one| one.expect("one").path()).collect();
    assert_eq!(left, std::slice::from_ref(&image), "neither a store nor a file was made");
    assert_eq!(std::fs::read(&image).expect("an archive"), before);
}

/// Whatever opens is closed in order; gives how many elements of each name there are.
fn well_formed(html: &str) -> HashMap<String, usize> {
    const VOID: [&str; 2] = ["meta", "!DOCTYPE"];
    let (mut open, mut counts) = (Vec::new(), HashMap::new());
    let body = match (html.find("<style>"), html.find("</style>")) {
        (Some(from), Some(to)) => html[..from + 7].to_string() + &html[to..],
        _ => panic!("no style"),
    };
    for tag in body.split('<').skip(1) {
        let inside = tag.split('>').next().expect("something");
        let name = inside.trim_start_matches('/').split([' ', '/']).next().expect("a name").to_string();
        match () {
            _ if inside.starts_with('/') => assert_eq!(open.pop(), Some(name), "closed out of order"),
            _ => {
                *counts.entry(name.clone()).or_default() += 1;
                if !inside.ends_with('/') && !VOID.contains(&name.as_str()) {
                    open.push(name);
                }
            }
        }
    }
    assert!(open.is_empty(), "left open: {open:?}");
    counts
}

#[test]
fn the_page_stands_alone_and_escapes_what_archives_say() {
    let dir = scratch();
    let image = archive(dir.path(), "paged:1");
    let hostile = dir.path().join("<img src=x onerror=alert(1)>&\".tar");
    std::fs::rename(&image, &hostile).expect("renamed");
    let page = dir.path().join("page.html");
    let store = dir.path().join("store");
    let timeline = ["--timeline", page.to_str().expect("plain")];
    let report = import(&store, &hostile, &timeline).ok().json();
    let html = std::fs::read_to_string(&page).expect("a page");
    let counts = well_formed(&html);
    assert!(!html.contains("<img") && !counts.contains_key("script") && !counts.contains_key("link"));
    assert!(!html.contains("http://") && !html.contains("https://"), "nothing is fetched from anywhere");
    assert!(html.contains("prefers-color-scheme") && html.contains("default-src 'none'"));
    for words in ["What bounded this import", "What would help", "Critical path", "Worker 1", "Every blob"] {
        assert!(html.contains(words), "{words}");
    }
    for layer in report["images"][0]["layers"].as_array().expect("layers") {
        assert!(html.contains(layer["digest"].as_str().expect("a digest")), "{layer}");
    }
    let rows = |html: &str| html[html.find("id=\"blobs\"").expect("a table")..].matches("<tr>").count() - 1;
    assert_eq!(rows(&html), 7, "five layers, a configuration, a manifest");
    in_a_browser(&page, dir.path());
    // Again: everything is there, and the page says how much that saved.
    let again = import(&store, &hostile, &timeline).ok().json();
    let html = std::fs::read_to_string(&page).expect("a page");
    assert_eq!(again["blobs"]["new"], 0);
    assert_eq!(rows(&html), 7);
    assert!(!html.contains("<td class=\"new\">new</td>") && html.contains(">existing</td>"), "{html}");
}

/// The page as Chromium lays it out, on a phone and on a desk, bright and dark: nothing is wider than the screen, every row of
/// bars has one that can be seen, text differs from its ground, and nothing complains. What a picture of it tells, only eyes
/// can judge.
fn in_a_browser(page: &Path, dir: &Path) {
    if !tools::have(&["chromium"]) {
        return;
    }
    let harness = dir.join("harness.html");
    for (width, dark) in [(360, false), (1200, true)] {
        std::fs::write(&harness, measuring(&std::fs::read_to_string(page).expect("a page"), width))
            .expect("room");
        let dumped = chromium(&harness, dir, dark);
        assert!(!dumped.stderr.contains("CONSOLE"), "{}", dumped.stderr);
        let measured = dumped.text();
        let measured =
            measured.split("MEASURED").nth(1).unwrap_or_else(|| panic!("{measured}\n{}", dumped.stderr));
        let measured: Value = serde_json::from_str(measured).expect("JSON");
        assert_eq!(measured["width"], width, "{measured}");
        assert!(
            measured["needs"].as_u64().is_some_and(|needs| needs <= width),
            "wider than the screen: {measured}"
        );
        let rows = measured["rows"].as_array().expect("rows");
        assert!(rows.len() >= 3, "{measured}");
        for row in rows {
            assert!(row["bars"].as_u64() > Some(0) && row["height"].as_u64() >= Some(16), "{measured}");
        }
        assert_ne!(measured["ink"], measured["paper"], "{measured}");
        assert_eq!(measured["paper"] == "rgb(255, 255, 255)", !dark, "{measured}");
    }
}

/// A page with ours in a frame of that width, and a script that writes down how it came out.
fn measuring(page: &str, width: u64) -> String {
    let page = page.replace('&', "&amp;").replace('"', "&quot;");
    format!(
        r#"<!DOCTYPE html><iframe style="border:0;width:{width}px;height:2000px" srcdoc="{page}"></iframe><pre id="out"></pre><script>
const frame = document.querySelector("iframe");
frame.onload = () => {{
  const inside = frame.contentDocument, style = frame.contentWindow.getComputedStyle(inside.body);
  const seen = rect => {{ const box = rect.getBoundingClientRect(); return box.width >= 1 && box.height >= 1; }};
  const rows = [...inside.querySelectorAll("svg.bars")].map(row => ({{
    height: Math.round(row.getBoundingClientRect().height),
    bars: [...row.querySelectorAll("rect")].filter(seen).length,
  }}));
  const width = frame.contentWindow.innerWidth, needs = inside.documentElement.scrollWidth;
  const out = {{ width, needs, rows, ink: style.color, paper: style.backgroundColor }};
  document.getElementById("out").textContent = "MEASURED" + JSON.stringify(out) + "MEASURED";
  frame.remove();
  document.querySelector("script").remove();
}};
</script>"#
    )
}

fn chromium(page: &Path, dir: &Path, dark: bool) -> Ran {
    let mut command = Command::new("chromium");
    command.args(["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync"]);
    command.args([
        "--disable-background-networking",
        "--disable-component-update",
        "--enable-logging=stderr",
    ]);
    command.arg(format!("--blink-settings=preferredColorScheme={}", if dark { 0 } else { 1 }));
    command.arg(format!("--user-data-dir={}", dir.join("profile").display()));
    run(command.args(["--virtual-time-budget=5000", "--dump-dom"]).arg(format!("file://{}", page.display())))
        .ok()
}

#[cfg(feature = "otlp")]
#[test]
fn a_collector_receives_the_spans() {
    use std::io::{Read, Write};
    let dir = scratch();
    let image = archive(dir.path(), "sent:1");
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let endpoint = format!("http://{}", listener.local_addr().expect("an address"));
    let receive = || {
        let (mut stream, _) = listener.accept().expect("a request");
        let mut request = Vec::new();
        let mut chunk = [0; 4096];
        loop {
            let text = String::from_utf8_lossy(&request);
            if let Some((head, body)) = text.split_once("\r\n\r\n") {
                let length = head.lines().find_map(|line| line.strip_prefix("Content-Length: "));
                if body.len() >= length.expect("a length").parse().expect("a number") {
                    break;
                }
            }
            let count = stream.read(&mut chunk).expect("bytes");
            assert_ne!(count, 0, "the request ends early");
            request.extend_from_slice(&chunk[..count]);
        }
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}").expect("an answer");
        String::from_utf8(request).expect("text")
    };
    let (report, request) = std::thread::scope(|scope| {
        let collector = scope.spawn(receive);
        let report = import(&dir.path().join("store"), &image, &["--otlp", &endpoint]).ok().json();
        (report, collector.join().expect("no panic"))
    });
    let (head, body) = request.split_once("\r\n\r\n").expect("a head and a body");
    assert!(
        head.starts_with("POST /v1/traces HTTP/1.1\r\n") && head.contains("Content-Type: application/json")
    );
    let body: Value = serde_json::from_str(body).expect("JSON");
    let spans = body["resourceSpans"][0]["scopeSpans"][0]["spans"].as_array().expect("spans");
    let ids: HashSet<&str> = spans.iter().filter_map(|span| span["spanId"].as_str()).collect();
    assert_eq!(ids.len(), spans.len());
    for span in spans {
        assert_eq!(span["traceId"], report["trace_id"]);
        let nanos = |field: &str| span[field].as_str().expect("a string").parse::<u64>().expect("a number");
        assert!(nanos("startTimeUnixNano") <= nanos("endTimeUnixNano"));
        assert!(span["spanId"].as_str().is_some_and(|id| id.len() == 16), "{span}");
        match span.get("parentSpanId") {
            Some(parent) => assert!(ids.contains(parent.as_str().expect("a string")), "{span}"),
            None => assert_eq!(span["name"], "import"),
        }
    }
    // Nobody there: the import succeeds all the same, and a notice says so.
    drop(listener);
    let ran = import(&dir.path().join("store"), &image, &["--otlp", &endpoint]).ok();
    assert!(ran.stderr.contains("cannot send the trace"), "{}", ran.stderr);
}

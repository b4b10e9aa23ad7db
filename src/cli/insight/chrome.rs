//! `--trace`: a recording in the Trace Event Format, which Perfetto and chrome://tracing open.
//!
//! One lane for each thread, by name; a complete event for each span, its fields as arguments; a flow from where a
//! blob's bytes are read through its stages to the snapshot made of it; disk and processor use as counters.

use super::analysis::Nest;
use super::recorder::{Recording, Span, Value};
use super::sampler::Sample;
use serde_json::{Map, Value as Json, json};
use std::io::{self, Write};

/// The whole file, event by event: as one value it would take several times the memory of the recording.
pub fn write(out: &mut dyn Write, recording: &Recording, samples: &[Sample]) -> io::Result<()> {
    let pid = std::process::id();
    let other = json!({
        "producer": concat!("transload ", env!("CARGO_PKG_VERSION")),
        "began_unix_us": recording.began_unix_us,
        "dropped_spans": recording.dropped,
    });
    write!(out, "{{\"displayTimeUnit\":\"ms\",\"otherData\":{other},\"traceEvents\":[")?;
    let spans = recording.spans.iter().map(|span| complete(span, pid));
    let flows = flows(recording);
    let arrows = flows.iter().enumerate().flat_map(|(id, flow)| arrows(id, flow, pid));
    let counters = samples.iter().flat_map(|sample| counters(sample, pid));
    let mut separator = "\n";
    for event in names(recording, pid).into_iter().chain(spans).chain(arrows).chain(counters) {
        write!(out, "{separator}{event}")?;
        separator = ",\n";
    }
    out.write_all(b"\n]}\n")
}

/// What viewers call the process and its threads, and the order of those.
fn names(recording: &Recording, pid: u32) -> Vec<Json> {
    let named = |what: &str, tid: u32, args: Json| json!({"ph": "M", "name": what, "pid": pid, "tid": tid, "args": args});
    let mut events = vec![named("process_name", pid, json!({"name": "transload"}))];
    let mut threads: Vec<_> = recording.threads.iter().collect();
    threads.sort();
    for (tid, name) in threads {
        let order = if *tid == pid { 0 } else { *tid };
        events.push(named("thread_name", *tid, json!({"name": name})));
        events.push(named("thread_sort_index", *tid, json!({"sort_index": order})));
    }
    events
}

fn complete(span: &Span, pid: u32) -> Json {
    let args: Map<String, Json> =
        span.fields.iter().map(|(name, value)| (name.to_string(), as_json(value))).collect();
    let category = span.name.split('.').next().unwrap_or(span.name);
    json!({
        "ph": "X", "name": span.name, "cat": category, "pid": pid, "tid": span.thread,
        "ts": span.begin_us, "dur": span.duration_us(), "args": args,
    })
}

pub fn as_json(value: &Value) -> Json {
    match value {
        Value::Text(text) => json!(text),
        Value::Number(number) => json!(number),
        Value::Bool(bool) => json!(bool),
    }
}

/// The stages of each layer in order of time: read, ingest, inflate, apply, the publications.
fn flows(recording: &Recording) -> Vec<Vec<&Span>> {
    let nest = Nest::of(recording);
    let named = |name: &'static str| recording.spans.iter().filter(move |span| span.name == name);
    // A member of a stream is read on the thread of the import, not inside its layer's span.
    let reads: Vec<&Span> = named("read").filter(|read| !read.text("member").is_empty()).collect();
    let read_of = |ingest: &Span| {
        let hex = ingest.text("digest").rsplit(':').next().unwrap_or_default();
        reads.iter().copied().find(|read| !hex.is_empty() && read.text("member").contains(hex))
    };
    let flow = |ingest| flow_of(ingest, read_of(ingest), &nest);
    let layers = named("ingest").filter(|ingest| ingest.text("kind") == "layer");
    layers.map(flow).filter(|flow| flow.len() > 1).collect()
}

fn flow_of<'a>(ingest: &'a Span, read: Option<&'a Span>, nest: &Nest<'a>) -> Vec<&'a Span> {
    let stages = nest.inside(ingest.id).into_iter().filter(|stage| is_stage(stage.name));
    let mut flow: Vec<&Span> = read.into_iter().chain([ingest]).chain(stages).collect();
    flow.sort_by_key(|span| (span.begin_us, span.id));
    flow
}

fn is_stage(name: &str) -> bool {
    matches!(name, "read" | "inflate" | "hash" | "apply" | "publish")
}

/// A start, steps, and an end, each bound to the slice that encloses it.
fn arrows(id: usize, flow: &[&Span], pid: u32) -> Vec<Json> {
    let last = flow.len() - 1;
    let arrow = |(at, span): (usize, &&Span)| {
        let phase = if at == 0 {
            "s"
        } else if at == last {
            "f"
        } else {
            "t"
        };
        let mut event = json!({
            "ph": phase, "id": id + 1, "name": "layer", "cat": "flow", "pid": pid, "tid": span.thread, "ts": span.begin_us,
        });
        if at == last {
            event["bp"] = json!("e");
        }
        event
    };
    flow.iter().enumerate().map(arrow).collect()
}

fn counters(sample: &Sample, pid: u32) -> Vec<Json> {
    let counter = |name: &str, args: Json| json!({"ph": "C", "name": name, "pid": pid, "tid": pid, "ts": sample.at_us, "args": args});
    vec![
        counter("processors busy", json!({"this process": sample.cpu, "whole machine": sample.machine_cpu})),
        counter("disk, MB/s", json!({"read": sample.read_mb_s, "written": sample.write_mb_s})),
        counter("tasks that wait for disks, whole machine", json!({"tasks": sample.io_wait})),
    ]
}

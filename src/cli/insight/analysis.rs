//! What a recording means: rows of threads, the critical path through them, and what bounded the import.
//!
//! Plain computing on what was recorded; how it looks is the business of [`super::page`].

use super::recorder::{Recording, Span};
use super::sampler::Sample;
use std::collections::{BTreeMap, HashMap};

/// What a stretch of time went into.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Work {
    Plan,
    Read,
    Write,
    Inflate,
    Hash,
    Apply,
    Publish,
    Snapshot,
    Wait,
    Sync,
    Other,
}

impl Work {
    pub const ALL: [Work; 11] = [
        Work::Plan,
        Work::Read,
        Work::Write,
        Work::Inflate,
        Work::Hash,
        Work::Apply,
        Work::Publish,
        Work::Snapshot,
        Work::Wait,
        Work::Sync,
        Work::Other,
    ];

    /// The class in the page's style sheet.
    pub fn class(self) -> &'static str {
        match self {
            Work::Plan => "plan",
            Work::Read => "read",
            Work::Write => "write",
            Work::Inflate => "inflate",
            Work::Hash => "hash",
            Work::Apply => "apply",
            Work::Publish => "publish",
            Work::Snapshot => "snapshot",
            Work::Wait => "wait",
            Work::Sync => "sync",
            Work::Other => "other",
        }
    }

    /// In words.
    pub fn words(self) -> &'static str {
        match self {
            Work::Plan => "planning",
            Work::Read => "reading the archive",
            Work::Write => "hashing and writing blobs",
            Work::Inflate => "decompressing layers",
            Work::Hash => "computing DiffIDs",
            Work::Apply => "extracting files",
            Work::Publish => "putting results in place",
            Work::Snapshot => "making snapshots",
            Work::Wait => "waiting for others",
            Work::Sync => "waiting for the disk",
            Work::Other => "everything else",
        }
    }
}

/// A stretch of one row.
#[derive(Clone, Debug)]
pub struct Bar {
    pub begin_us: u64,
    pub end_us: u64,
    pub label: String,
    /// What happened in it; more than one kind where stages took turns, chunk by chunk.
    pub shares: Vec<(Work, u64)>,
    pub critical: bool,
    span: u64,
}

impl Bar {
    pub fn duration_us(&self) -> u64 {
        self.end_us - self.begin_us
    }
}

/// A thread, or several of one name one after another.
#[derive(Clone, Debug)]
pub struct Row {
    pub name: String,
    pub bars: Vec<Bar>,
}

/// All that the page shows of time.
#[derive(Clone, Debug, Default)]
pub struct Timeline {
    pub begin_us: u64,
    pub end_us: u64,
    pub rows: Vec<Row>,
    /// From beginning to end, without overlaps.
    pub critical: Vec<Bar>,
    /// The critical path by kind, largest first.
    pub bounds: Vec<(Work, u64)>,
    pub verdict: Verdict,
    pub archives: Vec<String>,
    pub trace_id: String,
}

/// In words: what bounded the import, why that is said, and what would help.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    pub bound: String,
    pub because: String,
    pub helps: String,
}

impl Timeline {
    pub fn duration_us(&self) -> u64 {
        self.end_us - self.begin_us
    }
}

/// Reads a recording.
pub fn analyse(recording: &Recording, samples: &[Sample], processors: usize) -> Timeline {
    let imports: Vec<&Span> = recording.spans.iter().filter(|span| span.name == "import").collect();
    let begin_us = imports.iter().map(|span| span.begin_us).min().unwrap_or(0);
    let end_us = imports.iter().map(|span| span.end_us).max().unwrap_or(begin_us);
    let mut timeline = Timeline {
        begin_us,
        end_us,
        rows: rows(recording),
        archives: imports.iter().map(|span| span.text("archive").to_string()).collect(),
        trace_id: imports.first().map(|span| span.text("trace_id").to_string()).unwrap_or_default(),
        ..Timeline::default()
    };
    timeline.critical = critical_path(&mut timeline.rows, begin_us, end_us);
    timeline.bounds = bounds(&timeline.critical, end_us - begin_us);
    timeline.verdict = verdict(&timeline, recording, samples, processors);
    timeline
}

/// A row for each thread. Threads of one name share a row unless they lived at the same time.
fn rows(recording: &Recording) -> Vec<Row> {
    let mut by_thread: BTreeMap<u32, Vec<Bar>> = BTreeMap::new();
    let nest = Nest::of(recording);
    for span in &recording.spans {
        if let Some(bar) = bar(span, &nest) {
            by_thread.entry(span.thread).or_default().push(bar);
        }
    }
    let mut rows: Vec<Row> = Vec::new();
    let mut threads: Vec<(String, Vec<Bar>)> = by_thread
        .into_iter()
        .map(|(tid, bars)| (recording.threads.get(&tid).cloned().unwrap_or_default(), bars))
        .collect();
    threads.sort_by_key(|(name, bars)| (order(name), name.clone(), bars[0].begin_us));
    for (name, bars) in threads {
        let free = |row: &&mut Row| {
            let last = row.bars.iter().map(|bar| bar.end_us).max().unwrap_or(0);
            row.name == name && last <= bars[0].begin_us
        };
        match rows.iter_mut().find(free) {
            Some(row) => row.bars.extend(bars),
            None => rows.push(Row { name, bars }),
        }
    }
    rows
}

fn order(name: &str) -> u8 {
    match name {
        "main" => 0,
        _ if name.starts_with("lane") => 1,
        "read" => 2,
        "inflate" => 3,
        _ => 4,
    }
}

/// Spans by number, and which are inside which.
pub struct Nest<'a> {
    pub by_id: HashMap<u64, &'a Span>,
    children: HashMap<u64, Vec<&'a Span>>,
}

impl<'a> Nest<'a> {
    pub fn of(recording: &'a Recording) -> Self {
        let mut nest = Nest { by_id: HashMap::new(), children: HashMap::new() };
        for span in &recording.spans {
            nest.by_id.insert(span.id, span);
            nest.children.entry(span.parent.unwrap_or(0)).or_default().push(span);
        }
        nest
    }

    /// Everything inside a span, at any depth.
    pub fn inside(&self, id: u64) -> Vec<&'a Span> {
        let mut found = Vec::new();
        let mut waiting = vec![id];
        while let Some(id) = waiting.pop() {
            for child in self.children.get(&id).into_iter().flatten() {
                waiting.push(child.id);
                found.push(*child);
            }
        }
        found
    }
}

/// Spans that are drawn by themselves; the others are part of one that is.
fn bar(span: &Span, nest: &Nest<'_>) -> Option<Bar> {
    let whole = |work| vec![(work, span.duration_us())];
    let (label, shares) = match span.name {
        "open" => ("open the archive".to_string(), whole(Work::Plan)),
        "plan" => ("plan".to_string(), whole(Work::Plan)),
        "lease" => ("wait for a collection".to_string(), whole(Work::Wait)),
        "wait" => {
            let (owner, key) = (span.text("owner"), span.text("key"));
            (format!("wait for another {owner}: {}", short(key)), whole(Work::Wait))
        }
        "read" => (format!("read {}", short(span.text("member"))), read_shares(span, nest)),
        "ingest" if span.text("kind") == "document" => ("write a document".to_string(), whole(Work::Write)),
        "ingest" => (format!("layer {}", short(span.text("digest"))), ingest_shares(span, nest)),
        "inflate" if own_thread(span, nest) => ("inflate".to_string(), busy(span, Work::Inflate)),
        "hash" => ("DiffID".to_string(), busy(span, Work::Hash)),
        "verify" => ("verify".to_string(), whole(Work::Read)),
        "snapshot.commit" => ("snapshot".to_string(), whole(Work::Snapshot)),
        "publish" if span.text("kind") == "images" => ("make visible".to_string(), whole(Work::Publish)),
        "sync" => ("sync".to_string(), whole(Work::Sync)),
        _ => return None,
    };
    let (begin_us, end_us) = (span.begin_us, span.end_us);
    Some(Bar { begin_us, end_us, label, shares, critical: false, span: span.id })
}

/// The beginning of the digest in a digest, a working place or the name of an archive's member; such a name's last part
/// where there is none.
fn short(text: &str) -> String {
    let parts = || text.rsplit([':', '-', '/']);
    let is_digest = |part: &&str| part.len() >= 32 && part.bytes().all(|byte| byte.is_ascii_hexdigit());
    let part = parts().find(is_digest).or_else(|| parts().next()).unwrap_or_default();
    part.chars().take(12).collect()
}

/// Whether a stage runs beside its layer's others.
fn own_thread(span: &Span, nest: &Nest<'_>) -> bool {
    let parent = span.parent.and_then(|parent| nest.by_id.get(&parent));
    parent.is_none_or(|parent| parent.thread != span.thread)
}

fn busy(span: &Span, work: Work) -> Vec<(Work, u64)> {
    let busy = span.number("busy_us").min(span.duration_us());
    vec![(work, busy), (Work::Other, span.duration_us() - busy)]
}

/// A member of a stream is read on the thread that also waits for others' work on the same.
fn read_shares(span: &Span, nest: &Nest<'_>) -> Vec<(Work, u64)> {
    let inside = nest.inside(span.id).into_iter();
    let waits = inside.filter(|one| one.name == "wait" && one.thread == span.thread);
    let waited = waits.map(Span::duration_us).sum::<u64>().min(span.duration_us());
    let blocked = span.number("blocked_us").min(span.duration_us() - waited);
    let read = span.duration_us() - waited - blocked;
    vec![(Work::Read, read), (Work::Wait, waited), (Work::Other, blocked)]
}

/// The stages of one layer on its lane's own thread.
fn ingest_shares(span: &Span, nest: &Nest<'_>) -> Vec<(Work, u64)> {
    let mut shares: BTreeMap<Work, u64> = BTreeMap::new();
    let mut put = |work: Work, us: u64| *shares.entry(work).or_default() += us;
    let stages = nest.inside(span.id);
    for stage in stages.iter().filter(|stage| stage.thread == span.thread) {
        match stage.name {
            "inflate" => {
                put(Work::Inflate, stage.number("busy_us"));
                put(Work::Hash, stage.number("hash_us"));
            }
            "apply" => put(Work::Apply, stage.number("busy_us")),
            "publish" => put(Work::Publish, stage.duration_us()),
            _ => {}
        }
    }
    if !stages.iter().any(|stage| stage.name == "read") {
        put(Work::Read, span.number("read_us"));
        put(Work::Write, span.number("write_us"));
    }
    let sum: u64 = shares.values().sum();
    shares.insert(Work::Other, span.duration_us().saturating_sub(sum));
    shares.into_iter().filter(|(_, us)| *us > 0).collect()
}

/// Walks from the end to the beginning: before each stretch comes the one that ended last before it began.
fn critical_path(rows: &mut [Row], begin_us: u64, end_us: u64) -> Vec<Bar> {
    let mut bars: Vec<&mut Bar> = rows
        .iter_mut()
        .filter(|row| row.name == "main" || row.name.starts_with("lane"))
        .flat_map(|row| row.bars.iter_mut())
        .collect();
    bars.sort_by_key(|bar| (bar.end_us, bar.begin_us));
    let mut path = Vec::new();
    let mut at = end_us;
    for bar in bars.into_iter().rev() {
        if bar.end_us <= at && bar.begin_us < bar.end_us && bar.begin_us >= begin_us {
            at = bar.begin_us;
            bar.critical = true;
            path.push(bar.clone());
        }
    }
    path.reverse();
    path
}

/// The critical path by kind; what is between its stretches is everything else.
fn bounds(critical: &[Bar], duration_us: u64) -> Vec<(Work, u64)> {
    let mut by_work: BTreeMap<Work, u64> = BTreeMap::new();
    for bar in critical {
        let sum: u64 = bar.shares.iter().map(|(_, us)| *us).sum::<u64>().max(1);
        for (work, us) in &bar.shares {
            *by_work.entry(*work).or_default() += (*us as f64 / sum as f64 * bar.duration_us() as f64) as u64;
        }
    }
    let known: u64 = by_work.values().sum();
    *by_work.entry(Work::Other).or_default() += duration_us.saturating_sub(known);
    let mut bounds: Vec<_> = by_work.into_iter().filter(|(_, us)| *us > 0).collect();
    bounds.sort_by_key(|(_, us)| std::cmp::Reverse(*us));
    bounds
}

fn verdict(timeline: &Timeline, recording: &Recording, samples: &[Sample], processors: usize) -> Verdict {
    let duration = timeline.duration_us().max(1);
    let percent = |us: u64| us * 100 / duration;
    let largest = timeline
        .critical
        .iter()
        .filter(|bar| bar.label.starts_with("layer "))
        .max_by_key(|bar| bar.duration_us());
    let lanes =
        recording.spans.iter().filter(|span| span.name == "import").map(|span| span.number("threads")).max();
    let lanes = lanes.unwrap_or(1);
    let (work, us) = slowest_stage(timeline, recording);
    let mut verdict = advice(work, recording);
    verdict.because = format!(
        "{} took {} % of the time on the critical path, the chain of work that nothing could overtake.",
        capital(work.words()),
        percent(us)
    );
    // Several layers would wait for the one stream, or for others, as long as the one does.
    let lanes_help = match work {
        Work::Read => !is_stream(recording),
        Work::Write | Work::Inflate | Work::Hash | Work::Apply => true,
        _ => false,
    };
    let is_alone = |bar: &&Bar| lanes_help && lanes > 1 && alone_us(timeline, bar) * 2 > duration;
    if let Some(layer) = largest.filter(is_alone) {
        verdict.bound = format!("one big layer; in it, {}", verdict.bound);
        verdict.because = format!(
            "{} ran for {} % of the import, most of it while no other layer was left to work on. {}",
            capital(&layer.label),
            percent(layer.duration_us()),
            verdict.because
        );
        verdict.helps = format!(
            "Split the layer into several of similar size: each gets a lane of its own. {}",
            verdict.helps
        );
    }
    if !matches!(work, Work::Wait | Work::Sync) {
        verdict.because += &crowding(samples, processors);
    }
    verdict
}

/// Whether the machine had processors left, and if not, whose work took them.
fn crowding(samples: &[Sample], processors: usize) -> String {
    let average = |of: fn(&Sample) -> f64| samples.iter().map(of).sum::<f64>() / samples.len().max(1) as f64;
    let (own, all) = (average(|sample| sample.cpu), average(|sample| sample.machine_cpu));
    match () {
        _ if all <= 0.9 * processors as f64 => String::new(),
        _ if own < 0.6 * all => format!(
            " But all {processors} processors were busy, mostly with something else, and this import had {own:.1} of them: \
             on a quiet machine it takes less time, and may be bounded by something else."
        ),
        _ => format!(" This import kept all {processors} processors busy, so more of them would help, too."),
    }
}

/// The kind that the critical path is mostly made of. Where a layer's stages ran side by side, the lane that is on the
/// path waits for the slowest of them, so that one counts.
fn slowest_stage(timeline: &Timeline, recording: &Recording) -> (Work, u64) {
    let mut bounds: BTreeMap<Work, u64> = timeline.bounds.iter().copied().collect();
    let nest = Nest::of(recording);
    for bar in timeline.critical.iter().filter(|bar| bar.label.starts_with("layer ")) {
        let stages = nest.inside(bar.span).into_iter().filter(|span| own_thread(span, &nest));
        let stages = stages.filter_map(|span| match span.name {
            "read" => Some((Work::Read, span.number("busy_us"))),
            "inflate" => Some((Work::Inflate, span.number("busy_us"))),
            "hash" => Some((Work::Hash, span.number("busy_us"))),
            _ => None,
        });
        let idle = bar.shares.iter().find(|(work, _)| *work == Work::Other).map_or(0, |(_, us)| *us);
        if let Some((work, _)) = stages.max_by_key(|(_, us)| *us) {
            *bounds.entry(work).or_default() += idle;
            let rest = bounds.entry(Work::Other).or_default();
            *rest = rest.saturating_sub(idle);
        }
    }
    bounds.into_iter().max_by_key(|(_, us)| *us).unwrap_or((Work::Other, 0))
}

/// For how long no other lane was at work while this layer was.
fn alone_us(timeline: &Timeline, layer: &Bar) -> u64 {
    let lanes = timeline.rows.iter().filter(|row| row.name.starts_with("lane")).flat_map(|row| &row.bars);
    let mut others: Vec<(u64, u64)> = lanes
        .filter(|bar| bar.span != layer.span)
        .map(|bar| (bar.begin_us.max(layer.begin_us), bar.end_us.min(layer.end_us)))
        .filter(|(begin, end)| begin < end)
        .collect();
    others.sort_unstable();
    let (mut covered, mut at) = (0, layer.begin_us);
    for (begin, end) in others {
        covered += end.saturating_sub(begin.max(at));
        at = at.max(end);
    }
    layer.duration_us() - covered
}

/// Whether it came to its end without a layer to bring or a tree to make.
fn was_all_there(recording: &Recording) -> bool {
    let is_end = |span: &Span| span.name == "publish" && span.text("kind") == "images";
    let is_work = |span: &Span| match span.name {
        "ingest" | "publish" => !span.is("existing") && span.text("kind") != "images",
        "inflate" | "apply" => true,
        _ => false,
    };
    recording.spans.iter().any(is_end) && !recording.spans.iter().any(is_work)
}

fn is_stream(recording: &Recording) -> bool {
    recording.spans.iter().any(|span| span.name == "open" && span.is("stream"))
}

fn advice(work: Work, recording: &Recording) -> Verdict {
    let (bound, helps) = match work {
        Work::Publish | Work::Sync | Work::Snapshot | Work::Plan | Work::Other
            if was_all_there(recording) =>
        {
            ("nothing: all of it was there already", "Nothing has to: these are fixed costs.")
        }
        Work::Inflate => (
            "inflate: decompressing layers",
            "One layer decompresses on one processor, so several layers of similar size use more of them. zstd is made to decompress with less work than gzip.",
        ),
        Work::Read if is_stream(recording) => (
            "archive read: the archive is one stream",
            "A pipe is as fast as its sender. An uncompressed .tar file or an OCI directory is read by all lanes at once, and what the store has is not read at all.",
        ),
        Work::Read => (
            "archive read: the disk that the archive is on",
            "Put the archive on a faster disk, or import from one that the system has cached.",
        ),
        Work::Write => (
            "hashing and writing blobs",
            "A processor with SHA instructions. If the compressed blobs are not needed, --discard-blobs does not write them.",
        ),
        Work::Hash => (
            "hash: computing DiffIDs",
            "A processor with SHA instructions. Several layers of similar size are hashed beside each other.",
        ),
        Work::Apply => (
            "extraction: making files",
            "Each file costs some system calls, however small it is: fewer files, or a local filesystem for the store.",
        ),
        Work::Publish | Work::Sync => (
            "disk: waiting until it has everything",
            "A faster disk for the store. --no-sync does not wait, at the price that a power cut may cost the import.",
        ),
        Work::Snapshot => (
            "making snapshots",
            "A plain store copies what is below each layer, an overlay store does not (--snapshotter overlay when it is made). Where it is one already, a faster disk for the store.",
        ),
        Work::Wait => (
            "lock: waiting for another import or a collection",
            "Nothing was done twice: somebody else was writing the same. Import once and reuse, or run 'gc' at another time.",
        ),
        Work::Plan | Work::Other => {
            ("nothing in particular: fixed costs", "The import is short; there is little to win.")
        }
    };
    Verdict { bound: bound.to_string(), because: String::new(), helps: helps.to_string() }
}

/// With a capital first letter.
pub fn capital(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map(|first| first.to_uppercase().chain(letters).collect()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::super::recorder::Value;
    use super::*;

    fn span(id: u64, parent: u64, name: &'static str, thread: u32, (begin_us, end_us): (u64, u64)) -> Span {
        Span {
            id,
            parent: Some(parent).filter(|id| *id > 0),
            name,
            thread,
            begin_us,
            end_us,
            fields: Vec::new(),
        }
    }

    fn with(mut span: Span, fields: &[(&'static str, i64)]) -> Span {
        span.fields.extend(fields.iter().map(|(name, value)| (*name, Value::Number(*value))));
        span
    }

    fn layer(id: u64, thread: u32, time: (u64, u64), inflate: i64) -> [Span; 2] {
        let mut ingest = span(id, 1, "ingest", thread, time);
        ingest.fields.push(("digest", Value::Text(format!("sha256:{id:064}"))));
        [ingest, with(span(id + 100, id, "inflate", thread, time), &[("busy_us", inflate)])]
    }

    fn recording(mut spans: Vec<Span>) -> Recording {
        spans[0].fields.push(("threads", Value::Number(2)));
        let threads = [(1, "main"), (2, "lane 0"), (3, "lane 1")];
        let threads = threads.into_iter().map(|(tid, name)| (tid, name.to_string())).collect();
        Recording { spans, threads, ..Recording::default() }
    }

    #[test]
    fn the_critical_path_goes_through_the_lane_that_ended_last() {
        let mut spans = vec![span(1, 0, "import", 1, (0, 1000)), span(2, 1, "plan", 1, (0, 100))];
        spans.extend(layer(3, 2, (100, 500), 390));
        spans.extend(layer(4, 3, (100, 450), 340));
        spans.extend(layer(5, 2, (500, 880), 370));
        spans.push(span(6, 1, "sync", 1, (900, 990)));
        let timeline = analyse(&recording(spans), &[], 2);
        let times: Vec<_> = timeline.critical.iter().map(|bar| (bar.begin_us, bar.end_us)).collect();
        assert_eq!(times, [(0, 100), (100, 500), (500, 880), (900, 990)]);
        assert_eq!(timeline.rows.len(), 3);
        assert_eq!(timeline.bounds.iter().map(|(_, us)| us).sum::<u64>(), 1000);
        assert!(timeline.verdict.bound.starts_with("inflate"), "{:?}", timeline.verdict);
    }

    #[test]
    fn a_layer_that_is_alone_most_of_the_time_is_named() {
        let mut spans = vec![span(1, 0, "import", 1, (0, 1000))];
        spans.extend(layer(3, 2, (10, 980), 900));
        spans.extend(layer(4, 3, (10, 200), 150));
        let timeline = analyse(&recording(spans), &[], 2);
        assert!(timeline.verdict.bound.starts_with("one big layer"), "{:?}", timeline.verdict);
        assert!(timeline.verdict.helps.starts_with("Split"), "{:?}", timeline.verdict);
    }

    #[test]
    fn a_stream_is_not_read_sooner_by_more_layers() {
        let mut open = span(2, 1, "open", 1, (0, 10));
        open.fields.push(("stream", Value::Bool(true)));
        let [mut ingest, inflate] = layer(3, 2, (10, 980), 20);
        ingest.fields.push(("read_us", Value::Number(900)));
        let mut spans = vec![span(1, 0, "import", 1, (0, 1000)), open, ingest, inflate];
        spans.extend(layer(4, 3, (10, 200), 150));
        let verdict = analyse(&recording(spans.clone()), &[], 2).verdict;
        assert!(verdict.bound.starts_with("archive read: the archive is one stream"), "{verdict:?}");
        spans[1].fields.clear();
        let verdict = analyse(&recording(spans), &[], 2).verdict;
        assert!(verdict.bound.starts_with("one big layer; in it, archive read"), "{verdict:?}");
    }

    #[test]
    fn an_image_of_one_layer_has_one_big_layer() {
        let mut spans = vec![span(1, 0, "import", 1, (0, 1000))];
        spans.extend(layer(3, 2, (10, 980), 900));
        let verdict = analyse(&recording(spans.clone()), &[], 2).verdict;
        assert!(verdict.bound.starts_with("one big layer; in it, inflate"), "{verdict:?}");
        let mut one_lane = recording(spans);
        one_lane.spans[0].fields.clear();
        assert!(
            analyse(&one_lane, &[], 2).verdict.bound.starts_with("inflate"),
            "more layers would not help"
        );
    }

    #[test]
    fn a_busy_machine_is_told_from_a_busy_import() {
        let told = |cpu, machine_cpu| crowding(&[Sample { cpu, machine_cpu, ..Sample::default() }], 2);
        assert!(told(0.3, 1.95).contains("something else") && told(0.3, 1.95).contains("0.3 of them"));
        assert!(told(1.8, 1.95).contains("more of them would help"));
        assert_eq!(told(0.9, 1.0), "");
    }

    #[test]
    fn what_was_all_there_was_bounded_by_nothing() {
        let mut publish = span(2, 1, "publish", 1, (10, 900));
        publish.fields.push(("kind", Value::Text("images".to_string())));
        let mut spans = vec![span(1, 0, "import", 1, (0, 1000)), publish];
        let bound = |spans: &[Span]| analyse(&recording(spans.to_vec()), &[], 2).verdict.bound;
        assert_eq!(bound(&spans), "nothing: all of it was there already");
        spans.push(span(3, 1, "apply", 1, (1, 9)));
        assert!(bound(&spans).starts_with("disk"), "a tree was made");
        spans.truncate(1);
        assert!(bound(&spans).starts_with("nothing in particular"), "it did not come to its end");
    }

    #[test]
    fn waiting_and_syncing_are_told_apart() {
        for (name, expected) in
            [("wait", "lock"), ("sync", "disk"), ("lease", "lock"), ("snapshot.commit", "making")]
        {
            let spans = vec![span(1, 0, "import", 1, (0, 1000)), span(2, 1, name, 1, (10, 900))];
            let verdict = analyse(&recording(spans), &[], 2).verdict;
            assert!(verdict.bound.starts_with(expected), "{name}: {verdict:?}");
        }
        assert_eq!(analyse(&Recording::default(), &[], 2).duration_us(), 0);
    }
}

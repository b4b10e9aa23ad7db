//! Collects the spans of a run: a subscriber layer that keeps each closed span, who opened it and from when to when.
//!
//! One short lock at the beginning and at the end of a span; no more than [`MAX_SPANS`] are kept, the rest is counted.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Instant, SystemTime, UNIX_EPOCH};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing_subscriber::layer::Context;
use tracing_subscriber::registry::LookupSpan;

/// So that a recording cannot take all memory, whatever is imported. A guess, some ten spans for each layer being usual.
const MAX_SPANS: usize = 400_000;

/// What a field holds.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    Text(String),
    Number(i64),
    Bool(bool),
}

impl Value {
    pub fn number(&self) -> Option<u64> {
        match self {
            Value::Number(number) => u64::try_from(*number).ok(),
            _ => None,
        }
    }
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Value::Text(text) => f.write_str(text),
            Value::Number(number) => number.fmt(f),
            Value::Bool(bool) => bool.fmt(f),
        }
    }
}

/// One span that has ended. Times are microseconds since the recording began.
#[derive(Clone, Debug)]
pub struct Span {
    pub id: u64,
    pub parent: Option<u64>,
    pub name: &'static str,
    pub thread: u32,
    pub begin_us: u64,
    pub end_us: u64,
    pub fields: Vec<(&'static str, Value)>,
}

impl Span {
    pub fn field(&self, name: &str) -> Option<&Value> {
        self.fields.iter().find(|(own, _)| *own == name).map(|(_, value)| value)
    }

    pub fn number(&self, name: &str) -> u64 {
        self.field(name).and_then(Value::number).unwrap_or(0)
    }

    pub fn text(&self, name: &str) -> &str {
        match self.field(name) {
            Some(Value::Text(text)) => text,
            _ => "",
        }
    }

    pub fn is(&self, name: &str) -> bool {
        matches!(self.field(name), Some(Value::Bool(true)))
    }

    pub fn duration_us(&self) -> u64 {
        self.end_us - self.begin_us
    }
}

/// Everything that was recorded, oldest first.
#[derive(Clone, Debug, Default)]
pub struct Recording {
    pub spans: Vec<Span>,
    /// Names of threads by number, as far as they have any.
    pub threads: HashMap<u32, String>,
    /// Spans that were too many.
    pub dropped: u64,
    /// When it began, in microseconds since 1970.
    pub began_unix_us: u64,
}

/// The layer. Clones record into the same place.
#[derive(Clone)]
pub struct Recorder {
    began: Instant,
    inner: Arc<Mutex<Inner>>,
}

#[derive(Default)]
struct Inner {
    next: u64,
    /// By the subscriber's number, which it uses again after a span has closed.
    open: HashMap<u64, Span>,
    done: Recording,
}

impl Recorder {
    pub fn new() -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let done = Recording { began_unix_us: since.as_micros() as u64, ..Recording::default() };
        Recorder {
            began: Instant::now(),
            inner: Arc::new(Mutex::new(Inner { next: 1, done, ..Inner::default() })),
        }
    }

    pub fn now_us(&self) -> u64 {
        self.began.elapsed().as_micros() as u64
    }

    /// Takes out what has been recorded so far; spans that are still open end now.
    pub fn take(&self) -> Recording {
        let now = self.now_us();
        let mut inner = self.lock();
        let mut recording = std::mem::take(&mut inner.done);
        recording.spans.extend(inner.open.drain().map(|(_, open)| Span { end_us: now, ..open }));
        recording.spans.sort_by_key(|span| (span.begin_us, span.id));
        recording
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl<S: tracing::Subscriber + for<'a> LookupSpan<'a>> tracing_subscriber::Layer<S> for Recorder {
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let metadata = attributes.metadata();
        if metadata.target() != "transload" {
            return;
        }
        let parent = context.span(id).and_then(|span| span.parent()).map(|parent| parent.id().into_u64());
        let mut fields = Vec::with_capacity(metadata.fields().len());
        attributes.record(&mut Fields(&mut fields));
        let thread = rustix::thread::gettid().as_raw_nonzero().get() as u32;
        let mut inner = self.lock();
        if inner.done.spans.len() + inner.open.len() >= MAX_SPANS {
            inner.done.dropped += 1;
            return;
        }
        let named = || std::thread::current().name().unwrap_or("thread").to_string();
        inner.done.threads.entry(thread).or_insert_with(named);
        let number = inner.next;
        inner.next += 1;
        let parent = parent.and_then(|parent| inner.open.get(&parent)).map(|parent| parent.id);
        let now = self.now_us();
        let name = metadata.name();
        let span = Span { id: number, parent, name, thread, begin_us: now, end_us: now, fields };
        inner.open.insert(id.into_u64(), span);
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, _: Context<'_, S>) {
        if let Some(span) = self.lock().open.get_mut(&id.into_u64()) {
            values.record(&mut Fields(&mut span.fields));
        }
    }

    fn on_close(&self, id: Id, _: Context<'_, S>) {
        let now = self.now_us();
        let mut inner = self.lock();
        if let Some(span) = inner.open.remove(&id.into_u64()) {
            inner.done.spans.push(Span { end_us: now, ..span });
        }
    }
}

struct Fields<'a>(&'a mut Vec<(&'static str, Value)>);

impl Fields<'_> {
    fn put(&mut self, field: &Field, value: Value) {
        match self.0.iter_mut().find(|(name, _)| *name == field.name()) {
            Some((_, old)) => *old = value,
            None => self.0.push((field.name(), value)),
        }
    }
}

impl Visit for Fields<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.put(field, Value::Text(format!("{value:?}")));
    }
    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field, Value::Text(value.to_string()));
    }
    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field, Value::Number(i64::try_from(value).unwrap_or(i64::MAX)));
    }
    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field, Value::Number(value));
    }
    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field, Value::Bool(value));
    }
}

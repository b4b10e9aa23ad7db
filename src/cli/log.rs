//! Logs: lines for people or for machines on stderr, and the audit log in a file.
//!
//! A machine's line is one JSON object: when, how important, which trace, process, store and import, what. The audit log
//! has the same lines, only those that an audit needs; docs/observability.md documents both. Each line is written by one
//! call to a file open for appending, so that several processes may share one.

use super::args::{Global, LogFormat};
use super::output::json_lines;
use super::size::rfc3339;
use serde_json::{Map, Value, json};
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};
use transload::progress::{Event, Progress};
use transload::transfer::audited;
use transload::{Engine, Error, Result, ResultExt, TraceId};

/// How important a line is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    Error,
    Warn,
    Info,
    Debug,
}

impl Level {
    fn name(self) -> &'static str {
        match self {
            Level::Error => "error",
            Level::Warn => "warn",
            Level::Info => "info",
            Level::Debug => "debug",
        }
    }

    /// What `-q` and `-v` let through.
    fn shown(quiet: bool, verbose: u8) -> Level {
        match verbose {
            _ if quiet => Level::Error,
            0 => Level::Warn,
            1 => Level::Info,
            _ => Level::Debug,
        }
    }
}

/// Where the lines of this command go.
pub struct Log {
    trace_id: TraceId,
    process: String,
    /// The least important level on stderr, `None` where stderr is for people.
    machine: Option<Level>,
    audit: Option<Arc<File>>,
}

impl Log {
    /// Opens the audit log, if there is to be one.
    pub fn open(global: &Global, trace_id: TraceId) -> Result<Self> {
        let level = Level::shown(global.quiet, global.verbose);
        let machine = (global.log_format == LogFormat::Json).then_some(level);
        let audit = global.audit_log.as_deref().map(append_to).transpose()?.map(Arc::new);
        // A number that counts from one in each container is no name for a process.
        let process = format!("{}-{}", std::process::id(), &trace_id.to_string()[..8]);
        Ok(Log { trace_id, process, machine, audit })
    }

    /// What joins everything that this command says.
    pub fn trace_id(&self) -> TraceId {
        self.trace_id
    }

    /// Whether stderr is for machines.
    pub fn is_machine(&self) -> bool {
        self.machine.is_some()
    }

    /// A line that is no event of the library, for machines.
    pub fn line(&self, level: Level, event: &str, fields: Value) {
        self.stderr(level, || self.envelope(level, event, fields));
    }

    /// How a command failed.
    pub fn error(&self, error: &Error) {
        let mut fields = json!({
            "kind": error.kind().name(),
            "message": error.to_string(),
            "hint": super::exit::hint(error),
        });
        if !error.holders().is_empty() {
            fields["holders"] = json!(error.holders());
        }
        if !error.images_removed().is_empty() {
            fields["images_removed"] = json!(error.images_removed());
        }
        self.line(Level::Error, "error", fields);
    }

    /// What happens outside of imports, for machines.
    pub fn event(&self, event: &Event) {
        if let (Some(level), Some(fields)) = (level(event), json_lines::value(event)) {
            let name = fields["event"].as_str().unwrap_or_default().to_string();
            self.line(level, &name, fields);
        }
    }

    /// A collection on this store, which an audit has to know of.
    pub fn collection(&self, engine: &Engine, event: &str) {
        let value = self.envelope(Level::Info, event, json!({ "store": store_id(engine) }));
        self.stderr(Level::Info, || value.clone());
        self.audit(&value);
    }

    /// A listener to import number `import` of this command.
    pub fn listener(self: &Arc<Self>, engine: &Engine, import: usize, next: Box<dyn Progress>) -> Listener {
        let import = format!("{}/{import}", self.trace_id);
        Listener { log: self.clone(), store: store_id(engine), import, next }
    }

    fn envelope(&self, level: Level, event: &str, fields: Value) -> Value {
        let mut line = Map::new();
        line.insert("time".into(), now().into());
        line.insert("level".into(), level.name().into());
        line.insert("trace_id".into(), self.trace_id.to_string().into());
        line.insert("process".into(), self.process.clone().into());
        line.insert("event".into(), event.into());
        if let Value::Object(fields) = fields {
            line.extend(fields.into_iter().filter(|(name, _)| name != "event"));
        }
        Value::Object(line)
    }

    fn stderr(&self, level: Level, line: impl FnOnce() -> Value) {
        if self.machine.is_some_and(|shown| level <= shown) {
            // Where stderr is gone there is nobody to tell.
            let _ = std::io::stderr().lock().write_all(format!("{}\n", line()).as_bytes());
        }
    }

    /// A full disk stops no import; the log then ends early, and `audit` says that the import never ended.
    fn audit(&self, line: &Value) {
        if let Some(file) = &self.audit {
            let _ = (&**file).write_all(format!("{line}\n").as_bytes());
        }
    }
}

fn append_to(path: &Path) -> Result<File> {
    let opened = File::options().append(true).create(true).open(path);
    opened.doing(|| format!("cannot open the audit log {}", path.display()))
}

/// The same store has the same name in every process of a machine, wherever it is mounted.
fn store_id(engine: &Engine) -> String {
    match std::fs::metadata(engine.store().path()) {
        Ok(root) => format!("{:x}:{:x}", root.dev(), root.ino()),
        Err(_) => engine.store().path().display().to_string(),
    }
}

/// Microseconds, so that lines of several processes can be put in order.
fn now() -> String {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let seconds = rfc3339(since.as_millis() as u64);
    format!("{}.{:06}Z", seconds.trim_end_matches('Z'), since.subsec_micros())
}

/// Listens to one import, and hands on to what draws its progress.
pub struct Listener {
    log: Arc<Log>,
    store: String,
    import: String,
    next: Box<dyn Progress>,
}

impl Listener {
    fn line(&self, level: Level, event: &Event) -> Option<Value> {
        let fields = json_lines::value(event)?;
        let name = fields["event"].as_str().unwrap_or_default().to_string();
        let mut line = self.log.envelope(level, &name, fields);
        line["store"] = self.store.clone().into();
        line["import"] = self.import.clone().into();
        Some(line)
    }
}

impl Progress for Listener {
    fn event(&self, event: &Event) {
        self.next.event(event);
        let shown = self.log.machine.is_some_and(|shown| level(event) <= Some(shown));
        let audited = self.log.audit.is_some() && audited(event).is_some();
        let Some(level) = level(event).filter(|_| shown || audited) else { return };
        let Some(line) = self.line(level, event) else { return };
        if audited {
            self.log.audit(&line);
        }
        if shown {
            self.log.stderr(level, || line);
        }
    }
}

/// `None` for what happens with every chunk.
fn level(event: &Event) -> Option<Level> {
    match event {
        Event::BlobAdvanced { .. } | Event::StreamAdvanced { .. } => None,
        Event::ImportFailed(_) | Event::Overtaken { .. } => Some(Level::Warn),
        Event::ImportStarted { .. } | Event::ImportFinished | Event::Notice(_) => Some(Level::Info),
        _ => Some(Level::Debug),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verbosity_decides_what_machines_see() {
        assert!(Level::Warn <= Level::shown(false, 0) && Level::Info > Level::shown(false, 0));
        assert!(Level::Info <= Level::shown(false, 1) && Level::Debug <= Level::shown(false, 2));
        assert!(Level::Warn > Level::shown(true, 0));
        assert_eq!(level(&Event::StreamAdvanced { bytes: 1 }), None);
    }

    #[test]
    fn times_sort_as_text() {
        let (a, b) = (now(), now());
        assert!(a <= b && a.len() == "2026-11-21T13:27:05.123456Z".len(), "{a}");
    }
}

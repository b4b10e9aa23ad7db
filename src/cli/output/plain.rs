//! Progress for logs: nothing while all is well but what `-v` asks for. The one line per image is the result itself.

use super::printable;
use crate::cli::size::format_size;
use std::io::Write;
use transload::progress::{Event, Outcome, Progress};

/// Writes lines to stderr.
pub struct Plain {
    verbose: u8,
    quiet: bool,
}

impl Plain {
    pub fn new(verbose: u8, quiet: bool) -> Self {
        Plain { verbose, quiet }
    }
}

impl Progress for Plain {
    fn event(&self, event: &Event) {
        if self.quiet {
            return;
        }
        if let Some(line) = line(event, self.verbose) {
            let _ = std::io::stderr().lock().write_all(format!("{}\n", printable(&line)).as_bytes());
        }
    }
}

/// What an event is worth at a verbosity. Bars use it, too, for the lines above them.
pub fn line(event: &Event, verbose: u8) -> Option<String> {
    match event {
        Event::Notice(text) if verbose >= 1 => Some(format!("notice: {text}")),
        Event::ImportStarted { archive, size_bytes, trace_id } if verbose >= 1 => {
            let size = size_bytes.map(|size| format!(" ({})", format_size(size))).unwrap_or_default();
            Some(format!("importing {archive}{size}, trace {trace_id}"))
        }
        event if verbose >= 2 => detail(event),
        _ => None,
    }
}

/// What `-vv` adds.
fn detail(event: &Event) -> Option<String> {
    Some(match event {
        Event::BlobClaimed(digest) => format!("{}: writing it is ours", short_key(&digest.to_string())),
        Event::TreeClaimed(diff_id) => {
            format!("{}: extracting it is ours", short_key(&diff_id.to_string()))
        }
        Event::TreeExtracted { diff_id, bytes } => {
            format!("{}: extracted, {}", short_key(&diff_id.to_string()), format_size(*bytes))
        }
        Event::SnapshotCommitted(chain_id) => format!("{}: snapshot made", short_key(&chain_id.to_string())),
        Event::BlobFinished { key, outcome } => format!("{}: {}", short_key(key), outcome_name(*outcome)),
        Event::Waited { key, duration } => {
            format!("{}: waited {} ms for another import", short_key(key), duration.as_millis())
        }
        Event::Overtaken { key } => format!("{}: the other import stalled and is overtaken", short_key(key)),
        _ => return None,
    })
}

/// Twelve digits of a digest, or the end of a member's name.
pub fn short_key(key: &str) -> String {
    match key.split_once(':') {
        Some((_, hex)) if hex.len() >= 12 && hex.is_ascii() => hex[..12].to_string(),
        _ => {
            let skip = key.chars().count().saturating_sub(25);
            printable(&key.chars().skip(skip).collect::<String>()).into_owned()
        }
    }
}

/// How a blob came to be there, for people.
pub fn outcome_name(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::New => "done",
        Outcome::Existing => "already present",
        Outcome::Shared => "done by another import",
        Outcome::None => "skipped",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_asked_for_is_said() {
        let notice = Event::Notice("a device was left out".to_string());
        assert_eq!(line(&notice, 0), None);
        assert_eq!(line(&notice, 1).as_deref(), Some("notice: a device was left out"));
        assert_eq!(short_key("sha256:0123456789abcdef"), "0123456789ab");
        assert_eq!(short_key("a-very-long-directory-name/layer.tar"), "-directory-name/layer.tar");
    }
}

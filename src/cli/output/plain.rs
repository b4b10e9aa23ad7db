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
        Event::ImportStarted { archive, size_bytes: Some(size), .. } if verbose >= 1 => {
            Some(format!("importing {archive} ({})", format_size(*size)))
        }
        Event::ImportStarted { archive, size_bytes: None, .. } if verbose >= 1 => {
            Some(format!("importing {archive}"))
        }
        Event::BlobFinished { key, outcome } if verbose >= 2 => {
            Some(format!("{}: {}", short_key(key), outcome_name(*outcome)))
        }
        Event::Waited { key, duration } if verbose >= 2 => {
            Some(format!("{}: waited {} ms for another import", short_key(key), duration.as_millis()))
        }
        _ => None,
    }
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

//! How a run ends: the exit code by kind, one sentence on stderr, one object on stdout where JSON was asked for.

use super::output::{Style, json, printable};
use serde::Serialize;
use std::io::Write;
use transload::{Error, ErrorKind, Holder, TraceId};

/// Wrong usage.
pub const USAGE: u8 = 2;

/// The exit code for a failure, as docs/cli.md lists them.
pub fn code(kind: ErrorKind) -> u8 {
    match kind {
        ErrorKind::InvalidArgument => USAGE,
        ErrorKind::NotFound => 4,
        ErrorKind::Busy => 5,
        ErrorKind::Cancelled => 130,
        kind if kind.is_input() => 3,
        _ => 1,
    }
}

#[derive(Serialize)]
struct ErrorBody<'a> {
    kind: &'a str,
    message: &'a str,
    hint: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    trace_id: Option<TraceId>,
    /// Who holds what is busy; left out where nobody is known to.
    #[serde(skip_serializing_if = "<[Holder]>::is_empty")]
    holders: &'a [Holder],
    /// What a collection had removed by then; left out where that is nothing.
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    images_removed: &'a [String],
}

#[derive(Serialize)]
struct ErrorView<'a> {
    error: &'a ErrorBody<'a>,
}

/// Tells about a failure and gives the exit code. Nothing is checked here: where stderr is gone there is nobody to tell.
pub fn report(error: &Error, as_json: bool, style: &Style) -> u8 {
    let message = error.to_string();
    print(&body(error, &message), as_json, style);
    code(error.kind())
}

/// The same where a log line has told people and machines already.
pub fn report_on_stdout(error: &Error, as_json: bool) -> u8 {
    if as_json {
        let message = error.to_string();
        let _ = json::print(&ErrorView { error: &body(error, &message) });
    }
    code(error.kind())
}

fn body<'a>(error: &'a Error, message: &'a str) -> ErrorBody<'a> {
    ErrorBody {
        kind: error.kind().name(),
        message,
        hint: hint(error),
        trace_id: error.trace_id(),
        holders: error.holders(),
        images_removed: error.images_removed(),
    }
}

/// The same for a failure that is not the library's, such as wrong usage.
pub fn report_parts(kind: &str, message: &str, hint: Option<&str>, as_json: bool, style: &Style) {
    let body = ErrorBody { kind, message, hint, trace_id: None, holders: &[], images_removed: &[] };
    print(&body, as_json, style);
}

fn print(body: &ErrorBody<'_>, as_json: bool, style: &Style) {
    let mut stderr = std::io::stderr().lock();
    let _ = writeln!(stderr, "{} {}", style.error("error:"), printable(body.message));
    for holder in body.holders {
        let _ = writeln!(stderr, "  {}", printable(&holder.to_string()));
    }
    for image in body.images_removed {
        let _ = writeln!(stderr, "  removed {}", printable(image));
    }
    if let Some(hint) = body.hint {
        let _ = writeln!(stderr, "{} {}", style.hint("hint:"), printable(hint));
    }
    if as_json {
        let _ = json::print(&ErrorView { error: body });
    }
}

/// What can be done about a failure, if anything.
pub fn hint(error: &Error) -> Option<&str> {
    error.hint().or_else(|| general_hint(error.kind()))
}

/// What can be done where the library, which does not know of options and commands, could not say.
fn general_hint(kind: ErrorKind) -> Option<&'static str> {
    match kind {
        ErrorKind::NoSpace => Some("free some space ('transload gc' may help), or choose another --store"),
        ErrorKind::ReadOnly => Some("choose a --store on a filesystem that can be written"),
        ErrorKind::Permission => Some("run as root, or choose a --store that you own"),
        ErrorKind::LimitExceeded => {
            Some("if you trust the archive, raise the limit (transload import --help)")
        }
        ErrorKind::Truncated => Some("the archive is incomplete: fetch or save it again"),
        ErrorKind::NewerFormat => Some("use the release that wrote the store, or a newer one"),
        ErrorKind::NoPlatform => Some("choose one with --platform, or take all with --all-platforms"),
        ErrorKind::Busy => Some("another process is at work there: try again when it is done"),
        ErrorKind::Internal => Some("this is a bug in transload: please report it"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes_are_as_documented() {
        use ErrorKind::*;
        let table = [
            (Io, 1),
            (NoSpace, 1),
            (Permission, 1),
            (Corrupt, 1),
            (FailedPrecondition, 1),
            (InvalidArgument, 2),
            (Truncated, 3),
            (DigestMismatch, 3),
            (NotAnImage, 3),
            (LimitExceeded, 3),
            (NoPlatform, 3),
            (MissingContent, 3),
            (NotFound, 4),
            (Busy, 5),
            (Cancelled, 130),
        ];
        for (kind, expected) in table {
            assert_eq!(code(kind), expected, "{kind:?}");
        }
    }
}

//! How results and progress look. Results go to stdout, everything else to stderr.
//!
//! Text from images (file names, labels, commands) passes through [`printable`] on its way to a terminal: an escape
//! sequence in an image must not reach it.

pub mod bars;
pub mod human;
pub mod json;
pub mod json_lines;
pub mod plain;
pub mod table;
pub mod tree;

use super::args::{ColorMode, Global, LogFormat, ProgressMode};
use std::borrow::Cow;
use std::fmt::Write as _;
use std::io::{self, IsTerminal, Write};
use transload::progress::{Progress, Silent};

/// Colours for one stream, or none.
#[derive(Clone, Copy, Debug)]
pub struct Style {
    colored: bool,
}

impl Style {
    /// For a stream that is (or is not) a terminal.
    pub fn new(mode: ColorMode, terminal: bool) -> Self {
        let wanted = || {
            let set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
            terminal && !set("NO_COLOR") && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
        };
        let colored = match mode {
            ColorMode::Always => true,
            ColorMode::Never => false,
            ColorMode::Auto => wanted(),
        };
        Style { colored }
    }

    pub fn for_stdout(mode: ColorMode) -> Self {
        Style::new(mode, io::stdout().is_terminal())
    }

    pub fn for_stderr(mode: ColorMode) -> Self {
        Style::new(mode, io::stderr().is_terminal())
    }

    fn paint<'a>(&self, code: &str, text: &'a str) -> Cow<'a, str> {
        match self.colored {
            true => Cow::Owned(format!("\x1b[{code}m{text}\x1b[0m")),
            false => Cow::Borrowed(text),
        }
    }

    pub fn error<'a>(&self, text: &'a str) -> Cow<'a, str> {
        self.paint("1;31", text)
    }

    pub fn hint<'a>(&self, text: &'a str) -> Cow<'a, str> {
        self.paint("1;36", text)
    }

    pub fn heading<'a>(&self, text: &'a str) -> Cow<'a, str> {
        self.paint("1", text)
    }

    pub fn directory<'a>(&self, text: &'a str) -> Cow<'a, str> {
        self.paint("1;34", text)
    }

    pub fn dim<'a>(&self, text: &'a str) -> Cow<'a, str> {
        self.paint("2", text)
    }
}

/// Text that moves no cursor: control characters are written as `\x1b` or `\u{202e}`.
pub fn printable(text: &str) -> Cow<'_, str> {
    // Bidirectional overrides reorder what follows them on the screen.
    let hidden = |c: char| c.is_control() || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    let plain = text.bytes().all(|byte| (b' '..=b'~').contains(&byte));
    if plain || !text.chars().any(hidden) {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        let result = match c {
            '\n' => write!(shown, "\\n"),
            '\t' => write!(shown, "\\t"),
            c if hidden(c) && (c as u32) < 0x100 => write!(shown, "\\x{:02x}", c as u32),
            c if hidden(c) => write!(shown, "\\u{{{:x}}}", c as u32),
            c => write!(shown, "{c}"),
        };
        result.expect("a String takes everything");
    }
    Cow::Owned(shown)
}

/// The same for a file name, which is bytes: what is not UTF-8 is written as `\xff`.
pub fn printable_bytes(bytes: &[u8]) -> String {
    let mut shown = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        shown.push_str(&printable(chunk.valid()));
        for byte in chunk.invalid() {
            write!(shown, "\\x{byte:02x}").expect("a String takes everything");
        }
    }
    shown
}

/// Writes a result to stdout in one go, so that a closed pipe shows up here and as nothing but an [`io::Error`].
pub fn print(text: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes())?;
    stdout.flush()
}

/// Something worth a line that is not a result.
pub fn note(global: &Global, text: &str) {
    if !global.quiet {
        let _ = writeln!(io::stderr().lock(), "{}", printable(text));
    }
}

/// The listener that was asked for.
pub fn progress(global: &Global) -> Box<dyn Progress> {
    let terminal = io::stderr().is_terminal() && std::env::var_os("TERM").is_none_or(|term| term != "dumb");
    match global.progress {
        ProgressMode::Auto if global.quiet || global.log_format == LogFormat::Json => Box::new(Silent),
        ProgressMode::Auto if terminal => Box::new(bars::Bars::on_stderr(global.verbose)),
        ProgressMode::Auto | ProgressMode::Plain => Box::new(plain::Plain::new(global.verbose, global.quiet)),
        // Bars on something that is no terminal would be a file full of escape sequences.
        ProgressMode::Bars if !terminal => Box::new(plain::Plain::new(global.verbose, global.quiet)),
        ProgressMode::Bars => Box::new(bars::Bars::on_stderr(global.verbose)),
        ProgressMode::Json => Box::new(json_lines::JsonLines),
        ProgressMode::None => Box::new(Silent),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_from_an_image_steers_the_terminal() {
        assert_eq!(printable("plain ü"), "plain ü");
        assert_eq!(printable("\x1b[2Jx\ny\u{202e}\u{9b}"), "\\x1b[2Jx\\ny\\u{202e}\\x9b");
        assert_eq!(printable_bytes(b"a\xff\x07b"), "a\\xff\\x07b");
    }

    #[test]
    fn colours_are_used_only_where_they_were_asked_for() {
        assert_eq!(Style::new(ColorMode::Always, false).error("x"), "\x1b[1;31mx\x1b[0m");
        assert_eq!(Style::new(ColorMode::Never, true).error("x"), "x");
        assert_eq!(Style::new(ColorMode::Auto, false).error("x"), "x");
    }
}

//! The face on the terminal: words in, an [`Engine`](transload::engine::Engine) at work, text or JSON out.
//!
//! This is the only place that reads the environment, knows of terminals and signals, and prints. What a command does
//! is in [`commands`]; how its result looks is in [`output`].

mod args;
mod audit;
mod collect;
mod commands;
mod doctor;
mod exit;
#[cfg(feature = "failpoints")]
mod faults;
mod files;
mod fsck;
mod holds;
mod images;
mod inside;
mod insight;
mod log;
mod metrics_file;
mod mounts;
mod output;
mod prewarm;
mod privilege;
mod signals;
mod size;
mod stats;
mod store;
mod stream;
mod views;

use args::{Cli, ColorMode, RESERVED};
use clap::error::{ContextKind, ContextValue, ErrorKind as ClapKind};
use clap::{CommandFactory, FromArgMatches};
use output::Style;
use std::ffi::OsString;
use std::io;
use std::process::ExitCode;
use transload::Error;

/// Why a command ended early.
pub enum Failure {
    /// Something went wrong, and a sentence says what.
    Error(Error),
    /// Something went wrong, and a log line has said so on stderr.
    Logged(Error),
    /// The result could not be printed.
    Stdout(io::Error),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Failure::Error(error)
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Failure::Stdout(error)
    }
}

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    let words: Vec<OsString> = std::env::args_os().collect();
    let before_parsing = BeforeParsing::of(&words);
    #[cfg(feature = "failpoints")]
    if let Err(error) = faults::from_environment() {
        return ExitCode::from(exit::report(
            &error,
            before_parsing.json,
            &Style::for_stderr(before_parsing.color),
        ));
    }
    let code = dispatch(words, &before_parsing);
    #[cfg(feature = "failpoints")]
    faults::report();
    ExitCode::from(code)
}

fn dispatch(words: Vec<OsString>, before_parsing: &BeforeParsing) -> u8 {
    match parse(words, before_parsing.color) {
        Ok(cli) => run(cli),
        Err(error) => usage(error, before_parsing),
    }
}

fn run(cli: Cli) -> u8 {
    let (as_json, style) = (cli.global.json, Style::for_stderr(cli.global.color));
    signals::explain_bus_errors(as_json);
    match commands::run(cli) {
        Ok(code) => code,
        Err(Failure::Error(error)) => exit::report(&error, as_json, &style),
        Err(Failure::Logged(error)) => exit::report_on_stdout(&error, as_json),
        // Whoever read our output has seen enough.
        Err(Failure::Stdout(error)) if error.kind() == io::ErrorKind::BrokenPipe => 0,
        Err(Failure::Stdout(error)) => {
            exit::report(&Error::from(error).context("cannot write to stdout"), false, &style)
        }
    }
}

/// What must be known to report an error in the command line itself.
struct BeforeParsing {
    json: bool,
    color: ColorMode,
}

impl BeforeParsing {
    fn of(words: &[OsString]) -> Self {
        let own = words.iter().take_while(|word| *word != "--");
        let mut found = BeforeParsing { json: false, color: ColorMode::Auto };
        let mut previous = None;
        for word in own {
            match (previous, word.to_str()) {
                (_, Some("--json")) => found.json = true,
                (_, Some("--color=always")) | (Some("--color"), Some("always")) => {
                    found.color = ColorMode::Always;
                }
                (_, Some("--color=never")) | (Some("--color"), Some("never")) => {
                    found.color = ColorMode::Never;
                }
                _ => {}
            }
            previous = word.to_str();
        }
        found
    }
}

fn parse(words: Vec<OsString>, color: ColorMode) -> Result<Cli, clap::Error> {
    let choice = match color {
        ColorMode::Auto => clap::ColorChoice::Auto,
        ColorMode::Always => clap::ColorChoice::Always,
        ColorMode::Never => clap::ColorChoice::Never,
    };
    let matches = Cli::command().color(choice).try_get_matches_from(words)?;
    Cli::from_arg_matches(&matches)
}

/// Help and version are results; everything else is wrong usage.
fn usage(error: clap::Error, before: &BeforeParsing) -> u8 {
    if !error.use_stderr() {
        // A closed pipe is quiet here, too.
        let _ = error.print();
        return 0;
    }
    let style = Style::for_stderr(before.color);
    if let Some(word) = reserved_word(&error) {
        let message = format!("cannot {word}: this command comes with a later release");
        exit::report_parts("unsupported", &message, None, before.json, &style);
    } else if before.json {
        let message = sentence(&error.render().to_string());
        exit::report_parts("invalid_argument", &message, Some("see --help"), true, &style);
    } else {
        let _ = error.print();
    }
    exit::USAGE
}

/// The first paragraph of clap's message on one line: it lists missing arguments below its first line.
fn sentence(message: &str) -> String {
    let paragraph = message.trim_start_matches("error: ").lines().take_while(|line| !line.trim().is_empty());
    paragraph.map(str::trim).collect::<Vec<_>>().join(" ")
}

fn reserved_word(error: &clap::Error) -> Option<&'static str> {
    let Some(ContextValue::String(word)) = error.get(ContextKind::InvalidSubcommand) else { return None };
    let unknown = error.kind() == ClapKind::InvalidSubcommand;
    RESERVED.into_iter().find(|reserved| unknown && reserved == word)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<OsString> {
        text.split(' ').map(OsString::from).collect()
    }

    #[test]
    fn reserved_words_are_told_apart_from_unknown_ones() {
        let error = |text: &str| match parse(words(text), ColorMode::Never) {
            Ok(_) => panic!("{text} is a command"),
            Err(error) => error,
        };
        assert_eq!(reserved_word(&error("transload push a")), Some("push"));
        assert_eq!(reserved_word(&error("transload --json pull --quiet x")), Some("pull"));
        assert_eq!(reserved_word(&error("transload frobnicate")), None);
    }

    #[test]
    fn json_is_noticed_even_when_parsing_fails() {
        assert!(BeforeParsing::of(&words("transload frob --json")).json);
        assert!(!BeforeParsing::of(&words("transload mount a -- x --json")).json);
        assert_eq!(BeforeParsing::of(&words("transload --color never x")).color, ColorMode::Never);
    }
}

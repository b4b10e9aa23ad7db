//! Work without root: what touches the store does it in a user namespace of its own.
//!
//! Inside, the user is root and nobody else exists; outside, everything they make is theirs. The namespace has to be
//! entered before the process has a second thread, so this is decided from the arguments alone.

use super::args::{Command, Import};
use super::store::Surroundings;
use transload::mount::enter_user_namespace;
use transload::{Error, ErrorKind, Result};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Need {
    /// No store is opened.
    None,
    /// It works without where the store was made without: a store remembers whose numbers its owners are.
    Useful,
    /// Owners are set, or something is mounted.
    Required,
}

/// Enters a user namespace where `command` needs one and the process is not root.
pub fn prepare(command: &Command, surroundings: &Surroundings) -> Result<()> {
    // Root of an outer namespace has what it takes already.
    if rustix::process::geteuid().is_root() {
        return Ok(());
    }
    let enter = || enter_user_namespace(surroundings.uid, surroundings.gid);
    match need(command)? {
        Need::None => Ok(()),
        Need::Useful => {
            // Failing is no failure: the command says itself what it could not read.
            let _ = enter();
            Ok(())
        }
        Need::Required => enter(),
    }
}

fn need(command: &Command) -> Result<Need> {
    Ok(match command {
        Command::Import(args) => import_need(args),
        Command::Mount(args) if args.dir.is_some() => return Err(vanishing_mount()),
        Command::Mount(args) if !args.command.is_empty() => Need::Required,
        Command::Unpack(_) | Command::Bundle(_) => Need::Required,
        Command::Completions(_) | Command::Audit(_) => Need::None,
        _ => Need::Useful,
    })
}

fn import_need(args: &Import) -> Need {
    match args.no_unpack || args.dry_run || args.ignore_chown {
        true => Need::Useful,
        false => Need::Required,
    }
}

fn vanishing_mount() -> Error {
    let error =
        Error::new(ErrorKind::Permission, "cannot mount without root: the mount would end with this command");
    error.with_hint("run a command inside: 'transload mount NAME -- COMMAND', or unpack the image")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::args::Cli;
    use clap::Parser;

    #[test]
    fn only_what_needs_a_namespace_enters_one() {
        let table = [
            ("import a", Some(Need::Required)),
            ("import --no-unpack a", Some(Need::Useful)),
            ("import --ignore-chown a", Some(Need::Useful)),
            ("images", Some(Need::Useful)),
            ("completions bash", Some(Need::None)),
            ("mount", Some(Need::Useful)),
            ("mount a -- true", Some(Need::Required)),
            ("mount a /mnt", None),
            ("unpack a b", Some(Need::Required)),
            ("gc", Some(Need::Useful)),
        ];
        for (words, expected) in table {
            let words: Vec<&str> = ["transload"].into_iter().chain(words.split(' ')).collect();
            let cli = Cli::try_parse_from(&words).expect("a command");
            assert_eq!(need(&cli.command).ok(), expected, "{words:?}");
        }
    }
}

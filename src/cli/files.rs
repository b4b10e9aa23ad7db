//! The files that a command writes beside its result: each is a file of its own, and none is what the command reads.
//!
//! Looked at before anything is done, since a trace that replaces the archive, or a page that replaces the trace, is
//! noticed only when it is too late.

use super::args::{Cli, Command, Import};
use std::fs;
use std::path::{Path, PathBuf};
use transload::{Error, ErrorKind, Result, ResultExt};

/// Refuses what cannot end well.
///
/// # Errors
/// [`ErrorKind::InvalidArgument`] for a file with two purposes, [`ErrorKind::NotFound`] where one's directory is missing.
pub fn check(cli: &Cli) -> Result<()> {
    let written = written(cli);
    for (at, (option, file)) in written.iter().enumerate() {
        if let Some((other, _)) = written[..at].iter().find(|(_, other)| is_same(file, other)) {
            return Err(refused(file, &format!("{other} is the same file")));
        }
        if archives(cli).iter().any(|archive| is_same(file, archive)) {
            return Err(refused(file, &format!("{option} names the archive")));
        }
    }
    if let Command::Import(import) = &cli.command {
        let Import { insight, .. } = &**import;
        insight.trace.iter().chain(&insight.timeline).try_for_each(|file| check_directory(file))?;
    }
    Ok(())
}

fn refused(file: &Path, why: &str) -> Error {
    let error = Error::new(ErrorKind::InvalidArgument, format!("cannot write {}: {why}", file.display()));
    error.with_hint("name a file of its own")
}

/// With the option that asks for it.
fn written(cli: &Cli) -> Vec<(&'static str, &Path)> {
    let mut all = vec![("--metrics-file", &cli.global.metrics_file), ("--audit-log", &cli.global.audit_log)];
    if let Command::Import(import) = &cli.command {
        let Import { insight, .. } = &**import;
        all.extend([("--trace", &insight.trace), ("--timeline", &insight.timeline)]);
    }
    let mut all: Vec<_> =
        all.into_iter().filter_map(|(option, file)| file.as_deref().map(|file| (option, file))).collect();
    match &cli.command {
        Command::Export(export) if export.output.as_os_str() != "-" => all.push(("--output", &export.output)),
        _ => {}
    }
    all
}

fn archives(cli: &Cli) -> Vec<&Path> {
    let Command::Import(import) = &cli.command else { return Vec::new() };
    let stdin = |archive: &Path| archive.as_os_str() == "-";
    let open = |archive| if stdin(archive) { Path::new("/proc/self/fd/0") } else { archive };
    import.archives.iter().map(|archive| open(archive)).collect()
}

/// Whether two paths lead to one file, which need not exist. What is no regular file, like /dev/null, takes anything.
fn is_same(one: &Path, other: &Path) -> bool {
    let (ones, others) = (names(one), names(other));
    ones.iter().any(|name| others.contains(name))
}

/// Without the links on the way, and where the last part is a link, both its own name and where it leads.
fn names(path: &Path) -> Vec<PathBuf> {
    if fs::metadata(path).is_ok_and(|metadata| !metadata.is_file()) {
        return Vec::new();
    }
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let own = path.file_name().and_then(|name| Some(fs::canonicalize(parent).ok()?.join(name)));
    own.into_iter().chain(fs::canonicalize(path)).collect()
}

fn check_directory(file: &Path) -> Result<()> {
    let parent = file.parent().filter(|parent| !parent.as_os_str().is_empty());
    let missing = parent.is_some_and(|parent| !parent.is_dir());
    let problem = match () {
        _ if missing => Err(Error::new(ErrorKind::NotFound, "its directory is not there")),
        _ if file.is_dir() => Err(Error::new(ErrorKind::InvalidArgument, "it is a directory")),
        _ => Ok(()),
    };
    problem.doing(|| format!("cannot write {}", file.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[test]
    fn a_file_serves_one_purpose() {
        let dir = tempfile::tempdir().expect("a directory");
        let place = dir.path().display();
        fs::write(dir.path().join("a.tar"), "a").expect("room");
        std::os::unix::fs::symlink("a.tar", dir.path().join("link.tar")).expect("a link");
        let kind = |words: &str| {
            let words = words.replace("./", &format!("{place}/"));
            let cli = Cli::try_parse_from(words.split(' ')).expect("an import");
            check(&cli).err().map(|error| error.kind())
        };
        for wrong in [
            "transload import --trace ./x --timeline ./x a",
            "transload import --trace ./x --timeline .//x a",
            "transload --metrics-file ./x import --trace ./x a",
            "transload --metrics-file ./x --audit-log ./x images",
            "transload import --trace ./a.tar ./b.tar ./a.tar",
            "transload import --timeline ./a.tar ./link.tar",
            "transload import --timeline ./link.tar ./a.tar",
            "transload --audit-log ./a.tar import ./a.tar",
            "transload --metrics-file ./x export a -o ./x",
        ] {
            assert_eq!(kind(wrong), Some(ErrorKind::InvalidArgument), "{wrong}");
        }
        assert_eq!(kind("transload import --trace ./no/x a"), Some(ErrorKind::NotFound));
        for right in [
            "transload import --trace ./x --timeline ./y ./a.tar",
            "transload import --trace /dev/null --timeline /dev/null a",
            "transload import a a",
            "transload export a -o -",
        ] {
            assert_eq!(kind(right), None, "{right}");
        }
    }
}

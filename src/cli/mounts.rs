//! `mount` and `umount`: what is mounted, and what happens to mounts that are in use.

use super::args::{self, Busy, ProgressMode};
use super::commands::{Context, Done};
use super::output::{self, human};
use super::{inside, signals, views};
use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use transload::mount::{IdMapping, IdMaps};
use transload::progress::{Event, Listener, SnapshotStep};
use transload::store::{Removal, RemovalOptions, WhenBusy};
use transload::transfer::mounting::{MountOptions, MountRecord};
use transload::{Cancel, Engine, Error, ErrorKind, Result};

pub fn mount(context: &Context, args: args::Mount) -> Done {
    let options = MountOptions {
        read_write: args.rw,
        ids: ids(&args.uidmap, &args.gidmap)?,
        listener: listener(context),
        ..MountOptions::default()
    };
    match (args.name, args.dir) {
        (None, _) => list(context),
        (Some(name), _) if !args.command.is_empty() => run_inside(context, &name, &options, &args.command),
        (Some(name), Some(dir)) => {
            // Counting the owners of a large image, or copying it, takes a while.
            signals::cancel_on_signal(&options.cancel)?;
            context.open(false)?.mount(&name, &dir, &options)?;
            let target = dir.display().to_string();
            let view = views::MountLine { target, name: Some(name), mode: mode(args.rw), mounted: true };
            context.show(&view, |_| String::new())
        }
        (Some(_), None) => Err(Error::new(ErrorKind::InvalidArgument, "cannot mount an image nowhere")
            .with_hint("write 'transload mount NAME DIR' or 'transload mount NAME -- COMMAND'")
            .into()),
    }
}

fn ids(users: &[IdMapping], groups: &[IdMapping]) -> Result<Option<IdMaps>> {
    match users.is_empty() && groups.is_empty() {
        true => Ok(None),
        false => IdMaps::new(users, groups).map(Some),
    }
}

fn mode(read_write: bool) -> &'static str {
    if read_write { "rw" } else { "ro" }
}

/// Notices on stderr, and each step: as JSON where that was asked for, for logs, and in words with `-vv`.
pub fn listener(context: &Context) -> Listener {
    if context.global.progress == ProgressMode::Json {
        return Listener::new(output::json_lines::JsonLines);
    }
    if context.log.is_machine() {
        let log = Arc::clone(&context.log);
        return Listener::new(move |event: &Event| log.event(event));
    }
    let (quiet, steps) = (context.global.quiet, context.global.verbose > 1);
    Listener::new(move |event: &Event| match event {
        Event::Notice(text) if !quiet => on_stderr(&format!("notice: {text}")),
        Event::Snapshot(step) if steps => on_stderr(&in_words(step)),
        _ => {}
    })
}

fn in_words(step: &SnapshotStep) -> String {
    let place = step.target.as_ref().map(|target| format!(" at {}", target.display())).unwrap_or_default();
    let tries = if step.attempts > 1 { format!(", {} attempts", step.attempts) } else { String::new() };
    format!("{} {}{place}: {} ms{tries}", step.step.name(), step.key, step.duration.as_millis())
}

fn on_stderr(line: &str) {
    // A closed stderr stops no mount.
    let _ = writeln!(std::io::stderr().lock(), "{}", output::printable(line));
}

fn list(context: &Context) -> Done {
    let mounts = if context.store()?.exists() { context.open(false)?.mounts()? } else { Vec::new() };
    let line = |mount: MountRecord| views::MountLine {
        target: mount.target.display().to_string(),
        name: mount.name,
        mode: mode(mount.read_write),
        mounted: mount.mounted,
    };
    let view = views::Mounts { mounts: mounts.into_iter().map(line).collect() };
    context.show(&view, |view| human::mounts(view, &context.style))
}

fn run_inside(context: &Context, name: &str, options: &MountOptions, command: &[std::ffi::OsString]) -> Done {
    inside::private_mounts()?;
    let engine = context.open(false)?;
    inside::leave_other_mounts(engine.store().path());
    let target = inside::Directory::new()?;
    engine.mount(name, target.path(), options)?;
    let code = engine.inspect(name).and_then(|found| inside::run(target.path(), command, &found.config_json));
    context.notices(&leave(&engine, target.path(), &options.listener));
    Ok(code?)
}

/// For how long what a command leaves behind is given to end.
const MOMENT: Duration = Duration::from_secs(1);

/// Takes down the mount of a command that has ended, and gives what is worth telling. It is the command's exit code that
/// counts: where its mount is still in use, a later collection does the rest.
fn leave(engine: &Engine, target: &Path, listener: &Listener) -> Vec<String> {
    let unmount = |when_busy| {
        let (cancel, listener) = (Cancel::new(), listener.clone());
        engine.unmount_with(target, &RemovalOptions { when_busy, cancel, listener })
    };
    match unmount(WhenBusy::Wait(Some(MOMENT))) {
        Ok(_) => Vec::new(),
        Err(error) => match unmount(WhenBusy::Defer) {
            Ok(Removal::Done) => Vec::new(),
            Ok(Removal::Deferred) => vec![format!("{error}; the first gc that finds it free removes it")],
            Err(_) => vec![error.to_string()],
        },
    }
}

/// What the options say about things in use. The wait ends with Ctrl-C.
pub fn removal_options(context: &Context, busy: &Busy) -> Result<RemovalOptions> {
    let cancel = Cancel::new();
    let when_busy = match (busy.wait, busy.defer) {
        (Some(longest), _) => {
            signals::cancel_on_signal(&cancel)?;
            WhenBusy::Wait(longest)
        }
        (None, true) => WhenBusy::Defer,
        (None, false) => WhenBusy::Refuse,
    };
    Ok(RemovalOptions { when_busy, cancel, listener: listener(context) })
}

pub fn umount(context: &Context, args: &args::Umount) -> Done {
    let options = removal_options(context, &args.busy)?;
    let engine = context.open(false)?;
    let mut view = views::Umount { unmounted: Vec::new(), deferred: Vec::new() };
    let mut failed: Vec<Error> = Vec::new();
    // One that is busy keeps none of the others.
    for dir in &args.dirs {
        let shown = dir.display().to_string();
        match engine.unmount_with(dir, &options) {
            Ok(Removal::Done) => view.unmounted.push(shown),
            Ok(Removal::Deferred) => view.deferred.push(shown),
            Err(error) => failed.push(error),
        }
        if options.cancel.is_cancelled() {
            break;
        }
    }
    if !failed.is_empty() {
        let gone = view.unmounted.iter().map(|dir| format!("unmounted {dir}"));
        let others = failed.iter().skip(1).map(Error::to_string);
        context.notices(&gone.chain(others).collect::<Vec<_>>());
        return Err(failed.swap_remove(0).into());
    }
    let notice = |dir: &String| format!("{dir} is in use; the first gc that finds it free takes it down");
    context.notices(&view.deferred.iter().map(notice).collect::<Vec<_>>());
    context.show(&view, |_| String::new())
}

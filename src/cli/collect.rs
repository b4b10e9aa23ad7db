//! The commands that take away and bring back: `rm`, `restore`, `gc`.

use super::args::Busy;
use super::commands::{Context, Done};
use super::output::table::{Align, Table};
use super::output::{Style, printable};
use super::size::{format_millis, format_size, format_time, parse_age, parse_size, rfc3339};
use super::{exit, mounts, signals};
use clap::Args;
use serde::Serialize;
use std::time::{Duration, Instant};
use transload::engine::RemoveOptions;
use transload::store::Removal;
use transload::store::chains::is_of_image;
use transload::upkeep::{GcFailure, GcItem, GcOptions, GcReport};
use transload::{Cancel, Engine, Error, ErrorKind, ResultExt};

/// Remove names; the next gc frees what nothing else uses
#[derive(Debug, Args)]
#[command(
    visible_alias = "rmi",
    after_help = "\
Examples:
  transload rm alpine:3.19
  transload rm --dry-run alpine
  transload rm --grace 7d alpine          gc leaves it alone for a week
  transload restore alpine                and this brings it back
  transload rm alpine busybox && transload gc
  transload rm --all-names 3f2a           every name of the image with this digest
  transload rm --wait=5m alpine           until nothing of it is mounted any more
  transload rm --defer alpine             now; what is mounted goes with the gc after its umount
  transload rm --snapshot vm-7            what doctor lists as in use by nobody that is recorded"
)]
pub struct Rm {
    /// Names of images; a digest, or the beginning of one, if only one name has it
    #[arg(required_unless_present = "snapshot", value_name = "NAME")]
    pub names: Vec<String>,
    /// Remove a snapshot that a program made and left, at once; one with children is refused
    #[arg(long, value_name = "KEY", conflicts_with_all = ["names", "grace", "all_names", "dry_run"])]
    pub snapshot: Vec<String>,
    /// Keep what the image holds for so long, so that it can be restored (7d, 12h, 30m)
    #[arg(long, value_name = "TIME", value_parser = parse_age, default_value = "0s")]
    pub grace: Duration,
    /// Let a digest stand for all names of its image; otherwise one that several names have is refused
    #[arg(long)]
    pub all_names: bool,
    /// Say what would be removed and freed and remove nothing
    #[arg(long)]
    pub dry_run: bool,
    #[command(flatten)]
    pub busy: Busy,
}

/// Bring removed images back, or list those that can be
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  transload restore alpine
  transload restore                       list what can be restored

An image can be restored until its grace (rm --grace) is over and a gc has run.")]
pub struct Restore {
    /// Names of removed images, or digests of unnamed ones
    #[arg(value_name = "NAME")]
    pub names: Vec<String>,
}

/// Remove what no image, lease or mount needs, while imports run
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  transload gc
  transload gc --dry-run -v               name each thing that would go
  transload gc --keep-last 3 --older-than 30d
  transload gc --until-free 20G

Pinned and mounted images are never removed. --keep-last and --older-than together remove what both would.")]
pub struct Gc {
    /// Say what would be removed and remove nothing
    #[arg(long)]
    pub dry_run: bool,
    /// First remove all but the last N images of each repository
    #[arg(long, value_name = "N")]
    pub keep_last: Option<usize>,
    /// First remove images that have not been imported, tagged or restored for so long (30d, 12h)
    #[arg(long, value_name = "TIME", value_parser = parse_age)]
    pub older_than: Option<Duration>,
    /// Remove images, first what was not imported, tagged or restored for longest, until so much of the disk is free
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub until_free: Option<u64>,
    /// Keep what these images hold for so long, so that they can be restored
    #[arg(long, value_name = "TIME", value_parser = parse_age, default_value = "0s", conflicts_with = "until_free")]
    pub grace: Duration,
    /// Wait while another gc works
    #[arg(long)]
    pub wait: bool,
}

#[derive(Serialize)]
struct RmView {
    dry_run: bool,
    removed: Vec<String>,
    freed_by_gc_bytes: u64,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    deferred: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    items: Vec<GcItem>,
}

#[derive(Serialize)]
struct RestoreView {
    restored: Vec<String>,
}

#[derive(Serialize)]
struct RemovedView {
    removed: Vec<RemovedLine>,
}

#[derive(Serialize)]
struct RemovedLine {
    name: Option<String>,
    target: String,
    removed: String,
    kept_until: String,
}

/// What `gc` prints, and `import --gc` below `"gc"`.
#[derive(Serialize)]
pub struct GcView {
    dry_run: bool,
    images: Vec<String>,
    removed: GcCounts,
    freed_bytes: u64,
    free_bytes: Option<u64>,
    goal_missed: bool,
    images_left: u64,
    failed: Vec<GcFailure>,
    deferred: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    items: Vec<GcItem>,
    elapsed_ms: u64,
}

impl GcView {
    /// What to say after an import whose collection left something that it should have removed.
    pub fn incomplete(&self) -> Option<Error> {
        let message = "the images are imported, and the gc afterwards could not remove everything";
        let error =
            || Error::new(ErrorKind::Io, message).with_hint("'transload gc' says what, and tries again");
        (!self.failed.is_empty()).then(error)
    }
}

#[derive(Serialize)]
struct GcCounts {
    blobs: u64,
    trees: u64,
    snapshots: u64,
    ingests: u64,
    leases: u64,
}

/// `transload rm`.
pub fn rm(context: &Context, args: &Rm) -> Done {
    if !args.snapshot.is_empty() {
        return rm_snapshots(context, args);
    }
    let options = RemoveOptions {
        grace: args.grace,
        dry_run: args.dry_run,
        all_names: args.all_names,
        busy: mounts::removal_options(context, &args.busy)?,
    };
    let report = context.open(false)?.remove_with(&args.names, &options)?;
    let view = RmView {
        dry_run: args.dry_run,
        removed: report.removed,
        freed_by_gc_bytes: report.freed_by_gc_bytes,
        deferred: Vec::new(),
        items: report.items,
    };
    context.show(&view, |view| rm_text(view, args.grace, context.global.verbose > 0))
}

fn rm_snapshots(context: &Context, args: &Rm) -> Done {
    let options = mounts::removal_options(context, &args.busy)?;
    let engine = context.open(false)?;
    let mut view = RmView {
        dry_run: false,
        removed: Vec::new(),
        freed_by_gc_bytes: 0,
        deferred: Vec::new(),
        items: Vec::new(),
    };
    for key in &args.snapshot {
        let remove = || -> transload::Result<Removal> {
            if is_of_image(&engine.snapshots().stat(key)?) {
                return Err(Error::new(ErrorKind::FailedPrecondition, "it is a layer of an image")
                    .with_hint("'transload rm NAME' and 'transload gc' remove what no image needs"));
            }
            engine.remove_snapshot(key, &options)
        };
        match remove().doing(|| format!("cannot remove {key}")) {
            Ok(Removal::Done) => view.removed.push(key.clone()),
            Ok(Removal::Deferred) => view.deferred.push(key.clone()),
            Err(error) => {
                let gone: Vec<String> = view.removed.iter().map(|key| format!("removed {key}")).collect();
                context.notices(&gone);
                return Err(error.into());
            }
        }
    }
    context.show(&view, |view| {
        let removed = view.removed.iter().map(|key| format!("removed {}\n", printable(key)));
        let deferred = view
            .deferred
            .iter()
            .map(|key| format!("{} is in use; the gc that finds it free removes it\n", printable(key)));
        removed.chain(deferred).collect()
    })
}

fn rm_text(view: &RmView, grace: Duration, verbose: bool) -> String {
    let did = if view.dry_run { "would remove" } else { "removed" };
    let mut text: String = view.removed.iter().map(|name| format!("{did} {}\n", printable(name))).collect();
    if verbose {
        text.push_str(&items_text(&view.items));
    }
    let when = if grace.is_zero() { "the next gc" } else { "a gc after the grace" };
    text.push_str(&match view.freed_by_gc_bytes {
        0 => format!("{when} frees nothing: something else needs what it has (transload du --why DIGEST)\n"),
        bytes => format!("{when} frees {}\n", format_size(bytes)),
    });
    text
}

fn items_text(items: &[GcItem]) -> String {
    let line = |item: &GcItem| {
        format!("  {} {}  {}\n", item.kind, printable(&item.key), format_size(item.size_bytes))
    };
    items.iter().map(line).collect()
}

/// `transload restore`.
pub fn restore(context: &Context, args: &Restore) -> Done {
    let engine = context.open(false)?;
    if args.names.is_empty() {
        return removed(context, &engine);
    }
    let report = engine.restore(&args.names)?;
    let view = RestoreView { restored: report.restored.iter().map(|image| image.label_key()).collect() };
    context.show(&view, |view| {
        view.restored.iter().map(|name| format!("restored {}\n", printable(name))).collect()
    })
}

fn removed(context: &Context, engine: &Engine) -> Done {
    let lines = engine.removed_images()?.into_iter().map(|tombstone| RemovedLine {
        name: tombstone.name,
        target: tombstone.target.digest.to_string(),
        removed: rfc3339(tombstone.removed_ms),
        kept_until: rfc3339(tombstone.expires_ms),
    });
    context.show(&RemovedView { removed: lines.collect() }, |view| removed_text(view, &context.style))
}

fn removed_text(view: &RemovedView, style: &Style) -> String {
    if view.removed.is_empty() {
        return "nothing can be restored\n".to_string();
    }
    let left = Align::Left;
    let mut table = Table::new(&[("NAME", left), ("REMOVED", left), ("KEPT UNTIL", left), ("TARGET", left)]);
    for line in &view.removed {
        table.row([
            line.name.clone().unwrap_or_else(|| "<unnamed>".to_string()),
            format_time(Some(&line.removed)),
            format_time(Some(&line.kept_until)),
            line.target.clone(),
        ]);
    }
    table.render(style)
}

/// `transload gc`.
pub fn gc(context: &Context, args: &Gc) -> Done {
    let cancel = Cancel::new();
    signals::cancel_on_signal(&cancel)?;
    let started = Instant::now();
    let options = GcOptions {
        dry_run: args.dry_run,
        wait: args.wait,
        cancel,
        keep_last: args.keep_last,
        older_than: args.older_than,
        until_free_bytes: args.until_free,
        grace: args.grace,
        listener: mounts::listener(context),
    };
    let engine = context.open(false)?;
    let view = view(told(context, &engine, &options)?, args.dry_run, started);
    tell_what_is_left(context, &view);
    let shown = context.show(&view, |view| gc_text(view, context.global.verbose > 0))?;
    Ok(if view.failed.is_empty() && !view.goal_missed { shown } else { exit::code(ErrorKind::Io) })
}

/// What `import --gc` does after the imports; a collection that is at work already does as well.
pub fn gc_after_import(context: &Context, engine: &Engine, cancel: &Cancel) -> transload::Result<GcView> {
    let started = Instant::now();
    let options = GcOptions { wait: true, cancel: cancel.clone(), ..GcOptions::default() };
    let view = view(told(context, engine, &options)?, false, started);
    tell_what_is_left(context, &view);
    Ok(view)
}

/// A collection that machines are told of: what lies between the two lines may have gone.
fn told(context: &Context, engine: &Engine, options: &GcOptions) -> transload::Result<GcReport> {
    if options.dry_run {
        return engine.gc(options);
    }
    context.log.collection(engine, "gc_started");
    let report = engine.gc(options)?;
    context.log.collection(engine, "gc_finished");
    Ok(report)
}

fn tell_what_is_left(context: &Context, view: &GcView) {
    let failures =
        view.failed.iter().map(|failed| format!("cannot remove {}: {}", failed.what, failed.error));
    let missed = view.goal_missed.then(|| {
        let free = view.free_bytes.map(format_size).unwrap_or_default();
        match (view.images_left, view.failed.is_empty()) {
            (0, _) => format!("only {free} are free, and no image is left that may be removed"),
            (left, true) => format!(
                "only {free} are free; {left} more may be removed and would free nothing: something else needs what they have"
            ),
            (left, false) => {
                format!("only {free} are free, because not all could be removed; images that may be removed: {left}")
            }
        }
    });
    let busy = view.deferred.iter().map(|what| format!("{what} is still in use; the next gc looks again"));
    context.notices(&failures.chain(busy).chain(missed).collect::<Vec<_>>());
}

fn view(report: GcReport, dry_run: bool, started: Instant) -> GcView {
    GcView {
        dry_run,
        images: report.images_removed,
        removed: GcCounts {
            blobs: report.blobs_removed,
            trees: report.trees_removed,
            snapshots: report.snapshots_removed,
            ingests: report.ingests_removed,
            leases: report.leases_removed,
        },
        freed_bytes: report.bytes_freed,
        free_bytes: report.free_bytes,
        goal_missed: report.goal_missed,
        images_left: report.images_left,
        failed: report.failed,
        deferred: report.deferred,
        items: report.items,
        elapsed_ms: started.elapsed().as_millis() as u64,
    }
}

/// The view as text.
pub fn gc_text(view: &GcView, verbose: bool) -> String {
    let (did, freed) = if view.dry_run { ("would remove", "would free") } else { ("removed", "freed") };
    let mut text: String = view.images.iter().map(|name| format!("{did} {}\n", printable(name))).collect();
    if verbose {
        text.push_str(&items_text(&view.items));
    }
    let count = |count: u64, what: &str| format!("{count} {what}{}", if count == 1 { "" } else { "s" });
    let removed = &view.removed;
    text.push_str(&format!(
        "{did} {}, {}, {} and {}; {freed} {} in {}\n",
        count(removed.blobs, "blob"),
        count(removed.trees, "tree"),
        count(removed.snapshots, "snapshot"),
        count(removed.ingests, "unfinished ingest"),
        format_size(view.freed_bytes),
        format_millis(view.elapsed_ms)
    ));
    text
}

//! The commands that tell and change what is kept: `pin`, `label`, `leases`, `du --why`.

use super::commands::{Context, Done};
use super::output::table::{Align, Table};
use super::output::{Style, printable};
use super::size::{format_size, format_time, parse_age, rfc3339};
use clap::{Args, Subcommand};
use serde::Serialize;
use std::time::Duration;
use transload::metadata::Labels;
use transload::upkeep::WhyReport;
use transload::{Error, ErrorKind};

/// Keep images from rm and from every policy of gc, or list those that are kept
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  transload pin alpine
  transload pin                           list the pinned images
  transload unpin alpine

The pin is the label io.cri-containerd.pinned=pinned, and stays with the name.")]
pub struct Pin {
    /// Names of images
    #[arg(value_name = "NAME")]
    pub names: Vec<String>,
}

/// Let rm and the policies of gc remove images again
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  transload unpin alpine")]
pub struct Unpin {
    /// Names of images
    #[arg(required = true, value_name = "NAME")]
    pub names: Vec<String>,
}

/// Show or change the labels of an image or a blob
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  transload label alpine
  transload label alpine owner=me containerd.io/gc.expire=2027-01-01T00:00:00Z
  transload label alpine owner=           take it away

Labels that begin with containerd.io/gc. mean to gc what they mean to containerd's.")]
pub struct Label {
    /// The name of an image, or the whole digest of a blob
    pub name: String,
    /// KEY=VALUE sets a label, KEY= takes it away
    #[arg(value_name = "KEY=VALUE", value_parser = parse_change)]
    pub changes: Vec<(String, Option<String>)>,
}

/// List the leases: who holds what, until when
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  transload leases
  transload leases -v                     with what each holds
  transload leases add nightly alpine busybox --for 24h
  transload leases renew nightly --for 24h
  transload leases end ID")]
pub struct Leases {
    #[command(subcommand)]
    pub change: Option<LeaseChange>,
}

/// What to do with leases.
#[derive(Debug, Subcommand)]
pub enum LeaseChange {
    Add(Add),
    Renew(Renew),
    End(End),
}

/// Hold what images need, also when they are removed
#[derive(Debug, Args)]
pub struct Add {
    /// The new lease; any word
    #[arg(value_parser = clap::builder::NonEmptyStringValueParser::new())]
    pub id: String,
    /// Names of images
    #[arg(required = true, value_name = "NAME")]
    pub names: Vec<String>,
    /// From now on for so long (24h, 7d); without it, until it is ended
    #[arg(long = "for", value_name = "TIME", value_parser = parse_age)]
    pub length: Option<Duration>,
}

/// Let a lease end at another time
#[derive(Debug, Args)]
pub struct Renew {
    /// The lease
    pub id: String,
    /// From now on for so long (24h, 7d); without it, until it is ended
    #[arg(long = "for", value_name = "TIME", value_parser = parse_age)]
    pub length: Option<Duration>,
}

/// End leases now
#[derive(Debug, Args)]
pub struct End {
    /// The leases; one that a living process holds is refused
    #[arg(required = true, value_name = "ID")]
    pub ids: Vec<String>,
}

fn parse_change(text: &str) -> Result<(String, Option<String>), Error> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => {
            Ok((key.to_string(), Some(value.to_string()).filter(|value| !value.is_empty())))
        }
        _ => Err(Error::new(ErrorKind::InvalidArgument, format!("{text:?} is not KEY=VALUE"))),
    }
}

#[derive(Serialize)]
struct PinView {
    pinned: Vec<String>,
}

#[derive(Serialize)]
struct LabelView {
    name: String,
    labels: Labels,
}

#[derive(Serialize)]
struct LeasesView {
    leases: Vec<LeaseLine>,
}

#[derive(Serialize)]
struct LeaseLine {
    id: String,
    live: bool,
    process: Option<u32>,
    created: String,
    expires: Option<String>,
    labels: Labels,
    resources: Vec<Held>,
}

#[derive(Serialize)]
struct Held {
    kind: &'static str,
    key: String,
}

/// `transload pin`.
pub fn pin(context: &Context, args: &Pin) -> Done {
    pinned(context, &args.names, true, args.names.is_empty())
}

/// `transload unpin`.
pub fn unpin(context: &Context, args: &Unpin) -> Done {
    pinned(context, &args.names, false, false)
}

fn pinned(context: &Context, names: &[String], pin: bool, listed: bool) -> Done {
    let engine = context.open(false)?;
    for name in names {
        engine.pin(name, pin)?;
    }
    let mut pinned: Vec<String> = engine.pinned()?.into_iter().collect();
    pinned.sort();
    context.show(&PinView { pinned }, |view| match (listed, view.pinned.is_empty()) {
        (false, _) => String::new(),
        (true, true) => "no image is pinned\n".to_string(),
        (true, false) => view.pinned.iter().map(|name| format!("{}\n", printable(name))).collect(),
    })
}

/// `transload label`.
pub fn label(context: &Context, args: &Label) -> Done {
    let labels = context.open(false)?.label(&args.name, &args.changes)?;
    let view = LabelView { name: args.name.clone(), labels };
    context.show(&view, |view| {
        let line = |(key, value): (&String, &String)| format!("{}\n", printable(&format!("{key}={value}")));
        view.labels.iter().map(line).collect()
    })
}

/// `transload leases`.
pub fn leases(context: &Context, args: &Leases) -> Done {
    let engine = context.open(false)?;
    match &args.change {
        None => {}
        Some(LeaseChange::Add(add)) => engine.lease_images(&add.id, add.length, &add.names)?,
        Some(LeaseChange::Renew(renew)) => engine.lease_renew(&renew.id, renew.length)?,
        Some(LeaseChange::End(end)) => end.ids.iter().try_for_each(|id| engine.lease_end(id))?,
    }
    let line = |lease: transload::store::LeaseState| LeaseLine {
        live: lease.live,
        process: lease.process,
        created: rfc3339(lease.row.created_ms),
        expires: lease.row.ends_ms().map(rfc3339),
        labels: lease.row.labels,
        resources: lease.resources.iter().map(|held| Held { kind: held.kind(), key: held.key() }).collect(),
        id: lease.row.id,
    };
    let view = LeasesView { leases: engine.leases()?.into_iter().map(line).collect() };
    context.show(&view, |view| leases_text(view, context.global.verbose > 0, &context.style))
}

fn leases_text(view: &LeasesView, verbose: bool, style: &Style) -> String {
    if view.leases.is_empty() {
        return "no leases\n".to_string();
    }
    let left = Align::Left;
    let mut table = Table::new(&[
        ("ID", left),
        ("STATE", left),
        ("PROCESS", left),
        ("SINCE", left),
        ("UNTIL", left),
        ("HOLDS", Align::Right),
    ]);
    for lease in &view.leases {
        table.row([
            lease.id.clone(),
            if lease.live { "live" } else { "dead" }.to_string(),
            lease.process.map_or_else(|| "-".to_string(), |process| process.to_string()),
            format_time(Some(&lease.created)),
            format_time(lease.expires.as_deref()),
            lease.resources.len().to_string(),
        ]);
    }
    let mut text = table.render(style);
    for lease in view.leases.iter().filter(|_| verbose) {
        text.push_str(&format!("{}\n", printable(&lease.id)));
        for held in &lease.resources {
            text.push_str(&format!("  {} {}\n", held.kind, printable(&held.key)));
        }
    }
    text
}

/// `transload du --why`.
pub fn why(context: &Context, digest: &str) -> Done {
    let report = context.open(false)?.why(digest)?;
    context.show(&report, why_text)
}

/// More would scroll away; JSON has all.
const SHOWN: usize = 20;

fn why_text(report: &WhyReport) -> String {
    let mut text =
        format!("{} ({}), {}\n", report.digest, report.what.join(", "), format_size(report.size_bytes));
    if report.held_by.is_empty() {
        text.push_str("nothing needs it; the next gc removes it\n");
    }
    for holder in report.held_by.iter().take(SHOWN) {
        text.push_str(&format!("needed by {} {}\n", holder.kind, printable(&holder.name)));
        for step in &holder.via {
            text.push_str(&format!("  through {}\n", printable(step)));
        }
    }
    if report.held_by.len() > SHOWN {
        text.push_str(&format!("and by {} more\n", report.held_by.len() - SHOWN));
    }
    text
}

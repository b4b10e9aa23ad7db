//! `fsck`: the check of the store, as people and scripts see it.

use super::commands::{Context, Done};
use super::output::{self, Style, printable};
use super::size::format_size;
use super::{exit, signals};
use clap::Args;
use transload::upkeep::fsck::{FsckProblem, ProblemKind, ProblemState};
use transload::upkeep::{FsckOptions, FsckReport, Rebuilt};
use transload::{Cancel, Engine, ErrorKind};

/// Check every blob, layer, snapshot and record of the store
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  transload fsck
  transload fsck --quick
  transload fsck --repair
  transload fsck --rebuild
  transload --json fsck | jq -r '.problems[].what'

Runs beside imports. Each layer is unpacked once more beside its tree, so there must be room for one in each thread.

Exit codes: 0 nothing is wrong, or nothing any more; 1 something is; leftovers are nothing wrong.")]
pub struct Fsck {
    /// Make again what can be made again from sound blobs, and move what is bad to DIR/quarantine
    #[arg(long)]
    pub repair: bool,
    /// Make the database anew from what lies on the disk, if it is damaged or gone; then check and repair
    #[arg(long, conflicts_with = "quick")]
    pub rebuild: bool,
    /// Look at names, sizes and records only, and read no content
    #[arg(long)]
    pub quick: bool,
}

pub fn run(context: &Context, args: &Fsck) -> Done {
    let cancel = Cancel::new();
    signals::cancel_on_signal(&cancel)?;
    let rebuilt = match args.rebuild {
        true => {
            let rebuilt = Engine::rebuild(context.store()?, &cancel);
            context.metrics().operation("rebuild", &rebuilt);
            rebuilt?
        }
        false => None,
    };
    let engine = context.open(false)?;
    let options = FsckOptions { repair: args.repair || rebuilt.is_some(), quick: args.quick };
    let mut report = {
        // Dropped before anything is printed: bars must be gone by then.
        let progress = output::progress(&context.global);
        engine.fsck(&options, &*progress, &cancel)?
    };
    report.rebuilt = rebuilt;
    if let Some(store) = context.named_store()? {
        report.name_store(&store);
    }
    let done = context.show(&report, |report| text(report, &context.style))?;
    Ok(if report.clean { done } else { exit::code(ErrorKind::Corrupt) })
}

fn text(report: &FsckReport, style: &Style) -> String {
    let mut text: String = report.problems.iter().map(|problem| problem_lines(problem, style)).collect();
    for leftover in &report.leftovers {
        let line = format!("left over  {}: {}; {}", leftover.what, leftover.message, leftover.mend);
        text.push_str(&format!("{}\n", printable(&line)));
    }
    for unproven in &report.unproven {
        text.push_str(&format!(
            "unproven   {}\n",
            printable(&format!("{}: {}", unproven.what, unproven.message))
        ));
    }
    text.push_str(&summary(report));
    text.push_str(&report.rebuilt.as_ref().map(rebuilt).unwrap_or_default());
    text
}

fn rebuilt(rebuilt: &Rebuilt) -> String {
    let mut text = String::new();
    if rebuilt.format {
        text.push_str("transload.json was made anew, out of what the extracted layers say\n");
    }
    if rebuilt.database {
        text.push_str(&format!(
            "the database was made anew: {}, {}, {} and {}\n",
            plural(rebuilt.images, "image"),
            plural(rebuilt.blobs, "blob"),
            plural(rebuilt.trees, "tree"),
            plural(rebuilt.snapshots, "snapshot"),
        ));
    }
    for lost in &rebuilt.lost {
        text.push_str(&format!("lost       {}\n", printable(lost)));
    }
    if let Some(old) = &rebuilt.old {
        text.push_str(&format!("the old one is {}\n", printable(old)));
    }
    text
}

fn plural(count: u64, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

fn problem_lines(problem: &FsckProblem, style: &Style) -> String {
    let state = match problem.state {
        ProblemState::Found | ProblemState::Remains => style.error("problem"),
        ProblemState::Repaired => "repaired".into(),
        ProblemState::NeedsImport if is_about_absence(problem.kind) => style.error("missing"),
        ProblemState::NeedsImport => style.error("put away"),
    };
    let line = format!("{}: {}", problem.what, problem.message);
    let mut text = format!("{state}  {}\n", printable(&line));
    if !problem.images.is_empty() {
        text.push_str(&format!("  needed by  {}\n", printable(&problem.images.join(", "))));
    }
    if !problem.mend.is_empty() {
        text.push_str(&format!("  {}  {}\n", style.hint("to mend it"), printable(&problem.mend)));
    }
    text
}

fn is_about_absence(kind: ProblemKind) -> bool {
    use ProblemKind::*;
    matches!(kind, BlobMissing | TreeMissing | SnapshotMissing | ImageIncomplete)
}

fn summary(report: &FsckReport) -> String {
    let checked = &report.checked;
    let open = report.problems.iter().filter(|problem| problem.state != ProblemState::Repaired).count();
    let verdict = match (report.problems.len(), open) {
        (0, _) => "nothing is wrong".to_string(),
        (all, 0) => format!("{all} repaired, nothing is wrong any more"),
        (all, open) if open == all => plural(open as u64, "problem"),
        (all, open) => format!("{} of {all} remain", plural(open as u64, "problem")),
    };
    format!(
        "checked {} ({}), {} ({} against their blobs), {} and {}: {verdict}\n",
        plural(checked.blobs, "blob"),
        format_size(checked.blob_bytes),
        plural(checked.trees, "tree"),
        checked.trees_against_blobs,
        plural(checked.snapshots, "snapshot"),
        plural(checked.images, "image"),
    )
}

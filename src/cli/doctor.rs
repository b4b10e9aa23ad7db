//! `doctor`: the page about host and store, for people and for scripts.

use super::commands::{Context, Done};
use super::exit;
use super::output::{Style, printable};
use clap::Args;
use transload::upkeep::DoctorReport;
use transload::upkeep::doctor::{Health, Remark};
use transload::{Engine, ErrorKind};

/// Explain the host and the store, and say what mends what is wrong
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  transload doctor
  transload doctor --store /srv/images
  transload --json doctor | jq -r '.store[] | select(.mend) | .mend'

Changes nothing. Exit codes: 0 nothing is a fault; 1 something is. Notes are no faults.")]
pub struct Doctor {}

pub fn run(context: &Context) -> Done {
    let mut report = Engine::doctor(context.store()?);
    if let Some(store) = context.named_store()? {
        report.name_store(&store);
    }
    context.metrics().operation("doctor", &Ok(()));
    let done = context.show(&report, |report| text(report, &context.style))?;
    Ok(if report.healthy { done } else { exit::code(ErrorKind::FailedPrecondition) })
}

fn text(report: &DoctorReport, style: &Style) -> String {
    let mut text = format!("{}\n", style.heading("host"));
    text.extend(report.host.iter().map(|remark| lines(remark, style)));
    let path = printable(&report.path.display().to_string()).into_owned();
    text.push_str(&format!("\n{}\n", style.heading(&format!("store {path}"))));
    text.extend(report.store.iter().map(|remark| lines(remark, style)));
    text
}

fn lines(remark: &Remark, style: &Style) -> String {
    let health = match remark.health {
        Health::Good => "good ".into(),
        Health::Note => style.hint("note "),
        Health::Fault => style.error("fault"),
    };
    let mut text = format!("  {health}  {:16}  {}\n", remark.topic, printable(&remark.says));
    for item in &remark.items {
        text.push_str(&format!("{:29}{}\n", "", printable(item)));
    }
    if let Some(mend) = &remark.mend {
        text.push_str(&format!("{:27}{} {}\n", "", style.hint("->"), printable(mend)));
    }
    text
}

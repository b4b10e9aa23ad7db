//! `transload audit LOG…`: the verdict on recorded runs.
//!
//! Reads audit logs (`--audit-log`) and machine logs (`--log-format json -vv`) of any number of processes at once. Lines
//! that are neither are passed over and counted, so a log that ends in the middle of a line, or that a service manager
//! has mixed with others, still says what it can.

use super::output::table::{Align, Table};
use super::output::{Style, printable};
use clap::Args;
use serde::Serialize;
use serde_json::Value;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use transload::transfer::verdict::{Act, Record, Step, Verdict, What, judge};
use transload::{Error, ErrorKind, Result, ResultExt};

/// Judge recorded runs: was anything done twice, and which step let it happen?
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  transload --audit-log run.jsonl import app.tar && transload audit run.jsonl
  transload audit node-a.jsonl node-b.jsonl       several processes' logs at once
  journalctl -o cat -u preload | transload audit -

Exit codes: 0 nothing was done twice, 1 something was, 3 there is nothing to judge in the logs.")]
pub struct Audit {
    /// Logs written with --audit-log, or with --log-format json -vv; - is stdin
    #[arg(required = true, value_name = "LOG")]
    pub logs: Vec<PathBuf>,
}

/// What the command prints as JSON.
#[derive(Serialize)]
pub struct View {
    pub records: u64,
    pub passed_over: u64,
    #[serde(flatten)]
    pub verdict: Verdict,
    pub conclusion: String,
}

/// The longest line that is looked at; ours have some hundred bytes.
const LINE_BYTES: u64 = 64 << 10;

/// Reads and judges the logs.
pub fn audit(args: &Audit) -> Result<View> {
    let mut records = Vec::new();
    let mut passed_over = 0;
    for path in &args.logs {
        let read = open(path).and_then(|log| read(log, &mut records, &mut passed_over));
        read.doing(|| format!("cannot audit {}", path.display()))?;
    }
    if records.is_empty() {
        let error = Error::malformed("cannot audit: there is no record of an import in these logs");
        return Err(error.with_hint("write one with 'transload --audit-log FILE import …'"));
    }
    let verdict = judge(&records);
    let conclusion = conclusion(verdict.step).to_string();
    Ok(View { records: records.len() as u64, passed_over, verdict, conclusion })
}

fn open(path: &Path) -> Result<Box<dyn Read>> {
    match path.as_os_str() == "-" {
        true => Ok(Box::new(io::stdin())),
        false => Ok(Box::new(File::open(path)?)),
    }
}

fn read(log: impl Read, records: &mut Vec<Record>, passed_over: &mut u64) -> Result<()> {
    let mut log = BufReader::new(log);
    let mut line = Vec::new();
    loop {
        line.clear();
        if (&mut log).take(LINE_BYTES).read_until(b'\n', &mut line)? == 0 {
            return Ok(());
        }
        match serde_json::from_slice(&line).ok().as_ref().and_then(record) {
            Some(record) => records.push(record),
            None => *passed_over += 1,
        }
    }
}

fn record(line: &Value) -> Option<Record> {
    let text = |name: &str| line[name].as_str().map(str::to_string);
    let act = act(line)?;
    let import = if act == Act::Collected { String::new() } else { text("import")? };
    Some(Record {
        at_us: micros(line["time"].as_str()?)?,
        store: text("store")?,
        process: text("process")?,
        import,
        act,
    })
}

fn act(line: &Value) -> Option<Act> {
    let key = |name: &str| line[name].as_str().map(str::to_string);
    Some(match line["event"].as_str()? {
        "import_started" => Act::Started,
        "import_failed" => Act::Ended { ok: false },
        "import_finished" => Act::Ended { ok: true },
        "gc_started" | "gc_finished" => Act::Collected,
        "layer_planned" => Act::Planned(What::Blob, key("digest")?),
        "blob_claimed" => Act::Claimed(What::Blob, key("digest")?),
        "blob_written" => Act::Made(What::Blob, key("digest")?),
        "tree_claimed" => Act::Claimed(What::Tree, key("diff_id")?),
        "tree_extracted" => Act::Made(What::Tree, key("diff_id")?),
        "snapshot_committed" => Act::Made(What::Snapshot, key("chain_id")?),
        _ => return None,
    })
}

/// Microseconds on a clock that starts somewhere: months count as 31 days, which keeps the order.
fn micros(time: &str) -> Option<u64> {
    let digits: String = time.chars().filter(|c| c.is_ascii_digit()).collect();
    if !time.is_ascii() || digits.len() != 20 || !time.ends_with('Z') {
        return None;
    }
    let number = |from: usize, to: usize| digits[from..to].parse::<u64>().ok();
    let days = (number(0, 4)? * 12 + number(4, 6)?) * 31 + number(6, 8)?;
    let seconds = ((days * 24 + number(8, 10)?) * 60 + number(10, 12)?) * 60 + number(12, 14)?;
    Some(seconds * 1_000_000 + number(14, 20)?)
}

/// What it means, and where to look next.
pub fn conclusion(step: Option<Step>) -> &'static str {
    match step {
        None => {
            "nothing was done more than once; if the store still has something twice or wrong, deduplication is not \
             the cause: check the content store with 'transload fsck'"
        }
        Some(Step::Plan) => {
            "deduplication failed at the plan: one archive's layers were not collapsed before they were claimed"
        }
        Some(Step::Claim) => {
            "deduplication failed at the claim: two threads of one process were given the same right at once"
        }
        Some(Step::CrossProcess) => {
            "deduplication failed between processes: the lock on the store's ingest directory did not hold, as \
             happens on filesystems that do not support flock ('transload doctor' checks that)"
        }
        Some(Step::Snapshot) => {
            "deduplication failed at the snapshot: a chain that was there was prepared again, so the metadata lost it"
        }
        Some(Step::ContentStore) => {
            "deduplication held, and the content store did not: what one import had finished was not there for the \
             next, and no collection is recorded between them; check it with 'transload fsck'"
        }
    }
}

/// The verdict as people read it.
pub fn render(view: &View, style: &Style) -> String {
    let Verdict { imports, processes, unfinished, made, findings, .. } = &view.verdict;
    let mut text =
        format!("{imports} imports by {processes} processes, {unfinished} of them unfinished or failed; ");
    text.push_str(&format!(
        "{made} blobs, layers and snapshots made; {} lines passed over\n",
        view.passed_over
    ));
    if !findings.is_empty() {
        let headings = [
            ("STEP", Align::Left),
            ("WHAT", Align::Left),
            ("KEY", Align::Left),
            ("CLAIMED", Align::Right),
            ("MADE", Align::Right),
            ("PROCESSES", Align::Left),
        ];
        let mut table = Table::new(&headings);
        for finding in findings {
            let what = match finding.what {
                What::Blob => "blob",
                What::Tree => "layer",
                What::Snapshot => "snapshot",
            };
            table.row([
                finding.step.name().to_string(),
                what.to_string(),
                super::output::plain::short_key(&finding.key),
                finding.claimed.to_string(),
                finding.made.to_string(),
                finding.processes.join(" "),
            ]);
        }
        text.push_str(&table.render(style));
    }
    text.push_str(&printable(&view.conclusion));
    text.push('\n');
    text
}

/// The exit code of a verdict: work that was done twice is a fault of ours.
pub fn code(verdict: &Verdict) -> u8 {
    if verdict.once { 0 } else { super::exit::code(ErrorKind::Internal) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_keep_their_order_across_midnight_and_month() {
        let ordered = [
            "2026-01-31T23:59:59.999999Z",
            "2026-02-01T00:00:00.000000Z",
            "2026-02-01T00:00:00.000001Z",
            "2027-01-01T00:00:00.000000Z",
        ];
        let times: Vec<u64> = ordered.iter().map(|time| micros(time).expect(time)).collect();
        assert!(times.is_sorted());
        for wrong in ["", "2026-01-31", "2026-01-31T23:59:59Z", "2026-01-31T23:59:59.99999éZ"] {
            assert_eq!(micros(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn what_is_no_record_is_passed_over() {
        let mut records = Vec::new();
        let mut passed_over = 0;
        let log = "not json\n{\"event\":\"blob_claimed\",\"digest\":\"sha256:1\"}\n[1]\n{\"event\":\"waited\"}\n{\"time\"";
        read(log.as_bytes(), &mut records, &mut passed_over).expect("reads");
        assert_eq!((records.len(), passed_over), (0, 5));
        let line = "{\"time\":\"2026-01-31T23:59:59.999999Z\",\"process\":\"1\",\"store\":\"s\",\"import\":\"i\",\
                    \"event\":\"blob_written\",\"digest\":\"sha256:1\",\"size_bytes\":1}\n";
        read(line.as_bytes(), &mut records, &mut passed_over).expect("reads");
        assert_eq!(records[0].act, Act::Made(What::Blob, "sha256:1".into()));
    }
}

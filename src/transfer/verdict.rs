//! The verdict of an audit: what was done more than once, and at which step deduplication failed.
//!
//! Pure: it judges [`Record`]s, wherever they come from: one import as it runs (`--audit`), or the logs of several
//! processes on one store (`transload audit`). A right that was taken by an import that then failed or was killed is
//! handed on, and that is no fault; neither is work that is done again after a collection.

use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};

/// What something was done to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum What {
    /// A blob, by its digest.
    Blob,
    /// An extracted layer, by its DiffID.
    Tree,
    /// A snapshot, by its chain id.
    Snapshot,
}

/// What was done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Act {
    /// An import began.
    Started,
    /// It ended well, or not.
    Ended {
        /// Whether its images are in the store now.
        ok: bool,
    },
    /// A collection removed what nothing needed.
    Collected,
    /// The plan of an import lists it.
    Planned(What, String),
    /// The right to make it was taken.
    Claimed(What, String),
    /// It was made: written, extracted, prepared.
    Made(What, String),
}

/// One act, and who did it when.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// When, in microseconds on a clock that all processes share.
    pub at_us: u64,
    /// Which store; the same one has the same name in every log.
    pub store: String,
    /// Which process.
    pub process: String,
    /// Which import; no two have the same name.
    pub import: String,
    /// What was done.
    pub act: Act,
}

/// Where deduplication failed, in the order of an import's walk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    /// Duplicates inside one archive were not collapsed.
    Plan,
    /// Two lanes or imports of one process were given the same right.
    Claim,
    /// Two processes had the same right at once: the lock between them did not hold.
    CrossProcess,
    /// A snapshot was prepared again although it was there.
    Snapshot,
    /// What an import had finished was not found by a later one: the content store lost it.
    ContentStore,
}

impl Step {
    /// The name, as in JSON and in metrics.
    pub fn name(self) -> &'static str {
        match self {
            Step::Plan => "plan",
            Step::Claim => "claim",
            Step::CrossProcess => "cross_process",
            Step::Snapshot => "snapshot",
            Step::ContentStore => "content_store",
        }
    }
}

/// Something that was done more than once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// The step that should have prevented it.
    pub step: Step,
    /// What it is.
    pub what: What,
    /// Its digest, DiffID or chain id.
    pub key: String,
    /// How often the right to make it was taken.
    pub claimed: u64,
    /// How often it was made.
    pub made: u64,
    /// The imports that did it.
    pub imports: Vec<String>,
    /// The processes that did it.
    pub processes: Vec<String>,
}

/// What an audit says.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Verdict {
    /// Whether nothing was done more than once.
    pub once: bool,
    /// The first step that failed, `None` if all held.
    pub step: Option<Step>,
    /// How many imports were looked at.
    pub imports: u64,
    /// Of how many processes.
    pub processes: u64,
    /// How many of the imports failed, or never ended.
    pub unfinished: u64,
    /// How many blobs, layers and snapshots were made.
    pub made: u64,
    /// What was done more than once, by step.
    pub findings: Vec<Finding>,
}

/// What one import did to one thing.
#[derive(Clone, Debug, Default)]
struct Deed<'a> {
    import: &'a str,
    planned: u64,
    claimed: u64,
    made: u64,
    first_us: u64,
    last_us: u64,
}

#[derive(Clone, Debug, Default)]
struct Import<'a> {
    process: &'a str,
    ended_us: Option<u64>,
    ok: bool,
}

/// The records in the order and the groups that judging needs.
#[derive(Default)]
struct Case<'a> {
    imports: BTreeMap<&'a str, Import<'a>>,
    collections: Vec<(&'a str, u64)>,
    deeds: BTreeMap<(&'a str, What, &'a str), Vec<Deed<'a>>>,
}

/// Judges the records of any number of imports, in any order.
///
/// ```
/// use transload::transfer::verdict::{Act, Record, Step, What, judge};
/// let record = |at_us, process: &str, act| Record {
///     at_us,
///     store: "store".into(),
///     process: process.into(),
///     import: format!("import of {process}"),
///     act,
/// };
/// let made = |at_us, process| record(at_us, process, Act::Made(What::Snapshot, "sha256:1".into()));
/// let first = [made(1, "a"), record(2, "a", Act::Ended { ok: true })];
/// assert!(judge(&first).once);
/// assert_eq!(judge(&[&first[..], &[made(3, "b")]].concat()).step, Some(Step::Snapshot));
/// ```
pub fn judge(records: &[Record]) -> Verdict {
    let case = Case::of(records);
    let mut findings: Vec<Finding> =
        case.deeds.iter().filter_map(|(key, deeds)| case.finding(*key, deeds)).collect();
    findings.sort_by(|a, b| (a.step, a.what, &a.key).cmp(&(b.step, b.what, &b.key)));
    let processes: BTreeSet<&str> = case.imports.values().map(|import| import.process).collect();
    Verdict {
        once: findings.is_empty(),
        step: findings.first().map(|finding| finding.step),
        imports: case.imports.len() as u64,
        processes: processes.len() as u64,
        unfinished: case.imports.values().filter(|import| !import.ok).count() as u64,
        made: case.deeds.values().flatten().map(|deed| deed.made).sum(),
        findings,
    }
}

impl<'a> Case<'a> {
    fn of(records: &'a [Record]) -> Self {
        let mut ordered: Vec<&Record> = records.iter().collect();
        ordered.sort_by_key(|record| record.at_us);
        let mut case = Case::default();
        ordered.into_iter().for_each(|record| case.add(record));
        case
    }

    fn add(&mut self, record: &'a Record) {
        let Record { at_us, store, process, import, act } = record;
        if *act == Act::Collected {
            return self.collections.push((store, *at_us));
        }
        let known = self.imports.entry(import).or_default();
        known.process = process;
        match act {
            Act::Started | Act::Collected => {}
            // A failure is told before the end, and counts.
            Act::Ended { ok } if known.ended_us.is_none() => (known.ended_us, known.ok) = (Some(*at_us), *ok),
            Act::Ended { .. } => {}
            Act::Planned(what, key) => self.deed(record, *what, key, true).planned += 1,
            Act::Claimed(what, key) => self.deed(record, *what, key, false).claimed += 1,
            Act::Made(what, key) => self.deed(record, *what, key, false).made += 1,
        }
    }

    /// The deed that a record belongs to. A plan is no deed yet: it does not move the times.
    fn deed(&mut self, record: &'a Record, what: What, key: &'a str, plan: bool) -> &mut Deed<'a> {
        let deeds = self.deeds.entry((&record.store, what, key)).or_default();
        let known = deeds.iter().position(|deed| deed.import == record.import);
        let at = known.unwrap_or_else(|| {
            deeds.push(Deed { import: &record.import, first_us: u64::MAX, ..Deed::default() });
            deeds.len() - 1
        });
        let deed = &mut deeds[at];
        if !plan {
            deed.first_us = deed.first_us.min(record.at_us);
            deed.last_us = deed.last_us.max(record.at_us);
        }
        deed
    }

    fn finding(&self, (store, what, key): (&str, What, &str), deeds: &[Deed<'a>]) -> Option<Finding> {
        let deeds: Vec<&Deed<'_>> = deeds.iter().filter(|deed| !self.is_handed_on(deed)).collect();
        let claimed = deeds.iter().map(|deed| deed.claimed).sum();
        let made = deeds.iter().map(|deed| deed.made).sum();
        if claimed <= 1 && made <= 1 {
            return None;
        }
        let step = self.step(store, what, &deeds)?;
        let imports: BTreeSet<&str> = deeds.iter().map(|deed| deed.import).collect();
        let processes: BTreeSet<&str> = imports.iter().map(|import| self.imports[import].process).collect();
        let strings = |set: BTreeSet<&str>| set.into_iter().map(str::to_string).collect();
        let key = key.to_string();
        Some(Finding {
            step,
            what,
            key,
            claimed,
            made,
            imports: strings(imports),
            processes: strings(processes),
        })
    }

    /// Nothing was done, or the right was taken and given back: the import failed or was killed before it made anything.
    fn is_handed_on(&self, deed: &Deed<'_>) -> bool {
        deed.made == 0 && (deed.claimed == 0 || !self.imports[deed.import].ok)
    }

    /// The first step that failed, `None` if all that was done again had a reason.
    fn step(&self, store: &str, what: What, deeds: &[&Deed<'_>]) -> Option<Step> {
        let alone = deeds.iter().filter_map(|deed| step_in_one_import(what, deed));
        let mut ordered = deeds.to_vec();
        ordered.sort_by_key(|deed| deed.first_us);
        let among = ordered.windows(2).filter_map(|pair| self.step_between(store, what, pair[0], pair[1]));
        alone.chain(among).min()
    }

    fn step_between(&self, store: &str, what: What, a: &Deed<'_>, b: &Deed<'_>) -> Option<Step> {
        let (first, second) = (&self.imports[a.import], &self.imports[b.import]);
        let released_us = if a.made > 0 { a.last_us } else { first.ended_us.unwrap_or(u64::MAX) };
        let collected = |(of, at): &(&str, u64)| *of == store && (released_us..=b.first_us).contains(at);
        if b.first_us < released_us {
            return Some(match what {
                What::Snapshot => Step::Snapshot,
                _ if first.process == second.process => Step::Claim,
                _ => Step::CrossProcess,
            });
        }
        // What an import leaves that did not end well is not promised to anyone.
        if !first.ok && first.ended_us.is_none_or(|ended| ended <= b.first_us)
            || self.collections.iter().any(collected)
        {
            return None;
        }
        Some(if what == What::Snapshot { Step::Snapshot } else { Step::ContentStore })
    }
}

fn step_in_one_import(what: What, deed: &Deed<'_>) -> Option<Step> {
    if deed.claimed <= 1 && deed.made <= 1 {
        return None;
    }
    Some(match what {
        What::Snapshot => Step::Snapshot,
        // Two blobs of different compression may be planned for one tree.
        What::Blob if deed.planned > 1 => Step::Plan,
        _ => Step::Claim,
    })
}

#[cfg(test)]
#[path = "verdict_tests.rs"]
mod tests;

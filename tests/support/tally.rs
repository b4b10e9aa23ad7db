//! The count of one part of `scripts/torture`: what was injected, what became of it, and one line of JSON for the table.

use std::io::Write;

/// What one part did.
#[derive(Default)]
pub struct Tally {
    part: String,
    injected: u64,
    survived: u64,
    leaked: u64,
    problems: Vec<String>,
}

impl Tally {
    pub fn new(part: &str) -> Self {
        Tally { part: part.to_string(), ..Tally::default() }
    }

    /// One fault was injected; `lost` and `leaked` say what is wrong after it.
    pub fn fault(&mut self, what: &str, lost: Vec<String>, leaked: Vec<String>) {
        self.injected += 1;
        self.survived += u64::from(lost.is_empty());
        self.leaked += leaked.len() as u64;
        let leaked = leaked.into_iter().map(|name| format!("left behind: {name}"));
        self.problems.extend(lost.into_iter().chain(leaked).map(|problem| format!("{what}: {problem}")));
    }

    /// How many faults there were so far.
    pub fn injected(&self) -> u64 {
        self.injected
    }

    /// Writes the line to the file that `TRANSLOAD_TORTURE_REPORT` names, and fails the test if anything is wrong.
    #[track_caller]
    pub fn end(self, at_least: u64) {
        let Tally { part, injected, survived, leaked, problems } = self;
        let lost = injected - survived;
        let line = serde_json::json!({
            "part": part, "injected": injected, "survived": survived, "lost": lost, "leaked": leaked,
        });
        report(&line);
        assert!(problems.is_empty(), "{} problems:\n{}", problems.len(), problems.join("\n"));
        assert!(injected >= at_least, "{part}: {injected} faults only, so this shows nothing");
    }
}

/// Counts the executions of what explores, or a finding if it panics. Several of one part are one row of the table.
pub struct Executions {
    part: &'static str,
    count: u64,
}

impl Executions {
    pub fn of(part: &'static str, count: u64) -> Self {
        Executions { part, count }
    }
}

impl Drop for Executions {
    fn drop(&mut self) {
        let findings = u64::from(std::thread::panicking());
        report(&serde_json::json!({"part": self.part, "executions": self.count, "findings": findings}));
    }
}

fn report(line: &serde_json::Value) {
    println!("{line}");
    if let Some(path) = std::env::var_os("TRANSLOAD_TORTURE_REPORT") {
        let mut file = std::fs::File::options().create(true).append(true).open(path).expect("the report");
        writeln!(file, "{line}").expect("the report");
    }
}

/// Whether everything is wanted that takes longer than the tests of a change may.
pub fn thorough() -> bool {
    std::env::var_os("TRANSLOAD_TORTURE").is_some()
}

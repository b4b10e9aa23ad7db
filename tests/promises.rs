//! The pages that say what is promised name the tests that show it. Each of these is there, or the page is wrong.

#[path = "support/sources.rs"]
mod sources;

use sources::{root, sources};
use std::collections::BTreeSet;
use std::path::Path;

/// The pages, and the heads of the columns in which tests are named.
const PAGES: [&str; 3] = ["docs/cases.md", "docs/durability.md", "docs/security.md"];
const COLUMNS: [&str; 4] = ["Shown by", "Test", "Refused or harmless", "Imports"];

fn read(name: &str) -> String {
    std::fs::read_to_string(root().join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// `cases::escape::t3_…` for `tests/cases/escape.rs`, and the modules on the way.
#[derive(Default)]
struct Known {
    tests: BTreeSet<String>,
    modules: BTreeSet<String>,
}

impl Known {
    fn new() -> Known {
        let mut known = Known::default();
        for top in ["src", "tests"] {
            let dir = root().join(top);
            for file in sources(&dir) {
                known.add(file.strip_prefix(&dir).expect("below"), &file);
            }
        }
        known
    }

    fn add(&mut self, below: &Path, file: &Path) {
        let module: Vec<String> =
            below.with_extension("").iter().map(|part| part.to_string_lossy().into()).collect();
        let module = module.join("::");
        let module = module.trim_end_matches("::mod").trim_end_matches("::main").to_string();
        let text = std::fs::read_to_string(file).expect("a source file");
        let mut lines = text.lines().map(str::trim_start);
        while let Some(line) = lines.next() {
            if line != "#[test]" {
                continue;
            }
            let named = lines.find_map(|line| line.strip_prefix("fn "));
            let name = named.and_then(|rest| rest.split('(').next()).expect("a test has a name");
            self.tests.insert(format!("{module}::{name}"));
        }
        if text.contains("mod tests {") {
            self.modules.insert(format!("{module}::tests"));
        }
        self.modules.insert(module);
    }

    /// Whether `name` is a test, or the beginning of one (`t3_…`), or what some part of a path or module is called.
    fn has(&self, name: &str) -> bool {
        if name.contains('/') {
            return root().join(name).exists();
        }
        let is_end = |full: &str, end: &str| full == end || full.ends_with(&format!("::{end}"));
        match name.strip_suffix('…') {
            None => self.tests.iter().chain(&self.modules).any(|full| is_end(full, name)),
            Some(start) => {
                let (module, start) = start.rsplit_once("::").unwrap_or(("", start));
                let fits = |full: &&String| {
                    let (of, test) = full.rsplit_once("::").unwrap_or(("", full));
                    test.starts_with(start) && (module.is_empty() || is_end(of, module))
                };
                self.tests.iter().any(|full| fits(&full))
            }
        }
    }
}

fn cells(line: &str) -> Vec<&str> {
    line.trim().trim_matches('|').split('|').map(str::trim).collect()
}

/// The words in backticks of a cell; behind "fuzz target" they are files.
fn names(cell: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut fuzz = false;
    for (at, piece) in cell.split('`').enumerate() {
        if at % 2 == 0 {
            fuzz = piece.contains("fuzz target") || (fuzz && piece.trim() == "and");
        } else if fuzz {
            found.push(format!("fuzz/fuzz_targets/{piece}.rs"));
        } else {
            found.push(piece.to_string());
        }
    }
    found
}

/// Calls with the first cell and the names of the columns of tests, for each row of a page.
fn rows(page: &str, mut row: impl FnMut(&str, &[String])) {
    let mut columns: Vec<usize> = Vec::new();
    for line in page.lines() {
        if !line.starts_with('|') {
            columns.clear();
            continue;
        }
        let cells = cells(line);
        let head: Vec<usize> = (0..cells.len()).filter(|&at| COLUMNS.contains(&cells[at])).collect();
        if !head.is_empty() {
            columns = head;
        } else if !columns.is_empty() && !cells[0].starts_with("---") {
            let named: Vec<String> =
                columns.iter().filter_map(|&at| cells.get(at)).flat_map(|cell| names(cell)).collect();
            row(cells[0], &named);
        }
    }
}

#[test]
fn every_promise_names_a_test_that_is_there() {
    let known = Known::new();
    assert!(known.tests.len() > 300, "{} tests were found", known.tests.len());
    let mut wrong = Vec::new();
    for page in PAGES {
        let mut count = 0;
        rows(&read(page), |first, names| {
            count += 1;
            if names.is_empty() {
                wrong.push(format!("{page}: {first}: no test"));
            }
            let gone = names.iter().filter(|name| !known.has(name));
            wrong.extend(gone.map(|name| format!("{page}: {first}: there is no {name}")));
        });
        assert!(count > 10, "{page} has {count} rows");
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_case_has_its_row() {
    let mut listed = BTreeSet::new();
    rows(&read("docs/cases.md"), |first, _| {
        listed.insert(first.split(' ').next().unwrap_or_default().to_string());
    });
    let hostile = (1..=31).filter(|number| ![26, 27].contains(number)).map(|number| format!("T{number}"));
    let missing: Vec<String> = hostile
        .chain((1..=20).map(|number| format!("B{number}")))
        .filter(|case| !listed.contains(case))
        .collect();
    assert!(missing.is_empty(), "docs/cases.md lacks {missing:?}");
}

#[test]
fn what_is_not_there_is_noticed() {
    let known = Known::new();
    for name in ["no_such_test", "no_such_…", "cases::limits::t3_…", "tests/no_such.rs", "cases::nowhere"]
    {
        assert!(!known.has(name), "{name}");
    }
    for name in [
        "promises::what_is_not_there_is_noticed",
        "what_is_not_…",
        "cases::escape",
        "tests/power",
        "cases::escape::t3_…",
    ] {
        assert!(known.has(name), "{name}");
    }
    assert_eq!(
        names("`a`; fuzz targets `b` and `c`, `d::e`"),
        ["a", "fuzz/fuzz_targets/b.rs", "fuzz/fuzz_targets/c.rs", "d::e"]
    );
}

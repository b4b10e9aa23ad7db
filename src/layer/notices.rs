//! What was left out on purpose, gathered so that a hundred thousand equal cases become one line.

use crate::tree::PathBytes;
use std::collections::BTreeMap;

/// More different reasons than this are summed up in one more line.
const KINDS: usize = 32;

/// Reasons with the first path of each and how often it came.
#[derive(Default)]
pub(super) struct Notices {
    kinds: BTreeMap<String, (String, u64)>,
    others: u64,
}

impl Notices {
    /// Notes that `what` happened at `path`.
    pub fn add(&mut self, what: impl Into<String>, path: &[u8]) {
        let what = what.into();
        if let Some((_, count)) = self.kinds.get_mut(&what) {
            *count += 1;
        } else if self.kinds.len() < KINDS {
            self.kinds.insert(what, (PathBytes::new(path).to_string(), 1));
        } else {
            self.others += 1;
        }
    }

    /// One line for each reason.
    pub fn into_lines(self) -> Vec<String> {
        let line = |(what, (path, count)): (String, (String, u64))| match count {
            1 => format!("{what}: {path}"),
            _ => format!("{what}: {path} and {} more", count - 1),
        };
        let mut lines: Vec<String> = self.kinds.into_iter().map(line).collect();
        if self.others > 0 {
            lines.push(format!("{} further things were left out", self.others));
        }
        lines
    }
}

//! Who holds something: a process, and by what. Plain data, so that an error can carry it.
//!
//! How those of mounts and directories are found is [`crate::mount::holders`]'s affair; who waits for a lock looks for
//! those that hold it.

use serde::{Serialize, Serializer};
use std::fmt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// A process that keeps something from being removed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Holder {
    /// Its number, as this process sees it.
    pub pid: u32,
    /// Its short name, as `ps` shows it.
    pub command: String,
    /// Who runs it.
    pub uid: u32,
    /// By what it holds on; each kind and path once.
    pub uses: Vec<Use>,
}

impl Holder {
    /// The process of this number, with what it holds on by; `None` once it has ended.
    pub(crate) fn of(pid: u32, uses: Vec<Use>) -> Option<Self> {
        let process = PathBuf::from(format!("/proc/{pid}"));
        let uid = std::fs::metadata(&process).ok()?.uid();
        let command = std::fs::read(process.join("comm")).ok()?;
        let command = String::from_utf8_lossy(command.trim_ascii_end()).into_owned();
        Some(Holder { pid, command, uid, uses })
    }
}

/// One thing by which a process holds on to a mount or a directory.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub struct Use {
    /// What kind of thing.
    pub how: How,
    /// Its path, as that process sees it.
    #[serde(serialize_with = "as_text")]
    pub path: PathBuf,
}

/// What is no text is shown as near as may be.
fn as_text<S: Serializer>(path: &Path, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&path.display())
}

/// The ways to hold on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum How {
    /// Its working directory.
    WorkingDirectory,
    /// Its root directory.
    Root,
    /// The program that it runs.
    Executable,
    /// An open file.
    OpenFile,
    /// A file mapped into its memory.
    MappedFile,
    /// A mount in a mount namespace that it lives in; it stands there for every process of that namespace.
    Mount,
    /// A lock on a file.
    Lock,
}

impl How {
    /// In words, for a sentence.
    pub fn words(self) -> &'static str {
        match self {
            How::WorkingDirectory => "working directory",
            How::Root => "root directory",
            How::Executable => "program",
            How::OpenFile => "open file",
            How::MappedFile => "mapped file",
            How::Mount => "mount in its namespace",
            How::Lock => "lock",
        }
    }
}

impl fmt::Display for Use {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.how.words(), self.path.display())
    }
}

impl fmt::Display for Holder {
    /// `process 4711 (sleep): working directory /mnt/x, open file /mnt/x/y`, the first few uses only.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN: usize = 3;
        write!(f, "process {} ({}): ", self.pid, self.command)?;
        for (index, one) in self.uses.iter().take(SHOWN).enumerate() {
            write!(f, "{}{one}", if index > 0 { ", " } else { "" })?;
        }
        match self.uses.len().saturating_sub(SHOWN) {
            0 => Ok(()),
            more => write!(f, " and {more} more"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_holder_reads_as_a_line_and_as_json() {
        let uses = (1..=4).map(|n| Use { how: How::OpenFile, path: format!("/m/{n}").into() }).collect();
        let holder = Holder { pid: 7, command: "cat".into(), uid: 0, uses };
        assert_eq!(
            holder.to_string(),
            "process 7 (cat): open file /m/1, open file /m/2, open file /m/3 and 1 more"
        );
        let json = serde_json::to_value(&holder).expect("plain data");
        assert_eq!(json["uses"][0], serde_json::json!({"how": "open_file", "path": "/m/1"}));
    }
}

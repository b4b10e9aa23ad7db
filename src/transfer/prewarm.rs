//! `prewarm`: reads in what a start needs, so that the first start is not the slow one.
//!
//! Files are read through the store's own trees, whose pages every later mount of them shares. Paths are resolved inside
//! the image's root: a link leads to where it would lead in a container, never out of it. Nothing is mounted, and nothing
//! written but a lease that keeps the image meanwhile.

use super::catalogue;
use crate::error::{Error, ErrorKind, Result, ResultExt};
use crate::parallel::{Cancel, Lanes};
use crate::snapshot::{Node, Stack};
use crate::store::Store;
use rustix::fs::{Advice, FileType, fadvise};
use rustix::io::Errno;
use serde::Serialize;
use std::collections::HashSet;
use std::num::NonZeroU64;

/// How much is read at once, and between two looks at the cancellation token.
const CHUNK_BYTES: usize = 1 << 20;
/// How many files one job of a lane has.
const JOB_FILES: usize = 32;

/// What to read in.
#[derive(Clone, Debug)]
pub struct PrewarmOptions {
    /// Paths in the image, directories with all that is in them; empty for the whole tree.
    pub paths: Vec<Vec<u8>>,
    /// How many files are read at the same time.
    pub threads: usize,
    /// Stops the work.
    pub cancel: Cancel,
}

/// What was read in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct PrewarmReport {
    /// Regular files; one of several names counts once.
    pub files: u64,
    /// Directories that were listed.
    pub directories: u64,
    /// Bytes of the files, holes included.
    pub bytes: u64,
}

/// Reads in an image's files. [`ErrorKind::NotFound`] for a path that is not in it; then nothing is read.
pub fn prewarm(store: &Store, name: &str, options: &PrewarmOptions) -> Result<PrewarmReport> {
    let read = || -> Result<PrewarmReport> {
        let (_held, inspection) = catalogue::hold(store, name, &options.cancel)?;
        let stack = catalogue::stack_of(store, &inspection)?;
        let plan = Plan::make(&stack, options)?;
        let jobs = plan.files.len().div_ceil(JOB_FILES);
        let feed = |lanes: &Lanes<'_, usize>| (0..jobs).try_for_each(|job| lanes.send(job));
        let job = |job: usize| plan.files.chunks(JOB_FILES).nth(job).unwrap_or_default();
        let work = |index: usize| read_files(&stack, job(index), &options.cancel);
        let cancel = options.cancel.child();
        let (_, bytes) = Lanes::scope(options.threads.max(1), &cancel, || {}, work, feed)?;
        Ok(PrewarmReport {
            files: plan.files.len() as u64,
            directories: plan.directories,
            bytes: bytes.iter().sum(),
        })
    };
    read().doing(|| format!("cannot prewarm {name}"))
}

#[derive(Default)]
struct Plan {
    files: Vec<Node>,
    directories: u64,
    seen: HashSet<(usize, u64)>,
}

impl Plan {
    fn make(stack: &Stack, options: &PrewarmOptions) -> Result<Plan> {
        let mut plan = Plan::default();
        if options.paths.is_empty() {
            stack.root()?.map_or(Ok(()), |root| plan.add(stack, root, &options.cancel))?;
        }
        for path in &options.paths {
            let found = stack.resolve(path, true)?;
            let missing = || {
                let shown = String::from_utf8_lossy(path).into_owned();
                Error::new(ErrorKind::NotFound, format!("there is no {shown} in the image"))
            };
            plan.add(stack, found.ok_or_else(missing)?, &options.cancel)?;
        }
        Ok(plan)
    }

    /// What lies in a directory is seen once, however many paths lead to it.
    fn add(&mut self, stack: &Stack, node: Node, cancel: &Cancel) -> Result<()> {
        let mut waiting = vec![node];
        while let Some(node) = waiting.pop() {
            cancel.check()?;
            if !self.seen.insert((node.layer(), node.stat().st_ino)) {
                continue;
            }
            match node.file_type() {
                FileType::RegularFile => self.files.push(node),
                FileType::Directory => {
                    self.directories += 1;
                    waiting.extend(stack.list(&node)?);
                }
                _ => {}
            }
        }
        Ok(())
    }
}

/// The kernel is told of all files of the job first, so that it can read ahead while the first ones are awaited.
fn read_files(stack: &Stack, nodes: &[Node], cancel: &Cancel) -> Result<u64> {
    let mut open = Vec::with_capacity(nodes.len());
    for node in nodes {
        let file = stack.open(node)?;
        // Advice only: what is not taken is read below all the same.
        let _ = fadvise(&file, 0, NonZeroU64::new(node.stat().st_size as u64), Advice::WillNeed);
        open.push(file);
    }
    let mut buffer = vec![0; CHUNK_BYTES];
    let mut bytes = 0;
    for (file, node) in open.iter().zip(nodes) {
        let mut offset = 0;
        loop {
            cancel.check()?;
            match rustix::io::pread(file, &mut buffer, offset) {
                Ok(0) => break,
                Ok(length) => offset += length as u64,
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno).doing(|| format!("cannot read {node:?}")),
            }
        }
        bytes += offset;
    }
    Ok(bytes)
}

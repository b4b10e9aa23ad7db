//! `oci-layout` and `index.json`, which let others read the store as an OCI image layout (image-spec
//! `image-layout.md`).
//!
//! A list of ten thousand images is megabytes, and an import adds one line. So the list is in the order in which images
//! came, and a file that is only behind by some gets those at its end: not the one that others may be reading, but the
//! one before it, `index.spare`, which then takes its place.

use super::lock;
use crate::error::{Error, ErrorKind, Result, ResultExt};
use crate::io::durable;
use crate::metadata::{GENERATION, IndexView, Metadata};
use crate::oci::media_type;
use crate::parallel::failpoint;
use rustix::fd::{AsFd, AsRawFd, BorrowedFd};
use rustix::fs::{self, AtFlags, Mode, OFlags, RenameFlags};
use rustix::io::Errno;
use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};

const LAYOUT: &str = "oci-layout";
const INDEX: &str = "index.json";
const SPARE: &str = "index.spare";

/// What our own writer knows of its file: which boot wrote it, the last row in it, where its list ends.
const MARK: &str = "io.transload.mark";

/// Our own writer puts the annotations last, so the generation stands within the last bytes.
const TAIL_BYTES: u64 = 512;

/// A hundred thousand images take a tenth of it.
const INDEX_LIMIT_BYTES: u64 = 1 << 30;

/// Shorter lists are written anew each time, in less than a tenth of a millisecond.
const WORTH_KEEPING_BYTES: u64 = 16 << 10;

/// Makes the marker. Not synced: what a power cut leaves of it is seen and written anew.
pub(super) fn ensure_layout(root: BorrowedFd<'_>) -> Result<()> {
    if read(root, LAYOUT)?.is_some_and(|json| is_whole(&json)) {
        return Ok(());
    }
    let _lock = lock::index(root)?;
    match durable::write_atomic(root, LAYOUT, b"{\"imageLayoutVersion\":\"1.0.0\"}\n", false) {
        // A full disk must not keep anyone from opening the store to free some of it; the next one makes it.
        Err(error) if error.kind() == ErrorKind::NoSpace => Ok(()),
        other => other,
    }
}

/// Writes the view unless it shows the database's state already. The second look is under the lock, so of many that
/// come at once the first writes for all.
///
/// Nothing is synced, so what an earlier boot wrote is written anew.
pub(super) fn refresh(root: BorrowedFd<'_>, metadata: &Metadata) -> Result<()> {
    let is_current = || -> Result<bool> {
        let (tail, generation) = (tail(root)?, metadata.generation()?);
        Ok(tail.is_some_and(|tail| tail.generation == generation && tail.is_of(metadata.boot())))
    };
    if is_current()? {
        return Ok(());
    }
    let _lock = lock::index(root)?;
    if is_current()? || append_to_list(root, metadata)? { Ok(()) } else { write(root, metadata) }
}

/// Writes all of it. What came before is the beginning of nothing any more.
fn write(root: BorrowedFd<'_>, metadata: &Metadata) -> Result<()> {
    remove_spare(root)?;
    durable::write_atomic(root, INDEX, &to_json(&metadata.index_view()?, metadata.boot())?, false)
}

/// `false` where the list is short, or where today's list is not that one and more.
fn append_to_list(root: BorrowedFd<'_>, metadata: &Metadata) -> Result<bool> {
    let Some(Tail { generation, mark: Some(mark) }) = tail(root)? else { return Ok(false) };
    let worth_keeping = mark.boot == metadata.boot() && mark.length >= WORTH_KEEPING_BYTES;
    if !worth_keeping || metadata.index_added(generation, mark.last_id)?.is_none() {
        return Ok(false);
    }
    Ok(append_to_spare(root, metadata, (generation, &mark))? || append_to_copy(root, metadata)?)
}

/// `false` where there is no spare, or somebody still reads it or has it under another name, or it is not the beginning
/// of what is shown.
fn append_to_spare(
    root: BorrowedFd<'_>,
    metadata: &Metadata,
    (generation, mark): (u64, &Mark),
) -> Result<bool> {
    let Some(spare) = open(root, SPARE, OFlags::RDWR)? else { return Ok(false) };
    let found = spare.metadata()?;
    if !found.is_file() || found.nlink() != 1 || !is_ours_alone(&spare) {
        return Ok(false);
    }
    let is_earlier = |tail: &Tail| {
        tail.generation <= generation && tail.mark.as_ref().is_some_and(|own| own.last_id <= mark.last_id)
    };
    if !Tail::of(&spare)?.as_ref().is_some_and(is_earlier) || !append(&spare, metadata)? {
        return Ok(false);
    }
    drop(spare);
    show_spare(root)?;
    Ok(true)
}

/// The list becomes the spare, and a copy of it the list.
fn append_to_copy(root: BorrowedFd<'_>, metadata: &Metadata) -> Result<bool> {
    let Some(mut old) = open(root, INDEX, OFlags::RDONLY)? else { return Ok(false) };
    remove_spare(root)?;
    failpoint::at_step(SPARE, "create")?;
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let spare = fs::openat(root, SPARE, flags, Mode::from_raw_mode(0o600));
    let mut spare = File::from(spare.doing(|| format!("cannot create {SPARE}"))?);
    if let Err(error) = std::io::copy(&mut old, &mut spare) {
        remove_spare(root)?;
        return Err(error).doing(|| format!("cannot write {SPARE}"));
    }
    if !append(&spare, metadata)? {
        return Ok(false);
    }
    show_spare(root)?;
    Ok(true)
}

/// The spare and the list change places, where the filesystem can do that.
fn show_spare(root: BorrowedFd<'_>) -> Result<()> {
    failpoint::at_step(SPARE, "rename")?;
    let shown = match fs::renameat_with(root, SPARE, root, INDEX, RenameFlags::EXCHANGE) {
        Err(Errno::INVAL | Errno::NOENT) => fs::renameat(root, SPARE, root, INDEX),
        other => other,
    };
    shown.doing(|| format!("cannot rename {SPARE}"))
}

fn remove_spare(root: BorrowedFd<'_>) -> Result<()> {
    match fs::unlinkat(root, SPARE, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(errno) => Err(errno).doing(|| format!("cannot remove {SPARE}")),
    }
}

/// Makes today's list of a file that shows an earlier state, unless that takes more than adding to its end.
fn append(file: &File, metadata: &Metadata) -> Result<bool> {
    let Some(Tail { generation, mark: Some(mark) }) = Tail::of(file)? else { return Ok(false) };
    if mark.boot != metadata.boot() {
        return Ok(false);
    }
    let Some(added) = metadata.index_added(generation, mark.last_id)? else { return Ok(false) };
    // A list that was empty has no comma before what is added; it is too short to get here, too.
    let mut text = Vec::new();
    for entry in &added.manifests {
        text.push(b',');
        serde_json::to_writer(&mut text, entry).map_err(internal)?;
    }
    let list_end = mark.length;
    let mark = Mark { last_id: added.last_id, length: list_end + text.len() as u64, ..mark };
    text.extend(Tail { generation: added.generation, mark: Some(mark) }.to_string().into_bytes());
    // From the first byte of the old tail on, so that a file that is half written has none.
    failpoint::at_step(SPARE, "write")?;
    file.write_all_at(&text, list_end).doing(|| format!("cannot write {SPARE}"))?;
    file.set_len(list_end + text.len() as u64).doing(|| format!("cannot write {SPARE}"))?;
    Ok(true)
}

/// Whether nobody else has this file open: the kernel grants a lease for writing only then (fcntl(2), `F_SETLEASE`). It
/// ends with the descriptor. Who opens the file meanwhile waits for that, and the kernel signals it to us: with `SIGIO`, which
/// ends a process, unless it is told to take one that nobody minds.
fn is_ours_alone(file: &File) -> bool {
    const F_SETSIG: libc::c_int = 10;
    let call = |command: libc::c_int, word: libc::c_int| {
        // SAFETY: a call with two numbers, on a descriptor that is open.
        unsafe { libc::fcntl(file.as_fd().as_raw_fd(), command, word) == 0 }
    };
    call(F_SETSIG, libc::SIGURG) && call(libc::F_SETLEASE, libc::F_WRLCK)
}

/// How `index.json` stands to the database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IndexState {
    /// It shows the database's state.
    Ours,
    /// It is missing, or shows an earlier state.
    Behind,
    /// Someone else has written it.
    Foreign,
}

/// Whether there is a file at all; only an open database ever made one.
pub(super) fn is_there(root: BorrowedFd<'_>) -> bool {
    fs::statat(root, INDEX, AtFlags::SYMLINK_NOFOLLOW).is_ok()
}

/// What lies where the list should be.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Found {
    /// One of ours, up to date or not.
    Ours,
    /// Somebody else's.
    Foreign,
    /// Nothing, or nothing that anybody can read.
    Damaged,
}

/// A cheap look at the end of one that is ours.
pub(super) fn look(root: BorrowedFd<'_>) -> Result<Found> {
    if tail(root)?.is_some() {
        return Ok(Found::Ours);
    }
    let whole = read(root, INDEX)?.is_some_and(|json| is_whole(&json));
    Ok(if whole { Found::Foreign } else { Found::Damaged })
}

/// Half a file is what a power cut leaves of ours, which nobody synced.
fn is_whole(json: &[u8]) -> bool {
    serde_json::from_slice::<serde::de::IgnoredAny>(json).is_ok()
}

/// Holds the whole file against the database.
pub(super) fn state(root: BorrowedFd<'_>, metadata: &Metadata) -> Result<IndexState> {
    let view = metadata.index_view()?;
    if look(root)? == Found::Foreign {
        return Ok(IndexState::Foreign);
    }
    let Some(tail) = tail(root)? else { return Ok(IndexState::Behind) };
    if tail.generation != view.generation {
        let from_elsewhere = tail.generation > view.generation && metadata.generation()? < tail.generation;
        return Ok(if from_elsewhere { IndexState::Foreign } else { IndexState::Behind });
    }
    let Some(mark) = tail.mark else { return Ok(IndexState::Behind) };
    let expected = to_json(&view, &mark.boot)?;
    Ok(match read(root, INDEX)? {
        Some(found) if found == expected => IndexState::Ours,
        // Written between our two looks.
        Some(_) if metadata.generation()? != view.generation => IndexState::Behind,
        Some(_) => IndexState::Foreign,
        None => IndexState::Behind,
    })
}

/// Writes the view whatever is there.
pub(super) fn rewrite(root: BorrowedFd<'_>, metadata: &Metadata) -> Result<()> {
    let _lock = lock::index(root)?;
    write(root, metadata)
}

fn to_json(view: &IndexView, boot: &str) -> Result<Vec<u8>> {
    let mut json =
        format!(r#"{{"schemaVersion":2,"mediaType":"{}","manifests":["#, media_type::INDEX).into_bytes();
    for (at, entry) in view.manifests.iter().enumerate() {
        if at > 0 {
            json.push(b',');
        }
        serde_json::to_writer(&mut json, entry).map_err(internal)?;
    }
    let mark = Mark { boot: boot.to_string(), last_id: view.last_id, length: json.len() as u64 };
    json.extend(Tail { generation: view.generation, mark: Some(mark) }.to_string().into_bytes());
    Ok(json)
}

fn internal(error: serde_json::Error) -> Error {
    Error::new(ErrorKind::Internal, error.to_string())
}

fn open(root: BorrowedFd<'_>, name: &str, flags: OFlags) -> Result<Option<File>> {
    match fs::openat(root, name, flags | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty()) {
        Ok(fd) => Ok(Some(File::from(fd))),
        Err(Errno::NOENT) => Ok(None),
        Err(errno) => Err(errno).doing(|| format!("cannot open {name}")),
    }
}

fn read(root: BorrowedFd<'_>, name: &str) -> Result<Option<Vec<u8>>> {
    use std::io::Read;
    let Some(file) = open(root, name, OFlags::RDONLY)? else { return Ok(None) };
    let mut json = Vec::new();
    file.take(INDEX_LIMIT_BYTES).read_to_end(&mut json).doing(|| format!("cannot read {name}"))?;
    Ok(Some(json))
}

/// How `index.json` ends; `None` for a file that is missing, damaged or someone else's.
fn tail(root: BorrowedFd<'_>) -> Result<Option<Tail>> {
    Ok(open(root, INDEX, OFlags::RDONLY)?.map(|file| Tail::of(&file)).transpose()?.flatten())
}

/// The end of a file of ours, from the bracket that closes the list.
#[derive(Debug, PartialEq, Eq)]
struct Tail {
    generation: u64,
    /// Earlier releases wrote none.
    mark: Option<Mark>,
}

#[derive(Debug, PartialEq, Eq)]
struct Mark {
    boot: String,
    last_id: u64,
    /// Of everything before the tail, in bytes.
    length: u64,
}

impl Tail {
    /// `None` for a file that is damaged or someone else's.
    fn of(file: &File) -> Result<Option<Tail>> {
        let size = file.metadata()?.len();
        let mut bytes = vec![0; size.min(TAIL_BYTES) as usize];
        let offset = size - bytes.len() as u64;
        match file.read_exact_at(&mut bytes, offset) {
            Ok(()) => Ok(Tail::parse(&String::from_utf8_lossy(&bytes), size)),
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => Ok(None),
            Err(error) => Err(error).doing(|| format!("cannot read {INDEX}")),
        }
    }

    fn parse(end: &str, size: u64) -> Option<Tail> {
        let (_, rest) = end.rsplit_once(&format!("],\"annotations\":{{\"{GENERATION}\":\""))?;
        let rest = rest.strip_suffix("\"}}")?;
        let Some((generation, mark)) = rest.split_once(&format!("\",\"{MARK}\":\"")) else {
            return Some(Tail { generation: rest.parse().ok()?, mark: None });
        };
        let mut words = mark.splitn(3, ' ');
        let mut number = || words.next()?.parse::<u64>().ok();
        let (last_id, length) = (number()?, number()?);
        let mark = Some(Mark { last_id, length, boot: words.next()?.to_string() });
        let tail = Tail { generation: generation.parse().ok()?, mark };
        // Others keep the annotations when they add to the list.
        (length.checked_add(tail.to_string().len() as u64) == Some(size)).then_some(tail)
    }

    fn is_of(&self, boot: &str) -> bool {
        self.mark.as_ref().is_some_and(|mark| mark.boot == boot)
    }
}

impl std::fmt::Display for Tail {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, r#"],"annotations":{{"{GENERATION}":"{}""#, self.generation)?;
        if let Some(Mark { boot, last_id, length }) = &self.mark {
            write!(f, r#","{MARK}":"{last_id} {length} {boot}""#)?;
        }
        f.write_str("}}")
    }
}

#[cfg(test)]
mod tests {
    use super::is_ours_alone;
    use std::fs::File;
    use std::os::unix::fs::OpenOptionsExt;

    #[test]
    fn a_file_that_is_opened_meanwhile_is_given_up_and_ends_nobody() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("index.spare");
        std::fs::write(&path, "x").expect("writes");
        let file = File::options().read(true).write(true).open(&path).expect("opens");
        assert!(is_ours_alone(&file));
        // Whoever does not want to wait is turned away at once, and the signal is sent.
        let impatient = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(&path);
        assert_eq!(impatient.expect_err("is ours").raw_os_error(), Some(libc::EAGAIN));
        drop(file);
        let reader = File::open(&path).expect("opens");
        let again = File::options().read(true).write(true).open(&path).expect("opens");
        assert!(!is_ours_alone(&again), "somebody reads it");
        drop(reader);
        assert!(is_ours_alone(&again));
    }
}

//! Connections, transactions and the queue of the writers.

use super::schema;
use crate::error::{Error, ErrorKind, Result, ResultExt};
use crate::parallel::failpoint;
use crate::parallel::queue::Queue;
use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags, Transaction, TransactionBehavior};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

const DATABASE: &str = "meta.db";
const LOCK: &str = "meta.lock";
const QUEUEING: fn() -> &'static str = || "cannot queue for the metadata database";

/// Only foreign tools and a first opening can make us wait inside SQLite; our own writers queue outside of it.
const BUSY_BACKSTOP: Duration = Duration::from_secs(30);

/// Idle reader connections that are kept open, one per thread that reads at the same time.
const IDLE_READERS: usize = 8;

/// Statements that a connection keeps prepared; there are some fifty in all.
const STATEMENTS: usize = 64;

/// The length of the log on a disk that is nearly full; 256 KiB.
const SMALL_LOG_PAGES: u32 = 64;

/// How a database is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenMode {
    /// Made where it is missing, and written.
    Create,
    /// Written, and must be there.
    Write,
    /// Only read; every write fails with [`ErrorKind::ReadOnly`].
    Read,
}

/// The handle to a store's database. Share it by reference; cheap calls, each a transaction of its own.
pub struct Metadata {
    path: PathBuf,
    boot: String,
    // Before the writer, so that they are closed first: only a connection that may write can put the log away as the last.
    readers: Mutex<Vec<Connection>>,
    writer: Option<Mutex<Writer>>,
    immutable: bool,
}

struct Writer {
    connection: Connection,
    queue: Queue,
}

/// Whether a transaction survives a power cut once it has returned.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Sync {
    Lazy,
    Full,
}

impl Metadata {
    /// Opens the database in the store's root directory. Refuses one that a newer release wrote.
    pub fn open(root: &Path, mode: OpenMode) -> Result<Self> {
        let path = root.join(DATABASE);
        Self::open_at(root, &path, mode).doing(|| format!("cannot open {}", path.display()))
    }

    fn open_at(root: &Path, path: &Path, mode: OpenMode) -> Result<Self> {
        let boot = boot_id();
        let readers = Mutex::default();
        if mode != OpenMode::Create && !path.exists() {
            return Err(lost());
        }
        if mode == OpenMode::Read {
            let (first, immutable) = open_read_only(path)?;
            let version = schema::version(&first)?;
            schema::check_current(version)?;
            if version == 0 {
                return Err(lost());
            }
            let readers = Mutex::new(vec![first]);
            return Ok(Metadata { path: path.to_path_buf(), boot, writer: None, readers, immutable });
        }
        let mut queue = Queue::open(root, LOCK)?;
        let connection = open_writer(path, mode)?;
        prepare(&connection, &mut queue, mode)?;
        let writer = Some(Mutex::new(Writer { connection, queue }));
        Ok(Metadata { path: path.to_path_buf(), boot, writer, readers, immutable: false })
    }

    /// Whether writes fail because the database was opened for reading.
    pub fn is_read_only(&self) -> bool {
        self.writer.is_none()
    }

    /// The kernel's boot id; what is not durable counts only within the boot that wrote it.
    pub(crate) fn boot(&self) -> &str {
        &self.boot
    }

    /// Runs `work` in one transaction, after queueing behind the other writers of all processes.
    pub(super) fn write<T>(&self, sync: Sync, work: impl FnOnce(&Transaction<'_>) -> Result<T>) -> Result<T> {
        let mut writer = lock(self.writer.as_ref().ok_or_else(read_only)?);
        let Writer { connection, queue } = &mut *writer;
        let _turn = queue.take().doing(QUEUEING)?;
        failpoint::at("transaction.begin")?;
        let _mode = Synchronous::set(connection, sync)?;
        let transaction = Transaction::new_unchecked(connection, TransactionBehavior::Immediate)?;
        let value = work(&transaction)?;
        failpoint::at("transaction.commit")?;
        transaction.commit()?;
        failpoint::at("transaction.committed")?;
        Ok(value)
    }

    /// Comes back when whoever is writing has finished, in whatever process: what was begun before can be read then.
    pub(crate) fn settled(&self) -> Result<()> {
        let mut writer = lock(self.writer.as_ref().ok_or_else(read_only)?);
        writer.queue.take().map(drop).doing(QUEUEING)
    }

    /// From now on the log is written back early, for a disk that is nearly full. Else it grows to a thousand pages first.
    pub(crate) fn keep_log_small(&self) -> Result<()> {
        match &self.writer {
            Some(writer) => {
                Ok(lock(writer).connection.pragma_update(None, "wal_autocheckpoint", SMALL_LOG_PAGES)?)
            }
            None => Ok(()),
        }
    }

    /// Comes back when a power cut can no longer undo anything that was recorded before.
    pub fn barrier(&self) -> Result<()> {
        self.write(Sync::Full, |transaction| {
            // Only a transaction that writes is synced, and syncing its end of the log syncs all before it.
            let sql =
                "INSERT INTO fact VALUES ('barrier', 1) ON CONFLICT (key) DO UPDATE SET value = value + 1";
            transaction.prepare_cached(sql)?.execute([])?;
            Ok(())
        })
    }

    /// Runs `work` on one consistent state of the database, whatever is being written meanwhile.
    pub(super) fn read<T>(&self, work: impl FnOnce(&Transaction<'_>) -> Result<T>) -> Result<T> {
        let idle = lock(&self.readers).pop();
        let connection = idle.map_or_else(|| self.open_reader(), Ok)?;
        let value = {
            let transaction = Transaction::new_unchecked(&connection, TransactionBehavior::Deferred)?;
            work(&transaction)?
        };
        let mut readers = lock(&self.readers);
        if readers.len() < IDLE_READERS {
            readers.push(connection);
        }
        Ok(value)
    }

    /// As [`Metadata::read`], for something that is found in a moment. Whatever is written makes readers forget all pages that they
    /// know, but not the writer, so it is asked unless it is at work.
    pub(super) fn look<T>(&self, work: impl FnOnce(&Transaction<'_>) -> Result<T>) -> Result<T> {
        let Some(Ok(writer)) = self.writer.as_ref().map(Mutex::try_lock) else { return self.read(work) };
        work(&Transaction::new_unchecked(&writer.connection, TransactionBehavior::Deferred)?)
    }

    fn open_reader(&self) -> Result<Connection> {
        match self.immutable {
            true => open_immutable(&self.path),
            false => connect(&self.path, OpenFlags::SQLITE_OPEN_READ_ONLY),
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic inside a transaction rolled it back on its way; the connection is as good as before.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn read_only() -> Error {
    Error::new(ErrorKind::ReadOnly, "the store is open for reading only")
}

/// No file, or one without tables, such as a database whose log was deleted.
fn lost() -> Error {
    Error::new(ErrorKind::Corrupt, "the metadata database is gone")
        .with_hint("run 'transload fsck --rebuild'")
}

fn connect(path: &Path, access: OpenFlags) -> Result<Connection> {
    let flags = access | OpenFlags::SQLITE_OPEN_NO_MUTEX | OpenFlags::SQLITE_OPEN_EXRESCODE;
    let connection = Connection::open_with_flags(path, flags)?;
    connection.busy_timeout(BUSY_BACKSTOP)?;
    connection.set_prepared_statement_cache_capacity(STATEMENTS);
    // Or partial indexes make SQLite compile a statement again whenever another value is bound.
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true)?;
    connection.pragma_update(None, "foreign_keys", true)?;
    // Never a file in /tmp: threads that extract are confined to the store and use this, too.
    connection.pragma_update(None, "temp_store", "MEMORY")?;
    Ok(connection)
}

fn open_writer(path: &Path, mode: OpenMode) -> Result<Connection> {
    let create = match mode {
        OpenMode::Create => OpenFlags::SQLITE_OPEN_CREATE,
        _ => OpenFlags::empty(),
    };
    let connection = connect(path, OpenFlags::SQLITE_OPEN_READ_WRITE | create)?;
    connection.pragma_update(None, "synchronous", "NORMAL")?;
    Ok(connection)
}

/// Turns a new database into a WAL one with our tables and brings an older one up to date. One of our format is only
/// looked at, so opening does not queue.
fn prepare(connection: &Connection, queue: &mut Queue, mode: OpenMode) -> Result<()> {
    let version = schema::version(connection)?;
    schema::check(version)?;
    if version == 0 && mode == OpenMode::Write {
        return Err(lost());
    }
    if version == schema::FORMAT_VERSION {
        return Ok(());
    }
    let _turn = queue.take().doing(QUEUEING)?;
    connection.pragma_update_and_check(None, "journal_mode", "WAL", |_| Ok(()))?;
    // Whatever else lies in the store later shows that there was a database; so it may not be lost to a power cut.
    let _mode = Synchronous::set(connection, Sync::Full)?;
    let transaction = Transaction::new_unchecked(connection, TransactionBehavior::Immediate)?;
    schema::migrate(&transaction)?;
    Ok(transaction.commit()?)
}

/// Opens for reading. On a read-only filesystem SQLite can not make its shared-memory file; there nobody writes either,
/// so the database may be read as it lies, provided that no log waits to be replayed.
fn open_read_only(path: &Path) -> Result<(Connection, bool)> {
    let plain = connect(path, OpenFlags::SQLITE_OPEN_READ_ONLY)
        .and_then(|connection| schema::version(&connection).map(|_| connection));
    match plain {
        Ok(connection) => Ok((connection, false)),
        Err(error) if log_is_empty(path) && path.exists() => {
            Ok((open_immutable(path).map_err(|_| error)?, true))
        }
        Err(error) => Err(error),
    }
}

fn log_is_empty(path: &Path) -> bool {
    let mut log = path.as_os_str().to_os_string();
    log.push("-wal");
    std::fs::metadata(log).map_or(true, |metadata| metadata.len() == 0)
}

fn open_immutable(path: &Path) -> Result<Connection> {
    let mut uri = String::from("file:");
    for byte in path.as_os_str().as_bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'/' | b'.' | b'_' | b'-' => uri.push(*byte as char),
            other => uri.push_str(&format!("%{other:02x}")),
        }
    }
    uri.push_str("?immutable=1");
    connect(Path::new(&uri), OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_URI)
}

/// Full synchronisation for the length of one transaction.
struct Synchronous<'a>(Option<&'a Connection>);

impl<'a> Synchronous<'a> {
    fn set(connection: &'a Connection, sync: Sync) -> Result<Self> {
        if sync == Sync::Lazy {
            return Ok(Synchronous(None));
        }
        let mode = if failpoint::sync("transaction.sync")? { "FULL" } else { "OFF" };
        connection.pragma_update(None, "synchronous", mode)?;
        Ok(Synchronous(Some(connection)))
    }
}

impl Drop for Synchronous<'_> {
    fn drop(&mut self) {
        if let Some(connection) = self.0 {
            // Staying at FULL is slow and safe.
            let _ = connection.pragma_update(None, "synchronous", "NORMAL");
        }
    }
}

/// Where the kernel does not tell, every process is a boot of its own: safe, and only costs work.
fn boot_id() -> String {
    if let Some(boot) = failpoint::boot() {
        return boot;
    }
    match std::fs::read_to_string("/proc/sys/kernel/random/boot_id") {
        Ok(text) => text.trim().to_string(),
        Err(_) => format!("unknown-{}-{}", std::process::id(), super::columns::now_ms()),
    }
}

//! The one error of the library: a kind that a program can match, a sentence that a person can act on, the facts as
//! fields and the cause as `source`.
//!
//! A sentence reads `cannot <do what> <to what>: <cause>`. Context is added on the way up with [`ResultExt::doing`];
//! the kind is decided where the failure happens and never changes on the way.

use crate::holder::Holder;
use crate::trace::TraceId;
use std::{borrow::Cow, fmt, io};

/// What the library returns everywhere.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong, coarse enough to match on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// A system call failed for a reason that no other kind names.
    Io,
    /// The filesystem, the quota or the inode table is full.
    NoSpace,
    /// The filesystem is mounted read-only.
    ReadOnly,
    /// The process lacks a right that the work needs.
    Permission,
    /// The input ends before it should.
    Truncated,
    /// The input breaks the rules of its format.
    Malformed,
    /// The input is not an image archive at all.
    NotAnImage,
    /// The bytes do not have the digest that they were announced with.
    DigestMismatch,
    /// The bytes do not have the size that they were announced with.
    SizeMismatch,
    /// The input is larger or deeper than the limits allow.
    LimitExceeded,
    /// Something that the archive names is not in it and not in the store.
    MissingContent,
    /// Nothing in the image fits the platform asked for.
    NoPlatform,
    /// The feature or format is known and not supported here.
    Unsupported,
    /// The named thing does not exist.
    NotFound,
    /// The name is taken.
    AlreadyExists,
    /// The state does not allow the operation.
    FailedPrecondition,
    /// The arguments contradict each other or the state.
    InvalidArgument,
    /// An offset lies outside of what is there.
    OutOfRange,
    /// Someone else holds the thing right now.
    Busy,
    /// The caller cancelled the work.
    Cancelled,
    /// The store was written by a newer release.
    NewerFormat,
    /// The store contradicts itself.
    Corrupt,
    /// An invariant of this library does not hold.
    Internal,
}

/// Whether trying again can help.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retry {
    /// The same call will fail again.
    Never,
    /// The same call may succeed at once.
    Now,
    /// The same call may succeed once something outside has changed.
    After,
}

impl ErrorKind {
    /// The names of all kinds.
    pub const NAMES: [&'static str; 23] = [
        "io",
        "no_space",
        "read_only",
        "permission",
        "truncated",
        "malformed",
        "not_an_image",
        "digest_mismatch",
        "size_mismatch",
        "limit_exceeded",
        "missing_content",
        "no_platform",
        "unsupported",
        "not_found",
        "already_exists",
        "failed_precondition",
        "invalid_argument",
        "out_of_range",
        "busy",
        "cancelled",
        "newer_format",
        "corrupt",
        "internal",
    ];

    /// A stable lower-case name, as printed in JSON.
    pub fn name(self) -> &'static str {
        use ErrorKind::*;
        match self {
            Io => "io",
            NoSpace => "no_space",
            ReadOnly => "read_only",
            Permission => "permission",
            Truncated => "truncated",
            Malformed => "malformed",
            NotAnImage => "not_an_image",
            DigestMismatch => "digest_mismatch",
            SizeMismatch => "size_mismatch",
            LimitExceeded => "limit_exceeded",
            MissingContent => "missing_content",
            NoPlatform => "no_platform",
            Unsupported => "unsupported",
            NotFound => "not_found",
            AlreadyExists => "already_exists",
            FailedPrecondition => "failed_precondition",
            InvalidArgument => "invalid_argument",
            OutOfRange => "out_of_range",
            Busy => "busy",
            Cancelled => "cancelled",
            NewerFormat => "newer_format",
            Corrupt => "corrupt",
            Internal => "internal",
        }
    }

    /// Whether trying the same call again can help.
    pub fn retry(self) -> Retry {
        match self {
            ErrorKind::Busy => Retry::After,
            ErrorKind::NoSpace | ErrorKind::ReadOnly | ErrorKind::Permission => Retry::After,
            _ => Retry::Never,
        }
    }

    /// Whether the input, rather than this machine, is at fault.
    pub fn is_input(self) -> bool {
        use ErrorKind::*;
        matches!(
            self,
            Truncated
                | Malformed
                | NotAnImage
                | DigestMismatch
                | SizeMismatch
                | LimitExceeded
                | MissingContent
                | NoPlatform
                | Unsupported
        )
    }
}

/// A failure: kind, sentence, facts, cause.
///
/// ```
/// use transload::{Error, ErrorKind, ResultExt};
/// let error = Err::<(), _>(Error::new(ErrorKind::NotFound, "no image has that name"))
///     .doing(|| "cannot inspect alpine")
///     .unwrap_err();
/// assert_eq!(error.to_string(), "cannot inspect alpine: no image has that name");
/// assert_eq!(error.kind(), ErrorKind::NotFound);
/// ```
pub struct Error(Box<Inner>);

struct Inner {
    kind: ErrorKind,
    contexts: Vec<String>,
    message: Cow<'static, str>,
    hint: Option<Cow<'static, str>>,
    expected: Option<String>,
    actual: Option<String>,
    trace_id: Option<TraceId>,
    holders: Vec<Holder>,
    images_removed: Vec<String>,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl Error {
    /// An error of `kind` whose cause is `message`, without a capital and without a full stop.
    pub fn new(kind: ErrorKind, message: impl Into<Cow<'static, str>>) -> Self {
        Error(Box::new(Inner {
            kind,
            contexts: Vec::new(),
            message: message.into(),
            hint: None,
            expected: None,
            actual: None,
            trace_id: None,
            holders: Vec::new(),
            images_removed: Vec::new(),
            source: None,
        }))
    }

    /// Shorthand for [`ErrorKind::Malformed`].
    pub fn malformed(message: impl Into<Cow<'static, str>>) -> Self {
        Error::new(ErrorKind::Malformed, message)
    }

    /// Shorthand for [`ErrorKind::LimitExceeded`].
    pub fn limit(message: impl Into<Cow<'static, str>>) -> Self {
        Error::new(ErrorKind::LimitExceeded, message)
    }

    /// [`ErrorKind::LimitExceeded`] for the field of [`crate::Limits`] of this name, with a hint how it is raised.
    pub fn over(limit: &str, message: impl Into<Cow<'static, str>>) -> Self {
        let name = limit.replace('_', "-");
        Error::limit(message)
            .with_hint(format!("if you trust the archive, raise the limit with --limit {name}=VALUE"))
    }

    /// Shorthand for [`ErrorKind::Cancelled`].
    pub fn cancelled() -> Self {
        Error::new(ErrorKind::Cancelled, "cancelled")
    }

    /// The kind, for programs.
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// What can be done about it, if anything.
    pub fn hint(&self) -> Option<&str> {
        self.0.hint.as_deref()
    }

    /// What was expected, where the kind is a mismatch.
    pub fn expected(&self) -> Option<&str> {
        self.0.expected.as_deref()
    }

    /// What was found, where the kind is a mismatch.
    pub fn actual(&self) -> Option<&str> {
        self.0.actual.as_deref()
    }

    /// The run that failed, as its spans and log lines call it.
    pub fn trace_id(&self) -> Option<TraceId> {
        self.0.trace_id
    }

    /// The processes that hold what is busy, as far as they could be told.
    pub fn holders(&self) -> &[Holder] {
        &self.0.holders
    }

    /// The images that a collection had removed before it ended: names, or targets of unnamed ones.
    pub fn images_removed(&self) -> &[String] {
        &self.0.images_removed
    }

    /// Adds what was being done, to what, where: `cannot publish blob sha256:3f…`.
    pub fn context(mut self, doing: impl Into<String>) -> Self {
        self.0.contexts.push(doing.into());
        self
    }

    /// Adds what can be done about it, unless a hint is there already.
    pub fn with_hint(mut self, hint: impl Into<Cow<'static, str>>) -> Self {
        self.0.hint.get_or_insert(hint.into());
        self
    }

    /// Adds the two sides of a mismatch as facts.
    pub fn with_mismatch(mut self, expected: impl fmt::Display, actual: impl fmt::Display) -> Self {
        self.0.expected = Some(expected.to_string());
        self.0.actual = Some(actual.to_string());
        self
    }

    /// Adds the trace id of the run that failed.
    pub fn with_trace_id(mut self, trace_id: TraceId) -> Self {
        self.0.trace_id = Some(trace_id);
        self
    }

    /// Adds the processes that hold what is busy.
    pub fn with_holders(mut self, holders: Vec<Holder>) -> Self {
        self.0.holders = holders;
        self
    }

    /// Adds the images that were removed before it came to this.
    pub fn with_images_removed(mut self, names: Vec<String>) -> Self {
        self.0.images_removed = names;
        self
    }

    /// Adds the cause.
    pub fn with_source(mut self, source: impl std::error::Error + Send + Sync + 'static) -> Self {
        self.0.source = Some(Box::new(source));
        self
    }

    /// A copy that carries kind, sentence, hint and facts; the cause stays with the original. For telling several
    /// waiters about one failure.
    pub fn duplicate(&self) -> Self {
        Error(Box::new(Inner {
            kind: self.0.kind,
            contexts: self.0.contexts.clone(),
            message: self.0.message.clone(),
            hint: self.0.hint.clone(),
            expected: self.0.expected.clone(),
            actual: self.0.actual.clone(),
            trace_id: self.0.trace_id,
            holders: self.0.holders.clone(),
            images_removed: self.0.images_removed.clone(),
            source: None,
        }))
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for context in self.0.contexts.iter().rev() {
            write!(f, "{context}: ")?;
        }
        f.write_str(&self.0.message)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}({self})", self.0.kind)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.source.as_deref().map(|source| source as _)
    }
}

fn kind_of_errno(errno: i32) -> ErrorKind {
    match errno {
        libc::ENOSPC | libc::EDQUOT => ErrorKind::NoSpace,
        libc::EROFS => ErrorKind::ReadOnly,
        libc::EACCES | libc::EPERM => ErrorKind::Permission,
        libc::ENOENT => ErrorKind::NotFound,
        libc::EBUSY | libc::ETXTBSY => ErrorKind::Busy,
        _ => ErrorKind::Io,
    }
}

impl From<rustix::io::Errno> for Error {
    fn from(errno: rustix::io::Errno) -> Self {
        io::Error::from(errno).into()
    }
}

impl From<io::Error> for Error {
    /// Takes the kind from the errno. An [`Error`] that travelled inside an [`io::Error`] (see [`Error::into_io`])
    /// comes out unchanged.
    fn from(error: io::Error) -> Self {
        if error.get_ref().is_some_and(|inner| inner.is::<Error>()) {
            let inner = error.into_inner().and_then(|inner| inner.downcast::<Error>().ok());
            return *inner.expect("just seen to be an Error");
        }
        let kind = match error.raw_os_error() {
            Some(errno) => kind_of_errno(errno),
            None if error.kind() == io::ErrorKind::UnexpectedEof => ErrorKind::Truncated,
            None if error.kind() == io::ErrorKind::InvalidData => ErrorKind::Malformed,
            None if error.kind() == io::ErrorKind::InvalidInput => ErrorKind::Malformed,
            None => ErrorKind::Io,
        };
        let message = match error.raw_os_error() {
            Some(errno) => strerror(errno),
            None => error.to_string(),
        };
        let failed = Error::new(kind, message);
        let failed = match error.raw_os_error() {
            Some(libc::EMFILE) => failed.with_hint("allow the process more open files (ulimit -n)"),
            _ => failed,
        };
        failed.with_source(error)
    }
}

fn strerror(errno: i32) -> String {
    let text = io::Error::from_raw_os_error(errno).to_string();
    match text.rfind(" (os error") {
        Some(end) => text[..end].to_string(),
        None => text,
    }
}

impl Error {
    /// Wraps the error so that it can travel through `std::io::Read`; `Error::from` takes it out again.
    pub fn into_io(self) -> io::Error {
        io::Error::other(self)
    }
}

impl From<rusqlite::Error> for Error {
    fn from(error: rusqlite::Error) -> Self {
        use rusqlite::ffi::ErrorCode;
        if error.sqlite_error_code() == Some(ErrorCode::CannotOpen) {
            // SQLite does not say why. Where descriptors have run out, nothing else can be opened either.
            if let Err(reason) = std::fs::File::open("/dev/null") {
                return Error::from(reason).context("metadata database");
            }
        }
        let kind = match error.sqlite_error_code() {
            Some(ErrorCode::DiskFull) => ErrorKind::NoSpace,
            Some(ErrorCode::ReadOnly) => ErrorKind::ReadOnly,
            Some(ErrorCode::PermissionDenied | ErrorCode::CannotOpen) => ErrorKind::Permission,
            Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => ErrorKind::Busy,
            Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => ErrorKind::Corrupt,
            _ => ErrorKind::Io,
        };
        let message = Error::new(kind, format!("metadata database: {error}")).with_source(error);
        match kind {
            ErrorKind::Corrupt => message.with_hint("run 'transload fsck --rebuild'"),
            _ => message,
        }
    }
}

/// Adds context to a result without writing a closure over the error.
pub trait ResultExt<T> {
    /// Adds what was being done: `cannot <do what> <to what>`.
    fn doing<S: Into<String>>(self, doing: impl FnOnce() -> S) -> Result<T>;
}

impl<T, E: Into<Error>> ResultExt<T> for std::result::Result<T, E> {
    fn doing<S: Into<String>>(self, doing: impl FnOnce() -> S) -> Result<T> {
        self.map_err(|error| error.into().context(doing()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_survives_a_trip_through_io() {
        let original = Error::new(ErrorKind::DigestMismatch, "wrong").with_mismatch("a", "b");
        let back = Error::from(original.into_io());
        assert_eq!(back.kind(), ErrorKind::DigestMismatch);
        assert_eq!(back.expected(), Some("a"));
    }

    #[test]
    fn errno_decides_the_kind_and_reads_plainly() {
        let error = Error::from(io::Error::from_raw_os_error(libc::ENOSPC)).context("cannot write blob");
        assert_eq!(error.kind(), ErrorKind::NoSpace);
        assert_eq!(error.to_string(), "cannot write blob: No space left on device");
    }
}

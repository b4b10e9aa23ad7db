//! Confinement of the threads that extract: should a layer ever find a hole in what resolves its names, there is
//! nothing behind it but the store.
//!
//! A [`Confinement`] is prepared once for an import and entered by each of its lanes. Inside, Landlock lets the thread
//! open only what lies below the store and, to read, below the archive's directory; it can neither run a program nor
//! connect to anything, gains no privilege, and keeps only the capabilities that files need. What is open already stays
//! usable. Threads made by a confined thread are confined too, and there is no way back: a caller's thread must never
//! enter, nor one that mounts. What the kernel lacks is left out, and [`Confinement::report`] says so.

use super::use_private_umask;
use crate::tree::WhiteoutForm;
use rustix::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use rustix::io::{self, Errno};
use rustix::thread::{CapabilitySet, CapabilitySets};
use serde::Serialize;
use std::sync::Mutex;

/// How the threads that extracted were confined.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ConfinementReport {
    /// The version of Landlock's interface that was used; 0 where Landlock was not in force.
    pub landlock_abi: u32,
    /// What was not in force, and why.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub missing: Option<String>,
}

/// What threads are confined to. Dropping it frees nobody.
#[derive(Debug)]
pub struct Confinement {
    rules: Option<Rules>,
    keep: CapabilitySet,
    enabled: bool,
    missing: Mutex<Option<String>>,
}

#[derive(Debug)]
struct Rules {
    ruleset: OwnedFd,
    abi: u32,
}

impl Confinement {
    /// No confinement: [`Confinement::enter`] does nothing but give the thread a umask of its own.
    pub fn none() -> Self {
        Confinement { rules: None, keep: CapabilitySet::all(), enabled: false, missing: Mutex::default() }
    }

    /// Prepares a confinement to the directory `store`, and to `archive` for reading. `form` decides whether the
    /// privilege to set `trusted.*` attributes is kept.
    pub fn new(store: BorrowedFd<'_>, archive: Option<BorrowedFd<'_>>, form: WhiteoutForm) -> Self {
        let (rules, missing) = match Rules::new(store, archive) {
            Ok(rules) => (Some(rules), None),
            Err(errno) => (None, Some(explain(errno))),
        };
        Confinement { rules, keep: needed_capabilities(form), enabled: true, missing: Mutex::new(missing) }
    }

    /// Confines the calling thread, for ever, and gives it a umask of its own. What cannot be had is noted for the
    /// report and everything else is done.
    pub fn enter(&self) {
        use_private_umask();
        if !self.enabled {
            return;
        }
        self.note(rustix::thread::set_no_new_privs(true), "no_new_privs");
        if let Some(rules) = &self.rules {
            self.note(landlock_restrict_self(&rules.ruleset), "Landlock");
        }
        self.note(keep_capabilities(self.keep), "dropping capabilities");
    }

    fn note(&self, result: io::Result<()>, what: &str) {
        if let Err(errno) = result {
            let mut missing = self.missing.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
            missing.get_or_insert_with(|| format!("{what} failed: {errno}"));
        }
    }

    /// How the threads that have entered are confined.
    pub fn report(&self) -> ConfinementReport {
        let missing = self.missing.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).clone();
        let missing = if self.enabled { missing } else { Some("it was switched off".to_string()) };
        let landlock_failed = missing.as_ref().is_some_and(|missing| missing.starts_with("Landlock"));
        let abi = self.rules.as_ref().filter(|_| !landlock_failed).map_or(0, |rules| rules.abi);
        ConfinementReport { landlock_abi: abi, missing }
    }
}

/// What this kernel offers, without confining anything.
///
/// ```
/// let support = transload::layer::confinement_support();
/// assert!(support.landlock_abi > 0 || support.missing.is_some());
/// ```
pub fn confinement_support() -> ConfinementReport {
    match landlock_abi() {
        Ok(abi) => ConfinementReport { landlock_abi: abi, missing: None },
        Err(errno) => ConfinementReport { landlock_abi: 0, missing: Some(explain(errno)) },
    }
}

fn explain(errno: Errno) -> String {
    match errno {
        Errno::NOSYS => "Landlock is not in this kernel".to_string(),
        Errno::OPNOTSUPP => "Landlock is not switched on (see the kernel parameter lsm=)".to_string(),
        errno => format!("Landlock cannot be used: {errno}"),
    }
}

/// Owners, modes, devices and attributes of other users' files; nothing about processes, networks or mounts.
fn needed_capabilities(form: WhiteoutForm) -> CapabilitySet {
    let files = CapabilitySet::CHOWN
        | CapabilitySet::DAC_OVERRIDE
        | CapabilitySet::FOWNER
        | CapabilitySet::FSETID
        | CapabilitySet::MKNOD
        | CapabilitySet::SETFCAP;
    match form {
        // The kernel asks for no less where trusted.overlay.opaque is set.
        WhiteoutForm::Trusted => files | CapabilitySet::SYS_ADMIN,
        WhiteoutForm::User | WhiteoutForm::List => files,
    }
}

/// Drops every capability that is not in `keep`. Like everything here it concerns the calling thread alone.
fn keep_capabilities(keep: CapabilitySet) -> io::Result<()> {
    let now = rustix::thread::capabilities(None)?;
    let kept = CapabilitySets {
        effective: now.effective & keep,
        permitted: now.permitted & keep,
        inheritable: CapabilitySet::empty(),
    };
    rustix::thread::set_capabilities(None, kept)
}

/// What can be done with files, bit by bit as in `linux/landlock.h`.
mod access {
    pub const EXECUTE: u64 = 1;
    pub const READ: u64 = 1 << 2 | 1 << 3;
    pub const MAKE_SOCKET: u64 = 1 << 9;
    pub const TRUNCATE: u64 = 1 << 14;
    pub const DEVICE_IOCTL: u64 = 1 << 15;
    /// Everything that version 2 knows, the first that lets files move between directories.
    pub const VERSION_2: u64 = (1 << 14) - 1;
    /// Binding and connecting TCP sockets, from version 4 on.
    pub const TCP: u64 = 3;
    /// Abstract sockets and signals to the outside, from version 6 on.
    pub const SCOPES: u64 = 3;

    /// All of it, as far as the kernel knows it: what is handled is forbidden unless a rule allows it.
    pub fn handled(abi: u32) -> u64 {
        let truncate = if abi >= 3 { TRUNCATE } else { 0 };
        let ioctl = if abi >= 5 { DEVICE_IOCTL } else { 0 };
        VERSION_2 | truncate | ioctl
    }
}

impl Rules {
    fn new(store: BorrowedFd<'_>, archive: Option<BorrowedFd<'_>>) -> io::Result<Self> {
        let abi = landlock_abi()?;
        let handled = access::handled(abi);
        let ruleset = landlock_create_ruleset(&RulesetAttributes {
            handled_access_fs: handled,
            handled_access_net: if abi >= 4 { access::TCP } else { 0 },
            scoped: if abi >= 6 { access::SCOPES } else { 0 },
        })?;
        let write = handled & !(access::EXECUTE | access::MAKE_SOCKET | access::DEVICE_IOCTL);
        landlock_add_path(&ruleset, store, write)?;
        if let Some(archive) = archive {
            landlock_add_path(&ruleset, archive, access::READ)?;
        }
        Ok(Rules { ruleset, abi })
    }
}

/// `struct landlock_ruleset_attr`. Older kernels know a shorter one and accept this if the rest is zero.
#[repr(C)]
struct RulesetAttributes {
    handled_access_fs: u64,
    handled_access_net: u64,
    scoped: u64,
}

/// `struct landlock_path_beneath_attr`.
#[repr(C, packed)]
struct PathBeneath {
    allowed_access: u64,
    parent_fd: i32,
}

/// The version of Landlock's interface. The first could not move files between directories at all, which publishing
/// does; it counts as none.
fn landlock_abi() -> io::Result<u32> {
    const CREATE_RULESET_VERSION: libc::c_uint = 1;
    let nothing = std::ptr::null::<RulesetAttributes>();
    // SAFETY: with this flag the call takes no attributes and gives a number.
    let answer =
        unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, nothing, 0usize, CREATE_RULESET_VERSION) };
    match checked(answer)? {
        0 | 1 => Err(Errno::OPNOTSUPP),
        abi => Ok(abi as u32),
    }
}

fn landlock_create_ruleset(attributes: &RulesetAttributes) -> io::Result<OwnedFd> {
    let (pointer, size) = (std::ptr::from_ref(attributes), size_of::<RulesetAttributes>());
    // SAFETY: the attributes live through the call and have the size that is given; what comes back is a new
    // descriptor that nobody else owns.
    unsafe {
        let answer = libc::syscall(libc::SYS_landlock_create_ruleset, pointer, size, 0 as libc::c_uint);
        Ok(OwnedFd::from_raw_fd(checked(answer)? as i32))
    }
}

fn landlock_add_path(ruleset: &OwnedFd, beneath: BorrowedFd<'_>, allowed_access: u64) -> io::Result<()> {
    const PATH_BENEATH: libc::c_int = 1;
    let rule = PathBeneath { allowed_access, parent_fd: beneath.as_raw_fd() };
    // SAFETY: the rule lives through the call, and its type is the one that the number stands for.
    let answer = unsafe {
        libc::syscall(
            libc::SYS_landlock_add_rule,
            ruleset.as_raw_fd(),
            PATH_BENEATH,
            std::ptr::from_ref(&rule),
            0 as libc::c_uint,
        )
    };
    checked(answer).map(drop)
}

fn landlock_restrict_self(ruleset: &OwnedFd) -> io::Result<()> {
    // SAFETY: no memory is passed; the call changes what this thread may do and nothing else.
    let answer =
        unsafe { libc::syscall(libc::SYS_landlock_restrict_self, ruleset.as_raw_fd(), 0 as libc::c_uint) };
    checked(answer).map(drop)
}

fn checked(answer: libc::c_long) -> io::Result<libc::c_long> {
    match answer {
        // Whatever failed has set it; EIO would mean that it has not.
        -1 => Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)),
        answer => Ok(answer),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{self, File};
    use std::io::ErrorKind;
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::AsFd;
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
    use std::process::{Command, Stdio};

    /// A directory to be confined to, one to read from, and one that lies outside.
    struct Places {
        _scratch: tempfile::TempDir,
        store: std::path::PathBuf,
        archive: std::path::PathBuf,
        outside: std::path::PathBuf,
    }

    fn places() -> Places {
        let scratch = tempfile::tempdir().expect("a directory");
        let [store, archive, outside] = ["store", "archive", "outside"].map(|name| {
            let path = scratch.path().join(name);
            fs::create_dir_all(path.join("sub")).expect("a directory");
            fs::write(path.join("file"), name).expect("a file");
            path
        });
        Places { _scratch: scratch, store, archive, outside }
    }

    fn confined<T: Send>(places: &Places, work: impl FnOnce() -> T + Send) -> (T, ConfinementReport) {
        let open = |path| File::open(path).expect("a directory");
        let (store, archive) = (open(&places.store), open(&places.archive));
        let confinement = Confinement::new(store.as_fd(), Some(archive.as_fd()), WhiteoutForm::List);
        let enter = || {
            confinement.enter();
            work()
        };
        let result = std::thread::scope(|scope| scope.spawn(enter).join().expect("no panic"));
        (result, confinement.report())
    }

    /// Landlock cannot be tested where it is not; CI must have it.
    fn have_landlock() -> bool {
        let support = confinement_support();
        if let Some(missing) = &support.missing {
            assert!(std::env::var("CI").as_deref() != Ok("true"), "CI=true, and yet: {missing}");
            eprintln!("SKIPPED: {missing}");
        }
        support.landlock_abi > 0
    }

    fn denied<T>(result: std::io::Result<T>) -> bool {
        result.is_err_and(|error| error.kind() == ErrorKind::PermissionDenied)
    }

    #[test]
    fn a_confined_thread_cannot_open_outside() {
        if !have_landlock() {
            return;
        }
        let places = places();
        let (store, archive, outside) = (&places.store, &places.archive, &places.outside);
        let (_, report) = confined(&places, || {
            assert!(denied(File::open(outside.join("file"))));
            assert!(denied(fs::read_dir(outside)));
            assert!(denied(fs::write(outside.join("new"), "")));
            assert!(denied(fs::create_dir(outside.join("new"))));
            assert!(denied(fs::remove_file(outside.join("file"))));
            assert!(denied(std::os::unix::fs::symlink("x", outside.join("new"))));
            assert!(fs::hard_link(outside.join("file"), store.join("stolen")).is_err());
            assert!(fs::rename(store.join("file"), outside.join("moved")).is_err());
            assert!(denied(File::open("/etc/passwd")));
            assert!(Command::new("/bin/true").status().is_err());
            assert!(denied(UnixListener::bind(store.join("socket"))));
            assert_eq!(fs::read_to_string(archive.join("file")).expect("readable"), "archive");
            assert!(denied(fs::write(archive.join("file"), "changed")));
        });
        assert_eq!(report.missing, None);
        assert!(report.landlock_abi >= 2);
        assert_eq!(fs::read_to_string(outside.join("file")).expect("readable"), "outside");
        assert_eq!(fs::read_dir(outside).expect("lists").count(), 2);
    }

    #[test]
    fn a_confined_thread_works_freely_within_the_store() {
        let places = places();
        let store = &places.store;
        confined(&places, || {
            fs::create_dir(store.join("new")).expect("makes directories");
            fs::write(store.join("new/file"), "text").expect("writes");
            fs::rename(store.join("new/file"), store.join("sub/moved")).expect("moves between directories");
            fs::hard_link(store.join("sub/moved"), store.join("new/link")).expect("links");
            fs::remove_file(store.join("sub/moved")).expect("removes");
            let file = File::options().write(true).open(store.join("new/link")).expect("opens");
            file.set_len(1).expect("truncates");
        });
        assert_eq!(fs::read_to_string(store.join("new/link")).expect("readable"), "t");
    }

    /// TCP is closed from version 4 on, abstract sockets and signals from version 6 on.
    #[test]
    fn a_confined_thread_reaches_no_other_process() {
        if !have_landlock() {
            return;
        }
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address");
        let name = SocketAddr::from_abstract_name(format!("transload-confined-{}", std::process::id()));
        let name = name.expect("a name");
        let _listener = UnixListener::bind_addr(&name).expect("a socket");
        let mut other = Command::new("cat").stdin(Stdio::piped()).spawn().expect("a process");
        let reach = || {
            let signalled = rustix::process::test_kill_process(rustix::process::Pid::from_child(&other));
            [TcpStream::connect(address).is_ok(), UnixStream::connect_addr(&name).is_ok(), signalled.is_ok()]
        };
        assert_eq!(reach(), [true; 3]);
        let (reached, report) = confined(&places(), reach);
        let [tcp, others] = [4, 6].map(|version| report.landlock_abi < version);
        assert_eq!(reached, [tcp, others, others]);
        drop(other.stdin.take());
        other.wait().expect("it ends with its input");
    }

    #[test]
    fn a_confined_thread_has_no_privilege_beyond_files() {
        let places = places();
        let (sets, _) = confined(&places, || {
            assert!(rustix::thread::no_new_privs().expect("can be asked"));
            rustix::thread::capabilities(None).expect("can be asked")
        });
        let needed = needed_capabilities(WhiteoutForm::List);
        assert!(needed.contains(sets.permitted) && needed.contains(sets.effective));
        assert!(!sets.permitted.intersects(CapabilitySet::SYS_ADMIN | CapabilitySet::SYS_PTRACE));
        assert!(sets.inheritable.is_empty());
    }

    #[test]
    fn threads_of_a_confined_thread_are_confined_and_its_maker_is_not() {
        if !have_landlock() {
            return;
        }
        let before = rustix::thread::capabilities(None).expect("can be asked");
        let places = places();
        let outside = places.outside.join("file");
        let (inner, _) = confined(&places, || {
            std::thread::scope(|scope| scope.spawn(|| denied(File::open(&outside))).join().expect("no panic"))
        });
        assert!(inner);
        assert!(File::open(&outside).is_ok());
        assert_eq!(rustix::thread::capabilities(None).expect("can be asked"), before);
    }

    #[test]
    fn what_is_switched_off_is_told() {
        assert!(Confinement::none().report().missing.is_some());
    }
}

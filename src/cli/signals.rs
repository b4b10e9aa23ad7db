//! Ctrl-C and SIGTERM: the first asks the work to stop, the second stops the process at once.
//!
//! The signals are blocked before any thread exists, so that they reach nobody but the one thread that waits for them:
//! no handler runs in the middle of anything. The store stays usable either way.
//!
//! But for one: the database's shared memory is a file, and where the disk turns out to be full the kernel can only say so by a
//! signal to whoever touches it. That ends the process, as a crash that nothing is lost by, and it says why.

use std::mem::MaybeUninit;
use std::sync::atomic::{AtomicBool, Ordering};
use transload::{Cancel, Error, Result};

const SIGNALS: [i32; 3] = [libc::SIGINT, libc::SIGTERM, libc::SIGHUP];

/// From now on the first signal cancels `cancel`. Call it before any thread is started.
pub fn cancel_on_signal(cancel: &Cancel) -> Result<()> {
    let set = signal_set();
    // SAFETY: the set is initialised and lives through the call; no old mask is asked for.
    let failed = unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &set, std::ptr::null_mut()) };
    if failed != 0 {
        return Err(Error::from(std::io::Error::from_raw_os_error(failed)).context("cannot block signals"));
    }
    let cancel = cancel.clone();
    let wait = move || {
        wait_for(&set);
        cancel.cancel();
        wait_for(&set);
        // Not `exit`: that would run destructors while other threads work.
        // SAFETY: ends the process and touches no memory.
        unsafe { libc::_exit(130) }
    };
    std::thread::Builder::new()
        .name("signals".to_string())
        .spawn(wait)
        .map_err(|error| Error::from(error).context("cannot start the signal thread"))?;
    Ok(())
}

const NO_ROOM: &str = "error: cannot go on: no space left on device, or it is failing: a file that is mapped into memory could not be \
    read or written\nhint: free some space ('transload gc' may help), or choose another --store\n";
const NO_ROOM_JSON: &str = "{\"version\":1,\"error\":{\"kind\":\"no_space\",\"message\":\"cannot go on: no space left on device, or it is \
    failing: a file that is mapped into memory could not be read or written\",\"hint\":\"free some space ('transload gc' may help), \
    or choose another --store\"}}\n";

static AS_JSON: AtomicBool = AtomicBool::new(false);

/// From now on a mapped file that the disk has no room for ends the process with one sentence and exit code 1.
pub fn explain_bus_errors(as_json: bool) {
    AS_JSON.store(as_json, Ordering::Relaxed);
    let handler: extern "C" fn(i32) = no_room;
    // SAFETY: the handler makes nothing but calls that are allowed in one. What it replaces is the default, or the runtime's
    // look for stack overflows, which Linux tells by another signal.
    unsafe { libc::signal(libc::SIGBUS, handler as libc::sighandler_t) };
}

extern "C" fn no_room(_signal: i32) {
    // SAFETY: write and _exit may be called anywhere, and the texts are constants. Where nobody listens there is nobody to tell.
    unsafe {
        libc::write(libc::STDERR_FILENO, NO_ROOM.as_ptr().cast(), NO_ROOM.len());
        if AS_JSON.load(Ordering::Relaxed) {
            libc::write(libc::STDOUT_FILENO, NO_ROOM_JSON.as_ptr().cast(), NO_ROOM_JSON.len());
        }
        libc::_exit(1)
    }
}

fn signal_set() -> libc::sigset_t {
    let mut set = MaybeUninit::uninit();
    // SAFETY: sigemptyset initialises the set, and the numbers are valid signals.
    unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        for signal in SIGNALS {
            libc::sigaddset(set.as_mut_ptr(), signal);
        }
        set.assume_init()
    }
}

fn wait_for(set: &libc::sigset_t) {
    let mut signal = 0;
    // SAFETY: both pointers are valid for the call. The only failure is an invalid set.
    while unsafe { libc::sigwait(set, &mut signal) } != 0 {}
}

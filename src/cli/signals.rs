//! Ctrl-C and SIGTERM: the first asks the work to stop, the second stops the process at once.
//!
//! The signals are blocked before any thread exists, so that they reach nobody but the one thread that waits for them:
//! no handler runs in the middle of anything. The store stays usable either way.

use std::mem::MaybeUninit;
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

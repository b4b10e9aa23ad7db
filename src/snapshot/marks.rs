//! Whether this process sees how a store marks its deletions.
//!
//! `trusted.*` attributes are shown to whoever has CAP_SYS_ADMIN in the initial user namespace. To everybody else a tree looks
//! as if it had none, so that what a layer deletes would be there again.

use crate::error::{Error, ErrorKind, Result};
use crate::tree::WhiteoutForm;
use rustix::fd::{AsFd, BorrowedFd};
use rustix::fs::{XattrFlags, fsetxattr, stat};
use rustix::io::Errno;
use rustix::thread::CapabilitySet;

/// An attribute that nothing has.
const NOBODYS: &str = "trusted.overlay.transload-seen";

/// The kernel's `uapi/linux/nsfs.h`: the number of the initial user namespace.
const INITIAL: u64 = 0xeffffffd;

/// [`ErrorKind::Permission`] where marks in this form cannot be seen below `dir`.
pub(crate) fn check_visible(dir: impl AsFd, form: WhiteoutForm) -> Result<()> {
    match form != WhiteoutForm::Trusted || may_see(dir.as_fd()) {
        true => Ok(()),
        false => Err(Error::new(
            ErrorKind::Permission,
            "the store marks deletions with trusted attributes, which are hidden from this process, so deleted files would be \
             there again",
        )
        .with_hint("run it as root of the host with CAP_SYS_ADMIN, or choose another store with --store")),
    }
}

/// Asked by replacing what is not there: nothing is written, and only who may see such attributes is told that.
fn may_see(dir: BorrowedFd<'_>) -> bool {
    match fsetxattr(dir, NOBODYS, b"", XattrFlags::REPLACE) {
        Err(Errno::NODATA) => true,
        Err(Errno::PERM | Errno::ACCESS) => false,
        // Nothing can be written here, so it is not even looked for.
        _ => is_privileged(),
    }
}

fn is_privileged() -> bool {
    let namespace = stat("/proc/self/ns/user").map_or(INITIAL, |stat| stat.st_ino);
    let capabilities = rustix::thread::capabilities(None);
    namespace == INITIAL && capabilities.is_ok_and(|sets| sets.effective.contains(CapabilitySet::SYS_ADMIN))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ways_to_ask_give_one_answer_and_nothing_is_written() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let fd = std::fs::File::open(dir.path()).expect("opens");
        assert_eq!(may_see(fd.as_fd()), is_privileged());
        let mut names = [0u8; 256];
        let length = rustix::fs::flistxattr(&fd, &mut names[..]).expect("lists");
        assert!(!String::from_utf8_lossy(&names[..length]).contains(NOBODYS));
        for form in [WhiteoutForm::User, WhiteoutForm::List] {
            check_visible(&fd, form).expect("these are everybody's");
        }
    }
}

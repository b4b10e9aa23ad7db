//! Small filesystems for tests that need one full or read-only. They are unmounted when dropped, even by a failing test.

use std::path::{Path, PathBuf};

use rustix::mount::{MountFlags, UnmountFlags, mount, mount_remount, unmount};

/// A tmpfs of its own.
pub struct Small {
    at: PathBuf,
}

impl Small {
    /// Mounts `size` bytes at `at`, which is made first. None without the right to.
    pub fn mount(at: &Path, size: u64) -> Option<Self> {
        std::fs::create_dir_all(at).expect("a mount point");
        let options = std::ffi::CString::new(format!("size={size}")).expect("no NUL");
        match mount("tmpfs", at, "tmpfs", MountFlags::empty(), options.as_c_str()) {
            Ok(()) => Some(Self { at: at.to_path_buf() }),
            Err(error) => {
                super::tools::skip(&format!("cannot mount a tmpfs: {error}"));
                None
            }
        }
    }

    pub fn make_read_only(&self) {
        mount_remount(&self.at, MountFlags::RDONLY, c"").expect("a remount");
    }
    pub fn make_writable(&self) {
        mount_remount(&self.at, MountFlags::empty(), c"").expect("a remount");
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        // Nothing more can be done about a failure here, and the test may be failing already.
        let _ = unmount(&self.at, UnmountFlags::DETACH);
    }
}

/// Unmounts a path when dropped.
pub struct Unmount(pub PathBuf);

impl Drop for Unmount {
    fn drop(&mut self) {
        let _ = unmount(&self.0, UnmountFlags::DETACH);
    }
}

//! A mount for a moment, made the way that images are mounted, in a mount namespace of its own: nobody sees it, and it goes
//! with the thread that made it. If the kernel refuses, its reason is looked for among the usual ones.

use super::Remark;
use crate::error::{Error, ErrorKind, Result, ResultExt};
use crate::io::{durable, locked::LockedDir, remove};
use crate::mount::{self, Mount, MountKind, MountOptions};
use crate::parallel::Cancel;
use crate::store::{SnapshotterKind, Store};
use crate::tree::WhiteoutForm;
use rustix::fs::{Mode, mkdirat};
use rustix::mount::{MountPropagationFlags, mount_change};
use rustix::thread::{UnshareFlags, unshare_unsafe};
use std::path::Path;
use std::sync::Arc;

/// What a probe is made of.
const PARTS: [&str; 5] = ["upper-layer", "lower-layer", "fs", "work", "target"];

pub(super) fn look(store: &Store) -> Result<Vec<Remark>> {
    if store.format().snapshotter == SnapshotterKind::Plain {
        return Ok(vec![Remark::good(
            "mounting",
            "not tried: a store of plain snapshots mounts without overlayfs",
        )]);
    }
    let ingests: &Arc<_> = store.content().ingests();
    let name = format!("doctor-{}", durable::unique_name());
    let place = LockedDir::acquire(ingests, &name, &Cancel::new(), &mut || {})?;
    for part in PARTS {
        mkdirat(place.fd(), part, Mode::from_raw_mode(0o755)).doing(|| "cannot prepare a mount to try")?;
    }
    let at = store.path().join("ingest").join(&name);
    let tried = try_mount(&at, store.format().whiteouts);
    // The mount was never in this namespace, so nothing is below but empty directories.
    let _ = remove::remove_contents(place.fd()).and_then(|()| place.remove());
    Ok(vec![match tried {
        Ok(method) => Remark::good("mounting", format!("an overlay of two layers was mounted ({method})")),
        Err(error) => explained(&error),
    }])
}

/// Where nothing can be written.
pub(super) fn not_tried(_: &Store) -> Result<Vec<Remark>> {
    Ok(vec![Remark::note("mounting", "not tried: the store is open for reading only")])
}

fn try_mount(at: &Path, form: WhiteoutForm) -> Result<String> {
    let options: &[&str] = match form {
        WhiteoutForm::User => &["index=off", "userxattr"],
        _ => &["index=off", "redirect_dir=nofollow", "metacopy=off"],
    };
    let probe = Mount {
        kind: MountKind::Overlay,
        source: "transload-doctor".into(),
        lower: vec![at.join("upper-layer"), at.join("lower-layer")],
        upper: Some(at.join("fs")),
        work: Some(at.join("work")),
        options: options.iter().map(|option| option.to_string()).collect(),
        read_only: false,
        ids: None,
    };
    std::thread::scope(|scope| {
        let attempt = scope.spawn(|| {
            unseen()?;
            let made = mount::mount(&probe, &at.join("target"), &MountOptions::default())?;
            Ok(format!("{:?}", made.method).to_lowercase())
        });
        attempt.join().unwrap_or_else(|_| Err(Error::new(ErrorKind::Internal, "the attempt panicked")))
    })
}

/// Parts this thread from everyone's mounts.
fn unseen() -> Result<()> {
    // SAFETY: parts only the mount namespace, working directory and umask of this thread, which ends soon.
    unsafe { unshare_unsafe(UnshareFlags::NEWNS) }.doing(|| "cannot part with the mounts of others")?;
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    mount_change("/", private).doing(|| "cannot keep a mount from others")
}

/// The usual reasons, the likeliest first.
fn explained(error: &Error) -> Remark {
    if error.kind() == ErrorKind::Permission {
        let says = format!("not allowed here: {error}");
        return Remark::note("mounting", says)
            .mend("run as root, or 'transload mount NAME -- COMMAND', or 'transload unpack NAME DIR'");
    }
    let remark = Remark::fault("mounting", format!("overlayfs refused: {error}"));
    match error.hint() {
        Some(hint) => remark.mend(hint.to_string()),
        None => remark.mend("dmesg | tail: the kernel's log says more"),
    }
}

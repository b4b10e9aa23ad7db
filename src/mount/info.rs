//! What is mounted, from `/proc/self/mountinfo`.

use crate::error::{Result, ResultExt};
use rustix::fs::{self, AtFlags, CWD, StatxFlags, statx};
use rustix::io::Errno;
use std::collections::HashSet;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

/// One line of the mount table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountInfo {
    /// The kernel's number of the mount.
    pub id: u64,
    /// The number of the mount that it is mounted on.
    pub parent: u64,
    /// The device of what is mounted, major and minor.
    pub device: (u32, u32),
    /// Which directory of its filesystem is shown.
    pub root: PathBuf,
    /// Where it is mounted.
    pub target: PathBuf,
    /// Whether this mount refuses writes.
    pub read_only: bool,
    /// The group of mounts that what happens here is told to, if it is shared.
    pub shared: Option<u64>,
    /// The group of mounts that this one follows.
    pub follows: Option<u64>,
    /// The filesystem's type.
    pub fs_type: String,
    /// The name of what is mounted.
    pub source: PathBuf,
    /// The filesystem's own options.
    pub options: String,
}

#[cfg(test)]
impl MountInfo {
    /// A directory of a disk.
    pub(crate) fn of_disk(id: u64, root: &str, target: &str) -> Self {
        MountInfo {
            id,
            parent: 1,
            device: (8, 1),
            root: root.into(),
            target: target.into(),
            read_only: false,
            shared: None,
            follows: None,
            fs_type: "ext4".into(),
            source: "/dev/sda1".into(),
            options: "rw".into(),
        }
    }
}

/// Every mount of this process's namespace, in the kernel's order.
pub fn all() -> Result<Vec<MountInfo>> {
    let table = std::fs::read("/proc/self/mountinfo").doing(|| "cannot read the mount table")?;
    Ok(parse_table(&table))
}

pub(super) fn parse_table(table: &[u8]) -> Vec<MountInfo> {
    table.split(|&byte| byte == b'\n').filter_map(parse).collect()
}

/// The mounts that show something of the store at `root`.
pub fn list(root: &Path) -> Result<Vec<MountInfo>> {
    let root = std::fs::canonicalize(root).doing(|| format!("cannot find the store {}", root.display()))?;
    Ok(all()?.into_iter().filter(|mount| shows(mount, &root)).collect())
}

/// The name by which the overlay of snapshot number `id` of the store at `root` appears in every mount table.
pub fn source_name(root: &Path, id: u64) -> PathBuf {
    let mut name = OsString::from("transload:");
    name.push(root);
    name.push(format!("#{id}"));
    name.into()
}

/// What an overlay's name says: the store, by the path under which whoever mounted it found it, and the number of the
/// snapshot, which earlier releases left out.
pub fn source_parts(source: &Path) -> Option<(&Path, Option<u64>)> {
    let name = source.as_os_str().as_bytes().strip_prefix(b"transload:")?;
    let path = |bytes| Path::new(OsStr::from_bytes(bytes));
    let numbered = name.iter().rposition(|&byte| byte == b'#').and_then(|at| {
        let digits = std::str::from_utf8(&name[at + 1..]).ok()?;
        let plain = digits.bytes().all(|byte| byte.is_ascii_digit());
        Some((path(&name[..at]), digits.parse().ok().filter(|_| plain)?))
    });
    Some(numbered.map_or((path(name), None), |(store, id)| (store, Some(id))))
}

/// Whether an overlay's name says that it shows something of the store at `root`; earlier releases left out which.
pub fn is_source_of(source: &Path, root: &Path) -> bool {
    source_parts(source).is_some_and(|(store, _)| store == root)
}

/// What lies topmost at `target` in this process's namespace; nothing where nothing is mounted, or where what is mounted
/// there is hidden by a mount further up.
pub fn on_top(target: &Path) -> Result<Option<MountInfo>> {
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT | AtFlags::STATX_DONT_SYNC;
    let there = statx(CWD, target, flags, StatxFlags::MNT_ID);
    if matches!(there, Err(Errno::NOENT | Errno::NOTDIR)) {
        return Ok(None);
    }
    let mut at: Vec<MountInfo> = all()?.into_iter().filter(|mount| mount.target == target).collect();
    let numbered = there.ok().filter(|stat| stat.stx_mask & StatxFlags::MNT_ID.bits() != 0);
    match numbered {
        Some(stat) => at.retain(|mount| mount.id == stat.stx_mnt_id),
        // A server that is gone answers nothing, and an old kernel gives no number: the one that none there lies on.
        None => {
            let below: HashSet<u64> = at.iter().map(|mount| mount.parent).collect();
            at.retain(|mount| !below.contains(&mount.id));
        }
    }
    Ok(at.pop())
}

fn is_same_file(one: &Path, other: &Path) -> bool {
    match (fs::stat(one), fs::stat(other)) {
        (Ok(one), Ok(other)) => (one.st_dev, one.st_ino) == (other.st_dev, other.st_ino),
        _ => false,
    }
}

fn shows(mount: &MountInfo, root: &Path) -> bool {
    if mount.fs_type == "overlay" {
        // It may have been mounted through a link or a bind mount of the store.
        let of_store = |(store, _): (&Path, _)| store == root || is_same_file(store, root);
        return source_parts(&mount.source).is_some_and(of_store);
    }
    // A bind mount: its root ends in a path of the store, and both are the same directory.
    let text = mount.root.as_os_str().as_bytes();
    ["/snapshots/", "/trees/"].iter().any(|part| {
        let Some(start) = text.windows(part.len()).rposition(|window| window == part.as_bytes()) else {
            return false;
        };
        is_same_file(&root.join(OsString::from_vec(text[start + 1..].to_vec())), &mount.target)
    })
}

/// `36 35 98:0 /root /target rw,noatime master:1 - ext3 /dev/root rw,errors=continue`
fn parse(line: &[u8]) -> Option<MountInfo> {
    let fields: Vec<&[u8]> = line.split(|&byte| byte == b' ').collect();
    let dash = fields.iter().position(|field| *field == b"-")?;
    let text = |field: &[u8]| String::from_utf8_lossy(&unescaped(field)).into_owned();
    let path = |field: &[u8]| PathBuf::from(OsString::from_vec(unescaped(field)));
    let number = |field: &[u8]| text(field).parse().ok();
    let tag = |name: &[u8]| fields.get(6..dash)?.iter().find_map(|field| number(field.strip_prefix(name)?));
    let device = text(fields.get(2)?);
    let (major, minor) = device.split_once(':')?;
    Some(MountInfo {
        id: number(fields.first()?)?,
        parent: number(fields.get(1)?)?,
        device: (major.parse().ok()?, minor.parse().ok()?),
        root: path(fields.get(3)?),
        target: path(fields.get(4)?),
        read_only: fields.get(5)?.split(|&byte| byte == b',').any(|option| option == b"ro"),
        shared: tag(b"shared:"),
        follows: tag(b"master:"),
        fs_type: text(fields.get(dash + 1)?),
        source: path(fields.get(dash + 2)?),
        options: text(fields.get(dash + 3)?),
    })
}

/// Blanks, newlines and backslashes stand as a backslash and three octal digits.
fn unescaped(field: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&byte, tail)) = rest.split_first() {
        let octal =
            tail.get(..3).filter(|digits| byte == b'\\' && digits.iter().all(|d| (b'0'..b'8').contains(d)));
        match octal {
            Some(digits) => {
                bytes.push(digits.iter().fold(0u8, |value, digit| value.wrapping_mul(8) + (digit - b'0')));
                rest = &tail[3..];
            }
            None => {
                bytes.push(byte);
                rest = tail;
            }
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_overlay_names_its_store_and_its_snapshot() {
        let root = Path::new("/s");
        assert_eq!(source_name(root, 12), Path::new("transload:/s#12"));
        for (source, own) in [
            ("transload:/s", true),
            ("transload:/s#7", true),
            ("transload:/s#", false),
            ("transload:/s#x", false),
            ("transload:/s/t", false),
            ("transload:/st#7", false),
            ("overlay", false),
        ] {
            assert_eq!(is_source_of(Path::new(source), root), own, "{source}");
        }
        let parts = |source| source_parts(Path::new(source)).map(|(store, id)| (store.to_path_buf(), id));
        assert_eq!(parts("transload:/s#12"), Some(("/s".into(), Some(12))));
        assert_eq!(parts("transload:/a#b#+1"), Some(("/a#b#+1".into(), None)));
        assert_eq!(parts("/s#12"), None);
    }

    #[test]
    fn what_is_no_mount_point_has_nothing_on_top() {
        let dir = tempfile::tempdir().expect("a directory");
        assert_eq!(on_top(dir.path()).expect("looks"), None);
        assert_eq!(on_top(&dir.path().join("nothing")).expect("looks"), None);
        let proc = on_top(Path::new("/proc")).expect("looks").expect("mounted");
        assert_eq!((proc.fs_type.as_str(), &*proc.target), ("proc", Path::new("/proc")));
    }

    #[test]
    fn a_line_of_the_table_is_read_with_blanks_in_its_paths() {
        let line = br"36 35 98:0 /a\040b /mnt/x\134y ro,noatime master:1 shared:2 - overlay transload:/s rw,index=off";
        let mount = parse(line).expect("well formed");
        assert_eq!((mount.id, mount.parent, mount.device, mount.read_only), (36, 35, (98, 0), true));
        assert_eq!((mount.follows, mount.shared), (Some(1), Some(2)));
        assert_eq!(mount.root, Path::new("/a b"));
        assert_eq!(mount.target, Path::new(r"/mnt/x\y"));
        assert_eq!(mount.source, Path::new("transload:/s"));
        assert_eq!(mount.options, "rw,index=off");
        assert_eq!(parse(b""), None);
        assert_eq!(parse(b"36 35 98:0 /a /b rw"), None);
    }
}

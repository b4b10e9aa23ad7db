//! Who `Config.User` is: names and numbers looked up in the image's own `etc/passwd` and `etc/group`.
//!
//! The image is not trusted: the kernel resolves both paths inside the root, only regular files are read, and only up
//! to a cap (CVE-2024-40635: numbers beyond 2³¹−1 are refused; a gigabyte of `etc/group` is, too). Lines that do not
//! parse are passed over, as libc does. Nothing of the host's user database is ever asked.

use crate::error::{Error, ErrorKind, Result, ResultExt};
use rustix::fs::{FileType, Mode, OFlags, ResolveFlags, fstat, openat2};
use rustix::io::Errno;
use std::fs::File;
use std::io::Read;
use std::os::fd::{BorrowedFd, OwnedFd};

/// A real `etc/passwd` has some kilobytes; a directory service writes some hundred.
const MAX_DATABASE_BYTES: u64 = 1 << 20;
/// `uid_t` is unsigned, but `setuid` of more than this wraps to root in some runtimes (CVE-2024-40635).
const MAX_ID: u32 = i32::MAX as u32;

/// The numbers that a container's process runs with.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Ids {
    pub uid: u32,
    pub gid: u32,
    pub additional_gids: Vec<u32>,
}

/// Looks up `user` (`name`, `uid`, `name:group`, `uid:gid` …) in the root filesystem behind `root`.
pub(super) fn resolve(root: BorrowedFd<'_>, user: &str) -> Result<Ids> {
    if user.is_empty() {
        return Ok(Ids::default());
    }
    let passwd = read_database(root, "etc/passwd")?;
    let group = read_database(root, "etc/group")?;
    lookup(user, &passwd, &group).doing(|| format!("cannot find the image's user {user:?}"))
}

fn lookup(user: &str, passwd: &[u8], group: &[u8]) -> Result<Ids> {
    let (user, group_name) = match user.split_once(':') {
        Some((user, group_name)) => (user, Some(group_name).filter(|name| !name.is_empty())),
        None => (user, None),
    };
    let account = account(user, passwd)?;
    let Some(group_name) = group_name else {
        let additional_gids = account.name.map(|name| memberships(&name, account.gid, group));
        return Ok(Ids {
            uid: account.uid,
            gid: account.gid,
            additional_gids: additional_gids.unwrap_or_default(),
        });
    };
    Ok(Ids { uid: account.uid, gid: group_id(group_name, group)?, additional_gids: Vec::new() })
}

struct Account {
    uid: u32,
    gid: u32,
    /// The name, where the image asked by name: only then do memberships count (image-spec `conversion.md`).
    name: Option<String>,
}

/// A number needs no entry; where it has one, the entry gives the primary group, as Docker does.
fn account(user: &str, passwd: &[u8]) -> Result<Account> {
    let number = number(user)?;
    let entry = fields(passwd).find_map(|fields| {
        let uid = id(fields.get(2)?)?;
        let gid = id(fields.get(3)?)?;
        let found = fields[0] == user.as_bytes() || number == Some(uid);
        found.then(|| Account { uid, gid, name: number.is_none().then(|| user.to_string()) })
    });
    match (entry, number) {
        (Some(account), _) => Ok(account),
        (None, Some(uid)) => Ok(Account { uid, gid: 0, name: None }),
        (None, None) => Err(unknown("passwd", user)),
    }
}

fn group_id(name: &str, group: &[u8]) -> Result<u32> {
    if let Some(gid) = number(name)? {
        return Ok(gid);
    }
    let mut entries = fields(group).filter(|fields| fields[0] == name.as_bytes());
    entries.find_map(|fields| id(fields.get(2)?)).ok_or_else(|| unknown("group", name))
}

fn memberships(name: &str, primary: u32, group: &[u8]) -> Vec<u32> {
    let member = |fields: Vec<&[u8]>| {
        let members = fields.get(3)?;
        let listed = members.split(|byte| *byte == b',').any(|member| member == name.as_bytes());
        id(fields.get(2)?).filter(|gid| listed && *gid != primary)
    };
    let mut gids: Vec<u32> = fields(group).filter_map(member).collect();
    gids.sort_unstable();
    gids.dedup();
    gids
}

fn unknown(database: &str, name: &str) -> Error {
    Error::new(ErrorKind::NotFound, format!("the image's etc/{database} has no entry {name:?}"))
        .with_hint("the image's author has to add it, or to write the number instead of the name")
}

/// `Some` for digits only; too large a number is an error, not a name.
fn number(text: &str) -> Result<Option<u32>> {
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Ok(None);
    }
    match text.parse::<u32>() {
        Ok(number) if number <= MAX_ID => Ok(Some(number)),
        _ => Err(Error::malformed(format!("the number {text} is larger than {MAX_ID}"))),
    }
}

fn id(field: &&[u8]) -> Option<u32> {
    let text = std::str::from_utf8(field).ok()?;
    number(text).ok().flatten()
}

fn fields(database: &[u8]) -> impl Iterator<Item = Vec<&[u8]>> {
    let lines = database.split(|byte| *byte == b'\n');
    lines.map(|line| line.split(|byte| *byte == b':').collect())
}

/// A file that is not there is empty; one that is no regular file, or too large, is an error.
fn read_database(root: BorrowedFd<'_>, path: &str) -> Result<Vec<u8>> {
    let doing = || format!("cannot read {path} of the image");
    // O_PATH first: opening a device or a FIFO for reading can have effects.
    if !is_regular(root, path).doing(doing)? {
        return Ok(Vec::new());
    }
    let file = open(root, path, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY).doing(doing)?;
    let mut bytes = Vec::new();
    File::from(file).take(MAX_DATABASE_BYTES + 1).read_to_end(&mut bytes).doing(doing)?;
    match bytes.len() as u64 > MAX_DATABASE_BYTES {
        true => Err(Error::limit(format!("it is larger than {MAX_DATABASE_BYTES} bytes"))).doing(doing),
        false => Ok(bytes),
    }
}

fn is_regular(root: BorrowedFd<'_>, path: &str) -> Result<bool> {
    match open(root, path, OFlags::PATH) {
        Ok(file) if FileType::from_raw_mode(fstat(&file)?.st_mode) == FileType::RegularFile => Ok(true),
        Ok(_) => Err(Error::malformed("it is not a regular file")),
        Err(Errno::NOENT | Errno::NOTDIR) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}

fn open(root: BorrowedFd<'_>, path: &str, flags: OFlags) -> rustix::io::Result<OwnedFd> {
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    openat2(root, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    const PASSWD: &[u8] =
        b"root:x:0:0::/root:/bin/sh\nbroken\napp:x:1000:50::/:/bin/sh\nbig:x:4294967295:1::/:\n";
    const GROUP: &[u8] = b"root:x:0:\nstaff:x:50:app\nwheel:x:10:root,app\naudio:x:29:app\nbad:x:y:app\n";

    #[test]
    fn users_are_found_as_docker_finds_them() {
        let table: [(&str, u32, u32, &[u32]); 8] = [
            ("root", 0, 0, &[10]),
            ("app", 1000, 50, &[10, 29]),
            ("app:audio", 1000, 29, &[]),
            ("app:", 1000, 50, &[10, 29]),
            ("app:7", 1000, 7, &[]),
            ("1000", 1000, 50, &[]),
            ("4711", 4711, 0, &[]),
            ("4711:wheel", 4711, 10, &[]),
        ];
        for (user, uid, gid, groups) in table {
            let ids = lookup(user, PASSWD, GROUP).expect(user);
            assert_eq!(ids, Ids { uid, gid, additional_gids: groups.to_vec() }, "{user}");
        }
        for bad in ["nobody", "big", "app:nogroup", "2147483648", "99999999999", "0:4294967296", ":"] {
            assert!(lookup(bad, PASSWD, GROUP).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_databases_are_read_inside_the_root_and_only_as_small_regular_files() {
        let root = tempfile::tempdir().expect("a directory");
        let etc = root.path().join("etc");
        std::fs::create_dir(&etc).expect("etc");
        let handle = File::open(root.path()).expect("the root");
        let resolve_app = || resolve(handle.as_fd(), "app").map(|ids| ids.uid);
        let missing = resolve_app().expect_err("no passwd at all");
        assert_eq!(missing.kind(), ErrorKind::NotFound);

        std::fs::write(root.path().join("elsewhere"), PASSWD).expect("a database");
        std::os::unix::fs::symlink("/../elsewhere", etc.join("passwd")).expect("a link out of the root");
        assert_eq!(resolve_app().expect("resolved inside the root"), 1000);

        std::fs::remove_file(etc.join("passwd")).expect("removed");
        rustix::fs::mkfifoat(rustix::fs::CWD, etc.join("passwd"), Mode::from(0o600)).expect("a FIFO");
        assert_eq!(resolve_app().expect_err("a FIFO").kind(), ErrorKind::Malformed);

        std::fs::remove_file(etc.join("passwd")).expect("removed");
        let huge = File::create(etc.join("passwd")).expect("a file");
        huge.set_len(1 << 30).expect("a gigabyte of nothing");
        assert_eq!(resolve_app().expect_err("too large").kind(), ErrorKind::LimitExceeded);
    }
}

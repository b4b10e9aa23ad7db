//! One tar, three readers: ours, `tar-core` and GNU tar must agree on where entries begin and end and on their names, or
//! what one of them hides another would unpack.
//!
//! The comparison ends at the first entry on which the readers are known to differ; each such place says why. Until
//! there neither sees an entry that the other does not, unless the other has refused the tar. GNU tar is asked about one
//! input in fifty, because starting it takes as long as a thousand comparisons.

use super::{BLOCK, mend_checksums};
use std::io::{Read, Write};
use std::process::{Command, Stdio};
use tar_core::parse::{Limits as CoreLimits, ParseEvent, ParsedEntry, Parser};
use tar_core::{EntryType, Header};
use transload::Limits;
use transload::io::tar::{Entry, EntryKind, TarReader};

/// Everything that our reader gives, and whether it came to the end. Data is read, and must be as long as was said.
pub fn ours(tar: &[u8]) -> (Vec<Entry>, bool) {
    let mut reader = TarReader::new(tar, &Limits::default());
    let mut entries = Vec::new();
    loop {
        match reader.next_entry() {
            Ok(None) => return (entries, true),
            Err(_) => return (entries, false),
            Ok(Some(entry)) => {
                let mut data = Vec::new();
                let read = reader.data().read_to_end(&mut data);
                check(&entry, tar, read.is_ok().then_some(&data));
                entries.push(entry);
            }
        }
    }
}

fn check(entry: &Entry, tar: &[u8], data: Option<&Vec<u8>>) {
    assert!(!entry.path.contains(&0));
    assert!(entry.path.len() <= Limits::default().path_bytes);
    if let Some(data) = data {
        assert_eq!(data.len() as u64, entry.stored_bytes);
        let start = entry.data_offset as usize;
        assert_eq!(data[..], tar[start..start + data.len()]);
    }
    if let Some(regions) = &entry.sparse {
        assert_eq!(regions.iter().map(|region| region.len).sum::<u64>(), entry.stored_bytes);
        assert!(regions.iter().all(|region| region.offset + region.len <= entry.size));
    }
}

/// The header block that an entry's data follows. Of a sparse file, whose map may lie in between, it is not known.
fn header_of<'a>(entry: &Entry, tar: &'a [u8]) -> Option<&'a [u8]> {
    let end = entry.data_offset as usize;
    if entry.sparse.is_some() { None } else { tar.get(end.checked_sub(BLOCK)?..end) }
}

/// Links, directories and devices have no data, says POSIX of links and Go of all of them; others believe the size.
fn sizes_are_plain(entry: &Entry, tar: &[u8], pax: Option<&[u8]>) -> bool {
    let has_data = matches!(entry.kind, EntryKind::File | EntryKind::Other(_));
    let zero = |header: &[u8]| header[124..136].iter().all(|byte| matches!(byte, b'0' | b' ' | 0));
    let pax_size = pax.is_some_and(|pax| pax.windows(5).any(|bytes| bytes == b"size="));
    has_data || (!pax_size && header_of(entry, tar).is_some_and(zero))
}

/// `entries` is what our reader gave, and `whole` whether it came to the end or refused what followed. As far as both take
/// the tar, no entry may be seen by one of them alone: whoever refuses shows nothing more, and may do so at any point.
pub fn compare_with_tar_core(tar: &[u8], entries: &[Entry], whole: bool) {
    let mut parser = Parser::new(CoreLimits::permissive());
    let (mut at, mut next) = (0usize, entries.iter());
    loop {
        let rest = &tar[at.min(tar.len())..];
        match parser.parse(rest) {
            Ok(ParseEvent::GlobalExtensions { consumed, .. }) => at += consumed,
            Ok(ParseEvent::Entry { consumed, entry }) => {
                let Some(mine) = next.next() else {
                    assert!(!whole, "tar-core alone sees an entry behind byte {at}:\n{entry:?}");
                    return;
                };
                at += consumed;
                if is_known_difference(&entry, mine, tar) {
                    return;
                }
                assert_eq!(
                    (at as u64, entry.size),
                    (mine.data_offset, mine.stored_bytes),
                    "{mine:?}\n{entry:?}"
                );
                compare_names(&entry, mine);
                at = at.saturating_add(entry.padded_size() as usize);
            }
            // Where a sparse map ends the two are compared by their data alone, and ours is checked by itself.
            Ok(ParseEvent::SparseEntry { entry, .. }) => {
                let seen = next.next().is_some() || !whole;
                assert!(seen, "tar-core alone sees a sparse file behind byte {at}:\n{entry:?}");
                return;
            }
            Ok(ParseEvent::End { .. }) => return assert_nothing_more(at, next.next()),
            // A tar may end without its zeros, or with half of them: tar-core's caller has to know. Else it is cut.
            Ok(ParseEvent::NeedData { .. }) if rest.iter().all(|&byte| byte == 0) => {
                return assert_nothing_more(at, next.next());
            }
            Ok(ParseEvent::NeedData { .. }) | Err(_) => return,
        }
    }
}

fn assert_nothing_more(end: usize, mine: Option<&Entry>) {
    assert!(mine.is_none(), "for tar-core the tar ends at byte {end}, and we alone see {mine:?}");
}

fn is_known_difference(theirs: &ParsedEntry<'_>, mine: &Entry, tar: &[u8]) -> bool {
    // Of old headers, tar-core takes the types that only later formats have for plain files.
    let extension =
        [EntryType::XHeader, EntryType::GnuLongName, EntryType::GnuLongLink, EntryType::GnuSparse]
            .contains(&theirs.entry_type);
    // A sparse map that only one of the two sees, since it counts a record that the other holds for void.
    let sparse =
        mine.sparse.is_some() || theirs.pax.is_some_and(|pax| pax.windows(11).any(|w| w == b"GNU.sparse."));
    extension || sparse || size_follows_nul(mine, tar) || !sizes_are_plain(mine, tar, theirs.pax)
}

/// Go and we pass over NULs before the digits of a number, tar-core ends there.
fn size_follows_nul(mine: &Entry, tar: &[u8]) -> bool {
    header_of(mine, tar).is_some_and(|header| {
        let size = header[124..136].trim_ascii_start();
        size.first() == Some(&0) && size.iter().any(u8::is_ascii_digit)
    })
}

fn compare_names(theirs: &ParsedEntry<'_>, mine: &Entry) {
    // A name from PAX and another from GNU at once: Go and we take GNU's, tar-core PAX's. A NUL ends our names.
    // And only tar-core makes a difference between the versions of ustar, which decides whether there is a prefix.
    // Nor does it know star, whose prefix is shorter and ends before two times.
    let header = theirs.header.as_bytes();
    let is_plain_ustar = header[257..265] == *b"ustar\x0000" && header[508..] != *b"tar\0";
    if theirs.pax.is_some() || theirs.path.contains(&0) || !is_plain_ustar {
        return;
    }
    assert_eq!(theirs.path, mine.path, "{mine:?}\n{theirs:?}");
}

/// Where each header that GNU tar lists stands, in blocks, with the name.
fn gnu_listing(tar: &[u8]) -> Option<Vec<(u64, String)>> {
    let mut child = Command::new("tar")
        .args(["--list", "--block-number", "--quoting-style=escape", "--file=-"])
        .env("LC_ALL", "C")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .ok()?;
    let mut stdin = child.stdin.take()?;
    let input = tar.to_vec();
    let writer = std::thread::spawn(move || stdin.write_all(&input));
    let output = child.wait_with_output().ok()?;
    let _ = writer.join();
    if !output.status.success() {
        return None;
    }
    let text = String::from_utf8(output.stdout).ok()?;
    let line = |line: &str| {
        let (block, name) = line.strip_prefix("block ")?.split_once(": ")?;
        (!name.starts_with("** ")).then_some((block.parse().ok()?, name.to_string()))
    };
    Some(text.lines().filter_map(line).collect())
}

/// Whether GNU tar is known to read the archive as we do. It gives meaning to what POSIX leaves to vendors, and obeys
/// global headers, which Go's importers and we pass over.
fn is_common_ground(tar: &[u8], entries: &[Entry]) -> bool {
    let headers = || tar.chunks_exact(BLOCK).filter(|block| &block[257..262] == b"ustar");
    let plain = |flag: u8| matches!(flag, 0 | b'0'..=b'6' | b'x' | b'L' | b'K');
    let all_ustar =
        entries.iter().all(|entry| header_of(entry, tar).is_some_and(|h| &h[257..262] == b"ustar"));
    let ordinary = |entry: &Entry| sizes_are_plain(entry, tar, Some(tar)) && entry.sparse.is_none();
    all_ustar && headers().all(|block| plain(block[156])) && entries.iter().all(ordinary)
}

/// The block under which GNU tar lists an entry: that of its header, less those that its long name and long link take.
fn gnu_number(tar: &[u8], previous: Option<&Entry>, entry: &Entry) -> u64 {
    let end = previous.map_or(0, |previous| previous.data_offset + previous.stored_bytes);
    let (mut at, header) = (end.next_multiple_of(BLOCK as u64), entry.data_offset - BLOCK as u64);
    let (mut name, mut link) = (0, 0);
    while at < header {
        let block = &tar[at as usize..][..BLOCK];
        let block = Header::from_bytes(block.try_into().expect("a block"));
        let blocks = 1 + block.entry_size().unwrap_or(0).div_ceil(BLOCK as u64);
        match block.entry_type() {
            EntryType::GnuLongName => name = blocks,
            EntryType::GnuLongLink => link = blocks,
            _ => {}
        }
        at = at.saturating_add(blocks.saturating_mul(BLOCK as u64));
    }
    (header / BLOCK as u64).saturating_sub(name).saturating_sub(link)
}

fn compare_with_gnu_tar(tar: &[u8], entries: &[Entry]) {
    let Some(listed) = gnu_listing(tar) else { return };
    let blocks: Vec<u64> = listed.iter().map(|(block, _)| *block).collect();
    let before = std::iter::once(None).chain(entries.iter().map(Some));
    let mine: Vec<u64> = before.zip(entries).map(|(before, entry)| gnu_number(tar, before, entry)).collect();
    assert_eq!(blocks, mine, "{listed:?}\n{entries:?}");
    for ((_, name), entry) in listed.iter().zip(entries) {
        let simple = entry.path.iter().all(|byte| byte.is_ascii_alphanumeric() || b"/._-".contains(byte));
        // An empty long name is none to Go and us; GNU tar takes it, and lists nothing.
        if simple && !name.is_empty() && !tar.windows(10).any(|bytes| bytes == b"././@LongL") {
            let mine = String::from_utf8_lossy(&entry.path);
            assert_eq!(name.trim_end_matches('/'), mine.trim_end_matches('/'));
        }
    }
}

/// See the module.
pub fn run(data: &[u8]) {
    let mut tar = data.to_vec();
    mend_checksums(&mut tar);
    let (entries, whole) = ours(&tar);
    compare_with_tar_core(&tar, &entries, whole);
    let turn = tar.iter().fold(0u32, |sum, &byte| sum.wrapping_mul(31).wrapping_add(byte.into())) % 50 == 0;
    if turn && whole && !entries.is_empty() && is_common_ground(&tar, &entries) {
        compare_with_gnu_tar(&tar, &entries);
    }
}

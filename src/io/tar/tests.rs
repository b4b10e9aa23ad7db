use super::build::{self, Item, dir, extension, file, hard_link, record, seal, symlink, tar};
use super::*;

fn limits() -> Limits {
    Limits::default()
}

/// Every entry with its data.
fn read(bytes: &[u8], limits: &Limits) -> Result<Vec<(Entry, Vec<u8>)>> {
    let mut reader = TarReader::new(bytes, limits);
    let mut entries = Vec::new();
    while let Some(entry) = reader.next_entry()? {
        assert_eq!(entry.data_offset, reader.position());
        let mut data = Vec::new();
        reader.data().read_to_end(&mut data)?;
        entries.push((entry, data));
    }
    Ok(entries)
}

fn names(bytes: &[u8]) -> Vec<String> {
    let entries = read(bytes, &limits()).expect("a good tar");
    entries.iter().map(|(entry, _)| String::from_utf8_lossy(&entry.path).into_owned()).collect()
}

fn error_of(bytes: &[u8]) -> ErrorKind {
    read(bytes, &limits()).map(|entries| entries.len()).expect_err("a bad tar").kind()
}

fn sole(item: Item) -> (Entry, Vec<u8>) {
    read(&tar(&[item]), &limits()).expect("a good tar").remove(0)
}

#[test]
fn all_that_a_header_says_is_read() {
    let mut item = file("a/b", "hello").mode(0o4755).owner(12, 34);
    item.mtime = 1_234_567_890;
    let (entry, data) = sole(item);
    assert_eq!((&entry.path[..], entry.kind, &data[..]), (&b"a/b"[..], EntryKind::File, &b"hello"[..]));
    assert_eq!((entry.mode, entry.uid, entry.gid, entry.size), (0o4755, 12, 34, 5));
    assert_eq!(entry.mtime, Mtime { seconds: 1_234_567_890, nanoseconds: 0 });
    assert_eq!(sole(symlink("l", "../x")).0.link, b"../x");
    assert_eq!(sole(build::device("d", b'4', 8, 1)).0.device, (8, 1));
}

#[test]
fn every_type_flag_has_its_kind() {
    for (flag, name, kind) in [
        (0, "f", EntryKind::File),
        (0, "f/", EntryKind::Directory),
        (b'0', "f", EntryKind::File),
        (b'7', "f", EntryKind::File),
        (b'1', "f", EntryKind::HardLink),
        (b'2', "f", EntryKind::Symlink),
        (b'3', "f", EntryKind::CharDevice),
        (b'4', "f", EntryKind::BlockDevice),
        (b'5', "f", EntryKind::Directory),
        (b'6', "f", EntryKind::Fifo),
        (b'V', "f", EntryKind::Other(b'V')),
    ] {
        assert_eq!(sole(file(name, "").flag(flag)).0.kind, kind, "{flag}");
    }
}

#[test]
fn a_prefix_counts_in_ustar_and_not_in_gnu_or_v7() {
    for (magic, path) in [(b"ustar\x0000", "pre/name"), (b"ustar  \0", "name"), (b"\0\0\0\0\0\0\0\0", "name")]
    {
        let item = Item { magic: *magic, ..file("name", "") };
        let mut block = item.header();
        block[345..348].copy_from_slice(b"pre");
        seal(&mut block);
        assert_eq!(names(&block), [path]);
    }
}

#[test]
fn long_names_and_pax_names_replace_the_headers() {
    let long = "d/".repeat(150) + "x";
    let gnu =
        tar(&[extension(b'L', format!("{long}\0")), extension(b'K', "target\0"), symlink("short", "t")]);
    let (entry, _) = read(&gnu, &limits()).expect("a good tar").remove(0);
    assert_eq!((&entry.path[..], &entry.link[..]), (long.as_bytes(), &b"target"[..]));
    assert_eq!(names(&tar(&[file(&long, "x"), file("next", "")])), [&long[..], "next"]);
    assert_eq!(sole(file("x", "").pax("path", b"\xff\n")).0.path, b"\xff\n");
}

#[test]
fn pax_records_beat_the_header() {
    let item = file("x", "data")
        .size(4)
        .pax("uid", "3000000000")
        .pax("gid", "7")
        .pax("mtime", "12.0345678901")
        .pax("SCHILY.xattr.user.a", b"\0=\n")
        .pax("LIBARCHIVE.xattr.user.%62", "AP8")
        .pax("comment", "any")
        .pax("uname", "");
    let (entry, data) = sole(item);
    assert_eq!((entry.uid, entry.gid, &data[..]), (3_000_000_000, 7, &b"data"[..]));
    assert_eq!(entry.mtime, Mtime { seconds: 12, nanoseconds: 34_567_890 });
    let xattrs = [(b"user.a".to_vec(), b"\0=\n".to_vec()), (b"user.b".to_vec(), vec![0, 0xff])];
    assert_eq!(entry.xattrs, xattrs);
}

#[test]
fn times_before_1970_are_rounded_into_the_past() {
    for (text, seconds, nanoseconds) in
        [("-1", -1, 0), ("-1.25", -2, 750_000_000), ("-0.5", -1, 500_000_000), ("3.", 3, 0)]
    {
        assert_eq!(sole(file("x", "").pax("mtime", text)).0.mtime, Mtime { seconds, nanoseconds }, "{text}");
    }
}

#[test]
fn numbers_are_octal_or_base_256() {
    assert_eq!(number(b"0000644\0"), Some(0o644));
    assert_eq!(number(b"   644 \0"), Some(0o644));
    assert_eq!(number(b"\0\0\0\0\0\0\0\0"), Some(0));
    assert_eq!(number(b"\x80\0\0\0\0\0\x01\0"), Some(256));
    assert_eq!(number(b"\xff\xff\xff\xff\xff\xff\xff\xfe"), Some(-2));
    assert_eq!(number(b"\x80\0\0\0\x80\0\0\0\0\0\0\0"), None, "beyond 63 bits");
    assert_eq!(number(b"12x\0"), None);
    assert_eq!(sole(file("x", "").owner(1 << 40, 0)).0.uid, 1 << 40);
}

#[test]
fn the_archive_ends_in_each_of_the_known_ways() {
    let entry = file("x", "abc").bytes();
    let zeros = [0; BLOCK];
    for (name, bytes) in [
        ("two zero blocks", tar(&[file("x", "abc")])),
        ("nothing", entry.clone()),
        ("one zero block", [&entry[..], &zeros].concat()),
        ("no padding", entry[..BLOCK + 3].to_vec()),
        ("garbage behind the end", [&tar(&[file("x", "abc")])[..], b"garbage"].concat()),
    ] {
        assert_eq!(names(&bytes), ["x"], "{name}");
    }
    assert_eq!(names(b""), Vec::<String>::new());
    assert_eq!(error_of(&[&zeros[..], &entry].concat()), ErrorKind::Malformed);
}

#[test]
fn what_follows_the_end_stays_in_the_input() {
    let bytes = [&tar(&[file("x", "abc")])[..], b"rest"].concat();
    let mut reader = TarReader::new(&bytes[..], &limits());
    while reader.next_entry().expect("a good tar").is_some() {}
    assert_eq!(reader.into_inner(), b"rest");
}

/// T9: what one reader takes for data, no other part of the program may take for a header.
#[test]
fn pax_size_decides_where_the_next_entry_begins() {
    let inner = tar(&[file("hidden", "")]);
    let hides = file("x", &inner).size(0).pax("size", inner.len().to_string());
    assert_eq!(names(&tar(&[hides, file("after", "")])), ["x", "after"]);
    let shorter = file("x", "").size(4096).pax("size", "0");
    assert_eq!(names(&tar(&[shorter, file("after", "")])), ["x", "after"]);
    // The size belongs to the file, not to the long name in between.
    let long = [
        extension(b'x', record(b"size", b"512")).bytes(),
        extension(b'L', "long\0").bytes(),
        file("x", [b'a'; 512]).size(0).bytes(),
        tar(&[file("after", "")]),
    ];
    assert_eq!(names(&long.concat()), ["long", "after"]);
}

#[test]
fn entries_without_data_have_none_whatever_their_size_says() {
    for item in [dir("d"), symlink("s", "t"), hard_link("h", "t"), build::device("c", b'3', 1, 3)] {
        assert_eq!(names(&tar(&[item.size(512), file("after", "")])).len(), 2);
    }
}

#[test]
fn malformed_extensions_are_errors() {
    let with = |content: &[u8]| tar(&[extension(b'x', content), file("x", "")]);
    for content in [
        &b"x"[..],
        b"5 a=b",
        b"6 a=b\n7 a=b\n",
        b"99 a=b\n",
        b"0 a=b\n",
        b"-6 a=b\n",
        b"99999999999999999999999 a=b\n",
        b"4 =\n",
        b"5 a \n",
        b" 6 a=b\n",
        b"6 a=bc",
        b"6 a=b\n\0",
        b"18446744073709551615 a=b\n",
    ] {
        assert_eq!(error_of(&with(content)), ErrorKind::Malformed, "{:?}", String::from_utf8_lossy(content));
    }
    for (key, value) in [
        ("path", "a\0b"),
        ("linkpath", "a\0b"),
        ("size", "-1"),
        ("size", "0x10"),
        ("size", "9223372036854775808"),
        ("size", "99999999999999999999999"),
        ("uid", "1.5"),
        ("mtime", "1e9"),
        ("mtime", "--1"),
        ("mtime", "1.-5"),
        ("a\0b", "x"),
        ("LIBARCHIVE.xattr.user.a", "!"),
        ("LIBARCHIVE.xattr.user.%0", "AA"),
        ("GNU.sparse.map", "0,1,2"),
        ("GNU.sparse.numbytes", "1"),
    ] {
        let bytes = tar(&[file("x", "").pax(key, value)]);
        assert_eq!(error_of(&bytes), ErrorKind::Malformed, "{key}={value}");
    }
    assert_eq!(
        error_of(&tar(&[extension(b'g', record(b"size", b"0")), file("x", "")])),
        ErrorKind::Malformed
    );
    assert_eq!(names(&tar(&[extension(b'g', record(b"path", b"all")), file("x", "")])), ["x"]);
    assert_eq!(
        error_of(&file("x", "").bytes()[..0].iter().copied().chain(with(b"")).take(512).collect::<Vec<_>>()),
        {
            // An extension with nothing after it.
            ErrorKind::Truncated
        }
    );
}

#[test]
fn headers_with_a_wrong_checksum_or_number_are_errors() {
    let mut bytes = tar(&[file("x", "")]);
    bytes[0] = b'y';
    assert_eq!(error_of(&bytes), ErrorKind::Malformed);
    let mut block = file("x", "").header();
    block[124..127].copy_from_slice(b"9zz");
    seal(&mut block);
    assert_eq!(error_of(&block), ErrorKind::Malformed);
    let huge = file("x", "").size(i64::MAX as u64).bytes();
    assert_eq!(error_of(&huge), ErrorKind::Malformed);
    let mut signed = file(b"\xff\xfe", "").header();
    let sum: i32 = signed
        .iter()
        .enumerate()
        .map(|(at, &b)| if (148..156).contains(&at) { 32 } else { i32::from(b as i8) })
        .sum();
    signed[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    assert_eq!(read(&signed, &limits()).expect("a good tar").len(), 1, "signed sums are accepted");
}

/// T10, T11, T31: a few bytes of input never ask for much memory.
#[test]
fn names_extensions_and_maps_are_capped() {
    let tight = Limits { path_bytes: 300, extension_bytes: 2000, sparse_regions: 3, ..limits() };
    let kind = |bytes: &[u8]| read(bytes, &tight).map(|_| ()).expect_err("too much").kind();
    let huge = |flag| file("x", "").flag(flag).size(1 << 33).bytes();
    for bytes in [
        huge(b'L'),
        huge(b'K'),
        huge(b'x'),
        huge(b'g'),
        tar(&[file("n".repeat(301), "")]),
        tar(&[symlink("x", "n".repeat(301))]),
        tar(&[file("x", "").pax("GNU.sparse.map", "0,0,".repeat(4) + "0,0").pax("GNU.sparse.size", "9")]),
        tar(&[sparse_1_0("4\n0\n0\n0\n0\n0\n0\n0\n0\n", "", "9")]),
    ] {
        assert_eq!(kind(&bytes), ErrorKind::LimitExceeded);
    }
    assert!(read(&tar(&[file("n".repeat(300), "")]), &tight).is_ok());
}

fn sparse_1_0(map: &str, data: &str, real_size: &str) -> Item {
    let mut stored = map.as_bytes().to_vec();
    stored.resize(stored.len().next_multiple_of(BLOCK), 0);
    stored.extend(data.as_bytes());
    file("GNUSparseFile.0/x", stored)
        .pax("GNU.sparse.major", "1")
        .pax("GNU.sparse.minor", "0")
        .pax("GNU.sparse.name", "real")
        .pax("GNU.sparse.realsize", real_size)
}

fn old_sparse(regions: &[(u64, u64)], real_size: u64, data: &[u8]) -> Vec<u8> {
    let item = Item { magic: *b"ustar  \0", ..file("real", data).flag(b'S') };
    let mut block = item.header();
    let entry = |&(offset, len): &(u64, u64)| format!("{offset:011o}\0{len:011o}\0").into_bytes();
    let (first, rest) = regions.split_at(regions.len().min(4));
    let table: Vec<u8> = first.iter().flat_map(entry).collect();
    block[386..386 + table.len()].copy_from_slice(&table);
    block[482] = u8::from(!rest.is_empty());
    block[483..495].copy_from_slice(format!("{real_size:011o}\0").as_bytes());
    seal(&mut block);
    let mut bytes = block.to_vec();
    let mut chunks = rest.chunks(21).peekable();
    while let Some(chunk) = chunks.next() {
        let mut extended: Vec<u8> = chunk.iter().flat_map(entry).collect();
        extended.resize(BLOCK, 0);
        extended[504] = u8::from(chunks.peek().is_some());
        bytes.extend(extended);
    }
    bytes.extend(data);
    bytes.resize(bytes.len().next_multiple_of(BLOCK), 0);
    bytes.extend(tar(&[file("after", "")]));
    bytes
}

#[test]
fn the_four_sparse_forms_mean_the_same() {
    let regions = vec![
        Region { offset: 1000, len: 3 },
        Region { offset: 5000, len: 2 },
        Region { offset: 9000, len: 0 },
    ];
    let map_0_1 =
        file("x", "abcde").pax("GNU.sparse.map", "1000,3,5000,2,9000,0").pax("GNU.sparse.size", "9000");
    let mut map_0_0 = file("x", "abcde").pax("GNU.sparse.size", "9000").pax("GNU.sparse.numblocks", "3");
    for (offset, len) in [("1000", "3"), ("5000", "2"), ("9000", "0")] {
        map_0_0 = map_0_0.pax("GNU.sparse.offset", offset).pax("GNU.sparse.numbytes", len);
    }
    let name = |item: Item| item.pax("GNU.sparse.name", "real");
    for bytes in [
        tar(&[name(map_0_1), file("after", "")]),
        tar(&[name(map_0_0), file("after", "")]),
        tar(&[sparse_1_0("3\n1000\n3\n5000\n2\n9000\n0\n", "abcde", "9000"), file("after", "")]),
        old_sparse(&[(1000, 3), (5000, 2), (9000, 0)], 9000, b"abcde"),
    ] {
        let entries = read(&bytes, &limits()).expect("a good tar");
        let (entry, data) = &entries[0];
        assert_eq!(entries[1].0.path, b"after");
        assert_eq!((&entry.path[..], &data[..]), (&b"real"[..], &b"abcde"[..]));
        assert_eq!((entry.size, entry.stored_bytes, entry.sparse.as_ref()), (9000, 5, Some(&regions)));
    }
    let many: Vec<(u64, u64)> = (0..60).map(|n| (10 * n, 1)).collect();
    let entries = read(&old_sparse(&many, 600, &[b'x'; 60]), &limits()).expect("a good tar");
    assert_eq!(entries[0].0.sparse.as_ref().map(Vec::len), Some(60));
}

#[test]
fn sparse_maps_that_cannot_be_are_errors() {
    for (map, size) in [
        ("1\n5\n5\n", "9"),
        ("2\n3\n2\n0\n3\n", "9"),
        ("2\n0\n3\n2\n2\n", "9"),
        ("1\n0\n4\n", "9"),
        ("1\n18446744073709551615\n5\n", "9"),
        ("1\n-1\n5\n", "9"),
        ("1\n\n5\n", "9"),
        ("x", "9"),
        ("000000000000000000000000000000001\n0\n5\n", "9"),
    ] {
        assert_eq!(error_of(&tar(&[sparse_1_0(map, "abcde", size)])), ErrorKind::Malformed, "{map:?}");
    }
    assert_eq!(
        error_of(&tar(&[sparse_1_0("9\n", "", "9").pax("GNU.sparse.major", "2")])),
        ErrorKind::Unsupported
    );
    assert_eq!(error_of(&old_sparse(&[(5, 5), (0, 0)], 9, b"abcde")), ErrorKind::Malformed);
}

#[test]
fn a_tar_cut_at_any_byte_gives_an_end_or_a_clean_error() {
    let whole = [
        file("x", "abc").pax("mtime", "1.5").bytes(),
        extension(b'L', "long\0").bytes(),
        old_sparse(&[(0, 1), (5, 1), (7, 1), (9, 1), (11, 1)], 20, b"abcde"),
        sparse_1_0("1\n0\n5\n", "abcde", "9").bytes(),
    ]
    .concat();
    for end in 0..whole.len() {
        match read(&whole[..end], &limits()) {
            Ok(_) => {}
            Err(error) => assert_eq!(error.kind(), ErrorKind::Truncated, "cut at {end}: {error}"),
        }
    }
}

#[test]
fn any_single_wrong_byte_in_an_extension_never_panics() {
    let whole = [
        sparse_1_0("1\n0\n5\n", "abcde", "9").pax("mtime", "1.5").bytes(),
        old_sparse(&[(0, 5)], 5, b"abcde"),
    ]
    .concat();
    for at in 0..whole.len() {
        for wrong in [0, b'9', 0xff] {
            let mut bytes = whole.clone();
            bytes[at] = wrong;
            let header: &mut [u8; BLOCK] =
                (&mut bytes[at / BLOCK * BLOCK..][..BLOCK]).try_into().expect("whole blocks");
            if header[257..262] == *b"ustar" {
                seal(header);
            }
            drop(read(&bytes, &limits()));
        }
    }
}

/// GNU tar's listing is the answer for what an archive holds.
#[test]
fn listings_agree_with_gnu_tar() {
    let Ok(dir) = tempfile::tempdir() else { return };
    let tree = dir.path().join("tree");
    let deep = tree.join("d".repeat(120)).join("e".repeat(120));
    std::fs::create_dir_all(&deep).expect("a directory");
    std::fs::write(deep.join("f"), "data").expect("a file");
    std::os::unix::fs::symlink("t".repeat(150), tree.join("link")).expect("a symlink");
    std::fs::hard_link(deep.join("f"), tree.join("hard")).expect("a hard link");
    let sparse = std::fs::File::create(tree.join("sparse")).expect("a file");
    std::os::unix::fs::FileExt::write_at(&sparse, b"end", 1 << 20).expect("written");
    for format in ["v7", "oldgnu", "gnu", "ustar", "posix"] {
        let archive = dir.path().join(format);
        let run = |arguments: &[&std::ffi::OsStr]| std::process::Command::new("tar").args(arguments).output();
        // Old formats know no sparse files.
        let sparse = if ["oldgnu", "gnu", "posix"].contains(&format) { "-S" } else { "-b20" };
        let option = format!("--format={format}");
        let made = run(&[
            option.as_ref(),
            sparse.as_ref(),
            "-cf".as_ref(),
            archive.as_ref(),
            "-C".as_ref(),
            tree.as_ref(),
            ".".as_ref(),
        ]);
        if made.is_err() {
            eprintln!("SKIPPED: there is no GNU tar here");
            return;
        }
        let listed = run(&["-tf".as_ref(), archive.as_ref()]).expect("just run");
        let listed: Vec<String> =
            String::from_utf8_lossy(&listed.stdout).lines().map(str::to_owned).collect();
        let bytes = std::fs::read(&archive).expect("just made");
        assert_eq!(names(&bytes), listed, "{format}");
    }
}

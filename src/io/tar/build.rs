//! Tars made byte by byte for tests, wrong ones included.

use super::{BLOCK, padding_of};

/// One entry, to be changed at will before it becomes bytes.
#[derive(Clone)]
pub(crate) struct Item {
    pub name: Vec<u8>,
    pub flag: u8,
    pub link: Vec<u8>,
    pub mode: u32,
    pub owner: (u64, u64),
    pub mtime: u64,
    pub data: Vec<u8>,
    pub size: Option<u64>,
    pub device: (u32, u32),
    pub pax: Vec<(Vec<u8>, Vec<u8>)>,
    pub magic: [u8; 8],
}

fn item(name: impl AsRef<[u8]>, flag: u8) -> Item {
    Item {
        name: name.as_ref().to_vec(),
        flag,
        link: Vec::new(),
        mode: if flag == b'5' { 0o755 } else { 0o644 },
        owner: (0, 0),
        mtime: 1_000_000_000,
        data: Vec::new(),
        size: None,
        device: (0, 0),
        pax: Vec::new(),
        magic: *b"ustar\x0000",
    }
}

pub(crate) fn file(name: impl AsRef<[u8]>, data: impl AsRef<[u8]>) -> Item {
    Item { data: data.as_ref().to_vec(), ..item(name, b'0') }
}

pub(crate) fn dir(name: impl AsRef<[u8]>) -> Item {
    item(name, b'5')
}

pub(crate) fn symlink(name: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Item {
    Item { link: target.as_ref().to_vec(), ..item(name, b'2') }
}

pub(crate) fn hard_link(name: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Item {
    Item { link: target.as_ref().to_vec(), ..item(name, b'1') }
}

pub(crate) fn device(name: impl AsRef<[u8]>, flag: u8, major: u32, minor: u32) -> Item {
    Item { device: (major, minor), ..item(name, flag) }
}

/// An extension header of any type with any content.
pub(crate) fn extension(flag: u8, content: impl AsRef<[u8]>) -> Item {
    Item { data: content.as_ref().to_vec(), ..item("extension", flag) }
}

impl Item {
    pub fn mode(self, mode: u32) -> Self {
        Item { mode, ..self }
    }

    pub fn owner(self, uid: u64, gid: u64) -> Self {
        Item { owner: (uid, gid), ..self }
    }

    pub fn flag(self, flag: u8) -> Self {
        Item { flag, ..self }
    }

    pub fn size(self, size: u64) -> Self {
        Item { size: Some(size), ..self }
    }

    pub fn pax(mut self, key: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Self {
        self.pax.push((key.as_ref().to_vec(), value.as_ref().to_vec()));
        self
    }

    /// The header alone.
    pub fn header(&self) -> [u8; BLOCK] {
        let mut block = [0; BLOCK];
        let mut put = |at: usize, bytes: &[u8]| block[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &self.name[..self.name.len().min(100)]);
        put(100, format!("{:07o}", self.mode).as_bytes());
        put(108, &number(self.owner.0, 8));
        put(116, &number(self.owner.1, 8));
        put(124, &number(self.size.unwrap_or(self.data.len() as u64), 12));
        put(136, &number(self.mtime, 12));
        put(156, &[self.flag]);
        put(157, &self.link[..self.link.len().min(100)]);
        put(257, &self.magic);
        put(329, format!("{:07o}", self.device.0).as_bytes());
        put(337, format!("{:07o}", self.device.1).as_bytes());
        seal(&mut block);
        block
    }

    pub fn bytes(&self) -> Vec<u8> {
        let mut records = Vec::new();
        for (key, value) in &self.pax {
            records.extend(record(key, value));
        }
        if self.name.len() > 100 {
            records.extend(record(b"path", &self.name));
        }
        if self.link.len() > 100 {
            records.extend(record(b"linkpath", &self.link));
        }
        let mut bytes = Vec::new();
        if !records.is_empty() {
            bytes.extend(extension(b'x', records).bytes());
        }
        bytes.extend(self.header());
        bytes.extend(&self.data);
        bytes.resize(bytes.len() + padding_of(self.data.len() as u64) as usize, 0);
        bytes
    }
}

/// Puts the checksum into a header.
pub(crate) fn seal(block: &mut [u8; BLOCK]) {
    block[148..156].copy_from_slice(b"        ");
    let sum: u32 = block.iter().map(|&byte| u32::from(byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
}

fn number(value: u64, width: usize) -> Vec<u8> {
    let octal = format!("{value:0digits$o}\0", digits = width - 1).into_bytes();
    if octal.len() == width {
        return octal;
    }
    let mut bytes = vec![0; width];
    bytes[width - 8..].copy_from_slice(&value.to_be_bytes());
    bytes[0] |= 0x80;
    bytes
}

/// A PAX record with its length.
pub(crate) fn record(key: &[u8], value: &[u8]) -> Vec<u8> {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while length != rest + length.to_string().len() {
        length = rest + length.to_string().len();
    }
    [length.to_string().as_bytes(), b" ", key, b"=", value, b"\n"].concat()
}

/// The items with the two blocks of zeros at the end.
pub(crate) fn tar(items: &[Item]) -> Vec<u8> {
    let mut bytes: Vec<u8> = items.iter().flat_map(Item::bytes).collect();
    bytes.resize(bytes.len() + 2 * BLOCK, 0);
    bytes
}

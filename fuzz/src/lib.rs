//! What the fuzz targets do with their input, apart from cargo-fuzz: `tests/fuzzing.rs` runs the same. And what several of them
//! need: inputs that get past a checksum, and tars made of what the fuzzer says.

pub mod archive;
pub mod codecs;
pub mod manifests;
pub mod references;
pub mod tar_layer;
pub mod whiteouts;

/// Bytes of a tar block.
pub const BLOCK: usize = 512;

/// Gives every block that looks like a header the checksum that it needs. Without this nothing that the fuzzer
/// changes in a header would be read at all.
pub fn mend_checksums(tar: &mut [u8]) {
    for block in tar.chunks_exact_mut(BLOCK) {
        if &block[257..262] == b"ustar" {
            mend(block);
        }
    }
}

fn mend(block: &mut [u8]) {
    block[148..156].fill(b' ');
    let sum: u32 = block.iter().map(|&byte| u32::from(byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
}

/// Appends an entry to a tar.
pub fn entry(tar: &mut Vec<u8>, flag: u8, name: &[u8], link: &[u8], mode: u32, data: &[u8]) {
    let mut block = [0; BLOCK];
    let (name, link) = (&name[..name.len().min(100)], &link[..link.len().min(100)]);
    block[..name.len()].copy_from_slice(name);
    block[100..108].copy_from_slice(format!("{:07o}\0", mode & 0o7777).as_bytes());
    block[124..136].copy_from_slice(format!("{:011o}\0", data.len()).as_bytes());
    block[156] = flag;
    block[157..157 + link.len()].copy_from_slice(link);
    block[257..265].copy_from_slice(b"ustar\x0000");
    mend(&mut block);
    tar.extend_from_slice(&block);
    tar.extend_from_slice(data);
    tar.resize(tar.len().next_multiple_of(BLOCK), 0);
}

//! Limits on what an input may ask for: caps that no real image meets, each with its reason, all of them adjustable.

/// Caps for one import.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The largest manifest, index or configuration, in bytes. Registries accept 4 MiB.
    pub json_bytes: u64,
    /// All the JSON of one archive that is held at once, in bytes.
    pub json_total_bytes: u64,
    /// The longest path or link target in a tar, in bytes. `PATH_MAX` is 4096 with the final NUL.
    pub path_bytes: usize,
    /// The most components in a path.
    pub path_components: usize,
    /// The largest PAX or GNU extension in a tar, in bytes; xattrs (64 KiB each) travel in them.
    pub extension_bytes: u64,
    /// The most entries in a layer.
    pub layer_entries: u64,
    /// The most uncompressed bytes in a layer.
    pub layer_bytes: u64,
    /// The most data regions in a sparse file.
    pub sparse_regions: usize,
    /// The most members in an archive.
    pub archive_members: u64,
    /// The most layers in an image; overlayfs itself stops at 500 lower directories.
    pub layers: usize,
    /// The deepest nesting of indexes.
    pub index_depth: usize,
    /// The most descriptors that are visited in an archive.
    pub descriptors: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            json_bytes: 8 << 20,
            json_total_bytes: 64 << 20,
            path_bytes: 4095,
            path_components: 256,
            extension_bytes: 1 << 20,
            layer_entries: 20_000_000,
            layer_bytes: 1 << 42,
            sparse_regions: 100_000,
            archive_members: 1_000_000,
            layers: 500,
            index_depth: 8,
            descriptors: 100_000,
        }
    }
}

//! Limits on what an input may ask for: caps that no real image meets, each with its reason, all of them adjustable.

use crate::error::{Error, ErrorKind, Result};

/// Makes the struct, its defaults and its names of one table, so that none is without the others.
macro_rules! limits {
    ($($(#[$doc:meta])* $field:ident: $type:ty = $default:expr;)*) => {
        /// Caps for one import.
        #[derive(Clone, Debug, PartialEq, Eq)]
        pub struct Limits {
            $($(#[$doc])* pub $field: $type,)*
        }

        impl Default for Limits {
            fn default() -> Self {
                Limits { $($field: $default,)* }
            }
        }

        impl Limits {
            /// The names of the fields, as [`Limits::get`] and [`Limits::set`] know them.
            pub const NAMES: &'static [&'static str] = &[$(stringify!($field),)*];

            /// A limit by its name.
            pub fn get(&self, name: &str) -> Option<u64> {
                match name.replace('-', "_").as_str() {
                    $(stringify!($field) => Some(self.$field as u64),)*
                    _ => None,
                }
            }

            /// Sets a limit by its name, whose words may be joined by `_` or by `-`.
            ///
            /// # Errors
            /// [`ErrorKind::InvalidArgument`] for a name that is none.
            ///
            /// ```
            /// let mut limits = transload::Limits::default();
            /// limits.set("layer-entries", 50_000_000)?;
            /// assert_eq!(limits.layer_entries, 50_000_000);
            /// # Ok::<(), transload::Error>(())
            /// ```
            pub fn set(&mut self, name: &str, value: u64) -> Result<()> {
                match name.replace('-', "_").as_str() {
                    $(stringify!($field) => self.$field = <$type>::try_from(value).unwrap_or(<$type>::MAX),)*
                    _ => return Err(unknown(name)),
                }
                Ok(())
            }
        }
    };
}

limits! {
    /// The largest manifest, index or configuration, in bytes. Registries accept 4 MiB.
    json_bytes: u64 = 8 << 20;
    /// All the JSON of one archive that is held at once, in bytes; all names of its members likewise.
    json_total_bytes: u64 = 64 << 20;
    /// The longest path or link target in a tar, in bytes. `PATH_MAX` is 4096 with the final NUL.
    path_bytes: usize = 4095;
    /// The most components in a path.
    path_components: usize = 256;
    /// The largest PAX or GNU extension in a tar, in bytes; xattrs (64 KiB each) travel in them.
    extension_bytes: u64 = 1 << 20;
    /// The most entries in a layer.
    layer_entries: u64 = 20_000_000;
    /// The most uncompressed bytes in a layer; neither its blob nor a file in it, holes included, may be larger.
    layer_bytes: u64 = 1 << 42;
    /// The memory that the directories, deletions and links of all layers that are extracted at once may take, in bytes. A real layer
    /// of a hundred thousand directories needs some 35 MiB.
    layer_lists_bytes: usize = 256 << 20;
    /// How much of the space that is free when an import begins it may take, in percent: blobs, layers, and what chains of them need.
    /// What is left keeps everybody else on that disk going while a bomb is found out.
    free_space_percent: u64 = 95;
    /// The most data regions in a sparse file.
    sparse_regions: usize = 100_000;
    /// The most members in an archive.
    archive_members: u64 = 1_000_000;
    /// What may follow an archive's end, in bytes. Tapes are padded, by some KiB.
    trailing_bytes: u64 = 64 << 20;
    /// The most layers in an image; overlayfs itself stops at 500 lower directories.
    layers: usize = 500;
    /// The deepest nesting of indexes.
    index_depth: usize = 8;
    /// The most descriptors that are visited in an archive.
    descriptors: usize = 100_000;
}

fn unknown(name: &str) -> Error {
    let names: Vec<String> = Limits::NAMES.iter().map(|name| name.replace('_', "-")).collect();
    Error::new(ErrorKind::InvalidArgument, format!("there is no limit called {name:?}"))
        .with_hint(format!("there are {}", names.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_limit_can_be_set_by_its_name() {
        let mut limits = Limits::default();
        for (value, name) in (1000..).zip(Limits::NAMES) {
            limits.set(&name.replace('_', "-"), value).expect("a limit");
            assert_eq!(limits.get(name), Some(value));
        }
        assert_eq!(limits.set("layer", 1).expect_err("none").kind(), ErrorKind::InvalidArgument);
        assert_eq!(limits.get("layer"), None);
    }
}

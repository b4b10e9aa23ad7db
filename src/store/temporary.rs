//! Temporary files in the store's root that a death between writing and renaming left there.

use super::{Store, lock};
use crate::error::{Result, ResultExt};
use rustix::fs::{self, AtFlags};
use rustix::io::Errno;

/// Files that are replaced in one step, by way of a hidden one beside them.
const REPLACED: [&str; 3] = ["index.json", "oci-layout", "transload.json"];

impl Store {
    /// Removes them. Whoever writes such a file holds one of the two locks.
    pub(crate) fn sweep_temporaries(&self) -> Result<()> {
        let _creation = lock::directory(self.root())?;
        let _index = lock::index(self.root())?;
        for entry in fs::Dir::read_from(self.root()).doing(|| "cannot list the store")? {
            let entry = entry.doing(|| "cannot list the store")?;
            let name = entry.file_name();
            if !is_temporary(&name.to_string_lossy()) {
                continue;
            }
            match fs::unlinkat(self.root(), name, AtFlags::empty()) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(errno) => {
                    return Err(errno).doing(|| format!("cannot remove {}", name.to_string_lossy()));
                }
            }
        }
        Ok(())
    }
}

fn is_temporary(name: &str) -> bool {
    let hidden = name.strip_prefix('.').unwrap_or_default();
    REPLACED.iter().any(|file| hidden.strip_prefix(file).is_some_and(|rest| rest.starts_with('.')))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::StoreOptions;

    #[test]
    fn a_temporary_index_of_a_dead_process_goes_with_the_next_collection() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let options = StoreOptions { create: true, ..Default::default() };
        let store = Store::open(dir.path(), &options).expect("opens");
        for name in [".index.json.1-0-abc", ".transload.json.2-0-abc", ".unrelated"] {
            std::fs::write(dir.path().join(name), b"").expect("writes");
        }
        store.sweep_temporaries().expect("sweeps");
        let hidden = std::fs::read_dir(dir.path()).expect("lists").filter(|entry| {
            entry.as_ref().is_ok_and(|entry| entry.file_name().to_string_lossy().starts_with('.'))
        });
        assert_eq!(hidden.count(), 1, "only what is not ours stays");
        assert!(dir.path().join("index.json").exists() && dir.path().join("transload.json").exists());
    }
}

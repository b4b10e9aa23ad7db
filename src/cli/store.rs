//! Where the store is: `--store`, then `TRANSLOAD_STORE`, then the place for root or for a user.

use std::path::PathBuf;
use transload::{Error, ErrorKind, Result};

/// What the choice depends on, read once at the start.
pub struct Surroundings {
    pub variable: Option<PathBuf>,
    pub root: bool,
    /// Who the user is outside of the namespace that a command may enter.
    pub uid: u32,
    pub gid: u32,
    pub data_home: Option<PathBuf>,
    pub home: Option<PathBuf>,
}

impl Surroundings {
    /// Of this process. Root of a user namespace is a user: `/var/lib` is not theirs.
    pub fn of_process() -> Self {
        let root = rustix::process::geteuid().is_root() && is_initial_user_namespace();
        let path = |name| std::env::var_os(name).map(PathBuf::from);
        let variable = path("TRANSLOAD_STORE");
        let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
        Surroundings { variable, root, uid, gid, data_home: path("XDG_DATA_HOME"), home: path("HOME") }
    }
}

fn is_initial_user_namespace() -> bool {
    let map = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    let fields: Vec<&str> = map.split_whitespace().collect();
    // Without /proc nobody can tell; then root is taken at its word.
    fields.is_empty() || fields == ["0", "0", "4294967295"]
}

/// The store's directory; `chosen` is `--store`.
pub fn directory(chosen: Option<PathBuf>, surroundings: &Surroundings) -> Result<PathBuf> {
    // An empty variable is an unset one.
    let variable = surroundings.variable.clone().filter(|path| !path.as_os_str().is_empty());
    if let Some(chosen) = chosen.or(variable) {
        return Ok(chosen);
    }
    if surroundings.root {
        return Ok(PathBuf::from("/var/lib/transload"));
    }
    // The XDG specification: relative paths are to be ignored.
    let absolute = |path: &Option<PathBuf>| path.clone().filter(|path| path.is_absolute());
    let data = absolute(&surroundings.data_home)
        .or_else(|| absolute(&surroundings.home).map(|home| home.join(".local/share")));
    data.map(|data| data.join("transload")).ok_or_else(|| {
        Error::new(ErrorKind::InvalidArgument, "cannot choose a store: neither XDG_DATA_HOME nor HOME is set")
            .with_hint("name the directory with --store")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_store_is_where_the_reference_says() {
        let user = |data: Option<&str>, home: Option<&str>| Surroundings {
            variable: None,
            root: false,
            uid: 1000,
            gid: 1000,
            data_home: data.map(PathBuf::from),
            home: home.map(PathBuf::from),
        };
        let at = |chosen: Option<&str>, surroundings: &Surroundings| {
            directory(chosen.map(PathBuf::from), surroundings).ok().map(|path| path.display().to_string())
        };
        let root = Surroundings { root: true, ..user(Some("/x"), Some("/root")) };
        assert_eq!(at(None, &root).as_deref(), Some("/var/lib/transload"));
        assert_eq!(at(Some("here"), &root).as_deref(), Some("here"));
        let variable = |value: &str| Surroundings { variable: Some(value.into()), ..user(None, Some("/h")) };
        assert_eq!(at(None, &variable("/v")).as_deref(), Some("/v"));
        assert_eq!(at(Some("here"), &variable("/v")).as_deref(), Some("here"));
        assert_eq!(at(None, &variable("")).as_deref(), Some("/h/.local/share/transload"));
        assert_eq!(at(None, &user(Some("/d"), Some("/h"))).as_deref(), Some("/d/transload"));
        assert_eq!(at(None, &user(Some("rel"), Some("/h"))).as_deref(), Some("/h/.local/share/transload"));
        assert_eq!(at(None, &user(None, None)), None);
    }
}

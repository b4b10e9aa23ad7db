//! The commands that a page or a report names, so that they mean the same thing when they are pasted into a shell.

use std::borrow::Cow;
use std::path::Path;

/// The tool's own name, before a subcommand.
const OWN: &str = "transload ";

/// One word of a shell's command line.
///
/// ```
/// use transload::upkeep::quoted;
/// assert_eq!(quoted("/var/lib/transload"), "/var/lib/transload");
/// assert_eq!(quoted("/srv/my store"), "'/srv/my store'");
/// assert_eq!(quoted("it's"), r"'it'\''s'");
/// ```
pub fn quoted(word: &str) -> Cow<'_, str> {
    let is_plain = |char: char| char.is_ascii_alphanumeric() || "_@%+=:,./-".contains(char);
    match !word.is_empty() && word.chars().all(is_plain) {
        true => word.into(),
        false => format!("'{}'", word.replace('\'', r"'\''")).into(),
    }
}

/// The same for a path.
pub(super) fn quoted_path(path: &Path) -> String {
    quoted(&path.display().to_string()).into_owned()
}

/// Has this tool's commands in `mend` name the store. One that has a path of its own is one command; others may be a sentence
/// with several.
pub(super) fn name_store(mend: &mut String, store: &Path) {
    let named = format!("{OWN}--store {} ", quoted_path(store));
    match (mend.contains('/'), mend.strip_prefix(OWN)) {
        (true, Some(rest)) => *mend = format!("{named}{rest}"),
        (true, None) => {}
        (false, _) => *mend = mend.replace(OWN, &named),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_name_the_store_and_paths_stay_what_they_are() {
        let named = |mend: &str| {
            let mut mend = mend.to_string();
            name_store(&mut mend, Path::new("/x/my store"));
            mend
        };
        assert_eq!(named("transload gc"), "transload --store '/x/my store' gc");
        assert_eq!(
            named("transload gc, and transload du"),
            "transload --store '/x/my store' gc, and transload --store '/x/my store' du"
        );
        assert_eq!(named("rm -r '/x/transload gc/quarantine'"), "rm -r '/x/transload gc/quarantine'");
        assert_eq!(
            named("transload umount '/mnt/a transload b'"),
            "transload --store '/x/my store' umount '/mnt/a transload b'"
        );
    }
}

//! The stair: a room imports from rooms on lower floors, and the nouns are open to all.
//!
//! The house is drawn in docs/ARCHITECTURE.md. This test reads every path that begins with `crate` (or climbs there
//! with `super`) in the files under `src/` and fails for each that leads to a room of the same floor or of a higher one.
//! Inside a room, its own submodules are free. A new room needs a floor here before anything compiles into it unseen.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

/// The rooms by floor, the ground first. Nouns are open to all, to each other too.
const FLOORS: [&[&str]; 8] = [
    &["error", "holder", "limits", "metrics", "oci", "progress", "trace", "tree"],
    &["parallel"],
    &["io", "metadata", "mount"],
    &["archive", "content", "layer", "remote", "snapshot"],
    &["store"],
    &["transfer", "upkeep"],
    &["engine"],
    &["cli", "daemon", "main"],
];

fn floor(room: &str) -> Option<usize> {
    FLOORS.iter().position(|rooms| rooms.contains(&room))
}

#[test]
fn every_import_goes_down_the_stair() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let porch = porch(&std::fs::read_to_string(src.join("lib.rs")).expect("src/lib.rs"));
    let mut wrong = Vec::new();
    let mut looked_at = 0;
    for file in rust_files(&src) {
        let inside = file.strip_prefix(&src).expect("it was found there");
        let Some(module) = module_of(inside) else { continue };
        let text = std::fs::read_to_string(&file).expect("a source file");
        looked_at += imports(&module, &text, &porch).len();
        wrong.extend(
            violations(&module, &text, &porch)
                .into_iter()
                .map(|one| format!("src/{}: {one}", inside.display())),
        );
    }
    assert!(looked_at > 100, "only {looked_at} imports were found, so the reader of this test is broken");
    assert!(wrong.is_empty(), "imports that do not go down the stair:\n{}", wrong.join("\n"));
}

#[test]
fn imports_that_go_up_or_sideways_are_found() {
    let porch = BTreeMap::from([("Engine".to_string(), "engine".to_string())]);
    for (module, source, expected) in [
        ("store", "use crate::engine::Engine;", "engine"),
        ("upkeep", "use crate::transfer::{self, import};", "transfer"),
        ("transfer::import", "fn f() { crate::upkeep::gc(); }", "upkeep"),
        ("content::ingest", "use crate::{error::Result, snapshot::Trees, io};", "snapshot"),
        ("content::ingest", "use super::super::store::Store;", "store"),
        ("content", "mod tests { use super::super::snapshot; }", "snapshot"),
        ("metadata", "use super::{oci::Digest, engine};", "engine"),
        ("layer", "pub(in crate::layer) fn f() {}\nuse crate::Engine;", "engine"),
        ("layer", "use r#crate; use crate::cellar::Wine;", "cellar"),
        ("io", "use crate\n    ::\n    mount;", "mount"),
        ("parallel", "let x = '\"'; use crate::io; // \"", "io"),
        ("parallel", "fn f<'a>(x: &'a str) -> crate::io::Codec {}", "io"),
        ("engine", "use crate::*;", "*"),
    ] {
        let found = violations(module, source, &porch);
        assert_eq!(
            found.iter().map(|one| one.to.as_str()).collect::<Vec<_>>(),
            [expected],
            "{module}: {source}"
        );
    }
}

#[test]
fn imports_that_go_down_or_stay_inside_are_fine() {
    let porch = BTreeMap::from([("Error".to_string(), "error".to_string())]);
    for (module, source) in [
        ("error", "use crate::oci::Digest;"),
        ("transfer::import", "use super::plan; use crate::transfer::report; use crate::store::Store;"),
        ("transfer::import", "mod tests { use super::*; use super::super::plan; }"),
        (
            "store",
            "// use crate::engine::Engine;\n/* crate::engine /* crate::cli */ */ \"crate::engine\"; r#\"crate::\"cli\"#;",
        ),
        ("store", "//! See [`crate::engine`].\nuse crate::{Error, io::{durable, locked}, metadata};"),
        ("engine", "use crate::{transfer::{self, Claims}, upkeep};"),
        ("content", "mod a { mod b { use super::super::x; use super::super::super::io; } }"),
    ] {
        let found = violations(module, source, &porch);
        assert!(found.is_empty(), "{module}: {source}: {found:?}");
    }
}

/// An import that does not go down.
#[derive(Debug)]
struct Violation {
    from: String,
    to: String,
    line: usize,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Violation { from, to, line } = self;
        match (floor(from), floor(to)) {
            (Some(low), Some(high)) => {
                write!(f, "line {line}: {from} (floor {low}) uses {to} (floor {high})")
            }
            (None, _) => write!(f, "line {line}: the room {from} has no floor in tests/stair.rs"),
            (_, None) => write!(f, "line {line}: {from} uses {to}, which has no floor in tests/stair.rs"),
        }
    }
}

fn violations(module: &str, text: &str, porch: &BTreeMap<String, String>) -> Vec<Violation> {
    let from = module.split("::").next().expect("a module has a first part");
    let may = |to: &str| match (floor(from), floor(to)) {
        (Some(here), Some(there)) => from == to || there == 0 || there < here,
        _ => false,
    };
    let imports = imports(module, text, porch).into_iter().filter(|(to, _)| !may(to));
    imports.map(|(to, line)| Violation { from: from.to_string(), to, line }).collect()
}

/// The rooms that the text of `module` names through the crate's root, each with its line.
fn imports(module: &str, text: &str, porch: &BTreeMap<String, String>) -> Vec<(String, usize)> {
    let tokens = tokens(text);
    let mut found = Vec::new();
    // The modules that we are in, as the brace depths at which the inline ones began.
    let (mut depth, mut inline) = (0_usize, Vec::new());
    let mut at = 0;
    while at < tokens.len() {
        match tokens[at].text.as_str() {
            "mod" if word(&tokens, at + 2) == "{" => inline.push(depth),
            "{" => depth += 1,
            "}" => {
                depth = depth.saturating_sub(1);
                inline.pop_if(|began| *began == depth);
            }
            "crate" if word(&tokens, at + 1) == "::" => at = path(&tokens, at + 2, &mut found),
            "super" if word(&tokens, at.wrapping_sub(1)) != "::" => {
                let levels = module.split("::").count() + inline.len();
                let mut climbed = 0;
                while word(&tokens, at + 2 * climbed) == "super"
                    && word(&tokens, at + 2 * climbed + 1) == "::"
                {
                    climbed += 1;
                }
                if climbed == levels {
                    at = path(&tokens, at + 2 * climbed, &mut found);
                }
            }
            _ => {}
        }
        at += 1;
    }
    let room = |(name, line): (String, usize)| (porch.get(&name).cloned().unwrap_or(name), line);
    found.into_iter().map(room).collect()
}

/// Notes the first names of what stands behind `crate::`, which is a name, a star or a group of paths. Gives the last
/// token that it has used.
fn path(tokens: &[Token], at: usize, found: &mut Vec<(String, usize)>) -> usize {
    let note = |at: usize, found: &mut Vec<_>| found.push((tokens[at].text.clone(), tokens[at].line));
    match word(tokens, at) {
        "" => at,
        "{" => {
            let (mut depth, mut at, mut first) = (1, at + 1, true);
            while depth > 0 && at < tokens.len() {
                match word(tokens, at) {
                    "{" => depth += 1,
                    "}" => depth -= 1,
                    "," if depth == 1 => first = true,
                    "self" if first => first = false,
                    _ if first => {
                        note(at, found);
                        first = false;
                    }
                    _ => {}
                }
                at += 1;
            }
            at - 1
        }
        _ => {
            note(at, found);
            at
        }
    }
}

struct Token {
    text: String,
    line: usize,
}

fn word(tokens: &[Token], at: usize) -> &str {
    tokens.get(at).map_or("", |token| &token.text)
}

/// Words and marks; comments, strings and characters are left out.
fn tokens(text: &str) -> Vec<Token> {
    let (mut rest, mut line, mut out) = (text, 1, Vec::new());
    while let Some(first) = rest.chars().next() {
        let length = skipped(rest).unwrap_or_else(|| {
            let is_word = |c: char| c.is_alphanumeric() || c == '_';
            let length = match rest.find(|c| !is_word(c)).unwrap_or(rest.len()) {
                0 if rest.starts_with("::") => 2,
                0 => first.len_utf8(),
                length => length,
            };
            if !first.is_whitespace() {
                out.push(Token { text: rest[..length].to_string(), line });
            }
            length
        });
        line += rest[..length].matches('\n').count();
        rest = &rest[length..];
    }
    out
}

/// The length of the comment or literal that the text begins with.
fn skipped(text: &str) -> Option<usize> {
    if text.starts_with("//") {
        return Some(text.find('\n').unwrap_or(text.len()));
    }
    if text.starts_with("/*") {
        return Some(block_comment(text));
    }
    if text.starts_with('"') {
        return Some(quoted(text));
    }
    if let Some(hashes) = raw_hashes(text) {
        let end = format!("\"{}", "#".repeat(hashes));
        let begin = text.find('"').expect("a raw string has a quote") + 1;
        return Some(text[begin..].find(&end).map_or(text.len(), |at| begin + at + end.len()));
    }
    if let Some(inner) = text.strip_prefix('\'') {
        // A lifetime has no closing quote behind its first letter.
        let mut chars = inner.char_indices();
        return match (chars.next()?.1, chars.next()?) {
            ('\\', (second, escaped)) => {
                let from = second + escaped.len_utf8();
                Some(inner[from..].find('\'').map_or(text.len(), |at| from + at + 2))
            }
            (_, (at, '\'')) => Some(at + 2),
            _ => Some(1),
        };
    }
    None
}

/// How many `#` a raw string has that begins here.
fn raw_hashes(text: &str) -> Option<usize> {
    let rest = text.strip_prefix("br").or(text.strip_prefix('r'))?;
    let hashes = rest.len() - rest.trim_start_matches('#').len();
    rest[hashes..].starts_with('"').then_some(hashes)
}

fn quoted(text: &str) -> usize {
    let mut escaped = false;
    for (at, byte) in text.bytes().enumerate().skip(1) {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'"' => return at + 1,
            _ => {}
        }
    }
    text.len()
}

/// Block comments nest.
fn block_comment(text: &str) -> usize {
    let (mut depth, mut at) = (0, 0);
    while at < text.len() {
        match &text.as_bytes()[at..] {
            [b'/', b'*', ..] => (depth, at) = (depth + 1, at + 2),
            [b'*', b'/', ..] => (depth, at) = (depth - 1, at + 2),
            _ => at += 1,
        }
        if depth == 0 {
            return at;
        }
    }
    text.len()
}

/// What `lib.rs` shows at its root, and the room it comes from.
fn porch(lib: &str) -> BTreeMap<String, String> {
    let tokens = tokens(lib);
    let mut porch = BTreeMap::new();
    for at in 0..tokens.len() {
        if word(&tokens, at) != "use" {
            continue;
        }
        let room = word(&tokens, at + 1).to_string();
        let names = tokens[at + 2..].iter().take_while(|token| token.text != ";");
        let types = names.filter(|token| token.text.starts_with(char::is_uppercase));
        porch.extend(types.map(|token| (token.text.clone(), room.clone())));
    }
    porch
}

/// `transfer::import` for `transfer/import.rs`. Nothing for `lib.rs`, which only opens the rooms.
fn module_of(path: &Path) -> Option<String> {
    let path = path.with_extension("");
    let mut parts: Vec<_> = path.iter().map(|part| part.to_string_lossy().into_owned()).collect();
    if parts.last().is_some_and(|last| last == "mod") {
        parts.pop();
    }
    (parts != ["lib"]).then(|| parts.join("::"))
}

fn rust_files(dir: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(dir).expect("a directory of sources") {
        let path = entry.expect("an entry of it").path();
        if path.is_dir() {
            files.extend(rust_files(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    files.sort();
    files
}

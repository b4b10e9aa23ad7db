//! docs/security.md lists every `unsafe` in the crate with its reason; this test counts, so that none comes in unseen.

#[path = "support/sources.rs"]
mod sources;

use sources::{root, sources};
use std::collections::BTreeMap;

/// The keyword in the code of a line: not in a comment, not part of a longer name, and not the `unsafe-inline` of a page's security policy.
fn count(line: &str) -> usize {
    let code = line.split("//").next().unwrap_or_default().replace("unsafe-inline", "");
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    code.split(|c| !is_word(c)).filter(|word| *word == "unsafe").count()
}

#[test]
fn every_unsafe_block_is_listed_with_its_reason() {
    let mut counted = BTreeMap::new();
    for file in sources(&root().join("src")) {
        let text = std::fs::read_to_string(&file).expect("a source file");
        let blocks: usize = text.lines().map(count).sum();
        if blocks > 0 {
            let name = file.strip_prefix(root()).expect("below the root").display().to_string();
            counted.insert(name, blocks.to_string());
        }
    }
    let page = std::fs::read_to_string(root().join("docs/security.md")).expect("docs/security.md");
    let table =
        page.split("## Unsafe code").nth(1).expect("the chapter").split("\n## ").next().expect("its text");
    let row = |line: &str| {
        let mut cells = line.strip_prefix("| `")?.split('|').map(str::trim);
        let (file, blocks, reason) = (cells.next()?, cells.next()?, cells.next()?);
        assert!(reason.len() > 10, "{file} has no reason");
        Some((file.trim_end_matches('`').to_string(), blocks.to_string()))
    };
    let listed: BTreeMap<String, String> = table.lines().filter_map(row).collect();
    assert_eq!(counted, listed, "the code is on the left, docs/security.md on the right");
}

#[test]
fn the_counter_sees_code_and_nothing_else() {
    for (line, expected) in [
        ("unsafe { call() }", 1),
        ("    let x = unsafe { a() } + unsafe { b() };", 2),
        ("unshare_unsafe(x) // unsafe", 0),
        ("/// unsafe", 0),
        ("unsafe fn f() {}", 1),
    ] {
        assert_eq!(count(line), expected, "{line}");
    }
}

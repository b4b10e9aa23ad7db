//! deny.toml, kept without cargo-deny: every crate that Cargo.lock brings in comes from crates.io, has a licence that is
//! allowed, and is none of those that are banned.

use serde_json::Value;
use std::collections::BTreeMap;
use std::process::Command;

/// The strings of the array that begins behind `key = [`, one or several to a line; comments are left out.
fn strings(rules: &str, key: &str) -> Vec<String> {
    let start = format!("\n{key} = [");
    let array = rules.split(&start).nth(1).unwrap_or_else(|| panic!("deny.toml has no {key}"));
    let array = array.split("\n]").next().expect("an array ends");
    let code = array.lines().map(|line| line.split('#').next().unwrap_or_default());
    code.flat_map(|line| line.split('"').skip(1).step_by(2)).map(str::to_string).collect()
}

/// The crates of `deny = [{ crate = "…", … }]`.
fn banned(rules: &str) -> Vec<String> {
    let list = rules.split("\ndeny = [").nth(1).expect("deny.toml bans something");
    let list = list.split("\n]").next().expect("an array ends");
    let name = |entry: &str| entry.split('"').next().map(str::to_string);
    list.split("crate = \"").skip(1).filter_map(name).collect()
}

/// The older versions of crates that come in twice: `skip = [{ crate = "name@version", … }]`.
fn tolerated(rules: &str) -> Vec<String> {
    let list = rules.split("\nskip = [").nth(1).expect("deny.toml skips something");
    let list = list.split("\n]").next().expect("an array ends");
    let mut crates: Vec<String> = list
        .split("crate = \"")
        .skip(1)
        .filter_map(|entry| entry.split('"').next())
        .map(str::to_string)
        .collect();
    crates.sort();
    crates
}

/// Every version of a crate but the newest, `name@version`.
fn older_versions(packages: &[Value]) -> Vec<String> {
    let number = |version: &str| -> Vec<u64> {
        version.split(['.', '-', '+']).map(|part| part.parse().unwrap_or(0)).collect()
    };
    let mut versions: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for package in packages {
        let text = |key: &str| package[key].as_str().expect("text");
        versions.entry(text("name")).or_default().push(text("version"));
    }
    let older = versions.into_iter().flat_map(|(name, mut versions)| {
        versions.sort_by_key(|version| number(version));
        versions.pop();
        versions.into_iter().map(move |version| format!("{name}@{version}"))
    });
    older.collect()
}

/// Whether an SPDX expression can be satisfied by licences that are allowed. `/` is an old way to write OR.
fn satisfied(expression: &str, allowed: &[String]) -> bool {
    let spaced = expression.replace('/', " OR ").replace('(', " ( ").replace(')', " ) ");
    let words: Vec<&str> = spaced.split_whitespace().collect();
    let mut rest = &words[..];
    any(&mut rest, allowed) && rest.is_empty()
}

fn any(rest: &mut &[&str], allowed: &[String]) -> bool {
    let mut holds = all(rest, allowed);
    while let Some((&"OR", after)) = rest.split_first() {
        *rest = after;
        holds |= all(rest, allowed);
    }
    holds
}

fn all(rest: &mut &[&str], allowed: &[String]) -> bool {
    let mut holds = one(rest, allowed);
    while let Some((&"AND", after)) = rest.split_first() {
        *rest = after;
        holds &= one(rest, allowed);
    }
    holds
}

fn one(rest: &mut &[&str], allowed: &[String]) -> bool {
    match *rest {
        ["(", inside @ ..] => {
            *rest = inside;
            let holds = any(rest, allowed);
            *rest = rest.strip_prefix(&[")"]).unwrap_or(&[]);
            holds
        }
        [licence, "WITH", exception, after @ ..] => {
            *rest = after;
            allowed.contains(&format!("{licence} WITH {exception}"))
        }
        [licence, after @ ..] => {
            *rest = after;
            allowed.iter().any(|one| one == licence)
        }
        [] => false,
    }
}

#[test]
fn every_crate_has_an_allowed_licence_and_source_and_none_is_banned() {
    let root = env!("CARGO_MANIFEST_DIR");
    let rules = std::fs::read_to_string(format!("{root}/deny.toml")).expect("deny.toml");
    let (allowed, banned) = (strings(&rules, "allow"), banned(&rules));
    assert!(allowed.len() > 3 && banned.iter().any(|name| name == "tokio-tar"), "{allowed:?} {banned:?}");
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--locked", "--offline", "--all-features"])
        .args(["--filter-platform", "x86_64-unknown-linux-gnu", "--manifest-path"])
        .arg(format!("{root}/Cargo.toml"))
        .output()
        .expect("cargo starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let packages = metadata["packages"].as_array().expect("packages");
    assert!(packages.len() > 50, "{} packages", packages.len());
    assert_eq!(older_versions(packages), tolerated(&rules), "crates that come in twice");
    for package in packages {
        let (name, source) = (package["name"].as_str().expect("a name"), package["source"].as_str());
        let licence = package["license"].as_str().unwrap_or_default();
        assert!(satisfied(licence, &allowed), "{name}: {licence:?} is not allowed by deny.toml");
        assert!(!banned.iter().any(|one| one == name), "{name} is banned by deny.toml");
        let ours = name == "transload";
        assert!(ours || source.is_some_and(|from| from.starts_with("registry+")), "{name}: {source:?}");
    }
}

#[test]
fn licence_expressions_mean_what_they_say() {
    let allowed = ["MIT", "Apache-2.0 WITH LLVM-exception", "Unicode-3.0"].map(str::to_string);
    for (expression, expected) in [
        ("MIT", true),
        ("GPL-3.0", false),
        ("GPL-3.0 OR MIT", true),
        ("GPL-3.0/MIT", true),
        ("MIT AND GPL-3.0", false),
        ("(MIT OR GPL-3.0) AND Unicode-3.0", true),
        ("(MIT OR GPL-3.0) AND GPL-2.0", false),
        ("Apache-2.0 WITH LLVM-exception", true),
        ("Apache-2.0", false),
        ("", false),
    ] {
        assert_eq!(satisfied(expression, &allowed), expected, "{expression}");
    }
}

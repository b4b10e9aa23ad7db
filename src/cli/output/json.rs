//! One object per run on stdout, with `"version":1` first. docs/json.md shows each of them.

use serde::Serialize;
use serde_json::Value;
use std::io;

/// What scripts may rely on; a change that could break one gets a new number.
const VERSION: u32 = 1;

#[derive(Serialize)]
struct Versioned<'a, T> {
    version: u32,
    #[serde(flatten)]
    body: &'a T,
}

/// Prints one object, given without its version.
pub fn print<T: Serialize>(body: &T) -> io::Result<()> {
    let mut text = serde_json::to_string(&Versioned { version: VERSION, body }).map_err(io::Error::other)?;
    text.push('\n');
    super::print(&text)
}

/// Joins the reports of several archives into one: lists are appended, counters added, and the peak is the highest.
pub fn join(into: &mut Value, other: Value) {
    join_named("", into, other);
}

fn join_named(name: &str, into: &mut Value, other: Value) {
    match (into, other) {
        (Value::Object(into), Value::Object(other)) => {
            for (key, value) in other {
                match into.get_mut(&key) {
                    Some(own) => join_named(&key, own, value),
                    None => drop(into.insert(key, value)),
                }
            }
        }
        (Value::Array(into), Value::Array(other)) => into.extend(other),
        (Value::Number(into), Value::Number(other)) => {
            let (a, b) = (into.as_u64().unwrap_or(0), other.as_u64().unwrap_or(0));
            *into = join_numbers(name, a, b).into();
        }
        // What holds for all has to hold for each; of verdicts the first that is a failure counts.
        (Value::Bool(into), Value::Bool(other)) if name == "once" => *into &= other,
        (Value::String(into), Value::String(other)) if name == "verdict" && into == "once" => *into = other,
        (into @ Value::Null, other) => *into = other,
        _ => {}
    }
}

fn join_numbers(name: &str, a: u64, b: u64) -> u64 {
    match name {
        "version" => a,
        "landlock_abi" => a.min(b),
        _ if name.starts_with("peak_") || name.starts_with("memory_") => a.max(b),
        _ => a.saturating_add(b),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn reports_of_several_archives_become_one() {
        let mut joined =
            json!({"version":1,"images":[{"name":"a"}],"blobs":{"new":1,"existing":0},"peak_rss_bytes":10});
        join(
            &mut joined,
            json!({"version":1,"images":[{"name":"b"}],"blobs":{"new":2,"existing":3},"peak_rss_bytes":7}),
        );
        assert_eq!(
            joined,
            json!({"version":1,"images":[{"name":"a"},{"name":"b"}],"blobs":{"new":3,"existing":3},"peak_rss_bytes":10})
        );
    }
}

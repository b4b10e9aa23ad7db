//! How our types lie in columns: digests as their text, maps as JSON, counts as signed integers.

use super::Labels;
use crate::error::{Error, ErrorKind, Result};
use crate::parallel::failpoint;
use rusqlite::Row;
use std::time::UNIX_EPOCH;
use std::{fmt::Display, str::FromStr};

/// SQLite counts with a sign; nothing that we count comes near the end.
pub(super) fn int(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

pub(super) fn unsigned(row: &Row<'_>, column: usize) -> Result<u64> {
    Ok(u64::try_from(row.get::<_, i64>(column)?).unwrap_or(0))
}

/// A text column that one of our types parses from.
pub(super) fn parsed<T: FromStr>(row: &Row<'_>, column: usize) -> Result<T>
where
    T::Err: Display,
{
    parse(row.get_ref(column)?.as_str().map_err(|error| corrupt(error.to_string()))?)
}

/// As [`parsed`], where the column may be NULL.
pub(super) fn parsed_opt<T: FromStr>(row: &Row<'_>, column: usize) -> Result<Option<T>>
where
    T::Err: Display,
{
    let text = row.get_ref(column)?.as_str_or_null().map_err(|error| corrupt(error.to_string()))?;
    text.map(parse).transpose()
}

pub(super) fn parse<T: FromStr>(text: &str) -> Result<T>
where
    T::Err: Display,
{
    text.parse().map_err(|error: T::Err| corrupt(error.to_string()))
}

pub(super) fn json<T: serde::de::DeserializeOwned>(row: &Row<'_>, column: usize) -> Result<T> {
    let text = row.get_ref(column)?.as_str().map_err(|error| corrupt(error.to_string()))?;
    serde_json::from_str(text).map_err(|error| corrupt(error.to_string()))
}

pub(super) fn to_json<T: serde::Serialize>(value: &T) -> Result<String> {
    serde_json::to_string(value).map_err(|error| Error::new(ErrorKind::Internal, error.to_string()))
}

pub(super) fn labels(row: &Row<'_>, column: usize) -> Result<Labels> {
    match row.get_ref(column)?.as_str() {
        Ok("{}") => Ok(Labels::new()),
        _ => json(row, column),
    }
}

pub(super) fn corrupt(what: impl Display) -> Error {
    Error::new(ErrorKind::Corrupt, format!("metadata database: {what}")).with_hint("run 'transload fsck'")
}

/// Milliseconds since 1970, as rows and leases count them.
pub(crate) fn now_ms() -> u64 {
    let since = failpoint::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

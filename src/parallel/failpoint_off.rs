//! What stands in for fail points in every build but those with the feature `failpoints`: nothing.
#![allow(clippy::unnecessary_wraps, reason = "the signatures are those of failpoint.rs")]

use std::io::{self, Read};
use std::time::{Duration, SystemTime};

#[inline(always)]
pub(crate) fn at(_: &str) -> io::Result<()> {
    Ok(())
}

#[inline(always)]
pub(crate) fn at_step(_: &str, _: &str) -> io::Result<()> {
    Ok(())
}

#[inline(always)]
pub(crate) fn sync(_: &str) -> io::Result<bool> {
    Ok(true)
}

#[inline(always)]
pub(crate) fn sync_step(_: &str, _: &str) -> io::Result<bool> {
    Ok(true)
}

#[inline(always)]
pub(crate) fn shorten<'a>(_: &str, buffer: &'a mut [u8]) -> io::Result<&'a mut [u8]> {
    Ok(buffer)
}

#[inline(always)]
pub(crate) fn reader(_: &str, inner: Box<dyn Read + Send>) -> Box<dyn Read + Send> {
    inner
}

#[inline(always)]
pub(crate) fn boot() -> Option<String> {
    None
}

/// How often the disk is sent what an import has written: within this time a disk writes some ten MB, and what is in flight fits any cache.
#[inline(always)]
pub(crate) fn write_behind() -> Option<Duration> {
    Some(Duration::from_millis(200))
}

#[inline(always)]
pub(crate) fn patience() -> Option<Duration> {
    None
}

#[inline(always)]
pub(crate) fn now() -> SystemTime {
    SystemTime::now()
}

//! Fail points from the environment, in builds for tests only: `TRANSLOAD_FAILPOINTS` says what happens where, and the file that
//! `TRANSLOAD_FAILPOINTS_REPORT` names is told which points were reached.

use transload::parallel::failpoint;
use transload::{Result, ResultExt};

/// Sets what the environment asks for.
pub fn from_environment() -> Result<()> {
    let description = std::env::var("TRANSLOAD_FAILPOINTS").unwrap_or_default();
    failpoint::configure(&description).doing(|| "cannot use TRANSLOAD_FAILPOINTS")
}

/// Writes one line, `POINT COUNT`, for each point that this process reached.
pub fn report() {
    let Some(path) = std::env::var_os("TRANSLOAD_FAILPOINTS_REPORT") else { return };
    let lines: Vec<String> =
        failpoint::hits().iter().map(|(point, count)| format!("{point} {count}\n")).collect();
    // A test that waits for the file will tell.
    let _ = std::fs::write(path, lines.concat());
}

//! `prewarm`: an image's files into memory, before its first start.

use super::args;
use super::commands::{Context, Done};
use super::output::human;
use super::{signals, views};
use std::os::unix::ffi::OsStrExt;
use std::time::Instant;
use transload::Cancel;

pub fn prewarm(context: &Context, args: &args::Prewarm) -> Done {
    let cancel = Cancel::new();
    signals::cancel_on_signal(&cancel)?;
    let started = Instant::now();
    let paths: Vec<Vec<u8>> = args.paths.iter().map(|path| path.as_os_str().as_bytes().to_vec()).collect();
    let report = context.open(false)?.prewarm(&args.name, &paths, &cancel)?;
    let view = views::Prewarm {
        name: args.name.clone(),
        files: report.files,
        directories: report.directories,
        bytes: report.bytes,
        elapsed_ms: started.elapsed().as_millis() as u64,
    };
    context.show(&view, human::prewarm)
}

//! The commands: each opens the engine, asks it for one thing, and shows the answer as text or as JSON.
//!
//! What the engine answers is turned into the views here and nowhere else, so that the JSON stays as it is when the
//! library changes.

use super::args::{self, Cli, Command, FormatChoice, Global, Shell, SnapshotterChoice};
use super::insight::Insight;
use super::log::{Level, Log};
use super::metrics_file::MetricsFile;
use super::output::tree::{Node, NodeKind};
use super::output::{self, Style, human, json};
use super::size::rfc3339;
use super::store::{Surroundings, directory};
use super::stream::Stream;
use super::{
    Failure, audit, collect, exit, files, holds, images, mounts, prewarm, privilege, signals, stats, views,
};
use clap::CommandFactory;
use rustix::fs::{FileType, SeekFrom, fstat, seek};
use serde::Serialize;
use serde_json::Value;
use std::fs::File;
use std::io::{self, BufWriter, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use transload::metrics::Metrics;
use transload::store::SnapshotterKind;
use transload::transfer::ExportFormat;
use transload::transfer::bundle::{BundleOptions, Rootless};
use transload::transfer::catalogue::TreeEntry;
use transload::transfer::unpack::UnpackReport;
use transload::transfer::verdict::Step;
use transload::upkeep::{GcOptions, Share, UpperUsage};
use transload::{
    Cancel, Engine, EngineOptions, Error, ErrorKind, ImportOptions, ImportReport, Input, PlatformChoice,
    Result, ResultExt, TraceId,
};

/// An exit code, or why there is none.
pub type Done = std::result::Result<u8, Failure>;

/// What every command needs.
pub struct Context {
    pub global: Global,
    pub surroundings: Surroundings,
    pub style: Style,
    pub log: Arc<Log>,
    metrics: Option<MetricsFile>,
}

/// Runs one command; the number is the exit code.
pub fn run(cli: Cli) -> Done {
    files::check(&cli)?;
    let surroundings = Surroundings::of_process();
    privilege::prepare(&cli.command, &surroundings)?;
    let context = Context::new(cli.global, surroundings)?;
    let done = dispatch(&context, cli.command);
    context.finish(done)
}

fn dispatch(context: &Context, command: Command) -> Done {
    match command {
        Command::Import(args) => import(context, *args),
        Command::Images(args) => images::run(context, &args),
        Command::Inspect(args) if args.tree => tree(context, &args),
        Command::Inspect(args) => inspect(context, &args),
        Command::History(args) => history(context, &args),
        Command::Tag(args) => tag(context, &args),
        Command::Rm(args) => collect::rm(context, &args),
        Command::Mount(args) => mounts::mount(context, args),
        Command::Umount(args) => mounts::umount(context, &args),
        Command::Prewarm(args) => prewarm::prewarm(context, &args),
        Command::Unpack(args) => unpack(context, &args),
        Command::Bundle(args) => bundle(context, args),
        Command::Export(args) => export(context, &args),
        Command::Du(args::Du { why: Some(digest) }) => holds::why(context, &digest),
        Command::Du(_) => du(context),
        Command::Gc(args) => collect::gc(context, &args),
        Command::Restore(args) => collect::restore(context, &args),
        Command::Pin(args) => holds::pin(context, &args),
        Command::Unpin(args) => holds::unpin(context, &args),
        Command::Label(args) => holds::label(context, &args),
        Command::Leases(args) => holds::leases(context, &args),
        Command::Fsck(args) => super::fsck::run(context, &args),
        Command::Doctor(_) => super::doctor::run(context),
        Command::Stats(args) => stats(context, &args),
        Command::Audit(args) => audit_logs(context, &args),
        Command::Completions(args) => completions(context, &args),
    }
}

impl Context {
    fn new(global: Global, surroundings: Surroundings) -> Result<Self> {
        let style = Style::for_stdout(global.color);
        let log = Arc::new(Log::open(&global, TraceId::fresh())?);
        let metrics = global.metrics_file.as_deref().map(MetricsFile::open).transpose()?;
        Ok(Context { surroundings, style, global, log, metrics })
    }

    /// Writes what was counted and tells machines how it ended. A command that has done its work has not failed because
    /// its figures could not be written.
    fn finish(&self, done: Done) -> Done {
        if let Some(Err(error)) = self.metrics.as_ref().map(MetricsFile::save) {
            self.notices(&[error.to_string()]);
        }
        match done {
            Err(Failure::Error(error)) if self.log.is_machine() => {
                self.log.error(&error);
                Err(Failure::Logged(error))
            }
            done => done,
        }
    }

    /// Opens the store; commands that only look do not make one.
    pub fn open(&self, create: bool) -> Result<Engine> {
        self.open_with(EngineOptions { create, ..EngineOptions::default() })
    }

    /// Where figures go, if they go anywhere.
    pub fn metrics(&self) -> Metrics {
        self.metrics.as_ref().map(MetricsFile::metrics).unwrap_or_default()
    }

    fn open_with(&self, mut options: EngineOptions) -> Result<Engine> {
        options.metrics = self.metrics();
        Engine::open(self.store()?, options)
    }

    pub fn store(&self) -> Result<PathBuf> {
        directory(self.global.store.clone(), &self.surroundings)
    }

    /// The store, where a command without `--store` would take another one.
    pub fn named_store(&self) -> Result<Option<PathBuf>> {
        let absolute = |path: PathBuf| std::path::absolute(&path).unwrap_or(path);
        let chosen = absolute(self.store()?);
        let usual = directory(None, &self.surroundings).ok().map(absolute);
        Ok((usual.as_ref() != Some(&chosen)).then_some(chosen))
    }

    /// Prints a result in the form that was asked for.
    pub fn show<T: Serialize>(&self, view: &T, text: impl FnOnce(&T) -> String) -> Done {
        match self.global.json {
            true => json::print(view)?,
            false => output::print(&text(view))?,
        }
        Ok(0)
    }

    /// Tells of a failure after a report that is complete and stays the only object on stdout. Gives the exit code.
    fn failed_after_report(&self, error: &Error) -> u8 {
        match self.log.is_machine() {
            true => self.log.error(error),
            false => drop(exit::report(error, false, &Style::for_stderr(self.global.color))),
        }
        exit::code(error.kind())
    }

    pub fn notices(&self, notices: &[String]) {
        for notice in notices {
            match self.log.is_machine() {
                true => self.log.line(Level::Warn, "notice", serde_json::json!({ "message": notice })),
                false => output::note(&self.global, &format!("notice: {notice}")),
            }
        }
    }
}

fn import(context: &Context, args: args::Import) -> Done {
    check_import(&args)?;
    let cancel = Cancel::new();
    signals::cancel_on_signal(&cancel)?;
    let mut insight = Insight::start(args.insight.clone(), context.log.trace_id());
    let done = import_all(context, &args, &cancel, &mut insight);
    // A failed import is told about as well, and one that has done its work has not failed because telling did.
    let error = match &done {
        Err(Failure::Error(error)) => Some(error),
        _ => None,
    };
    context.notices(&insight.finish(error));
    done
}

fn import_all(context: &Context, args: &args::Import, cancel: &Cancel, insight: &mut Insight) -> Done {
    let engine = context.open_with(engine_options(args))?;
    let options = ImportOptions { trace_id: Some(context.log.trace_id()), ..import_options(args)? };
    if args.dry_run {
        return dry_run(context, &engine, args, &options, cancel);
    }
    let mut joined: Option<Value> = None;
    let mut failed_step = None;
    for (number, archive) in args.archives.iter().enumerate() {
        let report = {
            // Dropped before anything is printed: bars must be gone by then.
            let progress = output::progress(&context.global);
            let progress = context.log.listener(&engine, number, progress);
            engine.import(open_input(archive, cancel)?, &options, &progress, cancel)?
        };
        insight.add(&engine, &report);
        let findings = report.audit.iter().flat_map(|audit| &audit.findings);
        failed_step = failed_step.into_iter().chain(findings.map(|finding| finding.step)).min();
        show_import(context, &report, &mut joined)?;
    }
    let collected = args.gc.then(|| collect::gc_after_import(context, &engine, cancel));
    let failed_gc = match collected.transpose() {
        Ok(None) => None,
        Ok(Some(view)) => {
            match &mut joined {
                Some(report) => report["gc"] = serde_json::to_value(&view).map_err(io::Error::other)?,
                None => output::print(&collect::gc_text(&view, false))?,
            }
            view.incomplete()
        }
        Err(error) => Some(error.context("the images are imported, and the gc afterwards failed")),
    };
    if let Some(report) = joined {
        json::print(&report)?;
    }
    let failed_gc = failed_gc.map(|error| context.failed_after_report(&error));
    let failed_audit = failed_step.map(|step| done_twice(context, step));
    Ok(failed_audit.or(failed_gc).unwrap_or(0))
}

/// Not as JSON: the report that is already printed says it.
fn done_twice(context: &Context, step: Step) -> u8 {
    let message =
        format!("the audit found work that was done more than once: {}", audit::conclusion(Some(step)));
    exit::report_parts("internal", &message, None, false, &Style::for_stderr(context.global.color));
    exit::code(ErrorKind::Internal)
}

fn stats(context: &Context, args: &stats::Stats) -> Done {
    let engine = context.open(false)?;
    let report = engine.stats(usize::from(args.last))?;
    if context.metrics.is_some() {
        // For the gauges that it sets.
        engine.du()?;
    }
    context.show(&stats::View::of(report), |view| stats::render(view, &context.style))
}

fn audit_logs(context: &Context, args: &audit::Audit) -> Done {
    let view = audit::audit(args)?;
    context.show(&view, |view| audit::render(view, &context.style))?;
    Ok(audit::code(&view.verdict))
}

fn show_import(
    context: &Context,
    report: &ImportReport,
    joined: &mut Option<Value>,
) -> std::result::Result<(), Failure> {
    if !context.global.json {
        return Ok(output::print(&human::import(report))?);
    }
    let value = serde_json::to_value(report).map_err(io::Error::other)?;
    match joined {
        Some(joined) => json::join(joined, value),
        None => *joined = Some(value),
    }
    Ok(())
}

fn dry_run(
    context: &Context,
    engine: &Engine,
    args: &args::Import,
    options: &ImportOptions,
    cancel: &Cancel,
) -> Done {
    let mut joined = Value::Null;
    for archive in &args.archives {
        let plan = engine.plan(open_input(archive, cancel)?, options, cancel)?;
        match context.global.json {
            true => json::join(&mut joined, serde_json::to_value(&plan).map_err(io::Error::other)?),
            false => output::print(&human::plan(&plan, &context.style))?,
        }
    }
    if context.global.json {
        json::print(&joined)?;
    }
    Ok(0)
}

/// What clap cannot know.
fn check_import(args: &args::Import) -> Result<()> {
    let stdin = args.archives.iter().filter(|archive| is_dash(archive)).count();
    let wrong = |message: &'static str| Err(Error::new(ErrorKind::InvalidArgument, message));
    if stdin > 1 {
        return wrong("cannot import stdin twice");
    }
    if args.archives.len() > 1 && !args.tags.is_empty() {
        return wrong("cannot give one name to the images of several archives");
    }
    if stdin == 1 && io::stdin().is_terminal() {
        let error = Error::new(ErrorKind::InvalidArgument, "cannot read an archive from a terminal");
        return Err(error.with_hint("pipe an archive into 'transload import -'"));
    }
    Ok(())
}

fn engine_options(args: &args::Import) -> EngineOptions {
    let mut options = EngineOptions { create: true, ..EngineOptions::default() };
    if let Some(threads) = args.threads {
        options = options.with_threads(usize::from(threads));
    }
    if let Some(memory) = args.memory {
        options.memory_bytes = memory;
        options.window_bytes = 0;
    }
    options.snapshotter = args.snapshotter.map(|choice| match choice {
        SnapshotterChoice::Overlay => SnapshotterKind::Overlay,
        SnapshotterChoice::Plain => SnapshotterKind::Plain,
    });
    options
}

fn import_options(args: &args::Import) -> Result<ImportOptions> {
    let mut options = ImportOptions {
        tags: args.tags.clone(),
        unpack: !args.no_unpack,
        discard_blobs: args.discard_blobs,
        verify_source: args.verify_source,
        sync: !args.no_sync,
        no_retag: args.no_retag,
        audit: args.audit,
        ignore_chown: args.ignore_chown,
        confine: !args.no_confine,
        ..ImportOptions::default()
    };
    options.platform = match &args.platform {
        _ if args.all_platforms => PlatformChoice::All,
        Some(platform) => PlatformChoice::Best(platform.clone()),
        None => options.platform,
    };
    let limits = &mut options.limits;
    let given = &args.limits;
    limits.layer_bytes = given.max_layer_size.unwrap_or(limits.layer_bytes);
    limits.layer_entries = given.max_entries.unwrap_or(limits.layer_entries);
    limits.layers = given.max_layers.unwrap_or(limits.layers);
    limits.json_bytes = given.max_json_size.unwrap_or(limits.json_bytes);
    limits.archive_members = given.max_members.unwrap_or(limits.archive_members);
    for (name, value) in &given.limit {
        limits.set(name, *value)?;
    }
    Ok(options)
}

fn is_dash(path: &Path) -> bool {
    path.as_os_str() == "-"
}

/// A file on stdin that stands at its beginning can be read like any other file, from several threads.
fn open_input(archive: &Path, cancel: &Cancel) -> Result<Input> {
    if !is_dash(archive) {
        return Ok(match Stream::open_fifo(archive, cancel)? {
            Some(stream) => Input::Reader { name: archive.display().to_string(), reader: Box::new(stream) },
            None => Input::Path(archive.to_path_buf()),
        });
    }
    let name = "stdin".to_string();
    let stdin = io::stdin();
    let metadata = fstat(&stdin).doing(|| "cannot read stdin")?;
    let file = rustix::io::fcntl_dupfd_cloexec(&stdin, 3).doing(|| "cannot read stdin")?;
    let file = File::from(file);
    let regular = FileType::from_raw_mode(metadata.st_mode) == FileType::RegularFile;
    if regular && seek(&stdin, SeekFrom::Current(0)).is_ok_and(|offset| offset == 0) {
        return Ok(Input::File { name, file });
    }
    Ok(Input::Reader { name, reader: Box::new(Stream::new(file, cancel)) })
}

fn inspect(context: &Context, args: &args::Inspect) -> Done {
    let found = context.open(false)?.inspect(&args.name)?;
    let layers = found.layers.iter().map(|layer| views::InspectLayer {
        digest: layer.descriptor.digest.to_string(),
        diff_id: layer.diff_id.to_string(),
        chain_id: layer.chain_id.to_string(),
        media_type: layer.descriptor.media_type.clone(),
        size_bytes: layer.descriptor.size,
    });
    let view = views::Inspect {
        layers: layers.collect(),
        name: found.image.name.clone(),
        target: found.image.target.digest.to_string(),
        target_media_type: found.image.target.media_type.clone(),
        manifest: found.manifest.to_string(),
        config: found.config.to_string(),
        platform: found.platform.to_string(),
        chain_id: found.chain_id.as_ref().map(|id| id.to_string()),
        imported: rfc3339(found.image.created_ms),
        image_config: serde_json::from_slice(&found.config_json)
            .map_err(|error| Error::new(ErrorKind::Corrupt, error.to_string()))
            .doing(|| "cannot read the image's configuration")?,
    };
    context.show(&view, |view| human::inspect(view, &context.style))
}

fn tree(context: &Context, args: &args::Inspect) -> Done {
    let entries = context.open(false)?.tree(&args.name, args.depth)?;
    let root = tree_node(entries);
    let view = views::Tree { name: args.name.clone(), depth: args.depth, root };
    context.show(&view, |view| output::tree::render(&view.name, &view.root, &context.style))
}

fn tree_node(entry: TreeEntry) -> Node {
    let kind = match entry.mode & libc::S_IFMT {
        libc::S_IFDIR => NodeKind::Directory,
        libc::S_IFLNK => NodeKind::Symlink,
        libc::S_IFCHR => NodeKind::CharDevice,
        libc::S_IFBLK => NodeKind::BlockDevice,
        libc::S_IFIFO => NodeKind::Fifo,
        libc::S_IFSOCK => NodeKind::Socket,
        _ => NodeKind::File,
    };
    Node {
        name: entry.name,
        kind,
        mode: entry.mode & 0o7777,
        uid: entry.uid,
        gid: entry.gid,
        size_bytes: entry.size_bytes,
        target: entry.target,
        children: entry.children.into_iter().map(tree_node).collect(),
        more: entry.more,
    }
}

fn history(context: &Context, args: &args::Named) -> Done {
    let lines = context.open(false)?.history(&args.name)?.into_iter().map(|line| views::HistoryLine {
        created: line.entry.created,
        created_by: line.entry.created_by,
        comment: line.entry.comment,
        author: line.entry.author,
        empty_layer: line.entry.empty_layer,
        diff_id: line.diff_id.map(|id| id.to_string()),
        size_bytes: line.size_bytes,
    });
    let view = views::History { name: args.name.clone(), history: lines.collect() };
    context.show(&view, |view| human::history(view, &context.style))
}

fn tag(context: &Context, args: &args::Tag) -> Done {
    let image = context.open(false)?.tag(&args.name, &args.new)?;
    let view = views::Tag { name: args.new.to_string(), target: image.target.digest.to_string() };
    context.show(&view, |view| format!("{} is {}\n", view.name, view.target))
}

fn du(context: &Context) -> Done {
    let engine = context.open(false)?;
    let report = engine.du()?;
    let reclaimable = engine.gc(&GcOptions { dry_run: true, ..GcOptions::default() })?.bytes_freed;
    let part = |part: Share| views::DuPart { count: part.count, size_bytes: part.bytes };
    let view = views::Du {
        blobs: part(report.blobs),
        trees: part(report.trees),
        snapshots: part(report.snapshots),
        ingests: part(report.ingests),
        metadata_bytes: report.metadata_bytes,
        reserve_bytes: report.reserve_bytes,
        quarantine_bytes: report.quarantine_bytes,
        total_bytes: report.total_bytes,
        reclaimable_bytes: reclaimable,
        mounts: report.actives.iter().map(upper_line).collect(),
    };
    context.show(&view, |view| human::du(view, &context.style))
}

fn upper_line(active: &UpperUsage) -> views::UpperLine {
    views::UpperLine {
        target: active.target.as_ref().map(|target| target.display().to_string()),
        name: active.name.clone(),
        key: active.key.clone(),
        upper_bytes: active.bytes,
        upper_inodes: active.inodes,
    }
}

fn unpack(context: &Context, args: &args::Unpack) -> Done {
    let cancel = Cancel::new();
    signals::cancel_on_signal(&cancel)?;
    let lenient = !context.surroundings.root;
    let report = context.open(false)?.unpack(&args.name, &args.dir, lenient, &cancel)?;
    let view = views::Unpack {
        name: args.name.clone(),
        directory: args.dir.display().to_string(),
        entries: report.inodes,
        bytes: report.bytes,
        notices: unpack_notices(&report),
    };
    context.notices(&view.notices);
    context.show(&view, human::unpack)
}

fn unpack_notices(report: &UnpackReport) -> Vec<String> {
    let skipped = [
        (report.owners_skipped, "owners could not be set"),
        (report.devices_skipped, "devices could not be made"),
        (report.xattrs_skipped, "extended attributes could not be set"),
    ];
    skipped.iter().filter(|(count, _)| *count > 0).map(|(count, what)| format!("{count} {what}")).collect()
}

fn bundle(context: &Context, args: args::Bundle) -> Done {
    let cancel = Cancel::new();
    signals::cancel_on_signal(&cancel)?;
    let options = BundleOptions {
        args: args.args,
        terminal: args.tty,
        read_only: args.read_only,
        rootless: (!context.surroundings.root)
            .then_some(Rootless { uid: context.surroundings.uid, gid: context.surroundings.gid }),
        cancel,
        ..BundleOptions::default()
    };
    let report = context.open(false)?.bundle(&args.name, &args.dir, &options)?;
    let view = views::Bundle {
        name: args.name,
        directory: args.dir.display().to_string(),
        args: report.args,
        uid: report.uid,
        gid: report.gid,
        notices: report.notices,
    };
    context.notices(&view.notices);
    context.show(&view, human::bundle)
}

fn export(context: &Context, args: &args::Export) -> Done {
    let (format, format_name) = match args.format {
        FormatChoice::Oci => (ExportFormat::Oci, "oci"),
        FormatChoice::Docker => (ExportFormat::Docker, "docker"),
    };
    let to_stdout = is_dash(&args.output);
    check_export(context, to_stdout)?;
    let cancel = Cancel::new();
    // Before the engine has threads: they inherit which signals are blocked.
    signals::cancel_on_signal(&cancel)?;
    let engine = context.open(false)?;
    if to_stdout {
        return export_to_stdout(|out| engine.export(&args.names, format, out, &cancel).map(drop));
    }
    let report = export_to_file(&args.output, |out| engine.export(&args.names, format, out, &cancel))?;
    let view = views::Export {
        images: report.images,
        format: format_name,
        output: args.output.display().to_string(),
        blobs: report.blobs,
        bytes_written: report.bytes,
    };
    context.show(&view, human::export)
}

fn check_export(context: &Context, to_stdout: bool) -> Result<()> {
    let wrong = |message: &'static str, hint: &'static str| {
        Err(Error::new(ErrorKind::InvalidArgument, message).with_hint(hint))
    };
    if to_stdout && context.global.json {
        return wrong("cannot write the archive and JSON to stdout at once", "write the archive to a file");
    }
    if to_stdout && io::stdout().is_terminal() {
        return wrong("cannot write an archive to a terminal", "name a file with -o, or pipe into a command");
    }
    Ok(())
}

/// Stdout without the line buffer of the standard library, which would cut an archive at every 0x0a.
#[derive(Default)]
struct RawStdout {
    /// Whether the reader has gone.
    closed: bool,
}

/// A reader that goes before the end has no use for a message, and a script no use for success.
fn export_to_stdout(write: impl FnOnce(&mut dyn Write) -> Result<()>) -> Done {
    let mut out = BufWriter::new(RawStdout::default());
    let flushed = write(&mut out).and_then(|()| out.flush().doing(|| "cannot write to stdout"));
    match flushed {
        Err(_) if out.get_ref().closed => Ok(1),
        Err(error) => Err(error.into()),
        Ok(()) => Ok(0),
    }
}

impl Write for RawStdout {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = rustix::io::write(rustix::stdio::stdout(), bytes);
        self.closed |= written == Err(rustix::io::Errno::PIPE);
        Ok(written?)
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Under its name the archive appears complete or not at all; what is no regular file (a FIFO, /dev/null) is written
/// as it is.
pub fn export_to_file<T>(path: &Path, write: impl FnOnce(&mut dyn Write) -> Result<T>) -> Result<T> {
    let doing = || format!("cannot write {}", path.display());
    if std::fs::metadata(path).is_ok_and(|metadata| !metadata.is_file()) {
        let mut out = BufWriter::new(File::options().write(true).open(path).doing(doing)?);
        let report = write(&mut out)?;
        out.flush().doing(doing)?;
        return Ok(report);
    }
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    if parent.is_some_and(|parent| !parent.is_dir()) {
        return Err(Error::new(ErrorKind::NotFound, "its directory is not there")).doing(doing);
    }
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(format!(".{}.part", std::process::id()));
    let part = path.with_file_name(name);
    let result = write_part(&part, path, write).and_then(|report| {
        std::fs::rename(&part, path).doing(doing)?;
        Ok(report)
    });
    if result.is_err() {
        // It may never have been made.
        let _ = std::fs::remove_file(&part);
    }
    result
}

fn write_part<T>(part: &Path, path: &Path, write: impl FnOnce(&mut dyn Write) -> Result<T>) -> Result<T> {
    let doing = || format!("cannot write {}", path.display());
    let mut out = BufWriter::new(File::create(part).doing(doing)?);
    let report = write(&mut out)?;
    let file = out.into_inner().map_err(io::IntoInnerError::into_error).doing(doing)?;
    file.sync_all().doing(doing)?;
    Ok(report)
}

fn completions(context: &Context, args: &args::Completions) -> Done {
    use clap_complete::shells;
    let mut command = Cli::command();
    let mut script = Vec::new();
    let shell = match args.shell {
        Shell::Bash => {
            clap_complete::generate(shells::Bash, &mut command, "transload", &mut script);
            "bash"
        }
        Shell::Zsh => {
            clap_complete::generate(shells::Zsh, &mut command, "transload", &mut script);
            "zsh"
        }
        Shell::Fish => {
            clap_complete::generate(shells::Fish, &mut command, "transload", &mut script);
            "fish"
        }
    };
    let script = String::from_utf8_lossy(&script).into_owned();
    context.show(&views::Completions { shell, script }, |view| view.script.clone())
}

//! The words of the command line, as types. Every string that has a meaning is parsed here, with an error that names
//! the argument; what follows works with the types.

use super::audit::Audit;
use super::size::{parse_duration, parse_size};
use super::stats::Stats;
use super::{collect, holds};
use clap::{Args, Parser, Subcommand, ValueEnum};
use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;
use transload::mount::IdMapping;
use transload::{Error, ErrorKind, Limits, Platform, Reference};

/// Commands that later releases bring: the words are kept free, and nothing is listed that does nothing.
pub const RESERVED: [&str; 2] = ["pull", "push"];

/// Import container images from archives: every byte verified, every blob written once, every layer extracted once.
#[derive(Debug, Parser)]
#[command(name = "transload", version, propagate_version = false, subcommand_required = true)]
#[command(arg_required_else_help = true, max_term_width = 100, after_help = EXAMPLES)]
pub struct Cli {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub command: Command,
}

const EXAMPLES: &str = "\
Examples:
  transload import alpine.tar.gz          import every image of an archive
  transload images                        list what is there
  transload inspect --tree alpine         show an image's root filesystem
  transload mount alpine /mnt             mount it, read-only

Exit codes: 0 done, 1 failed, 2 wrong usage, 3 the input is at fault, 4 not found, 5 busy, 130 cancelled.";

#[derive(Debug, Args)]
pub struct Global {
    /// The store's directory [default: $TRANSLOAD_STORE; /var/lib/transload for root, ~/.local/share/transload else]
    #[arg(long, global = true, value_name = "DIR", help_heading = "Global options")]
    pub store: Option<PathBuf>,
    /// Print one JSON object on stdout instead of text
    #[arg(long, global = true, help_heading = "Global options")]
    pub json: bool,
    /// How to show progress on stderr
    #[arg(long, global = true, value_name = "HOW", default_value = "auto", help_heading = "Global options")]
    pub progress: ProgressMode,
    /// Say nothing but errors on stderr
    #[arg(short, long, global = true, conflicts_with = "verbose", help_heading = "Global options")]
    pub quiet: bool,
    /// Say what was left out or changed on purpose; twice: say what happens
    #[arg(short, long, global = true, action = clap::ArgAction::Count, help_heading = "Global options")]
    pub verbose: u8,
    /// How to write log lines on stderr
    #[arg(long, global = true, value_name = "HOW", default_value = "text", help_heading = "Global options")]
    pub log_format: LogFormat,
    /// Count on in this file, in the text form of Prometheus (for node_exporter's textfile collector)
    #[arg(long, global = true, value_name = "FILE", help_heading = "Global options")]
    pub metrics_file: Option<PathBuf>,
    /// Append what 'transload audit' needs to this file; several processes may share it
    #[arg(long, global = true, value_name = "FILE", help_heading = "Global options")]
    pub audit_log: Option<PathBuf>,
    /// When to use colours
    #[arg(long, global = true, value_name = "WHEN", default_value = "auto", help_heading = "Global options")]
    pub color: ColorMode,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ProgressMode {
    /// Bars on a terminal, plain otherwise
    Auto,
    /// A bar for each layer
    Bars,
    /// One line for each image
    Plain,
    /// One JSON object for each event
    Json,
    /// Nothing
    None,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// Lines for people
    Text,
    /// One JSON object a line, for machines; no progress is drawn
    Json,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ColorMode {
    /// On a terminal, unless NO_COLOR is set
    Auto,
    /// Always
    Always,
    /// Never
    Never,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    Import(Box<Import>),
    Images(Images),
    Inspect(Inspect),
    History(Named),
    Tag(Tag),
    Rm(collect::Rm),
    Restore(collect::Restore),
    Mount(Mount),
    Umount(Umount),
    Prewarm(Prewarm),
    Unpack(Unpack),
    Bundle(Bundle),
    Export(Export),
    Du(Du),
    Gc(collect::Gc),
    Pin(holds::Pin),
    Unpin(holds::Unpin),
    Label(holds::Label),
    Leases(holds::Leases),
    Fsck(super::fsck::Fsck),
    Doctor(super::doctor::Doctor),
    Audit(Audit),
    Stats(Stats),
    Completions(Completions),
}

/// Import images from archives: docker-save, OCI layout as tar or directory; plain, gzip, zstd, xz or bzip2
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  transload import alpine.tar.gz
  transload import base.tar app.tar.zst
  curl -fL https://example.com/app.tar.zst | transload import -
  transload import --tag example.com/app:v2 app-layout/
  transload import --platform linux/arm64 multi.tar
  transload import --dry-run app.tar
  transload import --timeline where.html app.tar.gz")]
pub struct Import {
    /// Archives or layout directories; - is stdin
    #[arg(required = true, value_name = "ARCHIVE")]
    pub archives: Vec<PathBuf>,
    /// Name the image so, instead of what the archive says (repeatable)
    #[arg(long = "tag", value_name = "NAME", value_parser = parse_reference)]
    pub tags: Vec<Reference>,
    /// Choose this platform of a multi-platform image [default: the host's]
    #[arg(long, value_name = "OS/ARCH[/VARIANT]", value_parser = parse_platform)]
    pub platform: Option<Platform>,
    /// Import every platform that is in the archive
    #[arg(long, conflicts_with = "platform")]
    pub all_platforms: bool,
    /// Store the blobs and do not extract the layers
    #[arg(long)]
    pub no_unpack: bool,
    /// Do not keep the layers' compressed blobs (the image can then not be exported)
    #[arg(long, conflicts_with = "no_unpack")]
    pub discard_blobs: bool,
    /// Read and verify what is already present, too
    #[arg(long)]
    pub verify_source: bool,
    /// Print what would be done and do nothing
    #[arg(long, conflicts_with = "audit")]
    pub dry_run: bool,
    /// Do not wait until the disk has everything (a crash may cost the import)
    #[arg(long)]
    pub no_sync: bool,
    /// Refuse to move a name from the image that has it
    #[arg(long)]
    pub no_retag: bool,
    /// Prove that each blob was written once and each layer extracted once
    #[arg(long)]
    pub audit: bool,
    /// Afterwards remove what nothing needs, as gc does
    #[arg(long, conflicts_with = "dry_run")]
    pub gc: bool,
    /// Without privilege: leave out owners that cannot be set
    #[arg(long)]
    pub ignore_chown: bool,
    /// Do not confine the threads that extract to the store and the archive (Landlock, fewer capabilities)
    #[arg(long)]
    pub no_confine: bool,
    /// How many layers to work on at once [default: the number of processors]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub threads: Option<u16>,
    /// Memory for data in flight, such as 64MiB
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub memory: Option<u64>,
    /// How layers become root filesystems (decided when the store is made)
    #[arg(long, value_name = "KIND")]
    pub snapshotter: Option<SnapshotterChoice>,
    #[command(flatten)]
    pub insight: InsightArgs,
    #[command(flatten)]
    pub limits: LimitArgs,
}

/// Where the time went, for people and for tools.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Insight")]
pub struct InsightArgs {
    /// Write what happened as a trace, which ui.perfetto.dev and chrome://tracing open
    #[arg(long, value_name = "FILE.json", conflicts_with = "dry_run")]
    pub trace: Option<PathBuf>,
    /// Write one page that shows where the time went
    #[arg(long, value_name = "FILE.html", conflicts_with = "dry_run")]
    pub timeline: Option<PathBuf>,
    /// Send the trace to an OpenTelemetry collector (OTLP over HTTP)
    #[cfg(feature = "otlp")]
    #[arg(long, value_name = "http://HOST[:PORT]", conflicts_with = "dry_run")]
    pub otlp: Option<super::insight::Endpoint>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum SnapshotterChoice {
    /// Layers are shared and stacked by the kernel's overlayfs
    Overlay,
    /// Full copies, for filesystems without overlayfs
    Plain,
}

/// Each replaces the field of the same meaning in `transload::Limits`.
#[derive(Debug, Default, Args)]
#[command(next_help_heading = "Limits")]
pub struct LimitArgs {
    /// Refuse layers that unpack to more than this
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub max_layer_size: Option<u64>,
    /// Refuse layers with more entries than this
    #[arg(long, value_name = "N")]
    pub max_entries: Option<u64>,
    /// Refuse images with more layers than this
    #[arg(long, value_name = "N")]
    pub max_layers: Option<usize>,
    /// Refuse manifests, indexes and configurations larger than this
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub max_json_size: Option<u64>,
    /// Refuse archives with more members than this
    #[arg(long, value_name = "N")]
    pub max_members: Option<u64>,
    /// Set any limit of the reference (docs/cli.md) by its name; repeatable
    #[arg(long, value_name = "NAME=VALUE", value_parser = parse_limit)]
    pub limit: Vec<(String, u64)>,
}

fn parse_limit(text: &str) -> std::result::Result<(String, u64), Error> {
    let (name, value) = text.split_once('=').ok_or_else(|| {
        Error::new(ErrorKind::InvalidArgument, format!("{text:?} is not of the form NAME=VALUE"))
    })?;
    let value = parse_size(value)?;
    Limits::default().set(name, value)?;
    Ok((name.to_string(), value))
}

/// List the images
#[derive(Debug, Args)]
#[command(
    visible_alias = "ls",
    after_help = "\
Examples:
  transload images
  transload images --digests
  transload --json images | jq -r '.images[].name'"
)]
pub struct Images {
    /// Show whole digests
    #[arg(long)]
    pub digests: bool,
}

/// Show an image's configuration and layers, or its root filesystem
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  transload inspect alpine
  transload inspect --tree alpine
  transload inspect --tree --depth 4 sha256:3f2a
  transload --json inspect alpine | jq .image_config.config.Env")]
pub struct Inspect {
    /// A name, a digest, or the beginning of one
    pub name: String,
    /// Show the root filesystem as a tree
    #[arg(long)]
    pub tree: bool,
    /// How deep to show the tree
    #[arg(long, value_name = "N", default_value_t = 2, requires = "tree")]
    pub depth: usize,
}

/// Show how an image was built
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  transload history alpine\n  transload --json history alpine:3.20")]
pub struct Named {
    /// A name, a digest, or the beginning of one
    pub name: String,
}

/// Give an image one more name
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  transload tag alpine registry.example.com/base:1")]
pub struct Tag {
    /// A name, a digest, or the beginning of one
    pub name: String,
    /// The new name
    #[arg(value_parser = parse_reference)]
    pub new: Reference,
}

/// What to do about something in use, other than refuse.
#[derive(Debug, Default, Args)]
pub struct Busy {
    /// Wait until nothing uses it any more, at most this long
    #[arg(long, value_name = "DURATION", value_parser = parse_duration, num_args = 0..=1, require_equals = true)]
    pub wait: Option<Option<Duration>>,
    /// Where it is in use, mark it; the first gc that finds it free removes it
    #[arg(long, conflicts_with = "wait")]
    pub defer: bool,
}

/// Mount an image, list what is mounted, or run a command inside an image
#[derive(Debug, Args)]
#[command(
    override_usage = "transload mount [--rw] NAME DIR\n       transload mount [--rw] NAME -- COMMAND [ARGUMENT]...\n       transload mount",
    after_help = "\
Examples:
  transload mount alpine /mnt                  read-only
  transload mount --rw alpine /mnt             with a directory of its own for changes
  transload mount --uidmap 0:100000:65536 alpine /mnt
                                               for a user namespace: root's files as those of user 100000
  transload mount alpine -- cat /etc/os-release
  transload mount                              list the mounts
  transload umount /mnt

A command runs in a mount namespace of its own with the image as its root; that is a convenience and no sandbox.
Without privilege only that form works: a mount made there ends with the command."
)]
pub struct Mount {
    /// A name, a digest, or the beginning of one
    pub name: Option<String>,
    /// Where to mount it
    #[arg(value_name = "DIR", conflicts_with = "command")]
    pub dir: Option<PathBuf>,
    /// Make it writable; changes go to a directory of their own
    #[arg(long, requires = "name")]
    pub rw: bool,
    /// Show files of user IMAGE as those of user HOST, and so on for COUNT users (repeatable)
    #[arg(long, value_name = "IMAGE:HOST:COUNT", requires = "dir", conflicts_with = "command")]
    pub uidmap: Vec<IdMapping>,
    /// The same for groups [default: as --uidmap]
    #[arg(long, value_name = "IMAGE:HOST:COUNT", requires = "dir", conflicts_with = "command")]
    pub gidmap: Vec<IdMapping>,
    /// Run this inside the image
    #[arg(last = true, value_name = "COMMAND", requires = "name")]
    pub command: Vec<OsString>,
}

/// Take down a mount or a bundle
#[derive(Debug, Args)]
#[command(
    visible_alias = "unmount",
    after_help = "\
Examples:
  transload umount /mnt
  transload umount --wait=30s /mnt          until nothing uses it any more
  transload umount --defer /mnt             if it is in use, the first gc that finds it free takes it down"
)]
pub struct Umount {
    /// Where it is mounted; for a bundle, the bundle's directory
    #[arg(required = true, value_name = "DIR")]
    pub dirs: Vec<PathBuf>,
    #[command(flatten)]
    pub busy: Busy,
}

/// Read in an image's files, so that its first start finds them in memory
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  transload prewarm alpine                   the whole tree
  transload prewarm app /usr/bin/app /usr/lib
  transload --json prewarm app | jq .bytes")]
pub struct Prewarm {
    /// A name, a digest, or the beginning of one
    pub name: String,
    /// Paths in the image; of a directory, all that is in it [default: everything]
    #[arg(value_name = "PATH")]
    pub paths: Vec<PathBuf>,
}

/// Write an image's root filesystem into a plain directory
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  transload unpack alpine ./rootfs")]
pub struct Unpack {
    /// A name, a digest, or the beginning of one
    pub name: String,
    /// A new or empty directory
    pub dir: PathBuf,
}

/// Make an OCI runtime bundle that runc and crun run
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  transload bundle alpine ./box && cd box && runc run mybox
  transload bundle alpine ./box -- /bin/echo hello
  transload umount ./box")]
pub struct Bundle {
    /// A name, a digest, or the beginning of one
    pub name: String,
    /// The bundle's directory: new or empty
    pub dir: PathBuf,
    /// Give the container a terminal
    #[arg(short = 't', long)]
    pub tty: bool,
    /// Make the root filesystem read-only inside the container
    #[arg(long)]
    pub read_only: bool,
    /// Run this instead of the image's entrypoint and command
    #[arg(last = true, value_name = "COMMAND")]
    pub args: Vec<String>,
}

/// Write images into an archive that docker, podman and containerd load
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  transload export alpine -o alpine.tar
  transload export --format docker -o - alpine | docker load
  transload export --format docker -o - alpine | ctr images import -")]
pub struct Export {
    /// Names of images
    #[arg(required = true, value_name = "NAME")]
    pub names: Vec<String>,
    /// The archive to write; - is stdout
    #[arg(short, long, value_name = "FILE")]
    pub output: PathBuf,
    /// What to write
    #[arg(long, value_name = "FORMAT", default_value = "oci")]
    pub format: FormatChoice,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum FormatChoice {
    /// An OCI image layout
    Oci,
    /// An OCI image layout with manifest.json, which docker load and podman load read, too
    Docker,
}

/// Show what the store takes on disk
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  transload du
  transload --json du | jq .reclaimable_bytes
  transload du --why sha256:3f2a          which images, leases and labels need it")]
pub struct Du {
    /// Tell why a blob, an extracted layer or a snapshot is here: its digest, or the beginning of it
    #[arg(long, value_name = "DIGEST")]
    pub why: Option<String>,
}

/// Print a completion script for a shell
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  transload completions bash > /etc/bash_completion.d/transload
  transload completions zsh > ~/.zfunc/_transload
  transload completions fish > ~/.config/fish/completions/transload.fish")]
pub struct Completions {
    /// The shell
    pub shell: Shell,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Shell {
    Bash,
    Zsh,
    Fish,
}

fn parse_reference(text: &str) -> Result<Reference, transload::Error> {
    text.parse()
}

fn parse_platform(text: &str) -> Result<Platform, transload::Error> {
    text.parse()
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_definition_is_sound_and_every_command_has_examples() {
        let mut command = Cli::command();
        command.build();
        command.clone().debug_assert();
        for sub in command.get_subcommands().filter(|sub| sub.get_name() != "help") {
            let help = sub.get_after_help().map(|help| help.to_string()).unwrap_or_default();
            assert!(help.contains("Examples:"), "{}", sub.get_name());
            assert!(!RESERVED.contains(&sub.get_name()), "{} is reserved", sub.get_name());
        }
    }

    #[test]
    fn arguments_mean_what_the_reference_says() {
        let ok = |words: &str| Cli::try_parse_from(words.split(' ')).expect(words);
        let Command::Import(import) =
            ok("transload import a.tar - --tag x --tag y:1 --memory 64MiB --max-entries 5 --platform linux/arm64")
                .command
        else {
            panic!("not an import")
        };
        assert_eq!(import.archives.len(), 2);
        assert_eq!(import.tags[0].to_string(), "docker.io/library/x:latest");
        assert_eq!((import.memory, import.limits.max_entries), (Some(64 << 20), Some(5)));
        let Command::Mount(mount) = ok("transload mount alpine -- ls -la /").command else {
            panic!("not a mount")
        };
        assert_eq!(mount.command.len(), 3);
        assert!(ok("transload ls --json -v").global.json);
        for bad in [
            "transload import",
            "transload import --memory lots a",
            "transload import --tag UPPER a",
            "transload import --threads 0 a",
            "transload import --no-unpack --discard-blobs a",
            "transload import --platform linux --all-platforms a",
            "transload mount --rw",
            "transload mount a b -- c",
            "transload export a",
            "transload inspect --depth 3 a",
            "transload pull a",
            "transload gc --keep-last -1",
            "transload gc --older-than 30",
            "transload gc --until-free lots",
            "transload gc --until-free 1G --grace 7d",
            "transload umount --wait --defer a",
            "transload umount --wait=soon a",
            "transload mount --uidmap 0:1 a b",
            "transload mount --uidmap 0:1:1 a -- c",
            "transload -q -v images",
        ] {
            assert!(Cli::try_parse_from(bad.split(' ')).is_err(), "{bad}");
        }
    }
}

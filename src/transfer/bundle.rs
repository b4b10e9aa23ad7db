//! From an image configuration to an OCI runtime bundle: `config.json` as image-spec `conversion.md` says, on top of
//! defaults close to those of `runc spec`.
//!
//! [`convert`] is pure but for one thing: a `Config.User` that is a name (or a number without a group) is looked up in
//! the image's own `etc/passwd` and `etc/group`. [`write()`] puts the result beside an existing `rootfs` directory; who
//! mounts or unpacks that directory, and takes it down again, is left to others. Nothing from the image is acted upon
//! on the host.

use super::users;
use crate::error::{Error, ErrorKind, Result, ResultExt};
use crate::oci::{Digest, null_as_empty};
use crate::parallel::Cancel;
use crate::progress::Listener;
use oci_spec::runtime::{
    Capabilities, Capability, Linux, LinuxCapabilities, LinuxIdMapping, LinuxIdMappingBuilder,
    LinuxNamespace, LinuxNamespaceType, Mount, MountBuilder, Process, Root, Spec, User, get_default_mounts,
    get_rootless_mounts,
};
use rustix::fs::{AtFlags, CWD, Mode, OFlags, openat, renameat, unlinkat};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::{BTreeMap, HashMap};
use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

/// What an image that names no PATH gets, the same as Docker's.
const DEFAULT_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What containers get by default from containerd and Docker: without CHOWN or SETUID most package managers and
/// servers do not start.
const CAPABILITIES: [Capability; 14] = [
    Capability::AuditWrite,
    Capability::Chown,
    Capability::DacOverride,
    Capability::Fowner,
    Capability::Fsetid,
    Capability::Kill,
    Capability::Mknod,
    Capability::NetBindService,
    Capability::NetRaw,
    Capability::Setfcap,
    Capability::Setgid,
    Capability::Setpcap,
    Capability::Setuid,
    Capability::SysChroot,
];

/// What the caller adds to the image's own wishes.
#[derive(Clone, Debug, Default)]
pub struct BundleOptions {
    /// Runs this instead of the image's entrypoint and command, where it is not empty.
    pub args: Vec<String>,
    /// Gives the process a terminal.
    pub terminal: bool,
    /// Makes the root filesystem read-only inside the container.
    pub read_only: bool,
    /// Makes a bundle for a runtime that runs without privilege.
    pub rootless: Option<Rootless>,
    /// Is told what is done to the snapshot behind it.
    pub listener: Listener,
    /// Ends the unpacking, or the waiting while the kernel is busy.
    pub cancel: Cancel,
}

/// The ids that a runtime without privilege maps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rootless {
    /// The user outside that is root inside.
    pub uid: u32,
    /// The group outside that is root's inside.
    pub gid: u32,
}

/// What came of a bundle.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct BundleReport {
    /// What the container will run.
    pub args: Vec<String>,
    /// The user it runs as.
    pub uid: u32,
    /// The group it runs as.
    pub gid: u32,
    /// What a person should know: defaults that were chosen, wishes that cannot be met.
    pub notices: Vec<String>,
}

/// What `umount` has to know about a bundle later. It stands in `config.json` as annotations, with a digest of the rest:
/// what was edited since is a person's work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Marks {
    /// What `rootfs` is.
    pub(super) root: RootKind,
    /// Whether the bundle's directory was made for it.
    pub(super) made: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RootKind {
    Mounted,
    Unpacked,
}

const ROOT_MARK: &str = "transload.bundle.root";
const MADE_MARK: &str = "transload.bundle.directory";
const DIGEST_MARK: &str = "transload.bundle.digest";

/// The largest `config.json` that is looked at for marks.
const CONFIG_LIMIT_BYTES: u64 = 16 << 20;

impl Marks {
    fn put(self, json: &[u8]) -> Result<Vec<u8>> {
        let fail = |error: serde_json::Error| Error::new(ErrorKind::Internal, error.to_string());
        let mut value: Value = serde_json::from_slice(json).map_err(fail)?;
        let root = if self.root == RootKind::Mounted { "mounted" } else { "unpacked" };
        let made = if self.made { "made" } else { "found" };
        value["annotations"][ROOT_MARK] = root.into();
        value["annotations"][MADE_MARK] = made.into();
        value["annotations"][DIGEST_MARK] =
            Digest::of(value_without_digest(&value).as_bytes()).to_string().into();
        let mut json = serde_json::to_vec_pretty(&value).map_err(fail)?;
        json.push(b'\n');
        Ok(json)
    }
}

fn value_without_digest(value: &Value) -> String {
    let mut value = value.clone();
    if let Some(annotations) = value["annotations"].as_object_mut() {
        annotations.remove(DIGEST_MARK);
    }
    value.to_string()
}

/// The marks of the bundle in `dir`, if it is one of ours.
pub(super) fn marks(dir: &Path) -> Option<Marks> {
    marks_of(&read_own(dir)?)
}

fn marks_of(config: &Value) -> Option<Marks> {
    let root = match config["annotations"][ROOT_MARK].as_str()? {
        "mounted" => RootKind::Mounted,
        "unpacked" => RootKind::Unpacked,
        _ => return None,
    };
    Some(Marks { root, made: config["annotations"][MADE_MARK] == "made" })
}

/// Anything that is no configuration is nobody's.
fn read_own(dir: &Path) -> Option<Value> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = std::fs::File::from(openat(CWD, dir.join("config.json"), flags, Mode::empty()).ok()?);
    let mut json = Vec::new();
    file.take(CONFIG_LIMIT_BYTES).read_to_end(&mut json).ok()?;
    serde_json::from_slice(&json).ok()
}

/// Removes the `config.json` that we wrote, unless it was edited, and the directory if we made it and nothing is left in it.
pub(super) fn remove_own(dir: &Path) -> Result<()> {
    let Some(config) = read_own(dir) else { return Ok(()) };
    let Some(marks) = marks_of(&config) else { return Ok(()) };
    let digest = Digest::of(value_without_digest(&config).as_bytes()).to_string();
    if config["annotations"][DIGEST_MARK] != digest {
        return Ok(());
    }
    std::fs::remove_file(dir.join("config.json")).doing(|| "cannot remove config.json")?;
    match marks.made.then(|| std::fs::remove_dir(dir)) {
        Some(Err(error)) if error.kind() != std::io::ErrorKind::DirectoryNotEmpty => Err(error.into()),
        _ => Ok(()),
    }
}

/// Writes `config.json` into `dir`, whose `rootfs` is there already.
pub fn write(dir: &Path, image_config: &[u8], options: &BundleOptions) -> Result<BundleReport> {
    write_with(dir, image_config, options, None)
}

/// The same with what `umount` has to know.
pub(super) fn write_marked(
    dir: &Path,
    image_config: &[u8],
    options: &BundleOptions,
    marks: Marks,
) -> Result<BundleReport> {
    write_with(dir, image_config, options, Some(marks))
}

fn write_with(
    dir: &Path,
    image_config: &[u8],
    options: &BundleOptions,
    marks: Option<Marks>,
) -> Result<BundleReport> {
    let doing = || format!("cannot write the bundle {}", dir.display());
    let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
    let dir_fd = openat(CWD, dir, flags, Mode::empty()).doing(doing)?;
    let rootfs = openat(&dir_fd, "rootfs", flags | OFlags::NOFOLLOW, Mode::empty()).doing(doing)?;
    let (json, report) = convert(image_config, rootfs.as_fd(), options).doing(doing)?;
    let json = marks.map_or(Ok(json.clone()), |marks| marks.put(&json)).doing(doing)?;
    write_config(dir_fd.as_fd(), &json).doing(doing)?;
    Ok(report)
}

/// A new file that takes the old one's place, so that a runtime never reads half of it.
fn write_config(dir: BorrowedFd<'_>, json: &[u8]) -> Result<()> {
    let temporary = ".config.json.tmp";
    let flags = OFlags::CREATE | OFlags::TRUNC | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut file = std::fs::File::from(openat(dir, temporary, flags, Mode::from(0o644))?);
    let written = file.write_all(json).and_then(|()| Ok(renameat(dir, temporary, dir, "config.json")?));
    if written.is_err() {
        let _ = unlinkat(dir, temporary, AtFlags::empty());
    }
    Ok(written?)
}

/// The runtime configuration for an image configuration: JSON with a fixed order, and the report. `rootfs` is the
/// image's root directory, in which names of users are looked up.
pub fn convert(
    image_config: &[u8],
    rootfs: BorrowedFd<'_>,
    options: &BundleOptions,
) -> Result<(Vec<u8>, BundleReport)> {
    // The shape first: serde would take an array for a struct, and the last of two equal keys.
    crate::oci::parse_config(image_config).doing(|| "cannot read the image's configuration")?;
    let image: ImageConfig = serde_json::from_slice(image_config)
        .map_err(|error| Error::malformed(format!("the image's configuration: {error}")))?;
    image.check()?;
    let ids = users::resolve(rootfs, &image.config.user)?;
    let mut report = BundleReport { uid: ids.uid, gid: ids.gid, ..BundleReport::default() };
    report.args = arguments(&image.config, options, &mut report.notices);
    note_unmapped(&ids, options, &mut report.notices);
    let spec = spec(&image, &ids, &report.args, options)?;
    Ok((to_json(&spec)?, report))
}

fn arguments(config: &Config, options: &BundleOptions, notices: &mut Vec<String>) -> Vec<String> {
    if !options.args.is_empty() {
        return options.args.clone();
    }
    let args: Vec<String> = config.entrypoint.iter().chain(&config.cmd).cloned().collect();
    if args.is_empty() {
        notices.push("the image names no command, so the bundle runs sh".to_string());
        return vec!["sh".to_string()];
    }
    args
}

fn note_unmapped(ids: &users::Ids, options: &BundleOptions, notices: &mut Vec<String>) {
    if options.rootless.is_some() && (ids.uid != 0 || ids.gid != 0) {
        notices.push(format!(
            "the image wants to run as {}:{}, and a bundle without privilege maps only root; add a mapping to linux.uidMappings and linux.gidMappings",
            ids.uid, ids.gid
        ));
    }
}

fn spec(image: &ImageConfig, ids: &users::Ids, args: &[String], options: &BundleOptions) -> Result<Spec> {
    let mut root = Root::default();
    root.set_path("rootfs".into()).set_readonly(Some(options.read_only));
    let mut spec = Spec::default();
    spec.set_version("1.0.2".to_string())
        .set_hostname(Some("transload".to_string()))
        .set_root(Some(root))
        .set_process(Some(process(&image.config, ids, args, options)))
        .set_mounts(Some(mounts(&image.config, options)?))
        .set_annotations(Some(annotations(image)))
        .set_linux(Some(linux(options)?));
    Ok(spec)
}

fn process(config: &Config, ids: &users::Ids, args: &[String], options: &BundleOptions) -> Process {
    let mut user = User::default();
    user.set_uid(ids.uid).set_gid(ids.gid);
    // A user namespace that maps one group cannot take others along.
    if options.rootless.is_none() && !ids.additional_gids.is_empty() {
        user.set_additional_gids(Some(ids.additional_gids.clone()));
    }
    let mut process = Process::default();
    process
        .set_user(user)
        .set_terminal(Some(options.terminal))
        .set_args(Some(args.to_vec()))
        .set_env(Some(environment(config, options.terminal)))
        .set_cwd(working_directory(&config.working_dir).into())
        .set_capabilities(Some(capabilities()));
    process
}

/// The image's own variables stay as they are and where they are; only missing ones are added.
fn environment(config: &Config, terminal: bool) -> Vec<String> {
    let has = |name: &str| config.env.iter().any(|entry| entry.split('=').next() == Some(name));
    let mut env = config.env.clone();
    if !has("PATH") {
        env.insert(0, DEFAULT_PATH.to_string());
    }
    if terminal && !has("TERM") {
        env.push("TERM=xterm".to_string());
    }
    env
}

/// Runtimes want an absolute path; Docker takes a relative one from the root.
fn working_directory(path: &str) -> String {
    match path.starts_with('/') {
        true => path.to_string(),
        false => format!("/{path}"),
    }
}

/// No ambient set: a process that is not root starts without capabilities, as under Docker and containerd.
fn capabilities() -> LinuxCapabilities {
    let set = || Some(Capabilities::from(CAPABILITIES));
    let mut capabilities = LinuxCapabilities::default();
    capabilities
        .set_bounding(set())
        .set_effective(set())
        .set_permitted(set())
        .set_inheritable(None)
        .set_ambient(None);
    capabilities
}

fn mounts(config: &Config, options: &BundleOptions) -> Result<Vec<Mount>> {
    let base = if options.rootless.is_some() { get_rootless_mounts() } else { get_default_mounts() };
    let volumes = config.volumes.keys().filter(|path| !path.trim_matches('/').is_empty());
    let volumes = volumes.map(|path| volume(path)).collect::<Result<Vec<_>>>()?;
    Ok(base.into_iter().chain(volumes).collect())
}

/// A volume starts with what the image has there (`tmpcopyup`, which runc and crun know) and never reaches the root
/// filesystem.
fn volume(path: &str) -> Result<Mount> {
    let options = ["rw", "nosuid", "nodev", "tmpcopyup"].map(str::to_string);
    MountBuilder::default()
        .destination(working_directory(path))
        .typ("tmpfs")
        .source("tmpfs")
        .options(options)
        .build()
        .map_err(internal)
}

fn linux(options: &BundleOptions) -> Result<Linux> {
    let Some(rootless) = &options.rootless else {
        let mut linux = Linux::default();
        // Devices: none but the default ones that every runtime adds.
        if let Some(resources) = linux.resources_mut() {
            let mut deny = oci_spec::runtime::LinuxDeviceCgroup::default();
            deny.set_allow(false).set_access(Some("rwm".to_string()));
            resources.set_devices(Some(vec![deny]));
        }
        return Ok(linux);
    };
    let mut linux = Linux::rootless(rootless.uid, rootless.gid);
    linux
        .set_namespaces(Some(rootless_namespaces()))
        .set_uid_mappings(Some(vec![mapping(rootless.uid)?]))
        .set_gid_mappings(Some(vec![mapping(rootless.gid)?]));
    Ok(linux)
}

/// Those of `runc spec --rootless`: the network stays the caller's, because nobody could set up another.
fn rootless_namespaces() -> Vec<LinuxNamespace> {
    use LinuxNamespaceType::*;
    let namespace = |typ| {
        let mut namespace = LinuxNamespace::default();
        namespace.set_typ(typ);
        namespace
    };
    [Pid, Ipc, Uts, Mount, User].map(namespace).to_vec()
}

fn mapping(id: u32) -> Result<LinuxIdMapping> {
    let builder = LinuxIdMappingBuilder::default();
    builder.container_id(0_u32).host_id(id).size(1_u32).build().map_err(internal)
}

fn internal(error: oci_spec::OciSpecError) -> Error {
    Error::new(ErrorKind::Internal, error.to_string())
}

/// Labels win over what is derived (conversion.md, Annotations).
fn annotations(image: &ImageConfig) -> HashMap<String, String> {
    let config = &image.config;
    let ports: Vec<&str> = config.exposed_ports.keys().map(String::as_str).collect();
    let derived = [
        ("os", image.os.clone()),
        ("architecture", image.architecture.clone()),
        ("variant", image.variant.clone()),
        ("os.version", image.os_version.clone()),
        ("os.features", image.os_features.join(",")),
        ("author", image.author.clone()),
        ("created", image.created.clone()),
        ("stopSignal", config.stop_signal.clone()),
        ("exposedPorts", ports.join(",")),
    ];
    let derived = derived.into_iter().filter(|(_, value)| !value.is_empty());
    let derived = derived.map(|(key, value)| (format!("org.opencontainers.image.{key}"), value));
    derived.chain(config.labels.clone()).filter(|(key, _)| !key.is_empty()).collect()
}

/// Capability sets are hash sets in the types, so they are put in order here: the same image gives the same bytes.
fn to_json(spec: &Spec) -> Result<Vec<u8>> {
    let fail = |error: serde_json::Error| Error::new(ErrorKind::Internal, error.to_string());
    let mut value = serde_json::to_value(spec).map_err(fail)?;
    if let Some(sets) = value.pointer_mut("/process/capabilities").and_then(|sets| sets.as_object_mut()) {
        for set in sets.values_mut().filter_map(|set| set.as_array_mut()) {
            set.sort_by(|a, b| a.as_str().cmp(&b.as_str()));
        }
    }
    let mut json = serde_json::to_vec_pretty(&value).map_err(fail)?;
    json.push(b'\n');
    Ok(json)
}

/// What the conversion reads; everything may be missing or `null`.
#[derive(Default, Deserialize)]
struct ImageConfig {
    #[serde(default, deserialize_with = "null_as_empty")]
    os: String,
    #[serde(default, deserialize_with = "null_as_empty")]
    architecture: String,
    #[serde(default, deserialize_with = "null_as_empty")]
    variant: String,
    #[serde(default, rename = "os.version", deserialize_with = "null_as_empty")]
    os_version: String,
    #[serde(default, rename = "os.features", deserialize_with = "null_as_empty")]
    os_features: Vec<String>,
    #[serde(default, deserialize_with = "null_as_empty")]
    author: String,
    #[serde(default, deserialize_with = "null_as_empty")]
    created: String,
    #[serde(default, deserialize_with = "null_as_empty")]
    config: Config,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Config {
    #[serde(default, deserialize_with = "null_as_empty")]
    user: String,
    #[serde(default, deserialize_with = "null_as_empty")]
    exposed_ports: BTreeMap<String, serde_json::Value>,
    #[serde(default, deserialize_with = "null_as_empty")]
    env: Vec<String>,
    #[serde(default, deserialize_with = "null_as_empty")]
    entrypoint: Vec<String>,
    #[serde(default, deserialize_with = "null_as_empty")]
    cmd: Vec<String>,
    #[serde(default, deserialize_with = "null_as_empty")]
    volumes: BTreeMap<String, serde_json::Value>,
    #[serde(default, deserialize_with = "null_as_empty")]
    working_dir: String,
    #[serde(default, deserialize_with = "null_as_empty")]
    labels: BTreeMap<String, String>,
    #[serde(default, deserialize_with = "null_as_empty")]
    stop_signal: String,
}

impl ImageConfig {
    /// A NUL would end a C string early in the runtime: what is checked and what is run would differ.
    fn check(&self) -> Result<()> {
        let config = &self.config;
        let strings = config.env.iter().chain(&config.entrypoint).chain(&config.cmd);
        let strings = strings.chain(config.volumes.keys()).chain([&config.working_dir, &config.user]);
        match strings.into_iter().any(|text| text.contains('\0')) {
            true => Err(Error::malformed("the image's configuration holds a NUL character")),
            false => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn converted(image: Value, options: &BundleOptions) -> Result<(Value, BundleReport)> {
        let root = tempfile::tempdir().expect("a directory");
        std::fs::create_dir(root.path().join("etc")).expect("etc");
        std::fs::write(root.path().join("etc/passwd"), "app:x:1000:50::/:\n").expect("passwd");
        std::fs::write(root.path().join("etc/group"), "wheel:x:10:app\n").expect("group");
        let handle = std::fs::File::open(root.path()).expect("the root");
        let (json, report) = convert(&serde_json::to_vec(&image).expect("json"), handle.as_fd(), options)?;
        Ok((serde_json::from_slice(&json).expect("our own JSON"), report))
    }

    #[test]
    fn the_fields_go_where_conversion_md_puts_them() {
        let image = json!({
            "os": "linux", "architecture": "arm", "variant": "v7", "author": "me", "created": "2024-01-01T00:00:00Z",
            "config": {
                "User": "app", "WorkingDir": "/srv", "Env": ["A=1", "PATH=/x"],
                "Entrypoint": ["/entry"], "Cmd": ["a", "b"], "Volumes": {"/data": {}},
                "ExposedPorts": {"80/tcp": {}, "443/tcp": {}}, "StopSignal": "SIGINT",
                "Labels": {"k": "v", "org.opencontainers.image.author": "label wins"},
            },
        });
        let (spec, report) = converted(image, &BundleOptions::default()).expect("converted");
        assert_eq!(spec["process"]["args"], json!(["/entry", "a", "b"]));
        assert_eq!(spec["process"]["env"], json!(["A=1", "PATH=/x"]));
        assert_eq!(spec["process"]["cwd"], "/srv");
        assert_eq!(spec["process"]["user"], json!({"uid": 1000, "gid": 50, "additionalGids": [10]}));
        let annotations = json!({
            "org.opencontainers.image.os": "linux", "org.opencontainers.image.architecture": "arm",
            "org.opencontainers.image.variant": "v7", "org.opencontainers.image.author": "label wins",
            "org.opencontainers.image.created": "2024-01-01T00:00:00Z",
            "org.opencontainers.image.stopSignal": "SIGINT",
            "org.opencontainers.image.exposedPorts": "443/tcp,80/tcp", "k": "v",
        });
        assert_eq!(spec["annotations"], annotations);
        let mounts = spec["mounts"].as_array().expect("mounts");
        assert!(mounts.iter().any(|mount| mount["destination"] == "/data" && mount["type"] == "tmpfs"));
        assert_eq!(spec["root"], json!({"path": "rootfs", "readonly": false}));
        assert!(report.notices.is_empty(), "{:?}", report.notices);
    }

    #[test]
    fn an_empty_configuration_gets_defaults_and_says_so() {
        for image in [json!({}), json!({"config": null}), json!({"config": {"Cmd": null, "Env": null}})] {
            let (spec, report) = converted(image, &BundleOptions::default()).expect("converted");
            assert_eq!(spec["process"]["args"], json!(["sh"]));
            assert_eq!(spec["process"]["cwd"], "/");
            assert_eq!(spec["process"]["env"], json!([DEFAULT_PATH]));
            assert_eq!(report.notices.len(), 1);
        }
    }

    #[test]
    fn without_privilege_one_id_is_mapped_and_the_network_stays() {
        let options = BundleOptions {
            rootless: Some(Rootless { uid: 1001, gid: 1002 }),
            args: vec!["true".to_string()],
            ..BundleOptions::default()
        };
        let (spec, report) = converted(json!({"config": {"User": "app"}}), &options).expect("converted");
        let mapping = |id: u32| json!([{"containerID": 0, "hostID": id, "size": 1}]);
        assert_eq!(spec["linux"]["uidMappings"], mapping(1001));
        assert_eq!(spec["linux"]["gidMappings"], mapping(1002));
        assert!(spec["linux"].get("resources").is_none());
        assert!(!spec["linux"]["namespaces"].to_string().contains("network"));
        assert_eq!(report.args, ["true"]);
        assert!(report.notices[0].contains("1000:50"), "{:?}", report.notices);
    }

    #[test]
    fn the_same_image_gives_the_same_bytes() {
        let root = tempfile::tempdir().expect("a directory");
        let handle = std::fs::File::open(root.path()).expect("the root");
        let image = br#"{"config":{"Labels":{"a":"1","b":"2","c":"3"}}}"#;
        let once = || convert(image, handle.as_fd(), &BundleOptions::default()).expect("converted").0;
        let first = once();
        assert!((0..20).all(|_| once() == first));
    }

    #[test]
    fn hostile_configurations_are_refused() {
        for image in [
            json!({"config": {"User": "nobody-there"}}),
            json!({"config": {"User": "2147483648"}}),
            json!({"config": {"Env": ["A=\u{0}"]}}),
            json!({"config": {"Env": "A=1"}}),
            json!([]),
        ] {
            assert!(converted(image.clone(), &BundleOptions::default()).is_err(), "{image}");
        }
    }
}

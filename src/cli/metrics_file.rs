//! `--metrics-file`: figures in the text form of Prometheus, for node_exporter's textfile collector.
//!
//! A command lives for seconds, and a counter that starts at zero each time counts nothing. So counters go on in the
//! file: at the end of a command what it counted is added to what the file says, under a lock, and the file is replaced
//! by a rename, so that a collector never reads half of it.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use transload::metrics::{Metrics, Recorder, Registry, catalog};
use transload::{Error, ErrorKind, Result, ResultExt};

/// Where the figures of this command go at its end.
pub struct MetricsFile {
    path: PathBuf,
    registry: Arc<Registry>,
}

impl MetricsFile {
    /// Looks at the file before the work begins: one that is not ours is refused.
    pub fn open(path: &Path) -> Result<Self> {
        let doing = || format!("cannot use the metrics file {}", path.display());
        Locked::open(path).and_then(|mut file| file.read()).doing(doing)?;
        let registry = Arc::new(Registry::new());
        registry.record(&catalog::BUILD, &[env!("CARGO_PKG_VERSION")], 1.0);
        Ok(MetricsFile { path: path.to_path_buf(), registry })
    }

    /// For the engine.
    pub fn metrics(&self) -> Metrics {
        Metrics::to(self.registry.clone())
    }

    /// Adds what was counted to the file.
    pub fn save(&self) -> Result<()> {
        let save = || {
            let mut file = Locked::open(&self.path)?;
            let total = file.read()?;
            total.absorb(&self.registry);
            file.replace(&total.render())
        };
        save().doing(|| format!("cannot write the metrics file {}", self.path.display()))
    }
}

/// The file under its name, locked; another process waits, and then finds another file under the name.
struct Locked<'a> {
    path: &'a Path,
    file: File,
}

impl<'a> Locked<'a> {
    fn open(path: &'a Path) -> Result<Self> {
        loop {
            let file = File::options().read(true).write(true).create(true).truncate(false).open(path)?;
            let found = file.metadata()?;
            if !found.is_file() {
                return Err(Error::new(ErrorKind::InvalidArgument, "it is not a file"));
            }
            file.lock()?;
            let still = |now: &fs::Metadata| (now.dev(), now.ino()) == (found.dev(), found.ino());
            match fs::metadata(path) {
                Ok(now) if still(&now) => return Ok(Locked { path, file }),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn read(&mut self) -> Result<Registry> {
        let mut text = String::new();
        let read = self.file.read_to_string(&mut text).map_err(Error::from);
        let foreign = |error: Error| {
            Error::new(ErrorKind::InvalidArgument, error.to_string())
                .with_hint("name a file of its own: what is there is never overwritten")
        };
        read.and_then(|_| Registry::parse(&text)).map_err(foreign)
    }

    /// A collector reads names that end in `.prom`; the part file does not.
    fn replace(self, text: &str) -> Result<()> {
        let mut name = self.path.file_name().unwrap_or_default().to_os_string();
        name.push(format!(".{}.part", std::process::id()));
        let part = self.path.with_file_name(name);
        let write = || {
            let mut file = File::create(&part)?;
            file.write_all(text.as_bytes())?;
            file.set_permissions(self.file.metadata()?.permissions())?;
            fs::rename(&part, self.path)
        };
        write().map_err(|error| {
            // It may never have been made.
            let _ = fs::remove_file(&part);
            error.into()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_go_on_from_run_to_run_and_among_processes() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("transload.prom");
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    let file = MetricsFile::open(&path).expect("opens");
                    file.metrics().count(&catalog::BLOBS, &["new"], 2);
                    file.save().expect("writes");
                });
            }
        });
        let text = fs::read_to_string(&path).expect("a file");
        assert!(text.contains("transload_blobs_total{outcome=\"new\"} 16\n"), "{text}");
        assert_eq!(fs::read_dir(dir.path()).expect("lists").count(), 1, "no part is left");
    }

    #[test]
    fn what_others_wrote_is_left_alone() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("notes.txt");
        fs::write(&path, "buy milk\n").expect("writes");
        let refused = MetricsFile::open(&path).map(drop).expect_err("refused");
        assert_eq!(refused.kind(), ErrorKind::InvalidArgument);
        assert_eq!(fs::read_to_string(&path).expect("reads"), "buy milk\n");
        assert!(MetricsFile::open(dir.path()).is_err());
    }
}

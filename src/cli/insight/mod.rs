//! What an import tells about itself beside its result: `--trace`, `--timeline` and, with the feature of that name,
//! `--otlp`. A run that asks for none of them records nothing; one that fails is told about as well.

mod analysis;
mod blobs;
mod chrome;
mod lanes;
#[cfg(feature = "otlp")]
mod otlp;
mod page;
mod recorder;
mod sampler;

#[cfg(feature = "otlp")]
pub use otlp::Endpoint;

use super::args::InsightArgs;
use super::commands::export_to_file;
use recorder::{Recorder, Recording};
use sampler::{Sample, Sampler};
use std::collections::HashMap;
use std::path::Path;
use tracing_subscriber::layer::SubscriberExt;
use transload::{Digest, Engine, Error, ImportReport, Result, ResultExt, TraceId};

/// What is being recorded, and for whom.
pub struct Insight {
    args: InsightArgs,
    /// What joins everything that this run tells.
    trace_id: TraceId,
    recording: Option<(Recorder, Option<Sampler>)>,
    reports: Vec<ImportReport>,
    sizes: HashMap<String, u64>,
}

impl Insight {
    /// Begins to record, if anything asks for it. Call it when signals are blocked: it starts a thread.
    pub fn start(args: InsightArgs, trace_id: TraceId) -> Self {
        let recording = args.any().then(|| {
            let recorder = Recorder::new();
            // Refused only where somebody listens already, and this is the one place that does.
            let _ = tracing::subscriber::set_global_default(
                tracing_subscriber::registry().with(recorder.clone()),
            );
            let sampler = Sampler::start(recorder.clone());
            (recorder, sampler)
        });
        Insight { args, trace_id, recording, reports: Vec::new(), sizes: HashMap::new() }
    }

    /// Takes the report of an import that succeeded.
    pub fn add(&mut self, engine: &Engine, report: &ImportReport) {
        if self.args.timeline.is_none() {
            return;
        }
        let size = |digest: &Digest| engine.store().content().stat(digest).ok().flatten();
        for image in &report.images {
            for digest in [&image.target, &image.manifest, &image.config] {
                self.sizes.extend(size(digest).map(|size| (digest.to_string(), size)));
            }
        }
        self.reports.push(report.clone());
    }

    /// Writes and sends what was asked for; `error` is what the import failed for. The sentences are for people: what could not be, each by itself, which is no
    /// failure of the import.
    pub fn finish(mut self, error: Option<&Error>) -> Vec<String> {
        let Some((recorder, sampler)) = self.recording.take() else { return Vec::new() };
        let samples = sampler.map(Sampler::stop).unwrap_or_default();
        let recording = recorder.take();
        let trace = self.args.trace.as_deref().map(|file| write_trace(file, &recording, &samples));
        let page = self.args.timeline.as_deref();
        let page = page.map(|file| self.write_page(file, &recording, &samples, error));
        let sent = self.args.send(&recording, self.trace_id);
        let done = [trace, page, sent].into_iter().flatten();
        done.filter_map(|done| done.err().map(|error| error.to_string())).collect()
    }

    fn write_page(
        &self,
        file: &Path,
        recording: &Recording,
        samples: &[Sample],
        error: Option<&Error>,
    ) -> Result<()> {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        let timeline = analysis::analyse(recording, samples, processors);
        let blobs = blobs::list(recording, &self.reports, &|digest| self.sizes.get(digest).copied());
        let dropped = recording.dropped;
        let html = page::render(&page::Page {
            timeline: &timeline,
            samples,
            blobs: &blobs,
            error,
            processors,
            dropped,
        });
        export_to_file(file, |out| out.write_all(html.as_bytes()).doing(|| cannot_write(file)))
    }
}

fn write_trace(file: &Path, recording: &Recording, samples: &[Sample]) -> Result<()> {
    export_to_file(file, |out| chrome::write(out, recording, samples).doing(|| cannot_write(file)))
}

fn cannot_write(file: &Path) -> String {
    format!("cannot write {}", file.display())
}

impl InsightArgs {
    fn any(&self) -> bool {
        #[cfg(feature = "otlp")]
        let sent = self.otlp.is_some();
        #[cfg(not(feature = "otlp"))]
        let sent = false;
        self.trace.is_some() || self.timeline.is_some() || sent
    }

    /// None where nobody asked.
    #[cfg(feature = "otlp")]
    fn send(&self, recording: &Recording, trace_id: TraceId) -> Option<Result<()>> {
        self.otlp.as_ref().map(|endpoint| otlp::send(endpoint, recording, trace_id))
    }

    #[cfg(not(feature = "otlp"))]
    fn send(&self, _: &Recording, _: TraceId) -> Option<Result<()>> {
        None
    }
}

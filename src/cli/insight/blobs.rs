//! The blobs of a run as the page lists them: from the reports where there are any, from the spans where it failed.

use super::recorder::{Recording, Span};
use std::collections::{HashMap, HashSet};
use transload::ImportReport;
use transload::progress::Outcome;

/// One blob.
#[derive(Clone, Debug)]
pub struct Blob {
    pub digest: String,
    pub what: &'static str,
    pub size_bytes: u64,
    pub outcome: &'static str,
    /// What did not have to be written: the blob, the files in it.
    pub saved_bytes: u64,
    /// How long it was worked on, if at all.
    pub duration_us: Option<u64>,
}

/// Every blob once: layers in the order of their images, then documents. `size_of` tells what the store knows of those
/// that were there before.
pub fn list(
    recording: &Recording,
    reports: &[ImportReport],
    size_of: &dyn Fn(&str) -> Option<u64>,
) -> Vec<Blob> {
    let ingests = ingests(recording);
    let time = |digest: &str| ingests.get(digest).map(|span| span.duration_us());
    let mut seen = HashSet::new();
    let mut blobs = Vec::new();
    for image in reports.iter().flat_map(|report| &report.images) {
        for layer in &image.layers {
            let there = |outcome: Outcome| matches!(outcome, Outcome::Existing | Outcome::Shared);
            let saved = |outcome, bytes| if there(outcome) { bytes } else { 0 };
            let digest = layer.digest.to_string();
            if seen.insert(digest.clone()) {
                blobs.push(Blob {
                    what: "layer",
                    size_bytes: layer.size_bytes,
                    outcome: words(layer.blob),
                    saved_bytes: saved(layer.blob, layer.size_bytes)
                        + saved(layer.tree, layer.unpacked_bytes),
                    duration_us: time(&digest),
                    digest,
                });
            }
        }
    }
    for (what, digest) in reports.iter().flat_map(|report| &report.images).flat_map(documents) {
        // One that was written now has a span, which says more.
        if !ingests.contains_key(digest.as_str()) && seen.insert(digest.clone()) {
            let size_bytes = size_of(&digest).unwrap_or(0);
            let (outcome, saved_bytes, duration_us) = ("existing", size_bytes, None);
            blobs.push(Blob { digest, what, size_bytes, outcome, saved_bytes, duration_us });
        }
    }
    let mut rest: Vec<_> = ingests.into_iter().filter(|(digest, _)| !seen.contains(*digest)).collect();
    rest.sort_by_key(|(_, span)| span.begin_us);
    blobs.extend(rest.into_iter().map(|(digest, span)| of_span(digest, span)));
    blobs
}

fn documents(image: &transload::transfer::report::ImageReport) -> [(&'static str, String); 3] {
    let text = |digest: &transload::Digest| digest.to_string();
    [
        ("configuration", text(&image.config)),
        ("manifest", text(&image.manifest)),
        ("index or manifest", text(&image.target)),
    ]
}

fn words(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::New => "new",
        Outcome::Existing => "existing",
        Outcome::Shared => "shared",
        Outcome::None => "not kept",
    }
}

fn of_span(digest: &str, span: &Span) -> Blob {
    let existing = span.is("existing");
    let size_bytes = span.number("bytes");
    let failed = span.field("error").is_some();
    Blob {
        digest: digest.to_string(),
        what: if span.text("kind") == "layer" { "layer" } else { "document" },
        size_bytes,
        outcome: if failed {
            "failed"
        } else if existing {
            "existing"
        } else {
            "new"
        },
        saved_bytes: if existing { size_bytes } else { 0 },
        duration_us: Some(span.duration_us()),
    }
}

/// The longest work on each blob.
fn ingests(recording: &Recording) -> HashMap<&str, &Span> {
    let mut longest: HashMap<&str, &Span> = HashMap::new();
    for span in recording.spans.iter().filter(|span| span.name == "ingest" && !span.text("digest").is_empty())
    {
        let known = longest.entry(span.text("digest")).or_insert(span);
        if span.duration_us() > known.duration_us() {
            *known = span;
        }
    }
    longest
}

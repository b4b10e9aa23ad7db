//! The labels that decide what is needed, with the meaning that they have in containerd (its `docs/garbage-collection.md`).
//!
//! - `containerd.io/gc.root` on a blob or a snapshot: it is needed by itself.
//! - `containerd.io/gc.ref.content…` on an image, a blob, a snapshot or a lease: the blob whose digest is the value is
//!   needed with it. `containerd.io/gc.ref.snapshot.<name>`: the snapshot of that key; a store has one snapshotter, so
//!   any name is it. `containerd.io/gc.ref.image…`: the image of that name, or the unnamed one of that target, is not
//!   removed because it has expired, nor by a policy.
//! - `containerd.io/gc.expire` on an image or a lease, an RFC 3339 time: from then on it does not count.
//! - `containerd.io/gc.flat` on a lease: it holds what is on it and nothing that this refers to.
//! - `io.cri-containerd.pinned=pinned` on an image: neither a policy nor `rm` nor its expiry removes it.
//!
//! A value that does not parse is passed over, as containerd does, except for `gc.expire`: what cannot be read never ends.

use crate::metadata::{Labels, PINNED, PINNED_LABEL};
use crate::oci::{Digest, Reference};

/// Needed by itself.
pub(super) const ROOT: &str = "containerd.io/gc.root";
/// Holds nothing beyond itself.
pub(super) const FLAT: &str = "containerd.io/gc.flat";
const CONTENT: &str = "containerd.io/gc.ref.content";
const SNAPSHOT: &str = "containerd.io/gc.ref.snapshot.";
const IMAGE: &str = "containerd.io/gc.ref.image";

/// What a label refers to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Label {
    Content(Digest),
    Snapshot(String),
    /// A full name, or a target.
    Image(String),
}

/// Everything that labels refer to.
pub(super) fn references(labels: &Labels) -> impl Iterator<Item = Label> + '_ {
    labels.iter().filter_map(|(name, value)| {
        if is_numbered(name, CONTENT) {
            return value.parse().ok().map(Label::Content);
        }
        if is_numbered(name, IMAGE) {
            return Some(Label::Image(full_name(value)));
        }
        name.strip_prefix(SNAPSHOT).map(|_| Label::Snapshot(value.clone()))
    })
}

/// Whether any of these labels refers to an image.
pub(super) fn refer_to_images(labels: &Labels) -> bool {
    labels.keys().any(|name| is_numbered(name, IMAGE))
}

/// Whether a label is called so, or so and then whatever after a dot or a slash.
fn is_numbered(name: &str, label: &str) -> bool {
    name.strip_prefix(label).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '/']))
}

/// Unnamed images are called by the digest of their target.
fn full_name(value: &str) -> String {
    match (value.parse::<Digest>(), value.parse::<Reference>()) {
        (Err(_), Ok(reference)) => reference.to_string(),
        _ => value.to_string(),
    }
}

/// Whether an image is pinned.
pub fn is_pinned(labels: &Labels) -> bool {
    labels.get(PINNED_LABEL).is_some_and(|value| value == PINNED)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_refer_as_they_do_in_containerd() {
        let digest = Digest::of(b"x");
        let labels = Labels::from_iter(
            [
                ("containerd.io/gc.ref.content", digest.to_string()),
                ("containerd.io/gc.ref.content.l.0", digest.to_string()),
                ("containerd.io/gc.ref.content/any", digest.to_string()),
                ("containerd.io/gc.ref.contents", digest.to_string()),
                ("containerd.io/gc.ref.content.bad", "no digest".to_string()),
                ("containerd.io/gc.ref.image.base", "alpine".to_string()),
                ("containerd.io/gc.ref.images", "alpine".to_string()),
                ("containerd.io/gc.ref.snapshot.overlayfs", "key".to_string()),
                ("other", digest.to_string()),
            ]
            .map(|(name, value)| (name.to_string(), value)),
        );
        let found: Vec<Label> = references(&labels).collect();
        let content = Label::Content(digest);
        let image = Label::Image("docker.io/library/alpine:latest".into());
        let snapshot = Label::Snapshot("key".into());
        assert_eq!(found, [content.clone(), content.clone(), content, image, snapshot]);
    }
}

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
/// When it ends.
pub const EXPIRE: &str = "containerd.io/gc.expire";
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

/// When what carries these labels ends, in milliseconds since 1970.
pub(super) fn expires_ms(labels: &Labels) -> Option<u64> {
    labels.get(EXPIRE).and_then(|text| parse_rfc3339(text))
}

/// Whether an image is pinned.
pub fn is_pinned(labels: &Labels) -> bool {
    labels.get(PINNED_LABEL).is_some_and(|value| value == PINNED)
}

/// `2026-05-01T12:30:00Z`, with or without a fraction, with `Z` or an offset; in milliseconds since 1970.
fn parse_rfc3339(text: &str) -> Option<u64> {
    let number = |from: usize, to: usize| {
        let digits = text.get(from..to)?;
        digits.bytes().all(|byte| byte.is_ascii_digit()).then(|| digits.parse::<i64>().ok())?
    };
    let separators = [(4, b'-'), (7, b'-'), (10, b'T'), (13, b':'), (16, b':')];
    let bytes = text.as_bytes();
    let sound = separators.iter().all(|(at, byte)| {
        bytes.get(*at).is_some_and(|found| found.eq_ignore_ascii_case(byte) || (*at == 10 && *found == b' '))
    });
    if !sound {
        return None;
    }
    let (year, month, day) = (number(0, 4)?, number(5, 7)?, number(8, 10)?);
    let (hour, minute, second) = (number(11, 13)?, number(14, 16)?, number(17, 19)?);
    if !(1..=12).contains(&month) || !(1..=31).contains(&day) || hour > 23 || minute > 59 || second > 60 {
        return None;
    }
    let rest = text.get(19..)?;
    let zone = match rest.strip_prefix('.') {
        Some(fraction) => fraction.trim_start_matches(|c: char| c.is_ascii_digit()),
        None => rest,
    };
    let seconds = days_since_1970(year, month, day) * 86_400 + hour * 3600 + minute * 60 + second
        - offset_seconds(zone)?;
    u64::try_from(seconds).ok().map(|seconds| seconds * 1000)
}

fn offset_seconds(zone: &str) -> Option<i64> {
    if zone.eq_ignore_ascii_case("z") {
        return Some(0);
    }
    let sign = match zone.as_bytes().first()? {
        b'+' => 1,
        b'-' => -1,
        _ => return None,
    };
    let (hours, minutes) = zone[1..].split_once(':')?;
    let number = |text: &str| text.parse::<u8>().ok().filter(|_| text.len() == 2).map(i64::from);
    Some(sign * (number(hours)? * 3600 + number(minutes)? * 60))
}

/// Years begin in March here, so that the leap day is the last one.
fn days_since_1970(year: i64, month: i64, day: i64) -> i64 {
    let year = year - i64::from(month <= 2);
    let era = year.div_euclid(400);
    let of_era = year.rem_euclid(400);
    let of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_as_containerd_writes_them() {
        let table = [
            ("1970-01-01T00:00:00Z", Some(0)),
            ("2000-02-29T12:00:01Z", Some(951_825_601_000)),
            ("2026-11-21T14:00:00.123456789Z", Some(1_795_269_600_000)),
            ("2026-11-21T15:00:00+01:00", Some(1_795_269_600_000)),
            ("2026-11-21T13:30:00-00:30", Some(1_795_269_600_000)),
            ("tomorrow", None),
            ("2026-13-01T00:00:00Z", None),
            ("2026-11-21T14:00:00", None),
            ("2026-11-21T14:00:00+1", None),
        ];
        for (text, expected) in table {
            assert_eq!(parse_rfc3339(text), expected, "{text}");
        }
    }

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

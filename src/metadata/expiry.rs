//! When images and leases end by a label, as in containerd.

use super::{Labels, LeaseRow};

/// The label that says when an image or a lease ends, as a time of RFC 3339. One that cannot be read never ends.
pub const EXPIRE_LABEL: &str = "containerd.io/gc.expire";

/// When what carries these labels ends, in milliseconds since 1970.
pub fn expires_ms(labels: &Labels) -> Option<u64> {
    labels.get(EXPIRE_LABEL).and_then(|text| parse_rfc3339(text))
}

impl LeaseRow {
    /// When it ends by itself: at its own time or at the one of its label, whichever is first.
    pub fn ends_ms(&self) -> Option<u64> {
        self.expires_ms.into_iter().chain(expires_ms(&self.labels)).min()
    }

    /// Whether it has ended by itself.
    pub fn is_over(&self, now_ms: u64) -> bool {
        self.ends_ms().is_some_and(|at| at <= now_ms)
    }
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
}

//! Sizes and times, as people write and read them.

use std::time::Duration;
use transload::{Error, ErrorKind};

/// Reads `64MiB`, `64M`, `64MB`, `1.5G` or plain bytes. `M` and `MiB` are 2²⁰ as for most tools that take sizes, `MB` is 10⁶.
pub fn parse_size(text: &str) -> Result<u64, Error> {
    let invalid = || {
        Error::new(ErrorKind::InvalidArgument, format!("{text:?} is not a size"))
            .with_hint("write a number with a unit, such as 64MiB or 2G")
    };
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = (&text[..digits], text[digits..].trim());
    let factor = unit_factor(unit).ok_or_else(invalid)?;
    if let Ok(whole) = number.parse::<u64>() {
        return whole.checked_mul(factor).ok_or_else(invalid);
    }
    let number: f64 = number.parse().map_err(|_| invalid())?;
    let bytes = number * factor as f64;
    if bytes.is_finite() && bytes < u64::MAX as f64 { Ok(bytes as u64) } else { Err(invalid()) }
}

fn unit_factor(unit: &str) -> Option<u64> {
    let lower = unit.to_ascii_lowercase();
    let power = |prefix: &str| "kmgt".find(prefix.chars().next()?).map(|at| at as u32 + 1);
    match lower.as_str() {
        "" | "b" => Some(1),
        "k" | "m" | "g" | "t" | "kib" | "mib" | "gib" | "tib" => Some(1024_u64.pow(power(&lower)?)),
        "kb" | "mb" | "gb" | "tb" => Some(1000_u64.pow(power(&lower)?)),
        _ => None,
    }
}

/// `12.3 MB`: three digits or so, decimal units.
pub fn format_size(bytes: u64) -> String {
    if bytes < 1000 {
        return format!("{bytes} B");
    }
    // Tenths of a kilobyte, rounded; more than the last unit has four digits and more.
    let mut unit = 1000;
    let tenths = |unit: u64| (u128::from(bytes) * 10 + u128::from(unit / 2)) / u128::from(unit);
    let mut names = ["kB", "MB", "GB", "TB"].into_iter();
    let mut name = names.next().unwrap_or_default();
    for next in names {
        // 999.95 would be rounded to 1000.0.
        if tenths(unit) < 10_000 {
            break;
        }
        (unit, name) = (unit * 1000, next);
    }
    let tenths = tenths(unit);
    format!("{}.{} {name}", tenths / 10, tenths % 10)
}

/// Reads `30d`, `12h` or `2w`, as [`parse_duration`], and no number without a unit: what goes by age may not mean seconds by
/// mistake.
pub fn parse_age(text: &str) -> Result<Duration, Error> {
    match text.ends_with(|last: char| last.is_ascii_digit()) {
        false => parse_duration(text),
        true => Err(Error::new(ErrorKind::InvalidArgument, format!("{text:?} has no unit"))
            .with_hint("write a number with a unit, such as 30s, 5m, 2h, 7d or 2w")),
    }
}

const A_THOUSAND_YEARS: Duration = Duration::from_secs(1000 * 366 * 86400);

/// Reads `30` (seconds), `500ms`, `30s`, `5m`, `2h`, `7d` or `2w`.
pub fn parse_duration(text: &str) -> Result<Duration, Error> {
    let invalid = || {
        Error::new(ErrorKind::InvalidArgument, format!("{text:?} is not a duration"))
            .with_hint("write a number with a unit, such as 30s, 5m, 2h, 7d or 2w")
    };
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let millis = match &text[digits..] {
        "ms" => 1,
        "" | "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        "w" => 604_800_000,
        _ => return Err(invalid()),
    };
    let number: u64 = text[..digits].parse().map_err(|_| invalid())?;
    // Dates have four digits for the year.
    let length =
        number.checked_mul(millis).map(Duration::from_millis).filter(|length| *length <= A_THOUSAND_YEARS);
    length.ok_or_else(invalid)
}

/// `350 ms`, `4.2 s`, `3 min 20 s`.
pub fn format_millis(millis: u64) -> String {
    match millis {
        0..1_000 => format!("{millis} ms"),
        1_000..60_000 => format!("{:.1} s", millis as f64 / 1000.0),
        _ => format!("{} min {} s", millis / 60_000, millis / 1000 % 60),
    }
}

/// `2024-05-22 18:18` out of an RFC 3339 time; anything else as a dash. The image's own clock is not corrected.
pub fn format_time(rfc3339: Option<&str>) -> String {
    let shape = |text: &&str| {
        let bytes = text.as_bytes();
        let digit = |at: usize| bytes[at].is_ascii_digit();
        bytes.len() >= 16
            && text.is_ascii()
            && (0..4).chain(5..7).chain(8..10).chain(11..13).chain(14..16).all(digit)
            && bytes[4] == b'-'
    };
    match rfc3339.filter(shape) {
        Some(text) => format!("{} {}", &text[..10], &text[11..16]),
        None => "-".to_string(),
    }
}

/// Milliseconds since 1970 as RFC 3339 in UTC.
pub fn rfc3339(millis: u64) -> String {
    let seconds = millis / 1000;
    let (year, month, day) = civil((seconds / 86_400) as i64);
    let of_day = (seconds % 86_400) as i64;
    let (hour, minute, second) = (of_day / 3600, of_day / 60 % 60, of_day % 60);
    // A list has tens of thousands of these, and the formatter takes its time over each number.
    let mut text = String::with_capacity("2024-05-22T18:18:12Z".len());
    match year {
        0..=9999 => text.extend([year / 1000, year / 100 % 10, year / 10 % 10, year % 10].map(digit)),
        _ => text.push_str(&year.to_string()),
    }
    for (mark, number) in [('-', month), ('-', day), ('T', hour), (':', minute), (':', second)] {
        text.push(mark);
        text.extend([number / 10, number % 10].map(digit));
    }
    text.push('Z');
    text
}

fn digit(number: i64) -> char {
    char::from(b'0' + number as u8)
}

/// The date of a day counted from 1970-01-01, in the Gregorian calendar. Years begin in March here, so that the leap
/// day is the last one.
fn civil(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468; // from 0000-03-01
    let era = days.div_euclid(146_097);
    let of_era = days.rem_euclid(146_097);
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    (year + era * 400 + i64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_people_write_them() {
        let table = [
            ("0", 0),
            ("4096", 4096),
            ("64MiB", 64 << 20),
            ("64M", 64 << 20),
            ("64m", 64 << 20),
            ("1 G", 1 << 30),
            ("1.5K", 1536),
            ("2kb", 2000),
            ("1TB", 1_000_000_000_000),
        ];
        for (text, bytes) in table {
            assert_eq!(parse_size(text).expect(text), bytes, "{text}");
        }
        for bad in ["", "M", "-1", "1..2M", "5X", "99999999999G", "1e3", "infG", "64 Mi B"] {
            assert!(parse_size(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn durations_are_read_as_people_write_them() {
        for (text, millis) in [("30", 30_000), ("250ms", 250), ("5m", 300_000), ("2h", 7_200_000), ("0", 0)] {
            assert_eq!(parse_duration(text).expect(text), Duration::from_millis(millis), "{text}");
        }
        for (text, seconds) in [("90s", 90), ("12h", 43_200), ("30d", 2_592_000), ("2w", 1_209_600)] {
            assert_eq!(parse_duration(text).expect(text), Duration::from_secs(seconds), "{text}");
        }
        for bad in ["", "s", "-1s", "1.5s", "5 m", "1y", "99999999999999999999d", "99999999999999999d"] {
            assert!(parse_duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn sizes_and_times_are_short() {
        let sizes = [
            (0, "0 B"),
            (999, "999 B"),
            (1000, "1.0 kB"),
            (12_345_678, "12.3 MB"),
            (999_949_999, "999.9 MB"),
            (999_950_000, "1.0 GB"),
            (u64::MAX, "18446744.1 TB"),
        ];
        for (bytes, text) in sizes {
            assert_eq!(format_size(bytes), text);
        }
        assert_eq!(format_time(Some("2024-05-22T18:18:12.052034407Z")), "2024-05-22 18:18");
        for odd in [None, Some(""), Some("yesterday, at noon"), Some("2024-05-22Tää:18:12")] {
            assert_eq!(format_time(odd), "-");
        }
        assert_eq!(format_millis(200_500), "3 min 20 s");
        assert_eq!(rfc3339(0), "1970-01-01T00:00:00Z");
        assert_eq!(rfc3339(951_782_399_999), "2000-02-28T23:59:59Z");
        assert_eq!(rfc3339(951_782_400_000), "2000-02-29T00:00:00Z");
        assert_eq!(rfc3339(1_732_189_085_000), "2024-11-21T11:38:05Z");
    }
}

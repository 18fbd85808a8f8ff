//! Times and spans as people and JSON read them.

use jiff::{Timestamp, tz::TimeZone};

/// µs since 1970 as RFC 3339 in UTC, for JSON.
#[must_use]
pub fn rfc3339(micros: u64) -> String {
    timestamp(micros).map_or_else(String::new, |t| t.to_string())
}

/// µs since 1970 as `Sun 2026-11-22 01:10:52 UTC`, in the host's time zone, as systemctl prints it.
#[must_use]
pub fn local(micros: u64) -> String {
    timestamp(micros).map_or_else(String::new, |t| {
        t.to_zoned(TimeZone::system())
            .strftime("%a %Y-%m-%d %H:%M:%S %Z")
            .to_string()
    })
}

/// µs since 1970 as `Nov 22 01:10:52`, in the host's time zone, as journalctl prints it.
#[must_use]
pub fn short(micros: u64) -> String {
    timestamp(micros).map_or_else(String::new, |t| {
        t.to_zoned(TimeZone::system()).strftime("%b %d %H:%M:%S").to_string()
    })
}

/// How long ago, in the two largest units: "2h 5min".
#[must_use]
pub fn ago(micros: u64) -> String {
    let seconds = timestamp(micros).map_or(0, |t| Timestamp::now().duration_since(t).as_secs().max(0));
    span(seconds.unsigned_abs())
}

/// A span of seconds in its two largest units, as systemd writes spans.
#[must_use]
pub fn span(seconds: u64) -> String {
    const UNITS: [(&str, u64); 4] = [("d", 86_400), ("h", 3_600), ("min", 60), ("s", 1)];
    let mut rest = seconds;
    let mut parts = Vec::new();
    for (unit, length) in UNITS {
        if rest >= length {
            parts.push(format!("{}{unit}", rest / length));
            rest %= length;
        }
    }
    parts.truncate(2);
    if parts.is_empty() {
        "0s".to_owned()
    } else {
        parts.join(" ")
    }
}

fn timestamp(micros: u64) -> Option<Timestamp> {
    Timestamp::from_microsecond(i64::try_from(micros).ok()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_keep_two_units() {
        assert_eq!(
            [span(0), span(59), span(3_661), span(200_000)],
            ["0s", "59s", "1h 1min", "2d 7h"]
        );
    }

    #[test]
    fn json_times_are_utc() {
        assert_eq!(rfc3339(1_700_000_000_000_000), "2023-11-14T22:13:20Z");
    }
}

//! One limit of one machine, as `limit NAME` shows it; also its JSON schema.

use serde::Serialize;
use serde_json::Value;

use super::cpus_of;
use crate::machine::text::bytes;
use crate::unit::value::span_text;

/// What the numbers of a row count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Unit {
    /// Bytes.
    Bytes,
    /// Bytes a second; what is used is bytes.
    BytesPerSecond,
    /// The limit is µs of CPU time a second, what is used is µs of CPU time.
    Microseconds,
    /// µs.
    TimeSpan,
    /// Just a number.
    Number,
    /// The limit is text.
    Text,
}

/// One limit.
#[derive(Clone, Debug)]
pub struct Row {
    /// The machine, or the slice.
    pub machine: String,
    /// The name that `limit` takes.
    pub key: &'static str,
    /// systemd's name of it.
    pub directive: &'static str,
    /// The device, where it is the limit of one.
    pub device: Option<String>,
    /// The limit: a number in `unit`, or text; `null` if there is none.
    pub limit: Value,
    /// What is used now.
    pub used: Option<u64>,
    /// The most that was used.
    pub peak: Option<u64>,
    /// What is counted.
    pub unit: Unit,
    /// The file that says so; `None` if none does.
    pub origin: Option<String>,
}

impl Row {
    /// The key, with its device.
    #[must_use]
    pub fn name(&self) -> String {
        match &self.device {
            Some(device) => format!("{} {device}", self.key),
            None => self.key.to_owned(),
        }
    }

    /// The limit as people read it; empty if there is none.
    #[must_use]
    pub fn limit_text(&self) -> String {
        match (&self.limit, self.unit) {
            (Value::Number(number), unit) => match (number.as_u64(), unit) {
                (Some(micros), Unit::Microseconds) => cpus_of(micros),
                (Some(number), unit) => amount(number, unit),
                (None, _) => number.to_string(),
            },
            (Value::String(text), _) => text.clone(),
            (Value::Bool(yes), _) => if *yes { "yes" } else { "no" }.to_owned(),
            _ => String::new(),
        }
    }

    /// What is used, likewise.
    #[must_use]
    pub fn used_text(&self) -> String {
        self.used.map_or_else(String::new, |used| self.used_amount(used))
    }

    /// The most that was used, likewise.
    #[must_use]
    pub fn peak_text(&self) -> String {
        self.peak.map_or_else(String::new, |peak| self.used_amount(peak))
    }

    fn used_amount(&self, number: u64) -> String {
        match self.unit {
            Unit::Microseconds => format!("{}.{:03}s", number / 1_000_000, number / 1000 % 1000),
            unit => amount(number, unit),
        }
    }
}

fn amount(number: u64, unit: Unit) -> String {
    match unit {
        Unit::Bytes => bytes(number),
        Unit::BytesPerSecond => decimal(number),
        Unit::TimeSpan => span_text(number),
        _ => number.to_string(),
    }
}

/// To the base of 1000, as systemd counts bytes a second.
fn decimal(number: u64) -> String {
    const UNITS: [(&str, u64); 4] = [
        ("T", 1_000_000_000_000),
        ("G", 1_000_000_000),
        ("M", 1_000_000),
        ("K", 1000),
    ];
    for (name, unit) in UNITS {
        if number >= unit {
            return format!("{}.{}{name}", number / unit, number % unit / (unit / 10));
        }
    }
    format!("{number}B")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn amounts_have_their_units() {
        let mut row = Row {
            machine: "web".into(),
            key: "cpus",
            directive: "CPUQuota",
            device: None,
            limit: json!(1_500_000),
            used: Some(12_345_678),
            peak: None,
            unit: Unit::Microseconds,
            origin: None,
        };
        assert_eq!(
            [row.limit_text(), row.used_text(), row.peak_text()],
            ["1.5", "12.345s", ""]
        );
        (row.unit, row.limit) = (Unit::BytesPerSecond, json!(10_500_000));
        assert_eq!(row.limit_text(), "10.5M");
        (row.unit, row.limit) = (Unit::Bytes, json!(1 << 29));
        assert_eq!(row.limit_text(), "512.0M");
        for (micros, text) in [
            (25_000, "25ms"),
            (1_500, "1500us"),
            (2_000_000, "2s"),
            (90_000_000, "90s"),
            (0, "0"),
        ] {
            (row.unit, row.limit) = (Unit::TimeSpan, json!(micros));
            assert_eq!(row.limit_text(), text);
        }
        row.limit = json!(null);
        assert_eq!(row.limit_text(), "");
    }
}

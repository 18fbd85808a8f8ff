//! The limits of a machine's unit and settings, with what is used of them, for `limit`.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::assigned::{files_of, last_word};
use super::bus::Properties;
use super::bus::systemd1::{Setting, UnitState};
use super::cgroup::Cgroup;
use crate::limit::{KEYS, Key, Kind, Row, Unit};
use crate::nspawn::schema::find;
use crate::nspawn::settings::Settings;

/// Limits that are shown even where there are none: what one looks for first.
const ALWAYS: [&str; 8] = [
    "memory",
    "memory-high",
    "swap",
    "cpus",
    "cpu-weight",
    "cpuset",
    "tasks",
    "io-weight",
];

/// All limits of a unit.
#[must_use]
pub fn of_unit(machine: &str, unit: &UnitState) -> Vec<Row> {
    let files = files_of(unit);
    let group = Cgroup::of(&unit.detail.string("ControlGroup"));
    KEYS.iter()
        .filter(|key| key.kind != Kind::Exec)
        .flat_map(|key| rows(machine, key, &unit.detail, group.as_ref(), &files))
        .collect()
}

/// The limits in a machine's settings, which lie in this file.
#[must_use]
pub fn of_settings(machine: &str, settings: &Settings, file: &Path) -> Vec<Row> {
    KEYS.iter()
        .filter_map(|key| {
            let value = find("Exec", key.directive).and_then(|_| settings.value("Exec", key.directive))?;
            let limit = match value.parse::<i64>() {
                Ok(number) => json!(number),
                Err(_) if value == "infinity" => Value::Null,
                Err(_) => json!(value),
            };
            Some(Row {
                limit,
                origin: Some(file.display().to_string()),
                ..row(machine, key)
            })
        })
        .collect()
}

fn row(machine: &str, key: &'static Key) -> Row {
    Row {
        machine: machine.to_owned(),
        key: key.shown(),
        directive: key.directive,
        device: None,
        limit: Value::Null,
        used: None,
        peak: None,
        unit: match key.kind {
            Kind::Bytes(_) | Kind::Protected | Kind::PlainBytes => Unit::Bytes,
            Kind::Bandwidth => Unit::BytesPerSecond,
            Kind::Cpus => Unit::Microseconds,
            Kind::Span | Kind::Latency => Unit::TimeSpan,
            Kind::Cpuset | Kind::Nodes | Kind::Boolean | Kind::Word(_) | Kind::Percentage => Unit::Text,
            _ => Unit::Number,
        },
        origin: None,
    }
}

fn rows(machine: &str, key: &'static Key, unit: &Properties, group: Option<&Cgroup>, files: &[PathBuf]) -> Vec<Row> {
    let origin = || last_word(files, key.directive).map(|file| file.display().to_string());
    if let Some(Setting::Pairs(devices)) = unit.setting(key.property()) {
        let one = |(device, number): (String, u64)| Row {
            limit: json!(number),
            used: group.and_then(|group| group.device(Path::new(&device), counted(key)?)),
            origin: origin(),
            device: Some(device),
            ..row(machine, key)
        };
        return devices.into_iter().map(one).collect();
    }
    let limit = limit(key, unit);
    let said = origin();
    // To protect nothing is no limit; to have nothing is one.
    let is_none = limit.is_null() || (key.kind == Kind::Protected && limit == json!(0));
    let is_set = !is_none && said.is_some();
    if !is_set && !ALWAYS.contains(&key.name) {
        return Vec::new();
    }
    let (used, peak) = group.map_or((None, None), |group| usage(key, group));
    vec![Row {
        limit,
        used,
        peak,
        origin: said,
        ..row(machine, key)
    }]
}

/// A limit as JSON has it: `null` is none.
fn limit(key: &Key, unit: &Properties) -> Value {
    if let Kind::Process(..) = key.kind {
        return unit.integer(key.property()).map_or(Value::Null, |number| json!(number));
    }
    match unit.setting(key.property()) {
        Some(Setting::Number(0)) if matches!(key.kind, Kind::Weight(true)) => json!("idle"),
        Some(Setting::Number(u64::MAX)) => Value::Null,
        Some(Setting::Number(number)) => json!(number),
        // Of all that a 32 bit number can say, as systemd scales a percentage.
        Some(Setting::Small(part)) => match (u64::from(part) * 10_000 + 0x7fff_ffff) / u64::from(u32::MAX) {
            0 => Value::Null,
            parts => json!(format!("{}%", f64::from(u32::try_from(parts).unwrap_or(0)) / 100.0)),
        },
        Some(Setting::Boolean(yes)) => json!(yes),
        Some(Setting::Text(text)) => json!(text),
        Some(Setting::Bytes(mask)) => match indices(&mask).as_str() {
            "" => Value::Null,
            list => json!(list),
        },
        _ => Value::Null,
    }
}

/// The counter of `io.stat` that a key limits.
fn counted(key: &Key) -> Option<&'static str> {
    Some(match key.name {
        "io-read" => "rbytes",
        "io-write" => "wbytes",
        "io-read-iops" => "rios",
        "io-write-iops" => "wios",
        _ => return None,
    })
}

/// What the kernel counts for a key: now, and at most.
fn usage(key: &Key, group: &Cgroup) -> (Option<u64>, Option<u64>) {
    match key.name {
        "memory" | "memory-high" => (group.counter("memory.current"), group.counter("memory.peak")),
        "swap" => (group.counter("memory.swap.current"), group.counter("memory.swap.peak")),
        "zswap" => (group.counter("memory.zswap.current"), None),
        "tasks" => (group.counter("pids.current"), group.counter("pids.peak")),
        "cpus" => (group.value("cpu.stat", "usage_usec"), None),
        _ => (None, None),
    }
}

/// A bit mask, lowest bit first, as `0-3,7`.
fn indices(mask: &[u8]) -> String {
    let is_set = |index: usize| mask.get(index / 8).is_some_and(|byte| byte >> (index % 8) & 1 == 1);
    let mut parts: Vec<String> = Vec::new();
    let mut index = 0;
    while index < mask.len() * 8 {
        if !is_set(index) {
            index += 1;
            continue;
        }
        let first = index;
        while is_set(index + 1) {
            index += 1;
        }
        parts.push(if first == index {
            first.to_string()
        } else {
            format!("{first}-{index}")
        });
        index += 1;
    }
    parts.join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masks_are_ranges() {
        assert_eq!(indices(&[0b1000_1011, 0b1]), "0-1,3,7-8");
        assert_eq!(indices(&[]), "");
        assert_eq!(indices(&[0, 0]), "");
    }
}

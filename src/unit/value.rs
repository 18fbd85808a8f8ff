//! Values of units: as files have them, and as the properties of `org.freedesktop.systemd1` do.

use serde_json::Value;

use super::keys::Kind;
use crate::nspawn::number::{size, time_span};

/// Text keys whose property is the same word.
const WORDS: &[&str] = &[
    "DevicePolicy",
    "ExitType",
    "KillMode",
    "NotifyAccess",
    "OOMPolicy",
    "Restart",
    "Slice",
    "Type",
];

/// Whether a single value in a file is what systemd has; `None` where that cannot be told.
#[must_use]
pub fn agrees(name: &str, kind: Kind, text: &str, property: &Value) -> Option<bool> {
    // A specifier, or a part of what the host has.
    if text.contains('%') && kind != Kind::Quota {
        return None;
    }
    match kind {
        // The two halves of it have names of their own.
        Kind::Seconds if name == "TimeoutSec" => None,
        Kind::Boolean => {
            let wanted = match text.to_ascii_lowercase().as_str() {
                "1" | "yes" | "y" | "true" | "t" | "on" => true,
                "0" | "no" | "n" | "false" | "f" | "off" => false,
                _ => return Some(false),
            };
            property.as_bool().map(|has| has == wanted)
        }
        Kind::Size if text == "infinity" => Some(property.as_u64()? == u64::MAX),
        Kind::Size => Some(property.as_u64()? == size(text)?),
        Kind::Number if text == "infinity" => Some(matches!(property.as_u64()?, u64::MAX | 0xFFFF_FFFF)),
        Kind::Number => Some(number(property)? == text.parse().ok()?),
        // 0 stands for no limit in some of them.
        Kind::Seconds if matches!(text, "0" | "infinity") => {
            Some(matches!(property.as_u64()?, 0 | u64::MAX)).filter(|same| *same)
        }
        Kind::Seconds => Some(property.as_u64()? == time_span(text, 1_000_000)?),
        Kind::Signal => Some(property.as_u64()? == signal_number(text)?),
        Kind::Quota => {
            let percent: f64 = text.strip_suffix('%')?.trim().parse().ok()?;
            let has = property.as_u64().filter(|has| *has != u64::MAX)?;
            // 1 % of a second is 10,000 µs.
            #[expect(clippy::cast_precision_loss, reason = "a second has few microseconds")]
            let difference = has as f64 - percent * 10_000.0;
            Some(difference.abs() < 1000.0)
        }
        Kind::Text => {
            let has = property.as_str()?;
            (has == text || WORDS.contains(&name)).then_some(has == text)
        }
        Kind::List | Kind::Dependencies => None,
    }
}

/// Whether a word of a list is among what systemd has; `None` where the property is no list of texts or pairs of them.
#[must_use]
pub fn contains(text: &str, property: &Value) -> Option<bool> {
    if text.contains('%') {
        return None;
    }
    let all = property.as_array()?;
    let wanted = text.split_whitespace().collect::<Vec<_>>().join(" ");
    let mut found = false;
    for one in all {
        let has = match one {
            Value::String(has) => has.clone(),
            Value::Array(fields) => {
                let words: Option<Vec<&str>> = fields.iter().map(Value::as_str).collect();
                words?.join(" ")
            }
            _ => return None,
        };
        found |= has == wanted || has.strip_suffix(" rwm") == Some(&wanted);
    }
    Some(found)
}

/// What systemd has, as a file would say it.
#[must_use]
pub fn shown(kind: Kind, property: &Value) -> String {
    match (kind, property) {
        (_, Value::Bool(flag)) => if *flag { "yes" } else { "no" }.to_owned(),
        (Kind::Quota, Value::Number(number)) => match number.as_u64() {
            Some(micros) if micros != u64::MAX => format!("{}%", micros / 10_000),
            _ => "infinity".to_owned(),
        },
        (_, Value::Number(number)) if matches!(number.as_u64(), Some(u64::MAX)) => "infinity".to_owned(),
        (Kind::Seconds, Value::Number(number)) => span_text(number.as_u64().unwrap_or_default()),
        (Kind::Size, Value::Number(number)) => in_largest(
            number.as_u64().unwrap_or_default(),
            &[("G", 1 << 30), ("M", 1 << 20), ("K", 1 << 10)],
            "",
        ),
        (Kind::Signal, Value::Number(number)) => {
            let signal = number.as_i64().and_then(|number| i32::try_from(number).ok());
            let signal = signal.and_then(|number| nix::sys::signal::Signal::try_from(number).ok());
            signal.map_or_else(|| number.to_string(), |signal| signal.as_str().to_owned())
        }
        (_, Value::String(text)) => text.clone(),
        (_, Value::Array(items)) => items.iter().map(|item| shown(kind, item)).collect::<Vec<_>>().join(" "),
        (_, other) => other.to_string(),
    }
}

/// A time span of so many µs, as systemd takes it: `25ms`.
#[must_use]
pub fn span_text(micros: u64) -> String {
    in_largest(micros, &[("min", 60_000_000), ("s", 1_000_000), ("ms", 1000)], "us")
}

/// In the largest unit that needs no fraction.
fn in_largest(number: u64, units: &[(&str, u64)], smallest: &str) -> String {
    let fits = |(_, factor): &&(&str, u64)| number > 0 && number.is_multiple_of(*factor);
    match units.iter().find(fits) {
        Some((unit, factor)) => format!("{}{unit}", number / factor),
        None if number == 0 => "0".to_owned(),
        None => format!("{number}{smallest}"),
    }
}

/// A command as it is typed: words are quoted only where they must be.
#[must_use]
pub fn command_text(words: &[String]) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_=+:,./@%~".contains(c);
    let quoted = |word: &String| {
        if word.is_empty() || !word.chars().all(plain) {
            shell_words::quote(word).into_owned()
        } else {
            word.clone()
        }
    };
    words.iter().map(quoted).collect::<Vec<_>>().join(" ")
}

/// The commands of an `ExecStart=` and its like, each as its words; empty if it is none.
#[must_use]
pub fn commands(property: &Value) -> Vec<Vec<String>> {
    let words = |command: &Value| -> Option<Vec<String>> {
        let words = command.as_array()?.get(1)?.as_array()?;
        Some(
            words
                .iter()
                .filter_map(|word| word.as_str().map(str::to_owned))
                .collect(),
        )
    };
    let all = property.as_array().map_or(&[][..], Vec::as_slice);
    all.iter().filter_map(words).collect()
}

/// A command that systemd has loaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Command {
    /// `argv`.
    pub words: Vec<String>,
    /// As a file would say it, with its special characters.
    pub text: String,
}

/// The flags of systemd's commands, and the special characters that they are.
const PREFIXES: [(&str, &str); 6] = [
    ("ignore-failure", "-"),
    ("no-env-expand", ":"),
    ("privileged", "+"),
    ("no-setuid", "!"),
    ("ambient", "!!"),
    ("via-shell", "|"),
];

/// The commands of a key, with their special characters: see "Special executable prefixes" in systemd.service(5).
/// `extended` is the property that knows all of these, such as `ExecStartPreEx`.
#[must_use]
pub fn loaded_commands(property: Option<&Value>, extended: Option<&Value>) -> Vec<Command> {
    let all = extended.or(property).and_then(Value::as_array);
    let command = |fields: &Value| -> Option<Command> {
        let path = fields.get(0)?.as_str()?;
        let words = fields.get(1)?.as_array()?.iter().filter_map(Value::as_str);
        let words: Vec<String> = words.map(str::to_owned).collect();
        let flags = match fields.get(2) {
            Some(Value::Bool(true)) => vec!["ignore-failure"],
            Some(Value::Array(flags)) => flags.iter().filter_map(Value::as_str).collect(),
            _ => Vec::new(),
        };
        let known = PREFIXES.iter().filter(|(flag, _)| flags.contains(flag));
        let mut prefixes: String = known.map(|(_, prefix)| *prefix).collect();
        let mut typed = words.clone();
        if words.first().is_none_or(|name| name != path) {
            prefixes.insert(0, '@');
            typed.insert(0, path.to_owned());
        }
        let text = format!("{prefixes}{}", command_text(&typed));
        Some(Command { words, text })
    };
    all.into_iter().flatten().filter_map(command).collect()
}

fn number(property: &Value) -> Option<i128> {
    let signed = property.as_i64().map(i128::from);
    signed.or_else(|| property.as_u64().map(i128::from))
}

/// A signal by its name, with or without `SIG`, or by its number.
fn signal_number(text: &str) -> Option<u64> {
    if let Ok(number) = text.parse() {
        return Some(number);
    }
    let name = text.strip_prefix("SIG").unwrap_or(text);
    // Those of real time are counted as glibc has them, see signal(7).
    if let Some(offset) = name.strip_prefix("RTMIN") {
        return Some(34 + offset.trim_start_matches('+').parse::<u64>().unwrap_or(0));
    }
    if let Some(offset) = name.strip_prefix("RTMAX") {
        return 64_u64.checked_sub(offset.trim_start_matches('-').parse().unwrap_or(0));
    }
    let signal: nix::sys::signal::Signal = format!("SIG{name}").parse().ok()?;
    u64::try_from(signal as i32).ok()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn values_are_compared_as_systemd_reads_them() {
        for (name, kind, text, property, same) in [
            ("MemoryMax", Kind::Size, "100M", json!(104_857_600), Some(true)),
            ("MemoryMax", Kind::Size, "100000K", json!(104_857_600), Some(false)),
            ("MemoryMax", Kind::Size, "infinity", json!(u64::MAX), Some(true)),
            ("MemoryMax", Kind::Size, "50%", json!(1), None),
            ("TasksMax", Kind::Number, "16384", json!(16384), Some(true)),
            ("WatchdogSec", Kind::Seconds, "3min", json!(180_000_000), Some(true)),
            (
                "TimeoutStopSec",
                Kind::Seconds,
                "2min 30s",
                json!(150_000_000),
                Some(true),
            ),
            ("TimeoutStopSec", Kind::Seconds, "5", json!(6_000_000), Some(false)),
            ("TimeoutStopSec", Kind::Seconds, "infinity", json!(u64::MAX), Some(true)),
            ("CPUQuota", Kind::Quota, "50%", json!(500_000), Some(true)),
            ("CPUQuota", Kind::Quota, "20%", json!(500_000), Some(false)),
            ("KillSignal", Kind::Signal, "SIGTERM", json!(15), Some(true)),
            ("KillMode", Kind::Text, "mixed", json!("process"), Some(false)),
            ("Description", Kind::Text, "a", json!("b"), None),
            ("Delegate", Kind::Boolean, "on", json!(true), Some(true)),
        ] {
            assert_eq!(agrees(name, kind, text, &property), same, "{name}={text}");
        }
        let devices = json!([["/dev/fuse", "rwm"], ["char-pts", "rw"]]);
        assert_eq!(contains("/dev/fuse", &devices), Some(true));
        assert_eq!(contains("char-pts  rw", &devices), Some(true));
        assert_eq!(contains("/dev/kvm rw", &devices), Some(false));
        assert_eq!(shown(Kind::Size, &json!(u64::MAX)), "infinity");
        assert_eq!(shown(Kind::Seconds, &json!(90_000_000)), "90s");
        assert_eq!(shown(Kind::Seconds, &json!(100_000)), "100ms");
        assert_eq!(shown(Kind::Size, &json!(200 << 20)), "200M");
        assert_eq!(shown(Kind::Signal, &json!(15)), "SIGTERM");
        assert_eq!(command_text(&["a=b".to_owned(), "c d".to_owned()]), "a=b 'c d'");
        let starts = json!([["/a", ["a", "b c"], false]]);
        assert_eq!(commands(&starts), [["a", "b c"]]);
    }
}

//! Every key of [Unit] and [Service], out of `keys.txt`.

use std::collections::HashMap;
use std::sync::LazyLock;

/// The keys of [Service] that shape a machine, and are worth seeing where nobody has set them.
pub const DEFAULTS: &[&str] = &[
    "Type",
    "Restart",
    "RestartSec",
    "TimeoutStartSec",
    "TimeoutStopSec",
    "RuntimeMaxSec",
    "WatchdogSec",
    "KillMode",
    "KillSignal",
    "FinalKillSignal",
    "SendSIGKILL",
    "OOMPolicy",
    "Slice",
    "Delegate",
    "DelegateSubgroup",
    "DevicePolicy",
    "CPUWeight",
    "CPUQuota",
    "MemoryMin",
    "MemoryLow",
    "MemoryHigh",
    "MemoryMax",
    "MemorySwapMax",
    "TasksMax",
    "IOWeight",
    "LimitNOFILE",
    "OOMScoreAdjust",
];

/// What a value is, and what several assignments mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Text, or something that is compared as such.
    Text,
    /// Yes or no.
    Boolean,
    /// A time span; a bare number is seconds.
    Seconds,
    /// Bytes.
    Size,
    /// A number.
    Number,
    /// A signal.
    Signal,
    /// Processor time: a percentage of one processor.
    Quota,
    /// Assignments add up; an empty one takes all before it back.
    List,
    /// Names of units that add up; nothing takes them back.
    Dependencies,
}

/// A key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnitKey {
    /// The first systemd seen to read it, of 252, 257 and 262.
    pub since: u32,
    /// The last one; `u32::MAX` if the newest reads it.
    pub until: u32,
    /// What its value is.
    pub kind: Kind,
}

/// How well a systemd knows a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Knowledge {
    /// It reads it.
    Known(Kind),
    /// A later one, this one at the latest, does.
    TooNew(u32),
    /// It does not any more.
    Gone,
    /// None of them does.
    Unknown,
}

static KEYS: LazyLock<HashMap<(&'static str, &'static str), UnitKey>> = LazyLock::new(|| {
    let mut section = "";
    let mut keys = HashMap::new();
    for line in include_str!("keys.txt").lines() {
        if let Some(name) = line.strip_prefix('[') {
            section = name.trim_end_matches(']');
        }
        let mut words = line.split(' ');
        let versions = words.next().and_then(|word| word.split_once('-'));
        let (Some((since, until)), Some(kind)) = (versions, words.next().and_then(kind)) else {
            continue;
        };
        let Ok(since) = since.parse() else { continue };
        let until = until.parse().unwrap_or(u32::MAX);
        keys.extend(words.map(|name| ((section, name), UnitKey { since, until, kind })));
    }
    keys
});

fn kind(word: &str) -> Option<Kind> {
    Some(match word {
        "text" => Kind::Text,
        "boolean" => Kind::Boolean,
        "seconds" => Kind::Seconds,
        "size" => Kind::Size,
        "number" => Kind::Number,
        "signal" => Kind::Signal,
        "quota" => Kind::Quota,
        "list" => Kind::List,
        "dependencies" => Kind::Dependencies,
        _ => return None,
    })
}

/// The table has [Scope], whose keys are all keys of [Service], under that name.
#[must_use]
pub fn find(section: &str, name: &str) -> Option<UnitKey> {
    let section = if section == "Scope" { "Service" } else { section };
    KEYS.get(&(section, name)).copied()
}

/// Whether that systemd reads a key.
#[must_use]
pub fn knowledge(section: &str, name: &str, systemd: u32) -> Knowledge {
    // Between the versions that were looked at nobody knows when a key came.
    let may_know = |since| systemd >= since || (since == 257 && systemd > 252) || (since == 262 && systemd > 257);
    match find(section, name) {
        None => Knowledge::Unknown,
        Some(key) if !may_know(key.since) => Knowledge::TooNew(key.since),
        Some(key) if systemd >= 262 && key.until < systemd => Knowledge::Gone,
        Some(key) => Knowledge::Known(key.kind),
    }
}

/// The names of the keys of a section that this systemd was seen to read: one of 252, 257 and 262.
pub fn names(section: &str, systemd: u32) -> impl Iterator<Item = &'static str> {
    let mut names: Vec<&str> = KEYS
        .iter()
        .filter(|((of, _), key)| *of == section && (key.since..=key.until).contains(&systemd))
        .map(|((_, name), _)| *name)
        .collect();
    names.sort_unstable();
    names.into_iter()
}

/// The property of `org.freedesktop.systemd1` that has the value of a key.
#[must_use]
pub fn property(name: &str) -> String {
    match name {
        "CPUQuota" => "CPUQuotaPerSecUSec".to_owned(),
        "EnvironmentFile" => "EnvironmentFiles".to_owned(),
        _ => match name.strip_suffix("Sec") {
            Some(stem) => format!("{stem}USec"),
            None => name.to_owned(),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_read() {
        assert_eq!(knowledge("Service", "MemoryMax", 252), Knowledge::Known(Kind::Size));
        assert_eq!(knowledge("Unit", "After", 262), Knowledge::Known(Kind::Dependencies));
        assert_eq!(knowledge("Scope", "KillSignal", 257), Knowledge::Known(Kind::Signal));
        assert_eq!(knowledge("Service", "MemoryMx", 257), Knowledge::Unknown);
        assert_eq!(knowledge("Service", "DelegateSubgroup", 252), Knowledge::TooNew(257));
        assert_eq!(
            knowledge("Service", "DelegateSubgroup", 254),
            Knowledge::Known(Kind::Text)
        );
        assert_eq!(knowledge("Service", "CPUShares", 262), Knowledge::Gone);
        assert_eq!(knowledge("Service", "CPUShares", 257), Knowledge::Known(Kind::Number));
        assert!(names("Service", 252).any(|name| name == "CPUShares"));
        assert_eq!(property("TimeoutStopSec"), "TimeoutStopUSec");
        let words = include_str!("keys.txt").lines().filter(|line| line.starts_with('2'));
        let count: usize = words.map(|line| line.split(' ').count() - 2).sum();
        assert_eq!(KEYS.len(), count);
    }
}

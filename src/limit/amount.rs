//! Values of limits: read as systemd reads them, and as they are shown.

use super::{Key, Kind};
use crate::nspawn::number::{decimal, integer_in, size, time_span};

/// A part of ten thousand, as systemd counts percentages.
pub type Permyriad = u32;

/// The most CPUs that any kernel has.
const MOST_CPUS: u64 = 8192;
/// µs of CPU time in a second of one CPU.
const SECOND: u64 = 1_000_000;

/// What a key is to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// What it would be if nobody had limited it: an empty value.
    Default,
    /// This.
    Set(Amount),
}

/// A value as systemd has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Amount {
    /// A number in the key's unit; [`u64::MAX`] is no limit, or not set.
    Number(u64),
    /// A percentage of what the host has.
    Part(Permyriad),
    /// CPUs or NUMA nodes; none of them means all.
    Indices(Vec<usize>),
    /// Numbers for devices, [`u64::MAX`] for none; an empty list takes all of them away.
    Devices(Vec<(String, u64)>),
    /// Yes or no.
    Boolean(bool),
    /// A word, or the value of a key of the machine's settings; empty to take it out.
    Word(String),
    /// A number that may be below zero.
    Integer(i32),
}

/// Why a value is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ValueError {
    /// Of another form.
    #[error("expected {0}")]
    Expected(&'static str),
    /// Zero, where that would leave nothing.
    #[error("zero would leave nothing to run with; `none` is no limit")]
    Zero,
    /// Below zero.
    #[error("it cannot be negative")]
    Negative,
    /// More than there can be.
    #[error("it is too big: at most {0}")]
    TooBig(String),
    /// Less than the kernel can do.
    #[error("it is too small: at least {0}")]
    TooSmall(&'static str),
    /// A value for a device, without one.
    #[error("it is a limit of one device, such as /dev/sda:{0}")]
    NoDevice(&'static str),
}

use ValueError as E;

impl Key {
    /// Reads a value. `systemd`: the key was given by systemd's own name, and so is its value.
    pub(super) fn read(&self, text: &str, systemd: bool) -> Result<Amount, ValueError> {
        let none = matches!(text, "none" | "infinity");
        if text.starts_with('-') && !matches!(self.kind, Kind::Process(..) | Kind::Exec) {
            return Err(E::Negative);
        }
        match self.kind {
            Kind::Protected if text == "none" => Ok(Amount::Number(0)),
            Kind::Bytes(_)
            | Kind::Protected
            | Kind::PlainBytes
            | Kind::Tasks
            | Kind::Cpus
            | Kind::Span
            | Kind::Weight(_)
                if none =>
            {
                Ok(Amount::Number(u64::MAX))
            }
            Kind::Bytes(least) => share_or(text, least, size, "bytes such as 512M or 2G, a percentage, or none"),
            Kind::Protected => share_or(text, 0, size, "bytes such as 512M or 2G, a percentage, or none"),
            Kind::PlainBytes => number(text, size, "bytes such as 512M or 2G, or none"),
            Kind::Tasks => share_or(text, 1, whole, "a number of tasks, a percentage, or none"),
            Kind::Cpus => cpus(text, systemd).map(Amount::Number),
            Kind::Span => match number(text, |text| time_span(text, SECOND), "a time span such as 10ms")? {
                Amount::Number(0) => Err(E::Zero),
                span => Ok(span),
            },
            Kind::Weight(true) if text == "idle" => Ok(Amount::Number(0)),
            Kind::Weight(_) => weight(text).map(Amount::Number),
            Kind::Cpuset | Kind::Nodes if none => Ok(Amount::Indices(Vec::new())),
            Kind::Cpuset => indices(text, "CPUs such as 0-3,7"),
            Kind::Nodes => indices(text, "NUMA nodes such as 0-1"),
            Kind::Bandwidth | Kind::Iops | Kind::Latency | Kind::DeviceWeight => self.device(text, none),
            Kind::Boolean => match text {
                "yes" | "true" | "on" | "1" => Ok(Amount::Boolean(true)),
                "no" | "false" | "off" | "0" | "none" => Ok(Amount::Boolean(false)),
                _ => Err(E::Expected("yes or no")),
            },
            Kind::Word(words) => match words.iter().find(|word| **word == text) {
                Some(word) => Ok(Amount::Word((*word).to_owned())),
                None => Err(E::Expected(if words.contains(&"kill") {
                    "auto or kill"
                } else {
                    "none, avoid or omit"
                })),
            },
            Kind::Percentage => permyriad(text)
                .map(Amount::Part)
                .ok_or(E::Expected("a percentage such as 60%")),
            Kind::Process(low, high) => integer_in(text, low.into(), high.into())
                .and_then(|number| i32::try_from(number).ok())
                .map(Amount::Integer)
                .ok_or(E::Expected(if high == 19 {
                    "a number from -20, the greediest, to 19"
                } else {
                    "a number from -1000, never killed, to 1000"
                })),
            // Checked as `config set` does. There is no LimitNICE= without limit.
            Kind::Exec if text == "none" => Ok(Amount::Word(
                if self.directive == "LimitNICE" { "" } else { "infinity" }.to_owned(),
            )),
            Kind::Exec => Ok(Amount::Word(text.to_owned())),
        }
    }

    /// What a unit file says of this key; `None` if it is nothing that could be set here.
    #[must_use]
    pub fn amount(&self, text: &str) -> Option<Amount> {
        self.read(text, true).ok()
    }

    fn device(&self, text: &str, none: bool) -> Result<Amount, ValueError> {
        let example = match self.kind {
            Kind::Iops => "500",
            Kind::Latency => "25ms",
            Kind::DeviceWeight => "200",
            _ => "10M",
        };
        if none {
            return Ok(Amount::Devices(Vec::new()));
        }
        // systemd has a blank between the two. A path may have a colon, a value has none.
        let (path, value) = text
            .rsplit_once([':', ' '])
            .filter(|(path, _)| path.starts_with('/'))
            .ok_or(E::NoDevice(example))?;
        let value = value.trim();
        let number = match (self.kind, value) {
            (_, "none" | "infinity") => u64::MAX,
            (Kind::DeviceWeight, _) => weight(value)?,
            (Kind::Latency, _) => time_span(value, SECOND).ok_or(E::Expected("a time span such as 25ms"))?,
            _ if value.starts_with('-') => return Err(E::Negative),
            _ => decimal(value).ok_or(E::Expected("a number a second such as 10M"))?,
        };
        if number == 0 {
            return Err(E::Zero);
        }
        Ok(Amount::Devices(vec![(path.trim().to_owned(), number)]))
    }

    /// Whether the value takes every limit of this key away.
    #[must_use]
    pub fn is_unlimited(&self, amount: &Amount) -> bool {
        match amount {
            Amount::Number(number) if self.kind == Kind::Protected => *number == 0,
            Amount::Number(number) => *number == u64::MAX,
            Amount::Indices(list) => list.is_empty(),
            Amount::Devices(list) => list.is_empty(),
            Amount::Word(word) => word.is_empty(),
            _ => false,
        }
    }
}

/// A number of CPUs as µs a second, exactly; `150%` is 1.5 of them.
fn cpus(text: &str, only_percent: bool) -> Result<u64, ValueError> {
    let expected = || {
        E::Expected(if only_percent {
            "a percentage of one CPU such as 150%"
        } else {
            "a number of CPUs such as 1.5, or a percentage of one"
        })
    };
    let too_big = || E::TooBig(format!("{MOST_CPUS} CPUs"));
    let micros = match text.strip_suffix('%') {
        Some(percent) => fraction(percent, 10_000).ok_or_else(expected)?,
        None if only_percent => return Err(expected()),
        None => fraction(text, SECOND).ok_or_else(expected)?,
    };
    match micros {
        0 => Err(E::Zero),
        // The kernel gives 1 ms out of 100 ms, and no less.
        1..10_000 => Err(E::TooSmall("0.01 CPUs, which is 1%")),
        _ if micros > MOST_CPUS * SECOND => Err(too_big()),
        _ => Ok(micros),
    }
}

/// A decimal number times `unit`; what is smaller than one is dropped.
fn fraction(text: &str, unit: u64) -> Option<u64> {
    let (whole, behind) = text.split_once('.').unwrap_or((text, ""));
    let digits = |text: &str| text.len() <= 12 && text.chars().all(|c| c.is_ascii_digit());
    if !digits(whole) || !digits(behind) || (whole.is_empty() && behind.is_empty()) || text.ends_with('.') {
        return None;
    }
    let number = |text: &str| {
        if text.is_empty() {
            Some(0)
        } else {
            text.parse::<u64>().ok()
        }
    };
    let part = u128::from(number(behind)?) * u128::from(unit) / 10_u128.pow(u32::try_from(behind.len()).ok()?);
    number(whole)?.checked_mul(unit)?.checked_add(u64::try_from(part).ok()?)
}

/// `12.5%`, `125‰` or `1250‱`, at most all of it.
fn permyriad(text: &str) -> Option<Permyriad> {
    let parts = [('%', 100), ('‰', 10), ('‱', 1)]
        .iter()
        .find_map(|(sign, unit)| fraction(text.strip_suffix(*sign)?, *unit))?;
    u32::try_from(parts).ok().filter(|parts| *parts <= 10_000)
}

fn whole(text: &str) -> Option<u64> {
    integer_in(text, 0, i128::from(u64::MAX)).and_then(|number| u64::try_from(number).ok())
}

fn number(text: &str, read: impl Fn(&str) -> Option<u64>, expected: &'static str) -> Result<Amount, ValueError> {
    match read(text) {
        Some(u64::MAX) => Err(E::TooBig(format!("{}", u64::MAX - 1))),
        Some(number) => Ok(Amount::Number(number)),
        None if text.starts_with(|c: char| c.is_ascii_digit()) && text.len() > 15 => {
            Err(E::TooBig(format!("{}", u64::MAX - 1)))
        }
        None => Err(E::Expected(expected)),
    }
}

/// A number, or a percentage.
fn share_or(
    text: &str,
    least: u64,
    read: impl Fn(&str) -> Option<u64>,
    expected: &'static str,
) -> Result<Amount, ValueError> {
    let amount = if text.ends_with(['%', '‰', '‱']) {
        match permyriad(text) {
            Some(parts) => Amount::Part(parts),
            None if text.starts_with(|c: char| c.is_ascii_digit()) => return Err(E::TooBig("100%".to_owned())),
            None => return Err(E::Expected(expected)),
        }
    } else {
        number(text, read, expected)?
    };
    match amount {
        Amount::Number(0) | Amount::Part(0) if least > 0 => Err(E::Zero),
        amount => Ok(amount),
    }
}

fn weight(text: &str) -> Result<u64, ValueError> {
    const EXPECTED: &str = "a number from 1 to 10000; 100 is the default";
    whole(text)
        .filter(|number| (1..=10_000).contains(number))
        .ok_or(E::Expected(EXPECTED))
}

/// `0-3,7`, with commas or blanks.
fn indices(text: &str, expected: &'static str) -> Result<Amount, ValueError> {
    let mut list = Vec::new();
    for word in text.split([',', ' ', '\t']).filter(|word| !word.is_empty()) {
        let (first, last) = word.split_once('-').unwrap_or((word, word));
        let number = |text: &str| whole(text).and_then(|number| usize::try_from(number).ok());
        let (Some(first), Some(last)) = (number(first), number(last)) else {
            return Err(E::Expected(expected));
        };
        if first > last {
            return Err(E::Expected(expected));
        }
        if last >= usize::try_from(MOST_CPUS).unwrap_or(usize::MAX) {
            return Err(E::TooBig(format!("{}", MOST_CPUS - 1)));
        }
        list.extend(first..=last);
    }
    list.sort_unstable();
    list.dedup();
    if list.is_empty() {
        return Err(E::Expected(expected));
    }
    Ok(Amount::Indices(list))
}

/// µs of CPU time a second as a number of CPUs: `1.5`.
#[must_use]
pub fn cpus_of(micros: u64) -> String {
    let text = format!("{}.{:06}", micros / SECOND, micros % SECOND);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use super::super::find;
    use super::*;

    fn read(key: &str, text: &str) -> Result<Amount, ValueError> {
        let (key, systemd) = find(key).unwrap();
        key.read(text, systemd)
    }

    #[test]
    fn values_are_read_as_systemd_reads_them() {
        let number = |number| Ok(Amount::Number(number));
        for (key, text, amount) in [
            ("memory", "512M", number(512 << 20)),
            ("MemoryMax", "infinity", number(u64::MAX)),
            ("memory", "none", number(u64::MAX)),
            ("memory", "50%", Ok(Amount::Part(5000))),
            ("memory", "12.34%", Ok(Amount::Part(1234))),
            ("memory", "125‰", Ok(Amount::Part(1250))),
            ("memory-low", "none", number(0)),
            ("memory-low", "infinity", number(u64::MAX)),
            ("swap", "0", number(0)),
            ("tasks", "100", number(100)),
            ("tasks", "10%", Ok(Amount::Part(1000))),
            ("cpus", "1.5", number(1_500_000)),
            ("cpus", ".5", number(500_000)),
            ("cpus", "150%", number(1_500_000)),
            ("CPUQuota", "20%", number(200_000)),
            ("cpu-weight", "idle", number(0)),
            ("cpu-weight", "10000", number(10_000)),
            ("CPUWeight", "none", number(u64::MAX)),
            ("cpuset", "0-1,3", Ok(Amount::Indices(vec![0, 1, 3]))),
            ("AllowedCPUs", "3 1", Ok(Amount::Indices(vec![1, 3]))),
            ("cpuset", "none", Ok(Amount::Indices(vec![]))),
            (
                "io-read",
                "/dev/x:10M",
                Ok(Amount::Devices(vec![("/dev/x".into(), 10_000_000)])),
            ),
            (
                "IOReadBandwidthMax",
                "/dev/x 1K",
                Ok(Amount::Devices(vec![("/dev/x".into(), 1000)])),
            ),
            (
                "io-write-iops",
                "/dev/a:b:none",
                Ok(Amount::Devices(vec![("/dev/a:b".into(), u64::MAX)])),
            ),
            (
                "io-latency",
                "/dev/x:25ms",
                Ok(Amount::Devices(vec![("/dev/x".into(), 25_000)])),
            ),
            ("io-read", "none", Ok(Amount::Devices(vec![]))),
            ("nice", "-5", Ok(Amount::Integer(-5))),
            ("oom-score", "-1000", Ok(Amount::Integer(-1000))),
            ("nofile", "none", Ok(Amount::Word("infinity".into()))),
            ("LimitNICE", "none", Ok(Amount::Word(String::new()))),
            ("ManagedOOMMemoryPressureLimit", "60%", Ok(Amount::Part(6000))),
            ("IOAccounting", "yes", Ok(Amount::Boolean(true))),
        ] {
            assert_eq!(read(key, text), amount, "{key}={text}");
        }
    }

    #[test]
    fn what_systemd_would_refuse_is_refused() {
        for (key, text) in [
            ("memory", "0"),
            ("memory", "-1"),
            ("memory", "much"),
            ("memory", "101%"),
            ("memory", "0%"),
            ("memory", "1e9"),
            ("memory", "18446744073709551615"),
            ("memory", "99999999999999999999"),
            ("swap", "-1M"),
            ("zswap", "10%"),
            ("tasks", "0"),
            ("tasks", "1.5"),
            ("cpus", "0"),
            ("cpus", "0.001"),
            ("cpus", "-1"),
            ("cpus", "1."),
            ("cpus", "8193"),
            ("cpus", "1,5"),
            ("CPUQuota", "1.5"),
            ("cpu-weight", "0"),
            ("cpu-weight", "10001"),
            ("io-weight", "idle"),
            ("cpuset", "3-1"),
            ("cpuset", "a"),
            ("cpuset", ","),
            ("cpuset", "0-99999"),
            ("io-read", "10M"),
            ("io-read", "dev/x:10M"),
            ("io-read", "/dev/x:0"),
            ("io-read", "/dev/x:-1"),
            ("io-read", "/dev/x:"),
            ("nice", "20"),
            ("nice", "0.5"),
            ("oom-score", "1001"),
            ("ManagedOOMSwap", "always"),
            ("IOAccounting", "perhaps"),
        ] {
            assert!(read(key, text).is_err(), "{key}={text}: {:?}", read(key, text));
        }
    }

    #[test]
    fn cpus_are_shown_as_they_are_typed() {
        assert_eq!(
            [cpus_of(1_500_000), cpus_of(2_000_000), cpus_of(10_000)],
            ["1.5", "2", "0.01"]
        );
    }
}

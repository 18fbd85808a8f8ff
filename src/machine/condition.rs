//! What can be waited for of a machine.

use std::fmt;
use std::str::FromStr;

/// A condition that a machine comes to meet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Condition {
    /// Its leader runs, and is not frozen.
    Running,
    /// Its own system manager has finished booting.
    Booted,
    /// Nothing of it runs.
    Stopped,
    /// The freezer holds it.
    Frozen,
    /// It has an address that is not a link's.
    Address,
    /// Something in it accepts TCP connections at this port.
    Port(u16),
    /// This unit of its own systemd is active.
    Unit(String),
}

/// Why a text is no condition.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConditionError {
    /// No such word.
    #[error("it is one of running, booted, stopped, frozen, address, port=N and unit=NAME; did you mean {0}?")]
    Unknown(&'static str),
    /// After `port=`.
    #[error("a port is a number from 1 to 65535")]
    Port,
    /// After `unit=`.
    #[error("this is no name of a unit, such as nginx.service")]
    Unit,
}

const WORDS: [(&str, Condition); 5] = [
    ("running", Condition::Running),
    ("booted", Condition::Booted),
    ("stopped", Condition::Stopped),
    ("frozen", Condition::Frozen),
    ("address", Condition::Address),
];
/// The types of units, see systemd.unit(5).
const TYPES: [&str; 11] = [
    "service",
    "socket",
    "device",
    "mount",
    "automount",
    "swap",
    "target",
    "path",
    "timer",
    "slice",
    "scope",
];
/// The longest name of a unit, in bytes.
const UNIT_MAX: usize = 255;

impl Condition {
    /// How each begins, to be offered to who types.
    pub fn words() -> impl Iterator<Item = &'static str> {
        WORDS.iter().map(|(word, _)| *word).chain(["port=", "unit="])
    }
}

impl FromStr for Condition {
    type Err = ConditionError;

    fn from_str(text: &str) -> Result<Self, ConditionError> {
        if let Some(port) = text.strip_prefix("port=") {
            let port = port.parse().ok().filter(|port| *port > 0);
            return port.map(Self::Port).ok_or(ConditionError::Port);
        }
        if let Some(unit) = text.strip_prefix("unit=") {
            return unit_name(unit).map(Self::Unit).ok_or(ConditionError::Unit);
        }
        if let Some((_, condition)) = WORDS.iter().find(|(word, _)| *word == text) {
            return Ok(condition.clone());
        }
        let known = WORDS
            .iter()
            .map(|(word, _)| *word)
            .chain(["port=80", "unit=nginx.service"]);
        let likeness = |word: &str| strsim::jaro_winkler(word, text);
        let near = known.max_by(|a, b| likeness(a).total_cmp(&likeness(b)));
        Err(ConditionError::Unknown(near.unwrap_or("running")))
    }
}

/// A whole name: without a type it is a service's, as systemctl has it.
fn unit_name(text: &str) -> Option<String> {
    let is_typed = text.rsplit_once('.').is_some_and(|(_, kind)| TYPES.contains(&kind));
    let name = if is_typed {
        text.to_owned()
    } else {
        format!("{text}.service")
    };
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b":-_.\\@".contains(&byte);
    let is_valid = name.len() <= UNIT_MAX && !name.starts_with(['.', '@']) && name.bytes().all(is_plain);
    is_valid.then_some(name)
}

impl fmt::Display for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Port(port) => write!(f, "port={port}"),
            Self::Unit(unit) => write!(f, "unit={unit}"),
            condition => {
                let word = WORDS.iter().find(|(_, known)| known == condition);
                f.write_str(word.map_or("", |(word, _)| word))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conditions_are_read_and_written() {
        for text in [
            "running",
            "booted",
            "stopped",
            "frozen",
            "address",
            "port=80",
            "unit=a@b.socket",
        ] {
            assert_eq!(text.parse::<Condition>().unwrap().to_string(), text);
        }
        assert_eq!("unit=nginx".parse(), Ok(Condition::Unit("nginx.service".into())));
        assert_eq!("unit=a.b".parse(), Ok(Condition::Unit("a.b.service".into())));
        for text in ["port=0", "port=65536", "port=", "port=http"] {
            assert_eq!(text.parse::<Condition>(), Err(ConditionError::Port), "{text}");
        }
        for text in [
            "unit=",
            "unit=a b",
            "unit=a/b.service",
            "unit=*.service",
            "unit=@.service",
        ] {
            assert_eq!(text.parse::<Condition>(), Err(ConditionError::Unit), "{text}");
        }
        assert!("up".parse::<Condition>().is_err());
        assert_eq!("boot".parse::<Condition>(), Err(ConditionError::Unknown("booted")));
        assert_eq!("port".parse::<Condition>(), Err(ConditionError::Unknown("port=80")));
    }
}

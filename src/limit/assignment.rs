//! `KEY=VALUE`, as the command line writes a limit.

use super::{Amount, KEYS, Key, Kind, OTHERS, ValueError, Wanted};
use crate::machine::text::printable;
use crate::nspawn::assignment::{AssignmentError, parse_assignment};

/// A limit that is to be set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Assignment {
    /// The key, out of the table.
    pub key: &'static Key,
    /// `KEY=VALUE` as it was typed.
    pub text: String,
    /// What it is to be.
    pub wanted: Wanted,
}

/// Why a string is no limit.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LimitError {
    /// There is no such key.
    #[error("there is no limit '{}'{}", printable(.name), .nearest.map(|near| format!(", did you mean '{near}'?")).unwrap_or_default())]
    Unknown {
        /// What was given.
        name: String,
        /// What was probably meant.
        nearest: Option<&'static str>,
    },
    /// A setting of units that limits nothing.
    #[error("{0}= is no limit of how much a machine may use, and is not set here")]
    NoLimit(&'static str),
    /// The key does not take this value.
    #[error("{} cannot be set: {reason}", printable(.text))]
    Value {
        /// `KEY=VALUE`.
        text: String,
        /// Why not.
        reason: String,
    },
    /// The same thing twice.
    #[error("'{}' and '{}' limit the same thing", printable(.0), printable(.1))]
    Twice(String, String),
}

/// The key of that name, and whether that is systemd's own name.
#[must_use]
pub fn find(name: &str) -> Option<(&'static Key, bool)> {
    KEYS.iter()
        .find(|key| !key.name.is_empty() && key.name == name)
        .map(|key| (key, false))
        .or_else(|| KEYS.iter().find(|key| key.directive == name).map(|key| (key, true)))
}

/// Reads `KEY=VALUE`. An empty value brings back what was there before any limit.
pub fn parse(text: &str) -> Result<Assignment, LimitError> {
    let (name, value) = text.split_once('=').unwrap_or((text, ""));
    let (name, value) = (name.trim(), value.trim());
    let Some((key, systemd)) = find(name) else {
        return Err(match OTHERS.iter().find(|other| **other == name) {
            Some(other) => LimitError::NoLimit(other),
            None => LimitError::Unknown {
                name: name.to_owned(),
                nearest: nearest(name),
            },
        });
    };
    let refused = |reason: String| LimitError::Value {
        text: text.to_owned(),
        reason,
    };
    // There is no such number that would be none at all.
    let is_default = value.is_empty() || (matches!(key.kind, Kind::Process(..)) && value == "none");
    let wanted = if is_default {
        Wanted::Default
    } else {
        Wanted::Set(
            key.read(value, systemd)
                .map_err(|error: ValueError| refused(error.to_string()))?,
        )
    };
    if let (Kind::Exec, Wanted::Set(Amount::Word(word))) = (key.kind, &wanted) {
        parse_assignment(&format!("Exec.{}={word}", key.directive)).map_err(|error| match error {
            AssignmentError::Value { source, .. } => refused(source.to_string()),
            other => refused(other.to_string()),
        })?;
    }
    Ok(Assignment {
        key,
        text: text.to_owned(),
        wanted,
    })
}

/// Reads all of them; none may say what another says, too.
pub fn parse_all(words: &[String]) -> Result<Vec<Assignment>, LimitError> {
    let mut all: Vec<Assignment> = Vec::new();
    for word in words {
        let new = parse(word)?;
        if let Some(former) = all.iter().find(|former| former.collides(&new)) {
            return Err(LimitError::Twice(former.text.clone(), new.text));
        }
        all.push(new);
    }
    Ok(all)
}

impl Assignment {
    /// One device and another of the same key are two things.
    fn collides(&self, other: &Self) -> bool {
        let device = |assignment: &Self| match &assignment.wanted {
            Wanted::Set(Amount::Devices(list)) => list.first().map(|(path, _)| path.clone()),
            _ => None,
        };
        self.key == other.key
            && match (device(self), device(other)) {
                (Some(one), Some(another)) => one == another,
                _ => true,
            }
    }
}

/// The known name nearest to what was written, if any is near.
fn nearest(name: &str) -> Option<&'static str> {
    let wanted = name.to_lowercase();
    // What is far too long to be a typo is not measured.
    if wanted.len() > 64 {
        return None;
    }
    KEYS.iter()
        .flat_map(|key| [key.name, key.directive])
        .filter(|known| !known.is_empty())
        .map(|known| (strsim::jaro_winkler(&wanted, &known.to_lowercase()), known))
        .filter(|(likeness, _)| *likeness > 0.84)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, known)| known)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_say_what_was_meant() {
        for (text, message) in [
            ("memroy=1G", "there is no limit 'memroy', did you mean 'memory'?"),
            ("MemoryMx=1G", "there is no limit 'MemoryMx', did you mean 'MemoryMax'?"),
            (
                "memorymax=1G",
                "there is no limit 'memorymax', did you mean 'MemoryMax'?",
            ),
            ("cpu=2", "there is no limit 'cpu', did you mean 'cpus'?"),
            ("zzz=2", "there is no limit 'zzz'"),
            ("=2", "there is no limit ''"),
            (
                "Delegate=no",
                "Delegate= is no limit of how much a machine may use, and is not set here",
            ),
            ("memory=-1", "memory=-1 cannot be set: it cannot be negative"),
            (
                "oom-score=5000",
                "oom-score=5000 cannot be set: expected a number from -1000, never killed, to 1000",
            ),
            (
                "nofile=-5",
                "nofile=-5 cannot be set: '-5' is not valid here: expected a number or infinity, or SOFT:HARD",
            ),
        ] {
            assert_eq!(parse(text).unwrap_err().to_string(), message);
        }
    }

    #[test]
    fn the_same_thing_twice_is_refused() {
        let all = |words: &[&str]| parse_all(&words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>());
        assert_eq!(
            all(&["memory=1G", "MemoryMax=2G"]).unwrap_err().to_string(),
            "'memory=1G' and 'MemoryMax=2G' limit the same thing"
        );
        all(&["io-read=/dev/a:1M", "io-read=/dev/a:2M"]).unwrap_err();
        all(&["io-read=/dev/a:1M", "io-read=none"]).unwrap_err();
        assert_eq!(all(&["io-read=/dev/a:1M", "io-read=/dev/b:1M"]).unwrap().len(), 2);
        for word in ["memory=", "nice=none"] {
            assert_eq!(parse(word).unwrap().wanted, Wanted::Default);
        }
    }
}

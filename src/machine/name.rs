//! Machine names as systemd-machined accepts them.

use std::fmt;
use std::str::FromStr;

/// The longest machine name, in bytes: Linux's `HOST_NAME_MAX`, which `hostname_is_valid()` of systemd applies.
pub const NAME_MAX: usize = 64;

/// A valid machine name: what `systemd-machined` would register, see `hostname_is_valid()` in systemd.
///
/// Letters (either case), digits, `-` and `.`; no empty label, no `-` at either end of a label, at most
/// [`NAME_MAX`] bytes. Such a name is safe as a file name, as a unit instance and in a host name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize)]
#[serde(transparent)]
pub struct MachineName(String);

/// Why a string is no machine name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Nothing at all.
    #[error("a machine name cannot be empty")]
    Empty,
    /// More than [`NAME_MAX`] bytes.
    #[error("machine name '{name}' is {len} bytes long, at most {NAME_MAX} are allowed")]
    TooLong {
        /// What was given, shortened.
        name: String,
        /// Its length in bytes.
        len: usize,
    },
    /// A character that systemd-machined refuses.
    #[error("machine name '{name}' contains {character:?}: only letters, digits, '-' and '.' are allowed")]
    Character {
        /// What was given, escaped.
        name: String,
        /// The first character at fault.
        character: char,
    },
    /// `.` at an end or twice in a row, or `-` at an end of a label.
    #[error("machine name '{name}' must not begin or end with '-' or '.', nor contain '..', '.-' or '-.'")]
    Label {
        /// What was given.
        name: String,
    },
    /// One of [`KINDS`] at the end.
    #[error("machine name '{name}' ends in '{ending}', by which systemd tells another kind of image")]
    Kind {
        /// What was given.
        name: String,
        /// The ending.
        ending: &'static str,
    },
}

/// Endings that are no part of an image's name: what is called so is a disk image, or a directory of versions or layers. Of a
/// plain directory with such a name machined finds no image, and 257 to 262 die of looking up one in `.v`.
const KINDS: &[&str] = &[".raw", ".v", ".mstack"];

impl MachineName {
    /// The name as a string.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Refuses what may be the name of a machine that is there, but not of a directory that is to become its image.
    pub fn check_new(&self) -> Result<(), NameError> {
        match KINDS.iter().find(|ending| self.0.ends_with(**ending)) {
            Some(ending) => Err(NameError::Kind {
                name: self.0.clone(),
                ending,
            }),
            None => Ok(()),
        }
    }

    /// The template unit's instance that runs this machine: `systemd-nspawn@NAME.service`.
    #[must_use]
    pub fn unit(&self) -> String {
        format!("systemd-nspawn@{}.service", self.0)
    }

    /// The machine that such a unit runs; `None` for other units.
    #[must_use]
    pub fn of_unit(unit: &str) -> Option<Self> {
        let name = unit.strip_prefix("systemd-nspawn@")?.strip_suffix(".service")?;
        name.parse().ok()
    }
}

impl FromStr for MachineName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        if text.is_empty() {
            return Err(NameError::Empty);
        }
        let shown = || text.escape_debug().collect::<String>();
        if let Some(character) = text
            .chars()
            .find(|c| !(c.is_ascii_alphanumeric() || matches!(c, '-' | '.')))
        {
            return Err(NameError::Character {
                name: shown().chars().take(NAME_MAX).collect(),
                character,
            });
        }
        if text.len() > NAME_MAX {
            return Err(NameError::TooLong {
                name: format!("{}…", &text[..16]),
                len: text.len(),
            });
        }
        if text
            .split('.')
            .any(|label| label.is_empty() || label.starts_with('-') || label.ends_with('-'))
        {
            return Err(NameError::Label { name: shown() });
        }
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for MachineName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl AsRef<str> for MachineName {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accepts_what_machined_accepts() {
        for name in ["web", "Web-1", "a.b", "0", "a-b.c-d", &"x".repeat(64)] {
            assert_eq!(name.parse::<MachineName>().map(|n| n.to_string()), Ok(name.to_owned()));
        }
    }

    #[test]
    fn refuses_what_machined_refuses() {
        let long = "x".repeat(65);
        for name in [
            "", ".", "..", ".host", "a..b", "x-", "-x", "a_b", "a@b", "a/b", "a b", "a\n", "é", "a.", &long,
        ] {
            assert!(name.parse::<MachineName>().is_err(), "{name:?} was accepted");
        }
    }

    #[test]
    fn new_names_leave_the_kind_of_image_out() {
        let check = |name: &str| name.parse::<MachineName>().unwrap().check_new();
        for name in ["web.raw", "a.b.v", "db.mstack", "web.raw.v"] {
            assert!(matches!(check(name), Err(NameError::Kind { .. })), "{name}");
        }
        for name in ["raw", "web-raw", "raw.web", "web.RAW", "v"] {
            assert_eq!(check(name), Ok(()), "{name}");
        }
    }

    #[test]
    fn units_are_told_from_others() {
        assert_eq!(MachineName::of_unit("systemd-nspawn@web.service"), "web".parse().ok());
        assert_eq!(MachineName::of_unit("network.target"), None);
        assert_eq!(MachineName::of_unit("systemd-nspawn@.service"), None);
    }
}

//! What a key's value may be, checked as systemd's own parsers check it.

use super::forms::{
    cpu_bounds, cpu_range, is_absolute, is_bind, is_id128, is_normal_path, is_overlay, is_plain_path, is_short_path,
    port,
};
use super::names;
use super::number::integer_in;
use super::users::UserRange;
use super::words::{Quoting, split_field, split_fields, split_words, split_words_partially};

pub use super::limit::Limit;

/// The type of a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(
    missing_docs,
    reason = "each says what it is; the text a user sees is in `ValueType::allowed`"
)]
pub enum ValueType {
    AddressFamilies,
    Bind,
    Boolean,
    Capabilities,
    CpuSet,
    Environment,
    Hostname,
    Id128,
    Inaccessible,
    Interface,
    InterfacePairs,
    LinkJournal,
    OomScoreAdjust,
    Overlay,
    Ownership,
    Path,
    Personality,
    PivotRoot,
    Port,
    PrivateUsers,
    ResolvConf,
    Rlimit(Limit),
    Signal,
    SyscallFilter,
    Timezone,
    Tmpfs,
    Tristate,
    Unsigned,
    UserName,
    UserNames,
    UserShell,
    VethExtra,
    Volatile,
    Words,
    Zone,
}

/// What an assignment without a value does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Empty {
    /// Forgets the assignments before it.
    Resets,
    /// Nothing at all.
    NoEffect,
    /// It is a value like another.
    Value,
    /// systemd complains and ignores the line.
    Refused,
}

/// Why systemd would ignore or refuse a value.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ValueError {
    /// The value is not of the form that is wanted.
    #[error("{} is not valid here: expected {expected}", quoted(.value))]
    Unexpected {
        /// What was given.
        value: String,
        /// What is allowed.
        expected: &'static str,
    },
    /// The value is allowed, but only by a later systemd.
    #[error("{} needs systemd {since}", quoted(.value))]
    TooNew {
        /// What was given.
        value: String,
        /// The first systemd that takes it.
        since: u32,
    },
    /// A quote without its partner, or a backslash with nothing behind it.
    #[error("{} has a quote that is never closed, or a backslash with nothing behind it", quoted(.value))]
    Unbalanced {
        /// What was given.
        value: String,
    },
    /// A soft limit above the hard one.
    #[error("in {} the soft limit is above the hard one", quoted(.value))]
    SoftAboveHard {
        /// What was given.
        value: String,
    },
}

/// `text` in single quotes, as [`shown`].
pub(super) fn quoted(text: &str) -> String {
    format!("'{}'", shown(text))
}

/// `text` escaped, and cut after 80 characters.
pub(super) fn shown(text: &str) -> String {
    let mut shown: String = text.chars().take(80).collect();
    if shown.len() < text.len() {
        shown.push('…');
    }
    shown
        .escape_debug()
        .to_string()
        .replace("\\'", "'")
        .replace("\\\"", "\"")
        .replace("\\\\", "\\")
}

impl ValueType {
    /// Whether the newest systemd takes the value without a complaint.
    pub fn check(self, value: &str) -> Result<(), ValueError> {
        self.check_for(value, super::schema::NEWEST_SYSTEMD)
    }

    /// Whether that systemd takes the value without a complaint.
    ///
    /// An empty value is right where it resets the key or does nothing, see [`ValueType::empty`].
    pub fn check_for(self, value: &str, systemd: u32) -> Result<(), ValueError> {
        if value.is_empty() && self.empty(systemd) != Empty::Refused {
            return Ok(());
        }
        if self.accepts(value, systemd)? {
            return Ok(());
        }
        let value = value.to_owned();
        match (self, value.as_str()) {
            (Self::PrivateUsers, "managed") | (Self::Ownership, "foreign") => Err(ValueError::TooNew {
                value,
                since: names::MANAGED_USERS_SINCE,
            }),
            _ => Err(ValueError::Unexpected {
                value,
                expected: self.allowed(),
            }),
        }
    }

    /// What of the value takes effect: the words that systemd keeps, and its complaint about the others.
    #[must_use]
    pub fn keep(self, value: &str, systemd: u32) -> (Vec<String>, Option<ValueError>) {
        let complaint = self.check_for(value, systemd).err();
        if value.is_empty() && self.empty(systemd) != Empty::Value {
            return (Vec::new(), complaint);
        }
        let kept = match (self, &complaint) {
            (Self::Words | Self::Environment, Some(_)) if systemd < 254 => {
                split_words_partially(value, Quoting::Quotes, None)
                    .err()
                    .map(|(words, _)| words)
            }
            (Self::Capabilities, _) => split_words(value, Quoting::Escapes, None).ok().map(|words| {
                words
                    .into_iter()
                    .filter(|word| names::is_capability(word, systemd))
                    .collect()
            }),
            (Self::UserNames, _) => {
                let words = split_words_partially(value, Quoting::Escapes, None).unwrap_or_else(|(words, _)| words);
                Some(words.into_iter().take_while(|word| names::is_user_name(word)).collect())
            }
            (Self::InterfacePairs, None) if systemd >= names::INTERFACE_PAIRS_SINCE => {
                split_words(value, Quoting::Escapes, None).ok()
            }
            (Self::Words | Self::Environment | Self::InterfacePairs, None) => {
                split_words(value, Quoting::Quotes, None).ok()
            }
            (Self::CpuSet, Some(_)) if !self.bad_value_is_fatal(value, systemd) => {
                split_words(value, Quoting::QuotesAndEscapes, Some(','))
                    .ok()
                    .map(|words| words.into_iter().filter(|word| cpu_range(word)).collect())
            }
            (_, None) => Some(vec![value.to_owned()]),
            (_, Some(_)) => None,
        };
        (kept.unwrap_or_default(), complaint)
    }

    /// Whether a bad value makes systemd refuse the whole file instead of the line.
    #[must_use]
    pub fn bad_value_is_fatal(self, value: &str, systemd: u32) -> bool {
        match self {
            Self::InterfacePairs => systemd >= names::INTERFACE_PAIRS_SINCE,
            // A range from high to low is the one fault that was never fatal.
            Self::CpuSet => {
                let words = split_words(value, Quoting::QuotesAndEscapes, Some(','));
                systemd < names::CPU_SET_FORGIVING_SINCE
                    && !words.is_ok_and(|words| words.iter().all(|word| cpu_bounds(word).is_some()))
            }
            _ => false,
        }
    }

    /// What `Key=` with nothing behind it does.
    #[must_use]
    pub fn empty(self, systemd: u32) -> Empty {
        match self {
            Self::Tristate
            | Self::UserName
            | Self::Words
            | Self::Environment
            | Self::Path
            | Self::Personality
            | Self::Hostname
            | Self::OomScoreAdjust
            | Self::CpuSet
            | Self::Interface
            | Self::UserNames
            | Self::UserShell
            | Self::AddressFamilies => Empty::Resets,
            Self::InterfacePairs if systemd < names::INTERFACE_PAIRS_SINCE => Empty::Resets,
            Self::InterfacePairs | Self::Capabilities | Self::SyscallFilter => Empty::NoEffect,
            Self::Zone => Empty::Value,
            _ => Empty::Refused,
        }
    }

    /// What is allowed, to stand behind "expected".
    #[must_use]
    pub fn allowed(self) -> &'static str {
        match self {
            Self::AddressFamilies => {
                "address families such as AF_INET, separated by spaces, '~' in front to deny, or none"
            }
            Self::Bind => "SOURCE[:DESTINATION[:OPTIONS]] with an absolute destination",
            Self::Boolean | Self::Tristate => "yes or no",
            Self::Capabilities => "capabilities such as CAP_NET_ADMIN, separated by spaces, or all",
            Self::CpuSet => "CPU numbers or ranges below 8192, such as 0-3,5",
            Self::Environment => "NAME=VALUE, quoted if there are spaces in it",
            Self::Hostname => "a host name of letters, digits, '-' and '.', at most 64 bytes",
            Self::Id128 => "32 hexadecimal digits, not all of them 0",
            Self::Inaccessible => "an absolute path",
            Self::Interface => "an interface name of at most 15 characters",
            Self::InterfacePairs => {
                "interface names of at most 15 characters, separated by spaces, each with an optional :NAME for inside"
            }
            Self::LinkJournal => "no, host, try-host, guest, try-guest or auto",
            Self::OomScoreAdjust => "a number from -1000 to 1000",
            Self::Overlay => "LOWER[:LOWER…]:UPPER[:DESTINATION] with absolute paths",
            Self::Ownership => "off, chown, map, foreign or auto",
            Self::Path => "an absolute path without '..'",
            Self::Personality => "x86 or x86-64, or the name of the host's architecture",
            Self::PivotRoot => "NEW[:OLD] with absolute paths without '.', '..' and '//'",
            Self::Port => "[tcp:|udp:]HOSTPORT[:PORT] with ports from 1 to 65535",
            Self::PrivateUsers => "yes, no, pick, identity, managed, or FIRST-UID[:COUNT]",
            Self::ResolvConf => {
                "off, copy-, replace- or bind- with host, static, uplink or stub behind it, delete or auto"
            }
            Self::Rlimit(Limit::Number) => "a number or infinity, or SOFT:HARD",
            Self::Rlimit(Limit::Size) => "bytes such as 512M, or infinity, or SOFT:HARD",
            Self::Rlimit(Limit::Seconds) => "a time span such as 90s, or infinity, or SOFT:HARD",
            Self::Rlimit(Limit::Microseconds) => "microseconds or a time span such as 50ms, or infinity, or SOFT:HARD",
            Self::Rlimit(Limit::Nice) => "a nice level from -20 to +19 with its sign, or a number from 0 to 40",
            Self::Signal => "a signal such as SIGTERM or SIGRTMIN+3",
            Self::SyscallFilter => "system calls or groups such as @mount, separated by spaces, '~' in front to deny",
            Self::Timezone => "off, copy, bind, symlink, delete or auto",
            Self::Tmpfs => "PATH[:OPTIONS] with an absolute path",
            Self::Unsigned => "a number from 0 to 4294967295",
            Self::UserName => "a user name or ID without quotes, backslashes and control characters",
            Self::UserNames => "user names, separated by spaces",
            Self::UserShell => "an absolute path without '.', '..' and '//', or yes or no",
            Self::VethExtra => "HOST-INTERFACE[:INTERFACE], at most 15 characters each",
            Self::Volatile => "no, yes, state or overlay",
            Self::Words => "words separated by spaces, quoted if there are spaces in them",
            Self::Zone => "a zone name of at most 12 characters",
        }
    }

    fn accepts(self, value: &str, systemd: u32) -> Result<bool, ValueError> {
        let unbalanced = |_| ValueError::Unbalanced {
            value: value.to_owned(),
        };
        let words = |quoting| split_words(value, quoting, None).map_err(unbalanced);
        let fields = || split_fields(value).map_err(unbalanced);
        let boolean = names::boolean(value).is_some();
        Ok(match self {
            Self::Boolean | Self::Tristate => boolean,
            Self::Words | Self::Environment => words(Quoting::Quotes).map(|_| true)?,
            Self::SyscallFilter => split_words(value.strip_prefix('~').unwrap_or(value), Quoting::Escapes, None)
                .map(|_| true)
                .map_err(unbalanced)?,
            Self::AddressFamilies => {
                value == "none"
                    || split_words(
                        value.strip_prefix('~').unwrap_or(value),
                        Quoting::QuotesAndEscapes,
                        None,
                    )
                    .map_err(unbalanced)?
                    .iter()
                    .all(|word| names::is_address_family(word))
            }
            Self::Capabilities => words(Quoting::Escapes)?
                .iter()
                .all(|word| names::is_capability(word, systemd)),
            Self::UserName => !value
                .chars()
                .any(|c| c.is_ascii_control() || matches!(c, '"' | '\'' | '\\')),
            Self::UserNames => words(Quoting::Escapes)?.iter().all(|word| names::is_user_name(word)),
            Self::UserShell => is_plain_path(value) || boolean,
            Self::Signal => names::is_signal(value),
            Self::Personality => names::is_personality(value),
            Self::Id128 => is_id128(value),
            Self::Path => is_normal_path(value) && is_short_path(value),
            Self::PivotRoot => {
                let (new, old) = split_field(value).map_err(unbalanced)?;
                is_plain_path(&new) && old.is_none_or(|old| old.is_empty() || is_plain_path(old))
            }
            Self::PrivateUsers => {
                boolean
                    || matches!(value, "pick" | "identity")
                    || (value == "managed" && systemd >= names::MANAGED_USERS_SINCE)
                    || UserRange::parse(value).is_some()
            }
            Self::Rlimit(limit) => return limit.accepts(value),
            Self::Hostname => names::is_host_name(value),
            Self::OomScoreAdjust => integer_in(value, -1000, 1000).is_some(),
            Self::Unsigned => integer_in(value, 0, i128::from(u32::MAX)).is_some(),
            Self::CpuSet => split_words(value, Quoting::QuotesAndEscapes, Some(','))
                .map_err(unbalanced)?
                .iter()
                .all(|word| cpu_range(word)),
            Self::ResolvConf => boolean || names::RESOLV_CONF_MODES.contains(&value),
            Self::LinkJournal => boolean || names::LINK_JOURNAL_MODES.contains(&value),
            Self::Timezone => boolean || names::TIMEZONE_MODES.contains(&value),
            Self::Volatile => boolean || matches!(value, "state" | "overlay"),
            Self::Ownership => {
                boolean
                    || matches!(value, "chown" | "map" | "auto")
                    || (value == "foreign" && systemd >= names::MANAGED_USERS_SINCE)
            }
            Self::Bind => is_bind(value).map_err(unbalanced)?,
            Self::Tmpfs => is_absolute(&split_field(value).map_err(unbalanced)?.0),
            Self::Inaccessible => is_absolute(value),
            Self::Overlay => is_overlay(&fields()?),
            Self::Interface => names::is_interface(value),
            Self::Zone => names::is_interface(&format!("vz-{value}")),
            Self::InterfacePairs if systemd < names::INTERFACE_PAIRS_SINCE => words(Quoting::Quotes).map(|_| true)?,
            Self::InterfacePairs => {
                let words = words(Quoting::Escapes)?;
                let mut right = true;
                for word in &words {
                    let (outside, inside) = split_field(word).map_err(unbalanced)?;
                    right &= names::is_interface(&outside)
                        && inside.is_none_or(|inside| inside.is_empty() || names::is_interface(inside));
                }
                right
            }
            Self::VethExtra => {
                let fields = fields()?;
                // A wrong second name is replaced by the first one, without a word.
                fields.len() <= 2 && fields.first().is_some_and(|name| names::is_interface(name))
            }
            Self::Port => port(value).is_some(),
        })
    }
}

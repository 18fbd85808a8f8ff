//! Settings of the unit that have names of their own in `machinist config`.

use super::command::{self, CommandError};
use super::console;
use super::topic::Topic;
use crate::nspawn::edit::{Edit, EditError};
use crate::nspawn::number::time_span;

/// What a value is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Command,
    Console,
    Restart,
    Slice,
    Span,
    Text,
}

/// One key.
#[derive(Debug, PartialEq, Eq)]
pub struct UnitKey {
    /// As `config set` takes it.
    pub name: &'static str,
    /// The file that it stands in.
    pub topic: Topic,
    /// The section there.
    pub section: &'static str,
    /// The key of systemd.unit(5), systemd.service(5) or systemd.resource-control(5).
    pub key: &'static str,
    kind: Kind,
}

/// All of them.
pub const KEYS: &[UnitKey] = &[
    UnitKey {
        name: "after-start",
        topic: Topic::Start,
        section: "Service",
        key: "ExecStartPost",
        kind: Kind::Command,
    },
    UnitKey {
        name: "after-stop",
        topic: Topic::Stop,
        section: "Service",
        key: "ExecStopPost",
        kind: Kind::Command,
    },
    UnitKey {
        name: "before-start",
        topic: Topic::Start,
        section: "Service",
        key: "ExecStartPre",
        kind: Kind::Command,
    },
    UnitKey {
        name: "console",
        topic: Topic::Console,
        section: "Service",
        key: "StandardInput",
        kind: Kind::Console,
    },
    UnitKey {
        name: "description",
        topic: Topic::Label,
        section: "Unit",
        key: "Description",
        kind: Kind::Text,
    },
    UnitKey {
        name: "restart",
        topic: Topic::Restart,
        section: "Service",
        key: "Restart",
        kind: Kind::Restart,
    },
    UnitKey {
        name: "slice",
        topic: Topic::Start,
        section: "Service",
        key: "Slice",
        kind: Kind::Slice,
    },
    UnitKey {
        name: "stop-timeout",
        topic: Topic::Stop,
        section: "Service",
        key: "TimeoutStopSec",
        kind: Kind::Span,
    },
];

/// What `stop-signal` is another name of: systemd-nspawn sends it to the machine's PID 1. `KillSignal=` of the unit would be
/// sent to systemd-nspawn, which knows SIGTERM only.
pub const STOP_SIGNAL: (&str, &str) = ("stop-signal", "Exec.KillSignal");

/// The values of `Restart=`, see systemd.service(5).
pub(super) const RESTART: [&str; 7] = [
    "no",
    "on-success",
    "on-failure",
    "on-abnormal",
    "on-watchdog",
    "on-abort",
    "always",
];

/// The values of `console`.
const INTERACTIVE: &str = "interactive";
const READ_ONLY: &str = "read-only";

/// What `restart` needs besides. A supervisor that was killed leaves a machine that is registered, and on systemd 257 a mount:
/// either refuses the next start. Nothing here is there after any other end.
pub const FORGET_KILLED: &str = "-/bin/sh -c 'exec >/dev/null 2>&1; busctl call org.freedesktop.machine1 \
     /org/freedesktop/machine1 org.freedesktop.machine1.Manager UnregisterMachine s %i; \
     umount --lazy /run/systemd/nspawn/unix-export/%i'";

/// Why a value is none of that key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UnitKeyError {
    /// Not of the form that is wanted.
    #[error("{key}= cannot be set to '{value}': expected {expected}")]
    Value {
        /// The key.
        key: &'static str,
        /// What was given.
        value: String,
        /// What is allowed.
        expected: String,
    },
    /// systemd would not run it.
    #[error("{key}= cannot be set: {source}")]
    Command {
        /// The key.
        key: &'static str,
        /// Why not.
        source: CommandError,
    },
    /// No file can say it.
    #[error("{key}= cannot be set: {source}")]
    Unwritable {
        /// The key.
        key: &'static str,
        /// Why not.
        source: EditError,
    },
}

/// The key of that name.
#[must_use]
pub fn find(name: &str) -> Option<&'static UnitKey> {
    KEYS.iter().find(|key| key.name == name)
}

/// The names that can be set, for messages.
#[must_use]
pub fn names() -> String {
    let mut names: Vec<&str> = KEYS.iter().map(|key| key.name).chain([STOP_SIGNAL.0]).collect();
    names.sort_unstable();
    names.join(", ")
}

impl UnitKey {
    /// Whether values add up.
    #[must_use]
    pub fn is_list(&self) -> bool {
        self.kind == Kind::Command
    }

    /// A value as the file is to have it.
    pub fn encode(&self, value: &str) -> Result<String, UnitKeyError> {
        let value = value.trim();
        let wrong = |expected: &str| {
            Err(UnitKeyError::Value {
                key: self.name,
                value: crate::machine::text::printable(value),
                expected: expected.to_owned(),
            })
        };
        crate::nspawn::edit::check_value(value)
            .map_err(|source| UnitKeyError::Unwritable { key: self.name, source })?;
        match self.kind {
            Kind::Command => match command::check(value) {
                Ok(_) => Ok(value.to_owned()),
                Err(source) => Err(UnitKeyError::Command { key: self.name, source }),
            },
            Kind::Console if value == INTERACTIVE => Ok(console::TERMINAL.to_owned()),
            Kind::Console if value == READ_ONLY => Ok(console::NOTHING.to_owned()),
            Kind::Console => wrong("interactive or read-only"),
            Kind::Restart if RESTART.contains(&value) => Ok(value.to_owned()),
            Kind::Restart => wrong(&RESTART.join(", ")),
            Kind::Span => match time_span(value, 1_000_000) {
                Some(0) => wrong("more than nothing, or 'infinity'"),
                Some(_) => Ok(value.to_owned()),
                None => wrong("a time span such as '90', '2min' or 'infinity'"),
            },
            Kind::Slice => match slice(value) {
                Some(slice) => Ok(slice),
                None => wrong("a name such as 'web', which means machine-web.slice"),
            },
            // Specifiers are resolved there, too.
            Kind::Text if value.is_empty() => wrong("some text"),
            Kind::Text => Ok(value.replace('%', "%%")),
        }
    }

    /// A value of the file as it is shown.
    #[must_use]
    pub fn decode(&self, value: &str) -> String {
        match self.kind {
            Kind::Text => value.replace("%%", "%"),
            Kind::Console if value == console::TERMINAL => INTERACTIVE.to_owned(),
            Kind::Console if value == console::NOTHING => READ_ONLY.to_owned(),
            Kind::Slice => {
                let inner = value
                    .strip_prefix("machine-")
                    .and_then(|rest| rest.strip_suffix(".slice"));
                inner.unwrap_or(value).to_owned()
            }
            _ => value.to_owned(),
        }
    }

    /// The edits that make an encoded value the only one.
    #[must_use]
    pub fn set(&self, value: String) -> Vec<Edit> {
        if self.is_list() {
            return self.reset().into_iter().chain([self.add(value)]).collect();
        }
        let interactive = self.kind == Kind::Console && value == console::TERMINAL;
        let starts_again = self.kind == Kind::Restart && value != "no";
        let set = Edit::Set {
            section: self.section.to_owned(),
            key: self.key.to_owned(),
            value,
        };
        match self.kind {
            Kind::Restart if starts_again => vec![set, forget_killed()],
            Kind::Restart => vec![set, forget_killed_no_more()],
            Kind::Console => [vec![set], console::companions(interactive)].concat(),
            _ => vec![set],
        }
    }

    /// The edit that adds an encoded value.
    #[must_use]
    pub fn add(&self, value: String) -> Edit {
        Edit::Append {
            section: self.section.to_owned(),
            key: self.key.to_owned(),
            value,
        }
    }

    /// The edits that take one encoded value out, or all of them.
    #[must_use]
    pub fn remove(&self, value: Option<String>) -> Vec<Edit> {
        let remove = Edit::Remove {
            section: self.section.to_owned(),
            key: self.key.to_owned(),
            value,
        };
        match self.kind {
            Kind::Restart => vec![remove, forget_killed_no_more()],
            Kind::Console => [vec![remove], console::companions(false)].concat(),
            _ => vec![remove],
        }
    }

    /// The edits that take all of them out.
    #[must_use]
    pub fn reset(&self) -> Vec<Edit> {
        self.remove(None)
    }
}

/// The slice of machines with this name, below machine.slice: `web` is machine-web.slice, each dash is a slice in a slice,
/// see systemd.slice(5). `None` for what is no such name, and for whole names of other slices.
#[must_use]
pub fn slice(name: &str) -> Option<String> {
    let plain = match name.strip_suffix(".slice") {
        Some(full) => full.strip_prefix("machine-")?,
        None => name.strip_prefix("machine-").unwrap_or(name),
    };
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b':');
    let is_sound = plain.len() <= 200 && plain.bytes().all(allowed) && !plain.split('-').any(str::is_empty);
    is_sound.then(|| format!("machine-{plain}.slice"))
}

/// Whether an edit only goes along with that of another key.
#[must_use]
pub fn is_companion(edit: &Edit) -> bool {
    [forget_killed(), forget_killed_no_more()].contains(edit)
        || console::companions(true).contains(edit)
        || console::companions(false).contains(edit)
}

fn forget_killed() -> Edit {
    Edit::Append {
        section: "Service".to_owned(),
        key: "ExecStopPost".to_owned(),
        value: FORGET_KILLED.to_owned(),
    }
}

fn forget_killed_no_more() -> Edit {
    Edit::Remove {
        section: "Service".to_owned(),
        key: "ExecStopPost".to_owned(),
        value: Some(FORGET_KILLED.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_written_as_systemd_reads_them() {
        for (key, value, file) in [
            ("restart", "on-failure", "on-failure"),
            ("stop-timeout", "2min 3s", "2min 3s"),
            ("stop-timeout", "infinity", "infinity"),
            ("console", "interactive", console::TERMINAL),
            ("console", "read-only", "null"),
            ("slice", "web", "machine-web.slice"),
            ("slice", "web-eu", "machine-web-eu.slice"),
            ("slice", "machine-web.slice", "machine-web.slice"),
            ("description", "100 % web", "100 %% web"),
            ("before-start", "/bin/true %i", "/bin/true %i"),
        ] {
            let key = find(key).unwrap();
            assert_eq!(key.encode(value).as_deref(), Ok(file));
            assert_eq!(key.encode(&key.decode(file)).as_deref(), Ok(file));
        }
    }

    #[test]
    fn slices_are_below_machine_slice() {
        for name in ["web", "machine-web", "machine-web.slice"] {
            assert_eq!(slice(name).as_deref(), Some("machine-web.slice"));
        }
        assert_eq!(slice("web-a").as_deref(), Some("machine-web-a.slice"));
        for name in [
            "",
            "-",
            "a--b",
            "-a",
            "a/b",
            "a b",
            ".slice",
            "ä",
            "\u{1b}",
            "web.slice",
            "machine.slice",
            "system.slice",
        ] {
            assert_eq!(slice(name), None, "{name}");
        }
    }

    #[test]
    fn others_are_refused() {
        for (key, value) in [
            ("restart", "maybe"),
            ("console", "tty"),
            ("restart", ""),
            ("stop-timeout", "soon"),
            ("stop-timeout", "0"),
            ("slice", ""),
            ("slice", "a/b"),
            ("slice", "-a"),
            ("slice", "a--b"),
            ("slice", "system.slice"),
            ("description", "a\nb"),
            ("description", "ends in \\"),
            ("before-start", "true"),
        ] {
            assert!(find(key).unwrap().encode(value).is_err(), "{key}={value}");
        }
        assert!(names().contains("stop-signal"));
    }
}

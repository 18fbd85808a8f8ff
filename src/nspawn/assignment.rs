//! `Section.Key=Value`, as the command line writes a setting.

use super::edit::{Edit, EditError, check_value};
use super::schema::{Key, find};
use super::suggest::{nearest_key, nearest_section};
use super::value::{Empty, ValueError, ValueType, quoted};
use super::words::{Quoting, split_words};

/// A setting that systemd.nspawn(5) knows, with a value that it takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Assignment {
    /// The key, out of the schema.
    pub key: &'static Key,
    /// The value, without white space around it.
    pub value: String,
}

/// Why a string is no assignment.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AssignmentError {
    /// No `=`, or no `.` before it.
    #[error("{} is not of the form SECTION.KEY=VALUE, such as Exec.KillSignal=SIGTERM", quoted(.text))]
    Form {
        /// What was given.
        text: String,
    },
    /// No such section or key.
    #[error("there is no setting {}{}", quoted(.path), suggestion(.nearest.as_deref()))]
    Unknown {
        /// `Section.Key` as given.
        path: String,
        /// What was probably meant.
        nearest: Option<String>,
    },
    /// The key does not take this value.
    #[error("{path}= cannot be set: {source}")]
    Value {
        /// `Section.Key`.
        path: String,
        /// What is wrong with the value.
        source: ValueError,
    },
    /// No file can say this value.
    #[error("{path}= cannot be set: {source}")]
    Unwritable {
        /// `Section.Key`.
        path: String,
        /// What is wrong with the value.
        source: EditError,
    },
}

/// `, did you mean '…'?`
pub(super) fn suggestion(nearest: Option<&str>) -> String {
    nearest
        .map(|name| format!(", did you mean '{name}'?"))
        .unwrap_or_default()
}

/// Reads `Section.Key=Value` and checks it against the schema, as the newest systemd would.
///
/// An empty value is accepted where systemd takes it to mean the default.
pub fn parse_assignment(text: &str) -> Result<Assignment, AssignmentError> {
    let form = || AssignmentError::Form { text: text.to_owned() };
    let (path, value) = text.split_once('=').ok_or_else(form)?;
    let (path, value) = (path.trim(), value.trim());
    let key = parse_key(path).map_err(|error| match error {
        AssignmentError::Form { .. } => form(),
        other => other,
    })?;
    check_value(value).map_err(|source| AssignmentError::Unwritable {
        path: key.path(),
        source,
    })?;
    check_strictly(key, value).map_err(|source| AssignmentError::Value {
        path: key.path(),
        source,
    })?;
    Ok(Assignment {
        key,
        value: value.to_owned(),
    })
}

/// Reads `Section.Key` and finds it in the schema.
pub fn parse_key(path: &str) -> Result<&'static Key, AssignmentError> {
    let unknown = |nearest| AssignmentError::Unknown {
        path: path.to_owned(),
        nearest,
    };
    let Some((section, name)) = path.split_once('.') else {
        // `Bridge=br0`: say where it belongs.
        let near = nearest_key("", path).filter(|_| !path.is_empty());
        return Err(near.map_or_else(
            || AssignmentError::Form { text: path.to_owned() },
            |near| unknown(Some(near)),
        ));
    };
    find(section, name).ok_or_else(|| {
        let section = nearest_section(section).unwrap_or(section);
        unknown(nearest_key(section, name))
    })
}

/// What systemd would take, but no one can mean, is refused too.
fn check_strictly(key: &Key, value: &str) -> Result<(), ValueError> {
    key.value.check(value)?;
    let unexpected = || ValueError::Unexpected {
        value: value.to_owned(),
        expected: key.value.allowed(),
    };
    let sound = match key.value {
        ValueType::Environment => split_words(value, Quoting::Quotes, None)
            .is_ok_and(|words| words.iter().all(|word| word.find('=').is_some_and(|at| at > 0))),
        _ => !value.is_empty() || key.value.empty(super::schema::NEWEST_SYSTEMD) != Empty::Value,
    };
    if sound { Ok(()) } else { Err(unexpected()) }
}

impl Assignment {
    /// The edit that brings it into a file: lists are added to, other keys are set.
    #[must_use]
    pub fn into_edit(self) -> Edit {
        let (section, key, value) = (self.key.section.to_owned(), self.key.name.to_owned(), self.value);
        if self.key.is_list() {
            Edit::Add { section, key, value }
        } else {
            Edit::Set { section, key, value }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn good_assignments_are_read() {
        let read = parse_assignment(" Network.Bridge = br0 ").unwrap();
        assert_eq!(
            (read.key.path().as_str(), read.value.as_str()),
            ("Network.Bridge", "br0")
        );
        assert_eq!(parse_assignment("Exec.Environment=A=b=c").unwrap().value, "A=b=c");
        assert_eq!(parse_assignment("Exec.Hostname=").unwrap().value, "");
    }

    #[test]
    fn errors_say_what_to_do() {
        for (text, message) in [
            (
                "Network.Brigde=br0",
                "there is no setting 'Network.Brigde', did you mean 'Network.Bridge'?",
            ),
            (
                "network.bridge=br0",
                "there is no setting 'network.bridge', did you mean 'Network.Bridge'?",
            ),
            (
                "Bridge=br0",
                "there is no setting 'Bridge', did you mean 'Network.Bridge'?",
            ),
            (
                "Exec.Bind=/srv",
                "there is no setting 'Exec.Bind', did you mean 'Files.Bind'?",
            ),
            ("Foo.Quux=1", "there is no setting 'Foo.Quux'"),
            (
                "nonsense",
                "'nonsense' is not of the form SECTION.KEY=VALUE, such as Exec.KillSignal=SIGTERM",
            ),
            (
                "=",
                "'=' is not of the form SECTION.KEY=VALUE, such as Exec.KillSignal=SIGTERM",
            ),
            (
                "Exec.Boot=perhaps",
                "Exec.Boot= cannot be set: 'perhaps' is not valid here: expected yes or no",
            ),
            (
                "Exec.Environment=FOO",
                "Exec.Environment= cannot be set: 'FOO' is not valid here: expected NAME=VALUE, quoted if there are \
                 spaces in it",
            ),
            (
                "Exec.Parameters=a\nb",
                "Exec.Parameters= cannot be set: the value 'a\\nb' contains a line break or another control character",
            ),
        ] {
            assert_eq!(parse_assignment(text).unwrap_err().to_string(), message);
        }
    }
}

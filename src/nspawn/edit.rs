//! Changes to a .nspawn file as values, applied to as few lines as possible.

use super::document::{Document, Item};
use super::forms::port;
use super::line::LINE_MAX;
use super::patch::Patch;
use super::schema::{self, Key};
use super::settings::{EffectiveValue, effective_values};
use super::value::{Empty, ValueError, ValueType, quoted};
use super::words::{Quoting, split_words};

/// A change to one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Edit {
    /// Makes this the only value. An empty one removes the key; a key that is not in the schema gets `Key=`.
    Set {
        /// The section, without brackets.
        section: String,
        /// The key.
        key: String,
        /// The value.
        value: String,
    },
    /// Adds a value to a list, unless it is there; the same as `Set` for a key that is no list.
    Add {
        /// The section, without brackets.
        section: String,
        /// The key.
        key: String,
        /// The value.
        value: String,
    },
    /// Adds a line, unless there is the same: for lists of other files, whose keys are not in the schema.
    Append {
        /// The section, without brackets.
        section: String,
        /// The key.
        key: String,
        /// The value.
        value: String,
    },
    /// Sets one field of a list of `Key=FIELD=VALUE`, or removes it: for keys that are not in the schema.
    Field {
        /// The section, without brackets.
        section: String,
        /// The key.
        key: String,
        /// The field.
        field: String,
        /// Its value; `None` removes it.
        value: Option<String>,
    },
    /// Removes one value, or all of them.
    Remove {
        /// The section, without brackets.
        section: String,
        /// The key.
        key: String,
        /// The value, or every assignment of the key.
        value: Option<String>,
    },
    /// Brings back systemd's default: removes every assignment of the key, and of the old name that sets the same thing.
    Reset {
        /// The section, without brackets.
        section: String,
        /// The key.
        key: String,
    },
}

impl Edit {
    /// [`Edit::Set`].
    #[must_use]
    pub fn set(section: &str, key: &str, value: String) -> Self {
        let (section, key) = (section.to_owned(), key.to_owned());
        Self::Set { section, key, value }
    }

    /// [`Edit::Append`].
    #[must_use]
    pub fn append(section: &str, key: &str, value: String) -> Self {
        let (section, key) = (section.to_owned(), key.to_owned());
        Self::Append { section, key, value }
    }

    /// [`Edit::Remove`].
    #[must_use]
    pub fn remove(section: &str, key: &str, value: Option<String>) -> Self {
        let (section, key) = (section.to_owned(), key.to_owned());
        Self::Remove { section, key, value }
    }
}

/// Why an edit is refused. The document is unchanged then.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EditError {
    /// Not letters, digits and `-`.
    #[error("{} is no name of a section or key: only letters, digits and '-' are allowed", quoted(.name))]
    Name {
        /// What was given.
        name: String,
    },
    /// A line break would make two lines of it, and no key takes control characters.
    #[error("the value {} contains a line break or another control character", quoted(.value))]
    Control {
        /// What was given.
        value: String,
    },
    /// A backslash at the end of a line continues it, and nothing can be written instead.
    #[error("the value {} ends in a backslash, which would join the next line to it", quoted(.value))]
    TrailingBackslash {
        /// What was given.
        value: String,
    },
    /// systemd reads lines below 1 MiB only.
    #[error("the value is {length} bytes long, a line must stay below {LINE_MAX}")]
    TooLong {
        /// Its length.
        length: usize,
    },
    /// systemd would not take the value.
    #[error("{path}=: {source}")]
    Value {
        /// `Section.Key`.
        path: String,
        /// What is wrong with it.
        source: ValueError,
    },
    /// The file is broken in a way that makes systemd refuse it.
    #[error("line {line} must be repaired first: {reason}")]
    Broken {
        /// The line.
        line: usize,
        /// What is wrong with it.
        reason: super::document::FaultKind,
    },
}

/// Whether a value can be written into a file at all.
pub(crate) fn check_value(value: &str) -> Result<(), EditError> {
    let owned = || value.to_owned();
    if value
        .chars()
        .any(|c| c.is_control() || super::document::is_noncharacter(c))
    {
        return Err(EditError::Control { value: owned() });
    }
    if value.len() >= LINE_MAX / 2 {
        return Err(EditError::TooLong { length: value.len() });
    }
    let backslashes = value.bytes().rev().take_while(|&b| b == b'\\').count();
    if backslashes % 2 == 1 {
        Err(EditError::TrailingBackslash { value: owned() })
    } else {
        Ok(())
    }
}

fn check_name(name: &str) -> Result<(), EditError> {
    let sound = !name.is_empty() && name.len() <= 256 && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    if sound {
        Ok(())
    } else {
        Err(EditError::Name { name: name.to_owned() })
    }
}

impl Document {
    /// Applies one edit; says whether any byte changed.
    ///
    /// Lines that the edit does not concern, comments, order, line endings and the byte order mark stay as they are. The
    /// key need not be in the schema; one that is not counts as no list.
    pub fn apply(&mut self, edit: &Edit) -> Result<bool, EditError> {
        let (Edit::Set { section, key, .. }
        | Edit::Add { section, key, .. }
        | Edit::Append { section, key, .. }
        | Edit::Field { section, key, .. }
        | Edit::Remove { section, key, .. }
        | Edit::Reset { section, key }) = edit;
        check_name(section)?;
        check_name(key)?;
        if let Some(fault) = self.fatal() {
            return Err(EditError::Broken {
                line: fault.line,
                reason: fault.kind,
            });
        }
        let known = schema::find(section, key);
        let patches = match edit {
            Edit::Add { value, .. } if known.is_some_and(Key::is_list) => {
                self.add(section, key, sound(value, known)?, known)
            }
            Edit::Field { field, value, .. } => {
                let text = value.as_ref().map(|value| format!("{field}={value}"));
                self.field(
                    section,
                    key,
                    field,
                    text.as_deref().map(|text| sound(text, known)).transpose()?,
                )
            }
            Edit::Append { value, .. } => self.append(section, key, sound(value, known)?),
            Edit::Set { value, .. } | Edit::Add { value, .. } => self.set(section, key, sound(value, known)?, known),
            Edit::Remove { value: Some(value), .. } => self.remove(section, key, value.trim(), known),
            Edit::Remove { value: None, .. } => self.remove_all(section, key),
            Edit::Reset { .. } => {
                let mut patches = self.remove_all(section, key);
                if let Some(old) = known.and_then(Key::renamed) {
                    patches.extend(self.remove_all(section, old.name));
                }
                patches
            }
        };
        Ok(self.patch(patches))
    }

    /// Makes comments of the assignments that systemd does not heed in a file beside the image; says how many there were.
    ///
    /// In /etc/systemd/nspawn they would be heeded: a copy of the file must not give the image more than it had.
    pub fn comment_out_untrusted(&mut self) -> usize {
        // Also those that a later line sets again: without that one they would count.
        let untrusted = self.entries().filter(|entry| {
            let key = entry.section.and_then(|section| schema::find(section, entry.key));
            key.is_some_and(|key| key.needs_trust(entry.value))
        });
        let mut patches = Vec::new();
        let mut count = 0;
        for entry in untrusted {
            count += 1;
            let lines = self.lines_of(&self.items()[entry.index]);
            patches.extend(
                lines
                    .filter(|line| !line.is_comment())
                    .map(|line| (line.start..line.start, b"#".to_vec())),
            );
        }
        self.patch(patches);
        count
    }

    /// Items of one key in order, with their values.
    fn assignments(&self, section: &str, key: &str) -> Vec<(&Item, String, usize)> {
        self.entries_of(section, key)
            .map(|entry| (&self.items()[entry.index], entry.value.to_owned(), entry.index))
            .collect()
    }

    fn set(&self, section: &str, key: &str, value: &str, known: Option<&'static Key>) -> Vec<Patch> {
        let assignments = self.assignments(section, key);
        let Some((last, last_value, last_index)) = assignments.last() else {
            let insertion = self.insert(section, key, value);
            return match known {
                Some(known) if value.is_empty() && known.empty(schema::NEWEST_SYSTEMD) != Empty::Value => Vec::new(),
                Some(known) if !self.would_mean(&insertion, known, &kept(known, value)) => {
                    [insertion, self.remove_related(known)].concat()
                }
                _ => insertion,
            };
        };
        let Some(known) = known else {
            return if last_value == value {
                Vec::new()
            } else {
                vec![self.replace(last, key, value)]
            };
        };
        if value.is_empty() && known.empty(schema::NEWEST_SYSTEMD) != Empty::Value {
            return self.remove_all(section, key);
        }
        let effective = effective_values(self, known);
        let wanted = kept(known, value);
        if effective.iter().map(|v| &v.value).eq(&wanted) {
            return Vec::new();
        }
        let target = effective.last().map_or(*last_index, |value| value.index);
        let replace = |index: &usize, item: &Item| (*index == target).then(|| self.replace(item, key, value));
        let in_force = |index| known.is_list() && effective.iter().any(|value| value.index == index);
        let patches: Vec<Patch> = assignments
            .iter()
            .flat_map(|(item, _, index)| match replace(index, item) {
                Some(patch) => vec![patch],
                None if in_force(*index) => self.delete(item),
                None => Vec::new(),
            })
            .collect();
        if self.would_mean(&patches, known, &wanted) {
            return patches;
        }
        // Something else in the file stands against it, such as a reset behind it or `ProcessTwo=` against `Boot=`.
        let alone: Vec<Patch> = assignments
            .iter()
            .flat_map(|(item, _, index)| replace(index, item).map_or_else(|| self.delete(item), |patch| vec![patch]))
            .collect();
        if self.would_mean(&alone, known, &wanted) {
            return alone;
        }
        [alone, self.remove_related(known)].concat()
    }

    fn remove_related(&self, known: &Key) -> Vec<Patch> {
        known
            .related()
            .map(|other| self.remove_all(other.section, other.name))
            .unwrap_or_default()
    }

    fn would_mean(&self, patches: &[Patch], known: &'static Key, wanted: &[String]) -> bool {
        let mut trial = self.clone();
        trial.patch(patches.to_vec());
        effective_values(&trial, known).iter().map(|v| &v.value).eq(wanted)
    }

    fn add(&self, section: &str, key: &str, value: &str, known: Option<&'static Key>) -> Vec<Patch> {
        let Some(known) = known else {
            return self.insert(section, key, value);
        };
        // An empty assignment would take back what is there.
        if value.is_empty() && known.empty(schema::NEWEST_SYSTEMD) != Empty::Value {
            return Vec::new();
        }
        let effective = effective_values(self, known);
        let wanted = kept(known, value);
        if !wanted.is_empty() && wanted.iter().all(|word| effective.iter().any(|v| &v.value == word)) {
            return Vec::new();
        }
        // systemd forwards a port of the host once and ignores it later: the new value takes the place of the old one.
        let same_port = |v: &&EffectiveValue| known.value == ValueType::Port && port(&v.value) == port(value);
        if let Some(taken) = effective.iter().find(same_port) {
            return vec![self.replace(&self.items()[taken.index], key, value)];
        }
        match self.assignments(section, key).last() {
            Some((item, ..)) => self.insert_after(item, &format!("{key}={value}")),
            None => self.insert(section, key, value),
        }
    }

    fn append(&self, section: &str, key: &str, value: &str) -> Vec<Patch> {
        let assignments = self.assignments(section, key);
        match assignments.last() {
            _ if assignments.iter().any(|(_, text, _)| text == value) => Vec::new(),
            Some((item, ..)) => self.insert_after(item, &format!("{key}={value}")),
            None => self.insert(section, key, value),
        }
    }

    fn field(&self, section: &str, key: &str, field: &str, text: Option<&str>) -> Vec<Patch> {
        let mut assignments = self.assignments(section, key);
        assignments.retain(|(_, value, _)| value.split_once('=').is_some_and(|(name, _)| name.trim_end() == field));
        match (assignments.as_slice(), text) {
            ([], Some(text)) => self.append(section, key, text),
            ([(_, value, _)], Some(text)) if value == text => Vec::new(),
            ([(first, ..), others @ ..], Some(text)) => {
                let others = others.iter().flat_map(|(item, ..)| self.delete(item));
                std::iter::once(self.replace(first, key, text)).chain(others).collect()
            }
            (all, None) => all.iter().flat_map(|(item, ..)| self.delete(item)).collect(),
        }
    }

    fn remove(&self, section: &str, key: &str, value: &str, known: Option<&'static Key>) -> Vec<Patch> {
        let mut patches = Vec::new();
        for (item, text, _) in self.assignments(section, key) {
            if text == value {
                patches.extend(self.delete(item));
                continue;
            }
            let Some(words) = known.and_then(|known| word_list(known.value, &text)) else {
                continue;
            };
            let kept: Vec<&str> = words.iter().map(String::as_str).filter(|word| *word != value).collect();
            if kept.is_empty() {
                patches.extend(self.delete(item));
            } else if kept.len() < words.len() {
                patches.push(self.replace(item, key, &kept.join(" ")));
            }
        }
        patches
    }

    fn remove_all(&self, section: &str, key: &str) -> Vec<Patch> {
        self.assignments(section, key)
            .iter()
            .flat_map(|(item, ..)| self.delete(item))
            .collect()
    }
}

/// What the newest systemd takes of a value.
fn kept(known: &Key, value: &str) -> Vec<String> {
    known.value.keep(value, schema::NEWEST_SYSTEMD).0
}

fn sound<'a>(value: &'a str, known: Option<&'static Key>) -> Result<&'a str, EditError> {
    let value = value.trim_matches([' ', '\t']);
    check_value(value)?;
    if let Some(key) = known.filter(|_| !value.is_empty()) {
        key.value.check(value).map_err(|source| EditError::Value {
            path: key.path(),
            source,
        })?;
    }
    Ok(value)
}

/// The words of a value that is a plain list of words.
fn word_list(kind: ValueType, value: &str) -> Option<Vec<String>> {
    let plain = matches!(
        kind,
        ValueType::Capabilities | ValueType::UserNames | ValueType::InterfacePairs
    ) || (matches!(kind, ValueType::Words | ValueType::Environment) && !value.contains(['"', '\'']));
    (plain && !value.contains('\\'))
        .then(|| split_words(value, Quoting::Escapes, None).ok())
        .flatten()
}

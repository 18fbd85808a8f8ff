//! A setting on the command line: `SECTION.KEY` of systemd.nspawn(5), or a name of our own for one of the unit.

use crate::nspawn::assignment::{Assignment, parse_assignment, parse_key};
use crate::nspawn::edit::Edit;
use crate::nspawn::schema::Key;
use crate::ops::config::Wanted;
use crate::unit::key::{self, STOP_SIGNAL, UnitKey};
use crate::unit::topic::Topic;

/// What a setting is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Name {
    /// One of the .nspawn file.
    Nspawn(&'static Key),
    /// One of the unit.
    Unit(&'static UnitKey),
}

impl Name {
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let text = text.trim();
        if let Some(key) = key::find(text) {
            return Ok(Self::Unit(key));
        }
        let path = if text == STOP_SIGNAL.0 { STOP_SIGNAL.1 } else { text };
        parse_key(path).map(Self::Nspawn).map_err(|error| hinted(text, &error))
    }

    pub(super) fn is_list(self) -> bool {
        match self {
            Self::Nspawn(key) => key.is_list(),
            Self::Unit(key) => key.is_list(),
        }
    }

    pub(super) fn text(self) -> String {
        match self {
            Self::Nspawn(key) => key.path(),
            Self::Unit(key) => key.name.to_owned(),
        }
    }
}

/// A setting with its value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Setting {
    /// One of the .nspawn file.
    Nspawn(Assignment),
    /// One of the unit, with the value as the file has it; nothing brings systemd's default back.
    Unit(&'static UnitKey, String),
}

impl Setting {
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let (name, value) = text.split_once('=').unwrap_or((text, ""));
        match Name::parse(name) {
            Ok(Name::Unit(key)) if !text.contains('=') => {
                Err(format!("'{text}' is not of the form {}=VALUE", key.name))
            }
            Ok(Name::Unit(key)) if value.trim().is_empty() => Ok(Self::Unit(key, String::new())),
            Ok(Name::Unit(key)) => match key.encode(value) {
                Ok(value) => Ok(Self::Unit(key, value)),
                Err(error) => Err(error.to_string()),
            },
            Ok(Name::Nspawn(key)) if text.contains('=') => {
                let assignment = parse_assignment(&format!("{}={value}", key.path()));
                assignment.map(Self::Nspawn).map_err(|error| error.to_string())
            }
            _ => match parse_assignment(text) {
                Ok(assignment) => Ok(Self::Nspawn(assignment)),
                Err(error) => Err(hinted(name, &error)),
            },
        }
    }

    pub(super) fn name(&self) -> Name {
        match self {
            Self::Nspawn(assignment) => Name::Nspawn(assignment.key),
            Self::Unit(key, _) => Name::Unit(key),
        }
    }

    /// The value, as it is typed.
    pub(super) fn value(&self) -> String {
        match self {
            Self::Nspawn(assignment) => assignment.value.clone(),
            Self::Unit(key, value) => key.decode(value),
        }
    }
}

/// A word without a dot may be meant for one of the unit's.
fn hinted(name: &str, error: &impl std::fmt::Display) -> String {
    if name.contains('.') {
        error.to_string()
    } else {
        format!("{error}; settings of the unit are {}", key::names())
    }
}

/// The settings as they were typed, for the list of changes.
pub(super) fn words(settings: &[Setting]) -> String {
    let words: Vec<String> = settings
        .iter()
        .map(|setting| format!("{}={}", setting.name().text(), setting.value()))
        .collect();
    words.join(" ")
}

/// Edits of the .nspawn file and of drop-ins.
#[derive(Debug, Default)]
pub(super) struct Edits {
    pub(super) settings: Vec<Edit>,
    pub(super) drop_ins: Vec<(Topic, Edit)>,
}

impl Edits {
    /// Adds a setting to what was there, or sets it if it is no list.
    pub(super) fn add(&mut self, setting: Setting) {
        match setting {
            Setting::Nspawn(assignment) => self.settings.push(assignment.into_edit()),
            Setting::Unit(key, value) if key.is_list() && !value.is_empty() => {
                self.drop_ins.push((key.topic, key.add(value)));
            }
            setting @ Setting::Unit(..) => self.set(setting),
        }
    }

    /// Makes a setting the only value.
    pub(super) fn set(&mut self, setting: Setting) {
        match setting {
            Setting::Nspawn(assignment) => self.settings.push(Edit::Set {
                section: assignment.key.section.to_owned(),
                key: assignment.key.name.to_owned(),
                value: assignment.value,
            }),
            Setting::Unit(key, value) if value.is_empty() => self.unit(key.topic, key.reset()),
            Setting::Unit(key, value) => self.unit(key.topic, key.set(value)),
        }
    }

    /// Adds edits of a drop-in.
    pub(super) fn unit(&mut self, topic: Topic, edits: Vec<Edit>) {
        self.drop_ins.extend(edits.into_iter().map(|edit| (topic, edit)));
    }
}

impl From<Edits> for Wanted {
    fn from(edits: Edits) -> Self {
        Self::Edits {
            settings: edits.settings,
            drop_ins: edits.drop_ins,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_both_kinds_are_read() {
        let read = |text: &str| Setting::parse(text).map(|setting| (setting.name().text(), setting.value()));
        for (text, name, value) in [
            ("Exec.Boot=yes", "Exec.Boot", "yes"),
            ("stop-signal=SIGUSR2", "Exec.KillSignal", "SIGUSR2"),
            ("restart=always", "restart", "always"),
            ("slice=web", "slice", "web"),
            ("slice=", "slice", ""),
            ("before-start=/bin/sh -c 'x=1'", "before-start", "/bin/sh -c 'x=1'"),
        ] {
            assert_eq!(read(text), Ok((name.to_owned(), value.to_owned())), "{text}");
        }
        for (text, message) in [
            ("restart", "'restart' is not of the form restart=VALUE"),
            ("restart=perhaps", "expected no, on-success"),
            ("stop-signal=SIGNONE", "Exec.KillSignal= cannot be set"),
            ("restat=no", "settings of the unit are after-start"),
            ("Exec.Boto=no", "did you mean 'Exec.Boot'?"),
        ] {
            let error = read(text).unwrap_err();
            assert!(error.contains(message), "{text}: {error}");
        }
    }
}

//! The settings that are in force, as a given systemd reads them from a file.

use std::collections::HashSet;

use super::document::{Document, Entry, FaultKind, Kind};
use super::forms::is_repeated_port;
pub use super::ignored::{Ignored, Reason};
use super::schema::{KEYS, Key, NEWEST_SYSTEMD, SECTIONS};
use super::value::{Empty, ValueType};

/// What a .nspawn file means.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    settings: Vec<Setting>,
    ignored: Vec<Ignored>,
}

/// A key that has an effect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting {
    /// The key, out of the schema.
    pub key: &'static Key,
    /// One value, or for a list the values in order; lists of words are split into words.
    pub values: Vec<EffectiveValue>,
}

/// A value in force and where it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EffectiveValue {
    /// The value.
    pub value: String,
    /// The line that systemd would name: the last physical one of the assignment.
    pub line: usize,
    /// The first line of the assignment: the same, unless it is continued.
    pub first_line: usize,
    /// The assignment's place among the items of the document.
    pub(super) index: usize,
}

impl Settings {
    /// What `document` means to that systemd; `trusted` for a file in /etc/systemd/nspawn or /run/systemd/nspawn.
    ///
    /// If a line is fatal, see [`Ignored::fatal`], systemd goes no further, and nothing is in force.
    #[must_use]
    pub fn effective(document: &Document, systemd_version: u32, trusted: bool) -> Self {
        let mut reader = Reader::new(systemd_version);
        for line in read_lines(document, systemd_version) {
            match line {
                DocumentLine::Entry(entry) => reader.entry(&entry),
                DocumentLine::Other(ignored) => reader.ignored.push(ignored),
            }
            if reader.ignored.last().is_some_and(|last| last.fatal) {
                return Self {
                    settings: Vec::new(),
                    ignored: reader.ignored,
                };
            }
        }
        if !trusted {
            reader.distrust();
        }
        reader.drop_lone_parameters();
        reader.finish()
    }

    /// The keys that have an effect, in the order of the schema.
    #[must_use]
    pub fn settings(&self) -> &[Setting] {
        &self.settings
    }

    /// Lines without effect, in the order of the file.
    #[must_use]
    pub fn ignored(&self) -> &[Ignored] {
        &self.ignored
    }

    /// The line for which systemd refuses the file.
    #[must_use]
    pub fn fatal(&self) -> Option<&Ignored> {
        self.ignored.iter().find(|ignored| ignored.fatal)
    }

    /// The values in force of one key; none if it is not set.
    #[must_use]
    pub fn values(&self, section: &str, key: &str) -> &[EffectiveValue] {
        let found = self
            .settings
            .iter()
            .find(|setting| setting.key.section == section && setting.key.name == key);
        found.map_or(&[], |setting| setting.values.as_slice())
    }

    /// The last value in force of one key.
    #[must_use]
    pub fn value(&self, section: &str, key: &str) -> Option<&str> {
        self.values(section, key).last().map(|value| value.value.as_str())
    }
}

/// The values of one key to the newest systemd, for edits.
pub(super) fn effective_values(document: &Document, key: &'static Key) -> Vec<EffectiveValue> {
    let mut reader = Reader::new(NEWEST_SYSTEMD);
    let related = key.related().map(|other| other.name);
    let concerns = |name: &str| name == key.name || related == Some(name);
    for entry in document
        .entries()
        .filter(|entry| entry.section == Some(key.section) && concerns(entry.key))
    {
        reader.entry(&entry);
    }
    let at = position(key);
    reader.values.swap_remove(at)
}

fn position(key: &Key) -> usize {
    KEYS.iter()
        .position(|known| std::ptr::eq(known, key))
        .unwrap_or_default()
}

enum DocumentLine<'a> {
    Entry(Entry<'a>),
    Other(Ignored),
}

/// Assignments in known sections, and what else systemd has to say, in the order of the file.
fn read_lines(document: &Document, systemd: u32) -> impl Iterator<Item = DocumentLine<'_>> {
    let known = |section: &str| SECTIONS.contains(&section);
    document.with_sections().filter_map(move |(index, section, item)| {
        let ignored = |reason, fatal| {
            Some(DocumentLine::Other(Ignored {
                line: item.line,
                first_line: item.first_line,
                reason,
                fatal,
                index,
            }))
        };
        match (&item.kind, section) {
            (Kind::Header(name), _)
                if systemd >= STRICT_HEADERS_SINCE && (name.is_empty() || name.contains(['*', '?', '['])) =>
            {
                ignored(FaultKind::UnsafeHeader.into(), true)
            }
            (Kind::Header(name), _) if !known(name) && !name.starts_with("X-") => {
                let section = name.to_string();
                ignored(Reason::UnknownSection { section }, false)
            }
            (Kind::Entry { .. }, None) => ignored(Reason::OutsideSection, false),
            (Kind::Entry { key, value }, Some(section)) if known(section) => {
                Some(DocumentLine::Entry(item.entry(index, Some(section), key, value)))
            }
            (Kind::Fault(kind), _) if kind.is_fatal() => ignored((*kind).into(), true),
            (Kind::Fault(kind), Some(section)) if known(section) => ignored((*kind).into(), false),
            _ => None,
        }
    })
}

/// The first systemd seen to refuse a file for a header that is empty or contains `*`, `?` or `[`.
const STRICT_HEADERS_SINCE: u32 = 262;

/// Takes assignments one after the other, as systemd's parsers do.
struct Reader {
    systemd: u32,
    values: Vec<Vec<EffectiveValue>>,
    ignored: Vec<Ignored>,
    ports: HashSet<(&'static str, u16)>,
}

impl Reader {
    fn new(systemd: u32) -> Self {
        Self {
            systemd,
            values: vec![Vec::new(); KEYS.len()],
            ignored: Vec::new(),
            ports: HashSet::new(),
        }
    }

    fn ignore(&mut self, entry: &Entry<'_>, reason: Reason, fatal: bool) {
        self.ignored.push(Ignored {
            line: entry.line,
            first_line: entry.first_line,
            reason,
            fatal,
            index: entry.index,
        });
    }

    /// Takes all values of a key back.
    fn forget(&mut self, at: usize, reason: &Reason) {
        let mut lines: Vec<(usize, usize, usize)> = self.values[at]
            .drain(..)
            .map(|value| (value.line, value.first_line, value.index))
            .collect();
        lines.dedup();
        self.ignored
            .extend(lines.into_iter().map(|(line, first_line, index)| Ignored {
                line,
                first_line,
                reason: reason.clone(),
                fatal: false,
                index,
            }));
    }

    fn entry(&mut self, entry: &Entry<'_>) {
        let Some(section) = entry.section else { return };
        let found = KEYS
            .iter()
            .position(|key| key.section == section && key.name == entry.key);
        let Some(at) = found else {
            if !entry.key.starts_with("X-") {
                let (section, key) = (section.to_owned(), entry.key.to_owned());
                self.ignore(entry, Reason::UnknownKey { section, key }, false);
            }
            return;
        };
        let key = &KEYS[at];
        if !key.known_to(self.systemd) {
            let reason = Reason::TooNew {
                path: key.path(),
                since: key.since,
                running: self.systemd,
            };
            self.ignore(entry, reason, false);
            return;
        }
        if self.contradicts(key, entry.value) {
            self.ignore(entry, Reason::StartModeConflict { path: key.path() }, false);
            return;
        }
        if key.value == ValueType::Port && is_repeated_port(&mut self.ports, entry.value) {
            self.ignore(
                entry,
                Reason::RepeatedPort {
                    value: entry.value.to_owned(),
                },
                false,
            );
            return;
        }
        let (kept, complaint) = key.value.keep(entry.value, self.systemd);
        let taken = complaint.is_none() || !kept.is_empty();
        if let Some(source) = complaint {
            let fatal = key.value.bad_value_is_fatal(entry.value, self.systemd);
            self.ignore(
                entry,
                Reason::Value {
                    path: key.path(),
                    source,
                },
                fatal,
            );
        }
        if taken {
            self.take(at, entry, kept);
        }
    }

    fn take(&mut self, at: usize, entry: &Entry<'_>, kept: Vec<String>) {
        let key = &KEYS[at];
        let resets = entry.value.is_empty() && key.empty(self.systemd) == Empty::Resets;
        let starts_over = key.value == ValueType::AddressFamilies && entry.value == "none";
        if resets || starts_over || !key.is_list() {
            self.values[at].clear();
        }
        // Two names of one thing: the later line wins.
        if let Some(other) = key.renamed() {
            self.values[position(other)].clear();
        }
        let new = kept.into_iter().map(|value| EffectiveValue {
            value,
            line: entry.line,
            first_line: entry.first_line,
            index: entry.index,
        });
        self.values[at].extend(new);
    }

    /// `Boot=` and `ProcessTwo=` set one start mode: a yes of the other stays, and so does one's own yes against a no.
    fn contradicts(&self, key: &Key, value: &str) -> bool {
        let other = match key.name {
            "Boot" => "ProcessTwo",
            "ProcessTwo" => "Boot",
            _ => return false,
        };
        let is_on = |name: &str| {
            let at = KEYS
                .iter()
                .position(|known| known.section == "Exec" && known.name == name);
            let last = at.and_then(|at| self.values[at].last());
            last.is_some_and(|last| super::names::boolean(&last.value) == Some(true))
        };
        match super::names::boolean(value) {
            Some(true) => is_on(other),
            Some(false) => is_on(key.name),
            None => false,
        }
    }

    /// Takes back what a file that is not trusted cannot set.
    fn distrust(&mut self) {
        for (at, key) in KEYS.iter().enumerate() {
            if !self.values[at].iter().any(|value| key.needs_trust(&value.value)) {
                continue;
            }
            self.forget(at, &Reason::NotTrusted { path: key.path() });
        }
    }

    fn drop_lone_parameters(&mut self) {
        let is_set = |name: &str, values: &[Vec<EffectiveValue>]| {
            KEYS.iter()
                .zip(values)
                .any(|(key, values)| key.section == "Exec" && key.name == name && !values.is_empty())
        };
        if is_set("Boot", &self.values) || is_set("ProcessTwo", &self.values) {
            return;
        }
        let Some(at) = KEYS
            .iter()
            .position(|key| key.section == "Exec" && key.name == "Parameters")
        else {
            return;
        };
        self.forget(at, &Reason::ParametersAlone);
    }

    fn finish(mut self) -> Settings {
        self.ignored.sort_by_key(|ignored| ignored.line);
        let settings = KEYS
            .iter()
            .zip(self.values)
            .filter(|(_, values)| !values.is_empty())
            .map(|(key, values)| Setting { key, values })
            .collect();
        Settings {
            settings,
            ignored: self.ignored,
        }
    }
}

//! Fragment, drop-ins and properties of a unit, merged as systemd merges them.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap};

use serde_json::Value;

use super::command::{arguments, is_word};
use super::keys::{Kind, Knowledge, knowledge, property};
use super::value::{Command, agrees, contains, loaded_commands, shown};
use crate::machine::setting::{Origin, Setting, Source, State};
use crate::nspawn::document::{Document, Entry};

/// A unit file or drop-in, in the order in which systemd reads them.
#[derive(Debug)]
pub struct UnitFile {
    /// Where it lies.
    pub path: String,
    /// What kind of place that is.
    pub source: Source,
    /// What is in it.
    pub document: Document,
    /// Whether systemd heeds it.
    pub status: Status,
}

/// Whether systemd heeds a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Status {
    /// It has read it.
    Read,
    /// It has read it, but not since it was changed.
    Changed,
    /// It has not read it yet.
    New,
    /// It finds a file of the same name first.
    Shadowed(String),
}

/// What the unit of a machine says, and what systemd has in memory.
#[derive(Clone, Copy, Debug)]
pub struct Unit<'a> {
    /// The version of systemd.
    pub systemd: u32,
    /// `NeedDaemonReload`: files were changed, or removed, since it read them.
    pub need_reload: bool,
    /// Its files, the fragment first.
    pub files: &'a [UnitFile],
    /// Every property of it.
    pub properties: &'a BTreeMap<String, Value>,
}

/// An assignment and the file it stands in.
#[derive(Clone, Copy, Debug)]
struct Said<'a> {
    file: &'a UnitFile,
    entry: Entry<'a>,
}

const UNREAD: &str = "systemd has not read it yet: run `systemctl daemon-reload`";

impl Unit<'_> {
    /// Every assignment of the unit's files, with its state; sorted by section, then in the order of the files.
    #[must_use]
    pub fn settings(&self) -> Vec<Setting> {
        let (mut rows, mut refused) = (Vec::new(), Vec::new());
        let mut order: Vec<(&str, &str)> = Vec::new();
        let mut keys: HashMap<(&str, &str), Vec<Said<'_>>> = HashMap::new();
        for file in self.files {
            let cut = file.document.fatal().map(|fault| fault.line);
            for entry in file.document.entries().filter(|entry| !is_note(entry)) {
                let said = Said { file, entry };
                match self.refused(&said, cut) {
                    Some(row) => refused.push(row),
                    None => {
                        let key = (entry.section.unwrap_or_default(), entry.key);
                        let all = keys.entry(key).or_default();
                        if all.is_empty() {
                            order.push(key);
                        }
                        all.push(said);
                    }
                }
            }
            refused.extend(file.document.faults().map(|fault| {
                let row = Setting::new(
                    fault.section.unwrap_or_default(),
                    "",
                    line_of(&file.document, fault.line),
                    Origin::line(file.source, &file.path, fault.line),
                );
                let row = Setting { key: None, ..row };
                row.but(State::Ignored, "bad-line", fault.kind.to_string())
            }));
        }
        for key in order {
            let all = keys.remove(&key).unwrap_or_default();
            rows.extend(self.key(key, &all));
        }
        rows.extend(refused);
        let section = |row: &Setting| match row.section.as_str() {
            "Unit" => 0,
            "Service" | "Scope" => 1,
            _ => 2,
        };
        rows.sort_by_key(section);
        rows
    }

    /// The line where a command stands: that which systemd runs, or is going to.
    #[must_use]
    pub fn origin_of(&self, rows: &[Setting], key: &str) -> Origin {
        let holds = |row: &&Setting| row.key.as_deref() == Some(key) && row.state == State::InForce;
        rows.iter()
            .rfind(holds)
            .map_or(Origin::DEFAULT, |row| row.origin.clone())
    }

    /// What no file says: the properties of these keys, as systemd's defaults have them.
    #[must_use]
    pub fn defaults(&self, rows: &[Setting], section: &str, names: &[&str]) -> Vec<Setting> {
        let is_said = |name: &str| {
            rows.iter()
                .any(|row| row.state == State::InForce && row.key.as_deref() == Some(name))
        };
        names
            .iter()
            .filter(|name| !is_said(name))
            .filter(|name| {
                !(name.ends_with("Weight") && self.properties.get(**name).and_then(Value::as_u64) == Some(u64::MAX))
            })
            .filter_map(|name| {
                let Knowledge::Known(kind) = knowledge(section, name, self.systemd) else {
                    return None;
                };
                let value = self.properties.get(&property(name))?;
                Some(Setting::new(section, name, shown(kind, value), Origin::DEFAULT))
            })
            .collect()
    }

    /// What systemd does not heed whatever else there is.
    fn refused(&self, said: &Said<'_>, cut: Option<usize>) -> Option<Setting> {
        let (entry, file) = (&said.entry, said.file);
        let refuse = |code, reason: String| Some(said.row().but(State::Ignored, code, reason));
        if let Status::Shadowed(by) = &file.status {
            return refuse("shadowed", format!("the file is not read: systemd finds '{by}' first"));
        }
        if cut.is_some_and(|line| entry.first_line > line) {
            return refuse(
                "file-refused",
                format!("nothing is read after line {}", cut.unwrap_or(0)),
            );
        }
        let Some(section) = entry.section else {
            return refuse("outside-section", "the line stands before the first section".to_owned());
        };
        if !matches!(section, "Unit" | "Service" | "Scope") {
            return refuse(
                "unknown-section",
                format!("a unit of this type has no section [{section}]"),
            );
        }
        match knowledge(section, entry.key, self.systemd) {
            Knowledge::Known(_) => None,
            Knowledge::Unknown => refuse("unknown-key", format!("systemd does not know this key in [{section}]")),
            Knowledge::TooNew(since) => refuse(
                "key-too-new",
                format!("systemd {} does not know it, systemd {since} does", self.systemd),
            ),
            Knowledge::Gone => refuse(
                "key-gone",
                format!("systemd {} does not heed it any more", self.systemd),
            ),
        }
    }

    fn key(&self, (section, name): (&str, &str), all: &[Said<'_>]) -> Vec<Setting> {
        let Knowledge::Known(kind) = knowledge(section, name, self.systemd) else {
            return Vec::new();
        };
        let property = self.properties.get(&property(name));
        match kind {
            Kind::Dependencies => all.iter().flat_map(|said| said.dependencies(property)).collect(),
            Kind::List if name.starts_with("Exec") => {
                let extended = self.properties.get(&format!("{name}Ex"));
                command_rows(all, &loaded_commands(property, extended))
            }
            Kind::List => list(name, all, property),
            _ => self.single(name, kind, all, property),
        }
    }

    /// Assignments of which one holds.
    fn single(&self, name: &str, kind: Kind, all: &[Said<'_>], property: Option<&Value>) -> Vec<Setting> {
        let mut rows = Vec::new();
        let mut holder: Option<&Said<'_>> = None;
        let mut unread: Option<&Said<'_>> = None;
        let mut refused = false;
        for said in all.iter().rev() {
            if let Some(holder) = holder {
                if !said.entry.value.is_empty() {
                    rows.push(said.replaced(holder));
                }
                continue;
            }
            let agrees = if said.entry.value.is_empty() {
                None
            } else {
                property.and_then(|has| agrees(name, kind, said.entry.value, has))
            };
            match (&said.file.status, agrees) {
                (_, Some(false)) if unread.is_some() => {
                    rows.extend(unread.map(|later| said.replaced(later)));
                }
                // What it was read after is gone.
                (Status::Read, Some(false)) if self.need_reload => {
                    unread = Some(said);
                    rows.push(said.pending());
                }
                (Status::New, _) | (Status::Changed, Some(false) | None) => {
                    unread = Some(said);
                    rows.push(said.pending());
                }
                (_, Some(false)) => {
                    refused = true;
                    let has = property.map(|has| shown(kind, has)).unwrap_or_default();
                    let reason = format!("systemd has '{has}' instead: another key says so, or the value is not valid");
                    rows.push(said.row().but(State::Ignored, "not-taken", reason));
                }
                _ => {
                    holder = Some(said);
                    if !said.entry.value.is_empty() {
                        rows.push(said.row());
                    }
                }
            }
        }
        if let (true, None, Some(has), Some(said)) = (refused || unread.is_some(), holder, property, all.first()) {
            let section = said.entry.section.unwrap_or_default();
            let origin = Origin {
                kind: Source::Manager,
                ..Origin::DEFAULT
            };
            rows.push(Setting::new(section, name, shown(kind, has), origin));
        }
        rows.reverse();
        rows.sort_by_key(|row| row.state != State::InForce);
        rows
    }
}

/// What is there for others to read.
fn is_note(entry: &Entry<'_>) -> bool {
    let section = entry.section.unwrap_or_default();
    section.starts_with("X-") || entry.key.starts_with("X-") || section == "Install"
}

fn line_of(document: &Document, number: usize) -> String {
    let line = document.lines().nth(number.saturating_sub(1));
    line.map_or(String::new(), |line| {
        let text: String = String::from_utf8_lossy(line.content).chars().take(200).collect();
        text.trim().to_owned()
    })
}

impl Said<'_> {
    fn origin(&self) -> Origin {
        Origin::line(self.file.source, &self.file.path, self.entry.first_line)
    }

    fn row(&self) -> Setting {
        let section = self.entry.section.unwrap_or_default();
        let mut row = Setting::new(section, self.entry.key, self.entry.value, self.origin());
        // Everybody may read it in the file; nobody has to see it on a screen.
        if self.entry.key.starts_with("SetCredential") && !row.value.is_empty() {
            let id = row.value.split(':').next().unwrap_or_default();
            row.value = format!("{id}:…");
        }
        row
    }

    fn pending(&self) -> Setting {
        self.row().but(State::Pending, "needs-reload", UNREAD)
    }

    fn not_taken(&self) -> Setting {
        let reason = "systemd has no such command: the value is not valid";
        self.row().but(State::Ignored, "not-taken", reason)
    }

    fn replaced(&self, by: &Said<'_>) -> Setting {
        let verb = if by.entry.value.is_empty() {
            "takes it back"
        } else {
            "sets it again"
        };
        let reason = format!("{}:{} {verb}", by.file.path, by.entry.first_line);
        self.row().but(State::Ignored, "overridden", reason)
    }

    fn is_unread(&self) -> bool {
        matches!(self.file.status, Status::New | Status::Changed)
    }

    /// One row a unit.
    fn dependencies(&self, property: Option<&Value>) -> Vec<Setting> {
        let unread = |word: &str| match self.file.status {
            Status::New => true,
            // Under another name it may be there.
            Status::Changed => property.and_then(|value| contains(word, value)) == Some(false),
            _ => false,
        };
        let words = self.entry.value.split_whitespace();
        words
            .map(|word| {
                let mut row = if unread(word) { self.pending() } else { self.row() };
                word.clone_into(&mut row.value);
                row
            })
            .collect()
    }
}

/// Assignments that add up.
fn list(name: &str, all: &[Said<'_>], property: Option<&Value>) -> Vec<Setting> {
    let takes_back = |said: &Said<'_>| said.file.status == Status::Read && said.entry.value.is_empty();
    let last_reset = all.iter().rposition(takes_back);
    let mut rows = Vec::new();
    for (at, said) in all.iter().enumerate() {
        if said.entry.value.is_empty() {
            continue;
        }
        let has = property.and_then(|value| contains(said.entry.value, value));
        if said.is_unread() && has != Some(true) {
            rows.push(said.pending());
            continue;
        }
        if let Some(reset) = last_reset.filter(|reset| at < *reset) {
            rows.push(said.replaced(&all[reset]));
            continue;
        }
        // Of one variable the last assignment counts.
        let variable = said.entry.value.split_once('=').map(|(variable, _)| variable);
        let again = (name == "Environment" && has == Some(false))
            .then(|| {
                let same = |other: &&Said<'_>| other.entry.value.split_once('=').map(|(name, _)| name) == variable;
                all[at + 1..].iter().find(same)
            })
            .flatten();
        if let Some(later) = again {
            rows.push(said.replaced(later));
            continue;
        }
        rows.push(said.row());
    }
    rows
}

/// Commands, each with the line that it stands in: systemd does not say which, has left out what it does not take, and has
/// filled in its specifiers.
fn command_rows(all: &[Said<'_>], loaded: &[Command]) -> Vec<Setting> {
    let last_reset = all
        .iter()
        .rposition(|said| said.file.status == Status::Read && said.entry.value.is_empty());
    let mut rows = Vec::new();
    let mut left = loaded.iter().enumerate();
    let mut claimed = vec![false; loaded.len()];
    for (at, said) in all.iter().enumerate().filter(|(_, said)| !said.entry.value.is_empty()) {
        if let Some(reset) = last_reset.filter(|reset| at < *reset && !said.is_unread()) {
            rows.push(said.replaced(&all[reset]));
            continue;
        }
        if said.file.status == Status::New {
            rows.push(said.pending());
            continue;
        }
        let commands = arguments(said.entry.value);
        for words in commands.unwrap_or_else(|| vec![Vec::new()]) {
            let is_it = |(_, command): &(usize, &Command)| is_command(&words, &command.words);
            if let Some((number, command)) = left.clone().find(is_it) {
                claimed[number] = true;
                left = loaded.iter().enumerate();
                left.nth(number);
                let mut row = said.row();
                row.value.clone_from(&command.text);
                rows.push(row);
            } else if said.is_unread() {
                rows.push(said.pending());
            } else {
                rows.push(said.not_taken());
            }
        }
    }
    // What systemd runs and no file says any more.
    let section = all.first().and_then(|said| said.entry.section).unwrap_or_default();
    let key = all.first().map_or("", |said| said.entry.key);
    for (_, command) in loaded.iter().enumerate().filter(|(number, _)| !claimed[*number]) {
        let origin = Origin {
            kind: Source::Manager,
            ..Origin::DEFAULT
        };
        rows.push(Setting::new(section, key, command.text.clone(), origin));
    }
    rows
}

/// Whether these words of a file are that command.
fn is_command(written: &[String], has: &[String]) -> bool {
    written.len() == has.len() && written.iter().zip(has).all(|(written, has)| is_word(written, has))
}

//! A command line of systemd-nspawn and the .nspawn files of its machine, merged as `merge_settings()` of its source does.
//!
//! Groups of keys stand in for each other together: one network key of the file, and no network switch counts any more.

#[cfg(test)]
mod tests;

use std::collections::HashMap;

use super::document::{Document, Entry};
use super::schema::{KEYS, Key, SECTIONS, find};
use super::settings::{Ignored, Settings};
use super::switches::{CommandLine, Obey};
use crate::machine::setting::{COMMAND_LINE, Origin, Setting, Source, State};

/// A .nspawn file of a machine.
#[derive(Clone, Copy, Debug)]
pub struct File<'a> {
    /// Where it lies.
    pub path: &'a str,
    /// What is in it.
    pub document: &'a Document,
    /// Whether it lies where the administrator writes.
    pub trusted: bool,
    /// Whether the machine was started before the file was changed.
    pub changed: bool,
}

/// The code of what a file says that was changed after the machine was started.
const CHANGED: &str = "changed-since-start";

/// Who reads the files.
#[derive(Clone, Copy, Debug)]
pub struct Reader<'a> {
    /// The version of systemd.
    pub systemd: u32,
    /// The command line; `None` if it is not systemd-nspawn's.
    pub command: Option<&'a CommandLine>,
    /// Where the command line comes from.
    pub origin: &'a Origin,
}

/// What systemd-nspawn makes of its command line and the files, of which it reads the first: sorted by section and key.
#[must_use]
pub fn merge(reader: &Reader<'_>, files: &[File<'_>]) -> Vec<Setting> {
    let mut rows = Vec::new();
    let mut unread = files;
    let read = match (reader.command, files.split_first()) {
        (Some(command), Some((first, others))) if command.obey != Obey::No => {
            unread = others;
            Some(first)
        }
        _ => None,
    };
    let file = read.map(|file| Merged::read(reader, file));
    if let Some(command) = reader.command {
        rows.extend(of_command_line(reader, command, file.as_ref()));
    }
    if let Some(file) = &file {
        rows.extend(file.rows());
    }
    for hidden in unread {
        let (code, reason) = match (reader.command, read) {
            (None, _) => ("not-nspawn", "the machine is not run by systemd-nspawn".to_owned()),
            (_, Some(first)) => (
                "hidden-file",
                format!("the file is not read: systemd finds '{}' first", first.path),
            ),
            (_, None) => (
                "settings-off",
                "the command line of systemd-nspawn has --settings=no".to_owned(),
            ),
        };
        let unread = assignments(hidden).map(|row| row.but(State::Ignored, code, reason.clone()));
        rows.extend(cut(hidden, unread));
    }
    rows.sort_by_cached_key(rank);
    rows
}

/// The order of the manual; what systemd does not know comes after what it knows, switches without a key last.
fn rank(row: &Setting) -> (usize, usize, State) {
    let section = SECTIONS.iter().position(|section| *section == row.section);
    let key = KEYS
        .iter()
        .position(|key| key.section == row.section && row.key.as_deref() == Some(key.name));
    let last = usize::from(row.section == COMMAND_LINE);
    (
        section.unwrap_or(SECTIONS.len() + last),
        key.unwrap_or(KEYS.len()),
        row.state,
    )
}

/// Keys that one of them replaces together; see [`merge`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Group {
    StartMode,
    Capabilities,
    Network,
    Mounts,
    Users,
    Single(&'static str, &'static str),
}

impl Group {
    pub(super) fn of(key: &Key) -> Self {
        match (key.section, key.name) {
            ("Exec", "Boot" | "ProcessTwo" | "Parameters") => Self::StartMode,
            ("Exec", "Capability" | "DropCapability" | "AmbientCapability") => Self::Capabilities,
            ("Exec", "PrivateUsers") | ("Files", "PrivateUsersOwnership" | "PrivateUsersChown") => Self::Users,
            (
                "Files",
                "Bind" | "BindReadOnly" | "TemporaryFileSystem" | "Inaccessible" | "Overlay" | "OverlayReadOnly",
            ) => Self::Mounts,
            ("Network", name) if name != "Port" => Self::Network,
            (section, name) => Self::Single(section, name),
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::StartMode => "the keys of the start mode",
            Self::Capabilities => "capabilities",
            Self::Network => "the network keys",
            Self::Mounts => "mounts",
            Self::Users => "the keys of private users",
            Self::Single(..) => "they",
        }
    }
}

/// The key that first used each group, and its line.
type Used = HashMap<Group, (&'static Key, usize)>;

fn of_command_line(reader: &Reader<'_>, command: &CommandLine, file: Option<&Merged<'_>>) -> Vec<Setting> {
    let mut rows = Vec::new();
    for (at, (section, key, value)) in command.settings.iter().enumerate() {
        let row = Setting::new(section, key, value, reader.origin.clone());
        let Some(known) = find(section, key) else {
            rows.push(row);
            continue;
        };
        let group = Group::of(known);
        let over = file.filter(|_| command.obey == Obey::Override && group != Group::Capabilities);
        let again = || {
            let mut later = command.settings[at + 1..].iter();
            !known.is_list() && later.any(|(s, k, _)| s == section && k == key)
        };
        rows.push(match over.and_then(|file| file.taker(known, group)) {
            Some(reason) if file.is_some_and(|file| file.file.changed) => {
                let reason = format!("from the next start {reason}; what the file said before is not known");
                row.but(State::InForce, CHANGED, reason)
            }
            Some(reason) => row.but(State::Ignored, "overridden", reason),
            None if again() => row.but(State::Ignored, "overridden", "a later switch sets it again"),
            None => row,
        });
    }
    for (name, value) in &command.others {
        rows.push(Setting::new(
            COMMAND_LINE,
            name,
            value.as_deref().unwrap_or("yes"),
            reader.origin.clone(),
        ));
    }
    rows
}

/// The file that is read.
struct Merged<'a> {
    file: &'a File<'a>,
    settings: Settings,
    used: Used,
    /// What the command line keeps the file from setting.
    masked: Used,
}

impl<'a> Merged<'a> {
    fn read(reader: &Reader<'_>, file: &'a File<'a>) -> Self {
        let obey = reader.command.map_or(Obey::Yes, |command| command.obey);
        let trusted = file.trusted || obey == Obey::Trusted;
        let settings = Settings::effective(file.document, reader.systemd, trusted);
        let mut used = Used::new();
        for setting in settings.settings() {
            let line = setting.values.first().map_or(0, |value| value.first_line);
            used.entry(Group::of(setting.key)).or_insert((setting.key, line));
        }
        let mut masked = Used::new();
        if obey != Obey::Override {
            let said = reader.command.map_or(&[][..], |command| &command.settings);
            for key in said.iter().filter_map(|(section, key, _)| find(section, key)) {
                masked.entry(Group::of(key)).or_insert((key, 0));
            }
        }
        Self {
            file,
            settings,
            used,
            masked,
        }
    }

    /// Why a switch of that group does not count.
    fn taker(&self, key: &Key, group: Group) -> Option<String> {
        let (first, line) = self.used.get(&group)?;
        let path = self.file.path;
        Some(match self.settings.values(key.section, key.name).last() {
            Some(same) => format!("{path}:{} sets it", same.first_line),
            None => format!(
                "{}= in {path}:{line} takes its place: {} replace those of the command line together",
                first.name,
                group.name()
            ),
        })
    }

    fn rows(&self) -> Vec<Setting> {
        let mut values: HashMap<usize, Vec<(&'static Key, &str)>> = HashMap::new();
        for setting in self.settings.settings() {
            for value in &setting.values {
                let all = values.entry(value.first_line).or_default();
                all.push((setting.key, &value.value));
            }
        }
        let mut ignored: HashMap<usize, Vec<&Ignored>> = HashMap::new();
        for one in self.settings.ignored() {
            ignored.entry(one.first_line).or_default().push(one);
        }
        let mut last: HashMap<(&str, &str), Entry<'_>> = HashMap::new();
        for entry in self.file.document.entries() {
            last.insert((entry.section.unwrap_or_default(), entry.key), entry);
        }
        let mut rows = Vec::new();
        for entry in self.file.document.entries() {
            let taken = values.remove(&entry.first_line).unwrap_or_default();
            let refused = ignored.remove(&entry.first_line).unwrap_or_default();
            let is_silent = taken.is_empty() && refused.is_empty();
            rows.extend(taken.into_iter().map(|(key, value)| self.value(key, value, &entry)));
            rows.extend(
                refused
                    .into_iter()
                    .map(|ignored| refuse(row_of(self.file, &entry), ignored)),
            );
            if is_silent {
                rows.extend(self.silent(&entry, &last));
            }
        }
        rows.extend(self.without_assignment(ignored));
        let (ignored, mut rows): (Vec<_>, Vec<_>) = rows.into_iter().partition(|row| row.state == State::Ignored);
        rows.extend(cut(self.file, ignored.into_iter()));
        rows.extend(self.implied());
        rows
    }

    /// Lines without '=', and headers.
    fn without_assignment(&self, left: HashMap<usize, Vec<&Ignored>>) -> Vec<Setting> {
        let mut left: Vec<&Ignored> = left.into_values().flatten().collect();
        left.sort_by_key(|ignored| ignored.first_line);
        let mut lines = self.file.document.lines().peekable();
        left.into_iter()
            .map(|ignored| {
                while lines.next_if(|line| line.number < ignored.first_line).is_some() {}
                let text = lines.peek().map_or(&[][..], |line| line.content);
                let text: String = String::from_utf8_lossy(text).chars().take(200).collect();
                let row = Setting {
                    key: None,
                    ..Setting::new("", "", text.trim(), self.origin(ignored.first_line))
                };
                refuse(row, ignored)
            })
            .collect()
    }

    fn origin(&self, line: usize) -> Origin {
        Origin::line(Source::Nspawn, self.file.path, line)
    }

    /// A value that systemd takes from the file.
    fn value(&self, key: &'static Key, value: &str, entry: &Entry<'_>) -> Setting {
        let row = Setting::new(key.section, key.name, value, self.origin(entry.first_line));
        let group = Group::of(key);
        if let Some((switch, _)) = self.masked.get(&group) {
            let reason = format!(
                "the command line of systemd-nspawn says {}=, and wins unless it has --settings=override",
                switch.name
            );
            return row.but(State::Ignored, "command-line", reason);
        }
        self.pending(row)
    }

    fn pending(&self, row: Setting) -> Setting {
        if self.file.changed {
            let reason = "the file was changed after the machine was started: it holds from the next start";
            return row.but(State::Pending, CHANGED, reason);
        }
        row
    }

    /// An assignment of which nothing is in force, and of which systemd does not speak.
    fn silent(&self, entry: &Entry<'_>, last: &HashMap<(&str, &str), Entry<'_>>) -> Option<Setting> {
        let section = entry.section?;
        let row = row_of(self.file, entry);
        if let Some(fatal) = self.settings.fatal() {
            let reason = format!(
                "systemd-nspawn refuses the file, and the machine does not start: line {}: {}",
                fatal.line, fatal.reason
            );
            return Some(row.but(State::Ignored, "file-refused", reason));
        }
        if section.starts_with("X-") || entry.key.starts_with("X-") {
            return None;
        }
        let Some(key) = find(section, entry.key) else {
            let reason = format!("systemd does not know section [{section}]");
            return Some(row.but(State::Ignored, "unknown-section", reason));
        };
        // An empty assignment is seen in what it takes back.
        if entry.value.is_empty() {
            return None;
        }
        let names = std::iter::once(key.name).chain(key.renamed().map(|other| other.name));
        let later = names
            .filter_map(|name| last.get(&(section, name)))
            .filter(|later| later.first_line > entry.first_line)
            .max_by_key(|later| later.first_line)?;
        let verb = if later.value.is_empty() {
            "takes it back"
        } else {
            "sets it again"
        };
        let reason = format!("line {} {verb}", later.first_line);
        Some(row.but(State::Ignored, "repeated-key", reason))
    }

    /// Who owns files is said with who the users are: alone it means that they are the host's.
    fn implied(&self) -> Option<Setting> {
        let (key, line) = self.used.get(&Group::Users)?;
        if !self.settings.values("Exec", "PrivateUsers").is_empty() || self.masked.contains_key(&Group::Users) {
            return None;
        }
        let mut row = Setting::new("Exec", "PrivateUsers", "no", self.origin(*line));
        row.code = Some("implied");
        row.reason = Some(format!(
            "{}= without PrivateUsers= switches private users off",
            key.name
        ));
        Some(self.pending(row))
    }
}

/// A line without effect.
fn refuse(row: Setting, ignored: &Ignored) -> Setting {
    row.but(State::Ignored, ignored.reason.code(), ignored.reason.to_string())
}

fn row_of(file: &File<'_>, entry: &Entry<'_>) -> Setting {
    let origin = Origin::line(Source::Nspawn, file.path, entry.first_line);
    Setting::new(entry.section.unwrap_or_default(), entry.key, entry.value, origin)
}

/// How many lines without effect are told of one file.
const MAX_IGNORED: usize = 1000;

/// Not more of them than that, and how many more there are: whoever wrote the file beside an image may be no friend.
fn cut(file: &File<'_>, mut ignored: impl Iterator<Item = Setting>) -> Vec<Setting> {
    let mut rows: Vec<Setting> = ignored.by_ref().take(MAX_IGNORED).collect();
    let more = ignored.count();
    if more > 0 {
        let origin = Origin {
            kind: Source::Nspawn,
            file: Some(file.path.to_owned()),
            line: None,
        };
        let row = Setting {
            key: None,
            ..Setting::new("", "", "", origin)
        };
        rows.push(row.but(
            State::Ignored,
            "more",
            format!("there are {more} lines more without effect"),
        ));
    }
    rows
}

/// Every assignment of a file that is not read.
fn assignments<'a>(file: &'a File<'a>) -> impl Iterator<Item = Setting> + 'a {
    let entries = file.document.entries().filter(|entry| !entry.value.is_empty());
    entries.map(|entry| row_of(file, &entry))
}

/// Adds what systemd-nspawn does where neither command line nor file says anything, as systemd-nspawn(1) has it.
pub fn add_defaults(rows: &mut Vec<Setting>, machine: &str, systemd: u32) {
    let unset = defaults(rows, machine, systemd);
    rows.extend(unset);
    rows.sort_by_cached_key(rank);
}

fn defaults(rows: &[Setting], machine: &str, systemd: u32) -> Vec<Setting> {
    // What the file said when it was read is not known any more: neither is what was left at its default.
    let counts = |row: &&Setting| row.state == State::InForce || row.code == Some(CHANGED);
    let held: Vec<&Setting> = rows.iter().filter(counts).collect();
    let holds = |section: &str, key: &str| {
        let same = |row: &&&Setting| row.section == section && row.key.as_deref() == Some(key);
        held.iter().find(same)
    };
    let boots = holds("Exec", "Boot").is_some_and(|row| super::names::boolean(&row.value) == Some(true));
    let has_network = held.iter().any(|row| {
        row.section == "Network"
            && row.key.as_deref() != Some("Port")
            && super::names::boolean(&row.value) != Some(false)
    });
    let unset = KEYS.iter().filter(|key| key.known_to(systemd));
    unset
        .filter(|key| holds(key.section, key.name).is_none())
        .filter_map(|key| {
            let value = match (key.section, key.name) {
                ("Exec", "KillSignal") if boots => "SIGRTMIN+3",
                ("Exec", "User") => "root",
                ("Exec", "WorkingDirectory") => "/",
                ("Exec", "Hostname") => machine,
                ("Exec", "ResolvConf" | "LinkJournal" | "Timezone") => "auto",
                ("Network", "Private") if has_network => "yes",
                (
                    "Exec",
                    "Boot" | "Ephemeral" | "ProcessTwo" | "PrivateUsers" | "NotifyReady" | "NoNewPrivileges"
                    | "SuppressSync",
                )
                | ("Files", "ReadOnly" | "Volatile")
                | ("Network", "Private" | "VirtualEthernet") => "no",
                ("Files", "PrivateUsersOwnership") => "off",
                _ => return None,
            };
            Some(Setting::new(key.section, key.name, value, Origin::DEFAULT))
        })
        .collect()
}

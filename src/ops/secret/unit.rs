//! The drop-in of a machine's secrets, and the command line that it is made from.

use std::path::{Path, PathBuf};

use crate::machine::MachineName;
use crate::nspawn::document::Document;
use crate::nspawn::edit::Edit;
use crate::ops::config::drop_ins::DropIns;
use crate::ops::config::files::MAX_BYTES;
use crate::ops::config::history::FileKey;
use crate::ops::config::plan::FilePlan;
use crate::ops::{OpError, Places, owned};
use crate::sys::drop_ins::resolved;
use crate::sys::files::{read_regular, shown};
use crate::unit::OWN_SECTION;
use crate::unit::drop_in::values;
use crate::unit::secret::{FROM, Key, with_switches, without_switches};
use crate::unit::topic::Topic;

const SERVICE: &str = "Service";
const LOAD: &str = "LoadCredentialEncrypted";
const START: &str = "ExecStart";

/// The command line that a machine would be started with but for its secrets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Template {
    pub(super) command: String,
    pub(super) file: PathBuf,
}

/// Why there is no such command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Unfit {
    /// No unit file, or none with a command line.
    Missing,
    /// More than one.
    Several(PathBuf),
    /// This file sets another one after ours.
    Later(PathBuf),
}

impl Unfit {
    pub(super) fn message(&self, name: &MachineName) -> String {
        match self {
            Self::Missing => format!("{} has no ExecStart=", name.unit()),
            Self::Several(file) => format!(
                "{} has several ExecStart=, the last of them in '{}'",
                name.unit(),
                shown(file)
            ),
            Self::Later(file) => format!("'{}' sets ExecStart= after the secrets' drop-in", shown(file)),
        }
    }

    pub(super) fn hint(&self) -> String {
        match self {
            Self::Missing => "see `systemctl cat systemd-nspawn@.service`".to_owned(),
            Self::Several(_) => "begin your own with an empty ExecStart=, which takes those before it back".to_owned(),
            Self::Later(file) => format!(
                "rename it so that systemd reads it before, such as to 10-{}",
                file.file_name().unwrap_or_default().to_string_lossy()
            ),
        }
    }
}

/// Finds that command line.
pub(super) fn template(name: &MachineName, places: &Places) -> Result<Template, Unfit> {
    let ours = Topic::Secret.file_name();
    let drop_ins = DropIns::of(name, places);
    let is_before = |path: &Path| path.file_name().is_some_and(|file| file < ours.as_str());
    let is_ours = |path: &Path| path.file_name().is_some_and(|file| file == ours.as_str());
    let later = drop_ins
        .files()
        .filter(|(path, _)| !is_before(path) && !is_ours(path))
        .find(|(_, document)| document.entries_of(SERVICE, START).next().is_some());
    if let Some((path, _)) = later {
        return Err(Unfit::Later(path.to_owned()));
    }
    let (path, document) = fragment(name, places).ok_or(Unfit::Missing)?;
    let files =
        std::iter::once((path.as_path(), &document)).chain(drop_ins.files().filter(|(path, _)| is_before(path)));
    let mut found = values(files, SERVICE, START, true);
    match (found.pop(), found.is_empty()) {
        (Some(one), true) => Ok(Template {
            command: one.value,
            file: one.file,
        }),
        (Some(last), false) => Err(Unfit::Several(last.file)),
        (None, _) => Err(Unfit::Missing),
    }
}

/// The unit file itself: one for this machine, or the template.
fn fragment(name: &MachineName, places: &Places) -> Option<(PathBuf, Document)> {
    let names = [name.unit(), "systemd-nspawn@.service".to_owned()];
    let mut paths = names
        .iter()
        .flat_map(|file| places.unit_path.iter().map(move |place| place.join(file)));
    let path = paths.find(|path| path.exists())?;
    let bytes = read_regular(&path, MAX_BYTES).ok()?;
    Some((path, Document::from_bytes(bytes)))
}

/// The drop-in as it is.
pub(super) struct DropIn {
    pub(super) file: FilePlan,
    /// The secrets that are handed on.
    pub(super) keys: Vec<Key>,
    /// The command line that it was made from.
    pub(super) from: Option<String>,
    document: Document,
    places: Places,
    name: MachineName,
}

impl DropIn {
    pub(super) fn read(name: &MachineName, places: &Places) -> Result<Self, OpError> {
        let file = FilePlan::of(FileKey::DropIn(Topic::Secret), name, places)?;
        let bytes = file.new.clone();
        let document = Document::from_bytes(bytes.unwrap_or_else(|| Topic::Secret.head(name).into_bytes()));
        let key_of = |value: &str| {
            let (key, path) = value.split_once(':')?;
            let key: Key = key.parse().ok()?;
            (Path::new(path) == places.secrets(name).join(key.as_str())).then_some(key)
        };
        let mut keys: Vec<Key> = document
            .entries_of(SERVICE, LOAD)
            .filter_map(|entry| key_of(entry.value))
            .collect();
        keys.sort();
        keys.dedup();
        let from = document.entries_of(OWN_SECTION, FROM).last();
        let from = from.map(|entry| entry.value.to_owned());
        Ok(Self {
            file,
            keys,
            from,
            document,
            places: places.clone(),
            name: name.clone(),
        })
    }

    pub(super) fn bytes(&self) -> &[u8] {
        self.document.as_bytes()
    }

    /// Whether there is one.
    pub(super) fn exists(&self) -> bool {
        self.file.path.exists()
    }

    /// Whether its command line is what machinist made of the one that it names.
    pub(super) fn is_sound(&self) -> bool {
        let commands: Vec<&str> = self
            .document
            .entries_of(SERVICE, START)
            .map(|entry| entry.value)
            .collect();
        match (commands.as_slice(), &self.from) {
            ([], None) => true,
            (["", command], Some(from)) => without_switches(command, &self.keys) == *from,
            _ => false,
        }
    }

    /// Plans that it hands on these secrets, on this command line.
    pub(super) fn hand_on(&mut self, keys: &[Key], command: &str) -> Result<(), OpError> {
        let path = shown(&self.file.path);
        if !self.is_sound() {
            return Err(OpError::Option {
                message: format!("'{path}' was changed by hand: its ExecStart= is not what machinist wrote"),
                hint: format!(
                    "put a command line of your own into another file there, such as 10-start.conf, and take ExecStart= \
                     and {FROM}= out of this one"
                ),
            });
        }
        let mut edits = Vec::new();
        let load = |key: &Key| format!("{key}:{}", self.places.secrets(&self.name).join(key.as_str()).display());
        for key in self.keys.iter().filter(|key| !keys.contains(key)) {
            edits.push(Edit::remove(SERVICE, LOAD, Some(load(key))));
        }
        for key in keys {
            edits.push(Edit::append(SERVICE, LOAD, load(key)));
        }
        let wanted = if keys.is_empty() {
            edits.push(Edit::remove(OWN_SECTION, FROM, None));
            Vec::new()
        } else {
            edits.push(Edit::set(OWN_SECTION, FROM, command.to_owned()));
            let with = with_switches(command, keys).map_err(|message| OpError::Option {
                message: format!("secrets cannot be handed to machine '{}': {message}", self.name),
                hint: "see `systemctl cat systemd-nspawn@.service`".to_owned(),
            })?;
            vec![String::new(), with]
        };
        let has = self.document.entries_of(SERVICE, START).map(|entry| entry.value);
        if !has.eq(wanted.iter().map(String::as_str)) {
            edits.push(Edit::remove(SERVICE, START, None));
            edits.extend(wanted.into_iter().map(|value| match value.as_str() {
                "" => Edit::set(SERVICE, START, value),
                _ => Edit::append(SERVICE, START, value),
            }));
        }
        for edit in &edits {
            self.document.apply(edit).map_err(|error| OpError::Option {
                message: format!("cannot change '{path}': {error}"),
                hint: "see systemd.unit(5)".to_owned(),
            })?;
        }
        let says_nothing = self.document.entries().next().is_none() && self.document.faults().next().is_none();
        self.file.new = match self.exists() {
            false if says_nothing => None,
            true if says_nothing && owned::is_ours(&self.file.path) => None,
            _ => Some(self.document.as_bytes().to_vec()),
        };
        Ok(())
    }
}

/// The files that any drop-in of the machine's unit loads encrypted credentials from.
pub(super) fn loaded(name: &MachineName, places: &Places) -> Vec<PathBuf> {
    let values = DropIns::of(name, places).values(SERVICE, LOAD, true);
    let path = |value: &str| value.split_once(':').map(|(_, path)| PathBuf::from(path));
    values.iter().filter_map(|value| path(&value.value)).collect()
}

/// Whether systemd reads the drop-in.
pub(super) fn is_read(file: &Path, name: &MachineName, places: &Places) -> bool {
    let file = resolved(file);
    let drop_ins = DropIns::of(name, places);
    drop_ins.files().any(|(read, _)| read == file)
}

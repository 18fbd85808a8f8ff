//! What the settings of a machine were before each change: `/var/lib/machinist/history/NAME/`, mode 0700.
//!
//! A change is `000007.json`, which says what was done and is written last, and a file for each that it wrote, as that was
//! before: `000007.nspawn`, `000007.order.conf`. What is missing was not there before either.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::drop_ins::DropIns;
use super::plan::{put, read_or_none};
use crate::machine::MachineName;
use crate::ops::{OpError, Places};
use crate::sys::files::{Attributes, read_regular, write_atomic};
use crate::unit::topic::Topic;

/// How many changes of a machine are kept.
const KEPT: usize = 100;

/// What is done to a machine because the priority of another one has changed. To take that back alone would do nothing: it
/// would be done again.
pub const FOLLOWING: &str = "follow the priorities of others";

/// Which of a machine's files.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum FileKey {
    /// Its .nspawn file in /etc/systemd/nspawn.
    Settings,
    /// A drop-in of its unit.
    DropIn(Topic),
}

impl FileKey {
    /// Where it lies.
    #[must_use]
    pub fn path(&self, name: &MachineName, places: &Places) -> PathBuf {
        match self {
            Self::Settings => places.settings_file(name),
            Self::DropIn(topic) => DropIns::path(name, *topic, places),
        }
    }

    /// Whether what it says counts for a running machine at once.
    #[must_use]
    pub fn holds_at_once(&self) -> bool {
        matches!(self, Self::DropIn(topic) if topic.holds_at_once())
    }

    fn ending(&self) -> String {
        match self {
            Self::Settings => "nspawn".to_owned(),
            Self::DropIn(topic) => format!("{}.conf", topic.word()),
        }
    }

    fn from_ending(text: &str) -> Option<Self> {
        match text.strip_suffix(".conf") {
            Some(word) => Topic::from_word(word).map(Self::DropIn),
            None => (text == "nspawn").then_some(Self::Settings),
        }
    }
}

/// A change of a machine's settings.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Its number: each is higher than those before it.
    pub number: u32,
    /// When.
    pub time: Timestamp,
    /// What was done: "set Exec.Boot=yes".
    pub what: String,
    /// The hash of each file that was written, by its ending; `None` if it was removed.
    pub wrote: BTreeMap<String, Option<String>>,
    /// The mode and owner of each file that there was before.
    #[serde(default)]
    pub had: BTreeMap<String, Attributes>,
    /// Not all of them are written yet, or whoever did that was killed.
    #[serde(default)]
    pub open: bool,
    /// Whether it was taken back.
    pub undone: bool,
    /// The change that this one took back.
    pub undoes: Option<u32>,
}

impl Entry {
    /// The files that it wrote.
    pub fn files(&self) -> impl Iterator<Item = FileKey> {
        self.wrote.keys().filter_map(|ending| FileKey::from_ending(ending))
    }

    /// The mode and owner of a file before it.
    #[must_use]
    pub fn attributes(&self, file: &FileKey) -> Attributes {
        let had = self.had.get(&file.ending()).copied();
        had.unwrap_or_else(|| Attributes::own(0o644))
    }

    /// Whether this is what the change has written into the file.
    #[must_use]
    pub fn has_written(&self, file: &FileKey, bytes: Option<&[u8]>) -> bool {
        self.wrote.get(&file.ending()) == Some(&bytes.map(hash))
    }
}

/// A file that is about to be written.
#[derive(Clone, Copy, Debug)]
pub struct Written<'a> {
    /// Which one.
    pub file: &'a FileKey,
    /// What it says; `None` if it is not there.
    pub former: Option<&'a [u8]>,
    /// Its mode and owner.
    pub former_as: Option<Attributes>,
    /// What it is to say; `None` if it is to be removed.
    pub new: Option<&'a [u8]>,
}

/// The changes of one machine.
#[derive(Debug)]
pub struct History {
    directory: PathBuf,
}

impl History {
    /// The changes of this machine. Nothing is made before there is one.
    #[must_use]
    pub fn of(name: &MachineName, places: &Places) -> Self {
        Self {
            directory: places.history(name),
        }
    }

    /// All changes, the oldest first. One whose record cannot be read is left out.
    pub fn entries(&self) -> Result<Vec<Entry>, OpError> {
        let found = match fs::read_dir(&self.directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            found => found.map_err(OpError::path("read", &self.directory))?,
        };
        let mut entries: Vec<Entry> = found
            .flatten()
            .filter(|entry| entry.path().extension().is_some_and(|ending| ending == "json"))
            .filter_map(|entry| serde_json::from_slice(&read_regular(&entry.path(), 1 << 20).ok()?).ok())
            .collect();
        entries.sort_by_key(|entry: &Entry| entry.number);
        Ok(entries)
    }

    /// The change with that number, or the last one that was not taken back.
    ///
    /// # Errors
    /// [`OpError::Option`] if there is none.
    pub fn choose(&self, name: &MachineName, number: Option<u32>) -> Result<Entry, OpError> {
        let mut entries = self.entries()?.into_iter();
        let chosen = match number {
            Some(number) => entries.find(|entry| entry.number == number),
            None => entries.rfind(|entry| !entry.undone && entry.undoes.is_none() && entry.what != FOLLOWING),
        };
        chosen.ok_or_else(|| OpError::Option {
            message: match number {
                Some(number) => format!("there is no change {number} of machine '{name}'"),
                None => format!("there is no change of machine '{name}' to take back"),
            },
            hint: format!("see `machinist config undo {name} --list`"),
        })
    }

    /// A file before a change; `None` if there was none.
    pub fn former(&self, number: u32, file: &FileKey) -> Result<Option<Vec<u8>>, OpError> {
        read_or_none(&self.path(number, &file.ending()))
    }

    /// Keeps the former files of a change that is about to be made; its number.
    pub fn push(&self, what: &str, files: &[Written<'_>], open: bool, undoes: Option<u32>) -> Result<u32, OpError> {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.directory)
            .map_err(OpError::path("create", &self.directory))?;
        let entries = self.entries()?;
        let number = entries.last().map_or(1, |entry| entry.number + 1);
        for written in files {
            if let Some(former) = written.former {
                write_atomic(&self.path(number, &written.file.ending()), former, 0o600)?;
            }
        }
        self.write(&Entry {
            number,
            time: Timestamp::now(),
            what: what.to_owned(),
            wrote: files
                .iter()
                .map(|written| (written.file.ending(), written.new.map(hash)))
                .collect(),
            had: files
                .iter()
                .filter_map(|written| Some((written.file.ending(), written.former_as?)))
                .collect(),
            open,
            undone: false,
            undoes,
        })?;
        for old in entries.iter().take((entries.len() + 1).saturating_sub(KEPT)) {
            self.forget(old.number)?;
        }
        Ok(number)
    }

    /// Forgets a change: it was not made after all, or is too old.
    pub fn forget(&self, number: u32) -> Result<(), OpError> {
        // The record first: without it the others are nothing.
        let files = Topic::ALL.map(|topic| FileKey::DropIn(topic).ending());
        let endings = ["json".to_owned(), FileKey::Settings.ending()].into_iter().chain(files);
        for ending in endings {
            let path = self.path(number, &ending);
            match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(OpError::path("remove", path)(error));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Notes that all files of a change are written.
    pub fn complete(&self, number: u32) -> Result<(), OpError> {
        match self.entries()?.into_iter().find(|entry| entry.number == number) {
            Some(entry) => self.write(&Entry { open: false, ..entry }),
            None => Ok(()),
        }
    }

    /// Notes that a change was taken back, or is in force again.
    pub fn mark(&self, number: u32, undone: bool) -> Result<(), OpError> {
        match self.entries()?.into_iter().find(|entry| entry.number == number) {
            Some(entry) => self.write(&Entry { undone, ..entry }),
            None => Ok(()),
        }
    }

    fn write(&self, entry: &Entry) -> Result<(), OpError> {
        let path = self.path(entry.number, "json");
        let text = serde_json::to_vec(entry).map_err(|error| OpError::path("write", &path)(error.into()))?;
        Ok(write_atomic(&path, &text, 0o600)?)
    }

    /// Where the former files of a change lie.
    pub fn kept(&self, entry: &Entry) -> impl Iterator<Item = PathBuf> {
        let paths = entry.wrote.keys().map(|ending| self.path(entry.number, ending));
        paths.filter(|path| path.exists())
    }

    fn path(&self, number: u32, ending: &str) -> PathBuf {
        self.directory.join(Path::new(&format!("{number:06}.{ending}")))
    }
}

/// Takes back a change that was killed in the middle, and forgets the last one if its files are still, or again, what they
/// were before; says whether anything was taken back.
pub(in crate::ops) fn settle(name: &MachineName, places: &Places) -> Result<bool, OpError> {
    let history = History::of(name, places);
    let Some(last) = history.entries()?.pop() else {
        return Ok(false);
    };
    let mut files = Vec::new();
    for key in last.files() {
        let path = key.path(name, places);
        // Whoever reads it next says what is wrong with it.
        let Ok(now) = read_or_none(&path) else {
            return Ok(false);
        };
        let former = history.former(last.number, &key)?;
        files.push((key, path, now, former));
    }
    let mut taken_back = false;
    if last.open {
        for (key, path, now, former) in &mut files {
            // What somebody has written since is theirs.
            if last.has_written(key, now.as_deref()) && now != former {
                put(key, path, former.as_deref(), last.attributes(key))?;
                now.clone_from(former);
                taken_back = true;
            }
        }
    }
    let is_unmade = files
        .iter()
        .all(|(key, _, now, former)| now == former && !last.has_written(key, now.as_deref()));
    if is_unmade {
        history.forget(last.number)?;
    }
    Ok(taken_back)
}

fn hash(settings: &[u8]) -> String {
    use std::fmt::Write as _;
    Sha256::digest(settings).iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

//! What the settings of a machine were before each change: `/var/lib/machinist/history/NAME/`, mode 0700.
//!
//! A change is two files: `000007.nspawn`, the former settings byte for byte, and `000007.json`, which says what was done and
//! is written last. Where there is no `.nspawn` there were no settings.

use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::files::MAX_BYTES;
use crate::machine::MachineName;
use crate::ops::{OpError, Places};
use crate::sys::files::{read_regular, write_atomic};

/// How many changes of a machine are kept.
const KEPT: usize = 100;

/// A change of a machine's settings.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Its number: each is higher than those before it.
    pub number: u32,
    /// When.
    pub time: Timestamp,
    /// What was done: "set Exec.Boot=yes".
    pub what: String,
    /// The hash of the file that was written; `None` if it was removed.
    pub wrote: Option<String>,
    /// Whether it was taken back.
    pub undone: bool,
    /// The change that this one took back.
    pub undoes: Option<u32>,
}

impl Entry {
    /// Whether these are the settings that the change has written.
    #[must_use]
    pub fn has_written(&self, settings: Option<&[u8]>) -> bool {
        self.wrote == settings.map(hash)
    }
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

    /// The settings before a change; `None` if there was no file.
    pub fn former(&self, number: u32) -> Result<Option<Vec<u8>>, OpError> {
        match read_regular(&self.path(number, "nspawn"), MAX_BYTES) {
            Err(error) if error.is_not_found() => Ok(None),
            read => Ok(Some(read?)),
        }
    }

    /// Keeps the former settings of a change that is about to be made; its number.
    pub fn push(
        &self,
        what: &str,
        former: Option<&[u8]>,
        new: Option<&[u8]>,
        undoes: Option<u32>,
    ) -> Result<u32, OpError> {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.directory)
            .map_err(OpError::path("create", &self.directory))?;
        let entries = self.entries()?;
        let number = entries.last().map_or(1, |entry| entry.number + 1);
        if let Some(former) = former {
            write_atomic(&self.path(number, "nspawn"), former, 0o600)?;
        }
        self.write(&Entry {
            number,
            time: Timestamp::now(),
            what: what.to_owned(),
            wrote: new.map(hash),
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
        // The record first: without it the other is nothing.
        for ending in ["json", "nspawn"] {
            let path = self.path(number, ending);
            match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(OpError::path("remove", path)(error));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Forgets the last change if `file` is still, or again, what it was before: it was killed before it wrote anything, or
    /// was taken back by hand.
    pub fn forget_unmade(&self, file: &Path) -> Result<(), OpError> {
        let Some(last) = self.entries()?.pop() else {
            return Ok(());
        };
        let now = match read_regular(file, MAX_BYTES) {
            Err(error) if error.is_not_found() => None,
            Ok(bytes) => Some(bytes),
            // Whoever reads it next says so.
            Err(_) => return Ok(()),
        };
        if !last.has_written(now.as_deref()) && self.former(last.number)? == now {
            self.forget(last.number)?;
        }
        Ok(())
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

    /// Where the former settings of a change lie.
    #[must_use]
    pub fn path_of(&self, number: u32) -> PathBuf {
        self.path(number, "nspawn")
    }

    fn path(&self, number: u32, ending: &str) -> PathBuf {
        self.directory.join(Path::new(&format!("{number:06}.{ending}")))
    }
}

fn hash(settings: &[u8]) -> String {
    use std::fmt::Write as _;
    Sha256::digest(settings).iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

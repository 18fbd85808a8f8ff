//! Downloads that are kept: `CACHE/downloads`, of mode 0700.
//!
//! KEY is a hash of the address. `KEY` has the file and `KEY.json` what is known of it; without that, the file is of no use.
//! `.KEY.part` and `.KEY.part.json` are what came of one that was interrupted. `.KEY.lock` is held while any of them is used
//! (flock(2)), and never removed: another process may be waiting for it.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::answer::Validators;
use crate::machine::{Cancel, Report};
use crate::sources::mirror::hex;
use crate::sources::shelf::{make_private, names, open_lock, wait_for};
use crate::sources::sum::Sum;
use crate::sources::url::Url;
use crate::sources::{Places, SourceError};
use crate::sys::files::write_atomic;

/// What is known of a file.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Known {
    /// Without a password.
    pub(super) url: String,
    #[serde(flatten)]
    pub(super) validators: Validators,
    /// In hexadecimal.
    pub(super) sha256: String,
    pub(super) created: jiff::Timestamp,
}

impl Known {
    pub(super) fn sum(&self) -> Option<Sum> {
        self.sha256.parse().ok()
    }
}

/// A download that is kept.
#[derive(Clone, Debug)]
pub struct Download {
    /// The file.
    pub path: PathBuf,
    /// What it is: "download https://example.org/a.tar", "unfinished download".
    pub what: String,
    /// When it was made.
    pub created: jiff::Timestamp,
    /// Bytes on disk.
    pub bytes: u64,
}

/// The place of one address, which nobody else uses meanwhile.
pub(super) struct Shelf {
    dir: PathBuf,
    key: String,
    _lock: File,
}

impl Shelf {
    pub(super) fn lock(url: &Url, places: &Places, report: &dyn Report, cancel: &Cancel) -> Result<Self, SourceError> {
        let key = hex(&Sha256::digest(url.as_str())[..16]);
        Self::lock_key(key, url.file_name(), places, report, cancel)
    }

    /// The place of what is known by its sum.
    pub(super) fn lock_sum(
        sum: Sum,
        called: &str,
        places: &Places,
        report: &dyn Report,
        cancel: &Cancel,
    ) -> Result<Self, SourceError> {
        Self::lock_key(sum.to_string()[..32].to_owned(), called, places, report, cancel)
    }

    fn lock_key(
        key: String,
        called: &str,
        places: &Places,
        report: &dyn Report,
        cancel: &Cancel,
    ) -> Result<Self, SourceError> {
        let dir = open(places)?;
        let lock = open_lock(&dir, &key)?;
        let whom = || format!("download of {called}");
        wait_for(&dir, || lock.try_lock(), &whom, report, cancel)?;
        Ok(Self { dir, key, _lock: lock })
    }

    /// The file, and what is known of it.
    pub(super) fn known(&self) -> Option<(File, Known)> {
        let known = read_json::<Known>(&self.path(""))?;
        Some((File::open(self.path("")).ok()?, known))
    }

    /// What is there of an interrupted download, with its validators, and how those of a new one are kept.
    pub(super) fn part(&self) -> Result<(File, Validators), SourceError> {
        let path = self.part_path();
        let validators: Validators = read_json(&path).unwrap_or_default();
        let opened = File::options()
            .create(true)
            .read(true)
            .write(true)
            .truncate(validators.strong().is_none())
            .mode(0o600)
            .open(&path);
        Ok((
            opened.map_err(|error| SourceError::io("open", &path, error))?,
            validators,
        ))
    }

    pub(super) fn keep_validators(&self, validators: &Validators) -> io::Result<()> {
        write_json(&self.part_path(), validators)
    }

    /// Makes the part the file.
    pub(super) fn finish(&self, file: &File, known: &Known) -> Result<(), SourceError> {
        let (part, path) = (self.part_path(), self.path(""));
        let failed = |error| SourceError::io("write", &path, error);
        file.sync_all().map_err(failed)?;
        // What is known is of the file or of nothing.
        remove(&json(&path)).map_err(failed)?;
        fs::rename(&part, &path).map_err(failed)?;
        write_json(&path, known).map_err(failed)?;
        remove(&json(&part)).map_err(failed)
    }

    /// Forgets what has come so far.
    pub(super) fn drop_part(&self) {
        // What cannot be removed now is overwritten by the next download, or removed by `clean`.
        let _ = remove(&json(&self.part_path())).and_then(|()| remove(&self.part_path()));
    }

    /// Forgets the file.
    pub(super) fn drop_file(&self) {
        let _ = remove(&json(&self.path(""))).and_then(|()| remove(&self.path("")));
    }

    fn path(&self, ending: &str) -> PathBuf {
        self.dir.join(format!("{}{ending}", self.key))
    }

    fn part_path(&self) -> PathBuf {
        self.dir.join(format!(".{}.part", self.key))
    }
}

/// A file that has no name, for a download that is not kept.
pub(super) fn nameless(places: &Places) -> Result<File, SourceError> {
    let dir = open(places)?;
    tempfile::tempfile_in(&dir).map_err(|error| SourceError::io("create a file in", &dir, error))
}

/// The downloads that are kept, interrupted ones too.
pub fn entries(places: &Places) -> Result<Vec<Download>, SourceError> {
    let dir = places.cache.join("downloads");
    let mut found = Vec::new();
    for name in names(&dir)? {
        let path = dir.join(&name);
        let Some(meta) = path.metadata().ok().filter(fs::Metadata::is_file) else {
            continue;
        };
        let modified = meta
            .modified()
            .ok()
            .and_then(|time| jiff::Timestamp::try_from(time).ok());
        let (what, created) = match (read_json::<Known>(&path), key_of(&name)) {
            (Some(known), Some(_)) if !name.starts_with('.') => {
                (format!("download {}", known.url), Some(known.created))
            }
            (_, Some(_)) => ("unfinished download".to_owned(), modified),
            (_, None) => continue,
        };
        found.push(Download {
            path,
            what,
            created: created.unwrap_or(jiff::Timestamp::UNIX_EPOCH),
            bytes: meta.len(),
        });
    }
    Ok(found)
}

/// Removes those made longer than `older_than` ago, except what another process uses right now, and returns them.
pub fn clear(places: &Places, older_than: Duration, cancel: &Cancel) -> Result<Vec<PathBuf>, SourceError> {
    let dir = places.cache.join("downloads");
    let now = jiff::Timestamp::now();
    let mut removed = Vec::new();
    for entry in entries(places)? {
        cancel.check()?;
        let name = entry
            .path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        let Some(key) = key_of(&name) else { continue };
        if now.duration_since(entry.created).unsigned_abs() < older_than {
            continue;
        }
        let lock = open_lock(&dir, key)?;
        if lock.try_lock().is_err() {
            continue;
        }
        let failed = |error| SourceError::io("remove", &entry.path, error);
        remove(&json(&entry.path)).map_err(failed)?;
        remove(&entry.path).map_err(failed)?;
        removed.push(entry.path);
    }
    Ok(removed)
}

/// The key in the name of a file or a part.
fn key_of(name: &str) -> Option<&str> {
    let key = match name.strip_prefix('.') {
        Some(hidden) => hidden.strip_suffix(".part")?,
        None => name,
    };
    (key.len() == 32 && key.bytes().all(|byte| byte.is_ascii_hexdigit())).then_some(key)
}

fn open(places: &Places) -> Result<PathBuf, SourceError> {
    let dir = places.cache.join("downloads");
    make_private(&dir)?;
    Ok(dir)
}

/// Where it stands what is known of a file.
fn json(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".json");
    name.into()
}

fn read_json<T: for<'de> Deserialize<'de>>(path: &Path) -> Option<T> {
    serde_json::from_slice(&fs::read(json(path)).ok()?).ok()
}

fn write_json(path: &Path, value: &impl Serialize) -> io::Result<()> {
    let bytes = serde_json::to_vec(value)?;
    write_atomic(&json(path), &bytes, 0o600).map_err(io::Error::other)
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

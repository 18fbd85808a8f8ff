//! Directories with a hidden name beside the images, and their papers: what each is for, and what else was written.
//!
//! The papers are not in them: systemd-tmpfiles removes `.#…` below /var/lib/machines at boot, and what a power cut has left of
//! settings would be nobody's.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};

use super::super::create::sync_directory;
use super::super::lock::Lock;
use super::super::{OpError, Places, quota};
use super::TREE;
use crate::machine::{Cancel, Report};
use crate::sys::staging::{self, RECORD};

/// How staging directories begin. systemd never takes `.#…` for an image, `list-images --all` included.
const PREFIX: &str = ".#machinist-";
/// Guards making and sweeping staging directories.
pub(super) const STAGING_LOCK: &str = ".staging";

/// What the papers of a staging directory say about it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// "create" is undone by a sweep, "remove" is finished.
    pub verb: Verb,
    /// The machine.
    pub name: String,
    /// The settings file that a create writes before the image is visible.
    pub settings: Option<PathBuf>,
    /// The unit that may run in the tree, with us or without.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unit: Option<String>,
}

/// What a staging directory is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verb {
    /// The tree becomes an image at the end.
    Create,
    /// The tree becomes an image at the end; what else was written stands beside it.
    Clone,
    /// The tree was an image.
    Remove,
    /// There is no tree: what is done, and what is to be, stands beside the record.
    Rename,
    /// The tree is that of a machine as long as it runs.
    Run,
    /// The tree is of no machine: what the filesystem can do is tried.
    Survey,
}

/// A staging directory that we own.
#[derive(Debug)]
pub struct Staging {
    directory: PathBuf,
    papers: PathBuf,
    record: Option<Flock<File>>,
    is_left: bool,
}

impl Staging {
    /// Makes `.#machinist-VERB-NAME-XXXXXX` (mode 0700) beside the images, and before that its papers, with its record, locked.
    pub fn create(places: &Places, record: &Record, report: &dyn Report, cancel: &Cancel) -> Result<Self, OpError> {
        let _guard = Lock::wait_for_all(&places.runtime, STAGING_LOCK, report, cancel)?;
        let verb = match record.verb {
            Verb::Create => "create",
            Verb::Clone => "clone",
            Verb::Remove => "remove",
            Verb::Rename => "rename",
            Verb::Run => "run",
            Verb::Survey => "survey",
        };
        let root = places.papers();
        let made = DirBuilder::new().recursive(true).mode(0o700).create(&root);
        made.map_err(OpError::path("create", &root))?;
        let papers = tempfile::Builder::new()
            .prefix(&format!("{verb}-{}-", record.name))
            .tempdir_in(&root)
            .map_err(OpError::path("create a directory in", &root))?
            .keep();
        let mut staging = Self {
            directory: directory_of(&papers, &places.machines),
            papers,
            record: None,
            is_left: false,
        };
        let path = staging.papers.join(RECORD);
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path);
        let file = file.map_err(OpError::path("create", &path))?;
        // A look for leftovers may hold it for a moment. A unit that runs in the tree shares it, see `sys::staging`.
        let mut file =
            Flock::lock(file, FlockArg::LockShared).map_err(|(_, errno)| OpError::path("lock", &path)(errno.into()))?;
        let text = serde_json::to_string(record).map_err(|error| OpError::path("write", &path)(error.into()))?;
        file.write_all(text.as_bytes())
            .and_then(|()| file.sync_all())
            .map_err(OpError::path("write", &path))?;
        staging.record = Some(file);
        sync_directory(&staging.papers)?;
        sync_directory(&root)?;
        let made = DirBuilder::new().mode(0o700).create(&staging.directory);
        made.map_err(OpError::path("create", &staging.directory))?;
        Ok(staging)
    }

    /// All of it but the papers.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Its papers.
    #[must_use]
    pub fn papers(&self) -> &Path {
        &self.papers
    }

    /// Where the tree is built, or was moved to.
    #[must_use]
    pub fn tree(&self) -> PathBuf {
        self.directory.join(TREE)
    }

    /// One of its papers.
    #[must_use]
    pub fn paper(&self, name: &str) -> PathBuf {
        self.papers.join(name)
    }

    /// Removes the directory with what is left in it.
    pub fn discard(&mut self) -> Result<(), OpError> {
        // Locked until all of it is gone: a sweep that runs meanwhile must not take it for a leftover.
        let _locked = self.record.take();
        discard(&self.directory, &self.papers)
    }

    /// As if we were killed.
    #[cfg(test)]
    pub(super) fn die(mut self) {
        self.record = None;
        std::mem::forget(self);
    }

    /// Leaves it to the unit that runs in its tree, and to the sweep that comes after that.
    pub fn leave(mut self) {
        self.is_left = true;
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        // After `discard` there is nothing; after an error of it the next sweep tries again.
        if !self.is_left && (self.directory.exists() || self.papers.exists()) {
            let _ = self.discard();
        }
    }
}

/// Removes a staging directory, and with its tree what limited it.
pub(super) fn discard(directory: &Path, papers: &Path) -> Result<(), OpError> {
    quota::forget(&directory.join(TREE));
    Ok(staging::discard(directory, papers)?)
}

/// The directory, in one of those of images, that papers are of.
fn directory_of(papers: &Path, machines: &Path) -> PathBuf {
    let name = papers.file_name().unwrap_or_default().to_string_lossy();
    machines.join(format!("{PREFIX}{name}"))
}

/// Whether a path is named as staging directories are.
pub(in crate::ops) fn is_staging(path: &Path) -> bool {
    path.file_name()
        .is_some_and(|name| name.to_string_lossy().starts_with(PREFIX))
}

/// A staging directory that nobody owned; ours as long as this is held.
#[derive(Debug)]
pub struct Leftover {
    /// Where it is, or was.
    pub directory: PathBuf,
    /// Where its papers are, or were.
    pub papers: PathBuf,
    /// What it was for; `None` if it says nothing.
    pub record: Option<Record>,
    /// `None` if its owner died before there was a record to lock.
    pub(super) _lock: Option<Flock<File>>,
}

/// The staging directories that nobody owns. Cheap; changes nothing.
#[must_use]
pub fn leftovers(places: &Places) -> Vec<Leftover> {
    let entries = |directory: PathBuf| fs::read_dir(directory).into_iter().flatten().flatten();
    // A removal hides an image beside where it lay.
    let directories: BTreeSet<PathBuf> = places
        .all_machines()
        .flat_map(|machines| entries(machines.to_owned()))
        // A file of such a name is being written, and becomes settings.
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
        .filter(|path| is_staging(path))
        .collect();
    let root = places.papers();
    let mut papers: BTreeMap<PathBuf, PathBuf> = entries(root.clone())
        .map(|entry| (entry.path(), directory_of(&entry.path(), &places.machines)))
        .collect();
    // Papers come first and go last: what has none has lost them.
    for directory in directories {
        let name = directory.file_name().unwrap_or_default().to_string_lossy();
        papers.insert(root.join(name.trim_start_matches(PREFIX)), directory);
    }
    papers
        .into_iter()
        .filter_map(|(papers, directory)| {
            let path = papers.join(RECORD);
            let lock = match File::open(&path) {
                Ok(file) => Some(Flock::lock(file, FlockArg::LockExclusiveNonblock).ok()?),
                Err(error) if error.kind() == io::ErrorKind::NotFound => None,
                // Whose it is nobody knows.
                Err(_) => return None,
            };
            let record = fs::read(&path).ok().and_then(|text| serde_json::from_slice(&text).ok());
            Some(Leftover {
                directory,
                papers,
                record,
                _lock: lock,
            })
        })
        .collect()
}

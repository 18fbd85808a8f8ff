//! The one engine of all-or-nothing.
//!
//! A verb's work is a list of [`Step`]s that describe, apply and undo themselves; `--dry-run` prints the descriptions of
//! the same list. What a step makes before it is visible lies in a [`Staging`] directory with a hidden name beside the
//! images, and a record in it says how far the verb has come. The directory is locked by its owner: one that nobody
//! locks was left by a kill or a power cut, and [`sweep`] undoes it, or finishes it, as its record says.

use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};

use super::lock::Lock;
use super::{OpError, Places, quota};
use crate::machine::{Cancel, Report};
use crate::sys::image_lock::{ImageLock, Sharing};
pub(super) use crate::sys::staging::TREE;
use crate::sys::staging::{self, RECORD};

/// How staging directories begin. systemd never takes `.#…` for an image, `list-images --all` included.
const PREFIX: &str = ".#machinist-";
/// Guards making and sweeping staging directories.
const STAGING_LOCK: &str = ".staging";

type Action<'a> = Box<dyn FnMut() -> Result<(), OpError> + Send + 'a>;

/// One step of a verb.
pub struct Step<'a> {
    describe: String,
    apply: Action<'a>,
    undo: Option<Action<'a>>,
}

impl<'a> Step<'a> {
    /// A step that `--dry-run` shows as `describe`: "write /etc/systemd/nspawn/web.nspawn".
    pub fn new(describe: impl Into<String>, apply: impl FnMut() -> Result<(), OpError> + Send + 'a) -> Self {
        Self {
            describe: describe.into(),
            apply: Box::new(apply),
            undo: None,
        }
    }

    /// What takes the step back after a later one failed.
    #[must_use]
    pub fn undo(mut self, undo: impl FnMut() -> Result<(), OpError> + Send + 'a) -> Self {
        self.undo = Some(Box::new(undo));
        self
    }
}

impl std::fmt::Debug for Step<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Step").field(&self.describe).finish()
    }
}

/// The steps of one verb on one machine, in order.
#[derive(Debug, Default)]
pub struct Transaction<'a>(Vec<Step<'a>>);

impl<'a> Transaction<'a> {
    /// Adds a step at the end.
    pub fn step(&mut self, step: Step<'a>) {
        self.0.push(step);
    }

    /// Whether there is nothing to do.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// What would be done, one line per step.
    #[must_use]
    pub fn describe(&self) -> Vec<String> {
        self.0.iter().map(|step| step.describe.clone()).collect()
    }

    /// Applies the steps in order. When one fails, or `cancel` is set between two, those already applied are undone in
    /// reverse order, and the first error is returned; what cannot be undone is reported and left to [`sweep`]. Blocks.
    pub fn run(mut self, report: &dyn Report, cancel: &Cancel) -> Result<(), OpError> {
        for at in 0..self.0.len() {
            let result = cancel.check().map_err(OpError::from).and_then(|()| {
                stop_here_for_tests(&self.0[at].describe, at + 1 == self.0.len());
                (self.0[at].apply)()
            });
            if let Err(error) = result {
                // The failed step may have done a part of its work: it is undone, too.
                for step in self.0[..=at].iter_mut().rev() {
                    if let Some(Err(left)) = step.undo.as_mut().map(|undo| undo()) {
                        report.warn(&format!("cannot undo '{}': {left}", step.describe));
                    }
                }
                return Err(error);
            }
        }
        Ok(())
    }
}

/// What steps hand on to each other; what one of them has left by a panic is still what it is.
pub(super) fn hold<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The kill tests of debug builds die before the step whose number in the process is in `MACHINIST_DIE_AT_STEP`, or before
/// the last one of a transaction, if it says `last`.
#[cfg(debug_assertions)]
fn stop_here_for_tests(describe: &str, is_last: bool) {
    use std::sync::atomic::{AtomicU32, Ordering};
    static STEP: AtomicU32 = AtomicU32::new(0);
    let this = STEP.fetch_add(1, Ordering::SeqCst);
    let dies = match std::env::var("MACHINIST_DIE_AT_STEP").as_deref() {
        Ok("last") => is_last,
        Ok(number) => number.parse() == Ok(this),
        Err(_) => false,
    };
    if dies {
        log::debug!("killed before: {describe}");
        let _ = nix::sys::signal::raise(nix::sys::signal::Signal::SIGKILL);
    }
}

#[cfg(not(debug_assertions))]
fn stop_here_for_tests(_: &str, _: bool) {}

/// What a staging directory says about itself.
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
    record: Option<Flock<File>>,
    is_left: bool,
}

impl Staging {
    /// Makes `.#machinist-VERB-NAME-XXXXXX` (mode 0700) beside the images, with its record, locked.
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
        let directory = tempfile::Builder::new()
            .prefix(&format!("{PREFIX}{verb}-{}-", record.name))
            .tempdir_in(&places.machines)
            .map_err(OpError::path("create a directory in", &places.machines))?
            .keep();
        let mut staging = Self {
            directory,
            record: None,
            is_left: false,
        };
        let path = staging.directory.join(RECORD);
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
        Ok(staging)
    }

    /// All of it.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Where the tree is built, or was moved to.
    #[must_use]
    pub fn tree(&self) -> PathBuf {
        self.directory.join(TREE)
    }

    /// A scratch file of this verb.
    #[must_use]
    pub fn scratch(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// Removes the directory with what is left in it.
    pub fn discard(&mut self) -> Result<(), OpError> {
        // Locked until all of it is gone: a sweep that runs meanwhile must not take it for a leftover.
        let _locked = self.record.take();
        discard(&self.directory)
    }

    /// Leaves it to the unit that runs in its tree, and to the sweep that comes after that.
    pub fn leave(mut self) {
        self.is_left = true;
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        // After `discard` there is nothing; after an error of it the next sweep tries again.
        if !self.is_left && self.directory.exists() {
            let _ = self.discard();
        }
    }
}

/// Removes a staging directory, and with its tree what limited it.
fn discard(directory: &Path) -> Result<(), OpError> {
    quota::forget(&directory.join(TREE));
    Ok(staging::discard(directory)?)
}

/// Whether a path is named as staging directories are.
pub(super) fn is_staging(path: &Path) -> bool {
    path.file_name()
        .is_some_and(|name| name.to_string_lossy().starts_with(PREFIX))
}

/// A staging directory that nobody owned; ours as long as this is held.
#[derive(Debug)]
pub struct Leftover {
    /// Where it is.
    pub directory: PathBuf,
    /// What it was for; `None` if it says nothing.
    pub record: Option<Record>,
    /// `None` if its owner died before there was a record to lock.
    _lock: Option<Flock<File>>,
}

/// The staging directories that nobody owns. Cheap; changes nothing.
#[must_use]
pub fn leftovers(places: &Places) -> Vec<Leftover> {
    // A removal hides an image beside where it lay.
    let directories = places
        .all_machines()
        .filter_map(|directory| fs::read_dir(directory).ok());
    directories
        .flat_map(Iterator::flatten)
        .filter(|entry| entry.file_name().to_string_lossy().starts_with(PREFIX))
        .filter_map(|entry| {
            let directory = entry.path();
            let path = directory.join(RECORD);
            let lock = match File::open(&path) {
                Ok(file) => Some(Flock::lock(file, FlockArg::LockExclusiveNonblock).ok()?),
                Err(_) => None,
            };
            let record = fs::read(&path).ok().and_then(|text| serde_json::from_slice(&text).ok());
            Some(Leftover {
                directory,
                record,
                _lock: lock,
            })
        })
        .collect()
}

/// Takes back, or finishes, what killed verbs left behind; one line for each: "half-made machine 'web'". What cannot be
/// swept is reported, and left to the next one: it is no reason why another verb should fail. Blocks.
///
/// `finish` does what needs more than files: it finishes a removal or a renaming, and takes back a clone. It is given the
/// record and the staging directory. Of a run it says [`OpError::Running`] if the unit is up: it may reboot just now, when
/// nobody has a lock.
pub fn sweep(
    places: &Places,
    finish: &dyn Fn(&Record, &Path) -> Result<(), OpError>,
    report: &dyn Report,
    cancel: &Cancel,
) -> Result<Vec<String>, OpError> {
    let mut swept = Vec::new();
    if leftovers(places).is_empty() {
        return Ok(swept);
    }
    // Given back before they are swept: finishing locks a name, and whoever has that one may be waiting for this.
    let guard = Lock::wait_for_all(&places.runtime, STAGING_LOCK, report, cancel)?;
    let left = leftovers(places);
    drop(guard);
    for Leftover {
        directory,
        record,
        _lock,
    } in left
    {
        let tree = directory.join(TREE);
        let has_tree = fs::symlink_metadata(&tree).is_ok();
        let is_run = record.as_ref().is_some_and(|record| record.verb == Verb::Run);
        if let Some(record) = record.as_ref().filter(|record| record.unit.is_some() && is_run) {
            match finish(record, &directory) {
                Ok(()) => {}
                Err(OpError::Running { .. }) => continue,
                Err(error) => {
                    report.warn(&format!("cannot sweep copy of machine '{}': {error}", record.name));
                    continue;
                }
            }
        }
        // systemd-nspawn locks what it runs in, and may go on when we are killed; nor is it to begin meanwhile.
        let _image =
            match (is_run && has_tree).then(|| ImageLock::take(&tree, &places.image_locks(), Sharing::Exclusive)) {
                Some(Err(_)) => continue,
                lock => lock,
            };
        let (what, done) = match &record {
            // Before the rename its tree is still here, and the settings it wrote are of no machine.
            Some(record) if has_tree && record.verb == Verb::Create => (
                format!("half-made machine '{}'", record.name),
                take_back_settings(record, &directory),
            ),
            Some(record) if record.verb == Verb::Run => (format!("copy of machine '{}'", record.name), Ok(())),
            Some(record) if (has_tree && record.verb != Verb::Survey) || record.verb == Verb::Rename => {
                let half = match record.verb {
                    Verb::Rename => "half-renamed",
                    Verb::Remove => "half-removed",
                    _ => "half-made",
                };
                (format!("{half} machine '{}'", record.name), finish(record, &directory))
            }
            _ => (format!("leftover '{}'", directory.display()), Ok(())),
        };
        // Last: as long as its record is there, the next sweep can do what this one could not.
        match done.and_then(|()| discard(&directory)) {
            Ok(()) => swept.push(what),
            Err(error) if error.is_interruption() => return Err(error),
            // Its owner was about to be done with it.
            Err(_) if !directory.exists() => {}
            Err(error) => report.warn(&format!("cannot sweep {what}: {error}")),
        }
    }
    Ok(swept)
}

/// Removes the settings file of a create that never became visible, if it is still as it was written.
fn take_back_settings(record: &Record, directory: &Path) -> Result<(), OpError> {
    let Some(settings) = &record.settings else {
        return Ok(());
    };
    let staged = fs::read(directory.join("settings"));
    match (staged, fs::read(settings)) {
        (Ok(staged), Ok(written)) if staged == written => {
            fs::remove_file(settings).map_err(OpError::path("remove", settings))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests;

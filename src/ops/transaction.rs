//! The one engine of all-or-nothing.
//!
//! A verb's work is a list of [`Step`]s that describe, apply and undo themselves; `--dry-run` prints the descriptions of
//! the same list. What a step makes before it is visible lies in a [`Staging`] directory with a hidden name beside the
//! images, and its papers elsewhere say what it is for, and what else was written. They are locked by their owner: what nobody
//! locks was left by a kill or a power cut, and [`sweep`] undoes it, or finishes it, as its papers say.

mod staging;

use std::fs;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

pub(super) use self::staging::is_staging;
use self::staging::{Leftover, STAGING_LOCK, discard};
pub use self::staging::{Record, Staging, Verb, leftovers};
use super::lock::Lock;
use super::{OpError, Places};
use crate::machine::{Cancel, Report};
use crate::sys::image_lock::{ImageLock, Sharing};
pub(super) use crate::sys::staging::TREE;

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

/// Takes back, or finishes, what killed verbs left behind; one line for each: "half-made machine 'web'". What cannot be
/// swept is reported, and left to the next one: it is no reason why another verb should fail. Blocks.
///
/// `finish` does what needs more than files: it finishes a removal or a renaming, and takes back a clone. It is given the
/// record and the papers. Of a run it says [`OpError::Running`] if the unit is up: it may reboot just now, when
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
        papers,
        record,
        _lock,
    } in left
    {
        let tree = directory.join(TREE);
        let has_tree = fs::symlink_metadata(&tree).is_ok();
        let is_run = record.as_ref().is_some_and(|record| record.verb == Verb::Run);
        if let Some(record) = record.as_ref().filter(|record| record.unit.is_some() && is_run) {
            match finish(record, &papers) {
                Ok(()) => {}
                Err(OpError::Running { .. }) => continue,
                Err(error) => {
                    report.warn(&format!("cannot sweep copy of machine '{}': {error}", record.name));
                    continue;
                }
            }
        }
        // systemd-nspawn locks what it runs in, and may go on when we are killed; nor is it to begin meanwhile.
        let _image = match ((is_run || record.is_none()) && has_tree)
            .then(|| ImageLock::take(&tree, &places.image_locks(), Sharing::Exclusive))
        {
            Some(Err(_)) => continue,
            lock => lock,
        };
        // systemd-tmpfiles removes trees at boot: without one, there may be an image, or nothing any more.
        let is_undone = |name: &str| has_tree || !has_image(name, places);
        let (what, done) = match &record {
            // Before the rename the settings that it wrote are of no machine.
            Some(record) if record.verb == Verb::Create && is_undone(&record.name) => (
                format!("half-made machine '{}'", record.name),
                take_back_settings(record, &papers),
            ),
            Some(record) if record.verb == Verb::Run => (format!("copy of machine '{}'", record.name), Ok(())),
            Some(record) if record.verb == Verb::Clone && is_undone(&record.name) => {
                (format!("half-made machine '{}'", record.name), finish(record, &papers))
            }
            Some(record) if record.verb == Verb::Rename => (
                format!("half-renamed machine '{}'", record.name),
                finish(record, &papers),
            ),
            Some(record) if record.verb == Verb::Remove && is_undone(&record.name) => (
                format!("half-removed machine '{}'", record.name),
                finish(record, &papers),
            ),
            _ => (format!("leftover '{}'", directory.display()), Ok(())),
        };
        // Last: as long as its papers are there, the next sweep can do what this one could not.
        match done.and_then(|()| discard(&directory, &papers)) {
            Ok(()) => swept.push(what),
            Err(error) if error.is_interruption() => return Err(error),
            // Its owner was about to be done with it.
            Err(_) if !directory.exists() && !papers.exists() => {}
            Err(error) => report.warn(&format!("cannot sweep {what}: {error}")),
        }
    }
    Ok(swept)
}

/// Whether there is an image of that name, wherever machined looks for images.
fn has_image(name: &str, places: &Places) -> bool {
    places.all_machines().any(|directory| {
        let names = [name.to_owned(), format!("{name}.raw")];
        names
            .iter()
            .any(|name| fs::symlink_metadata(directory.join(name)).is_ok())
    })
}

/// Removes the settings file of a create that never became visible, if it is still as it was written.
fn take_back_settings(record: &Record, papers: &Path) -> Result<(), OpError> {
    let Some(settings) = &record.settings else {
        return Ok(());
    };
    let staged = fs::read(papers.join("settings"));
    match (staged, fs::read(settings)) {
        (Ok(staged), Ok(written)) if staged == written => {
            fs::remove_file(settings).map_err(OpError::path("remove", settings))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests;

//! Changing the settings of machines: read, edit, check, keep the former file, write. All of it under the machine's lock.

pub mod drop_ins;
pub mod files;
pub mod findings;
pub mod history;
pub mod in_force;
pub(in crate::ops) mod plan;
#[cfg(test)]
mod tests;
pub mod users;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use super::lock::Lock;
use super::{OpError, Places};
use crate::machine::{Cancel, MachineName, Report};
use crate::nspawn::check::Finding;
use crate::nspawn::document::Document;
use crate::nspawn::edit::Edit;
use crate::sys::files::shown;
use crate::unit::key::is_companion;
use crate::unit::topic::Topic;
use files::{SettingsFile, of_machine};
use findings::{Viewpoint, findings};
pub(super) use history::settle;
use plan::{Plan, Work};
use users::HostUsers;

/// Has systemd read its unit files anew.
pub type Reload<'a> = &'a (dyn Fn() -> Result<(), OpError> + Sync);

/// What the settings of a machine are to become.
#[derive(Clone, Debug)]
pub enum Wanted {
    /// What these edits make of them, one after the other.
    Edits {
        /// Those of the .nspawn file.
        settings: Vec<Edit>,
        /// Those of the drop-ins of the machine's unit.
        drop_ins: Vec<(Topic, Edit)>,
    },
    /// This text, which was made of a [`draft`].
    Text {
        /// What the draft was made of.
        read: Option<Vec<u8>>,
        /// What the file is to say.
        text: Vec<u8>,
    },
    /// What they were before this change, or before the last one that was not taken back.
    Undo {
        /// Its number.
        number: Option<u32>,
        /// What is changed in the drop-ins of those days, as the world has gone on since.
        then: Vec<(Topic, Edit)>,
    },
}

/// What an editor begins with.
#[derive(Clone, Debug)]
pub struct Draft {
    /// What systemd reads now, byte for byte; `None` if there is no file.
    pub read: Option<Vec<u8>>,
    /// The text to be edited.
    pub text: Vec<u8>,
}

/// The settings of a machine, to be edited and handed to [`change_all`] as [`Wanted::Text`].
pub fn draft(name: &MachineName, places: &Places) -> Result<Draft, OpError> {
    let source = of_machine(name, places).into_iter().next();
    let read = source.as_ref().map(SettingsFile::read).transpose()?;
    let mut document = Document::from_bytes(read.clone().unwrap_or_else(|| head(name)));
    if source.is_some_and(|source| !source.trusted) {
        document.comment_out_untrusted();
    }
    let text = document.as_bytes().to_vec();
    Ok(Draft { read, text })
}

/// How a new file begins.
fn head(name: &MachineName) -> Vec<u8> {
    format!("# Settings of machine '{name}', see systemd.nspawn(5).\n").into_bytes()
}

/// A change of a machine's settings.
#[derive(Clone, Debug)]
pub struct Change {
    /// The machine.
    pub name: MachineName,
    /// What they are to become.
    pub wanted: Wanted,
    /// What is done, for the list of changes: "set Exec.Boot=yes".
    pub what: String,
    /// The version of the systemd that reads them.
    pub systemd: u32,
}

/// A drop-in of ours, or a key of it, that has no effect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Overridden {
    /// The key; `None` if systemd does not read the file at all.
    pub key: Option<String>,
    /// The file.
    pub file: PathBuf,
    /// The one that wins.
    pub by: PathBuf,
}

impl std::fmt::Display for Overridden {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (file, by) = (shown(&self.file), shown(&self.by));
        match &self.key {
            Some(key) => write!(f, "{key}= of '{file}' has no effect: '{by}' wins"),
            None => write!(f, "'{file}' has no effect: systemd finds '{by}' first"),
        }
    }
}

/// What came of a change.
#[derive(Debug)]
pub struct Changed {
    /// The files that it was about.
    pub files: Vec<PathBuf>,
    /// Whether all of it counts for a running machine at once.
    pub at_once: bool,
    /// The number of the change; `None` if there was nothing to do.
    pub number: Option<u32>,
    /// What has no effect, as another file wins.
    pub overridden: Vec<Overridden>,
    /// That is all of it.
    pub in_vain: bool,
    /// What else there is to say.
    pub notes: Vec<String>,
    /// What is probably not meant, and was not so before.
    pub warnings: Vec<Finding>,
}

/// Makes changes of several machines, in this order, or leaves everything as it was. What each came to. Blocks.
///
/// # Errors
/// [`OpError::Option`] for what systemd would not take, [`OpError::File`] for what cannot be read or written.
pub fn change_all(
    changes: &[Change],
    places: &Places,
    reload: Reload<'_>,
    report: &dyn Report,
    cancel: &Cancel,
) -> Result<Vec<Changed>, OpError> {
    // Everybody takes them in the same order: nobody waits for one who waits for him.
    let names: BTreeSet<&MachineName> = changes.iter().map(|change| &change.name).collect();
    let locks = names.into_iter();
    let _locks: Vec<Lock> = locks
        .map(|name| Lock::wait(&places.runtime, name.as_str(), report, cancel))
        .collect::<Result<_, _>>()?;
    change_locked(changes, places, reload, report, cancel)
}

/// The same, for who has locked the names. Blocks.
pub(super) fn change_locked(
    changes: &[Change],
    places: &Places,
    reload: Reload<'_>,
    report: &dyn Report,
    cancel: &Cancel,
) -> Result<Vec<Changed>, OpError> {
    sweep_temporaries(&places.settings);
    let mut taken_back = false;
    for change in changes {
        sweep_temporaries(&places.drop_ins(&change.name));
        taken_back |= settle(&change.name, places)?;
    }
    if taken_back {
        reload()?;
    }
    let numbers: Vec<_> = changes.iter().map(|_| Mutex::new(None)).collect();
    let plans = plans(changes, places, &numbers)?;
    plan::steps(&plans, reload).run(report, cancel)?;
    Ok(plans.into_iter().map(|(plan, work)| changed(plan, &work)).collect())
}

fn plans<'a>(
    changes: &'a [Change],
    places: &'a Places,
    numbers: &'a [Mutex<Option<u32>>],
) -> Result<Vec<(Plan, Work<'a>)>, OpError> {
    let plans = changes.iter().zip(numbers).map(|(change, number)| {
        let work = Work { change, places, number };
        Ok((Plan::make(change, places)?, work))
    });
    plans.collect()
}

fn changed(plan: Plan, work: &Work<'_>) -> Changed {
    let name = &work.change.name;
    let number = *work.number.lock().unwrap_or_else(PoisonError::into_inner);
    let overridden = plan.overridden(name, work.places);
    let in_vain = is_in_vain(work.change, &overridden);
    let mut notes = plan.notes;
    notes.extend(overridden.iter().map(ToString::to_string));
    if let Some(undone) = &plan.undoes {
        notes.push(format!("took back change {}: {}", undone.number, undone.what));
        if let (true, Some(number)) = (plan.lost_by_undo, number) {
            notes.push(format!(
                "the settings were changed after that, too; `machinist config undo {name} {number}` brings them back"
            ));
        }
    }
    Changed {
        files: plan.files.iter().map(|file| file.path.clone()).collect(),
        at_once: plan.files.iter().all(|file| file.key.holds_at_once()),
        number,
        overridden,
        in_vain,
        notes,
        warnings: plan.warnings,
    }
}

/// Whether nothing that a change sets has an effect.
fn is_in_vain(change: &Change, overridden: &[Overridden]) -> bool {
    let Wanted::Edits { settings, drop_ins } = &change.wanted else {
        return false;
    };
    let mut set = drop_ins
        .iter()
        .filter_map(|(topic, edit)| Some((topic, set_by(edit)?)))
        .peekable();
    let has_none = |(topic, key): (&Topic, &str)| {
        overridden.iter().any(|other| {
            other.file.ends_with(topic.file_name()) && other.key.as_deref().is_none_or(|other| other == key)
        })
    };
    settings.is_empty() && set.peek().is_some() && set.all(has_none)
}

/// The key that an edit sets, but for what only goes along with another one.
fn set_by(edit: &Edit) -> Option<&str> {
    match edit {
        _ if is_companion(edit) => None,
        Edit::Set { key, .. } | Edit::Add { key, .. } | Edit::Append { key, .. } | Edit::Field { key, .. } => Some(key),
        _ => None,
    }
}

/// What [`change_all`] would do, one line per step; checks all that can be checked without touching anything.
pub fn plan(changes: &[Change], places: &Places) -> Result<Vec<String>, OpError> {
    let numbers: Vec<_> = changes.iter().map(|_| Mutex::new(None)).collect();
    Ok(plan::steps(&plans(changes, places, &numbers)?, &|| Ok(())).describe())
}

/// A file, and what it is to say; `None` if it is to be removed.
pub type Preview = (PathBuf, Option<Vec<u8>>);

/// What the drop-ins of a machine would say after a change, of those that it is about.
pub fn preview(change: &Change, places: &Places) -> Result<Vec<Preview>, OpError> {
    let plan = Plan::make(change, places)?;
    let owned = |(path, text): (&Path, Option<&[u8]>)| (path.to_owned(), text.map(<[u8]>::to_vec));
    Ok(plan.drop_ins().map(owned).collect())
}

/// What is wrong with a text that was not wrong with the one before.
fn new_findings(change: &Change, places: &Places, before: &Document, document: &Document) -> Vec<Finding> {
    let users = HostUsers::default();
    let view = Viewpoint {
        systemd: change.systemd,
        trusted: true,
        machine: Some(&change.name),
        on_this_host: Some(&users),
    };
    let old = findings(before, view, places);
    let was_there = |new: &Finding| {
        old.iter()
            .any(|old| (old.code, &old.message) == (new.code, &new.message))
    };
    let mut found = findings(document, view, places);
    found.retain(|finding| !was_there(finding));
    found
}

/// What is wrong with an edited text that was not wrong before: with errors [`change_all`] would refuse it.
#[must_use]
pub fn review(change: &Change, places: &Places) -> Vec<Finding> {
    match &change.wanted {
        Wanted::Text { read, text } => {
            let before = Document::parse(read.as_deref().unwrap_or_default());
            new_findings(change, places, &before, &Document::parse(text))
        }
        _ => Vec::new(),
    }
}

fn changed_meanwhile(file: &Path) -> OpError {
    OpError::Option {
        message: format!("'{}' was changed by somebody else meanwhile", shown(file)),
        hint: "try again".to_owned(),
    }
}

/// Removes the temporary files of writers that were killed. Nobody writes one of ours for so long.
pub(super) fn sweep_temporaries(directory: &Path) {
    let is_old = |path: &Path| {
        let age = fs::symlink_metadata(path).and_then(|found| found.modified()).ok();
        age.and_then(|modified| modified.elapsed().ok())
            .is_some_and(|age| age > Duration::from_secs(60))
    };
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with(".#machinist-") && is_old(&entry.path()) {
            let _ = fs::remove_file(entry.path());
        }
    }
}

//! Changing the settings of machines: read, edit, check, keep the former file, write. All of it under the machine's lock.

pub mod files;
pub mod findings;
pub mod history;
#[cfg(test)]
mod tests;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use super::lock::Lock;
use super::transaction::{Step, Transaction};
use super::{OpError, Places, owned};
use crate::machine::{Cancel, MachineName, Report};
use crate::nspawn::check::{Finding, Severity};
use crate::nspawn::document::Document;
use crate::nspawn::edit::{Edit, EditError};
use crate::sys::files::{read_regular, shown, write_atomic};
use files::{MAX_BYTES, SettingsFile, of_machine};
use findings::{Viewpoint, findings};
use history::History;

/// What the settings of a machine are to become.
#[derive(Clone, Debug)]
pub enum Wanted {
    /// What these edits make of them, one after the other.
    Edits(Vec<Edit>),
    /// This text, which was made of a [`draft`].
    Text {
        /// What the draft was made of.
        read: Option<Vec<u8>>,
        /// What the file is to say.
        text: Vec<u8>,
    },
    /// What they were before this change, or before the last one that was not taken back.
    Undo(Option<u32>),
}

/// What an editor begins with.
#[derive(Clone, Debug)]
pub struct Draft {
    /// What systemd reads now, byte for byte; `None` if there is no file.
    pub read: Option<Vec<u8>>,
    /// The text to be edited.
    pub text: Vec<u8>,
}

/// The settings of a machine, to be edited and handed to [`change`] as [`Wanted::Text`].
pub fn draft(name: &MachineName, places: &Places, _systemd: u32) -> Result<Draft, OpError> {
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

/// What came of a change.
#[derive(Debug)]
pub struct Changed {
    /// The file that holds the settings now.
    pub file: PathBuf,
    /// The number of the change; `None` if there was nothing to do.
    pub number: Option<u32>,
    /// What else there is to say.
    pub notes: Vec<String>,
    /// What is probably not meant, and was not so before.
    pub warnings: Vec<Finding>,
}

/// Makes a change, or leaves everything as it was. Blocks.
///
/// # Errors
/// [`OpError::Option`] for what systemd would not take, [`OpError::File`] for what cannot be read or written.
pub fn change(change: &Change, places: &Places, report: &dyn Report, cancel: &Cancel) -> Result<Changed, OpError> {
    let _lock = Lock::wait(&places.runtime, change.name.as_str(), report, cancel)?;
    sweep_temporaries(&places.settings);
    History::of(&change.name, places).forget_unmade(&places.settings_file(&change.name))?;
    let plan = Plan::make(change, places)?;
    let number = Mutex::new(None);
    plan.steps(change, places, &number).run(report, cancel)?;
    let number = number.into_inner().unwrap_or_default();
    let mut notes = plan.notes;
    if let Some(undone) = plan.undoes {
        notes.push(format!("took back change {}: {}", undone.number, undone.what));
        if let (true, Some(number)) = (plan.lost_by_undo, number) {
            notes.push(format!(
                "the settings were changed after that, too; `machinist config undo {} {number}` brings them back",
                change.name
            ));
        }
    }
    Ok(Changed {
        file: plan.file,
        number,
        notes,
        warnings: plan.warnings,
    })
}

/// What [`change`] would do, one line per step; checks all that can be checked without touching anything.
pub fn plan(change: &Change, places: &Places) -> Result<Vec<String>, OpError> {
    Ok(Plan::make(change, places)?
        .steps(change, places, &Mutex::default())
        .describe())
}

/// What there is, and what is to be made of it.
struct Plan {
    /// The file that is written.
    file: PathBuf,
    /// What it says now; `None` if there is none.
    former: Option<Vec<u8>>,
    /// What it is to say; `None` if it is to be removed.
    new: Option<Vec<u8>>,
    /// Permissions of a new file.
    mode: u32,
    notes: Vec<String>,
    warnings: Vec<Finding>,
    undoes: Option<history::Entry>,
    /// The file is not what the change that is taken back has written.
    lost_by_undo: bool,
}

impl Plan {
    fn make(change: &Change, places: &Places) -> Result<Self, OpError> {
        let file = places.settings_file(&change.name);
        let source = of_machine(&change.name, places).into_iter().next();
        let bytes = source.as_ref().map(SettingsFile::read).transpose()?;
        let is_there = source.as_ref().is_some_and(|source| source.path == file);
        let mut plan = Self {
            former: bytes.clone().filter(|_| is_there),
            new: None,
            mode: 0o644,
            notes: Vec::new(),
            warnings: Vec::new(),
            undoes: None,
            lost_by_undo: false,
            file,
        };
        match &change.wanted {
            Wanted::Edits(edits) => plan.edit(change, places, source, bytes, edits)?,
            Wanted::Text { read, .. } if *read != bytes => return Err(changed_meanwhile(&plan.file)),
            Wanted::Text { text, .. } => {
                let before = Document::from_bytes(bytes.unwrap_or_default());
                if let Some(source) = source.filter(|source| source.path != plan.file) {
                    plan.copy(&source, &mut before.clone(), change.systemd)?;
                }
                plan.accept(change, places, &before, &Document::parse(text))?;
            }
            Wanted::Undo(number) => plan.undo(change, places, *number)?,
        }
        Ok(plan)
    }

    fn edit(
        &mut self,
        change: &Change,
        places: &Places,
        source: Option<SettingsFile>,
        bytes: Option<Vec<u8>>,
        edits: &[Edit],
    ) -> Result<(), OpError> {
        let before = Document::from_bytes(bytes.unwrap_or_else(|| head(&change.name)));
        let mut document = before.clone();
        if let Some(source) = source.filter(|source| source.path != self.file) {
            self.copy(&source, &mut document, change.systemd)?;
        }
        let mut changed = false;
        for edit in edits {
            changed |= document.apply(edit).map_err(|error| self.refuse(change, &error))?;
        }
        if !changed {
            self.notes.clear();
            self.new.clone_from(&self.former);
            return Ok(());
        }
        self.accept(change, places, &before, &document)
    }

    /// Takes a text that has no faults but those that were there before.
    fn accept(
        &mut self,
        change: &Change,
        places: &Places,
        before: &Document,
        document: &Document,
    ) -> Result<(), OpError> {
        for finding in new_findings(change, places, before, document) {
            match finding.severity {
                Severity::Warning => self.warnings.push(finding),
                Severity::Error => {
                    return Err(OpError::Option {
                        message: format!(
                            "settings of machine '{}' are not changed: {}",
                            change.name, finding.message
                        ),
                        hint: finding.hint.unwrap_or_default(),
                    });
                }
            }
        }
        self.new = Some(document.as_bytes().to_vec());
        Ok(())
    }

    /// Settings of another place go on in /etc/systemd/nspawn, where they are found first.
    fn copy(&mut self, source: &SettingsFile, document: &mut Document, _systemd: u32) -> Result<(), OpError> {
        let metadata = fs::metadata(&source.path).map_err(OpError::path("look at", &source.path))?;
        self.mode = metadata.permissions().mode() & 0o644;
        self.notes.push(format!(
            "copied '{}' to '{}', which systemd finds first",
            shown(&source.path),
            shown(&self.file)
        ));
        if !source.trusted {
            let count = document.comment_out_untrusted();
            if count > 0 {
                self.notes.push(format!(
                    "{count} settings that systemd did not heed beside the image are comments in the copy"
                ));
            }
        }
        Ok(())
    }

    fn undo(&mut self, change: &Change, places: &Places, number: Option<u32>) -> Result<(), OpError> {
        let history = History::of(&change.name, places);
        let entries = history.entries()?;
        let chosen = match number {
            Some(number) => entries.iter().find(|entry| entry.number == number),
            None => entries.iter().rfind(|entry| !entry.undone && entry.undoes.is_none()),
        };
        let Some(entry) = chosen else {
            return Err(OpError::Option {
                message: match number {
                    Some(number) => format!("there is no change {number} of machine '{}'", change.name),
                    None => format!("there is no change of machine '{}' to take back", change.name),
                },
                hint: format!("see `machinist config undo {} --list`", change.name),
            });
        };
        self.new = history.former(entry.number)?;
        self.lost_by_undo = !entry.has_written(self.former.as_deref());
        self.undoes = Some(entry.clone());
        Ok(())
    }

    fn refuse(&self, change: &Change, error: &EditError) -> OpError {
        let hint = match error {
            EditError::Broken { .. } => format!("see `machinist config check {}`", change.name),
            _ => "see systemd.nspawn(5)".to_owned(),
        };
        OpError::Option {
            message: format!("cannot change '{}': {error}", shown(&self.file)),
            hint,
        }
    }

    fn steps<'a>(&'a self, change: &'a Change, places: &'a Places, number: &'a Mutex<Option<u32>>) -> Transaction<'a> {
        let mut steps = Transaction::default();
        let hold = move || number.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let history = move || History::of(&change.name, places);
        let undoes = self.undoes.as_ref();
        if self.new != self.former {
            steps.step(
                Step::new(
                    format!("keep the former settings in '{}'", shown(&places.history(&change.name))),
                    move || {
                        let (former, new) = (self.former.as_deref(), self.new.as_deref());
                        let undone = undoes.map(|entry| entry.number);
                        *hold() = Some(history().push(&change.what, former, new, undone)?);
                        Ok(())
                    },
                )
                .undo(move || hold().take().map_or(Ok(()), |number| history().forget(number))),
            );
            let verb = if self.new.is_some() { "write" } else { "remove" };
            steps.step(Step::new(format!("{verb} '{}'", shown(&self.file)), move || {
                self.write()
            }));
        }
        if let Some(entry) = undoes {
            steps.step(Step::new(
                format!("note that change {} is taken back", entry.number),
                move || {
                    history().mark(entry.number, true)?;
                    // Taking back an undo brings its change into force again.
                    entry.undoes.map_or(Ok(()), |again| history().mark(again, false))
                },
            ));
        }
        steps
    }

    /// Writes the file, unless somebody has written it since it was read.
    fn write(&self) -> Result<(), OpError> {
        let now = match read_regular(&self.file, MAX_BYTES) {
            Err(error) if error.is_not_found() => None,
            read => Some(read?),
        };
        if now != self.former {
            return Err(changed_meanwhile(&self.file));
        }
        let Some(new) = &self.new else {
            return fs::remove_file(&self.file).map_err(OpError::path("remove", &self.file));
        };
        // What an administrator wrote does not become ours by a change.
        if owned::is_ours(&self.file) {
            return owned::write(&self.file, new);
        }
        let directory = self.file.parent().unwrap_or(Path::new("/"));
        fs::create_dir_all(directory).map_err(OpError::path("create", directory))?;
        Ok(write_atomic(&self.file, new, self.mode)?)
    }
}

/// What is wrong with a text that was not wrong with the one before.
fn new_findings(change: &Change, places: &Places, before: &Document, document: &Document) -> Vec<Finding> {
    let view = Viewpoint {
        systemd: change.systemd,
        trusted: true,
        machine: Some(&change.name),
        on_this_host: true,
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

/// What is wrong with an edited text that was not wrong before: with errors [`change`] would refuse it.
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
fn sweep_temporaries(directory: &Path) {
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

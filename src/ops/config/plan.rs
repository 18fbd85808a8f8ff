//! What a change does to each file, as steps.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use super::drop_ins::DropIns;
use super::files::{MAX_BYTES, SettingsFile, of_machine};
use super::history::{self, FileKey, History, Written};
use super::{Change, Overridden, Reload, Wanted, changed_meanwhile, head, new_findings};
use crate::machine::MachineName;
use crate::nspawn::check::{Finding, Severity};
use crate::nspawn::document::Document;
use crate::nspawn::edit::{Edit, EditError};
use crate::ops::transaction::{Step, Transaction};
use crate::ops::{OpError, Places, owned};
use crate::sys::drop_ins::resolved;
use crate::sys::files::{Attributes, read_regular, shown, write_atomic_as};
use crate::unit::OWN_SECTION;
use crate::unit::topic::Topic;

/// A file, and what is to be made of it.
pub(in crate::ops) struct FilePlan {
    pub(super) key: FileKey,
    pub(in crate::ops) path: PathBuf,
    /// What it says now; `None` if there is none.
    former: Option<Vec<u8>>,
    /// What it is to say; `None` if it is to be removed.
    pub(in crate::ops) new: Option<Vec<u8>>,
    /// Its mode and owner now.
    former_as: Option<Attributes>,
    /// Those of a new file.
    new_as: Attributes,
}

impl FilePlan {
    /// A file that stays as it is.
    pub(in crate::ops) fn of(key: FileKey, name: &MachineName, places: &Places) -> Result<Self, OpError> {
        let path = key.path(name, places);
        let former = read_or_none(&path)?;
        Ok(Self {
            key,
            former_as: Attributes::of(&path),
            new_as: Attributes::own(0o644),
            path,
            new: former.clone(),
            former,
        })
    }

    pub(in crate::ops) fn changes(&self) -> bool {
        self.new != self.former
    }

    /// Writes the file, unless somebody has written it since it was read.
    pub(in crate::ops) fn write(&self) -> Result<(), OpError> {
        if read_or_none(&self.path)? != self.former {
            return Err(changed_meanwhile(&self.path));
        }
        put(&self.key, &self.path, self.new.as_deref(), self.new_as)
    }

    /// Brings back what it said, unless somebody has written it since.
    pub(in crate::ops) fn take_back(&self) -> Result<(), OpError> {
        if read_or_none(&self.path)? == self.new {
            let attributes = self.former_as.unwrap_or(self.new_as);
            put(&self.key, &self.path, self.former.as_deref(), attributes)
        } else {
            Ok(())
        }
    }
}

/// Writes a file of a machine's settings, or removes it.
pub(super) fn put(key: &FileKey, path: &Path, bytes: Option<&[u8]>, attributes: Attributes) -> Result<(), OpError> {
    let directory = path.parent().unwrap_or(Path::new("/"));
    let Some(bytes) = bytes else {
        fs::remove_file(path).map_err(OpError::path("remove", path))?;
        if matches!(key, FileKey::DropIn(_)) {
            // Others may have drop-ins there.
            let _ = fs::remove_dir(directory);
        }
        return Ok(());
    };
    // What an administrator wrote does not become ours by a change.
    if owned::is_ours(path) || (matches!(key, FileKey::DropIn(_)) && !path.exists()) {
        return owned::write_as(path, bytes, attributes);
    }
    fs::create_dir_all(directory).map_err(OpError::path("create", directory))?;
    Ok(write_atomic_as(path, bytes, attributes)?)
}

pub(in crate::ops) fn read_or_none(path: &Path) -> Result<Option<Vec<u8>>, OpError> {
    match read_regular(path, MAX_BYTES) {
        Err(error) if error.is_not_found() => Ok(None),
        read => Ok(Some(read?)),
    }
}

/// What there is, and what is to be made of it.
pub(super) struct Plan {
    /// The files that the change is about, whether they change or not.
    pub(super) files: Vec<FilePlan>,
    pub(super) notes: Vec<String>,
    pub(super) warnings: Vec<Finding>,
    pub(super) undoes: Option<history::Entry>,
    /// A file is not what the change that is taken back has written.
    pub(super) lost_by_undo: bool,
}

impl Plan {
    pub(super) fn make(change: &Change, places: &Places) -> Result<Self, OpError> {
        let mut plan = Self {
            files: Vec::new(),
            notes: Vec::new(),
            warnings: Vec::new(),
            undoes: None,
            lost_by_undo: false,
        };
        match &change.wanted {
            Wanted::Edits { settings, drop_ins } => {
                for topic in Topic::ALL {
                    let edits: Vec<&Edit> = drop_ins
                        .iter()
                        .filter(|(of, _)| *of == topic)
                        .map(|(_, edit)| edit)
                        .collect();
                    if !edits.is_empty() {
                        plan.edit_drop_in(change, places, topic, &edits)?;
                    }
                }
                // Last: what the unit allows does no harm before a setting makes use of it.
                if !settings.is_empty() {
                    plan.edit(change, places, settings)?;
                }
            }
            Wanted::Text { read, text } => {
                let (mut file, source, bytes) = settings_plan(change, places)?;
                if *read != bytes {
                    return Err(changed_meanwhile(&file.path));
                }
                let before = Document::from_bytes(bytes.unwrap_or_default());
                if let Some(source) = source {
                    plan.copy(&mut file, &source, &mut before.clone())?;
                }
                plan.accept(change, places, &mut file, &before, &Document::parse(text))?;
                plan.files.push(file);
            }
            Wanted::Undo { number, then } => plan.undo(change, places, *number, then)?,
        }
        Ok(plan)
    }

    fn edit(&mut self, change: &Change, places: &Places, edits: &[Edit]) -> Result<(), OpError> {
        let (mut file, source, bytes) = settings_plan(change, places)?;
        let before = Document::from_bytes(bytes.unwrap_or_else(|| head(&change.name)));
        let mut document = before.clone();
        let notes = self.notes.len();
        if let Some(source) = source {
            self.copy(&mut file, &source, &mut document)?;
        }
        let mut changed = false;
        for edit in edits {
            changed |= document
                .apply(edit)
                .map_err(|error| refuse(change, &file.path, "systemd.nspawn(5)", &error))?;
        }
        if changed {
            self.accept(change, places, &mut file, &before, &document)?;
        } else {
            self.notes.truncate(notes);
        }
        self.files.push(file);
        Ok(())
    }

    fn edit_drop_in(&mut self, change: &Change, places: &Places, topic: Topic, edits: &[&Edit]) -> Result<(), OpError> {
        let mut file = FilePlan::of(FileKey::DropIn(topic), &change.name, places)?;
        let before = file.former.clone();
        let mut document = Document::from_bytes(before.unwrap_or_else(|| topic.head(&change.name).into_bytes()));
        for edit in edits {
            document
                .apply(edit)
                .map_err(|error| refuse(change, &file.path, "systemd.unit(5)", &error))?;
        }
        // A file of ours that says nothing is none.
        let says_nothing = document.entries().next().is_none() && document.faults().next().is_none();
        file.new = match file.former {
            None if says_nothing => None,
            Some(_) if says_nothing && owned::is_ours(&file.path) => None,
            _ => Some(document.as_bytes().to_vec()),
        };
        self.files.push(file);
        Ok(())
    }

    /// Takes a text that has no faults but those that were there before.
    fn accept(
        &mut self,
        change: &Change,
        places: &Places,
        file: &mut FilePlan,
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
        file.new = Some(document.as_bytes().to_vec());
        Ok(())
    }

    /// Settings of another place go on in /etc/systemd/nspawn, where they are found first.
    fn copy(&mut self, file: &mut FilePlan, source: &SettingsFile, document: &mut Document) -> Result<(), OpError> {
        let metadata = fs::metadata(&source.path).map_err(OpError::path("look at", &source.path))?;
        file.new_as.mode = metadata.permissions().mode() & 0o644;
        self.notes.push(format!(
            "copied '{}' to '{}', which systemd finds first",
            shown(&source.path),
            shown(&file.path)
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

    fn undo(
        &mut self,
        change: &Change,
        places: &Places,
        number: Option<u32>,
        then: &[(Topic, Edit)],
    ) -> Result<(), OpError> {
        let history = History::of(&change.name, places);
        let entry = history.choose(&change.name, number)?;
        for key in entry.files() {
            let mut file = FilePlan::of(key, &change.name, places)?;
            file.new = history.former(entry.number, &file.key)?;
            file.new_as = entry.attributes(&file.key);
            let edits = then.iter().filter(|(topic, _)| file.key == FileKey::DropIn(*topic));
            if let Some(former) = file.new.take_if(|_| edits.clone().next().is_some()) {
                let mut document = Document::from_bytes(former);
                for (_, edit) in edits {
                    document
                        .apply(edit)
                        .map_err(|error| refuse(change, &file.path, "systemd.unit(5)", &error))?;
                }
                file.new = Some(document.as_bytes().to_vec());
            }
            self.lost_by_undo |= !entry.has_written(&file.key, file.former.as_deref());
            self.files.push(file);
        }
        self.undoes = Some(entry);
        Ok(())
    }

    fn changing(&self) -> impl Iterator<Item = &FilePlan> {
        self.files.iter().filter(|file| file.changes())
    }

    /// A single file is written, or not; of several, one may be when the power fails.
    fn has_several(&self) -> bool {
        self.changing().count() > 1
    }

    fn changes_drop_ins(&self) -> bool {
        self.changing().any(|file| matches!(file.key, FileKey::DropIn(_)))
    }

    /// What the drop-ins are to say, whether that is new or not; `None` for none.
    pub(super) fn drop_ins(&self) -> impl Iterator<Item = (&Path, Option<&[u8]>)> {
        let drop_ins = self.files.iter().filter(|file| matches!(file.key, FileKey::DropIn(_)));
        drop_ins.map(|file| (file.path.as_path(), file.new.as_deref()))
    }

    /// Keeps what the files say, and writes them. After that is taken back systemd is told by `reload`.
    fn write<'a>(&'a self, work: &Work<'a>, reload: Option<Reload<'a>>, steps: &mut Transaction<'a>) {
        let Work { change, places, number } = *work;
        let history = move || History::of(&change.name, places);
        if self.changing().next().is_some() {
            steps.step(
                Step::new(
                    format!("keep the former settings in '{}'", shown(&places.history(&change.name))),
                    move || {
                        let undone = self.undoes.as_ref().map(|entry| entry.number);
                        let files: Vec<_> = self
                            .changing()
                            .map(|file| Written {
                                file: &file.key,
                                former: file.former.as_deref(),
                                former_as: file.former_as,
                                new: file.new.as_deref(),
                            })
                            .collect();
                        *hold(number) = Some(history().push(&change.what, &files, self.has_several(), undone)?);
                        Ok(())
                    },
                )
                .undo(move || {
                    hold(number).take().map_or(Ok(()), |number| history().forget(number))?;
                    reload.map_or(Ok(()), |reload| reload())
                }),
            );
        }
        for file in self.changing() {
            let verb = if file.new.is_some() { "write" } else { "remove" };
            let step = Step::new(format!("{verb} '{}'", shown(&file.path)), move || file.write());
            steps.step(step.undo(move || file.take_back()));
        }
    }

    /// Notes in the history what has come of it.
    fn conclude<'a>(&'a self, work: &Work<'a>, steps: &mut Transaction<'a>) {
        let Work { change, places, number } = *work;
        let history = move || History::of(&change.name, places);
        if self.has_several() {
            steps.step(Step::new("note that the change is complete", move || {
                hold(number).map_or(Ok(()), |number| history().complete(number))
            }));
        }
        if let Some(entry) = &self.undoes {
            steps.step(Step::new(
                format!("note that change {} is taken back", entry.number),
                move || {
                    history().mark(entry.number, true)?;
                    // Taking back an undo brings its change into force again.
                    entry.undoes.map_or(Ok(()), |again| history().mark(again, false))
                },
            ));
        }
    }

    /// What of the drop-ins is not in force, as another file wins.
    pub(super) fn overridden(&self, name: &MachineName, places: &Places) -> Vec<Overridden> {
        let drop_ins = DropIns::of(name, places);
        let mut found = Vec::new();
        for file in self.files.iter().filter(|file| matches!(file.key, FileKey::DropIn(_))) {
            let Some(new) = &file.new else { continue };
            if let Some(by) = drop_ins.instead_of(&file.path) {
                found.push(Overridden {
                    key: None,
                    file: file.path.clone(),
                    by: by.to_owned(),
                });
                continue;
            }
            let path = resolved(&file.path);
            let document = Document::parse(new);
            let mut seen: Vec<(&str, &str)> = Vec::new();
            for entry in document.entries() {
                let Some(section) = entry.section.filter(|section| *section != OWN_SECTION) else {
                    continue;
                };
                if seen.contains(&(section, entry.key)) {
                    continue;
                }
                seen.push((section, entry.key));
                let list = is_list(entry.key);
                let values = drop_ins.values(section, entry.key, list);
                let holds = values.iter().any(|value| value.file == path);
                if let Some(winner) = values.last().filter(|_| !holds) {
                    found.push(Overridden {
                        key: Some(entry.key.to_owned()),
                        file: file.path.clone(),
                        by: winner.file.clone(),
                    });
                }
            }
        }
        found
    }
}

/// The change that a plan is of, and the number that it gets.
#[derive(Clone, Copy)]
pub(super) struct Work<'a> {
    pub(super) change: &'a Change,
    pub(super) places: &'a Places,
    pub(super) number: &'a Mutex<Option<u32>>,
}

fn hold(number: &Mutex<Option<u32>>) -> std::sync::MutexGuard<'_, Option<u32>> {
    number.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The steps of plans of several machines, as one: all files are written, then systemd reads its own.
pub(super) fn steps<'a>(plans: &'a [(Plan, Work<'a>)], reload: Reload<'a>) -> Transaction<'a> {
    let mut steps = Transaction::default();
    // What is taken back last is what was done first.
    let mut after_undo = Some(reload);
    for (plan, work) in plans {
        let reload = after_undo.filter(|_| plan.changes_drop_ins());
        if reload.is_some() {
            after_undo = None;
        }
        plan.write(work, reload, &mut steps);
    }
    if plans.iter().any(|(plan, _)| plan.changes_drop_ins()) {
        steps.step(Step::new("have systemd read its unit files anew", reload));
    }
    for (plan, work) in plans {
        plan.conclude(work, &mut steps);
    }
    steps
}

/// Whether assignments of a key that is written here add up.
fn is_list(key: &str) -> bool {
    key.starts_with("Exec") || matches!(key, "After" | "Wants" | "DeviceAllow" | "LoadCredentialEncrypted")
}

/// The .nspawn file in /etc/systemd/nspawn; the other file that systemd reads as long as that one is not there; what it reads.
type SettingsPlan = (FilePlan, Option<SettingsFile>, Option<Vec<u8>>);

fn settings_plan(change: &Change, places: &Places) -> Result<SettingsPlan, OpError> {
    let path = places.settings_file(&change.name);
    let source = of_machine(&change.name, places).into_iter().next();
    let bytes = source.as_ref().map(SettingsFile::read).transpose()?;
    let former = bytes
        .clone()
        .filter(|_| source.as_ref().is_some_and(|source| source.path == path));
    let elsewhere = source.filter(|source| source.path != path);
    let file = FilePlan {
        key: FileKey::Settings,
        former_as: Attributes::of(&path),
        new_as: Attributes::own(0o644),
        path,
        new: former.clone(),
        former,
    };
    Ok((file, elsewhere, bytes))
}

fn refuse(change: &Change, file: &Path, manual: &str, error: &EditError) -> OpError {
    let hint = match error {
        EditError::Broken { .. } => format!("see `machinist config check {}`", change.name),
        _ => format!("see {manual}"),
    };
    OpError::Option {
        message: format!("cannot change '{}': {error}", shown(file)),
        hint,
    }
}

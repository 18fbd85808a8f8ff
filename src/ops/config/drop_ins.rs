//! The drop-ins of a machine's unit: where they lie, in which order systemd reads them, and what it takes of them.

use std::fs;
use std::path::{Path, PathBuf};

use super::files::MAX_BYTES;
use crate::machine::MachineName;
use crate::nspawn::document::Document;
use crate::ops::Places;
use crate::sys::drop_ins::{on_disk, resolved};
use crate::sys::files::read_regular;
use crate::unit::OWN_SECTION;
use crate::unit::drop_in::{Value, values};
use crate::unit::topic::Topic;

/// The drop-ins of a machine's unit as they are now, in the order in which systemd reads them. What cannot be read is left out.
#[derive(Debug, Default)]
pub struct DropIns {
    files: Vec<(PathBuf, Document)>,
    /// Of each name the file that is found first, whatever it is.
    first: Vec<PathBuf>,
}

impl DropIns {
    /// Those of a machine, and those of all machines.
    #[must_use]
    pub fn of(name: &MachineName, places: &Places) -> Self {
        let found = on_disk(&name.unit(), &places.unit_path).into_iter();
        let first: Vec<PathBuf> = found
            .filter(|file| file.behind.is_none())
            .map(|file| file.path)
            .collect();
        let read = |path: &PathBuf| Some((path.clone(), Document::from_bytes(read_regular(path, MAX_BYTES).ok()?)));
        Self {
            files: first.iter().filter_map(read).collect(),
            first,
        }
    }

    /// The same with what one of them is to say; `None` for one that is to go.
    #[must_use]
    pub fn with(mut self, file: &Path, text: Option<&[u8]>) -> Self {
        let file = resolved(file);
        let at = self
            .files
            .partition_point(|(path, _)| path.file_name() < file.file_name());
        // One of that name that is found first stays.
        if self.instead_of(&file).is_some() {
            return self;
        }
        if self.files.get(at).is_some_and(|(path, _)| *path == file) {
            self.files.remove(at);
        }
        if let Some(text) = text {
            self.files.insert(at, (file, Document::parse(text)));
        }
        self
    }

    /// Each file, in the order in which systemd reads them.
    pub fn files(&self) -> impl Iterator<Item = (&Path, &Document)> {
        self.files.iter().map(|(path, document)| (path.as_path(), document))
    }

    /// The values of a list, or the one value of another key.
    #[must_use]
    pub fn values(&self, section: &str, key: &str, list: bool) -> Vec<Value> {
        values(self.files(), section, key, list)
    }

    /// The values of a key of ours, of which systemd knows nothing.
    #[must_use]
    pub fn own(&self, key: &str) -> Vec<String> {
        self.values(OWN_SECTION, key, true)
            .into_iter()
            .map(|value| value.value)
            .collect()
    }

    /// The file of the same name that systemd finds first, if it does not read this one.
    #[must_use]
    pub fn instead_of(&self, file: &Path) -> Option<&Path> {
        let file = resolved(file);
        let other = self.first.iter().find(|path| path.file_name() == file.file_name())?;
        (*other != file).then_some(other)
    }

    /// Where the file of a topic lies.
    #[must_use]
    pub fn path(name: &MachineName, topic: Topic, places: &Places) -> PathBuf {
        places.drop_ins(name).join(topic.file_name())
    }
}

/// The machines that have a drop-in of that topic.
#[must_use]
pub fn with_topic(topic: Topic, places: &Places) -> Vec<MachineName> {
    let entries = fs::read_dir(&places.units).into_iter().flatten().flatten();
    let mut names: Vec<MachineName> = entries
        .filter_map(|entry| {
            let file = entry.file_name();
            let name = file
                .to_str()?
                .strip_prefix("systemd-nspawn@")?
                .strip_suffix(".service.d")?;
            let is_there = entry.path().join(topic.file_name()).exists();
            name.parse().ok().filter(|_| is_there)
        })
        .collect();
    names.sort();
    names
}

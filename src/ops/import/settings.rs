//! What an archive asks for besides a tree: rebuilt, assignment by assignment, out of what is known. No file is copied.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::names::Names;
use crate::machine::MachineName;
use crate::machine::manifest::{ABOUT, MANIFEST, SETTINGS};
use crate::nspawn::document::Document;
use crate::nspawn::edit::Edit;
use crate::nspawn::reach::assigned;
use crate::ops::export::settings::{DROP_INS, LIMITS, NSPAWN, is_name};
use crate::ops::{OpError, Places};
use crate::sources::tarball::bundle::{Member, short};
use crate::sys::files::shown;
use crate::unit::reach::{Reach, reach};
use crate::unit::topic::Topic;

/// More settings no machine has: each of them takes time.
pub(super) const ASKED_MAX: usize = 2000;

/// A file that settings stand in.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Place {
    /// The .nspawn file.
    Nspawn,
    /// A drop-in of the unit, by its name.
    DropIn(String),
    /// One of its limits, by its name.
    Limit(String),
}

impl Place {
    /// Where it is.
    pub(super) fn path(&self, name: &MachineName, places: &Places) -> PathBuf {
        match self {
            Self::Nspawn => places.settings_file(name),
            Self::DropIn(file) => places.drop_ins(name).join(file),
            Self::Limit(file) => places.control.join(format!("{}.d", name.unit())).join(file),
        }
    }

    /// How a new one begins.
    fn head(&self, name: &MachineName) -> String {
        match self {
            Self::Nspawn => format!("# Settings of machine '{name}', see systemd.nspawn(5).\n"),
            Self::DropIn(file) => {
                let topic = Topic::ALL.into_iter().find(|topic| topic.file_name() == *file);
                topic.map_or_else(
                    || format!("# Of machine '{name}', as it was imported.\n"),
                    |topic| topic.head(name),
                )
            }
            Self::Limit(_) => {
                "# This is a drop-in unit file extension, as `systemctl set-property` makes it.\n".to_owned()
            }
        }
    }
}

/// An assignment that an archive asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Asked {
    pub(super) place: Place,
    pub(super) section: String,
    pub(super) key: String,
    pub(super) value: String,
    /// Whether it reaches beyond the machine.
    pub(super) reaches: bool,
}

impl Asked {
    /// A line of a diff.
    pub(super) fn line(&self, name: &MachineName, places: &Places) -> String {
        let Self {
            section, key, value, ..
        } = self;
        format!("+ {}: [{section}] {key}={value}", shown(&self.place.path(name, places)))
    }
}

/// All that an archive asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Wishes {
    pub(super) asked: Vec<Asked>,
    /// Assignments that mean nothing here.
    pub(super) ignored: Names,
}

impl Wishes {
    /// Those of a machine that `export` wrote.
    pub(super) fn of_members(members: &[Member], systemd: u32) -> Result<Self, OpError> {
        let mut wishes = Self::default();
        for member in members {
            if [ABOUT, MANIFEST].contains(&member.path.as_str()) {
                continue;
            }
            let place = place_of(&member.path).ok_or_else(|| OpError::Option {
                message: format!(
                    "the archive has '{}', which no exported machine has",
                    short(&member.path)
                ),
                hint: "it was not made by `machinist export`".to_owned(),
            })?;
            wishes.add(&place, &Document::parse(&member.bytes), systemd);
        }
        Ok(wishes)
    }

    /// Adds what a document says, as far as it is known.
    pub(super) fn add(&mut self, place: &Place, document: &Document, systemd: u32) {
        if *place == Place::Nspawn {
            let (found, ignored) = assigned(document, systemd);
            self.ignored.extend(ignored);
            self.asked.extend(found.into_iter().map(|found| Asked {
                place: Place::Nspawn,
                section: found.section.to_owned(),
                key: found.key.to_owned(),
                // Between words a tab is a blank.
                value: found.value.replace('\t', " "),
                reaches: found.reaches,
            }));
            return;
        }
        let is_of = |topic: Topic| *place == Place::DropIn(topic.file_name());
        // Secrets stay where they are, and with them what hands them on.
        if document.fatal().is_some() || is_of(Topic::Secret) {
            return;
        }
        for entry in document.entries() {
            // It is made anew out of the priorities of the machines that are here.
            if is_of(Topic::Priority) && entry.key == "After" {
                continue;
            }
            let section = entry.section.unwrap_or_default();
            let value = entry.value.replace('\t', " ");
            let reaches = match reach(section, entry.key, &value) {
                Reach::Inside => false,
                Reach::Beyond => true,
                Reach::Unknown => {
                    self.ignored.note(&format!("[{section}] {}=", entry.key));
                    continue;
                }
            };
            self.asked.push(Asked {
                place: place.clone(),
                section: section.to_owned(),
                key: entry.key.to_owned(),
                value,
                reaches,
            });
        }
    }

    /// Takes off what only one machine can have.
    pub(super) fn forget_identity(&mut self) {
        self.asked.retain(|asked| {
            asked.key != "MachineID"
                && !(asked.key == "Environment" && asked.value.starts_with("SYSTEMD_NSPAWN_NETWORK_MAC"))
        });
    }

    /// Has the host name follow the machine's.
    pub(super) fn rename(&mut self, former: &str, name: &MachineName) {
        for asked in &mut self.asked {
            if asked.key == "Hostname" && asked.value == former {
                asked.value = name.to_string();
            }
        }
    }

    /// The signal that has its init power off, unless the archive names one.
    pub(super) fn power_off(&mut self, signal: &str) {
        if self.asked.iter().all(|asked| asked.key != "KillSignal") {
            self.asked.push(Asked {
                place: Place::Nspawn,
                section: "Exec".to_owned(),
                key: "KillSignal".to_owned(),
                value: signal.to_owned(),
                reaches: false,
            });
        }
    }

    /// The files that have what is granted.
    pub(super) fn files(
        &self,
        name: &MachineName,
        trusts: bool,
        places: &Places,
    ) -> Result<Vec<(PathBuf, String)>, OpError> {
        if self.asked.len() > ASKED_MAX {
            return Err(OpError::Option {
                message: format!(
                    "the archive asks for {} settings, and no machine has so many",
                    self.asked.len()
                ),
                hint: "its files alone are to be had by `machinist create --subtree`".to_owned(),
            });
        }
        let mut documents: BTreeMap<&Place, Document> = BTreeMap::new();
        let granted: Vec<&Asked> = self.asked.iter().filter(|asked| trusts || !asked.reaches).collect();
        for (at, asked) in granted.iter().enumerate() {
            // The last word counts, also where it was said before.
            if granted[at + 1..].contains(asked) {
                continue;
            }
            let head = || Document::from_bytes(asked.place.head(name).into_bytes());
            let document = documents.entry(&asked.place).or_insert_with(head);
            let edit = Edit::append(&asked.section, &asked.key, asked.value.clone());
            document
                .apply(&edit)
                .map_err(|error| OpError::Setting(format!("{}={}: {error}", asked.key, asked.value)))?;
        }
        let text = |document: &Document| String::from_utf8_lossy(document.as_bytes()).into_owned();
        let files = documents
            .iter()
            .map(|(place, document)| (place.path(name, places), text(document)));
        Ok(files.collect())
    }
}

fn place_of(path: &str) -> Option<Place> {
    let path = path.strip_prefix(SETTINGS)?;
    let named = |name: &str| Some(name.to_owned()).filter(|name| is_name(name));
    match path {
        NSPAWN => Some(Place::Nspawn),
        _ => path
            .strip_prefix(DROP_INS)
            .and_then(named)
            .map(Place::DropIn)
            .or_else(|| path.strip_prefix(LIMITS).and_then(named).map(Place::Limit)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(path: &str, text: &str) -> Member {
        Member {
            path: format!("{SETTINGS}{path}"),
            bytes: text.as_bytes().to_vec(),
        }
    }

    fn files(members: &[Member], trusts: bool) -> Vec<(String, String)> {
        let wishes = Wishes::of_members(members, 262).unwrap();
        let files = wishes
            .files(&"web".parse().unwrap(), trusts, &Places::default())
            .unwrap();
        files
            .into_iter()
            .map(|(path, text)| {
                let lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
                (path.display().to_string(), lines.collect::<Vec<_>>().join("\n"))
            })
            .collect()
    }

    #[test]
    fn what_reaches_is_taken_with_trust_only() {
        let members = [
            member(
                "machine.nspawn",
                "# c\n[Exec]\nKillSignal=SIGUSR2\n[Files]\nBind=/srv\n",
            ),
            member(
                "unit/override.conf",
                "[Service]\nExecStartPre=/bin/id\nRestart=always\nNo=1\n",
            ),
            member("unit/50-machinist-secret.conf", "[Service]\nExecStart=/bin/id\n"),
            member(
                "unit/50-machinist-priority.conf",
                "[Unit]\nAfter=systemd-nspawn@x.service\n[X-Machinist]\nPriority=5\n",
            ),
            member("limits/50-TasksMax.conf", "[Service]\nTasksMax=77\n"),
        ];
        let system = "/etc/systemd/system";
        let unit = "systemd-nspawn@web.service.d";
        let free = [
            (
                "/etc/systemd/nspawn/web.nspawn".to_owned(),
                "[Exec]\nKillSignal=SIGUSR2".to_owned(),
            ),
            (
                format!("{system}/{unit}/50-machinist-priority.conf"),
                "[X-Machinist]\nPriority=5".to_owned(),
            ),
            (
                format!("{system}/{unit}/override.conf"),
                "[Service]\nRestart=always".to_owned(),
            ),
            (
                format!("{system}.control/{unit}/50-TasksMax.conf"),
                "[Service]\nTasksMax=77".to_owned(),
            ),
        ];
        assert_eq!(files(&members, false), free);
        let trusted = files(&members, true);
        assert_eq!(trusted[0].1, "[Exec]\nKillSignal=SIGUSR2\n[Files]\nBind=/srv");
        assert_eq!(trusted[2].1, "[Service]\nExecStartPre=/bin/id\nRestart=always");
        assert_eq!(trusted.len(), 4);
    }

    #[test]
    fn no_name_of_a_member_leads_elsewhere() {
        for path in [
            "unit/../x.conf",
            "unit/x.service",
            "other",
            "unit/",
            "limits/a/b.conf",
            "unit/.conf",
        ] {
            assert!(Wishes::of_members(&[member(path, "")], 262).is_err(), "{path}");
        }
        assert!(
            Wishes::of_members(&[member("unit/x.conf", "[Service\nExecStart=/x\n")], 262)
                .unwrap()
                .asked
                .is_empty()
        );
    }
}

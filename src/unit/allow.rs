//! Bundles of settings that allow a machine one thing: what it takes in the .nspawn file and in the unit, and what it exposes.
//!
//! Each is a small file that says both; the settings in it are those that are written.

use super::device::Device;
use super::topic::Topic;
use crate::nspawn::document::{Document, Entry};
use crate::nspawn::edit::Edit;

/// Its own section, which nobody is to see in a file.
const SECTION: &str = "X-Bundle";

/// The files.
const FILES: [&str; 1] = [include_str!("allow/docker.conf")];

/// A bundle.
#[derive(Clone, Debug)]
pub struct Allow {
    /// Its name, as `--allow` takes it.
    pub name: String,
    /// What it is for.
    pub about: String,
    /// What the machine gets to.
    pub exposes: String,
    document: Document,
}

/// All of them.
#[must_use]
pub fn all() -> Vec<Allow> {
    FILES.iter().map(|text| Allow::read(text)).collect()
}

impl Allow {
    /// The bundle of that name.
    #[must_use]
    pub fn find(name: &str) -> Option<Self> {
        all().into_iter().find(|bundle| bundle.name == name)
    }

    fn read(text: &str) -> Self {
        let document = Document::parse(text.as_bytes());
        let own = |key: &str| {
            let entry = document.entries_of(SECTION, key).next();
            entry.map(|entry| entry.value.to_owned()).unwrap_or_default()
        };
        Self {
            name: own("Name"),
            about: own("About"),
            exposes: own("Exposes"),
            document,
        }
    }

    fn entries(&self) -> impl Iterator<Item = (&str, Entry<'_>)> {
        let sections = self
            .document
            .entries()
            .filter_map(|entry| Some((entry.section?, entry)));
        sections.filter(|(section, _)| *section != SECTION)
    }

    /// What it writes, for people: "[Exec] SystemCallFilter=add_key keyctl bpf".
    pub fn lines(&self) -> impl Iterator<Item = String> {
        self.entries()
            .map(|(section, entry)| format!("[{section}] {}={}", entry.key, entry.value))
    }

    /// The devices that must be there for the machine to start.
    pub fn devices(&self) -> impl Iterator<Item = Device> {
        self.entries()
            .filter(|(section, entry)| *section == "Files" && entry.key == "Bind")
            .filter_map(|(_, entry)| Device::parse(entry.value).ok())
    }

    /// The edits of the machine's settings and of its unit that allow it, or take it back.
    #[must_use]
    pub fn edits(&self, allow: bool) -> (Vec<Edit>, Vec<(Topic, Edit)>) {
        let (mut settings, mut drop_ins) = (Vec::new(), Vec::new());
        for (section, entry) in self.entries() {
            let is_unit = section == "Service";
            let (section, key, value) = (section.to_owned(), entry.key.to_owned(), entry.value.to_owned());
            let edit = match (allow, is_unit) {
                (true, true) => Edit::Append { section, key, value },
                (true, false) => Edit::Add { section, key, value },
                (false, _) => {
                    let value = Some(value);
                    Edit::Remove { section, key, value }
                }
            };
            if is_unit {
                drop_ins.push((Topic::Device, edit));
            } else {
                settings.push(edit);
            }
        }
        (settings, drop_ins)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nspawn::check::{Reader, check};

    #[test]
    fn every_bundle_explains_itself_and_is_sound() {
        for bundle in all() {
            assert!(
                ![&bundle.name, &bundle.about, &bundle.exposes]
                    .iter()
                    .any(|text| text.is_empty())
            );
            assert!(bundle.document.faults().next().is_none());
            let (settings, drop_ins) = bundle.edits(true);
            assert_eq!(settings.len() + drop_ins.len(), bundle.lines().count());
            let mut document = Document::parse(b"[Exec]\nBoot=yes\n");
            let before = document.as_bytes().to_vec();
            for edit in &settings {
                assert!(document.apply(edit).unwrap(), "{edit:?}");
                assert!(!document.apply(edit).unwrap(), "again: {edit:?}");
            }
            for systemd in [252, 257, 262] {
                let reader = Reader {
                    systemd,
                    trusted: true,
                    host: None,
                };
                assert_eq!(check(&document, &reader), [], "{}", bundle.name);
            }
            for edit in &bundle.edits(false).0 {
                document.apply(edit).unwrap();
            }
            let left: Vec<_> = document.entries().map(|entry| entry.key.to_owned()).collect();
            assert_eq!(left, ["Boot"], "{before:?}");
        }
        assert!(
            Allow::find("docker")
                .unwrap()
                .devices()
                .any(|device| device.path == "/dev/fuse")
        );
        assert!(Allow::find("nothing").is_none());
    }
}

//! What is said of a machine outside of its image, said of another name: .nspawn files, drop-ins, limits, secrets.
//!
//! All of it is written before the machine of that name is visible. What was written, and what it said, stands in a list in
//! the staging directory, so that a sweep can take it back: never what somebody has changed since.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, symlink};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::config::files::{MAX_BYTES, of_image};
use super::transaction::{Staging, Step};
use super::{OpError, Places, owned};
use crate::machine::MachineName;
use crate::nspawn::document::Document;
use crate::nspawn::edit::Edit;
use crate::sys::files::{Attributes, read_regular, shown, write_atomic, write_atomic_as};
use crate::unit::topic::Topic;

/// The list, among the papers of a staging directory.
const LIST: &str = "carried.json";

/// How systemd-nspawn is told a machine's hardware address: by its environment.
const MAC: &str = "SYSTEMD_NSPAWN_NETWORK_MAC=";

/// Who becomes whom.
#[derive(Clone, Copy, Debug)]
pub(super) struct Names<'a> {
    /// The machine that there is.
    pub(super) from: &'a MachineName,
    /// The machine that there will be.
    pub(super) to: &'a MachineName,
    /// How the new one's settings are changed.
    pub(super) edits: &'a [Edit],
}

/// What of a machine is carried over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Extent {
    /// What makes another machine like it: not what holds for this boot only.
    Like,
    /// The same, and what only one machine can have.
    LikeWithIdentity,
    /// Everything: it is the same machine.
    Same,
}

/// What a file is to be.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Content {
    Bytes(Vec<u8>),
    /// A link: one to /dev/null masks a drop-in of a package.
    Link(PathBuf),
}

/// One file.
#[derive(Clone, Debug)]
pub(super) struct Carried {
    /// Where it is.
    pub(super) from: PathBuf,
    /// Where it will be.
    pub(super) to: PathBuf,
    former: Content,
    content: Content,
    is_ours: bool,
    is_secret: bool,
    attributes: Attributes,
}

/// A file that was written for a new name.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Written {
    /// Where it came from.
    pub(super) from: PathBuf,
    /// Where it is.
    pub(super) to: PathBuf,
    /// What it says.
    digest: Vec<u8>,
    /// What that says which it came from.
    former: Vec<u8>,
}

impl Content {
    fn of(path: &Path) -> Option<Self> {
        match fs::read_link(path) {
            Ok(target) => Some(Self::Link(target)),
            Err(_) => read_regular(path, MAX_BYTES).ok().map(Self::Bytes),
        }
    }

    fn digest(&self) -> Vec<u8> {
        let (kind, bytes) = match self {
            Self::Bytes(bytes) => ("file", bytes.as_slice()),
            Self::Link(target) => ("link", target.as_os_str().as_encoded_bytes()),
        };
        Sha256::new().chain_update(kind).chain_update(bytes).finalize().to_vec()
    }
}

/// What is to be written, and what the user should know about it.
#[derive(Debug, Default)]
pub(super) struct Plan {
    pub(super) files: Vec<Carried>,
    pub(super) warnings: Vec<String>,
}

impl Plan {
    /// Reads all that is said of a machine. `image` is where it lies, `beside` the directory where the new one will.
    ///
    /// # Errors
    /// [`OpError::InUse`] if a file of the new name is there already.
    pub(super) fn make(
        names: Names<'_>,
        image: &Path,
        beside: &Path,
        extent: Extent,
        places: &Places,
    ) -> Result<Self, OpError> {
        let mut plan = Self::default();
        for (from, to) in pairs(names, image, beside, extent, places)? {
            let is_secret = from.starts_with(places.secrets(names.from));
            let content = match fs::read_link(&from) {
                Ok(target) => Content::Link(target),
                Err(_) => Content::Bytes(read_regular(&from, MAX_BYTES)?),
            };
            let former = content.clone();
            let content = match content {
                Content::Bytes(bytes) if !is_secret => {
                    Content::Bytes(plan.translate(bytes, &from, names, extent, places)?)
                }
                other => other,
            };
            if fs::symlink_metadata(&to).is_ok() {
                return Err(OpError::InUse {
                    name: names.to.to_string(),
                    by: format!("file '{}'", shown(&to)),
                    hint: "move it away: a new machine does not take over what it was not made with".to_owned(),
                });
            }
            plan.files.push(Carried {
                is_ours: owned::is_ours(&from),
                attributes: Attributes::of(&from).unwrap_or(Attributes::own(0o644)),
                from,
                to,
                former,
                content,
                is_secret,
            });
        }
        Ok(plan)
    }

    /// What a file says of the other name.
    fn translate(
        &mut self,
        bytes: Vec<u8>,
        from: &Path,
        names: Names<'_>,
        extent: Extent,
        places: &Places,
    ) -> Result<Vec<u8>, OpError> {
        // Our own first lines name the machine.
        let bytes = Topic::ALL.into_iter().fold(bytes, |bytes, topic| {
            with_head(bytes, &topic.head(names.from), &topic.head(names.to))
        });
        let secrets = |name| format!("{}/", places.secrets(name).display());
        let bytes = replaced(&bytes, &secrets(names.from), &secrets(names.to));
        let is_settings = from.extension().is_some_and(|end| end == "nspawn");
        let mut edits = Vec::new();
        let document = Document::from_bytes(bytes);
        let value = |section: &str, key: &str| {
            let entry = document.entries_of(section, key).last();
            entry.map(|entry| entry.value.to_owned()).unwrap_or_default()
        };
        if is_settings {
            if value("Exec", "Hostname") == names.from.as_str() {
                edits.push(Edit::set("Exec", "Hostname", names.to.to_string()));
            }
            if extent == Extent::Like && !value("Exec", "MachineID").is_empty() {
                edits.push(Edit::remove("Exec", "MachineID", None));
            }
            edits.extend_from_slice(names.edits);
        } else if extent == Extent::Like {
            let addresses = document
                .entries_of("Service", "Environment")
                .filter(|entry| entry.value.starts_with(MAC));
            edits.extend(addresses.map(|entry| Edit::remove("Service", "Environment", Some(entry.value.to_owned()))));
        }
        let mut bytes = document.as_bytes().to_vec();
        if !edits.is_empty() {
            let mut document = document;
            for edit in &edits {
                document.apply(edit).map_err(|error| OpError::Option {
                    message: format!("'{}' cannot be carried over: {error}", shown(from)),
                    hint: format!("see `machinist config check {}`", names.from),
                })?;
            }
            bytes = document.as_bytes().to_vec();
        }
        if is_settings && extent != Extent::Same {
            self.warn_of_collisions(&Document::from_bytes(bytes.clone()), names);
        }
        let head = |name| format!("# Settings of machine '{name}', see systemd.nspawn(5).\n");
        Ok(with_head(bytes, &head(names.from), &head(names.to)))
    }

    /// Tells of settings that only one of two running machines can have.
    fn warn_of_collisions(&mut self, document: &Document, names: Names<'_>) {
        let Names { from, to, edits } = names;
        for (section, key, what) in [
            ("Network", "Port", "forward the same port of the host"),
            ("Network", "Interface", "take the same interface of the host"),
            ("Network", "VirtualEthernetExtra", "make a link of the same name"),
        ] {
            for entry in document
                .entries_of(section, key)
                .filter(|entry| !entry.value.is_empty())
            {
                self.warnings.push(format!(
                    "'{from}' and '{to}' both {what}: {key}={}; change it with `machinist config edit {to}`",
                    entry.value
                ));
            }
        }
        // Those of a linked clone were picked for it.
        let users = document
            .entries_of("Exec", "PrivateUsers")
            .last()
            .filter(|_| edits.is_empty());
        if let Some(entry) = users.filter(|entry| entry.value.starts_with(|c: char| c.is_ascii_digit())) {
            self.warnings.push(format!(
                "'{from}' and '{to}' both have the user numbers PrivateUsers={}; change it with `machinist config set {to} \
                 Exec.PrivateUsers=pick`",
                entry.value
            ));
        }
    }

    /// Adds a file of ours that the new name alone has.
    pub(super) fn add(&mut self, path: &Path, text: &str) {
        self.add_content(path, path, Content::Bytes(text.as_bytes().to_vec()));
    }

    /// The same for a link.
    pub(super) fn add_link(&mut self, path: &Path, leads_to: &Path) {
        self.add_content(path, path, Content::Link(leads_to.to_owned()));
    }

    fn add_content(&mut self, from: &Path, to: &Path, content: Content) {
        self.files.push(Carried {
            from: from.to_owned(),
            to: to.to_owned(),
            former: content.clone(),
            content,
            is_ours: true,
            is_secret: false,
            attributes: Attributes::own(0o644),
        });
    }

    /// Whether systemd has to read its unit files anew.
    pub(super) fn has_unit_files(&self, places: &Places) -> bool {
        self.files.iter().any(|file| is_unit_file(&file.to, places))
    }

    /// Writes all of it.
    pub(super) fn write(&self) -> Result<(), OpError> {
        self.files.iter().try_for_each(Carried::write)
    }

    /// Takes back what was written.
    pub(super) fn take_back(&self) -> Result<(), OpError> {
        self.files.iter().rev().try_for_each(|file| file.written().take_back())
    }

    /// Writes the list of what is going to be written.
    pub(super) fn note(&self, staging: &Staging) -> Result<(), OpError> {
        let list: Vec<Written> = self.files.iter().map(Carried::written).collect();
        let path = staging.paper(LIST);
        let text = serde_json::to_vec(&list).map_err(|error| OpError::path("write", &path)(error.into()))?;
        Ok(write_atomic(&path, &text, 0o600)?)
    }
}

/// Whether systemd itself reads a file, and not systemd-nspawn or nobody.
pub(super) fn is_unit_file(path: &Path, places: &Places) -> bool {
    path.extension().is_none_or(|end| end != "nspawn") && !path.starts_with(&places.state)
}

/// The list among papers; empty if it was not written yet.
pub(super) fn noted(papers: &Path) -> Result<Vec<Written>, OpError> {
    let path = papers.join(LIST);
    match fs::read(&path) {
        Ok(text) => serde_json::from_slice(&text).map_err(|error| OpError::path("read", &path)(error.into())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(OpError::path("read", &path)(error)),
    }
}

impl Carried {
    fn written(&self) -> Written {
        Written {
            from: self.from.clone(),
            to: self.to.clone(),
            digest: self.content.digest(),
            former: self.former.digest(),
        }
    }

    /// The step that writes it.
    pub(super) fn step(&self) -> Step<'_> {
        let write = Step::new(format!("write '{}'", shown(&self.to)), move || self.write());
        write.undo(move || self.written().take_back())
    }

    /// The step that removes what it came from.
    pub(super) fn remove_former(&self) -> Step<'_> {
        let remove = Step::new(format!("remove '{}'", shown(&self.from)), move || {
            self.written().remove_former()
        });
        remove.undo(move || match fs::symlink_metadata(&self.from) {
            Ok(_) => Ok(()),
            Err(_) => self.put(&self.from, &self.former),
        })
    }

    fn write(&self) -> Result<(), OpError> {
        self.put(&self.to, &self.content)
    }

    fn put(&self, path: &Path, content: &Content) -> Result<(), OpError> {
        let directory = path.parent().unwrap_or(Path::new("/"));
        match content {
            Content::Bytes(bytes) if self.is_secret => owned::write_private(path, bytes),
            Content::Bytes(bytes) if self.is_ours => owned::write_as(path, bytes, self.attributes),
            Content::Bytes(bytes) => {
                make_directory(directory)?;
                Ok(write_atomic_as(path, bytes, self.attributes)?)
            }
            Content::Link(target) => {
                make_directory(directory)?;
                symlink(target, path).map_err(OpError::path("link", path))
            }
        }
    }
}

impl Written {
    /// Removes it, if it is still what was written, and its directory if it was the last in it.
    pub(super) fn take_back(&self) -> Result<(), OpError> {
        remove(&self.to, &self.digest)
    }

    /// The same for what it came from.
    pub(super) fn remove_former(&self) -> Result<(), OpError> {
        remove(&self.from, &self.former)
    }
}

fn remove(path: &Path, digest: &[u8]) -> Result<(), OpError> {
    let found = Content::of(path);
    if found.is_some_and(|content| content.digest() == digest) {
        fs::remove_file(path).map_err(OpError::path("remove", path))?;
    }
    forget_directory(path);
    Ok(())
}

/// Removes the directory of a machine's drop-ins or secrets, if it is empty now.
fn forget_directory(file: &Path) {
    let Some(directory) = file.parent() else { return };
    let is_drop_ins = directory.extension().is_some_and(|end| end == "d");
    let is_secrets = directory.parent().is_some_and(|above| above.ends_with("secrets"));
    if is_drop_ins || is_secrets {
        let _ = fs::remove_dir(directory);
    }
}

fn make_directory(directory: &Path) -> Result<(), OpError> {
    let made = fs::DirBuilder::new().recursive(true).mode(0o755).create(directory);
    made.map_err(OpError::path("create", directory))
}

/// Each file of a machine, and where it is for the other name. The drop-in that loads secrets comes after the secrets.
fn pairs(
    names: Names<'_>,
    image: &Path,
    beside: &Path,
    extent: Extent,
    places: &Places,
) -> Result<Vec<(PathBuf, PathBuf)>, OpError> {
    let mut found = Vec::new();
    let mut all_in = |from: PathBuf, to: PathBuf| -> Result<(), OpError> {
        let entries = match fs::read_dir(&from) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(OpError::path("read", &from)(error)),
        };
        let mut files: Vec<PathBuf> = entries
            .flatten()
            .filter(|entry| entry.file_type().is_ok_and(|kind| !kind.is_dir()))
            // Who protects a machine does not protect all that are like it.
            .filter(|entry| extent == Extent::Same || entry.file_name() != Topic::Protect.file_name().as_str())
            .map(|entry| entry.path())
            .collect();
        files.sort();
        found.extend(files.into_iter().map(|path| {
            let target = to.join(path.file_name().unwrap_or_default());
            (path, target)
        }));
        Ok(())
    };
    all_in(places.secrets(names.from), places.secrets(names.to))?;
    let mut units = vec![&places.units, &places.control];
    if extent == Extent::Same {
        units.push(&places.runtime_control);
        units.extend(&places.other_units);
    }
    for place in &units {
        let directory = |name: &MachineName| place.join(format!("{}.d", name.unit()));
        all_in(directory(names.from), directory(names.to))?;
    }
    // A unit file of its own, in the place of the template.
    for place in &units {
        let own = place.join(names.from.unit());
        let is_own = |found: fs::Metadata| found.is_file() || (extent == Extent::Same && found.is_symlink());
        if fs::symlink_metadata(&own).is_ok_and(is_own) {
            found.push((own, place.join(names.to.unit())));
        }
        if extent == Extent::Same {
            found.extend(autostart(place, names));
        }
    }
    let file = format!("{}.nspawn", names.to);
    for settings in of_image(names.from, Some(image), places) {
        let directory = if settings.trusted {
            settings.path.parent().unwrap_or(beside)
        } else {
            beside
        };
        found.push((settings.path.clone(), directory.join(&file)));
    }
    Ok(found)
}

/// The links by which other units in a place want the machine's, as `systemctl enable` makes them.
fn autostart(place: &Path, names: Names<'_>) -> Vec<(PathBuf, PathBuf)> {
    let entries = fs::read_dir(place).into_iter().flatten().flatten();
    let pulling = entries.map(|entry| entry.path()).filter(|path| {
        let end = path.extension().and_then(|end| end.to_str()).unwrap_or_default();
        ["wants", "requires", "upholds"].contains(&end)
    });
    let links = pulling.map(|directory| (directory.join(names.from.unit()), directory.join(names.to.unit())));
    links.filter(|(link, _)| link.is_symlink()).collect()
}

fn with_head(bytes: Vec<u8>, former: &str, new: &str) -> Vec<u8> {
    match bytes.strip_prefix(former.as_bytes()) {
        Some(rest) => [new.as_bytes(), rest].concat(),
        None => bytes,
    }
}

/// Every `former` replaced.
fn replaced(bytes: &[u8], former: &str, new: &str) -> Vec<u8> {
    let former = former.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut rest = bytes;
    while let Some(at) = rest.windows(former.len()).position(|window| window == former) {
        out.extend_from_slice(&rest[..at]);
        out.extend_from_slice(new.as_bytes());
        rest = &rest[at + former.len()..];
    }
    out.extend_from_slice(rest);
    out
}

#[cfg(test)]
mod tests;

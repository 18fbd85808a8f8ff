//! What drop-ins of other machines say of a machine: that they start after it, or want it.

use std::fs;
use std::path::{Path, PathBuf};

use super::config::files::MAX_BYTES;
use super::transaction::Step;
use super::{OpError, Places, owned};
use crate::machine::MachineName;
use crate::nspawn::document::Document;
use crate::nspawn::edit::Edit;
use crate::sys::files::{Attributes, read_regular, shown, write_atomic_as};
use crate::unit::topic::Topic;

/// A drop-in that names a machine, and what it is to say.
#[derive(Debug)]
pub(super) struct Mention {
    pub(super) path: PathBuf,
    former: Vec<u8>,
    new: Vec<u8>,
}

impl Mention {
    /// The step that writes it; `what` is what it says then.
    pub(super) fn step(&self, what: &str) -> Step<'_> {
        let write = Step::new(format!("{what} in '{}'", shown(&self.path)), move || self.write());
        write.undo(move || self.exchange(&self.new, &self.former))
    }

    /// Has it name the other, unless somebody has changed it meanwhile.
    pub(super) fn write(&self) -> Result<(), OpError> {
        self.exchange(&self.former, &self.new)
    }

    fn exchange(&self, former: &[u8], new: &[u8]) -> Result<(), OpError> {
        if read_regular(&self.path, MAX_BYTES).ok().as_deref() != Some(former) {
            return Ok(());
        }
        let attributes = Attributes::of(&self.path).unwrap_or(Attributes::own(0o644));
        // What an administrator wrote does not become ours by this.
        if owned::is_ours(&self.path) {
            owned::write_as(&self.path, new, attributes)
        } else {
            Ok(write_atomic_as(&self.path, new, attributes)?)
        }
    }
}

/// The drop-ins of other machines' units that name a machine, and what they are to say of its new name.
pub(super) fn mentions(from: &MachineName, to: &MachineName, places: &Places) -> Result<Vec<Mention>, OpError> {
    changed([from, to], places, |_, former| {
        renamed(former, &from.unit(), &to.unit())
    })
}

/// The drop-ins of machines that start after one by its priority: they are to start after its clone, too.
pub(super) fn followers(from: &MachineName, clone: &MachineName, places: &Places) -> Result<Vec<Mention>, OpError> {
    of_priority([from, clone], places, |document| {
        let follows = document
            .entries_of("Unit", "After")
            .any(|entry| entry.value == from.unit());
        follows.then(|| Edit::append("Unit", "After", clone.unit()))
    })
}

/// The same drop-ins once there is no such clone.
pub(super) fn former_followers(clone: &MachineName, places: &Places) -> Result<Vec<Mention>, OpError> {
    of_priority([clone, clone], places, |_| {
        Some(Edit::remove("Unit", "After", Some(clone.unit())))
    })
}

fn of_priority(
    but: [&MachineName; 2],
    places: &Places,
    edit: impl Fn(&Document) -> Option<Edit>,
) -> Result<Vec<Mention>, OpError> {
    let file = Topic::Priority.file_name();
    changed(but, places, |path, former| {
        let mut document = Document::parse(former);
        if path.file_name().is_some_and(|name| name == file.as_str())
            && let Some(edit) = edit(&document)
            && document.apply(&edit) == Ok(true)
        {
            return document.as_bytes().to_vec();
        }
        former.to_vec()
    })
}

/// The drop-ins of machines' units, but of two, that are to say something else.
fn changed(
    but: [&MachineName; 2],
    places: &Places,
    change: impl Fn(&Path, &[u8]) -> Vec<u8>,
) -> Result<Vec<Mention>, OpError> {
    let own = but.map(|name| format!("{}.d", name.unit()));
    let mut found = Vec::new();
    let units = fs::read_dir(&places.units).into_iter().flatten().flatten();
    for directory in units.filter(|entry| {
        let name = entry.file_name().to_string_lossy().into_owned();
        name.starts_with("systemd-nspawn@") && name.ends_with(".service.d") && !own.contains(&name)
    }) {
        for entry in fs::read_dir(directory.path()).into_iter().flatten().flatten() {
            let path = entry.path();
            let is_drop_in = path.extension().is_some_and(|end| end == "conf") && path.is_file();
            if !is_drop_in {
                continue;
            }
            let former = read_regular(&path, MAX_BYTES)?;
            let new = change(&path, &former);
            if new != former {
                found.push(Mention { path, former, new });
            }
        }
    }
    found.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(found)
}

/// A text with every whole unit name `from` replaced.
fn renamed(text: &[u8], from: &str, to: &str) -> Vec<u8> {
    let of_name = |byte: &u8| byte.is_ascii_alphanumeric() || b"@:_.\\-".contains(byte);
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.windows(from.len()).position(|window| window == from.as_bytes()) {
        let (before, found) = rest.split_at(at);
        let (found, after) = found.split_at(from.len());
        let is_whole = !before.last().is_some_and(of_name) && !after.first().is_some_and(of_name);
        out.extend_from_slice(before);
        out.extend_from_slice(if is_whole { to.as_bytes() } else { found });
        rest = after;
    }
    out.extend_from_slice(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_names_are_replaced() {
        let (a, b) = ("systemd-nspawn@a.service", "systemd-nspawn@b.service");
        let text = format!("[Unit]\nAfter={a} {a}\nWants=x-{a} {a}.d systemd-nspawn@aa.service\n# {a}");
        let expected = format!("[Unit]\nAfter={b} {b}\nWants=x-{a} {a}.d systemd-nspawn@aa.service\n# {b}");
        assert_eq!(String::from_utf8(renamed(text.as_bytes(), a, b)).unwrap(), expected);
    }
}

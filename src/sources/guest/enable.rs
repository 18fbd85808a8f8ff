//! Enables units of a guest offline, by their `[Install]` sections, as `systemctl --root=TREE enable` does.

use std::collections::BTreeSet;
use std::str::FromStr;

use super::{exists, text};
use crate::sys::files::{FileError, Kind, Root};

const ETC: &str = "etc/systemd/system";
/// Where packages put units, in systemd's order.
const VENDOR: &[&str] = &[
    "usr/local/lib/systemd/system",
    "usr/lib/systemd/system",
    "lib/systemd/system",
];

/// One link that enabling makes: its path in the root, and its text.
type Link = (String, String);

/// Whether the unit is there and not masked.
pub(super) fn available(root: &Root, unit: &str) -> Result<bool, FileError> {
    Ok(find(root, unit)?.is_some())
}

/// Makes the links of a unit and of what it names in `Also=`; a unit that is missing or masked is skipped.
pub(super) fn enable(root: &Root, unit: &str) -> Result<(), FileError> {
    for (path, target) in links(root, unit)? {
        if let Some((dir, _)) = path.rsplit_once('/') {
            root.create_dir_all(dir, 0o755)?;
        }
        root.symlink(target, path)?;
    }
    Ok(())
}

/// Removes the links that [`enable`] makes.
pub(super) fn disable(root: &Root, unit: &str) -> Result<(), FileError> {
    for (path, _) in links(root, unit)? {
        if root.kind(&path)? == Some(Kind::Symlink) {
            root.remove_file(&path)?;
        }
    }
    Ok(())
}

/// Removes all links that start a unit at boot, whoever made them; false if there is neither such a unit nor such a link.
pub(super) fn disable_all(root: &Root, unit: &UnitName) -> Result<bool, FileError> {
    let mut is_known = available(root, &unit.0)?;
    disable(root, &unit.0)?;
    for directory in root.list(ETC).unwrap_or_default() {
        let Some(directory) = directory.to_str() else { continue };
        let starts = [".wants", ".requires", ".upholds"]
            .iter()
            .any(|end| directory.ends_with(end));
        let path = format!("{ETC}/{directory}/{}", unit.0);
        if starts && root.kind(&path)? == Some(Kind::Symlink) {
            root.remove_file(&path)?;
            is_known = true;
        }
    }
    Ok(is_known)
}

/// Keeps a unit from being started by anything, there or not.
pub(super) fn mask(root: &Root, unit: &UnitName) -> Result<(), FileError> {
    root.create_dir_all(ETC, 0o755)?;
    root.symlink("/dev/null", format!("{ETC}/{}", unit.0))
}

/// The name of a unit of the guest's, without a slash: it becomes a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnitName(String);

/// A text that is no name of a unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("this is no unit's name, such as apt-daily.timer")]
pub struct NoUnitName;

impl FromStr for UnitName {
    type Err = NoUnitName;

    /// Without a type it is a service, as for systemctl.
    fn from_str(text: &str) -> Result<Self, NoUnitName> {
        let name = if text.contains('.') {
            text.to_owned()
        } else {
            format!("{text}.service")
        };
        is_unit_name(&name).then_some(Self(name)).ok_or(NoUnitName)
    }
}

impl AsRef<str> for UnitName {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

/// The directory a unit's file is in; `None` if there is none, or if the administrator masked it.
fn find(root: &Root, unit: &str) -> Result<Option<String>, FileError> {
    let own = format!("{ETC}/{unit}");
    match root.kind(&own)? {
        Some(Kind::File) => return Ok(Some(ETC.to_owned())),
        // A link to /dev/null is a mask; any other is an alias of something that has a name of its own.
        Some(_) => {
            let masked = root.resolve(&own).map_or(true, |path| path.ends_with("null"));
            if masked {
                return Ok(None);
            }
        }
        None => {}
    }
    let dir = VENDOR.iter().find(|dir| exists(root, &format!("{dir}/{unit}")));
    Ok(dir.map(|dir| (*dir).to_owned()))
}

fn links(root: &Root, unit: &str) -> Result<BTreeSet<Link>, FileError> {
    let mut links = BTreeSet::new();
    let mut todo = vec![unit.to_owned()];
    let mut seen = BTreeSet::new();
    while let Some(unit) = todo.pop() {
        if !seen.insert(unit.clone()) || seen.len() > 32 {
            continue;
        }
        let Some(dir) = find(root, &unit)? else { continue };
        let install = Install::parse(&text(root, &format!("{dir}/{unit}"))?.unwrap_or_default());
        let target = format!("/{dir}/{unit}");
        for (other, suffix) in &install.links {
            let path = match suffix {
                Some(suffix) => format!("{ETC}/{other}.{suffix}/{unit}"),
                None => format!("{ETC}/{other}"),
            };
            links.insert((path, target.clone()));
        }
        todo.extend(install.also);
    }
    Ok(links)
}

#[derive(Default)]
struct Install {
    /// A unit's name and `wants` or `requires`; without either it is an alias.
    links: Vec<(String, Option<&'static str>)>,
    also: Vec<String>,
}

impl Install {
    fn parse(text: &str) -> Self {
        let mut install = Self::default();
        let mut inside = false;
        // Continued lines are rare here, but no reason to make a link of half a line.
        for line in text.replace("\\\n", " ").lines().map(str::trim) {
            if line.starts_with('[') {
                inside = line == "[Install]";
            }
            let Some((key, value)) = line.split_once('=').filter(|_| inside && !line.starts_with(['#', ';'])) else {
                continue;
            };
            let names = value
                .split_whitespace()
                .filter(|name| is_unit_name(name))
                .map(str::to_owned);
            match key.trim() {
                "WantedBy" => install.links.extend(names.map(|name| (name, Some("wants")))),
                "RequiredBy" => install.links.extend(names.map(|name| (name, Some("requires")))),
                "UpheldBy" => install.links.extend(names.map(|name| (name, Some("upholds")))),
                "Alias" => install.links.extend(names.map(|name| (name, None))),
                "Also" => install.also.extend(names),
                _ => {}
            }
        }
        install
    }
}

/// No slash, no specifier: the name comes from a hostile file and becomes a path.
fn is_unit_name(name: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '@' | ':' | '\\');
    name.len() < 256 && name.contains('.') && !name.starts_with('.') && name.chars().all(allowed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn install_sections_are_read_as_systemd_does() {
        let install = Install::parse(
            "[Unit]\nAlso=no.service\n[Install]\n# Alias=no.service\nWantedBy=a.target b.target\nAlias=x.service\n\
             Also=y.socket \\\nz.service\nAlias=../../evil.service %i.service\n[Service]\nAlias=no.service\n",
        );
        let names: Vec<String> = install
            .links
            .iter()
            .map(|(name, kind)| format!("{name}/{kind:?}"))
            .collect();
        assert_eq!(
            names,
            ["a.target/Some(\"wants\")", "b.target/Some(\"wants\")", "x.service/None"]
        );
        assert_eq!(install.also, ["y.socket", "z.service"]);
    }
}

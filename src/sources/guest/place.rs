//! Where a guest is thought to be: its time zone, its language.

use std::str::FromStr;

use super::{exists, text};
use crate::sys::files::{FileError, Kind, Root};

/// Where zones lie in every distribution, see localtime(5).
const ZONES: &str = "usr/share/zoneinfo";

/// The name of a time zone, such as `Europe/Berlin`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Timezone(String);

/// A language with its character set, such as `de_DE.UTF-8`, see locale(7).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Locale(String);

/// A text that is neither.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoPlace {
    /// No time zone.
    #[error("this is no time zone, such as Europe/Berlin or UTC")]
    Timezone,
    /// No locale.
    #[error("this is no locale, such as de_DE.UTF-8 or C.UTF-8")]
    Locale,
}

impl FromStr for Timezone {
    type Err = NoPlace;

    fn from_str(text: &str) -> Result<Self, NoPlace> {
        let allowed = |c: char| c.is_ascii_alphanumeric() || "+-_".contains(c);
        let is_part = |part: &str| !part.is_empty() && !part.starts_with('-') && part.chars().all(allowed);
        let is_valid = text.len() <= 64 && text.split('/').all(is_part);
        is_valid.then(|| Self(text.to_owned())).ok_or(NoPlace::Timezone)
    }
}

impl FromStr for Locale {
    type Err = NoPlace;

    fn from_str(text: &str) -> Result<Self, NoPlace> {
        let allowed = |c: char| c.is_ascii_alphanumeric() || "_.@-".contains(c);
        let is_valid =
            text.len() <= 64 && text.starts_with(|c: char| c.is_ascii_alphabetic()) && text.chars().all(allowed);
        is_valid.then(|| Self(text.to_owned())).ok_or(NoPlace::Locale)
    }
}

/// Sets the time zone. systemd-nspawn would set its own host's at each start: `Timezone=off` keeps it from that.
pub(super) fn set_timezone(root: &Root, zone: &Timezone, notes: &mut Vec<String>) -> Result<(), FileError> {
    let zone = zone.0.as_str();
    if !exists(root, ZONES) {
        notes.push(format!(
            "it has no time zones: it keeps UTC until its package tzdata is installed, then {zone}"
        ));
    } else if !exists(root, &format!("{ZONES}/{zone}")) {
        notes.push(format!("it knows no time zone '{zone}': it keeps UTC"));
    }
    root.symlink(format!("../{ZONES}/{zone}"), "etc/localtime")?;
    // What Debian had before; where it is, it is read.
    if root.kind("etc/timezone")? == Some(Kind::File) {
        root.write("etc/timezone", format!("{zone}\n").as_bytes(), 0o644)?;
    }
    Ok(())
}

/// Sets the language of all that asks for it, see locale.conf(5).
pub(super) fn set_locale(root: &Root, locale: &Locale, notes: &mut Vec<String>) -> Result<(), FileError> {
    const DEBIAN: &str = "etc/default/locale";
    let (name, line) = (locale.0.as_str(), format!("LANG={}\n", locale.0));
    root.write("etc/locale.conf", line.as_bytes(), 0o644)?;
    // A link there leads to the other file.
    if root.kind("etc/default")? == Some(Kind::Directory) && root.kind(DEBIAN)? != Some(Kind::Symlink) {
        root.write(DEBIAN, line.as_bytes(), 0o644)?;
    }
    if is_made(root, name) {
        return Ok(());
    }
    let list = text(root, "etc/locale.gen")?;
    notes.push(match list {
        Some(list) => {
            root.write("etc/locale.gen", chosen(&list, name).as_bytes(), 0o644)?;
            format!("its locale '{name}' is yet to be made: run `locale-gen` in it")
        }
        None => format!("it has no locale '{name}': install what has it, in Debian the package locales-all"),
    });
    Ok(())
}

/// Whether the C library finds it.
fn is_made(root: &Root, name: &str) -> bool {
    const COMPILED: &str = "usr/lib/locale";
    // Names are compared as the C library does it: `UTF-8` is `utf8`.
    let plain = |name: &str| name.to_ascii_lowercase().replace('-', "");
    let builtin = ["c", "posix", "c.utf8"].contains(&plain(name).as_str());
    let names = root.list(COMPILED).unwrap_or_default();
    builtin
        || names
            .iter()
            .filter_map(|found| found.to_str())
            // What is in the archive only a program of the guest's could tell.
            .any(|found| found == "locale-archive" || plain(found) == plain(name))
}

/// Debian's list of locales to make, with this one among them.
fn chosen(list: &str, name: &str) -> String {
    let is_it = |line: &str| line.split_whitespace().next() == Some(name);
    let mut lines: Vec<String> = list.lines().map(str::to_owned).collect();
    if !lines.iter().any(|line| is_it(line)) {
        let offered = lines.iter_mut().find(|line| line.strip_prefix('#').is_some_and(is_it));
        match offered {
            Some(line) => *line = line.trim_start_matches('#').trim_start().to_owned(),
            None => lines.push(format!(
                "{name} {}",
                name.split_once('.').map_or("ISO-8859-1", |(_, set)| set)
            )),
        }
    }
    lines.push(String::new());
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_checked_lexically() {
        for zone in ["UTC", "Europe/Berlin", "America/Argentina/Buenos_Aires", "Etc/GMT+3"] {
            assert!(zone.parse::<Timezone>().is_ok(), "{zone}");
        }
        for zone in [
            "",
            "/etc/passwd",
            "../x",
            "Europe/",
            "a//b",
            "a\nb",
            "Europe/Ber lin",
            "-x",
        ] {
            assert_eq!(zone.parse::<Timezone>(), Err(NoPlace::Timezone), "{zone}");
        }
        assert!("de_DE.UTF-8@euro".parse::<Locale>().is_ok() && "C".parse::<Locale>().is_ok());
        for locale in ["", "de DE", "x\nLANG=y", "$(x)", ".x", "a/b"] {
            assert_eq!(locale.parse::<Locale>(), Err(NoPlace::Locale), "{locale}");
        }
    }

    #[test]
    fn a_locale_is_chosen_once() {
        let list = "# list\n# de_DE.UTF-8 UTF-8\n# en_US ISO-8859-1\n";
        let once = chosen(list, "de_DE.UTF-8");
        assert_eq!(once, "# list\nde_DE.UTF-8 UTF-8\n# en_US ISO-8859-1\n");
        assert_eq!(chosen(&once, "de_DE.UTF-8"), once);
        assert_eq!(chosen(list, "fr_FR.UTF-8"), format!("{list}fr_FR.UTF-8 UTF-8\n"));
    }
}

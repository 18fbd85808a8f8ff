//! An account besides root's.

use std::collections::BTreeSet;
use std::str::FromStr;

use super::accounts::{authorize, today};
use super::{AuthorizedKeys, FILE_MAX, GuestError, exists, text};
use crate::sys::files::{FileError, Kind, Root};

/// The first number of a person's account, and the last, see systemd's UIDS-GIDS.md.
const NUMBERS: std::ops::RangeInclusive<u32> = 1000..=60_000;

/// How many files of `/etc/skel` are looked at.
const SKELETON_MAX: usize = 64;

/// Groups whose members may become root with sudo(8) or su(1): Debian's, and that of most others.
const ADMINISTRATORS: [&str; 2] = ["sudo", "wheel"];

/// The name of an account, as useradd(8) takes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UserName(String);

/// A text that is no name of an account.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a user's name has small letters, digits, '-' and '_', at most 32, and begins with a letter or '_'")]
pub struct NoUserName;

impl FromStr for UserName {
    type Err = NoUserName;

    fn from_str(text: &str) -> Result<Self, NoUserName> {
        let first = |c: char| c.is_ascii_lowercase() || c == '_';
        let later = |c: char| first(c) || c.is_ascii_digit() || c == '-';
        let is_valid = text.len() <= 32 && text.starts_with(first) && text.chars().all(later);
        is_valid.then(|| Self(text.to_owned())).ok_or(NoUserName)
    }
}

/// Makes the account, with a home of its own and without a password; it may become root where the guest has a group for
/// that. Who has one of these keys may log in.
pub(super) fn add(root: &Root, name: &UserName, keys: Option<&AuthorizedKeys>) -> Result<(), GuestError> {
    let name = name.0.as_str();
    let passwd = text(root, "etc/passwd")?.unwrap_or_default();
    let group = text(root, "etc/group")?.unwrap_or_default();
    if has(&passwd, name) {
        return Err(GuestError::UserExists { name: name.to_owned() });
    }
    let taken: BTreeSet<u32> = numbers(&passwd).chain(numbers(&group)).collect();
    let free = |number: &u32| !taken.contains(number);
    let number = NUMBERS.clone().find(free).ok_or(GuestError::NoUserNumber)?;
    // A group of that name is the user's, whatever its number.
    let gid = group.lines().find(|line| named(line, name)).and_then(number_of);
    let shell = if exists(root, "bin/bash") {
        "/bin/bash"
    } else {
        "/bin/sh"
    };
    let home = format!("home/{name}");

    let mut group = group;
    if gid.is_none() {
        group = with_line(&group, &format!("{name}:x:{number}:"));
    }
    let gid = gid.unwrap_or(number);
    let administrators = ADMINISTRATORS.into_iter().find(|wanted| has(&group, wanted));
    // What is left of a former user of that name would come first, and may need no password.
    let mut shadows = text(root, "etc/gshadow")?.map(|shadows| without(&shadows, name));
    if let Some(administrators) = administrators {
        group = with_member(&group, administrators, name);
        shadows = shadows.map(|shadows| with_member(&shadows, administrators, name));
    }
    write(root, "etc/group", &group, 0o644)?;
    if let Some(shadows) = shadows {
        let shadows = with_line(&shadows, &format!("{name}:!::"));
        write(root, "etc/gshadow", &shadows, 0o640)?;
    }
    let line = format!("{name}:x:{number}:{gid}::/{home}:{shell}");
    write(root, "etc/passwd", &with_line(&passwd, &line), 0o644)?;
    let shadow = without(&text(root, "etc/shadow")?.unwrap_or_default(), name);
    let line = format!("{name}:*:{}:0:99999:7:::", today());
    write(root, "etc/shadow", &with_line(&shadow, &line), 0o640)?;

    root.create_dir_all("home", 0o755)?;
    root.create_dir_all(&home, 0o700)?;
    let mut own = vec![home.clone()];
    own.extend(copy_skeleton(root, &home)?);
    if let Some(keys) = keys {
        authorize(root, keys, &home)?;
        own.extend([".ssh", ".ssh/authorized_keys"].map(|file| format!("{home}/{file}")));
    }
    for path in own {
        root.give(path, number, gid)?;
    }
    Ok(())
}

/// Copies the files of `/etc/skel`, not what lies deeper; those that were made are the result. Those of a guest that means no
/// good may be without number.
fn copy_skeleton(root: &Root, home: &str) -> Result<Vec<String>, FileError> {
    let (mut made, mut size) = (Vec::new(), 0);
    for name in root.list("etc/skel").unwrap_or_default().into_iter().take(SKELETON_MAX) {
        let Some(name) = name.to_str() else { continue };
        let from = format!("etc/skel/{name}");
        if root.kind(&from)? == Some(Kind::File)
            && let Ok(bytes) = root.read(&from, FILE_MAX - size)
        {
            let to = format!("{home}/{name}");
            let mode = root.mode(&from)?.unwrap_or(0o644);
            root.write(&to, &bytes, mode & 0o755)?;
            size += bytes.len() as u64;
            made.push(to);
        }
    }
    Ok(made)
}

fn write(root: &Root, path: &str, text: &str, new: u32) -> Result<(), FileError> {
    let mode = root.mode(path)?.unwrap_or(new);
    root.write(path, text.as_bytes(), mode)
}

/// A file without the lines of a name.
fn without(file: &str, name: &str) -> String {
    let lines = file.lines().filter(|line| !named(line, name));
    lines.flat_map(|line| [line, "\n"]).collect()
}

/// Whether a line of passwd, group or one of their shadows is this name's.
fn named(line: &str, name: &str) -> bool {
    line.split(':').next() == Some(name)
}

fn has(file: &str, name: &str) -> bool {
    file.lines().any(|line| named(line, name))
}

/// The number of a user or group.
fn number_of(line: &str) -> Option<u32> {
    line.split(':').nth(2)?.parse().ok()
}

fn numbers(file: &str) -> impl Iterator<Item = u32> {
    file.lines().filter_map(number_of)
}

fn with_line(file: &str, line: &str) -> String {
    let newline = if file.is_empty() || file.ends_with('\n') {
        ""
    } else {
        "\n"
    };
    format!("{file}{newline}{line}\n")
}

/// Makes `member` one of a group, whose members are the last field of its line.
fn with_member(file: &str, group: &str, member: &str) -> String {
    let mut lines: Vec<String> = file.lines().map(str::to_owned).collect();
    for line in lines.iter_mut().filter(|line| named(line, group)) {
        let members = line.rsplit(':').next().unwrap_or_default();
        if members.split(',').any(|one| one == member) {
            continue;
        }
        if !members.is_empty() {
            line.push(',');
        }
        line.push_str(member);
    }
    lines.push(String::new());
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_useradd() {
        for name in ["alice", "_x", "a-b_9"] {
            assert!(name.parse::<UserName>().is_ok(), "{name}");
        }
        for name in ["", "-a", "9a", "Alice", "a:b", "a/b", "a\nb", "ä", &"a".repeat(33)] {
            assert_eq!(name.parse::<UserName>(), Err(NoUserName), "{name}");
        }
    }

    #[test]
    fn members_are_added_once() {
        let group = "root:x:0:\nsudo:x:27:\nwheel:x:10:bob";
        let once = with_member(&with_member(group, "sudo", "alice"), "wheel", "alice");
        assert_eq!(once, "root:x:0:\nsudo:x:27:alice\nwheel:x:10:bob,alice\n");
        assert_eq!(with_member(&once, "wheel", "bob"), once);
    }
}

//! Which part of an archive is unpacked: a root filesystem need not lie at its top.

use std::fmt;
use std::str::FromStr;

use super::entry::{Content, Entry};
use super::names::split_any;
use super::{Problem, TarballError, shortened};

/// What becomes the root: all of an archive, if nothing is said.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Part {
    /// How many leading directories of each name are taken off. What lies less deep is left out, as tar does.
    pub strip: usize,
    /// The directory that becomes the root, below those that are taken off.
    pub subtree: Option<Subtree>,
}

/// A directory of an archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subtree(String);

impl FromStr for Subtree {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, &'static str> {
        let names: Vec<&str> = text.split('/').filter(|name| !matches!(*name, "" | ".")).collect();
        if names.is_empty() {
            return Err("expected a directory of the archive");
        }
        if names.contains(&"..") {
            return Err("'..' leads out of the archive");
        }
        Ok(Self(names.join("/")))
    }
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let directories = if self.strip == 1 { "directory" } else { "directories" };
        match (self.strip, &self.subtree) {
            (0, None) => f.write_str("its top"),
            (0, Some(subtree)) => write!(f, "'{}'", subtree.0),
            (strip, None) => write!(f, "the first {strip} {directories}"),
            (strip, Some(subtree)) => write!(f, "'{}' behind the first {strip} {directories}", subtree.0),
        }
    }
}

impl Part {
    /// Whether it is the whole archive.
    #[must_use]
    pub fn is_all(&self) -> bool {
        self.strip == 0 && self.subtree.is_none()
    }

    /// The entry under the name that it gets; `None` if it is left out. A name is checked before anything is taken off it.
    pub(super) fn take(&self, mut entry: Entry) -> Result<Option<Entry>, TarballError> {
        if self.is_all() {
            return Ok(Some(entry));
        }
        let Some(split) = split_any(&entry.name)? else {
            return Ok(None);
        };
        match self.rest(&split.path) {
            None => return Ok(None),
            Some(b"") if entry.content != Content::Directory => return Ok(None),
            Some(b"") => entry.name = b"./".to_vec(),
            Some(rest) => entry.name = rest.to_vec(),
        }
        // Of a target that leads outside the entry is refused, when it is made.
        if let Content::HardLink(target) = &mut entry.content
            && let Ok(Some(old)) = split_any(target)
        {
            match self.rest(&old.path) {
                Some(rest) if !rest.is_empty() => *target = rest.to_vec(),
                _ => {
                    let target = shortened(target);
                    return Err(TarballError::entry(&split.path, Problem::HardLinkLeftOut { target }));
                }
            }
        }
        Ok(Some(entry))
    }

    /// What is left of a checked name; empty for the directory that becomes the root.
    fn rest<'a>(&self, mut path: &'a [u8]) -> Option<&'a [u8]> {
        for _ in 0..self.strip {
            let end = path.iter().position(|byte| *byte == b'/')?;
            path = &path[end + 1..];
        }
        let Some(Subtree(subtree)) = &self.subtree else {
            return Some(path);
        };
        match path.strip_prefix(subtree.as_bytes())? {
            b"" => Some(b""),
            below => below.strip_prefix(b"/"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(strip: usize, subtree: Option<&str>) -> Part {
        Part {
            strip,
            subtree: subtree.map(|text| text.parse().unwrap()),
        }
    }

    #[test]
    fn names_lose_what_is_taken_off() {
        let rest =
            |part: &Part, path: &'static str| part.rest(path.as_bytes()).map(|rest| str::from_utf8(rest).unwrap());
        let stripped = part(1, None);
        assert_eq!(rest(&stripped, "a"), None);
        assert_eq!(rest(&stripped, "a/b/c"), Some("b/c"));
        let below = part(0, Some("./a//b/"));
        assert_eq!(rest(&below, "a/b"), Some(""));
        assert_eq!(rest(&below, "a/b/c"), Some("c"));
        assert_eq!(
            (rest(&below, "a"), rest(&below, "a/bc"), rest(&below, "b/c")),
            (None, None, None)
        );
        let both = part(1, Some("root"));
        assert_eq!(rest(&both, "any/root/etc"), Some("etc"));
        assert_eq!(rest(&both, "root/etc"), None);
        assert_eq!(both.to_string(), "'root' behind the first 1 directory");
    }

    #[test]
    fn a_subtree_lies_in_the_archive() {
        for bad in ["", "/", ".", "..", "a/../b", "./"] {
            assert!(bad.parse::<Subtree>().is_err(), "{bad}");
        }
    }
}

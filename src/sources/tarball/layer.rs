//! A layer of an OCI image, which hides things of the layers below it: see layer.md of the image specification.
//!
//! A whiteout `.wh.NAME` hides NAME, an opaque marker `.wh..wh..opq` everything in its directory; both only what layers
//! below have. So it is remembered what this layer has made, wherever in it the marker stands.

use std::collections::HashSet;
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher as _;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;

use rustix::fs::{self, AtFlags, Mode, OFlags};
use rustix::io::Errno;

use super::names::{Split, split_any};
use super::place::Place;
use super::{Problem, TarballError};
use crate::sys::files::{Kind, remove_at};

/// How names begin that are markers.
const PREFIX: &[u8] = b".wh.";

/// Names that are remembered of a layer, at the most: no image has so many files.
const MAX_NAMES: usize = 8 << 20;

/// Where a layer lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Depth {
    /// At the bottom: there is nothing to hide.
    Lowest,
    /// On others.
    Upper,
}

/// What an entry is by its name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Marker {
    /// Something that the layer has.
    None,
    /// What lies at this path goes.
    Whiteout(Vec<u8>),
    /// What lies in this directory goes.
    Opaque(Vec<u8>),
    /// What a storage driver of long ago has left.
    Ignored,
}

impl Marker {
    /// Tells it from the name of an entry.
    pub(super) fn of(name: &[u8]) -> Result<Self, TarballError> {
        let Some(split) = split_any(name)? else {
            return Ok(Self::None);
        };
        Self::of_split(&split).map_err(|problem| TarballError::entry(name, problem))
    }

    fn of_split(split: &Split) -> Result<Self, Problem> {
        let is_marker = |part: &&[u8]| part.starts_with(PREFIX);
        if let Some(above) = split.parent.split(|byte| *byte == b'/').find(is_marker) {
            return match above.strip_prefix(PREFIX) {
                Some(rest) if rest.starts_with(PREFIX) => Ok(Self::Ignored),
                _ => Err(Problem::Whiteout),
            };
        }
        match split.name.as_bytes().strip_prefix(PREFIX) {
            None => Ok(Self::None),
            Some(b".wh..opq") => Ok(Self::Opaque(split.parent.clone())),
            Some(rest) if rest.starts_with(PREFIX) => Ok(Self::Ignored),
            Some(b"" | b"." | b"..") => Err(Problem::Whiteout),
            Some(hidden) => Ok(Self::Whiteout(below(&split.parent, hidden))),
        }
    }
}

fn below(directory: &[u8], name: &[u8]) -> Vec<u8> {
    if directory.is_empty() {
        return name.to_vec();
    }
    [directory, b"/", name].concat()
}

/// What a layer has made so far: hashes of the names, and of the directories that they lie in. Two names with the same one
/// leave something that should be hidden, and nothing worse.
#[derive(Default)]
pub(super) struct Made {
    names: HashSet<u64>,
    hasher: RandomState,
}

impl Made {
    pub(super) fn has(&self, path: &[u8]) -> bool {
        self.names.contains(&self.hasher.hash_one(path))
    }

    /// Remembers a name without `.` and doubled slashes.
    fn add(&mut self, path: &[u8]) -> Result<(), TarballError> {
        let mut path = path;
        // Where one is known, those above it are, too.
        while self.names.insert(self.hasher.hash_one(path)) {
            match path.iter().rposition(|byte| *byte == b'/') {
                Some(end) => path = &path[..end],
                None => break,
            }
        }
        if self.names.len() > MAX_NAMES {
            return Err(TarballError::entry(path, Problem::ManyNames(MAX_NAMES)));
        }
        Ok(())
    }
}

impl Place {
    /// Remembers what an entry has made, if that is asked for.
    pub(super) fn note(&mut self, name: &[u8]) -> Result<(), TarballError> {
        if let Some(made) = &mut self.made
            && let Some(split) = split_any(name)?
        {
            made.add(&split.path)?;
        }
        Ok(())
    }

    /// Hides what layers below have; `name` is that of the entry that says so.
    pub(super) fn heed(&mut self, marker: &Marker, name: &[u8]) -> Result<(), TarballError> {
        // At the bottom there is nothing below.
        if self.made.is_none() {
            return Ok(());
        }
        match marker {
            Marker::None | Marker::Ignored => Ok(()),
            Marker::Whiteout(path) => self.hide(path, name),
            Marker::Opaque(path) => self.hide_all_in(path.clone(), name),
        }
    }

    fn hide(&mut self, path: &[u8], name: &[u8]) -> Result<(), TarballError> {
        let Some(split) = split_any(path)? else {
            return Ok(());
        };
        let parent = match self.lookup(&split.parent) {
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(()),
            Err(Errno::XDEV) => return Err(TarballError::entry(name, Problem::LinkLeadsOutside)),
            result => result.map_err(TarballError::io("open directory", &self.full(&split.parent)))?,
        };
        match fs::statat(&parent, &split.name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => Ok(()),
            Err(errno) => Err(TarballError::io("look at", &self.full(path))(errno)),
            // Its own is not hidden, but for what it lies upon.
            Ok(stat) if self.has_made(path) => match Kind::from_mode(stat.st_mode) {
                Kind::Directory => self.hide_all_in(path.to_vec(), name),
                _ => Ok(()),
            },
            Ok(_) => self.remove_whole(&parent, &split),
        }
    }

    fn hide_all_in(&mut self, path: Vec<u8>, name: &[u8]) -> Result<(), TarballError> {
        // Not by a descriptor for each level: their number is the image's to choose.
        let mut todo = vec![path];
        while let Some(path) = todo.pop() {
            let directory = match self.lookup(&path) {
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => continue,
                Err(Errno::XDEV) => return Err(TarballError::entry(name, Problem::LinkLeadsOutside)),
                result => result.map_err(TarballError::io("open directory", &self.full(&path)))?,
            };
            let failed = |errno| TarballError::io("list", &self.full(&path))(errno);
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let directory = fs::openat(&directory, ".", flags, Mode::empty()).map_err(failed)?;
            let listing = fs::Dir::read_from(&directory).map_err(failed)?;
            let mut found = Vec::new();
            for entry in listing {
                let entry = entry.map_err(failed)?;
                let name = entry.file_name().to_bytes();
                if name != b"." && name != b".." {
                    found.push(name.to_vec());
                }
            }
            for child in found {
                let whole = below(&path, &child);
                let Some(split) = split_any(&whole)? else { continue };
                if !self.has_made(&whole) {
                    self.remove_whole(&directory, &split)?;
                } else if self.kind(&directory, &split)? == Kind::Directory {
                    todo.push(whole);
                }
            }
        }
        Ok(())
    }

    /// Removes what a lower layer has of that name, with everything in it.
    pub(super) fn remove_whole(&mut self, parent: &OwnedFd, split: &Split) -> Result<(), TarballError> {
        // A link that goes away may have led to a directory that is kept open.
        self.open.clear();
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let parent = fs::openat(parent, ".", flags, Mode::empty())
            .map_err(TarballError::io("open directory", &self.full(&split.parent)))?;
        Ok(remove_at(parent.as_fd(), &split.name, &self.full(&split.path))?)
    }

    fn has_made(&self, path: &[u8]) -> bool {
        self.made.as_ref().is_some_and(|made| made.has(path))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn markers_are_told_from_names() {
        let marker = |name: &str| Marker::of(name.as_bytes());
        let hides = |name: &str, path: &str| assert_eq!(marker(name).unwrap(), Marker::Whiteout(path.into()), "{name}");
        hides(".wh.a", "a");
        hides("./d//.wh.a/", "d/a");
        hides("d/.wh.wh.x", "d/wh.x");
        assert_eq!(marker("d/.wh..wh..opq").unwrap(), Marker::Opaque("d".into()));
        assert_eq!(marker(".wh..wh..opq").unwrap(), Marker::Opaque(Vec::new()));
        for name in ["./", "a", "d/wh.a", "a.wh.", ".whx"] {
            assert_eq!(marker(name).unwrap(), Marker::None, "{name}");
        }
        for name in [".wh..wh.plnk", "d/.wh..wh.aufs", ".wh..wh.plnk/1.2", ".wh..wh..opq/x"] {
            assert_eq!(marker(name).unwrap(), Marker::Ignored, "{name}");
        }
        // What would hide all of a directory, or the root.
        for name in [".wh.", ".wh..", ".wh...", "d/.wh..", "d/.wh...", ".wh.a/b"] {
            let error = marker(name).unwrap_err().to_string();
            assert!(error.contains("is no valid whiteout"), "{name}: {error}");
        }
        assert!(marker("../.wh.a").is_err() && marker("/.wh.a").is_err());
    }
}

//! How much of the disk an archive, or the layers of an image, may take.

use std::io;
use std::path::Path;

use super::TarballError;
use crate::storage::room::{self, Exceeded};

/// What is left for an archive, or for the layers of an image.
#[derive(Debug)]
pub struct Room(room::Room);

impl Room {
    /// As much as was said, or else almost all that is free where `target` is.
    ///
    /// # Errors
    /// If it cannot be told what is free.
    pub(in crate::sources) fn new(given: Option<u64>, target: &Path) -> Result<Self, TarballError> {
        let room = room::Room::new(given, target).map_err(TarballError::io("open", target));
        room.map(Self)
    }

    /// Takes a file, of whatever kind, from what is left; `more` bytes belong to it that are no contents.
    pub(super) fn file(&self, more: usize, archive: &Path, target: &Path) -> Result<(), TarballError> {
        self.0.file(more).map_err(|exceeded| told(exceeded, archive, target))
    }

    /// Takes a directory that nothing but the names of others tells of.
    pub(super) fn directory(&self, archive: &Path, target: &Path) -> Result<(), TarballError> {
        self.file(1, archive, target)
    }

    /// Takes a piece of contents.
    pub(super) fn contents(&self, bytes: usize, archive: &Path, target: &Path) -> Result<(), TarballError> {
        let taken = self.0.contents(bytes as u64);
        taken.map_err(|exceeded| told(exceeded, archive, target))
    }
}

fn told(Exceeded(given): Exceeded, archive: &Path, target: &Path) -> TarballError {
    match given {
        Some(max) => TarballError::TooLarge {
            archive: archive.to_path_buf(),
            max,
        },
        // Told before it is, so that all others on this disk can go on.
        None => TarballError::io("write", target)(io::Error::from(io::ErrorKind::StorageFull)),
    }
}

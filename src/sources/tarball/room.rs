//! How much of the disk an archive, or an image, may take: a small one can unpack to more than any disk has.

use std::cell::Cell;
use std::fs::File;
use std::io;
use std::path::Path;

use super::TarballError;

/// What a file takes besides its contents, in bytes: its inode.
const INODE: u64 = 256;
/// In what pieces contents lie on a disk, in bytes.
const BLOCK: u64 = 4096;
/// The most that is left for others where nothing was said, in bytes; a twentieth, where that is less.
const SPARED: u64 = 1 << 30;

/// What is left for an archive, or for the layers of an image.
#[derive(Debug)]
pub struct Room {
    bytes: Cell<u64>,
    files: Cell<u64>,
    /// What was asked for, in bytes.
    given: Option<u64>,
}

impl Room {
    /// As much as was said, or else almost all that is free where `target` is.
    ///
    /// # Errors
    /// If it cannot be told what is free.
    pub(in crate::sources) fn new(given: Option<u64>, target: &Path) -> Result<Self, TarballError> {
        if let Some(bytes) = given {
            return Ok(Self {
                bytes: bytes.into(),
                files: u64::MAX.into(),
                given,
            });
        }
        let found = File::open(target).and_then(|directory| Ok(rustix::fs::fstatvfs(directory)?));
        let found = found.map_err(TarballError::io("open", target))?;
        let bytes = found.f_bavail.saturating_mul(found.f_frsize);
        // Some filesystems, such as btrfs, make them as they are needed, and tell of none.
        let files = if found.f_files == 0 { u64::MAX } else { found.f_favail };
        Ok(Self {
            bytes: (bytes - (bytes / 20).min(SPARED)).into(),
            files: (files - files / 20).into(),
            given,
        })
    }

    /// Takes a file, of whatever kind, from what is left; `more` bytes belong to it that are no contents.
    pub(super) fn file(&self, more: usize, archive: &Path, target: &Path) -> Result<(), TarballError> {
        match self.files.get().checked_sub(1) {
            Some(left) => self.files.set(left),
            None => return Err(self.exceeded(archive, target)),
        }
        self.take(INODE + (more as u64).next_multiple_of(BLOCK), archive, target)
    }

    /// Takes a directory that nothing but the names of others tells of.
    pub(super) fn directory(&self, archive: &Path, target: &Path) -> Result<(), TarballError> {
        self.file(1, archive, target)
    }

    /// Takes a piece of contents.
    pub(in crate::sources) fn contents(&self, bytes: usize, archive: &Path, target: &Path) -> Result<(), TarballError> {
        let bytes = (bytes as u64).next_multiple_of(BLOCK);
        self.take(bytes, archive, target)
    }

    fn take(&self, bytes: u64, archive: &Path, target: &Path) -> Result<(), TarballError> {
        match self.bytes.get().checked_sub(bytes) {
            Some(left) => self.bytes.set(left),
            None => return Err(self.exceeded(archive, target)),
        }
        Ok(())
    }

    fn exceeded(&self, archive: &Path, target: &Path) -> TarballError {
        match self.given {
            Some(max) => TarballError::TooLarge {
                archive: archive.to_path_buf(),
                max,
            },
            // Told before it is, so that all others on this disk can go on.
            None => TarballError::io("write", target)(io::Error::from(io::ErrorKind::StorageFull)),
        }
    }
}

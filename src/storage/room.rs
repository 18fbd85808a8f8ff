//! How much of the disk something from elsewhere may take: a small image can be more than any disk has.

use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// What a file takes besides its contents, in bytes: its inode.
const INODE: u64 = 256;
/// In what pieces contents lie on a disk, in bytes.
const BLOCK: u64 = 4096;
/// The most that is left for others where nothing was said, in bytes; a twentieth, where that is less.
const SPARED: u64 = 1 << 30;

/// What is left for an archive, an image, or the layers of one.
#[derive(Debug)]
pub(crate) struct Room {
    bytes: AtomicU64,
    files: AtomicU64,
    /// What was asked for, in bytes.
    given: Option<u64>,
    /// Whether more was wanted than is left.
    exceeded: AtomicBool,
}

/// More was wanted than is left: of so many bytes that were asked for, or of almost all that is free.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Exceeded(pub(crate) Option<u64>);

impl Room {
    /// As much as was said, or else almost all that is free where `target` is.
    ///
    /// # Errors
    /// If it cannot be told what is free.
    pub(crate) fn new(given: Option<u64>, target: &Path) -> io::Result<Self> {
        let of = |bytes: u64, files: u64| Self {
            bytes: bytes.into(),
            files: files.into(),
            given,
            exceeded: false.into(),
        };
        if let Some(bytes) = given {
            return Ok(of(bytes, u64::MAX));
        }
        let found = rustix::fs::fstatvfs(File::open(target)?)?;
        let bytes = found.f_bavail.saturating_mul(found.f_frsize);
        // Some filesystems, such as btrfs, make them as they are needed, and tell of none.
        let files = if found.f_files == 0 { u64::MAX } else { found.f_favail };
        Ok(of(bytes - (bytes / 20).min(SPARED), files - files / 20))
    }

    /// Takes a file, of whatever kind, from what is left; `more` bytes belong to it that are no contents.
    pub(crate) fn file(&self, more: usize) -> Result<(), Exceeded> {
        self.take(&self.files, 1)?;
        self.take(&self.bytes, INODE + (more as u64).next_multiple_of(BLOCK))
    }

    /// Takes contents, or a piece of them.
    pub(crate) fn contents(&self, bytes: u64) -> Result<(), Exceeded> {
        self.take(&self.bytes, bytes.checked_next_multiple_of(BLOCK).unwrap_or(bytes))
    }

    /// What was asked for, in bytes, if that was not enough.
    pub(crate) fn too_small(&self) -> Option<u64> {
        self.given.filter(|_| self.exceeded.load(Ordering::Relaxed))
    }

    fn take(&self, left: &AtomicU64, amount: u64) -> Result<(), Exceeded> {
        let taken = left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(amount));
        taken.map(drop).map_err(|_| {
            self.exceeded.store(true, Ordering::Relaxed);
            Exceeded(self.given)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_ends_where_it_was_said() {
        let room = Room::new(Some(10_000), Path::new("/")).unwrap();
        room.file(0).unwrap();
        room.contents(1).unwrap();
        assert_eq!(
            (room.contents(5000), room.too_small()),
            (Err(Exceeded(Some(10_000))), Some(10_000))
        );
        // What is not taken is left.
        room.contents(4096).unwrap();
        assert!(room.file(4096).is_err() && room.contents(u64::MAX).is_err());
        let free = Room::new(None, Path::new("/")).unwrap();
        free.file(1).unwrap();
        assert_eq!((free.contents(u64::MAX), free.too_small()), (Err(Exceeded(None)), None));
    }
}

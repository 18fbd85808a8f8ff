//! btrfs: a root is a subvolume, a copy is a snapshot.
//!
//! A snapshot leaves out the subvolumes inside, which systemd-tmpfiles makes in many guests (`var/lib/machines`): these get
//! snapshots of their own, in the place of the empty directories that the kernel left there.

use std::ffi::OsStr;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{self, AtFlags, CWD, Mode, OFlags, ResolveFlags, Timespec, Timestamps};
use rustix::io::Errno;

use super::data::Data;
use super::{Storage, StorageError, tree};
use crate::machine::{Cancel, Report};
use crate::sys::files::remove_tree;
use crate::sys::raw;

/// `BTRFS_SUPER_MAGIC` of linux/magic.h.
const MAGIC: i64 = 0x9123_683e;

/// The inode of the root directory of every subvolume, `BTRFS_FIRST_FREE_OBJECTID`.
const ROOT_INODE: u64 = 256;

const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

/// Subvolumes and snapshots.
#[derive(Debug)]
pub(super) struct Btrfs;

/// Whether `directory` is on btrfs.
pub(super) fn works_in(directory: &Path) -> Result<bool, StorageError> {
    let found = fs::statfs(directory).map_err(StorageError::io("look at", directory))?;
    // The type differs between architectures.
    #[allow(clippy::unnecessary_cast, clippy::cast_lossless)]
    Ok(found.f_type as i64 == MAGIC)
}

impl Storage for Btrfs {
    fn name(&self) -> &'static str {
        "btrfs"
    }

    fn create(&self, path: &Path) -> Result<(), StorageError> {
        let (parent, name) = split(path)?;
        match raw::btrfs::subvolume_create(&parent, name) {
            Err(Errno::EXIST) => {
                return Err(StorageError::Exists {
                    path: path.to_path_buf(),
                });
            }
            result => result.map_err(StorageError::io("create subvolume", path))?,
        }
        fs::openat(&parent, name, DIRECTORY | OFlags::NOFOLLOW, Mode::empty())
            .and_then(|made| fs::fchmod(&made, Mode::from_raw_mode(0o755)))
            .map_err(StorageError::io("create subvolume", path))
    }

    fn copy(&self, source: &Path, target: &Path, report: &dyn Report, cancel: &Cancel) -> Result<(), StorageError> {
        cancel.check()?;
        let (parent, name) = split(target)?;
        if fs::statat(&parent, name, AtFlags::SYMLINK_NOFOLLOW).is_ok() {
            return Err(StorageError::Exists {
                path: target.to_path_buf(),
            });
        }
        let from = fs::openat(CWD, source, DIRECTORY, Mode::empty()).map_err(StorageError::io("open", source))?;
        if is_subvolume(&from).map_err(StorageError::io("look at", source))? {
            match raw::btrfs::snapshot_create(&parent, name, from.as_fd()) {
                // Another filesystem.
                Err(Errno::XDEV) => {}
                Err(errno) => return Err(StorageError::io("snapshot", source)(errno)),
                Ok(()) => {
                    return snapshot_all_inside(&from, &parent, name, cancel).map_err(|error| {
                        let _ = remove_tree(target);
                        error.unwrap_or_else(|errno| StorageError::io("snapshot", source)(errno))
                    });
                }
            }
        }
        self.create(target)?;
        report.phase("copying files");
        tree::fill(source, target, Data::Share, report, cancel).inspect_err(|_| {
            // The first error is the one to be told.
            let _ = remove_tree(target);
        })
    }

    fn shares(&self) -> bool {
        true
    }

    fn remove(&self, path: &Path) -> Result<(), StorageError> {
        Ok(remove_tree(path)?)
    }
}

/// Snapshots the subvolumes inside of `source` into its snapshot `name` in `parent`, level by level.
fn snapshot_all_inside(
    source: &OwnedFd,
    parent: &OwnedFd,
    name: &OsStr,
    cancel: &Cancel,
) -> Result<(), Result<StorageError, Errno>> {
    let target = fs::openat(parent, name, DIRECTORY | OFlags::NOFOLLOW, Mode::empty()).map_err(Err)?;
    let mut todo = vec![(source.try_clone().map_err(|_| Err(Errno::MFILE))?, target)];
    while let Some((source, target)) = todo.pop() {
        for path in raw::btrfs::subvolumes_inside(&source).map_err(Err)? {
            cancel.check().map_err(|cancelled| Ok(cancelled.into()))?;
            todo.push(snapshot_inner(source.as_fd(), target.as_fd(), Path::new(&path)).map_err(Err)?);
        }
    }
    Ok(())
}

/// Puts a snapshot of the subvolume `path` in `source` in the place of the empty directory `path` in `target`.
fn snapshot_inner(source: BorrowedFd<'_>, target: BorrowedFd<'_>, path: &Path) -> Result<(OwnedFd, OwnedFd), Errno> {
    // The guest chose the names on the way: none of them may be a link.
    let how = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let open = |at: BorrowedFd<'_>, path: &Path| fs::openat2(at, path, DIRECTORY, Mode::empty(), how);
    let name = path.file_name().ok_or(Errno::INVAL)?;
    let folder = path
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    let (inner, folder) = (open(source, path)?, open(target, folder)?);
    let times = fs::fstat(&folder)?;
    fs::unlinkat(&folder, name, AtFlags::REMOVEDIR)?;
    raw::btrfs::snapshot_create(&folder, name, inner.as_fd())?;
    let times = Timestamps {
        last_access: Timespec {
            tv_sec: times.st_atime,
            tv_nsec: times.st_atime_nsec.cast_signed(),
        },
        last_modification: Timespec {
            tv_sec: times.st_mtime,
            tv_nsec: times.st_mtime_nsec.cast_signed(),
        },
    };
    fs::futimens(&folder, &times)?;
    let made = open(folder.as_fd(), Path::new(name))?;
    Ok((inner, made))
}

/// Whether an open directory is the root of a subvolume.
fn is_subvolume(directory: &OwnedFd) -> Result<bool, Errno> {
    #[allow(clippy::unnecessary_cast, clippy::cast_lossless)]
    let on_btrfs = fs::fstatfs(directory)?.f_type as i64 == MAGIC;
    Ok(on_btrfs && fs::fstat(directory)?.st_ino == ROOT_INODE)
}

/// The folder of a root and its name there.
fn split(path: &Path) -> Result<(OwnedFd, &OsStr), StorageError> {
    let invalid = || StorageError::io::<std::io::Error>("create", path)(std::io::ErrorKind::InvalidInput.into());
    let name = path.file_name().ok_or_else(invalid)?;
    let folder = path
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    let folder_fd = fs::openat(CWD, folder, DIRECTORY, Mode::empty()).map_err(StorageError::io("open", folder))?;
    Ok((folder_fd, name))
}

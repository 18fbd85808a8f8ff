//! The host's own files: written atomically, and the sync of a whole filesystem.

use std::collections::hash_map::RandomState;
use std::ffi::{OsStr, OsString};
use std::hash::{BuildHasher as _, Hasher as _};
use std::os::fd::AsFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{self, AtFlags, CWD, Gid, Mode, OFlags, Uid};
use rustix::io::Errno;
use rustix::process::{getegid, geteuid};

use super::error::{FileError, Kind};
use super::replace::replace;
use super::root::read_found;

/// Reads a regular file of the host of at most `cap` bytes, by links if there are any. Never blocks on a fifo and never
/// opens a device.
pub fn read_regular(path: &Path, cap: u64) -> Result<Vec<u8>, FileError> {
    let found =
        fs::openat(CWD, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).map_err(FileError::io("read", path))?;
    read_found(found.as_fd(), path, cap)
}

/// The mode and the owner of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Attributes {
    /// Permissions.
    pub mode: u32,
    /// The user's number.
    pub uid: u32,
    /// The group's number.
    pub gid: u32,
}

impl Attributes {
    /// Those of a file of our own.
    #[must_use]
    pub fn own(mode: u32) -> Self {
        Self {
            mode,
            uid: geteuid().as_raw(),
            gid: getegid().as_raw(),
        }
    }

    /// Those of a file, by links; `None` if there is none.
    #[must_use]
    pub fn of(path: &Path) -> Option<Self> {
        let found = fs::statat(CWD, path, AtFlags::empty()).ok()?;
        Some(Self {
            mode: found.st_mode & 0o7777,
            uid: found.st_uid,
            gid: found.st_gid,
        })
    }
}

/// Writes a whole file of the host atomically: a temporary file in the same folder, fsync, rename, fsync of the folder.
///
/// An existing file keeps its mode and owner, a new one gets exactly `mode`. A link is followed, so that an administrator who
/// keeps the file elsewhere still finds it there; what is no regular file (a link to /dev/null) is refused.
pub fn write_atomic(path: &Path, bytes: &[u8], mode: u32) -> Result<(), FileError> {
    write_atomic_as(path, bytes, Attributes::own(mode))
}

/// The same, and a new file gets exactly these attributes.
pub fn write_atomic_as(path: &Path, bytes: &[u8], attributes: Attributes) -> Result<(), FileError> {
    let failed = || FileError::io::<std::io::Error>("write", path);
    let place = match std::fs::symlink_metadata(path) {
        Ok(found) if found.is_symlink() => std::fs::canonicalize(path).map_err(|e| failed()(e))?,
        _ => path.to_path_buf(),
    };
    let (Some(name), Some(folder)) = (place.file_name(), place.parent()) else {
        return Err(FileError::NoName {
            path: path.to_path_buf(),
        });
    };
    let folder = if folder.as_os_str().is_empty() {
        Path::new(".")
    } else {
        folder
    };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let folder = fs::openat(CWD, folder, flags, Mode::empty()).map_err(|e| failed()(e.into()))?;
    let (mode, owner) = match fs::statat(&folder, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => match Kind::from_mode(stat.st_mode) {
            Kind::File => (
                stat.st_mode & 0o7777,
                (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid)),
            ),
            kind => {
                return Err(FileError::NotRegular {
                    action: "write",
                    path: PathBuf::from(path),
                    kind,
                });
            }
        },
        Err(Errno::NOENT) => (
            attributes.mode,
            (Uid::from_raw(attributes.uid), Gid::from_raw(attributes.gid)),
        ),
        Err(errno) => return Err(failed()(errno.into())),
    };
    replace(folder.as_fd(), name, bytes, mode, owner).map_err(|e| failed()(e))
}

/// When a file, or what the name stands for, was changed last, in µs since 1970; `None` if nobody knows.
#[must_use]
pub fn changed_at(path: &Path) -> Option<u64> {
    let found = std::fs::metadata(path).ok()?;
    // The time of the inode: a file that was moved here may be older than its name.
    let seconds = u64::try_from(found.ctime()).ok()?;
    Some(seconds * 1_000_000 + u64::try_from(found.ctime_nsec()).unwrap_or_default() / 1000)
}

/// Number of the filesystem, and inode, of what a name stands for, by no link: the same after a boot, which a device number need
/// not be.
pub fn identity_of(path: &Path) -> std::io::Result<(u64, u64)> {
    let found = std::fs::symlink_metadata(path)?;
    // A link lies where its directory does.
    let place = if found.is_symlink() {
        path.parent().unwrap_or(path)
    } else {
        path
    };
    Ok((fs::statvfs(place)?.f_fsid, found.ino()))
}

/// Writes everything to disk that is pending on the filesystem which `path` is on, see syncfs(2).
pub fn sync_filesystem(path: &Path) -> Result<(), FileError> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    fs::openat(CWD, path, flags, Mode::empty())
        .and_then(fs::syncfs)
        .map_err(FileError::io("sync", path))
}

/// A name beside `name` that cannot be foreseen: hidden, and short enough whatever the length of `name`.
pub(crate) fn temporary_name(name: &OsStr) -> OsString {
    let mut hasher = RandomState::new().build_hasher();
    hasher.write_usize(name.len());
    OsString::from(format!(".#machinist-{:016x}", hasher.finish()))
}

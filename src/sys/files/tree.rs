//! Whole trees: removed and measured.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use rustix::fs::{self, AtFlags, CWD, Mode, OFlags};

use super::error::{FileError, Kind};
use crate::machine::Cancel;

/// Removes `path`, a file or a directory with everything in it. Follows no link and enters no mount.
pub fn remove_tree(path: &Path) -> Result<(), FileError> {
    let Some(name) = path.file_name() else {
        return Err(FileError::NoName {
            path: path.to_path_buf(),
        });
    };
    let folder = path
        .parent()
        .filter(|p| !p.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let folder = fs::openat(CWD, folder, flags, Mode::empty()).map_err(FileError::io("remove", path))?;
    remove_dir_at(std::os::fd::AsFd::as_fd(&folder), name, path)
}

/// Like [`remove_tree`], by directory and name; `path` is for messages.
pub(crate) fn remove_dir_at(parent: BorrowedFd<'_>, name: &OsStr, path: &Path) -> Result<(), FileError> {
    let stat = fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW).map_err(FileError::io("remove", path))?;
    if Kind::from_mode(stat.st_mode) != Kind::Directory {
        return fs::unlinkat(parent, name, AtFlags::empty()).map_err(FileError::io("remove", path));
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let here = fs::openat(parent, name, flags, Mode::empty()).map_err(FileError::io("remove", path))?;
    for entry in fs::Dir::read_from(&here).map_err(FileError::io("remove", path))? {
        let entry = entry.map_err(FileError::io("remove", path))?;
        let name = OsStr::from_bytes(entry.file_name().to_bytes());
        if name != "." && name != ".." {
            remove_dir_at(std::os::fd::AsFd::as_fd(&here), name, &path.join(name))?;
        }
    }
    fs::unlinkat(parent, name, AtFlags::REMOVEDIR).map_err(FileError::io("remove", path))
}

/// The bytes that a tree takes on disk, hard links counted once. Follows no link.
pub fn tree_size(path: &Path, cancel: &Cancel) -> Result<u64, FileError> {
    fn visit(path: &Path, seen: &mut HashSet<(u64, u64)>, cancel: &Cancel) -> Result<u64, FileError> {
        cancel.check()?;
        let stat = fs::lstat(path).map_err(FileError::io("look at", path))?;
        if stat.st_nlink > 1 && !seen.insert((stat.st_dev, stat.st_ino)) {
            return Ok(0);
        }
        let mut total = u64::try_from(stat.st_blocks).unwrap_or(0) * 512;
        if Kind::from_mode(stat.st_mode) == Kind::Directory {
            for entry in std::fs::read_dir(path).map_err(FileError::io("list", path))? {
                total += visit(&entry.map_err(FileError::io("list", path))?.path(), seen, cancel)?;
            }
        }
        Ok(total)
    }
    visit(path, &mut HashSet::new(), cancel)
}

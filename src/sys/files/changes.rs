//! Noticing that something in a tree was changed.

use std::fs::read_link;
use std::io;
use std::ops::ControlFlow;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{self, Stat};

use super::error::{FileError, Kind};
use super::tree::{entries, walk};
use crate::machine::Cancel;

/// When an inode was last changed, be it what is in it, its mode, owner, attributes or names: nobody can set this, see
/// inode(7).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ChangeTime {
    seconds: i64,
    nanoseconds: u64,
}

impl ChangeTime {
    fn of(stat: &Stat) -> Self {
        Self {
            seconds: stat.st_ctime,
            nanoseconds: stat.st_ctime_nsec,
        }
    }
}

/// When a file, or the link itself, was last changed.
pub fn change_time(path: &Path) -> io::Result<ChangeTime> {
    Ok(ChangeTime::of(&fs::lstat(path)?))
}

/// Something in a tree that was changed after a moment: the first that is met, the directory of a name that was removed.
/// `None` if nothing was. Follows no link, enters no mount.
pub fn changed_since(path: &Path, moment: ChangeTime, cancel: &Cancel) -> Result<Option<PathBuf>, FileError> {
    let top = fs::lstat(path).map_err(FileError::io("look at", path))?;
    if ChangeTime::of(&top) > moment {
        return Ok(Some(path.to_owned()));
    }
    let mut found = None;
    walk(path, cancel, &mut |here| {
        let mut directories = Vec::new();
        if found.is_some() {
            return Ok(directories);
        }
        entries(here, path, |name, stat| {
            if ChangeTime::of(stat) > moment {
                found = Some(place_of(here, path).join(name));
                return ControlFlow::Break(());
            }
            if Kind::from_mode(stat.st_mode) == Kind::Directory {
                directories.push(name.to_owned());
            }
            ControlFlow::Continue(())
        })?;
        Ok(directories)
    })?;
    Ok(found)
}

/// Where a directory is that is open: only for somebody to read.
fn place_of(directory: &OwnedFd, otherwise: &Path) -> PathBuf {
    let link = format!("/proc/self/fd/{}", directory.as_raw_fd());
    read_link(link).unwrap_or_else(|_| otherwise.to_owned())
}

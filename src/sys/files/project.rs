//! Trees put into a project, whose use of the disk the filesystem counts and limits: see "project" in quotactl(2).
//!
//! Directories hand their project on to what is made in them. What has no contents of its own, such as links and devices,
//! cannot be put into one.

use std::ffi::{CStr, OsStr, OsString};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use rustix::fs::{self, CWD, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use super::error::{FileError, Kind};
use super::root::magic_link;
use super::tree::walk;
use crate::machine::Cancel;
use crate::sys::raw::quota::{file_attributes, set_file_attributes};

/// `FS_XFLAG_IMMUTABLE`
const IMMUTABLE: u32 = 0x8;
/// `FS_XFLAG_PROJINHERIT`
const INHERIT: u32 = 0x200;

/// How often a tree is gone through in which directories are being moved.
const MAX_WALKS: u32 = 16;

/// Puts a directory into a project, and what will be made in it.
pub fn enter_project(directory: &Path, project: u32) -> Result<(), FileError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    fs::openat(CWD, directory, flags, Mode::empty())
        .and_then(|open| mark(&open, project, INHERIT))
        .map_err(FileError::io("set the project of", directory))
}

/// The project that a directory hands on to what is made in it; `None` if it hands on none, or there are none here.
pub(in crate::sys) fn inherited_project(directory: &OwnedFd) -> Option<u32> {
    let found = file_attributes(directory).ok()?;
    (found.flags & INHERIT != 0).then_some(found.project)
}

/// Puts the directory `path` and everything in it into a project. A machine may run in it meanwhile: each directory is put
/// there before it is listed, and the kernel lets nothing be moved into such a one from elsewhere.
pub fn mark_tree(path: &Path, project: u32, cancel: &Cancel) -> Result<(), FileError> {
    let mut walks = 0;
    loop {
        walks += 1;
        match walk(path, cancel, &mut |here| mark_directory(here, project, path)) {
            Err(FileError::Moved { .. }) if walks < MAX_WALKS => {}
            result => return result,
        }
    }
}

/// Puts a directory and the files in it into a project; the directories in it are the result.
fn mark_directory(here: &OwnedFd, project: u32, path: &Path) -> Result<Vec<OsString>, FileError> {
    let failed = "set the project of a file in";
    mark(here, project, INHERIT).map_err(FileError::io(failed, path))?;
    let mut directories = Vec::new();
    for entry in fs::Dir::read_from(here).map_err(FileError::io("list", path))? {
        let entry = entry.map_err(FileError::io("list", path))?;
        let name = entry.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        let is_directory = match entry.file_type() {
            FileType::Directory => true,
            FileType::RegularFile | FileType::Unknown => {
                mark_file(here, name, project).map_err(FileError::io(failed, path))?
            }
            _ => false,
        };
        if is_directory {
            directories.push(OsStr::from_bytes(name.to_bytes()).to_owned());
        }
    }
    Ok(directories)
}

/// Puts a file into a project, if it is one; whether it is a directory instead.
fn mark_file(here: &OwnedFd, name: &CStr, project: u32) -> Result<bool, Errno> {
    let how = ResolveFlags::NO_XDEV | ResolveFlags::NO_SYMLINKS | ResolveFlags::BENEATH;
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let found = match fs::openat2(here, name, flags, Mode::empty(), how) {
        // It is gone, or something else by now: what is new here is in the project.
        Err(Errno::NOENT | Errno::LOOP | Errno::XDEV) => return Ok(false),
        result => result?,
    };
    match Kind::from_mode(fs::fstat(&found)?.st_mode) {
        Kind::Directory => Ok(true),
        Kind::File => {
            // The very file that was looked at: opening a device of that name might do something. And nobody is waited for
            // who has a lease of it.
            let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::NOATIME | OFlags::CLOEXEC;
            let file = fs::openat(CWD, magic_link(found.as_fd()), flags, Mode::empty())?;
            mark(&file, project, 0)?;
            Ok(false)
        }
        _ => Ok(false),
    }
}

fn mark(file: &OwnedFd, project: u32, flags: u32) -> Result<(), Errno> {
    let found = file_attributes(file)?;
    let mut wanted = found;
    wanted.project = project;
    wanted.flags |= flags;
    if (found.project, found.flags) == (wanted.project, wanted.flags) {
        return Ok(());
    }
    match set_file_attributes(file, wanted) {
        // An immutable file is changed in no other way: not at all, for a moment.
        Err(Errno::PERM) if found.flags & IMMUTABLE != 0 => {
            let mut open = wanted;
            open.flags &= !IMMUTABLE;
            set_file_attributes(file, open)?;
            set_file_attributes(file, wanted)
        }
        result => result,
    }
}

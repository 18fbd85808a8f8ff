//! Whole trees: removed, measured, and walked through.
//!
//! One directory is open at a time, so that no depth exhausts the descriptors; the way up is `..`, checked to be the
//! directory that the way down came from. No link is followed and no mount entered.

use std::collections::HashSet;
use std::ffi::{OsStr, OsString};
use std::ops::ControlFlow;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{self, AtFlags, CWD, FileType, IFlags, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use super::error::{FileError, Kind};
use super::root::magic_link;
use crate::machine::Cancel;
use crate::sys::raw;

/// Device and inode.
type Inode = (u64, u64);

/// How often a directory is listed again that was not empty after everything listed was removed.
const MAX_LISTINGS: u32 = 8;

/// The root directory of a btrfs subvolume has this inode; so may have others elsewhere.
const SUBVOLUME_INODE: u64 = 256;

const DIRECTORY: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);

/// Removes `path`, a file or a directory with everything in it: immutable files and nested btrfs subvolumes too.
///
/// Follows no link and enters no mount: what has something mounted in it is refused when it is met, and the rest stays.
/// Only a btrfs subvolume goes at once; the kernel detaches what is mounted in it, and leaves that untouched.
pub fn remove_tree(path: &Path) -> Result<(), FileError> {
    let Some(name) = path.file_name() else {
        return Err(FileError::NoName {
            path: path.to_path_buf(),
        });
    };
    let folder = path
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    // Not O_PATH: the ioctl that destroys a subvolume wants its folder open.
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let folder = fs::openat(CWD, folder, flags, Mode::empty()).map_err(FileError::io("remove", path))?;
    remove_at(folder.as_fd(), name, path)
}

/// Like [`remove_tree`], by directory (not `O_PATH`) and name; `path` is for messages.
pub(crate) fn remove_at(parent: BorrowedFd<'_>, name: &OsStr, path: &Path) -> Result<(), FileError> {
    let stat = fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW).map_err(FileError::io("remove", path))?;
    if Kind::from_mode(stat.st_mode) != Kind::Directory {
        return unlink(parent, name).map_err(FileError::io("remove", path));
    }
    // The folder itself is the host's: nothing is changed there but this name.
    let Some((here, inode)) = enter(parent, name).map_err(|errno| failed(path.to_path_buf(), errno))? else {
        return Ok(());
    };
    let mut removal = Removal {
        top: path,
        here,
        levels: vec![Level::new(name, inode)],
    };
    removal.run()?;
    remove_directory(parent, name).map_err(|errno| failed(path.to_path_buf(), errno))
}

/// A directory on the way down.
struct Level {
    name: OsString,
    inode: Inode,
    listings: u32,
    /// Directories in it that are still there.
    directories: Vec<OsString>,
}

impl Level {
    fn new(name: &OsStr, inode: Inode) -> Self {
        Self {
            name: name.to_owned(),
            inode,
            listings: 0,
            directories: Vec::new(),
        }
    }
}

struct Removal<'a> {
    top: &'a Path,
    here: OwnedFd,
    levels: Vec<Level>,
}

impl Removal<'_> {
    /// Empties the topmost directory.
    fn run(&mut self) -> Result<(), FileError> {
        while let Some(level) = self.levels.last_mut() {
            if let Some(name) = level.directories.pop() {
                if let Err(errno) = remove_directory(self.here.as_fd(), &name) {
                    if !matches!(errno, Errno::NOTEMPTY | Errno::EXIST | Errno::PERM | Errno::ROFS) {
                        return Err(failed(self.path().join(name), errno));
                    }
                    let entered = enter(self.here.as_fd(), &name);
                    if let Some((child, inode)) = entered.map_err(|errno| failed(self.path().join(&name), errno))? {
                        self.here = child;
                        self.levels.push(Level::new(&name, inode));
                    }
                }
            } else if self.list()? {
                // Empty now. The topmost one is removed by whoever called.
                let name = self.levels.pop().map(|level| level.name).unwrap_or_default();
                let Some(above) = self.levels.last_mut() else {
                    return Ok(());
                };
                let inode = above.inode;
                above.directories.push(name);
                self.up(inode)?;
            }
        }
        Ok(())
    }

    /// Removes the files here and notes the directories; whether nothing was left.
    fn list(&mut self) -> Result<bool, FileError> {
        let Some(level) = self.levels.last_mut() else {
            return Ok(true);
        };
        level.listings += 1;
        if level.listings > MAX_LISTINGS {
            return Err(FileError::Changing { path: self.path() });
        }
        let mut directories = Vec::new();
        let mut empty = true;
        let listing = fs::Dir::read_from(&self.here).map_err(|errno| self.io("list", errno))?;
        for entry in listing {
            let entry = entry.map_err(|errno| self.io("list", errno))?;
            let name = OsStr::from_bytes(entry.file_name().to_bytes());
            if name == "." || name == ".." {
                continue;
            }
            empty = false;
            let removed = match entry.file_type() {
                FileType::Directory => Err(Errno::ISDIR),
                _ => unlink(self.here.as_fd(), name),
            };
            match removed {
                Ok(()) => {}
                Err(Errno::ISDIR) => directories.push(name.to_owned()),
                Err(errno) => return Err(failed(self.path().join(name), errno)),
            }
        }
        if let Some(level) = self.levels.last_mut() {
            level.directories = directories;
        }
        Ok(empty)
    }

    fn up(&mut self, expected: Inode) -> Result<(), FileError> {
        let above = fs::openat(&self.here, "..", DIRECTORY, Mode::empty()).map_err(|errno| self.io("leave", errno))?;
        if inode(&above).map_err(|errno| self.io("leave", errno))? != expected {
            return Err(FileError::Changing { path: self.path() });
        }
        self.here = above;
        Ok(())
    }

    fn io(&self, action: &'static str, errno: Errno) -> FileError {
        FileError::io(action, &self.path())(errno)
    }

    /// Where it is now; only made for errors, because it grows with the depth.
    fn path(&self) -> PathBuf {
        let mut path = self.top.to_path_buf();
        path.extend(self.levels.iter().skip(1).map(|level| &level.name));
        path
    }
}

fn failed(path: PathBuf, errno: Errno) -> FileError {
    match errno {
        Errno::XDEV | Errno::BUSY => FileError::MountPoint { path },
        Errno::NOTEMPTY => FileError::Changing { path },
        errno => FileError::io("remove", &path)(errno),
    }
}

/// Opens a directory to empty it, and makes sure that it can be emptied. `None` if it was a subvolume and is gone already.
fn enter(parent: BorrowedFd<'_>, name: &OsStr) -> Result<Option<(OwnedFd, Inode)>, Errno> {
    let how = ResolveFlags::NO_XDEV | ResolveFlags::NO_SYMLINKS | ResolveFlags::BENEATH;
    let child = fs::openat2(parent, name, DIRECTORY, Mode::empty(), how)?;
    let inode = inode(&child)?;
    if inode.1 == SUBVOLUME_INODE {
        let id = raw::btrfs::subvolume_id(&child);
        match raw::btrfs::subvolume_destroy(parent, name) {
            Ok(()) => {
                forget_quota(parent, id);
                return Ok(None);
            }
            // Has subvolumes inside, or is no subvolume at all: emptied like any directory, which a read-only one refuses.
            Err(_) if raw::btrfs::subvolume_is_read_only(&child) == Ok(true) => {
                raw::btrfs::subvolume_set_read_only(&child, false)?;
            }
            Err(_) => {}
        }
    }
    unlock(&child);
    Ok(Some((child, inode)))
}

/// Removes the quota groups of a subvolume that is gone: the kernel keeps them with their limits, newer ones the upper one
/// only. That is the group which machined makes for a limit, of the highest level and the subvolume's own number.
fn forget_quota(parent: BorrowedFd<'_>, id: Result<u64, Errno>) {
    const LEVEL_SHIFT: u32 = 48;
    let Ok(id) = id else { return };
    let upper = (255 << LEVEL_SHIFT) | id;
    // Most have none, and what is left is no harm: numbers are never given again.
    let _ = raw::btrfs::qgroup_take_out(parent, id, upper);
    let _ = raw::btrfs::qgroup_destroy(parent, upper);
    let _ = raw::btrfs::qgroup_destroy(parent, id);
}

/// unlink(2) that also removes immutable and append-only files.
fn unlink(parent: BorrowedFd<'_>, name: &OsStr) -> Result<(), Errno> {
    match fs::unlinkat(parent, name, AtFlags::empty()) {
        // Some filesystems say so for directories.
        Err(Errno::PERM) => {
            let found = fs::openat(
                parent,
                name,
                OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC,
                Mode::empty(),
            )?;
            match Kind::from_mode(fs::fstat(&found)?.st_mode) {
                Kind::Directory => return Err(Errno::ISDIR),
                Kind::File => {
                    // The very file that was looked at: opening a device of that name might do something.
                    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
                    unlock(&fs::openat(CWD, magic_link(found.as_fd()), flags, Mode::empty())?);
                }
                _ => {}
            }
            fs::unlinkat(parent, name, AtFlags::empty())
        }
        Err(Errno::NOENT) => Ok(()),
        result => result,
    }
}

/// rmdir(2) that also removes empty immutable directories.
fn remove_directory(parent: BorrowedFd<'_>, name: &OsStr) -> Result<(), Errno> {
    match fs::unlinkat(parent, name, AtFlags::REMOVEDIR) {
        Err(Errno::PERM) => {
            let how = ResolveFlags::NO_XDEV | ResolveFlags::NO_SYMLINKS | ResolveFlags::BENEATH;
            unlock(&fs::openat2(parent, name, DIRECTORY, Mode::empty(), how)?);
            fs::unlinkat(parent, name, AtFlags::REMOVEDIR)
        }
        Err(Errno::NOENT) => Ok(()),
        result => result,
    }
}

/// How machined makes a directory read-only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum ReadOnly {
    /// A flag of the subvolume: on btrfs.
    Subvolume,
    /// The flag "immutable": elsewhere.
    Immutable,
}

/// Makes a read-only file or directory writable, if it is one; how it was read-only.
#[must_use]
pub fn make_writable(path: &Path) -> Option<ReadOnly> {
    let all = [ReadOnly::Subvolume, ReadOnly::Immutable];
    all.into_iter().find(|how| set_read_only(path, *how, false))
}

/// Makes it read-only again.
pub fn make_read_only(path: &Path, how: ReadOnly) {
    // It was so before: if it cannot be again, it is whole all the same.
    let _ = set_read_only(path, how, true);
}

/// Whether it changed anything. Where there is no such flag nothing does.
fn set_read_only(path: &Path, how: ReadOnly, read_only: bool) -> bool {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let Ok(file) = fs::openat(CWD, path, flags, Mode::empty()) else {
        return false;
    };
    match how {
        ReadOnly::Subvolume => {
            raw::btrfs::subvolume_is_read_only(&file) == Ok(!read_only)
                && raw::btrfs::subvolume_set_read_only(&file, read_only).is_ok()
        }
        ReadOnly::Immutable => fs::ioctl_getflags(&file).is_ok_and(|found| {
            let mut wanted = found;
            wanted.set(IFlags::IMMUTABLE, read_only);
            wanted != found && fs::ioctl_setflags(&file, wanted).is_ok()
        }),
    }
}

/// Takes away the flags that keep a file or directory from being changed, where the filesystem has any.
fn unlock(file: &OwnedFd) {
    if let Ok(flags) = fs::ioctl_getflags(file)
        && flags.intersects(IFlags::IMMUTABLE | IFlags::APPEND)
    {
        // If this fails, the removal fails, and its error is the one to be told.
        let _ = fs::ioctl_setflags(file, flags.difference(IFlags::IMMUTABLE | IFlags::APPEND));
    }
}

fn inode(fd: &OwnedFd) -> Result<Inode, Errno> {
    fs::fstat(fd).map(|stat| (stat.st_dev, stat.st_ino))
}

/// The bytes that a tree takes on disk, directories included and hard links counted once. Follows no link, enters no mount.
///
/// Names that vanish meanwhile are left out: it may be the tree of a running machine.
pub fn tree_size(path: &Path, cancel: &Cancel) -> Result<u64, FileError> {
    let stat = fs::lstat(path).map_err(FileError::io("look at", path))?;
    let mut total = allocated(&stat);
    if Kind::from_mode(stat.st_mode) != Kind::Directory {
        return Ok(total);
    }
    let mut several_names = HashSet::new();
    walk(path, cancel, &mut |here| {
        subdirectories(here, &mut total, &mut several_names, path)
    })?;
    Ok(total)
}

/// Visits a directory and all below it, each before those in it: a visit tells which of these are to be entered. Follows no
/// link, enters no mount; names that vanish meanwhile are left out.
///
/// # Errors
/// [`FileError::Moved`] if a directory that was entered is not where it was.
pub(super) fn walk(
    path: &Path,
    cancel: &Cancel,
    visit: &mut dyn FnMut(&OwnedFd) -> Result<Vec<OsString>, FileError>,
) -> Result<(), FileError> {
    let mut here = fs::openat(CWD, path, DIRECTORY, Mode::empty()).map_err(FileError::io("list", path))?;
    let top = inode(&here).map_err(FileError::io("look at", path))?;
    let mut levels = vec![(top, visit(&here)?)];
    while let Some((_, directories)) = levels.last_mut() {
        cancel.check()?;
        if let Some(name) = directories.pop() {
            let how = ResolveFlags::NO_XDEV | ResolveFlags::NO_SYMLINKS | ResolveFlags::BENEATH;
            let child = match fs::openat2(&here, &name, DIRECTORY, Mode::empty(), how) {
                Err(Errno::XDEV | Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => continue,
                result => result.map_err(FileError::io("list", &path.join(name)))?,
            };
            let inode = inode(&child).map_err(FileError::io("look at", path))?;
            let inner = visit(&child)?;
            // A directory without directories needs no way back.
            if !inner.is_empty() {
                here = child;
                levels.push((inode, inner));
            }
            continue;
        }
        levels.pop();
        let Some((expected, _)) = levels.last() else { break };
        here = fs::openat(&here, "..", DIRECTORY, Mode::empty()).map_err(FileError::io("list", path))?;
        if inode(&here).map_err(FileError::io("look at", path))? != *expected {
            return Err(FileError::Moved {
                path: path.to_path_buf(),
            });
        }
    }
    Ok(())
}

/// Adds up what is in one directory; the directories in it are the result.
fn subdirectories(
    here: &OwnedFd,
    total: &mut u64,
    several_names: &mut HashSet<Inode>,
    path: &Path,
) -> Result<Vec<OsString>, FileError> {
    let mut directories = Vec::new();
    entries(here, path, |name, stat| {
        if Kind::from_mode(stat.st_mode) == Kind::Directory {
            directories.push(name.to_owned());
        } else if stat.st_nlink > 1 && !several_names.insert((stat.st_dev, stat.st_ino)) {
            return ControlFlow::Continue(());
        }
        *total += allocated(stat);
        ControlFlow::Continue(())
    })?;
    Ok(directories)
}

/// What is in one directory of the tree `path`, until `look` has seen enough; names that vanish meanwhile are left out.
pub(super) fn entries(
    here: &OwnedFd,
    path: &Path,
    mut look: impl FnMut(&OsStr, &fs::Stat) -> ControlFlow<()>,
) -> Result<(), FileError> {
    for entry in fs::Dir::read_from(here).map_err(FileError::io("list", path))? {
        let entry = entry.map_err(FileError::io("list", path))?;
        let name = entry.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        let Ok(stat) = fs::statat(here, name, AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT) else {
            continue;
        };
        if look(OsStr::from_bytes(name.to_bytes()), &stat).is_break() {
            break;
        }
    }
    Ok(())
}

fn allocated(stat: &fs::Stat) -> u64 {
    u64::try_from(stat.st_blocks).unwrap_or(0) * 512
}

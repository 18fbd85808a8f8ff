//! Names of the target: made one after the other, each by its directory's descriptor, never outside.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{self, AtFlags, CWD, FileType, Gid, Mode, OFlags, ResolveFlags, Uid};
use rustix::io::Errno;

use super::entry::{Attributes, Content, Entry};
use super::layer::Made as MadeNames;
use super::names::{Split, split, split_any, walk};
use super::writer::{Made, set_attributes, timestamps};
use super::{Problem, TarballError, shortened};
use crate::sys::files::{Kind, magic_link};

/// Directories that are kept open: enough for the depth of any tree, few enough for 1024 descriptors.
const OPEN_DIRECTORIES: usize = 128;

/// The mode of directories that no entry describes.
const IMPLIED_MODE: u32 = 0o755;

/// Bytes of names and extended attributes of directories that are remembered until the end: those of millions, if they are
/// of any tree.
const MAX_PENDING: usize = 128 << 20;

/// The target and what is still to be done there.
pub(super) struct Place {
    root: Arc<OwnedFd>,
    path: PathBuf,
    /// Directories by their name in the archive, without `.` and doubled slashes.
    pub(super) open: HashMap<Vec<u8>, Arc<OwnedFd>>,
    /// Directories get their attributes at the end, when nothing is made in them any more.
    directories: Vec<Pending>,
    /// Where a directory stands in that list, by device and inode: several names may lead to it.
    pending: HashMap<(u64, u64), usize>,
    pending_bytes: usize,
    /// Directories that were made for names in them, and that nobody has counted yet.
    pub(super) implied: usize,
    /// What was made here, if it lies on what others have made.
    pub(super) made: Option<MadeNames>,
}

struct Pending {
    path: Vec<u8>,
    inode: (u64, u64),
    attributes: Attributes,
}

impl Pending {
    fn bytes(&self) -> usize {
        self.path.len() + self.attributes.xattr_bytes()
    }
}

impl Place {
    pub(super) fn open(target: &Path) -> Result<Self, TarballError> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = fs::openat(CWD, target, flags, Mode::empty()).map_err(TarballError::io("open", target))?;
        Ok(Self {
            root: Arc::new(root),
            path: target.to_path_buf(),
            open: HashMap::new(),
            directories: Vec::new(),
            pending: HashMap::new(),
            pending_bytes: 0,
            implied: 0,
            made: None,
        })
    }

    /// A new regular file, empty still or full of holes.
    pub(super) fn file(&mut self, entry: &Entry) -> Result<Arc<Made>, TarballError> {
        let split = split(&entry.name)?;
        let parent = self.parent(&split.parent, entry)?;
        // The umask may take more away; set-user-ID comes with the owner, at the end.
        let mode = Mode::from_raw_mode(entry.attributes.mode & 0o777);
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = self.make(&parent, &split, entry, || fs::openat(&parent, &split.name, flags, mode))?;
        if let Content::File { sparse: Some(size) } = entry.content {
            fs::ftruncate(&fd, size).map_err(|errno| self.failed("write", &split, errno))?;
        }
        Ok(Arc::new(Made {
            fd,
            path: split.path,
            attributes: entry.attributes.clone(),
        }))
    }

    pub(super) fn directory(&mut self, entry: &Entry) -> Result<(), TarballError> {
        let Some(split) = split_any(&entry.name)? else {
            let stat = fs::fstat(&self.root).map_err(TarballError::io("look at", &self.path))?;
            return self.remember(entry, Vec::new(), (stat.st_dev, stat.st_ino));
        };
        let parent = self.parent(&split.parent, entry)?;
        let made = match fs::mkdirat(&parent, &split.name, Mode::from_raw_mode(0o700)) {
            Err(Errno::EXIST) if self.kind(&parent, &split)? == Kind::Directory => Ok(()),
            Err(Errno::EXIST) => {
                self.remove(&parent, &split)?;
                fs::mkdirat(&parent, &split.name, Mode::from_raw_mode(0o700))
            }
            result => result,
        };
        made.map_err(|errno| self.failed("create directory", &split, errno))?;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = fs::openat(&parent, &split.name, flags, Mode::empty());
        let fd = fd.map_err(|errno| self.failed("create directory", &split, errno))?;
        let stat = fs::fstat(&fd).map_err(|errno| self.failed("create directory", &split, errno))?;
        self.remember(entry, split.path.clone(), (stat.st_dev, stat.st_ino))?;
        self.keep_open(split.path, &Arc::new(fd));
        Ok(())
    }

    pub(super) fn symlink(&mut self, entry: &Entry, target: &[u8]) -> Result<(), TarballError> {
        let split = split(&entry.name)?;
        let parent = self.parent(&split.parent, entry)?;
        if target.contains(&0) {
            return Err(TarballError::entry(&entry.name, Problem::NulByte));
        }
        let target = OsStr::from_bytes(target);
        self.make(&parent, &split, entry, || fs::symlinkat(target, &parent, &split.name))?;
        self.attributes_by_name(&parent, &split, &entry.attributes)
    }

    pub(super) fn fifo(&mut self, entry: &Entry) -> Result<(), TarballError> {
        let split = split(&entry.name)?;
        let parent = self.parent(&split.parent, entry)?;
        let mode = Mode::from_raw_mode(entry.attributes.mode);
        self.make(&parent, &split, entry, || {
            fs::mknodat(&parent, &split.name, FileType::Fifo, mode, 0)
        })?;
        self.attributes_by_name(&parent, &split, &entry.attributes)?;
        // Opening a fifo is not for us; and where a guest runs in the target, a link may have that name by now.
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        fs::openat(&parent, &split.name, flags, Mode::empty())
            .and_then(|made| match Kind::from_mode(fs::fstat(&made)?.st_mode) {
                Kind::Fifo => fs::chmodat(CWD, magic_link(made.as_fd()), mode, AtFlags::empty()),
                _ => Err(Errno::EXIST),
            })
            .map_err(|errno| self.failed("change the mode of", &split, errno))
    }

    pub(super) fn hard_link(&mut self, entry: &Entry, target: &[u8]) -> Result<(), TarballError> {
        let split_new = split(&entry.name)?;
        let named = || shortened(target);
        let bad = |problem| TarballError::entry(&entry.name, problem);
        let old = match split_any(target) {
            Ok(Some(old)) => old,
            Ok(None) if target.is_empty() => return Err(bad(Problem::HardLinkMissing { target: named() })),
            Ok(None) => return Err(bad(Problem::HardLinkDirectory { target: named() })),
            Err(TarballError::Entry {
                problem: problem @ (Problem::NulByte | Problem::LongName(_) | Problem::Deep(_)),
                ..
            }) => return Err(bad(problem)),
            Err(_) => return Err(bad(Problem::HardLinkOutside { target: named() })),
        };
        let old_parent = match self.lookup(&old.parent) {
            Ok(parent) => parent,
            Err(Errno::NOENT | Errno::NOTDIR) => return Err(bad(Problem::HardLinkMissing { target: named() })),
            Err(Errno::XDEV) => return Err(bad(Problem::HardLinkOutside { target: named() })),
            Err(errno) => return Err(self.failed("link", &split_new, errno)),
        };
        let parent = self.parent(&split_new.parent, entry)?;
        let stat = match fs::statat(&old_parent, &old.name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) if Kind::from_mode(stat.st_mode) == Kind::Directory => {
                return Err(bad(Problem::HardLinkDirectory { target: named() }));
            }
            Ok(stat) => stat,
            Err(Errno::NOENT) => return Err(bad(Problem::HardLinkMissing { target: named() })),
            Err(errno) => return Err(self.failed("link", &split_new, errno)),
        };
        if let Ok(there) = fs::statat(&parent, &split_new.name, AtFlags::SYMLINK_NOFOLLOW)
            && (there.st_dev, there.st_ino) == (stat.st_dev, stat.st_ino)
        {
            // Already the same file; replacing it might remove its last name.
            return Ok(());
        }
        self.make(&parent, &split_new, entry, || {
            fs::linkat(&old_parent, &old.name, &parent, &split_new.name, AtFlags::empty())
        })
    }

    /// Gives the directories their attributes.
    pub(super) fn finish(&mut self) -> Result<(), TarballError> {
        // From the bottom up: a directory without the x bit closes the way to those below, unless we are root.
        for pending in std::mem::take(&mut self.directories).into_iter().rev() {
            let path = self.full(&pending.path);
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW;
            let moved = || TarballError::entry(&pending.path, Problem::Moved);
            let opened = if pending.path.is_empty() {
                fs::openat(&self.root, ".", flags | OFlags::CLOEXEC, Mode::empty())
            } else {
                let split = split(&pending.path)?;
                self.lookup(&split.parent)
                    .and_then(|parent| fs::openat(&parent, &split.name, flags | OFlags::CLOEXEC, Mode::empty()))
            };
            let fd = match opened {
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::XDEV) => return Err(moved()),
                result => result.map_err(TarballError::io("open", &path))?,
            };
            let stat = fs::fstat(&fd).map_err(TarballError::io("look at", &path))?;
            if (stat.st_dev, stat.st_ino) != pending.inode {
                return Err(moved());
            }
            set_attributes(fd.as_fd(), &stat, &pending.attributes)
                .map_err(|(action, errno)| TarballError::io(action, &path)(errno))?;
        }
        Ok(())
    }

    fn remember(&mut self, entry: &Entry, path: Vec<u8>, inode: (u64, u64)) -> Result<(), TarballError> {
        let pending = Pending {
            path,
            inode,
            attributes: entry.attributes.clone(),
        };
        self.pending_bytes += pending.bytes();
        let at = *self.pending.entry(inode).or_insert(self.directories.len());
        match self.directories.get_mut(at) {
            Some(earlier) => {
                self.pending_bytes -= earlier.bytes();
                *earlier = pending;
            }
            None => self.directories.push(pending),
        }
        if self.pending_bytes > MAX_PENDING {
            return Err(TarballError::entry(&entry.name, Problem::ManyAttributes(MAX_PENDING)));
        }
        Ok(())
    }

    /// The directory that an entry is made in. Those that are missing are made.
    fn parent(&mut self, path: &[u8], entry: &Entry) -> Result<Arc<OwnedFd>, TarballError> {
        match self.lookup(path) {
            Err(Errno::NOENT) => self.make_way(path, entry),
            result => result.map_err(|errno| self.no_directory(path, entry, errno)),
        }
    }

    /// The same, name by name: the archive chooses how many there are.
    fn make_way(&mut self, path: &[u8], entry: &Entry) -> Result<Arc<OwnedFd>, TarballError> {
        let slashes = path.iter().enumerate().filter(|(_, byte)| **byte == b'/');
        let ends: Vec<usize> = slashes.map(|(at, _)| at).chain([path.len()]).collect();
        let mut here = Arc::clone(&self.root);
        let mut start = 0;
        for end in ends {
            let name = OsStr::from_bytes(&path[start..end]);
            start = end + 1;
            let how = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
            here = match fs::openat2(&here, name, flags, Mode::empty(), how) {
                Ok(fd) => Arc::new(fd),
                Err(Errno::NOENT) => match make_directory(&here, name) {
                    Ok(fd) => {
                        self.implied += 1;
                        Arc::new(fd)
                    }
                    Err(errno) => return Err(TarballError::io("create directory", &self.full(&path[..end]))(errno)),
                },
                // A link, if not an error.
                Err(_) => self
                    .lookup(&path[..end])
                    .map_err(|errno| self.no_directory(&path[..end], entry, errno))?,
            };
        }
        self.keep_open(path.to_vec(), &here);
        Ok(here)
    }

    /// Why there is no directory `path` for an entry.
    fn no_directory(&self, path: &[u8], entry: &Entry, errno: Errno) -> TarballError {
        match errno {
            // NOENT is a link to nothing.
            Errno::NOTDIR | Errno::NOENT => TarballError::entry(&entry.name, Problem::NotInDirectory),
            Errno::XDEV => TarballError::entry(&entry.name, Problem::LinkLeadsOutside),
            errno => TarballError::io("open directory", &self.full(path))(errno),
        }
    }

    /// A directory by its path in the archive; links on the way are followed as a guest would, but may not climb out:
    /// then `EXDEV`.
    pub(super) fn lookup(&mut self, path: &[u8]) -> Result<Arc<OwnedFd>, Errno> {
        if path.is_empty() {
            return Ok(Arc::clone(&self.root));
        }
        if let Some(fd) = self.open.get(path) {
            return Ok(Arc::clone(fd));
        }
        let how = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = match fs::openat2(&self.root, OsStr::from_bytes(path), flags, Mode::empty(), how) {
            // An absolute link, or one that climbs out: the kernel does not tell which. Also what is mounted there, and
            // a path longer than the kernel takes at once.
            Err(Errno::XDEV | Errno::AGAIN | Errno::NAMETOOLONG) => walk(self.root.as_fd(), path)?,
            result => result?,
        };
        let fd = Arc::new(fd);
        self.keep_open(path.to_vec(), &fd);
        Ok(fd)
    }

    fn keep_open(&mut self, path: Vec<u8>, fd: &Arc<OwnedFd>) {
        if self.open.len() >= OPEN_DIRECTORIES {
            self.open.clear();
        }
        self.open.insert(path, Arc::clone(fd));
    }

    /// Makes a name by `act`; what an earlier entry made of that name is replaced, unless it is a directory.
    fn make<T>(
        &mut self,
        parent: &Arc<OwnedFd>,
        split: &Split,
        entry: &Entry,
        act: impl Fn() -> Result<T, Errno>,
    ) -> Result<T, TarballError> {
        let kind = match entry.content {
            Content::Symlink(_) => Kind::Symlink,
            Content::Fifo => Kind::Fifo,
            _ => Kind::File,
        };
        let result = match act() {
            Err(Errno::EXIST) if self.kind(parent, split)? == Kind::Directory => {
                // That of a lower layer goes.
                if self.made.as_ref().is_some_and(|made| !made.has(&split.path)) {
                    self.remove_whole(parent, split)?;
                    return act().map_err(|errno| self.failed("create", split, errno));
                }
                return Err(TarballError::entry(&entry.name, Problem::ReplacesDirectory(kind)));
            }
            Err(Errno::EXIST) => {
                self.remove(parent, split)?;
                act()
            }
            result => result,
        };
        result.map_err(|errno| self.failed("create", split, errno))
    }

    /// Removes what an earlier entry made and is no directory.
    fn remove(&mut self, parent: &OwnedFd, split: &Split) -> Result<(), TarballError> {
        // A link that goes away may have led to a directory that is kept open.
        self.open.clear();
        fs::unlinkat(parent, &split.name, AtFlags::empty()).map_err(|errno| self.failed("replace", split, errno))
    }

    pub(super) fn kind(&self, parent: &OwnedFd, split: &Split) -> Result<Kind, TarballError> {
        fs::statat(parent, &split.name, AtFlags::SYMLINK_NOFOLLOW)
            .map(|stat| Kind::from_mode(stat.st_mode))
            .map_err(|errno| self.failed("look at", split, errno))
    }

    /// Owner and time of a link or fifo that was just made.
    fn attributes_by_name(&self, parent: &OwnedFd, split: &Split, wanted: &Attributes) -> Result<(), TarballError> {
        let (uid, gid) = (Uid::from_raw(wanted.uid), Gid::from_raw(wanted.gid));
        fs::statat(parent, &split.name, AtFlags::SYMLINK_NOFOLLOW)
            .and_then(|stat| {
                if (stat.st_uid, stat.st_gid) == (wanted.uid, wanted.gid) {
                    return Ok(());
                }
                fs::chownat(parent, &split.name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)
            })
            .map_err(|errno| self.failed("change the owner of", split, errno))?;
        fs::utimensat(
            parent,
            &split.name,
            &timestamps(wanted.mtime),
            AtFlags::SYMLINK_NOFOLLOW,
        )
        .map_err(|errno| self.failed("set the time of", split, errno))
    }

    fn failed(&self, action: &'static str, split: &Split, errno: Errno) -> TarballError {
        TarballError::io(action, &self.full(&split.path))(errno)
    }

    pub(super) fn full(&self, path: &[u8]) -> PathBuf {
        self.path.join(OsStr::from_bytes(path))
    }
}

/// A directory that no entry describes.
fn make_directory(parent: &OwnedFd, name: &OsStr) -> Result<OwnedFd, Errno> {
    let mode = Mode::from_raw_mode(IMPLIED_MODE);
    fs::mkdirat(parent, name, mode)?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let fd = fs::openat(parent, name, flags, Mode::empty())?;
    // The umask may have taken something away.
    fs::fchmod(&fd, mode)?;
    Ok(fd)
}

//! The walk that copies: every directory by its descriptor, every name looked at before it is opened.
//!
//! Either side may be changed meanwhile by a guest that means no good. No link is ever followed below what was named, no
//! device or fifo is opened; what is made is reached by its descriptor, not by its name, once it is there. A new file or
//! directory gets a hidden name, and its own when it is whole.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use rustix::fs::{self, AtFlags, FileType, Mode, OFlags, ResolveFlags, Stat};
use rustix::io::Errno;

use super::ids::{Ids, Translation};
use super::kernel::{is_kernels, refuse_kernels};
use super::side::{Found, Target, identity, reopen};
use super::{Copied, Options};
use crate::machine::{Cancel, Cancelled};
use crate::ops::OpError;
use crate::storage::StorageError;
use crate::storage::data::{self, Data};
use crate::sys::files::{FileError, Kind, remove_at, temporary_name, xattr};

/// How deep a tree may be: every directory on the way is open twice.
const DEPTH_MAX: usize = 2048;
/// Longer paths are not told whole: each directory on the way has one.
const LABEL_MAX: usize = 4096;
/// How many directories are kept open for files with further names.
const LINKED_MAX: usize = 4096;

/// What a copy is made with.
pub(super) struct Walk<'a> {
    pub(super) options: Options,
    /// Whether set-user-ID bits, file capabilities and devices stay behind.
    pub(super) strips: bool,
    pub(super) ids: Translation,
    pub(super) cancel: &'a Cancel,
    /// Fails when a machine has stopped.
    pub(super) check: &'a dyn Fn() -> Result<(), OpError>,
    pub(super) copied: &'a AtomicU64,
    pub(super) done: Copied,
    /// Directories that are being made: no part of what is copied.
    tops: Vec<Identity>,
    /// Where the first name of a file with several names was made.
    links: HashMap<Identity, First>,
    buffer: Vec<u8>,
    pub(super) scratch: xattr::Scratch,
}

/// Device and inode.
type Identity = (u64, u64);
/// The first name of a copy: its directory, the name, what it was.
type First = (Arc<OwnedFd>, OsString, Identity);

/// A name that is being copied: what it is, and for messages where.
pub(super) struct Source<'a> {
    fd: &'a OwnedFd,
    pub(super) stat: Stat,
    label: &'a Path,
    depth: usize,
}

/// Where a copy is made.
pub(super) struct Place<'a> {
    pub(super) directory: &'a Arc<OwnedFd>,
    name: &'a OsStr,
    /// Whether the directory is one that nobody knows of yet.
    is_new: bool,
    label: &'a Path,
}

impl Place<'_> {
    pub(super) fn failed<E: Into<std::io::Error>>(&self, error: E) -> OpError {
        FileError::io("write", self.label)(error).into()
    }
}

impl Source<'_> {
    fn failed<E: Into<std::io::Error>>(&self, error: E) -> OpError {
        FileError::io("copy", self.label)(error).into()
    }

    pub(super) fn kind(&self) -> Kind {
        Kind::from_mode(self.stat.st_mode)
    }
}

impl<'a> Walk<'a> {
    pub(super) fn new(
        (options, strips): (Options, bool),
        ids: Translation,
        cancel: &'a Cancel,
        check: &'a dyn Fn() -> Result<(), OpError>,
        copied: &'a AtomicU64,
    ) -> Self {
        Self {
            options,
            strips,
            ids,
            cancel,
            check,
            copied,
            done: Copied::default(),
            tops: Vec::new(),
            links: HashMap::new(),
            buffer: vec![0; data::BUFFER],
            scratch: xattr::Scratch::default(),
        }
    }

    /// Copies all of it.
    pub(super) fn run(&mut self, found: &Found, target: Target) -> Result<(), OpError> {
        let source = Source {
            fd: &found.fd,
            stat: found.stat,
            label: &found.label,
            depth: 0,
        };
        refuse_kernels(found)?;
        match target {
            Target::Named(directory, name, label) => {
                self.may_write(&directory, &label)?;
                let directory = Arc::new(directory);
                let place = Place {
                    directory: &directory,
                    name: &name,
                    is_new: false,
                    label: &label,
                };
                self.entry(&source, &place)
            }
            Target::Into(directory, label) => {
                let from = reopen(source.fd, OFlags::DIRECTORY).map_err(|errno| source.failed(errno))?;
                self.may_write(&directory, &label)?;
                self.forbid(&source, &directory)?;
                self.inside(&source, &from, &Arc::new(directory), false, &label)
            }
        }
    }

    /// Copies what has a name.
    fn entry(&mut self, source: &Source<'_>, place: &Place<'_>) -> Result<(), OpError> {
        self.cancel.check()?;
        (self.check)()?;
        match source.kind() {
            Kind::Directory => return self.directory(source, place),
            Kind::Socket => {
                self.done.skipped.sockets += 1;
                return Ok(());
            }
            Kind::CharDevice | Kind::BlockDevice if !self.options.keep_special => {
                self.done.skipped.devices += 1;
                return Ok(());
            }
            _ => {}
        }
        self.whole(place, |walk, name| match source.kind() {
            Kind::File => walk.file(source, place, name),
            Kind::Symlink => walk.symlink(source, place, name),
            kind => walk.node(source, place, name, kind),
        })
    }

    /// Has something made under a hidden name, and gives it its own when it is whole; in a directory that nobody knows yet
    /// at once.
    fn whole(
        &mut self,
        place: &Place<'_>,
        make: impl FnOnce(&mut Self, &OsStr) -> Result<(), OpError>,
    ) -> Result<(), OpError> {
        if place.is_new {
            return make(self, place.name);
        }
        let hidden = temporary_name(place.name);
        let made = make(self, &hidden).and_then(|()| {
            self.cancel.check()?;
            (self.check)()?;
            fs::renameat(place.directory, &hidden, place.directory, place.name).map_err(|errno| place.failed(errno))
        });
        made.inspect_err(|_| {
            // The first error is the one to be told; it may not even be there yet.
            let _ = remove_at(place.directory.as_fd(), &hidden, place.label);
        })
    }

    fn directory(&mut self, source: &Source<'_>, place: &Place<'_>) -> Result<(), OpError> {
        if source.depth > DEPTH_MAX {
            return Err(OpError::Option {
                message: format!("'{}…' lies {DEPTH_MAX} directories deep", shortened(source.label)),
                hint: "leave it out: copy what is beside it".to_owned(),
            });
        }
        let from = reopen(source.fd, OFlags::DIRECTORY).map_err(|errno| source.failed(errno))?;
        if !place.is_new
            && let Ok(there) = open_directory(place.directory, place.name)
        {
            self.may_write(&there, place.label)?;
            self.forbid(source, &there)?;
            let there = Arc::new(there);
            self.inside(source, &from, &there, false, place.label)?;
            return self.attributes_if_archive(source, &from, &there, place);
        }
        match fs::statat(place.directory, place.name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => {}
            Ok(_) => return Err(place.failed(Errno::NOTDIR)),
            Err(errno) => return Err(place.failed(errno)),
        }
        self.whole(place, |walk, name| {
            fs::mkdirat(place.directory, name, Mode::RWXU).map_err(|errno| place.failed(errno))?;
            let there = open_made(place.directory, name).map_err(|errno| place.failed(errno))?;
            if source.depth == 0 {
                walk.forbid(source, &there)?;
            }
            let there = Arc::new(there);
            walk.inside(source, &from, &there, true, place.label)?;
            walk.attributes(source, Some(from.as_fd()), there.as_fd(), place)?;
            walk.done.directories += 1;
            Ok(())
        })
    }

    /// Refuses a directory that was there before where root of the machine could not write: a guest may have put something
    /// of the host's, or of another's, in this place.
    fn may_write(&self, directory: &OwnedFd, label: &Path) -> Result<(), OpError> {
        may_write(&self.ids.to, directory, label)
    }

    /// Makes a directory of the copy no part of what is copied.
    fn forbid(&mut self, source: &Source<'_>, target: &OwnedFd) -> Result<(), OpError> {
        let stat = fs::fstat(target).map_err(|errno| source.failed(errno))?;
        if identity(&stat) == identity(&source.stat) {
            return Err(into_itself(source.label));
        }
        if source.depth == 0 {
            self.tops.push(identity(&stat));
        }
        Ok(())
    }

    /// Copies what is in a directory.
    fn inside(
        &mut self,
        source: &Source<'_>,
        from: &OwnedFd,
        to: &Arc<OwnedFd>,
        is_new: bool,
        label: &Path,
    ) -> Result<(), OpError> {
        for name in names(from).map_err(|errno| source.failed(errno))? {
            let (source_label, label) = (label_in(source.label, &name), label_in(label, &name));
            let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let found = fs::openat(from, &name, flags, Mode::empty()).and_then(|fd| Ok((fs::fstat(&fd)?, fd)));
            let (stat, fd) = match found {
                // It is gone since: whoever is copied may be at work.
                Err(Errno::NOENT) => continue,
                found => found.map_err(FileError::io("copy", &source_label))?,
            };
            let entry = Source {
                fd: &fd,
                stat,
                label: &source_label,
                depth: source.depth + 1,
            };
            let place = Place {
                directory: to,
                name: &name,
                is_new,
                label: &label,
            };
            if self.tops.contains(&identity(&stat)) {
                return Err(into_itself(&source_label));
            }
            // Only what another filesystem is mounted on can be the kernel's.
            if stat.st_dev != source.stat.st_dev && is_kernels(&fd).map_err(|errno| entry.failed(errno))? {
                self.done.skipped.kernel += 1;
                if entry.kind() == Kind::Directory {
                    self.mount_point(&entry, &place)?;
                }
                continue;
            }
            self.entry(&entry, &place)?;
        }
        Ok(())
    }

    /// Of what is the kernel's only the place is made.
    fn mount_point(&mut self, source: &Source<'_>, place: &Place<'_>) -> Result<(), OpError> {
        match fs::mkdirat(place.directory, place.name, Mode::RWXU) {
            Err(Errno::EXIST) => return Ok(()),
            result => result.map_err(|errno| place.failed(errno))?,
        }
        let made = open_made(place.directory, place.name).map_err(|errno| place.failed(errno))?;
        self.attributes(source, None, made.as_fd(), place)?;
        self.done.directories += 1;
        Ok(())
    }

    fn file(&mut self, source: &Source<'_>, place: &Place<'_>, name: &OsStr) -> Result<(), OpError> {
        let has_names = self.options.archive && source.stat.st_nlink > 1;
        if has_names && self.link(source, place, name)? {
            return Ok(());
        }
        let from = reopen(source.fd, OFlags::empty()).map_err(|errno| source.failed(errno))?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let to = fs::openat(place.directory, name, flags, Mode::RUSR | Mode::WUSR);
        let to = to.map_err(|errno| place.failed(errno))?;
        let size = u64::try_from(source.stat.st_size).unwrap_or(0);
        let sparse = u64::try_from(source.stat.st_blocks).unwrap_or(0).saturating_mul(512) < size;
        let file = data::File {
            source: from.as_fd(),
            target: to.as_fd(),
            size,
            copied: Some(self.copied),
            room: None,
        };
        match data::copy(&file, sparse, Data::Share, &mut self.buffer, self.cancel) {
            Err(Errno::CANCELED) => return Err(Cancelled.into()),
            result => result.map_err(|errno| match errno {
                Errno::NOSPC | Errno::DQUOT | Errno::FBIG | Errno::ROFS => place.failed(errno),
                errno => source.failed(errno),
            })?,
        }
        self.attributes(source, Some(from.as_fd()), to.as_fd(), place)?;
        self.done.files += 1;
        self.done.bytes += size;
        if has_names && self.links.len() < LINKED_MAX {
            let stat = fs::fstat(&to).map_err(|errno| place.failed(errno))?;
            let its_name = if place.is_new { name } else { place.name }.to_owned();
            let first = (Arc::clone(place.directory), its_name, identity(&stat));
            self.links.insert(identity(&source.stat), first);
        }
        Ok(())
    }

    /// Makes a further name of a file that was copied before; false if it is not there any more.
    fn link(&mut self, source: &Source<'_>, place: &Place<'_>, name: &OsStr) -> Result<bool, OpError> {
        let Some((directory, first, inode)) = self.links.get(&identity(&source.stat)) else {
            return Ok(false);
        };
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let Ok(found) = fs::openat(directory, first, flags, Mode::empty()) else {
            return Ok(false);
        };
        // By its descriptor: the name may have become another file's.
        if !fs::fstat(&found).is_ok_and(|stat| identity(&stat) == *inode) {
            return Ok(false);
        }
        fs::linkat(&found, c"", place.directory, name, AtFlags::EMPTY_PATH).map_err(|errno| place.failed(errno))?;
        self.done.files += 1;
        Ok(true)
    }

    fn symlink(&mut self, source: &Source<'_>, place: &Place<'_>, name: &OsStr) -> Result<(), OpError> {
        let text = fs::readlinkat(source.fd, c"", Vec::new()).map_err(|errno| source.failed(errno))?;
        fs::symlinkat(text, place.directory, name).map_err(|errno| place.failed(errno))?;
        self.attributes_of_node(source, place, name)?;
        self.done.links += 1;
        Ok(())
    }

    /// A fifo, or a device.
    fn node(&mut self, source: &Source<'_>, place: &Place<'_>, name: &OsStr, kind: Kind) -> Result<(), OpError> {
        let file_type = FileType::from_raw_mode(source.stat.st_mode);
        let number = if kind == Kind::Fifo { 0 } else { source.stat.st_rdev };
        let mode = Mode::RUSR | Mode::WUSR;
        fs::mknodat(place.directory, name, file_type, mode, number).map_err(|errno| place.failed(errno))?;
        self.attributes_of_node(source, place, name)?;
        self.done.files += 1;
        Ok(())
    }
}

fn into_itself(label: &Path) -> OpError {
    StorageError::IntoItself {
        path: label.to_path_buf(),
    }
    .into()
}

/// See [`Walk::may_write`].
pub(super) fn may_write(ids: &Ids, directory: &OwnedFd, label: &Path) -> Result<(), OpError> {
    match fs::fstat(directory) {
        Ok(stat) if ids.rules(&stat) => Ok(()),
        Ok(_) => Err(FileError::io("write into", label)(Errno::ACCESS).into()),
        Err(errno) => Err(FileError::io("look at", label)(errno).into()),
    }
}

/// Opens a directory that was just made: nothing was mounted on it since.
pub(super) fn open_made(parent: &OwnedFd, name: &OsStr) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let how = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    fs::openat2(parent, name, flags, Mode::empty(), how)
}

/// The label of what is in a directory. It is for messages only: of what lies deep the beginning will do.
fn label_in(directory: &Path, name: &OsStr) -> PathBuf {
    if directory.as_os_str().len() > LABEL_MAX {
        directory.to_path_buf()
    } else {
        directory.join(name)
    }
}

fn open_directory(parent: &OwnedFd, name: &OsStr) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    fs::openat(parent, name, flags, Mode::empty())
}

/// The names in a directory, sorted, but for `.` and `..`.
pub(super) fn names(directory: &OwnedFd) -> Result<Vec<OsString>, Errno> {
    let mut names = Vec::new();
    for entry in fs::Dir::read_from(directory)? {
        let name = entry?.file_name().to_bytes().to_vec();
        if name != b"." && name != b".." {
            names.push(OsString::from_vec(name));
        }
    }
    names.sort_unstable();
    Ok(names)
}

/// The beginning of a path that is too long to be shown.
fn shortened(path: &Path) -> String {
    let bytes = path.as_os_str().as_bytes();
    crate::sys::files::shown(OsStr::from_bytes(&bytes[..bytes.len().min(200)]))
}

//! The two ends of a copy: whose tree it is, and what its users are to the host.
//!
//! Every path is looked up by [`Root`], the host's own as well: there `/` is the host's.

use std::ffi::OsString;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{self, OFlags, Stat};
use rustix::io::Errno;

use super::ids::{Ids, Map};
use crate::machine::location::{means_contents, means_directory};
use crate::machine::{Cancel, Location, MachineName, Report};
use crate::ops::lock::Lock;
use crate::ops::{OpError, Places};
use crate::sys::files::{FileError, Kind, Root};
use crate::sys::guest::Leader;
use crate::sys::image_lock::{ImageLock, Sharing};

/// Where the files of a machine are.
#[derive(Clone, Debug)]
pub enum Tree {
    /// In a machine that runs: what its leader has as its root.
    Running(Arc<Leader>),
    /// In a directory, where nothing runs.
    Stopped(PathBuf),
    /// In a directory that nobody else knows of.
    Hidden(PathBuf),
}

impl Tree {
    /// Whether nothing can stop what has this tree, or it has not yet.
    pub(in crate::ops) fn lasts(&self) -> bool {
        match self {
            Self::Running(leader) => leader.is_alive(),
            Self::Stopped(_) | Self::Hidden(_) => true,
        }
    }
}

/// A tree that is open.
#[derive(Debug)]
pub(in crate::ops) struct Side {
    pub(in crate::ops) root: Root,
    pub(in crate::ops) ids: Ids,
    pub(in crate::ops) name: Option<MachineName>,
    leader: Option<Arc<Leader>>,
    /// Keep a machine that does not run from being started or changed by others.
    _locks: Option<(Lock, ImageLock)>,
}

impl Side {
    pub(in crate::ops) fn host() -> Result<Self, OpError> {
        Ok(Self {
            root: Root::open(Path::new("/"))?,
            ids: Ids::host(),
            name: None,
            leader: None,
            _locks: None,
        })
    }

    /// Opens the tree of a machine; one that does not run is locked if something `is_written` there.
    pub(in crate::ops) fn machine(
        name: &MachineName,
        tree: Tree,
        is_written: bool,
        places: &Places,
        report: &dyn Report,
        cancel: &Cancel,
    ) -> Result<Self, OpError> {
        let is_locked = is_written && matches!(tree, Tree::Stopped(_));
        let (root, ids, leader, locks) = match tree {
            Tree::Running(leader) => {
                let stopped = || OpError::NotRunning { name: name.to_string() };
                let root = leader.root().ok_or_else(stopped)?;
                let (users, groups) = leader.id_maps().ok_or_else(stopped)?;
                let ids = Ids {
                    users: Map::parse(&users),
                    groups: Map::parse(&groups),
                };
                if !ids.has_root() {
                    return Err(OpError::Option {
                        message: format!("machine '{name}' has no user root, who its files would belong to"),
                        hint: format!("copy by `machinist exec {name} -- tar …`"),
                    });
                }
                (root, ids, Some(leader), None)
            }
            Tree::Stopped(image) | Tree::Hidden(image) => {
                let locks = if is_locked {
                    let lock = Lock::wait(&places.runtime, name.as_str(), report, cancel)?;
                    Some((
                        lock,
                        ImageLock::take(&image, &places.image_locks(), Sharing::Exclusive)?,
                    ))
                } else {
                    None
                };
                let root = Root::open(&image)?;
                let (uid, gid) = root.owner()?;
                // As systemd-nspawn takes it: of whom the top directory is, in ranges of 65536.
                let first = |id: u32| id & !0xffff;
                let ids = Ids {
                    users: Map::shifted(first(uid.as_raw())),
                    groups: Map::shifted(first(gid.as_raw())),
                };
                (root, ids, None, locks)
            }
        };
        Ok(Self {
            root,
            ids,
            name: Some(name.clone()),
            leader,
            _locks: locks,
        })
    }

    /// Fails once the machine has stopped: what is seen of its tree then is not all of it.
    pub(in crate::ops) fn check(&self) -> Result<(), OpError> {
        match (&self.leader, &self.name) {
            (Some(leader), Some(name)) if !leader.is_alive() => Err(OpError::Option {
                message: format!("machine '{name}' stopped while it was copied"),
                hint: "nothing half-made is left: a machine that does not run can be copied, too".to_owned(),
            }),
            _ => Ok(()),
        }
    }
}

/// What is to be copied.
#[derive(Debug)]
pub(in crate::ops) struct Found {
    /// By `O_PATH`.
    pub(in crate::ops) fd: OwnedFd,
    pub(in crate::ops) stat: Stat,
    /// Its own name; `None` for what has none, as `/`.
    pub(in crate::ops) name: Option<OsString>,
    /// Whether what is in it is meant.
    pub(in crate::ops) contents: bool,
    pub(in crate::ops) label: PathBuf,
}

impl Found {
    pub(in crate::ops) fn kind(&self) -> Kind {
        Kind::from_mode(self.stat.st_mode)
    }
}

/// The path of a location that is looked up in its tree.
fn path_of(location: &Location) -> Result<PathBuf, OpError> {
    match location {
        // Also where the caller's directory is gone: then only whole paths will do.
        Location::Host(path) => std::path::absolute(path).map_err(OpError::path("find", path)),
        Location::Machine(_, path) => Ok(path.clone()),
        Location::Stream => Ok(PathBuf::new()),
    }
}

/// Looks up what is to be copied; a link at the end is followed unless links are kept as they are.
pub(in crate::ops) fn find(side: &Side, location: &Location, keep_links: bool) -> Result<Found, OpError> {
    let (path, label) = (path_of(location)?, location.label());
    let contents = means_contents(raw_path(location));
    // A slash at the end has the kernel follow a link, as has `/.`; std takes it for nothing.
    let follow = !keep_links || contents || means_directory(raw_path(location));
    let mut flags = OFlags::PATH;
    flags.set(OFlags::NOFOLLOW, !follow);
    flags.set(OFlags::DIRECTORY, contents || means_directory(raw_path(location)));
    let fd = side.root.open_at(&path, flags);
    let fd = fd.map_err(FileError::io("copy", &label))?;
    let stat = fs::fstat(&fd).map_err(FileError::io("copy", &label))?;
    Ok(Found {
        fd,
        stat,
        name: path.file_name().map(OsString::from),
        contents,
        label,
    })
}

fn raw_path(location: &Location) -> &Path {
    match location {
        Location::Host(path) | Location::Machine(_, path) => path,
        Location::Stream => Path::new("-"),
    }
}

/// Where a copy goes.
#[derive(Debug)]
pub(in crate::ops) enum Target {
    /// Under this name in that directory.
    Named(OwnedFd, OsString, PathBuf),
    /// What is in the source goes into this directory.
    Into(OwnedFd, PathBuf),
}

impl Target {
    pub(in crate::ops) fn label(&self) -> &Path {
        match self {
            Self::Named(_, _, label) | Self::Into(_, label) => label,
        }
    }
}

/// On the host a link at the end may be what an earlier copy brought out of the machine, and lead anywhere.
fn refuse_link(side: &Side, location: &Location, path: &Path, label: &Path) -> Result<(), OpError> {
    let raw = raw_path(location);
    if means_directory(raw) || means_contents(raw) {
        return Ok(());
    }
    let found = side
        .root
        .open_at(path, OFlags::PATH | OFlags::NOFOLLOW)
        .and_then(fs::fstat);
    if !found.is_ok_and(|stat| Kind::from_mode(stat.st_mode) == Kind::Symlink) {
        return Ok(());
    }
    let shown = crate::sys::files::shown(label);
    Err(OpError::Option {
        message: format!("'{shown}' is a symbolic link, which may have come from the machine"),
        hint: format!("name what it leads to, or '{shown}/' if that is a directory"),
    })
}

/// Looks up where a copy goes, as cp(1) does: into a directory that exists, or under the name itself.
pub(in crate::ops) fn target(side: &Side, location: &Location, found: &Found, from: &Side) -> Result<Target, OpError> {
    let (path, label) = (path_of(location)?, location.label());
    if side.name.is_none() && from.name.is_some() {
        refuse_link(side, location, &path, &label)?;
    }
    let failed = |label: &Path| FileError::io::<Errno>("write", label);
    let directory = OFlags::RDONLY | OFlags::DIRECTORY;
    match side
        .root
        .open_at(&path, OFlags::PATH)
        .and_then(|fd| Ok(fs::fstat(&fd)?.st_mode))
    {
        Ok(mode) if Kind::from_mode(mode) == Kind::Directory => {
            let fd = side.root.open_at(&path, directory).map_err(failed(&label))?;
            return Ok(match &found.name {
                Some(name) if !found.contents => {
                    let label = label.join(name);
                    Target::Named(fd, name.clone(), label)
                }
                _ => Target::Into(fd, label),
            });
        }
        Ok(_) => {
            if means_directory(raw_path(location)) {
                return Err(failed(&label)(Errno::NOTDIR).into());
            }
            // What a link leads to is replaced, and not the link.
            let real = side.root.resolve(&path)?;
            let (parent, Some(name)) = (real.parent().unwrap_or(Path::new("")), real.file_name()) else {
                return Err(FileError::NoName { path: label }.into());
            };
            let fd = side.root.open_at(parent, directory).map_err(failed(&label))?;
            return Ok(Target::Named(fd, name.to_owned(), label));
        }
        Err(Errno::NOENT) => {}
        Err(errno) => return Err(failed(&label)(errno).into()),
    }
    let directory_needed = means_directory(raw_path(location)) && found.kind() != Kind::Directory;
    let Some(name) = path
        .file_name()
        .filter(|_| !means_contents(raw_path(location)) && !directory_needed)
    else {
        return Err(OpError::Option {
            message: format!("there is no directory '{}'", crate::sys::files::shown(&label)),
            hint: "make it first, or leave the slash out to have the file get that name".to_owned(),
        });
    };
    if side
        .root
        .kind(path.as_path())
        .is_ok_and(|kind| kind == Some(Kind::Symlink))
    {
        return Err(OpError::Option {
            message: format!(
                "'{}' is a symbolic link that leads to nothing",
                crate::sys::files::shown(&label)
            ),
            hint: "remove it, or name what it should lead to".to_owned(),
        });
    }
    let parent = path.parent().unwrap_or(Path::new(""));
    let fd = side.root.open_at(parent, directory).map_err(failed(&label))?;
    Ok(Target::Named(fd, name.to_owned(), label))
}

/// A directory that a stream is unpacked in: it exists.
pub(in crate::ops) fn directory(side: &Side, location: &Location) -> Result<(OwnedFd, PathBuf), OpError> {
    let (path, label) = (path_of(location)?, location.label());
    let fd = side.root.open_at(&path, OFlags::RDONLY | OFlags::DIRECTORY);
    Ok((fd.map_err(FileError::io("unpack into", &label))?, label))
}

/// Device and inode.
pub(in crate::ops) fn identity(stat: &Stat) -> (u64, u64) {
    (stat.st_dev, stat.st_ino)
}

/// Opens for reading what an `O_PATH` descriptor stands for.
pub(in crate::ops) fn reopen(found: &OwnedFd, flags: OFlags) -> Result<OwnedFd, Errno> {
    let flags = flags | OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    fs::openat(
        fs::CWD,
        crate::sys::files::magic_link(found.as_fd()),
        flags,
        fs::Mode::empty(),
    )
}

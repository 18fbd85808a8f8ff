//! Directories and files of the host mounted in a machine that runs, see open_tree(2), mount_setattr(2), move_mount(2).
//!
//! systemd-machined refuses that for machines with private users. Here a copy of the mount is made on the host, gets the
//! owners that the machine's users see, and is moved to a place that was looked up in the machine's root. A thread of ours
//! is in the machine's mount namespace for that moment, and in no other of its namespaces: nothing there can see it. It looks up
//! no path there.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::thread;

use nix::mount::{MntFlags, umount2};
use nix::sched::{CloneFlags, setns, unshare};
use rustix::fs::{self, AtFlags, CWD, OFlags, StatVfsMountFlags, StatxAttributes, StatxFlags};
use rustix::io::Errno;
use rustix::mount::{MoveMountFlags, OpenTreeFlags, move_mount, open_tree};

use super::files::{FileError, Kind, Root, shown, temporary_name};
use super::guest::Leader;
use super::raw::mount::set_attributes;
use super::thread_user::make_files_as;

/// Why nothing was mounted, or unmounted.
#[derive(Debug, thiserror::Error)]
pub enum LiveMountError {
    /// It ended meanwhile.
    #[error("the machine has stopped")]
    Stopped,
    /// The filesystem cannot show other owners, or what is mounted in it cannot.
    #[error(
        "the filesystem of '{}' cannot show its files as those of the machine's private users",
        shown(path)
    )]
    NoMapping {
        /// The source.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// A directory on a file, or a file on a directory.
    #[error("'{}' is a {kind}, and what is to be mounted on it is not", shown(path))]
    OtherKind {
        /// The place.
        path: PathBuf,
        /// What it is.
        kind: Kind,
    },
    /// A system call.
    #[error("cannot {doing} '{}'", shown(path))]
    Io {
        /// What was tried.
        doing: &'static str,
        /// On what.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// A file could not be looked at or made.
    #[error(transparent)]
    File(#[from] FileError),
}

fn failed<E: Into<io::Error>>(doing: &'static str, path: &Path) -> impl FnOnce(E) -> LiveMountError {
    let path = path.to_path_buf();
    move |error| LiveMountError::Io {
        doing,
        path,
        source: error.into(),
    }
}

/// What is to be seen where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bind {
    /// On the host: an absolute path.
    pub source: PathBuf,
    /// In the machine.
    pub place: PathBuf,
    /// Whether the machine only reads it.
    pub read_only: bool,
}

/// What came of unmounting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unbound {
    /// It is gone.
    Gone,
    /// Nothing was mounted there.
    Nothing,
    /// The kernel holds on to it: systemd-nspawn mounted it before the machine had users of its own.
    Locked,
}

/// Whether the machine has users of its own.
#[must_use]
pub fn has_private_users(leader: &Leader) -> bool {
    leader.shares("user") == Some(false)
}

/// Mounts it in the machine, unless it is there: whether anything was done. A place that is missing is made. Blocks.
pub fn bind(leader: &Leader, machine: &str, bind: &Bind) -> Result<bool, LiveMountError> {
    let (uid, gid) = leader.ids_on_host(0, 0).ok_or(LiveMountError::Stopped)?;
    let root = leader.root().ok_or(LiveMountError::Stopped)?.owned_by(uid, gid);
    let source = fs::statat(CWD, &bind.source, AtFlags::empty()).map_err(failed("look at", &bind.source))?;
    let is_directory = Kind::from_mode(source.st_mode) == Kind::Directory;
    let mut is_other = false;
    if let Some(there) = look(&root, &bind.place)? {
        let stat = fs::fstat(&there).map_err(failed("look at", &bind.place))?;
        if (stat.st_dev, stat.st_ino) == (source.st_dev, source.st_ino) {
            let on_host = fs::statvfs(&bind.source).map_err(failed("look at", &bind.source))?;
            let wanted = bind.read_only || on_host.f_flag.contains(StatVfsMountFlags::RDONLY);
            if is_read_only(&there).map_err(failed("look at", &bind.place))? == wanted {
                return Ok(false);
            }
            is_other = true;
        }
    }
    let mount = detached(leader, bind)?;
    if is_other {
        // If it cannot be unmounted, the new one lies on it.
        unbind(leader, &bind.place)?;
    }
    let place = make(leader, &root, &bind.place, is_directory)?;
    if has_private_users(leader) {
        through_tunnel(leader, &root, machine, &mount, &place, is_directory, bind)?;
    } else {
        in_machine(leader, || attach(&mount, &place, &bind.place))?;
    }
    Ok(true)
}

fn attach(mount: &OwnedFd, place: &OwnedFd, path: &Path) -> Result<(), LiveMountError> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    move_mount(mount, c"", place, c"", flags).map_err(failed("mount something on", path))
}

/// Where systemd-nspawn lets mounts of the host into a machine: on the host, and in the machine.
const TUNNEL: [&str; 2] = ["/run/systemd/nspawn/propagate", "run/host/incoming"];

/// Attaches the mount in the machine by way of systemd-nspawn's tunnel: what the host mounts at its end is seen at the other,
/// and the kernel locks it, as it comes to other users. Root of the machine could make what is attached at once writable again.
fn through_tunnel(
    leader: &Leader,
    root: &Root,
    machine: &str,
    mount: &OwnedFd,
    place: &OwnedFd,
    is_directory: bool,
    bind: &Bind,
) -> Result<(), LiveMountError> {
    let name = temporary_name(bind.place.as_os_str());
    let (ours, theirs) = (
        Path::new(TUNNEL[0]).join(machine).join(&name),
        Path::new(TUNNEL[1]).join(&name),
    );
    let made = if is_directory {
        std::fs::create_dir(&ours)
    } else {
        File::create_new(&ours).map(drop)
    };
    made.map_err(failed("make", &ours))?;
    let work = || {
        let end = fs::openat(
            CWD,
            &ours,
            OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC,
            fs::Mode::empty(),
        );
        attach(mount, &end.map_err(failed("open", &ours))?, &ours)?;
        let arrived = look(root, &theirs)?.filter(is_mount);
        let arrived = arrived.ok_or_else(|| failed("find in the machine", &theirs)(Errno::NOENT))?;
        in_machine(leader, || {
            let flags = OpenTreeFlags::OPEN_TREE_CLONE
                | OpenTreeFlags::OPEN_TREE_CLOEXEC
                | OpenTreeFlags::AT_EMPTY_PATH
                | OpenTreeFlags::AT_RECURSIVE;
            let copy = open_tree(&arrived, c"", flags).map_err(failed("mount", &bind.source))?;
            attach(&copy, place, &bind.place)
        })
    };
    let result = work();
    // It vanishes at the other end, too; the first error is the one to be told.
    let _ = umount2(&ours, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW);
    let _ = if is_directory {
        std::fs::remove_dir(&ours)
    } else {
        std::fs::remove_file(&ours)
    };
    result
}

/// Whether it is where something is mounted.
fn is_mount(there: &OwnedFd) -> bool {
    let found = fs::statx(there, c"", AtFlags::EMPTY_PATH, StatxFlags::empty());
    found.is_ok_and(|found| found.stx_attributes.contains(StatxAttributes::MOUNT_ROOT))
}

/// Unmounts what is mounted last at a place of the machine. Blocks.
pub fn unbind(leader: &Leader, place: &Path) -> Result<Unbound, LiveMountError> {
    let root = leader.root().ok_or(LiveMountError::Stopped)?;
    let Some(there) = look(&root, place)?.filter(is_mount) else {
        return Ok(Unbound::Nothing);
    };
    match in_machine(leader, || detach(&there, place)) {
        Err(LiveMountError::Io { source, .. }) if source.raw_os_error() == Some(nix::libc::EINVAL) => {
            Ok(Unbound::Locked)
        }
        result => result.map(|()| Unbound::Gone),
    }
}

/// What a path of the machine leads to; `None` if there is nothing.
fn look(root: &Root, place: &Path) -> Result<Option<OwnedFd>, LiveMountError> {
    match root.open_at(place, OFlags::PATH) {
        Ok(there) => Ok(Some(there)),
        Err(Errno::NOENT) => Ok(None),
        Err(errno) => Err(failed("look at", place)(errno)),
    }
}

fn is_read_only(there: &OwnedFd) -> Result<bool, Errno> {
    Ok(fs::fstatvfs(there)?.f_flag.contains(StatVfsMountFlags::RDONLY))
}

/// A copy of the source's mount that is attached nowhere, with what is mounted in it.
fn detached(leader: &Leader, bind: &Bind) -> Result<OwnedFd, LiveMountError> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_RECURSIVE;
    let mount = open_tree(CWD, &bind.source, flags).map_err(failed("mount", &bind.source))?;
    let users = if has_private_users(leader) {
        Some(leader.namespace("user").ok_or(LiveMountError::Stopped)?)
    } else {
        None
    };
    let is_mapped = users.is_some();
    set_attributes(mount.as_fd(), bind.read_only, users.as_ref().map(File::as_fd), true).map_err(|source| {
        let path = bind.source.clone();
        match source.raw_os_error() {
            Some(nix::libc::EINVAL | nix::libc::EPERM) if is_mapped => LiveMountError::NoMapping { path, source },
            _ => failed("mount", &path)(source),
        }
    })?;
    Ok(mount)
}

/// The place of the machine, which is made if it is missing: by the machine's root, as its filesystems may know nobody else.
fn make(leader: &Leader, root: &Root, place: &Path, is_directory: bool) -> Result<OwnedFd, LiveMountError> {
    if look(root, place)?.is_none() {
        let (uid, gid) = leader.ids_on_host(0, 0).ok_or(LiveMountError::Stopped)?;
        on_a_thread(|| {
            make_files_as(uid, gid).map_err(failed("make", place))?;
            if is_directory {
                root.create_dir_all(place, 0o755)?;
            } else {
                root.create_dir_all(place.parent().unwrap_or(Path::new("")), 0o755)?;
                root.write(place, b"", 0o644)?;
            }
            Ok(())
        })?;
    }
    let there = look(root, place)?.ok_or_else(|| failed("look at", place)(Errno::NOENT))?;
    let stat = fs::fstat(&there).map_err(failed("look at", place))?;
    let kind = Kind::from_mode(stat.st_mode);
    if (kind == Kind::Directory) == is_directory {
        Ok(there)
    } else {
        let path = place.to_path_buf();
        Err(LiveMountError::OtherKind { path, kind })
    }
}

/// Unmounts what an `O_PATH` descriptor is the root of. By the descriptor: a path may lead elsewhere by now, and in the machine's
/// namespace there is no /proc of ours. To be called by [`in_machine`].
fn detach(there: &OwnedFd, place: &Path) -> Result<(), LiveMountError> {
    // The host's, which the thread stands in.
    let number = there.as_raw_fd().to_string();
    umount2(number.as_str(), MntFlags::MNT_DETACH).map_err(failed("unmount", place))
}

/// Does something in the machine's mount namespace, standing in the host's /proc/self/fd.
fn in_machine(leader: &Leader, work: impl FnOnce() -> Result<(), LiveMountError> + Send) -> Result<(), LiveMountError> {
    let namespace = leader.namespace("mnt").ok_or(LiveMountError::Stopped)?;
    on_a_thread(|| {
        let proc = Path::new("/proc/self/fd");
        let descriptors = File::open(proc).map_err(failed("open", proc))?;
        // The kernel lets nobody join who shares a root directory with others.
        unshare(CloneFlags::CLONE_FS).map_err(failed("leave", Path::new("/")))?;
        setns(&namespace, CloneFlags::CLONE_NEWNS).map_err(failed("join the mounts of", Path::new("the machine")))?;
        nix::unistd::fchdir(&descriptors).map_err(failed("enter", proc))?;
        work()
    })
}

/// Does something on a thread that does nothing else, and ends.
fn on_a_thread<T: Send>(work: impl FnOnce() -> Result<T, LiveMountError> + Send) -> Result<T, LiveMountError> {
    thread::scope(|scope| match scope.spawn(work).join() {
        Ok(result) => result,
        Err(panic) => std::panic::resume_unwind(panic),
    })
}

//! Owner, mode, times, extended attributes and inode flags of one file, copied.

use std::ffi::{CStr, OsStr};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use rustix::fs::{
    self, AtFlags, FileType, Gid, IFlags, Mode, OFlags, ResolveFlags, Statx, StatxAttributes, StatxTimestamp, Timespec,
    Timestamps, Uid,
};
use rustix::io::Errno;

use crate::sys::files::xattr;

/// Flags that statx(2) tells for free; everything else that chattr(1) knows is a matter of the filesystem.
const FLAGS: [(StatxAttributes, IFlags); 3] = [
    (StatxAttributes::IMMUTABLE, IFlags::IMMUTABLE),
    (StatxAttributes::APPEND, IFlags::APPEND),
    (StatxAttributes::NODUMP, IFlags::NODUMP),
];

/// Sets what `wanted`, the state of `source`, says on an open file or directory.
pub(super) fn copy(
    source: &OwnedFd,
    target: &OwnedFd,
    wanted: &Statx,
    scratch: &mut xattr::Scratch,
) -> Result<(), Errno> {
    let found = fs::fstat(target)?;
    let mode = u32::from(wanted.stx_mode) & 0o7777;
    // In this order: chown(2) clears set-user-ID and file capabilities.
    let given_away = (found.st_uid, found.st_gid) != (wanted.stx_uid, wanted.stx_gid);
    if given_away {
        let (uid, gid) = owner(wanted);
        fs::fchown(target, Some(uid), Some(gid))?;
    }
    if given_away || found.st_mode & 0o7777 != mode {
        fs::fchmod(target, Mode::from_raw_mode(mode))?;
    }
    xattr::copy(source.as_fd(), target.as_fd(), scratch)?;
    fs::futimens(target, &times(wanted))
}

/// Like [`copy`] for what cannot be opened: a link, a fifo, a socket, a device that was just made.
pub(super) fn copy_by_name(
    source: &OwnedFd,
    target: &OwnedFd,
    name: &CStr,
    wanted: &Statx,
    scratch: &mut xattr::Scratch,
) -> Result<(), Errno> {
    let (uid, gid) = owner(wanted);
    fs::chownat(target, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
    if FileType::from_raw_mode(wanted.stx_mode.into()) != FileType::Symlink {
        let mode = Mode::from_raw_mode(u32::from(wanted.stx_mode) & 0o7777);
        fs::chmodat(target, name, mode, AtFlags::empty())?;
    }
    let os_name = OsStr::from_bytes(name.to_bytes());
    xattr::copy_by_name(source.as_fd(), target.as_fd(), os_name, scratch)?;
    fs::utimensat(target, name, &times(wanted), AtFlags::SYMLINK_NOFOLLOW)
}

/// The flags that keep a file from being changed or dumped.
pub(super) fn locked(stat: &Statx) -> IFlags {
    let attributes = stat.stx_attributes & stat.stx_attributes_mask;
    FLAGS
        .iter()
        .filter(|(attribute, _)| attributes.contains(*attribute))
        .map(|(_, flag)| *flag)
        .collect()
}

/// Sets such flags on `path` below `root`, where no link is followed.
pub(super) fn lock(root: &OwnedFd, path: &Path, locked: IFlags) -> Result<(), Errno> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let how = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    let name = if path.as_os_str().is_empty() {
        Path::new(".")
    } else {
        path
    };
    let fd = fs::openat2(root, name, flags, Mode::empty(), how)?;
    fs::ioctl_setflags(&fd, fs::ioctl_getflags(&fd)? | locked)
}

fn owner(stat: &Statx) -> (Uid, Gid) {
    (Uid::from_raw(stat.stx_uid), Gid::from_raw(stat.stx_gid))
}

fn times(stat: &Statx) -> Timestamps {
    let time = |time: StatxTimestamp| Timespec {
        tv_sec: time.tv_sec,
        tv_nsec: time.tv_nsec.into(),
    };
    Timestamps {
        last_access: time(stat.stx_atime),
        last_modification: time(stat.stx_mtime),
    }
}

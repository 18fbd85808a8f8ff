//! What a copy gets besides its contents: owner, mode, extended attributes, times.

use std::ffi::{CStr, OsStr};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use rustix::fs::{self, AtFlags, CWD, Gid, Mode, OFlags, Stat, Timespec, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;

use super::walk::{Place, Source, Walk};
use crate::ops::OpError;
use crate::sys::files::{Kind, magic_link, xattr};

/// Bits of a mode that make a program run as another.
const SET_ID: u32 = 0o6000;

impl Walk<'_> {
    pub(super) fn attributes_if_archive(
        &mut self,
        source: &Source<'_>,
        from: &OwnedFd,
        to: &OwnedFd,
        place: &Place<'_>,
    ) -> Result<(), OpError> {
        if self.options.archive {
            self.attributes(source, Some(from.as_fd()), to.as_fd(), place)?;
        }
        Ok(())
    }

    /// The mode of a copy, and whether anything was taken off.
    fn mode(&self, source: &Source<'_>) -> (Mode, bool) {
        let mode = source.stat.st_mode & 0o7777;
        let special = if source.kind() == Kind::Directory {
            0
        } else {
            mode & SET_ID
        };
        let kept = match source.kind() {
            Kind::Directory if self.options.archive => mode,
            Kind::Directory => mode & 0o1777,
            _ if self.options.archive && !self.strips => mode,
            _ => mode & !SET_ID,
        };
        (Mode::from_raw_mode(kept), self.strips && special != 0)
    }

    /// Gives an open file or directory what the source has: owner, mode, extended attributes, times.
    pub(super) fn attributes(
        &mut self,
        source: &Source<'_>,
        from: Option<BorrowedFd<'_>>,
        to: BorrowedFd<'_>,
        place: &Place<'_>,
    ) -> Result<(), OpError> {
        let (mode, mut stripped) = self.mode(source);
        // In this order: chown(2) clears set-user-ID and file capabilities.
        if self.options.archive {
            let (uid, gid) = self.ids.owner(source.stat.st_uid, source.stat.st_gid);
            fs::fchown(to, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid))).map_err(|errno| place.failed(errno))?;
        }
        fs::fchmod(to, mode).map_err(|errno| place.failed(errno))?;
        if let Some(from) = from.filter(|_| self.options.archive) {
            let (ids, strips, mut skipped) = (&self.ids, self.strips, 0);
            let set = |name: &CStr, value: &[u8]| -> Result<(), Errno> {
                stripped |= strips && name == c"security.capability";
                let Some(value) = ids.attribute(name.to_bytes(), value) else {
                    return Ok(());
                };
                match fs::fsetxattr(to, name, &value, XattrFlags::empty()) {
                    // The filesystem has none, or not so much room.
                    Err(Errno::OPNOTSUPP | Errno::NODATA) => skipped += 1,
                    result => result?,
                }
                Ok(())
            };
            xattr::each(from, &mut self.scratch, set).map_err(|errno| place.failed(errno))?;
            self.done.skipped.xattrs += skipped;
        }
        self.done.stripped += u64::from(stripped);
        if self.options.archive {
            fs::futimens(to, &times(&source.stat)).map_err(|errno| place.failed(errno))?;
        }
        Ok(())
    }

    /// The same for what cannot be opened, and was just made: by its descriptor, as its name may be another's by now.
    pub(super) fn attributes_of_node(
        &mut self,
        source: &Source<'_>,
        place: &Place<'_>,
        name: &OsStr,
    ) -> Result<(), OpError> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let set = || {
            let made = fs::openat(place.directory, name, flags, Mode::empty())?;
            let stat = fs::fstat(&made)?;
            if Kind::from_mode(stat.st_mode) != source.kind() || stat.st_nlink != 1 {
                return Err(Errno::EXIST);
            }
            if self.options.archive {
                let (uid, gid) = self.ids.owner(source.stat.st_uid, source.stat.st_gid);
                let (uid, gid) = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
                fs::chownat(&made, c"", uid, gid, AtFlags::EMPTY_PATH)?;
            }
            if source.kind() != Kind::Symlink {
                fs::chmodat(CWD, magic_link(made.as_fd()), self.mode(source).0, AtFlags::empty())?;
            }
            if self.options.archive {
                fs::utimensat(&made, c"", &times(&source.stat), AtFlags::EMPTY_PATH)?;
            }
            Ok(())
        };
        set().map_err(|errno| place.failed(errno))
    }
}

fn times(stat: &Stat) -> Timestamps {
    let time = |seconds, nanos: u64| Timespec {
        tv_sec: seconds,
        tv_nsec: nanos.try_into().unwrap_or(0),
    };
    Timestamps {
        last_access: time(stat.st_atime, stat.st_atime_nsec),
        last_modification: time(stat.st_mtime, stat.st_mtime_nsec),
    }
}

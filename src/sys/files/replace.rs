//! A file that is replaced whole, or not at all.

use std::ffi::OsStr;
use std::fs::File;
use std::io::Write as _;
use std::os::fd::BorrowedFd;

use rustix::fs::{self, AtFlags, Gid, Mode, OFlags, Uid};
use rustix::io::Errno;

use super::host::temporary_name;

/// Puts a new file in place of `name` in `parent` (not `O_PATH`) by rename(2), durable when this returns; leaves nothing behind
/// on failure.
pub(super) fn replace(
    parent: BorrowedFd<'_>,
    name: &OsStr,
    bytes: &[u8],
    mode: u32,
    (uid, gid): (Uid, Gid),
) -> Result<(), std::io::Error> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let (temporary, fd) = loop {
        let temporary = temporary_name(name);
        match fs::openat(parent, &temporary, flags, Mode::from_raw_mode(0o600)) {
            Ok(fd) => break (temporary, fd),
            Err(Errno::EXIST) => {}
            Err(errno) => return Err(errno.into()),
        }
    };
    let mut file = File::from(fd);
    let written = file.write_all(bytes).and_then(|()| {
        // The owner first: chown(2) clears the set-user-ID bit.
        fs::fchown(&file, Some(uid), Some(gid))?;
        fs::fchmod(&file, Mode::from_raw_mode(mode))?;
        file.sync_all()?;
        fs::renameat(parent, &temporary, parent, name)?;
        Ok(())
    });
    if written.is_err() {
        let _ = fs::unlinkat(parent, &temporary, AtFlags::empty());
        return written;
    }
    Ok(fs::fsync(parent)?)
}

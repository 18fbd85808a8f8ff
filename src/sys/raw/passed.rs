//! Descriptors that a process has from its start.

use std::io;
use std::os::fd::{FromRawFd as _, OwnedFd, RawFd};

use nix::libc;

/// A copy of a descriptor that was passed by its number, see `sd_listen_fds(3)`.
pub(crate) fn passed(number: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: no memory is involved; a number that is no descriptor is an error.
    let copy = unsafe { libc::fcntl(number, libc::F_DUPFD_CLOEXEC, 0) };
    if copy < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: it was made just now, and nobody else knows of it.
    Ok(unsafe { OwnedFd::from_raw_fd(copy) })
}

//! The helper's program in a memfd that cannot be changed any more: whoever gets hold of `/proc/PID/exe` inside has a copy,
//! and can do nothing to it. See memfd_create(2).

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;

use rustix::fs::{MemfdFlags, memfd_create};

use super::protocol::seal;
use crate::sys::helper;

/// Makes one, small enough to be made for each call.
pub(super) fn sealed_copy() -> io::Result<OwnedFd> {
    let program = File::open(helper::program()?)?;
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    // Kernels before 6.3 do not know the flag; later ones may want it, see sysctl vm.memfd_noexec.
    let copy = memfd_create("machinist-helper", flags | MemfdFlags::EXEC)
        .or_else(|_| memfd_create("machinist-helper", flags))?;
    let mut left = usize::try_from(program.metadata()?.len()).unwrap_or(usize::MAX);
    while left > 0 {
        match rustix::fs::sendfile(&copy, &program, None, left)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            count => left -= count,
        }
    }
    seal(&copy)?;
    Ok(copy)
}

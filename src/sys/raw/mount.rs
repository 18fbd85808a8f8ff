//! mount_setattr(2).

use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd};

use nix::libc;

const MOUNT_ATTR_RDONLY: u64 = 0x1;
const MOUNT_ATTR_IDMAP: u64 = 0x0010_0000;

/// `struct mount_attr`, as of its first version
#[repr(C)]
struct Attributes {
    attr_set: u64,
    attr_clr: u64,
    propagation: u64,
    userns_fd: u64,
}

/// Makes a mount that is not attached yet read-only; the owners of its files are shown as the user namespace maps them.
pub(crate) fn make_read_only(mount: BorrowedFd<'_>, users: Option<BorrowedFd<'_>>) -> io::Result<()> {
    let idmap = if users.is_some() { MOUNT_ATTR_IDMAP } else { 0 };
    let attributes = Attributes {
        attr_set: MOUNT_ATTR_RDONLY | idmap,
        attr_clr: 0,
        propagation: 0,
        userns_fd: users.map_or(0, |fd| u64::from(fd.as_raw_fd().unsigned_abs())),
    };
    // SAFETY: the path is an empty C string, which AT_EMPTY_PATH takes for the descriptor itself, and the kernel reads a
    // structure of the given size.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            &raw const attributes,
            size_of::<Attributes>(),
        )
    };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

//! mount_setattr(2).

use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd};

use nix::libc;

const MOUNT_ATTR_RDONLY: u64 = 0x1;
const MOUNT_ATTR_IDMAP: u64 = 0x0010_0000;
/// libc has it not.
const AT_RECURSIVE: libc::c_int = 0x8000;

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
    set_attributes(mount, true, users, false)
}

/// Sets how a mount that is not attached yet is seen: read-only, and with the owners that the user namespace maps; with what is
/// mounted in it, if it is to be `recursive`: then nothing that is mounted in it is seen where it comes from, either.
pub(crate) fn set_attributes(
    mount: BorrowedFd<'_>,
    read_only: bool,
    users: Option<BorrowedFd<'_>>,
    recursive: bool,
) -> io::Result<()> {
    let idmap = if users.is_some() { MOUNT_ATTR_IDMAP } else { 0 };
    let attributes = Attributes {
        attr_set: if read_only { MOUNT_ATTR_RDONLY | idmap } else { idmap },
        attr_clr: 0,
        propagation: match (recursive, read_only) {
            (false, _) => 0,
            (true, false) => libc::MS_SLAVE,
            // What comes to be mounted there later would not be read-only.
            (true, true) => libc::MS_PRIVATE,
        },
        userns_fd: users.map_or(0, |fd| u64::from(fd.as_raw_fd().unsigned_abs())),
    };
    let flags = libc::AT_EMPTY_PATH | if recursive { AT_RECURSIVE } else { 0 };
    // SAFETY: the path is an empty C string, which AT_EMPTY_PATH takes for the descriptor itself, and the kernel reads a
    // structure of the given size.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            flags,
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

//! Project quotas, see quotactl(2), linux/quota.h and linux/dqblk_xfs.h; and the project of a file, see linux/fs.h.

use std::io;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd};

use nix::libc;
use rustix::io::Errno;
use rustix::ioctl::{Getter, Opcode, Setter, ioctl, opcode};

const FSGETXATTR: Opcode = opcode::read::<FileAttributes>(b'X', 31);
const FSSETXATTR: Opcode = opcode::write::<FileAttributes>(b'X', 32);

/// Of projects, not of users or groups.
const PRJQUOTA: u32 = 2;
/// `XQM_CMD(8)`
const Q_XGETQSTATV: u32 = 0x5808;
const FS_QSTATV_VERSION1: i8 = 1;

/// `struct fsxattr`
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct FileAttributes {
    pub(crate) flags: u32,
    extent_size: u32,
    extents: u32,
    pub(crate) project: u32,
    copy_on_write_extent_size: u32,
    padding: [u8; 8],
}

/// `struct fs_quota_statv`
#[repr(C)]
#[derive(Default)]
struct Status {
    version: i8,
    padding: u8,
    flags: u16,
    in_core: u32,
    /// Of users, groups and projects: `struct fs_qfilestatv`
    files: [[u64; 3]; 3],
    time_limits: [i32; 3],
    warning_limits: [u16; 4],
    padding_2: u32,
    padding_3: [u64; 7],
}

const _: () = assert!(size_of::<FileAttributes>() == 28);
const _: () = assert!(size_of::<Status>() == 160);

/// What an open file or directory says of its project.
pub(crate) fn file_attributes(file: impl AsFd) -> Result<FileAttributes, Errno> {
    // SAFETY: the kernel writes one fsxattr, whose size is asserted above.
    unsafe { ioctl(file, Getter::<FSGETXATTR, FileAttributes>::new()) }
}

/// Sets all of that.
pub(crate) fn set_file_attributes(file: impl AsFd, attributes: FileAttributes) -> Result<(), Errno> {
    // SAFETY: the kernel reads one fsxattr, whose size is asserted above.
    unsafe { ioctl(file, Setter::<FSSETXATTR, _>::new(attributes)) }
}

/// Which quotas are on where a file is (`FS_QUOTA_*`); `ENOSYS` if none is.
pub(crate) fn status(file: BorrowedFd<'_>) -> io::Result<u16> {
    let mut status = Status {
        version: FS_QSTATV_VERSION1,
        ..Status::default()
    };
    quotactl(file, Q_XGETQSTATV, 0, &raw mut status)?;
    Ok(status.flags)
}

/// The limits of a project where a file is, and what it uses.
pub(crate) fn usage(file: BorrowedFd<'_>, project: u32) -> io::Result<libc::dqblk> {
    let mut usage = nothing();
    quotactl(file, libc::Q_GETQUOTA.unsigned_abs(), project, &raw mut usage)?;
    Ok(usage)
}

/// Sets how many blocks of 1024 bytes a project may use where a file is; 0 is no limit.
pub(crate) fn set_limit(file: BorrowedFd<'_>, project: u32, blocks: u64) -> io::Result<()> {
    let mut limits = nothing();
    limits.dqb_bhardlimit = blocks;
    limits.dqb_valid = libc::QIF_BLIMITS;
    quotactl(file, libc::Q_SETQUOTA.unsigned_abs(), project, &raw mut limits)
}

fn nothing() -> libc::dqblk {
    // SAFETY: all zero is a valid dqblk: it has numbers only.
    unsafe { std::mem::zeroed() }
}

/// `quotactl_fd(2)` for projects. `T` must be what the command reads or writes.
fn quotactl<T>(file: BorrowedFd<'_>, command: u32, project: u32, value: *mut T) -> io::Result<()> {
    let command = (command << 8) | PRJQUOTA;
    // SAFETY: the pointer is valid for reads and writes of a `T`, which each caller above has made what its command takes.
    let result = unsafe { libc::syscall(libc::SYS_quotactl_fd, file.as_raw_fd(), command, project, value) };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

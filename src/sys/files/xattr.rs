//! Extended attributes copied from file to file, see xattr(7).

use std::ffi::{CStr, OsStr, OsString};
use std::os::fd::{AsRawFd as _, BorrowedFd};

use rustix::fs::{self, XattrFlags};
use rustix::io::Errno;

/// The most bytes that the kernel gives for a list of names or for a value (`XATTR_LIST_MAX`, `XATTR_SIZE_MAX`).
const MAX: usize = 64 << 10;

/// Attributes that mean the same in a tree from elsewhere; everything else means something to this host, or nothing at all.
pub(crate) fn is_harmless(name: &[u8]) -> bool {
    name.starts_with(b"user.")
        || [
            &b"security.capability"[..],
            b"system.posix_acl_access",
            b"system.posix_acl_default",
        ]
        .contains(&name)
}

/// Buffers for the names and one value, for use again and again.
#[derive(Debug)]
pub(crate) struct Scratch {
    names: Vec<u8>,
    value: Vec<u8>,
    /// Whether only harmless ones are copied.
    foreign: bool,
    /// Bytes that were copied.
    copied: u64,
}

impl Scratch {
    /// For what comes from elsewhere: of the attributes those that are harmless.
    pub(crate) fn foreign() -> Self {
        Self {
            foreign: true,
            ..Self::default()
        }
    }

    /// How many bytes of names and values were copied since this was asked last.
    pub(crate) fn take_copied(&mut self) -> u64 {
        std::mem::take(&mut self.copied)
    }
}

impl Default for Scratch {
    fn default() -> Self {
        Self {
            names: vec![0; MAX],
            value: vec![0; MAX],
            foreign: false,
            copied: 0,
        }
    }
}

/// Copies all attributes of an open file or directory to another.
pub(crate) fn copy(from: BorrowedFd<'_>, to: BorrowedFd<'_>, scratch: &mut Scratch) -> Result<(), Errno> {
    let length = match fs::flistxattr(from, &mut scratch.names[..]) {
        Err(Errno::OPNOTSUPP) => return Ok(()),
        result => result?,
    };
    for name in names(&scratch.names[..length], scratch.foreign) {
        let length = fs::fgetxattr(from, name, &mut scratch.value[..])?;
        set(name, || {
            fs::fsetxattr(to, name, &scratch.value[..length], XattrFlags::empty())
        })?;
        scratch.copied += (name.to_bytes().len() + length) as u64;
    }
    Ok(())
}

/// Shows each attribute of an open file or directory, by name and value. One that vanishes meanwhile is left out.
pub(crate) fn each<E: From<Errno>>(
    from: BorrowedFd<'_>,
    scratch: &mut Scratch,
    mut show: impl FnMut(&CStr, &[u8]) -> Result<(), E>,
) -> Result<(), E> {
    let length = match fs::flistxattr(from, &mut scratch.names[..]) {
        Err(Errno::OPNOTSUPP) => return Ok(()),
        result => result?,
    };
    for name in names(&scratch.names[..length], scratch.foreign) {
        match fs::fgetxattr(from, name, &mut scratch.value[..]) {
            Err(Errno::NODATA | Errno::OPNOTSUPP) => {}
            length => show(name, &scratch.value[..length?])?,
        }
    }
    Ok(())
}

/// Copies all attributes of what cannot be opened: a link itself, a fifo, a device. Both have the same name.
pub(crate) fn copy_by_name(
    from: BorrowedFd<'_>,
    to: BorrowedFd<'_>,
    name: &OsStr,
    scratch: &mut Scratch,
) -> Result<(), Errno> {
    // There is no listxattrat(2) before 6.13; the directory's descriptor in /proc is the next best.
    let (from, to) = (below(from, name), below(to, name));
    let length = match fs::llistxattr(&from, &mut scratch.names[..]) {
        Err(Errno::OPNOTSUPP) => return Ok(()),
        result => result?,
    };
    for name in names(&scratch.names[..length], scratch.foreign) {
        let length = fs::lgetxattr(&from, name, &mut scratch.value[..])?;
        set(name, || {
            fs::lsetxattr(&to, name, &scratch.value[..length], XattrFlags::empty())
        })?;
        scratch.copied += (name.to_bytes().len() + length) as u64;
    }
    Ok(())
}

/// A filesystem's own attributes (`btrfs.compression`, `system.nfs4_acl`) mean nothing to another filesystem.
fn set(name: &CStr, act: impl FnOnce() -> Result<(), Errno>) -> Result<(), Errno> {
    let portable: [&[u8]; 4] = [b"user.", b"trusted.", b"security.", b"system.posix_acl_"];
    match act() {
        Err(Errno::OPNOTSUPP) if !portable.iter().any(|prefix| name.to_bytes().starts_with(prefix)) => Ok(()),
        result => result,
    }
}

fn names(list: &[u8], foreign: bool) -> impl Iterator<Item = &CStr> {
    list.split_inclusive(|byte| *byte == 0)
        .filter_map(|name| CStr::from_bytes_with_nul(name).ok())
        .filter(move |name| !foreign || is_harmless(name.to_bytes()))
}

fn below(directory: BorrowedFd<'_>, name: &OsStr) -> OsString {
    let mut path = OsString::from(format!("/proc/self/fd/{}/", directory.as_raw_fd()));
    path.push(name);
    path
}

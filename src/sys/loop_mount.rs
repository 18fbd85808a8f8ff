//! A filesystem in a file, mounted where nobody sees it: through a loop device, and attached nowhere.
//!
//! Whatever becomes of this process, nothing is left: the mount goes with its descriptor, and the device with the mount.
//! The filesystem is hostile. The kernel parses it, as it would after mount(8); what can be done about that is done here: no
//! set-user-ID, no devices, nothing of it can be run, no link of it is followed, and an error in it stops nothing else.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::io::{Errno, read};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen,
};

use super::raw::loop_device;

/// How often another may have been faster at the same loop device.
const TRIES: usize = 64;

/// The kinds of filesystems that are mounted, and no others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Filesystem {
    /// ext2, ext3 and ext4, which one driver reads.
    Ext4,
    Btrfs,
    Xfs,
    Squashfs,
    Erofs,
}

impl Filesystem {
    /// As the kernel calls it.
    #[must_use]
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Ext4 => "ext4",
            Self::Btrfs => "btrfs",
            Self::Xfs => "xfs",
            Self::Squashfs => "squashfs",
            Self::Erofs => "erofs",
        }
    }

    /// What is said to it besides: a key, and a value if it has one.
    fn options(self) -> &'static [(&'static str, Option<&'static str>)] {
        match self {
            // The image may say that the kernel is to panic.
            Self::Ext4 => &[("errors", Some("remount-ro"))],
            // The same image may be mounted already.
            Self::Xfs => &[("nouuid", None)],
            Self::Btrfs | Self::Squashfs | Self::Erofs => &[],
        }
    }
}

/// What may be done to the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    /// Nothing.
    Read,
    /// The kernel may put what its journal has in its place, before it is read.
    Replay,
    /// The filesystem may be written to.
    Write,
}

/// Why a filesystem could not be mounted.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LoopError {
    /// There is no loop device to be had.
    #[error("cannot use loop device '{}'", .path.display())]
    Device { path: PathBuf, source: io::Error },
    /// The kernel has no such filesystem.
    #[error("this kernel has no {}", .0.as_str())]
    NoFilesystem(Filesystem),
    /// What it has written last is still in its journal, and cannot be put in its place: the file is to be read only.
    #[error("its journal has to be replayed")]
    Dirty,
    /// The kernel does not take it.
    #[error("the kernel cannot read it as {}{said}", .filesystem.as_str())]
    Refused {
        filesystem: Filesystem,
        /// What the kernel says besides, from `: ` on.
        said: String,
        source: io::Error,
    },
}

/// Mounts `range` of `image`.
pub(crate) fn mount(
    image: &File,
    range: &Range<u64>,
    filesystem: Filesystem,
    access: Access,
) -> Result<OwnedFd, LoopError> {
    let refused = |errno: Errno| LoopError::Refused {
        filesystem,
        said: String::new(),
        source: errno.into(),
    };
    let context = match fsopen(filesystem.as_str(), FsOpenFlags::FSOPEN_CLOEXEC) {
        Err(Errno::NODEV) => return Err(LoopError::NoFilesystem(filesystem)),
        context => context.map_err(refused)?,
    };
    // Open until it is mounted: then the filesystem has it.
    let (_device, path) = attach(image, range, access != Access::Read)?;
    let read_only = access != Access::Write;
    let mounted = fsconfig_set_string(&context, "source", &path)
        .and_then(|()| {
            if read_only {
                fsconfig_set_flag(&context, "ro")
            } else {
                Ok(())
            }
        })
        .and_then(|()| {
            filesystem.options().iter().try_for_each(|(key, value)| match value {
                Some(value) => fsconfig_set_string(&context, *key, *value),
                None => fsconfig_set_flag(&context, *key),
            })
        })
        .and_then(|()| fsconfig_create(&context))
        .and_then(|()| {
            let mut nothing = MountAttrFlags::MOUNT_ATTR_NOSUID
                | MountAttrFlags::MOUNT_ATTR_NODEV
                | MountAttrFlags::MOUNT_ATTR_NOEXEC
                | MountAttrFlags::MOUNT_ATTR_NOATIME;
            nothing.set(MountAttrFlags::MOUNT_ATTR_RDONLY, read_only);
            fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, nothing)
        });
    match mounted {
        Err(Errno::ROFS) if access == Access::Read => Err(LoopError::Dirty),
        Err(errno) => Err(LoopError::Refused {
            filesystem,
            said: said(&context),
            source: errno.into(),
        }),
        Ok(mount) => Ok(mount),
    }
}

/// A loop device with a range of `image`.
fn attach(image: &File, range: &Range<u64>, writable: bool) -> Result<(OwnedFd, PathBuf), LoopError> {
    let failed = |path: &Path, source: io::Error| LoopError::Device {
        path: path.to_owned(),
        source,
    };
    let path = Path::new("/dev/loop-control");
    let flags = OFlags::RDWR | OFlags::CLOEXEC;
    let control = openat(CWD, path, flags, Mode::empty()).map_err(|errno| failed(path, errno.into()))?;
    let mut tries = 0;
    loop {
        let number = loop_device::next_free(control.as_fd()).map_err(|error| failed(path, error))?;
        let path = PathBuf::from(format!("/dev/loop{number}"));
        let flags = if writable { OFlags::RDWR } else { OFlags::RDONLY };
        let device =
            openat(CWD, &path, flags | OFlags::CLOEXEC, Mode::empty()).map_err(|errno| failed(&path, errno.into()))?;
        let size = range.end - range.start;
        match loop_device::configure(device.as_fd(), image.as_fd(), range.start, size, !writable) {
            Err(error) if error.raw_os_error() == Some(Errno::BUSY.raw_os_error()) && tries < TRIES => tries += 1,
            result => {
                return result
                    .map(|()| (device, path.clone()))
                    .map_err(|error| failed(&path, error));
            }
        }
    }
}

/// What the kernel has to say about a filesystem that it could not mount.
fn said(context: &OwnedFd) -> String {
    let mut line = [0; 256];
    let mut text = String::new();
    // A message each, until there is none.
    while let Ok(length) = read(context, &mut line)
        && length > 2
        && text.len() < line.len()
    {
        // It begins with how grave it is, and a space.
        text.push_str(": ");
        text.push_str(String::from_utf8_lossy(&line[2..length]).trim_end());
    }
    text
}

//! Disk images that stay what they are: the machine's image is a file, and systemd-nspawn mounts it at each start.
//!
//! systemd-nspawn finds the root of an image by its partition's type, see the Discoverable Partitions Specification: then all
//! of the image is kept, with what belongs to it. Of any other image only the root filesystem is, without a table around it,
//! which every version of systemd-nspawn takes, whatever was in the table.

use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;

use rustix::fs::{Mode, OFlags, openat, syncfs};

use super::DiskError;
use super::image::Image;
use super::root::{enter_top, find, is_root, not_mounted};
use crate::machine::{Cancel, Report};
use crate::sources::SourceError;
use crate::sys::files::{FileError, Root};
use crate::sys::loop_mount::{Access, Filesystem, mount};

/// Makes the file `target` of an image, which is not a qcow2 image.
pub(super) fn keep(
    image: &mut Image,
    partition: Option<u32>,
    target: &Path,
    report: &dyn Report,
    cancel: &Cancel,
) -> Result<(), SourceError> {
    let root = find(image, partition, cancel)?;
    let refused = |image: &Image, what: &str| DiskError::NotKept {
        image: image.name.clone(),
        what: format!("{} is {what}", root.place),
    };
    if matches!(root.kind, Filesystem::Squashfs | Filesystem::Erofs) {
        return Err(refused(image, &format!("{}, which cannot be written to", root.kind.as_str())).into());
    }
    // systemd-nspawn looks nowhere else.
    if !is_root(&enter_top(image, &root, cancel)?) {
        return Err(refused(image, "a filesystem without a root at its top").into());
    }
    let range = if root.is_typed { 0..image.size } else { root.range };
    report.phase("copying the image");
    Image::create(target, image)?.fill_from(image, &range, report, cancel)
}

/// The root filesystem of a machine's image, mounted where nobody sees it, to be written to.
#[derive(Debug)]
pub struct Kept {
    /// Its root directory.
    pub root: Root,
    mount: OwnedFd,
}

impl Kept {
    /// Of an image that [`super::fill`] has made.
    pub fn open(path: &Path, cancel: &Cancel) -> Result<Self, SourceError> {
        let mut image = Image::open(path)?;
        let root = find(&mut image, None, cancel)?;
        let mounted = mount(&image.file, &root.range, root.kind, Access::Write);
        let mount = mounted.map_err(|error| not_mounted(&image, &root, error))?;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = openat(&mount, ".", flags, Mode::empty());
        let fd = fd.map_err(|errno| SourceError::io("open", path, errno.into()))?;
        Ok(Self {
            root: Root::of(fd, path),
            mount,
        })
    }

    /// Writes what was changed to the image, and unmounts it.
    pub fn finish(self) -> Result<(), SourceError> {
        let path = self.root.path().to_owned();
        drop(self.root);
        let directory = openat(
            self.mount.as_fd(),
            ".",
            OFlags::RDONLY | OFlags::DIRECTORY,
            Mode::empty(),
        );
        directory
            .and_then(syncfs)
            .map_err(|errno| FileError::io("write to", &path)(errno).into())
    }
}

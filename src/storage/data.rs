//! The contents of one file, copied or shared.

use std::fs;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{self as kernel, SeekFrom};
use rustix::io::{Errno, pread, pwrite};

use super::StorageError;
use super::room::Room;
use crate::machine::{Cancel, Cancelled};

/// The size that the buffer of [`copy`] should have, in bytes.
pub(crate) const BUFFER: usize = 256 << 10;

/// Bytes that the kernel copies at once, so that a cancelled copy ends soon.
const STEP: u64 = 16 << 20;

/// How contents get into a copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Data {
    /// Byte by byte.
    Copy,
    /// By sharing extents where the filesystem can, else byte by byte.
    Share,
}

/// Two files, the second one empty.
pub(crate) struct File<'a> {
    pub(crate) source: BorrowedFd<'a>,
    pub(crate) target: BorrowedFd<'a>,
    /// Of the source, in bytes.
    pub(crate) size: u64,
    /// Where bytes are counted as they are copied.
    pub(crate) copied: Option<&'a AtomicU64>,
    /// What its contents may take, holes not counted.
    pub(crate) room: Option<&'a Room>,
}

impl File<'_> {
    fn count(&self, bytes: u64) {
        if let Some(copied) = self.copied {
            copied.fetch_add(bytes, Ordering::Relaxed);
        }
    }
}

/// Copies the contents; holes stay holes if it is `sparse`. `ECANCELED` if the caller asked to stop, `ENOSPC` if there is no
/// room for all of it: then nothing of what there is none for is written.
pub(crate) fn copy(file: &File<'_>, sparse: bool, how: Data, buffer: &mut [u8], cancel: &Cancel) -> Result<(), Errno> {
    if file.size == 0 {
        return Ok(());
    }
    if how == Data::Share {
        match kernel::ioctl_ficlone(file.target, file.source) {
            // Another filesystem, or a file that cannot be shared: swap, no copy-on-write, too many owners.
            Err(Errno::XDEV | Errno::OPNOTSUPP | Errno::INVAL | Errno::NOTTY | Errno::TXTBSY | Errno::MLINK) => {}
            result => {
                file.count(file.size);
                return result;
            }
        }
    }
    if !sparse {
        return range(file, 0, file.size, buffer, cancel);
    }
    let mut at = 0;
    while at < file.size {
        let start = match kernel::seek(file.source, SeekFrom::Data(at)) {
            // Only a hole is left.
            Err(Errno::NXIO) => break,
            result => result?,
        };
        let end = match kernel::seek(file.source, SeekFrom::Hole(start)) {
            // It has become shorter.
            Err(Errno::NXIO) => break,
            end => end?,
        };
        range(file, start, end, buffer, cancel)?;
        at = end;
    }
    kernel::ftruncate(file.target, file.size)
}

/// Makes `target`, which must not exist, a copy of a disk image that can be written, with the holes that it has; its contents
/// are shared where the filesystem can. Blocks.
pub fn copy_disk_image(source: &Path, target: &Path, cancel: &Cancel) -> Result<(), StorageError> {
    let from = fs::File::open(source).map_err(StorageError::io("open", source))?;
    let found = from.metadata().map_err(StorageError::io("look at", source))?;
    let mut options = fs::OpenOptions::new();
    let to = options.write(true).create_new(true).mode(0o600).open(target);
    let to = to.map_err(StorageError::io("create", target))?;
    let file = File {
        source: from.as_fd(),
        target: to.as_fd(),
        size: found.len(),
        copied: None,
        room: None,
    };
    match copy(&file, true, Data::Share, &mut vec![0; BUFFER], cancel) {
        Err(Errno::CANCELED) => return Err(StorageError::Cancelled(Cancelled)),
        result => result.map_err(StorageError::io("copy", source))?,
    }
    // A read-only image is a fine original, too.
    let mode = found.permissions().mode() & 0o777 | 0o200;
    to.set_permissions(fs::Permissions::from_mode(mode))
        .map_err(StorageError::io("set the mode of", target))
}

fn range(file: &File<'_>, start: u64, end: u64, buffer: &mut [u8], cancel: &Cancel) -> Result<(), Errno> {
    if let Some(room) = file.room {
        room.contents(end.saturating_sub(start)).map_err(|_| Errno::NOSPC)?;
    }
    let mut at = start;
    // A small file is read in one go; the kernel's copy costs more to set up.
    if end - start > BUFFER as u64 {
        while at < end {
            let (mut from, mut to) = (at, at);
            let step = usize::try_from((end - at).min(STEP)).unwrap_or(usize::MAX);
            match kernel::copy_file_range(file.source, Some(&mut from), file.target, Some(&mut to), step) {
                // Not between these filesystems, or the file became shorter: the way below finds out.
                Ok(0) | Err(Errno::XDEV | Errno::OPNOTSUPP | Errno::INVAL | Errno::NOSYS | Errno::IO) => break,
                Err(Errno::INTR) => {}
                result => {
                    let copied = result? as u64;
                    file.count(copied);
                    at += copied;
                }
            }
            if cancel.is_cancelled() {
                return Err(Errno::CANCELED);
            }
        }
    }
    while at < end {
        let wanted = usize::try_from(end - at).unwrap_or(usize::MAX).min(buffer.len());
        let read = match pread(file.source, &mut buffer[..wanted], at) {
            Err(Errno::INTR) => continue,
            result => result?,
        };
        if read == 0 {
            break;
        }
        let mut data = &buffer[..read];
        while !data.is_empty() {
            match pwrite(file.target, data, at) {
                Err(Errno::INTR) => {}
                result => {
                    let written = result?;
                    file.count(written as u64);
                    at += written as u64;
                    data = &data[written..];
                }
            }
        }
        if cancel.is_cancelled() {
            return Err(Errno::CANCELED);
        }
    }
    Ok(())
}

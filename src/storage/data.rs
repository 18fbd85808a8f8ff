//! The contents of one file, copied or shared.

use std::os::fd::BorrowedFd;

use rustix::fs::{self, SeekFrom};
use rustix::io::{Errno, pread, pwrite};

use crate::machine::Cancel;

/// The size that the buffer of [`copy`] should have, in bytes.
pub(super) const BUFFER: usize = 256 << 10;

/// Bytes that the kernel copies at once, so that a cancelled copy ends soon.
const STEP: u64 = 16 << 20;

/// How contents get into a copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Data {
    /// Byte by byte.
    Copy,
    /// By sharing extents where the filesystem can, else byte by byte.
    Share,
}

/// Two files, the second one empty.
pub(super) struct File<'a> {
    pub(super) source: BorrowedFd<'a>,
    pub(super) target: BorrowedFd<'a>,
    /// Of the source, in bytes.
    pub(super) size: u64,
}

/// Copies the contents; holes stay holes if it is `sparse`. `ECANCELED` if the caller asked to stop.
pub(super) fn copy(file: &File<'_>, sparse: bool, how: Data, buffer: &mut [u8], cancel: &Cancel) -> Result<(), Errno> {
    if file.size == 0 {
        return Ok(());
    }
    if how == Data::Share {
        match fs::ioctl_ficlone(file.target, file.source) {
            // Another filesystem, or a file that cannot be shared: swap, no copy-on-write, too many owners.
            Err(Errno::XDEV | Errno::OPNOTSUPP | Errno::INVAL | Errno::NOTTY | Errno::TXTBSY | Errno::MLINK) => {}
            result => return result,
        }
    }
    if !sparse {
        return range(file, 0, file.size, buffer, cancel);
    }
    let mut at = 0;
    while at < file.size {
        let start = match fs::seek(file.source, SeekFrom::Data(at)) {
            // Only a hole is left.
            Err(Errno::NXIO) => break,
            result => result?,
        };
        let end = fs::seek(file.source, SeekFrom::Hole(start))?;
        range(file, start, end, buffer, cancel)?;
        at = end;
    }
    fs::ftruncate(file.target, file.size)
}

fn range(file: &File<'_>, start: u64, end: u64, buffer: &mut [u8], cancel: &Cancel) -> Result<(), Errno> {
    let mut at = start;
    // A small file is read in one go; the kernel's copy costs more to set up.
    if end - start > BUFFER as u64 {
        while at < end {
            let (mut from, mut to) = (at, at);
            let step = usize::try_from((end - at).min(STEP)).unwrap_or(usize::MAX);
            match fs::copy_file_range(file.source, Some(&mut from), file.target, Some(&mut to), step) {
                // Not between these filesystems, or the file became shorter: the way below finds out.
                Ok(0) | Err(Errno::XDEV | Errno::OPNOTSUPP | Errno::INVAL | Errno::NOSYS | Errno::IO) => break,
                Err(Errno::INTR) => {}
                result => at += result? as u64,
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

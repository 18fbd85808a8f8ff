//! Filesystems that share extents between files (XFS, bcachefs, ZFS): every file is made anew, its contents are not.

use std::fs::File;
use std::io::Write as _;
use std::path::Path;

use rustix::fs::ioctl_ficlone;

use super::data::Data;
use super::{Storage, StorageError, copy_to_directory, create_directory};
use crate::machine::{Cancel, Report};
use crate::sys::files::remove_tree;

/// Copies that share their contents with the source until one side changes them.
#[derive(Debug)]
pub(super) struct Reflink;

impl Storage for Reflink {
    fn name(&self) -> &'static str {
        "reflink"
    }

    fn create(&self, path: &Path) -> Result<(), StorageError> {
        create_directory(path)
    }

    fn copy(&self, source: &Path, target: &Path, report: &dyn Report, cancel: &Cancel) -> Result<(), StorageError> {
        copy_to_directory(source, target, Data::Share, report, cancel)
    }

    fn shares(&self) -> bool {
        true
    }

    fn remove(&self, path: &Path) -> Result<(), StorageError> {
        Ok(remove_tree(path)?)
    }
}

/// Whether files in `directory` can share contents: tried on two files that never have a name, or only for a moment.
pub(super) fn works_in(directory: &Path) -> Result<bool, StorageError> {
    let failed = || StorageError::io::<std::io::Error>("make a temporary file in", directory);
    let make = || -> Result<File, StorageError> { tempfile::tempfile_in(directory).map_err(|e| failed()(e)) };
    let (mut source, target) = (make()?, make()?);
    source.write_all(&[1; 4096]).map_err(|e| failed()(e))?;
    Ok(ioctl_ficlone(&target, &source).is_ok())
}

//! The backend that works everywhere: a full copy.

use std::path::Path;

use super::data::Data;
use super::{Storage, StorageError, copy_to_directory, create_directory};
use crate::machine::{Cancel, Report};
use crate::sys::files::remove_tree;

/// Full copies on any filesystem.
#[derive(Debug)]
pub(super) struct Copy;

impl Storage for Copy {
    fn name(&self) -> &'static str {
        "copy"
    }

    fn create(&self, path: &Path) -> Result<(), StorageError> {
        create_directory(path)
    }

    fn copy(&self, source: &Path, target: &Path, report: &dyn Report, cancel: &Cancel) -> Result<(), StorageError> {
        copy_to_directory(source, target, Data::Copy, report, cancel)
    }

    fn shares(&self) -> bool {
        false
    }

    fn remove(&self, path: &Path) -> Result<(), StorageError> {
        Ok(remove_tree(path)?)
    }
}

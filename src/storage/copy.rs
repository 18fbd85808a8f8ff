//! The backend that works everywhere: a full copy.

use std::os::unix::fs::DirBuilderExt as _;
use std::path::Path;

use super::{Storage, StorageError};
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
        std::fs::DirBuilder::new()
            .mode(0o755)
            .create(path)
            .map_err(StorageError::io("create directory", path))
    }

    fn copy(&self, source: &Path, target: &Path, report: &dyn Report, cancel: &Cancel) -> Result<(), StorageError> {
        if target.symlink_metadata().is_ok() {
            return Err(StorageError::Exists {
                path: target.to_path_buf(),
            });
        }
        report.phase("copying");
        plain(source, target, cancel)
    }

    fn remove(&self, path: &Path) -> Result<(), StorageError> {
        Ok(remove_tree(path)?)
    }
}

fn plain(source: &Path, target: &Path, cancel: &Cancel) -> Result<(), StorageError> {
    cancel.check()?;
    let found = source.symlink_metadata().map_err(StorageError::io("copy", source))?;
    if found.is_dir() {
        std::fs::create_dir(target).map_err(StorageError::io("create directory", target))?;
        for entry in std::fs::read_dir(source).map_err(StorageError::io("list", source))? {
            let name = entry.map_err(StorageError::io("list", source))?.file_name();
            plain(&source.join(&name), &target.join(&name), cancel)?;
        }
    } else if found.is_symlink() {
        let text = std::fs::read_link(source).map_err(StorageError::io("copy", source))?;
        std::os::unix::fs::symlink(text, target).map_err(StorageError::io("copy", source))?;
    } else if found.is_file() {
        std::fs::copy(source, target).map_err(StorageError::io("copy", source))?;
    }
    Ok(())
}

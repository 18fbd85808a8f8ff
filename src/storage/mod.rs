//! Copies of a root filesystem: one trait, one backend per kind of filesystem.
//!
//! Imports `sys` and `machine`.

use std::io;
use std::path::{Path, PathBuf};

use crate::machine::{Cancel, Cancelled, Report};
use crate::sys::files::{FileError, shown};

mod copy;

/// How roots are made, copied and removed on one filesystem.
pub trait Storage: Send + Sync + std::fmt::Debug {
    /// `btrfs`, `reflink` or `copy`, as shown to users.
    fn name(&self) -> &'static str;

    /// Makes an empty root for an image (on btrfs a subvolume), mode 0755, owned by root.
    fn create(&self, path: &Path) -> Result<(), StorageError>;

    /// Makes `target`, which must not exist, a full and independent copy of `source`. Removes what it made if it fails.
    fn copy(&self, source: &Path, target: &Path, report: &dyn Report, cancel: &Cancel) -> Result<(), StorageError>;

    /// Removes a root made by either of the above.
    fn remove(&self, path: &Path) -> Result<(), StorageError>;
}

/// Why a root could not be made, copied or removed.
#[derive(Debug, thiserror::Error)]
pub enum StorageError {
    /// The kernel refused.
    #[error("cannot {action} '{}'", shown(path))]
    Io {
        /// What was attempted, as a verb.
        action: &'static str,
        /// The file or directory it was attempted on.
        path: PathBuf,
        /// The kernel's reason.
        source: io::Error,
    },
    /// The target of a copy or of a new root is there already.
    #[error("'{}' exists already", shown(path))]
    Exists {
        /// The target.
        path: PathBuf,
    },
    /// A file could not be handled.
    #[error(transparent)]
    File(#[from] FileError),
    /// The caller asked to stop.
    #[error(transparent)]
    Cancelled(#[from] Cancelled),
}

impl StorageError {
    /// Builds [`StorageError::Io`]; made for `map_err`.
    pub(crate) fn io<E: Into<io::Error>>(action: &'static str, path: &Path) -> impl FnOnce(E) -> Self + use<E> {
        let path = path.to_path_buf();
        move |source| Self::Io {
            action,
            path,
            source: source.into(),
        }
    }
}

/// The best backend for the filesystem that `directory` is on.
pub fn for_directory(_directory: &Path) -> Result<Box<dyn Storage>, StorageError> {
    Ok(Box::new(copy::Copy))
}

//! Copies of a root filesystem: one trait, one backend per kind of filesystem.
//!
//! Imports `sys`, `machine` and `nspawn`.

use std::fs::{DirBuilder, Permissions, set_permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use crate::machine::text::bytes;
use crate::machine::{Cancel, Cancelled, Report};
use crate::sys::files::{FileError, remove_tree, shown};
use data::Data;
pub use data::copy_disk_image;
use room::Room;

mod attributes;
mod btrfs;
mod copy;
pub(crate) mod data;
pub mod layers;
pub mod overlay;
mod reflink;
pub(crate) mod room;
#[cfg(test)]
mod tests;
mod tree;

/// How roots are made, copied and removed on one filesystem.
pub trait Storage: Send + Sync + std::fmt::Debug {
    /// `btrfs`, `reflink` or `copy`, as shown to users.
    fn name(&self) -> &'static str;

    /// Makes an empty root for an image (on btrfs a subvolume), mode 0755, owned by root.
    fn create(&self, path: &Path) -> Result<(), StorageError>;

    /// Makes `target`, which must not exist, a full and independent copy of `source`. Removes what it made if it fails.
    fn copy(&self, source: &Path, target: &Path, report: &dyn Report, cancel: &Cancel) -> Result<(), StorageError>;

    /// Whether a copy shares its contents with the source, and is made at once.
    fn shares(&self) -> bool;

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
    /// The target of a copy lies inside of what is copied.
    #[error("cannot copy a machine into itself, to '{}'", shown(path))]
    IntoItself {
        /// The target.
        path: PathBuf,
    },
    /// What is copied takes more of the disk than it may.
    #[error("'{}' takes more than {}", shown(path), bytes(*max))]
    TooLarge {
        /// What is copied.
        path: PathBuf,
        /// What it may take, in bytes.
        max: u64,
    },
    /// A file could not be handled.
    #[error(transparent)]
    File(#[from] FileError),
    /// The caller asked to stop.
    #[error(transparent)]
    Cancelled(#[from] Cancelled),
}

impl StorageError {
    /// The path that it is about.
    pub(crate) fn path_mut(&mut self) -> Option<&mut PathBuf> {
        match self {
            Self::Io { path, .. } | Self::Exists { path } | Self::IntoItself { path } | Self::TooLarge { path, .. } => {
                Some(path)
            }
            Self::File(error) => error.path_mut(),
            Self::Cancelled(_) => None,
        }
    }

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

/// The best backend for the filesystem that `directory` is on, which has to be writable.
pub fn for_directory(directory: &Path) -> Result<Box<dyn Storage>, StorageError> {
    // What Path::parent() of a bare name is.
    let directory = if directory.as_os_str().is_empty() {
        Path::new(".")
    } else {
        directory
    };
    if btrfs::works_in(directory)? {
        return Ok(Box::new(btrfs::Btrfs));
    }
    if reflink::works_in(directory)? {
        return Ok(Box::new(reflink::Reflink));
    }
    Ok(Box::new(copy::Copy))
}

/// Makes an empty directory of mode 0755, whatever the umask is.
fn create_directory(path: &Path) -> Result<(), StorageError> {
    let failed = || StorageError::io::<io::Error>("create directory", path);
    match DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            return Err(StorageError::Exists {
                path: path.to_path_buf(),
            });
        }
        result => result.map_err(|e| failed()(e))?,
    }
    set_permissions(path, Permissions::from_mode(0o755)).map_err(|e| failed()(e))
}

/// Makes `target`, which must not exist, a root with what is in `source`, a tree from elsewhere whose owner may mean harm: no
/// device of it is made, and of the extended attributes only those that mean nothing to this host. It takes no more than
/// `max_size` bytes of the disk, or than almost all that is free. Blocks.
pub fn copy_foreign(
    source: &Path,
    target: &Path,
    max_size: Option<u64>,
    report: &dyn Report,
    cancel: &Cancel,
) -> Result<(), StorageError> {
    let parent = target.parent().unwrap_or(Path::new("."));
    for_directory(parent)?.create(target)?;
    let room = Room::new(max_size, target).map_err(StorageError::io("open", target))?;
    tree::fill_foreign(source, target, room, report, cancel)
}

/// A copy file by file into a new directory, which is removed if that fails.
fn copy_to_directory(
    source: &Path,
    target: &Path,
    how: Data,
    report: &dyn Report,
    cancel: &Cancel,
) -> Result<(), StorageError> {
    create_directory(target)?;
    report.phase("copying files");
    tree::fill(source, target, how, report, cancel).inspect_err(|_| {
        // The first error is the one to be told.
        let _ = remove_tree(target);
    })
}

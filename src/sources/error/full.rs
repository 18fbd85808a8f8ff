//! A disk that is full is told as such, wherever on the way it was met.

use std::io;

use super::SourceError;
use crate::sources::tarball::TarballError;
use crate::storage::StorageError;
use crate::sys::files::FileError;

impl From<TarballError> for SourceError {
    fn from(error: TarballError) -> Self {
        match error {
            TarballError::Cancelled(cancelled) => cancelled.into(),
            TarballError::Io { path, source, .. } if is_full(&source) => Self::DiskFull { path },
            other => Self::Tarball(other),
        }
    }
}

impl From<FileError> for SourceError {
    fn from(error: FileError) -> Self {
        match error {
            FileError::Cancelled(cancelled) => cancelled.into(),
            FileError::Io { path, source, .. } if is_full(&source) => Self::DiskFull { path },
            other => Self::File(other),
        }
    }
}

impl From<StorageError> for SourceError {
    fn from(error: StorageError) -> Self {
        match error {
            StorageError::Cancelled(cancelled) => cancelled.into(),
            StorageError::File(error) => error.into(),
            StorageError::Io { path, source, .. } if is_full(&source) => Self::DiskFull { path },
            other => Self::Storage(other),
        }
    }
}

pub(crate) fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

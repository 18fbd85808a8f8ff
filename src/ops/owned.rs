//! Files that machinist writes for a machine, told from those an administrator wrote or changed.
//!
//! The mark is an extended attribute with the hash of what was written. An editor replaces the file, or changes its
//! bytes: either way the mark no longer fits, and the file is the administrator's. Where the filesystem has no
//! attributes every file counts as the administrator's, which is the careful side.

use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::Path;

use rustix::fs::{XattrFlags, getxattr, setxattr};
use sha2::{Digest as _, Sha256};

use super::OpError;
use crate::sys::files::{Attributes, write_atomic_as};

/// Has the SHA-256 of the file's bytes, as bytes.
const MARK: &str = "user.machinist.sha256";

/// Writes a file and marks it as ours.
pub(super) fn write(path: &Path, bytes: &[u8]) -> Result<(), OpError> {
    write_as(path, bytes, Attributes::own(0o644))
}

/// The same, and a new file gets these attributes.
pub(super) fn write_as(path: &Path, bytes: &[u8], attributes: Attributes) -> Result<(), OpError> {
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory).map_err(OpError::path("create", directory))?;
    }
    write_atomic_as(path, bytes, attributes)?;
    mark(path, bytes);
    Ok(())
}

/// The same for what only root may see.
pub(super) fn write_private(path: &Path, bytes: &[u8]) -> Result<(), OpError> {
    if let Some(directory) = path.parent() {
        let private = fs::DirBuilder::new().recursive(true).mode(0o700).create(directory);
        private.map_err(OpError::path("create", directory))?;
    }
    write_atomic_as(path, bytes, Attributes::own(0o600))?;
    mark(path, bytes);
    Ok(())
}

/// Marks a file with these bytes as ours: systemd wrote it because we told it to.
pub(super) fn mark(path: &Path, bytes: &[u8]) {
    // Without the mark `remove` keeps the file in the trash: no reason to fail.
    let _ = setxattr(path, MARK, &Sha256::digest(bytes), XattrFlags::empty());
}

/// Removes a file that [`write`] has just written, if it is still as it was written.
pub(super) fn take_back(path: &Path, bytes: &[u8]) -> Result<(), OpError> {
    match fs::read(path) {
        Ok(found) if !bytes.is_empty() && found == bytes => {
            fs::remove_file(path).map_err(OpError::path("remove", path))
        }
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(OpError::path("read", path)(error)),
        _ => Ok(()),
    }
}

/// Whether the file is as machinist wrote it.
pub(super) fn is_ours(path: &Path) -> bool {
    let mut mark = [0_u8; 32];
    match (getxattr(path, MARK, &mut mark), fs::read(path)) {
        (Ok(32), Ok(bytes)) => Sha256::digest(&bytes).as_slice() == mark,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_edit_makes_it_the_administrators() {
        // Not in /tmp: a tmpfs of an older kernel has no user attributes.
        let dir = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let file = dir.path().join("web.nspawn");
        write(&file, b"[Exec]\n").unwrap();
        assert!(is_ours(&file));
        fs::write(&file, b"[Exec]\n# mine\n").unwrap();
        assert!(!is_ours(&file));
        take_back(&file, b"[Exec]\n").unwrap();
        assert!(file.exists());
    }
}

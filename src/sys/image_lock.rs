//! The locks on an image that systemd-nspawn, machined and importd hold while they use it.
//!
//! Locks on two files: one under `/run/systemd/nspawn/locks`, named as the image's
//! inode is, which is the same whatever name leads to it; and `.#NAME.lck` beside the image, for hosts that share it.

use std::fs::{self, DirBuilder};
use std::os::unix::fs::{DirBuilderExt as _, FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use nix::libc;

use super::files::{FileError, shown};
use super::lock_file::LockFile;
pub use super::lock_file::Sharing;

/// Why an image could not be locked.
#[derive(Debug, thiserror::Error)]
pub enum ImageLockError {
    /// A container runs on it, or somebody copies it.
    #[error("image '{}' is in use by {by}", shown(path))]
    InUse {
        /// The image.
        path: PathBuf,
        /// Who has the lock: "systemd-nspawn (PID 126)".
        by: String,
    },
    /// A file could not be handled.
    #[error(transparent)]
    File(#[from] FileError),
}

/// An image that nobody else uses, or changes, as long as this is held.
#[derive(Debug)]
pub struct ImageLock(Vec<LockFile>);

impl ImageLock {
    /// Locks an image, without waiting. `directory` is where the locks by inode are.
    ///
    /// # Errors
    /// [`ImageLockError::InUse`] if it is locked already; a shared lock suffers other shared ones.
    pub fn take(image: &Path, directory: &Path, sharing: Sharing) -> Result<Self, ImageLockError> {
        let found = fs::metadata(image).map_err(FileError::io("look at", image))?;
        let by_inode = by_inode(&found);
        let created = DirBuilder::new().recursive(true).mode(0o700).create(directory);
        created.map_err(FileError::io("create directory", directory))?;
        let mut lock = Self(Vec::new());
        lock.add(image, &directory.join(by_inode), sharing)?;
        // systemd-nspawn follows an image that is a link before it locks.
        let real = image.canonicalize().map_err(FileError::io("look at", image))?;
        if let Some(name) = real.file_name().filter(|_| !found.file_type().is_block_device()) {
            let name = format!(".#{}.lck", name.to_string_lossy());
            lock.add(image, &real.with_file_name(name), sharing)?;
        }
        Ok(lock)
    }

    /// Hands it on to the program that this process becomes by execve(2).
    pub fn keep_over_exec(self) -> Result<(), FileError> {
        self.0.into_iter().try_for_each(LockFile::keep_over_exec)
    }

    fn add(&mut self, image: &Path, path: &Path, sharing: Sharing) -> Result<(), ImageLockError> {
        match LockFile::take(path, sharing) {
            Ok(Some(lock)) => self.0.push(lock),
            Ok(None) => {
                let by = holder(path).unwrap_or_else(|| "another process".to_owned());
                let path = image.to_owned();
                return Err(ImageLockError::InUse { path, by });
            }
            // What a link leads to may be read-only: then nobody else can lock it there either.
            Err(error) if error.raw_os_error() == Some(libc::EROFS) => {}
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }
}

/// What the lock of an image is called.
fn by_inode(found: &fs::Metadata) -> String {
    if found.file_type().is_block_device() {
        let device = found.rdev();
        format!("block-{}:{}", rustix::fs::major(device), rustix::fs::minor(device))
    } else {
        format!("inode-{}:{}", found.dev(), found.ino())
    }
}

/// Who uses an image, "systemd-nspawn (PID 126)", if that can be seen. `directory` is where the locks by inode are.
#[must_use]
pub fn user_of(image: &Path, directory: &Path) -> Option<String> {
    holder(&directory.join(by_inode(&fs::metadata(image).ok()?)))
}

/// Who has a lock file open: such a lock does not say itself whose it is.
fn holder(lock: &Path) -> Option<String> {
    for process in fs::read_dir("/proc").ok()?.flatten() {
        let Some(pid) = process.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        let mut files = fs::read_dir(process.path().join("fd")).into_iter().flatten().flatten();
        if files.any(|file| fs::read_link(file.path()).is_ok_and(|path| path == lock)) {
            let name = fs::read_to_string(process.path().join("comm")).ok()?;
            return Some(format!("{} (PID {pid})", name.trim_end()));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_at_a_time_by_any_name() {
        let root = tempfile::tempdir().unwrap();
        let (image, link, locks) = (
            root.path().join("web"),
            root.path().join("link"),
            root.path().join("locks"),
        );
        fs::create_dir(&image).unwrap();
        std::os::unix::fs::symlink(&image, &link).unwrap();
        let held = ImageLock::take(&image, &locks, Sharing::Exclusive).unwrap();
        assert!(root.path().join(".#web.lck").exists());
        let by = format!("(PID {})", std::process::id());
        for path in [&image, &link] {
            let error = ImageLock::take(path, &locks, Sharing::Shared).unwrap_err().to_string();
            assert!(
                error.starts_with(&format!("image '{}' is in use by ", path.display())),
                "{error}"
            );
            assert!(error.ends_with(&by), "{error}");
        }
        drop(held);
        assert!(!root.path().join(".#web.lck").exists());
        ImageLock::take(&link, &locks, Sharing::Exclusive).unwrap();
    }

    #[test]
    fn several_share_it_and_the_last_removes_the_file() {
        let root = tempfile::tempdir().unwrap();
        let (image, locks) = (root.path().join("web"), root.path().join("locks"));
        fs::create_dir(&image).unwrap();
        let first = ImageLock::take(&image, &locks, Sharing::Shared).unwrap();
        let second = ImageLock::take(&image, &locks, Sharing::Shared).unwrap();
        ImageLock::take(&image, &locks, Sharing::Exclusive).unwrap_err();
        drop(first);
        ImageLock::take(&image, &locks, Sharing::Exclusive).unwrap_err();
        drop(second);
        assert!(!root.path().join(".#web.lck").exists());
        assert_eq!(fs::read_dir(&locks).unwrap().count(), 0);
        ImageLock::take(&image, &locks, Sharing::Exclusive).unwrap();
    }
}

//! The locks on an image that systemd-nspawn, machined and importd hold while they use it.
//!
//! Open file description locks, see fcntl(2), on two files: one under `/run/systemd/nspawn/locks`, named as the image's
//! inode is, which is the same whatever name leads to it; and `.#NAME.lck` beside the image, for hosts that share it.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;

use super::files::{FileError, shown};

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

/// An image that nobody else uses as long as this is held.
#[derive(Debug)]
pub struct ImageLock(Vec<(PathBuf, File)>);

impl ImageLock {
    /// Locks an image for itself, without waiting. `directory` is where the locks by inode are.
    ///
    /// # Errors
    /// [`ImageLockError::InUse`] if it is locked already, shared or not.
    pub fn take(image: &Path, directory: &Path) -> Result<Self, ImageLockError> {
        let found = fs::metadata(image).map_err(FileError::io("look at", image))?;
        let by_inode = if found.file_type().is_block_device() {
            let device = found.rdev();
            format!("block-{}:{}", rustix::fs::major(device), rustix::fs::minor(device))
        } else {
            format!("inode-{}:{}", found.dev(), found.ino())
        };
        let created = DirBuilder::new().recursive(true).mode(0o700).create(directory);
        created.map_err(FileError::io("create directory", directory))?;
        let mut lock = Self(Vec::new());
        lock.add(image, directory.join(by_inode))?;
        // systemd-nspawn follows an image that is a link before it locks.
        let real = image.canonicalize().map_err(FileError::io("look at", image))?;
        if let Some(name) = real.file_name().filter(|_| !found.file_type().is_block_device()) {
            let name = format!(".#{}.lck", name.to_string_lossy());
            lock.add(image, real.with_file_name(name))?;
        }
        Ok(lock)
    }

    fn add(&mut self, image: &Path, path: PathBuf) -> Result<(), ImageLockError> {
        loop {
            let file = OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .mode(0o600)
                .custom_flags(libc::O_NOFOLLOW | libc::O_NOCTTY)
                .open(&path);
            let file = match file {
                // What a link leads to may be read-only: then nobody else can lock it there either.
                Err(error) if error.kind() == io::ErrorKind::ReadOnlyFilesystem => return Ok(()),
                result => result.map_err(FileError::io("create", &path))?,
            };
            match try_lock(&file) {
                Ok(()) => {}
                Err(Errno::EAGAIN | Errno::EACCES) => {
                    drop(file);
                    let by = holder(&path).unwrap_or_else(|| "another process".to_owned());
                    let path = image.to_owned();
                    return Err(ImageLockError::InUse { path, by });
                }
                Err(errno) => return Err(FileError::io("lock", &path)(errno).into()),
            }
            // Whoever had it may have removed the file meanwhile, and then the next one locks another.
            let links = file.metadata().map_err(FileError::io("look at", &path))?.nlink();
            if links > 0 {
                self.0.push((path, file));
                return Ok(());
            }
        }
    }
}

impl Drop for ImageLock {
    fn drop(&mut self) {
        for (path, _locked) in &self.0 {
            let _ = fs::remove_file(path);
        }
    }
}

fn try_lock(file: &File) -> Result<(), Errno> {
    let whole = libc::flock {
        l_type: libc::c_short::try_from(libc::F_WRLCK).unwrap_or_default(),
        l_whence: libc::c_short::try_from(libc::SEEK_SET).unwrap_or_default(),
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    fcntl(file, FcntlArg::F_OFD_SETLK(&whole)).map(drop)
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
        let held = ImageLock::take(&image, &locks).unwrap();
        assert!(root.path().join(".#web.lck").exists());
        let by = format!("(PID {})", std::process::id());
        for path in [&image, &link] {
            let error = ImageLock::take(path, &locks).unwrap_err().to_string();
            assert!(
                error.starts_with(&format!("image '{}' is in use by ", path.display())),
                "{error}"
            );
            assert!(error.ends_with(&by), "{error}");
        }
        drop(held);
        assert!(!root.path().join(".#web.lck").exists());
        ImageLock::take(&link, &locks).unwrap();
    }
}

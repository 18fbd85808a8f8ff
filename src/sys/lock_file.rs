//! Lock files as systemd makes them: open file description locks, see fcntl(2), on files that go with the last lock.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;

use super::files::FileError;

/// Who else may have a lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sharing {
    /// Nobody.
    Exclusive,
    /// Others that share it.
    Shared,
}

/// A locked file. It is removed when nobody has it any more.
#[derive(Debug)]
pub struct LockFile {
    path: PathBuf,
    file: File,
}

impl LockFile {
    /// Makes and locks a file, without waiting; `None` if another has it.
    pub fn take(path: &Path, sharing: Sharing) -> Result<Option<Self>, FileError> {
        loop {
            let file = OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .mode(0o600)
                .custom_flags(libc::O_NOFOLLOW | libc::O_NOCTTY)
                .open(path)
                .map_err(FileError::io("create", path))?;
            match lock(&file, sharing) {
                Ok(()) => {}
                Err(Errno::EAGAIN | Errno::EACCES) => return Ok(None),
                Err(errno) => return Err(FileError::io("lock", path)(errno)),
            }
            // Whoever had it may have removed the file meanwhile, and then the next one locks another.
            if file.metadata().map_err(FileError::io("look at", path))?.nlink() > 0 {
                let path = path.to_owned();
                return Ok(Some(Self { path, file }));
            }
        }
    }

    /// Hands the lock on to the program that this process becomes by execve(2).
    pub fn keep_over_exec(self) -> Result<(), FileError> {
        let kept = fcntl(&self.file, FcntlArg::F_SETFD(nix::fcntl::FdFlag::empty()));
        kept.map_err(FileError::io("keep the lock", &self.path))?;
        std::mem::forget(self);
        Ok(())
    }
}

impl Drop for LockFile {
    fn drop(&mut self) {
        // Of those that share it the last one removes it.
        if lock(&self.file, Sharing::Exclusive).is_ok() {
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn lock(file: &File, sharing: Sharing) -> Result<(), Errno> {
    let kind = match sharing {
        Sharing::Exclusive => libc::F_WRLCK,
        Sharing::Shared => libc::F_RDLCK,
    };
    let whole = libc::flock {
        l_type: libc::c_short::try_from(kind).unwrap_or_default(),
        l_whence: libc::c_short::try_from(libc::SEEK_SET).unwrap_or_default(),
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    fcntl(file, FcntlArg::F_OFD_SETLK(&whole)).map(drop)
}

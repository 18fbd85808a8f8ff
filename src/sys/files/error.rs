//! What can go wrong with a file, and how its name is shown.

use std::ffi::OsStr;
use std::fmt::{self, Write as _};
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::FileType;

use crate::machine::Cancelled;

/// Why a file could not be read, written or removed.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The kernel refused.
    #[error("cannot {action} '{}'", shown(path))]
    Io {
        /// What was attempted, as a verb: "read", "create directory".
        action: &'static str,
        /// The path as the user knows it, with the root in front.
        path: PathBuf,
        /// The kernel's reason.
        source: io::Error,
    },
    /// A directory, fifo, socket or device where a regular file was expected.
    #[error("cannot {action} '{}': it is a {kind}, not a regular file", shown(path))]
    NotRegular {
        /// What was attempted.
        action: &'static str,
        /// The path as the user knows it.
        path: PathBuf,
        /// What it is instead.
        kind: Kind,
    },
    /// More bytes than the caller is willing to hold.
    #[error("cannot read '{}': it is larger than {cap} bytes", shown(path))]
    TooLarge {
        /// The path as the user knows it.
        path: PathBuf,
        /// The limit in bytes.
        cap: u64,
    },
    /// Text was expected.
    #[error("cannot read '{}': it is not valid UTF-8", shown(path))]
    NotUtf8 {
        /// The path as the user knows it.
        path: PathBuf,
    },
    /// The path is empty or ends in `.` or `..`, so that it names nothing that could be made or removed.
    #[error("'{}' does not name a file", shown(path))]
    NoName {
        /// The path as it was given.
        path: PathBuf,
    },
    /// A tree to be removed has something mounted in it.
    #[error("cannot remove '{}': something is mounted on it", shown(path))]
    MountPoint {
        /// Where it is mounted.
        path: PathBuf,
    },
    /// Somebody moved or filled directories while they were being removed.
    #[error("cannot remove '{}': it changes while it is being removed", shown(path))]
    Changing {
        /// The directory that changed.
        path: PathBuf,
    },
    /// A tree cannot be measured because directories are being moved in it.
    #[error("cannot measure '{}': directories in it are being moved", shown(path))]
    Moved {
        /// The tree.
        path: PathBuf,
    },
    /// The caller asked to stop.
    #[error(transparent)]
    Cancelled(#[from] Cancelled),
}

impl FileError {
    /// Builds [`FileError::Io`]; made for `map_err`.
    pub(crate) fn io<E: Into<io::Error>>(action: &'static str, path: &Path) -> impl FnOnce(E) -> Self + use<E> {
        let path = path.to_path_buf();
        move |source| Self::Io {
            action,
            path,
            source: source.into(),
        }
    }

    /// The path that it is about.
    pub(crate) fn path_mut(&mut self) -> Option<&mut PathBuf> {
        match self {
            Self::Io { path, .. }
            | Self::NotRegular { path, .. }
            | Self::TooLarge { path, .. }
            | Self::NotUtf8 { path }
            | Self::NoName { path }
            | Self::MountPoint { path }
            | Self::Changing { path }
            | Self::Moved { path } => Some(path),
            Self::Cancelled(_) => None,
        }
    }

    /// The kernel's error code, if it was the kernel that refused.
    #[must_use]
    pub fn raw_os_error(&self) -> Option<i32> {
        match self {
            Self::Io { source, .. } => source.raw_os_error(),
            _ => None,
        }
    }

    /// Whether the file or a directory on the way to it does not exist.
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::Io { source, .. } if source.kind() == io::ErrorKind::NotFound)
    }
}

/// The kind of a file, as inode(7) has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink,
    /// A named pipe.
    Fifo,
    /// A Unix socket.
    Socket,
    /// A character device.
    CharDevice,
    /// A block device.
    BlockDevice,
}

impl Kind {
    /// The kind that the `st_mode` field of stat(2) tells.
    pub(crate) fn from_mode(mode: u32) -> Self {
        match FileType::from_raw_mode(mode) {
            FileType::Directory => Self::Directory,
            FileType::Symlink => Self::Symlink,
            FileType::Fifo => Self::Fifo,
            FileType::Socket => Self::Socket,
            FileType::CharacterDevice => Self::CharDevice,
            FileType::BlockDevice => Self::BlockDevice,
            _ => Self::File,
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::File => "regular file",
            Self::Directory => "directory",
            Self::Symlink => "symbolic link",
            Self::Fifo => "fifo",
            Self::Socket => "socket",
            Self::CharDevice => "character device",
            Self::BlockDevice => "block device",
        })
    }
}

/// A path as it may be shown on a terminal: control characters and what reorders text are escaped as in Rust
/// (`\n`, `\u{1b}`), bytes that are not UTF-8 as `\xff`.
pub fn shown<P: AsRef<OsStr> + ?Sized>(path: &P) -> String {
    let mut out = String::new();
    for chunk in path.as_ref().as_bytes().utf8_chunks() {
        for c in chunk.valid().chars() {
            if c.is_control()
                || matches!(c, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
            {
                out.extend(c.escape_default());
            } else {
                out.push(c);
            }
        }
        for byte in chunk.invalid() {
            // Writing to a String cannot fail.
            let _ = write!(out, "\\x{byte:02x}");
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostile_names_cannot_reach_a_terminal() {
        assert_eq!(shown("a\x1b[31m\nb"), "a\\u{1b}[31m\\nb");
        assert_eq!(shown(OsStr::from_bytes(b"caf\xe9")), "caf\\xe9");
        assert_eq!(shown("a\u{202e}txt"), "a\\u{202e}txt");
        assert_eq!(shown("/var/lib/machines/büro"), "/var/lib/machines/büro");
    }

    #[test]
    fn an_error_names_the_path_and_the_attempt() {
        let error = FileError::io("read", Path::new("/a\nb"))(io::Error::from_raw_os_error(2));
        assert_eq!(error.to_string(), "cannot read '/a\\nb'");
        assert!(error.is_not_found());
    }
}

//! What a tree takes of its filesystem, and how much it may: project quotas of ext4, XFS and others.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;

use nix::libc;
use rustix::fs::{CWD, Mode, OFlags, fstat, openat};

use super::bounded::ask;
use super::bus::machine1::ImageState;
use super::files::inherited_project;
use super::raw::{btrfs, quota};
use crate::machine::status;

/// `FS_QUOTA_PDQ_ACCT`
const COUNTED: u16 = 1 << 4;
/// `FS_QUOTA_PDQ_ENFD`
const ENFORCED: u16 = 1 << 5;
/// `QIF_DQBLKSIZE`: limits are multiples of this.
pub const BLOCK: u64 = 1024;

/// How far a filesystem keeps quotas of projects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Support {
    /// Not at all, or they are off.
    None,
    /// It counts, and limits nothing.
    Counted,
    /// It limits.
    Enforced,
}

/// What is counted of an image without going through it, and its limit: by machined, or of the project that it is in. What
/// a project uses says nothing where it has no limit: then it may be that not everything was put into it.
pub async fn quota_of(image: &ImageState) -> status::Usage {
    if image.kind != "directory" {
        return status::Usage {
            current: image.used,
            limit: image.limit,
            peak: None,
        };
    }
    let path = image.path.clone();
    let asked = ask(move || {
        let tree = Tree::open(Path::new(&path)).ok()?;
        let usage = tree.usage(tree.project()?).ok()?;
        usage.limit.is_some().then_some(usage)
    });
    let usage = asked.await.value().copied();
    status::Usage {
        current: usage.map(|usage| usage.used),
        limit: usage.and_then(|usage| usage.limit),
        peak: None,
    }
}

/// What a project uses, and may.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    /// Bytes that it may use; `None` if there is no limit.
    pub limit: Option<u64>,
    /// Bytes that it uses.
    pub used: u64,
    /// Files and directories in it.
    pub files: u64,
}

/// An open tree.
#[derive(Debug)]
pub struct Tree(OwnedFd);

impl Tree {
    /// Opens a directory of the host, by links if there are any.
    pub fn open(path: &Path) -> io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Self(openat(CWD, path, flags, Mode::empty())?))
    }

    /// The project that it is in with all that will be made in it.
    #[must_use]
    pub fn project(&self) -> Option<u32> {
        inherited_project(&self.0)
    }

    /// Device number of its filesystem, and its inode.
    pub fn identity(&self) -> io::Result<(u64, u64)> {
        let found = fstat(&self.0)?;
        Ok((found.st_dev, found.st_ino))
    }

    /// The subvolumes of btrfs directly inside.
    #[must_use]
    pub fn subvolumes(&self) -> Vec<OsString> {
        btrfs::subvolumes_inside(&self.0).unwrap_or_default()
    }

    /// Limits a subvolume of btrfs itself, without machined's group of higher level: for one that machined does not see yet.
    pub fn limit_subvolume(&self, limit: Option<u64>) -> io::Result<()> {
        Ok(btrfs::subvolume_limit(&self.0, limit)?)
    }

    /// What the filesystem does for projects.
    #[must_use]
    pub fn support(&self) -> Support {
        match quota::status(self.0.as_fd()) {
            Ok(flags) if flags & ENFORCED != 0 => Support::Enforced,
            Ok(flags) if flags & COUNTED != 0 => Support::Counted,
            _ => Support::None,
        }
    }

    /// What a project uses and may on the filesystem of this tree.
    pub fn usage(&self, project: u32) -> io::Result<Usage> {
        match quota::usage(self.0.as_fd(), project) {
            Ok(found) => Ok(Usage {
                limit: Some(found.dqb_bhardlimit.saturating_mul(BLOCK)).filter(|limit| *limit > 0),
                used: found.dqb_curspace,
                files: found.dqb_curinodes,
            }),
            // XFS has none that nothing is in.
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(Usage {
                limit: None,
                used: 0,
                files: 0,
            }),
            Err(error) => Err(error),
        }
    }

    /// Sets how many bytes a project may use on the filesystem of this tree.
    pub fn limit(&self, project: u32, limit: Option<u64>) -> io::Result<()> {
        quota::set_limit(self.0.as_fd(), project, limit.unwrap_or(0).div_ceil(BLOCK))
    }
}

//! Why an image cannot be limited, and what would help.

use std::path::PathBuf;

use crate::machine::MachineName;
use crate::ops::survey::Mount;
use crate::sys::files::shown;

/// Why an image cannot be limited as things are.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QuotaError {
    /// A file, or a device.
    #[error("a disk image takes no more than its own size")]
    DiskImage,
    /// On btrfs, and no subvolume.
    #[error("its image on btrfs is a directory, and only subvolumes have quotas there")]
    Plain {
        /// The machine.
        name: MachineName,
    },
    /// On layers: what it has changed is on top, and goes to another layer with the next linked clone.
    #[error("it lies on layers, which have no quota of their own")]
    Linked {
        /// The machine.
        name: MachineName,
    },
    /// btrfs that counts nothing.
    #[error("quotas are off on {0}, or are being counted anew")]
    NotCounted(Mount),
    /// A filesystem without quotas of projects.
    #[error("{0} keeps no quotas of projects")]
    Off(Mount),
    /// One that counts, and limits nothing.
    #[error("{0} counts what projects use, but limits nothing")]
    NotEnforced(Mount),
    /// What is in a project of others could not be renamed in its place.
    #[error("'{}' is in project {project} with all that is in it", shown(directory))]
    Above {
        /// The directory that images lie in.
        directory: PathBuf,
        /// Its project.
        project: u32,
    },
    /// No number is free.
    #[error("all numbers of projects that were tried are in use")]
    NoNumber,
}

impl QuotaError {
    /// What would help.
    #[must_use]
    pub fn hint(&self) -> String {
        match self {
            Self::DiskImage => "`machinist images --columns name,size,limit` shows its size; see systemd-repart(8) for how to make it \
                                larger"
                .to_owned(),
            Self::Plain { name } => format!("a clone of it is a subvolume: `machinist clone {name} NEW`"),
            Self::Linked { name } => format!("make it independent first: `machinist clone --flatten {name}`"),
            Self::NotCounted(mount) => format!(
                "turn them on for all of it with `btrfs quota enable {point}`, at some cost; where they are on, wait with \
                 `btrfs quota rescan -w {point}`",
                point = mount.quoted_point()
            ),
            Self::Off(mount) => match mount.filesystem.as_str() {
                "ext4" => format!(
                    "unmount it, `tune2fs -O project,quota -Q prjquota {}`, and mount it with the option prjquota, for good in \
                     /etc/fstab",
                    mount.device
                ),
                "xfs" => "mount it anew, a remount is not enough, with the option prjquota, for good in /etc/fstab; the root \
                          filesystem with rootflags=prjquota on the kernel's command line"
                    .to_owned(),
                "f2fs" => "make it with `mkfs.f2fs -O extra_attr,quota,project_quota`, and mount it with the option prjquota"
                    .to_owned(),
                _ => "have the machines on btrfs with quotas, or on ext4 or XFS with the mount option prjquota".to_owned(),
            },
            Self::NotEnforced(mount) if mount.filesystem == "xfs" => {
                format!("turn limits on with `xfs_quota -x -c 'enable -p' {}`", mount.quoted_point())
            }
            Self::NotEnforced(mount) => format!(
                "mount it anew with the option prjquota, for good in /etc/fstab; or turn limits on while it is mounted, with \
                 `mount -o remount,prjquota {point}` and `quotaon -P {point}`",
                point = mount.quoted_point()
            ),
            Self::Above { directory, .. } => format!(
                "take that directory out of its project: `chattr -P -p 0 {}`",
                shell_words::quote(&directory.to_string_lossy())
            ),
            Self::NoNumber => "see `repquota -P` for what has them".to_owned(),
        }
    }
}

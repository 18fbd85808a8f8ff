//! What the filesystem of a directory can do for machines, and how much room it has.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, StatxFlags, statvfs, statx};

use super::transaction::{Record, Staging, Verb};
use super::{OpError, Places};
use crate::machine::Cancel;
use crate::nspawn::users::UserRange;
use crate::storage::for_directory;
use crate::storage::overlay::{OverlayError, prepare};

/// What was found.
#[derive(Clone, Debug)]
pub struct Survey {
    /// The directory.
    pub path: PathBuf,
    /// As mount(8) calls it: "ext4"; `None` if it is not mounted where we see it.
    pub filesystem: Option<String>,
    /// What is mounted: "/dev/sda1".
    pub device: Option<String>,
    /// [`Storage::name`](crate::storage::Storage::name)
    pub storage: &'static str,
    /// How a throw-away copy is made: "overlay", or as any other.
    pub ephemeral: &'static str,
    /// Why that is no overlay, where one would be better.
    pub reason: Option<String>,
    /// Room that is left, bytes.
    pub free: u64,
    /// All of it, bytes.
    pub size: u64,
}

/// Tries what the filesystem of the machines can do. Blocks.
pub fn survey(places: &Places, cancel: &Cancel) -> Result<Survey, OpError> {
    let directory = &places.machines;
    let room = statvfs(directory).map_err(|errno| OpError::path("look at", directory)(errno.into()))?;
    let mounted = mount_of(directory).map_err(OpError::path("look at", directory))?;
    let storage = for_directory(directory)?;
    let (ephemeral, reason) = if storage.shares() {
        (storage.name(), None)
    } else {
        match try_overlay(places, cancel)? {
            Ok(()) => ("overlay", None),
            Err(OverlayError::Impossible(reason)) => (storage.name(), Some(reason)),
            Err(OverlayError::Storage(error)) => return Err(error.into()),
        }
    };
    let (filesystem, device) = mounted.unzip();
    Ok(Survey {
        path: directory.to_owned(),
        filesystem,
        device,
        storage: storage.name(),
        ephemeral,
        reason,
        free: room.f_bavail * room.f_frsize,
        size: room.f_blocks * room.f_frsize,
    })
}

/// Lays an overlay over an empty tree, with users of its own.
fn try_overlay(places: &Places, cancel: &Cancel) -> Result<Result<(), OverlayError>, OpError> {
    let record = Record {
        verb: Verb::Survey,
        name: "storage".to_owned(),
        settings: None,
        unit: None,
    };
    let mut staging = Staging::create(places, &record, &(), cancel)?;
    let image = staging.scratch("image");
    fs::create_dir(&image).map_err(OpError::path("create", &image))?;
    let users = UserRange::free(UserRange::USUAL_COUNT, &[]);
    let tried = prepare(&image, staging.directory(), users).map(drop);
    staging.discard()?;
    Ok(tried)
}

/// Type and source of the mount that a directory is on, see proc_pid_mountinfo(5).
fn mount_of(directory: &Path) -> io::Result<Option<(String, String)>> {
    let found = statx(CWD, directory, AtFlags::empty(), StatxFlags::MNT_ID)?;
    let mounts = fs::read("/proc/self/mountinfo")?;
    Ok(mount_in(&String::from_utf8_lossy(&mounts), found.stx_mnt_id))
}

fn mount_in(mounts: &str, id: u64) -> Option<(String, String)> {
    let line = mounts.lines().find(|line| {
        let first = line.split(' ').next().and_then(|field| field.parse().ok());
        first == Some(id)
    })?;
    let mut fields = line.split_once(" - ")?.1.split(' ');
    Some((fields.next()?.to_owned(), fields.next()?.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_is_found_by_its_number() {
        let mounts = "21 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw\n\
                      22 21 0:20 / /proc rw - proc proc rw\n122 21 0:40 / /mnt rw shared:2 master:3 - tmpfs none rw\n";
        let found = |id| mount_in(mounts, id).map(|(kind, device)| format!("{kind} {device}"));
        assert_eq!(found(21).as_deref(), Some("ext4 /dev/vda"));
        assert_eq!(found(122).as_deref(), Some("tmpfs none"));
        assert_eq!(found(2), None);
    }
}

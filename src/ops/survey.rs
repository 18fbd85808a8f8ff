//! What the filesystem of a directory can do for machines, and how much room it has.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, StatxFlags, statvfs, statx};

use super::linked::top;
use super::transaction::{Record, Staging, Verb};
use super::{OpError, Places};
use crate::machine::text::printable;
use crate::machine::{Cancel, Image};
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
    let mounted = find_mount(directory).map_err(OpError::path("look at", directory))?;
    let (filesystem, device) = mounted.map(|mount| (mount.filesystem, mount.device)).unzip();
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

/// Says of each image that is a directory how it lies there: tried once for each directory. Blocks.
pub fn tell_storage(images: &mut [Image], places: &Places) {
    let machines = places
        .machines
        .canonicalize()
        .unwrap_or_else(|_| places.machines.clone());
    let mut known: BTreeMap<PathBuf, Option<&'static str>> = BTreeMap::new();
    for image in images {
        if !matches!(image.kind.as_str(), "directory" | "subvolume") {
            continue;
        }
        // A link leads to where its files are.
        let Ok(path) = Path::new(&image.path).canonicalize() else {
            continue;
        };
        let name = image.name.parse().ok();
        let is_linked = path == machines.join(&image.name) && name.is_some_and(|name| top(&name, places).is_some());
        image.storage = match path.parent() {
            _ if is_linked => Some("overlay"),
            Some(directory) => *known
                .entry(directory.to_owned())
                .or_insert_with(|| Some(for_directory(directory).ok()?.name())),
            None => None,
        };
    }
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
    let image = staging.directory().join("image");
    fs::create_dir(&image).map_err(OpError::path("create", &image))?;
    let users = UserRange::free(UserRange::USUAL_COUNT, &[]);
    let tried = prepare(&image, staging.directory(), users).map(drop);
    staging.discard()?;
    Ok(tried)
}

/// What is mounted where, see proc_pid_mountinfo(5).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// As mount(8) calls it: "ext4".
    pub filesystem: String,
    /// What is mounted: "/dev/sda1".
    pub device: String,
    /// Where: "/var/lib/machines".
    pub point: String,
}

impl Mount {
    /// Where it is mounted, for a command line.
    #[must_use]
    pub fn quoted_point(&self) -> String {
        shell_words::quote(&self.point).into_owned()
    }
}

impl fmt::Display for Mount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} on {}", self.filesystem, printable(&self.device))
    }
}

/// The mount that a directory is on. One that we do not see has only a name: "its filesystem".
pub(super) fn mount_of(directory: &Path) -> io::Result<Mount> {
    let found = find_mount(directory)?;
    Ok(found.unwrap_or_else(|| Mount {
        filesystem: "the filesystem".to_owned(),
        device: "another device".to_owned(),
        point: directory.to_string_lossy().into_owned(),
    }))
}

fn find_mount(directory: &Path) -> io::Result<Option<Mount>> {
    let found = statx(CWD, directory, AtFlags::empty(), StatxFlags::MNT_ID)?;
    let mounts = fs::read("/proc/self/mountinfo")?;
    Ok(mount_in(&String::from_utf8_lossy(&mounts), found.stx_mnt_id))
}

fn mount_in(mounts: &str, id: u64) -> Option<Mount> {
    let line = mounts.lines().find(|line| {
        let first = line.split(' ').next().and_then(|field| field.parse().ok());
        first == Some(id)
    })?;
    let (place, what) = line.split_once(" - ")?;
    let mut fields = what.split(' ');
    Some(Mount {
        filesystem: fields.next()?.to_owned(),
        device: fields.next()?.to_owned(),
        point: unescaped(place.split(' ').nth(4)?),
    })
}

/// What the kernel escapes in a path: blanks, line breaks and backslashes.
fn unescaped(path: &str) -> String {
    let escapes = [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")];
    escapes.iter().fold(path.to_owned(), |path, (escape, character)| {
        path.replace(escape, character)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_is_found_by_its_number() {
        let mounts = "21 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw\n\
                      22 21 0:20 / /proc rw - proc proc rw\n122 21 0:40 / /mnt/a\\040b rw shared:2 master:3 - tmpfs none rw\n";
        let found = |id| mount_in(mounts, id).map(|mount| format!("{mount} at {}", mount.quoted_point()));
        assert_eq!(found(21).as_deref(), Some("ext4 on /dev/vda at /"));
        assert_eq!(found(122).as_deref(), Some("tmpfs on none at '/mnt/a b'"));
        assert_eq!(found(2), None);
    }
}

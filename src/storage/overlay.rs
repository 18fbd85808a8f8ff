//! A view of an image that is made at once on any filesystem, and thrown away: what is changed is kept beside it.
//!
//! No [`Storage`](super::Storage): it is a mount, of one machine, and no copy that could stay.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;

use rustix::fs::{AtFlags, OFlags, StatxFlags, statx};

use super::{StorageError, attributes, create_directory};
use crate::nspawn::users::UserRange;
use crate::sys::files::{remove_tree, xattr};
use crate::sys::overlay::{LOWER, Overlay, Shift, TREE, UPPER, WORK};

/// Why there is no overlay.
#[derive(Debug, thiserror::Error)]
pub enum OverlayError {
    /// The kernel or the filesystem, which were asked, or how the image lies there.
    #[error("{0}")]
    Impossible(String),
    /// Its directories could not be made or removed.
    #[error(transparent)]
    Storage(#[from] StorageError),
}

/// From which users on the disk an image's files are to be shifted to be those of `to`; `None` if they are theirs.
pub fn shift_to(to: UserRange, image: &Path) -> Result<Option<Shift>, OverlayError> {
    let found = fs::metadata(image).map_err(StorageError::io("look at", image))?;
    let owners = (found.uid(), found.gid());
    // As systemd-nspawn reads it from the root directory, see PrivateUsersOwnership= in systemd.nspawn(5).
    let from = (owners.0 & 0xffff_0000, owners.1 & 0xffff_0000);
    if from.0 != from.1 {
        return Err(OverlayError::Impossible("its owner and its group do not agree".into()));
    }
    let theirs = owners == (to.first, to.first) || from.0 == to.first;
    Ok((!theirs).then_some(Shift { from: from.0, to }))
}

/// Makes the layers of an overlay over `image` in the directory `layers`, and tries it. The files belong to `users` of the
/// host then, to whomever they belong on the disk. Leaves nothing in `layers` where it fails.
pub fn prepare(image: &Path, layers: &Path, users: Option<UserRange>) -> Result<Overlay, OverlayError> {
    let made = lay(image, layers, users);
    if made.is_err() {
        for name in [LOWER, UPPER, WORK, TREE] {
            // The first error is the one to be told.
            let _ = remove_tree(&layers.join(name));
        }
    }
    made
}

fn lay(image: &Path, layers: &Path, users: Option<UserRange>) -> Result<Overlay, OverlayError> {
    if has_mounts(image).map_err(StorageError::io("look at", image))? {
        return Err(OverlayError::Impossible("something is mounted in it".into()));
    }
    let shift = users.map_or(Ok(None), |users| shift_to(users, image))?;
    for name in [LOWER, UPPER, WORK, TREE] {
        create_directory(&layers.join(name))?;
    }
    let overlay = Overlay {
        layers: layers.to_owned(),
        image: image.to_owned(),
        shift,
    };
    let (upper, work) = (layers.join(UPPER), layers.join(WORK));
    copy_attributes(image, &upper, shift)?;
    overlay
        .try_out()
        .map_err(|error| OverlayError::Impossible(error.to_string()))?;
    // The kernel marks it as used up.
    remove_tree(&work).map_err(StorageError::from)?;
    create_directory(&work)?;
    Ok(overlay)
}

/// The directory that is seen as the image's has what that one has; its owner as it is seen.
pub(super) fn copy_attributes(image: &Path, upper: &Path, shift: Option<Shift>) -> Result<(), StorageError> {
    let open = |path: &Path| -> Result<File, StorageError> {
        let mut options = OpenOptions::new();
        options.read(true).custom_flags(OFlags::DIRECTORY.bits().cast_signed());
        options.open(path).map_err(StorageError::io("open", path))
    };
    let (source, target) = (open(image)?.into(), open(upper)?.into());
    let mut wanted = statx(&source, c"", AtFlags::EMPTY_PATH, StatxFlags::BASIC_STATS)
        .map_err(StorageError::io("look at", image))?;
    if let Some(Shift { from, to }) = shift {
        let seen = |number: u32| number.checked_sub(from).and_then(|number| number.checked_add(to.first));
        wanted.stx_uid = seen(wanted.stx_uid).unwrap_or(to.first);
        wanted.stx_gid = seen(wanted.stx_gid).unwrap_or(to.first);
    }
    attributes::copy(&source, &target, &wanted, &mut xattr::Scratch::default())
        .map_err(StorageError::io("set the attributes of", upper))
}

/// Whether anything is mounted below a directory.
fn has_mounts(directory: &Path) -> io::Result<bool> {
    let mut prefix = Vec::new();
    for byte in directory.canonicalize()?.as_os_str().as_bytes() {
        // As the kernel writes it, see proc_pid_mountinfo(5).
        match byte {
            b' ' | b'\t' | b'\n' | b'\\' => prefix.extend(format!("\\{byte:03o}").bytes()),
            byte => prefix.push(*byte),
        }
    }
    prefix.push(b'/');
    let mounts = fs::read("/proc/self/mountinfo")?;
    let places = mounts
        .split(|byte| *byte == b'\n')
        .filter_map(|line| line.split(|byte| *byte == b' ').nth(4));
    Ok(places.into_iter().any(|place| place.starts_with(&prefix)))
}

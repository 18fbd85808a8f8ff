//! A tar stream unpacked in a machine: in a hidden directory first, from where everything moves to its place when it is whole.

use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{self, AtFlags, Mode, OFlags};
use rustix::io::Errno;

use super::ids::{Ids, Translation};
use super::walk::{may_write, names, open_made};
use super::{Copied, Options};
use crate::machine::{Cancel, Report};
use crate::ops::OpError;
use crate::sources::SourceError;
use crate::sources::tarball::{Extracted, Manner, TarballError, extract_stream};
use crate::sys::files::{FileError, Kind, magic_link, remove_at, shown, temporary_name};

/// Unpacks what `stream` has into the directory `to`.
pub(super) fn unpack(
    stream: File,
    (to, label): (&OwnedFd, &Path),
    options: Options,
    ids: &Translation,
    check: &dyn Fn() -> Result<(), OpError>,
    report: &dyn Report,
    cancel: &Cancel,
) -> Result<Copied, OpError> {
    let failed = |errno: Errno| OpError::from(FileError::io("unpack into", label)(errno));
    may_write(&ids.to, to, label)?;
    let hidden = temporary_name(OsStr::new("stream"));
    fs::mkdirat(to, &hidden, Mode::RWXU).map_err(failed)?;
    let work = || {
        let place = open_made(to, &hidden).map_err(failed)?;
        let owner = |uid, gid| {
            if options.archive {
                ids.owner_inside(uid, gid)
            } else {
                ids.to.root()
            }
        };
        let attribute = |name: &[u8], value: &[u8]| {
            if options.archive {
                ids.attribute(name, value)
            } else {
                None
            }
        };
        let manner = Manner {
            owner: &owner,
            attribute: &attribute,
            mode: if options.archive { 0o7777 } else { 0o1777 },
        };
        let target = PathBuf::from(magic_link(place.as_fd()));
        let extracted = extract_stream(stream, Path::new("standard input"), &target, &manner, report, cancel)
            .map_err(|error| at(error, &target, label))?;
        check()?;
        foresee(&place, to, &ids.to, label)?;
        merge(&place, to, &ids.to, label)?;
        Ok(extracted)
    };
    let unpacked: Result<Extracted, OpError> = work();
    // Empty by now if all went well.
    let removed = remove_at(to.as_fd(), &hidden, label);
    let extracted = unpacked?;
    removed?;
    let mut copied = Copied {
        files: extracted.entries - extracted.directories - extracted.links,
        directories: extracted.directories,
        links: extracted.links,
        bytes: extracted.bytes,
        ..Copied::default()
    };
    copied.skipped.devices = extracted.skipped_devices;
    copied.skipped.sockets = extracted.skipped_sockets;
    copied.skipped.xattrs = extracted.skipped_xattrs;
    Ok(copied)
}

/// An error with the path that the user knows.
fn at(error: TarballError, target: &Path, label: &Path) -> OpError {
    let mut error = OpError::from(SourceError::from(error));
    if let Some(path) = error.path_mut()
        && let Ok(rest) = path.strip_prefix(target)
    {
        *path = label.join(rest);
    }
    error
}

/// Refuses, before anything moves, what [`merge`] could not move to its place: otherwise half of it would be there.
fn foresee(from: &OwnedFd, to: &OwnedFd, ids: &Ids, label: &Path) -> Result<(), OpError> {
    let moved = fs::fstat(from).map_err(FileError::io("look at", label))?;
    for name in names(from).map_err(FileError::io("move", label))? {
        let label = label.join(&name);
        let refused = |errno| OpError::from(FileError::io("replace", &label)(errno));
        let kind = |parent: &OwnedFd| {
            let stat = fs::statat(parent, &name, AtFlags::SYMLINK_NOFOLLOW)?;
            Ok(Kind::from_mode(stat.st_mode))
        };
        let new = kind(from).map_err(refused)?;
        match (new, kind(to)) {
            (_, Err(Errno::NOENT)) => {}
            (_, Err(errno)) => return Err(refused(errno)),
            (Kind::Directory, Ok(Kind::Directory)) => {
                let elsewhere = |errno| match errno {
                    Errno::XDEV => another_filesystem(&label),
                    errno => refused(errno),
                };
                let there = open_made(to, &name).map_err(elsewhere)?;
                // A subvolume is no mount, and yet nothing moves across its border.
                if fs::fstat(&there).map_err(refused)?.st_dev != moved.st_dev {
                    return Err(another_filesystem(&label));
                }
                may_write(ids, &there, &label)?;
                foresee(&open_made(from, &name).map_err(refused)?, &there, ids, &label)?;
            }
            (Kind::Directory, Ok(_)) => return Err(refused(Errno::NOTDIR)),
            (_, Ok(Kind::Directory)) => return Err(refused(Errno::ISDIR)),
            (_, Ok(_)) => {}
        }
    }
    Ok(())
}

fn another_filesystem(label: &Path) -> OpError {
    OpError::Option {
        message: format!("cannot unpack into '{}': it is a filesystem of its own", shown(label)),
        hint: "copy what goes there by itself, with it as the destination".to_owned(),
    }
}

/// Moves what is in a directory to another: what has the name of a directory there goes into that, what has that of a file
/// takes its place.
fn merge(from: &OwnedFd, to: &OwnedFd, ids: &Ids, label: &Path) -> Result<(), OpError> {
    for name in names(from).map_err(FileError::io("move", label))? {
        let label = label.join(&name);
        let open = |parent: &OwnedFd| {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            fs::openat(parent, &name, flags, Mode::empty())
        };
        let is_directory = fs::statat(from, &name, AtFlags::SYMLINK_NOFOLLOW)
            .is_ok_and(|stat| Kind::from_mode(stat.st_mode) == Kind::Directory);
        if is_directory && let Ok(there) = open(to) {
            let from = open(from).map_err(FileError::io("move", &label))?;
            may_write(ids, &there, &label)?;
            merge(&from, &there, ids, &label)?;
        } else {
            fs::renameat(from, &name, to, &name).map_err(FileError::io("replace", &label))?;
        }
    }
    Ok(())
}

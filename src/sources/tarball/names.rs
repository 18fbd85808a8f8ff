//! Names of an archive: checked, and looked up without ever climbing out.

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;

use rustix::fs::{self, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use super::{Problem, TarballError};
use crate::sys::files::Kind;

/// As many links as the kernel follows, see `path_resolution(7)`.
const MAX_LINKS: usize = 40;

/// The longest name in bytes: four times what the kernel takes at once (`PATH_MAX`), which no file can be reached by.
const MAX_LENGTH: usize = 4 * 4096;

/// The most directories in a name: each of them is open while links on the way are looked up.
const MAX_DEPTH: usize = 512;

/// A checked name, split where its directory ends.
pub(super) struct Split {
    pub(super) parent: Vec<u8>,
    pub(super) name: OsString,
    /// Both together, relative to the target.
    pub(super) path: Vec<u8>,
}

/// Checks and splits the name of an entry that cannot be the root.
pub(super) fn split(name: &[u8]) -> Result<Split, TarballError> {
    split_any(name)?.ok_or_else(|| TarballError::entry(name, Problem::NoName))
}

/// Checks and splits the name of an entry; `None` for the root: `./`, or `/` as umoci writes it.
pub(super) fn split_any(name: &[u8]) -> Result<Option<Split>, TarballError> {
    let bad = |problem| Err(TarballError::entry(name, problem));
    if name.is_empty() {
        return bad(Problem::NoName);
    }
    if name.len() > MAX_LENGTH {
        return bad(Problem::LongName(name.len()));
    }
    if name.contains(&0) {
        return bad(Problem::NulByte);
    }
    let mut path = Vec::with_capacity(name.len());
    let mut last = 0;
    let mut depth = 0;
    for part in name.split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => continue,
            b".." => return bad(Problem::LeadsOutside),
            _ => {}
        }
        depth += 1;
        if !path.is_empty() {
            path.push(b'/');
        }
        last = path.len();
        path.extend_from_slice(part);
    }
    if path.is_empty() {
        return Ok(None);
    }
    if name.starts_with(b"/") {
        return bad(Problem::Absolute);
    }
    if depth > MAX_DEPTH {
        return bad(Problem::Deep(depth));
    }
    let name = OsStr::from_bytes(&path[last..]).to_owned();
    Ok(Some(Split {
        parent: path[..last.saturating_sub(1)].to_vec(),
        name,
        path,
    }))
}

/// Looks a directory up name by name: absolute links start at the root again, `..` at the root is `EXDEV`.
pub(super) fn walk(root: BorrowedFd<'_>, path: &[u8]) -> Result<OwnedFd, Errno> {
    let mut links = 0;
    let mut way: Vec<OwnedFd> = Vec::new();
    let mut todo: Vec<Vec<u8>> = Vec::new();
    let push = |todo: &mut Vec<Vec<u8>>, path: &[u8]| {
        let parts = path
            .split(|byte| *byte == b'/')
            .filter(|part| !part.is_empty() && *part != b".");
        todo.extend(parts.map(<[u8]>::to_vec).collect::<Vec<_>>().into_iter().rev());
    };
    push(&mut todo, path);
    while let Some(name) = todo.pop() {
        if name == b".." {
            way.pop().ok_or(Errno::XDEV)?;
            continue;
        }
        let here = way.last().map_or(root, OwnedFd::as_fd);
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = fs::openat2(
            here,
            OsStr::from_bytes(&name),
            flags,
            Mode::empty(),
            ResolveFlags::NO_XDEV,
        )?;
        match Kind::from_mode(fs::fstat(&fd)?.st_mode) {
            Kind::Directory => way.push(fd),
            Kind::Symlink => {
                links += 1;
                if links > MAX_LINKS {
                    return Err(Errno::LOOP);
                }
                let target = fs::readlinkat(&fd, "", Vec::new())?.into_bytes();
                if target.starts_with(b"/") {
                    way.clear();
                }
                push(&mut todo, &target);
            }
            _ => return Err(Errno::NOTDIR),
        }
    }
    match way.pop() {
        Some(fd) => Ok(fd),
        None => fs::openat(
            root,
            ".",
            OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        ),
    }
}

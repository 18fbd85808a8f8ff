//! As whom a thread makes files, see setfsuid(2).

use std::io;

use nix::unistd::{Gid, Uid, setfsgid, setfsuid};
use rustix::thread::{capabilities, set_capabilities};

/// Has what the calling thread makes from now on belong to these, with all that it may do else: filesystems that are mounted
/// for a machine's users know nobody else. It is for a thread that ends with this work.
pub fn make_files_as(uid: u32, gid: u32) -> io::Result<()> {
    let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
    // The kernel takes away what a user other than root may not do to files; the rest gives it back.
    let before = capabilities(None)?;
    setfsgid(gid);
    setfsuid(uid);
    set_capabilities(None, before)?;
    // These calls tell no error, only what was.
    if setfsgid(gid) == gid && setfsuid(uid) == uid {
        // The second call has taken them again, if it has changed anything.
        return Ok(set_capabilities(None, before)?);
    }
    Err(io::ErrorKind::PermissionDenied.into())
}

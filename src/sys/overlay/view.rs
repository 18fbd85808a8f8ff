//! An overlay that one thread of ours sees, and nobody else.

use std::io;
use std::path::Path;
use std::thread;

use nix::mount::MsFlags;
use nix::sched::{CloneFlags, unshare};
use rustix::mount::{MountPropagationFlags, mount_change};

use super::helper::failed;
use crate::unit::layers::overlay_options;

/// Mounts an overlay at a place, on a thread of its own, and does something there that sees it. It is gone with the
/// thread. `lowers` are the directories below, the nearest first; `upper` and `work` are those of the layer on top.
pub fn see<T: Send>(
    place: &Path,
    lowers: &[&Path],
    upper: &Path,
    work: &Path,
    job: impl FnOnce() -> T + Send,
) -> io::Result<T> {
    let mount = || -> Result<(), String> {
        unshare(CloneFlags::CLONE_NEWNS).map_err(failed("make a mount namespace"))?;
        mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
            .map_err(failed("make the mounts our own"))?;
        let options = overlay_options(lowers, upper, work);
        let (kind, none) = (Some("overlay"), MsFlags::empty());
        nix::mount::mount(Some("machinist"), place, kind, none, Some(options.as_str()))
            .map_err(failed("mount the overlay"))
    };
    thread::scope(|scope| {
        let thread = scope.spawn(|| mount().map(|()| job()));
        match thread.join() {
            Ok(done) => done.map_err(io::Error::other),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

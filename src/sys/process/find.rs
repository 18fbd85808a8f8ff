//! Where programs are, and which Debian package has them.

use std::ffi::OsStr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use super::ProcessError;

/// Where programs are looked for, and what they get as `PATH`: the caller's own `PATH` is not trusted.
pub(super) const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The Debian package of each program that this crate may run.
const PACKAGES: &[(&str, &str)] = &[
    ("busybox", "busybox-static"),
    ("debootstrap", "debootstrap"),
    ("gpgv", "gpgv"),
    ("journalctl", "systemd"),
    ("mke2fs", "e2fsprogs"),
    ("mmdebstrap", "mmdebstrap"),
    ("nft", "nftables"),
    ("pkttyagent", "polkitd"),
    ("qemu-img", "qemu-utils"),
    ("setpriv", "util-linux"),
    ("sqv", "sqv"),
    ("ssh", "openssh-client"),
    ("systemd-analyze", "systemd"),
    ("systemd-creds", "systemd"),
    ("systemd-nspawn", "systemd-container"),
    ("unshare", "util-linux"),
];

/// Whether a program is installed where [`Program`] would find it.
#[must_use]
pub fn program_exists(name: &str) -> bool {
    find_program(OsStr::new(name)).is_some()
}

/// An error that names the program and its package unless it is installed.
pub fn require_program(name: &str) -> Result<(), ProcessError> {
    find(OsStr::new(name)).map(drop)
}

/// The path of an installed program; a name with a slash stands for itself.
#[must_use]
pub fn find_program(name: &OsStr) -> Option<PathBuf> {
    let executable = |path: &PathBuf| {
        path.metadata()
            .is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
    };
    if name.as_encoded_bytes().contains(&b'/') {
        return Some(PathBuf::from(name)).filter(executable);
    }
    PATH.split(':').map(|dir| Path::new(dir).join(name)).find(executable)
}

/// The path of an installed program, or an error that names it and its package.
pub(super) fn find(name: &OsStr) -> Result<PathBuf, ProcessError> {
    find_program(name).ok_or_else(|| {
        let program = Path::new(name)
            .file_name()
            .unwrap_or(name)
            .to_string_lossy()
            .into_owned();
        let package = PACKAGES.iter().find(|(known, _)| *known == program).map(|(_, p)| *p);
        ProcessError::NotFound { program, package }
    })
}

//! Takes out of a fresh tree what belongs to the build or to the host, so that any number of machines can be copied from it.

use crate::sources::guest::forget_identity;
use crate::sys::files::{FileError, Kind, Root};

/// Directories whose contents go: downloads, package lists, logs of the build, runtime files, device nodes (systemd-nspawn
/// mounts its own `/dev`, and a copy without nodes needs no right to make them).
const EMPTIED: &[&str] = &[
    "dev",
    "run",
    "tmp",
    "var/cache/apt",
    "var/lib/apt/lists",
    "var/log/apt",
    "var/tmp",
];
/// Files that the bootstrappers copy from the host or write for themselves.
const REMOVED: &[&str] = &[
    "etc/apt/apt.conf.d/99mmdebstrap",
    "etc/hostname",
    "etc/resolv.conf",
    "var/cache/debconf/config.dat-old",
    "var/cache/debconf/templates.dat-old",
    "var/lib/dpkg/diversions-old",
    "var/lib/dpkg/status-old",
    "var/log/alternatives.log",
    "var/log/bootstrap.log",
    "var/log/dpkg.log",
];

/// Leaves a tree that has no identity and nothing that apt can fetch again.
pub(super) fn clean(root: &Root) -> Result<(), FileError> {
    for dir in EMPTIED {
        empty(root, dir)?;
    }
    for file in REMOVED {
        if matches!(root.kind(file)?, Some(Kind::File | Kind::Symlink)) {
            root.remove_file(file)?;
        }
    }
    forget_identity(root)
}

fn empty(root: &Root, dir: &str) -> Result<(), FileError> {
    if root.kind(dir)? != Some(Kind::Directory) {
        return Ok(());
    }
    for name in root.list(dir)? {
        let path = std::path::Path::new(dir).join(name);
        match root.kind(&path)? {
            Some(Kind::Directory) => root.remove_dir_all(&path)?,
            Some(_) => root.remove_file(&path)?,
            None => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn the_build_and_the_host_leave_no_trace() {
        let dir = tempfile::tempdir().unwrap();
        for file in [
            "dev/null",
            "run/x",
            "var/cache/apt/archives/a.deb",
            "var/lib/apt/lists/l",
            "etc/resolv.conf",
            "etc/hostname",
            "etc/machine-id",
            "var/log/bootstrap.log",
            "etc/ssh/ssh_host_rsa_key",
            "etc/keep",
        ] {
            let path = dir.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "x").unwrap();
        }
        clean(&Root::open(dir.path()).unwrap()).unwrap();
        assert_eq!(fs::read(dir.path().join("etc/machine-id")).unwrap(), b"");
        for empty in ["dev", "run", "var/cache/apt", "var/lib/apt/lists", "var/log", "etc/ssh"] {
            assert_eq!(fs::read_dir(dir.path().join(empty)).unwrap().count(), 0, "{empty}");
        }
        let mut left: Vec<_> = fs::read_dir(dir.path().join("etc"))
            .unwrap()
            .map(|e| e.unwrap().file_name())
            .collect();
        left.sort();
        assert_eq!(left, ["keep", "machine-id", "ssh"]);
    }
}

//! What this host must have for a bootstrap, found out before anything is made.

use std::path::{Path, PathBuf};

use rustix::fs::StatVfsMountFlags;

use super::Tool;
use crate::sources::{Distro, SourceError};
use crate::sys::process::{ProcessError, require_program};
use crate::sys::processor::Emulator;

/// Debian's name of this host's architecture.
pub(in crate::sources) fn arch() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "x86" => "i386",
        "aarch64" => "arm64",
        "arm" => "armhf",
        "powerpc64" => "ppc64el",
        "loongarch64" => "loong64",
        same => same,
    }
}

/// Whether programs of `arch` run here: natively, or by what is registered with the kernel's `binfmt_misc`.
pub(in crate::sources) fn check_arch(arch: &str) -> Result<(), SourceError> {
    let host = self::arch();
    if arch == host
        || matches!(
            (host, arch),
            ("amd64", "i386") | ("arm64", "armhf" | "armel") | ("armhf", "armel")
        )
    {
        return Ok(());
    }
    let qemu = match arch {
        "amd64" => "x86_64",
        "arm64" => "aarch64",
        "armhf" | "armel" => "arm",
        "ppc64el" => "ppc64le",
        "mips64el" => "mips64el",
        "loong64" => "loongarch64",
        same => same,
    };
    // The tree has none of its own.
    if Emulator::of(qemu).is_some_and(|emulator| emulator.is_everywhere()) {
        return Ok(());
    }
    Err(SourceError::ForeignArch {
        arch: arch.to_owned(),
        host,
    })
}

/// The bootstrapper itself, and what it is run by.
pub(super) fn check_program(tool: Tool) -> Result<(), ProcessError> {
    [tool.name(), "setpriv", "unshare"]
        .into_iter()
        .try_for_each(require_program)
}

/// The keys to trust: the user's file, or the distribution's as its package installs it.
pub(super) fn find_keyring(distro: Distro, given: Option<&Path>) -> Result<PathBuf, SourceError> {
    if let Some(path) = given {
        let absolute = std::path::absolute(path).map_err(|error| SourceError::io("read", path, error))?;
        return match std::fs::File::open(&absolute).and_then(|file| file.metadata()) {
            Ok(meta) if meta.is_file() => Ok(absolute),
            Ok(_) => Err(SourceError::BadOption {
                option: "keyring",
                given: crate::sys::files::shown(path),
                reason: "it is no regular file",
            }),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Err(SourceError::NoKeyring {
                distro: None,
                path: absolute,
            }),
            Err(error) => Err(SourceError::io("read", &absolute, error)),
        };
    }
    let stem = format!("/usr/share/keyrings/{distro}-archive-keyring");
    // Newer packages have .pgp, with .gpg as a link for a while.
    let found = ["gpg", "pgp"]
        .iter()
        .map(|ending| PathBuf::from(format!("{stem}.{ending}")))
        .find(|path| path.is_file());
    found.ok_or_else(|| SourceError::NoKeyring {
        distro: Some(distro),
        path: format!("{stem}.gpg").into(),
    })
}

/// Refuses a directory on a filesystem where a guest's programs would lose their rights, its devices or everything.
pub(crate) fn check_mount_flags(directory: &Path) -> Result<(), SourceError> {
    let stat = rustix::fs::statvfs(directory).map_err(|errno| SourceError::io("look at", directory, errno.into()))?;
    match hindrance(stat.f_flag) {
        Some(flag) => Err(SourceError::MountFlag {
            path: directory.to_owned(),
            flag,
        }),
        None => Ok(()),
    }
}

fn hindrance(flags: StatVfsMountFlags) -> Option<&'static str> {
    let bad = [
        (StatVfsMountFlags::NOSUID, "nosuid"),
        (StatVfsMountFlags::NODEV, "nodev"),
        (StatVfsMountFlags::NOEXEC, "noexec"),
    ];
    bad.iter()
        .find(|(flag, _)| flags.contains(*flag))
        .map(|(_, name)| *name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_flags_are_named() {
        assert_eq!(hindrance(StatVfsMountFlags::RELATIME), None);
        assert_eq!(
            hindrance(StatVfsMountFlags::NODEV | StatVfsMountFlags::NOEXEC),
            Some("nodev")
        );
        let error = SourceError::MountFlag {
            path: "/srv/my machines".into(),
            flag: "nosuid",
        };
        assert_eq!(
            error.to_string(),
            "'/srv/my machines' is on a filesystem mounted nosuid: a guest's programs would not work there"
        );
        assert_eq!(
            error.hints(),
            ["allow it with `mount -o remount,suid $(findmnt -no TARGET -T '/srv/my machines')`"]
        );
    }

    #[test]
    fn the_host_runs_its_own_programs() {
        check_arch(arch()).unwrap();
        let error = check_arch("vax").unwrap_err();
        assert!(error.to_string().starts_with("programs for 'vax' do not run"));
    }

    #[test]
    fn a_missing_keyring_names_its_package() {
        let error = find_keyring(Distro::Ubuntu, Some(Path::new("/nowhere/keys.gpg"))).unwrap_err();
        assert_eq!(error.to_string(), "keyring '/nowhere/keys.gpg' does not exist");
        assert!(matches!(
            find_keyring(Distro::Debian, Some(Path::new("/etc"))),
            Err(SourceError::BadOption { .. })
        ));
    }
}

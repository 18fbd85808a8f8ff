//! Which program is a tree's PID 1, and how it is told to power off.

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use super::{FILE_MAX, exists, text};
use crate::sys::files::{FileError, Root};

/// A tree's PID 1, as systemd-nspawn would choose it with `--boot`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Init {
    /// systemd.
    Systemd,
    /// Busybox' own.
    Busybox,
    /// System V init.
    Sysvinit,
    /// `openrc-init`. (Alpine boots `OpenRC` by busybox, Gentoo by System V init.)
    OpenRc,
    /// Another program: its path in the guest.
    Other(String),
    /// There is none.
    None,
}

impl Init {
    /// What `KillSignal=` must be so that the guest powers off when its unit stops; `None` where the default does it, or
    /// where nothing is known to.
    #[must_use]
    pub fn kill_signal(&self) -> Option<&'static str> {
        match self {
            // halt is SIGUSR1, poweroff SIGUSR2, reboot SIGTERM: busybox' init/init.c.
            Self::Busybox => Some("SIGUSR2"),
            // The only signal that both take for a power-off: System V init runs its powerfail entries (see make_bootable).
            Self::Sysvinit | Self::OpenRc => Some("SIGPWR"),
            Self::Systemd | Self::Other(_) | Self::None => None,
        }
    }
}

/// Looks for PID 1 where systemd-nspawn does and in its order.
pub fn detect_init(root: &Root) -> Result<Init, FileError> {
    for systemd in ["usr/lib/systemd/systemd", "lib/systemd/systemd"] {
        if exists(root, systemd) {
            return Ok(Init::Systemd);
        }
    }
    let path = match root.resolve("sbin/init") {
        Ok(path) => path,
        Err(error) if error.is_not_found() => return Ok(Init::None),
        Err(error) => return Err(error),
    };
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    Ok(match name.as_str() {
        name if name.starts_with("busybox") => Init::Busybox,
        "systemd" => Init::Systemd,
        "openrc-init" => Init::OpenRc,
        // LXC's template makes it another name of the same file.
        "init" if is_same(root, &path, "bin/busybox") => Init::Busybox,
        "init" | "sysvinit" | "init.sysvinit" if exists(root, "etc/inittab") => Init::Sysvinit,
        _ => Init::Other(format!("/{}", path.display())),
    })
}

/// Whether two paths are one file. What cannot be looked at is none.
fn is_same(root: &Root, one: &Path, other: &str) -> bool {
    let identity = |path: &Path| {
        let found = root.open_file(root.resolve(path)?).map(|file| file.metadata());
        Ok::<_, FileError>(found?.ok().map(|found| (found.dev(), found.ino())))
    };
    matches!((identity(one), identity(Path::new(other))), (Ok(Some(one)), Ok(Some(other))) if one == other)
}

/// Adds what systemd-nspawn or the init wants and a foreign tree may lack.
pub(super) fn make_bootable(root: &Root, init: &Init, notes: &mut Vec<String>) -> Result<(), FileError> {
    if !exists(root, "etc/os-release") && !exists(root, "usr/lib/os-release") {
        // systemd-nspawn refuses to boot a tree without one.
        root.write("etc/os-release", b"ID=linux\nNAME=Linux\nPRETTY_NAME=Linux\n", 0o644)?;
        notes.push("the tree has no os-release file: it was given a generic one".to_owned());
    }
    match init {
        Init::Sysvinit => powerfail_entry(root)?,
        Init::Other(path) => notes.push(format!(
            "'{path}' is an unknown init: set KillSignal= in [Exec] to the signal that powers it off"
        )),
        _ => {}
    }
    Ok(())
}

/// Lets SIGPWR power the guest off, unless the guest has its own idea of a power failure whose program is there.
fn powerfail_entry(root: &Root) -> Result<(), FileError> {
    const ENTRY: &str = "mc::powerfail:/sbin/shutdown -P -h now";
    let Some(inittab) = text(root, "etc/inittab")? else {
        return Ok(());
    };
    let taken = inittab.lines().any(|line| {
        let fields: Vec<&str> = line.splitn(4, ':').collect();
        let [id, _, action, process] = fields[..] else {
            return false;
        };
        let program = process
            .trim_start_matches('+')
            .split_whitespace()
            .next()
            .unwrap_or_default();
        !id.starts_with('#') && matches!(action, "powerfail" | "powerfailnow") && exists(root, program)
    });
    if taken || inittab.len() as u64 + 64 > FILE_MAX {
        return Ok(());
    }
    let newline = if inittab.is_empty() || inittab.ends_with('\n') {
        ""
    } else {
        "\n"
    };
    root.write("etc/inittab", format!("{inittab}{newline}{ENTRY}\n").as_bytes(), 0o644)
}

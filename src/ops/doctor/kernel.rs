//! What the kernel has, and allows.

use std::fs;

use rustix::fs::statfs;

use super::{error, warning};
use crate::machine::trouble::Trouble;

const CGROUPS: &str = "/sys/fs/cgroup";
/// Of a filesystem, see cgroups(7).
const CGROUP2_MAGIC: u64 = 0x6367_7270;
const NAMESPACES: &str = "/proc/sys/user/max_user_namespaces";
/// The first that shifts owners as it mounts, see mount_setattr(2).
const IDMAPPED: (u32, u32) = (5, 12);

pub(super) fn look() -> Vec<Trouble> {
    [cgroups(), user_namespaces(), too_old(&release())]
        .into_iter()
        .flatten()
        .collect()
}

/// As `uname -r` says.
pub(super) fn release() -> String {
    let release = nix::sys::utsname::uname().map(|name| name.release().to_string_lossy().into_owned());
    release.unwrap_or_default()
}

fn cgroups() -> Option<Trouble> {
    let found = statfs(CGROUPS).ok()?;
    (u64::try_from(found.f_type) != Ok(CGROUP2_MAGIC)).then(|| {
        error(
            "cgroup-v1",
            "control groups are of version 1: limits and new guests do not work",
        )
        .seen(format!("{CGROUPS} is no cgroup2 filesystem"))
        .hint("boot with `systemd.unified_cgroup_hierarchy=1` on the kernel's command line")
    })
}

fn user_namespaces() -> Option<Trouble> {
    let text = fs::read_to_string(NAMESPACES).ok()?;
    (text.trim() == "0").then(|| {
        error(
            "no-user-namespaces",
            "user namespaces are turned off: machines with private users do not start, and that is the default",
        )
        .seen(format!("{NAMESPACES} is 0"))
        .hint("`sysctl user.max_user_namespaces=100000`, and take the 0 out of /etc/sysctl.d")
    })
}

fn too_old(release: &str) -> Option<Trouble> {
    let mut numbers = release
        .split(['.', '-', '+'])
        .map_while(|part| part.parse::<u32>().ok());
    let version = (numbers.next()?, numbers.next()?);
    (version < IDMAPPED).then(|| {
        warning(
            "kernel-too-old",
            "the kernel cannot shift owners as it mounts: no linked clones, and `run -x` copies",
        )
        .seen(format!("{release} is older than {}.{}", IDMAPPED.0, IDMAPPED.1))
        .hint("boot a newer kernel")
    })
}

#[cfg(test)]
mod tests {
    use super::too_old;

    #[test]
    fn releases_are_compared_by_number() {
        for (release, old) in [
            ("5.9.1", true),
            ("5.12", false),
            ("6.1.0-18-amd64", false),
            ("2.6.60+", true),
            ("next", false),
        ] {
            assert_eq!(too_old(release).is_some(), old, "{release}");
        }
    }
}

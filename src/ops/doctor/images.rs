//! Where images lie, and what they are.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use rustix::fs::{StatVfs, StatVfsMountFlags, statvfs};

use super::{error, note, warning};
use crate::machine::text::{bytes, printable};
use crate::machine::trouble::Trouble;
use crate::machine::{Cancel, MachineName, OsRelease};
use crate::ops::Places;
use crate::ops::linked::changed::changed;
use crate::ops::linked::top;
use crate::ops::transaction::leftovers;
use crate::storage::layers::Layers;
use crate::sys::files::{Root, shown};
use crate::sys::guest::os_release;

/// What is left of a disk that is as good as full, bytes.
const FULL: u64 = 100 << 20;
/// And of one that soon will be: both less than this, and less than a tenth.
const ALMOST_FULL: u64 = 1 << 30;
/// So many files more are soon made: a small Debian has 7,000.
const FEW_INODES: u64 = 10_000;

pub(super) fn look(places: &Places, cancel: &Cancel) -> Vec<Trouble> {
    let directory = &places.machines;
    let mut found: Vec<Trouble> = open_to_others(directory).into_iter().collect();
    found.extend(filesystem(directory));
    let names = names(directory);
    found.extend(bad_names(directory, &names));
    let machines: Vec<MachineName> = names.iter().filter_map(|name| name.parse().ok()).collect();
    if nix::unistd::geteuid().is_root() {
        found.extend(machines.iter().filter_map(|name| too_old(name, places)));
        found.extend(layers(&machines, places, cancel));
        found.extend(left_over(places));
    }
    found
}

/// How a directory of images is mounted, and how much room is left.
pub(in crate::ops) fn filesystem(directory: &Path) -> Vec<Trouble> {
    let Ok(filesystem) = statvfs(directory) else {
        return Vec::new();
    };
    let mut found: Vec<Trouble> = mounted(directory, &filesystem).into_iter().collect();
    let bytes = (filesystem.f_bavail, filesystem.f_blocks);
    let bytes = (bytes.0 * filesystem.f_frsize, bytes.1 * filesystem.f_frsize);
    found.extend(room(directory, bytes, (filesystem.f_favail, filesystem.f_files)));
    found
}

/// What lies there, without what is hidden, and what is no image.
fn names(directory: &Path) -> BTreeSet<String> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| {
        let name = entry.file_name().into_string().ok()?;
        let is_image = name.ends_with(".raw") || entry.path().is_dir();
        (is_image && !name.starts_with('.')).then_some(name)
    });
    names.collect()
}

/// Programs of guests that set their user would be open to everybody here.
fn open_to_others(directory: &Path) -> Option<Trouble> {
    let mode = fs::metadata(directory).ok()?.mode() & 0o777;
    (mode & 0o077 != 0).then(|| {
        warning(
            "images-open",
            "the images are open to all users: a guest can leave them a program that makes them root",
        )
        .seen(format!("'{}' has mode {mode:o}", shown(directory)))
        .hint(format!("`chmod 700 {}`", shown(directory)))
    })
}

fn mounted(directory: &Path, filesystem: &StatVfs) -> Option<Trouble> {
    let shown = shown(directory);
    let trouble = |code, what: &str, flag: &str| {
        error(code, format!("'{shown}' is mounted {what}: no machine works there"))
            .seen(format!("it has the mount option {flag}"))
            .hint(format!("take {flag} out of /etc/fstab, and `mount -o remount {shown}`"))
    };
    if filesystem.f_flag.contains(StatVfsMountFlags::RDONLY) {
        Some(trouble("images-read-only", "read-only", "ro"))
    } else if filesystem.f_flag.contains(StatVfsMountFlags::NOEXEC) {
        Some(trouble("images-noexec", "so that no program runs from it", "noexec"))
    } else {
        None
    }
}

/// Room in bytes, and for files, each what is left and all of it.
fn room(directory: &Path, (free, all): (u64, u64), (free_inodes, inodes): (u64, u64)) -> Vec<Trouble> {
    let shown = shown(directory);
    let hint = "`machinist clean` frees caches and trash; `machinist images --sort -size` shows the largest";
    let seen = format!("{} of {} are free in '{shown}'", bytes(free), bytes(all));
    let mut found = Vec::new();
    if free < FULL {
        let trouble = error("disk-full", "the disk of the images is full");
        found.push(trouble.seen(seen).hint(hint));
    } else if free < ALMOST_FULL && free < all / 10 {
        let trouble = warning("disk-almost-full", "the disk of the images is almost full");
        found.push(trouble.seen(seen).hint(hint));
    }
    // Some filesystems count none.
    if inodes > 0 && free_inodes < FEW_INODES && free_inodes < inodes / 10 {
        let trouble = warning(
            "inodes-almost-gone",
            "the disk of the images has hardly room for more files",
        );
        let seen = format!("{free_inodes} of {inodes} inodes are free in '{shown}'");
        found.push(trouble.seen(seen).hint(hint));
    }
    found
}

fn bad_names(directory: &Path, names: &BTreeSet<String>) -> Vec<Trouble> {
    let mut found = Vec::new();
    for name in names {
        let stem = name.strip_suffix(".raw").unwrap_or(name);
        let path = shown(&directory.join(name));
        if stem.parse::<MachineName>().is_err() {
            let trouble = warning(
                "name-not-valid",
                format!("'{}' is no name of a machine: it cannot run", printable(stem)),
            );
            let hint = format!("`mv '{path}' …` to a name of letters, digits, '-' and '.'");
            found.push(trouble.seen(format!("'{path}' is there")).hint(hint));
        } else if stem != name && names.contains(stem) {
            let trouble = warning(
                "two-images",
                format!("there are two images '{stem}': systemd takes one of them"),
            );
            let seen = format!("'{}' and '{path}' are there", shown(&directory.join(stem)));
            found.push(trouble.of(stem).seen(seen).hint("`mv` one of them to another name"));
        }
    }
    found
}

/// Guests whose systemd does not start where control groups are of version 2 only.
pub(in crate::ops) fn too_old(name: &MachineName, places: &Places) -> Option<Trouble> {
    let root = Root::open(&places.image(name)).ok()?;
    let release: OsRelease = os_release(&root)?;
    let version = release.version().unwrap_or_default();
    release.lacks_cgroup_v2().then(|| {
        warning(
            "guest-too-old",
            format!("machine '{name}' does not boot here: its systemd knows nothing of cgroup v2"),
        )
        .of(name.as_str())
        .seen(printable(&format!("it is {} {version}", release.id)))
        .hint(format!(
            "upgrade what is in it: `machinist run {name} -- /bin/bash`, which does not boot it"
        ))
    })
}

pub(in crate::ops) fn layers(machines: &[MachineName], places: &Places, cancel: &Cancel) -> Vec<Trouble> {
    let layers = Layers::at(places.layers());
    let mut found = Vec::new();
    for name in machines {
        let lost = top(name, places).and_then(|top| layers.known_below(&top).ok()?.1);
        let Some(lost) = lost else { continue };
        let trouble = error("layer-lost", format!("a layer that machine '{name}' lies on is lost"));
        let seen = format!("there is no '{}'", shown(&lost));
        found.push(trouble.of(name.as_str()).seen(seen).hint("bring it back from a backup"));
    }
    for changed in changed(machines, places, cancel) {
        let names: Vec<&str> = changed.machines.iter().map(MachineName::as_str).collect();
        let trouble = warning(
            "layer-changed",
            format!("a layer below {} was changed by hand", names.join(", ")),
        );
        let hint = format!(
            "bring it back from a backup, or remove '{}' if that is meant to be",
            shown(&changed.seal)
        );
        found.push(
            trouble
                .seen(format!("'{}' was changed", shown(&changed.path)))
                .hint(hint),
        );
    }
    found
}

fn left_over(places: &Places) -> Option<Trouble> {
    let count = leftovers(places).len();
    (count > 0).then(|| {
        note(
            "left-over",
            format!("{count} half-made machines of interrupted calls take room"),
        )
        .hint("`machinist clean` removes them, and so does the next call that makes one")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_is_full_before_nothing_is_left() {
        let codes = |room_: (u64, u64), inodes| {
            let found = room(Path::new("/images"), room_, inodes);
            found.iter().map(|trouble| trouble.code).collect::<Vec<_>>().join(" ")
        };
        let gib = 1 << 30;
        for (bytes, inodes, wanted) in [
            ((50 * gib, 100 * gib), (5_000_000, 6_000_000), ""),
            ((gib / 2, 100 * gib), (5_000_000, 6_000_000), "disk-almost-full"),
            // Most of a small one is left.
            ((gib / 2, gib), (60_000, 65_536), ""),
            ((50 << 20, gib), (60_000, 65_536), "disk-full"),
            ((50 * gib, 100 * gib), (10, 6_000_000), "inodes-almost-gone"),
            // btrfs
            ((50 * gib, 100 * gib), (0, 0), ""),
        ] {
            assert_eq!(codes(bytes, inodes), wanted, "{bytes:?} {inodes:?}");
        }
    }
}

//! Whose archive it is, told by what it has: ours, incus', lxc's, or a root filesystem and nothing else.

use std::fmt;

use crate::machine::manifest::{ABOUT, DIRECTORY, TREE};
use crate::ops::cp::ids::{Ids, Map, Translation};
use crate::sources::tarball::Part;
use crate::sources::tarball::bundle::{Fate, Layout, Member};

/// Who made an archive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `machinist export`
    Machinist,
    /// `incus export`, or that of LXD.
    Incus,
    /// tar(1), of a container's directory in /var/lib/lxc.
    Lxc,
    /// `incus image export`, of an image in one file.
    Image,
    /// `machinectl export-tar`, or tar(1).
    Tar,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Machinist => "machinist",
            Self::Incus => "incus",
            Self::Lxc => "lxc",
            Self::Image => "incus image",
            Self::Tar => "tar",
        })
    }
}

/// What incus keeps of a container.
pub(super) const INCUS_INDEX: &str = "backup/index.yaml";
const INCUS_TREE: &str = "backup/container/rootfs";
/// What an image of incus begins with; it says nothing of settings.
const IMAGE_ABOUT: &str = "metadata.yaml";
/// The settings of a container of lxc.
const LXC_CONFIG: &str = "config";

/// The directories that a root filesystem begins with.
const TOPS: [&str; 24] = [
    "bin",
    "boot",
    "dev",
    "etc",
    "home",
    "init",
    "lib",
    "lib32",
    "lib64",
    "libx32",
    "media",
    "mnt",
    "nix",
    "opt",
    "proc",
    "root",
    "run",
    "sbin",
    "srv",
    "sys",
    "tmp",
    "usr",
    "var",
    "lost+found",
];

/// An archive that is being read.
#[derive(Debug)]
pub(super) struct Archive {
    /// Known after a few entries.
    pub(super) kind: Option<Kind>,
    /// The directory of all of it, with a slash, if there is one.
    prefix: String,
    ids: Translation,
    /// Whether only its settings' beginning is wanted.
    is_glance: bool,
}

impl Archive {
    pub(super) fn new(is_glance: bool) -> Self {
        Self {
            kind: None,
            prefix: String::new(),
            ids: Translation {
                from: Ids::host(),
                to: Ids::host(),
                capabilities: true,
            },
            is_glance,
        }
    }

    fn rest<'a>(&self, path: &'a str) -> &'a str {
        path.strip_prefix(&self.prefix).unwrap_or(path)
    }
}

/// Whether a path is that directory, or in it.
fn is_in(path: &str, directory: &str) -> bool {
    path.strip_prefix(directory)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// The kind of archive that a path is of, and how many directories are before what is told; `None` if it may be of any.
fn kind_of(path: &str, is_directory: bool) -> Option<(Kind, usize)> {
    let mut parts = path.split('/');
    let (first, second) = (parts.next().unwrap_or_default(), parts.next());
    let is_container = |name: &str, is_directory: bool| match name {
        TREE => is_directory || path.contains("rootfs/"),
        LXC_CONFIG => !is_directory,
        _ => false,
    };
    match second {
        _ if first == DIRECTORY => Some((Kind::Machinist, 0)),
        None if first == IMAGE_ABOUT && !is_directory => Some((Kind::Image, 0)),
        _ if TOPS.contains(&first) => Some((Kind::Tar, 0)),
        _ if is_container(first, is_directory || second.is_some()) => Some((Kind::Lxc, 0)),
        Some(second) if first == "backup" && (second == "index.yaml" || is_in(second, "container")) => {
            Some((Kind::Incus, 0))
        }
        Some(second) if is_container(second, is_directory) => Some((Kind::Lxc, 1)),
        _ if is_directory => None,
        _ => Some((Kind::Tar, 0)),
    }
}

impl Layout for Archive {
    fn decide(&mut self, path: Option<&str>, is_directory: bool) -> Option<Part> {
        let (kind, strip) = match path {
            Some(path) => kind_of(path, is_directory)?,
            None => (Kind::Tar, 0),
        };
        self.kind = Some(kind);
        if strip > 0 {
            let first = path.and_then(|path| path.split('/').next()).unwrap_or_default();
            self.prefix = format!("{first}/");
        }
        let subtree = match kind {
            Kind::Machinist | Kind::Lxc | Kind::Image => Some(TREE),
            Kind::Incus => Some(INCUS_TREE),
            Kind::Tar => None,
        };
        Some(Part {
            strip,
            subtree: subtree.and_then(|path| path.parse().ok()),
        })
    }

    fn fate(&self, path: &str) -> Fate {
        let rest = self.rest(path);
        match self.kind {
            None | Some(Kind::Tar) => Fate::Tree,
            Some(Kind::Machinist | Kind::Lxc | Kind::Image) if is_in(rest, TREE) => Fate::Tree,
            Some(Kind::Machinist) if is_in(rest, DIRECTORY) => Fate::Member,
            Some(Kind::Machinist) if rest.is_empty() => Fate::LeftOut,
            Some(Kind::Machinist) => Fate::Stranger,
            Some(Kind::Incus) if is_in(rest, INCUS_TREE) => Fate::Tree,
            Some(Kind::Incus) if rest == INCUS_INDEX => Fate::Member,
            Some(Kind::Lxc) if rest == LXC_CONFIG => Fate::Member,
            // What `export` wrote, in another order: its sums and settings would be left out with it.
            Some(Kind::Lxc) if is_in(rest, DIRECTORY) => Fate::Stranger,
            Some(Kind::Incus | Kind::Lxc | Kind::Image) => Fate::LeftOut,
        }
    }

    fn root(&mut self, uid: u32, gid: u32) {
        // Others write the numbers that the host had; whose the root is, is root.
        if self.kind != Some(Kind::Machinist) {
            // An ordinary user who owns the top directory alone has shifted nothing.
            let first = |id: u32| if id < 1 << 16 { 0 } else { id };
            self.ids.from = Ids {
                users: Map::shifted(first(uid)),
                groups: Map::shifted(first(gid)),
            };
        }
    }

    fn owner(&self, uid: u32, gid: u32) -> (u32, u32) {
        self.ids.owner(uid, gid)
    }

    fn attribute(&self, name: &[u8], value: &[u8]) -> Option<Vec<u8>> {
        self.ids.attribute(name, value)
    }

    fn suffices(&self, members: &[Member]) -> bool {
        let has = |path: &str| members.iter().any(|member| self.rest(&member.path) == path);
        self.is_glance
            && match self.kind {
                // Of an image there is nothing to know but whether it has a tree.
                None | Some(Kind::Image) => false,
                Some(Kind::Tar) => true,
                Some(Kind::Machinist) => has(ABOUT),
                Some(Kind::Incus) => has(INCUS_INDEX),
                Some(Kind::Lxc) => has(LXC_CONFIG),
            }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_made_it_is_told_by_its_first_paths() {
        for (path, is_directory, kind) in [
            ("machinist/export.json", false, Some((Kind::Machinist, 0))),
            ("backup", true, None),
            ("backup/index.yaml", false, Some((Kind::Incus, 0))),
            ("backup/container", true, Some((Kind::Incus, 0))),
            ("config", false, Some((Kind::Lxc, 0))),
            ("metadata.yaml", false, Some((Kind::Image, 0))),
            ("rootfs", true, Some((Kind::Lxc, 0))),
            ("rootfs/etc", true, Some((Kind::Lxc, 0))),
            ("web", true, None),
            ("web/config", false, Some((Kind::Lxc, 1))),
            ("web/rootfs", true, Some((Kind::Lxc, 1))),
            ("etc", true, Some((Kind::Tar, 0))),
            ("etc/config", false, Some((Kind::Tar, 0))),
            ("data/file", false, Some((Kind::Tar, 0))),
            ("init", false, Some((Kind::Tar, 0))),
        ] {
            assert_eq!(kind_of(path, is_directory), kind, "{path}");
        }
    }

    #[test]
    fn only_what_belongs_to_it_is_taken() {
        let mut archive = Archive::new(false);
        archive.decide(Some("web/config"), false).unwrap();
        let fates = ["web/rootfs/etc", "web/config", "web/fstab", "web", "rootfs/x"].map(|path| archive.fate(path));
        assert_eq!(
            fates,
            [Fate::Tree, Fate::Member, Fate::LeftOut, Fate::LeftOut, Fate::Tree]
        );
        archive.prefix.clear();
        archive.decide(Some("metadata.yaml"), false).unwrap();
        let fates = ["metadata.yaml", "rootfs/etc", "templates/hosts.tpl"].map(|path| archive.fate(path));
        assert_eq!(fates, [Fate::LeftOut, Fate::Tree, Fate::LeftOut]);
        archive.decide(Some("machinist"), true).unwrap();
        archive.prefix.clear();
        let fates = ["rootfs", "machinist/x", "other", "rootfs2"].map(|path| archive.fate(path));
        assert_eq!(fates, [Fate::Tree, Fate::Member, Fate::Stranger, Fate::Stranger]);
        archive.root(1000, 1000);
        assert_eq!(archive.owner(1000, 0), (1000, 0));
        archive.decide(Some("etc"), true).unwrap();
        archive.root(1_000_000, 1_000_000);
        assert_eq!(archive.owner(1_000_033, 1_000_000), (33, 0));
    }
}

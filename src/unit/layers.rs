//! The units of a linked machine: systemd mounts its layers where its image is looked for.
//!
//! One `.mount` unit mounts the overlay, see systemd.mount(5), on an empty directory: where that is not empty, the machine
//! is what lies there, and where there is none, it is no machine, or not yet: systemd must not make one. A layer whose files belong to others than the machine's users
//! is mounted before that, with its owners shifted: by a `.mount` unit with `X-mount.idmap=`, see mount(8), or where
//! that does not know it, by a service that runs machinist-helper. systemd-nspawn@.service has `RequiresMountsFor=`: nothing
//! else is needed to start such a machine.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use crate::machine::MachineName;

/// What a machine's mount wants to be.
#[derive(Clone, Debug)]
pub struct Mounts<'a> {
    /// The machine.
    pub name: &'a MachineName,
    /// Where its image is looked for.
    pub image: &'a Path,
    /// The directory of the layer on top, with `tree` and `work` in it.
    pub top: &'a Path,
    /// The layers below, the nearest first.
    pub below: &'a [Lower],
    /// The program that shifts owners where mount(8) cannot.
    pub helper: Option<&'a Path>,
}

/// A layer below.
#[derive(Clone, Debug)]
pub struct Lower {
    /// Its tree.
    pub tree: PathBuf,
    /// Where it is mounted with shifted owners, and how: those of the machine, and the host's root, each as
    /// `FROM:TO:COUNT`. `None` if they are the machine's.
    pub shifted: Option<(PathBuf, [String; 2])>,
}

impl Lower {
    /// What the overlay is laid over.
    #[must_use]
    pub fn seen(&self) -> &Path {
        self.shifted.as_ref().map_or(&self.tree, |(place, _)| place)
    }
}

/// A unit's name, and what its file says.
pub type Unit = (String, String);

/// The name of the unit that mounts something at a path; see "string escaping" in systemd.unit(5).
#[must_use]
pub fn mount_unit(path: &Path) -> String {
    let mut name = String::new();
    for byte in path.as_os_str().as_encoded_bytes().iter().skip(1) {
        match byte {
            b'/' => name.push('-'),
            b'.' if name.is_empty() => name.push_str("\\x2e"),
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b':' | b'_' | b'.' => name.push(char::from(*byte)),
            other => {
                let _ = write!(name, "\\x{other:02x}");
            }
        }
    }
    name + ".mount"
}

/// The head of all of these files.
fn head(name: &MachineName) -> String {
    format!("# Written by machinist: machine '{name}' lies on layers, see `machinist clone --help`.\n")
}

impl Mounts<'_> {
    /// The name of the unit that shifts a layer.
    fn shifting(&self, place: &Path) -> String {
        match self.helper {
            None => mount_unit(place),
            Some(_) => {
                let mount = mount_unit(place);
                mount.trim_end_matches(".mount").to_owned() + ".service"
            }
        }
    }

    /// The units that shift the owners of layers, the lowest last.
    #[must_use]
    pub fn shifts(&self) -> Vec<Unit> {
        let shifted = self.below.iter();
        let shifted = shifted.filter_map(|lower| Some((lower, lower.shifted.as_ref()?)));
        shifted
            .map(|(lower, (place, [users, host]))| {
                let (tree, at, head) = (lower.tree.display(), place.display(), head(self.name));
                let unit = format!(
                    "{head}[Unit]\nDescription=A layer of machine {}, with its users\n\
                     ConditionDirectoryNotEmpty=!{}\n{ASSERT}{tree}\nRequiresMountsFor={tree}\n",
                    self.name,
                    self.image.display()
                );
                let text = match self.helper {
                    None => format!(
                        "{unit}\n[Mount]\nWhat={tree}\nWhere={at}\nType=none\nOptions=bind,X-mount.idmap=b:{users} b:{host}\n\
                         DirectoryMode=0700\n"
                    ),
                    Some(helper) => format!(
                        "{unit}DefaultDependencies=no\nConflicts=umount.target\nBefore=umount.target\n\n[Service]\n\
                         Type=oneshot\nRemainAfterExit=yes\nExecStart=@{} \"{SHIFT_JOB}\" {tree} {at} {users}\n\
                         ExecStop=/usr/bin/umount {at}\n",
                        helper.display()
                    ),
                };
                (self.shifting(place), text)
            })
            .collect()
    }

    /// The unit that mounts the overlay.
    #[must_use]
    pub fn overlay(&self) -> Unit {
        let lowers: Vec<&Path> = self.below.iter().map(Lower::seen).collect();
        let (image, top) = (self.image.display(), self.top.display());
        let mut text = head(self.name);
        let _ = write!(
            text,
            "[Unit]\nDescription=Machine {}\nConditionPathIsDirectory={image}\nConditionDirectoryNotEmpty=!{image}\n\
             RequiresMountsFor={top}\n",
            self.name
        );
        let own = self.below.iter().filter(|lower| lower.shifted.is_none());
        for tree in own.map(|lower| lower.tree.clone()).chain([self.top.join("tree")]) {
            let _ = writeln!(text, "{ASSERT}{}", tree.display());
        }
        for (unit, _) in self.shifts() {
            let _ = write!(text, "Requires={unit}\nAfter={unit}\n");
        }
        let _ = write!(
            text,
            "\n[Mount]\nWhat=machinist\nWhere={image}\nType=overlay\nOptions={}\n{ENVIRONMENT}\n\n\
             [Install]\nWantedBy=multi-user.target\n",
            overlay_options(&lowers, &self.top.join("tree"), &self.top.join("work"))
        );
        (mount_unit(self.image), text)
    }
}

/// How layers are seen as one. The layers below are not trusted: `metacopy=on` would follow what they say of themselves. A
/// redirect leads to another place of the same layers, and a directory that was renamed is one. Without `index` layers may
/// be copied and restored.
const OPTIONS: &str = "redirect_dir=on,metacopy=off,index=off";

/// fsconfig(2) takes 255 bytes for all layers below; mount(2) takes a page.
const ENVIRONMENT: &str = "Environment=LIBMOUNT_FORCE_MOUNT2=always";

/// The options of an overlay over `lowers`, the nearest first; they are to be shorter than a page.
#[must_use]
pub fn overlay_options(lowers: &[&Path], upper: &Path, work: &Path) -> String {
    let lowers: Vec<_> = lowers.iter().map(|path| path.display().to_string()).collect();
    let (upper, work) = (upper.display(), work.display());
    format!(
        "lowerdir={},upperdir={upper},workdir={work},{OPTIONS}",
        lowers.join(":")
    )
}

/// What the helper is called, as argument 0, where it shifts the owners of a layer.
pub const SHIFT_JOB: &str = "machinist: shift";

/// A layer that is lost is told by its name: the kernel says only that something does not exist.
const ASSERT: &str = "AssertPathIsDirectory=";

/// The options of the mount, as the text of a unit has them; empty if there are none.
#[must_use]
pub fn options_of(text: &str) -> &str {
    let mut options = text.lines().filter_map(|line| line.strip_prefix("Options="));
    options.next().unwrap_or_default()
}

/// The directory of the layer on top, as the text of the unit that mounts it says.
#[must_use]
pub fn top_of(text: &str) -> Option<PathBuf> {
    let upper = options_of(text)
        .split(',')
        .find_map(|option| option.strip_prefix("upperdir="))?;
    Path::new(upper).parent().map(Path::to_owned)
}

/// Where the unit mounts something.
#[must_use]
pub fn place_of(text: &str) -> Option<PathBuf> {
    text.lines()
        .find_map(|line| line.strip_prefix("Where="))
        .map(PathBuf::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_escaped_as_systemd_does() {
        for (path, unit) in [
            ("/var/lib/machines/web", "var-lib-machines-web.mount"),
            ("/var/lib/machines/web-2", r"var-lib-machines-web\x2d2.mount"),
            (
                "/run/machinist/layers/a.b/c-1",
                r"run-machinist-layers-a.b-c\x2d1.mount",
            ),
            ("/.x", r"\x2ex.mount"),
        ] {
            assert_eq!(mount_unit(Path::new(path)), unit);
        }
    }

    #[test]
    fn the_layer_on_top_is_read_as_it_is_written() {
        let name = "web".parse().unwrap();
        let below = [
            Lower {
                tree: "/m/b/tree".into(),
                shifted: None,
            },
            Lower {
                tree: "/m/c/tree".into(),
                shifted: Some(("/run/c".into(), ["0:524288:65536".into(), "2147483646:0:1".into()])),
            },
        ];
        let mut mounts = Mounts {
            name: &name,
            image: Path::new("/m/web"),
            top: Path::new("/m/a"),
            below: &below,
            helper: None,
        };
        let (unit, text) = mounts.overlay();
        assert_eq!(unit, "m-web.mount");
        assert_eq!(
            (top_of(&text), place_of(&text)),
            (Some("/m/a".into()), Some("/m/web".into()))
        );
        assert!(
            text.contains("lowerdir=/m/b/tree:/run/c,upperdir=/m/a/tree,workdir=/m/a/work,"),
            "{text}"
        );
        assert!(text.contains("Requires=run-c.mount\n"), "{text}");
        // Nothing is visible before its time, whatever there is of units at boot.
        assert!(
            text.contains("\nConditionPathIsDirectory=/m/web\nConditionDirectoryNotEmpty=!/m/web\n"),
            "{text}"
        );
        assert!(
            text.contains("\nAssertPathIsDirectory=/m/b/tree\nAssertPathIsDirectory=/m/a/tree\n"),
            "{text}"
        );
        let [(unit, text)] = &mounts.shifts()[..] else {
            panic!("one layer is shifted")
        };
        assert_eq!(unit, "run-c.mount");
        assert!(text.contains("\nAssertPathIsDirectory=/m/c/tree\n"), "{text}");
        assert!(
            text.contains("Options=bind,X-mount.idmap=b:0:524288:65536 b:2147483646:0:1\n"),
            "{text}"
        );
        mounts.helper = Some(Path::new("/usr/libexec/machinist-helper"));
        let [(unit, text)] = &mounts.shifts()[..] else {
            panic!("one layer is shifted")
        };
        assert_eq!(unit, "run-c.service");
        assert!(
            text.contains("\"machinist: shift\" /m/c/tree /run/c 0:524288:65536\n"),
            "{text}"
        );
        assert_eq!(top_of("[Mount]\n"), None);
    }
}

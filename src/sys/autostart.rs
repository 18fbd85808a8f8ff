//! Which instances of a template unit start at boot, as `GetUnitFileState` says it, for many of them at once.
//!
//! systemd looks through all its directories for each unit it is asked about: 2 ms each, in PID 1. This is one look for all.

use std::collections::HashSet;
use std::fs;
use std::os::unix::fs::FileTypeExt as _;
use std::path::{Path, PathBuf};

/// The template of machines.
const TEMPLATE: &str = "systemd-nspawn@.service";
/// How directories of links that pull units in are called, see systemd.unit(5).
const PULLING: [&str; 3] = [".wants", ".requires", ".upholds"];

/// The units that something pulls in, and where systemd looks for unit files.
#[derive(Debug)]
pub struct Autostart {
    search_path: Vec<PathBuf>,
    linked: HashSet<String>,
    template_is_masked: bool,
}

impl Autostart {
    /// Looks through systemd's `UnitPath`.
    #[must_use]
    pub fn read(search_path: &[String]) -> Self {
        // Links that packages ship make a unit "static"; those of an administrator and of this boot, "enabled".
        let enabling = |path: &Path| path == Path::new("/etc/systemd/system") || path.starts_with("/run");
        Self::read_from(search_path.iter().map(PathBuf::from).collect(), enabling)
    }

    fn read_from(search_path: Vec<PathBuf>, enabling: impl Fn(&Path) -> bool) -> Self {
        let linked = search_path
            .iter()
            .filter(|path| enabling(path))
            .flat_map(|path| links(path))
            .collect();
        let template_is_masked = masked(&search_path, TEMPLATE).unwrap_or(false);
        Self {
            search_path,
            linked,
            template_is_masked,
        }
    }

    /// Whether the unit file state of this instance is "enabled" or "enabled-runtime".
    #[must_use]
    pub fn is_enabled(&self, unit: &str) -> bool {
        self.linked.contains(unit) && !masked(&self.search_path, unit).unwrap_or(self.template_is_masked)
    }
}

/// The names of links in the `.wants` and other such directories in `directory`.
fn links(directory: &Path) -> Vec<String> {
    let pulls = |name: &str| PULLING.iter().any(|ending| name.ends_with(ending));
    names(directory, |entry| entry.file_name().to_str().is_some_and(pulls))
        .into_iter()
        .flat_map(|name| {
            names(&directory.join(name), |entry| {
                entry.file_type().is_ok_and(|kind| kind.is_symlink())
            })
        })
        .collect()
}

fn names(directory: &Path, wanted: impl Fn(&fs::DirEntry) -> bool) -> Vec<String> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries
        .filter(wanted)
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect()
}

/// Whether the first unit file of that name is /dev/null or empty; `None` if there is none.
fn masked(search_path: &[PathBuf], unit: &str) -> Option<bool> {
    let found = search_path
        .iter()
        .find_map(|directory| fs::metadata(directory.join(unit)).ok())?;
    Some(found.file_type().is_char_device() || (found.is_file() && found.len() == 0))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn read(root: &Path) -> Autostart {
        Autostart::read_from(vec![root.join("etc"), root.join("lib")], |path| path.ends_with("etc"))
    }

    #[test]
    fn links_enable_and_masks_win() {
        let root = tempfile::tempdir().unwrap();
        for directory in [
            "etc/machines.target.wants",
            "etc/other.d",
            "lib/multi-user.target.wants",
        ] {
            fs::create_dir_all(root.path().join(directory)).unwrap();
        }
        fs::write(root.path().join("lib").join(TEMPLATE), "[Service]\n").unwrap();
        let link = |place: &str, name: &str, target: &str| {
            symlink(
                target,
                root.path().join(place).join(format!("systemd-nspawn@{name}.service")),
            )
            .unwrap();
        };
        link(
            "etc/machines.target.wants",
            "web",
            "/usr/lib/systemd/system/systemd-nspawn@.service",
        );
        link(
            "etc/machines.target.wants",
            "masked",
            "/usr/lib/systemd/system/systemd-nspawn@.service",
        );
        link("etc", "masked", "/dev/null");
        link(
            "etc/other.d",
            "drop-in",
            "/usr/lib/systemd/system/systemd-nspawn@.service",
        );
        link("lib/multi-user.target.wants", "static", "../systemd-nspawn@.service");
        let autostart = read(root.path());
        for (name, enabled) in [
            ("web", true),
            ("masked", false),
            ("drop-in", false),
            ("static", false),
            ("x", false),
        ] {
            assert_eq!(
                autostart.is_enabled(&format!("systemd-nspawn@{name}.service")),
                enabled,
                "{name}"
            );
        }
        symlink("/dev/null", root.path().join("etc").join(TEMPLATE)).unwrap();
        assert!(!read(root.path()).is_enabled("systemd-nspawn@web.service"));
    }
}

//! Where machines and their files lie. Tests put all of it under another root.

use std::path::{Path, PathBuf};

use crate::machine::MachineName;
use crate::sources;

/// The directories that verbs work in.
#[derive(Clone, Debug)]
pub struct Places {
    /// Images: `/var/lib/machines`.
    pub machines: PathBuf,
    /// Where machined looks for images besides, see machinectl(1).
    pub other_machines: Vec<PathBuf>,
    /// The administrator's trusted settings: `/etc/systemd/nspawn`.
    pub settings: PathBuf,
    /// Trusted settings of this boot: `/run/systemd/nspawn`.
    pub runtime_settings: PathBuf,
    /// Drop-ins of units: `/etc/systemd/system`.
    pub units: PathBuf,
    /// Where drop-ins of units can lie besides, see systemd.unit(5).
    pub other_units: Vec<PathBuf>,
    /// Drop-ins of limits that last, see `set-property` in systemctl(1): `/etc/systemd/system.control`.
    pub control: PathBuf,
    /// Those of this boot: `/run/systemd/system.control`.
    pub runtime_control: PathBuf,
    /// Where systemd looks for units and drop-ins, what comes first first; see "Unit File Load Path" in systemd.unit(5).
    pub unit_path: Vec<PathBuf>,
    /// Locks: `/run/machinist`.
    pub runtime: PathBuf,
    /// What outlives a boot, the trash among it: `/var/lib/machinist`.
    pub state: PathBuf,
    /// Cached bootstraps: `/var/cache/machinist`.
    pub cache: PathBuf,
    /// Logs of bootstrappers: `/var/log/machinist`.
    pub logs: PathBuf,
    /// The host's journals: `/var/log/journal`.
    pub journal: PathBuf,
    /// The host's users: passwd(5), group(5), subuid(5), subgid(5): `/etc`.
    pub accounts: PathBuf,
    /// Keys that are pinned to addresses: `/etc/machinist/keys.d`.
    pub keys: PathBuf,
}

impl Default for Places {
    fn default() -> Self {
        Self {
            machines: "/var/lib/machines".into(),
            other_machines: OTHER_MACHINES.iter().map(PathBuf::from).collect(),
            settings: "/etc/systemd/nspawn".into(),
            runtime_settings: "/run/systemd/nspawn".into(),
            units: "/etc/systemd/system".into(),
            other_units: vec!["/run/systemd/system".into()],
            control: "/etc/systemd/system.control".into(),
            runtime_control: "/run/systemd/system.control".into(),
            unit_path: UNIT_PATH.iter().map(PathBuf::from).collect(),
            runtime: "/run/machinist".into(),
            state: "/var/lib/machinist".into(),
            cache: "/var/cache/machinist".into(),
            logs: "/var/log/machinist".into(),
            journal: "/var/log/journal".into(),
            accounts: "/etc".into(),
            keys: "/etc/machinist/keys.d".into(),
        }
    }
}

const OTHER_MACHINES: &[&str] = &[
    "/etc/machines",
    "/run/machines",
    "/var/lib/container",
    "/usr/local/lib/machines",
    "/usr/lib/machines",
];

const UNIT_PATH: &[&str] = &[
    "/etc/systemd/system.control",
    "/run/systemd/system.control",
    "/run/systemd/transient",
    "/run/systemd/generator.early",
    "/etc/systemd/system",
    "/etc/systemd/system.attached",
    "/run/systemd/system",
    "/run/systemd/system.attached",
    "/run/systemd/generator",
    "/usr/local/lib/systemd/system",
    "/usr/lib/systemd/system",
    "/run/systemd/generator.late",
];

impl Places {
    /// Those that sources know.
    #[must_use]
    pub fn for_sources(&self) -> sources::Places {
        let images = [std::slice::from_ref(&self.machines), &self.other_machines].concat();
        sources::Places {
            cache: self.cache.clone(),
            logs: self.logs.clone(),
            images,
            keys: self.keys.clone(),
        }
    }

    /// The directory entry that makes `image` visible under `name`: from 258 on machined says where a link leads to, and
    /// the link is all of it that is the machine's.
    #[must_use]
    pub fn image_entry(&self, name: &MachineName, image: &Path) -> PathBuf {
        let Ok(real) = image.canonicalize() else {
            return image.to_owned();
        };
        self.all_machines()
            .flat_map(|directory| [directory.join(name.as_str()), directory.join(format!("{name}.raw"))])
            .find(|entry| entry.is_symlink() && entry.canonicalize().is_ok_and(|leads_to| leads_to == real))
            .unwrap_or_else(|| image.to_owned())
    }

    /// All directories of images.
    pub fn all_machines(&self) -> impl Iterator<Item = &Path> {
        std::iter::once(&self.machines)
            .chain(&self.other_machines)
            .map(PathBuf::as_path)
    }

    /// Where a directory image lies.
    #[must_use]
    pub fn image(&self, name: &MachineName) -> PathBuf {
        self.machines.join(name.as_str())
    }

    /// Where an image lies that is a disk.
    #[must_use]
    pub fn disk_image(&self, name: &MachineName) -> PathBuf {
        self.machines.join(format!("{name}.raw"))
    }

    /// Where a machine's settings lie.
    #[must_use]
    pub fn settings_file(&self, name: &MachineName) -> PathBuf {
        self.settings.join(format!("{name}.nspawn"))
    }

    /// Where the drop-ins of a machine's unit lie.
    #[must_use]
    pub fn drop_ins(&self, name: &MachineName) -> PathBuf {
        self.units.join(format!("{}.d", name.unit()))
    }

    /// Where systemd has the locks of images, by inode.
    #[must_use]
    pub fn image_locks(&self) -> PathBuf {
        self.runtime_settings.join("locks")
    }

    /// Where systemd-nspawn locks the users that it has picked, by the first.
    #[must_use]
    pub fn user_locks(&self) -> PathBuf {
        self.runtime_settings.with_file_name("nspawn-uid")
    }

    /// Every place where the administrator, or `systemctl set-property`, puts drop-ins of a machine's unit.
    #[must_use]
    pub fn all_drop_ins(&self, name: &MachineName) -> Vec<PathBuf> {
        let directory = format!("{}.d", name.unit());
        [&self.units, &self.control, &self.runtime_control]
            .into_iter()
            .chain(&self.other_units)
            .map(|place| place.join(&directory))
            .collect()
    }

    /// Where `remove` moves what the administrator wrote.
    #[must_use]
    pub fn trash(&self) -> PathBuf {
        self.state.join("trash")
    }

    /// What directories with hidden names beside the images are for, see [`super::transaction`].
    #[must_use]
    pub fn papers(&self) -> PathBuf {
        self.state.join("staging")
    }

    /// What linked machines lie on.
    #[must_use]
    pub fn layers(&self) -> PathBuf {
        self.state.join("layers")
    }

    /// Where the former settings of a machine are kept.
    #[must_use]
    pub fn history(&self, name: &MachineName) -> PathBuf {
        self.state.join("history").join(name.as_str())
    }

    /// Where the encrypted secrets of a machine lie. Not in /etc/credstore.encrypted: a directory there fails every unit with
    /// an `ImportCredential=` that fits its name.
    #[must_use]
    pub fn secrets(&self, name: &MachineName) -> PathBuf {
        self.state.join("secrets").join(name.as_str())
    }

    /// Whether a directory is the default one: only there do systemd's own tools look.
    #[must_use]
    pub fn is_default(directory: &Path) -> bool {
        directory == Path::new("/var/lib/machines")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_link_the_link_is_the_image() {
        let root = tempfile::tempdir().unwrap();
        let places = Places {
            machines: root.path().join("machines"),
            ..Places::default()
        };
        let (real, link) = (root.path().join("tree"), places.machines.join("web"));
        std::fs::create_dir_all(&places.machines).unwrap();
        std::fs::create_dir(&real).unwrap();
        std::os::unix::fs::symlink(&real, &link).unwrap();
        let name = "web".parse().unwrap();
        assert_eq!(places.image_entry(&name, &real), link);
        assert_eq!(places.image_entry(&name, &link), link);
        let other = "other".parse().unwrap();
        assert_eq!(places.image_entry(&other, &real), real);
    }
}

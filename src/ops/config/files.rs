//! The .nspawn files of machines: where systemd-nspawn looks, which one it reads, and whether it trusts it.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::machine::MachineName;
use crate::ops::Places;
use crate::sys::files::{FileError, read_regular};

/// How many bytes of a .nspawn file are read: systemd has no limit, and no one writes so much.
pub const MAX_BYTES: u64 = 16 << 20;

/// A .nspawn file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SettingsFile {
    /// Where it lies.
    pub path: PathBuf,
    /// Whether systemd-nspawn heeds all of it: not beside the image, where whoever made that may have put it.
    pub trusted: bool,
}

impl SettingsFile {
    /// The bytes of the file. Never blocks on a fifo.
    pub fn read(&self) -> Result<Vec<u8>, FileError> {
        read_regular(&self.path, MAX_BYTES)
    }

    /// Whether systemd-nspawn finds it there; a link that leads nowhere is none to it. `None` if we may not look.
    fn exists(&self) -> Option<bool> {
        match fs::metadata(&self.path) {
            Ok(_) => Some(true),
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => None,
            Err(error) => Some(error.kind() != io::ErrorKind::NotFound),
        }
    }
}

/// The files of one machine that exist, in the order in which systemd-nspawn looks: it reads the first.
#[must_use]
pub fn of_machine(name: &MachineName, places: &Places) -> Vec<SettingsFile> {
    of_image(name, image(name, places).as_deref(), places)
}

/// The same where systemd-nspawn is told which image, or directory, to run.
#[must_use]
pub fn of_image(name: &MachineName, image: Option<&Path>, places: &Places) -> Vec<SettingsFile> {
    let file = format!("{name}.nspawn");
    let trusted = [&places.settings, &places.runtime_settings].map(|directory| SettingsFile {
        path: directory.join(&file),
        trusted: true,
    });
    let beside = image.and_then(|image| image.parent().map(Path::to_path_buf));
    // Without an image it would be read where images usually lie.
    let beside = SettingsFile {
        path: beside.unwrap_or_else(|| places.machines.clone()).join(&file),
        trusted: false,
    };
    let mut found = Vec::new();
    for file in trusted.into_iter().chain([beside]) {
        // One that may be there counts where it would be the one: reading it says why nobody knows.
        if file.exists().unwrap_or(found.is_empty()) {
            found.push(file);
        }
    }
    found
}

/// A file by its path, which need not be where systemd-nspawn looks: one in a directory of images, or beside an image of
/// its name, is not trusted there.
#[must_use]
pub fn by_path(path: &Path, places: &Places) -> SettingsFile {
    let directory = path.parent().unwrap_or(Path::new(""));
    let directory = if directory == Path::new("") {
        Path::new(".")
    } else {
        directory
    };
    let real = directory.canonicalize().unwrap_or_else(|_| directory.to_path_buf());
    let image = real.join(path.file_stem().unwrap_or_default());
    let mut raw = image.clone().into_os_string();
    raw.push(".raw");
    let beside_image = image.is_dir() || Path::new(&raw).is_file();
    SettingsFile {
        path: path.to_path_buf(),
        trusted: !beside_image && !places.all_machines().any(|machines| machines == real),
    }
}

/// The names that files lie here for, where systemd-nspawn looks; those that are no machine's name are left out.
#[must_use]
pub fn all_names(places: &Places) -> BTreeSet<MachineName> {
    let directories = [places.settings.as_path(), places.runtime_settings.as_path()];
    directories
        .into_iter()
        .chain(places.all_machines())
        .filter_map(|directory| fs::read_dir(directory).ok())
        .flat_map(Iterator::flatten)
        .filter_map(|entry| {
            let name = entry.file_name();
            name.to_str()?.strip_suffix(".nspawn")?.parse().ok()
        })
        .collect()
}

/// The image of a machine, where machined finds it: a directory, or a `.raw` file.
#[must_use]
pub fn image(name: &MachineName, places: &Places) -> Option<PathBuf> {
    places
        .all_machines()
        .flat_map(|directory| [directory.join(name.as_str()), directory.join(format!("{name}.raw"))])
        .find(|path| path.exists())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_file_counts_and_beside_the_image_none_is_trusted() {
        let root = tempfile::tempdir().unwrap();
        let at = |name: &str| root.path().join(name);
        let places = Places {
            machines: at("machines"),
            other_machines: vec![at("other")],
            settings: at("etc"),
            runtime_settings: at("run"),
            ..Places::default()
        };
        for directory in ["machines", "other/web", "etc", "run"] {
            fs::create_dir_all(at(directory)).unwrap();
        }
        let web: MachineName = "web".parse().unwrap();
        let found = || -> Vec<(PathBuf, bool)> {
            of_machine(&web, &places)
                .into_iter()
                .map(|file| (file.path, file.trusted))
                .collect()
        };
        assert_eq!(found(), []);
        std::os::unix::fs::symlink("nowhere", at("etc/web.nspawn")).unwrap();
        fs::write(at("run/web.nspawn"), "").unwrap();
        fs::write(at("other/web.nspawn"), "").unwrap();
        // Not beside the image that machined finds.
        fs::write(at("machines/web.nspawn"), "").unwrap();
        let expected = [(at("run/web.nspawn"), true), (at("other/web.nspawn"), false)];
        assert_eq!(found(), expected);
        assert_eq!(all_names(&places), BTreeSet::from([web]));
        assert!(!by_path(&at("machines/db.nspawn"), &places).trusted);
        assert!(!by_path(&at("other/web.nspawn"), &places).trusted);
        assert!(by_path(&at("etc/web.nspawn"), &places).trusted);
        assert!(by_path(Path::new("web.nspawn"), &places).trusted);
    }
}

//! `machinist.conf`: our own settings, layered as systemd layers its own, see systemd-system.conf(5).
//!
//! The main file is the first one found; the drop-ins of all directories are read after it, sorted by name, and one in
//! a directory that comes first replaces its namesakes. Later assignments win.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use configparser::ini::Ini;

/// Where configuration lies, the administrator's own first.
pub const DIRECTORIES: &[&str] = &[
    "/etc/machinist",
    "/run/machinist",
    "/usr/local/lib/machinist",
    "/usr/lib/machinist",
];

/// Every key there is: section, key, what it is for. The packaged file shows the same ones, a test compares them.
pub const KEYS: &[(&str, &str)] = &[
    ("Bootstrap", "Bootstrapper"),
    ("Bootstrap", "DebianMirror"),
    ("Bootstrap", "UbuntuMirror"),
    ("Bootstrap", "Proxy"),
    ("Bootstrap", "Include"),
    ("Images", "Server"),
    ("Manager", "Parallel"),
    ("Clean", "TrashAgeDays"),
];

/// What the configuration says; what it does not say has its default.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// `[Bootstrap] Bootstrapper=`: "auto", "debootstrap" or "mmdebstrap".
    pub bootstrapper: Option<String>,
    /// `[Bootstrap] DebianMirror=`: a URL.
    pub debian_mirror: Option<String>,
    /// `[Bootstrap] UbuntuMirror=`: a URL.
    pub ubuntu_mirror: Option<String>,
    /// `[Bootstrap] Proxy=`: the URL of an HTTP proxy for mirrors and downloads.
    pub proxy: Option<String>,
    /// `[Bootstrap] Include=`: packages that every bootstrapped machine gets, separated by commas or blanks.
    pub include: Vec<String>,
    /// `[Images] Server=`: the URL of the catalogue of images.
    pub image_server: Option<String>,
    /// `[Manager] Parallel=`: how many machines a verb works on at once.
    pub parallel: usize,
    /// `[Clean] TrashAgeDays=`: `clean` removes trash older than this.
    pub trash_age: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            bootstrapper: None,
            debian_mirror: None,
            ubuntu_mirror: None,
            proxy: None,
            include: Vec::new(),
            image_server: None,
            parallel: 64,
            trash_age: days(30),
        }
    }
}

/// Why the configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A file that cannot be read or parsed.
    #[error("cannot read configuration '{}': {reason}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
    /// A key that there is not.
    #[error("configuration '{}' sets unknown key [{section}] {key}=", path.display())]
    UnknownKey {
        /// The file.
        path: PathBuf,
        /// The section.
        section: String,
        /// The key.
        key: String,
    },
    /// A value that makes no sense.
    #[error("configuration '{}' sets {key}={value}: {reason}", path.display())]
    Value {
        /// The file.
        path: PathBuf,
        /// The key.
        key: String,
        /// Its value.
        value: String,
        /// What is wrong with it.
        reason: &'static str,
    },
}

const fn days(number: u64) -> Duration {
    Duration::from_secs(number * 24 * 60 * 60)
}

impl Config {
    /// Reads the configuration of this host.
    pub fn load() -> Result<Self, ConfigError> {
        Self::load_from(&DIRECTORIES.iter().map(PathBuf::from).collect::<Vec<_>>())
    }

    /// Reads it from these directories, the one that wins first.
    pub fn load_from(directories: &[PathBuf]) -> Result<Self, ConfigError> {
        let mut config = Self::default();
        for file in files(directories) {
            config.apply(&file)?;
        }
        Ok(config)
    }

    fn apply(&mut self, path: &Path) -> Result<(), ConfigError> {
        let mut ini = Ini::new_cs();
        ini.set_comment_symbols(&['#', ';']);
        ini.set_inline_comment_symbols(Some(&[]));
        let map = ini.load(path).map_err(|reason| ConfigError::File {
            path: path.to_owned(),
            reason,
        })?;
        for (section, keys) in map {
            for (key, value) in keys {
                if !KEYS.contains(&(section.as_str(), key.as_str())) {
                    return Err(ConfigError::UnknownKey {
                        path: path.to_owned(),
                        section,
                        key,
                    });
                }
                self.set(path, &key, value.as_deref().unwrap_or_default().trim())?;
            }
        }
        Ok(())
    }

    fn set(&mut self, path: &Path, key: &str, value: &str) -> Result<(), ConfigError> {
        let bad = |reason| ConfigError::Value {
            path: path.to_owned(),
            key: key.to_owned(),
            value: value.to_owned(),
            reason,
        };
        // An empty value takes back what a file before said.
        let text = (!value.is_empty()).then(|| value.to_owned());
        match key {
            "Bootstrapper" => match value {
                "" | "auto" | "debootstrap" | "mmdebstrap" => self.bootstrapper = text,
                _ => return Err(bad("it must be auto, debootstrap or mmdebstrap")),
            },
            "DebianMirror" => self.debian_mirror = text,
            "UbuntuMirror" => self.ubuntu_mirror = text,
            "Proxy" => self.proxy = text,
            "Server" => self.image_server = text,
            "Include" if value.is_empty() => self.include.clear(),
            "Include" => {
                let words = value.split([',', ' ', '\t']).filter(|word| !word.is_empty());
                self.include.extend(words.map(str::to_owned));
            }
            "Parallel" => match value.parse() {
                Ok(number @ 1..=1000) => self.parallel = number,
                _ => return Err(bad("it must be a number from 1 to 1000")),
            },
            _ => match value.parse() {
                Ok(number @ 0..=36_500) => self.trash_age = days(number),
                _ => return Err(bad("it must be a number of days")),
            },
        }
        Ok(())
    }
}

/// The files that count, in the order in which they are read.
fn files(directories: &[PathBuf]) -> Vec<PathBuf> {
    let main = directories
        .iter()
        .map(|dir| dir.join("machinist.conf"))
        .find(|path| path.exists());
    let mut drop_ins: BTreeMap<std::ffi::OsString, PathBuf> = BTreeMap::new();
    for directory in directories {
        let Ok(entries) = std::fs::read_dir(directory.join("conf.d")) else {
            continue;
        };
        for entry in entries
            .flatten()
            .filter(|entry| entry.path().extension().is_some_and(|e| e == "conf"))
        {
            drop_ins.entry(entry.file_name()).or_insert_with(|| entry.path());
        }
    }
    // A link to /dev/null masks.
    let masked = |path: &PathBuf| path.canonicalize().is_ok_and(|real| real == Path::new("/dev/null"));
    main.into_iter()
        .chain(drop_ins.into_values())
        .filter(|path| !masked(path))
        .collect()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn layers_as_systemd_does() {
        let root = tempfile::tempdir().unwrap();
        let [etc, lib] = ["etc", "lib"].map(|name| root.path().join(name));
        for dir in [&etc, &lib] {
            fs::create_dir_all(dir.join("conf.d")).unwrap();
        }
        fs::write(
            lib.join("machinist.conf"),
            "[Manager]\nParallel=3\n[Bootstrap]\nInclude=vim\n",
        )
        .unwrap();
        fs::write(
            lib.join("conf.d/10-a.conf"),
            "[Manager]\nParallel=4\n[Bootstrap]\nInclude=curl, less\n",
        )
        .unwrap();
        fs::write(lib.join("conf.d/20-b.conf"), "[Bootstrap]\nProxy=http://p:1/\n").unwrap();
        let directories = [etc.clone(), lib];
        let config = Config::load_from(&directories).unwrap();
        assert_eq!((config.parallel, config.include.join(" ")), (4, "vim curl less".into()));
        assert_eq!(config.proxy.as_deref(), Some("http://p:1/"));
        // The administrator's main file replaces the packaged one, and a namesake replaces a drop-in.
        fs::write(etc.join("machinist.conf"), "# mine\n[Manager]\nParallel=9\n").unwrap();
        fs::write(etc.join("conf.d/10-a.conf"), "").unwrap();
        std::os::unix::fs::symlink("/dev/null", etc.join("conf.d/20-b.conf")).unwrap();
        let config = Config::load_from(&directories).unwrap();
        assert_eq!((config.parallel, config.include.len(), config.proxy), (9, 0, None));
    }

    #[test]
    fn mistakes_name_the_file() {
        let root = tempfile::tempdir().unwrap();
        let file = root.path().join("machinist.conf");
        for (text, expected) in [
            ("[Manager]\nParalel=3\n", "unknown key [Manager] Paralel="),
            ("[Manager]\nParallel=0\n", "Parallel=0: it must be a number"),
            ("[Bootstrap]\nBootstrapper=cdebootstrap\n", "it must be auto"),
        ] {
            fs::write(&file, text).unwrap();
            let error = Config::load_from(&[root.path().to_owned()]).unwrap_err().to_string();
            assert!(error.contains(expected) && error.contains("machinist.conf"), "{error}");
        }
    }
}

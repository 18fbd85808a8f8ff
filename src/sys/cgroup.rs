//! Control groups as the kernel shows them, see Documentation/admin-guide/cgroup-v2.rst: what a unit uses, and its files.

use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

/// Where the unified hierarchy is.
const ROOT: &str = "/sys/fs/cgroup";

/// The control group of a unit.
#[derive(Clone, Debug)]
pub struct Cgroup {
    directory: PathBuf,
}

/// Why a file of a control group could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// Not the name of a file in a control group.
    #[error("'{}' is not the name of a file in a control group", crate::machine::text::printable(.0))]
    Name(String),
    /// No such file: its controller is not there, or there is no such file at all.
    #[error("there is no '{file}' in control group '{}'", directory.display())]
    Missing {
        /// The file.
        file: String,
        /// The control group.
        directory: PathBuf,
    },
    /// The kernel said no.
    #[error("cannot {action} '{}'", path.display())]
    Kernel {
        /// "read" or "write".
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// What it said.
        source: io::Error,
    },
}

impl Cgroup {
    /// The group of a unit's `ControlGroup=`; `None` if it has none.
    #[must_use]
    pub fn of(control_group: &str) -> Option<Self> {
        let path = control_group.strip_prefix('/').filter(|path| !path.is_empty())?;
        let directory = Path::new(ROOT).join(path);
        directory.is_dir().then_some(Self { directory })
    }

    /// Where its files are.
    pub(crate) fn directory(&self) -> &Path {
        &self.directory
    }

    /// A file with one number; `None` if there is no such file, or it says `max`.
    #[must_use]
    pub fn counter(&self, file: &str) -> Option<u64> {
        fs::read_to_string(self.directory.join(file)).ok()?.trim().parse().ok()
    }

    /// The number of a key in a file of lines `KEY NUMBER`.
    #[must_use]
    pub fn value(&self, file: &str, key: &str) -> Option<u64> {
        let text = fs::read_to_string(self.directory.join(file)).ok()?;
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix(key)?.strip_prefix(' '))?;
        line.trim().parse().ok()
    }

    /// A count of a device in `io.stat`, such as `rbytes`; 0 if it was not used yet. Only whole disks are counted.
    #[must_use]
    pub fn device(&self, device: &Path, count: &str) -> Option<u64> {
        let text = fs::read_to_string(self.directory.join("io.stat")).ok()?;
        let number = rustix::fs::stat(device).ok()?.st_rdev;
        let number = format!("{}:{}", rustix::fs::major(number), rustix::fs::minor(number));
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix(&number)?.strip_prefix(' '));
        let Some(line) = line else {
            let place = Path::new("/sys/dev/block").join(number);
            return (place.exists() && !place.join("partition").exists()).then_some(0);
        };
        line.split(' ')
            .find_map(|word| word.strip_prefix(count)?.strip_prefix('='))
            .and_then(|number| number.parse().ok())
    }

    /// The whole of a file.
    pub fn read(&self, file: &str) -> Result<String, CgroupError> {
        let path = self.path(file)?;
        fs::read_to_string(&path).map_err(|source| self.explain("read", file, path, source))
    }

    /// Writes a file at once.
    pub fn write(&self, file: &str, text: &str) -> Result<(), CgroupError> {
        let path = self.path(file)?;
        let written = OpenOptions::new()
            .write(true)
            .open(&path)
            .and_then(|mut opened| opened.write_all(text.as_bytes()));
        written.map_err(|source| self.explain("write", file, path, source))
    }

    /// Where a file is.
    pub fn path(&self, file: &str) -> Result<PathBuf, CgroupError> {
        Self::check_name(file)?;
        Ok(self.directory.join(file))
    }

    /// Refuses what is not the name of a file in a control group, such as `memory.high`.
    pub fn check_name(file: &str) -> Result<(), CgroupError> {
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '.' | '_');
        let (controller, rest) = file.split_once('.').unwrap_or_default();
        if controller.is_empty() || rest.is_empty() || !file.chars().all(plain) {
            return Err(CgroupError::Name(file.to_owned()));
        }
        Ok(())
    }

    fn explain(&self, action: &'static str, file: &str, path: PathBuf, source: io::Error) -> CgroupError {
        if source.kind() == io::ErrorKind::NotFound {
            let (file, directory) = (file.to_owned(), self.directory.clone());
            CgroupError::Missing { file, directory }
        } else {
            CgroupError::Kernel { action, path, source }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_found_and_names_stay_inside() {
        let root = tempfile::tempdir().unwrap();
        let group = Cgroup {
            directory: root.path().to_owned(),
        };
        fs::write(root.path().join("memory.current"), "4096\n").unwrap();
        fs::write(root.path().join("memory.max"), "max\n").unwrap();
        fs::write(root.path().join("cpu.stat"), "usage_usec 12\nuser_usec 3\n").unwrap();
        assert_eq!(
            (group.counter("memory.current"), group.counter("memory.max")),
            (Some(4096), None)
        );
        assert_eq!(
            (group.value("cpu.stat", "usage_usec"), group.value("cpu.stat", "usage")),
            (Some(12), None)
        );
        for name in [
            "",
            "memory",
            "../memory.max",
            "payload/memory.max",
            ".",
            "..",
            ".x",
            "x.",
            "a.b c",
        ] {
            assert!(matches!(group.path(name), Err(CgroupError::Name(_))), "{name}");
        }
        assert!(matches!(group.read("memory.high"), Err(CgroupError::Missing { .. })));
        group.write("memory.max", "5").unwrap();
        assert_eq!(group.read("memory.max").unwrap()[..1], *"5");
    }
}

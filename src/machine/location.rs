//! Where something is copied from or to: a path of the host, one in a machine, or a stream.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use super::MachineName;

/// One side of a copy, as it stands on the command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Location {
    /// A path of the host.
    Host(PathBuf),
    /// `NAME:PATH`; the path starts at the machine's root, with or without a leading `/`.
    Machine(MachineName, PathBuf),
    /// `-`
    Stream,
}

/// Why a word is no location.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LocationError {
    /// Nothing at all.
    #[error("a path is empty")]
    Empty,
    /// What stands before the colon.
    #[error("'{0}' is no name of a machine")]
    NoMachine(String),
    /// Nothing after the colon.
    #[error("there is no path after '{0}:'")]
    NoPath(MachineName),
}

impl Location {
    /// Reads a word. What has a slash before its first colon is a path of the host, as is what has no colon.
    pub fn parse(word: &OsStr) -> Result<Self, LocationError> {
        let bytes = word.as_bytes();
        match bytes {
            b"" => return Err(LocationError::Empty),
            b"-" => return Ok(Self::Stream),
            _ => {}
        }
        let host = || Ok(Self::Host(PathBuf::from(word)));
        let Some(colon) = bytes.iter().position(|byte| *byte == b':') else {
            return host();
        };
        let (name, path) = (&bytes[..colon], &bytes[colon + 1..]);
        if name.contains(&b'/') {
            return host();
        }
        let name = String::from_utf8_lossy(name);
        let machine: MachineName = match name.parse() {
            Ok(machine) => machine,
            Err(_) => return Err(LocationError::NoMachine(name.into_owned())),
        };
        if path.is_empty() {
            return Err(LocationError::NoPath(machine));
        }
        Ok(Self::Machine(machine, PathBuf::from(OsStr::from_bytes(path))))
    }

    /// The machine, if it is in one.
    #[must_use]
    pub fn machine(&self) -> Option<&MachineName> {
        match self {
            Self::Machine(name, _) => Some(name),
            _ => None,
        }
    }

    /// As it is shown: a machine's path always with a `/` in front.
    #[must_use]
    pub fn label(&self) -> PathBuf {
        match self {
            Self::Host(path) => path.clone(),
            Self::Machine(name, path) => {
                let bytes = path.as_os_str().as_bytes();
                let mut label = OsString::from(format!("{name}:"));
                if !bytes.starts_with(b"/") {
                    label.push("/");
                }
                label.push(path);
                PathBuf::from(label)
            }
            Self::Stream => PathBuf::from("-"),
        }
    }
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.label().to_string_lossy())
    }
}

/// Whether a path asks for what is in a directory, and not for the directory: `DIR/.`, `/`, `..`.
#[must_use]
pub fn means_contents(path: &Path) -> bool {
    path.as_os_str().as_bytes().ends_with(b"/.") || path.as_os_str() == "." || path.file_name().is_none()
}

/// Whether a path can only be a directory: it ends in a slash.
#[must_use]
pub fn means_directory(path: &Path) -> bool {
    path.as_os_str().as_bytes().ends_with(b"/")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(word: &str) -> Result<Location, LocationError> {
        Location::parse(OsStr::new(word))
    }

    #[test]
    fn a_colon_after_a_name_is_a_machines_path() {
        let machine = |path: &str| Location::Machine("web-1".parse().unwrap(), path.into());
        assert_eq!(parse("web-1:/etc/hosts"), Ok(machine("/etc/hosts")));
        assert_eq!(parse("web-1:etc"), Ok(machine("etc")));
        assert_eq!(parse("web-1:/a:b"), Ok(machine("/a:b")));
        assert_eq!(parse("-"), Ok(Location::Stream));
        for host in ["/a:b", "./a:b", "a", "./-", "../x/y:z"] {
            assert_eq!(parse(host), Ok(Location::Host(host.into())), "{host}");
        }
        assert_eq!(parse(""), Err(LocationError::Empty));
        assert_eq!(parse("web-1:"), Err(LocationError::NoPath("web-1".parse().unwrap())));
        for bad in ["x_y:/a", ":/a", "a b:c"] {
            assert!(matches!(parse(bad), Err(LocationError::NoMachine(_))), "{bad}");
        }
    }

    #[test]
    fn any_bytes_are_a_path() {
        let word = OsStr::from_bytes(b"web:/a\xff\nb");
        let path = PathBuf::from(OsStr::from_bytes(b"/a\xff\nb"));
        assert_eq!(
            Location::parse(word),
            Ok(Location::Machine("web".parse().unwrap(), path))
        );
        let host = OsStr::from_bytes(b"\xff/x");
        assert_eq!(Location::parse(host), Ok(Location::Host(host.into())));
    }

    #[test]
    fn a_machines_path_is_shown_from_its_root() {
        assert_eq!(parse("web:etc/hosts").unwrap().to_string(), "web:/etc/hosts");
        assert_eq!(parse("web:/").unwrap().to_string(), "web:/");
        assert_eq!(parse("web:/srv/").unwrap().to_string(), "web:/srv/");
    }

    #[test]
    fn contents_are_asked_for_as_cp_has_it() {
        for path in ["a/.", ".", "/", "..", "/a/..", "/."] {
            assert!(means_contents(Path::new(path)), "{path}");
        }
        for path in ["a", "a/", "/a", "a/.b"] {
            assert!(!means_contents(Path::new(path)), "{path}");
        }
    }
}

//! What a new machine is made from, as the user writes it.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use super::catalogue::ImageName;
use super::oci::Image;
use super::{SourceError, Url, disk, mirror};
use crate::machine::MachineName;

/// Endings of archives that are taken, longest first.
pub(super) const TAR_ENDINGS: &[&str] = &[
    ".tar.bz2", ".tar.zst", ".tar.gz", ".tar.xz", ".tbz2", ".tar", ".tgz", ".txz", ".tzst",
];

/// What a new machine is made from, as the user writes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// `debian:SUITE`, `ubuntu:SUITE`.
    Bootstrap {
        /// Whose packages.
        distro: Distro,
        /// The suite's code name or alias, lexically valid.
        suite: String,
    },
    /// A local `.tar`, compressed or not.
    Tarball(PathBuf),
    /// A local disk image, or what else [`disk`] takes.
    Disk(PathBuf),
    /// The same, from standard input.
    Stdin,
    /// The same, from a web server.
    Url(Url),
    /// `images:DISTRO/RELEASE`: of a catalogue.
    Catalogue(ImageName),
    /// A directory.
    Directory(PathBuf),
    /// An image of a container.
    Image(Image),
    /// `machine:NAME`: not filled from here, but cloned.
    Machine(MachineName),
    /// `template:NAME`.
    Template(Template),
}

/// A distribution that can be bootstrapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Distro {
    /// Debian.
    Debian,
    /// Ubuntu.
    Ubuntu,
}

/// A tree made out of what the host has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Template {
    /// Nothing but the host's static busybox.
    Busybox,
}

impl FromStr for Source {
    type Err = SourceError;

    fn from_str(text: &str) -> Result<Self, SourceError> {
        if let Some((kind, rest)) = text.split_once(':') {
            match kind {
                "debian" => return bootstrap_source(Distro::Debian, rest, text),
                "ubuntu" => return bootstrap_source(Distro::Ubuntu, rest, text),
                "template" if rest == "busybox" => return Ok(Self::Template(Template::Busybox)),
                "template" => {
                    return Err(SourceError::UnknownTemplate { given: shown(rest) });
                }
                "images" => return Ok(Self::Catalogue(rest.parse()?)),
                "machine" => {
                    return rest
                        .parse()
                        .map(Self::Machine)
                        .map_err(|error| SourceError::BadMachine { error });
                }
                _ => {}
            }
        }
        if let Some(image) = Image::parse(text) {
            return Ok(Self::Image(image?));
        }
        if text == "-" {
            return Ok(Self::Stdin);
        }
        let lower = text.to_ascii_lowercase();
        let unsupported = |kind| SourceError::Unsupported {
            given: shown(text),
            kind,
        };
        if let Some((_, kind)) = LATER_PREFIXES.iter().find(|(prefix, _)| lower.starts_with(prefix)) {
            return Err(unsupported(kind));
        }
        if lower.starts_with("http://") || lower.starts_with("https://") {
            let url: Url = text.parse().map_err(|reason| SourceError::BadUrl {
                given: mirror::without_password(&shown(text)),
                reason,
            })?;
            return Ok(Self::Url(url));
        }
        if text.ends_with('/') || [".", ".."].contains(&text) {
            return Ok(Self::Directory(PathBuf::from(text)));
        }
        if disk::is_name(&lower) {
            return Ok(Self::Disk(PathBuf::from(text)));
        }
        if TAR_ENDINGS
            .iter()
            .any(|ending| lower.ends_with(ending) && lower.len() > ending.len())
        {
            return Ok(Self::Tarball(PathBuf::from(text)));
        }
        // A word alone may be the name of a machine.
        if text.contains('/') {
            return Ok(Self::Directory(PathBuf::from(text)));
        }
        Err(SourceError::NoSource { given: shown(text) })
    }
}

/// Kinds of sources that this version recognises but cannot read yet, by what they begin with.
const LATER_PREFIXES: &[(&str, &str)] = &[("ssh:", "remote machines as a source")];

fn bootstrap_source(distro: Distro, suite: &str, given: &str) -> Result<Source, SourceError> {
    // debootstrap and apt put it into URLs and file names; '/' is what "buster/updates" has, which is no suite to start from.
    let valid = suite.len() <= 64
        && suite.starts_with(|c: char| c.is_ascii_alphanumeric())
        && suite
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_' | '+'));
    if suite.is_empty() {
        Err(SourceError::NoSuite { distro })
    } else if valid {
        Ok(Source::Bootstrap {
            distro,
            suite: suite.to_owned(),
        })
    } else {
        Err(SourceError::BadSuite {
            distro,
            given: shown(given),
        })
    }
}

/// A user's string as an error shows it: control characters escaped, shortened.
pub(super) fn shown(text: &str) -> String {
    let mut short: String = text.chars().take(200).flat_map(char::escape_debug).collect();
    if text.chars().nth(200).is_some() {
        short.push('…');
    }
    short
}

impl Distro {
    /// As in a source: `debian`, `ubuntu`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Debian => "debian",
            Self::Ubuntu => "ubuntu",
        }
    }

    /// A suite that there is.
    pub(super) fn example(self) -> &'static str {
        match self {
            Self::Debian => "trixie",
            Self::Ubuntu => "noble",
        }
    }

    /// What to do about a suite that there is not.
    pub(super) fn suite_hints(self) -> Vec<String> {
        match self {
            Self::Debian => vec![
                "Debian's suites are stable, testing, sid and code names such as trixie or bookworm".to_owned(),
                "suites that are no longer supported are on `--mirror http://archive.debian.org/debian`".to_owned(),
            ],
            Self::Ubuntu => vec![
                "Ubuntu's suites are code names such as noble or jammy".to_owned(),
                "suites that are no longer supported are on `--mirror http://old-releases.ubuntu.com/ubuntu`"
                    .to_owned(),
            ],
        }
    }
}

impl fmt::Display for Distro {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl Source {
    /// Whether it is a disk image by its name; what comes from elsewhere without one may be one all the same.
    #[must_use]
    pub fn is_disk(&self) -> bool {
        match self {
            Self::Disk(_) => true,
            Self::Url(url) => disk::is_name(&url.file_name().to_ascii_lowercase()),
            _ => false,
        }
    }
}

impl Source {
    /// Whether it will stay an image, and become no directory, unless it is to be extracted, as far as its name tells.
    #[must_use]
    pub fn stays_image(&self) -> bool {
        let name = match self {
            Self::Disk(path) => path.to_string_lossy().into_owned(),
            Self::Url(url) => url.file_name().to_owned(),
            _ => return false,
        };
        self.is_disk() && !disk::is_tree_name(&name.to_ascii_lowercase())
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bootstrap { distro, suite } => write!(f, "{distro}:{suite}"),
            Self::Tarball(path) | Self::Disk(path) | Self::Directory(path) => write!(f, "{}", path.display()),
            Self::Machine(name) => write!(f, "machine:{name}"),
            Self::Url(url) => write!(f, "{url}"),
            Self::Catalogue(name) => write!(f, "images:{name}"),
            Self::Image(image) => write!(f, "{image}"),
            Self::Stdin => f.write_str("-"),
            Self::Template(Template::Busybox) => f.write_str("template:busybox"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_each_form() {
        for text in [
            "debian:trixie",
            "ubuntu:noble",
            "template:busybox",
            "web.tar",
            "/srv/a b.tar.zst",
            "x.TGZ",
            "-",
            "dir.raw/",
            "/srv/rootfs",
            "..",
            "machine:web",
            "oci:dir:latest",
            "oci-archive:a.tar",
            "docker-archive:/srv/a b.tar:x",
            "docker://quay.io/y:1",
            "https://example.org/a.tar.xz?x=1",
            "images:alpine/3.20",
            "https://example.org/a.img.xz?x=1",
            "disk.raw",
            "a.img.xz",
            "B.qcow2",
        ] {
            assert_eq!(text.parse::<Source>().unwrap().to_string(), text);
        }
        assert_eq!(
            "debian:sid".parse::<Source>().unwrap(),
            Source::Bootstrap {
                distro: Distro::Debian,
                suite: "sid".to_owned()
            }
        );
        assert!(
            "https://example.org/a.IMG.xz?x=1"
                .parse::<Source>()
                .is_ok_and(|source| source.is_disk())
        );
        // A file whose name has a colon is still a file.
        assert_eq!("a:b.tar".parse::<Source>().unwrap(), Source::Tarball("a:b.tar".into()));
    }

    #[test]
    fn what_is_no_source_says_what_would_be() {
        for text in ["", "web", "debian", ".tar", "fedora:42", "a\nb", "rootfs.zip", "oci:"] {
            let error = text.parse::<Source>().unwrap_err();
            assert!(matches!(error, SourceError::NoSource { .. }), "{text:?}: {error}");
            let hints = error.hints();
            assert!(hints[0].contains("debian:SUITE") && hints[1].contains(".tar, .tar.bz2, .tar.gz,"));
        }
    }

    #[test]
    fn suites_are_checked_lexically() {
        let error = "ubuntu:".parse::<Source>().unwrap_err();
        assert_eq!(error.to_string(), "the suite is missing in 'ubuntu:'");
        assert_eq!(error.hints(), ["for example `ubuntu:noble`"]);
        for suite in ["../x", "a b", "-x", "a/b", "a\n", ".", "a;b", "ü"] {
            let error = format!("debian:{suite}").parse::<Source>().unwrap_err();
            assert!(matches!(error, SourceError::BadSuite { .. }), "{suite:?}: {error}");
        }
    }

    #[test]
    fn later_kinds_are_told_apart_from_nonsense() {
        for text in ["ssh:host", "ssh:host/machine"] {
            let error = text.parse::<Source>().unwrap_err();
            assert!(matches!(error, SourceError::Unsupported { .. }), "{text:?}: {error}");
        }
    }
}

//! Where root filesystems come from: bootstrappers, archives, templates.
//!
//! [`fill`] makes a tree out of a [`Source`]; [`guest::prepare`] makes any tree a usable guest. Neither knows where machines
//! live or how they become visible: that is `ops`'.

pub mod apt;
pub mod archive;
pub mod bootstrap;
pub mod busybox;
pub mod cache;
mod directory;
pub mod download;
pub mod error;
pub mod guest;
pub mod mirror;
pub mod password;
pub mod sum;
pub mod tarball;
pub mod url;

use std::fmt;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::str::FromStr;

pub use download::{DownloadOptions, Verify};
pub use error::SourceError;
pub use url::Url;

use crate::machine::{Cancel, MachineName, Report};
use crate::storage;
use crate::sys::files;

/// What standard input is called.
const STDIN: &str = "standard input";

/// Endings of archives that are taken, longest first.
const TAR_ENDINGS: &[&str] = &[
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
    /// The same, from standard input.
    Stdin,
    /// The same, from a web server.
    Url(Url),
    /// A directory.
    Directory(PathBuf),
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

/// Which program bootstraps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Bootstrapper {
    /// mmdebstrap where it is installed, otherwise debootstrap.
    #[default]
    Auto,
    /// debootstrap.
    Debootstrap,
    /// mmdebstrap.
    Mmdebstrap,
}

/// How the cache of bootstrapped trees is used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CacheUse {
    /// Copy a cached tree; make one if there is none for the mirror's present Release file.
    #[default]
    Use,
    /// Neither read nor fill the cache.
    Skip,
    /// Make a new cached tree even if there is one.
    Refresh,
}

/// What shapes a tree, by the kind of its source.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Of a bootstrap.
    pub bootstrap: BootstrapOptions,
    /// Of an archive.
    pub archive: tarball::Wanted,
    /// Of a download.
    pub download: DownloadOptions,
}

/// What shapes a bootstrap; the default is a small tree that boots and has network.
#[derive(Clone, Debug, Default)]
pub struct BootstrapOptions {
    /// Packages on top of what a usable guest needs.
    pub include: Vec<String>,
    /// The bootstrapper's variant; `minbase` if `None`.
    pub variant: Option<String>,
    /// Archive components; the distribution's own default if empty.
    pub components: Vec<String>,
    /// The mirror's URL: `http:`, `https:`, `file:` or `copy:`; the distribution's public one if `None`.
    pub mirror: Option<String>,
    /// URL of an HTTP proxy; that of the environment if `None`.
    pub proxy: Option<String>,
    /// Debian's name of the architecture; the host's if `None`.
    pub arch: Option<String>,
    /// The keys that the mirror is trusted by; the distribution's if `None`.
    pub keyring: Option<PathBuf>,
    /// Which program does it.
    pub bootstrapper: Bootstrapper,
    /// How the cache is used.
    pub cache: CacheUse,
}

/// Where sources keep what outlives a call.
#[derive(Clone, Debug)]
pub struct Places {
    /// `/var/cache/machinist`: made with mode 0700.
    pub cache: PathBuf,
    /// `/var/log/machinist`: made with mode 0750.
    pub logs: PathBuf,
    /// Where the images of machines are: `/var/lib/machines` and others.
    pub images: Vec<PathBuf>,
}

impl Default for Places {
    fn default() -> Self {
        Self {
            cache: "/var/cache/machinist".into(),
            logs: "/var/log/machinist".into(),
            images: vec!["/var/lib/machines".into()],
        }
    }
}

/// Fills `target` with a root filesystem. It must not exist; its parent must, on the filesystem of the machine's final place.
///
/// After an error `target` may exist half-made: the caller, who chose a hidden name for it, removes it.
pub fn fill(
    source: &Source,
    options: &Options,
    places: &Places,
    target: &Path,
    report: &dyn Report,
    cancel: &Cancel,
) -> Result<(), SourceError> {
    cancel.check()?;
    let parent = match target.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    bootstrap::check_mount_flags(parent)?;
    match source {
        Source::Bootstrap { distro, suite } => {
            let recipe = bootstrap::Recipe::new(*distro, suite, &options.bootstrap)?;
            cache::fill(&recipe, options.bootstrap.cache, places, target, report, cancel)
        }
        Source::Tarball(archive) => {
            storage::for_directory(parent)?.create(target)?;
            let extracted = tarball::extract(archive, target, &options.archive, report, cancel);
            extracted
                .map(drop)
                .map_err(|error| SourceError::from(error).full_at(parent))
        }
        Source::Stdin => {
            let name = Path::new(STDIN);
            let opened = std::io::stdin().as_fd().try_clone_to_owned();
            let opened = opened.map_err(|error| SourceError::io("open", name, error))?;
            storage::for_directory(parent)?.create(target)?;
            let extracted = tarball::extract_file(opened.into(), name, target, &options.archive, report, cancel);
            extracted
                .map(drop)
                .map_err(|error| SourceError::from(error).full_at(parent))
        }
        Source::Url(url) => {
            let (file, sum) = download::fetch(url, &options.download, options.archive.sum, places, report, cancel)?;
            // Compared once more while it is unpacked: what is kept may have rotted.
            let wanted = tarball::Wanted {
                sum: Some(sum),
                ..options.archive.clone()
            };
            storage::for_directory(parent)?.create(target)?;
            let name = Path::new(url.file_name());
            let extracted = tarball::extract_file(file, name, target, &wanted, report, cancel);
            extracted
                .map(drop)
                .map_err(|error| SourceError::from(error).full_at(parent))
        }
        Source::Directory(directory) => {
            directory::fill(directory, places, target, report, cancel).map_err(|error| error.full_at(parent))
        }
        Source::Machine(name) => Err(SourceError::IsMachine { name: name.clone() }),
        Source::Template(Template::Busybox) => {
            storage::for_directory(parent)?.create(target)?;
            busybox::fill(target, report, cancel).map_err(|error| error.full_at(parent))
        }
    }
}

/// What [`fill`] would do, one line per step. Touches nothing and asks no mirror, but finds what is missing on this host.
pub fn plan(source: &Source, options: &Options, places: &Places) -> Result<Vec<String>, SourceError> {
    match source {
        Source::Bootstrap { distro, suite } => {
            let recipe = bootstrap::Recipe::new(*distro, suite, &options.bootstrap)?;
            let cached = options.bootstrap.cache == CacheUse::Use && cache::has_any(&recipe, places);
            Ok(recipe.plan(&places.cache, cached))
        }
        Source::Tarball(archive) => {
            // Not opened: that would wait for who feeds a fifo, and take away what was fed.
            std::fs::metadata(archive).map_err(|error| SourceError::io("open", archive, error))?;
            Ok(unpacking(&format!("'{}'", files::shown(archive)), &options.archive))
        }
        Source::Stdin => Ok(unpacking(STDIN, &options.archive)),
        Source::Url(url) => {
            let mut steps = download::plan(url, &options.download, options.archive.sum, places);
            let part = tarball::Wanted {
                sum: None,
                ..options.archive.clone()
            };
            steps.extend(unpacking(&format!("'{}'", shown(url.file_name())), &part));
            Ok(steps)
        }
        Source::Directory(directory) => {
            let found = directory::find(directory, places)?;
            Ok(vec![format!("copy directory '{}'", files::shown(&found))])
        }
        Source::Machine(name) => Err(SourceError::IsMachine { name: name.clone() }),
        Source::Template(Template::Busybox) => {
            let program = busybox::find()?;
            Ok(vec![format!("copy '{}' and link its applets", program.display())])
        }
    }
}

fn unpacking(archive: &str, wanted: &tarball::Wanted) -> Vec<String> {
    let mut steps = vec![if wanted.part.is_all() {
        format!("unpack {archive}")
    } else {
        format!("unpack what {archive} has below {}", wanted.part)
    }];
    steps.extend(wanted.sum.map(|sum| format!("check that its SHA-256 sum is {sum}")));
    steps
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
                "machine" => {
                    return rest
                        .parse()
                        .map(Self::Machine)
                        .map_err(|error| SourceError::BadMachine { error });
                }
                _ => {}
            }
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
            let name = url.file_name().to_ascii_lowercase();
            return match LATER_ENDINGS.iter().find(|(ending, _)| name.ends_with(ending)) {
                Some((_, kind)) => Err(unsupported(kind)),
                None => Ok(Self::Url(url)),
            };
        }
        if text.ends_with('/') || [".", ".."].contains(&text) {
            return Ok(Self::Directory(PathBuf::from(text)));
        }
        if let Some((_, kind)) = LATER_ENDINGS.iter().find(|(ending, _)| lower.ends_with(ending)) {
            return Err(unsupported(kind));
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
const LATER_PREFIXES: &[(&str, &str)] = &[
    ("oci:", "OCI images"),
    ("docker:", "OCI images"),
    ("images:", "the image catalogue"),
    ("ssh:", "remote machines as a source"),
];

/// The same, by how they end.
const LATER_ENDINGS: &[(&str, &str)] = &[
    (".raw", "disk images"),
    (".img", "disk images"),
    (".img.xz", "disk images"),
    (".img.gz", "disk images"),
    (".img.zst", "disk images"),
    (".qcow2", "disk images"),
    (".squashfs", "disk images"),
];

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
fn shown(text: &str) -> String {
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
    fn example(self) -> &'static str {
        match self {
            Self::Debian => "trixie",
            Self::Ubuntu => "noble",
        }
    }
}

impl fmt::Display for Distro {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bootstrap { distro, suite } => write!(f, "{distro}:{suite}"),
            Self::Tarball(path) | Self::Directory(path) => write!(f, "{}", path.display()),
            Self::Machine(name) => write!(f, "machine:{name}"),
            Self::Url(url) => write!(f, "{url}"),
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
            "https://example.org/a.tar.xz?x=1",
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
        // A file whose name has a colon is still a file.
        assert_eq!("a:b.tar".parse::<Source>().unwrap(), Source::Tarball("a:b.tar".into()));
    }

    #[test]
    fn a_plan_does_not_open_a_fifo() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("fifo.tar");
        rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
        let (sender, planned) = std::sync::mpsc::channel();
        let source = Source::Tarball(path);
        std::thread::spawn(move || {
            let _ = sender.send(plan(&source, &Options::default(), &Places::default()).is_ok());
        });
        assert_eq!(planned.recv_timeout(std::time::Duration::from_secs(5)), Ok(true));
    }

    #[test]
    fn what_is_no_source_says_what_would_be() {
        for text in ["", "web", "debian", ".tar", "fedora:42", "a\nb", "rootfs.zip"] {
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
        for text in [
            "https://example.org/a.img.xz?x=1",
            "oci:dir:latest",
            "docker://x/y:1",
            "disk.raw",
            "a.img.xz",
            "b.qcow2",
            "images:alpine/3.20",
        ] {
            let error = text.parse::<Source>().unwrap_err();
            assert!(matches!(error, SourceError::Unsupported { .. }), "{text:?}: {error}");
        }
    }
}

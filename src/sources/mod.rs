//! Where root filesystems come from: bootstrappers, archives, templates.
//!
//! [`fill`] makes a tree out of a [`Source`]; [`guest::prepare`] makes any tree a usable guest. Neither knows where machines
//! live or how they become visible: that is `ops`'.

pub mod apt;
pub mod archive;
pub mod bootstrap;
pub mod busybox;
pub mod cache;
pub mod catalogue;
pub mod digest;
mod directory;
pub mod disk;
pub mod download;
pub mod error;
pub mod guest;
pub mod mirror;
pub mod oci;
pub mod password;
mod shelf;
mod source;
pub mod sum;
pub mod tarball;
pub mod trust;
pub mod url;
#[cfg(test)]
#[allow(dead_code, reason = "it is that of the tests on hosts")]
#[path = "../../tests/host/web.rs"]
mod web;

use std::fs::File;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};

pub use download::{DownloadOptions, Verify};
pub use error::SourceError;
pub use source::{Distro, Source, Template};
pub use url::Url;

use catalogue::Found;
use download::Demand;
use source::shown;
use sum::Sum;

use crate::machine::{Cancel, Report};
use crate::storage;
use crate::sys::files;

/// What standard input is called.
const STDIN: &str = "standard input";

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
    /// Of a disk image.
    pub disk: disk::DiskOptions,
    /// Of a download.
    pub download: DownloadOptions,
    /// Of an image of a catalogue.
    pub catalogue: catalogue::CatalogueOptions,
    /// Of an image of a container.
    pub image: oci::ImageOptions,
}

/// What came of filling a tree, besides the tree.
#[derive(Clone, Debug, Default)]
pub struct Filled {
    /// What it starts if it is to: images of containers say so.
    pub program: Option<oci::Program>,
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
    /// Keys that are pinned: `/etc/machinist/keys.d`.
    pub keys: PathBuf,
}

impl Default for Places {
    fn default() -> Self {
        Self {
            cache: "/var/cache/machinist".into(),
            logs: "/var/log/machinist".into(),
            images: vec!["/var/lib/machines".into()],
            keys: "/etc/machinist/keys.d".into(),
        }
    }
}

/// Fills `target` with a root filesystem; of a disk image that is not extracted it becomes a file. It must not exist; its
/// parent must, on the filesystem of the machine's final place.
///
/// After an error `target` may exist half-made: the caller, who chose a hidden name for it, removes it.
pub fn fill(
    source: &Source,
    options: &Options,
    places: &Places,
    target: &Path,
    report: &dyn Report,
    cancel: &Cancel,
) -> Result<Filled, SourceError> {
    cancel.check()?;
    let parent = parent_of(target);
    bootstrap::check_mount_flags(parent)?;
    let program = fill_tree(source, options, places, target, report, cancel).map_err(|error| match source {
        // The cache of bootstraps may lie on another disk, and tells of its own.
        Source::Bootstrap { .. } => error,
        _ => error.full_at(parent),
    })?;
    // What an archive has may be an image: its name does not tell.
    let is_archive = matches!(source, Source::Tarball(_) | Source::Stdin | Source::Url(_));
    if !is_archive || !options.archive.part.is_all() || !oci::is_image(target) {
        return Ok(Filled { program });
    }
    let program = oci::unfold(&shown(&source.to_string()), options, target, report, cancel)?;
    Ok(Filled { program: Some(program) })
}

fn parent_of(target: &Path) -> &Path {
    match target.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// Fills `target`, and tells what it starts if the source says so.
fn fill_tree(
    source: &Source,
    options: &Options,
    places: &Places,
    target: &Path,
    report: &dyn Report,
    cancel: &Cancel,
) -> Result<Option<oci::Program>, SourceError> {
    let make = || storage::for_directory(parent_of(target))?.create(target);
    match source {
        Source::Bootstrap { distro, suite } => {
            let recipe = bootstrap::Recipe::new(*distro, suite, &options.bootstrap)?;
            cache::fill(&recipe, options.bootstrap.cache, places, target, report, cancel)?;
        }
        Source::Disk(image) => {
            let file = archive::open(image).map_err(|error| SourceError::io("open", image, error))?;
            disk::fill(file, image, options.disk, &options.archive, target, report, cancel)?;
        }
        Source::Tarball(archive) => {
            make()?;
            tarball::extract(archive, target, &options.archive, report, cancel)?;
        }
        Source::Stdin => {
            let name = Path::new(STDIN);
            let opened = std::io::stdin().as_fd().try_clone_to_owned();
            let file = File::from(opened.map_err(|error| SourceError::io("open", name, error))?);
            if options.disk.extract {
                disk::fill(file, name, options.disk, &options.archive, target, report, cancel)?;
            } else {
                make()?;
                tarball::extract_file(file, name, target, &options.archive, report, cancel)?;
            }
        }
        Source::Url(_) | Source::Catalogue(_) => {
            let Fetched {
                url,
                file,
                sum,
                is_tree,
            } = fetch(source, options, places, report, cancel)?;
            // Compared once more while it is unpacked: what is kept may have rotted.
            let wanted = tarball::Wanted {
                sum: Some(sum),
                ..options.archive.clone()
            };
            let name = Path::new(url.file_name());
            let disk = disk::DiskOptions {
                extract: options.disk.extract || is_tree,
                ..options.disk
            };
            let filled = if source.is_disk() || disk.extract {
                disk::fill(file, name, disk, &wanted, target, report, cancel)
            } else {
                make()?;
                let extracted = tarball::extract_file(file, name, target, &wanted, report, cancel);
                extracted.map(drop).map_err(SourceError::from)
            };
            // Else the same would be unpacked in vain again and again, as long as the server has nothing else.
            if options.download.cache != CacheUse::Skip && filled.as_ref().is_err_and(SourceError::is_of_bytes) {
                download::forget(&url, sum, places, report, cancel);
            }
            filled?;
        }
        Source::Directory(directory) => directory::fill(directory, places, target, report, cancel)?,
        Source::Image(image) => return oci::fill(image, options, places, target, report, cancel).map(Some),
        Source::Machine(name) => return Err(SourceError::IsMachine { name: name.clone() }),
        Source::Template(Template::Busybox) => {
            make()?;
            busybox::fill(target, report, cancel)?;
        }
    }
    Ok(None)
}

/// What was downloaded.
struct Fetched {
    url: Url,
    file: File,
    sum: Sum,
    /// Whether it is said to be an image of a filesystem, of which a directory is to be made, and no archive.
    is_tree: bool,
}

/// Downloads what a source is, and checks it.
fn fetch(
    source: &Source,
    options: &Options,
    places: &Places,
    report: &dyn Report,
    cancel: &Cancel,
) -> Result<Fetched, SourceError> {
    let (given, wanted) = (options.archive.sum, &options.download);
    match source {
        Source::Catalogue(name) => {
            let found = catalogue::find(name, options, places, report, cancel)?;
            let Found {
                url,
                demand,
                is_squashfs,
            } = found;
            // That of the catalogue is always compared: with what the caller knows, already here.
            given.map_or(Ok(()), |sum| Demand::given(sum).check(&url, demand.digest))?;
            let (file, sum) = download::fetch_as(&url, wanted, Some(demand), places, report, cancel)?;
            let is_tree = is_squashfs;
            Ok(Fetched {
                url,
                file,
                sum,
                is_tree,
            })
        }
        Source::Url(url) => {
            let (file, sum) = download::fetch(url, wanted, given, places, report, cancel)?;
            let (url, is_tree) = (url.clone(), false);
            Ok(Fetched {
                url,
                file,
                sum,
                is_tree,
            })
        }
        other => Err(SourceError::NoSource {
            given: shown(&other.to_string()),
        }),
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
        Source::Disk(image) => {
            std::fs::metadata(image).map_err(|error| SourceError::io("open", image, error))?;
            let mut steps = vec![describe_disk(source, &format!("'{}'", files::shown(image)), options)];
            steps.extend(options.archive.sum.map(checking));
            Ok(steps)
        }
        Source::Stdin if options.disk.extract => {
            let mut steps = vec![describe_disk(source, STDIN, options)];
            steps.extend(options.archive.sum.map(checking));
            Ok(steps)
        }
        Source::Stdin => Ok(unpacking(STDIN, &options.archive)),
        Source::Url(url) => {
            let mut steps = download::plan(url, &options.download, options.archive.sum, places)?;
            let part = tarball::Wanted {
                sum: None,
                ..options.archive.clone()
            };
            let name = format!("'{}'", shown(url.file_name()));
            if source.is_disk() || options.disk.extract {
                steps.push(describe_disk(source, &name, options));
                return Ok(steps);
            }
            steps.extend(unpacking(&name, &part));
            Ok(steps)
        }
        Source::Catalogue(name) => {
            let mut steps = catalogue::plan(name, options, places)?;
            let part = tarball::Wanted {
                sum: None,
                ..options.archive.clone()
            };
            steps.extend(unpacking("it", &part));
            Ok(steps)
        }
        Source::Directory(directory) => {
            let found = directory::find(directory, places)?;
            Ok(vec![format!("copy directory '{}'", files::shown(&found))])
        }
        Source::Image(image) => oci::plan(image, options, places),
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
    steps.extend(wanted.sum.map(checking));
    steps
}

fn describe_disk(source: &Source, image: &str, options: &Options) -> String {
    let stays = source.stays_image() && !options.disk.extract;
    disk::describe(image, options.disk.partition, stays)
}

fn checking(sum: sum::Sum) -> String {
    format!("check that its SHA-256 sum is {sum}")
}

#[cfg(test)]
mod tests {
    use super::*;

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
}

//! Images of containers as sources: OCI layouts, archives of them and of `docker save`, and registries.
//!
//! `layout`, `saved` and `registry` have the parts of an image, `blobs` finds the one that is wanted, `manifest` and
//! `platform` are what is said of it, `program` is what it starts. `exported` is a machine that `export` wrote as one.

mod auth;
mod blobs;
mod error;
pub mod exported;
mod helper;
mod layout;
mod manifest;
mod platform;
mod program;
mod reference;
mod registry;
mod saved;
#[cfg(test)]
mod tests;
mod user;

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

pub use crate::sources::digest::Digest;
pub use error::OciError;
pub(crate) use layout::split as split_layout;
pub(crate) use platform::architecture;
pub(crate) use program::{POWER_OFF, SHIELD};
pub use program::{Program, Runs, Settled};
pub use reference::Reference;
pub(crate) use reference::is_tag;

use self::blobs::{Blobs, find};
use self::layout::Layout;
use self::manifest::{Config, Document, Manifest};
use self::platform::Wanted;
use self::registry::{Registry, Way};
use super::source::shown;
use super::sum::Sum;
use super::tarball::{self, Depth, Room, TarballError};
use super::{Options, Places, SourceError};
use crate::machine::{Cancel, Report};
use crate::storage;
use crate::sys::files::{Kind, Root, remove_tree};

/// What an image is named by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Image {
    /// `oci:DIR[:TAG]`: what comes behind the first colon.
    Layout(String),
    /// `oci-archive:FILE[:TAG]`, `docker-archive:FILE[:TAG]`: what it begins with, and the rest.
    Archive(&'static str, String),
    /// `docker://NAME`
    Registry(Reference),
}

/// How images are fetched and chosen.
#[derive(Clone, Debug, Default)]
pub struct ImageOptions {
    /// The architecture, as Debian or images call it; the host's if `None`.
    pub arch: Option<String>,
    /// A registry on this host need not prove who it is, nor speak TLS.
    pub is_trusted: bool,
}

/// How archives are named.
const ARCHIVES: [&str; 2] = ["oci-archive:", "docker-archive:"];

impl Image {
    /// Reads a source that may be one; `None` if it is none.
    pub(super) fn parse(text: &str) -> Option<Result<Self, OciError>> {
        if let Some(name) = text.strip_prefix("docker://") {
            return Some(name.parse().map(Self::Registry));
        }
        let rest = |prefix: &str| {
            text.strip_prefix(prefix)
                .filter(|rest| !rest.is_empty())
                .map(str::to_owned)
        };
        if let Some(rest) = rest("oci:") {
            return Some(Ok(Self::Layout(rest)));
        }
        let archive = ARCHIVES
            .into_iter()
            .find_map(|prefix| Some(Self::Archive(prefix, rest(prefix)?)));
        archive.map(Ok)
    }

    /// What it is called, as far as a machine can be called so.
    #[must_use]
    pub fn stem(&self) -> String {
        let of_path = |text: &str| {
            let path = text.split(':').next().unwrap_or_default().trim_end_matches('/');
            let name = path.rsplit('/').next().unwrap_or_default();
            name.split('.').next().unwrap_or_default().to_owned()
        };
        match self {
            Self::Layout(text) | Self::Archive(_, text) => of_path(text),
            Self::Registry(reference) => reference.stem().to_owned(),
        }
    }
}

impl fmt::Display for Image {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Layout(text) => write!(f, "oci:{text}"),
            Self::Archive(prefix, text) => write!(f, "{prefix}{text}"),
            Self::Registry(reference) => write!(f, "{reference}"),
        }
    }
}

/// Fills `target` with an image, and tells what it starts.
pub(super) fn fill(
    image: &Image,
    options: &Options,
    places: &Places,
    target: &Path,
    report: &dyn Report,
    cancel: &Cancel,
) -> Result<Program, SourceError> {
    let wanted = Wanted::new(options.image.arch.as_deref());
    let build = Build {
        target,
        wanted: &wanted,
        max_size: options.archive.max_size,
        report,
        cancel,
    };
    let called = shown(&image.to_string());
    match image {
        Image::Layout(text) => {
            let (directory, tag) = layout::split(text);
            build.of_layout(&directory, &called, tag.as_deref())
        }
        Image::Archive(_, text) => {
            let (file, tag) = split_file(text);
            let place = Unpacked::beside(target)?;
            let bounded = tarball::Wanted {
                max_size: options.archive.max_size,
                ..tarball::Wanted::default()
            };
            tarball::extract(&file, &place.0, &bounded, report, cancel)?;
            build.of_archive(&place.0, &called, tag.as_deref())
        }
        Image::Registry(reference) => {
            let way = Way {
                proxy: options.download.proxy.as_deref(),
                cache: options.download.cache,
                verify: !options.image.is_trusted,
                places,
                report,
                cancel,
            };
            let registry = Registry::open(reference, way)?;
            let (descriptor, bytes) = registry.manifest()?;
            let parsed = Document::parse(&bytes, &descriptor.media_type);
            let (manifest, config) = match parsed.map_err(|reason| blobs::bad(&called, "the manifest", reason))? {
                Document::Index(offered) => find(&registry, offered, &wanted)?,
                Document::Manifest(manifest) => blobs::with_config(&registry, manifest, &wanted)?,
            };
            build.stack(&registry, &manifest, config)
        }
    }
}

/// What [`fill`] would do. Asks nobody.
pub(super) fn plan(image: &Image, options: &Options, places: &Places) -> Result<Vec<String>, SourceError> {
    let wanted = Wanted::new(options.image.arch.as_deref());
    let chosen = format!("choose the image for {}", wanted.platform.shown());
    let unpack = "unpack its layers, each checked by its SHA-256 sum".to_owned();
    let called = shown(&image.to_string());
    Ok(match image {
        Image::Layout(text) => {
            let (directory, tag) = layout::split(text);
            let layout = Layout::open(&directory, &called)?;
            find(&layout, layout.offered(tag.as_deref())?, &wanted)?;
            vec![format!("read '{called}'"), chosen, unpack]
        }
        Image::Archive(_, text) => {
            let (file, _) = split_file(text);
            fs::metadata(&file).map_err(|error| SourceError::io("open", &file, error))?;
            vec![format!("read '{called}'"), chosen, unpack]
        }
        Image::Registry(_) => vec![
            format!("ask for '{called}'"),
            chosen,
            format!(
                "download the layers of it that are not kept in '{}'",
                places.cache.join("downloads").display()
            ),
            unpack,
        ],
    })
}

/// Where the file in `FILE[:TAG]` ends.
fn split_file(text: &str) -> (PathBuf, Option<String>) {
    if Path::new(text).exists() {
        return (text.into(), None);
    }
    match text.split_once(':') {
        Some((file, tag)) => (file.into(), Some(tag.to_owned())),
        None => (text.into(), None),
    }
}

/// Whether a tree that an archive has left is no root filesystem, but an image.
pub(super) fn is_image(tree: &Path) -> bool {
    let Ok(root) = Root::open(tree) else { return false };
    let has = |name: &str| matches!(root.kind(name), Ok(Some(Kind::File)));
    let is_root = ["usr", "bin", "etc"]
        .iter()
        .any(|name| matches!(root.kind(name), Ok(Some(_))));
    !is_root && ((has("oci-layout") && has("index.json")) || (has(saved::MANIFEST) && !has("index.json")))
}

/// Makes a tree that [`is_image`] the root filesystem that it is an image of.
pub(super) fn unfold(
    called: &str,
    options: &Options,
    target: &Path,
    report: &dyn Report,
    cancel: &Cancel,
) -> Result<Program, SourceError> {
    let place = Unpacked::path(target);
    fs::rename(target, &place.0).map_err(|error| SourceError::io("rename", target, error))?;
    let build = Build {
        target,
        wanted: &Wanted::new(options.image.arch.as_deref()),
        max_size: options.archive.max_size,
        report,
        cancel,
    };
    build.of_archive(&place.0, called, None)
}

/// An archive of an image, unpacked beside the tree that is made of it; it goes with this.
struct Unpacked(PathBuf);

impl Unpacked {
    fn path(target: &Path) -> Self {
        Self(target.with_extension("image"))
    }

    fn beside(target: &Path) -> Result<Self, SourceError> {
        let place = Self::path(target);
        fs::create_dir(&place.0).map_err(|error| SourceError::io("create", &place.0, error))?;
        Ok(place)
    }
}

impl Drop for Unpacked {
    fn drop(&mut self) {
        // What stays goes with the hidden directory that both are in.
        let _ = remove_tree(&self.0);
    }
}

/// What makes a tree of an image.
struct Build<'a> {
    target: &'a Path,
    wanted: &'a Wanted,
    /// What all layers may take of the disk.
    max_size: Option<u64>,
    report: &'a dyn Report,
    cancel: &'a Cancel,
}

impl Build<'_> {
    fn of_layout(&self, directory: &Path, called: &str, tag: Option<&str>) -> Result<Program, SourceError> {
        let layout = Layout::open(directory, called)?;
        let (manifest, config) = find(&layout, layout.offered(tag)?, self.wanted)?;
        self.stack(&layout, &manifest, config)
    }

    fn of_archive(&self, directory: &Path, called: &str, tag: Option<&str>) -> Result<Program, SourceError> {
        let root = Root::open(directory)?;
        if root.kind("index.json")?.is_some() {
            return self.of_layout(directory, called, tag);
        }
        if root.kind(saved::MANIFEST)?.is_none() {
            let image = called.to_owned();
            return Err(OciError::NoArchive { image }.into());
        }
        let (saved, manifest, config) = saved::open(root, called, tag, self.wanted)?;
        self.stack(&saved, &manifest, config)
    }

    /// A layer that has its digest, at its beginning, and its SHA-256 sum.
    fn compared(
        &self,
        mut file: fs::File,
        wanted: Digest,
        what: &str,
        other: &dyn Fn(Digest, Digest) -> SourceError,
    ) -> Result<(fs::File, Sum), SourceError> {
        self.report.phase(&format!("checking {what}"));
        let read = wanted.of_file(&mut file, self.cancel);
        let read = read.map_err(|error| SourceError::io("read", Path::new(what), error))?;
        self.cancel.check()?;
        match read {
            Some((found, sum)) if found == wanted => Ok((file, sum)),
            Some((found, _)) => Err(other(wanted, found)),
            None => Err(crate::machine::Cancelled.into()),
        }
    }

    /// Unpacks the layers, the lowest first.
    fn stack(&self, blobs: &dyn Blobs, manifest: &Manifest, config: Config) -> Result<Program, SourceError> {
        let target = self.target;
        let parent = target.parent().unwrap_or(Path::new("."));
        storage::for_directory(parent)?.create(target)?;
        let room = Room::new(self.max_size, target)?;
        let mut depth = Depth::Lowest;
        for (at, layer) in manifest.layers.iter().enumerate() {
            self.cancel.check()?;
            let what = format!("layer {} of {}", at + 1, manifest.layers.len());
            let (file, digest) = blobs.layer(layer, &what)?;
            let other = |wanted, found| {
                blobs.forget(layer);
                let (image, what) = (blobs.image().to_owned(), what.clone());
                SourceError::from(OciError::Digest {
                    image,
                    what,
                    wanted: Box::new(wanted),
                    found: Box::new(found),
                })
            };
            let (file, sum) = match digest {
                Digest::Sha256(sum) => (file, sum),
                // All of it is read before, and it is known by its other sum while it is unpacked.
                wanted @ Digest::Sha512(_) => self.compared(file, wanted, &what, &other)?,
            };
            let wanted = tarball::Wanted {
                sum: Some(sum),
                ..tarball::Wanted::default()
            };
            let name = Path::new(&what);
            let unpacked =
                tarball::extract_layer(file, name, target, &wanted, (depth, &room), self.report, self.cancel);
            unpacked.map_err(|error| match error {
                TarballError::WrongSum { wanted, found, .. } => other(Digest::Sha256(wanted), Digest::Sha256(found)),
                error => SourceError::from(error).full_at(parent),
            })?;
            depth = Depth::Upper;
        }
        if Root::open(target)?.list("")?.is_empty() {
            return Err(OciError::Empty {
                image: blobs.image().to_owned(),
            }
            .into());
        }
        Ok(Program::new(blobs.image(), config))
    }
}

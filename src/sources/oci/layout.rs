//! An image in a directory: `oci-layout`, `index.json`, `blobs/sha256/…`, see image-layout.md of the image specification.
//!
//! The directory is hostile: nothing of it is reached but through its root.

use std::fs::File;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::blobs::{Blobs, bad};
use super::error::OciError;
use super::manifest::{Descriptor, Document, MAX_DOCUMENT};
use crate::sources::SourceError;
use crate::sources::digest::Digest;
use crate::sources::source::shown;
use crate::sys::files::{FileError, Root};

/// An image that is named by `oci:`.
#[derive(Debug)]
pub(super) struct Layout {
    root: Root,
    image: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Version {
    image_layout_version: String,
}

/// Where the directory in `DIR[:TAG]` ends: names of directories and tags may both have colons.
pub(crate) fn split(text: &str) -> (PathBuf, Option<String>) {
    if Path::new(text).is_dir() {
        return (text.into(), None);
    }
    let colons: Vec<usize> = text.match_indices(':').map(|(at, _)| at).collect();
    let is_there = |at: &&usize| Path::new(&text[..**at]).is_dir();
    // If there is none, the message is about what was most likely meant.
    match colons.iter().find(is_there).or(colons.first()) {
        Some(at) => (text[..*at].into(), Some(text[at + 1..].to_owned())),
        None => (text.into(), None),
    }
}

impl Layout {
    /// Opens a directory that is called `image`, and checks that it is one.
    pub(super) fn open(directory: &Path, image: &str) -> Result<Self, SourceError> {
        let root = Root::open(directory)?;
        let no_layout = |reason: &str| OciError::NoLayout {
            image: image.to_owned(),
            reason: reason.to_owned(),
        };
        let version = match root.read("oci-layout", MAX_DOCUMENT) {
            Err(error) if error.is_not_found() => return Err(no_layout("it has no file 'oci-layout'").into()),
            read => serde_json::from_slice::<Version>(&read?).ok(),
        };
        match version {
            Some(version) if version.image_layout_version.starts_with("1.") => {}
            Some(version) => {
                let reason = format!("it is of version '{}'", shown(&version.image_layout_version));
                return Err(no_layout(&reason).into());
            }
            None => return Err(no_layout("its file 'oci-layout' does not tell its version").into()),
        }
        Ok(Self {
            root,
            image: image.to_owned(),
        })
    }

    /// All that its index lists.
    fn listed(&self) -> Result<Vec<Descriptor>, SourceError> {
        let bytes = match self.root.read("index.json", MAX_DOCUMENT) {
            Err(error) if error.is_not_found() => {
                let (image, reason) = (self.image.clone(), "it has no file 'index.json'".to_owned());
                return Err(OciError::NoLayout { image, reason }.into());
            }
            read => read?,
        };
        match Document::parse(&bytes, "").map_err(|reason| bad(&self.image, "the index", reason))? {
            Document::Index(all) => Ok(all),
            Document::Manifest(_) => Err(bad(&self.image, "the index", "is a manifest".to_owned())),
        }
    }

    /// What it has of one kind that is no image, such as what is said of images.
    pub(super) fn artifacts(&self, kind: &str) -> Result<Vec<Descriptor>, SourceError> {
        let mut all = self.listed()?;
        all.retain(|one| one.artifact_type.as_deref() == Some(kind));
        Ok(all)
    }

    /// Those of its images that have the tag; without one all, if they are one image for several machines.
    pub(super) fn offered(&self, tag: Option<&str>) -> Result<Vec<Descriptor>, SourceError> {
        let mut all = self.listed()?;
        all.retain(|one| !one.is_artifact());
        let mut tags: Vec<&str> = all.iter().filter_map(Descriptor::tag).collect();
        tags.sort_unstable();
        tags.dedup();
        // As Docker and umoci have it.
        let tag = match (tag, tags.len()) {
            (None, 2..) if tags.contains(&"latest") => Some("latest"),
            (tag, _) => tag,
        };
        let found: Vec<Descriptor> = match tag {
            Some(tag) => all.iter().filter(|one| one.tag() == Some(tag)).cloned().collect(),
            None if tags.len() < 2 => all.clone(),
            None => Vec::new(),
        };
        if found.is_empty() && !all.is_empty() {
            return Err(OciError::Tag {
                image: self.image.clone(),
                tag: tag.map(shown),
                has: tags.into_iter().map(shown).collect(),
            }
            .into());
        }
        Ok(found)
    }

    fn path(&self, descriptor: &Descriptor, what: &str) -> Result<(PathBuf, Digest), SourceError> {
        let digest = descriptor.sum().map_err(|reason| bad(&self.image, what, reason))?;
        let path = format!("blobs/{}/{}", digest.kind(), digest.hex());
        Ok((path.into(), digest))
    }

    fn missing(&self, error: FileError, descriptor: &Descriptor, what: &str) -> SourceError {
        if !error.is_not_found() {
            return error.into();
        }
        OciError::Missing {
            image: self.image.clone(),
            what: what.to_owned(),
            digest: shown(&descriptor.digest),
        }
        .into()
    }
}

impl Blobs for Layout {
    fn image(&self) -> &str {
        &self.image
    }

    fn document(&self, descriptor: &Descriptor, what: &str, _is_config: bool) -> Result<Vec<u8>, SourceError> {
        let (path, _) = self.path(descriptor, what)?;
        let read = self.root.read(path, MAX_DOCUMENT);
        read.map_err(|error| self.missing(error, descriptor, what))
    }

    fn layer(&self, descriptor: &Descriptor, what: &str) -> Result<(File, Digest), SourceError> {
        let (path, sum) = self.path(descriptor, what)?;
        let opened = self.root.open_file(&path);
        let file = opened.map_err(|error| self.missing(error, descriptor, what))?;
        let found = file
            .metadata()
            .map_err(|error| SourceError::io("look at", &path, error))?;
        match descriptor.size {
            Some(wanted) if wanted != found.len() => Err(OciError::Length {
                image: self.image.clone(),
                what: what.to_owned(),
                wanted,
                found: found.len(),
            }
            .into()),
            _ => Ok((file, sum)),
        }
    }
}

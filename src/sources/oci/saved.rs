//! An image as `docker save` writes it: `manifest.json` names the files of its configuration and of its layers.
//!
//! Newer ones are layouts besides, and are taken for these. In those of old nothing has a digest but the layers as they are
//! uncompressed, which is how they lie there, and the name of the configuration.

use std::collections::HashMap;
use std::fs::File;
use std::io::{Read as _, Seek as _};

use serde::Deserialize;

use super::blobs::{Blobs, bad, check_platform};
use super::error::OciError;
use super::manifest::{Config, Descriptor, MAX_DOCUMENT, Manifest};
use super::platform::Wanted;
use crate::sources::SourceError;
use crate::sources::archive::Compression;
use crate::sources::digest::Digest;
use crate::sources::source::shown;
use crate::sources::sum::Sum;
use crate::sys::files::Root;

/// The file that says what there is.
pub(super) const MANIFEST: &str = "manifest.json";

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Entry {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    #[serde(default)]
    layers: Vec<String>,
}

/// An image of `docker save`, unpacked.
#[derive(Debug)]
pub(super) struct Saved {
    root: Root,
    image: String,
    /// Where its layers lie, by their digests.
    files: HashMap<String, String>,
}

/// The image that is wanted, and where its parts are.
pub(super) fn open(
    root: Root,
    image: &str,
    tag: Option<&str>,
    wanted: &Wanted,
) -> Result<(Saved, Manifest, Config), SourceError> {
    let all: Vec<Entry> = serde_json::from_slice(&root.read(MANIFEST, MAX_DOCUMENT)?).map_err(|error| {
        bad(
            image,
            "the manifest",
            format!("cannot be understood: {}", shown(&error.to_string())),
        )
    })?;
    let entry = choose(&all, image, tag)?;
    let what = "the configuration";
    let bytes = root.read(entry.config.trim_start_matches('/'), MAX_DOCUMENT);
    let bytes = bytes.map_err(|error| {
        if error.is_not_found() {
            missing(image, what, &entry.config)
        } else {
            error.into()
        }
    })?;
    let name = entry.config.rsplit('/').next().unwrap_or_default();
    let name = name.strip_suffix(".json").unwrap_or(name);
    if name.parse::<Sum>().is_ok() {
        let said = Descriptor {
            digest: format!("sha256:{name}"),
            ..Descriptor::default()
        };
        super::blobs::check(&bytes, &said, image, what)?;
    }
    let config = Config::parse(&bytes).map_err(|reason| bad(image, what, reason))?;
    check_platform(&config, wanted, image)?;
    let ids = config.rootfs.clone().unwrap_or_default().diff_ids;
    if ids.len() != entry.layers.len() {
        let reason = format!("is of {} layers, and there are {}", ids.len(), entry.layers.len());
        return Err(bad(image, what, reason));
    }
    let manifest = Manifest {
        config: Descriptor::default(),
        layers: ids
            .iter()
            .map(|digest| Descriptor {
                digest: digest.clone(),
                ..Descriptor::default()
            })
            .collect(),
    };
    let manifest = manifest
        .checked()
        .map_err(|reason| bad(image, "the manifest", reason))?;
    let saved = Saved {
        root,
        image: image.to_owned(),
        files: ids.into_iter().zip(entry.layers.iter().cloned()).collect(),
    };
    Ok((saved, manifest, config))
}

fn choose<'a>(all: &'a [Entry], image: &str, tag: Option<&str>) -> Result<&'a Entry, SourceError> {
    let tags = |entry: &Entry| entry.repo_tags.clone().unwrap_or_default();
    let has = |entry: &&Entry| {
        let is_it = |known: &String| {
            let short = known.rsplit_once(':').map_or("", |(_, short)| short);
            // `docker.io/library/app:1`, by all of it, its end, or its tag.
            tag.is_some_and(|tag| tag == known || tag == short || known.ends_with(&format!("/{tag}")))
        };
        tags(entry).iter().any(is_it)
    };
    let found = match (tag, all) {
        (None, [only]) => Some(only),
        (None, _) => None,
        (Some(_), all) => all.iter().find(has),
    };
    found.ok_or_else(|| {
        OciError::Tag {
            image: image.to_owned(),
            tag: tag.map(shown),
            has: all.iter().flat_map(tags).map(|tag| shown(&tag)).collect(),
        }
        .into()
    })
}

fn missing(image: &str, what: &str, name: &str) -> SourceError {
    OciError::Missing {
        image: image.to_owned(),
        what: what.to_owned(),
        digest: format!("'{}'", shown(name)),
    }
    .into()
}

impl Blobs for Saved {
    fn image(&self) -> &str {
        &self.image
    }

    fn document(&self, descriptor: &Descriptor, what: &str, _is_config: bool) -> Result<Vec<u8>, SourceError> {
        Err(missing(&self.image, what, &descriptor.digest))
    }

    fn layer(&self, descriptor: &Descriptor, what: &str) -> Result<(File, Digest), SourceError> {
        let sum = descriptor.sum().map_err(|reason| bad(&self.image, what, reason))?;
        let name = self
            .files
            .get(&descriptor.digest)
            .map_or("", |name| name.trim_start_matches('/'));
        // Equal layers are links to each other.
        let found = self.root.resolve(name).and_then(|path| self.root.open_file(path));
        let mut file = found.map_err(|error| {
            if error.is_not_found() {
                missing(&self.image, what, name)
            } else {
                error.into()
            }
        })?;
        // Its digest is that of what it is uncompressed. Docker compresses none.
        let mut head = Vec::new();
        let read = file
            .by_ref()
            .take(16)
            .read_to_end(&mut head)
            .and_then(|_| file.rewind());
        read.map_err(|error| SourceError::io("read", name.as_ref(), error))?;
        if Compression::detect(&head) != Compression::None {
            let reason = "is compressed, so that its sum cannot be compared".to_owned();
            return Err(bad(&self.image, what, reason));
        }
        Ok((file, sum))
    }
}

//! Where the parts of an image come from, and the way from what is offered to the one image that is wanted.

use std::fs::File;

use super::error::OciError;
use super::manifest::{Config, Descriptor, Document, Manifest};
use super::platform::{Platform, Wanted};
use crate::sources::SourceError;
use crate::sources::digest::Digest;

/// How deep indexes lie in each other at the most.
const MAX_DEPTH: usize = 4;

/// What has the parts of an image.
pub(super) trait Blobs {
    /// What the user calls it, escaped.
    fn image(&self) -> &str;

    /// A document of at most `MAX_DOCUMENT` bytes, as it is there.
    fn document(&self, descriptor: &Descriptor, what: &str, is_config: bool) -> Result<Vec<u8>, SourceError>;

    /// A layer at its beginning, and the digest that it must have when it is read.
    fn layer(&self, descriptor: &Descriptor, what: &str) -> Result<(File, Digest), SourceError>;

    /// Forgets a layer that turned out to be something else, where it is kept.
    fn forget(&self, _descriptor: &Descriptor) {}
}

/// Says of a document what is wrong with it.
pub(super) fn bad(image: &str, what: &str, reason: String) -> SourceError {
    OciError::Document {
        image: image.to_owned(),
        what: what.to_owned(),
        reason,
    }
    .into()
}

/// Compares bytes with what was said of them.
pub(super) fn check(bytes: &[u8], descriptor: &Descriptor, image: &str, what: &str) -> Result<(), SourceError> {
    let (image, what) = (image.to_owned(), what.to_owned());
    let found = bytes.len() as u64;
    if let Some(wanted) = descriptor.size.filter(|wanted| *wanted != found) {
        return Err(OciError::Length {
            image,
            what,
            wanted,
            found,
        }
        .into());
    }
    let wanted = descriptor.sum().map_err(|reason| bad(&image, &what, reason))?;
    let found = wanted.of_kind(bytes);
    if found == wanted {
        return Ok(());
    }
    Err(OciError::Digest {
        image,
        what,
        wanted: Box::new(wanted),
        found: Box::new(found),
    }
    .into())
}

/// A document of which nothing is believed but that it is the one that was pointed at.
pub(super) fn checked(
    blobs: &dyn Blobs,
    descriptor: &Descriptor,
    what: &str,
    is_config: bool,
) -> Result<Vec<u8>, SourceError> {
    let sum = descriptor.sum();
    sum.map_err(|reason| bad(blobs.image(), what, reason))?;
    let bytes = blobs.document(descriptor, what, is_config)?;
    check(&bytes, descriptor, blobs.image(), what)?;
    Ok(bytes)
}

/// The image that is wanted of those that are offered.
pub(super) fn find(
    blobs: &dyn Blobs,
    mut offered: Vec<Descriptor>,
    wanted: &Wanted,
) -> Result<(Manifest, Config), SourceError> {
    for _ in 0..MAX_DEPTH {
        let chosen = choose(&offered, wanted, blobs.image())?;
        let (what, kind) = ("the manifest", chosen.media_type.clone());
        let bytes = checked(blobs, chosen, what, false)?;
        match Document::parse(&bytes, &kind).map_err(|reason| bad(blobs.image(), what, reason))? {
            Document::Index(inner) => offered = inner,
            Document::Manifest(manifest) => return with_config(blobs, manifest, wanted),
        }
    }
    let reason = format!("lies more than {MAX_DEPTH} indexes deep");
    Err(bad(blobs.image(), "the manifest", reason))
}

/// A manifest with its configuration, which says what it is for where no index has.
pub(super) fn with_config(
    blobs: &dyn Blobs,
    manifest: Manifest,
    wanted: &Wanted,
) -> Result<(Manifest, Config), SourceError> {
    let what = "the configuration";
    let bytes = checked(blobs, &manifest.config, what, true)?;
    let config = Config::parse(&bytes).map_err(|reason| bad(blobs.image(), what, reason))?;
    check_platform(&config, wanted, blobs.image())?;
    Ok((manifest, config))
}

/// Refuses another system's image, and one for another processor if the user has said which. Whether programs for others run
/// here is told when the tree is there.
pub(super) fn check_platform(config: &Config, wanted: &Wanted, image: &str) -> Result<(), SourceError> {
    let platform = Platform {
        os: config.os.clone().unwrap_or_else(|| "linux".to_owned()),
        architecture: config.architecture.clone().unwrap_or_default(),
        variant: config.variant.clone(),
    };
    let other = wanted.is_said && config.architecture.is_some() && !wanted.fits(&platform);
    if platform.os == "linux" && !other {
        return Ok(());
    }
    Err(OciError::Platform {
        image: image.to_owned(),
        wanted: wanted.platform.shown(),
        has: vec![platform.shown()],
    }
    .into())
}

/// The image that is wanted, or the one that says nothing.
pub(super) fn choose<'a>(
    offered: &'a [Descriptor],
    wanted: &Wanted,
    image: &str,
) -> Result<&'a Descriptor, SourceError> {
    if let Some(best) = wanted.best(offered) {
        return Ok(best);
    }
    if offered.is_empty() {
        return Err(bad(image, "the index", "lists no image".to_owned()));
    }
    let mut silent = offered.iter().filter(|one| one.platform.is_none());
    match (silent.next(), silent.next()) {
        (Some(only), None) => return Ok(only),
        (Some(_), Some(_)) => {
            let reason = "is a list of several images, which do not say what they are for".to_owned();
            return Err(bad(image, "the index", reason));
        }
        (None, _) => {}
    }
    let mut has: Vec<String> = offered
        .iter()
        .filter_map(|one| Some(one.platform.as_ref()?.shown()))
        .collect();
    // What a builder says of an image, and no image.
    has.retain(|platform| platform != "unknown/unknown");
    has.dedup();
    Err(OciError::Platform {
        image: image.to_owned(),
        wanted: wanted.platform.shown(),
        has,
    }
    .into())
}

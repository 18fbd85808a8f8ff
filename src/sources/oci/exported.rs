//! A machine that `export` wrote into a layout: an image of one layer, and the artifact that refers to it with all else that is said
//! of the machine.
//!
//! Every document is checked by its digest; what the machine's manifest says of the layer is for who asked for it to compare.

use std::fs::File;
use std::io::{self, Read as _, Seek as _, Write as _};

use rustix::fs::{MemfdFlags, memfd_create};
use serde::Deserialize;

use super::blobs::{Blobs as _, bad, check, checked, choose};
use super::error::OciError;
use super::layout::{Layout, split};
use super::manifest::{Descriptor, Document};
use super::platform::Wanted;
use crate::machine::Cancel;
use crate::machine::manifest::{ARTIFACT, ARTIFACT_LAYER};
use crate::sources::SourceError;
use crate::sources::digest::Digest;
use crate::sources::source::shown;

/// The longest tar of settings in bytes: what one of a machine may have, with its headers.
const SETTINGS_MAX: u64 = 16 << 20;
/// How many artifacts are looked at: each is a file.
const ARTIFACTS_MAX: usize = 1000;

/// The parts of such a machine.
#[derive(Debug)]
pub struct Exported {
    /// What is said of it: a tar, checked.
    pub settings: File,
    /// Its tree: a tar, compressed.
    pub layer: File,
    /// What the image is called, escaped.
    called: String,
    /// What the layer must add up to.
    digest: Digest,
}

impl Exported {
    /// Why the layer could not be unpacked: that it is another one is to be told first.
    #[must_use]
    pub fn explained(&self, error: SourceError, cancel: &Cancel) -> SourceError {
        // Where the file stands by now is nobody's business.
        let found = self.layer.try_clone().and_then(|mut file| {
            file.rewind()?;
            self.digest.of_file(&mut file, cancel)
        });
        let Ok(Some((found, _))) = found else { return error };
        if found == self.digest {
            return error;
        }
        OciError::Digest {
            image: self.called.clone(),
            what: "the layer".to_owned(),
            wanted: Box::new(self.digest),
            found: Box::new(found),
        }
        .into()
    }
}

/// What refers to an image.
#[derive(Deserialize)]
struct Referrer {
    layers: Vec<Descriptor>,
    subject: Descriptor,
}

/// Finds it in `DIR[:TAG]`.
///
/// # Errors
/// [`OciError::NotExported`] if it is any other image; those of damaged layouts.
pub fn open(text: &str) -> Result<Exported, SourceError> {
    let (directory, tag) = split(text);
    let called = shown(&format!("oci:{text}"));
    let layout = Layout::open(&directory, &called)?;
    let offered = layout.offered(tag.as_deref())?;
    let image = match offered.as_slice() {
        // It may be for a processor that is emulated here.
        [only] => only,
        several => choose(several, &Wanted::new(None), &called)?,
    };
    let what = "the manifest";
    let bytes = checked(&layout, image, what, false)?;
    let document = Document::parse(&bytes, &image.media_type).map_err(|reason| bad(&called, what, reason))?;
    let not_exported = |reason| OciError::NotExported {
        image: called.clone(),
        reason,
    };
    let Document::Manifest(manifest) = document else {
        return Err(not_exported("it is a list of images").into());
    };
    checked(&layout, &manifest.config, "the configuration", true)?;
    let artifact = referrer(&layout, image, &called)?;
    let artifact = artifact.ok_or_else(|| not_exported("nothing in it says what machine it was"))?;
    let ([layer], [settings]) = (manifest.layers.as_slice(), artifact.layers.as_slice()) else {
        return Err(not_exported("it has several layers").into());
    };
    if settings.media_type != ARTIFACT_LAYER {
        let reason = format!("have an unknown form ('{}')", shown(&settings.media_type));
        return Err(bad(&called, "the settings", reason));
    }
    let what = "the settings";
    let (file, _) = layout.layer(settings, what)?;
    let mut bytes = Vec::new();
    let read = file.take(SETTINGS_MAX + 1).read_to_end(&mut bytes);
    read.map_err(|error| SourceError::io("read", &directory, error))?;
    if bytes.len() as u64 > SETTINGS_MAX {
        return Err(bad(&called, what, format!("have more than {SETTINGS_MAX} bytes")));
    }
    check(&bytes, settings, &called, what)?;
    let digest = layer.sum().map_err(|reason| bad(&called, "the layer", reason))?;
    let (layer, _) = layout.layer(layer, "the layer")?;
    let settings = in_memory(&bytes).map_err(|error| SourceError::io("keep the settings of", &directory, error))?;
    Ok(Exported {
        settings,
        layer,
        called,
        digest,
    })
}

/// What says of that image which machine it was; a damaged one is an error only if there is no other.
fn referrer(layout: &Layout, image: &Descriptor, called: &str) -> Result<Option<Referrer>, SourceError> {
    let what = "the description";
    let mut failed = None;
    for one in layout.artifacts(ARTIFACT)?.iter().take(ARTIFACTS_MAX) {
        let read = checked(layout, one, what, false).and_then(|bytes| {
            let parsed = serde_json::from_slice::<Referrer>(&bytes);
            parsed.map_err(|error| {
                bad(
                    called,
                    what,
                    format!("cannot be understood: {}", shown(&error.to_string())),
                )
            })
        });
        match read {
            Ok(found) if found.subject.digest == image.digest => return Ok(Some(found)),
            Ok(_) => {}
            Err(error) => failed = failed.or(Some(error)),
        }
    }
    failed.map_or(Ok(None), Err)
}

/// A file of these bytes, which nobody changes after they were checked.
fn in_memory(bytes: &[u8]) -> io::Result<File> {
    let mut file = File::from(memfd_create("machinist-settings", MemfdFlags::CLOEXEC)?);
    file.write_all(bytes)?;
    file.rewind()?;
    Ok(file)
}

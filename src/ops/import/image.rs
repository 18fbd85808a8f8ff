//! A machine out of an OCI layout, as `export` wrote it: the same parts as an archive has, in two files.

use std::fs::File;
use std::path::Path;

use super::layout::Archive;
use crate::machine::{Cancel, Report};
use crate::ops::cp::ids::{Ids, Translation};
use crate::sources::SourceError;
use crate::sources::oci::exported::{self, Exported};
use crate::sources::tarball::bundle::{self, Bundle, Fate, Layout};
use crate::sources::tarball::{Part, Problem, TarballError};

/// A layer: all of it is the tree. What hides files in other layers has no meaning in the only one.
struct Layer(Translation);

impl Layout for Layer {
    fn decide(&mut self, _: Option<&str>, _: bool) -> Option<Part> {
        Some(Part::default())
    }

    fn whole(&self) -> Option<Part> {
        Some(Part::default())
    }

    fn fate(&self, _: &str) -> Fate {
        Fate::Tree
    }

    fn root(&mut self, _: u32, _: u32) {}

    fn owner(&self, uid: u32, gid: u32) -> (u32, u32) {
        self.0.owner(uid, gid)
    }

    fn attribute(&self, name: &[u8], value: &[u8]) -> Option<Vec<u8>> {
        self.0.attribute(name, value)
    }
}

/// What is said of the machine in `DIR[:TAG]`.
pub(super) fn settings(text: &str, archive: &mut Archive, cancel: &Cancel) -> Result<Bundle, SourceError> {
    read_settings(&exported::open(text)?, archive, &(), cancel)
}

fn read_settings(
    found: &Exported,
    archive: &mut Archive,
    report: &dyn Report,
    cancel: &Cancel,
) -> Result<Bundle, SourceError> {
    let (file, name) = (again(&found.settings)?, Path::new("the settings"));
    let bundle = bundle::read(file, name, None, archive, report, cancel)?;
    // A tree in it would be taken for the other's.
    if bundle.tree.is_some() || bundle.extracted.entries > 0 {
        return Err(TarballError::entry(b"rootfs", Problem::Stranger).into());
    }
    Ok(bundle)
}

fn again(file: &File) -> Result<File, SourceError> {
    file.try_clone()
        .map_err(|error| SourceError::io("open", Path::new("the image"), error))
}

/// All of it; the tree goes into `target`, or nowhere.
pub(super) fn read(
    text: &str,
    target: Option<&Path>,
    archive: &mut Archive,
    report: &dyn Report,
    cancel: &Cancel,
) -> Result<Bundle, SourceError> {
    let found = exported::open(text)?;
    let settings = read_settings(&found, archive, report, cancel)?;
    let mut whole = Layer(Translation {
        from: Ids::host(),
        to: Ids::host(),
        capabilities: true,
    });
    let (file, name) = (again(&found.layer)?, Path::new("the layer"));
    let tree = bundle::read(file, name, target, &mut whole, report, cancel);
    let tree = tree.map_err(|error| match error {
        TarballError::Cancelled(_) => error.into(),
        error => found.explained(error.into(), cancel),
    })?;
    Ok(Bundle {
        members: settings.members,
        ..tree
    })
}

//! A machine out of an OCI layout or a disk image, as `export` wrote it: the same parts as an archive has, in two places.

use std::fs::File;
use std::path::Path;

use super::Source;
use super::layout::Archive;
use crate::machine::{Cancel, Report};
use crate::ops::OpError;
use crate::ops::cp::ids::{Ids, Translation};
use crate::sources::SourceError;
use crate::sources::disk::exported::Exported as Disk;
use crate::sources::oci::exported;
use crate::sources::tarball::bundle::{self, Bundle, Fate, Layout};
use crate::sources::tarball::{Part, Problem, TarballError};

/// A layer: all of it is the tree. What hides files in other layers has no meaning in the only one.
pub(in crate::ops) struct Layer(Translation);

impl Layer {
    /// With the users that it tells.
    pub(in crate::ops) fn new() -> Self {
        Self(Translation {
            from: Ids::host(),
            to: Ids::host(),
            capabilities: true,
        })
    }
}

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

/// What is said of the machine, if it is in an image, and no archive.
pub(super) fn glance(source: &Source, archive: &mut Archive, cancel: &Cancel) -> Result<Option<Bundle>, OpError> {
    let settings = match source {
        Source::Stdin => return Ok(None),
        Source::Layout(text, _) => Some(exported::open(text)?.settings),
        Source::File(path) => Disk::open(source.open()?, path, Path::new("/"))?.map(|disk| disk.settings),
    };
    let bundle = settings.map(|file| read_settings(&file, archive, &(), cancel));
    Ok(bundle.transpose()?)
}

/// All of a machine, if it is in an image, and no archive; the tree goes into `target`, which exists, or nowhere.
pub(super) fn receive(
    source: &Source,
    target: Option<&Path>,
    machines: &Path,
    archive: &mut Archive,
    report: &dyn Report,
    cancel: &Cancel,
) -> Result<Option<Bundle>, OpError> {
    let read = match source {
        Source::Stdin => return Ok(None),
        Source::Layout(text, _) => read(text, target, archive, report, cancel).map(Some),
        Source::File(path) => read_disk((source.open()?, path, machines), target, archive, report, cancel),
    };
    Ok(read.map_err(|error| error.full_at(machines))?)
}

fn read_settings(
    found: &File,
    archive: &mut Archive,
    report: &dyn Report,
    cancel: &Cancel,
) -> Result<Bundle, SourceError> {
    let (file, name) = (again(found)?, Path::new("the settings"));
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

/// A machine in a disk image; `None` if the file is none. The tree goes into `target`, which exists, or nowhere.
fn read_disk(
    (file, path, place): (File, &Path, &Path),
    target: Option<&Path>,
    archive: &mut Archive,
    report: &dyn Report,
    cancel: &Cancel,
) -> Result<Option<Bundle>, SourceError> {
    let Some(mut disk) = Disk::open(file, path, place)? else {
        return Ok(None);
    };
    let mut bundle = read_settings(&disk.settings, archive, report, cancel)?;
    report.phase("adding up the filesystem");
    bundle.tree = Some(disk.sum(cancel)?);
    bundle.extracted.entries = 1;
    // What it is not said to be is not mounted.
    if let Some(target) = target.filter(|_| super::receive::check_sums(&bundle).is_ok()) {
        std::fs::remove_dir(target).map_err(|error| SourceError::io("remove", target, error))?;
        disk.extract(target, report, cancel)?;
        // Again: the file may be written to meanwhile.
        bundle.tree = Some(disk.sum(cancel)?);
    }
    Ok(Some(bundle))
}

/// All of it; the tree goes into `target`, or nowhere.
fn read(
    text: &str,
    target: Option<&Path>,
    archive: &mut Archive,
    report: &dyn Report,
    cancel: &Cancel,
) -> Result<Bundle, SourceError> {
    let found = exported::open(text)?;
    let settings = read_settings(&found.settings, archive, report, cancel)?;
    let mut whole = Layer::new();
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

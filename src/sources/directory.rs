//! A directory of the host as a source: copied as it is, owners and all.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use super::{Places, SourceError};
use crate::machine::{Cancel, Report};
use crate::storage;
use crate::sys::files::shown;

/// What everybody needs to get at the files in a root directory.
const OPEN: u32 = 0o005;

/// Copies `directory` to `target`. Nothing outside of it is copied, whatever its links say, nor what is mounted in it.
pub(super) fn fill(
    directory: &Path,
    places: &Places,
    target: &Path,
    report: &dyn Report,
    cancel: &Cancel,
) -> Result<(), SourceError> {
    let directory = find(directory, places)?;
    let found = directory
        .metadata()
        .map_err(|error| SourceError::io("look at", &directory, error))?;
    let parent = target.parent().unwrap_or(Path::new("/"));
    storage::for_directory(parent)?.copy(&directory, target, report, cancel)?;
    if found.uid() != 0 {
        report.warn(&format!(
            "'{}' belongs to user {}, and so does the root directory of the machine",
            shown(&directory),
            found.uid()
        ));
    }
    if found.mode() & OPEN != OPEN {
        report.warn(&format!(
            "'{}' has mode {:04o}: in the machine its files are root's alone",
            shown(&directory),
            found.mode() & 0o7777
        ));
    }
    Ok(())
}

/// Where it is, without links. Images of machines are refused: they have an identity and settings, and links in them are
/// their guests'.
pub(super) fn find(directory: &Path, places: &Places) -> Result<PathBuf, SourceError> {
    let failed = |error| SourceError::io("open", directory, error);
    let found = directory.canonicalize().map_err(failed)?;
    if !found.is_dir() {
        return Err(SourceError::NoDirectory {
            path: directory.to_owned(),
        });
    }
    let given = std::path::absolute(directory).map_err(failed)?;
    for images in &places.images {
        let real = images.canonicalize().unwrap_or_else(|_| images.clone());
        let below = found.strip_prefix(&real).or_else(|_| given.strip_prefix(images));
        let Ok(below) = below else { continue };
        let name = below.components().next();
        return Err(SourceError::OfMachine {
            path: directory.to_owned(),
            machine: name.map(|name| shown(name.as_os_str())),
            is_image: below.components().count() < 2,
        });
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn images_of_machines_are_no_directories_like_others() {
        let root = tempfile::tempdir().unwrap();
        let at = |name: &str| root.path().join(name);
        let places = Places {
            images: vec![at("machines")],
            ..Places::default()
        };
        std::fs::create_dir_all(at("machines/web/srv")).unwrap();
        std::fs::create_dir(at("tree")).unwrap();
        std::fs::write(at("file"), "").unwrap();
        symlink(at("machines/web"), at("to-image")).unwrap();
        symlink(at("tree"), at("to-tree")).unwrap();
        symlink(at("tree"), at("machines/web/out")).unwrap();
        assert_eq!(
            find(&at("to-tree"), &places).unwrap(),
            at("tree").canonicalize().unwrap()
        );
        for (name, hint) in [
            ("machines/web", "machine:web"),
            ("to-image/", "machine:web"),
            ("machines/web/srv", "machinist cp -a"),
            // A guest's link.
            ("machines/web/out", "machinist cp -a"),
            ("machines", "machine:NAME"),
        ] {
            let error = find(&at(name), &places).unwrap_err();
            assert!(matches!(error, SourceError::OfMachine { .. }), "{name}: {error}");
            assert!(error.hints()[0].contains(hint), "{name}: {:?}", error.hints());
        }
        assert!(matches!(
            find(&at("file"), &places),
            Err(SourceError::NoDirectory { .. })
        ));
        assert!(matches!(find(&at("none"), &places), Err(SourceError::Io { .. })));
    }
}

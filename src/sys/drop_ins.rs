//! The drop-ins of a unit in the order in which systemd reads them, see "Description" in systemd.unit(5): the last one wins.

use std::collections::{BTreeMap, HashSet};
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use super::bus::Properties;

/// A drop-in that lies on disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DropIn {
    /// The file; its directory is resolved, as systemd has it.
    pub path: PathBuf,
    /// The file of the same name that systemd finds first, and reads in its place.
    pub behind: Option<PathBuf>,
}

/// The drop-ins that systemd has read, from its `Unit` interface.
#[must_use]
pub fn loaded(unit: &Properties) -> Vec<PathBuf> {
    let mut paths: Vec<PathBuf> = unit.strings("DropInPaths").into_iter().map(PathBuf::from).collect();
    // What systemd has written itself since it read them stands last in its list, and goes by its name after a reload.
    paths.sort_by(|a, b| a.file_name().cmp(&b.file_name()));
    paths
}

/// All drop-ins of a unit on disk, sorted by name, whichever directory they lie in; of one name the one that is read first.
/// What is none, such as a link to /dev/null, takes the place of its namesakes, too.
#[must_use]
pub fn on_disk<P: AsRef<Path>>(unit: &str, search_path: impl IntoIterator<Item = P>) -> Vec<DropIn> {
    let mut found: BTreeMap<OsString, Vec<PathBuf>> = BTreeMap::new();
    for directory in directories(unit, search_path) {
        for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
            let name = entry.file_name();
            let bytes = name.as_encoded_bytes();
            if bytes.ends_with(b".conf") && !bytes.starts_with(b".") {
                found.entry(name).or_default().push(entry.path());
            }
        }
    }
    let namesakes = |paths: Vec<PathBuf>| {
        let first = paths[0].clone();
        paths.into_iter().enumerate().map(move |(at, path)| DropIn {
            path,
            behind: (at > 0).then(|| first.clone()),
        })
    };
    found.into_values().flat_map(namesakes).collect()
}

/// The path of a drop-in as systemd has it.
#[must_use]
pub fn resolved(file: &Path) -> PathBuf {
    let directory = file.parent().and_then(|directory| directory.canonicalize().ok());
    match (directory, file.file_name()) {
        (Some(directory), Some(name)) => directory.join(name),
        _ => file.to_owned(),
    }
}

/// The directories that there are, what is found first first. That of the type is the last of all: see dropin.c of systemd.
fn directories<P: AsRef<Path>>(unit: &str, search_path: impl IntoIterator<Item = P>) -> Vec<PathBuf> {
    let places: Vec<P> = search_path.into_iter().collect();
    let (own, of_type) = names(unit);
    let own = places
        .iter()
        .flat_map(|place| own.iter().map(move |name| place.as_ref().join(name)));
    let of_type = places.iter().map(|place| place.as_ref().join(&of_type));
    let mut seen = HashSet::new();
    own.chain(of_type)
        .filter_map(|directory| directory.canonicalize().ok())
        .filter(|directory| seen.insert(directory.clone()))
        .collect()
}

/// The names of directories of a unit's drop-ins: its own, its template's, those of the words before each dash; its type's.
fn names(unit: &str) -> (Vec<String>, String) {
    let (stem, kind) = unit.rsplit_once('.').unwrap_or((unit, "service"));
    let mut names = vec![format!("{unit}.d")];
    let prefix = stem.split('@').next().unwrap_or(stem);
    if prefix.len() < stem.len() {
        names.push(format!("{prefix}@.{kind}.d"));
    }
    let dashes = prefix.trim_end_matches('-').match_indices('-').map(|(at, _)| at);
    let mut shorter: Vec<String> = dashes.map(|at| format!("{}.{kind}.d", &prefix[..=at])).collect();
    shorter.reverse();
    names.extend(shorter);
    (names, format!("{kind}.d"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drop_ins_lie_in_many_directories() {
        let (own, of_type) = names("systemd-nspawn@web-1.service");
        assert_eq!(
            own,
            [
                "systemd-nspawn@web-1.service.d",
                "systemd-nspawn@.service.d",
                "systemd-.service.d"
            ]
        );
        assert_eq!(of_type, "service.d");
        assert_eq!(
            names("machine-a-b.scope").0,
            ["machine-a-b.scope.d", "machine-a-.scope.d", "machine-.scope.d"]
        );
    }

    #[test]
    fn a_place_counts_more_than_a_name_but_for_the_type() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path().canonicalize().unwrap();
        let write = |path: &str| {
            let path = root.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "").unwrap();
        };
        for path in [
            "lib/x@a.service.d/1.conf",
            "etc/x@.service.d/1.conf",
            "lib/x@a.service.d/2.conf",
            "etc/service.d/2.conf",
            "etc/x@.service.d/.3.conf",
            "etc/x@.service.d/4.conf~",
            "lib/x@.service.d/5.conf",
        ] {
            write(path);
        }
        std::os::unix::fs::symlink("/dev/null", root.join("etc/x@.service.d/5.conf")).unwrap();
        std::os::unix::fs::symlink("lib", root.join("usr")).unwrap();
        let found = on_disk("x@a.service", ["etc", "usr", "lib"].map(|place| root.join(place)));
        let short = |path: &Path| path.strip_prefix(&root).unwrap().to_string_lossy().into_owned();
        let found: Vec<(String, Option<String>)> = found
            .iter()
            .map(|file| (short(&file.path), file.behind.as_deref().map(short)))
            .collect();
        let first = |path: &str| (path.to_owned(), None);
        let behind = |path: &str, by: &str| (path.to_owned(), Some(by.to_owned()));
        assert_eq!(
            found,
            [
                first("etc/x@.service.d/1.conf"),
                behind("lib/x@a.service.d/1.conf", "etc/x@.service.d/1.conf"),
                first("lib/x@a.service.d/2.conf"),
                behind("etc/service.d/2.conf", "lib/x@a.service.d/2.conf"),
                first("etc/x@.service.d/5.conf"),
                behind("lib/x@.service.d/5.conf", "etc/x@.service.d/5.conf"),
            ]
        );
        assert_eq!(
            resolved(&root.join("usr/x@.service.d/5.conf")),
            root.join("lib/x@.service.d/5.conf")
        );
    }
}

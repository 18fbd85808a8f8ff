//! The fragment and the drop-ins of a unit, as they lie on disk.

use std::fs;
use std::path::{Path, PathBuf};

use super::drop_ins::on_disk;
use super::files::{FileError, changed_at, read_regular};
use crate::machine::setting::Source;
use crate::nspawn::document::Document;
use crate::unit::merge::{Status, UnitFile};

/// How many bytes of a unit file are read: systemd has no limit, and no one writes so much.
const MAX_BYTES: u64 = 4 << 20;

/// What systemd says of a unit's files.
#[derive(Clone, Copy, Debug)]
pub struct Known<'a> {
    /// The unit.
    pub unit: &'a str,
    /// `FragmentPath`; may be empty.
    pub fragment: &'a str,
    /// What it has read, see [`loaded`](super::drop_ins::loaded).
    pub drop_ins: &'a [PathBuf],
    /// `NeedDaemonReload`
    pub need_reload: bool,
    /// When systemd last read all units, in µs since 1970.
    pub loaded_at: u64,
    /// `UnitPath`: where it looks.
    pub search_path: &'a [String],
}

/// The files of a unit in the order in which systemd reads them: what it has not read comes last. And those that cannot be
/// read here.
#[must_use]
pub fn read(known: &Known<'_>) -> (Vec<UnitFile>, Vec<FileError>) {
    let (mut files, mut errors) = (Vec::new(), Vec::new());
    let mut add = |path: &str, source, status| {
        // A link to /dev/null says nothing.
        if fs::metadata(path).is_ok_and(|found| !found.is_file()) {
            return;
        }
        match read_regular(Path::new(path), MAX_BYTES) {
            Ok(bytes) => files.push(UnitFile {
                path: path.to_owned(),
                source,
                document: Document::from_bytes(bytes),
                status,
            }),
            Err(error) => errors.push(error),
        }
    };
    let status = |path: &str| {
        if known.need_reload && changed_at(Path::new(path)).is_some_and(|changed| changed > known.loaded_at) {
            Status::Changed
        } else {
            Status::Read
        }
    };
    if !known.fragment.is_empty() {
        let source = match known.fragment {
            path if is_transient(path) => Source::Transient,
            path if path.ends_with("@.service") => Source::Template,
            _ => Source::Unit,
        };
        add(known.fragment, source, status(known.fragment));
    }
    for path in known.drop_ins {
        // One that was removed since says nothing any more; its values are still in memory.
        if !known.need_reload || path.exists() {
            let path = path.to_string_lossy();
            add(&path, source_of(&path), status(&path));
        }
    }
    for file in on_disk(known.unit, known.search_path) {
        if known.drop_ins.contains(&file.path) {
            continue;
        }
        let status = match file.behind {
            Some(by) => Status::Shadowed(by.to_string_lossy().into_owned()),
            None => Status::New,
        };
        let path = file.path.to_string_lossy();
        add(&path, source_of(&path), status);
    }
    (files, errors)
}

fn is_transient(path: &str) -> bool {
    path.starts_with("/run/systemd/transient/")
}

fn source_of(path: &str) -> Source {
    match path {
        path if path.contains("/system.control/") => Source::Property,
        path if is_transient(path) => Source::Transient,
        _ => Source::DropIn,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_loaded_is_new_or_shadowed() {
        let root = tempfile::tempdir().unwrap();
        let at = |path: &str| root.path().join(path).to_string_lossy().into_owned();
        let write = |path: &str| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "[Service]\nNice=1\n").unwrap();
        };
        write("lib/x@.service");
        for path in [
            "etc/x@a.service.d/1.conf",
            "lib/x@.service.d/1.conf",
            "etc/service.d/2.conf",
        ] {
            write(path);
        }
        write("lib/x@.service.d/3.conf");
        std::os::unix::fs::symlink("/dev/null", at("etc/x@a.service.d/3.conf")).unwrap();
        let (fragment, loaded) = (at("lib/x@.service"), [at("etc/x@a.service.d/1.conf").into()]);
        let search_path = [at("etc"), at("lib")];
        let known = Known {
            unit: "x@a.service",
            fragment: &fragment,
            drop_ins: &loaded,
            need_reload: true,
            loaded_at: u64::MAX,
            search_path: &search_path,
        };
        let (files, errors) = read(&known);
        assert!(errors.is_empty());
        let short = |path: &str| path.strip_prefix(root.path().to_str().unwrap()).unwrap().to_owned();
        let found: Vec<(String, Status)> = files
            .iter()
            .map(|file| {
                let status = match &file.status {
                    Status::Shadowed(by) => Status::Shadowed(short(by)),
                    other => other.clone(),
                };
                (short(&file.path), status)
            })
            .collect();
        assert_eq!(
            found,
            [
                ("/lib/x@.service".to_owned(), Status::Read),
                ("/etc/x@a.service.d/1.conf".to_owned(), Status::Read),
                (
                    "/lib/x@.service.d/1.conf".to_owned(),
                    Status::Shadowed("/etc/x@a.service.d/1.conf".to_owned())
                ),
                ("/etc/service.d/2.conf".to_owned(), Status::New),
                (
                    "/lib/x@.service.d/3.conf".to_owned(),
                    Status::Shadowed("/etc/x@a.service.d/3.conf".to_owned())
                ),
            ]
        );
    }
}

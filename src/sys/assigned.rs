//! Which file of a unit assigns what, and whose word is the last: see "drop-in" in systemd.unit(5).

use std::path::{Path, PathBuf};

use super::bus::systemd1::UnitState;
use super::drop_ins::loaded;
use super::files::read_regular;
use crate::nspawn::document::Document;

/// No unit file is so large.
const MAX_BYTES: u64 = 1 << 20;

/// The files that a loaded unit was made of, in the order in which systemd reads them: the last one wins.
#[must_use]
pub fn files_of(unit: &UnitState) -> Vec<PathBuf> {
    let fragment = unit.unit.string("FragmentPath");
    let fragment = Some(fragment).filter(|path| !path.is_empty()).map(PathBuf::from);
    fragment.into_iter().chain(loaded(&unit.unit)).collect()
}

/// The sections that limits stand in, by the kind of unit.
const SECTIONS: [&str; 3] = ["Service", "Slice", "Scope"];

/// What a file assigns to a directive, in order; nothing if it cannot be read.
#[must_use]
pub fn assigned(file: &Path, directive: &str) -> Vec<String> {
    let Ok(bytes) = read_regular(file, MAX_BYTES) else {
        return Vec::new();
    };
    let document = Document::from_bytes(bytes);
    document
        .entries()
        .filter(|entry| entry.key == directive && entry.section.is_some_and(|section| SECTIONS.contains(&section)))
        .map(|entry| entry.value.to_owned())
        .collect()
}

/// Whether a file assigns this directive, and nothing else.
#[must_use]
pub fn assigns_only(file: &Path, directive: &str) -> bool {
    read_regular(file, MAX_BYTES).is_ok_and(|bytes| says_only(bytes, directive))
}

/// Whether a text assigns this directive, and nothing else.
#[must_use]
pub fn says_only(text: Vec<u8>, directive: &str) -> bool {
    let document = Document::from_bytes(text);
    let mut entries = document.entries().peekable();
    entries.peek().is_some() && entries.all(|entry| entry.key == directive)
}

/// The file whose word on a directive is the last, of those in [`files_of`].
#[must_use]
pub fn last_word<'a>(files: &'a [PathBuf], directive: &str) -> Option<&'a Path> {
    files
        .iter()
        .rev()
        .find(|file| !assigned(file, directive).is_empty())
        .map(PathBuf::as_path)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn the_last_word_is_the_highest_name() {
        let root = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &str| {
            let path = root.path().join(name);
            fs::write(&path, text).unwrap();
            path
        };
        let files = [
            file("unit", "[Service]\nTasksMax=16384\nMemoryMax=1G\n"),
            file(
                "50-MemoryMax.conf",
                "# by systemd\n[Service]\nMemoryMax=\nMemoryMax=5\n",
            ),
            file(
                "99-mine.conf",
                "[Service]\n#MemoryMax=6\nCPUWeight=5\n[X-Mine]\nMemoryMax=7\n",
            ),
        ];
        assert_eq!(last_word(&files, "MemoryMax"), Some(files[1].as_path()));
        assert_eq!(last_word(&files, "TasksMax"), Some(files[0].as_path()));
        assert_eq!(last_word(&files, "IOWeight"), None);
        assert_eq!(assigned(&files[1], "MemoryMax"), ["", "5"]);
        assert!(assigns_only(&files[1], "MemoryMax") && !assigns_only(&files[2], "CPUWeight"));
        assert!(!assigns_only(&root.path().join("none"), "MemoryMax"));
    }
}

//! Which assignments of several drop-ins are in force: later files win, and an empty value forgets what came before.

use std::path::{Path, PathBuf};

use crate::nspawn::document::Document;

/// A value, and the file that it stands in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Value {
    /// The value, as it stands there.
    pub value: String,
    /// The file.
    pub file: PathBuf,
}

/// The values of a list, or the one value of another key, in files that systemd reads in this order.
#[must_use]
pub fn values<'a>(
    files: impl IntoIterator<Item = (&'a Path, &'a Document)>,
    section: &str,
    key: &str,
    list: bool,
) -> Vec<Value> {
    let mut found: Vec<Value> = Vec::new();
    for (file, document) in files {
        for entry in document.entries_of(section, key) {
            if !list || entry.value.is_empty() {
                found.clear();
            }
            // What is no list may be set to nothing, which is a value: the default.
            if !entry.value.is_empty() || !list {
                found.push(Value {
                    value: entry.value.to_owned(),
                    file: file.to_owned(),
                });
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn later_files_win_and_nothing_resets() {
        let one = Document::parse(b"[Service]\nRestart=no\nExecStartPre=/a\n[Unit]\nRestart=x\n");
        let two = Document::parse(b"[Service]\nRestart=always\nExecStartPre=\nExecStartPre=/b\nExecStartPre=/c\n");
        let files = [(Path::new("1.conf"), &one), (Path::new("2.conf"), &two)];
        let found = |key, list| -> Vec<(String, PathBuf)> {
            let found = values(files, "Service", key, list);
            found.into_iter().map(|value| (value.value, value.file)).collect()
        };
        assert_eq!(found("Restart", false), [("always".into(), "2.conf".into())]);
        assert_eq!(
            found("ExecStartPre", true),
            [("/b".into(), "2.conf".into()), ("/c".into(), "2.conf".into())]
        );
        assert_eq!(found("Slice", false), []);
    }
}

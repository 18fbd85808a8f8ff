//! The host's links to the journals of guests.

use std::ffi::OsString;
use std::fs;
use std::path::PathBuf;

use super::Target;
use crate::ops::Places;
use crate::sys::files::Root;

/// Links from the host's journal into the image's, which `--link-journal=` made.
pub(super) fn journal_links(target: &Target, places: &Places) -> Vec<PathBuf> {
    let Some(image) = target.image.as_deref().filter(|image| image.is_dir()) else {
        return Vec::new();
    };
    let machine_id = Root::open(image)
        .and_then(|root| root.read_to_string("etc/machine-id", 64))
        .unwrap_or_default();
    let id = machine_id.trim();
    let is_id = id.len() == 32 && id.bytes().all(|byte| byte.is_ascii_hexdigit());
    let inside = image.join("var/log/journal");
    let Ok(entries) = fs::read_dir(&places.journal) else {
        return Vec::new();
    };
    entries
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| {
            let Ok(leads_to) = fs::read_link(path) else {
                return false;
            };
            let named = is_id && path.file_name() == Some(&OsString::from(id));
            leads_to.starts_with(&inside) || named
        })
        .collect()
}

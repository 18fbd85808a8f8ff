//! The host's links to the journals of guests.

use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;

use super::Target;
use crate::ops::Places;
use crate::sys::files::Root;

/// Where systemd 262 has the image while it makes the link, which dangles from then on.
const NSPAWN_ROOT: &str = "/tmp/nspawn-root-";

/// Links from the host's journal into the image's, which `--link-journal=` made.
///
/// Where a link leads decides: the machine-id is the guest's own text, and may be another guest's.
pub(in crate::ops) fn journal_links(target: &Target, places: &Places) -> Vec<PathBuf> {
    let Some(image) = target.image.as_deref().filter(|image| image.is_dir()) else {
        return Vec::new();
    };
    let machine_id = Root::open(image)
        .and_then(|root| root.read_to_string("etc/machine-id", 64))
        .unwrap_or_default();
    let id = machine_id.trim();
    let is_id = id.len() == 32 && id.bytes().all(|byte| byte.is_ascii_hexdigit());
    // systemd-nspawn follows an image that is a link.
    let real = image.canonicalize().unwrap_or_else(|_| image.to_owned());
    let inside = [image, &real].map(|image| image.join("var/log/journal"));
    let Ok(entries) = fs::read_dir(&places.journal) else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter(|entry| {
            let Ok(leads_to) = fs::read_link(entry.path()) else {
                return false;
            };
            let dangles = leads_to.as_os_str().as_bytes().starts_with(NSPAWN_ROOT.as_bytes()) && !leads_to.exists();
            let named = is_id && entry.file_name() == id;
            inside.iter().any(|inside| leads_to.starts_with(inside)) || (named && dangles)
        })
        .map(|entry| entry.path())
        .collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn a_guest_cannot_choose_the_link_of_another() {
        const ID: &str = "0123456789abcdef0123456789abcdef";
        let root = tempfile::tempdir().unwrap();
        let places = Places {
            journal: root.path().join("journal"),
            ..Places::default()
        };
        let (image, other) = (root.path().join("f"), root.path().join("c"));
        fs::create_dir_all(image.join("etc")).unwrap();
        fs::create_dir_all(&places.journal).unwrap();
        fs::write(image.join("etc/machine-id"), format!("{ID}\n")).unwrap();
        let target = Target {
            name: "f".parse().unwrap(),
            image: Some(image.clone()),
            enabled: false,
        };
        let link = places.journal.join(ID);
        let found_with = |leads_to: PathBuf| {
            symlink(leads_to.join("var/log/journal").join(ID), &link).unwrap();
            let found = journal_links(&target, &places);
            fs::remove_file(&link).unwrap();
            found
        };
        let found = std::slice::from_ref(&link);
        assert!(found_with(other).is_empty());
        assert_eq!(found_with(image), found);
        assert_eq!(found_with("/tmp/nspawn-root-none".into()), found);
    }
}

//! What is said of a machine outside of its image, as the members of an archive: its settings, drop-ins and limits.
//!
//! Secrets are no part of it: they are encrypted with a key of this host, and are nobody else's.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use crate::machine::manifest::SETTINGS;
use crate::machine::{MachineName, Report};
use crate::nspawn::document::Document;
use crate::nspawn::edit::Edit;
use crate::ops::config::files::{MAX_BYTES, of_image};
use crate::ops::linked::{edits_for_own_files, top};
use crate::ops::{OpError, Places};
use crate::sys::files::{read_regular, shown};
use crate::unit::topic::Topic;

/// The member that has the settings of systemd.nspawn(5).
pub(in crate::ops) const NSPAWN: &str = "machine.nspawn";
/// The directory of the drop-ins of its unit.
pub(in crate::ops) const DROP_INS: &str = "unit/";
/// That of its limits, as systemd wrote them.
pub(in crate::ops) const LIMITS: &str = "limits/";

/// A member: its path in the archive, and its contents.
pub(super) type Member = (String, Vec<u8>);

/// Reads all of them, in the order in which they are written. The tree is the image itself, or what is mounted of it.
pub(super) fn collect(
    name: &MachineName,
    (image, tree): (&Path, &Path),
    places: &Places,
    report: &dyn Report,
) -> Result<Vec<Member>, OpError> {
    let mut members = Vec::new();
    if let Some(bytes) = nspawn(name, (image, tree), places)? {
        members.push((format!("{SETTINGS}{NSPAWN}"), bytes));
    }
    let directory = format!("{}.d", name.unit());
    for (place, below) in [(&places.units, DROP_INS), (&places.control, LIMITS)] {
        drop_ins(&place.join(&directory), below, &mut members, report)?;
    }
    let own = places.units.join(name.unit());
    if fs::symlink_metadata(&own).is_ok() {
        report.warn(&format!(
            "'{}' is not exported: what stands in it instead of the template's can be said by a drop-in",
            shown(&own)
        ));
    }
    let secrets = fs::read_dir(places.secrets(name)).map_or(0, Iterator::count);
    if secrets > 0 {
        report.warn(&format!(
            "{secrets} secrets are not exported: set them where it is imported, with `machinist secret set {name}`"
        ));
    }
    // The order of members is that of their names, whatever the directory's is.
    members.sort();
    Ok(members)
}

/// The file that systemd-nspawn reads, as it would heed it.
fn nspawn(name: &MachineName, (image, tree): (&Path, &Path), places: &Places) -> Result<Option<Vec<u8>>, OpError> {
    let Some(file) = of_image(name, Some(image), places).into_iter().next() else {
        return Ok(None);
    };
    let mut document = Document::from_bytes(file.read()?);
    if !file.trusted {
        document.comment_out_untrusted();
    }
    // The archive has the numbers that the machine sees: there is nobody any more whose the tree would be.
    let is_given = fs::metadata(tree).is_ok_and(|found| found.uid() != 0);
    let has_users = document
        .entries()
        .any(|entry| entry.section == Some("Exec") && entry.key == "PrivateUsers");
    let edits = match top(name, places) {
        Some(_) => edits_for_own_files(),
        // "yes" would take them from the new owner of the tree, a number without ownership means nobody's.
        None if is_given && has_users => edits_for_own_files(),
        None if is_given => vec![Edit::remove("Files", "PrivateUsersOwnership", Some("off".to_owned()))],
        None => Vec::new(),
    };
    for edit in &edits {
        document.apply(edit).map_err(|error| OpError::Option {
            message: format!("'{}' cannot be exported: {error}", shown(&file.path)),
            hint: format!("see `machinist config check {name}`"),
        })?;
    }
    Ok(Some(document.as_bytes().to_vec()))
}

fn drop_ins(directory: &Path, below: &str, members: &mut Vec<Member>, report: &dyn Report) -> Result<(), OpError> {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(OpError::path("read", directory)(error)),
    };
    for entry in entries {
        let entry = entry.map_err(OpError::path("read", directory))?;
        let (path, name) = (entry.path(), entry.file_name());
        let Some(name) = name.to_str().filter(|name| is_name(name)) else {
            if path.extension().is_some_and(|ending| ending == "conf") {
                report.warn(&format!("'{}' is not exported, because of its name", shown(&path)));
            }
            continue;
        };
        if name == Topic::Secret.file_name() {
            continue;
        }
        if fs::symlink_metadata(&path).is_ok_and(|found| found.is_symlink()) {
            report.warn(&format!("'{}' is a link, which is not exported", shown(&path)));
            continue;
        }
        members.push((format!("{SETTINGS}{below}{name}"), read_regular(&path, MAX_BYTES)?));
    }
    Ok(())
}

/// Whether a drop-in may be called so in an archive.
pub(in crate::ops) fn is_name(name: &str) -> bool {
    let is_sound = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.:@\\".contains(&byte);
    name.len() <= 200 && name.ends_with(".conf") && !name.starts_with('.') && name.bytes().all(is_sound)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_drop_ins_lead_nowhere() {
        assert!(is_name("50-MemoryMax.conf") && is_name("override.conf"));
        for bad in ["../x.conf", ".conf", "a/b.conf", "x.service", "", "a\u{1b}.conf"] {
            assert!(!is_name(bad), "{bad:?}");
        }
    }
}

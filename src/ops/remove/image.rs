//! The image: one rename takes it out of sight.

use std::fs;
use std::io;
use std::path::Path;

use crate::machine::{Cancel, MachineName, Report};
use crate::ops::transaction::{Record, Staging, Verb};
use crate::ops::{OpError, Places};
use crate::sys::files::set_immutable;

/// An image out of sight.
pub(super) struct Hidden {
    pub(super) staging: Staging,
    /// How machined makes a directory read-only where there is no btrfs: such a one cannot be renamed.
    pub(super) was_immutable: bool,
}

/// Renames the image into a staging directory, whose record says that it is to be removed.
pub(super) fn hide(
    name: &MachineName,
    image: &Path,
    places: &Places,
    report: &dyn Report,
    cancel: &Cancel,
) -> Result<Hidden, OpError> {
    let record = Record {
        verb: Verb::Remove,
        name: name.to_string(),
        settings: None,
    };
    // Beside the image, wherever that is: only there is it one rename.
    let beside = image.parent().unwrap_or(&places.machines).to_owned();
    let there = Places {
        machines: beside,
        ..places.clone()
    };
    let mut staging = Staging::create(&there, &record, report, cancel)?;
    let mut renamed = fs::rename(image, staging.tree());
    let is_refused = matches!(&renamed, Err(error) if error.kind() == io::ErrorKind::PermissionDenied);
    let was_immutable = is_refused && set_immutable(image, false);
    if was_immutable {
        renamed = fs::rename(image, staging.tree());
    }
    match renamed {
        Ok(()) => Ok(Hidden { staging, was_immutable }),
        Err(error) => {
            let _ = was_immutable && set_immutable(image, true);
            staging.discard()?;
            Err(OpError::NotRemovable {
                path: image.to_owned(),
                reason: error.to_string(),
            })
        }
    }
}

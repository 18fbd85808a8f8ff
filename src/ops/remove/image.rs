//! The image: one rename takes it out of sight.

use std::fs;
use std::io;
use std::path::Path;

use crate::machine::{Cancel, MachineName, Report};
use crate::ops::transaction::{Record, Staging, Verb};
use crate::ops::{OpError, Places};
use crate::sys::files::{ReadOnly, make_read_only, make_writable};

/// An image out of sight.
pub(super) struct Hidden {
    staging: Staging,
    /// A read-only directory cannot be renamed. `machinectl remove` takes such an image like any other.
    was: Option<ReadOnly>,
}

impl Hidden {
    /// Makes it what it was.
    pub(super) fn put_back(mut self, image: &Path) -> Result<(), OpError> {
        fs::rename(self.staging.tree(), image).map_err(OpError::path("put back", image))?;
        if let Some(how) = self.was {
            make_read_only(image, how);
        }
        self.staging.discard()
    }

    /// Deletes its files.
    pub(super) fn delete(mut self) -> Result<(), OpError> {
        self.staging.discard()
    }
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
        unit: None,
    };
    // Beside the image, wherever that is: only there is it one rename.
    let beside = image.parent().unwrap_or(&places.machines).to_owned();
    let there = Places {
        machines: beside,
        ..places.clone()
    };
    let mut staging = Staging::create(&there, &record, report, cancel)?;
    let mut renamed = fs::rename(image, staging.tree());
    let mut was = None;
    if matches!(&renamed, Err(error) if is_refusal(error.kind())) {
        was = make_writable(image);
        if was.is_some() {
            renamed = fs::rename(image, staging.tree());
        }
    }
    match renamed {
        Ok(()) => Ok(Hidden { staging, was }),
        Err(error) => {
            if let Some(how) = was {
                make_read_only(image, how);
            }
            staging.discard()?;
            Err(OpError::NotRemovable {
                path: image.to_owned(),
                reason: error.to_string(),
            })
        }
    }
}

fn is_refusal(kind: io::ErrorKind) -> bool {
    matches!(
        kind,
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem
    )
}

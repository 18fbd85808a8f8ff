//! What is to be cloned, and why it cannot be.

use std::fs;
use std::path::PathBuf;

use crate::machine::MachineName;
use crate::ops::quota::Copied;
use crate::ops::{OpError, Places};
use crate::sys::files::shown;

/// What is to be cloned.
#[derive(Clone, Debug)]
pub struct Request {
    /// The machine that there is.
    pub source: MachineName,
    /// Its image: a directory, or a disk image.
    pub image: PathBuf,
    /// The machine that there will be.
    pub name: MachineName,
    /// How many bytes of the disk the image may take, where machined knows it.
    pub limit: Option<u64>,
    /// Whether the clone is to be taken for the original: machine ID, keys, host name.
    pub keep_identity: bool,
    /// Whether it is to share the files that neither changes, where the filesystem shares nothing between copies.
    pub linked: bool,
    /// The version of the systemd that runs both.
    pub systemd: u32,
}

impl Request {
    /// Whether it is no directory.
    #[must_use]
    pub fn is_disk_image(&self) -> bool {
        self.image.extension().is_some_and(|end| end == "raw") && self.image.is_file()
    }

    /// Where the clone will lie.
    pub(super) fn target(&self, places: &Places) -> PathBuf {
        if self.is_disk_image() {
            places.machines.join(format!("{}.raw", self.name))
        } else {
            places.image(&self.name)
        }
    }

    /// Refuses what is neither a directory nor a disk image that may stay as it is.
    pub(super) fn can_be_cloned(&self) -> Result<(), OpError> {
        let (image, refused) = (shown(&self.image), |message: String, hint: &str| {
            let hint = hint.to_owned();
            Err(OpError::Option { message, hint })
        });
        if fs::metadata(&self.image).is_ok_and(|found| found.is_dir()) {
            Ok(())
        } else if !self.is_disk_image() {
            refused(
                format!("'{image}' is a device, and only directories and disk images are cloned"),
                "`machinectl clone` does not copy it either: see dd(1)",
            )
        } else if self.linked {
            refused(
                format!("'{image}' is a disk image, and only directories can lie on layers"),
                "clone it with --full --keep-identity",
            )
        } else if !self.keep_identity {
            refused(
                format!(
                    "'{image}' is a disk image: it is copied as it is, with the machine ID, keys and host name in it"
                ),
                "say so with --keep-identity",
            )
        } else {
            Ok(())
        }
    }

    /// Refuses a machine that runs on a disk image: who holds it still does so for its own filesystem, not for the file that
    /// this is in.
    pub(super) fn can_run(&self, running: bool) -> Result<(), OpError> {
        if !running || !self.is_disk_image() {
            return Ok(());
        }
        let source = &self.source;
        Err(OpError::Option {
            message: format!("machine '{source}' runs on a disk image, which it is writing to"),
            hint: format!("`machinist stop {source}` for the moment that it takes"),
        })
    }

    /// Refuses what would change while something lies on it, or be limited no more.
    pub(super) fn can_be_linked(&self, running: bool) -> Result<(), OpError> {
        let source = &self.source;
        if running {
            return Err(OpError::Option {
                message: format!("machine '{source}' runs, and what a linked clone lies on does not change any more"),
                hint: format!("`machinist stop {source}` for the moment that it takes, or clone it with --full"),
            });
        }
        if Copied::of(&self.image, self.limit).is_some() {
            return Err(OpError::Option {
                message: format!("machine '{source}' has a quota, and layers have none of their own"),
                hint: format!("clone it with --full, or take it off: `machinist quota {source} none`"),
            });
        }
        Ok(())
    }
}

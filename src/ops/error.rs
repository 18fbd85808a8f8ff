//! Why a use case failed, with what mends it.

use std::path::PathBuf;
use std::time::Duration;

use super::diagnose::Diagnosis;
use super::quota::QuotaError;
use crate::machine::{Cancelled, NameError};
use crate::sources::SourceError;
use crate::sources::guest::GuestError;
use crate::storage::StorageError;
use crate::sys::bus::BusError;
use crate::sys::files::FileError;
use crate::sys::image_lock::ImageLockError;
use crate::sys::process::ProcessError;

/// Every way a verb that changes something can fail.
#[derive(Debug, thiserror::Error)]
pub enum OpError {
    /// systemd or machined said no.
    #[error(transparent)]
    Bus(#[from] BusError),
    /// A program could not be run, or failed.
    #[error(transparent)]
    Process(#[from] ProcessError),
    /// A name that machined would refuse.
    #[error(transparent)]
    Name(#[from] NameError),
    /// There is no image of that name.
    #[error("no machine or image '{name}'")]
    NoImage {
        /// The name.
        name: String,
    },
    /// The name is taken.
    #[error("cannot create machine '{name}': {by} exists already")]
    InUse {
        /// The name.
        name: String,
        /// What has it: "image '/var/lib/machines/web'".
        by: String,
        /// What frees the name.
        hint: String,
    },
    /// `remove` of a machine that runs.
    #[error("machine '{name}' is running")]
    Running {
        /// The name.
        name: String,
    },
    /// The administrator has masked it.
    #[error("unit {unit} is masked")]
    Masked {
        /// The unit.
        unit: String,
    },
    /// It exists, and does not run.
    #[error("machine '{name}' is not running")]
    NotRunning {
        /// The name.
        name: String,
    },
    /// `restart` of a machine that runs in a unit which systemd could not start again.
    #[error("cannot restart machine '{name}': it runs in {unit}, not in its own unit")]
    Elsewhere {
        /// The name.
        name: String,
        /// The unit.
        unit: String,
    },
    /// A virtual machine, which is stopped by whatever runs it.
    #[error("cannot {verb} '{name}': it is a virtual machine")]
    NotContainer {
        /// "stop", "reboot".
        verb: &'static str,
        /// The name.
        name: String,
    },
    /// `restart --inside` of a machine whose leader is no init.
    #[error("cannot reboot machine '{name}' from inside: it runs no init")]
    NoInit {
        /// The name.
        name: String,
    },
    /// Somebody has said that it is not to be removed.
    #[error("machine '{name}' is protected")]
    Protected {
        /// The name.
        name: String,
    },
    /// Something on disk is in the way.
    #[error("cannot remove image '{path}': {reason}")]
    NotRemovable {
        /// Its place.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
    /// A verb that systemd offers no polkit action for.
    #[error("{verb} needs root")]
    NeedsRoot {
        /// The verb.
        verb: &'static str,
    },
    /// A job did not end well.
    #[error("cannot {verb} machine '{name}': {}", diagnosis.cause)]
    Job {
        /// "start", "stop".
        verb: &'static str,
        /// The machine.
        name: String,
        /// What the journal and the unit say.
        diagnosis: Box<Diagnosis>,
    },
    /// A unit did not start that a machine lies on.
    #[error("cannot start unit {unit}: {}", diagnosis.cause)]
    Needed {
        /// The unit.
        unit: String,
        /// Which one it needs, and what is wrong with that.
        diagnosis: Box<Diagnosis>,
    },
    /// A wait took too long.
    #[error("machine '{name}' {state} after {} s", after.as_secs_f64())]
    TimedOut {
        /// The machine.
        name: String,
        /// "has not stopped", "has not finished booting".
        state: &'static str,
        /// How long it was waited for.
        after: Duration,
        /// What to do.
        hint: String,
    },
    /// Ctrl-C or SIGTERM.
    #[error(transparent)]
    Cancelled(#[from] Cancelled),
    /// A file of the host or of a guest.
    #[error(transparent)]
    File(#[from] FileError),
    /// Somebody uses the image.
    #[error(transparent)]
    ImageLock(#[from] ImageLockError),
    /// A copy or removal of a tree.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// A source could not be read, or fill a tree.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// A tree could not be made a usable guest.
    #[error(transparent)]
    Guest(#[from] GuestError),
    /// `--set Section.Key=Value` that systemd would not take.
    #[error("{0}")]
    Setting(String),
    /// An option's value.
    #[error("{message}")]
    Option {
        /// What is wrong.
        message: String,
        /// What to do.
        hint: String,
    },
    /// An image that cannot be limited.
    #[error("cannot limit the image of machine '{name}': {reason}")]
    NoQuota {
        /// The machine.
        name: String,
        /// Why not.
        reason: QuotaError,
    },
    /// Why an image cannot be limited.
    #[error(transparent)]
    Quota(#[from] QuotaError),
    /// systemd-creds would not encrypt a secret.
    #[error("cannot encrypt secret '{key}'")]
    Encrypt {
        /// Its name.
        key: String,
        /// What systemd-creds said.
        source: ProcessError,
    },
    /// A system call on a path.
    #[error("cannot {action} '{}'", path.display())]
    Path {
        /// "lock", "rename" …
        action: &'static str,
        /// The path.
        path: PathBuf,
        /// What the kernel said.
        source: std::io::Error,
    },
}

impl OpError {
    /// A system call on a path that failed.
    pub(crate) fn path(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Path { action, path, source }
    }

    /// Whether the user stopped it.
    #[must_use]
    pub fn is_interruption(&self) -> bool {
        matches!(
            self,
            Self::Cancelled(_)
                | Self::Source(SourceError::Cancelled(_))
                | Self::Storage(StorageError::Cancelled(_))
                | Self::File(FileError::Cancelled(_))
                | Self::Encrypt {
                    source: ProcessError::Cancelled(_),
                    ..
                }
        )
    }

    /// The path that it is about, of those that lie in or above a staging directory.
    pub(super) fn path_mut(&mut self) -> Option<&mut PathBuf> {
        match self {
            Self::Path { path, .. } => Some(path),
            Self::File(error) => error.path_mut(),
            Self::Storage(error) => error.path_mut(),
            Self::Source(error) => error.path_mut(),
            Self::Guest(error) => error.path_mut(),
            _ => None,
        }
    }

    /// Whether the kernel let nothing more be written because of a quota.
    fn is_over_quota(&self) -> bool {
        let sources = std::iter::successors(Some(self as &dyn std::error::Error), |error| error.source());
        sources
            .filter_map(|error| error.downcast_ref::<std::io::Error>())
            .any(|error| error.kind() == std::io::ErrorKind::QuotaExceeded)
    }

    /// Causes that are not in the `source()` chain.
    #[must_use]
    pub fn causes(&self) -> Vec<String> {
        match self {
            Self::Job { diagnosis, .. } | Self::Needed { diagnosis, .. } => diagnosis.evidence.clone(),
            _ => Vec::new(),
        }
    }

    /// What mends it, the best first.
    #[must_use]
    pub fn hints(&self) -> Vec<String> {
        if self.is_over_quota() {
            return vec![
                "a machine takes all of the disk that it may: see `machinist quota`, and allow it more".to_owned(),
            ];
        }
        match self {
            Self::NoImage { name } => {
                vec![format!(
                    "see `machinist images`, or make it: `machinist create {name} debian:stable`"
                )]
            }
            Self::InUse { hint, .. } | Self::TimedOut { hint, .. } | Self::Option { hint, .. } => vec![hint.clone()],
            Self::NoQuota { reason, .. } | Self::Quota(reason) => vec![reason.hint()],
            Self::Running { name } => vec![format!("stop it first: `machinist stop {name}`, or `remove --force`")],
            Self::Protected { name } => vec![format!("if you are sure: `machinist protect {name} off`")],
            Self::Masked { unit } => vec![format!("unmask it with `systemctl unmask {unit}`")],
            Self::NotRunning { name } => vec![format!("start it with `machinist start {name}`")],
            Self::Elsewhere { name, .. } => vec![format!(
                "reboot it with `machinist restart --inside {name}`, or stop and start it the way it was started"
            )],
            Self::NotContainer { name, .. } => {
                vec![format!(
                    "see `machinectl status {name}` for what runs it, such as libvirt"
                )]
            }
            Self::NoInit { name } => vec![format!("restart it from outside: `machinist restart {name}`")],
            Self::ImageLock(ImageLockError::InUse { .. }) => {
                vec!["a machine of another name may run on it: see `machinectl list`, and stop that one".to_owned()]
            }
            Self::NeedsRoot { .. } => vec!["run it as root: `sudo machinist …`".to_owned()],
            Self::Job { diagnosis, .. } | Self::Needed { diagnosis, .. } => diagnosis.hints.clone(),
            Self::Encrypt {
                source: ProcessError::Failed { .. },
                ..
            } => vec![
                "systemd-creds needs a TPM2, or a key in /var/lib/systemd on a disk: see `systemd-creds setup`"
                    .to_owned(),
            ],
            Self::Encrypt { source, .. } => source.hints(),
            Self::Source(error) => error.hints(),
            Self::Guest(error) => error.hints(),
            Self::Storage(StorageError::File(error)) | Self::File(error) => {
                full_disk(error.raw_os_error() == Some(nix::libc::ENOSPC))
            }
            Self::Path { source, .. } | Self::Storage(StorageError::Io { source, .. }) => {
                full_disk(source.kind() == std::io::ErrorKind::StorageFull)
            }
            _ => Vec::new(),
        }
    }
}

fn full_disk(is_full: bool) -> Vec<String> {
    if is_full {
        vec!["free some space: `machinist clean` shows what it frees with --dry-run".to_owned()]
    } else {
        Vec::new()
    }
}

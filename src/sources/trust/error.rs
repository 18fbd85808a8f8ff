//! Why something is not trusted, and what mends it.

use std::path::PathBuf;

use crate::machine::text::printable;
use crate::sources::SourceError;
use crate::sys::files::{FileError, shown};
use crate::sys::process::ProcessError;

/// Why something is not trusted.
#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    /// A file that should have public keys.
    #[error("'{}' has no OpenPGP keys: {reason}", shown(path))]
    NoKeyring {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A pin that cannot be understood.
    #[error("'{}' pins no key: {reason}", shown(path))]
    BadPin {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A signature was asked for, and there are no keys to check it with.
    #[error("no key is known that '{url}' could be signed by")]
    NoKey {
        /// The address, without a password.
        url: String,
    },
    /// There is no signature.
    #[error("'{url}' is not signed: {looked}, and a key of {keys} has to vouch for it")]
    Unsigned {
        /// The address, without a password.
        url: String,
        /// What was looked for.
        looked: String,
        /// What the keys are called.
        keys: String,
    },
    /// A file that should be a signature.
    #[error("'{signature}' is no signature: {reason}")]
    NoSignature {
        /// Its address.
        signature: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A signature that vouches for nothing.
    #[error("'{url}' is not trusted: its signature '{signature}' {refusal}")]
    Refused {
        /// What should be signed, without a password.
        url: String,
        /// The address of the signature.
        signature: String,
        /// Why not.
        refusal: Refusal,
    },
    /// Another key is pinned.
    #[error(
        "another key is pinned for '{prefix}' already: {pinned} in '{}', and this is {given}",
        shown(path)
    )]
    OtherKey {
        /// The address.
        prefix: String,
        /// Fingerprints of the keys that are pinned.
        pinned: String,
        /// Where.
        path: PathBuf,
        /// Fingerprints of those that were to be.
        given: String,
    },
    /// No key is pinned there.
    #[error("no key is pinned for '{prefix}'")]
    NoPin {
        /// The address, or the pattern, as given.
        prefix: String,
    },
    /// No program that checks signatures.
    #[error("no program is installed that checks OpenPGP signatures")]
    NoProgram,
    /// The program did not run.
    #[error(transparent)]
    Process(ProcessError),
    /// A file of the host.
    #[error(transparent)]
    File(#[from] FileError),
    /// Something of the system.
    #[error("cannot {action}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// The caller gave up.
    #[error(transparent)]
    Cancelled(#[from] crate::machine::Cancelled),
}

/// Why a signature vouches for nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// It is over something else.
    #[error("was made over something else, or this was changed on its way")]
    Changed,
    /// By a key that is not in the keyring.
    #[error("was made by key {key}, which is not in {keys}")]
    Unknown {
        /// Its fingerprint or number, if the signature tells.
        key: String,
        /// What the keyring is called.
        keys: String,
    },
    /// By a key that is past its time.
    #[error("was made by a key that has expired: {0}")]
    ExpiredKey(String),
    /// By a key that its owner has revoked.
    #[error("was made by a key that its owner has revoked: {0}")]
    RevokedKey(String),
    /// It is past its own time.
    #[error("has expired")]
    Expired,
    /// Whatever the program said.
    #[error("cannot be checked: {}", printable(.0))]
    Other(String),
}

impl From<ProcessError> for TrustError {
    fn from(error: ProcessError) -> Self {
        match error {
            ProcessError::Cancelled(cancelled) => cancelled.into(),
            other => Self::Process(other),
        }
    }
}

impl From<TrustError> for SourceError {
    fn from(error: TrustError) -> Self {
        match error {
            TrustError::Cancelled(cancelled) => cancelled.into(),
            other => Self::Trust(other),
        }
    }
}

impl TrustError {
    /// Commands and options that mend it.
    #[must_use]
    pub fn hints(&self) -> Vec<String> {
        let hint = |text: &str| vec![text.to_owned()];
        match self {
            Self::NoKeyring { .. } => hint("have them written out with `gpg --export --armor KEY`"),
            Self::BadPin { path, .. } => {
                vec![format!(
                    "mend it, or remove it: '{}'; see `machinist help downloads`",
                    shown(path)
                )]
            }
            Self::NoKey { .. } => vec![
                "name a file that has its publisher's keys with `--keyring FILE`".to_owned(),
                "or have them asked for always: `machinist trust add URL-PREFIX FILE`".to_owned(),
            ],
            Self::Unsigned { .. } => hint(
                "see `machinist trust list`; of an address alone, `--verify=no` takes what comes from it, whoever made it",
            ),
            Self::Refused {
                refusal: Refusal::Unknown { .. },
                ..
            } => vec![
                "nothing was made of it; if its publisher says that this key is right, name the file that has it with \
                 `--keyring FILE`"
                    .to_owned(),
                "a key that is pinned is replaced with `machinist trust add URL-PREFIX FILE --replace`".to_owned(),
            ],
            Self::Refused {
                refusal: Refusal::ExpiredKey(_),
                ..
            } => hint("nothing was made of it; ask its publisher for the present key"),
            Self::Refused { .. } | Self::NoSignature { .. } => {
                hint("nothing was made of it: try again in a while, and tell the publisher if it stays so")
            }
            Self::OtherKey { .. } => hint("if the publisher says that this is right, add `--replace`"),
            Self::NoPin { .. } => hint("see `machinist trust list`"),
            Self::NoProgram => hint("install one with `apt install gpgv`"),
            Self::Process(error) => error.hints(),
            Self::File(_) | Self::Io { .. } | Self::Cancelled(_) => Vec::new(),
        }
    }
}

//! Lines without effect, and why.

use super::assignment::suggestion;
use super::document::FaultKind;
use super::value::{ValueError, quoted};

/// A line, or a part of one, without effect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ignored {
    /// The line that systemd would name.
    pub line: usize,
    /// Why.
    pub reason: Reason,
    /// systemd refuses the whole file for it, and the machine does not start.
    pub fatal: bool,
}

/// Why a line has no effect.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Reason {
    /// A header with a name that systemd does not know; everything in that section is ignored.
    #[error("unknown section {}{}", quoted(.section), suggestion(.nearest.as_deref()))]
    UnknownSection {
        /// Its name.
        section: String,
        /// What was probably meant.
        nearest: Option<String>,
    },
    /// No systemd knows this key.
    #[error("unknown key {} in section [{section}]{}", quoted(.key), suggestion(.nearest.as_deref()))]
    UnknownKey {
        /// The section.
        section: String,
        /// The key.
        key: String,
        /// What was probably meant.
        nearest: Option<String>,
    },
    /// A later systemd knows this key.
    #[error("{path}= needs systemd {since}, this is {running}")]
    TooNew {
        /// `Section.Key`.
        path: String,
        /// The first systemd that knows it.
        since: u32,
        /// The one that was asked about.
        running: u32,
    },
    /// Text before the first header.
    #[error("the line stands before the first section")]
    OutsideSection,
    /// The line has a wrong form.
    #[error(transparent)]
    Form(#[from] FaultKind),
    /// The value, or a word of it, is not accepted.
    #[error("{path}=: {source}")]
    Value {
        /// `Section.Key`.
        path: String,
        /// What is wrong.
        source: ValueError,
    },
    /// The same host port again.
    #[error("host port {} is forwarded already", quoted(.value))]
    RepeatedPort {
        /// The value.
        value: String,
    },
    /// `Boot=` against `ProcessTwo=`, or either against itself.
    #[error("{path}= contradicts an earlier Boot= or ProcessTwo=, which stays in force")]
    StartModeConflict {
        /// `Section.Key`.
        path: String,
    },
    /// A privileged setting in a file that is not trusted.
    #[error("{path}= is ignored in a file beside the image: it is heeded in /etc/systemd/nspawn only")]
    NotTrusted {
        /// `Section.Key`.
        path: String,
    },
    /// systemd takes `Parameters=` over together with the start mode only.
    #[error("Parameters= has no effect without Boot= or ProcessTwo=")]
    ParametersAlone,
}

impl Reason {
    /// Whether systemd-nspawn says so itself, with file and line.
    #[must_use]
    pub fn is_reported_by_systemd(&self) -> bool {
        !matches!(self, Self::NotTrusted { .. } | Self::ParametersAlone)
    }
}

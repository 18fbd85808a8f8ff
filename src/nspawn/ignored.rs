//! Lines without effect, and why.

use super::document::FaultKind;
use super::suggest::{nearest_key, nearest_section};
use super::value::{ValueError, quoted, shown};

/// A line, or a part of one, without effect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ignored {
    /// The line that systemd would name.
    pub line: usize,
    /// The first line of the assignment: the same, unless it is continued.
    pub first_line: usize,
    /// Why.
    pub reason: Reason,
    /// systemd refuses the whole file for it, and the machine does not start.
    pub fatal: bool,
    /// The line's place among the items of the document.
    pub(super) index: usize,
}

/// Why a line has no effect.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Reason {
    /// A header with a name that systemd does not know; everything in that section is ignored.
    #[error("unknown section [{}]", shown(.section))]
    UnknownSection {
        /// Its name.
        section: String,
    },
    /// No systemd knows this key.
    #[error("unknown key {} in section [{section}]", quoted(.key))]
    UnknownKey {
        /// The section.
        section: String,
        /// The key.
        key: String,
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

    /// One word for scripts; it never changes.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::UnknownSection { .. } => "unknown-section",
            Self::UnknownKey { .. } => "unknown-key",
            Self::TooNew { .. } => "key-too-new",
            Self::OutsideSection => "outside-section",
            Self::Form(FaultKind::NotUtf8) => "not-utf8",
            Self::Form(FaultKind::UnclosedHeader) => "unclosed-header",
            Self::Form(FaultKind::UnsafeHeader) => "bad-header",
            Self::Form(FaultKind::TooLong) => "line-too-long",
            Self::Form(FaultKind::MissingEquals) => "missing-equals",
            Self::Form(FaultKind::MissingKey) => "missing-key",
            Self::Value {
                source: ValueError::TooNew { .. },
                ..
            } => "value-too-new",
            Self::Value { .. } => "bad-value",
            Self::RepeatedPort { .. } => "repeated-port",
            Self::StartModeConflict { .. } => "start-mode-conflict",
            Self::NotTrusted { .. } => "not-trusted",
            Self::ParametersAlone => "parameters-alone",
        }
    }

    /// What to do about it.
    #[must_use]
    pub fn hint(&self) -> String {
        match self {
            Self::UnknownSection { section } => nearest_section(section).map_or_else(
                || "the sections are [Exec], [Files] and [Network]; notes of your own go into [X-…]".to_owned(),
                |near| format!("did you mean [{near}]?"),
            ),
            Self::UnknownKey { section, key } => match nearest_key(section, key) {
                Some(near) => match near.split_once('.') {
                    Some((place, name)) if place == section => format!("did you mean '{name}'?"),
                    Some((place, name)) => format!("did you mean '{name}' in section [{place}]?"),
                    None => format!("did you mean '{near}'?"),
                },
                None => {
                    "see systemd.nspawn(5) for the keys; limits, devices, credentials and order are settings of the \
                         unit, see `systemctl edit systemd-nspawn@NAME.service`"
                        .to_owned()
                }
            },
            Self::TooNew { since, .. } => format!("remove the line where systemd is older than {since}"),
            Self::OutsideSection => "put it below [Exec], [Files] or [Network]".to_owned(),
            Self::Form(FaultKind::NotUtf8) => "save the file as UTF-8: nothing of it is read as it is".to_owned(),
            Self::Form(FaultKind::UnclosedHeader | FaultKind::UnsafeHeader) => {
                "write [Exec], [Files] or [Network]: nothing of the file is read as it is".to_owned()
            }
            Self::Form(FaultKind::TooLong) => {
                "split it into several assignments: nothing of the file is read as it is".to_owned()
            }
            Self::Form(FaultKind::MissingEquals | FaultKind::MissingKey) => {
                "write KEY=VALUE, or '#' in front of a comment".to_owned()
            }
            Self::Value { path, .. } => {
                let key = path.split_once('.').map_or(path.as_str(), |(_, key)| key);
                format!("see {key}= in systemd.nspawn(5)")
            }
            Self::RepeatedPort { .. } => "remove one of the two lines".to_owned(),
            Self::StartModeConflict { .. } => "keep one of Boot= and ProcessTwo=".to_owned(),
            Self::NotTrusted { .. } => {
                "if you trust it, copy the file to /etc/systemd/nspawn: it is read there first".to_owned()
            }
            Self::ParametersAlone => "add Boot=yes, or ProcessTwo=yes for a single command".to_owned(),
        }
    }
}

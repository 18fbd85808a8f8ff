//! What is wrong with a .nspawn file, or probably not meant: each finding with its place, a word for scripts and a hint.
//!
//! A line, or a file, that systemd does not heed is an error; what it heeds, but hardly as it was meant, is a warning.

mod conflicts;
mod host;
mod place;
#[cfg(test)]
mod tests;

pub use host::{Host, Link};
pub use place::Place;

use std::collections::HashSet;

use super::document::Document;
use super::ignored::Reason;
use super::schema::KEYS;
use super::settings::Settings;
use super::value::shown;
use place::Part;

/// How many findings of one file are told; the rest is one finding that counts them.
pub const MAX_FINDINGS: usize = 1000;

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Severity {
    /// systemd ignores the line, refuses the file, or does not start the machine with it.
    Error,
    /// systemd takes it, but what comes of it may not be what was meant.
    Warning,
}

impl Severity {
    /// The word for it: "error", "warning".
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warning => "warning",
        }
    }
}

/// Something to be told about a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Where; `None` if it is about the file as a whole.
    pub place: Option<Place>,
    /// How bad.
    pub severity: Severity,
    /// One word for scripts: "unknown-key".
    pub code: &'static str,
    /// What is wrong: lower case, no final period.
    pub message: String,
    /// What to do about it.
    pub hint: Option<String>,
}

impl Finding {
    /// A finding about a file as a whole.
    #[must_use]
    pub fn of_file(severity: Severity, code: &'static str, message: impl Into<String>) -> Self {
        Self {
            place: None,
            severity,
            code,
            message: message.into(),
            hint: None,
        }
    }

    /// Adds a hint.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

/// Who is to read the file.
#[derive(Clone, Copy, Debug)]
pub struct Reader<'a> {
    /// The version of systemd.
    pub systemd: u32,
    /// Whether it lies in /etc/systemd/nspawn or /run/systemd/nspawn, and so may set everything.
    pub trusted: bool,
    /// The host that the machine runs on; `None` leaves out what depends on it.
    pub host: Option<Host<'a>>,
}

/// Everything that is to be told about a file, in the order of its lines.
///
/// After a line for which systemd refuses the file nothing else is looked at, as systemd does.
#[must_use]
pub fn check(document: &Document, reader: &Reader<'_>) -> Vec<Finding> {
    let settings = Settings::effective(document, reader.systemd, reader.trusted);
    let mut findings: Vec<Finding> = settings
        .ignored()
        .iter()
        .take(MAX_FINDINGS + 1)
        .map(|ignored| {
            let part = match ignored.reason {
                Reason::UnknownKey { .. } | Reason::TooNew { .. } => Part::Key,
                Reason::Value { .. } | Reason::RepeatedPort { .. } => Part::Value,
                _ => Part::Line,
            };
            Finding {
                place: Some(document.place(ignored.index, part)),
                severity: Severity::Error,
                code: ignored.reason.code(),
                message: ignored.reason.to_string(),
                hint: Some(ignored.reason.hint()),
            }
        })
        .collect();
    if settings.fatal().is_none() {
        findings.extend(repeated(document, &settings));
        findings.extend(conflicts::find(document, &settings, reader.systemd));
        if let Some(host) = &reader.host {
            findings.extend(host::find(document, &settings, host));
        }
    }
    findings.sort_by_key(|finding| finding.place.as_ref().map_or(0, |place| place.bytes.start));
    let total = findings.len().max(settings.ignored().len());
    if total > MAX_FINDINGS {
        findings.truncate(MAX_FINDINGS);
        let message = format!("there are {} findings more", total - MAX_FINDINGS);
        findings.push(Finding::of_file(Severity::Error, "more", message).hint("mend these first"));
    }
    findings
}

/// Single keys that a later line sets again.
fn repeated(document: &Document, settings: &Settings) -> Vec<Finding> {
    let ignored: HashSet<usize> = settings.ignored().iter().map(|ignored| ignored.index).collect();
    let mut last = vec![None; KEYS.len()];
    let mut findings = Vec::new();
    for entry in document.entries().filter(|entry| !ignored.contains(&entry.index)) {
        let key = |key: &super::schema::Key| Some(key.section) == entry.section && key.name == entry.key;
        let Some(at) = KEYS.iter().position(key).filter(|&at| !KEYS[at].is_list()) else {
            continue;
        };
        if let Some(earlier) = last[at].replace(entry.index) {
            let place = document.place(earlier, Part::Line);
            let message = format!(
                "{}= has no effect: line {} sets it to '{}'",
                KEYS[at].path(),
                entry.first_line,
                shown(entry.value)
            );
            findings.push(Finding {
                place: Some(place),
                severity: Severity::Warning,
                code: "repeated-key",
                message,
                hint: Some("remove one of the two lines".to_owned()),
            });
        }
    }
    findings
}

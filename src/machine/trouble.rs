//! What keeps machines from working, as `doctor` and `why` show it; also the JSON schema.

use serde::Serialize;

/// How bad it is, the worst first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Severity {
    /// Machines do not start, cannot be reached, or lose what they write.
    Error,
    /// Some do not work as most people expect, or will not for long.
    Warning,
    /// Nothing to worry about; it explains what is not offered here.
    Note,
}

impl Severity {
    /// The word for it: "error", "warning", "note".
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warning => "warning",
            Self::Note => "note",
        }
    }
}

/// Something that was found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Trouble {
    /// One word for scripts: "machined-masked".
    pub code: &'static str,
    /// How bad.
    pub severity: Severity,
    /// The machine that it is about; `None` if it is about the host.
    pub machine: Option<String>,
    /// What is wrong: lower case, no final period.
    pub cause: String,
    /// Where that is to be seen.
    pub evidence: Vec<String>,
    /// What mends it: a command, where there is one.
    pub hints: Vec<String>,
}

/// Something that keeps machines from working.
pub fn error(code: &'static str, cause: impl Into<String>) -> Trouble {
    Trouble::new(Severity::Error, code, cause)
}

/// Something that does not work as most people expect.
pub fn warning(code: &'static str, cause: impl Into<String>) -> Trouble {
    Trouble::new(Severity::Warning, code, cause)
}

/// Something that explains.
pub fn note(code: &'static str, cause: impl Into<String>) -> Trouble {
    Trouble::new(Severity::Note, code, cause)
}

impl Trouble {
    /// Something that is to be told.
    #[must_use]
    pub fn new(severity: Severity, code: &'static str, cause: impl Into<String>) -> Self {
        Self {
            code,
            severity,
            machine: None,
            cause: cause.into(),
            evidence: Vec::new(),
            hints: Vec::new(),
        }
    }

    /// Says which machine it is about.
    #[must_use]
    pub fn of(mut self, machine: impl Into<String>) -> Self {
        self.machine = Some(machine.into());
        self
    }

    /// Adds where it is to be seen.
    #[must_use]
    pub fn seen(mut self, evidence: impl Into<String>) -> Self {
        self.evidence.push(evidence.into());
        self
    }

    /// Adds what mends it.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hints.push(hint.into());
        self
    }
}

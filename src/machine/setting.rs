//! One setting of a machine, where it comes from, and whether it holds.

use serde::{Serialize, Serializer};

/// What `config show` has a row for: one value of one setting.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Setting {
    /// The section of the .nspawn or unit file that it stands in; `CommandLine` for a switch of systemd-nspawn that no
    /// .nspawn file can say.
    pub section: String,
    /// The key, or the switch without its dashes; `None` of a line that has no key.
    pub key: Option<String>,
    /// One value, as it is written in files.
    pub value: String,
    /// Where it comes from.
    pub origin: Origin,
    /// Whether it holds.
    pub state: State,
    /// One word for scripts that tells why it does not hold, or what is peculiar about it: "unknown-key".
    pub code: Option<&'static str>,
    /// The same for people: lower case, no final period.
    pub reason: Option<String>,
}

impl Setting {
    /// A setting that holds.
    #[must_use]
    pub fn new(section: &str, key: &str, value: impl Into<String>, origin: Origin) -> Self {
        Self {
            section: section.to_owned(),
            key: Some(key.to_owned()),
            value: value.into(),
            origin,
            state: State::InForce,
            code: None,
            reason: None,
        }
    }

    /// The same in another state, and why.
    #[must_use]
    pub fn but(mut self, state: State, code: &'static str, reason: impl Into<String>) -> Self {
        self.state = state;
        self.code = Some(code);
        self.reason = Some(reason.into());
        self
    }

    /// `Section.Key`, or `--switch`.
    #[must_use]
    pub fn path(&self) -> String {
        match &self.key {
            Some(key) if self.section == COMMAND_LINE => format!("--{key}"),
            Some(key) if self.section.is_empty() => key.clone(),
            Some(key) => format!("{}.{key}", self.section),
            None => self.section.clone(),
        }
    }
}

/// The section of switches that no .nspawn file can say.
pub const COMMAND_LINE: &str = "CommandLine";

/// Whether a setting holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum State {
    /// The machine runs with it, or will when it is started.
    InForce,
    /// It is to have effect later: from the machine's next start, or when systemd has read its files again.
    Pending,
    /// It has no effect.
    Ignored,
}

impl State {
    /// The word for it: "in_force", "ignored", "pending".
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::InForce => "in_force",
            Self::Ignored => "ignored",
            Self::Pending => "pending",
        }
    }
}

impl Serialize for State {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

/// Where a setting comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Origin {
    /// What kind of place.
    pub kind: Source,
    /// The file, if it is one.
    pub file: Option<String>,
    /// The line in it, counted from 1; of a continued assignment the first.
    pub line: Option<usize>,
}

impl Origin {
    /// What nobody has set.
    pub const DEFAULT: Self = Self {
        kind: Source::Default,
        file: None,
        line: None,
    };

    /// A line of a file.
    #[must_use]
    pub fn line(kind: Source, file: &str, line: usize) -> Self {
        Self {
            kind,
            file: Some(file.to_owned()),
            line: Some(line),
        }
    }

    /// `file:line`, and "template:line" for what systemd ships; otherwise the word for it.
    #[must_use]
    pub fn text(&self) -> String {
        let place = match (self.kind, &self.file) {
            (Source::Template, _) => "template",
            (_, Some(file)) => file,
            (kind, None) => kind.as_str(),
        };
        self.line
            .map_or_else(|| place.to_owned(), |line| format!("{place}:{line}"))
    }
}

/// What kinds of places settings come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// A .nspawn file.
    Nspawn,
    /// The template unit, systemd-nspawn@.service.
    Template,
    /// A unit file of this machine alone.
    Unit,
    /// A drop-in of the unit.
    DropIn,
    /// A drop-in that `systemctl set-property` or its like has made.
    Property,
    /// A unit that was made for one run.
    Transient,
    /// The command line of the running systemd-nspawn.
    Process,
    /// systemd's memory: no file says it, or says it any more.
    Manager,
    /// Nobody has set it: systemd's default.
    Default,
}

impl Source {
    /// The word for it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Nspawn => "nspawn",
            Self::Template => "template",
            Self::Unit => "unit",
            Self::DropIn => "drop-in",
            Self::Property => "property",
            Self::Transient => "transient",
            Self::Process => "process",
            Self::Manager => "manager",
            Self::Default => "default",
        }
    }
}

impl Serialize for Source {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

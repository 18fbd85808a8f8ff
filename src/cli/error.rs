//! What the user sees of an error: kind, message, causes, hints, exit status. Nothing below `cli` decides any of these.

use serde::Serialize;

use crate::limit::LimitError;
use crate::machine::NameError;
use crate::ops::OpError;
use crate::output::table::TableError;
use crate::output::{Voice, error_json, error_lines};
use crate::sources::SourceError;
use crate::sys::bus::BusError;
use crate::sys::cgroup::CgroupError;
use crate::sys::enter::EnterError;

/// The kinds of failure that scripts tell apart, with their exit status.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// It was tried and failed: 1.
    Failed,
    /// The command line makes no sense: 2.
    Usage,
    /// No such machine or image: 3.
    NotFound,
    /// Not permitted: 4.
    Denied,
    /// systemd or a service of it is not available: 5.
    Unavailable,
    /// A wait timed out: 124.
    TimedOut,
    /// A command was not run for a reason of our own: 125.
    NotRun,
    /// A command is there and cannot be executed: 126.
    NotExecutable,
    /// There is no such command: 127.
    NoCommand,
    /// Whoever reads our output has gone: 141, as if SIGPIPE had ended us, and not a word.
    ClosedPipe,
    /// Ctrl-C, SIGTERM or SIGHUP: 130, as shells have it. What was begun has been undone.
    Interrupted,
}

impl Kind {
    /// The exit status of product's contract.
    #[must_use]
    pub fn exit_status(self) -> u8 {
        match self {
            Self::Failed => 1,
            Self::Usage => 2,
            Self::NotFound => 3,
            Self::Denied => 4,
            Self::Unavailable => 5,
            Self::TimedOut => 124,
            Self::NotRun => 125,
            Self::NotExecutable => 126,
            Self::NoCommand => 127,
            Self::ClosedPipe => 141,
            Self::Interrupted => 130,
        }
    }
}

/// An error as it is shown: what, why, and the command that mends it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CliError {
    /// What scripts tell apart.
    pub kind: Kind,
    /// What failed: lower case, the object named and quoted, no final period.
    pub message: String,
    /// Why, outermost first.
    pub causes: Vec<String>,
    /// What to do: a command where there is one.
    pub hints: Vec<String>,
}

impl CliError {
    /// An error with neither cause nor hint.
    #[must_use]
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
            causes: Vec::new(),
            hints: Vec::new(),
        }
    }

    /// Adds a hint.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hints.push(hint.into());
        self
    }

    /// Adds causes, outermost first.
    #[must_use]
    pub fn causes(mut self, causes: impl IntoIterator<Item = String>) -> Self {
        self.causes.extend(causes);
        self
    }

    /// A usage error.
    #[must_use]
    pub fn usage(message: impl Into<String>) -> Self {
        Self::new(Kind::Usage, message)
    }

    /// Shows it on stderr, as text or as `{"error":{…}}`.
    pub fn show(&self, voice: Voice) {
        #[derive(Serialize)]
        struct Envelope<'a> {
            error: &'a CliError,
        }
        if self.kind == Kind::ClosedPipe {
            return;
        }
        if voice.json {
            error_json(&Envelope { error: self });
        } else {
            error_lines(&self.message, &self.causes, &self.hints);
        }
    }
}

/// The `source()` chain below an error, outermost first, without lines that only repeat the one above.
pub(super) fn chain(error: &dyn std::error::Error) -> Vec<String> {
    let mut causes: Vec<String> = Vec::new();
    let mut above = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let text = cause.to_string();
        if !above.ends_with(&text) {
            causes.push(text.clone());
        }
        above = text;
        next = cause.source();
    }
    causes
}

impl From<BusError> for CliError {
    fn from(error: BusError) -> Self {
        let shown = error.to_string();
        match error {
            BusError::NoSuchMachine(name) => Self::new(Kind::NotFound, shown).hint(format!(
                "start it with `machinist start {name}`, or see `machinist list -a`"
            )),
            BusError::NoSuchImage(_) => Self::new(Kind::NotFound, shown).hint("see `machinist images`"),
            BusError::NoSuchUnit(_) => Self::new(Kind::NotFound, shown),
            BusError::Denied { .. } => Self::new(Kind::Denied, shown).hint("run it as root: `sudo machinist …`"),
            BusError::Unavailable { service, .. } => {
                let hint = match service {
                    "systemd-machined" => {
                        "install it with `apt install systemd-container`; if it is, see `systemctl status systemd-machined`"
                    }
                    "the system bus" => "start it with `systemctl start dbus`; if it is missing, `apt install dbus`",
                    _ => "is systemd running as PID 1? see `systemctl is-system-running`",
                };
                Self::new(Kind::Unavailable, shown).hint(hint)
            }
            BusError::Failed { .. } => Self::new(Kind::Failed, shown),
        }
    }
}

impl From<NameError> for CliError {
    fn from(error: NameError) -> Self {
        Self::usage(error.to_string()).hint("a machine name is like a host name: `web-1`, `db.example`")
    }
}

impl From<LimitError> for CliError {
    fn from(error: LimitError) -> Self {
        let hint = match &error {
            LimitError::Unknown { .. } => {
                "the limits are those of `machinist limit --help`, and all of systemd.resource-control(5)"
            }
            LimitError::NoLimit(_) => "set it with `systemctl edit UNIT`, see systemd.resource-control(5)",
            LimitError::Value { .. } => {
                "see `machinist limit --help`, systemd.resource-control(5) and systemd.nspawn(5)"
            }
            LimitError::Twice(..) => "give each limit once",
        };
        Self::usage(error.to_string()).hint(hint)
    }
}

impl From<CgroupError> for CliError {
    fn from(error: CgroupError) -> Self {
        let (kind, hint) = match &error {
            CgroupError::Name(_) => (Kind::Usage, "such as memory.high or cpu.max"),
            CgroupError::Missing { .. } => (Kind::Failed, "its controller may not be there: see cgroup.controllers"),
            CgroupError::Kernel { source, .. } if source.kind() == std::io::ErrorKind::PermissionDenied => {
                (Kind::Denied, "run it as root: `sudo machinist …`")
            }
            CgroupError::Kernel { .. } => (
                Kind::Failed,
                "see Documentation/admin-guide/cgroup-v2.rst of the kernel",
            ),
        };
        Self::new(kind, error.to_string()).causes(chain(&error)).hint(hint)
    }
}

impl From<TableError> for CliError {
    fn from(error: TableError) -> Self {
        Self::usage(error.to_string())
    }
}

impl From<std::io::Error> for CliError {
    fn from(error: std::io::Error) -> Self {
        let kind = match error.kind() {
            std::io::ErrorKind::BrokenPipe => Kind::ClosedPipe,
            _ => Kind::Failed,
        };
        Self::new(kind, format!("cannot write the output: {error}"))
    }
}

impl From<EnterError> for CliError {
    fn from(error: EnterError) -> Self {
        let kind = match &error {
            EnterError::NotFound(_) => Kind::NoCommand,
            EnterError::NotExecutable(..) => Kind::NotExecutable,
            _ => Kind::NotRun,
        };
        Self::new(kind, error.to_string()).causes(chain(&error))
    }
}

impl From<OpError> for CliError {
    fn from(error: OpError) -> Self {
        let kind = match &error {
            OpError::Bus(inner) => return inner.clone().into(),
            OpError::NoImage { .. } => Kind::NotFound,
            OpError::TimedOut { .. } => Kind::TimedOut,
            OpError::NeedsRoot { .. } => Kind::Denied,
            _ if error.is_interruption() => Kind::Interrupted,
            OpError::Name(_) | OpError::Source(SourceError::BadOption { .. }) => Kind::Usage,
            _ => Kind::Failed,
        };
        let mut causes = error.causes();
        causes.extend(chain(&error));
        Self {
            kind,
            message: error.to_string(),
            causes,
            hints: error.hints(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_has_the_status_of_the_contract() {
        let all = [
            Kind::Failed,
            Kind::Usage,
            Kind::NotFound,
            Kind::Denied,
            Kind::Unavailable,
            Kind::TimedOut,
            Kind::NotRun,
            Kind::NotExecutable,
            Kind::NoCommand,
            Kind::ClosedPipe,
            Kind::Interrupted,
        ];
        let statuses = [1, 2, 3, 4, 5, 124, 125, 126, 127, 141, 130];
        assert_eq!(all.map(Kind::exit_status), statuses);
    }

    #[test]
    fn bus_errors_keep_their_kind() {
        let missing = BusError::Unavailable {
            service: "systemd-machined",
            reason: "not activatable".into(),
        };
        let error = CliError::from(missing);
        assert_eq!(error.kind, Kind::Unavailable);
        assert!(error.hints[0].contains("systemd-container"));
    }
}

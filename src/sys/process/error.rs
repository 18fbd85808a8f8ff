//! Why a program did not do its work.

use std::io;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::ExitStatus;

use nix::sys::signal::Signal;

/// Why a program did not do its work.
#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    /// It is not installed.
    #[error("program '{program}' is not installed{}", .package.map(|p| format!(" (Debian package '{p}')")).unwrap_or_default())]
    NotFound {
        /// Its name.
        program: String,
        /// The Debian package that has it, where known.
        package: Option<&'static str>,
    },
    /// It could not be started, or its log or pipes could not be used.
    #[error("cannot run '{program}': {action}")]
    Start {
        /// Its name.
        program: String,
        /// What was tried.
        action: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// It ran, and failed.
    #[error("'{program}' {}", describe(*.status))]
    Failed {
        /// Its name.
        program: String,
        /// Exit code or signal.
        status: ExitStatus,
        /// The last lines of what it printed.
        #[source]
        tail: Option<Tail>,
        /// Where the whole of its output is kept.
        log: Option<PathBuf>,
    },
    /// The caller gave up; the child and its children are gone.
    #[error(transparent)]
    Cancelled(#[from] crate::machine::Cancelled),
}

/// The last lines of a program's output, as the cause of an error: one a line, with control characters escaped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tail(pub Vec<String>);

impl std::fmt::Display for Tail {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("its last output:")?;
        self.0.iter().try_for_each(|line| write!(f, "\n{line}"))
    }
}

impl std::error::Error for Tail {}

impl ProcessError {
    /// Commands that mend it, or that tell more.
    #[must_use]
    pub fn hints(&self) -> Vec<String> {
        match self {
            Self::NotFound {
                package: Some(package), ..
            } => vec![format!("install it with `apt install {package}`")],
            Self::Failed { log: Some(log), .. } => vec![format!("its whole output is kept in '{}'", log.display())],
            _ => Vec::new(),
        }
    }
}

/// How a program ended, in words: "failed with exit status 2", "was killed by signal 9".
#[must_use]
pub fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(0), _) => "succeeded".to_owned(),
        (Some(code), _) => format!("failed with exit status {code}"),
        (None, Some(number)) => match Signal::try_from(number) {
            Ok(signal) => format!("was killed by {signal}"),
            Err(_) => format!("was killed by signal {number}"),
        },
        (None, None) => "ended strangely".to_owned(),
    }
}

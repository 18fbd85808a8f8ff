//! Tables, JSON and progress: the only place that prints.

#![allow(clippy::print_stdout, clippy::print_stderr)]

pub mod progress;
pub mod table;
pub mod time;

use std::io::{self, IsTerminal as _, Write as _};

use serde::Serialize;

use crate::machine::text::printable;

/// How a verb speaks: what `--quiet` and `--json` left of its voice.
#[derive(Clone, Copy, Debug, Default)]
pub struct Voice {
    /// Status lines are silenced; warnings and errors are not.
    pub quiet: bool,
    /// Data and errors are JSON.
    pub json: bool,
}

impl Voice {
    /// A line of status on stderr: "started web".
    pub fn status(self, line: &str) {
        if !self.quiet && !self.json {
            warn_line("", line);
        }
    }

    /// A warning on stderr.
    pub fn warning(self, line: &str) {
        warn_line("warning: ", line);
    }

    /// A JSON value and a line break on stdout.
    pub fn json(self, value: &impl Serialize) -> io::Result<()> {
        let mut out = io::stdout().lock();
        // A terminal gets it indented: there a person reads.
        if out.is_terminal() {
            serde_json::to_writer_pretty(&mut out, value)?;
        } else {
            serde_json::to_writer(&mut out, value)?;
        }
        out.write_all(b"\n")
    }
}

/// Text on stdout as it is.
pub fn data(text: &str) -> io::Result<()> {
    io::stdout().lock().write_all(text.as_bytes())
}

/// The lines of an error, on stderr: message, causes, hints. See `cli::error` for what stands in them.
pub fn error_lines(message: &str, causes: &[String], hints: &[String]) {
    let style = anstyle::Style::new()
        .fg_color(Some(anstyle::AnsiColor::Red.into()))
        .bold();
    let mut err = anstream::stderr().lock();
    // stderr may be closed: then there is nobody to tell.
    let _ = writeln!(err, "{style}error:{style:#} {}", printable(message));
    for cause in causes {
        let _ = writeln!(err, "  caused by: {}", printable(cause));
    }
    for hint in hints {
        let _ = writeln!(err, "hint: {}", printable(hint));
    }
}

/// An error as JSON on stderr.
pub fn error_json(value: &impl Serialize) {
    let mut err = io::stderr().lock();
    let _ = serde_json::to_writer(&mut err, value);
    let _ = err.write_all(b"\n");
}

/// Asks a yes-or-no question on the terminal; "no" unless the answer begins with `y`.
pub fn confirm(question: &str) -> io::Result<bool> {
    let mut err = io::stderr().lock();
    write!(err, "{} [y/N] ", printable(question))?;
    err.flush()?;
    let mut answer = String::new();
    io::stdin().read_line(&mut answer)?;
    Ok(matches!(answer.trim_start().chars().next(), Some('y' | 'Y')))
}

fn warn_line(prefix: &str, line: &str) {
    let _ = writeln!(io::stderr().lock(), "{prefix}{}", printable(line));
}

//! Tables, JSON and progress: the only place that prints.

#![allow(clippy::print_stdout, clippy::print_stderr)]

pub mod diagnostic;
pub mod entry;
pub mod progress;
pub mod table;
pub mod time;
pub mod trouble;

use std::fmt::Write as _;
use std::io::{self, IsTerminal as _, Write as _};

use serde::Serialize;

use crate::machine::text::{escape, printable};

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
        out.write_all(json_for(out.is_terminal(), value)?.as_bytes())
    }
}

/// A line of JSON; for a terminal, where a person reads, indented and with nothing in it that could steer the terminal.
fn json_for(terminal: bool, value: &impl Serialize) -> serde_json::Result<String> {
    let mut text = if terminal {
        json_escaped(&serde_json::to_string_pretty(value)?)
    } else {
        serde_json::to_string(value)?
    };
    text.push('\n');
    Ok(text)
}

/// A JSON value on one line of stdout; on a terminal nothing in it can steer that.
pub fn json_line(value: &impl Serialize) -> io::Result<()> {
    let mut out = io::stdout().lock();
    let mut line = serde_json::to_string(value)?;
    if out.is_terminal() {
        line = json_escaped(&line);
    }
    writeln!(out, "{line}")
}

/// JSON with nothing in it that could steer a terminal: it means the same.
fn json_escaped(json: &str) -> String {
    // JSON itself escapes only what is below U+0020, and hostile characters stand in strings only.
    escape(json, |c, text| {
        let _ = write!(text, "\\u{:04x}", u32::from(c));
    })
}

/// Waits until nobody reads our standard output any more; for ever, if it is no pipe. Blocks.
pub fn until_closed() {
    use rustix::event::{PollFd, PollFlags, poll};
    let stdout = io::stdout();
    let mut fds = [PollFd::new(&stdout, PollFlags::empty())];
    while matches!(poll(&mut fds, None), Err(rustix::io::Errno::INTR)) {}
}

/// Text on stdout as it is.
pub fn data(text: &str) -> io::Result<()> {
    io::stdout().lock().write_all(text.as_bytes())
}

/// A text file on stdout, byte for byte; on a terminal nothing in it can steer that.
pub fn text_file(bytes: &[u8]) -> io::Result<()> {
    let mut out = io::stdout().lock();
    if !out.is_terminal() {
        return out.write_all(bytes);
    }
    for line in String::from_utf8_lossy(bytes).lines() {
        let shown: Vec<String> = line.split('\t').map(printable).collect();
        writeln!(out, "{}", shown.join("\t"))?;
    }
    Ok(())
}

/// Text with styles on stdout; without them where that is no terminal.
pub fn page(text: &str) -> io::Result<()> {
    anstream::stdout().lock().write_all(text.as_bytes())
}

/// One of our two outputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// Standard output.
    Out,
    /// Standard error.
    Err,
}

/// A line of a program in a machine, with the machine's name before it. On a terminal nothing in it can steer that.
pub fn write_line(stream: Stream, name: &str, line: &[u8]) -> io::Result<()> {
    let line = line.strip_suffix(b"\n").unwrap_or(line);
    let write = |out: &mut dyn io::Write, terminal: bool| {
        let text = [name.as_bytes(), b": ", line, b"\n"].concat();
        if terminal {
            writeln!(out, "{name}: {}", printable(&String::from_utf8_lossy(line)))
        } else {
            out.write_all(&text)
        }
    };
    match stream {
        Stream::Out => write(&mut io::stdout().lock(), io::stdout().is_terminal()),
        Stream::Err => write(&mut io::stderr().lock(), io::stderr().is_terminal()),
    }
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
        let _ = writeln!(err, "{}", cause_lines(cause));
    }
    for hint in hints {
        let _ = writeln!(err, "hint: {}", printable(hint));
    }
}

/// A cause as it is shown. The output of a program has lines, of which none can pass for one of ours.
fn cause_lines(cause: &str) -> String {
    let lines: Vec<String> = cause.lines().map(printable).collect();
    format!("  caused by: {}", lines.join("\n    "))
}

/// An error as JSON on stderr.
pub fn error_json(value: &impl Serialize) {
    let mut err = io::stderr().lock();
    let _ = json_for(err.is_terminal(), value).map(|text| err.write_all(text.as_bytes()));
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

#[cfg(test)]
mod tests {
    use super::{cause_lines, json_for};

    #[test]
    fn a_cause_has_its_lines_and_each_is_escaped() {
        assert_eq!(
            cause_lines("its last output:\nW: no\x1b[2J\nhint: run me"),
            "  caused by: its last output:\n    W: no\\u{1b}[2J\n    hint: run me"
        );
    }

    #[test]
    fn json_on_a_terminal_steers_nothing() {
        let value = serde_json::json!({ "id": "x\u{9b}31m\u{202e}é" });
        let shown = json_for(true, &value).unwrap();
        assert_eq!(shown, "{\n  \"id\": \"x\\u009b31m\\u202eé\"\n}\n");
        assert_eq!(serde_json::from_str::<serde_json::Value>(&shown).unwrap(), value);
        assert_eq!(json_for(false, &1).unwrap(), "1\n");
    }
}

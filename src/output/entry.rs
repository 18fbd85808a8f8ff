//! Entries of journals, as journalctl(1) shows them.

use std::fmt::Write as _;
use std::io::{self, BufWriter, IsTerminal as _, Stdout, Write as _};

use super::{json_escaped, time};
use crate::machine::text::printable;

/// How entries are shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Style {
    /// Time, host, program and message
    #[default]
    Short,
    /// An object a line, with all fields
    Json,
    /// The message alone
    Cat,
}

/// An entry to be shown. Nothing in its fields is trusted.
#[derive(Clone, Copy, Debug)]
pub struct Shown<'a> {
    /// Whose it is.
    pub machine: &'a str,
    /// Who says it: "supervisor", "console" or "guest".
    pub source: &'a str,
    /// µs since 1970.
    pub time: u64,
    /// Its fields: (name, value).
    pub fields: &'a [(&'a str, &'a [u8])],
}

/// What JSON has of ours beside the fields of the entry.
const MACHINE: &str = "MACHINIST_MACHINE";
const SOURCE: &str = "MACHINIST_SOURCE";
/// Entries with more fields than that are not those of a sane program.
const FEW: usize = 64;

impl Shown<'_> {
    fn text(&self, name: &str) -> Option<std::borrow::Cow<'_, str>> {
        let found = self.fields.iter().find(|(found, _)| *found == name);
        found.map(|(_, value)| String::from_utf8_lossy(value))
    }
}

/// Shows entries on stdout, one after the other.
#[derive(Debug)]
pub struct Printer {
    out: BufWriter<Stdout>,
    style: Style,
    /// Machines are named.
    several: bool,
    terminal: bool,
    /// The last second that was shown, and how.
    second: (u64, String),
}

impl Printer {
    /// A printer; with `several`, lines begin with the name of the machine.
    #[must_use]
    pub fn new(style: Style, several: bool) -> Self {
        Self {
            out: BufWriter::with_capacity(64 << 10, io::stdout()),
            style,
            several,
            terminal: io::stdout().is_terminal(),
            second: (u64::MAX, String::new()),
        }
    }

    /// Shows an entry, soon: see [`Printer::flush`].
    pub fn show(&mut self, entry: &Shown<'_>) -> io::Result<()> {
        match self.style {
            Style::Short => self.short(entry),
            Style::Cat => self.cat(entry),
            Style::Json => {
                let line = json(entry);
                let line = if self.terminal { json_escaped(&line) } else { line };
                writeln!(self.out, "{line}")
            }
        }
    }

    /// Shows what was not shown yet.
    pub fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }

    fn name<'a>(&self, entry: &Shown<'a>) -> (&'a str, &'static str) {
        if self.several { (entry.machine, ": ") } else { ("", "") }
    }

    fn short(&mut self, entry: &Shown<'_>) -> io::Result<()> {
        let Some(message) = entry.text("MESSAGE") else {
            return Ok(());
        };
        let second = entry.time / 1_000_000;
        if self.second.0 != second {
            self.second = (second, time::short(entry.time));
        }
        let (name, colon) = self.name(entry);
        let mut head = format!("{name}{colon}{}", self.second.1);
        if let Some(host) = entry.text("_HOSTNAME") {
            let _ = write!(head, " {}", printable(&host));
        }
        let program = entry.text("SYSLOG_IDENTIFIER").or_else(|| entry.text("_COMM"));
        let _ = write!(head, " {}", printable(program.as_deref().unwrap_or("unknown")));
        if let Some(pid) = entry.text("_PID").or_else(|| entry.text("SYSLOG_PID")) {
            let _ = write!(head, "[{}]", printable(&pid));
        }
        head.push_str(": ");
        let mut lines = message.trim_end().split('\n');
        writeln!(self.out, "{head}{}", plain(lines.next().unwrap_or_default()))?;
        // No line of a message can pass for the first of another entry.
        let indent = head.chars().count();
        lines.try_for_each(|line| writeln!(self.out, "{:indent$}{}", "", plain(line)))
    }

    fn cat(&mut self, entry: &Shown<'_>) -> io::Result<()> {
        let Some((_, message)) = entry.fields.iter().find(|(name, _)| *name == "MESSAGE") else {
            return Ok(());
        };
        let (name, colon) = self.name(entry);
        for line in message.split(|byte| *byte == b'\n') {
            write!(self.out, "{name}{colon}")?;
            if self.terminal {
                self.out.write_all(plain(&String::from_utf8_lossy(line)).as_bytes())?;
            } else {
                self.out.write_all(line)?;
            }
            self.out.write_all(b"\n")?;
        }
        Ok(())
    }
}

/// The last so many lines of what a terminal has shown, or all of them, with nothing in them that steers one; the last has no
/// end if it had none.
#[must_use]
pub fn last_lines(shown: &[u8], lines: Option<usize>) -> Vec<String> {
    let mut all: Vec<&[u8]> = shown.split(|byte| *byte == b'\n').collect();
    // Nothing after the last end of a line is no line.
    let wanted = lines.map_or(all.len(), |lines| {
        lines + usize::from(lines > 0 && all.last().is_some_and(|last| last.is_empty()))
    });
    let all = all.split_off(all.len().saturating_sub(wanted));
    all.into_iter()
        .map(|line| plain(&String::from_utf8_lossy(line)))
        .collect()
}

/// A line that steers no terminal: colours are left out, tabs are blanks, all else is escaped.
fn plain(line: &str) -> String {
    let mut shown = String::with_capacity(line.len());
    let mut rest = line.trim_end_matches('\r');
    while let Some(at) = rest.find(['\x1b', '\t']) {
        shown.push_str(&rest[..at]);
        rest = &rest[at..];
        if let Some(after) = rest.strip_prefix('\t') {
            shown.push_str("        ");
            rest = after;
        } else if let Some(after) = after_colour(rest) {
            rest = after;
        } else {
            shown.push('\x1b');
            rest = &rest[1..];
        }
    }
    shown.push_str(rest);
    printable(&shown)
}

/// What follows a sequence that sets colours, `ESC [ … m`.
fn after_colour(text: &str) -> Option<&str> {
    let parameters = text.strip_prefix("\x1b[")?;
    let end = parameters.find(|c: char| !(c.is_ascii_digit() || c == ';'))?;
    parameters[end..].strip_prefix('m')
}

/// The entry as `journalctl -o json` has it: what is no printable text is an array of bytes, what comes more than once an
/// array of values. Ours come first, and nothing in the entry is called so.
fn json(entry: &Shown<'_>) -> String {
    let mut text = format!(
        "{{\"{MACHINE}\":{},\"{SOURCE}\":{}",
        string(entry.machine),
        string(entry.source)
    );
    let mut fields = entry.fields.to_vec();
    if fields.len() > FEW {
        fields.sort_by_key(|(name, _)| *name);
    }
    let mut at = 0;
    while let Some((name, value)) = fields.get(at) {
        let is_first = fields[..at].iter().rev().take(FEW).all(|(former, _)| former != name);
        if is_first && ![MACHINE, SOURCE].contains(name) {
            let _ = write!(text, ",{}:", string(name));
            let others = fields[at + 1..].iter().filter(|(other, _)| other == name);
            let mut others = others.peekable();
            if others.peek().is_none() {
                push_value(&mut text, value);
            } else {
                text.push('[');
                push_value(&mut text, value);
                for (_, other) in others {
                    text.push(',');
                    push_value(&mut text, other);
                }
                text.push(']');
            }
        }
        at += 1;
    }
    text.push('}');
    text
}

fn push_value(text: &mut String, value: &[u8]) {
    match std::str::from_utf8(value) {
        Ok(value) if !value.chars().any(|c| c.is_control() && !matches!(c, '\n' | '\t')) => {
            text.push_str(&string(value));
        }
        _ => {
            let numbers: Vec<String> = value.iter().map(u8::to_string).collect();
            let _ = write!(text, "[{}]", numbers.join(","));
        }
    }
}

fn string(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown<'a>(fields: &'a [(&'a str, &'a [u8])]) -> Shown<'a> {
        Shown {
            machine: "web",
            source: "guest",
            time: 0,
            fields,
        }
    }

    #[test]
    fn nothing_steers_a_terminal() {
        assert_eq!(plain("\x1b[0;32m  OK  \x1b[0m up\r"), "  OK   up");
        assert_eq!(plain("a\x1b[2Jb\tc\x1b"), "a\\u{1b}[2Jb        c\\u{1b}");
        assert_eq!(plain("\x1b[31"), "\\u{1b}[31");
    }

    #[test]
    fn the_last_lines_are_kept() {
        let last = |lines| last_lines(b"a\r\n\x1b[1mb\x1b[0m\r\nlogin: ", lines).join("|");
        assert_eq!(last(None), "a|b|login: ");
        assert_eq!(last(Some(2)), "b|login: ");
        assert_eq!(last(Some(0)), "");
        assert_eq!(last_lines(b"a\r\nb\r\n", Some(1)), ["b", ""]);
        assert_eq!(last_lines(b"", Some(5)), [""]);
    }

    #[test]
    fn json_is_as_journalctl_has_it() {
        let fields: [(&str, &[u8]); 6] = [
            ("MESSAGE", b"hi \"you\"\n"),
            ("A", b"1"),
            ("MACHINIST_MACHINE", b"other"),
            ("B", b"\x1b"),
            ("A", b"2"),
            ("MACHINIST_SOURCE", b"supervisor"),
        ];
        let line = json(&shown(&fields));
        assert_eq!(
            line,
            r#"{"MACHINIST_MACHINE":"web","MACHINIST_SOURCE":"guest","MESSAGE":"hi \"you\"\n","A":["1","2"],"B":[27]}"#
        );
        let many: Vec<(&str, &[u8])> = (0..200)
            .map(|at| (if at % 2 == 0 { "A" } else { "B" }, b"x".as_slice()))
            .collect();
        let value: serde_json::Value = serde_json::from_str(&json(&shown(&many))).unwrap();
        assert_eq!(value.as_object().map(serde_json::Map::len), Some(4));
        assert_eq!(value["B"].as_array().map(Vec::len), Some(100));
    }
}

//! The entries of a unit in the host's journal, by journalctl(1): as much of it as the caller may read.

use std::time::{Duration, SystemTime};

use super::entry::{CURSOR, Entries, Entry};
use super::{Batch, From, Gone, Query, Sink};
use crate::sys::process::{ProcessError, start_beside};
use crate::unit::console::unit_beside;

/// What the supervisor is called in the journal, where it passes on what the console shows.
const CONSOLE: &str = "systemd-nspawn";
/// What is needed to tell who said it.
const TELLING: [&str; 2] = ["_TRANSPORT", "SYSLOG_IDENTIFIER"];
/// How long to wait until journalctl is started again.
const PAUSE: Duration = Duration::from_secs(1);

/// A unit, and what of it is wanted.
#[derive(Clone, Debug)]
pub struct Unit {
    /// Its name.
    pub name: String,
    /// What systemd and systemd-nspawn say.
    pub supervisor: bool,
    /// What the console shows.
    pub console: bool,
}

impl Unit {
    fn takes(&self, from: From) -> bool {
        match from {
            From::Console => self.console,
            _ => self.supervisor,
        }
    }
}

/// Who says it. On 252 systemd-nspawn itself speaks as the console does.
fn from(entry: &Entry) -> From {
    let is = |name: &str, value: &str| entry.get(name) == Some(value.as_bytes());
    if is("_TRANSPORT", "stdout") && is("SYSLOG_IDENTIFIER", CONSOLE) {
        From::Console
    } else {
        From::Supervisor
    }
}

/// µs since 1970, as journalctl takes it.
pub(super) fn at(micros: u64) -> String {
    format!("@{}.{:06}", micros / 1_000_000, micros % 1_000_000)
}

/// Tells all entries of the unit to `sink`, and with `query.follow` those that come. Blocks.
pub(super) fn tell(unit: &Unit, query: &Query, mut sink: Sink) {
    let _ = tell_all(unit, query, &mut sink);
}

fn tell_all(unit: &Unit, query: &Query, sink: &mut Sink) -> Result<(), Gone> {
    let begun = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    let begun = u64::try_from(begun.as_micros()).unwrap_or(0);
    let mut words: Vec<String> = Vec::new();
    if let Some(after) = &query.after {
        words.push(format!("--after-cursor={after}"));
    } else if let Some(since) = query.since {
        words.push(format!("--since={}", at(since)));
    }
    if let Some(until) = query.until {
        words.push(format!("--until={}", at(until)));
    }
    // With a time, it would be the first of them.
    if let Some(lines) = query
        .lines
        .filter(|_| words.is_empty() && unit.console && unit.supervisor)
    {
        words.push(format!("--lines={lines}"));
    }
    let mut cursor = query.after.clone();
    if query.lines != Some(0) {
        tell_some(unit, query, &words, &mut cursor, sink)?;
    }
    sink.caught_up();
    if !query.follow {
        return Ok(());
    }
    loop {
        let from_here = match &cursor {
            Some(cursor) => format!("--after-cursor={cursor}"),
            None => format!("--since={}", at(begun)),
        };
        let words = ["--follow".to_owned(), "--no-tail".to_owned(), from_here];
        tell_some(unit, query, &words, &mut cursor, sink)?;
        std::thread::sleep(PAUSE);
    }
}

/// One call of journalctl; `cursor` is the last entry that was seen.
fn tell_some(
    unit: &Unit,
    query: &Query,
    words: &[String],
    cursor: &mut Option<String>,
    sink: &mut Sink,
) -> Result<(), Gone> {
    let mut all = vec![
        "--output=export".to_owned(),
        "--no-pager".to_owned(),
        "--quiet".to_owned(),
        format!("--unit={}", unit.name),
    ];
    // A console that can be typed into is passed on by who keeps it.
    let beside = unit_beside(&unit.name).filter(|_| unit.console);
    all.extend(beside.map(|beside| format!("--unit={beside}")));
    if let Some(fields) = &query.fields {
        let wanted = fields.iter().map(String::as_str).chain(TELLING);
        all.push(format!("--output-fields={}", wanted.collect::<Vec<_>>().join(",")));
    }
    all.extend_from_slice(words);
    let all: Vec<&str> = all.iter().map(String::as_str).collect();
    let (handle, output) = match start_beside("journalctl", &all) {
        Ok(started) => started,
        Err(error @ ProcessError::NotFound { .. }) => return sink.note(&error.to_string()).and(Err(Gone)),
        Err(error) => return sink.note(&error.to_string()),
    };
    let mut entries = Entries::new(output);
    let mut batch = Batch::default();
    let mut said = Ok(());
    while let Ok(Some(entry)) = entries.next() {
        *cursor = entry.text(CURSOR).or(cursor.take());
        let from = from(&entry);
        if unit.takes(from) {
            batch.push(from, entry);
        }
        if batch.is_full() || entries.may_wait() {
            said = sink.send_batch(&mut batch);
        }
        if said.is_err() {
            break;
        }
    }
    // It ends with its pipe, if it has not already.
    let _ = handle.kill().and_then(|()| handle.wait().map(drop));
    said.and_then(|()| sink.send_batch(&mut batch))
}

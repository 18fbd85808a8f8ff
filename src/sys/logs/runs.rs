//! When a machine ran, and what people say of times: by systemd's own words.

use super::entry::Entries;
use super::guest::{self, Guest};
use super::{Item, Query, Sink};
use crate::machine::Cancel;
use crate::sys::process::{ProcessError, Program};

/// `SD_MESSAGE_UNIT_STARTING` and `SD_MESSAGE_UNIT_STARTED`, see `systemd.journal-fields(7)` and sd-messages.h.
const STARTING: &str = "7d4958e842da4a758f6c1cdc7b36dcc5";
const STARTED: &str = "39f53479d3a045ac8e11786248231fbf";

/// A time of a machine's: from one start to the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// µs since 1970.
    pub began: u64,
    /// µs since 1970, the last before the next one began; `None` of the last.
    pub ended: Option<u64>,
}

/// When systemd started a unit, oldest first. Blocks.
pub fn of_unit(unit: &str, cancel: &Cancel) -> Result<Vec<Run>, ProcessError> {
    let matches = [
        "_PID=1".to_owned(),
        format!("UNIT={unit}"),
        format!("MESSAGE_ID={STARTING}"),
        format!("MESSAGE_ID={STARTED}"),
    ];
    let mut starts: Vec<u64> = Vec::new();
    let mut announced = false;
    for (time, id) in times(&matches, &[], cancel)? {
        // A service that says when it is ready is first announced.
        let begins = id == STARTING || !announced;
        announced = id == STARTING;
        if begins {
            starts.push(time);
        }
    }
    let ends = starts.iter().skip(1).map(|next| Some(next.saturating_sub(1)));
    let ends: Vec<_> = ends.chain([None]).collect();
    Ok(starts
        .iter()
        .zip(ends)
        .map(|(began, ended)| Run { began: *began, ended })
        .collect())
}

/// Waits until the host's journal has all that was said before. Only for root; for others it is as complete as it is. Blocks.
pub fn sync(cancel: &Cancel) {
    let _ = Program::new("journalctl").arg("--sync").run(cancel);
}

/// When something was said in the invocation of a unit that has this ID. Blocks.
pub fn invocation_began(unit: &str, id: &str, cancel: &Cancel) -> Result<Option<u64>, ProcessError> {
    let matches = [
        format!("_SYSTEMD_INVOCATION_ID={id}"),
        format!("_SYSTEMD_UNIT={unit}"),
        "+".to_owned(),
        format!("INVOCATION_ID={id}"),
        format!("UNIT={unit}"),
        "_PID=1".to_owned(),
    ];
    Ok(times(&matches, &["--lines=1"], cancel)?.first().map(|(time, _)| *time))
}

/// When a guest first said something in the boot of this ID. Blocks.
#[must_use]
pub fn boot_began(guest: &Guest, boot: u128) -> Option<u64> {
    let (past, heard) = std::sync::mpsc::sync_channel(1);
    let (live, _) = std::sync::mpsc::sync_channel(1);
    let sink = Sink {
        machine: 0,
        past: Some(past),
        live,
    };
    let mut order = Query {
        fields: Some(vec!["MESSAGE_ID".to_owned()]),
        ..Query::default()
    }
    .order();
    order.boot = Some(boot);
    std::thread::scope(|scope| {
        scope.spawn(|| guest::tell(guest, order, sink));
        let mut items = heard.into_iter();
        items.find_map(|item| match item {
            Item::Entries(entries) => entries.first().map(|(_, entry)| entry.time),
            _ => None,
        })
    })
}

/// The times of entries, and their message IDs.
fn times(matches: &[String], options: &[&str], cancel: &Cancel) -> Result<Vec<(u64, String)>, ProcessError> {
    let fixed = ["--output=export", "--output-fields=MESSAGE_ID", "--no-pager", "--quiet"];
    let output = Program::new("journalctl")
        .args(fixed)
        .args(options.iter().copied())
        .args(matches.iter().cloned())
        .run(cancel)?;
    let mut entries = Entries::new(output.stdout.as_slice());
    let mut found = Vec::new();
    while let Ok(Some(entry)) = entries.next() {
        found.push((entry.time, entry.text("MESSAGE_ID").unwrap_or_default()));
    }
    Ok(found)
}

/// A time as systemd.time(7) has it, in µs since 1970. Blocks.
pub fn when(text: &str, cancel: &Cancel) -> Result<Option<u64>, ProcessError> {
    let output = Program::new("systemd-analyze")
        .args(["timestamp", "--", text])
        .inherit_env("TZ")
        .run_any(cancel, &mut |_| {})?;
    let said = String::from_utf8_lossy(&output.stdout);
    let line = said
        .lines()
        .find_map(|line| line.trim_start().strip_prefix("UNIX seconds: @"));
    Ok(line.filter(|_| output.status.success()).and_then(micros))
}

/// Seconds with or without a fraction, in µs.
fn micros(seconds: &str) -> Option<u64> {
    let (whole, fraction) = seconds.split_once('.').unwrap_or((seconds, ""));
    let fraction: u64 = format!("{fraction:0<6}").get(..6)?.parse().ok()?;
    whole.parse::<u64>().ok()?.checked_mul(1_000_000)?.checked_add(fraction)
}

#[cfg(test)]
mod tests {
    use super::micros;

    #[test]
    fn seconds_become_microseconds() {
        assert_eq!(micros("1700000000"), Some(1_700_000_000_000_000));
        assert_eq!(micros("1.5"), Some(1_500_000));
        assert_eq!(micros("1.000001"), Some(1_000_001));
        assert_eq!(micros("-1"), None);
    }
}
